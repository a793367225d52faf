//! Times of a seal: which of the times that the fork shows are recorded, and the moment of the image.

use super::{NewEntry, Sealer, Sealing, TreeChanges, WORLD, root};
use crate::digest::Digest;
use crate::error::Result;
use crate::fork::Put;
use crate::images::times::is_fixed_point;
use crate::store::Manifest;

/// A seal does not end a line of fewer images behind it.
const SHORT_LINE: u32 = 64;

impl Sealer {
    /// Chooses the id of a new image. An image that ended the line of times would show its time for every
    /// file without a recorded one, and so would the fork based on it. So, as long as the line is short, the
    /// image's moment is moved by some nanoseconds until it does not end the line.
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
    /// The time to record for a file: the one that a program set, or the one that the fork shows if the image
    /// would show another.
    pub(super) fn mtime(&self, path: &[u8], put: &Put) -> Option<i64> {
        put.inode.mtime.or_else(|| self.times.get(path).copied())
    }

    /// Adds the folders in which something changed to a tree, so that they keep their times and do not show
    /// that of the seal.
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
