//! Reads images, and keeps recently used data of them in memory.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;

use super::ledgers::{BaseLedger, Ledgers, Shown};
use super::pages::Pages;
use super::times::{PageList, PageTimes, Times};
use super::trees::Trees;
use crate::cache::{Cache, Payload};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::layers::FormatError;
use crate::store::{BlobError, Image, LayerFile, MarkerError, Store};
use crate::sync::Mutex;
use crate::sync::wait::MayWait;
use crate::tree::{NodeTimes, Tree};

/// Manifests (about 2 KiB each), page manifests and sizes of blobs (about 100 bytes each) that are kept.
const MANIFESTS: usize = 1024;
const PAGE_MANIFESTS: usize = 16;
const SIZES: usize = 65_536;

/// Why data of an image cannot be had.
#[derive(Debug)]
pub enum ImageError {
    /// It is not in memory, and the calling thread never waits for the disk.
    Waits,
    /// The manifest cannot be read.
    Marker(MarkerError),
    /// The blob of a layer cannot be read.
    Blob(LayerFile, BlobError),
    /// The bytes of a layer are whole, but invalid.
    Format(LayerFile, Digest, FormatError),
}

impl From<MarkerError> for ImageError {
    fn from(error: MarkerError) -> Self {
        Self::Marker(error)
    }
}

impl ImageError {
    /// The error for a caller that named `image`.
    pub(super) fn of(self, image: &Digest) -> Error {
        match self {
            Self::Waits => Error::new(ErrorKind::Waits, "this takes waiting for the disk"),
            Self::Marker(error) => error.into(),
            Self::Blob(_, error) => error.into(),
            Self::Format(_, _, error) => Error::new(ErrorKind::Damaged, format!("image {image}: {error}")),
        }
    }
}

/// The reader of a store's images. Data that is in memory is returned without waiting for the disk.
pub struct ImageReader {
    pub(super) store: Arc<Store>,
    pub(super) cache: Arc<Cache>,
    trees: Trees,
    times: Times,
    manifests: Mutex<LruCache<Digest, Arc<Image>>>,
    pages: Mutex<LruCache<Digest, Arc<Pages>>>,
    sizes: Mutex<LruCache<Digest, u64>>,
    pub(super) ledgers: Ledgers,
    reveal_secrets: bool,
}

impl std::fmt::Debug for ImageReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageReader").field("store", &self.store.root()).finish_non_exhaustive()
    }
}

fn bounded<V>(capacity: usize) -> Mutex<LruCache<Digest, V>> {
    Mutex::new(LruCache::new(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN)))
}

/// Fails on an event loop.
fn may_wait() -> Result<MayWait, ImageError> {
    MayWait::here().ok_or(ImageError::Waits)
}

/// The range of a read in bytes of a length.
fn range(len: usize, offset: u64, length: usize) -> Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    start..start.saturating_add(length).min(len)
}

impl ImageReader {
    /// Makes a reader that keeps `tree_bytes` bytes of parsed trees. With `reveal_secrets` it shows ledgers with
    /// the session secret that some of them hold.
    pub fn new(store: Arc<Store>, cache: Arc<Cache>, tree_bytes: u64, reveal_secrets: bool) -> Self {
        let times = Times::new(Arc::clone(&store), Some(cache.dir().to_owned()));
        Self {
            store,
            cache,
            trees: Trees::new(tree_bytes),
            times,
            manifests: bounded(MANIFESTS),
            pages: bounded(PAGE_MANIFESTS),
            sizes: bounded(SIZES),
            ledgers: Ledgers::new(),
            reveal_secrets,
        }
    }

    /// Whether ledgers are shown with the session secret that some of them hold.
    pub fn reveals_secrets(&self) -> bool {
        self.reveal_secrets
    }

    /// Derived times of images.
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Bytes of the parsed trees in memory.
    pub fn tree_bytes(&self) -> u64 {
        self.trees.bytes()
    }

    /// An image's manifest.
    pub fn manifest(&self, image: &Digest) -> Result<Arc<Image>, ImageError> {
        if let Some(found) = self.manifests.lock().get(image) {
            return Ok(Arc::clone(found));
        }
        may_wait()?;
        Ok(self.read_manifest(image)?)
    }

