//! The folders of images, which show layers as files and the world as a tree.

use std::sync::Arc;
use std::time::Duration;

use super::answer::{Entry, FOREVER, Look};
use super::attempt::{Attempt, OnDisk, may_wait};
use super::damage::Damage;
use super::image_links::ImageLinks;
use super::key::{Ino, hash_bytes};
use super::node::{ImageDir, ImageNo, Keyed, MANIFEST, Node, Origin, Place, Redaction, UNKNOWN_SIZE};
use super::nodes::Nodes;
use super::readahead::Readahead;
use super::readdir::{DirEntry, Emit, FIRST_COOKIE, list_fixed_order};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::fork;
use crate::images::{ImageReader, Pages};
use crate::layers::world::Kind;
use crate::store::{Image, LayerFile};
use crate::tree::{NodeId, Tree};

/// The mode of layer files: every user can read them.
pub(super) const LAYER_MODE: u16 = 0o644;

/// The folders of images.
pub(super) struct ImageDirs {
    pub(super) nodes: Arc<Nodes>,
    pub(super) images: Arc<ImageReader>,
    pub(super) links: Arc<ImageLinks>,
    pub(super) cache: Arc<Cache>,
    pub(super) readahead: Arc<Readahead>,
    pub(super) damage: Arc<Damage>,
    pub(super) store: OnDisk,
    pub(super) owners: fork::Owners,
    /// Whether extended attributes are shown.
    pub(super) xattrs: bool,
}

impl ImageDirs {
    /// An image's manifest.
    fn manifest(&self, image: ImageNo) -> Attempt<Arc<Image>> {
        let id = self.nodes.image_id(image);
        self.images.manifest(&id).map_err(|error| self.damage.image((image, &id), error))
    }

    /// An image's file tree.
    pub(super) fn tree(&self, image: ImageNo) -> Attempt<Arc<Tree>> {
        let id = self.nodes.image_id(image);
        self.images.tree(&id).map_err(|error| self.damage.image((image, &id), error))
    }

    /// An image's cache pages.
    fn pages(&self, image: ImageNo) -> Attempt<Arc<Pages>> {
        let id = self.nodes.image_id(image);
        self.images.pages(&id).map_err(|error| self.damage.image((image, &id), error))
    }

    /// Finds a name in a folder of `world/fs`.
    pub(super) fn lookup_in_tree(&self, image: ImageNo, dir: NodeId, name: &[u8]) -> Attempt<Entry> {
        let tree = self.tree(image)?;
        // A tree never changes, so the kernel may also remember that a name is not in it.
        let Some(child) = tree.lookup(dir, name) else { return Ok(Entry::ABSENT) };
        self.entry(self.tree_node(&tree, image, child)?)
    }

    /// Counts a lookup of a node whose name and attributes never change.
    fn entry(&self, keyed: Keyed) -> Attempt<Entry> {
        // Attributes first: after interning no step may fail, or the lookup would never be taken back.
        let attr = self.attr(&keyed.node)?;
        self.nodes.entry(keyed, attr, FOREVER)
    }

