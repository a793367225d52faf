//! Files that a `.pfignore` names stay in the fork and are in none of its images.

use std::collections::{BTreeMap, BTreeSet};

use pfimg::digest::Digest;
use pfimg::fork::{Fork, RenameMode};

use super::support::{Pf, Place, Rng, Shown, dir, read, world, write};

/// The paths below `world/fs` of an image.
fn paths(place: &Place, image: &Digest) -> BTreeSet<String> {
    let manifest = place.store.image(image).unwrap().manifest;
    let text = place.store.blobs().read_metadata(&manifest.world.fs).unwrap();
    let tree: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let path = |entry: &serde_json::Value| entry["path"].as_str().unwrap().to_owned();
    tree["entries"].as_array().unwrap().iter().map(path).collect()
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// The world as `stat` shows it: a file without a recorded owner gets one when it is kept out.
fn shown(fork: &Fork) -> BTreeMap<Vec<u8>, Shown> {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut world = world(fork);
    for shown in world.values_mut() {
        shown.owner = (shown.owner.0.or(Some(me.0)), shown.owner.1.or(Some(me.1)));
    }
    world
}

/// Where a fork's path is, as its folder and its name.
fn rename(fork: &Fork, from: &str, to: &str) {
    let split = |path: &str| {
        let (folder, name) = path.rsplit_once('/').unwrap();
        (dir(fork, folder), name.as_bytes().to_vec())
    };
    let ((from, name), (to, new_name)) = (split(from), split(to));
    fork.rename(from, &name, to, &new_name, RenameMode::Replace).unwrap();
}

#[test]
fn files_named_by_pfignore_are_in_no_image_and_stay_in_the_fork() {
    let temp = tempfile::tempdir().unwrap();
    let place = Place::new(temp.path());
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    write(&fork, "world/fs/.pfignore", b"# what can be made again\nbuild\n*.log\n!kept.log\n/secret/\n");
    write(&fork, "world/fs/src/main.c", b"int main;");
    write(&fork, "world/fs/src/build/main.o", &[1; 5000]);
    write(&fork, "world/fs/build/large", "2".repeat(200_000).as_bytes());
    write(&fork, "world/fs/run.log", b"1");
    write(&fork, "world/fs/secret/key", b"key");
    write(&fork, "world/fs/builder", b"is no build");
    let before = world(&fork);
    let sealed = place.seal(&fork);
    assert!(sealed.new);
    assert!(
        sealed.reports[..] == [r#"world/fs/.pfignore: "!kept.log" is not followed"#],
        "{:?}",
        sealed.reports
    );
    let image = set(&[".pfignore", "builder", "src", "src/main.c"]);
    assert_eq!(paths(&place, &sealed.image), image);
    Pf::open(&place).judge(&sealed.image);
    assert_eq!(world(&fork), before, "nothing is lost");
    // Nothing needs a seal, however often a caller asks.
    assert!(!fork.is_changed());
    for _ in 0..3 {
        let again = place.seal(&fork);
        assert_eq!((again.image, again.new), (sealed.image, false));
    }
    // A change of a file that is left out does not change the image.
    write(&fork, "world/fs/run.log", b"12");
    write(&fork, "world/fs/build/large", "3".repeat(300_000).as_bytes());
    let before = world(&fork);
    let again = place.seal(&fork);
    assert_eq!((again.image, again.new), (sealed.image, false));
    assert!(!fork.is_changed());
    assert_eq!(world(&fork), before);
    // As it is after a restart, and after another seal.
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(world(&fork), before, "nothing is lost over a restart");
    let again = place.seal(&fork);
    assert_eq!((again.image, again.new), (sealed.image, false));
    write(&fork, "world/fs/src/main.c", b"int main(void);");
    let next = place.seal(&fork);
    assert!(next.new && next.reports.is_empty(), "{:?}", next.reports);
    assert_eq!(paths(&place, &next.image), image);
    // A fork of the fork has it, one of the image has not.
    let branch = registry.branch(&fork, "branch").unwrap();
    assert_eq!(world(&branch), world(&fork));
    let of_image = registry.create("of-image", Some(next.image)).unwrap();
    assert_eq!(read(&of_image, "world/fs/run.log"), None);
    assert_eq!(read(&of_image, "world/fs/src/main.c").as_deref(), Some(&b"int main(void);"[..]));
}

#[test]
fn changed_rules_remove_sealed_paths_and_add_paths_left_out_before() {
    let temp = tempfile::tempdir().unwrap();
    let place = Place::new(temp.path());
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    write(&fork, "world/fs/a/x.tmp", b"x");
    write(&fork, "world/fs/a/y", b"y");
    write(&fork, "world/fs/b/z", b"z");
    let everything = ["a", "a/x.tmp", "a/y", "b", "b/z"];
    assert_eq!(paths(&place, &place.seal(&fork).image), set(&everything));
    write(&fork, "world/fs/.pfignore", b"*.tmp\nb\n");
    let before = world(&fork);
    assert_eq!(paths(&place, &place.seal(&fork).image), set(&[".pfignore", "a", "a/y"]));
    assert_eq!(world(&fork), before);
    write(&fork, "world/fs/b/new", b"new");
    assert!(!place.seal(&fork).new);
    let before = world(&fork);
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(world(&fork), before);
    // Moved to where no rule covers it, and gone.
    rename(&fork, "world/fs/a/x.tmp", "world/fs/a/x");
    fork.unlink(dir(&fork, "world/fs/b"), b"new").unwrap();
    assert_eq!(paths(&place, &place.seal(&fork).image), set(&[".pfignore", "a", "a/x", "a/y"]));
    assert_eq!(read(&fork, "world/fs/b/new"), None);
    // And moved to where one does.
    rename(&fork, "world/fs/a", "world/fs/a.tmp");
    assert_eq!(paths(&place, &place.seal(&fork).image), set(&[".pfignore"]));
    assert_eq!(read(&fork, "world/fs/a.tmp/y").as_deref(), Some(&b"y"[..]));
    fork.unlink(dir(&fork, "world/fs"), b".pfignore").unwrap();
    let before = world(&fork);
    let last = place.seal(&fork).image;
    assert_eq!(paths(&place, &last), set(&["a.tmp", "a.tmp/x", "a.tmp/y", "b", "b/z"]));
    drop((fork, registry));
    let registry = place.registry();
    assert_eq!(world(&registry.get("f").unwrap()), before);
    assert_eq!(world(&registry.create("of-image", Some(last)).unwrap()), before, "the image holds all of it");
}

#[test]
fn all_of_a_fork_is_sealed_before_a_restore() {
    let temp = tempfile::tempdir().unwrap();
    let place = Place::new(temp.path());
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    write(&fork, "world/fs/.pfignore", b"*.log\n");
    write(&fork, "world/fs/a", b"1");
    write(&fork, "world/fs/run.log", b"log");
    let sealer = place.sealer(None);
    let first = sealer.seal(&fork, None).unwrap();
    let all = sealer.seal_everything(&fork).unwrap();
    assert!(all.new);
    assert_eq!(paths(&place, &all.image), set(&[".pfignore", "a", "run.log"]));
    assert_eq!(read(&fork, "world/fs/run.log").as_deref(), Some(&b"log"[..]));
    let restored = sealer.restore(&registry, "f", &fork, &first.image).unwrap();
    assert_eq!(read(&restored, "world/fs/run.log"), None);
    assert_eq!(read(&restored, "world/fs/a").as_deref(), Some(&b"1"[..]));
}

/// Names; the rules keep some of them out.
const NAMES: [&str; 8] = ["a", "b", "x.log", "y.log", "build", "src", "kept", ".pfignore"];
const RULES: [&str; 4] = ["*.log\n", "build\n*.log\n", "src\n", "\n"];

/// Something is done to a random path.
fn step(rng: &mut Rng, fork: &Fork) {
    let mut folder = dir(fork, "world/fs");
    let mut depth = 0;
    while rng.below(2) == 0 && depth < 4 {
        depth += 1;
        match fork.lookup(folder, NAMES[rng.below(NAMES.len())].as_bytes()) {
            Ok(attr) if attr.kind == pfimg::layers::world::Kind::Dir => folder = attr.ino,
            _ => {}
        }
    }
    let name = NAMES[rng.below(NAMES.len())];
    let found = fork.lookup(folder, name.as_bytes()).ok();
    match rng.below(8) {
        0 | 1 => {
            let kind = if rng.below(3) == 0 && name != ".pfignore" {
                pfimg::layers::world::Kind::Dir
            } else {
                pfimg::layers::world::Kind::File
            };
            let _ = fork.create(folder, name.as_bytes(), &pfimg::fork::NewFile::new(kind, 0o755, 7, 8));
        }
        2 | 3 => {
            if let Some(attr) = found {
                let len = if rng.below(8) == 0 { 150_000 } else { rng.below(300) };
                let _ = fork.write(attr.ino, rng.below(100) as u64, &rng.bytes(len.min(60_000)), false);
            }
        }
        4 => drop(fork.unlink(folder, name.as_bytes()).map(|ino| fork.forget(ino))),
        5 => {
            let to = dir(fork, "world/fs");
            let new_name = NAMES[rng.below(NAMES.len() - 1)].as_bytes();
            let _ = fork.rename(folder, name.as_bytes(), to, new_name, RenameMode::Replace);
        }
        6 => {
            if let Some(attr) = found {
                let _ = fork.link(attr.ino, dir(fork, "world/fs"), NAMES[rng.below(NAMES.len())].as_bytes());
            }
        }
        _ => {
            let wfs = dir(fork, "world/fs");
            let is_file =
                fork.lookup(wfs, b".pfignore").map_or(true, |a| a.kind == pfimg::layers::world::Kind::File);
            if is_file && rng.below(3) == 0 {
                write(fork, "world/fs/.pfignore", RULES[rng.below(RULES.len())].as_bytes());
            }
        }
    }
}

#[test]
fn a_fork_with_rules_loses_nothing_and_its_images_hold_every_path_without_a_rule() {
    for seed in 1..=60 {
        let mut rng = Rng(seed);
        let temp = tempfile::tempdir().unwrap();
        let place = Place::new(temp.path());
        let mut registry = place.registry();
        let mut fork = registry.create("f", (seed % 2 == 0).then(|| place.fixture(seed))).unwrap();
        dir(&fork, "world/fs");
        for round in 0..12 {
            for _ in 0..rng.below(25) {
                step(&mut rng, &fork);
            }
            let before = shown(&fork);
            let sealed = place.sealer(None).seal(&fork, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(shown(&fork), before, "seed {seed}, round {round}");
            assert!(!fork.is_changed(), "seed {seed}, round {round}");
            let again = place.seal(&fork);
            assert_eq!((again.image, again.new), (sealed.image, false), "seed {seed}, round {round}");
            if rng.below(3) == 0 {
                drop(fork);
                drop(registry);
                registry = place.registry();
                fork = registry.get("f").unwrap();
                assert_eq!(fork.damage(), None, "seed {seed}, round {round}");
                let after = shown(&fork);
                for (path, was) in &before {
                    let name = String::from_utf8_lossy(path);
                    assert_eq!(
                        after.get(path),
                        Some(was),
                        "seed {seed}, round {round}: {name} over a restart"
                    );
                }
                assert_eq!(after.len(), before.len(), "seed {seed}, round {round}: over a restart");
            }
        }
        // What is in the image is what the fork has and no rule covers.
        let rules = read(&fork, "world/fs/.pfignore").unwrap_or_default();
        write(&fork, "world/fs/.pfignore", &rules);
        let image = place.seal(&fork).image;
        let mut ignore = pfimg::layers::ignore::Ignore::default();
        ignore.add_lines(&String::from_utf8_lossy(&rules));
        let all = world(&fork);
        let covered = |path: &Vec<u8>| {
            (0..=path.len()).any(|at| (at == path.len() || path[at] == b'/') && ignore.covers(&path[..at]))
        };
        let expected: BTreeSet<String> = all
            .keys()
            .filter(|path| !path.is_empty() && !covered(path))
            .map(|path| String::from_utf8(path.clone()).unwrap())
            .collect();
        assert_eq!(paths(&place, &image), expected, "seed {seed}");
        Pf::open(&place).judge(&image);
    }
}
