//! The initial tree of a fork: the tree of its image with the layers' folders around it.

use std::collections::HashMap;
use std::sync::Arc;

use imbl::GenericHashMap;
use imbl::shared_ptr::DefaultSharedPtr;

use crate::digest::Digest;
use crate::fork::frame::FOLDER_MODE;
use crate::fork::ino::{Hashes, Ino};
use crate::fork::inode::{Body, Dir, Inode, Name, Protection};
use crate::fork::owners::{Given, Owners};
use crate::fork::reader::BaseTimes;
use crate::tree::{NodeId, NodeTimes, Tree};

/// A persistent map: a clone shares its nodes.
pub(in crate::fork) type PMap<K, V> = GenericHashMap<K, V, Hashes, DefaultSharedPtr>;

/// The initial tree of a fork. One for each image, shared by its forks.
pub(in crate::fork) struct Base {
    /// The image, or none for a fork that began empty.
    pub(in crate::fork) image: Option<Digest>,
    pub(in crate::fork) tree: Arc<Tree>,
    /// Entries of the tree that are one file, by number.
    pub(super) groups: HashMap<u64, Vec<NodeId>>,
    /// How owners are shown.
    pub(in crate::fork) owners: Owners,
    /// Times of nodes without a recorded time.
    pub(super) times: BaseTimes,
    pub(super) nodes: PMap<Ino, Arc<Inode>>,
    #[allow(clippy::struct_field_names)] // by base entry
    pub(super) by_base: PMap<NodeId, Ino>,
}

pub(super) fn folder(links: Vec<(Ino, Name)>, base: Option<NodeId>) -> Inode {
    Inode {
        mode: FOLDER_MODE,
        uid: None,
        gid: None,
        given: Given::default(),
        atime: None,
        mtime: None,
        ctime: None,
        rdev: 0,
        links: Arc::new(links),
        base,
        xattrs: Arc::default(),
        guard: Protection::None,
        birth: 0,
        body: Body::Dir(Dir { base, ..Dir::default() }),
    }
}

impl Base {
    /// The initial tree of a fork of nothing: an empty folder, made at a moment.
    pub(in crate::fork) fn empty(owners: Owners, created_ns: i64) -> Self {
        let nodes = PMap::from_iter([(Ino::TOP, Arc::new(folder(Vec::new(), None)))]);
        Self {
            image: None,
            tree: Arc::new(Tree::empty()),
            groups: HashMap::new(),
            owners,
            times: BaseTimes { created_ns, nodes: Arc::new(NodeTimes::all(created_ns)) },
            nodes,
            by_base: PMap::default(),
        }
    }

    /// The time shown for a node without one: the derived time of an entry of the tree, else that of the
    /// image.
    pub(in crate::fork) fn time(&self, node: Option<NodeId>) -> i64 {
        // A file with several names has the time of the first, as in the image.
        let shown = |node| self.tree.shown_mtime_ns(self.tree.file(node).0, &self.times.nodes);
        node.map_or(self.times.created_ns, shown)
    }

    /// The entry that represents a file of the tree: the first of several links.
    pub(super) fn canonical(&self, node: NodeId) -> NodeId {
        let group = self.tree.hardlink(node).and_then(|number| self.groups.get(&number));
        group.filter(|nodes| nodes.contains(&node)).map_or(node, |nodes| nodes[0])
    }
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").field("image", &self.image).finish_non_exhaustive()
    }
}
