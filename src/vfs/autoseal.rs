//! Seals that nobody asked for: of forks that rest, or every now and then, and when the mount ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::snap::Stale;
use super::{Vfs, forked::Mounted};
use crate::error::{ErrorKind, Posix};
use crate::fork::{About, Fork, GenId};
use crate::sync::Mutex;

/// When forks are sealed by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealPolicy {
    /// When nothing was written to a fork for so long, and when the mount ends.
    Idle(Duration),
    /// So long after the first change since the last seal, and when the mount ends.
    Interval(Duration),
    /// Never.
    Manual,
}

impl SealPolicy {
    /// Why a fork is sealed by itself, in a word.
    fn reason(self) -> &'static str {
        match self {
            Self::Idle(_) => "idle",
            Self::Interval(_) => "interval",
            Self::Manual => "",
        }
    }
}

/// A seal that failed is tried again after this, then after twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(5);

/// A fork that began empty is not sealed before it rested for so long, or is so old: whoever puts it together file by file, as
/// `cp -r` does, is not done yet, and a seal would put a manifest where the copied one has to go.
const PUT_TOGETHER: Duration = Duration::from_secs(5);
const PUT_TOGETHER_AT_LAST: Duration = Duration::from_mins(10);

/// One fork after the other is sealed, each with all cores. Where that takes longer, the others do not wait: another thread
/// goes on with them.
const PATIENCE: Duration = Duration::from_secs(1);

/// That many threads at most.
const THREADS: usize = 8;

/// What is known of a fork that has unsealed changes.
struct Waiting {
    version: (GenId, u64),
    /// Since when it is at this version.
    still_since: Instant,
    /// Since when it has unsealed changes.
    changed_since: Instant,
    failures: u32,
    retry_at: Option<Instant>,
    /// What went wrong last, which is said once.
    said: String,
}

/// Tells the kernel what looks different now.
pub type Tell = Arc<dyn Fn(&[Stale]) + Send + Sync>;

/// Forks by identity.
#[derive(Default)]
pub(super) struct AutoSeal {
    /// Those that wait to be sealed.
    waiting: Mutex<HashMap<String, Waiting>>,
    /// Those that are sealed now, and since when.
    under_way: Mutex<HashMap<String, Instant>>,
    /// Threads that do so.
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
    /// Since when a fork waits whose time has come. To be asked now and then.
    fn due_since(&self, fork: &Fork, policy: SealPolicy, now: Instant) -> Option<Instant> {
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
            if matches!(policy, SealPolicy::Idle(_)) {
                // What failed may be mended by what was written since.
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
        let due = match policy {
            SealPolicy::Idle(pause) => still >= pause,
            SealPolicy::Interval(period) => now.duration_since(entry.changed_since) >= period,
            SealPolicy::Manual => false,
        };
        due.then_some(entry.changed_since)
    }

    fn succeeded(&self, fork: &Fork) {
        self.waiting.lock().remove(fork.uid());
    }

    /// Notes a failure. Whether it is worth telling: another than the last.
    fn failed(&self, fork: &Fork, error: &str, now: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(entry) = waiting.get_mut(fork.uid()) else { return true };
        let pause = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16)).min(LAST_RETRY);
        entry.failures += 1;
        entry.retry_at = Some(now + pause);
        // Freezing may have put it into a new generation, which is no change.
        (entry.version, entry.still_since) = (fork.version(), entry.still_since);
        let news = entry.said != error;
        error.clone_into(&mut entry.said);
        news
    }
}

impl AutoSeal {
    /// Whether nobody seals the fork yet; then the caller does.
    fn begin(self: &Arc<Self>, fork: &Fork) -> Option<UnderWay> {
        let mut under_way = self.under_way.lock();
        if under_way.contains_key(fork.uid()) {
            return None;
        }
        under_way.insert(fork.uid().to_owned(), Instant::now());
        Some(UnderWay(Arc::clone(self), fork.uid().to_owned()))
    }

    /// Whether whoever seals is at it for so long that others should not wait for it.
    fn needs_thread(&self) -> bool {
        let long = self.under_way.lock().values().filter(|since| since.elapsed() > PATIENCE).count();
        let threads = self.threads.load(Ordering::Relaxed);
        !self.ended.load(Ordering::Relaxed) && threads <= long && threads < THREADS
    }
}

