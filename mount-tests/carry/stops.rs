//! A stop at every call, as a crash or a kill would, and a failure of every call: the directory comes to one of its two states.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use pfimg::ErrorKind;
use pfimg::ops::apply::{Hooks, finish, undo};
use pfimg::store::applies::State;

use super::model::{Files, Node, read, shown};
use super::support::{Counting, Place, case, files, first_seed};

/// Lets a number of calls pass. The next one fails, and with `stops` all later ones too.
struct Failing {
    left: AtomicUsize,
    stops: bool,
    code: i32,
}

impl Failing {
    fn new(at: usize, stops: bool, code: i32) -> Self {
        Self { left: AtomicUsize::new(at), stops, code }
    }
}

impl Hooks for Failing {
    fn call(&self, _: &'static str) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        match left {
            0 if self.stops => Err(io::Error::from_raw_os_error(self.code)),
            usize::MAX => Ok(()),
            _ => {
                self.left.store(left.wrapping_sub(1), Ordering::Relaxed);
                if left == 0 { Err(io::Error::from_raw_os_error(self.code)) } else { Ok(()) }
            }
        }
    }
}

/// The number of calls that an apply and an undo make.
fn calls(place: &mut Place, before: &Files, after: &Files) -> (usize, usize) {
    let (one, two) = (Counting::default(), Counting::default());
    place.hold(before);
    place.apply(before, after, &one).unwrap();
    undo(&place.store, &place.dir, false, &two).unwrap();
    (one.0.into_inner(), two.0.into_inner())
}

/// Brings a directory out of an interrupted apply, and checks that it is whole.
fn lead_out(place: &Place, back: bool, before: &Files, after: &Files, what: &str) {
    let error = place.apply(before, after, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{what}: {error}");
    assert!(error.hint().unwrap().contains("pfimg apply --undo"), "{what}: {error}");
    let outcome = if back { place.undo(false) } else { place.finish() };
    let outcome = outcome.unwrap_or_else(|e| panic!("{what}: {e}"));
    let expected = if outcome.state == State::Done { after } else { before };
    assert!(!back || outcome.state == State::Undone, "{what}");
    let now = read(&place.dir);
    let sides = |path: &[u8]| format!("{:?}", [before, after, &now].map(|files| shown(files, path)));
    let left: Vec<String> = outcome.conflicts.iter().map(|left| sides(&left.path)).collect();
    assert!(left.is_empty() && outcome.aside.is_empty(), "{what}: {left:?} {outcome:?}");
    assert_eq!(&read(&place.dir), expected, "{what}");
}

#[test]
fn a_stop_at_any_call_leaves_a_directory_that_continue_and_undo_make_whole() {
    let mut place = Place::new();
    let mut interrupted = 0;
    for seed in first_seed()..first_seed() + 8 {
        let (_, before, after) = case(seed + 5000);
        let (forward, backward) = calls(&mut place, &before, &after);
        for at in 0..forward + backward {
            for back in [false, true] {
                let what = format!("seed {seed}, stop at {at}, back {back}");
                place.hold(&before);
                if at < forward {
                    place.apply(&before, &after, &Failing::new(at, true, libc::EIO)).unwrap_err();
                } else {
                    place.apply(&before, &after, &()).unwrap();
                    let hooks = Failing::new(at - forward, true, libc::EIO);
                    undo(&place.store, &place.dir, false, &hooks).unwrap_err();
                }
                match place.state() {
                    None | Some(State::Undone) => assert_eq!(read(&place.dir), before, "{what}"),
                    Some(State::Done) => assert_eq!(read(&place.dir), after, "{what}"),
                    Some(State::Writing | State::Undoing) => {
                        interrupted += 1;
                        if at % 3 == 0 {
                            // A second stop, in what leads out of the first.
                            let hooks = Failing::new(at / 3, true, libc::EIO);
                            let _ = if back {
                                undo(&place.store, &place.dir, false, &hooks)
                            } else {
                                finish(&place.store, &place.dir, &hooks)
                            };
                        }
                        match place.state() {
                            Some(State::Done) => assert_eq!(read(&place.dir), after, "{what}"),
                            Some(State::Undone) => assert_eq!(read(&place.dir), before, "{what}"),
                            _ => lead_out(&place, back, &before, &after, &what),
                        }
                    }
                }
            }
        }
    }
    assert!(interrupted > 100, "only {interrupted} applies were interrupted");
}

#[test]
fn a_call_that_fails_is_taken_back_or_leaves_a_directory_that_can_be_made_whole() {
    let mut place = Place::new();
    for (seed, code) in [(1, libc::ENOSPC), (2, libc::EACCES), (3, libc::ENOSPC), (4, libc::EACCES)] {
        let (_, before, after) = case(seed + 6000);
        let (forward, backward) = calls(&mut place, &before, &after);
        for at in 0..forward {
            let what = format!("seed {seed}, error {code} at {at}");
            place.hold(&before);
            // Some calls have another way: a second name that is refused becomes a copy.
            match place.apply(&before, &after, &Failing::new(at, false, code)) {
                Ok(_) => continue,
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::PermissionDenied),
                    "{what}: {error}"
                ),
            }
            assert!(matches!(place.state(), None | Some(State::Undone)), "{what}: {:?}", place.state());
            assert_eq!(read(&place.dir), before, "{what}");
            place.apply(&before, &after, &()).unwrap();
            assert_eq!(read(&place.dir), after, "{what}");
        }
        for at in 0..backward {
            let what = format!("seed {seed}, error {code} at {at} of an undo");
            place.hold(&before);
            place.apply(&before, &after, &()).unwrap();
            let hooks = Failing::new(at, false, code);
            if undo(&place.store, &place.dir, false, &hooks).is_ok() {
                continue;
            }
            place.undo(false).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(read(&place.dir), before, "{what}");
        }
    }
}

