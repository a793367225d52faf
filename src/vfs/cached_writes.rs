//! Makes the kernel hand in cached writes before a snapshot is taken.
//!
//! A program that writes through a shared mapping changes pages of the kernel, and reads show the new bytes at once. The daemon
//! gets the bytes only when the kernel writes the pages back. With `--writes back` this also holds for write(2). So each seal,
//! branch and comparison first calls [`CachedWrites::push`].
//!
//! `fuse::barrier` does the work, since it needs calls on the mount. This file records which failure belongs to which fork,
//! which event loops have answered all writes that were handed in before, and which of these writes workers still have to do.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ThreadId};

use super::metrics::{Metrics, Op};
use super::node::MARKER_SIZE;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, Fork};
use crate::sync::Mutex;

/// The distance in bytes between two of those offsets, a multiple of every block size.
const STEP: u64 = 1 << 16;

/// Makes the kernel hand in cached writes.
pub trait Pusher: Send + Sync {
    /// Returns once all writes before the call have been handed in, the mount has ended, or `ended` returns true.
    fn push(&self, ended: &dyn Fn() -> bool) -> Result<()>;
}

/// A cached write that failed when the kernel handed it in.
#[derive(Clone, Debug)]
struct Failure {
    /// Number of such writes in that fork.
    count: u64,
    kind: ErrorKind,
    path: String,
}

/// A mount's knowledge of writes that the kernel caches.
pub struct CachedWrites {
    metrics: Arc<Metrics>,
    pusher: Mutex<Option<Arc<dyn Pusher>>>,
    ended: AtomicBool,
    /// By the fork's identity.
    failures: Mutex<HashMap<String, Failure>>,
    /// Number of writes that were handed in, and of calls during which the kernel holds back the writes of a file.
    handed_in: AtomicU64,
    ticket: AtomicU64,
    /// Number of reads of the marker.
    marks: AtomicU64,
    /// The event loops that have read the file at the offset of the newest ticket.
    passed: Mutex<HashSet<ThreadId>>,
    left: Mutex<Left>,
}

/// Writes that event loops left to workers.
#[derive(Default)]
struct Left {
    /// Number of such writes so far.
    count: u64,
    /// Numbers of the writes that are not done.
    under_way: BTreeSet<u64>,
}

/// A write that an event loop has left to a worker. Dropping it means that the write is done.
pub struct LeftWrite {
    all: Arc<CachedWrites>,
    number: u64,
}

impl Drop for LeftWrite {
    fn drop(&mut self) {
        self.all.left.lock().under_way.remove(&self.number);
    }
}

impl std::fmt::Debug for CachedWrites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedWrites").finish_non_exhaustive()
    }
}

impl CachedWrites {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let (pusher, ended, failures, handed_in, ticket, marks, passed, left) = Default::default();
        Self { metrics, pusher, ended, failures, handed_in, ticket, marks, passed, left }
    }

    fn failures_of(&self, fork: &Fork) -> u64 {
        self.failures.lock().get(fork.uid()).map_or(0, |failure| failure.count)
    }

    /// Makes the kernel hand in the writes before the call. Fails if a write of this fork failed, or the whole mount.
    pub(super) fn push(&self, fork: &Fork) -> Result<()> {
        let pusher = self.pusher.lock().clone();
        // The kernel caches no writes without a mount, and none of a fork that this mount does not write.
        let Some(pusher) = pusher.filter(|_| fork.may_write().is_ok()) else { return Ok(()) };
        let before = self.failures_of(fork);
        pusher.push(&|| self.ended.load(Ordering::Relaxed))?;
        let failure = self.failures.lock().get(fork.uid()).cloned();
        match failure {
            Some(Failure { count, kind, path }) if count != before => Err(Error::new(
                kind,
                format!(
                    "pfimg could not store bytes that a program wrote to {path} of fork {:?} and that the kernel had cached",
                    fork.name()
                ),
            )
            .with_hint("free space if the disk is full, write the file again and repeat the command")),
            _ => Ok(()),
        }
    }

    /// Ends all waiting for the kernel.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Notes the result of a write that the kernel had cached.
    pub(super) fn was_handed_in(&self, fork: &Fork, ino: fork::Ino, failed: Option<ErrorKind>) {
        self.handed_in.fetch_add(1, Ordering::Relaxed);
        // A write that the rules of a fork refuse must be missing from a snapshot, so it is not a failure.
        let kind = failed.filter(|kind| {
            !matches!(kind, ErrorKind::ReadOnly | ErrorKind::PermissionDenied | ErrorKind::Posix(_))
        });
        let Some(kind) = kind else { return };
        let path = String::from_utf8_lossy(&fork.path(ino).unwrap_or_default()).into_owned();
        let mut failures = self.failures.lock();
        let count = failures.get(fork.uid()).map_or(0, |failure| failure.count) + 1;
        failures.insert(fork.uid().to_owned(), Failure { count, kind, path });
    }

    /// Notes a call during which the kernel holds back the writes of a file.
    pub(super) fn held_back(&self) {
        self.handed_in.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the calling event loop answers a read of the marker at this offset.
    pub(super) fn passes(&self, offset: u64) {
        self.marks.fetch_add(1, Ordering::Relaxed);
        let mut passed = self.passed.lock();
        if self.ticket.load(Ordering::Relaxed) == offset {
            passed.insert(thread::current().id());
        }
    }

    /// Returns an offset at which to read the marker. Only reads at the newest one count.
    pub(crate) fn new_ticket(&self) -> u64 {
        let mut passed = self.passed.lock();
        let ticket = (self.ticket.load(Ordering::Relaxed) + STEP) % MARKER_SIZE;
        self.ticket.store(ticket, Ordering::Relaxed);
        passed.clear();
        ticket
    }

    /// Sets the pusher to use from now on, or none.
    pub fn push_by(&self, pusher: Option<Arc<dyn Pusher>>) {
        *self.pusher.lock() = pusher;
    }

    /// Notes that the calling event loop leaves a write to a worker.
    pub fn leave_write(self: &Arc<Self>) -> LeftWrite {
        let mut left = self.left.lock();
        left.count += 1;
        let number = left.count;
        left.under_way.insert(number);
        LeftWrite { all: Arc::clone(self), number }
    }

    /// Counts the writes that were left to workers so far.
    pub(crate) fn writes_left(&self) -> u64 {
        self.left.lock().count
    }

    /// Whether the first `first` of these writes are done.
    pub(crate) fn are_written(&self, first: u64) -> bool {
        self.left.lock().under_way.first().is_none_or(|number| *number > first)
    }

    /// Counts the writes that were handed in so far, and the calls that hold back some.
    pub(crate) fn handed_in(&self) -> u64 {
        self.handed_in.load(Ordering::Relaxed)
    }

    /// Counts the requests so far of kinds that the kernel queues in the background, without reads of the marker.
    pub(crate) fn background_requests(&self) -> u64 {
        let kinds = [Op::Read, Op::Write, Op::Release, Op::Releasedir];
        let all: u64 = kinds.iter().map(|op| self.metrics.requests(*op)).sum();
        all.saturating_sub(self.marks.load(Ordering::Relaxed))
    }

    /// Counts the event loops that have answered a read at the newest ticket, or are in `others`.
    pub(crate) fn loops_passed(&self, others: &[ThreadId]) -> usize {
        let passed = self.passed.lock();
        passed.len() + others.iter().filter(|other| !passed.contains(other)).count()
    }
}
