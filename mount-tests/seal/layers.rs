//! What becomes of the other layers at a seal.

use pf_core::digest::Digest256;
use pf_effects::ledger::{Ledger as PfLedger, SessionSecret};
use pfimg::digest::Digest;
use pfimg::fork::Fork;
use pfimg::layers::cache::PageManifest;
use pfimg::layers::effects::{Chain, Effects, Secret};

use super::support::{Pf, Place, append, read, write};

const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A line of a ledger without an HMAC.
pub fn effect(number: u64) -> String {
    let digest = Digest::of(&number.to_le_bytes());
    format!(
        "{{\"ts\":\"2026-05-05T14:11:00Z\",\"tool_id\":\"t{number}\",\"args_hash\":\"{digest}\",\
         \"idempotency_key\":\"{number}\",\"result_hash\":\"{digest}\",\"side_effect_class\":\"pure\"}}\n"
    )
}

fn ledger_of(place: &Place, image: &Digest) -> (Digest, Effects) {
    let digest = place.store.image(image).unwrap().manifest.effects.ledger;
    let bytes = place.store.blobs().read_metadata(&digest).unwrap();
    (digest, Effects::parse(&bytes).unwrap())
}

/// Has pf verify an image's chain with the secret in its header.
pub fn verify_ledger(place: &Place, image: &Digest) -> usize {
    let (digest, effects) = ledger_of(place, image);
    let Effects::Ledger(ledger) = effects else { panic!("{effects:?}") };
    let Some(secret) = &ledger.header.session_secret_hex else {
        assert!(
            matches!(ledger.verify(None), Chain::Unchained | Chain::Verified),
            "{:?}",
            ledger.verify(None)
        );
        return ledger.entries.len();
    };
    assert_eq!(ledger.verify(None), Chain::Verified);
    let bytes = place.store.blobs().read_metadata(&digest).unwrap();
    let header: serde_json::Value =
        serde_json::from_slice(bytes.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert!(!secret.is_redacted());
    let key =
        data_encoding::HEXLOWER.decode(header["session_secret_hex"].as_str().unwrap().as_bytes()).unwrap();
    pf_verify(place, &digest, key)
}

fn pf_verify(place: &Place, ledger: &Digest, key: Vec<u8>) -> usize {
    let pf = Pf::open(place);
    let digest = Digest256::parse(&ledger.to_string()).unwrap();
    let ledger = PfLedger::deserialize(pf.0.blobs(), &digest, SessionSecret::new(key)).unwrap();
    ledger.verify().unwrap();
    ledger.entries().len()
}

fn place_with_fork() -> (tempfile::TempDir, Place, std::sync::Arc<Fork>) {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    std::mem::forget(registry);
    (dir, place, fork)
}

#[test]
fn entries_are_chained_on_from_seal_to_seal_and_the_secret_stays_hidden() {
    let (_dir, place, fork) = place_with_fork();
    append(&fork, "effects/ledger.jsonl", (effect(1) + &effect(2)).as_bytes());
    let first = place.seal(&fork);
    assert_eq!((verify_ledger(&place, &first.image), first.reports.len()), (2, 0));
    let shown = String::from_utf8(read(&fork, "effects/ledger.jsonl").unwrap()).unwrap();
    assert!(shown.contains("<redacted>") && shown.lines().count() == 3, "{shown}");
    // What is sealed cannot be changed, only added to.
    let attr = fork.lookup(pfimg::fork::Ino::EFFECTS, b"ledger.jsonl").unwrap();
    assert!(fork.write(attr.ino, 0, b"x", false).is_err());
    append(&fork, "effects/ledger.jsonl", effect(3).as_bytes());
    let second = place.seal(&fork);
    assert_eq!((verify_ledger(&place, &second.image), second.reports.len()), (3, 0));
    let (_, Effects::Ledger(one)) = ledger_of(&place, &first.image) else { panic!() };
    let (_, Effects::Ledger(two)) = ledger_of(&place, &second.image) else { panic!() };
    assert_eq!(two.entries[..2], one.entries[..]);
    assert_eq!(two.header.session_secret_hex, one.header.session_secret_hex);
    assert_eq!(two.header.entries, 3);
}

#[test]
fn an_operators_secret_chains_and_is_not_written_down() {
    let (_dir, place, fork) = place_with_fork();
    let sealer = place.sealer(Some(SECRET));
    for number in 1..4 {
        append(&fork, "effects/ledger.jsonl", effect(number).as_bytes());
        let sealed = sealer.seal(&fork, None).unwrap();
        let (digest, Effects::Ledger(ledger)) = ledger_of(&place, &sealed.image) else { panic!() };
        assert_eq!(ledger.header.session_secret_hex, None);
        assert_eq!(ledger.verify(Some(&Secret::new(SECRET))), Chain::Verified);
        let key = data_encoding::HEXLOWER.decode(SECRET.as_bytes()).unwrap();
        assert_eq!(pf_verify(&place, &digest, key), number as usize);
    }
    // Without it nothing is signed, and a report says so.
    append(&fork, "effects/ledger.jsonl", effect(9).as_bytes());
    let sealed = place.seal(&fork);
    assert!(sealed.reports.iter().any(|r| r.contains("stay unchained")), "{:?}", sealed.reports);
    let (_, Effects::Ledger(ledger)) = ledger_of(&place, &sealed.image) else { panic!() };
    assert_eq!((ledger.entries.len(), ledger.header.entries), (4, 4));
    assert!(!ledger.entries[3].is_chained() && ledger.header.session_secret_hex.is_none());
    // With it again, the chain is whole again.
    append(&fork, "effects/ledger.jsonl", effect(10).as_bytes());
    let sealed = sealer.seal(&fork, None).unwrap();
    let (_, Effects::Ledger(ledger)) = ledger_of(&place, &sealed.image) else { panic!() };
    assert_eq!(ledger.verify(Some(&Secret::new(SECRET))), Chain::Verified);
}

#[test]
fn a_line_without_an_entry_is_kept_and_reported() {
    let (_dir, place, fork) = place_with_fork();
    append(&fork, "effects/ledger.jsonl", (effect(1) + "no json\n" + &effect(2)).as_bytes());
    let sealed = place.seal(&fork);
    assert!(
        sealed.reports.iter().any(|r| r.contains("effects/ledger.jsonl") && r.contains("line 2")),
        "{:?}",
        sealed.reports
    );
    let text = String::from_utf8(read(&fork, "effects/ledger.jsonl").unwrap()).unwrap();
    assert!(text.contains("\nno json\n") && text.ends_with(&effect(2)), "{text}");
    append(
        &fork,
        "trace/messages.jsonl",
        b"{\"role\":\"user\",\"content\":\"hi\"}\n{\"kind\":\"tool_gated\"}\n[1]\n{}\n",
    );
    let sealed = place.seal(&fork);
    let about =
        |line: &str| sealed.reports.iter().any(|r| r.contains("trace/messages.jsonl") && r.contains(line));
    assert!(
        about("line 3") && about("line 4") && !about("line 1") && !about("line 2"),
        "{:?}",
        sealed.reports
    );
    assert!(read(&fork, "trace/messages.jsonl").unwrap().ends_with(b"[1]\n{}\n"));
    append(&fork, "trace/messages.jsonl", b"{\"kind\":\"late\"}\n");
    let sealed = place.seal(&fork);
    assert_eq!(sealed.reports, [""; 0], "what was reported is not reported again");
}

#[test]
fn pages_that_were_written_become_a_page_manifest_that_pf_takes() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let registry = place.registry();
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    let page = vec![7; 512];
    write(&fork, "cache/pages/00000001.k", &page);
    write(&fork, "cache/pages/00000009.k", &page);
    let error = place.sealer(None).seal(&fork, None).unwrap_err().to_string();
    assert!(error.contains("00000009.k has no 00000009.v"), "{error}");
    assert!(fork.is_changed(), "the fork is as it was");
    write(&fork, "cache/pages/00000009.v", b"short");
    fork.unlink(pfimg::fork::Ino::PAGES, b"00000000.k").unwrap();
    fork.unlink(pfimg::fork::Ino::PAGES, b"00000000.v").unwrap();
    let sealed = place.seal(&fork);
    assert!(
        sealed.reports.iter().any(|r| r.contains("00000009.v") && r.contains("5 bytes")),
        "{:?}",
        sealed.reports
    );
    let manifest = place.store.image(&sealed.image).unwrap().manifest.cache.manifest;
    let bytes = place.store.blobs().read_metadata(&manifest).unwrap();
    let pages = PageManifest::parse(&bytes).unwrap();
    assert_eq!(pages.pages.iter().map(|page| page.ix).collect::<Vec<_>>(), [1, 2, 9]);
    assert_eq!(pages.pages[0].k, Digest::of(&page));
    assert_eq!(read(&fork, "cache/manifest.json").unwrap(), bytes, "the fork shows it");
    Pf::open(&place).judge(&sealed.image);
}

