//! Seals that fail, and seals that are cut, at every single call.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pfimg::digest::Digest;
use pfimg::fork::{Fork, Options, Registry};
use pfimg::ops::seal::Tag;
use pfimg::store::LayerFile;

use super::disk::{Disk, Fate, Left};
use super::support::{Pf, Place, Shown, append, read, world, write};

struct Sealing {
    _dir: tempfile::TempDir,
    disk: Arc<Disk>,
    place: Place,
    registry: Registry,
    fork: Arc<Fork>,
    base: Digest,
}

/// A fork that was sealed once and changed again, durably; `ignoring` some of it.
fn fork_to_seal(ignoring: bool) -> Sealing {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let disk = Arc::new(Disk::new(&root));
    let place = Place::with_io(&root, disk.clone());
    let base = place.fixture(1);
    let options = Options { io: disk.clone(), ..Options::default() };
    let registry = Registry::open(&root, place.reader.clone(), options).unwrap();
    let fork = registry.create("f", Some(base)).unwrap();
    write(&fork, "world/fs/first", b"1");
    if ignoring {
        write(&fork, "world/fs/.pfignore", b"*.log\nsrc/build\n");
        write(&fork, "world/fs/kept.log", b"1");
        write(&fork, "world/fs/src/build/large", &vec![8; 120_000]);
    }
    let base = place.seal(&fork).image;
    write(&fork, "world/fs/src/new.rs", b"fn main() {}");
    write(&fork, "world/fs/big", &vec![7; 150_000]);
    write(&fork, "world/fs/first", b"2");
    fork.unlink(fork.resolve(b"world/fs/src").unwrap(), b"file_0002.rs").unwrap();
    write(&fork, "cache/pages/00000001.k", &[9; 512]);
    append(&fork, "effects/ledger.jsonl", super::layers::effect(1).as_bytes());
    append(&fork, "trace/messages.jsonl", b"{\"role\":\"user\",\"content\":\"hi\"}\n");
    if ignoring {
        write(&fork, "world/fs/kept.log", b"12");
        write(&fork, "world/fs/src/build/new", b"new");
    }
    fork.fsync().unwrap();
    Sealing { _dir: dir, disk, place, registry, fork, base }
}

/// The data that must never be lost. For the ledger this is its text, since a seal signs it.
#[derive(Debug, PartialEq)]
struct Kept {
    world: BTreeMap<Vec<u8>, Shown>,
    page: Option<Vec<u8>>,
    trace: Option<Vec<u8>>,
    effects: usize,
}

fn kept(fork: &Fork) -> Kept {
    let ledger = String::from_utf8(read(fork, "effects/ledger.jsonl").unwrap()).unwrap();
    Kept {
        world: world(fork),
        page: read(fork, "cache/pages/00000001.k"),
        trace: read(fork, "trace/messages.jsonl"),
        effects: ledger.matches("tool_id").count(),
    }
}

/// Asserts that every marker leads to whole blobs, and that the fork has its files and its old or new base.
fn judge(root: &Path, old: &Digest, before: &Kept, about: &str) {
    let place = Place::new(root);
    let pf = Pf::open(&place);
    let images = place.store.images().ids(&mut |_| ()).unwrap();
    for id in &images {
        let image = place.store.image(id).unwrap_or_else(|e| panic!("{about}: {e}"));
        for (file, digest) in image.manifest.blobs() {
            assert!(place.store.blobs().keep(&digest), "{about}: image {id} has no {file}");
            if file != LayerFile::WorldFs {
                pf.blob(&super::support::cid(&digest));
            }
        }
        pf.judge(id);
    }
    let registry = place.registry();
    let fork = registry.get("f").unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!(fork.damage(), None, "{about}");
    assert_eq!(&kept(&fork), before, "{about}: something was lost");
    if place.store.tags().names().unwrap().iter().any(|tag| tag == "t") {
        let tagged = place.store.tags().get("t").unwrap_or_else(|e| panic!("{about}: {e}"));
        assert!(images.contains(&tagged), "{about}: a tag of no image");
    }
    let rests_on = fork.base().unwrap();
    assert!(images.contains(&rests_on), "{about}: the fork's image is not there");
    let is_new = rests_on != *old;
    // A file that no image holds counts as changed until the next check.
    let ignoring = before.world.contains_key(&b".pfignore"[..]);
    assert_eq!(is_new && !ignoring, !fork.is_changed(), "{about}: neither the old state nor the new one");
    if is_new {
        assert_eq!(place.store.image(&rests_on).unwrap().manifest.parents, [*old], "{about}");
    }
    // And it can be sealed from there.
    let again = place.sealer(None).seal(&fork, None).unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!(again.new, !is_new, "{about}");
    pf.judge(&again.image);
    assert_eq!(&kept(&fork), before, "{about}: after another seal");
}