    /// Finds a name in another folder of an image.
    pub(super) fn lookup(&self, image: ImageNo, dir: ImageDir, name: &[u8], look: Look) -> Attempt<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let folder = |dir| self.entry(self.nodes.keyed(Node::ImageDir { image, dir }));
        let layer = |file| self.layer_entry(image, file, look);
        match (dir, name) {
            (ImageDir::Top, "manifest.json") => self.manifest_entry(image),
            (ImageDir::Top, "model") => folder(ImageDir::Model),
            (ImageDir::Top, "cache") => folder(ImageDir::Cache),
            (ImageDir::Top, "world") => folder(ImageDir::World),
            (ImageDir::Top, "effects") => folder(ImageDir::Effects),
            (ImageDir::Top, "trace") => folder(ImageDir::Trace),
            (ImageDir::Top, "parents") => folder(ImageDir::Parents),
            (ImageDir::Model, "base") => layer(LayerFile::ModelBase),
            (ImageDir::Model, "diff.json") => layer(LayerFile::ModelDiff),
            (ImageDir::Cache, "manifest.json") => layer(LayerFile::CacheManifest),
            (ImageDir::Cache, "pages") => folder(ImageDir::Pages),
            (ImageDir::World, "fs") => {
                let keyed = self.nodes.keyed(Node::Dir { image, node: NodeId::ROOT });
                if look == Look::Listing {
                    return self.nodes.entry_to_be_asked(keyed, Kind::Dir, 0o755, FOREVER);
                }
                self.entry(keyed)
            }
            (ImageDir::World, "env.json") => layer(LayerFile::WorldEnv),
            (ImageDir::World, "procs.json") => layer(LayerFile::WorldProcs),
            (ImageDir::Effects, "ledger.jsonl") => layer(LayerFile::EffectsLedger),
            (ImageDir::Trace, "messages.jsonl") => layer(LayerFile::TraceMessages),
            (ImageDir::Pages, name) => {
                let pages = self.pages(image)?;
                let (ix, key, digest) = pages.find(name).ok_or(ErrorKind::NotFound)?;
                let origin = Origin { image, place: Place::Page { ix, key } };
                self.blob_entry(digest, pages.page_bytes(), Redaction::Raw, origin, look)
            }
            (ImageDir::Parents, name) => {
                let parents = &self.manifest(image)?.manifest.parents;
                let parent = parents.iter().find(|id| id.hex() == name).ok_or(ErrorKind::NotFound)?;
                let id = self.nodes.image_id(image);
                let place = [b"parents", &id.as_bytes()[..]].concat();
                // The link exists even if the store lacks the parent, so it shows the time of the image that it is in.
                self.links.entry(&place, format!("../../{}", parent.hex()), &id, Duration::ZERO)
            }
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn manifest_entry(&self, image: ImageNo) -> Attempt<Entry> {
        // Shown even if it is of a newer schema: the bytes are whole.
        let id = self.nodes.image_id(image);
        let store = self.store.at(may_wait()?);
        let found = store.images().bytes(store.blobs(), &id);
        let (bytes, _) = found.map_err(|error| self.damage.marker((image, &id), error))?;
        let key = hash_bytes(id.as_bytes()) | MANIFEST;
        let mtime_ns = self.links.time_of_image(&id)?;
        self.nodes.own_entry(self.nodes.keyed(Node::Doc { bytes: bytes.into(), mtime_ns, key }), FOREVER)
    }

    fn layer_entry(&self, image: ImageNo, file: LayerFile, look: Look) -> Attempt<Entry> {
        let manifest = &self.manifest(image)?.manifest;
        let digest = match file {
            LayerFile::ModelBase => manifest.model.base,
            LayerFile::ModelDiff => manifest.model.diff,
            LayerFile::CacheManifest => manifest.cache.manifest,
            LayerFile::WorldFs => manifest.world.fs,
            LayerFile::WorldEnv => manifest.world.env,
            LayerFile::WorldProcs => manifest.world.procs,
            LayerFile::EffectsLedger => manifest.effects.ledger,
            LayerFile::TraceMessages => manifest.trace.messages,
        };
        let redacted = file == LayerFile::EffectsLedger && !self.images.reveals_secrets();
        let redaction = if redacted { Redaction::Redacted } else { Redaction::Raw };
        self.blob_entry(digest, None, redaction, Origin { image, place: Place::Layer(file) }, look)
    }

    /// Looks up the file that shows a blob. Its size is declared, known from before, or found by decompressing the blob.
    fn blob_entry(
        &self,
        digest: Digest,
        declared: Option<u64>,
        redaction: Redaction,
        origin: Origin,
        look: Look,
    ) -> Attempt<Entry> {
        let file = |size| self.layer_node(digest, size, redaction, origin);
        let known = match redaction {
            Redaction::Raw => declared.or_else(|| self.images.length_known(&digest)),
            Redaction::Redacted => self.images.ledger_length_known(&digest),
        };
        let size = match known {
            Some(size) => size,
            None if look == Look::Listing => {
                let keyed = file(UNKNOWN_SIZE)?;
                return self.nodes.entry_to_be_asked(keyed, Kind::File, LAYER_MODE, FOREVER);
            }
            None => self.find_size(&digest, redaction, origin)?,
        };
        self.nodes.own_entry(file(size)?, FOREVER)
    }

    /// Lists a folder of `world/fs`.
    pub(super) fn list_tree(
        &self,
        image: ImageNo,
        dir: NodeId,
        cookie: u64,
        plus: bool,
        emit: Emit<'_>,
    ) -> Attempt<()> {
        let tree = &*self.tree(image)?;
        let children = tree.children(dir);
        let skip = u32::try_from(cookie.saturating_sub(FIRST_COOKIE - 1)).unwrap_or(u32::MAX);
        for child in children.start.saturating_add(skip)..children.end {
            let id = NodeId(child);
            let node = self.tree_node(tree, image, id)?;
            let cookie = u64::from(child - children.start) + FIRST_COOKIE;
            let (ino, entry): (Ino, _) = if plus {
                let entry = self.entry(node)?;
                (entry.attr.ino, Some(entry))
            } else {
                (self.nodes.number(&node)?, None)
            };
            if !emit(DirEntry { ino, cookie, kind: tree.kind(id), name: tree.name(id), entry }) {
                if entry.is_some() {
                    self.nodes.take_back(ino);
                }
                break;
            }
        }
        Ok(())
    }

    /// Lists another folder of an image.
    pub(super) fn list(&self, image: ImageNo, dir: ImageDir, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let fixed: &[(&str, Kind)] = match dir {
            ImageDir::Top => &[
                ("cache", Kind::Dir),
                ("effects", Kind::Dir),
                ("manifest.json", Kind::File),
                ("model", Kind::Dir),
                ("parents", Kind::Dir),
                ("trace", Kind::Dir),
                ("world", Kind::Dir),
            ],
            ImageDir::Model => &[("base", Kind::File), ("diff.json", Kind::File)],
            ImageDir::Cache => &[("manifest.json", Kind::File), ("pages", Kind::Dir)],
            ImageDir::World => &[("env.json", Kind::File), ("fs", Kind::Dir), ("procs.json", Kind::File)],
            ImageDir::Effects => &[("ledger.jsonl", Kind::File)],
            ImageDir::Trace => &[("messages.jsonl", Kind::File)],
            ImageDir::Pages => {
                let names = self.pages(image)?.names();
                list_fixed_order(names.iter().map(|name| (name.as_str(), Kind::File)), cookie, emit);
                return Ok(());
            }
            ImageDir::Parents => {
                let names: Vec<_> = self.manifest(image)?.manifest.parents.iter().map(Digest::hex).collect();
                list_fixed_order(names.iter().map(|name| (name.as_str(), Kind::Symlink)), cookie, emit);
                return Ok(());
            }
        };
        list_fixed_order(fixed.iter().copied(), cookie, emit);
        Ok(())
    }

    /// The folder that holds a folder of `world/fs`.
    pub(super) fn parent_in_tree(&self, image: ImageNo, dir: NodeId) -> Attempt<Node> {
        Ok(match dir {
            NodeId::ROOT => Node::ImageDir { image, dir: ImageDir::World },
            dir => Node::Dir { image, node: self.tree(image)?.parent(dir) },
        })
    }
}
