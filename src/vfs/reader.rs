//! Reads the base images of forks through the mount's cache.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;

use super::trees::Trees;
use crate::cache::{Cache, Payload};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BaseReader, BaseTimes, LayerBase};
use crate::images::times::{PageList, PageTimes, Times, page_time};
use crate::layers::cache::PageManifest;
use crate::store::{BlobError, LayerFile, Store};
use crate::sync::{Mutex, RwLock, wait};
use crate::tree::{NodeTimes, Tree};

/// How a ledger is shown. The outer option is none while that is unknown. The inner one is the length in bytes without the
/// secret, or none if the ledger has no secret.
type Redacted = Option<Option<u64>>;

/// Number of ledgers whose shown bytes are kept in memory. Those of others are made again when needed.
const SHOWN: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// The reader of forks' base images.
pub(super) struct Reader {
    store: Arc<Store>,
    cache: Arc<Cache>,
    trees: Arc<Trees>,
    times: Times,
    reveal_secrets: bool,
    /// Ledgers of base images of forks.
    ledgers: RwLock<HashMap<Digest, Redacted>>,
    shown: Mutex<LruCache<Digest, Arc<[u8]>>>,
}

impl Reader {
    pub(super) fn new(store: Arc<Store>, cache: Arc<Cache>, trees: Arc<Trees>, reveal_secrets: bool) -> Self {
        let shown = Mutex::new(LruCache::new(SHOWN));
        let times = Times::new(Arc::clone(&store), Some(cache.dir().to_owned()));
        Self { store, cache, trees, times, reveal_secrets, ledgers: RwLock::default(), shown }
    }

    /// Derived times of images.
    pub(super) fn times(&self) -> &Times {
        &self.times
    }

    /// The derived times of an image's nodes. May read the trees of its line.
    pub(super) fn node_times(&self, image: &Digest) -> Result<Arc<NodeTimes>> {
        if let Some(known) = self.times.nodes_known(image) {
            return Ok(known);
        }
        wait::required()?;
        let tree = self.tree(image)?;
        // Trees of the line are not kept, so that they do not displace trees that programs look at.
        let read = |digest: &Digest| {
            self.trees.peek(digest).or_else(|| {
                let bytes = self.store.blobs().read_metadata(digest).ok()?;
                Tree::parse(&bytes).ok().map(Arc::new)
            })
        };
        Ok(self.times.nodes(image, &tree, &read)?)
    }

    /// The times of an image's pages. May read the page manifests of its line.
    pub(super) fn page_times(&self, image: &Digest) -> Result<Arc<PageTimes>> {
        Ok(self.times.pages(image, &|digest| self.page_list(digest).ok())?)
    }

    fn page_list(&self, digest: &Digest) -> Result<PageList> {
        let bytes = self.store.blobs().read_metadata(digest)?;
        // The text comes from `FormatError`.
        let manifest =
            PageManifest::parse(&bytes).map_err(|e| Error::new(ErrorKind::Damaged, e.to_string()))?;
        let mut pages: PageList = manifest.pages.iter().map(|page| (page.ix, page.k, page.v)).collect();
        pages.sort_unstable_by_key(|(ix, ..)| *ix);
        Ok(pages)
    }

