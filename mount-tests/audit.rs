//! The audit log of a store: the events of a mount and of the commands, changes that show, and the crash
//! packs of violations.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::common::cli::{Output, Run, pfimg_on, tool};
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{fork, small_store};
use crate::common::{Mount, PFIMG, errno, names, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

fn log_path(store: &FastStore) -> PathBuf {
    store.root().join("audit/events.jsonl")
}

/// The lines of the log, as JSON.
fn lines(store: &FastStore) -> Vec<Value> {
    let text = fs::read_to_string(log_path(store)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events of one kind.
fn events(store: &FastStore, kind: &str) -> Vec<Value> {
    lines(store).into_iter().map(|line| line["event"].clone()).filter(|event| event["kind"] == kind).collect()
}

fn audit(store: &FastStore, args: &[&str]) -> Output {
    pfimg_on(store.root(), ["audit"].iter().chain(args))
}

/// The agents of a snapshot with their states.
fn agents(snapshot: &Value) -> Vec<(String, String)> {
    let of = |process: &Value, key: &str| process[key].as_str().unwrap().to_owned();
    let all = snapshot["process_by_agent"].as_array().unwrap();
    all.iter().map(|process| (of(process, "agent_id"), of(process, "state"))).collect()
}

#[test]
fn the_life_of_a_mount_is_in_the_log_and_the_mount_shows_what_the_log_adds_up_to() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    fork(&mount, "a", &id);
    fork(&mount, "b", "a");
    fs::rename(mount.join("forks/b"), mount.join("forks/c")).unwrap();
    pfimg_on(store.root(), ["discard", "a"]).exits(0);
    // To anyone but root, the kernel names the file's mode before it asks.
    assert_eq!(errno(fs::create_dir(mount.join("images/new"))), libc::EROFS);
    pfimg_on(store.root(), ["tag", &id, "t"]).exits(0);
    fs::rename(mount.join("tags/t"), mount.join("tags/u")).unwrap();
    fs::read(mount.join("forks/c/world/fs/big")).unwrap();

    let shown: Value = serde_json::from_slice(&fs::read(mount.join(".pfimg/audit.json")).unwrap()).unwrap();
    let said = audit(&store, &["--verify", "--json"]).exits(0).json();
    assert_eq!(shown["snapshot"], said["snapshot"], "live and rebuilt");
    assert_eq!((&shown["seq"], &shown["head"]), (&said["head"]["seq"], &said["head"]["hash"]));
    assert_eq!((&shown["broken"], &shown["categories"]), (&Value::Null, &json!("said")));
    let expected = [("a", "aborted"), ("b", "renamed"), ("c", "running")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(agents(&shown["snapshot"]), expected);
    assert_eq!(shown["snapshot"]["tool_gated_count"], 1);
    let gated = &events(&store, "tool_gated")[0];
    assert_eq!((&gated["tool"], &gated["path"]), (&json!("create"), &json!("images/new")));
    assert!(shown["snapshot"]["page_in_count"].as_u64() > Some(0));
    assert_eq!(fs::read(mount.join(".pfimg/events.jsonl")).unwrap(), fs::read(log_path(&store)).unwrap());
    let changed = events(&store, "capability_changed");
    assert_eq!(
        (&changed[0]["added"], &changed[0]["image"]),
        (&json!(["tag:t"]), &json!(format!("sha256:{id}")))
    );
    assert_eq!((&changed[1]["added"], &changed[1]["removed"]), (&json!(["tag:u"]), &json!(["tag:t"])));

    mount.signal(Signal::TERM);
    let mut mount = mount;
    mount.wait();
    let said = audit(&store, &["--verify", "--json"]).exits(0).json();
    assert_eq!(said["snapshot"]["signals"][0]["signal_id"], "SIGTERM");
    assert_eq!(said["snapshot"]["last_suspend"]["reason"], "unmounted");
    assert!(said["snapshot"]["last_resumed_turn"].as_u64() > Some(0));
    let text = audit(&store, &["--verify"]).exits(0).stdout;
    assert!(text.contains("whole") && text.contains("aborted"), "{text}");
}

#[test]
fn the_log_has_every_added_and_removed_image_and_tag_from_any_program() {
    let (store, id) = small_store();
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("file"), b"content").unwrap();
    let (folder, cache) = (folder.path().to_str().unwrap(), cache.path().to_str().unwrap());
    let run = |args: &[&str]| pfimg_on(store.root(), args).exits(0);
    let image = |args: &[&str]| run(args).stdout.trim().to_owned();
    let imported = image(&["import", folder, "--cache-dir", cache, "--tag", "i"]);
    assert_eq!(image(&["import", folder, "--cache-dir", cache, "--tag", "i2"]), imported);
    let made = image(&["fixture", "--world-files", "3", "--tag", "x"]);
    run(&["fork", &id, "f"]);
    let mount = Mount::of(store.root()).args(MANUAL).start();
    fs::write(mount.join("forks/f/world/fs/new"), b"1").unwrap();
    fs::create_dir(mount.join("forks/f/.snap/green")).unwrap();
    fs::write(mount.join("forks/f/world/fs/new"), b"2").unwrap();
    run(&["seal", "f"]);
    mount.unmount();
    let sealed = image(&["seal", "f", "--tag", "blue"]);

    let checkpoints = events(&store, "checkpoint_taken");
    let subjects: Vec<_> = checkpoints.iter().map(|event| event["agent_id"].as_str().unwrap()).collect();
    let folder = Path::new(folder).canonicalize().unwrap();
    assert_eq!(subjects, [folder.to_str().unwrap(), "seed-0", "f", "f"]);
    let green = checkpoints[2]["image"].as_str().unwrap();
    let expected = [("i", &*imported), ("i2", &imported), ("x", &made), ("green", green), ("blue", &sealed)];
    let changed = events(&store, "capability_changed");
    for (event, (tag, image)) in changed.iter().zip(expected) {
        assert_eq!((&event["added"], &event["image"]), (&json!([format!("tag:{tag}")]), &json!(image)));
    }
    assert_eq!(changed.len(), expected.len());

    run(&["untag", "x"]);
    run(&["prune", "--all", "--keep-tagged", "--dry-run"]);
    assert_eq!(events(&store, "capability_changed").len(), expected.len() + 1, "nothing is removed yet");
    run(&["prune", "--all", "--keep-tagged"]);
    let changed = events(&store, "capability_changed");
    // The beginning of a living fork stays.
    assert_eq!(changed[expected.len() + 1]["removed"], json!([format!("image:{made}")]));
    assert!(store.root().join("images").join(format!("{id}.json")).exists());
    run(&["prune", "--all", "--keep-tagged"]);
    assert_eq!(events(&store, "capability_changed").len(), expected.len() + 2, "nothing more goes");
    audit(&store, &["--verify"]).exits(0);
}

#[test]
fn a_command_with_a_locked_log_does_its_work_and_reports_the_missing_events() {
    let (store, id) = small_store();
    pfimg_on(store.root(), ["fork", &id, "f"]).exits(0);
    let lock = fs::File::open(store.root().join("audit/.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for args in [&["seal", "f", "--tag", "s"][..], &["tag", &id, "t"]] {
        let said = pfimg_on(store.root(), args).exits(0).stderr;
        assert!(said.contains("cannot write the audit log"), "{said}");
    }
    drop(lock);
    assert_eq!(lines(&store).len(), 1);
    pfimg_on(store.root(), ["tag", &id, "u"]).exits(0);
    audit(&store, &["--verify"]).exits(0);
    assert_eq!(lines(&store).len(), 2);
}

#[test]
fn looking_at_a_store_makes_no_log() {
    let (store, id) = small_store();
    let before = names(store.root()).unwrap();
    let mount = Mount::of(store.root()).start();
    fs::read(mount.image(&id).join("world/fs/big")).unwrap();
    fs::read(mount.join(".pfimg/audit.json")).unwrap();
    assert_eq!(fs::read(mount.join(".pfimg/events.jsonl")).unwrap(), b"");
    audit(&store, &["--verify"]).exits(0);
    mount.unmount();
    assert_eq!(names(store.root()).unwrap(), before);
}

#[test]
fn a_mount_with_the_audit_off_writes_no_event_and_shows_what_others_wrote() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--audit", "off"]).start();
    fork(&mount, "a", &id);
    fs::write(mount.join("work/a/new"), b"new").unwrap();
    fs::create_dir(mount.join("forks/a/.snap/green")).unwrap();
    assert_eq!(errno(fs::create_dir(mount.join("images/new"))), libc::EROFS);
    assert_eq!(fs::read(mount.join(".pfimg/events.jsonl")).unwrap(), b"");
    assert!(!log_path(&store).exists(), "no log is made");
    // A command writes its own.
    pfimg_on(store.root(), ["tag", &id, "t"]).exits(0);
    fork(&mount, "b", "a");
    let shown: Value = serde_json::from_slice(&fs::read(mount.join(".pfimg/audit.json")).unwrap()).unwrap();
    assert_eq!((&shown["seq"], &shown["broken"]), (&json!(1), &Value::Null), "{shown}");
    mount.unmount();
    assert_eq!(lines(&store).len(), 1, "{:?}", lines(&store));
    assert_eq!(events(&store, "capability_changed").len(), 1);
    audit(&store, &["--verify"]).exits(0);
}

#[test]
fn any_flipped_byte_is_found_with_its_line() {
    let (store, id) = small_store();
    for name in ["a", "b", "c", "d"] {
        pfimg_on(store.root(), ["tag", &id, name]).exits(0);
    }
    audit(&store, &["--verify"]).exits(0);
    let whole = fs::read(log_path(&store)).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 25) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(log_path(&store), &changed).unwrap();
        let line = whole[..at].split(|byte| *byte == b'\n').count();
        let said = audit(&store, &["--verify"]).exits(4);
        assert!(said.stderr.contains(&format!("events.jsonl: line {line}:")), "byte {at}: {}", said.said());
        // The same of the file by itself.
        let file = log_path(&store);
        let said = audit(&store, &["--events", file.to_str().unwrap(), "--verify", "--json"]).exits(4).json();
        assert_eq!(said["broken"]["line"], line, "byte {at}");
    }
    fs::write(log_path(&store), &whole).unwrap();
    audit(&store, &["--verify"]).exits(0);
}

