//! Seals forks automatically: after a pause in writes or at an interval, and when the mount ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cached_writes::CachedWrites;
use super::config::SealPolicy;
use super::fork_table::ForkTable;
use super::invalidation::{Invalidate, Invalidation};
use super::mounted::Mounted;
use super::seals::Seals;
use crate::error::{ErrorKind, Posix};
use crate::fork::{About, Fork, GenId};
use crate::sync::Mutex;

/// Pause before a failed seal is tried again. It doubles after each further failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(5);

/// A fork that began empty is sealed only after this time without writes, or at this age. Until then a program such as
/// `cp -r` may still be filling it, and a seal would create a manifest where the copied one has to go.
const PUT_TOGETHER: Duration = Duration::from_secs(5);
const PUT_TOGETHER_AT_LAST: Duration = Duration::from_mins(10);

/// Forks are sealed one after the other, each with all cores. If one takes longer than this, another thread continues with
/// the other forks.
const PATIENCE: Duration = Duration::from_secs(1);

/// The most threads that seal.
const THREADS: usize = 8;

/// A fork that has unsealed changes.
struct Waiting {
    version: (GenId, u64),
    /// When it reached this version.
    still_since: Instant,
    /// When its first unsealed change was seen.
    changed_since: Instant,
    failures: u32,
    retry_at: Option<Instant>,
    /// The last failure, which is logged once.
    said: String,
}

/// Seals forks automatically. Forks are listed by identity.
pub(super) struct AutoSeal {
    policy: SealPolicy,
    seals: Arc<Seals>,
    table: Arc<ForkTable>,
    cached_writes: Arc<CachedWrites>,
    /// Forks that wait to be sealed.
    waiting: Mutex<HashMap<String, Waiting>>,
    /// Forks that are being sealed, and when that began.
    under_way: Mutex<HashMap<String, Instant>>,
    /// Number of threads that seal.
    threads: AtomicUsize,
    /// Whether the mount has ended.
    ended: AtomicBool,
}

/// A fork that is being sealed, by its identity.
struct UnderWay(Arc<AutoSeal>, String);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.lock().remove(&self.1);
    }
}

/// A thread that seals.
struct Counted(Arc<AutoSeal>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AutoSeal {
    pub(super) fn new(
        policy: SealPolicy,
        seals: Arc<Seals>,
        table: Arc<ForkTable>,
        cached_writes: Arc<CachedWrites>,
    ) -> Self {
        let (waiting, under_way, threads, ended) = Default::default();
        Self { policy, seals, table, cached_writes, waiting, under_way, threads, ended }
    }

    /// Returns when the first unsealed change of a fork was seen, if the fork is due. Must be called from time to time.
    fn due_since(&self, fork: &Fork, now: Instant) -> Option<Instant> {
        let mut waiting = self.waiting.lock();
        if !fork.is_changed() {
            waiting.remove(fork.uid());
            return None;
        }
        let version = fork.version();
        let entry = waiting.entry(fork.uid().to_owned()).or_insert_with(|| Waiting {
            version,
            still_since: now,
            changed_since: now,
            failures: 0,
            retry_at: None,
            said: String::new(),
        });
        if entry.version != version {
            (entry.version, entry.still_since) = (version, now);
            if matches!(self.policy, SealPolicy::Idle(_)) {
                // Later writes may have removed the cause of the failure.
                entry.retry_at = None;
            }
        }
        if entry.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let still = now.duration_since(entry.still_since);
        let growing = fork.base().is_none() && still < PUT_TOGETHER;
        if growing && now.duration_since(entry.changed_since) < PUT_TOGETHER_AT_LAST {
            return None;
        }
        let due = match self.policy {
            SealPolicy::Idle(pause) => still >= pause,
            SealPolicy::Interval(period) => now.duration_since(entry.changed_since) >= period,
            SealPolicy::Manual => false,
        };
        due.then_some(entry.changed_since)
    }

    fn succeeded(&self, fork: &Fork) {
        self.waiting.lock().remove(fork.uid());
    }

    /// Notes a failure. Returns whether it differs from the last one, and so should be logged.
    fn failed(&self, fork: &Fork, error: &str, now: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(entry) = waiting.get_mut(fork.uid()) else { return true };
        let pause = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16)).min(LAST_RETRY);
        entry.failures += 1;
        entry.retry_at = Some(now + pause);
        // The freeze may have begun a new generation, which does not count as a change.
        (entry.version, entry.still_since) = (fork.version(), entry.still_since);
        let news = entry.said != error;
        error.clone_into(&mut entry.said);
        news
    }
}

impl AutoSeal {
    /// Claims a fork for the caller to seal. Returns none if another thread already seals it.
    fn begin(self: &Arc<Self>, fork: &Fork) -> Option<UnderWay> {
        let mut under_way = self.under_way.lock();
        if under_way.contains_key(fork.uid()) {
            return None;
        }
        under_way.insert(fork.uid().to_owned(), Instant::now());
        Some(UnderWay(Arc::clone(self), fork.uid().to_owned()))
    }

