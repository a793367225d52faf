//! Makes the kernel hand in all cached writes before a snapshot is taken.
//!
//! One thread does this, with calls on the mount itself. It makes passes. Each pass has three steps:
//!
//! 1. It calls syncfs(2). The kernel turns dirty pages into WRITE requests. When the call returns, these are in the kernel's
//!    queue of background requests, but may not be answered. Kernels up to 6.15 never wait for the answers with FUSE, and later
//!    ones do not with `--writes back`. Since the spring of 2026 they wait in no mode (`SB_I_NO_DATA_INTEGRITY`, also in stable
//!    kernels).
//! 2. It reads a marker file without the page cache. The read goes through the same queue (`FUSE_ASYNC_DIO`), which the kernel
//!    hands out in order. So the event loops have taken each of those WRITEs before one takes the read.
//! 3. It repeats the read until each event loop has answered one, or rests ([`crate::fuse::spin`]). An event loop answers
//!    requests one after the other, and answers WRITEs itself. So by then it has answered all WRITEs that it took before.
//!
//! syncfs(2) skips three kinds of pages, so one pass is not enough if there were dirty pages:
//!
//! - Pages that are being written and have changed since. The next pass writes them.
//! - All pages, if the kernel calls the connection congested because of many background requests. The daemon counts the requests
//!   that came during a pass and those that workers had not answered. If there were few, the pass was *calm*: the connection was
//!   not congested.
//! - Pages of a file that another call syncs, closes or truncates at that moment. Such a call causes a WRITE, an FSYNC or a
//!   SETATTR.
//!
//! The thread makes passes until a calm one brings no writes. If programs write all the time, it stops after a few calm passes:
//! by then each page that was dirty at the beginning has been written.
//!
//! Without dirty pages one pass is enough. It takes a system call of some microseconds and a few requests, independent of the
//! number of files.
//!
//! The thread has a separate table of descriptors; see [`super::session::Prepared::new`].

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::{self, ThreadId};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::open_root::OpenRoot;
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{CachedWrites, MARKER, Pusher};

/// Number of calm passes that are enough if programs write all the time.
const CALM: u32 = 4;

/// The most background requests in a calm pass. The kernel calls a connection congested at 3/4 of `max_background`, which is
/// far more.
const FEW: u64 = 32;

/// Number of passes after which a barrier gives up: programs write faster than the daemon can take the pages.
const PASSES: u32 = 10_000;

/// Reads of the marker without a pause between them, and the longest pause between later ones.
const AT_ONCE: u32 = 4;
const PAUSE: Duration = Duration::from_millis(5);

/// How often a caller checks whether it should stop waiting.
const LOOK: Duration = Duration::from_millis(50);

/// Why a barrier failed.
#[derive(Clone, Debug)]
enum Failed {
    /// The connection to the kernel has ended, so the kernel has no cached writes.
    Ended,
    /// The mount exists, but cannot be reached.
    Unreachable(String),
    /// Programs wrote or read so fast that the kernel could not hand in all writes.
    Restless,
}

type Answer = Sender<Result<(), Failed>>;

/// The barrier of one mount.
pub(super) struct Barrier {
    jobs: Sender<Answer>,
    thread: Arc<AtomicU32>,
}

/// The state of the barrier's thread.
struct Pushing {
    /// Not the mount: the thread cannot close its files, since it has a separate table of descriptors.
    writes: Arc<CachedWrites>,
    root: OpenRoot,
    loops: usize,
    /// Number of requests that workers have not answered yet.
    unanswered: Arc<AtomicU64>,
    /// Lists the event loops that rest and hold no request.
    resting: Box<dyn Fn() -> Vec<ThreadId> + Send>,
}

/// The thread, before the store is mounted.
pub(super) struct Prepared {
    start: Sender<Pushing>,
    barrier: Barrier,
}

impl Barrier {
    /// Starts the thread, which first calls `prepare_thread`. Must be called before the connection to the kernel is opened.
    pub(super) fn prepare(prepare_thread: fn()) -> io::Result<Prepared> {
        let (jobs, queue) = unbounded();
        let (start, started) = bounded::<Pushing>(1);
        let thread = Arc::new(AtomicU32::new(0));
        let own = Arc::clone(&thread);
        thread::Builder::new().name("pfimg-barrier".into()).spawn(move || {
            prepare_thread();
            own.store(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs(), Ordering::Relaxed);
            if let Ok(pushing) = started.recv() {
                pushing.serve(&queue);
            }
        })?;
        Ok(Prepared { start, barrier: Self { jobs, thread } })
    }

