//! Packs that are written, changed and replayed; golden packs, byte for byte.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::crashpack::evidence::EvidenceStrength;
use crate::crashpack::{Steps, kept};
use crate::digest::Digest;
use crate::oracle::{Check, Transfer, TransferKind, TransferOracle, TransferState};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-tests/golden/crashpack").join(name)
}

fn all_wrong() -> TransferState {
    TransferState {
        manifest_hash: "sha256:got".into(),
        expected_manifest_hash: "sha256:meant".into(),
        journal_gaps: 2,
        pending_operations: 3,
        leaked_obligations: 4,
        path_outcomes_consistent: false,
    }
}

fn pack() -> Crashpack {
    let state = TransferState { pending_operations: 0, leaked_obligations: 0, ..all_wrong() };
    let transfer = Transfer { kind: TransferKind::Seal, subject: "try-1".into(), state };
    let clean = Transfer { kind: TransferKind::Export, subject: "x".into(), state: TransferState::default() };
    Crashpack::new()
        .with_trace("checkpoint", "frozen")
        .with_trace("message", "Path src/lib.rs differs")
        .with_trace("message", "a repair was tried\nand failed")
        .with_judged(TransferOracle::new("it's a 'seal'").with(Check::Paths, false), transfer)
        .with_judged(TransferOracle::new("export"), clean)
        .with_seed("the run", 7)
        .with_metadata("fork", "try-1\nviolations: 0")
        .with_artifact_path("forks/try-1")
        .with_artifact_path("forks/try-1")
}

fn text(pack: &Crashpack, name: &str) -> String {
    String::from_utf8(pack.files().unwrap()[name].clone()).unwrap()
}

/// A pack of five violations with the steps that show them, and events of each kind and each word that the logs use.
fn golden_pack() -> Crashpack {
    let mut steps = Steps::new();
    let image = Digest::of(b"image");
    steps.did("checkpoint", "froze fork packet-symbol");
    steps.saw_journal(2);
    steps.saw_pending(3);
    steps.saw_manifest(
        &image,
        Digest::of(b"other").to_string(),
        Some("the marker differs from the manifest"),
    );
    steps.saw_leaked("temporary files left behind", 4);
    steps.saw_paths("forks/f", [("world/fs/a\nb", "otherwise in the tree".to_owned())]);
    for kind in crate::crashpack::pack::PATH_KINDS {
        steps.did(kind, format!("an event of kind {kind}"));
    }
    for words in [
        "path route racing",
        "a path",
        "a Route",
        "racing",
        "quic",
        "UDP",
        "packet",
        "a connection id",
        "repair",
        "RaptorQ",
        "fec",
        "symbol",
        "none of them",
    ] {
        steps.did("message", words);
        steps.did("note", words);
    }
    let transfer = steps.transfer(TransferKind::Seal, "packet-symbol");
    let clean = Transfer { kind: TransferKind::Export, subject: "x".into(), ..transfer.clone() };
    steps
        .into_pack(TransferOracle::new("it's a 'seal'"), transfer)
        .with_judged(TransferOracle::new("quiet").with(Check::Manifest, false), clean)
        .with_seed("the run", 7)
        .with_seed("a b", u64::MAX)
        .with_metadata("pfimg", "0.1.0")
        .with_metadata("subject", "try-1\nviolations: 0")
        .with_artifact_path("forks/packet-symbol")
}

#[test]
fn a_golden_pack_is_made_byte_for_byte() {
    let (made, dir) = (golden_pack().files().unwrap(), golden("five"));
    if std::env::var_os("PFIMG_WRITE_GOLDEN").is_some() {
        let _ = fs::remove_dir_all(&dir);
        golden_pack().write_to(&dir).unwrap();
    }
    for name in FILES {
        let golden = fs::read(dir.join(name)).unwrap();
        let (made, golden) = (String::from_utf8_lossy(&made[name]), String::from_utf8_lossy(&golden));
        assert_eq!(made, golden, "{name}");
    }
    assert!(replay(&dir, &["quiet".into()]).unwrap().reproduces());
}