#[test]
fn the_chain_continues_after_a_killed_daemon_and_the_torn_end_is_kept_and_reported() {
    let (store, id) = small_store();
    let mut mount = Mount::of(store.root()).start();
    fork(&mount, "a", &id);
    wait_until("the fork is in the log", || {
        log_path(&store).exists() && !events(&store, "agent_process_changed").is_empty()
    });
    mount.kill();
    drop(mount);
    fs::File::options().append(true).open(log_path(&store)).unwrap().write_all(b"{\"seq\":9,\"half").unwrap();
    let said = audit(&store, &["--verify"]).exits(4);
    assert!(said.stderr.contains("it is incomplete"), "{}", said.said());
    let mount = Mount::of(store.root()).start();
    fork(&mount, "b", "a");
    mount.unmount();
    audit(&store, &["--verify"]).exits(0);
    let healed = events(&store, "log_healed");
    assert_eq!((healed.len(), &healed[0]["lost_bytes"]), (1, &json!(14)));
    let kept = store.root().join("audit").join(healed[0]["kept"].as_str().unwrap());
    assert_eq!(fs::read(kept).unwrap(), b"{\"seq\":9,\"half");
    let seqs: Vec<u64> = lines(&store).iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

#[test]
fn commands_and_mounts_that_write_at_once_make_one_chain() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    std::thread::scope(|scope| {
        for who in 0..3 {
            let (store, id, mount) = (&store, &id, &mount);
            scope.spawn(move || {
                for n in 0..8 {
                    pfimg_on(store.root(), ["tag", id, &format!("t{who}-{n}")]).exits(0);
                    fs::create_dir(mount.join(format!("forks/f{who}-{n}@{id}"))).unwrap();
                }
            });
        }
    });
    mount.unmount();
    let said = audit(&store, &["--verify", "--json"]).exits(0).json();
    assert_eq!(agents(&said["snapshot"]).len(), 24);
    assert_eq!(events(&store, "capability_changed").len(), 24);
}

