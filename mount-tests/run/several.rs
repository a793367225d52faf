//! Runs side by side: names, output, exit codes, and JSON.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use super::home::{Home, for_every_user};
use super::support::processes_with;
use crate::common::wait_until;

/// JSON lines.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn each_of_several_runs_has_one_line_and_its_output_is_kept() {
    for_every_user(|user| {
        let home = Home::new(user);
        let before = home.state();
        let script = "echo out of $PFIMG_FORK; echo err >&2; case $PFIMG_FORK in
            try-1) exit 1;; try-2) git rm -q docs/one.md; git commit -qm x; echo new > new;; *) rm -r docs src/price.py;; esac";
        let said = home.run(&["try-{1..3}", "--", "sh", "-c", script]).exits(1);
        assert_eq!((said.stdout.as_str(), home.state()), ("", before));
        for line in [
            "  try-1  exit 1  ",
            "  try-2  exit 0  ",
            "  -1 +1   deleted: docs/one.md   1 commit",
            "  -3   deleted: docs/, src/price.py",
            "3 runs in ",
            "largest exit code 1. Output: pfimg output try-2",
            "next:  pfimg diff try-2 -p      pfimg ",
        ] {
            assert!(said.stderr.contains(line), "{line}: {said:?}");
        }
        assert_eq!(said.stderr.matches("imported").count(), 1, "{said:?}");
        let output = home.pfimg(&["output", "try-2"]).run().exits(0);
        assert_eq!(output.stdout, "out of try-2\nerr\n");
        let output = home.pfimg(&["output", "try-1", "--json"]).run().exits(0).stdout;
        assert!(output.contains("out of try-1\\nerr\\n"), "{output}");
        let record = home.record("try-2");
        for (key, value) in [("exit", 0), ("added", 1), ("changed", 0), ("deleted", 1), ("commits", 1)] {
            assert_eq!(record[key], value, "{key}: {record:#}");
        }
        assert!(record["pid"].is_u64() && record["seconds"].is_f64() && record["command"][0] == "sh");
        let time = |key: &str| chrono_like(record[key].as_str().unwrap());
        assert!(time("started") <= time("ended"), "{record:#}");
        // A fork without such a run has none.
        home.sh("alone", "echo alone").exits(0);
        let said = home.pfimg(&["output", "alone"]).run().exits(5);
        assert!(said.stderr.contains("no output"), "{said:?}");
        // By number, with the name or without.
        home.run(&["-n", "2", "new", "--", "true"]).exits(0);
        home.run(&["-n2", "--", "true"]).exits(0);
        home.run(&["{a,b}", "c", "--", "true"]).exits(0);
        let forks = home.forks();
        for fork in ["new-1", "new-2", "shop-1", "shop-2", "a", "b", "c"] {
            assert!(forks.iter().any(|name| name == fork), "{fork}: {forks:?}");
        }
        for (args, words) in [
            (&["-n", "2", "x", "y", "--", "true"][..], "-n needs a single name"),
            (&["x", "y", "--tag", "t", "--", "true"], "--tag needs a single fork"),
            (&["-n", "0", "--", "true"], "invalid value"),
        ] {
            let said = home.run(args).exits(2);
            assert!(said.stderr.contains(words), "{said:?}");
        }
        let said = home.run(&["x", "{x,y}", "--", "true"]).exits(125);
        assert!(said.stderr.contains("named twice"), "{said:?}");
    });
}

/// Times of one zone and one form sort as text.
fn chrono_like(text: &str) -> String {
    assert!(text.ends_with('Z') && text.contains('T'), "{text}");
    text.to_owned()
}