    /// Whether another thread should seal the other forks, since the running seals take too long.
    fn needs_thread(&self) -> bool {
        let long = self.under_way.lock().values().filter(|since| since.elapsed() > PATIENCE).count();
        let threads = self.threads.load(Ordering::Relaxed);
        !self.ended.load(Ordering::Relaxed) && threads <= long && threads < THREADS
    }
}

impl AutoSeal {
    /// Seals the forks that are due, on separate threads. `invalidate` gets the invalidations for the kernel.
    ///
    /// Must be called from time to time, by one thread.
    pub(super) fn seal_due(self: &Arc<Self>, invalidate: &Invalidate) {
        if self.policy == SealPolicy::Manual {
            return;
        }
        let (first, needs_thread) = (self.due(), self.needs_thread());
        let Some(first) = first.filter(|_| needs_thread) else { return };
        let (this, invalidate) = (Arc::clone(self), Arc::clone(invalidate));
        self.threads.fetch_add(1, Ordering::Relaxed);
        // Counted until it is dropped, even if the thread does not start.
        let counted = Counted(Arc::clone(self));
        let seal = move || {
            let _counted = counted;
            let mut next = Some(first);
            while let Some((mounted, _under_way)) = next {
                invalidate(&this.seal(&mounted, this.policy.reason()));
                next = this.due();
            }
        };
        if let Err(error) = thread::Builder::new().name("pfimg-auto-seal".into()).spawn(seal) {
            tracing::warn!("cannot start a thread to seal forks: {error}");
        }
    }

    /// Claims the fork that has been due longest and is not yet being sealed.
    fn due(self: &Arc<Self>) -> Option<(Mounted, UnderWay)> {
        if self.ended.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        // Looks at all forks, since each look notes how long a fork has had no writes. Takes the one that has been due longest,
        // so that each gets its turn.
        let since = |mounted: Mounted| Some((self.due_since(&mounted.fork, now)?, mounted));
        let mut due: Vec<(Instant, Mounted)> = self.table.in_use().into_iter().filter_map(since).collect();
        due.sort_by_key(|(since, _)| *since);
        due.into_iter().find_map(|(_, mounted)| {
            let under_way = self.begin(&mounted.fork)?;
            Some((mounted, under_way))
        })
    }

    /// Whether a fork in use waits for an automatic seal.
    pub(super) fn has_unsealed(&self) -> bool {
        self.policy != SealPolicy::Manual
            && self.table.in_use().iter().any(|mounted| mounted.fork.is_changed())
    }

    /// Seals every fork in use that has unsealed changes. Called after the mount has ended.
    pub(super) fn seal_all(&self) {
        self.ended.store(true, Ordering::Relaxed);
        if self.policy == SealPolicy::Manual {
            return;
        }
        let forks = self.table.in_use();
        let next = AtomicUsize::new(0);
        let seal = || {
            while let Some(mounted) = forks.get(next.fetch_add(1, Ordering::Relaxed)) {
                // A fork that is already being sealed is waited for.
                if mounted.fork.is_changed() && !self.seals.sealer.is_stopped() {
                    self.seal(mounted, "end of the mount");
                }
            }
        };
        // Several threads, so that one large fork does not delay the others, in case the process is killed before all are
        // sealed.
        thread::scope(|scope| {
            for _ in 1..THREADS.min(forks.len()) {
                if let Err(error) = thread::Builder::new().spawn_scoped(scope, seal) {
                    // The threads that did start seal all forks.
                    tracing::warn!("cannot start a thread to seal forks: {error}");
                    break;
                }
            }
            seal();
        });
        while !self.under_way.lock().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops running seals and begins no more. Unsealed changes stay in the forks.
    pub(super) fn stop(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.cached_writes.end();
        if self.seals.sealer.stop() {
            tracing::warn!("sealing was stopped: unsealed changes stay in the forks");
        }
    }

    fn seal(&self, mounted: &Mounted, why: &str) -> Vec<Invalidation> {
        let fork = &mounted.fork;
        match self.seals.seal_mounted(mounted, None, false, &About::after(why)) {
            Ok((_, stale)) => {
                self.succeeded(fork);
                stale
            }
            // The fork was discarded, or another program writes it.
            Err(error) if matches!(error.kind(), ErrorKind::Posix(Posix::Stale) | ErrorKind::ReadOnly) => {
                Vec::new()
            }
            // `stop` has logged it.
            Err(_) if self.seals.sealer.is_stopped() => Vec::new(),
            Err(error) => {
                if self.failed(fork, &error.to_string(), Instant::now()) {
                    tracing::error!(
                        fork = fork.name(),
                        "{error}; the fork stays unsealed, and pfimg tries again"
                    );
                }
                Vec::new()
            }
        }
    }
}
