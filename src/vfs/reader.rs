//! What forks read of the images they rest on, through the mount's cache.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::trees::Trees;
use crate::cache::{Cache, Payload};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BaseReader, LayerBase};
use crate::layers::cache::PageManifest;
use crate::store::{BlobError, Digest, LayerFile, Store};
use crate::sync::{Mutex, RwLock};
use crate::tree::Tree;

/// How long a ledger is as it is shown: nothing known yet, or its length without the secret; none where there is no secret in it.
type Redacted = Option<Option<u64>>;

/// Ledgers of which the bytes are kept as they are shown. Any is made again when it is looked at.
const SHOWN: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// The store behind forks.
pub(super) struct Reader {
    store: Arc<Store>,
    cache: Arc<Cache>,
    trees: Arc<Trees>,
    reveal_secrets: bool,
    /// Ledgers of images that forks rest on.
    ledgers: RwLock<HashMap<Digest, Redacted>>,
    shown: Mutex<LruCache<Digest, Arc<[u8]>>>,
}

impl Reader {
    pub(super) fn new(store: Arc<Store>, cache: Arc<Cache>, trees: Arc<Trees>, reveal_secrets: bool) -> Self {
        let shown = Mutex::new(LruCache::new(SHOWN));
        Self { store, cache, trees, reveal_secrets, ledgers: RwLock::default(), shown }
    }

    /// A payload of `size` bytes. A ledger's secret is not shown in forks either.
    pub(super) fn payload(&self, digest: &Digest, size: u64) -> Result<Payload, Arc<BlobError>> {
        let known = self.ledgers.read().get(digest).copied();
        if let Some(Some(Some(length))) = known
            && length == size
            && let Some(redacted) = self.redact(digest)?
        {
            return Ok(Payload::Heap(redacted));
        }
        self.cache.get(digest, Some(size))
    }

    /// A payload that needs no waiting for.
    pub(super) fn peek(&self, digest: &Digest, size: u64) -> Option<Payload> {
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

/// Every waiter gets the same error, so that it cannot be taken apart.
#[allow(clippy::needless_pass_by_value)]
fn shared(error: Arc<BlobError>) -> Error {
    let kind = match &*error {
        BlobError::Missing(_) => ErrorKind::Missing,
        BlobError::Io { .. } => ErrorKind::Io(None),
        _ => ErrorKind::Damaged,
    };
    Error::new(kind, error.to_string())
}

impl BaseReader for Reader {
    fn size(&self, digest: &Digest) -> Result<u64> {
        if self.ledgers.read().contains_key(digest)
            && let Some(redacted) = self.redact(digest).map_err(shared)?
        {
            return Ok(redacted.len() as u64);
        }
        Ok(self.cache.get(digest, None).map_err(shared)?.len() as u64)
    }

    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if self.cache.is_read_by_frames(size) && !self.ledgers.read().contains_key(digest) {
            let (payload, range) = self.cache.range(digest, size, offset, buf.len()).map_err(shared)?;
            let n = range.len();
            buf[..n].copy_from_slice(&payload[range]);
            return Ok(n);
        }
        let payload = self.payload(digest, size).map_err(shared)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(payload.len());
        let n = buf.len().min(payload.len() - start);
        buf[..n].copy_from_slice(&payload[start..start + n]);
        payload.was_read(n);
        Ok(n)
    }

    fn is_held_back(&self, digest: &Digest) -> Result<bool> {
        let is_ledger = self.ledgers.read().contains_key(digest);
        Ok(is_ledger && self.redact(digest).map_err(shared)?.is_some())
    }

    fn tree(&self, image: &Digest) -> Result<Arc<Tree>> {
        let digest = self.store.image(image)?.manifest.world.fs;
        self.trees.get(&digest, || {
            let bytes = self.store.blobs().read_metadata(&digest)?;
            Tree::parse(&bytes).map_err(|e| Error::new(ErrorKind::Damaged, format!("image {image}: {e}")))
        })
    }

    fn layers(&self, image: &Digest) -> Result<Vec<LayerBase>> {
        let found = self.store.image(image)?;
        let mut layers = vec![LayerBase {
            path: "manifest.json".into(),
            digest: *image,
            size: Some(found.bytes.len() as u64),
        }];
        for (file, digest) in found.manifest.blobs() {
            if file != LayerFile::WorldFs {
                layers.push(LayerBase { path: file.path().into(), digest, size: None });
            }
            if file == LayerFile::EffectsLedger && !self.reveal_secrets {
                self.ledgers.write().entry(digest).or_insert(None);
            }
        }
        let bytes = self.store.blobs().read_metadata(&found.manifest.cache.manifest)?;
        let pages = PageManifest::parse(&bytes)
            .map_err(|e| Error::new(ErrorKind::Damaged, format!("image {image}: {e}")))?;
        let size = pages.page_bytes();
        for page in &pages.pages {
            for (suffix, digest) in [("k", page.k), ("v", page.v)] {
                layers.push(LayerBase { path: format!("cache/pages/{:08}.{suffix}", page.ix), digest, size });
            }
        }
        Ok(layers)
    }
}