/// A filesystem that cannot exchange two names, or rename without replacing.
struct Plain(&'static [&'static str]);

impl Hooks for Plain {
    fn call(&self, what: &'static str) -> io::Result<()> {
        if self.0.contains(&what) { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(()) }
    }
}

#[test]
fn a_filesystem_that_cannot_exchange_names_or_has_no_hard_links_comes_to_the_same() {
    let mut place = Place::new();
    for missing in [&["exchange"][..], &["exchange", "rename-new"], &["exchange", "rename-new", "link"]] {
        for seed in first_seed()..first_seed() + 100 {
            let (_, before, after) = case(seed + 7000);
            if missing.contains(&"link") && before.values().chain(after.values()).any(is_linked) {
                continue;
            }
            place.hold(&before);
            place.apply(&before, &after, &Plain(missing)).unwrap();
            assert_eq!(read(&place.dir), after, "seed {seed}");
            undo(&place.store, &place.dir, false, &Plain(missing)).unwrap();
            assert_eq!(read(&place.dir), before, "seed {seed}");
        }
    }
}

fn is_linked(node: &Node) -> bool {
    matches!(node, Node::File { first: Some(_), .. })
}

/// Tells a test program that it is the child of another one: the folder of the store, a seed, and `apply` or `undo`.
const CHILD: &str = "PFIMG_CARRY_CHILD";

/// Applies or undoes in a separate process, which a call ends. Does nothing without [`CHILD`].
#[test]
fn a_process_of_its_own_applies_or_undoes() {
    let Ok(child) = std::env::var(CHILD) else { return };
    let mut words = child.splitn(3, ' ');
    let (what, seed) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
    let root = std::path::Path::new(words.next().unwrap());
    let (store, dir) = (pfimg::store::Store::open(root.join("store")).unwrap(), root.join("dir"));
    let (_, before, after) = case(seed);
    if what == "apply" {
        super::support::apply(&store, &dir, &before, &after, &()).unwrap();
    } else {
        undo(&store, &dir, false, &()).unwrap();
    }
}

#[test]
fn a_kill_at_any_call_leaves_a_directory_that_continue_and_undo_make_whole() {
    let mut place = Place::new();
    let seed = 8001;
    let (_, before, after) = case(seed);
    let (forward, backward) = calls(&mut place, &before, &after);
    let mut killed = 0;
    for at in 0..forward + backward {
        let back = at % 2 == 0;
        let what = format!("killed at {at}, back {back}");
        place.hold(&before);
        let (verb, number) = if at < forward {
            ("apply", at)
        } else {
            place.apply(&before, &after, &()).unwrap();
            ("undo", at - forward)
        };
        let root = place.dir.parent().unwrap().display();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "carry::stops::a_process_of_its_own_applies_or_undoes"])
            .env(CHILD, format!("{verb} {seed} {root}"))
            .env("PFIMG_TEST_DIES", number.to_string())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{what}");
        match place.state() {
            None | Some(State::Undone) => assert_eq!(read(&place.dir), before, "{what}"),
            Some(State::Done) => assert_eq!(read(&place.dir), after, "{what}"),
            Some(State::Writing | State::Undoing) => {
                killed += 1;
                lead_out(&place, back, &before, &after, &what);
            }
        }
    }
    assert!(killed > 10, "only {killed} processes were killed in the middle");
}

#[test]
fn an_undo_whose_old_content_is_damaged_leaves_the_apply_as_it_is() {
    let mut place = Place::new();
    let (before, after) = (files(&[("a", "old content"), ("b", "2")]), files(&[("a", "one"), ("c", "3")]));
    place.hold(&before);
    place.apply(&before, &after, &()).unwrap();
    let blob = place.store.blobs().path(&pfimg::digest::Digest::of(b"old content"));
    let good = fs::read(&blob).unwrap();
    fs::write(&blob, b"damage").unwrap();
    assert_eq!(place.undo(false).unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!((read(&place.dir), place.state()), (after, Some(State::Done)));
    fs::write(&blob, good).unwrap();
    place.undo(false).unwrap();
    assert_eq!(read(&place.dir), before);
}

#[test]
fn an_edit_after_a_stop_is_left_and_named_by_continue_and_by_undo() {
    let mut place = Place::new();
    let before = files(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let after = files(&[("a", "one"), ("b", "two"), ("d", "four")]);
    let (forward, _) = calls(&mut place, &before, &after);
    let mut interrupted = 0;
    for at in 0..forward {
        for back in [false, true] {
            for edited in ["a", "c", "d"] {
                place.hold(&before);
                place.apply(&before, &after, &Failing::new(at, true, libc::EIO)).unwrap_err();
                if !place.state().is_some_and(State::is_unfinished) {
                    continue;
                }
                interrupted += 1;
                let what = format!("stop at {at}, back {back}, {edited} edited");
                fs::write(place.dir.join(edited), "mine").unwrap();
                let outcome = if back { place.undo(false) } else { place.finish() }.unwrap();
                let named: Vec<&[u8]> = outcome.conflicts.iter().map(|left| &*left.path).collect();
                assert_eq!(named, [edited.as_bytes()], "{what}");
                let mut expected = if back { before.clone() } else { after.clone() };
                expected.insert(edited.into(), super::support::file(b"mine"));
                assert_eq!(read(&place.dir), expected, "{what}");
            }
        }
    }
    assert!(interrupted > 20);
}
