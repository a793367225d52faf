//! What the cache hands out.

use std::ops::Deref;
use std::sync::Arc;

use super::mapped::Mapping;

/// A blob's decompressed bytes, verified.
#[derive(Clone, Debug)]
pub enum Payload {
    /// On the heap.
    Heap(Arc<[u8]>),
    /// In a mapped file.
    Mapped(Arc<Mapping>),
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped(mapping) => mapping,
        }
    }
}

impl Payload {
    /// Notes that `bytes` bytes of it were read, so that a mapping can release its pages now and then.
    pub fn was_read(&self, bytes: usize) {
        if let Self::Mapped(mapping) = self {
            mapping.was_read(bytes);
        }
    }
}
