//! Nodes, which describe inodes, and the keys derived from them.
//!
//! A key is computed from its node. So it is the same after the kernel has forgotten the inode, after a remount, and in every
//! image that has the same file at the same place. The table in `inodes.rs` turns it into a number.

use std::sync::Arc;

use super::key::{Ino, Key, hash_bytes, mix};
use super::mounted::Mounted;
use crate::digest::Digest;
use crate::fork;
use crate::layers::xattrs::Xattrs;
use crate::store::LayerFile;
use crate::tree::{NodeId, PathHash};

/// The number of the file that a barrier reads.
const MARKER_INO: Ino = 8;

/// The name, at the mountpoint, of the file that a barrier reads. It is not listed.
pub(crate) const MARKER: &str = ".pfimg-barrier";

/// The length of that file in bytes. Each barrier reads at another offset.
pub(super) const MARKER_SIZE: u64 = 1 << 62;

/// An image's number in this mount; see [`super::nodes::Nodes`].
pub(super) type ImageNo = u32;

/// The folders that every mount has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub(super) enum BuiltinDir {
    Root = 1,
    Images = 2,
    Tags = 3,
    Agents = 4,
    Control = 5,
    Forks = 6,
    Work = 7,
}

impl BuiltinDir {
    pub(super) const fn ino(self) -> Ino {
        self as Ino
    }

    /// Its path from the mountpoint.
    pub(super) const fn path(self) -> &'static [u8] {
        match self {
            Self::Root => b"",
            Self::Images => b"images",
            Self::Tags => b"tags",
            Self::Agents => b"agents",
            Self::Control => b".pfimg",
            Self::Forks => b"forks",
            Self::Work => b"work",
        }
    }

    /// The link count: 2, plus one for each folder listed in it. It is 1 if the folders in it change and are not counted.
    pub(super) const fn links(self) -> u32 {
        match self {
            Self::Root => 2 + 5,
            Self::Images | Self::Agents | Self::Forks => 1,
            Self::Tags | Self::Control | Self::Work => 2,
        }
    }
}

/// The folders of an image outside of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ImageDir {
    Top,
    Model,
    Cache,
    Pages,
    World,
    Effects,
    Trace,
    Parents,
}

impl ImageDir {
    /// Its path from the image's folder.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Top => "",
            Self::Model => "model",
            Self::Cache => "cache",
            Self::Pages => "cache/pages",
            Self::World => "world",
            Self::Effects => "effects",
            Self::Trace => "trace",
            Self::Parents => "parents",
        }
    }

    /// The link count: 2, plus one for each folder in it.
    pub(super) const fn links(self) -> u32 {
        match self {
            Self::Top => 2 + 6,
            Self::Cache | Self::World => 2 + 1,
            Self::Model | Self::Pages | Self::Effects | Self::Trace | Self::Parents => 2,
        }
    }
}

/// Attributes of a file of an image. They are part of its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    pub(super) mode: u16,
    pub(super) mtime_ns: i64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Number of its names.
    pub(super) links: u32,
    /// Extended attributes, if it has any and they are shown.
    pub(super) xattrs: Option<Arc<Xattrs>>,
}

/// Size of a file that was only listed. Finding the real size would take decompressing the file.
pub(super) const UNKNOWN_SIZE: u64 = u64::MAX;

/// Where a file was first seen, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) image: ImageNo,
    pub(super) place: Place,
}

/// A place in an image.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Layer(LayerFile),
    Page { ix: u32, key: bool },
    World(NodeId),
}

/// How a blob is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Redaction {
    /// Its exact bytes.
    Raw,
    /// A ledger without its session secret.
    Redacted,
}

