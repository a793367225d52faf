//! Inodes: what the kernel holds on to, by number.
//!
//! A number is computed from what the inode is, so that it is the same after the kernel forgot it, after a remount,
//! and in every image that holds the same file. The table keeps only what the kernel has looked up.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::forked::{Mounted, Slot};
use crate::fork;
use crate::store::{Digest, LayerFile};
use crate::tree::NodeId;

/// An inode's number, unique in the mount. 1 is the root, as FUSE wants it.
pub type Ino = u64;

/// Numbers below this belong to the fixed folders.
const FIRST_COMPUTED: Ino = 1 << 10;

/// The number of the file that a barrier reads.
const MARKER: Ino = 8;

/// An image's number in this mount; see [`super::catalog::Catalog`].
pub(super) type ImageNo = u32;

/// The folders that are always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub(super) enum Fixed {
    Root = 1,
    Images = 2,
    Tags = 3,
    Agents = 4,
    Control = 5,
    Forks = 6,
    Work = 7,
}

impl Fixed {
    pub(super) const fn ino(self) -> Ino {
        self as Ino
    }
}

/// The folders of an image that are not its files'.
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

/// Attributes of a read-only file that its tree records. They are part of what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recorded {
    pub(super) mode: u16,
    pub(super) mtime_ns: Option<i64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// Size of a file that was only listed: finding it out means decompressing it.
pub(super) const UNKNOWN_SIZE: u64 = u64::MAX;

/// Where a file was first seen, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
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

/// What a blob is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shown {
    /// Its exact bytes.
    Raw,
    /// A ledger without its session secret.
    Redacted,
}

/// What an inode is.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Fixed(Fixed),
    /// `agents/<kind>/`, by the folder's name.
    Agent(Arc<str>),
    ImageDir {
        image: ImageNo,
        dir: ImageDir,
        /// Seconds since 1970: the marker's time.
        mtime: i64,
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
        shown: Shown,
        seen: Seen,
    },
    /// A symlink that a tree records.
    Symlink {
        target: Arc<[u8]>,
        recorded: Recorded,
    },
    /// A fifo, socket or device that a tree records.
    Special {
        image: ImageNo,
        node: NodeId,
    },
    /// A symlink of our own.
    Link {
        target: Arc<str>,
        mtime: i64,
        /// Tells tags of one image apart, which a program may rename to each other; 0 for every other link.
        tag: u64,
    },
    /// Anything in a fork.
    Forked {
        mounted: Mounted,
        ino: fork::Ino,
    },
    /// `.snap/` of a fork.
    Snap {
        mounted: Mounted,
    },
    /// The file that a barrier reads; see [`super::push`].
    Marker,
    /// A folder that is forgotten as soon as it was made.
    Stub {
        key: u64,
    },
    /// Bytes made by the daemon. Each version is an inode of its own.
    Doc {
        bytes: Arc<[u8]>,
        mtime: i64,
        /// What told it apart when its number was given.
        key: u64,
    },
}

/// Numbers in forks have this bit set, the fork's slot behind it, and the file's number in its fork in the last 48.
const FORKED: Ino = 1 << 62;

/// The number of a file in a fork.
pub(super) fn fork_number(slot: Slot, ino: fork::Ino) -> Ino {
    FORKED | Ino::from(slot) << 48 | ino.0
}

/// Mixes a number into a hash (the finaliser of splitmix64).
fn mix(hash: u64, value: u64) -> u64 {
    let mut z = hash.rotate_left(29) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hashes bytes the same way in every run (FNV-1a, then mixed).
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv, bytes.len() as u64)
}

