//! One new or changed file, folder or link of a fork.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use imbl::OrdMap;

use super::disk::{DataFile, GenId, Generation};
use super::extents::{self, BlobRef, Pieces, Src};
use super::ino::Ino;
use super::owners::Given;
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::tree::NodeId;

/// The extended attribute with a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// A name in a folder.
pub type Name = Arc<[u8]>;

/// A new or changed file.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Permission bits.
    pub mode: u16,
    /// Owner; unset if neither the base nor an operation sets it.
    pub uid: Option<u32>,
    /// Group, likewise.
    pub gid: Option<u32>,
    /// Which of the two an operation has set since the store was mounted.
    pub given: Given,
    /// Access time in nanoseconds since 1970. Changes only when a program sets it.
    pub atime: Option<i64>,
    /// Modification time in nanoseconds since 1970; unset if neither the base nor an operation sets it.
    pub mtime: Option<i64>,
    /// Change time.
    pub ctime: Option<i64>,
    /// Device number, of devices.
    pub rdev: u64,
    /// Every name it has: the folder, and the name there. Empty once unlinked; the top has none either.
    pub links: Arc<Vec<(Ino, Name)>>,
    /// The base entry it began as.
    pub base: Option<NodeId>,
    /// Extended attributes.
    pub xattrs: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Distinguishes files that had the same number one after the other; 0 for files of the base.
    pub birth: u64,
    /// Which changes its content allows.
    pub guard: Protection,
    /// Its content, by kind.
    pub body: Body,
}

/// Which changes a file's content and name allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// Every change.
    #[default]
    None,
    /// No change.
    Fixed,
    /// Only appending after this length in bytes; [`None`] stands for the whole length of the base.
    Append(Option<u64>),
}

/// The content of a file, by kind.
#[derive(Clone, Debug)]
pub enum Body {
    /// A regular file.
    File(Content),
    /// A folder.
    Dir(Dir),
    /// A symlink's target.
    Symlink(Name),
    /// A fifo, socket or device.
    Special(Kind),
}

/// A regular file's bytes.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Length in bytes; for `lazy` content see there.
    pub size: u64,
    /// Where the bytes lie; all pieces end at `size` at most.
    pub pieces: Pieces,
    /// A whole blob of the base whose length was not yet looked up. Replaces `size` and `pieces`.
    pub lazy: Option<Arc<LazyBlob>>,
    /// The file's own data file, if it has one in the generation that is being written.
    pub own: Option<Arc<DataFile>>,
    /// Bytes it has in the journal of `inline_gen`.
    pub inline: u64,
    /// See `inline`.
    pub inline_gen: Option<GenId>,
}

/// A blob of unknown length.
#[derive(Debug)]
pub struct LazyBlob {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes, once it was looked up.
    pub size: OnceLock<u64>,
}

impl Content {
    /// The whole of a blob.
    pub fn blob(digest: Digest, size: u64) -> Self {
        Self { size, pieces: Pieces::blob(BlobRef { digest, size }), ..Self::default() }
    }

    /// The file's own data file, if it belongs to `generation` and so can be written.
    pub(super) fn own_of(&self, generation: &Arc<Generation>) -> Option<Arc<DataFile>> {
        self.own.clone().filter(|own| Arc::ptr_eq(&own.generation, generation) && !own.shared)
    }

    /// Length in bytes; 0 while it is unknown.
    pub fn known_size(&self) -> u64 {
        match &self.lazy {
            Some(lazy) => lazy.size.get().copied().unwrap_or(0),
            None => self.size,
        }
    }

    /// The blob whose length must be looked up before anything else is done.
    pub(super) fn unsettled(&self) -> Option<&Arc<LazyBlob>> {
        self.lazy.as_ref().filter(|lazy| lazy.size.get().is_none())
    }

    /// Turns lazy content into pieces, once its length is known.
    pub(super) fn settle(&mut self) {
        if let Some(lazy) = self.lazy.take() {
            let size = lazy.size.get().copied().unwrap_or(0);
            self.size = size;
            self.pieces = Pieces::blob(BlobRef { digest: lazy.digest, size });
        }
    }

    /// Its pieces, lazy or not.
    pub(super) fn settled(&self) -> Self {
        let mut content = self.clone();
        content.settle();
        content
    }

    /// Sets the length, and cuts off bytes after it.
    pub(super) fn resize(&mut self, size: u64) {
        self.settle();
        if size < self.size {
            self.pieces.clear(size, u64::MAX);
        }
        self.size = size;
    }

