//! Counts and logs damage of images.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use super::attempt::Stop;
use super::node::ImageNo;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::images::ImageError;
use crate::store::{BlobError, Home, MarkerError};
use crate::sync::Mutex;

/// Damage that is remembered because it was logged.
const REPORTED: usize = 4096;

/// The damage that a mount has found.
pub(super) struct Damage {
    home: Arc<Home>,
    missing: AtomicU64,
    damaged: AtomicU64,
    reported: Mutex<LruCache<(Digest, ImageNo), ()>>,
}

impl Damage {
    pub(super) fn new(home: Arc<Home>) -> Self {
        let (missing, damaged) = Default::default();
        let reported = LruCache::new(NonZeroUsize::new(REPORTED).unwrap_or(NonZeroUsize::MIN));
        Self { home, missing, damaged, reported: Mutex::new(reported) }
    }

    /// Reads that failed because of missing bytes, and of damaged ones.
    pub(super) fn counts(&self) -> [u64; 2] {
        [&self.missing, &self.damaged].map(|counter| counter.load(Ordering::Relaxed))
    }

    fn is_first(&self, digest: &Digest, image: ImageNo) -> bool {
        self.reported.lock().put((*digest, image), ()).is_none()
    }

    /// Logs damage of a blob, once for each blob and image, and returns the reader's error. `path` is that of the file in
    /// its image.
    pub(super) fn blob(
        &self,
        (image, id): (ImageNo, &Digest),
        path: impl FnOnce() -> String,
        error: &BlobError,
    ) -> ErrorKind {
        if let BlobError::Missing(_) = error
            && let Err(moved) = self.home.require()
        {
            return moved.kind();
        }
        let (kind, digest, counter) = match error {
            BlobError::Missing(digest) => (ErrorKind::Missing, digest, &self.missing),
            BlobError::Mismatch { digest, .. }
            | BlobError::Undecodable { digest, .. }
            | BlobError::WrongSize { digest, .. }
            | BlobError::TooLarge { digest, .. } => (ErrorKind::Damaged, digest, &self.damaged),
            BlobError::Io { digest, .. } => (ErrorKind::Io(None), digest, &self.damaged),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if self.is_first(digest, image) {
            tracing::error!(image = %id, path = path(), %digest, code = error.code(), "cannot be read: {error}");
        }
        kind
    }

    /// Logs a manifest that cannot be read, and returns the reader's error.
    pub(super) fn marker(&self, (image, id): (ImageNo, &Digest), error: MarkerError) -> ErrorKind {
        if let MarkerError::Absent(_) = error {
            return ErrorKind::NotFound;
        }
        self.damaged.fetch_add(1, Ordering::Relaxed);
        let error = Error::from(error);
        if self.is_first(id, image) {
            tracing::error!(image = %id, path = "manifest.json", digest = %id, "cannot be read: {error}");
        }
        error.kind()
    }

    /// Logs why data of an image cannot be had, and returns the reader's error.
    pub(super) fn image(&self, (image, id): (ImageNo, &Digest), error: ImageError) -> Stop {
        match error {
            ImageError::Waits => Stop::Waits,
            ImageError::Marker(error) => self.marker((image, id), error).into(),
            ImageError::Blob(file, error) => self.blob((image, id), || file.path().to_owned(), &error).into(),
            ImageError::Format(file, digest, error) => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
                if self.is_first(&digest, image) {
                    tracing::error!(image = %id, path = file.path(), %digest, "refused: {error}");
                }
                ErrorKind::Damaged.into()
            }
        }
    }
}
