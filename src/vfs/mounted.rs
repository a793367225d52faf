//! A fork that a mount shows.

use std::collections::HashMap;
use std::sync::Arc;

use super::answer::{Attr, FOLDER_SIZE};
use super::attempt::{Attempt, Outcome, of_fork};
use super::key::{Key, Slot};
use crate::error::{ErrorKind, Posix};
use crate::fork::{self, Fork};
use crate::layers::world::Kind;

/// The number of `.snap/` in its fork, which no file gets.
const SNAP: fork::Ino = fork::Ino(9);

/// A fork of this mount.
#[derive(Clone, Debug)]
pub(super) struct Mounted {
    /// The range of its files' numbers.
    pub(super) slot: Slot,
    /// Files whose numbers are in another slot. In `slot` the kernel knows files of the replaced fork by these numbers.
    pub(super) aside: Option<Arc<HashMap<fork::Ino, Slot>>>,
    pub(super) fork: Arc<Fork>,
}

impl Mounted {
    /// The key of a number in the fork.
    pub(super) fn key(&self, ino: fork::Ino) -> Key {
        let aside = self.aside.as_ref().and_then(|aside| aside.get(&ino));
        Key::of_fork(aside.copied().unwrap_or(self.slot), ino)
    }

    /// The key of the fork's `.snap/`.
    pub(super) fn snap_key(&self) -> Key {
        Key::of_fork(self.slot, SNAP)
    }

    /// Whether both are the same fork.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fork, &other.fork)
    }

    /// Fails with ESTALE if the fork was discarded or replaced: a program may still use its inodes.
    pub(super) fn require_present(&self) -> Outcome<()> {
        if self.fork.is_discarded() { Err(ErrorKind::Posix(Posix::Stale)) } else { Ok(()) }
    }

    /// Attributes of a file, except its inode number.
    pub(super) fn getattr(&self, ino: fork::Ino) -> Attempt<Attr> {
        let attr = self.fork.getattr(ino).map_err(of_fork)?;
        // A program may still have files of a discarded fork open, like removed files.
        let nlink = if self.fork.is_discarded() { 0 } else { attr.nlink };
        Ok(Attr { nlink, ..shown(&attr) })
    }
}

/// Attributes of a file in a fork as the mount shows them, except its inode number.
pub(super) fn shown(attr: &fork::Attr) -> Attr {
    Attr {
        ino: 0,
        kind: attr.kind,
        mode: attr.mode,
        nlink: attr.nlink,
        size: if attr.kind == Kind::Dir { FOLDER_SIZE } else { attr.size },
        atime_ns: attr.atime,
        mtime_ns: attr.mtime,
        ctime_ns: attr.ctime,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev as u32,
    }
}