fn digest_hash(digest: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl Recorded {
    fn hash(&self) -> u64 {
        let time = self.mtime_ns.map_or(0, |t| mix(1, t as u64));
        let owner = |id: Option<u32>| id.map_or(0, |id| 1 + u64::from(id));
        mix(mix(mix(u64::from(self.mode), time), owner(self.uid)), owner(self.gid))
    }
}

impl Node {
    /// The number it should have, given the ids of images.
    fn number(&self, image_id: impl Fn(ImageNo) -> Digest) -> Ino {
        let hash = match self {
            Self::Fixed(fixed) => return fixed.ino(),
            Self::Marker => return MARKER,
            Self::Agent(name) => mix(1, hash_bytes(name.as_bytes())),
            Self::ImageDir { image, dir, .. } => mix(mix(2, digest_hash(&image_id(*image))), *dir as u64),
            Self::Dir { image, node } | Self::Special { image, node } => {
                mix(mix(3, digest_hash(&image_id(*image))), u64::from(node.0))
            }
            Self::File { digest, recorded, shown, .. } => {
                mix(mix(mix(4, digest_hash(digest)), recorded.hash()), *shown as u64)
            }
            Self::Symlink { target, recorded } => mix(mix(5, hash_bytes(target)), recorded.hash()),
            Self::Link { target, mtime, tag } => {
                mix(mix(mix(6, hash_bytes(target.as_bytes())), *mtime as u64), *tag)
            }
            Self::Doc { key, .. } => mix(7, *key),
            Self::Forked { mounted, ino } => return fork_number(mounted.slot, *ino),
            Self::Snap { mounted } => return super::Vfs::snap_number(mounted),
            Self::Stub { key } => mix(8, *key),
        };
        // Positive as a signed number, for programs that print inodes so, and apart from those of forks.
        (hash >> 2).max(FIRST_COMPUTED)
    }

    /// Whether both are the same inode. Where they were seen does not count, nor a size not found out yet.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(one), Self::Fixed(two)) => one == two,
            (Self::Marker, Self::Marker) => true,
            (Self::Agent(one), Self::Agent(two)) => one == two,
            (Self::ImageDir { image, dir, .. }, Self::ImageDir { image: image2, dir: dir2, .. }) => {
                image == image2 && dir == dir2
            }
            (Self::Dir { image, node }, Self::Dir { image: image2, node: node2 })
            | (Self::Special { image, node }, Self::Special { image: image2, node: node2 }) => {
                image == image2 && node == node2
            }
            (
                Self::File { digest, size, recorded, shown, .. },
                Self::File { digest: digest2, size: size2, recorded: recorded2, shown: shown2, .. },
            ) => {
                let sizes = [*size, *size2];
                digest == digest2
                    && recorded == recorded2
                    && shown == shown2
                    && (size == size2 || sizes.contains(&UNKNOWN_SIZE))
            }
            (Self::Symlink { target, recorded }, Self::Symlink { target: target2, recorded: recorded2 }) => {
                target == target2 && recorded == recorded2
            }
            (Self::Link { target, mtime, tag }, Self::Link { target: target2, mtime: mtime2, tag: tag2 }) => {
                target == target2 && mtime == mtime2 && tag == tag2
            }
            (Self::Doc { key, .. }, Self::Doc { key: key2, .. })
            | (Self::Stub { key }, Self::Stub { key: key2 }) => key == key2,
            (Self::Snap { mounted }, Self::Snap { mounted: mounted2 }) => mounted.slot == mounted2.slot,
            (Self::Forked { mounted, ino }, Self::Forked { mounted: mounted2, ino: ino2 }) => {
                mounted.slot == mounted2.slot && ino == ino2
            }
            _ => false,
        }
    }
}

struct Held {
    node: Node,
    lookups: u64,
}

/// A hash table would be twice as large just after it grew, which all shards do at the same time.
type Shard = BTreeMap<Ino, Held>;

const SHARDS: usize = 256;

/// The inodes the kernel knows, with how often it has looked each up.
pub(super) struct Inodes {
    shards: Vec<Mutex<Shard>>,
}

