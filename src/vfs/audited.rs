//! Operations that change something, and their events in the audit log.
//!
//! A successful operation has no event, since the fork records it. Refused operations are logged, as are events of forks,
//! tags and the cache as a whole.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use super::attempt::{logged, may_wait};
use super::called::At;
use super::inode::{Fixed, Ino, Node};
use super::{Attempt, Attr, Entry, Op, Outcome, Process, Stop, Vfs, Writer};
use crate::audit::{Follower, Log, follow, note};
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::{Allocate, Fork, NewFile, Registry, RenameMode, SetAttr};
use crate::layers::world::Kind;
use crate::ops::recover;
use crate::store::Store;
use crate::sync::Mutex;
use crate::sync::wait::{self, MayWait};

/// Bytes of the log that `.pfimg/events.jsonl` shows: its newest lines.
const SHOWN: u64 = 1 << 20;

/// The audit log of a mount, and what was logged.
pub(super) struct Audit {
    log: Log,
    follower: Mutex<Follower>,
    /// Logged fills of the cache, their bytes, and evictions.
    told: Mutex<[u64; 3]>,
    /// Forks that could not be read back. Each is logged once.
    unreadable: Mutex<HashSet<String>>,
    /// Number of refused calls.
    refused: AtomicU64,
}

impl Audit {
    pub(super) fn new(store: &Store) -> Self {
        Self {
            log: Log::off(),
            follower: Mutex::new(Follower::new(store.root())),
            told: Mutex::default(),
            unreadable: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }
}

impl Vfs {
    /// Sets the audit log. Without one, no events are logged.
    #[must_use]
    pub fn with_log(mut self, log: Log) -> Self {
        self.sealing.log_to(log.clone());
        self.audit.log = log;
        self
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.audit.log
    }

    /// Logs a refused call, with the reason.
    fn audited<T>(&self, op: Op, at: At<'_>, outcome: Attempt<T>) -> Attempt<T> {
        let Err(Stop::Failed(kind)) = &outcome else { return outcome };
        let reason = match kind {
            ErrorKind::ReadOnly => "read-only",
            ErrorKind::PermissionDenied => "permission denied",
            ErrorKind::Posix(Posix::NotPermitted) => "not permitted for any user",
            ErrorKind::NoSpace => {
                self.log().note(note::budget_exceeded("disk", op.name()));
                return outcome;
            }
            _ => return outcome,
        };
        if self.log().is_written() {
            let number = self.audit.refused.fetch_add(1, Ordering::Relaxed) + 1;
            let call = format!("{}-{number}", std::process::id());
            self.log().note(note::gated(op.name(), reason, self.called(at).as_deref(), &call));
        }
        outcome
    }

