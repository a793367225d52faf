//! The events of a mount in the audit log.
//!
//! A successful operation has no event, since the fork records it. Refused operations are logged, as are events of forks,
//! tags and the cache as a whole.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use super::attempt::{Attempt, logged};
use super::metrics::Op;
use crate::audit::{Follower, Log, follow, note};
use crate::cache::Cache;
use crate::error::{Error, ErrorKind, Posix};
use crate::fork::{Fork, Registry};
use crate::ops::recover;
use crate::store::Store;
use crate::sync::Mutex;
use crate::sync::wait::{self, MayWait};

/// Bytes of the log that `.pfimg/events.jsonl` shows: its newest lines.
const SHOWN: u64 = 1 << 20;

/// The audit log of a mount, and what was logged.
pub(super) struct AuditTrail {
    log: Log,
    follower: Mutex<Follower>,
    /// Logged fills of the cache, their bytes, and evictions.
    told: Mutex<[u64; 3]>,
    /// Forks that could not be read back. Each is logged once.
    unreadable: Mutex<HashSet<String>>,
    /// Number of refused calls.
    refused: AtomicU64,
}

impl AuditTrail {
    pub(super) fn new(store: &Store, log: Log) -> Self {
        Self {
            log,
            follower: Mutex::new(Follower::new(store.root())),
            told: Mutex::default(),
            unreadable: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// The log.
    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// Logs a call that failed, if it was refused. `path` finds the path of the call.
    pub(super) fn refused(&self, op: Op, kind: ErrorKind, path: impl FnOnce() -> Option<String>) {
        let reason = match kind {
            ErrorKind::ReadOnly => "read-only",
            ErrorKind::PermissionDenied => "permission denied",
            ErrorKind::Posix(Posix::NotPermitted) => "not permitted for any user",
            ErrorKind::NoSpace => return self.log.note(note::budget_exceeded("disk", op.name())),
            _ => return,
        };
        if self.log.is_written() {
            let number = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
            let call = format!("{}-{number}", std::process::id());
            self.log.note(note::gated(op.name(), reason, path().as_deref(), &call));
        }
    }

    /// Logs what the cache has done since the last call. Must be called from time to time.
    pub(super) fn note_cache(&self, cache: &Cache) {
        let stats = cache.stats();
        let mut told = self.told.lock();
        let now = [stats.fills, stats.fill_bytes, stats.evictions];
        let [fills, bytes, evictions] = [0, 1, 2].map(|i: usize| now[i].saturating_sub(told[i]));
        if fills > 0 {
            self.log.note_quietly(note::page_in(fills, bytes));
        }
        if evictions > 0 {
            self.log.note_quietly(note::page_out(evictions));
        }
        *told = now;
    }

    /// `.pfimg/events.jsonl`: the newest lines of the log.
    pub(super) fn newest_events(&self, _: MayWait, store: &Store) -> Vec<u8> {
        wait::disk("audit");
        self.log.flush();
        follow::last_lines(store.root(), SHOWN)
    }

    /// `.pfimg/audit.json`: the summary of the whole log, updated line by line.
    pub(super) fn summary(&self, _: MayWait) -> Attempt<Vec<u8>> {
        wait::disk("audit");
        self.log.flush();
        let report = self.follower.lock().catch_up().map_err(logged)?;
        Ok(format!("{:#}\n", json!(report)).into_bytes())
    }

    /// Judges a fork that was read back.
    pub(super) fn judge(&self, store: &Store, name: &str, fork: &Fork) {
        recover::judge(store, name, fork, &self.log);
    }

    /// Judges a fork that cannot be read back at all. Does so once for each fork.
    pub(super) fn judge_unreadable(&self, store: &Store, registry: &Registry, name: &str, error: &Error) {
        let mut told = self.unreadable.lock();
        if !told.contains(name)
            && recover::judge_unreadable(store, registry, name, error, &self.log).is_some()
        {
            told.insert(name.to_owned());
        }
    }
}
