//! The ledger under a kernel that keeps writes for a while. That believes no length of a file but the first it is told, and its own;
//! but a seal makes the ledger longer. So it is opened past the kernel's cache, is another file to the kernel whenever it has
//! become longer without its knowledge, and who has an older one open goes on appending at the end.

use std::collections::HashMap;

use super::forked::Mounted;
use super::inode::{Ino, Key};
use super::{Attr, Process, Vfs};
use crate::error::Result;
use crate::fork;
use crate::sync::Mutex;

/// Where the kernel takes the end of each ledger to be that it knows.
#[derive(Default)]
pub(super) struct Ends(Mutex<HashMap<Ino, u64>>);

impl Ends {
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }
}

impl Vfs {
    /// Whether a file's length changes without anybody writing to it.
    pub fn is_resized_by_seals(&self, ino: Ino) -> bool {
        self.place_in_fork(ino).is_ok_and(|(mounted, ino)| mounted.fork.is_ledger(ino))
    }

    /// The key of a file in a fork, as the kernel is to see it.
    pub(super) fn key_in_fork(&self, mounted: &Mounted, ino: fork::Ino) -> Key {
        let again = mounted.fork.shown_again(ino);
        if again > 0 {
            // A folder that was removed stays so to the kernel, as long as a program stands in it.
            return mounted.key(fork::Ino::derive(ino, b"again", again));
        }
        let resized = if self.config.late_writes { mounted.fork.resized(ino) } else { 0 };
        let ino = if resized > 0 { fork::Ino::derive(ino, b"resized", resized) } else { ino };
        mounted.key(ino)
    }

    /// The number of a folder in a fork, or that which any other file has if no seal made it longer; none if the kernel
    /// cannot know it.
    pub(super) fn known_folder(&self, mounted: &Mounted, ino: fork::Ino) -> Option<Ino> {
        if mounted.fork.shown_again(ino) > 0 {
            return self.inodes.known(self.key_in_fork(mounted, ino));
        }
        self.known_in_fork(mounted, ino)
    }

    /// Notes what the kernel is told of a ledger's length; where the file is not `new` to it, it goes on with what it knew.
    pub(super) fn note_length(&self, mounted: &Mounted, ino: fork::Ino, attr: &Attr, new: bool) {
        if new && self.config.late_writes && mounted.fork.is_ledger(ino) {
            self.ledger_ends.0.lock().insert(attr.ino, attr.size);
        }
    }

    /// Writes what a program has just written past the kernel's cache. To a ledger, what the kernel puts where it takes the end to
    /// be goes to its end.
    pub(super) fn write_late(
        &self,
        mounted: &Mounted,
        (ino, in_fork): (Ino, fork::Ino),
        offset: u64,
        bytes: &[u8],
        by: Process,
    ) -> Result<usize> {
        let fork = &mounted.fork;
        let appends = self.ledger_ends.0.lock().get(&ino) == Some(&offset);
        if !appends {
            return fork.write(in_fork, offset, bytes, by);
        }
        let written = fork.append(in_fork, bytes, by)?;
        self.ledger_ends.0.lock().insert(ino, offset + written as u64);
        if self.inodes.known(self.key_in_fork(mounted, in_fork)) != Some(ino) {
            // Who has the newest one does not know of it.
            fork.resize();
        }
        Ok(written)
    }
}