#[test]
fn the_session_events_in_the_trace_of_an_image_or_a_fork_are_folded() {
    let mut store = FastStore::new();
    let trace = concat!(
        "{\"content\":\"hi\",\"role\":\"user\"}\n",
        "{\"kind\":\"tool_gated\",\"turn\":1,\"category\":\"syscall\",\"call_id\":\"c\",\"tool\":\"rm\",\"reason\":\"asks\"}\n",
        "{\"kind\":\"suspended\",\"turn\":1,\"category\":\"sched\",\"reason\":\"ask_user\",\"pending_calls\":[\"c\"]}\n",
        "{\"kind\":\"invented_tomorrow\",\"turn\":2}\n",
    );
    let trace = store.blob(trace.as_bytes());
    let id = store.image(&Spec { trace: Some(trace), ..Spec::default() });
    let said = audit(&store, &[&id, "--json"]).exits(0).json();
    assert_eq!(
        (&said["events"], &said["others"], &said["categories"]),
        (&json!(3), &json!(1), &json!("said"))
    );
    let suspended = json!({"turn": 1, "reason": "ask_user", "pending_calls": ["c"]});
    assert_eq!(said["snapshot"]["last_suspend"], suspended);

    let mount = Mount::of(store.root()).start();
    fork(&mount, "f", &id);
    let path = mount.join("forks/f/trace/messages.jsonl");
    let mut file = fs::File::options().append(true).open(path).unwrap();
    file.write_all(b"{\"kind\":\"resumed\",\"turn\":2}\n").unwrap();
    drop(file);
    let said = audit(&store, &["f", "--json"]).exits(0).json();
    assert_eq!((&said["events"], &said["categories"]), (&json!(4), &json!("inferred")));
    assert_eq!(said["snapshot"]["last_resumed_turn"], 2);
    let path = mount.join("forks/f/trace/messages.jsonl");
    let mut file = fs::File::options().append(true).open(path).unwrap();
    file.write_all(b"{\"kind\":\"suspended\",\"turn\":3}\n").unwrap();
    drop(file);
    let said = audit(&store, &["f"]).exits(4).stderr;
    assert!(said.contains("the trace of fork f: line 6: suspended: \"reason\" is missing"), "{said}");
    audit(&store, &["f", "--lenient"]).exits(0);
    mount.unmount();
    assert!(audit(&store, &["nothing"]).exits(5).stderr.contains("nothing"));
}