    /// Reads an image's manifest from the disk.
    pub(super) fn read_manifest(&self, image: &Digest) -> Result<Arc<Image>, MarkerError> {
        let found = Arc::new(self.store.image(image)?);
        self.manifests.lock().put(*image, Arc::clone(&found));
        Ok(found)
    }

    /// An image's file tree, if it is in memory.
    pub fn tree_known(&self, image: &Digest) -> Option<Arc<Tree>> {
        self.times.tree_known(image).and_then(|tree| self.trees.peek(&tree))
    }

    /// An image's file tree.
    pub fn tree(&self, image: &Digest) -> Result<Arc<Tree>, ImageError> {
        if let Some(tree) = self.tree_known(image) {
            return Ok(tree);
        }
        may_wait()?;
        let digest = self.manifest(image)?.manifest.world.fs;
        // Reads the time now, so that the next caller need not wait for it.
        let _ = self.times.created(image);
        self.trees.get(&digest, || self.read_tree(&digest))
    }

    fn read_tree(&self, digest: &Digest) -> Result<Tree, ImageError> {
        const FILE: LayerFile = LayerFile::WorldFs;
        let bytes =
            self.store.blobs().read_metadata(digest).map_err(|error| ImageError::Blob(FILE, error))?;
        Tree::parse(&bytes).map_err(|error| ImageError::Format(FILE, *digest, error))
    }

    /// The derived times of an image's nodes. May read the trees of its line.
    pub fn node_times(&self, image: &Digest) -> Result<Arc<NodeTimes>, ImageError> {
        if let Some(known) = self.times.nodes_known(image) {
            return Ok(known);
        }
        may_wait()?;
        let tree = self.tree(image)?;
        // Trees of the line are not kept, so that they do not displace trees that programs look at.
        let read =
            |digest: &Digest| self.trees.peek(digest).or_else(|| self.read_tree(digest).ok().map(Arc::new));
        Ok(self.times.nodes(image, &tree, &read)?)
    }

    /// An image's cache pages.
    pub fn pages(&self, image: &Digest) -> Result<Arc<Pages>, ImageError> {
        let manifest = self.manifest(image)?;
        self.pages_of(&manifest)
    }

    /// The cache pages of an image with this manifest.
    pub(super) fn pages_of(&self, image: &Image) -> Result<Arc<Pages>, ImageError> {
        let digest = image.manifest.cache.manifest;
        if let Some(pages) = self.pages.lock().get(&digest) {
            return Ok(Arc::clone(pages));
        }
        may_wait()?;
        let pages = Arc::new(self.read_pages(&digest)?);
        self.pages.lock().put(digest, Arc::clone(&pages));
        Ok(pages)
    }

    fn read_pages(&self, digest: &Digest) -> Result<Pages, ImageError> {
        const FILE: LayerFile = LayerFile::CacheManifest;
        let bytes =
            self.store.blobs().read_metadata(digest).map_err(|error| ImageError::Blob(FILE, error))?;
        Pages::parse(&bytes).map_err(|error| ImageError::Format(FILE, *digest, error))
    }

    /// The times of an image's pages. May read the page manifests of its line.
    pub fn page_times(&self, image: &Digest) -> Result<Arc<PageTimes>, ImageError> {
        // Page manifests of the line are not kept either.
        let read = |digest: &Digest| -> Option<PageList> {
            if let Some(known) = self.pages.lock().peek(digest) {
                return Some(known.list().clone());
            }
            self.read_pages(digest).ok().map(|pages| pages.list().clone())
        };
        Ok(self.times.pages(image, &read)?)
    }

    /// The length of a blob that no layer declares, if it is known.
    pub fn length_known(&self, digest: &Digest) -> Option<u64> {
        self.sizes.lock().get(digest).copied()
    }

    /// The length of a blob that no layer declares. May decompress it.
    pub fn length(&self, digest: &Digest) -> Result<u64, Arc<BlobError>> {
        let length = self.cache.length(digest)?;
        self.sizes.lock().put(*digest, length);
        Ok(length)
    }

    /// The length of a ledger as files show it, if it is known.
    pub fn ledger_length_known(&self, digest: &Digest) -> Option<u64> {
        self.ledgers.known(digest).map(|shown| shown.length)
    }

    /// The bytes of a ledger as files show it, if they are in memory.
    pub fn ledger_known(&self, digest: &Digest) -> Option<Payload> {
        match self.ledgers.known(digest)?.redacted {
            Some(bytes) => Some(Payload::Heap(bytes)),
            None => self.cache.peek(digest),
        }
    }

