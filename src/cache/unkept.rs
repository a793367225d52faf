//! Blobs for which the cache's folder has no room: they are served without being kept, and a log line says so
//! once.
//!
//! A blob that fits into the memory of the cache goes there. For a larger one the cache keeps a stretch.
//! Filling the stretch decompresses the whole blob, since no byte of a blob is served before all of it has
//! matched its digest.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::digest::Digest;
use crate::store::{BlobError, Blobs, Size};
use crate::sync::Mutex;

/// How long the cache writes nothing to a folder after a failed write: otherwise each blob would fill a full
/// disk again.
const PAUSE: Duration = Duration::from_secs(5);

/// The number of stretches kept at a time, and their alignment: read-ahead does not ask in order.
const OPEN: NonZeroUsize = NonZeroUsize::new(4).unwrap();
const ALIGN: u64 = 1 << 20;

/// Bytes of a stretch, at least and at most.
const LEAST: u64 = 2 << 20;
const MOST: u64 = 32 << 20;

/// How many lengths are cached.
const LENGTHS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Why the folder of a cache accepts no files.
#[derive(Debug)]
pub(super) struct Trouble {
    dir: PathBuf,
    said: AtomicBool,
    now: Mutex<Option<(Instant, String)>>,
}

impl Trouble {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), said: AtomicBool::new(false), now: Mutex::new(None) }
    }

    /// For a substitute folder: its failures are not logged, since the failure of the first folder was.
    pub(super) fn quiet(dir: &Path) -> Self {
        Self { said: AtomicBool::new(true), ..Self::new(dir) }
    }

    /// Notes that a blob could not be kept, and logs the reason the first time.
    pub(super) fn met(&self, error: &dyn std::fmt::Display) {
        *self.now.lock() = Some((Instant::now(), error.to_string()));
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "cannot keep decompressed blobs in {}: {error}. pfimg serves them without keeping them; this message appears once",
                self.dir.display()
            );
        }
    }

    /// Notes that a blob could be kept.
    pub(super) fn over(&self) {
        *self.now.lock() = None;
    }

    /// Whether the last failure was a moment ago.
    pub(super) fn is_recent(&self) -> bool {
        self.now.lock().as_ref().is_some_and(|(met, _)| met.elapsed() < PAUSE)
    }

    /// Why nothing can be kept now, if a write was tried.
    pub(super) fn reason(&self) -> Option<String> {
        self.now.lock().as_ref().map(|(_, reason)| reason.clone())
    }
}

/// Passes on written bytes, and tells a failure of the receiver from a failure of the source.
pub(super) struct Keeping<'a> {
    pub(super) to: &'a mut dyn Write,
    pub(super) failed: Option<io::Error>,
}

impl Write for Keeping<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.to.write(data) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A part of a blob.
#[derive(Debug)]
struct Stretch {
    start: u64,
    bytes: Arc<[u8]>,
}

impl Stretch {
    /// The position of a part of the blob in this stretch.
    fn find(&self, part: &Range<u64>) -> Option<Range<usize>> {
        let end = self.start + self.bytes.len() as u64;
        (self.start <= part.start && part.end <= end)
            .then(|| (part.start - self.start) as usize..(part.end - self.start) as usize)
    }
}

/// Keeps a part of the written bytes.
struct Cut {
    wanted: Range<u64>,
    at: u64,
    bytes: Vec<u8>,
}

impl Write for Cut {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let inside = |at: u64| (at.clamp(self.at, self.at + data.len() as u64) - self.at) as usize;
        let part = inside(self.wanted.start)..inside(self.wanted.end);
        self.bytes.extend_from_slice(&data[part]);
        self.at += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Filled by the first reader.
type Slot = Arc<Mutex<Option<Stretch>>>;

/// Parts of blobs that are kept nowhere as a whole.
#[derive(Debug)]
pub(super) struct Stretches {
    open: Mutex<LruCache<Digest, Slot>>,
    lengths: Mutex<LruCache<Digest, u64>>,
    length: u64,
}

impl Stretches {
    /// `budget` is the memory of the cache; each stretch may take a part of it.
    pub(super) fn new(budget: u64) -> Self {
        Self {
            open: Mutex::new(LruCache::new(OPEN)),
            lengths: Mutex::new(LruCache::new(LENGTHS)),
            length: (budget / 8).clamp(LEAST, MOST),
        }
    }

    /// Bytes that hold a part of a blob of this size, and its position in them.
    pub(super) fn read(
        &self,
        blobs: &Blobs,
        digest: &Digest,
        size: u64,
        part: &Range<u64>,
    ) -> Result<(Arc<[u8]>, Range<usize>), BlobError> {
        let slot = Arc::clone(self.open.lock().get_or_insert(*digest, Slot::default));
        let mut slot = slot.lock();
        if let Some(stretch) = &*slot
            && let Some(found) = stretch.find(part)
        {
            return Ok((Arc::clone(&stretch.bytes), found));
        }
        // Freed before the next stretch takes memory.
        *slot = None;
        let start = part.start - part.start % ALIGN;
        let wanted = start..part.end.max(start + self.length).min(size);
        let mut cut = Cut { bytes: Vec::with_capacity((wanted.end - start) as usize), wanted, at: 0 };
        blobs.stream(digest, Size::Exact(size), &mut cut)?;
        let stretch = Stretch { start, bytes: cut.bytes.into() };
        let found = stretch.find(part).unwrap_or(0..0);
        let bytes = Arc::clone(&stretch.bytes);
        *slot = Some(stretch);
        Ok((bytes, found))
    }

    /// The length of a blob.
    pub(super) fn length(&self, blobs: &Blobs, digest: &Digest, limit: u64) -> Result<u64, BlobError> {
        if let Some(length) = self.lengths.lock().get(digest) {
            return Ok(*length);
        }
        let length = blobs.stream(digest, Size::AtMost(limit), &mut io::sink())?;
        self.lengths.lock().put(*digest, length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_what_is_written_is_cut_out_however_it_comes() {
        let all: Vec<u8> = (0..=255).collect();
        for (from, to) in [(0, 256), (0, 1), (255, 256), (7, 7), (100, 200)] {
            for piece in [1, 3, 64, 256] {
                let mut cut = Cut { wanted: from..to, at: 0, bytes: Vec::new() };
                all.chunks(piece).for_each(|data| cut.write_all(data).unwrap());
                assert_eq!(cut.bytes, all[from as usize..to as usize], "{from} {to} {piece}");
            }
        }
    }

    #[test]
    fn trouble_is_logged_once_and_ends_when_a_blob_can_be_kept() {
        let trouble = Trouble::new(Path::new("/cache"));
        assert!(!trouble.is_recent() && trouble.reason().is_none());
        trouble.met(&"no space");
        assert!(trouble.is_recent() && trouble.said.load(Ordering::Relaxed));
        assert_eq!(trouble.reason().as_deref(), Some("no space"));
        trouble.over();
        assert!(!trouble.is_recent() && trouble.reason().is_none());
    }
}