    /// The thread's id, once it is known.
    pub(super) fn thread(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.thread)
    }
}

impl Prepared {
    /// The thread's id, once it is known; 0 before.
    pub(super) fn thread(&self) -> Arc<AtomicU32> {
        self.barrier.thread()
    }

    /// Gives the thread the mount to work on.
    pub(super) fn start(
        self,
        writes: Arc<CachedWrites>,
        root: OpenRoot,
        loops: usize,
        unanswered: Arc<AtomicU64>,
        resting: impl Fn() -> Vec<ThreadId> + Send + 'static,
    ) -> Barrier {
        let _ = self.start.send(Pushing { writes, root, loops, unanswered, resting: Box::new(resting) });
        self.barrier
    }
}

impl Pusher for Barrier {
    fn push(&self, ended: &dyn Fn() -> bool) -> Result<()> {
        let (answer, answered) = bounded(1);
        if self.jobs.send(answer).is_err() {
            return Ok(());
        }
        loop {
            match answered.recv_timeout(LOOK) {
                Ok(Ok(()) | Err(Failed::Ended)) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Err(Failed::Unreachable(why))) => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("the kernel may still keep bytes that programs wrote: {why}"),
                    )
                    .with_hint(
                        "unmount the mount that covers this one, or unmount the store, which seals all forks",
                    ));
                }
                Ok(Err(Failed::Restless)) => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        "the kernel still keeps bytes that programs wrote: they read and write without a pause",
                    )
                    .with_hint("try again when fewer programs use the mount"));
                }
                Err(RecvTimeoutError::Timeout) if ended() => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Pushing {
    fn serve(&self, queue: &Receiver<Answer>) {
        while let Ok(first) = queue.recv() {
            // One barrier answers all callers that asked before it begins.
            let asked: Vec<Answer> = std::iter::once(first).chain(queue.try_iter()).collect();
            let done = self.push();
            for answer in asked {
                let _ = answer.send(done.clone());
            }
        }
    }

    fn push(&self) -> Result<(), Failed> {
        let root = (self.root)().map_err(Failed::Unreachable)?;
        let (writes, mut calm) = (&self.writes, 0);
        for _ in 0..PASSES {
            let unanswered = self.unanswered.load(Ordering::Acquire);
            let (handed_in, requests) = (writes.handed_in(), writes.background_requests());
            // Ignores other errors: they may concern any fork, and the daemon knows each write that failed.
            if let Err(Errno::NOTCONN | Errno::CONNABORTED) = rustix::fs::syncfs(&root) {
                return Err(Failed::Ended);
            }
            let queued = self.drain(&root)?.saturating_sub(requests);
            if queued + unanswered > FEW {
                continue;
            }
            calm += 1;
            if calm == CALM || writes.handed_in() == handed_in {
                return Ok(());
            }
        }
        Err(Failed::Restless)
    }

    /// Waits until the event loops have answered all requests that were queued before the call. Returns the number of background
    /// requests that they have ever taken, which includes all that were queued when the call began.
    fn drain(&self, root: &File) -> Result<u64, Failed> {
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let marker = openat(root, MARKER, flags, Mode::empty()).map_err(ended)?;
        let writes = &self.writes;
        let ticket = writes.new_ticket();
        let mut taken = None;
        for read in 0.. {
            rustix::io::pread(&marker, &mut [0u8; 1][..], ticket).map_err(ended)?;
            // The kernel reuses device numbers: after this mount has ended, another daemon may have answered.
            if writes.loops_passed(&[]) == 0 {
                return Err(Failed::Ended);
            }
            taken.get_or_insert_with(|| writes.background_requests());
            if writes.loops_passed(&(self.resting)()) >= self.loops {
                break;
            }
            if read >= AT_ONCE {
                thread::sleep(PAUSE.min(Duration::from_micros(20) * (read - AT_ONCE + 1)));
            }
        }
        // Event loops may have left some of the writes to workers.
        let left = writes.writes_left();
        while !writes.are_written(left) {
            thread::sleep(PAUSE);
        }
        Ok(taken.unwrap_or_default())
    }
}

fn ended(error: Errno) -> Failed {
    match error {
        Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV => Failed::Ended,
        other => unreachable(io::Error::from(other)),
    }
}

fn unreachable(why: impl Display) -> Failed {
    Failed::Unreachable(format!("the file {MARKER} of the mount cannot be read ({why})"))
}
