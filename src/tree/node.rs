//! A tree in memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::path::PathHash;
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;

/// A node's number in its tree. The root is [`NodeId::ROOT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The tree's own folder.
    pub const ROOT: Self = Self(0);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The owner of a file: user and group, each if recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

/// One file, folder or link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// Offset of the name in `Tree::names`.
    pub(super) name: u32,
    pub(super) parent: u32,
    /// Files: length in bytes. Folders: first child << 32 | number of children. Devices: device number.
    pub(super) extent: u64,
    pub(super) mtime_ns: i64,
    /// Files: index in `Tree::digests`. Symlinks: offset of the target in `Tree::names`. Folders: index in `Tree::folders`.
    pub(super) content: u32,
    /// Index in `Tree::owners`.
    pub(super) owner: u32,
    /// Symlinks: length of the target.
    pub(super) target_len: u16,
    /// Permission bits, and whether a time is recorded.
    pub(super) mode: u16,
    pub(super) name_len: u8,
    pub(super) kind: Kind,
}

/// An entry that is the same file as others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linked {
    pub(super) node: u32,
    /// The entry whose path comes first in byte order.
    pub(super) first: u32,
    /// The number of entries of this file.
    pub(super) links: u32,
}

/// Set in `Node::mode` where the tree records a modification time.
pub(super) const HAS_MTIME: u16 = 1 << 15;

/// A file tree.
pub struct Tree {
    pub(super) nodes: Box<[Node]>,
    pub(super) names: Box<[u8]>,
    pub(super) digests: Box<[Digest]>,
    pub(super) owners: Box<[Owner]>,
    /// For each folder, the hash of its path.
    pub(super) folders: Box<[PathHash]>,
    /// (node, hardlink number), sorted.
    pub(super) hardlinks: Box<[(u32, u64)]>,
    /// The entries above that share a file with others, sorted by node.
    pub(super) linked: Box<[Linked]>,
    /// (node, attributes), sorted.
    pub(super) xattrs: Box<[(u32, Arc<Xattrs>)]>,
    /// Whether any node has no time recorded.
    pub(super) lacks_times: bool,
}

impl Tree {
    /// Number of nodes, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }

    /// Bytes it takes in memory.
    pub fn heap_bytes(&self) -> usize {
        size_of_val(&*self.nodes)
            + self.names.len()
            + size_of_val(&*self.digests)
            + size_of_val(&*self.owners)
            + size_of_val(&*self.folders)
            + size_of_val(&*self.hardlinks)
            + size_of_val(&*self.linked)
            + self
                .xattrs
                .iter()
                .flat_map(|(_, xattrs)| &**xattrs)
                .map(|(k, v)| k.len() + v.len() + 64)
                .sum::<usize>()
    }