#[test]
fn a_pack_in_the_first_spelling_is_replayed_and_made_again_in_it() {
    let found = replay(&golden("first"), &["it's a 'seal'".into(), "export".into()]).unwrap();
    assert_eq!((found.results[0].violations.len(), found.results[1].passed), (5, true));
    assert_eq!(found.ledger.entries[0].oracle_name, "it's a 'seal'");
    assert_eq!(found.ledger.artifact_paths.last().map(String::as_str), Some("forks/try-1"));
    assert_eq!(found.ledger.seeds["the run"], 7);
    for (name, bytes) in found.pack.files().unwrap() {
        assert_eq!(fs::read(golden("first").join(name)).unwrap(), bytes, "{name}");
    }
    assert!(text(&found.pack, "evidence-ledger.json").contains("\"artifacts\": ["));
    assert!(text(&found.pack, "quiclog").contains("packet-x"), "it searched the words of every event");
    let least = found.pack.minimized();
    assert_eq!((least.steps(), least.results()), (0, found.pack.results()));
}

#[test]
fn a_ledger_has_the_names_of_the_original_and_the_index_of_each_entry() {
    let ledger: serde_json::Value = serde_json::from_str(&text(&pack(), "evidence-ledger.json")).unwrap();
    let keys: Vec<&String> = ledger.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["artifact_paths", "entries", "metadata", "schema_version", "seeds"]);
    let keys: Vec<&String> = ledger["entries"][1].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["artifact_path", "evidence", "oracle_name", "timestamp"]);
    let entries: Vec<(&str, u64)> = ledger["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["oracle_name"].as_str().unwrap(), entry["timestamp"].as_u64().unwrap()))
        .collect();
    assert_eq!(entries, [("it's a 'seal'", 0), ("export", 1)]);
}

#[test]
fn a_pack_replays_on_another_folder_and_reproduces_its_violations() {
    let dir = tempfile::tempdir().unwrap();
    let kept = pack().keep_in(dir.path()).unwrap();
    assert_eq!(pack().keep_in(dir.path()).unwrap(), kept, "the same pack is kept once");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let elsewhere = tempfile::tempdir().unwrap();
    for name in FILES {
        fs::copy(kept.join(name), elsewhere.path().join(name)).unwrap();
    }
    let replay = replay(elsewhere.path(), &["export".into()]).unwrap();
    assert!(replay.reproduces());
    assert_eq!(replay.results, pack().results());
    assert_eq!(replay.ledger.entries[0].evidence.bayes_factor.strength, EvidenceStrength::Strong);
    assert_eq!(replay.ledger.entries[1].evidence.bayes_factor.strength, EvidenceStrength::Against);
    let found = "it's a 'seal', export: Manifest hash mismatch: expected sha256:meant, got sha256:got; Journal has 2 gaps or \
        ordering violations";
    assert_eq!(replay.found(), found);
    let error = super::replay(elsewhere.path(), &["seal".into()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_pack_is_named_by_its_oracle_and_content_and_its_script_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let kept = pack().keep_in(dir.path()).unwrap();
    let digest = Digest::of(text(&pack(), "manifest").as_bytes()).hex();
    assert_eq!(kept.file_name().unwrap().to_str(), Some(&*format!("it_s_a__seal-{}", &digest[..16])));
    let mode = |name: &str| fs::metadata(kept.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(REPLAY), mode("journal")), (0o700, 0o600));
    let nothing = Crashpack::new().keep_in(dir.path()).unwrap();
    assert!(nothing.file_name().unwrap().to_str().unwrap().starts_with("pack-"));
    assert!(!replay(&nothing, &[]).unwrap().reproduces());
}

#[test]
fn a_damaged_pack_is_replaced_when_it_is_kept_again() {
    let dir = tempfile::tempdir().unwrap();
    let kept = pack().keep_in(dir.path()).unwrap();
    let damages: [&dyn Fn(); 5] = [
        &|| fs::write(kept.join("journal"), "x").unwrap(),
        &|| fs::remove_file(kept.join(REPLAY)).unwrap(),
        &|| fs::write(kept.join("more"), "x").unwrap(),
        &|| {
            fs::remove_dir_all(&kept).unwrap();
            fs::write(&kept, "x").unwrap();
        },
        &|| {
            fs::remove_file(&kept).or_else(|_| fs::remove_dir_all(&kept)).unwrap();
            std::os::unix::fs::symlink("/nowhere", &kept).unwrap();
        },
    ];
    for damage in damages {
        damage();
        assert_eq!(pack().keep_in(dir.path()).unwrap(), kept);
        assert!(replay(&kept, &[]).unwrap().reproduces());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no rest is left");
    }
    // A whole pack is not written again.
    let before = fs::metadata(kept.join("journal")).unwrap().modified().unwrap();
    pack().keep_in(dir.path()).unwrap();
    assert_eq!(fs::metadata(kept.join("journal")).unwrap().modified().unwrap(), before);
}

#[test]
fn packs_are_listed_the_newest_first_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(kept(&dir.path().join("none")).unwrap(), []);
    for (name, age) in [("a", 30), ("b", 10), ("c", 20), (".tmp-x", 5)] {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        fs::File::open(&path).unwrap().set_modified(at).unwrap();
    }
    fs::write(dir.path().join("file"), "x").unwrap();
    let names: Vec<String> = kept(dir.path()).unwrap().into_iter().map(|pack| pack.name).collect();
    assert_eq!(names, ["b", "c", "a"]);
}

