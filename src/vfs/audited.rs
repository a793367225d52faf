//! The operations that change something, and what the audit log is told of them.
//!
//! What succeeds is not told one by one, it is in the fork; what is refused is, and so is what the forks, tags and the
//! cache come to.

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

/// How much of the log `.pfimg/events.jsonl` shows, in bytes: its newest lines.
const SHOWN: u64 = 1 << 20;

/// What a mount has to do with the audit.
pub(super) struct Audit {
    log: Log,
    follower: Mutex<Follower>,
    /// Fills, their bytes, and evictions that the log was told of.
    told: Mutex<[u64; 3]>,
    /// Forks that could not be read back, which is told once.
    unreadable: Mutex<HashSet<String>>,
    /// How many calls were refused.
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
    /// The same filesystem with a log that is told what happens; without, nothing is.
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

    /// Tells the log which call was refused, and for want of what.
    fn audited<T>(&self, op: Op, at: At<'_>, outcome: Attempt<T>) -> Attempt<T> {
        let Err(Stop::Failed(kind)) = &outcome else { return outcome };
        let reason = match kind {
            ErrorKind::ReadOnly => "read-only",
            ErrorKind::PermissionDenied => "no right to it",
            ErrorKind::Posix(Posix::NotPermitted) => "not permitted to anyone",
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

    /// Whether root may use a file: always, but root neither writes what cannot be written nor runs what nobody may run.
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

    /// Fails if a file or folder cannot be written, whoever asks.
    fn may_be_written(&self, ino: Ino) -> Outcome<()> {
        match self.node(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.may_be_written(ino).map_err(|error| error.kind()),
            // Forks, seals and tags are made there, and forks moved there to be discarded.
            Node::Fixed(Fixed::Forks | Fixed::Tags | Fixed::Control) | Node::Snap { .. } => Ok(()),
            _ => Err(ErrorKind::ReadOnly),
        }
    }

    /// Tells the log what the cache did since it was told last. To be called now and then.
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

    /// `.pfimg/audit.json`: what the whole log adds up to, kept up to date line by line.
    pub(super) fn audit_doc(&self) -> Attempt<Vec<u8>> {
        may_wait()?;
        self.tell_of_cache();
        wait::disk("audit");
        self.log().flush();
        let report = self.audit.follower.lock().catch_up().map_err(logged)?;
        Ok(format!("{:#}\n", json!(report)).into_bytes())
    }

    /// Reads a fork; one that was not in use yet is judged.
    pub(super) fn read_back(&self, registry: &Registry, name: &str) -> Result<Arc<Fork>> {
        // An event loop takes what is in memory and in use.
        let Ok(wait) = wait::required() else {
            let fork = registry.loaded_named(name).filter(|fork| self.forks.knows(fork));
            return fork.ok_or_else(|| Error::new(ErrorKind::Waits, "the fork has to be read back"));
        };
        let fork = registry.get(name).inspect_err(|error| {
            // One that was discarded meanwhile is no damage.
            if registry.contains(name) {
                self.judge_unreadable(wait, registry, name, error);
            }
        })?;
        if !self.forks.knows(&fork) {
            // A damaged fork can be read as far as it is sound: whoever writes to it gets the error.
            recover::judge(self.store.at(wait), name, &fork, self.log());
        }
        Ok(fork)
    }

    /// Judges a fork that cannot be read back at all; once.
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

    /// Gives a file another name.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        self.audited(
            Op::Link,
            At::Name(parent, name),
            self.advised(parent, name, self.do_link(ino, parent, name)),
        )
    }

    /// Takes a name away.
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

    /// Renames. Forks are renamed under `forks/`, tags under `tags/`; a fork that is moved into `.pfimg/` is discarded,
    /// whatever it holds.
    pub fn rename(&self, from: Ino, name: &[u8], to: Ino, new_name: &[u8], mode: RenameMode) -> Attempt<()> {
        let renamed = self.do_rename(from, name, to, new_name, mode);
        self.audited(Op::Rename, At::Name(from, name), self.advised(to, new_name, renamed))
    }

    /// Sets attributes.
    pub fn setattr(&self, ino: Ino, set: &SetAttr, by: Process) -> Attempt<(Attr, Duration)> {
        self.audited(Op::Setattr, At::File(ino), self.do_setattr(ino, set, by))
    }

    /// Whether a file can be opened: for writing only in a fork.
    pub fn open(&self, ino: Ino, writes: bool) -> Outcome<()> {
        let opened = self.do_open(ino, writes).map_err(Stop::from);
        self.audited(Op::Open, At::File(ino), opened).map_err(Stop::kind)
    }

    /// Writes.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], by: Writer) -> Attempt<usize> {
        self.audited(Op::Write, At::File(ino), self.do_write(ino, offset, bytes, by))
    }

    /// Allocates, punches or zeroes a range.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, what: Allocate, by: Process) -> Attempt<()> {
        self.audited(Op::Fallocate, At::File(ino), self.do_fallocate(ino, offset, len, what, by))
    }

    /// Copies a range into a file of a fork, sharing what can be shared. Returns how many bytes, maybe fewer.
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
