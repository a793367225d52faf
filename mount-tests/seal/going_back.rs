//! Putting paths of a fork back to a seal: judged by what the fork was, and cut at every call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pfimg::fork::{About, Fork, Options, Registry};
use pfimg::ops::back::{Asked, Bytes, PathsRestored, Target, restore_paths};
use pfimg::ops::line::Line;
use pfimg::ops::seal::Sealer;

use super::disk::{Disk, Fate, Left};
use super::program::Program;
use super::support::{Place, Rng, Shown, dir, read, world, write};

type World = BTreeMap<Vec<u8>, Shown>;

fn restore(
    place: &Place,
    registry: &Registry,
    sealer: &Sealer,
    fork: &Fork,
    asked: &Asked,
) -> pfimg::Result<PathsRestored> {
    let target = Target::find(&place.store, &fork.name(), &Line::of_fork(&place.store, fork)?, asked)?;
    let then = registry.view(target.to.image)?;
    let mut seal = |everything: bool, about: &About| sealer.seal_as(fork, None, everything, about);
    restore_paths(fork, &target, &then, &mut seal)
}

fn is_inside(path: &[u8], roots: &[Vec<u8>]) -> bool {
    roots.iter().any(|root| {
        let rest = path.strip_prefix(&root[..]);
        root.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    })
}

