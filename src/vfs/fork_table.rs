//! The forks of a mount: the registry, which is opened late, and the numbers that forks have.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::attempt::{Attempt, OnDisk, Outcome, logged};
use super::audit_trail::AuditTrail;
use super::config::VfsConfig;
use super::invalidation::Invalidation;
use super::key::Slot;
use super::mounted::Mounted;
use super::node::BuiltinDir;
use super::nodes::Nodes;
use super::readdir::{Emit, list_changing};
use super::slots::{SLOTS, Slots};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, BaseReader, Fork, Registry};
use crate::layers::world::Kind;
use crate::store::Home;
use crate::sync::{Mutex, wait};

/// How long the name `NAME@SOURCE` leads to the new fork: `mkdir -m` sets the mode by that name.
const MADE: Duration = Duration::from_secs(10);

/// The most such names that are remembered.
const MOST_MADE: usize = 256;

/// A fork that was made by the name `NAME@SOURCE`, which is not the fork's own name.
struct Made {
    text: String,
    uid: String,
    at: Instant,
}

/// The forks of the mounted store.
pub(super) struct ForkTable {
    nodes: Arc<Nodes>,
    store: OnDisk,
    home: Arc<Home>,
    audit: Arc<AuditTrail>,
    reader: Arc<dyn BaseReader>,
    owners: fork::Owners,
    read_only: bool,
    writeback: bool,
    /// Opened when there is a fork, or the first one is made: looking at a store must not write to it.
    registry: Mutex<Option<Arc<Registry>>>,
    slots: Mutex<Slots>,
    lengths: Mutex<fork::Lengths>,
    /// Forks that were made recently.
    made: Mutex<VecDeque<Made>>,
    /// Whether the kernel knows that the store has forks now.
    appeared: AtomicBool,
    /// Whether this mount writes the forks.
    written_here: AtomicBool,
}

impl ForkTable {
    pub(super) fn new(
        nodes: Arc<Nodes>,
        store: OnDisk,
        home: Arc<Home>,
        audit: Arc<AuditTrail>,
        reader: Arc<dyn BaseReader>,
        owners: fork::Owners,
        config: &VfsConfig,
    ) -> Self {
        let (registry, slots, lengths, made, appeared, written_here) = Default::default();
        Self {
            nodes,
            store,
            home,
            audit,
            reader,
            owners,
            read_only: config.read_only,
            writeback: config.writeback,
            registry,
            slots,
            lengths,
            made,
            appeared,
            written_here,
        }
    }

    /// Lists the forks in use.
    pub(super) fn in_use(&self) -> Vec<Mounted> {
        self.slots.lock().in_use()
    }

    /// Whether a fork is in use.
    fn knows(&self, fork: &Fork) -> bool {
        self.slots.lock().knows(fork)
    }

    /// Whether this mount writes the forks.
    pub(super) fn are_written_here(&self) -> bool {
        self.written_here.load(Ordering::Acquire)
    }

    /// Remembers the name by which a fork was made.
    pub(super) fn note_made(&self, text: &str, uid: &str) {
        let mut made = self.made.lock();
        made.retain(|made| made.text != text && made.at.elapsed() < MADE);
        made.truncate(MOST_MADE - 1);
        made.push_front(Made { text: text.to_owned(), uid: uid.to_owned(), at: Instant::now() });
    }

    /// Returns the name and the identity of the fork that was recently made by a name.
    pub(super) fn made_as(&self, text: &str) -> Option<(String, String)> {
        let (name, _) = text.split_once('@')?;
        let made = self.made.lock();
        let made = made.iter().find(|made| made.text == text && made.at.elapsed() < MADE)?;
        Some((name.to_owned(), made.uid.clone()))
    }

    /// Gives a fork the numbers of the one that it replaces; see [`Slots::hand_over`].
    pub(super) fn hand_over(
        &self,
        old: &Mounted,
        new: &Arc<Fork>,
        given: HashMap<fork::Ino, Slot>,
        barred: &HashSet<fork::Ino>,
    ) -> Option<Mounted> {
        self.slots.lock().hand_over(old, new, given, barred, || self.nodes.fork_slots())
    }