#[test]
fn a_pack_with_any_byte_changed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut steps = Steps::new();
    steps.did("message", "on the path of a repair packet");
    steps.saw_leaked("files left", 1);
    let transfer = steps.transfer(TransferKind::Seal, "f");
    let pack =
        steps.into_pack(TransferOracle::new("seal"), transfer).with_seed("s", 1).with_metadata("k", "v");
    pack.write_to(dir.path()).unwrap();
    assert!(replay(dir.path(), &[]).unwrap().reproduces());
    for (name, bytes) in pack.files().unwrap() {
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            fs::write(dir.path().join(name), &changed).unwrap();
            let error = replay(dir.path(), &[]).unwrap_err();
            let told = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::UnsupportedSchema);
            assert!(told, "{name}, byte {at}: {error}");
        }
        fs::write(dir.path().join(name), [&bytes[..], b"\n"].concat()).unwrap();
        assert_eq!(replay(dir.path(), &[]).unwrap_err().kind(), ErrorKind::Damaged, "{name}");
        fs::write(dir.path().join(name), bytes).unwrap();
    }
}

#[test]
fn every_kind_of_tampering_is_damage_and_a_folder_that_is_not_a_pack_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(replay(dir.path(), &[]).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(replay(&dir.path().join("none"), &[]).unwrap_err().kind(), ErrorKind::NotFound);
    for other in ["manifest", "journal", "notes"] {
        fs::write(dir.path().join(other), "x").unwrap();
    }
    assert_eq!(replay(dir.path(), &[]).unwrap_err().kind(), ErrorKind::NotFound, "of any other program");
    assert_eq!(replay(&dir.path().join("journal"), &[]).unwrap_err().kind(), ErrorKind::NotFound, "a file");

    let damaged = |what: &str, tamper: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        pack().write_to(dir.path()).unwrap();
        tamper(dir.path());
        let error = replay(dir.path(), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
    };
    for name in FILES {
        damaged("gone", &|dir| fs::remove_file(dir.join(name)).unwrap());
        damaged("a folder", &|dir| {
            fs::remove_file(dir.join(name)).unwrap();
            fs::create_dir(dir.join(name)).unwrap();
        });
        damaged("a link", &|dir| {
            let moved = dir.parent().unwrap().join(format!("moved-{}", std::process::id()));
            fs::rename(dir.join(name), &moved).unwrap();
            std::os::unix::fs::symlink(&moved, dir.join(name)).unwrap();
        });
        damaged("a fifo", &|dir| {
            fs::remove_file(dir.join(name)).unwrap();
            let made = std::process::Command::new("mkfifo").arg(dir.join(name)).status();
            assert!(made.unwrap().success());
        });
        damaged("an array", &|dir| fs::write(dir.join(name), "[]").unwrap());
    }
    for more in ["more", ".more", "journal~"] {
        damaged("a file more", &|dir| fs::write(dir.join(more), "x").unwrap());
    }
    damaged("a folder more", &|dir| fs::create_dir(dir.join("more")).unwrap());
    damaged("version 0", &|dir| {
        let ledger = fs::read_to_string(dir.join(LEDGER)).unwrap();
        fs::write(dir.join(LEDGER), ledger.replace("\"schema_version\": 1", "\"schema_version\": 0"))
            .unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    pack().write_to(dir.path()).unwrap();
    let ledger = fs::read_to_string(dir.path().join(LEDGER)).unwrap();
    fs::write(dir.path().join(LEDGER), ledger.replace("\"schema_version\": 1", "\"schema_version\": 2"))
        .unwrap();
    assert_eq!(replay(dir.path(), &[]).unwrap_err().kind(), ErrorKind::UnsupportedSchema);
}

#[test]
fn a_pack_whose_steps_come_to_another_state_than_was_judged_is_refused() {
    let mut steps = Steps::new();
    steps.saw_leaked("files left", 1);
    let mut transfer = steps.transfer(TransferKind::Seal, "f");
    transfer.state.leaked_obligations = 2;
    let pack = steps.into_pack(TransferOracle::new("seal"), transfer);
    let dir = tempfile::tempdir().unwrap();
    pack.write_to(dir.path()).unwrap();
    let error = replay(dir.path(), &[]).unwrap_err();
    assert!(error.to_string().contains("the steps before event 2 give a different state"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[test]
fn the_same_input_makes_the_same_bytes_and_every_file_is_there() {
    assert_eq!(pack().files().unwrap(), pack().files().unwrap());
    let names: Vec<&str> = pack().files().unwrap().into_keys().collect();
    let mut all = FILES.to_vec();
    all.sort_unstable();
    assert_eq!(names, all);
}

#[test]
fn lines_of_the_trace_are_sorted_into_their_logs_by_kind_and_by_the_words_of_messages_alone() {
    assert_eq!(
        text(&pack(), "pathlog"),
        "[000001] checkpoint frozen\n[000002] message Path src/lib.rs differs"
    );
    assert_eq!(text(&pack(), "repairlog"), r"[000003] message a repair was tried\nand failed");
    assert_eq!(text(&pack(), "quiclog"), "");
    let named = Crashpack::new().with_trace("note", "fork packet-symbol-path was sealed");
    for log in ["pathlog", "quiclog", "repairlog"] {
        assert_eq!(text(&named, log), "");
    }
}

#[test]
fn the_manifest_and_the_journal_describe_the_findings_and_no_value_adds_a_line() {
    let manifest = text(&pack(), "manifest");
    assert!(manifest.contains("\nviolations: 2\n") && !manifest.contains("\nviolations: 0"), "{manifest}");
    assert!(manifest.contains("  the run: 7\n") && manifest.contains("  - forks/try-1\n"), "{manifest}");
    let journal = text(&pack(), "journal");
    assert!(journal.contains("    - type: manifest_integrity\n      severity: High\n"), "{journal}");
    assert!(journal.contains("        gap_count: 2\n"), "{journal}");
    let digest = text(&pack(), "journal.digest");
    let of_journal = Digest::of(journal.as_bytes());
    assert_eq!(digest, format!("digest: {of_journal}\nbytes: {}\n", journal.len()));
}

#[test]
fn the_script_hands_over_exactly_the_oracles_and_the_seeds() {
    let dir = tempfile::tempdir().unwrap();
    pack().write_to(dir.path()).unwrap();
    // A shell reads the script: a script that was just written cannot be run while another thread starts a program.
    let output = std::process::Command::new("sh")
        .arg(dir.path().join(REPLAY))
        .env("PFIMG", "printf")
        .output()
        .unwrap();
    // printf uses its first argument as the format and prints no other argument.
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "replay");
    let script = text(&pack(), REPLAY);
    assert!(script.contains(r#"replay --oracle='it'"'"'s a '"'"'seal'"'"'' --oracle=export ."#), "{script}");
    assert!(script.contains("\nexport PFIMG_SEED_THE_RUN=7\n"), "{script}");
    assert!(script.starts_with("#!/bin/sh\n"), "{script}");
}