/// Leaves what was written in the forks' journals: a seal at unmount would empty them.
const MANUAL: [&str; 2] = ["--seal", "manual"];

/// Takes one record out of a journal, and moves what follows to its place.
fn remove_record(journal: &Path, index: usize) {
    let bytes = fs::read(journal).unwrap();
    let mut starts = vec![32];
    while *starts.last().unwrap() < bytes.len() {
        let at = *starts.last().unwrap();
        let payload = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        starts.push(at + 17 + payload);
    }
    let (from, to) = (starts[index], starts[index + 1]);
    fs::write(journal, [&bytes[..from], &bytes[to..]].concat()).unwrap();
}

#[test]
fn a_journal_that_lost_records_is_found_at_recovery_and_its_crash_pack_reproduces_that_elsewhere() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(MANUAL).start();
    let world = fork(&mount, "f", &id);
    for n in 0..5 {
        fs::write(world.join(format!("new{n}")), b"new").unwrap();
    }
    mount.unmount();
    let crash = store.root().join("audit/crash");
    // Without the fault, recovery finds nothing.
    let mount = Mount::of(store.root()).args(MANUAL).start();
    assert_eq!(fs::read(mount.join("forks/f/world/fs/new3")).unwrap(), b"new");
    mount.unmount();
    assert!(!crash.exists());

    let journals: Vec<PathBuf> = fs::read_dir(store.root().join("forks/gen"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("journal"))
        .collect();
    let journal = journals.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    for _ in 0..3 {
        remove_record(journal, 2);
    }
    let mount = Mount::of(store.root()).args(MANUAL).start();
    let _ = fs::metadata(mount.join("forks/f/world"));
    mount.unmount();
    let blocked = events(&store, "milestone_blocked");
    assert_eq!((blocked.len(), &blocked[0]["phase_id"]), (1, &json!("recovery")));
    let pack = crash.join(blocked[0]["crashpack"].as_str().unwrap());

    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("pack");
    tool("cp", [Path::new("-r"), &pack, &copy]).exits(0);
    let replay = || Run::program(&copy.join("replay_command.sh"), [] as [&str; 0]).env("PFIMG", PFIMG).run();
    let said = replay().exits(1).stdout;
    assert!(said.contains("journal_consistency (high)"), "{said}");
    let json = crate::common::pfimg([Path::new("replay"), &copy, Path::new("--json")]).exits(1).json();
    assert_eq!(json["results"][0]["violations"][0]["evidence"]["gap_count"], "3");
    let trace = copy.join("transfer.atp-trace");
    let changed = fs::read_to_string(&trace).unwrap().replace("\"journal_gaps\": 3", "\"journal_gaps\": 0");
    fs::write(&trace, changed).unwrap();
    let said = replay().exits(4).stderr;
    assert!(said.contains("was changed"), "{said}");
}

