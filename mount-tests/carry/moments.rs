//! Edits by someone else between any two calls of an apply or an undo: each stays, in its place or named, and nothing else is left out.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pfimg::ErrorKind;
use pfimg::ops::apply::{Hooks, Outcome, undo};

use super::model::{Files, Node, at, differing, is_in, names, parent, read, shown};
use super::support::{Counting, Place, case, first_seed};

/// Edits one path at the call of a number.
struct Edit<'a> {
    dir: &'a Path,
    path: Vec<u8>,
    how: u64,
    at: usize,
    calls: AtomicUsize,
    /// What was written, if anything: bytes that nothing else holds.
    written: Mutex<Option<Vec<u8>>>,
    /// Whether there was such a call, and the edit could be made.
    done: AtomicUsize,
}

impl Edit<'_> {
    fn make(&self) -> io::Result<()> {
        let full = at(self.dir, &self.path);
        let text = format!("an edit of {:?} at call {}", self.path, self.at).into_bytes();
        let is_dir = fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_dir());
        match self.how {
            // In place.
            0 if !is_dir => {
                if fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_symlink()) {
                    return Err(io::ErrorKind::Other.into());
                }
                fs::write(&full, &text)?;
                *self.written.lock().unwrap() = Some(text);
            }
            // As editors save: a new file takes the name.
            1 if !is_dir => {
                let temp = full.with_file_name("editor's");
                fs::write(&temp, &text)?;
                fs::rename(&temp, &full).inspect_err(|_| {
                    let _ = fs::remove_file(&temp);
                })?;
                *self.written.lock().unwrap() = Some(text);
            }
            2 => {
                if is_dir {
                    fs::remove_dir(&full)?;
                } else {
                    fs::remove_file(&full)?;
                }
            }
            3 if !is_dir => {
                let _ = fs::remove_file(&full);
                symlink("an edit", &full)?;
            }
            4 if !is_dir => {
                let _ = fs::remove_file(&full);
                fs::create_dir(&full)?;
                fs::write(full.join("inside"), &text)?;
                *self.written.lock().unwrap() = Some(text);
            }
            _ if !is_dir => return Err(io::ErrorKind::NotADirectory.into()),
            _ => {
                fs::write(full.join("another"), &text)?;
                *self.written.lock().unwrap() = Some(text);
            }
        }
        Ok(())
    }
}

impl Hooks for Edit<'_> {
    fn call(&self, _: &'static str) -> io::Result<()> {
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.at && self.make().is_ok() {
            self.done.store(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn holds(files: &Files, bytes: &[u8]) -> bool {
    files.values().any(|node| matches!(node, Node::File { content, .. } if content == bytes))
}

/// Whether a path's state may differ from what was meant: it was edited, lies in something that was, or holds it.
fn is_touched(path: &[u8], edited: &[u8]) -> bool {
    is_in(path, edited) || is_in(edited, path)
}

fn check(what: &str, edit: &Edit<'_>, (began, meant): (&Files, &Files), outcome: &Outcome) {
    let now = read(edit.dir);
    if let Some(bytes) = edit.written.lock().unwrap().as_ref() {
        assert!(holds(&now, bytes), "{what}: the edit of {:?} is lost", edit.path);
    }
    let is_left_over =
        |path: &[u8]| path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".pfimg-apply-"));
    assert!(!now.keys().any(|path| is_left_over(path)), "{what}: temporary names are left: {now:?}");
    // The other names of an edited file hold the edit as well, or are not its names any longer; so are those of these.
    let mut others: BTreeSet<Vec<u8>> = now.keys().chain(began.keys()).chain(meant.keys()).cloned().collect();
    others.retain(|path| is_touched(path, &edit.path));
    loop {
        let mut more = Vec::new();
        for files in [&now, began, meant] {
            for path in &others {
                more.extend(names(files, path).into_iter().cloned());
            }
        }
        let before = others.len();
        others.extend(more);
        if others.len() == before {
            break;
        }
    }
    for path in differing(&now, meant) {
        let is_kept = path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".pfimg-kept-"));
        let is_named = outcome.conflicts.iter().any(|left| is_touched(&left.path, &path))
            || outcome.staying.iter().any(|stays| is_touched(stays, &path))
            || outcome.aside.iter().any(|(from, to)| is_touched(from, &path) || *to == path);
        let is_edited = is_touched(&path, &edit.path) || others.contains(&path);
        let (now, meant) = (shown(&now, &path), shown(meant, &path));
        assert!(is_edited || is_kept || is_named, "{what}: {path:?} is {now:?}, not {meant:?}");
    }
}

#[test]
fn an_edit_in_any_moment_of_an_apply_or_an_undo_is_never_lost() {
    let mut place = Place::new();
    let mut made = 0;
    for seed in first_seed()..first_seed() + 500 {
        let (mut rng, before, after) = case(seed);
        for back in [false, true] {
            place.hold(&before);
            let counting = Counting::default();
            place.apply(&before, &after, &counting).unwrap();
            if back {
                let _ = counting.0.swap(0, Ordering::Relaxed);
                undo(&place.store, &place.dir, false, &counting).unwrap();
            }
            place.hold(&before);
            if back {
                place.apply(&before, &after, &()).unwrap();
            }
            let paths: Vec<Vec<u8>> = differing(&before, &after).into_iter().collect();
            let path = if paths.is_empty() { b"a".to_vec() } else { rng.pick(&paths).clone() };
            let path = if rng.chance(15) { parent(&path).to_vec() } else { path };
            let edit = Edit {
                dir: &place.dir,
                path: if path.is_empty() { b"a".to_vec() } else { path },
                how: rng.below(6),
                at: rng.below(counting.0.load(Ordering::Relaxed) as u64 + 1) as usize,
                calls: AtomicUsize::new(0),
                written: Mutex::default(),
                done: AtomicUsize::new(0),
            };
            let what = format!("seed {seed}, back {back}, {} of {:?} at {}", edit.how, edit.path, edit.at);
            let (sides, outcome) = if back {
                ((&after, &before), undo(&place.store, &place.dir, false, &edit))
            } else {
                ((&before, &after), place.apply(&before, &after, &edit))
            };
            made += edit.done.load(Ordering::Relaxed);
            match outcome {
                Ok(outcome) => check(&what, &edit, sides, &outcome),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    let now = read(&place.dir);
                    if let Some(bytes) = edit.written.lock().unwrap().as_ref() {
                        assert!(holds(&now, bytes), "{what}: the edit is lost");
                    }
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    assert!(made > 300, "only {made} edits were made");
}
