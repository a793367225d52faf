//! Decompressed blobs: small ones on the heap, large ones as mapped files, each under a budget in bytes; the
//! least recently used is evicted first.
//!
//! A payload that was handed out stays valid until it is dropped, evicted or not. Concurrent readers share
//! one fill of a blob. Only blobs that matched their digest enter the cache.

mod fill;
pub(crate) mod folder;
mod frames;
mod heap;
mod mapped;
mod packs;
mod payload;
mod unfilled;
mod unkept;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::Digest;
use crate::error::Result;
use crate::store::{BlobError, Blobs, Size, Store};
use fill::Fills;
use frames::Frames;
use heap::Heap;
use mapped::Mapped;
use packs::Packs;
use unfilled::Unfilled;
use unkept::{Stretches, Trouble};

pub use payload::Payload;

/// Payloads of at least this many bytes are mapped files.
const LARGE: u64 = 1 << 20;

/// The fraction of the folder's budget for packs of small blobs.
const PACKS_SHARE: u64 = 8;

/// A payload without a declared size may be this many times its compressed size, or as large as the cache's
/// folder may grow: tensors seldom compress well, and a bomb must not fill the disk.
const MAX_UNDECLARED_RATIO: u64 = 100;

/// How large the cache may grow, and where its files are.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Bytes of small blobs on the heap.
    pub heap_bytes: u64,
    /// Bytes of large blobs in files.
    pub disk_bytes: u64,
    /// Folder of those files; made when it is needed, safe to delete at any time.
    pub dir: PathBuf,
}

/// Counters since the start, and levels now.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheStats {
    /// Blobs decompressed or taken from the folder.
    pub fills: u64,
    /// Bytes of those blobs.
    pub fill_bytes: u64,
    /// The part of those blobs that came from packs instead of the store.
    pub from_packs: u64,
    /// Payloads found without a fill.
    pub hits: u64,
    /// Blobs dropped to stay within the budget.
    pub evictions: u64,
    /// Bytes on the heap now.
    pub heap_bytes: u64,
    /// Bytes in mapped files now.
    pub mapped_bytes: u64,
}

/// The cache of one store's blobs.
#[derive(Debug)]
pub struct Cache {
    store: Arc<Store>,
    heap: Heap,
    mapped: Mapped,
    fills: Fills,
    frames: Frames,
    packs: Packs,
    stretches: Stretches,
    trouble: Arc<Trouble>,
    filled: AtomicU64,
    filled_bytes: AtomicU64,
    hits: AtomicU64,
}

impl Cache {
    /// Makes a cache. Touches no file yet.
    pub fn new(store: Arc<Store>, config: &CacheConfig) -> Self {
        let packs_bytes = config.disk_bytes / PACKS_SHARE;
        let trouble = Arc::new(Trouble::new(&config.dir));
        Self {
            store,
            heap: Heap::new(config.heap_bytes),
            mapped: Mapped::new(&config.dir, config.disk_bytes - packs_bytes, Arc::clone(&trouble)),
            packs: Packs::new(&config.dir, packs_bytes, Arc::clone(&trouble)),
            stretches: Stretches::new(config.heap_bytes),
            trouble,
            fills: Fills::default(),
            frames: Frames::default(),
            filled: AtomicU64::new(0),
            filled_bytes: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        }
    }

    /// Lists the files of an earlier run in the cache's folder, so that they count and are evicted in order.
    /// Each is verified again before its first use. May take a while: for a separate thread.
    pub fn scan_existing(&self) {
        folder::mark(self.dir());
        self.mapped.scan_existing();
    }

    /// Finishes a pack of the small blobs that were read, if reading has stopped; `at_the_end` in any case.
    /// Writes a file: for a thread that no request waits for.
    pub fn settle(&self, at_the_end: bool) {
        self.packs.settle(at_the_end);
    }

    /// The folder of large blobs.
    pub fn dir(&self) -> &Path {
        self.mapped.dir()
    }

