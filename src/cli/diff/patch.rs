//! `-p` and `--stat`: the files that differ, read from both sides one after the other.

use super::limits::Limits;
use super::names::without_full_folders;
use crate::error::Result;
use crate::fork::{Difference, How, Side, View};
use crate::layers::world::Kind;
use crate::util::patch::paint::Paint;
use crate::util::patch::stat::{Row, Total};
use crate::util::patch::{self, Body, Change, Mode};

/// Files longer than this, in bytes, are not compared by lines. Git has the same limit.
const LONGEST: u64 = 512 << 20;

/// The files of a comparison that git can represent.
pub(super) struct Files<'a> {
    before: &'a View,
    after: &'a View,
    limits: &'a Limits,
    /// In git's order: that of the bytes of their paths.
    changed: Vec<&'a Difference>,
    /// Paths whose difference no patch holds: owners, attributes, permissions other than the owner's execute
    /// bit, empty directories, devices.
    pub(super) others: u64,
}

impl<'a> Files<'a> {
    /// Selects them from differences that are listed in full.
    pub(super) fn of(before: &'a View, after: &'a View, limits: &'a Limits, found: &'a [Difference]) -> Self {
        let mut changed: Vec<&Difference> = found.iter().filter(|difference| is_told(difference)).collect();
        changed.sort_by(|a, b| a.path.cmp(&b.path));
        let listed = without_full_folders(found.to_vec());
        let others = listed.iter().filter(|difference| !is_told(difference)).count() as u64;
        Self { before, after, limits, changed, others }
    }

    fn change(&self, difference: &'a Difference) -> Result<Change<'a>> {
        let side = |view: &View, side: Option<Side>| {
            let Some(mode) = side.and_then(mode) else { return Ok(None) };
            let size = side.and_then(|side| side.size).unwrap_or(0);
            let bytes = if size > LONGEST { None } else { view.bytes(&difference.path, LONGEST)? };
            Ok::<_, crate::Error>(Some(patch::Side {
                mode,
                body: bytes.map_or(Body::Long(size), Body::Bytes),
            }))
        };
        Ok(Change {
            path: self.limits.shown(&difference.path).unwrap_or(&difference.path),
            before: side(self.before, difference.before)?,
            after: side(self.after, difference.after)?,
            same: difference.how == How::Attributes,
        })
    }

    /// Counts the differences of each file.
    pub(super) fn rows(&self) -> Result<Vec<Row>> {
        let row = |difference: &&'a Difference| {
            let change = self.change(difference)?;
            Ok(Row { path: change.path.to_vec(), count: change.count() })
        };
        self.changed.iter().map(row).collect()
    }

    /// Passes the patch of each file to `each`, until `each` has enough. Returns the totals.
    pub(super) fn patches(&self, paint: Paint, each: &mut dyn FnMut(&[u8]) -> Result<bool>) -> Result<Total> {
        let mut total = Total::default();
        let mut text = Vec::new();
        for difference in &self.changed {
            text.clear();
            total += self.change(difference)?.write(paint, &mut text);
            if !each(&text)? {
                break;
            }
        }
        Ok(total)
    }
}

/// Returns git's view of a file; `None` if git does not record such a file.
fn mode(side: Side) -> Option<Mode> {
    match side.kind {
        Kind::File => Some(Mode::of_file(side.mode)),
        Kind::Symlink => Some(Mode::Link),
        _ => None,
    }
}

/// Returns whether a patch shows a difference.
fn is_told(difference: &Difference) -> bool {
    let (before, after) = (difference.before.and_then(mode), difference.after.and_then(mode));
    match difference.how {
        How::Attributes => before != after,
        _ => before.is_some() || after.is_some(),
    }
}
