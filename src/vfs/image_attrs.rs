//! Attributes, times and identities of an image's files.

use std::sync::Arc;

use super::answer::{Attr, FOLDER_SIZE};
use super::attempt::{Attempt, may_wait};
use super::image_dirs::{ImageDirs, LAYER_MODE};
use super::node::{ImageNo, Keyed, Node, Origin, Place, Recorded, Redaction};
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::fork::Given;
use crate::images::times::page_time;
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::tree::{NodeId, PathHash, Tree};

/// The space of a path. Files of different spaces never share an inode.
#[derive(Clone, Copy, Debug)]
enum Space {
    World = 1,
    Layer,
    Page,
}

impl ImageDirs {
    /// Attributes of a node of an image, except its number.
    pub(super) fn attr(&self, node: &Node) -> Attempt<Attr> {
        match node {
            Node::ImageDir { image, dir } => {
                let mtime_ns = self.links.time_of_image(&self.nodes.image_id(*image))?;
                Ok(self.nodes.folder(dir.links(), mtime_ns))
            }
            Node::Dir { image, node } | Node::Special { image, node } => {
                let tree = self.tree(*image)?;
                let recorded = self.recorded(*image, &tree, *node)?;
                let mut attr = self.nodes.recorded(tree.kind(*node), &recorded, 0);
                if attr.kind == Kind::Dir {
                    attr.size = FOLDER_SIZE;
                    attr.nlink = tree.subdirs(*node).saturating_add(2);
                }
                attr.rdev = tree.rdev(*node) as u32;
                Ok(attr)
            }
            node => Ok(self.nodes.own_attr(node).ok_or(ErrorKind::InvalidInput)?),
        }
    }

    /// The time of an entry of an image's tree, in nanoseconds since 1970.
    fn time_of_node(&self, image: ImageNo, tree: &Tree, node: NodeId) -> Attempt<i64> {
        if let Some(time) = tree.mtime_ns(node) {
            return Ok(time);
        }
        let id = self.nodes.image_id(image);
        if let Some(times) = self.images.times().nodes_known(&id) {
            return Ok(times.at(node));
        }
        may_wait()?;
        match self.images.node_times(&id) {
            Ok(times) => Ok(times.at(node)),
            Err(_) => self.links.marker_time(&id),
        }
    }

    /// The time of a layer's file or of a page, in nanoseconds since 1970.
    fn time_of_layer(&self, image: ImageNo, place: Place) -> Attempt<i64> {
        let (id, times) = (self.nodes.image_id(image), self.images.times());
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
                self.images.page_times(&id).ok().and_then(|times| page_time(&times, ix, key))
            }
            Place::World(_) => None,
        };
        found.map_or_else(|| self.links.time_of_image(&id), Ok)
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
            xattrs: tree.xattrs(node).filter(|_| self.xattrs).cloned(),
            uid,
            gid,
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
                Redaction::Raw,
                Origin { image, place: Place::World(id) },
            ),
            (Kind::Symlink, _, Some(target)) => Keyed::symlink(at, target, self.recorded(image, tree, id)?),
            (Kind::Dir, ..) => self.nodes.keyed(Node::Dir { image, node: id }),
            _ => self.nodes.keyed(Node::Special { image, node: first }),
        })
    }

    /// The node of a layer's file or of a page.
    pub(super) fn layer_node(
        &self,
        digest: Digest,
        size: u64,
        redaction: Redaction,
        origin: Origin,
    ) -> Attempt<Keyed> {
        let Origin { image, place } = origin;
        let (space, path) = match place {
            Place::Layer(file) => (Space::Layer, PathHash::TOP.child(file.path().as_bytes())),
            Place::Page { ix, key } => {
                (Space::Page, PathHash::TOP.child(&ix.to_le_bytes()).child(&[key.into()]))
            }
            // Shown with its layer's attributes: not the same as the world's file.
            Place::World(node) => (Space::Layer, PathHash::TOP.child(&node.0.to_le_bytes())),
        };
        let recorded = self.nodes.recorded_layer(LAYER_MODE, self.time_of_layer(image, place)?);
        Ok(Keyed::file(self.at(image, space, path), (digest, size), recorded, redaction, origin))
    }

    /// The hash of a path that identifies a file.
    fn at(&self, image: ImageNo, space: Space, path: PathHash) -> PathHash {
        let path = path.salted(space as u64);
        if self.nodes.are_distinct() {
            let id = self.nodes.image_id(image);
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