    /// Bytes of small blobs it may keep on the heap.
    pub fn heap_budget(&self) -> u64 {
        self.heap.budget()
    }

    /// Whether a small blob is in the cache. Does not count as a use.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.heap.contains(digest)
    }

    /// A payload that is already in the cache.
    pub fn peek(&self, digest: &Digest) -> Option<Payload> {
        let found = self
            .heap
            .get(digest)
            .map(Payload::Heap)
            .or_else(|| self.mapped.get(digest).map(Payload::Mapped))?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    /// Why the folder accepts no files, if a write was tried.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.reason()
    }

    /// A blob's payload, from the cache or the store, and all of it in memory if it cannot be kept. Blocks
    /// while it is filled, by this thread or another. For a large blob, [`Self::range`] and [`Self::length`]
    /// need less.
    pub fn get(&self, digest: &Digest, declared: Option<u64>) -> Result<Payload, Arc<BlobError>> {
        match self.keep(digest, declared) {
            Ok(payload) => Ok(payload),
            Err(Unfilled::Blob(error)) => Err(error),
            Err(Unfilled::Unkept) => {
                let size = declared.map_or(Size::AtMost(self.limit(digest)?), Size::Exact);
                Ok(Payload::Heap(self.store.blobs().read(digest, size)?.into()))
            }
        }
    }

    /// Does the same, except for payloads that cannot be kept.
    fn keep(&self, digest: &Digest, declared: Option<u64>) -> Result<Payload, Unfilled> {
        if let Some(payload) = self.peek(digest) {
            return Ok(check_size(digest, payload, declared)?);
        }
        self.fills.once((*digest, declared), || {
            // The filling thread may have finished between the check and the turn.
            if let Some(payload) = self.peek(digest) {
                return Ok(check_size(digest, payload, declared)?);
            }
            let payload = self.fill(digest, declared)?;
            self.filled.fetch_add(1, Ordering::Relaxed);
            self.filled_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
            Ok(payload)
        })
    }

    /// A stretch of a blob of a known size: bytes that hold it, and its position in them; shorter only at the
    /// blob's end. If a blob is too large to be kept, or cannot be kept, and its form allows it, only the
    /// frames that hold the stretch are decompressed.
    pub fn range(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<(Payload, Range<usize>), Arc<BlobError>> {
        if self.is_read_by_frames(size)
            && let Some(found) = self.frames(digest, size, offset, length)?
        {
            return Ok(found);
        }
        match self.keep(digest, Some(size)) {
            Ok(payload) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(payload.len());
                let end = start.saturating_add(length).min(payload.len());
                Ok((payload, start..end))
            }
            Err(Unfilled::Unkept) => {
                if let Some(found) = self.frames(digest, size, offset, length)? {
                    return Ok(found);
                }
                let end = offset.saturating_add(length as u64).min(size);
                let part = offset.min(end)..end;
                let (bytes, found) = self.stretches.read(self.store.blobs(), digest, size, &part)?;
                Ok((Payload::Heap(bytes), found))
            }
            Err(Unfilled::Blob(error)) => Err(error),
        }
    }

    fn frames(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        length: usize,
    ) -> Result<Option<(Payload, Range<usize>)>, Arc<BlobError>> {
        let Some(seekable) = self.frames.get(self.store.blobs(), digest, size)? else { return Ok(None) };
        let length = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(length);
        let mut bytes = vec![0; length];
        let read = seekable.read_at(offset, &mut bytes)?;
        Ok(Some((Payload::Heap(bytes.into()), 0..read)))
    }

    /// The length of a blob without a declared size.
    pub fn length(&self, digest: &Digest) -> Result<u64, Arc<BlobError>> {
        match self.keep(digest, None) {
            Ok(payload) => Ok(payload.len() as u64),
            Err(Unfilled::Unkept) => {
                Ok(self.stretches.length(self.store.blobs(), digest, self.limit(digest)?)?)
            }
            Err(Unfilled::Blob(error)) => Err(error),
        }
    }

    /// Whether blobs of a size are read by [`Self::range`], which may avoid reading the whole blob.
    pub fn is_read_in_parts(&self, size: u64) -> bool {
        size >= LARGE
    }

    /// Most bytes of a payload without a declared size.
    fn limit(&self, digest: &Digest) -> Result<u64, BlobError> {
        let compressed = self.store.blobs().compressed_size(digest)?;
        Ok(compressed.saturating_mul(MAX_UNDECLARED_RATIO).max(self.mapped.budget()).max(LARGE))
    }

    /// Whether blobs of a size are too large to be kept as a whole.
    fn is_read_by_frames(&self, size: u64) -> bool {
        size >= LARGE && size > self.mapped.budget()
    }

    fn fill(&self, digest: &Digest, declared: Option<u64>) -> Result<Payload, Unfilled> {
        let blobs = self.store.blobs();
        if declared.is_some_and(|size| size < LARGE) {
            let declared = declared.unwrap_or(0);
            let bytes: Arc<[u8]> =
                match self.packs.read(digest, |compressed| Blobs::decode(digest, compressed, declared)) {
                    Some(bytes) => bytes.into(),
                    None => blobs
                        .read_small(digest, declared, |compressed| self.packs.add(digest, compressed))?
                        .into(),
                };
            self.heap.insert(*digest, Arc::clone(&bytes));
            return Ok(Payload::Heap(bytes));
        }
        if let Some(mapping) = self.mapped.reopen(digest) {
            return Ok(check_size(digest, Payload::Mapped(mapping), declared)?);
        }
        let compressed = blobs.compressed_size(digest)?;
        if declared.is_none()
            && compressed < LARGE
            && let Some(payload) = self.fill_heap(digest, Size::AtMost(LARGE))?
        {
            // Most layers are small; a file in the cache's folder would be wasted on them.
            return Ok(payload);
        }
        let size = declared.map_or(Size::AtMost(self.limit(digest)?), Size::Exact);
        match self.mapped.fill(digest, &mut |sink| blobs.stream(digest, size, sink)) {
            Err(Unfilled::Unkept) => {
                let most = self.heap.largest();
                let size = match size {
                    Size::Exact(declared) if declared > most => return Err(Unfilled::Unkept),
                    Size::AtMost(_) => Size::AtMost(most),
                    exact @ Size::Exact(_) => exact,
                };
                self.fill_heap(digest, size)?.ok_or(Unfilled::Unkept)
            }
            filled => filled.map(Payload::Mapped),
        }
    }

    /// Fills the memory; nothing if the blob is larger than that.
    fn fill_heap(&self, digest: &Digest, size: Size) -> Result<Option<Payload>, BlobError> {
        match self.store.blobs().read(digest, size) {
            Ok(bytes) => {
                let bytes: Arc<[u8]> = bytes.into();
                self.heap.insert(*digest, Arc::clone(&bytes));
                Ok(Some(Payload::Heap(bytes)))
            }
            Err(BlobError::TooLarge { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Counters and levels.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            fills: self.filled.load(Ordering::Relaxed),
            fill_bytes: self.filled_bytes.load(Ordering::Relaxed),
            from_packs: self.packs.taken(),
            hits: self.hits.load(Ordering::Relaxed),
            evictions: self.heap.evictions() + self.mapped.evictions(),
            heap_bytes: self.heap.bytes(),
            mapped_bytes: self.mapped.bytes(),
        }
    }
}

/// A tree may declare a wrong size that another tree declares right.
fn check_size(digest: &Digest, payload: Payload, declared: Option<u64>) -> Result<Payload, Arc<BlobError>> {
    match declared {
        Some(declared) if declared != payload.len() as u64 => Err(Arc::new(BlobError::WrongSize {
            digest: *digest,
            declared,
            found: payload.len().to_string(),
        })),
        _ => Ok(payload),
    }
}

#[cfg(test)]
mod tests;
