//! Lists forks with the commands that ran in them, and discards them.

use std::fs;

use serde_json::{Value, json};

use crate::common::cli::{Output, pfimg_on};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, names};

fn run(store: &FastStore, args: &[&str]) -> Output {
    pfimg_on(store.root(), args)
}

fn forks(store: &FastStore) -> Vec<String> {
    let rows = run(store, &["forks", "--json"]).json()["forks"].clone();
    rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

fn image(store: &FastStore, fork: &str) -> String {
    run(store, &["seal", fork]).exits(0).stdout.trim().trim_start_matches("sha256:").to_owned()
}

/// Makes forks `a` and `b`. `b` has unsealed work.
fn two_forks(mount: &Mount, store: &FastStore, id: &str) {
    for name in ["a", "b"] {
        fs::write(fork(mount, name, id).join("new"), "sealed").unwrap();
        image(store, name);
    }
    fs::write(world(mount, "b").join("new"), "not sealed").unwrap();
}

#[test]
fn a_fork_with_work_that_is_in_no_seal_is_discarded_by_force_alone() {
    let (store, id) = small_store();
    for (is_mounted, writes) in [(true, "through"), (true, "back"), (false, "through")] {
        let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        two_forks(&mount, &store, &id);
        let mount = if is_mounted {
            Some(mount)
        } else {
            mount.unmount();
            None
        };
        let refused = run(&store, &["discard", "b"]).exits(7).stderr;
        assert!(
            refused.contains("unsealed work")
                && refused.contains("pfimg seal b")
                && refused.contains("--force"),
            "{refused}"
        );
        // A mistyped name costs no other fork.
        let said = run(&store, &["discard", "a", "none", "--force"]).exits(5).stderr;
        assert!(said.contains("\"none\"") && said.contains("no fork was discarded"), "{said}");
        assert_eq!(forks(&store), ["a", "b"]);
        // A fork that stays is named, and the other one is discarded.
        let said = run(&store, &["discard", "b", "a", "--json"]).exits(1);
        assert_eq!(said.json()["discarded"], json!(["a"]));
        let failed = said.json()["failed"].clone();
        let kinds: Vec<(&Value, &Value)> =
            failed.as_array().unwrap().iter().map(|row| (&row["fork"], &row["error"]["kind"])).collect();
        assert_eq!(kinds, [(&json!("b"), &json!("busy"))]);
        assert!(said.stderr.contains("\"b\""), "{}", said.stderr);
        assert_eq!(forks(&store), ["b"]);
        if let Some(mount) = &mount {
            assert_eq!(fs::read(world(mount, "b").join("new")).unwrap(), b"not sealed");
        }
        run(&store, &["discard", "b", "--force"]).exits(0);
        assert_eq!(forks(&store), [""; 0]);
        if let Some(mount) = mount {
            assert_eq!(names(&mount.join("forks")).unwrap(), [""; 0]);
            mount.unmount();
        }
    }
}

#[test]
fn forks_are_discarded_by_patterns_and_all_of_them() {
    let (store, id) = small_store();
    for is_mounted in [false, true] {
        let mount = is_mounted.then(|| Mount::of(store.root()).start());
        for name in ["try-1", "try-2", "try-3", "try-4", "other", "more"] {
            run(&store, &["fork", &id, name]).exits(0);
        }
        run(&store, &["discard", "try-{1..2}"]).exits(0);
        assert_eq!(forks(&store), ["more", "other", "try-3", "try-4"]);
        let said = run(&store, &["discard", "try-*", "no-*"]).exits(5).stderr;
        assert!(said.contains("no fork matches \"no-*\""), "{said}");
        assert_eq!(forks(&store), ["more", "other", "try-3", "try-4"]);
        run(&store, &["discard", "try-*"]).exits(0);
        assert_eq!(forks(&store), ["more", "other"]);
        run(&store, &["discard", "no-*"]).exits(5);
        run(&store, &["discard", "more", "--all"]).exits(2);
        run(&store, &["discard"]).exits(2);
        let said = run(&store, &["discard", "--all"]).exits(0).stderr;
        assert!(said.contains("discarded 2 forks"), "{said}");
        assert_eq!(forks(&store), [""; 0]);
        if let Some(mount) = mount {
            mount.unmount();
        }
    }
}

#[test]
fn seals_go_with_their_fork_but_for_those_that_something_else_needs() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let files = fork(&mount, "f", &id);
    let mut seals = Vec::new();
    for n in 0..4 {
        fs::write(files.join("new"), vec![n; 100_000]).unwrap();
        seals.push(image(&store, "f"));
    }
    // The second has a tag, and so needs the first.
    run(&store, &["tag", &seals[1], "kept"]).exits(0);
    let there = || seals.iter().map(|id| store.marker_path(id).exists()).collect::<Vec<_>>();
    let said = run(&store, &["discard", "f", "--seals", "--json"]).exits(0).json();
    assert_eq!(there(), [true, true, false, false]);
    let mut removed: Vec<String> = seals[2..].iter().map(|id| format!("sha256:{id}")).collect();
    removed.sort();
    assert_eq!((&said["seals_removed"], &said["seals_kept"]), (&json!(removed), &json!(2)), "{said}");
    let freed = said["gc_frees_bytes"].as_u64().unwrap();
    assert!(freed > 0, "{said}");
    let collected = run(&store, &["gc", "--grace", "0s", "--json"]).exits(0).json();
    assert_eq!(collected["freed_bytes"].as_u64().unwrap(), freed);
    // The base of a branch is a seal of another fork.
    let files = fork(&mount, "g", "kept");
    fs::write(files.join("new"), "g").unwrap();
    let seal = image(&store, "g");
    fork(&mount, "branch", &seal);
    let said = run(&store, &["discard", "g", "--seals"]).exits(0).stderr;
    assert!(
        said.contains("discarded 1 fork and 0 seals (1 needed, kept)") && said.contains("pfimg gc"),
        "{said}"
    );
    assert!(store.marker_path(&seal).exists());
    assert_eq!(fs::read(world(&mount, "branch").join("new")).unwrap(), b"g");
    run(&store, &["verify"]).exits(0);
    mount.unmount();
}

