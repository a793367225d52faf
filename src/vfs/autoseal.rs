//! Seals that nobody asked for: of forks that rest, or every now and then, and when the mount ends.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::snap::Stale;
use super::{Vfs, forked::Mounted};
use crate::error::{ErrorKind, Posix};
use crate::fork::{Fork, GenId};

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

/// A seal that failed is tried again after this, then after twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(5);

/// A fork that began empty is not sealed before it rested for so long, or is so old: whoever puts it together file by file, as
/// `cp -r` does, is not done yet, and a seal would put a manifest where the copied one has to go.
const PUT_TOGETHER: Duration = Duration::from_secs(5);
const PUT_TOGETHER_AT_LAST: Duration = Duration::from_mins(10);

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

/// The forks that wait to be sealed, by identity.
#[derive(Default)]
pub(super) struct AutoSeal(Mutex<HashMap<String, Waiting>>);

impl AutoSeal {
    /// Whether a fork's time has come. To be asked now and then.
    fn is_due(&self, fork: &Fork, policy: SealPolicy, now: Instant) -> bool {
        let mut waiting = self.0.lock();
        if !fork.is_changed() {
            waiting.remove(fork.uid());
            return false;
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
            return false;
        }
        let still = now.duration_since(entry.still_since);
        let growing = fork.base().is_none() && still < PUT_TOGETHER;
        if growing && now.duration_since(entry.changed_since) < PUT_TOGETHER_AT_LAST {
            return false;
        }
        match policy {
            SealPolicy::Idle(pause) => still >= pause,
            SealPolicy::Interval(period) => now.duration_since(entry.changed_since) >= period,
            SealPolicy::Manual => false,
        }
    }

    fn succeeded(&self, fork: &Fork) {
        self.0.lock().remove(fork.uid());
    }

    /// Notes a failure. Whether it is worth telling: another than the last.
    fn failed(&self, fork: &Fork, error: &str, now: Instant) -> bool {
        let mut waiting = self.0.lock();
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

impl Vfs {
    /// Seals the forks whose time has come. To be called now and then, by one thread.
    pub fn seal_due(&self) -> Vec<Stale> {
        let policy = self.config.seal;
        if policy == SealPolicy::Manual {
            return Vec::new();
        }
        let due = |mounted: &Mounted| self.auto_seal.is_due(&mounted.fork, policy, Instant::now());
        let forks: Vec<Mounted> = self.forks.in_use().into_iter().filter(due).collect();
        forks.iter().flat_map(|mounted| self.seal_by_itself(mounted)).collect()
    }

    /// Seals every fork that has unsealed changes, as far as it was looked at, before the mount ends.
    pub fn seal_all(&self) {
        if self.config.seal == SealPolicy::Manual {
            return;
        }
        for mounted in self.forks.in_use() {
            if mounted.fork.is_changed() {
                self.seal_by_itself(&mounted);
            }
        }
    }

    fn seal_by_itself(&self, mounted: &Mounted) -> Vec<Stale> {
        let fork = &mounted.fork;
        match self.seal_mounted(mounted, None, false) {
            Ok((_, stale)) => {
                self.auto_seal.succeeded(fork);
                stale
            }
            // Discarded meanwhile, or not ours to write.
            Err(error) if matches!(error.kind(), ErrorKind::Posix(Posix::Stale) | ErrorKind::ReadOnly) => {
                Vec::new()
            }
            Err(error) => {
                if self.auto_seal.failed(fork, &error.to_string(), Instant::now()) {
                    tracing::error!(fork = fork.name(), "{error}; it stays as it is, and is tried again");
                }
                Vec::new()
            }
        }
    }
}