    /// Whether `id` is a node of this tree.
    pub fn contains(&self, id: NodeId) -> bool {
        id.index() < self.nodes.len()
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The node's kind.
    pub fn kind(&self, id: NodeId) -> Kind {
        self.node(id).kind
    }

    /// Permission bits.
    pub fn mode(&self, id: NodeId) -> u16 {
        self.node(id).mode & 0o7777
    }

    /// Modification time in nanoseconds since 1970, where recorded.
    pub fn mtime_ns(&self, id: NodeId) -> Option<i64> {
        let node = self.node(id);
        (node.mode & HAS_MTIME != 0).then_some(node.mtime_ns)
    }

    /// Whether any node lacks a recorded time and so has a derived one.
    pub fn lacks_times(&self) -> bool {
        self.lacks_times
    }

    /// Owner, as far as recorded.
    pub fn owner(&self, id: NodeId) -> Owner {
        self.owners[self.node(id).owner as usize]
    }

    /// Length in bytes of a file's content or of a link's target; 0 for everything else.
    pub fn size(&self, id: NodeId) -> u64 {
        let node = self.node(id);
        match node.kind {
            Kind::File => node.extent,
            Kind::Symlink => u64::from(node.target_len),
            _ => 0,
        }
    }

    /// Device number of a device, else 0.
    pub fn rdev(&self, id: NodeId) -> u64 {
        let node = self.node(id);
        if matches!(node.kind, Kind::Chardev | Kind::Blockdev) { node.extent } else { 0 }
    }

    /// A file's content.
    pub fn blob(&self, id: NodeId) -> Option<&Digest> {
        let node = self.node(id);
        (node.kind == Kind::File).then(|| &self.digests[node.content as usize])
    }

    /// A symlink's target.
    pub fn target(&self, id: NodeId) -> Option<&[u8]> {
        let node = self.node(id);
        (node.kind == Kind::Symlink).then(|| {
            let start = node.content as usize;
            &self.names[start..start + usize::from(node.target_len)]
        })
    }

    /// The node's name in its folder; empty for the root.
    pub fn name(&self, id: NodeId) -> &[u8] {
        let node = self.node(id);
        let start = node.name as usize;
        &self.names[start..start + usize::from(node.name_len)]
    }

    /// The folder that holds the node; the root's parent is the root.
    pub fn parent(&self, id: NodeId) -> NodeId {
        NodeId(self.node(id).parent)
    }

    /// The path from the root, `/` between components; empty for the root.
    pub fn path(&self, mut id: NodeId) -> Vec<u8> {
        let mut components = Vec::new();
        while id != NodeId::ROOT {
            components.push(self.name(id));
            id = self.parent(id);
        }
        components.reverse();
        components.join(&b'/')
    }

    /// Numbers of a folder's children, in byte order of their names; empty for other nodes.
    pub fn children(&self, id: NodeId) -> Range<u32> {
        let node = self.node(id);
        if node.kind != Kind::Dir {
            return 0..0;
        }
        let first = (node.extent >> 32) as u32;
        first..first + node.extent as u32
    }

    /// How many of a folder's children are folders.
    pub fn subdirs(&self, id: NodeId) -> u32 {
        let children = self.children(id);
        let children = children.start as usize..children.end as usize;
        self.nodes[children].iter().filter(|n| n.kind == Kind::Dir).count() as u32
    }

    /// Finds a name in a folder.
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        let Range { start, end } = self.children(dir);
        let (mut low, mut high) = (start, end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(NodeId(middle)).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(NodeId(middle)),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Finds a path from the root.
    pub fn resolve(&self, path: &[u8]) -> Option<NodeId> {
        path.split(|b| *b == b'/')
            .filter(|c| !c.is_empty())
            .try_fold(NodeId::ROOT, |dir, name| self.lookup(dir, name))
    }

    /// The hash of the node's path.
    pub(crate) fn path_hash(&self, id: NodeId) -> PathHash {
        let node = self.node(id);
        if node.kind == Kind::Dir {
            return self.folders[node.content as usize];
        }
        self.folders[self.node(self.parent(id)).content as usize].child(self.name(id))
    }

    /// The entry that represents this entry's file, and the number of the file's names. Entries of one
    /// hardlink number are one file if they agree in everything that a file has once; the number alone does
    /// not prove it.
    pub fn file(&self, id: NodeId) -> (NodeId, u32) {
        match self.linked.binary_search_by_key(&id.0, |linked| linked.node) {
            Ok(at) => (NodeId(self.linked[at].first), self.linked[at].links),
            Err(_) => (id, 1),
        }
    }

    /// The number shared by all entries that are the same file as this one, if recorded. Not trusted; see
    /// [`Tree::file`].
    pub fn hardlink(&self, id: NodeId) -> Option<u64> {
        let at = self.hardlinks.binary_search_by_key(&id.0, |(node, _)| *node).ok()?;
        Some(self.hardlinks[at].1)
    }

    /// All entries with a hardlink number: node and number, sorted by node.
    pub fn hardlinks(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        self.hardlinks.iter().map(|(node, number)| (NodeId(*node), *number))
    }

    /// Extended attributes, where recorded.
    pub fn xattrs(&self, id: NodeId) -> Option<&Arc<Xattrs>> {
        let at = self.xattrs.binary_search_by_key(&id.0, |(node, _)| *node).ok()?;
        Some(&self.xattrs[at].1)
    }

    /// All nodes, the root first, each folder before what is in it.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}
