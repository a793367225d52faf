//! Carrying an apply out: random directories, edits in every moment, a stop and a failure at every call, links that are swapped for
//! directories, and garbage collection in between. `PFIMG_CARRY_SEED=S` starts at seed S.

mod links;
mod model;
mod moments;
mod stops;
mod support;

use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::model::{Files, Node, at, differing, read};
use pfimg::ErrorKind;
use pfimg::digest::Digest;
use pfimg::ops::apply::Hooks;
use pfimg::store::Store;
use pfimg::store::applies::State;
use support::{Place, case, files, first_seed};

#[test]
fn a_thousand_random_applies_give_exactly_what_was_meant_and_undo_exactly_what_was_there() {
    let mut place = Place::new();
    for seed in first_seed()..first_seed() + 1000 {
        let (_, before, after) = case(seed);
        place.hold(&before);
        let outcome = place.apply(&before, &after, &()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(read(&place.dir), after, "seed {seed}");
        assert!(outcome.conflicts.is_empty() && outcome.aside.is_empty() && outcome.staying.is_empty());
        let changed = differing(&before, &after);
        assert!(outcome.changed.len() <= changed.len(), "seed {seed}");
        assert!(outcome.changed.iter().all(|(path, _)| changed.contains(path)), "seed {seed}");
        assert_eq!(place.state(), Some(State::Done));
        place.undo(false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(read(&place.dir), before, "seed {seed}");
        assert_eq!(place.state(), Some(State::Undone));
        assert_eq!(place.undo(false).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn nothing_is_written_into_a_directory_that_changed_since_the_comparison() {
    let mut place = Place::new();
    let before = files(&[("a", "1"), ("b", "2")]);
    let after = files(&[("a", "one"), ("b", "two"), ("c", "three")]);
    for edit in [("a", "9"), ("c", "mine")] {
        place.hold(&before);
        fs::write(place.dir.join(edit.0), edit.1).unwrap();
        let edited = read(&place.dir);
        let error = place.apply(&before, &after, &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(edit.0), "{error}");
        assert_eq!((read(&place.dir), place.state()), (edited, None));
    }
}

#[test]
fn an_undo_of_edited_paths_refuses_and_with_force_an_image_keeps_the_edits() {
    let mut place = Place::new();
    let mut before = files(&[("a", "1"), ("b", "2"), ("gone", "3"), ("link", "4")]);
    before.insert(b"d".to_vec(), Node::Dir { mode: 0o755 });
    before.extend(files(&[("d/x", "5")]));
    let mut after = files(&[("a", "one"), ("b", "2"), ("new", "n"), ("link", "l")]);
    after.insert(b"d".to_vec(), Node::Dir { mode: 0o755 });
    after.extend(files(&[("d/x", "five")]));
    place.hold(&before);
    place.apply(&before, &after, &()).unwrap();
    fs::write(place.dir.join("a"), "edited").unwrap();
    fs::write(place.dir.join("gone"), "made again").unwrap();
    fs::remove_dir_all(place.dir.join("d")).unwrap();
    fs::remove_file(place.dir.join("link")).unwrap();
    fs::create_dir(place.dir.join("link")).unwrap();
    fs::write(place.dir.join("link/inside"), "below").unwrap();
    fs::write(place.dir.join("mine"), "not concerned").unwrap();
    let edited = read(&place.dir);
    let error = place.undo(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    for path in ["a (edited since)", "gone (something else is there)", "d/x", "link"] {
        assert!(error.to_string().contains(path), "{error}");
    }
    assert!(!error.to_string().contains("new ("), "{error}");
    assert_eq!((read(&place.dir), place.state()), (edited, Some(State::Done)));
    let outcome = place.undo(true).unwrap();
    let mut expected = before.clone();
    expected.extend(files(&[("mine", "not concerned")]));
    assert_eq!(read(&place.dir), expected);
    assert!(outcome.conflicts.is_empty(), "{:?}", outcome.conflicts);
    let edits = outcome.edits.unwrap();
    let fs = place.store.image(&edits).unwrap().manifest.world.fs;
    let tree = pfimg::tree::Tree::parse(&place.store.blobs().read_metadata(&fs).unwrap()).unwrap();
    for (path, content) in [("a", "edited"), ("gone", "made again"), ("link/inside", "below")] {
        let id = tree.resolve(path.as_bytes()).unwrap();
        assert_eq!(tree.blob(id), Some(&Digest::of(content.as_bytes())), "{path}");
    }
}

#[test]
fn applies_are_undone_newest_first_and_the_last_twenty_are_remembered() {
    let mut place = Place::new();
    let states: Vec<Files> = (0..25).map(|n| files(&[("a", &n.to_string())])).collect();
    place.hold(&states[0]);
    for pair in states.windows(2) {
        place.apply(&pair[0], &pair[1], &()).unwrap();
    }
    for n in (4..24).rev() {
        place.undo(false).unwrap();
        assert_eq!(read(&place.dir), states[n]);
    }
    assert_eq!(place.undo(false).unwrap_err().kind(), ErrorKind::NotFound);
    // After an undo the next apply is the newest one.
    place.apply(&states[4], &states[9], &()).unwrap();
    place.undo(false).unwrap();
    assert_eq!(read(&place.dir), states[4]);
}

#[test]
fn two_applies_of_one_directory_exclude_each_other() {
    struct Within<'a>(&'a Place, AtomicUsize);
    impl Hooks for Within<'_> {
        fn call(&self, _: &'static str) -> io::Result<()> {
            if self.1.fetch_add(1, Ordering::Relaxed) == 0 {
                let both =
                    [self.0.undo(false), self.0.finish(), self.0.apply(&Files::new(), &Files::new(), &())];
                for other in both {
                    assert_eq!(other.unwrap_err().kind(), ErrorKind::Busy);
                }
            }
            Ok(())
        }
    }
    let mut place = Place::new();
    place.hold(&Files::new());
    let hooks = Within(&place, AtomicUsize::new(0));
    place.apply(&Files::new(), &files(&[("a", "1")]), &hooks).unwrap();
    assert!(hooks.1.into_inner() > 0);
}

#[test]
fn gc_and_prune_between_an_apply_and_its_undo_take_nothing_that_the_undo_needs() {
    use pfimg::ops::{gc, prune};
    let mut place = Place::new();
    let (_, before, after) = case(7);
    place.hold(&before);
    let outcome = place.apply(&before, &after, &()).unwrap();
    let collect = |store: &Store| {
        let options = prune::Options { all: true, ..prune::Options::default() };
        let pruned = prune::prune(store, &options, &[]).unwrap().removed;
        let options = gc::Options {
            grace: std::time::Duration::ZERO,
            dry_run: false,
            jobs: std::num::NonZeroUsize::MIN,
        };
        let report = gc::collect(store, &options, &()).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        pruned
    };
    assert_eq!(collect(&place.store), 0);
    assert!(place.store.images().newest(place.store.blobs()).unwrap().is_none(), "kept images are no latest");
    place.undo(false).unwrap();
    assert_eq!(read(&place.dir), before);
    // Nothing needs the images of an apply that was taken back.
    assert_eq!(collect(&place.store), 2);
    // Those of one that can be taken back go if it is forgotten.
    let again = place.apply(&before, &after, &()).unwrap();
    let forget =
        |dry_run| prune::Options { all: true, forget_applies: true, dry_run, ..prune::Options::default() };
    for dry_run in [true, false] {
        let report = prune::prune(&place.store, &forget(dry_run), &[]).unwrap();
        assert_eq!((report.removed, place.store.images().contains(&again.before)), (2, dry_run));
    }
    assert_eq!(place.undo(false).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(read(&place.dir), after);
    assert!(
        !place.store.images().contains(&outcome.before) && place.store.blobs().age(&outcome.before).is_none()
    );
}

#[test]
fn files_keep_their_owner_their_attributes_and_hard_links_that_no_step_changes() {
    use std::os::unix::fs::MetadataExt as _;
    let mut place = Place::new();
    let before = files(&[("a", "1"), ("b", "2")]);
    place.hold(&before);
    fs::hard_link(place.dir.join("a"), place.dir.join("second")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let has_attributes = rustix::fs::setxattr(place.dir.join("a"), "user.mine", b"x", flags).is_ok();
    if crate::common::is_root() {
        std::os::unix::fs::chown(place.dir.join("a"), Some(77), Some(78)).unwrap();
    }
    let owner = || fs::metadata(place.dir.join("a")).map(|meta| (meta.uid(), meta.gid())).unwrap();
    let before_owner = owner();
    place.apply(&before, &files(&[("a", "one"), ("b", "2")]), &()).unwrap();
    assert_eq!(fs::read(at(&place.dir, b"second")).unwrap(), b"1");
    for back in [false, true] {
        let mut value = [0; 9];
        let read = rustix::fs::getxattr(place.dir.join("a"), "user.mine", &mut value[..]);
        assert_eq!((owner(), read.is_ok()), (before_owner, has_attributes));
        if !back {
            place.undo(false).unwrap();
        }
    }
}
