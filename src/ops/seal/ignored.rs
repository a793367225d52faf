//! Files of a fork that no image gets and that stay in the fork: those that its `.pfignore` names, by the
//! rules of `pf`, and copied links to parents.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::content;
use super::sealing::WORLD;
use crate::error::Result;
use crate::fork::{Changes, Frozen, Kept};
use crate::layers::ignore::Ignore;
use crate::layers::world::Kind;

/// Where the rules are.
const RULES: &[u8] = b"world/fs/.pfignore";

/// The links to an image's parents; a copy of its folder includes them. An image has them in its manifest.
const PARENTS: &[u8] = b"parents";

/// Rules of more bytes than this are ignored.
const MAX_RULES: u64 = 1 << 20;

/// The rules of a frozen fork; none if it has none.
fn rules(frozen: &Frozen, report: &mut dyn FnMut(String)) -> Result<Option<Ignore>> {
    let Some((_, inode)) = frozen.resolve(RULES) else { return Ok(None) };
    let shown = String::from_utf8_lossy(RULES);
    let Some(content) = inode.content().filter(|content| content.size <= MAX_RULES) else {
        report(format!("{shown} is not followed: it is not a regular file of at most {MAX_RULES} bytes"));
        return Ok(None);
    };
    let mut bytes = Vec::new();
    content::read_all(frozen, content, &mut bytes)?;
    let mut ignore = Ignore::default();
    for line in ignore.add_lines(&String::from_utf8_lossy(&bytes)) {
        report(format!("{shown}: {line:?} is not followed"));
    }
    Ok(Some(ignore))
}

/// The topmost path on the way to `path` that a rule covers.
fn covering<'a>(ignore: &Ignore, path: &'a [u8]) -> Option<&'a [u8]> {
    let from = WORLD.len() + 1;
    let inner = path.strip_prefix(WORLD)?.strip_prefix(b"/")?;
    let ends = inner.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    let end = ends.chain([inner.len()]).find(|end| ignore.covers(&inner[..*end]))?;
    Some(&path[..from + end])
}

/// Removes from the changes everything that the image must leave out: files that rules name, unless
/// `everything` is requested, and files for which an image has no place. If the image before has such files,
/// the next one does not.
///
/// Rules that did not change are applied to the changes, new ones to all files.
pub(super) fn take_out(
    frozen: &Frozen,
    changes: &mut Arc<Changes>,
    reports: &mut Vec<String>,
    everything: bool,
) -> Result<Kept> {
    let new_rules = changes.put.contains_key(RULES);
    let mut report = |what: String| {
        if new_rules {
            reports.push(what);
        }
    };
    let mut covered = BTreeSet::new();
    if frozen.resolve(PARENTS).is_some() {
        covered.insert(PARENTS.to_vec());
    }
    if let (Some(ignore), false) = (rules(frozen, &mut report)?, everything) {
        covered.extend(changes.put.keys().filter_map(|path| covering(&ignore, path)).map(<[u8]>::to_vec));
        if new_rules {
            find(frozen, &ignore, &mut covered);
        }
    }
    let mut kept = Kept::new();
    if covered.is_empty() {
        return Ok(kept);
    }
    let changes = Arc::make_mut(changes);
    for path in covered {
        for (path, put) in frozen.below(&path)? {
            changes.put.remove(&path);
            kept.insert(path, put);
        }
        if frozen.was_there(&path) {
            changes.removed.push(path);
        }
    }
    changes.removed.sort_unstable();
    changes.removed.dedup();
    Ok(kept)
}

/// Finds the topmost paths that rules cover.
fn find(frozen: &Frozen, ignore: &Ignore, covered: &mut BTreeSet<Vec<u8>>) {
    let mut todo: Vec<_> = frozen.resolve(WORLD).map(|(ino, _)| (WORLD.to_vec(), ino)).into_iter().collect();
    while let Some((folder, ino)) = todo.pop() {
        for (name, ino, kind) in frozen.list(ino) {
            let path = [&folder[..], &name].join(&b'/');
            if ignore.covers(&path[WORLD.len() + 1..]) {
                covered.insert(path);
            } else if kind == Kind::Dir {
                todo.push((path, ino));
            }
        }
    }
}
