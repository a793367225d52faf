//! Seals, judged by the real pf. `PFIMG_SEAL_FORKS=N` generates N forks, `PFIMG_SEAL_SEED=S` starts at seed S.

mod adverse;
mod crash;
mod disk;
mod generated;
mod going_back;
mod ignored;
mod large;
mod layers;
mod merged;
mod oracle;
mod program;
mod records;
mod support;

use pfimg::fork::SetAttr;

use self::support::{Pf, Place, read, world, write};

#[test]
fn a_sealed_fork_is_an_image_that_pf_restores() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let base = place.fixture(1);
    let registry = place.registry();
    let fork = registry.create("try", Some(base)).unwrap();
    write(&fork, "world/fs/src/new/file.rs", b"fn main() {}");
    write(&fork, "world/fs/src/file_0003.rs", b"changed");
    let sealed = place.seal(&fork);
    assert!(sealed.new && sealed.reports.is_empty(), "{sealed:?}");
    let pf = Pf::open(&place);
    pf.judge(&sealed.image);
    let manifest = pf.manifest(&sealed.image);
    assert_eq!(manifest.parents, [support::cid(&base)]);
    let agent = &manifest.agent;
    assert_eq!((&*agent.kind, &*agent.version, &*agent.fingerprint), ("fixture", "7", "try"));
    let restored = pf.restore(&sealed.image, &dir.path().join("restored"));
    assert_eq!(restored[&b"src/new/file.rs"[..]].2, b"fn main() {}");
    assert_eq!(restored[&b"src/file_0003.rs"[..]].2, b"changed");
    assert_eq!(restored.len(), 13);
    // The image is the base of the fork, which continues.
    assert_eq!(fork.base(), Some(sealed.image));
    let again = place.seal(&fork);
    assert_eq!((again.image, again.new), (sealed.image, false), "nothing changed");
    let before = world(&fork);
    drop((fork, registry));
    let fork = place.registry().get("try").unwrap();
    assert_eq!(world(&fork), before);
    assert_eq!(fork.seals().unwrap().iter().map(|seal| seal.image).collect::<Vec<_>>(), [sealed.image]);
}

#[test]
fn a_reverted_change_makes_no_new_image() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let registry = place.registry();
    let fork = registry.create("try", Some(place.fixture(1))).unwrap();
    let ino = write(&fork, "world/fs/src/file_0003.rs", b"changed");
    let first = place.seal(&fork);
    let before = fork.getattr(ino).unwrap();
    fork.setattr(ino, &SetAttr { mode: Some(0o600), ..Default::default() }).unwrap();
    fork.setattr(ino, &SetAttr { mode: Some(before.mode), ..Default::default() }).unwrap();
    let second = place.seal(&fork);
    assert_eq!((second.image, second.new), (first.image, false));
    assert!(!fork.is_changed());
    assert_eq!(read(&fork, "world/fs/src/file_0003.rs").unwrap(), b"changed");
}