#[test]
fn seals_that_a_discarded_fork_left_are_removed_by_its_name_and_by_prune() {
    let (store, id) = small_store();
    let is_there = |seal: &str| store.marker_path(seal).exists();
    for is_mounted in [true, false] {
        let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
        let mut seals = Vec::new();
        for name in ["a", "b", "c"] {
            let files = fork(&mount, name, &id);
            for n in 0..2 {
                fs::write(files.join("new"), format!("{name}{n}{is_mounted}")).unwrap();
                seals.push(image(&store, name));
            }
        }
        let [a0, a1, b0, b1, c0, c1] = <[String; 6]>::try_from(seals).unwrap();
        // In use by a fork, and tagged.
        fork(&mount, "branch", &a1);
        run(&store, &["tag", &b1, "kept", "--force"]).exits(0);
        // Removing the directory is a discard as well.
        fs::remove_dir_all(mount.join("forks/c")).unwrap();
        let mount = if is_mounted {
            Some(mount)
        } else {
            mount.unmount();
            None
        };
        let said = run(&store, &["discard", "a", "b"]).exits(0).stderr;
        assert_eq!(said, "pfimg: discarded 2 forks; `--seals` removes 4 seals too\n");
        for seal in [&a0, &a1, &b0, &b1, &c0, &c1] {
            assert!(is_there(seal));
        }
        let said = run(&store, &["discard", "a"]).exits(5).stderr;
        assert!(said.contains("discarded already") && said.contains("`pfimg discard a --seals`"), "{said}");
        // A mistyped name removes no seal.
        run(&store, &["discard", "c", "none", "--seals"]).exits(5);
        assert!(is_there(&c0));
        let said = run(&store, &["discard", "[ac]", "--seals"]).exits(0).stderr;
        assert!(said.contains("removed 2 seals of discarded forks (2 needed, kept)"), "{said}");
        assert_eq!([&a0, &a1, &c0, &c1].map(|seal| is_there(seal)), [true, true, false, false]);
        // A fork without a name is gone for good.
        run(&store, &["discard", "c", "--seals"]).exits(5);
        let said = run(&store, &["prune", "b", "--keep-last", "2", "--json"]).exits(0).json();
        assert_eq!(said["removed"], 0, "{said}");
        let said = run(&store, &["prune", "--keep-tagged", "--json"]).exits(0).json();
        assert_eq!(said["removed"], 2, "{said}");
        let left = [&a0, &a1, &b0, &b1].map(|seal| is_there(seal));
        assert_eq!(left, [false, true, false, true], "a tag and a fork keep their images: {said}");
        // With the fork gone, its source can go too.
        let said = run(&store, &["discard", "--all", "--seals"]).exits(0).stderr;
        assert!(said.contains("discarded 1 fork and 1 seal (1 needed, kept)"), "{said}");
        assert_eq!([&a1, &b1].map(|seal| is_there(seal)), [false, true]);
        run(&store, &["untag", "kept"]).exits(0);
        run(&store, &["discard", "b", "--seals"]).exits(0);
        assert!(!is_there(&b1));
        run(&store, &["verify"]).exits(0);
        if let Some(mount) = mount {
            mount.unmount();
        }
    }
}

