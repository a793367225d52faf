//! What an image's files show beside their bytes. Every attribute of an image is made here, its time as well, and what
//! tells its files apart.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::inode::{Fixed, ImageDir, ImageNo, Ino, Keyed, Node, Place, Recorded, Seen, Shown};
use super::{Numbering, Outcome, Patience, Vfs};
use crate::digest::Digest;
use crate::fork::Given;
use crate::images::times::page_time;
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::tree::{NodeId, PathHash, Tree};

const SECOND: i64 = 1_000_000_000;

/// Layer files are plain readable files.
pub(super) const LAYER_MODE: u16 = 0o644;

/// Where a path is meant. Files of different spaces are never one.
#[derive(Clone, Copy, Debug)]
enum Space {
    World = 1,
    Layer,
    Page,
}

/// What of an image is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Facts {
    /// Its folders and layers.
    Layers,
    /// Its pages.
    Pages,
    /// Its `world/fs`.
    World,
}

impl Vfs {
    /// Whether what an image's files show has to be read first, which an event loop does not wait for: manifests of its line, and
    /// for `world/fs` its tree and the times of what has none recorded.
    pub(super) fn has_to_read(&self, image: ImageNo, facts: Facts) -> bool {
        let (id, times) = (self.catalog.id(image), self.reader.times());
        let Some(tree) = times.tree_known(&id) else { return true };
        match facts {
            Facts::Layers => false,
            Facts::Pages => times.pages_known(&id).is_none(),
            Facts::World => {
                let tree = self.trees.peek(&tree);
                tree.is_none_or(|tree| tree.lacks_times() && times.nodes_known(&id).is_none())
            }
        }
    }

    /// Whether a look into a node of an image, or at its attributes, is left to a worker.
    pub(super) fn is_left_to_a_worker(&self, node: &Node, patience: Patience) -> bool {
        patience == Patience::Brief
            && match node {
                Node::Dir { image, .. } | Node::Special { image, .. } => {
                    self.has_to_read(*image, Facts::World)
                }
                Node::ImageDir { image, dir: ImageDir::Pages } => self.has_to_read(*image, Facts::Pages),
                Node::ImageDir { image, .. } => self.has_to_read(*image, Facts::Layers),
                _ => false,
            }
    }

    /// Whether a listing is left to a worker. Links to images come with the times of these.
    pub fn is_listed_by_a_worker(&self, ino: Ino) -> bool {
        match self.node(ino) {
            Ok(Node::Fixed(Fixed::Tags | Fixed::Agents) | Node::Agent(_) | Node::Snap { .. }) => true,
            Ok(Node::Fixed(Fixed::Forks | Fixed::Work)) => self.has_to_read_forks(),
            Ok(node) => self.is_left_to_a_worker(&node, Patience::Brief),
            Err(_) => false,
        }
    }

    /// The time of an entry of an image's tree, in nanoseconds since 1970.
    fn time_of_node(&self, image: ImageNo, tree: &Tree, node: NodeId) -> i64 {
        tree.mtime_ns(node).unwrap_or_else(|| {
            let id = self.catalog.id(image);
            self.reader.node_times(&id).map_or_else(|_| self.marker_time(&id), |times| times.at(node))
        })
    }

    /// The time of a layer's file or of a page, in nanoseconds since 1970.
    fn time_of_layer(&self, image: ImageNo, place: Place) -> i64 {
        let id = self.catalog.id(image);
        let found = match place {
            Place::Layer(file) => self.reader.times().layer(&id, file).ok(),
            Place::Page { ix, key } => {
                self.reader.page_times(&id).ok().and_then(|times| page_time(&times, ix, key))
            }
            Place::World(_) => None,
        };
        found.unwrap_or_else(|| self.time_of_image(&id))
    }

    /// The time of an image, of its manifest, its folders and links to it, in nanoseconds since 1970: when it was made. Of one whose
    /// manifest cannot be read it is the marker's time.
    pub(super) fn time_of_image(&self, image: &Digest) -> i64 {
        self.reader.times().created(image).unwrap_or_else(|_| self.marker_time(image))
    }

    /// When an image's marker was written, in nanoseconds since 1970. Without one it is the time at which the mount began.
    pub(super) fn marker_time(&self, image: &Digest) -> i64 {
        std::fs::metadata(self.store.images().marker(image)).map_or_else(
            |_| self.info.lock().started_ns(),
            |marker| marker.mtime().saturating_mul(SECOND).saturating_add(marker.mtime_nsec()),
        )
    }

    /// Attributes of an entry of an image's tree. Of a file with several names they are the same for each.
    pub(super) fn recorded(&self, image: ImageNo, tree: &Tree, node: NodeId) -> Recorded {
        let owner = tree.owner(node);
        let (uid, gid) = self.owners.shown(owner.uid, owner.gid, Given::default());
        let (first, links) = tree.file(node);
        Recorded {
            mode: tree.mode(node),
            mtime_ns: self.time_of_node(image, tree, first),
            links,
            xattrs: tree.xattrs(node).filter(|_| self.config.xattrs).cloned(),
            uid,
            gid,
        }
    }

    /// Attributes of a layer's file or of a page.
    fn recorded_layer(&self, image: ImageNo, place: Place) -> Recorded {
        Recorded {
            mode: LAYER_MODE,
            mtime_ns: self.time_of_layer(image, place),
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
        let recorded = self.recorded_layer(image, place);
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
