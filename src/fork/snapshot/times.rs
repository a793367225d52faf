//! Finds the times that a seal has to record because the fork shows them without recording them.

use std::collections::{BTreeMap, HashSet};

use super::frozen::{Changes, Frozen, Put};

/// The folder of an image's files.
const WORLD: &[u8] = b"world/fs";

fn is_in_world(path: &[u8]) -> bool {
    path.strip_prefix(WORLD).is_some_and(|rest| rest.starts_with(b"/"))
}

impl Frozen {
    /// Returns times, by path in `world/fs`, that the fork shows without recording them, and that an image would show
    /// differently.
    ///
    /// These are the times of files that were moved, linked or left out of the last image, and of folders in which something
    /// changed.
    pub fn times_to_record(&self, changes: &Changes) -> BTreeMap<Vec<u8>, i64> {
        let mut times = BTreeMap::new();
        let mut folders: HashSet<&[u8]> = HashSet::new();
        let mut above = |path| {
            let mut path: &[u8] = path;
            while let Some(at) = path.iter().rposition(|b| *b == b'/').filter(|at| *at >= WORLD.len()) {
                path = &path[..at];
                if !folders.insert(path) {
                    break;
                }
            }
        };
        changes.removed.iter().filter(|path| is_in_world(path)).for_each(|path| above(path));
        for (path, put) in changes.put.iter().filter(|(path, _)| is_in_world(path)) {
            // A changed mode or owner does not change the content of a folder.
            // A name that counts as changed is missing in the last image: the file was moved there, or a rule left it out.
            let moved = !put.inode.links.iter().all(|(folder, name)| {
                self.state.is_in_place(*folder, name)
                    && !self.state.dirty_names.contains_key(&(*folder, name.clone()))
            });
            if moved || put.inode.mtime.is_some() {
                above(path);
            }
            if moved && put.inode.mtime.is_none() {
                times.insert(path.clone(), self.attr(put).mtime);
            }
        }
        for path in folders {
            if let Some((ino, inode)) = self.resolve(path).filter(|(_, inode)| inode.mtime.is_none()) {
                times.insert(path.to_vec(), self.attr(&Put { ino, inode }).mtime);
            }
        }
        times
    }
}
