//! Every code of `pfimg verify`, each with a store that has exactly that finding.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use pfimg::audit::Log;
use pfimg::ops::verify::{Code, Severity};
use pfimg::oracle::{Transfer, TransferKind, TransferState};
use serde_json::{Value, json};

use super::support::{RealStore, digest, ledger};

/// Does the damage to the image and says which image to expect in the finding, if any, and which path.
type Harm = fn(&RealStore, &str) -> (Option<String>, Option<&'static str>);

/// The image after a change of its manifest.
fn changed(
    store: &RealStore,
    id: &str,
    path: &'static str,
    change: impl FnOnce(&mut pf_core::manifest::Manifest),
) -> (Option<String>, Option<&'static str>) {
    (Some(store.change(id, change)), Some(path))
}

fn tree(store: &RealStore, entries: &Value) -> pf_core::digest::Digest256 {
    store.put(&serde_json::to_vec(&json!({"kind": "fs.tree.v1", "entries": entries})).unwrap())
}

fn file(store: &RealStore, path: &str, size: u64) -> Value {
    json!({"path": path, "mode": "0644", "size": size, "kind": "file", "blob": store.put(b"four")})
}

/// Keeps a crash pack in the store.
fn crash_pack(store: &RealStore) -> PathBuf {
    let state = TransferState { journal_gaps: 1, ..TransferState::default() };
    let transfer = Transfer { kind: TransferKind::Seal, subject: "f".into(), state };
    Log::packs_only(store.root()).judge(&transfer).pack.unwrap()
}

const CASES: &[(Code, Harm)] = &[
    (Code::MarkerUnreadable, |store, id| {
        fs::remove_file(store.marker(id)).unwrap();
        fs::create_dir(store.marker(id)).unwrap();
        (Some(id.to_owned()), None)
    }),
    (Code::MarkerDigestMismatch, |store, id| {
        let text = fs::read_to_string(store.marker(id)).unwrap();
        fs::write(store.marker(id), text.replace("claude", "Claude")).unwrap();
        (Some(id.to_owned()), None)
    }),
    (Code::MarkerUnknownName, |store, id| {
        fs::copy(store.marker(id), store.root().join("images/copy.json")).unwrap();
        (None, None)
    }),
    (Code::ManifestNewerSchema, |store, _| {
        (Some(store.image_of(br#"{"schema_version":2}"#)), Some("manifest.json"))
    }),
    (Code::ManifestMalformed, |store, _| {
        (Some(store.image_of(br#"{"schema_version":1}"#)), Some("manifest.json"))
    }),
    (Code::ManifestBlobMissing, |store, id| {
        fs::remove_file(store.blob(&digest(id))).unwrap();
        (Some(id.to_owned()), Some("manifest.json"))
    }),
    (Code::ManifestBlobDamaged, |store, id| {
        store.overwrite(&digest(id), b"{}");
        (Some(id.to_owned()), Some("manifest.json"))
    }),
    (Code::BlobMissing, |store, id| {
        fs::remove_file(store.blob(&store.file(id, 1))).unwrap();
        (Some(id.to_owned()), Some("world/fs/src/file_0001.rs"))
    }),
    (Code::BlobDigestMismatch, |store, id| {
        // As long as it should be, so that only the digest tells.
        store.overwrite(&store.file(id, 2), &[b'x'; 100]);
        (Some(id.to_owned()), Some("world/fs/src/file_0002.rs"))
    }),
    (Code::BlobUndecodable, |store, id| {
        let path = store.blob(&store.manifest(id).model.diff);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        (Some(id.to_owned()), Some("model/diff.json"))
    }),
    (Code::BlobSizeMismatch, |store, id| {
        let entries = json!([file(store, "honest", 4), file(store, "liar", 5)]);
        changed(store, id, "world/fs/liar", |m| m.world.fs = tree(store, &entries))
    }),
    (Code::BlobTooLarge, |store, id| {
        // A bomb of spaces: sound as a blob, too large for what is parsed as a whole.
        let spaces = vec![b' '; (64 << 20) + 1];
        let name = pf_core::digest::Digest256::of(&spaces);
        fs::create_dir_all(store.blob(&name).parent().unwrap()).unwrap();
        store.overwrite(&name, &spaces);
        changed(store, id, "world/env.json", |m| m.world.env = name)
    }),
    (Code::BlobUnreadable, |store, id| {
        let path = store.blob(&store.manifest(id).trace.messages);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        (Some(id.to_owned()), Some("trace/messages.jsonl"))
    }),
    (Code::TreeMalformed, |store, id| changed(store, id, "world/fs", |m| m.world.fs = store.put(b"[]"))),
    (Code::TreePathRefused, |store, id| {
        let entries = json!([file(store, "good", 4), file(store, "../evil", 4)]);
        changed(store, id, "world/fs", |m| m.world.fs = tree(store, &entries))
    }),
    (Code::TreeEntryRefused, |store, id| {
        let entries = json!([file(store, "a", 4), file(store, "a/b", 4)]);
        changed(store, id, "world/fs", |m| m.world.fs = tree(store, &entries))
    }),
    (Code::PageManifestMalformed, |store, id| {
        changed(store, id, "cache/manifest.json", |m| m.cache.manifest = store.put(b"{}"))
    }),
    (Code::PageSizeMismatch, |store, id| {
        let (four, five) = (store.put(b"four"), store.put(b"five!"));
        let pages = json!([{"ix": 7, "k": four, "v": five}]);
        let manifest = json!({"layout": "paged-batchinvariant-v1", "page_size_bytes": 4, "pages": pages});
        changed(store, id, "cache/pages/00000007.v", |m| {
            m.cache.manifest = store.put(&serde_json::to_vec(&manifest).unwrap());
        })
    }),
    (Code::EnvMalformed, |store, id| {
        changed(store, id, "world/env.json", |m| m.world.env = store.put(br#"{"kind":"env.v9"}"#))
    }),
    (Code::ProcsMalformed, |store, id| {
        changed(store, id, "world/procs.json", |m| m.world.procs = store.put(b"7"))
    }),
    (Code::ModelDiffMalformed, |store, id| {
        changed(store, id, "model/diff.json", |m| m.model.diff = store.put(b"{}"))
    }),
    (Code::LedgerMalformed, |store, id| {
        changed(store, id, "effects/ledger.jsonl", |m| m.effects.ledger = store.put(b"no ledger\n"))
    }),
    (Code::LedgerChainBroken, |store, id| {
        let forged = ledger(b"secret", true).replace("tool_1", "tool_9");
        changed(store, id, "effects/ledger.jsonl", |m| m.effects.ledger = store.put(forged.as_bytes()))
    }),
    (Code::LedgerCountMismatch, |store, id| {
        let whole = ledger(b"secret", true);
        let cut: String = whole.split_inclusive('\n').take(3).collect();
        assert!(cut.len() < whole.len());
        changed(store, id, "effects/ledger.jsonl", |m| m.effects.ledger = store.put(cut.as_bytes()))
    }),
    (Code::TraceMalformedLine, |store, id| {
        let trace = b"{\"role\":\"user\",\"content\":\"x\"}\nnope\n{\nnope\n";
        changed(store, id, "trace/messages.jsonl", |m| m.trace.messages = store.put(trace))
    }),
    (Code::TagMalformed, |store, _| {
        store.tag("bad", "garbage");
        (None, None)
    }),
    (Code::TagDangling, |store, _| {
        store.tag("gone", &format!("sha256:{}\n", "ab".repeat(32)));
        (None, None)
    }),
    (Code::LedgerUnverifiable, |store, id| {
        let kept = ledger(b"secret", false);
        changed(store, id, "effects/ledger.jsonl", |m| m.effects.ledger = store.put(kept.as_bytes()))
    }),
    (Code::ParentMissing, |store, id| {
        changed(store, id, "manifest.json", |m| m.parents = vec![digest(&"ab".repeat(32))])
    }),
    (Code::ParentsTooMany, |store, id| {
        let parent = store.snapshot(300, &[]);
        changed(store, id, "manifest.json", |m| m.parents = vec![digest(&parent); 3])
    }),
    (Code::LedgerNotContinued, |store, id| {
        let new = store.snapshot(101, &[id]);
        let old = store.manifest(id);
        let lost = store.put(b"{\"entries\":0,\"kind\":\"effects.ledger.v1\"}\n");
        changed(store, &new, "effects/ledger.jsonl", |m| {
            (m.effects.ledger, m.trace.messages) = (lost, old.trace.messages);
        })
    }),
    (Code::TraceNotContinued, |store, id| {
        let new = store.snapshot(101, &[id]);
        let old = store.manifest(id);
        changed(store, &new, "trace/messages.jsonl", |m| {
            (m.effects.ledger, m.trace.messages) = (old.effects.ledger, store.put(b""));
        })
    }),
    (Code::CriuDumpMissing, |store, id| {
        let procs = json!({"kind": "procs.criu.v1", "criu_dump": digest(&"ab".repeat(32)), "pids": [1]});
        changed(store, id, "world/procs.json", |m| {
            m.world.procs = store.put(&serde_json::to_vec(&procs).unwrap());
        })
    }),
    (Code::MergedLedgerMissing, |store, id| {
        let there = store.manifest(id).effects.ledger;
        let merged = json!({
            "kind": "effects.merged.v1", "parent_a": there, "parent_b": digest(&"ab".repeat(32)), "ancestor": there,
            "replay_with_new_key": [], "summary": {"a_entries": 1, "b_entries": 1, "b_irreversible_cached": 0},
        });
        changed(store, id, "effects/ledger.jsonl", |m| {
            m.effects.ledger = store.put(&serde_json::to_vec(&merged).unwrap());
        })
    }),
    (Code::CrashPack, |store, _| {
        crash_pack(store);
        (None, None)
    }),
    (Code::CrashPackChanged, |store, _| {
        fs::write(crash_pack(store).join("journal"), "changed").unwrap();
        (None, None)
    }),
    (Code::OddFile, |store, id| {
        let blob = store.blob(&digest(id));
        fs::write(blob.with_extension("tmp.1.2"), "half a blob").unwrap();
        (None, None)
    }),
];

#[test]
fn every_code_has_a_store_with_exactly_that_finding() {
    let sound = RealStore::new();
    let before = sound.snapshot(100, &[]);
    let bystander = sound.snapshot(200, &[]);
    for (code, harm) in CASES {
        let store = sound.copy();
        let (image, path) = harm(&store, &before);
        let exit = if code.severity() == Severity::Damage { 4 } else { 0 };
        let json = store.pfimg(&["verify", "--json"]).exits(exit).json();
        let findings = json["findings"].as_array().unwrap();
        assert_eq!(findings.len(), 1, "{code}: {findings:#?}");
        let finding = &findings[0];
        assert_eq!(finding["code"], json!(code.as_str()), "{finding}");
        let severity = if exit == 4 { "damage" } else { "note" };
        assert_eq!(finding["severity"], json!(severity), "{finding}");
        assert_eq!(
            finding["image"],
            json!(image.as_ref().map(|id| format!("sha256:{id}"))),
            "{code}: {finding}"
        );
        assert_eq!(finding["path"], json!(path), "{code}: {finding}");
        assert!(!finding.to_string().contains(&bystander), "{code}: {finding}");

        let lines = store.pfimg(&["verify"]).exits(exit).stdout;
        let (subject, detail) = (finding["subject"].as_str().unwrap(), finding["detail"].as_str().unwrap());
        assert_eq!(lines, format!("verify: {code}: {subject}: {detail}\n"), "{code}");
        if let Some(image) = &image {
            assert!(detail.starts_with(&format!("image {image}")), "{code}: {detail}");
            if *code != Code::ManifestNewerSchema && *code != Code::MarkerUnreadable {
                store.pfimg(&["verify", image]).exits(exit);
            }
            store.pfimg(&["verify", &bystander]).exits(0);
        }
    }
    let covered: BTreeSet<Code> = CASES.iter().map(|(code, _)| *code).collect();
    assert_eq!(covered, Code::ALL.iter().copied().collect(), "codes without a case");
}

#[test]
fn damage_to_a_blob_that_nothing_refers_to_is_found_too() {
    let store = RealStore::new();
    store.snapshot(1, &[]);
    let orphan = store.put(b"orphan");
    store.overwrite(&orphan, b"other!");
    let json = store.pfimg(&["verify", "--json"]).exits(4).json();
    let findings = json["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(
        (&findings[0]["code"], &findings[0]["subject"], &findings[0]["image"]),
        (&json!("blob-digest-mismatch"), &json!(orphan), &Value::Null)
    );
}

#[test]
fn damage_that_images_share_is_one_finding_that_counts_them() {
    let store = RealStore::new();
    let first = store.snapshot(1, &[]);
    let second = store.snapshot(1, &[&first]);
    let tree = store.manifest(&first).world.fs;
    assert_eq!(tree, store.manifest(&second).world.fs);
    fs::remove_file(store.blob(&store.file(&first, 0))).unwrap();
    let lines = store.pfimg(&["verify"]).exits(4).stdout;
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains("world/fs/src/file_0000.rs (and in 1 more images)"), "{lines}");
}

#[test]
fn every_false_statement_about_one_blob_is_a_finding() {
    let store = RealStore::new();
    let id = store.snapshot(1, &[]);
    let entries =
        json!([file(&store, "a", 3), file(&store, "b", 4), file(&store, "c", 5), file(&store, "d", 5)]);
    store.change(&id, |m| m.world.fs = tree(&store, &entries));
    let json = store.pfimg(&["verify", "--json"]).exits(4).json();
    let paths: Vec<&str> =
        json["findings"].as_array().unwrap().iter().filter_map(|finding| finding["path"].as_str()).collect();
    // Of those that tell the same lie the first.
    assert_eq!(paths, ["world/fs/a", "world/fs/c"]);
}

#[test]
fn a_name_with_control_characters_stays_on_its_line() {
    let store = RealStore::new();
    let id = store.snapshot(1, &[]);
    let entries = json!([file(&store, "evil\n\u{1b}[2Jverify: blob-missing: x", 5)]);
    store.change(&id, |m| m.world.fs = tree(&store, &entries));
    let lines = store.pfimg(&["verify"]).exits(4).stdout;
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains(r"evil\n\u{1b}[2J"), "{lines}");
}