#[test]
fn forks_that_are_made_for_a_run_go_with_it_and_no_others() {
    let home = Home::new(None);
    home.sh("kept", "true").exits(0);
    home.run(&["--rm", "kept", "new", "--", "touch", "x"]).exits(0);
    assert_eq!(home.forks(), ["kept"]);
    home.run(&["--rm", "--", "sh", "-c", "touch x; exit 3"]).exits(3);
    assert_eq!(home.forks(), ["kept"]);
    // A command that cannot run leaves no fork that was made for it.
    home.run(&["--read", "/no/such", "new", "--", "true"]).exits(125);
    assert_eq!(home.forks(), ["kept"]);
    assert_eq!(home.read("kept", "x").as_deref(), Some(""));
    let said = home.run(&["--tag", "green", "kept", "--", "sh", "-c", "echo green > x"]).exits(0);
    assert!(said.stderr.contains("sealed kept as green"), "{said:?}");
    let said = home.run(&["copy@green", "--", "cat", "x"]).exits(0);
    assert_eq!(said.stdout, "green\n");
    // A name that is taken costs no work.
    let said = home.run(&["--tag", "green", "kept", "--", "sh", "-c", "echo more > y"]).exits(125);
    assert!(said.stderr.contains("green") && home.read("kept", "y").as_deref() == Some("more\n"), "{said:?}");
    home.run(&["--tag", "a/b", "kept", "--", "true"]).exits(125);
}

#[test]
fn a_command_whose_time_is_up_is_ended() {
    let home = Home::new(None);
    let said = home.run(&[
        "--timeout",
        "300ms",
        "a",
        "--",
        "sh",
        "-c",
        "trap 'echo bye; exit 3' TERM; while :; do sleep 0.01; done",
    ]);
    assert_eq!((said.code, said.stdout.as_str()), (124, "bye\n"), "{said:?}");
    assert!(said.stderr.contains("  a  timeout  "), "{said:?}");
    let said = home.run(&["--timeout=300ms", "b", "c", "--", "sleep", "1000"]).exits(124);
    assert!(
        said.stderr.contains("  b  timeout") && said.stderr.contains("largest exit code 124"),
        "{said:?}"
    );
    assert_eq!(home.record("b")["timed_out"], true);
    home.run(&["--timeout", "10m", "a", "--", "sh", "-c", "exit 5"]).exits(5);
}

#[test]
fn json_lines_tell_of_a_start_and_an_end() {
    let home = Home::new(None);
    let said = home
        .run(&["-q", "--json", "a", "--tag", "t", "--", "sh", "-c", "echo out; rm docs/one.md; exit 2"])
        .exits(2);
    let told = lines(&said.stdout);
    assert_eq!(told.len(), 2, "{said:?}");
    for line in &told {
        assert_eq!((&line["pfimg"], &line["command"]), (&1.into(), &"run".into()));
    }
    let (started, ended) = (&told[0]["result"], &told[1]["result"]);
    assert_eq!(
        (&started["event"], &started["fork"], &started["made"]),
        (&"started".into(), &"a".into(), &true.into())
    );
    assert_eq!((&ended["event"], &ended["exit"], &ended["deleted"]), (&"ended".into(), &2.into(), &1.into()));
    assert_eq!(ended["deletions"][0], "docs/one.md");
    assert!(ended["image"].as_str().is_some_and(|image| image.starts_with("sha256:")), "{ended:#}");
    assert_eq!(home.pfimg(&["output", "a"]).run().exits(0).stdout, "out\n");
    // To a file, with the command's output where it was.
    let file = home.path("runtime/lines");
    let json = format!("--json={}", file.display());
    let said = home.run(&["-q", &json, "b", "--", "echo", "out"]).exits(0);
    assert_eq!(said.stdout, "out\n");
    assert_eq!(lines(&fs::read_to_string(&file).unwrap()).len(), 2);
    let said = home.run(&["-q", "--json=-", "b", "c", "--", "true"]).exits(0);
    assert_eq!(lines(&said.stdout).len(), 4, "{said:?}");
    // So is what keeps a run from starting.
    for json in ["--json", &json] {
        let said = home.run(&["-q", json, "b", "d@none", "--", "true"]).exits(125);
        let told = if json == "--json" { said.stdout } else { fs::read_to_string(&file).unwrap() };
        let told = lines(&told);
        let error = &told.last().unwrap()["error"];
        assert!(error["message"].as_str().is_some_and(|what| what.contains("none")), "{told:?}");
    }
}

