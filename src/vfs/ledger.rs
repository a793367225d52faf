//! Shows the ledger to a kernel that caches writes.
//!
//! Such a kernel takes a file's length from the first answer, and from then on only from its own writes. But a seal makes the
//! ledger longer. So the ledger is opened without the kernel's cache, and gets a new inode whenever it grew without the
//! kernel's knowledge. A program that has an older inode open still appends at the end.

use std::collections::HashMap;

use super::forked::Mounted;
use super::inode::{Ino, Key};
use super::{Attr, Process, Vfs};
use crate::error::Result;
use crate::fork;
use crate::sync::Mutex;

/// The end of each ledger as the kernel knows it.
#[derive(Default)]
pub(super) struct Ends(Mutex<HashMap<Ino, u64>>);

impl Ends {
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }
}

impl Vfs {
    /// Whether seals change the length of a file.
    pub fn is_resized_by_seals(&self, ino: Ino) -> bool {
        self.place_in_fork(ino).is_ok_and(|(mounted, ino)| mounted.fork.is_ledger(ino))
    }

    /// Returns the key under which the kernel knows a file in a fork now.
    pub(super) fn key_in_fork(&self, mounted: &Mounted, ino: fork::Ino) -> Key {
        let again = mounted.fork.shown_again(ino);
        if again > 0 {
            // The kernel keeps the removed folder while a program uses it, so the one that is shown again needs another key.
            return mounted.key(fork::Ino::derive(ino, b"again", again));
        }
        let resized = if self.config.late_writes { mounted.fork.resized(ino) } else { 0 };
        let ino = if resized > 0 { fork::Ino::derive(ino, b"resized", resized) } else { ino };
        mounted.key(ino)
    }

    /// Returns the number of a folder in a fork; for another file, the number that it has before any seal resizes it. Returns
    /// none if the kernel cannot know it.
    pub(super) fn known_folder(&self, mounted: &Mounted, ino: fork::Ino) -> Option<Ino> {
        if mounted.fork.shown_again(ino) > 0 {
            return self.inodes.known(self.key_in_fork(mounted, ino));
        }
        self.known_in_fork(mounted, ino)
    }

    /// Notes the length of a ledger that the kernel gets. If the inode is not `new` to the kernel, it keeps its own length.
    pub(super) fn note_length(&self, mounted: &Mounted, ino: fork::Ino, attr: &Attr, new: bool) {
        if new && self.config.late_writes && mounted.fork.is_ledger(ino) {
            self.ledger_ends.0.lock().insert(attr.ino, attr.size);
        }
    }

    /// Writes bytes that a program wrote without the kernel's cache. In a ledger, a write at the end that the kernel knows goes
    /// to the real end.
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
            // The newest inode of the ledger does not show this write, so the ledger needs another one.
            fork.resize();
        }
        Ok(written)
    }
}
