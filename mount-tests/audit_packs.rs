//! Crash packs: where they are reported, and what they contain. Also refused calls in the log.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::common::cli::{Output, Run, pfimg_on};
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{fork, small_store};
use crate::common::{Mount, PFIMG, names, wait_until};
use serde_json::{Value, json};

fn crash(store: &FastStore) -> PathBuf {
    store.root().join("audit/crash")
}

/// Leaves a fork whose base is gone, and the crash pack of a command that wanted to seal it. Returns the pack's name.
fn fault(store: &FastStore, id: &str, name: &str) -> String {
    pfimg_on(store.root(), ["fork", id, name]).exits(0);
    let marker = store.marker_path(id);
    let bytes = fs::read(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    let before = names(&crash(store)).unwrap_or_default();
    let said = pfimg_on(store.root(), ["seal", name]).exits(4).stderr;
    fs::write(&marker, bytes).unwrap();
    let new: Vec<String> =
        names(&crash(store)).unwrap().into_iter().filter(|pack| !before.contains(pack)).collect();
    let [pack] = &new[..] else { panic!("{new:?}: {said}") };
    assert!(said.contains(pack) && said.contains("pfimg replay"), "{said}");
    pack.clone()
}

fn json_of(pack: &Path, file: &str) -> Value {
    serde_json::from_slice(&fs::read(pack.join(file)).unwrap()).unwrap()
}

#[test]
fn a_pack_is_named_by_the_audit_the_status_the_metrics_and_verify() {
    let (store, id) = small_store();
    let run = |args: &[&str]| pfimg_on(store.root(), args);
    assert_eq!(run(&["audit", "--packs"]).exits(0).stdout, "no crash pack\n");
    assert_eq!(run(&["audit", "--packs", "--json"]).exits(0).json(), json!({"packs": []}));
    let pack = fault(&store, &id, "f");
    let said = run(&["audit"]).exits(0).stdout;
    assert!(said.contains("  violations  1\n") && said.contains("  crash_packs  1\n"), "{said}");
    assert_eq!(said.matches(&pack).count(), 2, "by the log and as it is there: {said}");
    let said = run(&["audit", "--json"]).exits(0).json();
    let violation = &said["violations"]["newest"][0];
    assert_eq!((&violation["transfer"], &violation["subject"]), (&json!("recovery"), &json!("f")));
    assert_eq!((&violation["crashpack"], &said["packs"]["newest"]), (&json!(pack), &json!([pack])));
    let said = run(&["verify"]).exits(0);
    assert!(
        said.stdout.contains(&format!("verify: crash-pack: audit/crash/{pack}: recovery of f: ")),
        "{}",
        said.said()
    );

    pfimg_on(store.root(), ["fork", &id, "g"]).exits(0);
    let mount = Mount::of(store.root()).start();
    let audit: Value = serde_json::from_slice(&fs::read(mount.join(".pfimg/audit.json")).unwrap()).unwrap();
    assert_eq!((&audit["violations"]["count"], &audit["packs"]["newest"]), (&json!(1), &json!([pack])));
    let status =
        || -> Value { serde_json::from_slice(&fs::read(mount.join(".pfimg/status.json")).unwrap()).unwrap() };
    assert_eq!(
        (&status()["crash_packs"]["newest"], &status()["counters"]["violations"]),
        (&json!([pack]), &json!(0))
    );
    let said = crate::common::pfimg([Path::new("status"), mount.path()]).exits(0).stdout;
    assert!(said.contains(&format!("1 crash pack: {pack}; `pfimg audit --packs` lists them")), "{said}");
    let metrics = || fs::read_to_string(mount.join(".pfimg/metrics")).unwrap();
    assert!(
        metrics().contains("\npfimg_violations_total 0\n") && metrics().contains("\npfimg_crash_packs 1\n")
    );

    // A violation that the mount itself finds, in a fork that it has not met yet.
    let marker = store.marker_path(&id);
    let bytes = fs::read(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    fs::metadata(mount.join("forks/g")).unwrap_err();
    wait_until("the pack is kept", || names(&crash(&store)).unwrap().len() == 2);
    fs::write(&marker, bytes).unwrap();
    let other = names(&crash(&store)).unwrap().into_iter().find(|other| *other != pack).unwrap();
    assert_eq!(status()["counters"]["violations"], 1);
    assert!(
        metrics().contains("\npfimg_violations_total 1\n") && metrics().contains("\npfimg_crash_packs 2\n")
    );
    mount.unmount();
    let listed = run(&["audit", "--packs"]).exits(0).stdout;
    assert!(listed.contains(&pack) && listed.contains(&other), "{listed}");
    assert!(
        listed.starts_with("PACK") && listed.contains("manifest_integrity, path_consistency"),
        "{listed}"
    );
    let rows = run(&["audit", "--packs", "--json"]).exits(0).json()["packs"].clone();
    assert_eq!(
        (rows.as_array().unwrap().len(), &rows[0]["subject"], &rows[0]["damage"]),
        (2, &json!("g"), &Value::Null)
    );

    fs::write(crash(&store).join(&pack).join("journal"), "x").unwrap();
    let said = run(&["audit", "--packs"]).exits(4);
    assert!(
        said.stdout.contains("the pack was changed") && said.stderr.contains("was changed: journal"),
        "{}",
        said.said()
    );
    assert!(run(&["verify"]).exits(0).stdout.contains(&format!("crash-pack-changed: audit/crash/{pack}")));
}

#[test]
fn a_pack_holds_the_paths_concerned_the_steps_before_the_fault_and_hashes_where_hashes_belong() {
    let (store, id) = small_store();
    let pack = crash(&store).join(fault(&store, &id, "packet-symbol"));
    let ledger = json_of(&pack, "evidence-ledger.json");
    let concerned: Vec<&str> =
        ledger["artifact_paths"].as_array().unwrap()[9..].iter().map(|path| path.as_str().unwrap()).collect();
    let (marker, blob) = (format!("images/{id}.json"), format!("blobs/sha256/{}/{id}.zst", &id[..2]));
    assert_eq!(concerned, ["forks/heads/packet-symbol.json", &marker, &blob, "forks/packet-symbol"]);
    assert!(store.root().join(&blob).exists() && store.root().join(&marker).exists());
    assert!(store.root().join(concerned[0]).exists());
    let trace = json_of(&pack, "transfer.atp-trace");
    let kinds: Vec<&str> =
        trace.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["checkpoint", "manifest", "manifest", "path", "judged"]);
    let state = &trace[4]["judged"]["transfer"]["state"];
    assert_eq!(
        (&state["manifest_hash"], &state["expected_manifest_hash"]),
        (&json!(""), &json!(format!("sha256:{id}")))
    );
    assert!(trace[2]["message"].as_str().unwrap().contains("there is no image"), "{trace}");
    for log in ["quiclog", "repairlog"] {
        assert_eq!(fs::read_to_string(pack.join(log)).unwrap(), "", "no letters inside of a name fill {log}");
    }
}

#[test]
fn replay_takes_a_name_or_a_folder_and_minimizes_a_pack() {
    let (store, id) = small_store();
    let name = fault(&store, &id, "f");
    let folder = crash(&store).join(&name);
    let said = pfimg_on(store.root(), ["replay", &name]).exits(1).stdout;
    assert!(said.contains("step 1: checkpoint: read the head of fork f"), "{said}");
    assert!(said.contains("concerns forks/heads/f.json\n"), "{said}");
    crate::common::pfimg([Path::new("replay"), &folder]).exits(1);
    let said = pfimg_on(store.root(), ["replay", "recovery-0000000000000000"]).exits(5).stderr;
    assert!(said.contains("pfimg audit --packs"), "{said}");
    // A folder here comes before a pack of the store.
    let here = tempfile::tempdir().unwrap();
    fs::create_dir(here.path().join(&name)).unwrap();
    let run = |args: &[&str]| -> Output {
        Run::program(Path::new(PFIMG), args).env("PF_STORE", store.root()).dir(here.path()).run()
    };
    assert!(run(&["replay", &name]).exits(5).stderr.contains("there is no crash pack in"));
    fs::remove_dir(here.path().join(&name)).unwrap();
    let said = run(&["replay", &name, "--minimize", "least", "--json"]).exits(1);
    assert!(said.stderr.contains("least has 2 of 4 steps"), "{}", said.said());
    assert_eq!(said.json()["trace"].as_array().unwrap().len(), 5);
    let least = run(&["replay", "least", "--json"]).exits(1).json();
    assert_eq!(least["trace"].as_array().unwrap().len(), 3);
    let types = |report: &Value| -> Vec<Value> {
        report["results"][0]["violations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["violation_type"].clone())
            .collect()
    };
    assert_eq!(types(&least), [json!("manifest_integrity"), json!("path_consistency")]);
    assert!(run(&["replay", &name, "--minimize", "least"]).exits(6).stderr.contains("least already exists"));
}

#[test]
fn a_pack_of_a_synthetic_image_has_its_seed_and_replay_and_fixture_take_it_from_the_environment() {
    let store = FastStore::new();
    let fixture = |seed: &str| {
        pfimg_on(store.root(), ["fixture", "--world-files", "1", "--cache-pages", "0", "--seed", seed])
    };
    let id = fixture("77").exits(0).stdout.trim().strip_prefix("sha256:").unwrap().to_owned();
    pfimg_on(store.root(), ["fork", &id, "f"]).exits(0);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    for n in 0..3 {
        fs::write(mount.join(format!("forks/f/world/fs/new{n}")), b"new").unwrap();
    }
    mount.unmount();
    // A journal whose first record is damaged.
    for generation in fs::read_dir(store.root().join("forks/gen")).unwrap() {
        let journal = generation.unwrap().path().join("journal");
        let mut bytes = fs::read(&journal).unwrap();
        if bytes.len() > 60 {
            bytes[50] ^= 1;
            fs::write(&journal, bytes).unwrap();
        }
    }
    pfimg_on(store.root(), ["seal", "f"]).exits(4);
    let pack = crash(&store).join(&names(&crash(&store)).unwrap()[0]);
    assert_eq!(json_of(&pack, "evidence-ledger.json")["seeds"], json!({"fixture": 77}));
    let script = || Run::program(Path::new("sh"), [pack.join("replay_command.sh")]).env("PFIMG", PFIMG);
    assert!(script().run().exits(1).stdout.contains("seed fixture: 77"));
    let replay = |seed: &str| {
        Run::program(Path::new(PFIMG), [Path::new("replay"), &pack]).env("PFIMG_SEED_FIXTURE", seed).run()
    };
    replay("77").exits(1);
    assert!(replay("78").exits(2).stderr.contains("$PFIMG_SEED_FIXTURE is \"78\", and the pack has seed 77"));
    let again =
        Run::program(Path::new(PFIMG), ["fixture", "--world-files", "1", "--cache-pages", "0", "--json"])
            .env("PF_STORE", store.root())
            .env("PFIMG_SEED_FIXTURE", "77")
            .run()
            .exits(0)
            .json();
    let fs_of =
        |id: &str| json_of(&store.root().join("images"), &format!("{id}.json"))["world"]["fs"].clone();
    assert_eq!(
        fs_of(again["id"].as_str().unwrap().strip_prefix("sha256:").unwrap()),
        fs_of(&id),
        "the same content"
    );
}

#[test]
fn a_refused_call_is_reported_with_its_path_and_its_number() {
    let mut store = FastStore::new();
    let files = [store.file("src/a", b"a"), store.file("src/b", b"b")];
    let tree = store.tree(&files);
    let id = store.image(&Spec { fs: Some(tree), ..Spec::default() });
    pfimg_on(store.root(), ["fork", &id, "f"]).exits(0);
    let mount = Mount::of(store.root()).start();
    let world = mount.image(&id).join("world/fs");
    fs::create_dir(world.join("made")).unwrap_err();
    fs::set_permissions(world.join("src/a"), fs::Permissions::from_mode(0o600)).unwrap_err();
    fs::set_permissions(world.join("src/b"), fs::Permissions::from_mode(0o600)).unwrap_err();
    fs::set_permissions(world.join("src"), fs::Permissions::from_mode(0o700)).unwrap_err();
    fs::set_permissions(mount.image(&id).join("trace/messages.jsonl"), fs::Permissions::from_mode(0o600))
        .unwrap_err();
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(mount.join("forks/f/manifest.json"))
        .unwrap_err();
    fs::read(mount.join(".pfimg/events.jsonl")).unwrap();
    mount.unmount();
    let log = fs::read_to_string(store.root().join("audit/events.jsonl")).unwrap();
    let gated: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone())
        .filter(|event| event["kind"] == "tool_gated")
        .collect();
    let told: Vec<(&str, &str)> = gated
        .iter()
        .map(|event| (event["tool"].as_str().unwrap(), event["path"].as_str().unwrap()))
        .collect();
    let at = |path: &str| format!("images/{id}/{path}");
    for (tool, path) in [
        ("create", at("world/fs/made")),
        ("setattr", at("world/fs/src/a")),
        ("setattr", at("world/fs/src/b")),
        ("setattr", at("world/fs/src")),
        ("setattr", at("trace/messages.jsonl")),
    ] {
        assert!(told.contains(&(tool, &*path)), "{tool} {path} is missing in {told:?}");
    }
    assert!(told.iter().any(|(_, path)| *path == "forks/f/manifest.json"), "{told:?}");
    let mut calls: Vec<&str> = gated.iter().map(|event| event["call_id"].as_str().unwrap()).collect();
    calls.sort_unstable();
    calls.dedup();
    assert_eq!(calls.len(), gated.len(), "each call has a unique number");
    assert!(calls.iter().all(|call| !call.is_empty()));
}

#[test]
fn the_first_spelling_of_a_pack_is_still_replayed() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-tests/golden/crashpack");
    for pack in ["first", "five"] {
        let said = crate::common::pfimg([Path::new("replay"), &golden.join(pack)]).exits(1).stdout;
        assert!(said.contains("path_consistency (high)"), "{said}");
    }
}

#[test]
fn a_fork_is_not_lost_by_a_command_that_found_its_base_gone() {
    let (store, id) = small_store();
    fault(&store, &id, "f");
    // The base is back: nothing is wrong any longer.
    pfimg_on(store.root(), ["seal", "f"]).exits(0);
    let mount = Mount::of(store.root()).start();
    let _ = fork(&mount, "h", "f");
    mount.unmount();
}
