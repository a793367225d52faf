//! What programs wrote and the kernel still keeps: it is handed in before a snapshot is taken.
//!
//! A program that writes through a shared mapping changes pages of the kernel, and reads show the new bytes at once. The daemon
//! gets them when the kernel writes the pages back; with `--writes back`, those of write(2) too. So each seal, branch and
//! comparison first has the kernel hand in all that it keeps: [`Vfs::push`], which nothing that takes a snapshot goes around.
//!
//! `fuse::barrier` does the work, since it takes calls on the mount. Here is what it needs to know: which failure belongs to
//! which fork, and which event loops have answered all that was handed in before, or left it to a worker that has not done it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ThreadId};

use crate::sync::Mutex;

use super::{Op, Vfs};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, Fork};

/// The name, in the mount's own folder, of the file that a barrier reads. It is not listed.
pub(crate) const MARKER: &str = ".pfimg-barrier";

/// The length of that file: each barrier reads at an offset of its own.
pub(super) const MARKER_SIZE: u64 = 1 << 62;

/// The distance between two of those offsets, a multiple of every block size.
const STEP: u64 = 1 << 16;

/// Has the kernel hand in what it keeps.
pub trait Pusher: Send + Sync {
    /// Returns once everything that was written before the call has been handed in, the mount has ended, or `ended` says so.
    fn push(&self, ended: &dyn Fn() -> bool) -> Result<()>;
}

/// A write that the kernel had kept and that failed when it was handed in.
#[derive(Clone, Debug)]
struct Failure {
    /// How many there were in that fork.
    count: u64,
    kind: ErrorKind,
    path: String,
}

/// What a mount knows of writes that the kernel keeps.
#[derive(Default)]
pub(super) struct Late {
    pusher: Mutex<Option<Arc<dyn Pusher>>>,
    ended: AtomicBool,
    /// By the fork's identity.
    failures: Mutex<HashMap<String, Failure>>,
    /// Writes that were handed in, and calls during which the kernel holds writes of a file back.
    handed_in: AtomicU64,
    ticket: AtomicU64,
    /// Reads of the marker.
    marks: AtomicU64,
    /// The event loops that have read the file at the offset of the newest ticket.
    passed: Mutex<HashSet<ThreadId>>,
    left: Mutex<Left>,
}

/// Writes that event loops left to workers.
#[derive(Default)]
struct Left {
    /// How many there were so far.
    count: u64,
    /// Those that are not done, by their number.
    under_way: BTreeSet<u64>,
}

/// A write that an event loop leaves to a worker, until it is done.
pub struct LeftWrite {
    late: Arc<Late>,
    number: u64,
}

impl Drop for LeftWrite {
    fn drop(&mut self) {
        self.late.left.lock().under_way.remove(&self.number);
    }
}

impl Late {
    fn failures_of(&self, fork: &Fork) -> u64 {
        self.failures.lock().get(fork.uid()).map_or(0, |failure| failure.count)
    }

    /// Has the kernel hand in what programs wrote before the call. An error is of this fork, or of the mount as a whole.
    pub(super) fn push(&self, fork: &Fork) -> Result<()> {
        let pusher = self.pusher.lock().clone();
        // Without a mount the kernel keeps nothing, and of a fork that is not written here neither.
        let Some(pusher) = pusher.filter(|_| fork.may_write().is_ok()) else { return Ok(()) };
        let before = self.failures_of(fork);
        pusher.push(&|| self.ended.load(Ordering::Relaxed))?;
        let failure = self.failures.lock().get(fork.uid()).cloned();
        match failure {
            Some(Failure { count, kind, path }) if count != before => Err(Error::new(
                kind,
                format!(
                    "pfimg could not store bytes that a program wrote to {path} of fork {:?} and that the kernel had kept",
                    fork.name()
                ),
            )
            .with_hint("make space if the disk is full, write the file again and try again")),
            _ => Ok(()),
        }
    }

    /// Ends waiting.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Notes how a write went that the kernel had kept.
    pub(super) fn was_handed_in(&self, fork: &Fork, ino: fork::Ino, failed: Option<ErrorKind>) {
        self.handed_in.fetch_add(1, Ordering::Relaxed);
        // What the rules of a fork refuse has to be missing from a snapshot.
        let kind = failed.filter(|kind| {
            !matches!(kind, ErrorKind::ReadOnly | ErrorKind::PermissionDenied | ErrorKind::Posix(_))
        });
        let Some(kind) = kind else { return };
        let path = String::from_utf8_lossy(&fork.path(ino).unwrap_or_default()).into_owned();
        let mut failures = self.failures.lock();
        let count = failures.get(fork.uid()).map_or(0, |failure| failure.count) + 1;
        failures.insert(fork.uid().to_owned(), Failure { count, kind, path });
    }

    /// Notes a call during which the kernel holds the writes of a file back.
    pub(super) fn held_back(&self) {
        self.handed_in.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the calling event loop answers the reading of the marker at this offset.
    pub(super) fn passes(&self, offset: u64) {
        self.marks.fetch_add(1, Ordering::Relaxed);
        let mut passed = self.passed.lock();
        if self.ticket.load(Ordering::Relaxed) == offset {
            passed.insert(thread::current().id());
        }
    }

    fn new_ticket(&self) -> u64 {
        let mut passed = self.passed.lock();
        let ticket = (self.ticket.load(Ordering::Relaxed) + STEP) % MARKER_SIZE;
        self.ticket.store(ticket, Ordering::Relaxed);
        passed.clear();
        ticket
    }
}

impl Vfs {
    /// Has this one push what the kernel keeps, from now on; or no one.
    pub fn push_by(&self, pusher: Option<Arc<dyn Pusher>>) {
        *self.late.pusher.lock() = pusher;
    }

    /// Has the kernel hand in what programs wrote before the call, whatever of it belongs to this fork.
    pub(super) fn push(&self, fork: &Fork) -> Result<()> {
        self.late.push(fork)
    }

    /// Notes that the calling event loop leaves a write to a worker.
    pub fn leave_write(&self) -> LeftWrite {
        let mut left = self.late.left.lock();
        left.count += 1;
        let number = left.count;
        left.under_way.insert(number);
        LeftWrite { late: Arc::clone(&self.late), number }
    }

    /// How many writes were left to workers so far.
    pub(crate) fn writes_left(&self) -> u64 {
        self.late.left.lock().count
    }

    /// Whether as many of them are done, the first ones.
    pub(crate) fn are_written(&self, first: u64) -> bool {
        self.late.left.lock().under_way.first().is_none_or(|number| *number > first)
    }

    /// Writes that were handed in so far, and calls that hold some back.
    pub(crate) fn handed_in(&self) -> u64 {
        self.late.handed_in.load(Ordering::Relaxed)
    }

    /// Requests so far of the kinds that the kernel queues as background requests, but for reads of the marker.
    pub(crate) fn background_requests(&self) -> u64 {
        let kinds = [Op::Read, Op::Write, Op::Release, Op::Releasedir];
        let all: u64 = kinds.iter().map(|op| self.metrics.requests(*op)).sum();
        all.saturating_sub(self.late.marks.load(Ordering::Relaxed))
    }

    /// An offset to read the marker at. Only reads at the newest one count.
    pub(crate) fn new_ticket(&self) -> u64 {
        self.late.new_ticket()
    }

    /// How many event loops have answered a read at the newest ticket, or are among these others.
    pub(crate) fn loops_passed(&self, others: &[ThreadId]) -> usize {
        let passed = self.late.passed.lock();
        passed.len() + others.iter().filter(|other| !passed.contains(other)).count()
    }
}
