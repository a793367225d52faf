//! The answers of operations.

use std::sync::Arc;
use std::time::Duration;

use super::key::Ino;
use crate::cache::Payload;
use crate::layers::world::Kind;

/// How long the kernel may cache what never changes: ten years.
pub const FOREVER: Duration = Duration::from_hours(10 * 365 * 24);

/// Length of every folder in bytes: that of a small folder on ext4. Scripts take a folder of length 0 for empty (`test -s`).
pub(super) const FOLDER_SIZE: u64 = 4096;

/// How much a caller has to know about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All attributes.
    Whole,
    /// Only what a listing needs. Unknown attributes are left open, with a lifetime of zero.
    Listing,
}

/// Attributes of an inode, as stat(2) shows them.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Number.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Links.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Access time in nanoseconds since 1970.
    pub atime_ns: i64,
    /// Modification time.
    pub mtime_ns: i64,
    /// Change time.
    pub ctime_ns: i64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of devices.
    pub rdev: u32,
}

impl Default for Attr {
    /// An empty folder.
    fn default() -> Self {
        Self {
            ino: 0,
            kind: Kind::Dir,
            mode: 0,
            nlink: 1,
            size: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
        }
    }
}

/// A name that was found.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its inode, looked up once more.
    pub attr: Attr,
    /// How long the kernel may cache the name.
    pub entry_ttl: Duration,
    /// How long the kernel may cache the attributes.
    pub attr_ttl: Duration,
}

impl Entry {
    /// Says that a name does not exist and never will. Inode 0 means this in FUSE, and counts no lookup.
    pub const ABSENT: Self = Self {
        attr: Attr {
            ino: 0,
            kind: Kind::File,
            mode: 0,
            nlink: 0,
            size: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
        },
        entry_ttl: FOREVER,
        attr_ttl: Duration::ZERO,
    };
}

/// Bytes to answer a read with.
#[derive(Debug)]
pub enum Data {
    /// Part of a blob.
    Blob(Payload, usize, usize),
    /// Part of a document.
    Doc(Arc<[u8]>, usize, usize),
}

impl Data {
    /// The part of a document that a read asks for.
    pub(super) fn document(bytes: Arc<[u8]>, offset: u64, size: u32) -> Self {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(size as usize).min(bytes.len());
        Self::Doc(bytes, start, end)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Blob(payload, start, end) => &payload[*start..*end],
            Self::Doc(bytes, start, end) => &bytes[*start..*end],
        }
    }

    /// Notes that the bytes were sent.
    pub fn sent(&self) {
        if let Self::Blob(payload, start, end) = self {
            payload.was_read(end - start);
        }
    }
}