    /// Whether the content is exactly this blob.
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        match &self.lazy {
            Some(lazy) => lazy.digest == *digest,
            None => self.whole_blob().is_some_and(|blob| blob.digest == *digest),
        }
    }

    /// The blob that is exactly this content, even if its length is unknown.
    pub(super) fn digest(&self) -> Option<Digest> {
        match &self.lazy {
            Some(lazy) => Some(lazy.digest),
            None => self.whole_blob().map(|blob| blob.digest),
        }
    }

    /// Reads into `buf` from `offset` on. Returns the number of bytes: fewer than the buffer has only at the end. Settle the content
    /// first.
    pub(super) fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        blob: &mut extents::ReadBlob<'_>,
    ) -> crate::Result<usize> {
        let len = self.size.saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..len as usize];
        let mut done = 0;
        for (at, piece) in self.pieces.range(offset, offset + len) {
            let from = (at - offset) as usize;
            buf[done..from].fill(0);
            done = from + piece.len as usize;
            extents::fill(&piece, 0, &mut buf[from..done], blob)?;
        }
        buf[done..].fill(0);
        Ok(len as usize)
    }

    /// The blob that is exactly this content, if there is one.
    pub fn whole_blob(&self) -> Option<BlobRef> {
        if let Some(lazy) = &self.lazy {
            return lazy.size.get().map(|size| BlobRef { digest: lazy.digest, size: *size });
        }
        let (at, piece) = self.pieces.all().next()?;
        match &piece.src {
            Src::Blob(blob)
                if at == 0 && piece.off == 0 && piece.len == self.size && blob.size == self.size =>
            {
                Some(**blob)
            }
            _ => None,
        }
    }
}

/// A folder of a fork: a base folder and the changes to its entries.
#[derive(Clone, Debug, Default)]
pub struct Dir {
    /// The base folder whose entries it shows unless `names` says otherwise.
    pub base: Option<NodeId>,
    /// Added, replaced and removed names.
    pub names: OrdMap<Name, Slot>,
    /// Its own entries in the order in which they were added and are listed.
    pub order: OrdMap<u64, Name>,
    /// Number of the next own entry.
    pub next: u64,
    /// How many of its entries are folders.
    pub subdirs: u32,
    /// How many entries there are.
    pub len: u64,
}

/// What a folder records about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The base's entry is not shown.
    Gone,
    /// An entry of the folder's own.
    Here {
        /// The file.
        ino: Ino,
        /// Its place in the listing.
        seq: u64,
    },
}

impl Inode {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match &self.body {
            Body::File(_) => Kind::File,
            Body::Dir(_) => Kind::Dir,
            Body::Symlink(_) => Kind::Symlink,
            Body::Special(kind) => *kind,
        }
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    /// Its content, if it is a regular file.
    pub fn content(&self) -> Option<&Content> {
        if let Body::File(content) = &self.body { Some(content) } else { None }
    }

    /// Its entries, if it is a folder.
    pub fn dir(&self) -> Option<&Dir> {
        if let Body::Dir(dir) = &self.body { Some(dir) } else { None }
    }

    /// The length below which an append-only file cannot be changed; 0 for others. Settle the content first.
    pub(super) fn sealed_len(&self) -> u64 {
        match (self.guard, self.content()) {
            (Protection::Append(Some(sealed_len)), _) => sealed_len,
            (Protection::Append(None), Some(content)) => content.known_size(),
            _ => 0,
        }
    }

    /// Fixes the floor before the content grows past it.
    pub(super) fn fix_floor(&mut self) {
        if matches!(self.guard, Protection::Append(None)) {
            self.guard = Protection::Append(Some(self.sealed_len()));
        }
    }

    /// The link count: the number of names; for a folder 2, plus one for each folder in it.
    pub fn nlink(&self, top: bool) -> u32 {
        match &self.body {
            Body::Dir(dir) if top || !self.links.is_empty() => dir.subdirs.saturating_add(2),
            _ => self.links.len() as u32,
        }
    }

    /// Changes the mode as a write does: clears suid, and sgid if the group may execute the file.
    pub(super) fn strip_suid(&mut self) {
        if !self.is_dir() {
            self.mode = stripped(self.mode);
        }
    }
}

/// The attributes of a file, as stat(2) returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// The link count: the number of names; for a folder 2, plus one for each folder in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of devices.
    pub rdev: u64,
    /// Length in bytes: of the content, or of a link's target.
    pub size: u64,
    /// Access time in nanoseconds since 1970.
    pub atime: i64,
    /// Modification time.
    pub mtime: i64,
    /// Change time.
    pub ctime: i64,
}

/// Clears set-user-id, and set-group-id if the group may execute the file. Without group execution the bit stays: it once
/// marked mandatory locking. A journal's splice with `clears_suid` means this change.
pub(super) fn stripped(mode: u16) -> u16 {
    if mode & 0o2010 == 0o2010 { mode & !0o6000 } else { mode & !0o4000 }
}
