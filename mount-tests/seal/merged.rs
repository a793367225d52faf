//! Sealed siblings that the real pf merges, and forks of the result.

use std::path::Path;

use pf_merge::{MergeOptions, MergeOutcome, MergeReport, StubSummarizer};
use pfimg::digest::Digest;
use pfimg::fork::Registry;

use super::program::{Program, judge, world_of};
use super::support::{Pf, Place, Rng, append, cid, read, write};

/// Has pf merge two images; gives the new one's id.
fn pf_merge(place: &Place, a: &Digest, b: &Digest) -> (Digest, MergeReport) {
    let pf = Pf::open(place);
    let options = MergeOptions::default();
    let report = pf_merge::merge(&pf.0, &cid(a), &cid(b), &StubSummarizer, &options, None).unwrap();
    (report.merged_cid.as_str().parse().unwrap(), report)
}

/// Makes two forks of a sealed fork, changes each, seals both, has pf merge them, and continues from there.
pub fn merge(rng: &mut Rng, place: &Place, registry: &Registry, into: &Path) {
    let root = registry.create("root", None).unwrap();
    let mut program = Program { rng, fork: &root };
    for _ in 0..10 {
        program.step();
    }
    write(&root, "world/fs/shared", b"of both");
    let root = place.seal(&root).image;
    let siblings = ["one", "two"].map(|name| {
        let fork = registry.create(name, Some(root)).unwrap();
        let mut program = Program { rng, fork: &fork };
        for _ in 0..program.rng.below(20) {
            program.step();
        }
        program.layers();
        write(&fork, &format!("world/fs/only-{name}"), name.as_bytes());
        let before = world_of(&fork);
        let image = place.seal(&fork).image;
        judge(place, &image, &before, into);
        image
    });
    let (merged, report) = pf_merge(place, &siblings[0], &siblings[1]);
    assert_eq!(report.ancestor, cid(&root));
    assert_eq!(place.store.image(&merged).unwrap().manifest.parents, siblings);
    let fork = match registry.create("merged", Some(merged)) {
        Ok(fork) => fork,
        Err(error) => {
            // A path that is a file in one and a folder in the other: pf makes a tree of it that it cannot restore.
            let pf = Pf::open(place);
            let (blobs, manifest) = (pf.0.blobs_arc(), pf.manifest(&merged));
            let options = pf_world::fs::RestoreOptions { allow_absolute_symlinks: true };
            let restored = pf_world::fs::restore_tree_with_options(&blobs, &manifest.world.fs, into, options);
            let _ = std::fs::remove_dir_all(into);
            assert!(restored.is_err(), "pf restores what cannot be forked: {error}");
            return;
        }
    };
    for name in ["one", "two"] {
        let only = read(&fork, &format!("world/fs/only-{name}"));
        assert_eq!(only.as_deref(), Some(name.as_bytes()));
    }
    let mut program = Program { rng, fork: &fork };
    for _ in 0..20 {
        program.step();
    }
    append(&fork, "effects/ledger.jsonl", super::layers::effect(7).as_bytes());
    let before = world_of(&fork);
    let sealed = place.seal(&fork);
    assert_eq!(sealed.reports, [""; 0]);
    assert_eq!(world_of(&fork), before);
    assert_eq!(place.store.image(&sealed.image).unwrap().manifest.parents, [merged]);
    judge(place, &sealed.image, &before, into);
    assert_eq!(super::layers::verify_ledger(place, &sealed.image), 1);
}

#[test]
fn siblings_that_changed_different_files_are_merged_and_those_that_changed_the_same_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let registry = place.registry();
    let root = registry.create("root", None).unwrap();
    for path in ["left", "right", "both"] {
        write(&root, &format!("world/fs/{path}"), b"of the root\n");
    }
    let root = place.seal(&root).image;
    let sealed = |name: &str, path: &str| {
        let fork = registry.create(name, Some(root)).unwrap();
        write(&fork, &format!("world/fs/{path}"), format!("of {name}\n").as_bytes());
        place.seal(&fork).image
    };
    let (a, b, c) = (sealed("a", "left"), sealed("b", "right"), sealed("c", "left"));
    let (clean, report) = pf_merge(&place, &a, &b);
    assert_eq!((report.overall, report.world.conflicts.len()), (MergeOutcome::Clean, 0));
    let fork = registry.create("clean", Some(clean)).unwrap();
    let text = |path: &str| read(&fork, &format!("world/fs/{path}")).unwrap();
    assert_eq!([text("left"), text("right"), text("both")], [&b"of a\n"[..], b"of b\n", b"of the root\n"]);
    let (conflict, report) = pf_merge(&place, &a, &c);
    assert_eq!((report.overall, report.world.conflicts.len()), (MergeOutcome::Conflicted, 1));
    // It is resolved in a fork.
    let fork = registry.create("resolved", Some(conflict)).unwrap();
    let marked = String::from_utf8(read(&fork, "world/fs/left").unwrap()).unwrap();
    assert!(marked.starts_with("<<<<<<< A\nof a") && marked.contains("of c"), "{marked}");
    write(&fork, "world/fs/left", b"of both\n");
    let resolved = place.seal(&fork).image;
    assert_eq!(place.store.image(&resolved).unwrap().manifest.parents, [conflict]);
    let restored = Pf::open(&place).restore(&resolved, &dir.path().join("restored"));
    assert_eq!(restored[&b"left"[..]].2, b"of both\n");
}