#[test]
fn layers_without_content_have_pfs_empty_forms() {
    let (_dir, place, fork) = place_with_fork();
    write(&fork, "world/fs/only.txt", b"x");
    let sealed = place.seal(&fork);
    let pf = Pf::open(&place);
    pf.judge(&sealed.image);
    let manifest = pf.manifest(&sealed.image);
    assert!(manifest.parents.is_empty());
    assert_eq!(pf.blob(&manifest.model.base), b"base:pfimg");
    assert!(pf_cache::deserialize_pages(pf.0.blobs(), &manifest.cache.manifest).unwrap().pages.is_empty());
    let env: pf_world::env::EnvSnapshot = serde_json::from_slice(&pf.blob(&manifest.world.env)).unwrap();
    assert_eq!(env.kind, "env.v1");
    let _: pf_world::procs::ProcsBlob = serde_json::from_slice(&pf.blob(&manifest.world.procs)).unwrap();
    assert_eq!(pf.blob(&manifest.trace.messages), b"");
    assert_eq!(verify_ledger(&place, &sealed.image), 0);
}

#[test]
fn a_fork_that_was_copied_together_has_its_lineage_and_secret_from_its_manifest() {
    let (_dir, place, fork) = place_with_fork();
    append(&fork, "effects/ledger.jsonl", effect(1).as_bytes());
    write(&fork, "world/fs/a", b"1");
    let source = place.seal(&fork);
    let elsewhere = place.store.root().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let registry =
        pfimg::fork::Registry::open(&elsewhere, place.reader.clone(), pfimg::fork::Options::default());
    let copy = registry.unwrap().create("copy", None).unwrap();
    for path in ["manifest.json", "effects/ledger.jsonl"] {
        write(&copy, path, &read(&fork, path).unwrap());
    }
    append(&copy, "effects/ledger.jsonl", effect(2).as_bytes());
    let sealed = place.seal(&copy);
    assert_eq!(place.store.image(&sealed.image).unwrap().manifest.parents, [source.image]);
    assert_eq!(verify_ledger(&place, &sealed.image), 2);
}
