//! Attributes, times and identities of an image's files.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::attempt::may_wait;
use super::inode::{ImageNo, Keyed, Node, Place, Recorded, Seen, Shown};
use super::{Attempt, Numbering, Vfs};
use crate::digest::Digest;
use crate::fork::Given;
use crate::images::times::page_time;
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::tree::{NodeId, PathHash, Tree};

const SECOND: i64 = 1_000_000_000;

/// The mode of layer files: every user can read them.
pub(super) const LAYER_MODE: u16 = 0o644;

/// The space of a path. Files of different spaces never share an inode.
#[derive(Clone, Copy, Debug)]
enum Space {
    World = 1,
    Layer,
    Page,
}

impl Vfs {
    /// Whether a listing usually has to wait for the disk. A link to an image shows the image's time.
    pub(super) fn is_listed_on_disk(node: &Node, plus: bool) -> bool {
        match node {
            Node::Fixed(_) | Node::Agent(_) | Node::Snap { .. } | Node::ImageDir { .. } => true,
            // Finding the lengths of layers may take decompressing them.
            Node::Forked { ino, .. } => plus && ino.is_frame(),
            _ => false,
        }
    }

    /// The time of an entry of an image's tree, in nanoseconds since 1970.
    fn time_of_node(&self, image: ImageNo, tree: &Tree, node: NodeId) -> Attempt<i64> {
        if let Some(time) = tree.mtime_ns(node) {
            return Ok(time);
        }
        let id = self.catalog.id(image);
        if let Some(times) = self.reader.times().nodes_known(&id) {
            return Ok(times.at(node));
        }
        may_wait()?;
        match self.reader.node_times(&id) {
            Ok(times) => Ok(times.at(node)),
            Err(_) => self.marker_time(&id),
        }
    }

    /// The time of a layer's file or of a page, in nanoseconds since 1970.
    fn time_of_layer(&self, image: ImageNo, place: Place) -> Attempt<i64> {
        let (id, times) = (self.catalog.id(image), self.reader.times());
        let found = match place {
            Place::Layer(file) => {
                if times.created_known(&id).is_none() {
                    may_wait()?;
                }
                times.layer(&id, file).ok()
            }
            Place::Page { ix, key } => {
                if times.pages_known(&id).is_none() {
                    may_wait()?;
                }
                self.reader.page_times(&id).ok().and_then(|times| page_time(&times, ix, key))
            }
            Place::World(_) => None,
        };
        found.map_or_else(|| self.time_of_image(&id), Ok)
    }

    /// The time when an image was made, in nanoseconds since 1970. Its manifest, its folders and links to it show it. If the
    /// manifest cannot be read, it is the marker's time.
    pub(super) fn time_of_image(&self, image: &Digest) -> Attempt<i64> {
        if let Some(made) = self.reader.times().created_known(image) {
            return Ok(made);
        }
        may_wait()?;
        self.reader.times().created(image).or_else(|_| self.marker_time(image))
    }

    /// When an image's marker was written, in nanoseconds since 1970. Without one it is the time at which the mount began.
    pub(super) fn marker_time(&self, image: &Digest) -> Attempt<i64> {
        let marker = self.store.at(may_wait()?).images().marker(image);
        Ok(std::fs::metadata(marker).map_or_else(
            |_| self.info.lock().started_ns(),
            |marker| marker.mtime().saturating_mul(SECOND).saturating_add(marker.mtime_nsec()),
        ))
    }

    /// Attributes of an entry of an image's tree. All names of a file have the same.
    pub(super) fn recorded(&self, image: ImageNo, tree: &Tree, node: NodeId) -> Attempt<Recorded> {
        let owner = tree.owner(node);
        let (uid, gid) = self.owners.shown(owner.uid, owner.gid, Given::default());
        let (first, links) = tree.file(node);
        Ok(Recorded {
            mode: tree.mode(node),
            mtime_ns: self.time_of_node(image, tree, first)?,
            links,
            xattrs: tree.xattrs(node).filter(|_| self.config.xattrs).cloned(),
            uid,
            gid,
        })
    }

    /// Attributes of a layer's file or of a page.
    fn recorded_layer(&self, image: ImageNo, place: Place) -> Attempt<Recorded> {
        Ok(Recorded {
            mode: LAYER_MODE,
            mtime_ns: self.time_of_layer(image, place)?,
            links: 1,
            xattrs: None,
            uid: self.config.uid,
            gid: self.config.gid,
        })
    }

    /// The node of an entry of an image's tree.
    pub(super) fn tree_node(&self, tree: &Tree, image: ImageNo, id: NodeId) -> Attempt<Keyed> {
        // A file with several names is one inode, identified by the first of them.
        let first = tree.file(id).0;
        let at = self.at(image, Space::World, tree.path_hash(first));
        Ok(match (tree.kind(id), tree.blob(id), tree.target(id)) {
            (Kind::File, Some(digest), _) => Keyed::file(
                at,
                (*digest, tree.size(id)),
                self.recorded(image, tree, id)?,
                Shown::Raw,
                Seen { image, place: Place::World(id) },
            ),
            (Kind::Symlink, _, Some(target)) => Keyed::symlink(at, target, self.recorded(image, tree, id)?),
            (Kind::Dir, ..) => self.keyed(Node::Dir { image, node: id }),
            _ => self.keyed(Node::Special { image, node: first }),
        })
    }

    /// The node of a layer's file or of a page.
    pub(super) fn layer_node(&self, digest: Digest, size: u64, shown: Shown, seen: Seen) -> Attempt<Keyed> {
        let Seen { image, place } = seen;
        let (space, path) = match place {
            Place::Layer(file) => (Space::Layer, PathHash::TOP.child(file.path().as_bytes())),
            Place::Page { ix, key } => {
                (Space::Page, PathHash::TOP.child(&ix.to_le_bytes()).child(&[key.into()]))
            }
            // Shown with its layer's attributes: not the same as the world's file.
            Place::World(node) => (Space::Layer, PathHash::TOP.child(&node.0.to_le_bytes())),
        };
        let recorded = self.recorded_layer(image, place)?;
        Ok(Keyed::file(self.at(image, space, path), (digest, size), recorded, shown, seen))
    }

    /// The hash of a path that identifies a file.
    fn at(&self, image: ImageNo, space: Space, path: PathHash) -> PathHash {
        let path = path.salted(space as u64);
        if self.config.inodes == Numbering::Distinct {
            let id = self.catalog.id(image);
            return id.as_bytes().chunks(8).fold(path, PathHash::child);
        }
        path
    }

    /// Extended attributes of a file of an image.
    pub(super) fn xattrs_of(&self, node: &Node) -> Attempt<Option<Arc<Xattrs>>> {
        Ok(match node {
            Node::File { recorded, .. } | Node::Symlink { recorded, .. } => recorded.xattrs.clone(),
            Node::Dir { image, node } | Node::Special { image, node } => {
                self.tree(*image)?.xattrs(*node).cloned()
            }
            _ => None,
        })
    }
}