#[test]
fn forks_are_listed_with_what_runs_or_ran_in_them_and_no_tree_is_read() {
    let (store, id) = small_store();
    for name in ["ended", "runs", "killed", "odd", "never"] {
        run(&store, &["fork", &id, name]).exits(0);
    }
    let now = chrono::Utc::now().to_rfc3339();
    let records = store.root().join("forks/.runs");
    fs::create_dir_all(&records).unwrap();
    let record = |name: &str, record: &Value| {
        fs::write(records.join(format!("{name}.json")), record.to_string()).unwrap();
    };
    let ended = json!({
        "pid": 1, "command": ["make", "test"], "started": now, "ended": now, "exit": 2, "seconds": 1.5,
        "added": 1, "changed": 2, "deleted": 3, "commits": 1,
    });
    record("ended", &ended);
    record("runs", &json!({"pid": std::process::id(), "command": ["my-agent"], "started": now}));
    // The number of a process that has ended.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let gone = child.id();
    child.wait().unwrap();
    record("killed", &json!({"pid": gone, "command": ["my-agent"], "started": now}));
    fs::write(records.join("odd.json"), "{").unwrap();
    fs::write(records.join("no-such-fork.json"), ended.to_string()).unwrap();
    // Nothing but heads, lists and records is read.
    let manifest: Value = serde_json::from_slice(&fs::read(store.marker_path(&id)).unwrap()).unwrap();
    fs::remove_file(store.blob_path(manifest["world"]["fs"].as_str().unwrap())).unwrap();
    let rows = run(&store, &["forks", "--json"]).exits(0).json()["forks"].clone();
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!(rows.as_array().unwrap().len(), 5, "{rows}");
    let last = row("ended")["run"].clone();
    for key in ["command", "exit", "seconds", "added", "changed", "deleted", "commits"] {
        assert_eq!(last[key], ended[key], "{key}: {last}");
    }
    let running = |name: &str| row(name)["run"]["running"].clone();
    assert_eq!(
        [running("ended"), running("runs"), running("killed")],
        [json!(false), json!(true), json!(false)]
    );
    assert_eq!([&row("odd")["run"], &row("never")["run"]], [&Value::Null, &Value::Null]);
    assert_eq!(row("never")["base"], format!("sha256:{id}"));
    let table = run(&store, &["forks"]).exits(0).stdout;
    for part in ["exit 2 1.5 s: make test", "-3 +1 ~2 1 commit", "runs: my-agent", "killed: my-agent"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // A record goes and moves with its fork, and says nothing of another fork of that name.
    run(&store, &["discard", "ended", "--force"]).exits(0);
    run(&store, &["mv", "runs", "moved"]).exits(0);
    assert_eq!(names(&records).unwrap(), ["killed.json", "moved.json", "no-such-fork.json", "odd.json"]);
    run(&store, &["forks", "--long"]).exits(4);
}
