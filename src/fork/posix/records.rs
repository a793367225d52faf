//! The names of a fork's records, which programs may remove: see [`Hidden`](crate::fork::hidden::Hidden).

use crate::error::Result;
use crate::fork::ino::Ino;
use crate::fork::inode::{Attr, Body, Inode};
use crate::fork::live::Live;
use crate::fork::record::{Attrs, Record};

impl Live {
    /// The child of a folder, unless its name was removed.
    pub(super) fn shown_child(&self, folder: Ino, name: &[u8]) -> Option<Ino> {
        if self.hidden.has(folder, name) {
            return None;
        }
        self.state.child(folder, name)
    }

    /// The attributes of a file. A file whose name was removed has link count 0.
    pub(super) fn attr_of(&self, ino: Ino, inode: &Inode) -> Attr {
        let mut attr = self.state.attr(ino, inode);
        if !self.hidden.is_empty() {
            if self.hidden.has_ino(ino) {
                attr.nlink = 0;
            } else if ino == Ino::TOP {
                attr.nlink = attr.nlink.saturating_sub(self.hidden.count_in(ino) as u32);
            }
        }
        attr
    }

    /// How many entries a folder shows.
    pub(super) fn entries(&self, ino: Ino) -> u64 {
        let all = self
            .state
            .inode(ino)
            .map_or(0, |inode| if let Body::Dir(dir) = &inode.body { dir.len } else { 0 });
        all.saturating_sub(self.hidden.count_in(ino))
    }

    /// Whether a listing shows a name.
    pub(super) fn is_listed(&self, folder: Ino, name: &[u8]) -> bool {
        self.hidden.is_empty() || !self.hidden.has(folder, name)
    }

    /// Removes a name and keeps the file.
    pub(super) fn hide(&mut self, folder: Ino, name: &[u8], ino: Ino, time: i64) -> Result<()> {
        self.touch(folder, time)?;
        self.hidden.add(folder, name, ino, self.state.epoch);
        Ok(())
    }

    /// Shows a removed name again. Returns its file or folder, or [`None`] if the name was not removed.
    pub(super) fn show(&mut self, folder: Ino, name: &[u8], time: i64) -> Result<Option<Ino>> {
        if !self.hidden.has(folder, name) {
            return Ok(None);
        }
        self.touch(folder, time)?;
        Ok(self.hidden.show(folder, name))
    }

    fn touch(&mut self, folder: Ino, time: i64) -> Result<()> {
        self.commit(Record::Attr(Attrs {
            ino: folder,
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(time),
            ctime: time,
        }))
    }
}