impl Inodes {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect() }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino >> 20) as usize % SHARDS]
    }

    /// The number a node would get, without counting a lookup. Good for listings.
    pub(super) fn number(node: &Node, image_id: impl Fn(ImageNo) -> Digest) -> Ino {
        node.number(image_id)
    }

    /// Counts a lookup of the node and returns its number, and whether the kernel did not know it before. Two nodes
    /// never share a number.
    pub(super) fn intern(&self, node: Node, image_id: impl Fn(ImageNo) -> Digest) -> (Ino, bool) {
        let number = node.number(image_id);
        self.intern_as(number, node)
    }

    /// The same with a number that was given otherwise.
    pub(super) fn intern_as(&self, mut ino: Ino, node: Node) -> (Ino, bool) {
        loop {
            match self.shard(ino).lock().entry(ino) {
                MapEntry::Vacant(slot) => {
                    slot.insert(Held { node, lookups: 1 });
                    return (ino, true);
                }
                MapEntry::Occupied(mut slot) if slot.get().node.same(&node) => {
                    let held = slot.get_mut();
                    held.lookups += 1;
                    if let Node::File { size: UNKNOWN_SIZE, .. } = held.node {
                        held.node = node;
                    }
                    return (ino, false);
                }
                MapEntry::Occupied(_) => ino = (ino + 1).max(FIRST_COMPUTED) & (FORKED - 1),
            }
        }
    }

    /// What a number stands for.
    pub(super) fn get(&self, ino: Ino) -> Option<Node> {
        match ino {
            1 => Some(Node::Fixed(Fixed::Root)),
            _ => self.shard(ino).lock().get(&ino).map(|held| held.node.clone()),
        }
    }

    /// Notes the size of a file that was only listed before.
    pub(super) fn set_size(&self, ino: Ino, found: u64) {
        if let Some(Held { node: Node::File { size, .. }, .. }) = self.shard(ino).lock().get_mut(&ino) {
            *size = found;
        }
    }

    /// Takes back `lookups` lookups. `gone` is called for what is not known any more, before anyone can look it up
    /// again.
    pub(super) fn forget(&self, ino: Ino, lookups: u64, gone: impl FnOnce(&Node)) {
        if let MapEntry::Occupied(mut slot) = self.shard(ino).lock().entry(ino) {
            let held = slot.get_mut();
            held.lookups = held.lookups.saturating_sub(lookups);
            if held.lookups == 0 {
                gone(&held.node);
                slot.remove();
            }
        }
    }

    /// Slots of forks of which the kernel knows an inode.
    pub(super) fn fork_slots(&self) -> HashSet<Slot> {
        let slot = |held: &Held| match &held.node {
            Node::Forked { mounted, .. } | Node::Snap { mounted } => Some(mounted.slot),
            _ => None,
        };
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().values().filter_map(slot).collect::<Vec<_>>())
            .collect()
    }

    /// How many inodes the kernel knows.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8], mode: u16) -> Node {
        Node::File {
            digest: Digest::of(content),
            size: content.len() as u64,
            recorded: Recorded { mode, mtime_ns: None, uid: None, gid: None },
            shown: Shown::Raw,
            seen: Seen { image: 0, place: Place::World(NodeId::ROOT) },
        }
    }

    fn id(image: ImageNo) -> Digest {
        Digest::of(&image.to_le_bytes())
    }

    #[test]
    fn the_same_content_is_the_same_inode_wherever_it_was_seen() {
        let inodes = Inodes::new();
        let (a, _) = inodes.intern(file(b"x", 0o644), id);
        let mut elsewhere = file(b"x", 0o644);
        if let Node::File { seen, .. } = &mut elsewhere {
            seen.image = 7;
        }
        assert_eq!(inodes.intern(elsewhere, id), (a, false));
        assert_ne!(inodes.intern(file(b"x", 0o755), id).0, a);
        assert_ne!(inodes.intern(file(b"y", 0o644), id).0, a);
        assert_eq!(inodes.len(), 3);
    }

    #[test]
    fn an_inode_lives_as_long_as_the_kernel_knows_it_and_gets_its_number_back() {
        let inodes = Inodes::new();
        let (ino, _) = inodes.intern(file(b"x", 0o644), id);
        inodes.intern(file(b"x", 0o644), id);
        inodes.forget(ino, 1, |_| ());
        assert!(inodes.get(ino).is_some());
        inodes.forget(ino, 1, |_| ());
        assert!(inodes.get(ino).is_none());
        inodes.forget(ino, 1, |_| ());
        assert_eq!(inodes.len(), 0);
        assert_eq!(inodes.intern(file(b"x", 0o644), id), (ino, true));
    }

    #[test]
    fn folders_of_different_images_differ_and_nothing_takes_a_fixed_number() {
        let inodes = Inodes::new();
        let mut seen = std::collections::HashSet::new();
        for image in 0..100 {
            for node in 0..100 {
                let (ino, _) = inodes.intern(Node::Dir { image, node: NodeId(node) }, id);
                assert!((FIRST_COMPUTED..FORKED).contains(&ino));
                assert!(seen.insert(ino));
            }
        }
    }

    #[test]
    fn two_nodes_whose_numbers_collide_get_different_ones() {
        let inodes = Inodes::new();
        let (a, b) = (file(b"a", 0o644), file(b"b", 0o644));
        let number = a.number(id);
        // Plant another node where `a` wants to go.
        inodes.shard(number).lock().insert(number, Held { node: b, lookups: 1 });
        let (ino, _) = inodes.intern(a.clone(), id);
        assert_eq!(ino, number + 1);
        assert_eq!(inodes.intern(a, id), (ino, false));
    }

    #[test]
    fn an_inode_takes_at_most_two_hundred_bytes() {
        assert!(size_of::<(Ino, Held)>() <= 112, "{}", size_of::<(Ino, Held)>());
    }
}
