//! The folder of an image, which shows its layers as files.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

use super::attempt::may_wait;
use super::facts::LAYER_MODE;
use super::inode::{ImageDir, ImageNo, Keyed, MANIFEST, Node, Place, Seen, Shown, UNKNOWN_SIZE, hash_bytes};
use super::{Attempt, Attr, Entry, FOREVER, Look, Vfs};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::layers::FormatError;
use crate::layers::cache::PageManifest;
use crate::layers::world::Kind;
use crate::store::{BlobError, Image, LayerFile, MarkerError};
use crate::sync::Mutex;
use crate::tree::{NodeId, Tree};

/// Manifests kept parsed (about 2 KiB each), page manifests, redacted ledgers, known sizes (about 100 bytes each)
/// and damage that was reported.
const MANIFESTS: usize = 1024;
const PAGE_MANIFESTS: usize = 16;
const REDACTED: usize = 16;
const SIZES: usize = 65_536;
const REPORTED: usize = 4096;

/// Caches for images, each of bounded size.
pub(super) struct Images {
    manifests: Mutex<LruCache<ImageNo, Arc<Image>>>,
    pages: Mutex<LruCache<Digest, Arc<Pages>>>,
    redacted: Mutex<LruCache<Digest, Arc<[u8]>>>,
    sizes: Mutex<LruCache<Digest, u64>>,
    reported: Mutex<LruCache<(Digest, ImageNo), ()>>,
}

fn bounded<K: std::hash::Hash + Eq, V>(capacity: usize) -> Mutex<LruCache<K, V>> {
    Mutex::new(LruCache::new(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN)))
}

/// The pages of a cache layer.
pub(super) struct Pages {
    /// (index, K, V), sorted by index.
    pages: Vec<(u32, Digest, Digest)>,
    /// Bytes of each page, if the page manifest says so.
    page_bytes: Option<u64>,
}

impl Pages {
    pub(super) fn names(&self) -> Vec<String> {
        self.pages.iter().flat_map(|(ix, ..)| [format!("{ix:08}.k"), format!("{ix:08}.v")]).collect()
    }

    fn find(&self, name: &str) -> Option<(u32, bool, Digest)> {
        let (digits, suffix) = name.split_once('.')?;
        let ix: u32 = digits.parse().ok()?;
        // Each page has one name: 1.k and +0000001.k do not mean 00000001.k.
        if format!("{ix:08}") != digits {
            return None;
        }
        let at = self.pages.binary_search_by_key(&ix, |(ix, ..)| *ix).ok()?;
        match suffix {
            "k" => Some((ix, true, self.pages[at].1)),
            "v" => Some((ix, false, self.pages[at].2)),
            _ => None,
        }
    }
}

impl Images {
    pub(super) fn new() -> Self {
        Self {
            manifests: bounded(MANIFESTS),
            pages: bounded(PAGE_MANIFESTS),
            redacted: bounded(REDACTED),
            sizes: bounded(SIZES),
            reported: bounded(REPORTED),
        }
    }

    /// Whether this damage was not logged before.
    pub(super) fn first_report(&self, what: (Digest, ImageNo)) -> bool {
        self.reported.lock().put(what, ()).is_none()
    }

    pub(super) fn redacted(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        self.redacted.lock().get(digest).cloned()
    }

    pub(super) fn redact(&self, digest: &Digest, ledger: &[u8]) -> Arc<[u8]> {
        if let Some(redacted) = self.redacted(digest) {
            return redacted;
        }
        let redacted: Arc<[u8]> = crate::layers::effects::redact(ledger).into();
        self.redacted.lock().put(*digest, Arc::clone(&redacted));
        redacted
    }
}

impl Vfs {
    /// An image's manifest.
    pub(super) fn image(&self, image: ImageNo) -> Attempt<Arc<Image>> {
        if let Some(found) = self.images.manifests.lock().get(&image) {
            return Ok(Arc::clone(found));
        }
        let id = self.catalog.id(image);
        let found = self.store.at(may_wait()?).image(&id).map_err(|error| match error {
            MarkerError::Absent(_) => ErrorKind::NotFound,
            error => self.report_image(image, &id, error),
        })?;
        let found = Arc::new(found);
        self.images.manifests.lock().put(image, Arc::clone(&found));
        Ok(found)
    }

    fn report_image(&self, image: ImageNo, id: &Digest, error: MarkerError) -> ErrorKind {
        self.metrics.damaged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let error = Error::from(error);
        if self.images.first_report((*id, image)) {
            tracing::error!(image = %id, path = "manifest.json", digest = %id, "cannot be read: {error}");
        }
        error.kind()
    }