    /// Reads a part of a payload of `size` bytes. Returns bytes that contain it, and its range in them. A ledger's secret is not
    /// shown in forks either.
    pub(super) fn part(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<(Payload, Range<usize>), Arc<BlobError>> {
        let known = self.ledgers.read().get(digest).copied();
        if let Some(Some(Some(length_shown))) = known
            && length_shown == size
            && let Some(redacted) = self.redact(digest)?
        {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(redacted.len());
            let end = start.saturating_add(length).min(redacted.len());
            return Ok((Payload::Heap(redacted), start..end));
        }
        self.cache.range(digest, size, offset, length)
    }

    /// Like [`Reader::part`], if the payload is in memory.
    pub(super) fn part_known(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Option<(Payload, Range<usize>)> {
        let known = self.ledgers.read().get(digest).copied();
        let payload = match known {
            Some(Some(Some(shown))) if shown == size => {
                Payload::Heap(Arc::clone(self.shown.lock().get(digest)?))
            }
            _ => self.peek(digest, size)?,
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(payload.len());
        let end = start.saturating_add(length).min(payload.len());
        Some((payload, start..end))
    }

    /// Returns a payload that is in memory.
    fn peek(&self, digest: &Digest, size: u64) -> Option<Payload> {
        self.cache.peek(digest).filter(|payload| payload.len() as u64 == size)
    }

    fn redact(&self, digest: &Digest) -> Result<Option<Arc<[u8]>>, Arc<BlobError>> {
        if let Some(Some(None)) = self.ledgers.read().get(digest) {
            return Ok(None);
        }
        if let Some(shown) = self.shown.lock().get(digest) {
            return Ok(Some(Arc::clone(shown)));
        }
        let ledger = self.cache.get(digest, None)?;
        let redacted = crate::layers::effects::redact(&ledger);
        let redacted: Option<Arc<[u8]>> = (*redacted != *ledger).then(|| Arc::from(&*redacted));
        self.ledgers.write().insert(*digest, Some(redacted.as_ref().map(|shown| shown.len() as u64)));
        if let Some(shown) = &redacted {
            self.shown.lock().put(*digest, Arc::clone(shown));
        }
        Ok(redacted)
    }
}

/// Converts a shared error: every waiter gets the same one, so this cannot take it apart.
#[allow(clippy::needless_pass_by_value)]
fn shared(error: Arc<BlobError>) -> Error {
    let kind = match &*error {
        BlobError::Missing(_) => ErrorKind::Missing,
        BlobError::Io { .. } => ErrorKind::Io(None),
        _ => ErrorKind::Damaged,
    };
    // The text comes from `BlobError`.
    Error::new(kind, error.to_string())
}

impl BaseReader for Reader {
    fn size(&self, digest: &Digest) -> Result<u64> {
        wait::required()?;
        if self.ledgers.read().contains_key(digest)
            && let Some(redacted) = self.redact(digest).map_err(shared)?
        {
            return Ok(redacted.len() as u64);
        }
        self.cache.length(digest).map_err(shared)
    }

    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (payload, part) = if let Some(known) = self.part_known(digest, size, offset, buf.len()) {
            known
        } else {
            wait::required()?;
            self.part(digest, size, offset, buf.len()).map_err(shared)?
        };
        let n = part.len();
        buf[..n].copy_from_slice(&payload[part]);
        payload.was_read(n);
        Ok(n)
    }

    fn is_held_back(&self, digest: &Digest) -> Result<bool> {
        match self.ledgers.read().get(digest) {
            None => return Ok(false),
            Some(Some(shown)) => return Ok(shown.is_some()),
            Some(None) => wait::required()?,
        };
        Ok(self.redact(digest).map_err(shared)?.is_some())
    }

    fn tree(&self, image: &Digest) -> Result<Arc<Tree>> {
        if let Some(tree) = self.times.tree_known(image).and_then(|tree| self.trees.peek(&tree)) {
            return Ok(tree);
        }
        wait::required()?;
        let digest = self.store.image(image)?.manifest.world.fs;
        self.trees.get(&digest, || {
            let bytes = self.store.blobs().read_metadata(&digest)?;
            Tree::parse(&bytes).map_err(|e| Error::new(ErrorKind::Damaged, format!("image {image}: {e}")))
        })
    }

    fn times(&self, image: &Digest) -> Result<BaseTimes> {
        if self.times.created_known(image).is_none() {
            wait::required()?;
        }
        let created_ns = self.times.created(image)?;
        let nodes = if self.tree(image)?.lacks_times() {
            self.node_times(image)?
        } else {
            Arc::new(NodeTimes::all(created_ns))
        };
        Ok(BaseTimes { created_ns, nodes })
    }

    fn line_behind(&self, image: &Digest) -> u32 {
        self.times.behind(image)
    }

    fn layers(&self, image: &Digest) -> Result<Vec<LayerBase>> {
        wait::required()?;
        let found = self.store.image(image)?;
        let mut layers = vec![LayerBase {
            path: "manifest.json".into(),
            digest: *image,
            size: Some(found.bytes.len() as u64),
            mtime_ns: Some(self.times.created(image)?),
        }];
        for (file, digest) in found.manifest.blobs() {
            if file != LayerFile::WorldFs {
                let mtime_ns = Some(self.times.layer(image, file)?);
                layers.push(LayerBase { path: file.path().into(), digest, size: None, mtime_ns });
            }
            if file == LayerFile::EffectsLedger && !self.reveal_secrets {
                self.ledgers.write().entry(digest).or_insert(None);
            }
        }
        let bytes = self.store.blobs().read_metadata(&found.manifest.cache.manifest)?;
        let pages = PageManifest::parse(&bytes)
            .map_err(|e| Error::new(ErrorKind::Damaged, format!("image {image}: {e}")))?;
        let size = pages.page_bytes();
        let times = if pages.pages.is_empty() { Arc::default() } else { self.page_times(image)? };
        for page in &pages.pages {
            for (suffix, digest) in [("k", page.k), ("v", page.v)] {
                let path = format!("cache/pages/{:08}.{suffix}", page.ix);
                let mtime_ns = page_time(&times, page.ix, suffix == "k");
                layers.push(LayerBase { path, digest, size, mtime_ns });
            }
        }
        Ok(layers)
    }
}