#[test]
fn signals_and_the_end_of_the_caller_reach_all_runs() {
    let home = Home::new(None);
    let mark = |name: &str| format!("PFIMG_TEST_SEVERAL={}-{name}", std::process::id());
    let start = || {
        let script = format!("export {}; sleep 1000", mark("$PFIMG_FORK"));
        let run = home.spawn(&["a", "b", "--", "sh", "-c", &script]);
        wait_until("both run", || ["a", "b"].iter().all(|fork| !processes_with(&mark(fork)).is_empty()));
        run
    };
    let is_gone = || ["a", "b"].iter().all(|fork| processes_with(&mark(fork)).is_empty());
    let mut run = start();
    run.signal(Signal::TERM);
    assert_eq!(run.code(), Some(143));
    wait_until("both are gone", is_gone);
    assert_eq!(home.record("a")["exit"], 143);
    let mut run = start();
    let record = home.record("a");
    assert!(record["ended"].is_null() && record["exit"].is_null(), "{record:#}");
    run.signal(Signal::KILL);
    assert_eq!(run.code(), None);
    wait_until("both are gone", is_gone);
    // The next run is not hindered.
    home.sh("a", "true").exits(0);
    assert_eq!(home.record("a")["exit"], 0);
}

#[test]
fn output_can_be_followed_and_of_much_the_beginning_and_the_end_are_kept() {
    let home = Home::new(None);
    let script = "echo first; while [ ! -e go ]; do sleep 0.01; done; echo last";
    let mut run = home.spawn(&["-q", "a", "b", "--", "sh", "-c", script]);
    let output = || home.pfimg(&["output", "a"]).run().stdout;
    wait_until("it printed", || output() == "first\n");
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| home.pfimg(&["output", "-f", "a"]).run().exits(0).stdout);
        for fork in ["a", "b"] {
            fs::write(home.mountpoint().join(format!("forks/{fork}/world/fs/go")), "").unwrap();
        }
        assert_eq!(follower.join().unwrap(), "first\nlast\n");
    });
    assert_eq!(run.code(), Some(0));
    let script = "echo begin; head -c 40000000 /dev/zero | tr '\\0' x; echo; echo end";
    home.run(&["-q", "a", "b", "--", "sh", "-c", script]).exits(0);
    let said = home.pfimg(&["output", "a"]).run().exits(0);
    assert!(said.stdout.starts_with("begin\nxxx") && said.stdout.ends_with("xxx\nend\n"));
    assert!(said.stdout.len() < 20 << 20 && !said.stdout.contains('\0'), "{}", said.stdout.len());
    assert!(said.stderr.contains("bytes of output were removed here"), "{}", said.stderr);
    let on_disk = crate::common::forks::disk_usage(&home.store().join("forks/.runs"));
    assert!(on_disk < 40 << 20, "{on_disk}");
}

#[test]
fn the_lines_of_several_runs_are_in_the_order_of_the_names() {
    let home = Home::new(None);
    // The first name ends last.
    let script = "case $PFIMG_FORK in c) sleep 0.6;; a) sleep 0.3;; esac";
    let said = home.run(&["c", "a", "b", "--", "sh", "-c", script]).exits(0).stderr;
    let names: Vec<&str> =
        said.lines().filter(|line| line.starts_with("  ")).map(|line| &line[2..3]).collect();
    assert_eq!(names, ["c", "a", "b"], "{said}");
}

#[test]
fn the_next_commands_fit_the_changes_of_the_run() {
    let home = Home::new(None);
    let next = |args: &[&str]| {
        let said = home.run(args).exits(0).stderr;
        said.lines().find_map(|line| line.strip_prefix("next:  ")).map(str::to_owned)
    };
    let with_changes = |fork: &str| Some(format!("pfimg diff {fork} -p      pfimg apply {fork}"));
    assert_eq!(next(&["a", "--", "true"]).as_deref(), Some("pfimg discard a"));
    assert_eq!(next(&["b", "c", "--", "true"]).as_deref(), Some("pfimg discard b c"));
    assert_eq!(next(&["a", "--", "touch", "new"]), with_changes("a"));
    // Changes of earlier runs count.
    assert_eq!(next(&["a", "--", "true"]), with_changes("a"));
    assert_eq!(next(&["b", "a", "--", "true"]), with_changes("a"));
    assert_eq!(next(&["d", "--", "git", "commit", "-q", "--allow-empty", "-m", "x"]), with_changes("d"));
    // Back at its beginning.
    home.pfimg(&["restore", "a@0"]).run().exits(0);
    assert_eq!(next(&["a", "--", "true"]).as_deref(), Some("pfimg discard a"));
    assert_eq!(next(&["--rm", "e", "--", "touch", "new"]), None);
    assert_eq!(next(&["--rm", "e", "f", "--", "touch", "new"]), None);
}