/// Describes an inode.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Builtin(BuiltinDir),
    /// `agents/<kind>/`, by the folder's name.
    Agent(Arc<str>),
    ImageDir {
        image: ImageNo,
        dir: ImageDir,
    },
    /// A folder in `world/fs`.
    Dir {
        image: ImageNo,
        node: NodeId,
    },
    /// A blob.
    File {
        digest: Digest,
        size: u64,
        recorded: Recorded,
        redaction: Redaction,
        origin: Origin,
        /// The second hash of its path. Its key contains the first one.
        path: u64,
    },
    /// A symlink that a tree records.
    Symlink {
        target: Arc<[u8]>,
        recorded: Recorded,
        /// The second hash of its path. Its key contains the first one.
        path: u64,
    },
    /// A fifo, socket or device that a tree records. If it has several names, this is the first.
    Special {
        image: ImageNo,
        node: NodeId,
    },
    /// A symlink that the mount itself shows.
    Link {
        /// Its target. Empty for a `latest` that was only listed.
        target: Arc<str>,
        mtime_ns: i64,
        /// Hash of its place and its target.
        key: u64,
    },
    /// A file or folder in a fork.
    Forked {
        mounted: Mounted,
        ino: fork::Ino,
    },
    /// `.snap/` of a fork.
    Snap {
        mounted: Mounted,
    },
    /// The file that a barrier reads; see [`super::cached_writes`].
    Marker,
    /// A folder that is forgotten as soon as it is made.
    Pending {
        key: u64,
    },
    /// Bytes made by the daemon. Each version is a separate inode.
    Doc {
        bytes: Arc<[u8]>,
        mtime_ns: i64,
        /// Distinguishes versions.
        key: u64,
    },
}

/// A node and its key.
#[derive(Clone, Debug)]
pub(super) struct Keyed {
    pub(super) key: Key,
    pub(super) node: Node,
}