    /// Logs damage, once for each blob and image, and returns the reader's error.
    pub(super) fn report(&self, seen: Seen, error: &BlobError) -> ErrorKind {
        use std::sync::atomic::Ordering;
        if let BlobError::Missing(_) = error
            && let Err(moved) = self.catalog.home.require()
        {
            return moved.kind();
        }
        let (kind, digest, counter) = match error {
            BlobError::Missing(digest) => (ErrorKind::Missing, digest, &self.metrics.missing),
            BlobError::Mismatch { digest, .. }
            | BlobError::Undecodable { digest, .. }
            | BlobError::WrongSize { digest, .. }
            | BlobError::TooLarge { digest, .. } => (ErrorKind::Damaged, digest, &self.metrics.damaged),
            BlobError::Io { digest, .. } => (ErrorKind::Io(None), digest, &self.metrics.damaged),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let image = self.catalog.id(seen.image);
        if self.images.first_report((*digest, seen.image)) {
            let path = self.path_of(seen);
            tracing::error!(%image, path, %digest, code = error.code(), "cannot be read: {error}");
        }
        kind
    }

    /// Logs a layer whose bytes are whole but invalid. Does so once.
    fn report_format(&self, seen: Seen, digest: &Digest, error: &FormatError) -> ErrorKind {
        self.metrics.damaged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.images.first_report((*digest, seen.image)) {
            let (image, path) = (self.catalog.id(seen.image), self.path_of(seen));
            tracing::error!(%image, path, %digest, "refused: {error}");
        }
        ErrorKind::Damaged
    }

    /// An image's file tree.
    pub(super) fn tree(&self, image: ImageNo) -> Attempt<Arc<Tree>> {
        let id = self.catalog.id(image);
        if let Some(tree) = self.reader.times().tree_known(&id).and_then(|tree| self.trees.peek(&tree)) {
            return Ok(tree);
        }
        let store = self.store.at(may_wait()?);
        let digest = self.image(image)?.manifest.world.fs;
        // Reads the time now, so that the next caller need not wait for it.
        let _ = self.time_of_image(&id);
        let seen = Seen { image, place: Place::Layer(LayerFile::WorldFs) };
        let tree = self.trees.get(&digest, || {
            let bytes = store.blobs().read_metadata(&digest).map_err(|error| self.report(seen, &error))?;
            Tree::parse(&bytes).map_err(|error| self.report_format(seen, &digest, &error))
        })?;
        Ok(tree)
    }

    /// An image's cache pages.
    pub(super) fn pages(&self, image: ImageNo) -> Attempt<Arc<Pages>> {
        let digest = self.image(image)?.manifest.cache.manifest;
        if let Some(pages) = self.images.pages.lock().get(&digest) {
            return Ok(Arc::clone(pages));
        }
        let seen = Seen { image, place: Place::Layer(LayerFile::CacheManifest) };
        let blobs = self.store.at(may_wait()?).blobs();
        let bytes = blobs.read_metadata(&digest).map_err(|error| self.report(seen, &error))?;
        let manifest =
            PageManifest::parse(&bytes).map_err(|error| self.report_format(seen, &digest, &error))?;
        let page_bytes = manifest.page_bytes();
        let mut pages: Vec<_> = manifest.pages.iter().map(|page| (page.ix, page.k, page.v)).collect();
        pages.sort_unstable_by_key(|(ix, ..)| *ix);
        let pages = Arc::new(Pages { pages, page_bytes });
        self.images.pages.lock().put(digest, Arc::clone(&pages));
        Ok(pages)
    }

    pub(super) fn lookup_in_image(
        &self,
        image: ImageNo,
        dir: ImageDir,
        name: &[u8],
        look: Look,
    ) -> Attempt<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let folder = |dir| self.entry(Node::ImageDir { image, dir });
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
                let node = Node::Dir { image, node: NodeId::ROOT };
                if look == Look::Listing {
                    return self.entry_to_be_asked(self.keyed(node), Kind::Dir, FOREVER);
                }
                self.entry(node)
            }
            (ImageDir::World, "env.json") => layer(LayerFile::WorldEnv),
            (ImageDir::World, "procs.json") => layer(LayerFile::WorldProcs),
            (ImageDir::Effects, "ledger.jsonl") => layer(LayerFile::EffectsLedger),
            (ImageDir::Trace, "messages.jsonl") => layer(LayerFile::TraceMessages),
            (ImageDir::Pages, name) => {
                let pages = self.pages(image)?;
                let (ix, key, digest) = pages.find(name).ok_or(ErrorKind::NotFound)?;
                let seen = Seen { image, place: Place::Page { ix, key } };
                self.blob_entry(digest, pages.page_bytes, Shown::Raw, seen, look)
            }
            (ImageDir::Parents, name) => {
                let parents = &self.image(image)?.manifest.parents;
                let parent = parents.iter().find(|id| id.hex() == name).ok_or(ErrorKind::NotFound)?;
                let target = format!("../../{}", parent.hex()).into();
                // The link exists even if the store lacks the parent, so it shows the time of the image that it is in.
                let mtime_ns = self.time_of_image(&self.catalog.id(image))?;
                let place = [b"parents", &self.catalog.id(image).as_bytes()[..]].concat();
                self.entry_with(Node::link(&place, target, mtime_ns), Duration::ZERO)
            }
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn manifest_entry(&self, image: ImageNo) -> Attempt<Entry> {
        // Shown even if it is of a newer schema: the bytes are whole.
        let id = self.catalog.id(image);
        let store = self.store.at(may_wait()?);
        let (bytes, _) = store.images().bytes(store.blobs(), &id).map_err(|error| match error {
            MarkerError::Absent(_) => ErrorKind::NotFound,
            error => self.report_image(image, &id, error),
        })?;
        let key = hash_bytes(id.as_bytes()) | MANIFEST;
        self.entry(Node::Doc { bytes: bytes.into(), mtime_ns: self.time_of_image(&id)?, key })
    }

