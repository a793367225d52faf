//! `pfimg audit --events`: session events in files, whatever form they have, and logs of a store as files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::cli::{Output, pfimg_on};
use crate::common::forks::small_store;
use crate::common::pfimg;
use serde_json::{Value, json};

const SUSPENDED: &str =
    r#"{"kind":"suspended","turn":3,"category":"sched","reason":"ask_user","pending_calls":["c1"]}"#;

/// A folder with a file of events in it.
struct Events {
    dir: tempfile::TempDir,
}

impl Events {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("events")
    }

    fn audit(&self, bytes: &[u8], args: &[&str]) -> Output {
        fs::write(self.path(), bytes).unwrap();
        pfimg(["audit", "--events", self.path().to_str().unwrap()].iter().chain(args))
    }
}

#[test]
fn an_event_that_lacks_what_its_kind_needs_is_named_with_its_line_and_exits_with_4() {
    let events = Events::new();
    events.audit(SUSPENDED.as_bytes(), &[]).exits(0);
    events.audit(b"{\"kind\":\"invented_tomorrow\",\"turn\":\"x\"}\n", &[]).exits(0);
    for (wrong, why) in [
        (r#"{"kind":"suspended","turn":1,"category":"sched"}"#, "suspended: \"reason\" is missing"),
        (
            r#"{"kind":"budget_exceeded","turn":"1","budget":"b"}"#,
            "budget_exceeded: \"turn\" is not a whole number",
        ),
        (r#"{"kind":"tool_gated","turn":1,"category":5}"#, "tool_gated: \"call_id\" is missing"),
        (r#"{"kind":"page_in","turn":1,"entry_count":1,"category":5}"#, "page_in: \"category\" is not text"),
        (r#"{"kind":"page_in","turn":1,"#, "it begins as JSON but is not valid JSON"),
    ] {
        let file = format!("{SUSPENDED}\n{wrong}\n");
        let said = events.audit(file.as_bytes(), &["--json"]).exits(4);
        assert!(said.stderr.contains(&format!("line 2: {why}")), "{}", said.said());
        let json = said.json();
        assert_eq!((&json["events"], &json["faults"]["count"]), (&json!(1), &json!(1)), "{json}");
        assert_eq!(json["faults"]["first"][0]["line"], 2);
        assert!(events.audit(file.as_bytes(), &[]).exits(4).stdout.contains("1 event, 1 faulty event"));
        events.audit(file.as_bytes(), &["--lenient"]).exits(0);
    }
    let many = "{\"kind\":\"resumed\"}\n".repeat(25);
    let said = events.audit(many.as_bytes(), &[]).exits(4).stderr;
    assert!(
        said.contains("line 20: ")
            && !said.contains("line 21: ")
            && said.contains("and 5 more faulty events"),
        "{said}"
    );
}

#[test]
fn a_file_without_an_event_is_refused_as_a_log() {
    let events = Events::new();
    for (bytes, said) in [
        (&b""[..], "is empty"),
        (b"\n\n", "is empty"),
        (b"\x7fELF\x02\x01\x01\0\n\0\0", "holds no session event"),
        (b"{\"role\":\"user\",\"content\":\"hi\"}\n", "holds no session event"),
        (b"[]", "holds no session event"),
        (b"[{\"kind\":", "the array of events is not JSON"),
    ] {
        for args in [&[][..], &["--json"], &["--verify"]] {
            let refused = events.audit(bytes, args).exits(2).stderr;
            assert!(refused.contains(said), "{refused}");
        }
        events.audit(bytes, &["--lenient"]).exits(0);
    }
}

#[test]
fn a_log_in_utf_16_is_refused_with_the_command_that_converts_it_and_a_byte_order_mark_is_read_over() {
    let events = Events::new();
    let utf16: Vec<u8> = SUSPENDED.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [utf16.clone(), [&b"\xff\xfe"[..], &utf16].concat()] {
        let said = events.audit(&bytes, &[]).exits(2).stderr;
        assert!(said.contains("UTF-16") && said.contains("iconv -f UTF-16 -t UTF-8"), "{said}");
    }
    let marked = format!("\u{feff}{SUSPENDED}\n{SUSPENDED}\n");
    assert_eq!(events.audit(marked.as_bytes(), &["--json"]).exits(0).json()["events"], 2);
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(SUSPENDED).unwrap()).unwrap();
    let json = events.audit(pretty.as_bytes(), &["--json"]).exits(0).json();
    assert_eq!((&json["events"], &json["others"]), (&json!(1), &json!(0)));
}

#[test]
fn the_text_has_every_field_of_the_snapshot() {
    let events = Events::new();
    let log = [
        SUSPENDED,
        r#"{"kind":"signal_delivery_disposed","turn":2,"signal_id":"sig-a","disposition":"queue","queue_depth":76}"#,
        r#"{"kind":"budget_exceeded","turn":31,"category":"net","budget":"tokens"}"#,
        r#"{"kind":"resumed","turn":51,"category":"sched"}"#,
    ];
    let said = events.audit(log.join("\n").as_bytes(), &[]).exits(0).stdout;
    for line in [
        "  categories  inferred from the kind where an event says none: ipc 1, sched 2, unknown 1",
        "  unknown categories  net",
        "  last_resumed  turn 51",
        "  last_suspend  turn 3: ask_user, waiting for c1",
        "  page_in  0",
        "  page_out  0",
        "  tool_gated  0",
        "  memory_written  0",
        "  memory_queried  0",
        "  memory_validation_failed  0",
        "  memory_retrieval_result  0",
        "  budget_exceeded  turn 31: tokens",
        "  signal  turn 2: sig-a, queue, queue_depth 76",
    ] {
        assert!(said.lines().any(|said| said == line), "{line:?} is missing in\n{said}");
    }
}

/// What `--json` prints of a session, byte for byte.
#[test]
fn json_of_a_golden_session_is_printed_as_the_golden_file_has_it() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-tests/golden/session");
    let said = crate::common::cli::Run::program(
        Path::new(crate::common::PFIMG),
        ["audit", "--events", "events_ask_user.json", "--json"],
    )
    .dir(&golden)
    .run();
    let expected = fs::read_to_string(golden.join("audit_ask_user.json")).unwrap();
    assert_eq!(said.exits(0).stdout, expected);
}

#[test]
fn verifying_a_file_finds_lines_that_were_cut_off_its_beginning() {
    let (store, id) = small_store();
    for name in ["a", "b", "c"] {
        pfimg_on(store.root(), ["tag", &id, name]).exits(0);
    }
    let log = fs::read_to_string(store.root().join("audit/events.jsonl")).unwrap();
    let lines: Vec<&str> = log.split_inclusive('\n').collect();
    let events = Events::new();
    assert!(events.audit(log.as_bytes(), &["--verify"]).exits(0).stdout.contains(", whole"));
    for cut in [&lines[1..], &lines[1..2]] {
        let said = events.audit(cut.concat().as_bytes(), &["--verify"]).exits(4).stderr;
        assert!(said.contains("line 1: it has number 2 instead of 1"), "{said}");
    }
    // A file that was set aside has the number of its first line in its name.
    let verify = |name: &str| {
        let path = events.dir.path().join(name);
        fs::write(&path, lines[1..].concat()).unwrap();
        pfimg(["audit", "--verify", "--events", path.to_str().unwrap()])
    };
    verify("events-000000000002.jsonl").exits(0);
    verify("events-000000000003.jsonl").exits(4);
    verify("events.jsonl").exits(4);
    fs::remove_file(events.dir.path().join("events-000000000002.jsonl")).unwrap();
    fs::remove_file(events.dir.path().join("events-000000000003.jsonl")).unwrap();
    // The newest file continues where the one before it ends.
    fs::write(events.dir.path().join("events-000000000001.jsonl"), lines[0]).unwrap();
    verify("events.jsonl").exits(0);
    let said = pfimg_on(store.root(), ["audit", "--verify"]).exits(0).stdout;
    assert!(said.contains(", whole"), "{said}");
}

#[test]
fn a_store_without_a_log_has_an_empty_one() {
    let (store, _) = small_store();
    assert!(pfimg_on(store.root(), ["audit", "--verify"]).exits(0).stdout.contains(": 0 events, head 0 "));
    assert!(pfimg_on(store.root(), ["audit", "--verify"]).exits(0).stdout.contains(", empty"));
}
