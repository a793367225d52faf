//! Blobs that are too large to be kept as a whole, read frame by frame.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::digest::Digest;
use crate::store::{BlobError, Blobs, Seekable, Size};
use crate::sync::Mutex;

/// How many are open at a time. Each takes a descriptor, a frame of memory and 56 bytes for each of its
/// frames.
const OPEN: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Filled by the first reader; nothing if that failed.
type Slot = Arc<Mutex<Option<Arc<Seekable>>>>;

/// Blobs that were verified as a whole and are then read by frames.
#[derive(Debug)]
pub(super) struct Frames {
    open: Mutex<LruCache<Digest, Slot>>,
}

impl Default for Frames {
    fn default() -> Self {
        Self { open: Mutex::new(LruCache::new(OPEN)) }
    }
}

impl Frames {
    /// A blob for reading ranges; nothing if it is not of the seekable form. The first caller verifies the
    /// whole blob; other callers for the same blob wait for that.
    pub(super) fn get(
        &self,
        blobs: &Blobs,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<Arc<Seekable>>, BlobError> {
        let slot = Arc::clone(self.open.lock().get_or_insert(*digest, Slot::default));
        let mut slot = slot.lock();
        if slot.is_none() {
            *slot = blobs.open_seekable(digest, Size::Exact(size))?.map(Arc::new);
        }
        match &*slot {
            // Another tree may have declared the right size.
            Some(seekable) if seekable.size() != size => Err(BlobError::WrongSize {
                digest: *digest,
                declared: size,
                found: seekable.size().to_string(),
            }),
            seekable => Ok(seekable.clone()),
        }
    }
}