    /// Notes that a fork was discarded. Programs can still read the files that they have open.
    pub(super) fn discarded(&self, uid: &str) -> Option<Mounted> {
        self.slots.lock().discard(uid)
    }

    /// Returns the registry of forks if it is open.
    pub(super) fn open_registry(&self) -> Option<Arc<Registry>> {
        self.registry.lock().clone()
    }

    /// Returns the registry of forks, if there are any. With `make`, creates it for the first one.
    pub(super) fn registry(&self, make: bool) -> Result<Option<Arc<Registry>>> {
        // The thread that opens the forks holds the lock while it does.
        if let Some(open) = self.registry.try_lock().as_deref().and_then(Option::as_ref) {
            return Ok(Some(Arc::clone(open)));
        }
        wait::required()?;
        let mut registry = self.registry.lock();
        if let Some(open) = &*registry {
            return Ok(Some(Arc::clone(open)));
        }
        if !make && !self.store.root().join("forks").is_dir() {
            self.home.require()?;
            return Ok(None);
        }
        let open =
            |read_only| Registry::open(self.store.root(), Arc::clone(&self.reader), self.options(read_only));
        let opened = match open(self.read_only) {
            // The store cannot be written, but its forks can be read.
            Err(error)
                if matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::PermissionDenied) && !make =>
            {
                tracing::warn!("forks are read-only: {error}");
                open(true)?
            }
            Ok(opened) if !opened.is_writable() && !self.read_only => {
                tracing::warn!("another mount writes this store's forks: in this mount they are read-only");
                opened
            }
            other => other?,
        };
        self.written_here.store(opened.is_writable(), Ordering::Release);
        Ok(Some(Arc::clone(registry.insert(Arc::new(opened)))))
    }

    fn options(&self, read_only: bool) -> fork::Options {
        let (owners, writeback) = (self.owners.clone(), self.writeback);
        fork::Options { owners, read_only, writeback, ..fork::Options::default() }
    }

    /// Follows forks that another program writes: shows their present state, and takes over writing when that program has
    /// ended. Returns the invalidations for the kernel. Inodes that the kernel already knows keep showing the old state.
    ///
    /// Must be called from time to time, by one thread.
    pub(super) fn follow(&self) -> Vec<Invalidation> {
        let folders = [BuiltinDir::Forks, BuiltinDir::Work].map(BuiltinDir::ino);
        let Some(old) = self.open_registry() else {
            // Does not open the forks: the program that makes the first one must be able to lock them.
            let appeared =
                self.store.root().join("forks").is_dir() && !self.appeared.swap(true, Ordering::AcqRel);
            return if appeared { folders.map(Invalidation::Inode).to_vec() } else { Vec::new() };
        };
        if old.is_writable() {
            return Vec::new();
        }
        let newer = old.newer(self.options(self.read_only), &mut self.lengths.lock());
        let new = match newer {
            Ok(Some(new)) => new,
            Ok(None) => return Vec::new(),
            Err(error) => {
                tracing::debug!("cannot read the forks again: {error}");
                return Vec::new();
            }
        };
        if new.is_writable() {
            tracing::info!("the program that wrote this store's forks has ended: this mount writes them now");
        }
        let names: BTreeSet<String> = old.names().into_iter().chain(new.names()).collect();
        {
            let mut registry = self.registry.lock();
            self.slots.lock().discard_all();
            self.written_here.store(new.is_writable(), Ordering::Release);
            *registry = Some(Arc::new(new));
        }
        let name = |folder: &u64, name: &String| Invalidation::Name(*folder, name.clone().into_bytes());
        let names = folders.iter().flat_map(|folder| names.iter().map(move |each| name(folder, each)));
        names.chain(folders.map(Invalidation::Inode)).collect()
    }

    /// Whether this mount writes the forks, or would write the first one.
    pub(super) fn would_write(&self) -> bool {
        match self.registry(false) {
            Ok(Some(registry)) => registry.is_writable(),
            Ok(None) => !self.read_only,
            Err(_) => false,
        }
    }

    /// Lists `forks/` or `work/`.
    pub(super) fn list(&self, kind: Kind, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let registry = self.registry(false).map_err(logged)?;
        let names = registry.map_or_else(Vec::new, |registry| registry.names());
        list_changing(names.iter().map(|name| (name.as_str(), kind)), cookie, self.nodes.is_narrow(), emit);
        Ok(())
    }

    /// Finds a fork by its name.
    pub(super) fn find(&self, name: &str) -> Attempt<Mounted> {
        self.named(name).map_err(|error| match error.kind() {
            ErrorKind::NotFound => ErrorKind::NotFound.into(),
            _ => logged(error),
        })
    }

    /// Like [`Self::find`], with an error for people.
    pub(super) fn named(&self, name: &str) -> Result<Mounted> {
        let registry = self.registry(false)?.ok_or_else(|| no_fork(name))?;
        loop {
            if !registry.contains(name) {
                return Err(no_fork(name));
            }
            let fork = match self.read_back(&registry, name) {
                Ok(fork) => fork,
                // Another thread discarded the fork while this one waited for it.
                Err(error) if error.kind() == ErrorKind::NotFound && !registry.contains(name) => continue,
                // The fork exists, but its image is missing.
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing(name, error)),
                Err(error) => return Err(error),
            };
            match self.mounted(&fork) {
                // The fork was discarded too: another fork may have the name now.
                Err(ErrorKind::NotFound) => {}
                mounted => return mounted.map_err(|kind| without_numbers(name, kind)),
            }
        }
    }

    /// Reads a fork, and judges it when it is first used.
    pub(super) fn read_back(&self, registry: &Registry, name: &str) -> Result<Arc<Fork>> {
        // An event loop takes only a fork that is in memory and in use.
        let Ok(wait) = wait::required() else {
            let fork = registry.loaded_named(name).filter(|fork| self.knows(fork));
            return fork.ok_or_else(|| Error::new(ErrorKind::Waits, "the fork must be read back"));
        };
        let fork = registry.get(name).inspect_err(|error| {
            // A fork that was discarded in the meantime is not damaged.
            if registry.contains(name) {
                self.audit.judge_unreadable(self.store.at(wait), registry, name, error);
            }
        })?;
        if !self.knows(&fork) {
            // A damaged fork is readable up to the damage. A program that writes to it gets the error.
            self.audit.judge(self.store.at(wait), name, &fork);
        }
        Ok(fork)
    }

    /// Gives a fork its inode numbers. Fails with [`ErrorKind::NotFound`] if it was discarded.
    pub(super) fn mounted(&self, fork: &Arc<Fork>) -> Outcome<Mounted> {
        let mounted = self.slots.lock().of(fork, || self.nodes.fork_slots());
        if fork.is_discarded() {
            // Checked after the numbers are taken: a later discard finds and frees them itself.
            self.discarded(fork.uid());
            return Err(ErrorKind::NotFound);
        }
        let mounted = mounted.ok_or_else(|| {
            tracing::error!("more than {SLOTS} forks are in use");
            ErrorKind::NoSpace
        })?;
        // `rm -rf` must succeed. Sealed content is protected by other means.
        fork.set_guarded(false);
        Ok(mounted)
    }

    /// Shortens journals and frees unused space. Must be called from time to time.
    pub(super) fn tidy(&self) {
        for Mounted { fork, .. } in self.in_use() {
            let tidied =
                fork.reap().and_then(|_| if fork.wants_checkpoint() { fork.checkpoint() } else { Ok(false) });
            if let Err(error) = tidied {
                tracing::warn!(fork = fork.uid(), "cannot free unused space yet: {error}");
            }
        }
    }
}

/// The error for a fork that does not exist.
pub(super) fn no_fork(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no fork {name:?}"))
        .with_name(name)
        .with_hint("list the forks with `pfimg forks`")
}

fn missing(name: &str, error: Error) -> Error {
    Error::new(ErrorKind::Missing, format!("cannot read fork {name:?}")).with_source(error)
}

/// The error for a fork that gets no inode numbers.
pub(super) fn without_numbers(name: &str, kind: ErrorKind) -> Error {
    Error::new(kind, format!("fork {name:?} cannot be shown: it was discarded, or {SLOTS} forks are in use"))
        .with_hint("discard forks that you no longer need")
}
