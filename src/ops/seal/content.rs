//! Stores the content of changed files: hashed and compressed, on all cores.

use std::collections::HashMap;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BlobRef, Content, Frozen, Src};
use crate::store::{Batch, SEEKABLE_FROM};
use crate::sync::Mutex;

/// Content up to this many bytes is held in memory as a whole, by each thread. Larger content is stored frame
/// by frame.
const WHOLE: u64 = SEEKABLE_FROM;

/// Less than this many bytes of content, and fewer files than that, get no other thread.
const WORTH_A_THREAD: (u64, usize) = (512 << 10, 4);

/// Longer files, in bytes, are in no image: no filesystem that pf restores to holds them, and reading one
/// takes hours.
const MAX_FILE: u64 = 16 << 40;

/// The limit in bytes for a layer that is read into memory as a whole.
const MAX_LAYER: u64 = 1 << 30;

/// Says why a seal that is under way must stop.
pub(super) type Ended<'a> = &'a (dyn Fn() -> Option<Error> + Sync);

/// Content to store, and the path that names it in messages.
pub(super) struct Job<'a> {
    pub(super) path: &'a [u8],
    pub(super) content: &'a Content,
}

/// Reads frozen content from its start to its end.
struct Reader<'a> {
    frozen: &'a Frozen,
    content: &'a Content,
    at: u64,
    ended: Ended<'a>,
    /// The fork's error, which does not fit into an [`io::Error`].
    failed: Option<Error>,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match (self.ended)() {
            Some(error) => Err(error),
            None => self.frozen.read(self.content, self.at, buf),
        };
        match read {
            Ok(n) => {
                self.at += n as u64;
                Ok(n)
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}

/// All of a file's content, which must fit in memory.
pub(super) fn read_all(frozen: &Frozen, content: &Content, buffer: &mut Vec<u8>) -> Result<()> {
    if content.size > MAX_LAYER {
        let message = format!("{} bytes are more than pfimg reads as a whole (1 GiB)", content.size);
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    buffer.clear();
    buffer.resize(usize::try_from(content.size).unwrap_or(usize::MAX), 0);
    let read = frozen.read(content, 0, buffer)?;
    if read == buffer.len() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Damaged, format!("only {read} of {} bytes can be read", buffer.len())))
}

/// The blob of a file's earlier content; if there are several, the one with the largest part of it.
fn previous(content: &Content) -> Option<Digest> {
    let mut bytes: HashMap<Digest, u64> = HashMap::new();
    for (_, piece) in content.pieces.all() {
        if let Src::Blob(blob) = &piece.src {
            *bytes.entry(blob.digest).or_default() += piece.len;
        }
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(digest, _)| digest)
}

fn store_one(
    batch: &Batch<'_>,
    frozen: &Frozen,
    job: &Job<'_>,
    ended: Ended<'_>,
    buffer: &mut Vec<u8>,
) -> Result<BlobRef> {
    let size = job.content.size;
    if size > MAX_FILE {
        let message = format!("its {size} bytes are more than a file of an image can have (16 TiB)");
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_hint("shorten it, remove it, or keep it out of images with a .pfignore"));
    }
    if size <= WHOLE {
        read_all(frozen, job.content, buffer)?;
        return Ok(BlobRef { digest: batch.put(buffer)?, size });
    }
    let mut reader = Reader { frozen, content: job.content, at: 0, ended, failed: None };
    let stored = batch.write_seekable(previous(job.content), &mut reader);
    match (stored, reader.failed) {
        (Ok((digest, length)), _) if length == size => Ok(BlobRef { digest, size }),
        (Ok((_, length)), _) => {
            Err(Error::new(ErrorKind::Damaged, format!("only {length} of {size} bytes can be read")))
        }
        (Err(_), Some(error)) | (Err(error), None) => Err(error),
    }
}

/// Stores contents; the result is in the order of the jobs. The first failure ends it.
pub(super) fn store(
    batch: &Batch<'_>,
    frozen: &Frozen,
    jobs: &[Job<'_>],
    ended: Ended<'_>,
) -> Result<Vec<BlobRef>> {
    let bytes: u64 = jobs.iter().map(|job| job.content.size).sum();
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let worth = usize::try_from(bytes / WORTH_A_THREAD.0).unwrap_or(cores).max(jobs.len() / WORTH_A_THREAD.1);
    let threads = cores.min(jobs.len()).min(worth + 1);
    let stored: Mutex<HashMap<usize, BlobRef>> = Mutex::default();
    let failed: Mutex<Option<Error>> = Mutex::default();
    // The largest first: if it started last, all others would wait for it.
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(jobs[*at].content.size));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut buffer = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)).copied() else { break };
            let job = &jobs[at];
            let stored_now = match ended() {
                Some(error) => Err(error),
                None => store_one(batch, frozen, job, ended, &mut buffer),
            };
            match stored_now {
                Ok(blob) => drop(stored.lock().insert(at, blob)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    let error = error.context(String::from_utf8_lossy(job.path));
                    failed.lock().get_or_insert(error);
                }
            }
        }
    };
    // Threads that exist already: a new one may get a core only milliseconds later, when the scheduler
    // balances. That can happen to a thread that is woken, too; hence one more than there are cores.
    let helpers = if threads > 1 { threads } else { 0 };
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| work());
        }
        work();
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let mut stored = stored.into_inner();
    let lost = || Error::new(ErrorKind::Io(None), "the content of a file was not stored");
    (0..jobs.len()).map(|at| stored.remove(&at).ok_or_else(lost)).collect()
}