    /// The bytes of a ledger as files show it: without its secret.
    pub fn ledger(&self, digest: &Digest) -> Result<Payload, Arc<BlobError>> {
        match self.redact(digest)?.redacted {
            Some(bytes) => Ok(Payload::Heap(bytes)),
            None => self.cache.get(digest, None),
        }
    }

    pub(super) fn redact(&self, digest: &Digest) -> Result<Shown, Arc<BlobError>> {
        self.ledgers.redact(digest, || self.cache.get(digest, None))
    }

    /// Reads a part of a payload of `size` bytes. Returns bytes that contain it, and its range in them. A ledger's
    /// secret is not shown in forks either.
    pub fn part(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<(Payload, Range<usize>), Arc<BlobError>> {
        if let Some(BaseLedger::Redacted(shown)) = self.ledgers.of_base(digest)
            && shown == size
            && let Some(redacted) = self.redact(digest)?.redacted
        {
            let part = range(redacted.len(), offset, length);
            return Ok((Payload::Heap(redacted), part));
        }
        self.cache.range(digest, size, offset, length)
    }

    /// Like [`ImageReader::part`], if the payload is in memory.
    pub fn part_known(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Option<(Payload, Range<usize>)> {
        let payload = match self.ledgers.of_base(digest) {
            Some(BaseLedger::Redacted(shown)) if shown == size => {
                Payload::Heap(self.ledgers.known(digest)?.redacted?)
            }
            _ => self.cache.peek(digest).filter(|payload| payload.len() as u64 == size)?,
        };
        let part = range(payload.len(), offset, length);
        Some((payload, part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;
    use crate::fork::BaseReader;
    use crate::ops::fixture::{self, FixtureSpec};
    use crate::store::manifest::tests::sample;
    use crate::sync::wait;

    /// A store with one image of two pages, and a reader of it.
    fn reader() -> (tempfile::TempDir, ImageReader, Digest) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::create(dir.path().join("store")).unwrap());
        let spec = FixtureSpec { world_files: 2, cache_pages: 2, ..FixtureSpec::default() };
        let layers = fixture::build(&spec, &mut |bytes| store.blobs().put(bytes)).unwrap();
        let mut manifest = sample();
        manifest.world.fs = layers.world_fs;
        manifest.cache.manifest = layers.cache_manifest;
        manifest.effects.ledger = layers.effects_ledger;
        let id = store.put_manifest(&manifest).unwrap();
        let limits = CacheConfig { heap_bytes: 1 << 20, disk_bytes: 1 << 20, dir: dir.path().join("cache") };
        let cache = Arc::new(Cache::new(Arc::clone(&store), &limits));
        (dir, ImageReader::new(store, cache, 1 << 20, false), id)
    }

    #[test]
    fn an_event_loop_gets_data_that_was_read_before_and_never_waits_for_other_data() {
        let (_dir, reader, id) = reader();
        let on_a_loop = || {
            std::thread::scope(|scope| {
                let looked = scope.spawn(|| {
                    wait::never();
                    let kind = |error: ImageError| error.of(&id).kind();
                    [
                        reader.manifest(&id).map(|_| ()).map_err(kind),
                        reader.tree(&id).map(|_| ()).map_err(kind),
                        reader.pages(&id).map(|_| ()).map_err(kind),
                    ]
                });
                looked.join().unwrap()
            })
        };
        assert_eq!(on_a_loop(), [Err(ErrorKind::Waits); 3]);
        assert_eq!(reader.tree(&id).unwrap().len(), reader.tree_known(&id).unwrap().len());
        assert_eq!(reader.pages(&id).unwrap().names().len(), 4);
        assert_eq!(on_a_loop(), [Ok(()); 3]);
    }

    #[test]
    fn an_image_that_was_removed_is_no_base_even_if_its_manifest_is_in_memory() {
        let (_dir, reader, id) = reader();
        let layers = reader.layers(&id).unwrap();
        assert!(layers.iter().any(|layer| layer.path == "cache/pages/00000001.v"));
        std::fs::remove_file(reader.store.images().marker(&id)).unwrap();
        assert!(reader.manifest(&id).is_ok());
        assert_eq!(reader.layers(&id).map(|_| ()).map_err(|error| error.kind()), Err(ErrorKind::NotFound));
    }
}