/// What a restore of `roots` must make of `before`, where `then` is the seal. Of names that lie apart only those are kept that both
/// have: see below.
#[track_caller]
fn judge(now: &World, before: &World, then: &World, roots: &[Vec<u8>], about: &str) {
    // Folders above a path that came back are made as they were.
    let is_above = |path: &Vec<u8>| {
        roots
            .iter()
            .any(|root| root.starts_with(path) && (path.is_empty() || root.get(path.len()) == Some(&b'/')))
    };
    let expected_paths: BTreeSet<&Vec<u8>> = before
        .keys()
        .filter(|path| !is_inside(path, roots))
        .chain(then.keys().filter(|path| {
            is_inside(path, roots)
                || (is_above(path)
                    && then.keys().any(|below| is_inside(below, roots) && below.starts_with(path))
                    && !before.contains_key(*path))
        }))
        .collect();
    let listed: BTreeSet<&Vec<u8>> = now.keys().collect();
    assert_eq!(listed, expected_paths, "{about}");
    // What has no owner in an image is the user's, and is recorded so when it is made again.
    let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owner =
        |shown: &Shown| (Some(shown.owner.0.unwrap_or(user.0)), Some(shown.owner.1.unwrap_or(user.1)));
    let plain = |shown: &Shown| Shown { names: Vec::new(), owner: owner(shown), ..shown.clone() };
    for (path, shown) in now {
        let inside = is_inside(path, roots);
        let wanted = if inside || !before.contains_key(path) { &then[path] } else { &before[path] };
        let (mut is, mut was) = (plain(shown), plain(wanted));
        if !inside {
            // What is made or removed in a folder touches its time.
            (is.mtime, was.mtime) = (0, 0);
        }
        assert_eq!(is, was, "{about}: {}", path.escape_ascii());
        for name in &shown.names {
            let apart = inside != is_inside(name, roots);
            let had = |world: &World| world.get(path).is_some_and(|shown| shown.names.contains(name));
            if apart {
                // Both are one file in the seal, and neither was changed outside since.
                assert!(had(then), "{about}: {} is a link that the seal has not", path.escape_ascii());
            } else {
                assert!(had(if inside { then } else { before }), "{about}: {}", path.escape_ascii());
            }
        }
        if shown.kind != pfimg::layers::world::Kind::Dir {
            let wanted: Vec<_> =
                wanted.names.iter().filter(|name| is_inside(name, roots) == inside).collect();
            let is: Vec<_> = shown.names.iter().filter(|name| is_inside(name, roots) == inside).collect();
            assert_eq!(is, wanted, "{about}: links of {}", path.escape_ascii());
        }
    }
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn paths_of_any_fork_are_restored_to_any_seal_and_other_paths_stay() {
    let (first, count) = (number("PFIMG_BACK_SEED", 1), number("PFIMG_BACK_FORKS", 12));
    let mut moved = 0;
    for seed in first..first + count {
        let about =
            format!("PFIMG_BACK_SEED={seed} PFIMG_BACK_FORKS=1 cargo test --test engine seal::going_back::");
        let mut rng = Rng(seed);
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(folder.path());
        let registry = place.registry();
        let fork = registry.create("f", Some(place.fixture(seed))).unwrap();
        let sealer = place.sealer(None);
        dir(&fork, "world/fs/src");
        // The states by their numbers.
        let mut states = vec![world(&fork)];
        let note = |states: &mut Vec<World>, world: &World| {
            let all = Line::of_fork(&place.store, &fork).unwrap().steps().len() + 1;
            states.resize(all, world.clone());
        };
        for _ in 0..3 {
            for _ in 0..40 {
                Program { rng: &mut rng, fork: &fork }.step();
            }
            let before = world(&fork);
            sealer.seal(&fork, None).unwrap();
            note(&mut states, &before);
        }
        for round in 0..4 {
            for _ in 0..20 {
                Program { rng: &mut rng, fork: &fork }.step();
            }
            let before = world(&fork);
            let to = rng.below(states.len());
            let paths: BTreeSet<&Vec<u8>> = before.keys().chain(states[to].keys()).collect();
            let paths: Vec<&Vec<u8>> = paths.into_iter().collect();
            let mut roots: Vec<Vec<u8>> =
                (0..=rng.below(3)).map(|_| paths[rng.below(paths.len())].clone()).collect();
            roots.dedup();
            let asked = Asked {
                seal: Some(to.to_string()),
                undo: false,
                paths: Some(roots.iter().cloned().map(Bytes).collect()),
            };
            let about = format!("{about} round {round}");
            let sibling = registry.branch(&fork, &format!("b{round}")).unwrap();
            let done = match restore(&place, &registry, &sealer, &fork, &asked) {
                Ok(done) => done,
                Err(error) => {
                    assert!(error.to_string().contains("not a directory"), "{about}: {error}");
                    assert_eq!(world(&fork), before, "{about}");
                    continue;
                }
            };
            note(&mut states, &before);
            assert!(done.back.held.is_empty(), "{about}: {:?}", done.back.held);
            let now = world(&fork);
            judge(&now, &before, &states[to], &roots, &about);
            assert_eq!(world(&sibling), before, "{about}: seen by a branch");
            moved += done.back.moved.len();
            if !done.back.moved.is_empty() {
                let undo = Asked { undo: true, ..Asked::default() };
                let done = restore(&place, &registry, &sealer, &fork, &undo).unwrap();
                assert!(done.back.held.is_empty(), "{about}: {:?}", done.back.held);
                note(&mut states, &now);
                judge(&world(&fork), &now, &before, &roots, &format!("{about} undone"));
            }
            // What the journal says is the same.
            let shown = world(&fork);
            fork.fsync().unwrap();
            let copy = tempfile::tempdir().unwrap();
            let into = copy.path().join("store");
            assert!(
                std::process::Command::new("cp")
                    .arg("-a")
                    .args([folder.path(), &into])
                    .status()
                    .unwrap()
                    .success()
            );
            assert_eq!(world(&Place::new(&into).registry().get("f").unwrap()), shown, "{about}: read back");
        }
    }
    assert!(moved > 20 || count < 12, "only {moved} paths went back");
}

/// A fork with a folder that its last change spoiled.
fn spoiled(disk: &Arc<Disk>, root: &std::path::Path) -> (Place, Registry, Arc<Fork>, World, World) {
    let place = Place::with_io(root, disk.clone());
    let options = Options { io: disk.clone(), ..Options::default() };
    let base = place.fixture(1);
    let registry = Registry::open(root, place.reader.clone(), options).unwrap();
    let fork = registry.create("f", Some(base)).unwrap();
    for n in 0..4 {
        write(&fork, &format!("world/fs/docs/{n}"), format!("one {n}").as_bytes());
    }
    write(&fork, "world/fs/docs/deep/large", &vec![7; 150_000]);
    let (docs, one) = (dir(&fork, "world/fs/docs"), fork.resolve(b"world/fs/docs/1").unwrap());
    fork.link(one, docs, b"twin").unwrap();
    place.seal(&fork);
    let sealed = world(&fork);
    write(&fork, "world/fs/docs/0", b"two");
    write(&fork, "world/fs/docs/later", b"later");
    write(&fork, "world/fs/docs/deep/large", b"small");
    fork.unlink(docs, b"2").unwrap();
    fork.unlink(docs, b"twin").unwrap();
    write(&fork, "world/fs/other", b"other");
    fork.fsync().unwrap();
    let before = world(&fork);
    (place, registry, fork, sealed, before)
}

#[test]
fn a_restore_of_paths_that_is_cut_at_any_call_loses_nothing_and_can_be_undone() {
    let asked = |undo: bool| Asked {
        seal: (!undo).then(|| "1".to_owned()),
        undo,
        paths: (!undo).then(|| vec![Bytes(b"docs".to_vec())]),
    };
    let (mut cuts, mut halves) = (0, 0);
    for call in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let disk = Arc::new(Disk::new(&root));
        let (place, registry, fork, sealed, before) = spoiled(&disk, &root);
        disk.arm(call, Fate::Last);
        let done = restore(&place, &registry, &place.sealer(None), &fork, &asked(false));
        let calls = disk.calls();
        // The daemon is killed: what the kernel has stays.
        let copy = tempfile::tempdir().unwrap();
        let into = copy.path().join("store");
        disk.after_the_end(Left::All, &into);
        let about = format!("call {call} of {calls} is the last");
        let after = Place::new(&into);
        let forks = after.registry();
        let again = forks.get("f").unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(again.damage(), None, "{about}");
        let now = world(&again);
        let docs = [b"docs".to_vec()];
        for (path, shown) in &now {
            if is_inside(path, &docs) {
                let name = path.rsplit(|b| *b == b'/').next().unwrap();
                let is_whole = name.starts_with(b".pfimg-restore-")
                    || shown.kind == pfimg::layers::world::Kind::Dir
                    || [&sealed, &before].iter().any(|world| {
                        world
                            .get(path)
                            .is_some_and(|was| was.content == shown.content && was.mode == shown.mode)
                    });
                assert!(is_whole, "{about}: {} is a mixture", path.escape_ascii());
            } else if !path.is_empty() {
                assert_eq!(shown, &before[path], "{about}: {}", path.escape_ascii());
            }
        }
        let is_changed = now.keys().ne(before.keys())
            || now.iter().any(|(path, shown)| shown.content != before[path].content);
        if is_changed {
            halves += 1;
            let sealer = after.sealer(None);
            restore(&after, &forks, &sealer, &again, &asked(true)).unwrap_or_else(|e| panic!("{about}: {e}"));
            judge(&world(&again), &before, &before, &docs, &format!("{about}, undone"));
            restore(&after, &forks, &sealer, &again, &asked(false)).unwrap();
            judge(&world(&again), &before, &sealed, &docs, &format!("{about}, done again"));
        }
        cuts += 1;
        if call >= calls {
            done.unwrap();
            judge(&now, &before, &sealed, &docs, "not cut");
            break;
        }
    }
    assert!(cuts > 40 && halves > 10, "{cuts} calls were seen, {halves} of them in the middle");
}

#[test]
fn a_restore_of_paths_copies_no_byte_and_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path());
    let registry = place.registry();
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    let bytes = Rng(3).bytes(4 << 20);
    write(&fork, "world/fs/large", &bytes);
    place.seal(&fork);
    fork.unlink(dir(&fork, "world/fs"), b"large").unwrap();
    place.seal(&fork);
    let asked = Asked { seal: Some("1".into()), undo: false, paths: Some(vec![Bytes(b"large".to_vec())]) };
    restore(&place, &registry, &place.sealer(None), &fork, &asked).unwrap();
    assert_eq!(read(&fork, "world/fs/large").unwrap(), bytes);
    fork.fsync().unwrap();
    let forks = crate::common::forks::disk_usage(&folder.path().join("forks"));
    assert!(forks < 200_000, "{forks} bytes for a reference");
    // It is sealed as the blob that it was.
    let again = place.seal(&fork);
    assert!(again.new);
    let mut names: Vec<_> = world(&fork).into_keys().collect();
    names.retain(|name| name.starts_with(b".pfimg"));
    assert!(names.is_empty(), "{names:?}");
}
