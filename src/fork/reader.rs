//! Reads the images that forks rest on: the caller's part of it, and what the engine does with it.

use std::sync::Arc;

use super::extents::BlobRef;
use super::inode::LazyBlob;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::tree::{NodeTimes, Tree};

/// A file of the base that is not in its world's tree, by its path in the fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBase {
    /// For instance `model/diff.json`; must be a layer's name.
    pub path: String,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes, if known without reading the blob.
    pub size: Option<u64>,
    /// Its time in nanoseconds since 1970; without one it is the image's.
    pub mtime_ns: Option<i64>,
}

/// The times that an image shows, in nanoseconds since 1970.
#[derive(Clone, Debug)]
pub struct BaseTimes {
    /// When it was made.
    pub created_ns: i64,
    /// Of each entry of its tree that has none recorded.
    pub nodes: Arc<NodeTimes>,
}

impl Default for BaseTimes {
    /// All times are 0, the start of 1970.
    fn default() -> Self {
        Self { created_ns: 0, nodes: Arc::new(NodeTimes::all(0)) }
    }
}

/// Reads the base images of forks. The caller implements it over its cache.
pub trait BaseReader: Send + Sync {
    /// A blob's length in bytes, uncompressed.
    fn size(&self, digest: &Digest) -> Result<u64>;

    /// Reads from a blob of `size` bytes at `offset`. Returns the number of bytes: fewer than asked only at its end.
    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// Whether a blob is shown without the secret that it holds. Such a blob must not become the content of another file.
    fn is_held_back(&self, digest: &Digest) -> Result<bool> {
        let _ = digest;
        Ok(false)
    }

    /// The tree of an image's `world/fs`.
    fn tree(&self, image: &Digest) -> Result<Arc<Tree>>;

    /// The times that an image shows.
    fn times(&self, image: &Digest) -> Result<BaseTimes> {
        let _ = image;
        Ok(BaseTimes::default())
    }

    /// Counts the images before `image` in the line along which times are derived.
    fn line_behind(&self, image: &Digest) -> u32 {
        let _ = image;
        0
    }

    /// The other files of an image: its manifest, and those of its layers.
    fn layers(&self, image: &Digest) -> Result<Vec<LayerBase>>;
}

/// Looks up the length of a blob.
pub(super) fn settle(lazy: &LazyBlob, reader: &dyn BaseReader) -> Result<()> {
    if lazy.size.get().is_none() {
        let size = reader.size(&lazy.digest)?;
        lazy.size.get_or_init(|| size);
    }
    Ok(())
}

/// Fills a buffer from a blob.
pub(super) fn read_blob(reader: &dyn BaseReader, blob: &BlobRef, offset: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match reader.read(&blob.digest, blob.size, offset + done as u64, &mut buf[done..])? {
            0 => {
                let message = format!("blob {} ends before its {} bytes", blob.digest, blob.size);
                return Err(Error::new(ErrorKind::Damaged, message));
            }
            n => done += n,
        }
    }
    Ok(())
}
