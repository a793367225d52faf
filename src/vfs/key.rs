//! Numbers of inodes, and the keys that they are derived from.

use crate::fork;
pub(super) use crate::tree::{hash_bytes, mix};

/// An inode's number, unique in the mount. FUSE requires 1 for the root.
pub type Ino = u64;

/// A fork's range of inode numbers.
pub(super) type Slot = u16;

/// Numbers below this belong to the builtin folders.
pub(super) const FIRST_COMPUTED: Ino = 1 << 10;

/// The bit that is set in keys of forks. The fork's slot follows, then the file's number in its fork in the last 48 bits.
pub(super) const FORKED: u64 = 1 << 62;

/// Identifies an inode by a number of 63 bits. The mount shows this number, unless it counts numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) u64);

impl Key {
    /// The key of a file in a fork.
    pub(super) fn of_fork(slot: Slot, ino: fork::Ino) -> Self {
        Self(FORKED | u64::from(slot) << 48 | ino.0)
    }

    /// The slot of a key of a file in a fork.
    pub(super) fn slot(self) -> Slot {
        ((self.0 & !FORKED) >> 48) as Slot
    }

    /// Makes a key that differs from those of forks. It is positive as a signed number, since some programs print inode numbers
    /// as signed.
    pub(super) fn hashed(hash: u64) -> Self {
        Self((hash >> 2).max(FIRST_COMPUTED))
    }

    /// The key to try next if another node has this one.
    pub(super) fn next(self) -> Self {
        Self(((self.0 + 1) & (FORKED - 1)).max(FIRST_COMPUTED))
    }
}