    /// Fails if root may not use a file. Root may do everything but write a file that cannot be changed, or run a file that
    /// no user may run.
    pub fn access_by_root(&self, ino: Ino, runs: bool, writes: bool) -> Attempt<()> {
        if writes {
            self.may_be_written(ino)?;
        }
        if !runs {
            return Ok(self.node(ino).map(|_| ())?);
        }
        let (attr, _) = self.getattr(ino)?;
        if attr.kind != Kind::Dir && attr.mode & 0o111 == 0 {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }

    /// Fails if no user can write a file or folder.
    fn may_be_written(&self, ino: Ino) -> Outcome<()> {
        match self.node(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.may_be_written(ino).map_err(|error| error.kind()),
            // Programs make forks, seals and tags in these folders, and move forks there to discard them.
            Node::Fixed(Fixed::Forks | Fixed::Tags | Fixed::Control) | Node::Snap { .. } => Ok(()),
            _ => Err(ErrorKind::ReadOnly),
        }
    }

    /// Logs what the cache has done since the last call. Must be called from time to time.
    pub(crate) fn tell_of_cache(&self) {
        let stats = self.cache.stats();
        let mut told = self.audit.told.lock();
        let now = [stats.fills, stats.fill_bytes, stats.evictions];
        let [fills, bytes, evictions] = [0, 1, 2].map(|i: usize| now[i].saturating_sub(told[i]));
        if fills > 0 {
            self.log().note_quietly(note::page_in(fills, bytes));
        }
        if evictions > 0 {
            self.log().note_quietly(note::page_out(evictions));
        }
        *told = now;
    }

    /// `.pfimg/events.jsonl`: the newest lines of the log.
    pub(super) fn events_doc(&self, _: MayWait) -> Vec<u8> {
        self.tell_of_cache();
        wait::disk("audit");
        self.log().flush();
        follow::last_lines(self.store.root(), SHOWN)
    }

    /// `.pfimg/audit.json`: the summary of the whole log, updated line by line.
    pub(super) fn audit_doc(&self) -> Attempt<Vec<u8>> {
        may_wait()?;
        self.tell_of_cache();
        wait::disk("audit");
        self.log().flush();
        let report = self.audit.follower.lock().catch_up().map_err(logged)?;
        Ok(format!("{:#}\n", json!(report)).into_bytes())
    }

    /// Reads a fork, and judges it when it is first used.
    pub(super) fn read_back(&self, registry: &Registry, name: &str) -> Result<Arc<Fork>> {
        // An event loop takes only a fork that is in memory and in use.
        let Ok(wait) = wait::required() else {
            let fork = registry.loaded_named(name).filter(|fork| self.forks.knows(fork));
            return fork.ok_or_else(|| Error::new(ErrorKind::Waits, "the fork must be read back"));
        };
        let fork = registry.get(name).inspect_err(|error| {
            // A fork that was discarded in the meantime is not damaged.
            if registry.contains(name) {
                self.judge_unreadable(wait, registry, name, error);
            }
        })?;
        if !self.forks.knows(&fork) {
            // A damaged fork is readable up to the damage. A program that writes to it gets the error.
            recover::judge(self.store.at(wait), name, &fork, self.log());
        }
        Ok(fork)
    }

    /// Judges a fork that cannot be read back at all. Does so once for each fork.
    fn judge_unreadable(&self, wait: MayWait, registry: &Registry, name: &str, error: &Error) {
        let mut told = self.audit.unreadable.lock();
        if !told.contains(name)
            && recover::judge_unreadable(self.store.at(wait), registry, name, error, self.log()).is_some()
        {
            told.insert(name.to_owned());
        }
    }

    /// Makes a file, folder, symlink or special. Under `forks/`, a folder is a fork; under `tags/`, a symlink is a tag.
    pub fn create(&self, parent: Ino, name: &[u8], new: &NewFile<'_>) -> Attempt<Entry> {
        self.audited(
            Op::Create,
            At::Name(parent, name),
            self.advised(parent, name, self.make(parent, name, new)),
        )
    }

    /// Makes a hard link.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        self.audited(
            Op::Link,
            At::Name(parent, name),
            self.advised(parent, name, self.do_link(ino, parent, name)),
        )
    }

    /// Removes a name.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Attempt<()> {
        self.audited(
            Op::Unlink,
            At::Name(parent, name),
            self.advised(parent, name, self.do_unlink(parent, name)),
        )
    }

    /// Removes an empty folder. Under `forks/`, an empty fork is discarded.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Attempt<()> {
        self.audited(Op::Rmdir, At::Name(parent, name), self.do_rmdir(parent, name))
    }

    /// Renames a file. Forks are renamed under `forks/`, tags under `tags/`. A fork that is moved into `.pfimg/` is discarded,
    /// even if it holds files.
    pub fn rename(&self, from: Ino, name: &[u8], to: Ino, new_name: &[u8], mode: RenameMode) -> Attempt<()> {
        let renamed = self.do_rename(from, name, to, new_name, mode);
        self.audited(Op::Rename, At::Name(from, name), self.advised(to, new_name, renamed))
    }

    /// Sets attributes.
    pub fn setattr(&self, ino: Ino, set: &SetAttr, by: Process) -> Attempt<(Attr, Duration)> {
        self.audited(Op::Setattr, At::File(ino), self.do_setattr(ino, set, by))
    }

    /// Fails if a file cannot be opened. For writing, that is any file outside of forks.
    pub fn open(&self, ino: Ino, writes: bool) -> Outcome<()> {
        let opened = self.do_open(ino, writes).map_err(Stop::from);
        self.audited(Op::Open, At::File(ino), opened).map_err(Stop::kind)
    }

    /// Writes to a file of a fork.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], by: Writer) -> Attempt<usize> {
        self.audited(Op::Write, At::File(ino), self.do_write(ino, offset, bytes, by))
    }

    /// Allocates, punches or zeroes a range.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, what: Allocate, by: Process) -> Attempt<()> {
        self.audited(Op::Fallocate, At::File(ino), self.do_fallocate(ino, offset, len, what, by))
    }

    /// Copies a range into a file of a fork, and shares data if possible. Returns the number of bytes, maybe fewer than asked.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        offset: u64,
        len: u64,
        by: Process,
    ) -> Attempt<u64> {
        self.audited(
            Op::CopyFileRange,
            At::File(to),
            self.do_copy_range(from, from_offset, to, offset, len, by),
        )
    }
}
