//! One file, folder or link of a fork, as far as it is its own.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use imbl::OrdMap;

use super::disk::{DataFile, GenId, Generation};
use super::ino::Ino;
use super::owners::Given;
use super::pieces::{BlobRef, Pieces};
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::tree::NodeId;

/// A name in a folder.
pub type Name = Arc<[u8]>;

/// What a changed or new file is.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Permission bits.
    pub mode: u16,
    /// Owner; unset where the base does not say and nobody changed it.
    pub uid: Option<u32>,
    /// Group, likewise.
    pub gid: Option<u32>,
    /// Which of the two were given to it since the store was mounted.
    pub given: Given,
    /// Access time in nanoseconds since 1970. Only changed when somebody sets it.
    pub atime: Option<i64>,
    /// Modification time, likewise; unset where the base does not say.
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
    /// Tells files apart that had the same number one after the other; 0 for those of the base.
    pub birth: u64,
    /// What may be done to its content.
    pub guard: Guard,
    /// What it holds.
    pub body: Body,
}

/// What may be done to a file's content and name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// Anything.
    #[default]
    None,
    /// Nothing.
    Fixed,
    /// Appending behind what there was at this length; [`None`] stands for the base's whole length.
    Append(Option<u64>),
}

/// What a file holds, by kind.
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
    /// Where they lie; all of it below `size`.
    pub pieces: Pieces,
    /// A whole blob of the base whose length nobody has asked for yet. Replaces the two above.
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
    /// Its length in bytes, once somebody asked.
    pub size: OnceLock<u64>,
}

impl Content {
    /// The whole of a blob.
    pub fn blob(digest: Digest, size: u64) -> Self {
        Self { size, pieces: Pieces::blob(BlobRef { digest, size }), ..Self::default() }
    }

    /// The file's own data file, if `generation` is that of it, so that it can be written.
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

    /// The blob whose length has to be found out before anything else is done.
    pub(super) fn unsettled(&self) -> Option<&Arc<LazyBlob>> {
        self.lazy.as_ref().filter(|lazy| lazy.size.get().is_none())
    }

    /// Turns lazy content, whose length is known by now, into pieces.
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

    /// Sets the length, cutting what lies behind it.
    pub(super) fn resize(&mut self, size: u64) {
        self.settle();
        if size < self.size {
            self.pieces.clear(size, u64::MAX);
        }
        self.size = size;
    }

    /// Whether it is exactly a blob.
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        match &self.lazy {
            Some(lazy) => lazy.digest == *digest,
            None => self.whole_blob().is_some_and(|blob| blob.digest == *digest),
        }
    }

    /// The blob that is exactly this content, if there is one.
    pub fn whole_blob(&self) -> Option<BlobRef> {
        if let Some(lazy) = &self.lazy {
            return lazy.size.get().map(|size| BlobRef { digest: lazy.digest, size: *size });
        }
        let (at, piece) = self.pieces.all().next()?;
        match &piece.src {
            super::pieces::Src::Blob(blob)
                if at == 0 && piece.off == 0 && piece.len == self.size && blob.size == self.size =>
            {
                Some(**blob)
            }
            _ => None,
        }
    }
}

/// What a folder holds beyond the base folder below it.
#[derive(Clone, Debug, Default)]
pub struct Dir {
    /// The base folder whose entries it shows unless `names` says otherwise.
    pub base: Option<NodeId>,
    /// Names that are its own.
    pub names: OrdMap<Name, Slot>,
    /// Its own entries in the order they came, which is the order they are listed in.
    pub order: OrdMap<u64, Name>,
    /// Number of the next one.
    pub next: u64,
    /// How many of its entries are folders.
    pub subdirs: u32,
    /// How many entries there are.
    pub len: u64,
}

/// What a folder says of a name.
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
    /// What it is.
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

    /// What it holds, if it is a folder.
    pub fn dir(&self) -> Option<&Dir> {
        if let Body::Dir(dir) = &self.body { Some(dir) } else { None }
    }

    /// The length below which an append-only file cannot be changed; 0 for others. Settle the content first.
    pub(super) fn floor(&self) -> u64 {
        match (self.guard, self.content()) {
            (Guard::Append(Some(floor)), _) => floor,
            (Guard::Append(None), Some(content)) => content.known_size(),
            _ => 0,
        }
    }

    /// Writes the floor down before the content grows past it.
    pub(super) fn fix_floor(&mut self) {
        if matches!(self.guard, Guard::Append(None)) {
            self.guard = Guard::Append(Some(self.floor()));
        }
    }

    /// Number of names, or for a folder 2 and one for each folder in it.
    pub fn nlink(&self, top: bool) -> u32 {
        match &self.body {
            Body::Dir(dir) if top || !self.links.is_empty() => dir.subdirs.saturating_add(2),
            _ => self.links.len() as u32,
        }
    }

    /// What writing to a file does to its mode: suid goes, and sgid where it means the group.
    pub(super) fn strip_suid(&mut self) {
        if !self.is_dir() {
            self.mode = super::caller::stripped(self.mode);
        }
    }
}

/// What `stat` tells of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Links; folders: 2 and one for each folder in it.
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