#[test]
fn a_seal_that_is_cut_at_any_call_leaves_the_old_state_or_the_new_one_whatever_the_power_takes() {
    cut_at_any_call(false);
}

#[test]
fn a_seal_that_keeps_something_out_loses_nothing_of_it_wherever_it_is_cut() {
    cut_at_any_call(true);
}

fn cut_at_any_call(ignoring: bool) {
    let mut cuts = 0;
    for call in 0.. {
        let Sealing { _dir, disk, place, registry, fork, base } = fork_to_seal(ignoring);
        let before = kept(&fork);
        disk.arm(call, Fate::Last);
        let sealed = place.sealer(None).seal(&fork, Some(Tag { name: "t", force: false }));
        let calls = disk.calls();
        for left in [Left::All, Left::Names, Left::Nothing] {
            let copy = tempfile::tempdir().unwrap();
            let root = copy.path().join("store");
            disk.after_the_end(left, &root);
            judge(&root, &base, &before, &format!("call {call} of {calls} is the last, {left:?} left"));
        }
        drop((fork, registry));
        cuts += 1;
        if call >= calls {
            sealed.unwrap();
            break;
        }
    }
    assert!(cuts > 40, "only {cuts} calls were seen");
}

#[test]
fn a_seal_of_which_any_call_fails_leaves_the_fork_as_it_was_and_works_the_next_time() {
    fail_at_any_call(false);
    fail_at_any_call(true);
}

fn fail_at_any_call(ignoring: bool) {
    for call in 0.. {
        let Sealing { _dir, disk, place, registry, fork, base } = fork_to_seal(ignoring);
        let before = kept(&fork);
        disk.arm(call, Fate::Fails);
        let tag = Some(Tag { name: "t", force: false });
        let sealed = place.sealer(None).seal(&fork, tag);
        let calls = disk.calls();
        disk.disarm();
        let about = format!("call {call} of {calls} fails:\n{}", disk.log.lock().join("\n"));
        assert_eq!(kept(&fork), before, "{about}");
        if let Err(error) = &sealed {
            let untagged = error.to_string().contains("but not tagged");
            assert!(untagged || error.to_string().contains("cannot seal fork \"f\""), "{error}");
            assert_eq!(fork.is_changed(), !untagged, "{about}");
            // The name is free still.
            let again = place.sealer(None).seal(&fork, tag).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!(again.new, !untagged, "{about}");
        }
        let image = fork.base().unwrap();
        assert_ne!(image, base, "{about}");
        assert_eq!(place.store.tags().get("t").unwrap(), image, "{about}");
        assert_eq!(kept(&fork), before, "{about}");
        drop((fork, registry));
        let pf = Pf::open(&place);
        for id in place.store.images().ids(&mut |_| ()).unwrap() {
            pf.judge(&id);
        }
        let fork = place.registry().get("f").unwrap();
        assert_eq!(kept(&fork), before, "{about}");
        if call >= calls {
            sealed.unwrap();
            break;
        }
    }
}

#[test]
fn a_base_that_was_taken_away_fails_the_seal_and_is_named() {
    let Sealing { _dir, place, fork, base, .. } = fork_to_seal(false);
    let before = kept(&fork);
    std::fs::remove_file(place.store.images().marker(&base)).unwrap();
    let error = place.sealer(None).seal(&fork, None).unwrap_err();
    assert_eq!(error.kind(), pfimg::ErrorKind::Missing);
    assert!(error.to_string().contains(&base.to_string()), "{error}");
    assert_eq!(kept(&fork), before);
}