#[test]
fn a_command_that_reads_a_damaged_fork_back_to_change_it_says_where_its_crash_pack_is() {
    let (store, id) = small_store();
    pfimg_on(store.root(), ["fork", &id, "f"]).exits(0);
    let mount = Mount::of(store.root()).args(MANUAL).start();
    for n in 0..5 {
        fs::write(mount.join(format!("forks/f/world/fs/new{n}")), b"new").unwrap();
    }
    mount.unmount();
    let run = |args: &[&str]| pfimg_on(store.root(), args);
    run(&["fork", "f", "whole"]).exits(0);
    let crash = store.root().join("audit/crash");
    assert!(!crash.exists(), "without the fault nothing is found");
    run(&["discard", "--force", "whole"]).exits(0);
    let journals = fs::read_dir(store.root().join("forks/gen")).unwrap();
    let journals = journals.map(|entry| entry.unwrap().path().join("journal"));
    remove_record(&journals.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap(), 2);
    // A command that only looks reports the damage, and writes nothing.
    assert!(run(&["forks", "--long"]).exits(4).stdout.contains("damaged"));
    run(&["audit", "f"]).exits(0);
    assert!(!crash.exists());
    let mut found = 0;
    for args in [&["seal", "f"][..], &["fork", "f", "g"], &["restore", "f", &id]] {
        let said = run(args).exits(4).stderr;
        assert!(said.contains("fork \"f\" is damaged: record 3"), "{said}");
        found += 1;
        let blocked = events(&store, "milestone_blocked");
        assert_eq!((blocked.len(), &blocked[found - 1]["phase_id"]), (found, &json!("recovery")));
        let pack = crash.join(blocked[found - 1]["crashpack"].as_str().unwrap());
        assert!(said.contains(pack.to_str().unwrap()), "{said}");
        crate::common::pfimg([Path::new("replay"), &pack]).exits(1);
    }
    // A base that is gone.
    pfimg_on(store.root(), ["fork", &id, "g"]).exits(0);
    fs::remove_file(store.marker_path(&id)).unwrap();
    let said = run(&["seal", "g"]).exits(4).stderr;
    let blocked = events(&store, "milestone_blocked");
    assert_eq!((blocked.len(), &blocked[found]["agent_id"]), (found + 1, &json!("g")));
    assert!(said.contains(blocked[found]["crashpack"].as_str().unwrap()), "{said}");
    run(&["seal", "nobody"]).exits(5);
    assert_eq!(
        events(&store, "milestone_blocked").len(),
        found + 1,
        "a fork that is not there is not damaged"
    );
}

#[test]
fn a_base_that_is_gone_is_found_at_recovery() {
    let (store, id) = small_store();
    pfimg_on(store.root(), ["fork", &id, "f"]).exits(0);
    fs::remove_file(store.marker_path(&id)).unwrap();
    let mount = Mount::of(store.root()).start();
    for _ in 0..3 {
        fs::metadata(mount.join("forks/f")).unwrap_err();
    }
    mount.unmount();
    let blocked = events(&store, "milestone_blocked");
    assert_eq!(blocked.len(), 1, "told once: {blocked:?}");
    assert_eq!((&blocked[0]["phase_id"], &blocked[0]["agent_id"]), (&json!("recovery"), &json!("f")));
    assert!(blocked[0]["reason"].as_str().unwrap().contains(&id), "{}", blocked[0]);
    let pack = store.root().join("audit/crash").join(blocked[0]["crashpack"].as_str().unwrap());
    let said = crate::common::pfimg([Path::new("replay"), &pack]).exits(1).stdout;
    assert!(said.contains("manifest_integrity (high)"), "{said}");
    audit(&store, &["--verify"]).exits(0);
}