    fn layer_entry(&self, image: ImageNo, file: LayerFile, look: Look) -> Attempt<Entry> {
        let manifest = &self.image(image)?.manifest;
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
        let shown = if file == LayerFile::EffectsLedger && !self.config.reveal_secrets {
            Shown::Redacted
        } else {
            Shown::Raw
        };
        self.blob_entry(digest, None, shown, Seen { image, place: Place::Layer(file) }, look)
    }

    /// Looks up the file that shows a blob. Its size is declared, known from before, or found by decompressing the blob.
    fn blob_entry(
        &self,
        digest: Digest,
        declared: Option<u64>,
        shown: Shown,
        seen: Seen,
        look: Look,
    ) -> Attempt<Entry> {
        let file = |size| self.layer_node(digest, size, shown, seen);
        let known = match shown {
            Shown::Raw => declared.or_else(|| self.images.sizes.lock().get(&digest).copied()),
            Shown::Redacted => self.images.redacted(&digest).map(|bytes| bytes.len() as u64),
        };
        let size = match known {
            Some(size) => size,
            None if look == Look::Listing => {
                return self.entry_to_be_asked(file(UNKNOWN_SIZE)?, Kind::File, FOREVER);
            }
            None => self.find_size(&digest, shown, seen)?,
        };
        self.entry_of(file(size)?, FOREVER)
    }

    /// Finds the size of a blob that no layer declares, by decompressing it.
    pub(super) fn find_size(&self, digest: &Digest, shown: Shown, seen: Seen) -> Attempt<u64> {
        may_wait()?;
        let failed = |error: Arc<BlobError>| self.report(seen, &error);
        Ok(match shown {
            Shown::Raw => {
                let length = self.cache.length(digest).map_err(failed)?;
                self.images.sizes.lock().put(*digest, length);
                length
            }
            Shown::Redacted => {
                let payload = self.cache.get(digest, None).map_err(failed)?;
                self.images.redact(digest, &payload).len() as u64
            }
        })
    }

    /// Returns an entry with placeholder attributes of lifetime zero, so that the kernel asks for them when needed.
    pub(super) fn entry_to_be_asked(&self, keyed: Keyed, kind: Kind, entry_ttl: Duration) -> Attempt<Entry> {
        let mode = if kind == Kind::Dir { 0o755 } else { LAYER_MODE };
        let (uid, gid) = (self.config.uid, self.config.gid);
        let (ino, _) = self.inodes.intern(keyed)?;
        let attr = Attr { ino, kind, mode, nlink: 1, uid, gid, ..Attr::default() };
        Ok(Entry { attr, entry_ttl, attr_ttl: Duration::ZERO })
    }

    /// The path of a file from the image's folder on, as bytes.
    pub(super) fn path_of_bytes(&self, seen: Seen) -> Vec<u8> {
        match seen.place {
            Place::Layer(file) => file.path().into(),
            Place::Page { ix, key } => format!("cache/pages/{ix:08}.{}", if key { 'k' } else { 'v' }).into(),
            Place::World(node) => {
                let path = self.tree(seen.image).map(|tree| tree.path(node)).unwrap_or_default();
                [b"world/fs/", &path[..]].concat()
            }
        }
    }

    /// The path of a file from the image's folder on, for messages.
    pub(super) fn path_of(&self, seen: Seen) -> String {
        String::from_utf8_lossy(&self.path_of_bytes(seen)).escape_debug().to_string()
    }
}