fn digest_hash(digest: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl Recorded {
    fn hash(&self) -> u64 {
        let Self { mode, mtime_ns, uid, gid, links, xattrs } = self;
        let numbers = [*mtime_ns as u64, (*uid).into(), (*gid).into(), (*links).into()];
        let hash = numbers.into_iter().fold((*mode).into(), mix);
        let attributes = xattrs.iter().flat_map(|xattrs| xattrs.iter());
        attributes.fold(hash, |hash, (name, value)| mix(mix(hash, hash_bytes(name)), hash_bytes(value)))
    }
}

impl Keyed {
    /// A file that shows a blob, at a path.
    pub(super) fn file(
        at: PathHash,
        (digest, size): (Digest, u64),
        recorded: Recorded,
        redaction: Redaction,
        origin: Origin,
    ) -> Self {
        let hash =
            [at.first, digest_hash(&digest), recorded.hash(), redaction as u64].into_iter().fold(4, mix);
        let node = Node::File { digest, size, recorded, redaction, origin, path: at.second };
        Self { key: Key::hashed(hash), node }
    }

    /// A symlink that a tree records, at a path.
    pub(super) fn symlink(at: PathHash, target: &[u8], recorded: Recorded) -> Self {
        let hash = [at.first, hash_bytes(target), recorded.hash()].into_iter().fold(5, mix);
        let node = Node::Symlink { target: target.into(), recorded, path: at.second };
        Self { key: Key::hashed(hash), node }
    }

    /// The key of any other node. `image_id` returns the ids of images.
    pub(super) fn of(node: Node, image_id: impl Fn(ImageNo) -> Digest) -> Self {
        let hash = match &node {
            Node::Builtin(dir) => return Self { key: Key(dir.ino()), node },
            Node::Marker => return Self { key: Key(MARKER_INO), node },
            Node::Forked { mounted, ino } => return Self { key: mounted.key(*ino), node },
            Node::Snap { mounted } => return Self { key: mounted.snap_key(), node },
            Node::Agent(name) => mix(1, hash_bytes(name.as_bytes())),
            Node::ImageDir { image, dir } => mix(mix(2, digest_hash(&image_id(*image))), *dir as u64),
            Node::Dir { image, node } | Node::Special { image, node } => {
                mix(mix(3, digest_hash(&image_id(*image))), node.0.into())
            }
            Node::Link { key, .. } => mix(6, *key),
            Node::Doc { key, .. } => mix(7, *key),
            Node::Pending { key } => mix(8, *key),
            Node::File { path, .. } | Node::Symlink { path, .. } => {
                debug_assert!(false, "made with its path");
                mix(9, *path)
            }
        };
        Self { key: Key::hashed(hash), node }
    }
}

impl Node {
    /// A symlink that the mount itself shows, at a unique place. The target is part of its identity, since the kernel caches
    /// it.
    pub(super) fn link(place: &[u8], target: Arc<str>, mtime_ns: i64) -> Self {
        let key = mix(hash_bytes(place), hash_bytes(target.as_bytes()));
        Self::Link { target, mtime_ns, key }
    }

    /// Whether both are the same inode. Ignores where they were seen, and attributes that are not yet known.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Builtin(one), Self::Builtin(two)) => one == two,
            (Self::Marker, Self::Marker) => true,
            (Self::Agent(one), Self::Agent(two)) => one == two,
            (Self::ImageDir { image, dir }, Self::ImageDir { image: image2, dir: dir2 }) => {
                image == image2 && dir == dir2
            }
            (Self::Dir { image, node }, Self::Dir { image: image2, node: node2 })
            | (Self::Special { image, node }, Self::Special { image: image2, node: node2 }) => {
                image == image2 && node == node2
            }
            (
                Self::File { digest, size, recorded, redaction, path, .. },
                Self::File {
                    digest: digest2,
                    size: size2,
                    recorded: recorded2,
                    redaction: redaction2,
                    path: path2,
                    ..
                },
            ) => {
                let sizes = [*size, *size2];
                digest == digest2
                    && path == path2
                    && recorded == recorded2
                    && redaction == redaction2
                    && (size == size2 || sizes.contains(&UNKNOWN_SIZE))
            }
            (
                Self::Symlink { target, recorded, path },
                Self::Symlink { target: target2, recorded: recorded2, path: path2 },
            ) => target == target2 && recorded == recorded2 && path == path2,
            (Self::Link { target, key, .. }, Self::Link { target: target2, key: key2, .. }) => {
                key == key2 && (target == target2 || target.is_empty() || target2.is_empty())
            }
            (Self::Doc { key, .. }, Self::Doc { key: key2, .. })
            | (Self::Pending { key }, Self::Pending { key: key2 }) => key == key2,
            (Self::Snap { mounted }, Self::Snap { mounted: mounted2 }) => mounted.slot == mounted2.slot,
            (Self::Forked { mounted, ino }, Self::Forked { mounted: mounted2, ino: ino2 }) => {
                mounted.key(*ino) == mounted2.key(*ino2)
            }
            _ => false,
        }
    }

    /// Whether `newer`, a later look at the same inode, knows more than this one.
    pub(super) fn is_older_than(&self, newer: &Self) -> bool {
        match (self, newer) {
            (Self::File { size, .. }, _) => *size == UNKNOWN_SIZE,
            (Self::Link { .. }, Self::Link { target, .. }) => !target.is_empty(),
            // A restore replaced the fork of the first look.
            (Self::Forked { mounted, .. }, Self::Forked { mounted: new, .. })
            | (Self::Snap { mounted }, Self::Snap { mounted: new }) => {
                mounted.fork.is_discarded() && !mounted.is_same(new)
            }
            _ => false,
        }
    }

    /// Whether a listing usually has to wait for the disk. A link to an image shows the image's time.
    pub(super) fn is_listed_on_disk(&self, plus: bool) -> bool {
        match self {
            Self::Builtin(_) | Self::Agent(_) | Self::Snap { .. } | Self::ImageDir { .. } => true,
            // Finding the lengths of layers may take decompressing them.
            Self::Forked { ino, .. } => plus && ino.is_frame(),
            _ => false,
        }
    }

    /// Whether it is a folder.
    pub(super) fn is_dir(&self) -> bool {
        matches!(
            self,
            Self::Builtin(_)
                | Self::Agent(_)
                | Self::ImageDir { .. }
                | Self::Dir { .. }
                | Self::Snap { .. }
                | Self::Pending { .. }
                | Self::Forked { .. }
        )
    }

    /// Whether its key is never used again once the kernel has forgotten it.
    pub(super) fn comes_once(&self) -> bool {
        match self {
            Self::Doc { key, .. } => key & MANIFEST == 0,
            Self::Pending { .. } => true,
            _ => false,
        }
    }
}

/// Set in the keys of documents that are manifests; versions of others are counted.
pub(super) const MANIFEST: u64 = 1 << 63;
