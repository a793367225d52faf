//! What forks read of the images they rest on, through the mount's cache.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::trees::Trees;
use crate::cache::{Cache, Payload};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BaseReader, LayerBase};
use crate::layers::cache::PageManifest;
use crate::store::{BlobError, Digest, LayerFile, Store};
use crate::tree::Tree;

/// A ledger as it is shown: nothing yet, or its bytes without the secret; none where there is no secret in it.
type Redacted = Option<Option<Arc<[u8]>>>;

/// The store behind forks.
pub(super) struct Reader {
    store: Arc<Store>,
    cache: Arc<Cache>,
    trees: Arc<Trees>,
    reveal_secrets: bool,
    /// Ledgers of images that forks rest on.
    ledgers: RwLock<HashMap<Digest, Redacted>>,
}

impl Reader {
    pub(super) fn new(store: Arc<Store>, cache: Arc<Cache>, trees: Arc<Trees>, reveal_secrets: bool) -> Self {
        Self { store, cache, trees, reveal_secrets, ledgers: RwLock::default() }
    }

    /// A payload of `size` bytes. A ledger's secret is not shown in forks either.
    pub(super) fn payload(&self, digest: &Digest, size: u64) -> Result<Payload, Arc<BlobError>> {
        if let Some(Some(Some(redacted))) = self.ledgers.read().get(digest)
            && redacted.len() as u64 == size
        {
            return Ok(Payload::Heap(Arc::clone(redacted)));
        }
        self.cache.get(digest, Some(size))
    }

    /// A payload that needs no waiting for.
    pub(super) fn peek(&self, digest: &Digest, size: u64) -> Option<Payload> {
        self.cache.peek(digest).filter(|payload| payload.len() as u64 == size)
    }

    fn redact(&self, digest: &Digest) -> Result<Option<Arc<[u8]>>> {
        if let Some(Some(known)) = self.ledgers.read().get(digest) {
            return Ok(known.clone());
        }
        let ledger = self.cache.get(digest, None).map_err(shared)?;
        let redacted = crate::layers::effects::redact(&ledger);
        let redacted = (*redacted != *ledger).then(|| Arc::from(&*redacted));
        self.ledgers.write().insert(*digest, Some(redacted.clone()));
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
            && let Some(redacted) = self.redact(digest)?
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