impl Vfs {
    /// Seals the forks whose time has come, on threads of its own; `tell` is given what the kernel has to be told. To be
    /// called now and then, by one thread.
    pub fn seal_due(self: &Arc<Self>, tell: &Tell) {
        if self.config.seal == SealPolicy::Manual {
            return;
        }
        let (first, needs_thread) = (self.due(), self.auto_seal.needs_thread());
        let Some(first) = first.filter(|_| needs_thread) else { return };
        let (vfs, tell) = (Arc::clone(self), Arc::clone(tell));
        self.auto_seal.threads.fetch_add(1, Ordering::Relaxed);
        // Counted until it is dropped, whatever becomes of the thread.
        let counted = Counted(Arc::clone(&self.auto_seal));
        let seal = move || {
            let _counted = counted;
            let mut next = Some(first);
            while let Some((mounted, _under_way)) = next {
                tell(&vfs.seal_by_itself(&mounted, vfs.config.seal.reason()));
                next = vfs.due();
            }
        };
        if let Err(error) = thread::Builder::new().name("pfimg-auto-seal".into()).spawn(seal) {
            tracing::warn!("cannot start a thread to seal forks: {error}");
        }
    }

    /// A fork whose time has come and that nobody seals yet.
    fn due(&self) -> Option<(Mounted, UnderWay)> {
        if self.auto_seal.ended.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        // All are looked at: each look notes how long a fork has rested. The one that waits longest is first, or those behind it
        // would never be.
        let since = |mounted: Mounted| {
            Some((self.auto_seal.due_since(&mounted.fork, self.config.seal, now)?, mounted))
        };
        let mut due: Vec<(Instant, Mounted)> = self.forks.in_use().into_iter().filter_map(since).collect();
        due.sort_by_key(|(since, _)| *since);
        due.into_iter().find_map(|(_, mounted)| {
            let under_way = self.auto_seal.begin(&mounted.fork)?;
            Some((mounted, under_way))
        })
    }

    /// Whether a fork waits to be sealed by itself, of those that were looked at.
    pub fn has_unsealed(&self) -> bool {
        self.config.seal != SealPolicy::Manual
            && self.forks.in_use().iter().any(|mounted| mounted.fork.is_changed())
    }

    /// Seals every fork that has unsealed changes, as far as it was looked at, after the mount has ended.
    pub fn seal_all(&self) {
        self.auto_seal.ended.store(true, Ordering::Relaxed);
        if self.config.seal == SealPolicy::Manual {
            return;
        }
        let forks = self.forks.in_use();
        let next = AtomicUsize::new(0);
        let seal = || {
            while let Some(mounted) = forks.get(next.fetch_add(1, Ordering::Relaxed)) {
                // One that is being sealed is waited for.
                if mounted.fork.is_changed() && !self.sealing.sealer.is_stopped() {
                    self.seal_by_itself(mounted, "end of the mount");
                }
            }
        };
        // One that takes long does not keep the others from it, whatever happens to this process meanwhile.
        thread::scope(|scope| {
            for _ in 1..THREADS.min(forks.len()) {
                if let Err(error) = thread::Builder::new().spawn_scoped(scope, seal) {
                    // Those that are there seal all of them.
                    tracing::warn!("cannot start a thread to seal forks: {error}");
                    break;
                }
            }
            seal();
        });
        while !self.auto_seal.under_way.lock().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends what is being sealed, and seals nothing more: it stays in the forks as it is.
    pub fn stop_sealing(&self) {
        self.auto_seal.ended.store(true, Ordering::Relaxed);
        self.late.end();
        if self.sealing.sealer.stop() {
            tracing::warn!("sealing is ended: what is not sealed yet stays in the forks");
        }
    }

    fn seal_by_itself(&self, mounted: &Mounted, why: &str) -> Vec<Stale> {
        let fork = &mounted.fork;
        match self.seal_mounted(mounted, None, false, &About::after(why)) {
            Ok((_, stale)) => {
                self.auto_seal.succeeded(fork);
                stale
            }
            // Discarded meanwhile, or not ours to write.
            Err(error) if matches!(error.kind(), ErrorKind::Posix(Posix::Stale) | ErrorKind::ReadOnly) => {
                Vec::new()
            }
            // That was told.
            Err(_) if self.sealing.sealer.is_stopped() => Vec::new(),
            Err(error) => {
                if self.auto_seal.failed(fork, &error.to_string(), Instant::now()) {
                    tracing::error!(fork = fork.name(), "{error}; it stays as it is, and is tried again");
                }
                Vec::new()
            }
        }
    }
}
