//! A link takes the place of a directory in the middle of an apply: nothing outside the directory changes.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use pfimg::ops::apply::{Hooks, undo};

use super::model::{Files, Node, differing, read, write};
use super::support::{Counting, Place, files};

/// Puts a link to another directory in the place of `d`, or of `d/e`, at the call of a number.
struct Swap<'a> {
    dir: &'a Path,
    outside: &'a Path,
    what: &'static str,
    at: usize,
    calls: AtomicUsize,
}

impl Swap<'_> {
    fn moved(&self) -> PathBuf {
        self.dir.join("moved")
    }
}

impl Hooks for Swap<'_> {
    fn call(&self, _: &'static str) -> io::Result<()> {
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
            let path = self.dir.join(self.what);
            if path.exists() {
                fs::rename(&path, self.moved())?;
                symlink(self.outside, &path)?;
            }
        }
        Ok(())
    }
}

fn states() -> (Files, Files) {
    let mut before = files(&[("d/a", "1"), ("d/b", "2"), ("d/e/x", "3"), ("d/e/y", "4")]);
    let mut after = files(&[("d/a", "one"), ("d/c", "new"), ("d/e/x", "three"), ("d/e/z", "z")]);
    for files in [&mut before, &mut after] {
        for folder in ["d", "d/e"] {
            files.insert(folder.into(), Node::Dir { mode: 0o755 });
        }
    }
    (before, after)
}

#[test]
fn a_link_that_takes_the_place_of_a_directory_leads_no_change_outside() {
    let mut place = Place::new();
    let (before, after) = states();
    let outside = place.dir.parent().unwrap().join("outside");
    // The same names are outside, as an attacker would have them.
    let there = files(&[("a", "1"), ("b", "2"), ("x", "3"), ("y", "4")]);
    fs::create_dir(&outside).unwrap();
    write(&outside, &there);
    fs::create_dir(outside.join("e")).unwrap();
    let expected = read(&outside);
    let counting = Counting::default();
    place.hold(&before);
    place.apply(&before, &after, &counting).unwrap();
    let mut swapped = 0;
    for at in 0..counting.0.load(Ordering::Relaxed) {
        for what in ["d", "d/e"] {
            for back in [false, true] {
                place.hold(&before);
                let dir = place.dir.clone();
                let swap = Swap { dir: &dir, outside: &outside, what, at, calls: AtomicUsize::new(0) };
                let outcome = if back {
                    place.apply(&before, &after, &()).unwrap();
                    undo(&place.store, &place.dir, false, &swap)
                } else {
                    place.apply(&before, &after, &swap)
                };
                assert_eq!(read(&outside), expected, "at {at}, {what}, back {back}");
                if swap.moved().exists() {
                    swapped += 1;
                    // The link is the user's, and stays. What was not reached is named.
                    assert!(fs::symlink_metadata(dir.join(what)).unwrap().is_symlink());
                    let meant = if back { &before } else { &after };
                    if let Ok(outcome) = outcome {
                        fs::remove_file(dir.join(what)).unwrap();
                        fs::rename(swap.moved(), dir.join(what)).unwrap();
                        let mut now = read(&dir);
                        now.retain(|path, _| !String::from_utf8_lossy(path).contains(".pfimg-apply-"));
                        for path in differing(&now, meant) {
                            let is_named = outcome.conflicts.iter().any(|left| left.path == path);
                            assert!(is_named, "at {at}, {what}, back {back}: {path:?}");
                        }
                    }
                }
            }
        }
    }
    assert!(swapped > 20, "only {swapped} links were made");
}

#[test]
fn nothing_below_a_link_is_a_path_of_the_directory() {
    let mut place = Place::new();
    let outside = place.dir.parent().unwrap().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "1").unwrap();
    place.hold(&Files::new());
    symlink(&outside, place.dir.join("d")).unwrap();
    let (mut before, mut after) = (files(&[("d/a", "1")]), files(&[("d/a", "one")]));
    for files in [&mut before, &mut after] {
        files.insert(b"d".to_vec(), Node::Dir { mode: 0o755 });
    }
    place.apply(&before, &after, &()).unwrap_err();
    place.apply(&Files::new(), &files(&[("d/b", "new")]), &()).unwrap_err();
    assert_eq!(read(&outside), files(&[("a", "1")]));
}
