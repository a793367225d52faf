//! Times of a seal: what is recorded of those that the fork shows, and the moment of the image.

use super::{NewEntry, Sealer, Sealing, TreeChanges, WORLD, root};
use crate::digest::Digest;
use crate::error::Result;
use crate::fork::Put;
use crate::images::times::is_fixed_point;
use crate::store::Manifest;

/// A line of fewer images behind a seal is not ended by it.
const SHORT_LINE: u32 = 64;

impl Sealer {
    /// The id of an image that is to be made. One that ended the line of times would show its own time for every file that records none,
    /// and so would the fork that rests on it: as long as the line is short, its moment is moved by some nanoseconds until it does not.
    pub(super) fn name(&self, manifest: &mut Manifest) -> Result<Digest> {
        let short =
            || manifest.parents.first().is_some_and(|parent| self.reader.line_behind(parent) < SHORT_LINE);
        let mut id = Digest::of(&manifest.to_bytes()?);
        if is_fixed_point(&id) && short() {
            while is_fixed_point(&id) {
                manifest.created_at += chrono::TimeDelta::nanoseconds(1);
                id = Digest::of(&manifest.to_bytes()?);
            }
        }
        Ok(id)
    }
}

impl Sealing<'_> {
    /// The time that is recorded of a file: the one that somebody set, or the one that the fork shows where the image would not.
    pub(super) fn mtime(&self, path: &[u8], put: &Put) -> Option<i64> {
        put.inode.mtime.or_else(|| self.times.get(path).copied())
    }

    /// Puts the folders into a tree in which something changed, so that they show what they did, and not the time of the seal.
    pub(super) fn put_folders(&self, changes: &mut TreeChanges) -> Result<()> {
        for path in self.times.keys().filter(|path| !self.changes.put.contains_key(*path)) {
            let Some((ino, inode)) = self.frozen.resolve(path).filter(|(_, inode)| inode.is_dir()) else {
                continue;
            };
            let put = Put { ino, inode };
            if path == WORLD {
                changes.root = Some(root(&put, self.mtime(path, &put)));
            } else if let Some(inner) = path.strip_prefix(WORLD).and_then(|path| path.strip_prefix(b"/")) {
                let entry = self.entry(path, &put, None)?;
                changes.put.insert(inner.to_vec(), NewEntry { entry, group: None });
            }
        }
        Ok(())
    }
}
