//! What an image's files show beside their bytes. Every attribute of an image is made here, its time as well, and what
//! tells its files apart.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::inode::{ImageNo, Keyed, Node, Place, Recorded, Seen, Shown};
use super::{Numbering, Outcome, Vfs};
use crate::fork::Given;
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::store::Digest;
use crate::tree::{NodeId, PathHash, Tree};

/// Layer files are plain readable files.
pub(super) const LAYER_MODE: u16 = 0o644;

/// Where a path is meant. Files of different spaces are never one.
#[derive(Clone, Copy, Debug)]
enum Space {
    World = 1,
    Layer,
    Page,
}

impl Vfs {
    /// The time of an entry of an image's tree, in nanoseconds since 1970; nothing if none is recorded.
    #[allow(clippy::unused_self, reason = "which image it is says more than its tree")]
    fn time_of_node(&self, _image: ImageNo, tree: &Tree, node: NodeId) -> Option<i64> {
        tree.mtime_ns(node)
    }

    /// The time of a layer's file or of a page, in nanoseconds since 1970; nothing if it is not known.
    #[allow(clippy::unused_self, reason = "no layer's time is recorded")]
    fn time_of_layer(&self, _image: ImageNo, _place: Place, _digest: &Digest) -> Option<i64> {
        None
    }

    /// The time of an image's manifest, in seconds since 1970.
    #[allow(clippy::unused_self, reason = "no manifest's time is recorded")]
    pub(super) fn time_of_manifest(&self, _image: &Digest) -> i64 {
        0
    }

    /// The time of an image, of its folders and of links to it, in seconds since 1970; nothing if its marker is not there.
    pub(super) fn time_of_image(&self, image: &Digest) -> Option<i64> {
        std::fs::metadata(self.store.images().marker(image)).ok().map(|marker| marker.mtime())
    }

    /// Attributes of an entry of an image's tree. Of a file with several names they are the same for each.
    pub(super) fn recorded(&self, image: ImageNo, tree: &Tree, node: NodeId) -> Recorded {
        let owner = tree.owner(node);
        let (uid, gid) = self.owners.shown(owner.uid, owner.gid, Given::default());
        let (first, links) = tree.file(node);
        Recorded {
            mode: tree.mode(node),
            mtime_ns: self.time_of_node(image, tree, first).unwrap_or(0),
            links,
            xattrs: tree.xattrs(node).filter(|_| self.config.xattrs).cloned(),
            uid,
            gid,
        }
    }

    /// Attributes of a layer's file or of a page.
    pub(super) fn recorded_layer(&self, image: ImageNo, place: Place, digest: &Digest) -> Recorded {
        Recorded {
            mode: LAYER_MODE,
            mtime_ns: self.time_of_layer(image, place, digest).unwrap_or(0),
            links: 1,
            xattrs: None,
            uid: self.config.uid,
            gid: self.config.gid,
        }
    }

    /// What an entry of an image's tree is in the mount.
    pub(super) fn tree_node(&self, tree: &Tree, image: ImageNo, id: NodeId) -> Keyed {
        // A file with several names is one inode, which goes by the first of them.
        let first = tree.file(id).0;
        let at = self.at(image, Space::World, tree.path_hash(first));
        match (tree.kind(id), tree.blob(id), tree.target(id)) {
            (Kind::File, Some(digest), _) => Keyed::file(
                at,
                (*digest, tree.size(id)),
                self.recorded(image, tree, id),
                Shown::Raw,
                Seen { image, place: Place::World(id) },
            ),
            (Kind::Symlink, _, Some(target)) => Keyed::symlink(at, target, self.recorded(image, tree, id)),
            (Kind::Dir, ..) => self.keyed(Node::Dir { image, node: id }),
            _ => self.keyed(Node::Special { image, node: first }),
        }
    }

    /// What a layer's file or a page is in the mount.
    pub(super) fn layer_node(&self, digest: Digest, size: u64, shown: Shown, seen: Seen) -> Keyed {
        let Seen { image, place } = seen;
        let (space, path) = match place {
            Place::Layer(file) => (Space::Layer, PathHash::TOP.child(file.path().as_bytes())),
            Place::Page { ix, key } => {
                (Space::Page, PathHash::TOP.child(&ix.to_le_bytes()).child(&[key.into()]))
            }
            // Shown with its layer's attributes: not the same as the world's file.
            Place::World(node) => (Space::Layer, PathHash::TOP.child(&node.0.to_le_bytes())),
        };
        let recorded = self.recorded_layer(image, place, &digest);
        Keyed::file(self.at(image, space, path), (digest, size), recorded, shown, seen)
    }

    /// A path as it counts for what is there.
    fn at(&self, image: ImageNo, space: Space, path: PathHash) -> PathHash {
        let path = path.salted(space as u64);
        if self.config.inodes == Numbering::Distinct {
            let id = self.catalog.id(image);
            return id.as_bytes().chunks(8).fold(path, PathHash::child);
        }
        path
    }

    /// Extended attributes of what is in an image.
    pub(super) fn xattrs_of(&self, node: &Node) -> Outcome<Option<Arc<Xattrs>>> {
        Ok(match node {
            Node::File { recorded, .. } | Node::Symlink { recorded, .. } => recorded.xattrs.clone(),
            Node::Dir { image, node } | Node::Special { image, node } => {
                self.tree(*image)?.xattrs(*node).cloned()
            }
            _ => None,
        })
    }
}
