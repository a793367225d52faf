//! Why the cache has no payload.

use std::sync::Arc;

use crate::store::BlobError;

/// Why a blob is not in the cache.
#[derive(Clone, Debug)]
pub(super) enum Unfilled {
    /// It cannot be read.
    Blob(Arc<BlobError>),
    /// There is no room for it; the blob itself is not at fault.
    Unkept,
}

impl<E: Into<Arc<BlobError>>> From<E> for Unfilled {
    fn from(error: E) -> Self {
        Self::Blob(error.into())
    }
}
