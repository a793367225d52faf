//! The initial tree of a fork: the tree of its image with the layers' folders around it.

use std::collections::HashMap;
use std::sync::Arc;

use imbl::HashMap as PMap;

use super::super::frame::FOLDER_MODE;
use super::super::ino::Ino;
use super::super::live::BaseTimes;
use super::super::node::{Body, Dir, Guard, Inode, Name};
use super::super::owners::{Given, Owners};
use super::{LayerBase, State};
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::tree::{NodeId, NodeTimes, Tree};

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
    times: BaseTimes,
    pub(super) nodes: PMap<Ino, Arc<Inode>>,
    #[allow(clippy::struct_field_names)] // by base entry
    pub(super) by_base: PMap<NodeId, Ino>,
}

/// The folders every fork of an image has: number, parent, name.
pub(in crate::fork) const FOLDERS: [(Ino, Ino, &[u8]); 7] = [
    (Ino::MODEL, Ino::TOP, b"model"),
    (Ino::CACHE, Ino::TOP, b"cache"),
    (Ino::PAGES, Ino::CACHE, b"pages"),
    (Ino::WORLD, Ino::TOP, b"world"),
    (Ino::FS, Ino::WORLD, b"fs"),
    (Ino::EFFECTS, Ino::TOP, b"effects"),
    (Ino::TRACE, Ino::TOP, b"trace"),
];

/// The number that a folder of this name has by its place alone.
pub(in crate::fork) fn fixed_ino(parent: Ino, name: &[u8]) -> Option<Ino> {
    FOLDERS.iter().find(|(_, p, n)| *p == parent && *n == name).map(|(ino, ..)| *ino)
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
        guard: Guard::None,
        birth: 0,
        body: Body::Dir(Dir { base, ..Dir::default() }),
    }
}

impl Base {
    /// The initial tree of a fork of nothing: an empty folder, made at a moment.
    pub(in crate::fork) fn empty(owners: Owners, created_ns: i64) -> Self {
        let nodes = PMap::unit(Ino::TOP, Arc::new(folder(Vec::new(), None)));
        Self {
            image: None,
            tree: Arc::new(Tree::empty()),
            groups: HashMap::new(),
            owners,
            times: BaseTimes { created_ns, nodes: Arc::new(NodeTimes::all(created_ns)) },
            nodes,
            by_base: PMap::new(),
        }
    }

    /// The initial tree of a fork of an image.
    pub(in crate::fork) fn new(
        image: Digest,
        tree: Arc<Tree>,
        layers: &[LayerBase],
        times: BaseTimes,
        owners: Owners,
    ) -> Self {
        let mut base = Self { image: Some(image), times, ..Self::empty(owners, 0) };
        let mut groups: HashMap<u64, Vec<NodeId>> = HashMap::new();
        for (node, number) in tree.hardlinks() {
            groups.entry(number).or_default().push(node);
        }
        // A tree that declares different files as one is not trusted: each keeps its content.
        groups.retain(|_, nodes| {
            let first = nodes[0];
            nodes.len() > 1
                && tree.kind(first) != Kind::Dir
                && nodes.iter().all(|n| {
                    (tree.kind(*n), tree.blob(*n), tree.size(*n), tree.target(*n), tree.rdev(*n))
                        == (
                            tree.kind(first),
                            tree.blob(first),
                            tree.size(first),
                            tree.target(first),
                            tree.rdev(first),
                        )
                })
        });
        base.groups = groups;
        let mut state = State::over(Arc::new(Self { tree, ..base }));
        for (ino, parent, name) in FOLDERS {
            let below = (ino == Ino::FS).then_some(NodeId::ROOT);
            let mut dir = folder(vec![(parent, name.into())], below);
            if let Some(node) = below {
                state.by_base.insert(node, ino);
                dir = state.inode_of(node, ino);
                dir.links = Arc::new(vec![(parent, name.into())]);
            }
            state.nodes.insert(ino, Arc::new(dir));
            state.set_entry(parent, &name.into(), ino, true);
        }
        for layer in layers {
            state.add_layer(layer, |_| false);
        }
        let State { base, nodes, by_base, .. } = state;
        let mut base = Arc::try_unwrap(base).unwrap_or_else(|shared| Self {
            image: shared.image,
            tree: shared.tree.clone(),
            groups: shared.groups.clone(),
            owners: shared.owners.clone(),
            times: shared.times.clone(),
            nodes: PMap::new(),
            by_base: PMap::new(),
        });
        (base.nodes, base.by_base) = (nodes, by_base);
        base
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
