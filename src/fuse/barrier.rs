//! Has the kernel hand in all that programs wrote and it still keeps, before a snapshot is taken.
//!
//! One thread does it, with calls on the mount itself. A pass is:
//!
//! 1. syncfs(2). The kernel makes WRITE requests of dirty pages. When the call returns they are in the kernel's queue of background
//!    requests; the kernel need not have waited for the answers. Kernels up to 6.15 never do for FUSE, later ones do not either with
//!    `--writes back`, and since the spring of 2026 in no mode (`SB_I_NO_DATA_INTEGRITY`, also in stable kernels).
//! 2. A read of a marker file past the page cache, which goes through the same queue (`FUSE_ASYNC_DIO`). The kernel hands that queue out
//!    in order: an event loop has taken each of those WRITEs before one takes the read.
//! 3. More such reads, until each event loop has answered one since the first, or rests ([`crate::fuse::spin`]). An event loop answers one request after the other,
//!    and answers a WRITE itself: then it has answered those that it had taken before.
//!
//! syncfs(2) passes over three kinds of pages, so one pass is not enough where there was anything to write:
//!
//! - those that are being written already, and were changed since: the next pass writes them;
//! - all, where so many background requests are under way that the kernel calls the connection congested. From the requests that
//!   came during a pass, and those that workers had not answered, the daemon knows that there were fewer: the pass was *calm*;
//! - those of a file that another call syncs, closes or truncates at that moment: a WRITE, an FSYNC or a SETATTR comes of that.
//!
//! So passes go on until a calm one brings nothing. Where programs write all the time, some calm ones are enough: each page that was dirty
//! at the beginning has been written by then.
//!
//! With nothing dirty that is one pass: a system call of some microseconds and a handful of requests, however many files the kernel knows.
//!
//! The thread has a table of descriptors of its own; see [`super::own`].

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

use super::own::{Place, prepare_thread};
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{MARKER, Pusher, Vfs};

/// So many calm passes are enough where programs write all the time.
const CALM: u32 = 4;

/// So many background requests at most in a calm pass: well below what the kernel calls congested, 3/4 of `max_background`.
const FEW: u64 = 32;

/// No barrier takes so many passes, unless programs dirty pages faster than the daemon takes them.
const PASSES: u32 = 10_000;

/// Reads of the marker that follow each other at once, and the longest pause between later ones.
const AT_ONCE: u32 = 4;
const PAUSE: Duration = Duration::from_millis(5);

/// How often a caller looks whether it should wait no longer.
const LOOK: Duration = Duration::from_millis(50);

/// Why nothing was handed in.
#[derive(Clone, Debug)]
enum Failed {
    /// The connection to the kernel is gone: it keeps nothing any more.
    Ended,
    /// The mount is there, but not to be found.
    Unreachable(String),
    /// Programs wrote, or read, faster than the kernel could hand in what they wrote.
    Restless,
}

type Answer = Sender<Result<(), Failed>>;

/// The barrier of one mount.
pub(super) struct Barrier {
    jobs: Sender<Answer>,
    thread: Arc<AtomicU32>,
}

/// What its thread needs to know.
struct Pushing {
    vfs: Arc<Vfs>,
    place: Place,
    loops: usize,
    /// Requests that workers have not answered yet.
    unanswered: Arc<AtomicU64>,
    /// Tells which event loops rest and hold no request.
    resting: Box<dyn Fn() -> Vec<ThreadId> + Send>,
}

/// The thread, before there is a mount.
pub(super) struct Prepared {
    start: Sender<Pushing>,
    barrier: Barrier,
}

impl Barrier {
    /// Starts its thread. To be called before the connection to the kernel is opened.
    pub(super) fn prepare() -> io::Result<Prepared> {
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

    /// The number of its thread, once it is known.
    pub(super) fn thread(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.thread)
    }
}

impl Prepared {
    /// The number of the thread, once it is known.
    pub(super) fn thread(&self) -> Arc<AtomicU32> {
        self.barrier.thread()
    }

    /// Gives it the mount to work on.
    pub(super) fn start(
        self,
        vfs: Arc<Vfs>,
        place: Place,
        loops: usize,
        unanswered: Arc<AtomicU64>,
        resting: impl Fn() -> Vec<ThreadId> + Send + 'static,
    ) -> Barrier {
        let _ = self.start.send(Pushing { vfs, place, loops, unanswered, resting: Box::new(resting) });
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
                        "unmount what covers the mount, or unmount the store: all forks are sealed then",
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
            // All that asked before it begins are answered by one.
            let asked: Vec<Answer> = std::iter::once(first).chain(queue.try_iter()).collect();
            let done = self.push();
            for answer in asked {
                let _ = answer.send(done.clone());
            }
        }
    }

    fn push(&self) -> Result<(), Failed> {
        let root = self.place.root().map_err(Failed::Unreachable)?;
        let mut calm = 0;
        for _ in 0..PASSES {
            let unanswered = self.unanswered.load(Ordering::Acquire);
            let (handed_in, requests) = (self.vfs.handed_in(), self.vfs.background_requests());
            // Its error may be of any fork: the daemon knows each write that failed.
            if let Err(Errno::NOTCONN | Errno::CONNABORTED) = rustix::fs::syncfs(&root) {
                return Err(Failed::Ended);
            }
            let queued = self.drain(&root)?.saturating_sub(requests);
            if queued + unanswered > FEW {
                continue;
            }
            calm += 1;
            if calm == CALM || self.vfs.handed_in() == handed_in {
                return Ok(());
            }
        }
        Err(Failed::Restless)
    }

    /// Waits until the event loops have answered what was queued before the call. Returns how many background requests they have
    /// ever taken: all that were queued when the call began are among them.
    fn drain(&self, root: &File) -> Result<u64, Failed> {
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let marker = openat(root, MARKER, flags, Mode::empty()).map_err(ended)?;
        let ticket = self.vfs.new_ticket();
        let mut taken = None;
        for read in 0.. {
            rustix::io::pread(&marker, &mut [0u8; 1][..], ticket).map_err(ended)?;
            // The kernel gives numbers of devices out again: another daemon may have answered, at the end of this one's mount.
            if self.vfs.loops_passed(&[]) == 0 {
                return Err(Failed::Ended);
            }
            taken.get_or_insert_with(|| self.vfs.background_requests());
            if self.vfs.loops_passed(&(self.resting)()) >= self.loops {
                break;
            }
            if read >= AT_ONCE {
                thread::sleep(PAUSE.min(Duration::from_micros(20) * (read - AT_ONCE + 1)));
            }
        }
        // An event loop may have left some of it to workers.
        let left = self.vfs.writes_left();
        while !self.vfs.are_written(left) {
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
