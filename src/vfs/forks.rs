//! `forks/` and `work/`: lists, makes and discards forks.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::attempt::{logged, may_wait};
use super::forked::{Mounted, Slot};
use super::inode::{Fixed, Ino, hash_bytes};
use super::reader::Reader;
use super::replaced::Replaced;
use super::snap::Stale;
use super::{Announcement, Attempt, Entry, Outcome, Stop, Vfs, What};
use crate::audit::note;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::{self, Fork, NewFile, Registry, RenameMode};
use crate::layers::world::Kind;
use crate::ops::line;
use crate::sync::{Mutex, wait};

/// The most forks in use at once. A fork's number and a file's number share the 64 bits of an inode number.
const SLOTS: Slot = 1 << 14;

/// Which forks may be discarded.
#[derive(Clone, Copy)]
pub(super) enum Only {
    Any,
    /// Only an empty fork.
    Empty,
    /// Only a fork without unsealed changes.
    Sealed,
}

/// Start of the name in `.pfimg/` to which a fork is moved that may be discarded only if it is sealed.
pub(super) const DISCARD_SEALED: &[u8] = b"discarded-sealed-";

/// The forks of the mounted store.
pub(super) struct Forks {
    /// Opened when there is a fork, or the first one is made: looking at a store must not write to it.
    registry: Mutex<Option<Arc<Registry>>>,
    reader: Arc<Reader>,
    read_only: bool,
    slots: Mutex<Slots>,
    lengths: Mutex<fork::Lengths>,
    /// Forks that were made recently.
    made: Mutex<VecDeque<Made>>,
    /// Whether the kernel knows that the store has forks now.
    appeared: AtomicBool,
    /// Whether this mount writes the forks.
    written_here: AtomicBool,
}

/// A fork that was made by the name `NAME@SOURCE`, which is not the fork's own name.
struct Made {
    text: String,
    uid: String,
    at: Instant,
}

/// How long the name `NAME@SOURCE` leads to the new fork: `mkdir -m` sets the mode by that name.
const MADE: Duration = Duration::from_secs(10);

/// The most such names that are remembered.
const MOST_MADE: usize = 256;

/// The ranges of the numbers of a fork's files; see [`Mounted`].
#[derive(Clone)]
struct Numbers {
    slot: Slot,
    aside: Option<Arc<HashMap<fork::Ino, Slot>>>,
}

impl Numbers {
    fn of(self, fork: &Arc<Fork>) -> Mounted {
        Mounted { slot: self.slot, aside: self.aside, fork: Arc::clone(fork) }
    }
}

#[derive(Default)]
struct Slots {
    by_uid: HashMap<String, Numbers>,
    /// The fork of each slot. None after its discard, while the kernel may know inodes of it.
    taken: HashMap<Slot, Option<Arc<Fork>>>,
}

impl Slots {
    /// Returns a fork's numbers. They are the same after a remount, unless another fork has taken them.
    fn of(&mut self, fork: &Arc<Fork>, known: impl FnOnce() -> HashSet<Slot>) -> Option<Mounted> {
        if let Some(numbers) = self.by_uid.get(fork.uid()) {
            let taken = self.taken.get(&numbers.slot).and_then(Option::as_ref);
            if taken.is_some_and(|taken| Arc::ptr_eq(taken, fork)) {
                return Some(numbers.clone().of(fork));
            }
            // The fork was read again, so the kernel may know an outdated state of it.
            self.discard(fork.uid());
        }
        let slot = self.take(fork, fork.numbered_by(), known)?;
        let numbers = Numbers { slot, aside: None };
        self.by_uid.insert(fork.uid().to_owned(), numbers.clone());
        Some(numbers.of(fork))
    }

    /// Takes a free slot for a fork, if possible the one derived from `seed`.
    fn take(&mut self, fork: &Arc<Fork>, seed: &str, known: impl FnOnce() -> HashSet<Slot>) -> Option<Slot> {
        if self.taken.len() >= usize::from(SLOTS) {
            // Keeps a slot while the kernel knows an inode in it: the inode's number would mean a file of another fork.
            let known = known();
            self.taken.retain(|slot, fork| fork.is_some() || known.contains(slot));
        }
        let wanted = (hash_bytes(seed.as_bytes()) % u64::from(SLOTS)) as Slot;
        let free = (0..SLOTS).map(|i| (wanted + i) % SLOTS).find(|slot| !self.taken.contains_key(slot))?;
        self.taken.insert(free, Some(Arc::clone(fork)));
        Some(free)
    }

    /// Gives a fork the numbers of the fork that it replaces. Files in `given` have numbers in another slot. Files in `barred`
    /// get new ones, since the kernel knows other files by their numbers.
    fn hand_over(
        &mut self,
        old: &Mounted,
        new: &Arc<Fork>,
        given: HashMap<fork::Ino, Slot>,
        barred: &HashSet<fork::Ino>,
        known: impl FnOnce() -> HashSet<Slot>,
    ) -> Option<Mounted> {
        let mut aside = given;
        if !barred.is_empty() {
            let slot = self.take(new, new.uid(), known)?;
            aside.extend(barred.iter().map(|ino| (*ino, slot)));
        }
        let used: HashSet<Slot> = aside.values().copied().chain([old.slot]).collect();
        for (slot, fork) in &mut self.taken {
            if fork.as_ref().is_some_and(|fork| Arc::ptr_eq(fork, &old.fork)) {
                *fork = used.contains(slot).then(|| Arc::clone(new));
            }
        }
        self.by_uid.remove(old.fork.uid());
        let aside = (!aside.is_empty()).then(|| Arc::new(aside));
        let numbers = Numbers { slot: old.slot, aside };
        self.by_uid.insert(new.uid().to_owned(), numbers.clone());
        Some(numbers.of(new))
    }

    fn discard_all(&mut self) {
        self.by_uid.clear();
        self.taken.values_mut().for_each(|fork| *fork = None);
    }

    /// Frees a discarded fork's slots once the kernel has forgotten its inodes.
    fn discard(&mut self, uid: &str) -> Option<Mounted> {
        let numbers = self.by_uid.remove(uid)?;
        let fork = self.taken.get(&numbers.slot)?.clone()?;
        let of_it = |taken: &&mut Option<Arc<Fork>>| taken.as_ref().is_some_and(|taken| taken.uid() == uid);
        self.taken.values_mut().filter(of_it).for_each(|taken| *taken = None);
        Some(numbers.of(&fork))
    }
}

impl Forks {
    pub(super) fn new(reader: Arc<Reader>, read_only: bool) -> Self {
        let (registry, slots, lengths, made, appeared, written_here) = Default::default();
        Self { registry, reader, read_only, slots, lengths, made, appeared, written_here }
    }

    /// Lists the forks in use.
    pub(super) fn in_use(&self) -> Vec<Mounted> {
        let slots = self.slots.lock();
        let mounted = |numbers: &Numbers| {
            let fork = slots.taken.get(&numbers.slot)?.as_ref()?;
            Some(numbers.clone().of(fork))
        };
        slots.by_uid.values().filter_map(mounted).collect()
    }

    /// Whether a fork is in use.
    pub(super) fn knows(&self, fork: &Fork) -> bool {
        self.slots.lock().by_uid.contains_key(fork.uid())
    }

    /// Whether this mount writes the forks.
    pub(super) fn are_written_here(&self) -> bool {
        self.written_here.load(Ordering::Acquire)
    }

    /// Remembers the name by which a fork was made.
    fn note_made(&self, text: &str, uid: &str) {
        let mut made = self.made.lock();
        made.retain(|made| made.text != text && made.at.elapsed() < MADE);
        made.truncate(MOST_MADE - 1);
        made.push_front(Made { text: text.to_owned(), uid: uid.to_owned(), at: Instant::now() });
    }

    /// Returns the name and the identity of the fork that was recently made by a name.
    fn made_as(&self, text: &str) -> Option<(String, String)> {
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
        known: impl FnOnce() -> HashSet<Slot>,
    ) -> Option<Mounted> {
        self.slots.lock().hand_over(old, new, given, barred, known)
    }

    /// Notes that a fork was discarded. Programs can still read the files that they have open.
    pub(super) fn discarded(&self, uid: &str) -> Option<Mounted> {
        self.slots.lock().discard(uid)
    }
}

impl Vfs {
    /// Returns the registry of forks, if there are any. With `make`, creates it for the first one.
    pub(super) fn registry(&self, make: bool) -> Result<Option<Arc<Registry>>> {
        // The thread that opens the forks holds the lock while it does.
        if let Some(open) = self.forks.registry.try_lock().as_deref().and_then(Option::as_ref) {
            return Ok(Some(Arc::clone(open)));
        }
        wait::required()?;
        let mut registry = self.forks.registry.lock();
        if let Some(open) = &*registry {
            return Ok(Some(Arc::clone(open)));
        }
        if !make && !self.store.root().join("forks").is_dir() {
            self.catalog.home.require()?;
            return Ok(None);
        }
        let open = |read_only| {
            Registry::open(self.store.root(), self.forks.reader.clone(), self.fork_options(read_only))
        };
        let opened = match open(self.forks.read_only) {
            // The store cannot be written, but its forks can be read.
            Err(error)
                if matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::PermissionDenied) && !make =>
            {
                tracing::warn!("forks are read-only: {error}");
                open(true)?
            }
            Ok(opened) if !opened.is_writable() && !self.forks.read_only => {
                tracing::warn!("another mount writes this store's forks: in this mount they are read-only");
                opened
            }
            other => other?,
        };
        self.forks.written_here.store(opened.is_writable(), Ordering::Release);
        Ok(Some(Arc::clone(registry.insert(Arc::new(opened)))))
    }

    fn fork_options(&self, read_only: bool) -> fork::Options {
        let owners = self.owners.clone();
        let late_writes = self.config.late_writes;
        fork::Options { owners, read_only, late_writes, ..fork::Options::default() }
    }

    /// Follows forks that another program writes: shows their present state, and takes over writing when that program has
    /// ended. Returns the invalidations for the kernel. Inodes that the kernel already knows keep showing the old state.
    ///
    /// Must be called from time to time, by one thread.
    pub fn follow_forks(&self) -> Vec<Stale> {
        let folders = [Fixed::Forks, Fixed::Work].map(Fixed::ino);
        let Some(old) = self.forks.registry.lock().clone() else {
            // Does not open the forks: the program that makes the first one must be able to lock them.
            let appeared =
                self.store.root().join("forks").is_dir() && !self.forks.appeared.swap(true, Ordering::AcqRel);
            return if appeared { folders.map(Stale::Inode).to_vec() } else { Vec::new() };
        };
        if old.is_writable() {
            return Vec::new();
        }
        let newer = old.newer(self.fork_options(self.forks.read_only), &mut self.forks.lengths.lock());
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
            let mut registry = self.forks.registry.lock();
            self.forks.slots.lock().discard_all();
            self.forks.written_here.store(new.is_writable(), Ordering::Release);
            *registry = Some(Arc::new(new));
        }
        let names = folders
            .iter()
            .flat_map(|folder| names.iter().map(|name| Stale::Name(*folder, name.clone().into_bytes())));
        names.chain(folders.map(Stale::Inode)).collect()
    }

    /// Whether this mount writes the forks, or would write the first one.
    pub(super) fn writes_forks(&self) -> bool {
        match self.registry(false) {
            Ok(Some(registry)) => registry.is_writable(),
            Ok(None) => !self.forks.read_only,
            Err(_) => false,
        }
    }

    /// Names of all forks.
    pub(super) fn fork_names(&self) -> Result<Vec<String>> {
        Ok(self.registry(false)?.map_or_else(Vec::new, |registry| registry.names()))
    }

    /// A fork by its name.
    pub(super) fn fork_named(&self, name: &str) -> Attempt<Mounted> {
        let registry = self.registry(false).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        loop {
            if !registry.contains(name) {
                return Err(ErrorKind::NotFound.into());
            }
            let fork = match self.read_back(&registry, name) {
                Ok(fork) => fork,
                // Another thread discarded the fork while this one waited for it.
                Err(error) if error.kind() == ErrorKind::NotFound && !registry.contains(name) => continue,
                Err(error) => {
                    return Err(match logged(error) {
                        // The fork exists, but its image is missing.
                        Stop::Failed(ErrorKind::NotFound) => ErrorKind::Missing.into(),
                        other => other,
                    });
                }
            };
            match self.mounted(&fork) {
                // The fork was discarded too: another fork may have the name now.
                Err(ErrorKind::NotFound) => {}
                mounted => return Ok(mounted?),
            }
        }
    }

    /// Gives a fork its inode numbers. Fails with [`ErrorKind::NotFound`] if it was discarded.
    fn mounted(&self, fork: &Arc<Fork>) -> Outcome<Mounted> {
        let mounted = self.forks.slots.lock().of(fork, || self.inodes.fork_slots());
        if fork.is_discarded() {
            // Checked after the numbers are taken: a later discard finds and frees them itself.
            self.forks.discarded(fork.uid());
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

    /// Whether creating this name in this folder makes a fork from another fork or from an image.
    pub fn branches(folder: Ino, name: &[u8]) -> bool {
        folder == Self::FORKS && name.contains(&b'@')
    }

    pub(super) fn lookup_fork(&self, name: &str) -> Attempt<Entry> {
        if let Some((name, uid)) = self.forks.made_as(name) {
            let mounted = self.fork_named(&name)?;
            if mounted.fork.uid() != uid {
                return Err(ErrorKind::NotFound.into());
            }
            return Ok(Entry { entry_ttl: Duration::ZERO, ..self.fork_top(&mounted)? });
        }
        let mounted = self.fork_named(name)?;
        self.fork_top(&mounted)
    }

    /// `mkdir forks/NAME@SOURCE`, or `mkdir forks/NAME` for an empty one.
    pub(super) fn make_fork(&self, name: &[u8], new: &NewFile<'_>) -> Attempt<Entry> {
        may_wait()?;
        let text = std::str::from_utf8(name).map_err(|_| ErrorKind::InvalidInput)?;
        if new.kind != Kind::Dir {
            tracing::info!("refused: forks/{text:?} can only be a folder, a fork");
            return Err(ErrorKind::Posix(Posix::NotPermitted).into());
        }
        let (name, source) = match text.split_once('@') {
            Some((name, source)) => (name, Some(source)),
            None => (text, None),
        };
        let mode = new.mode & !new.umask.unwrap_or_default();
        let made = self.fork_from(name, source, mode).map_err(logged)?;
        let mounted = self.mounted(&made)?;
        self.log().note(note::fork_made(name, mounted.fork.base().as_ref()));
        // The name itself is not announced. If a program already uses it, the kernel would drop it and mounts below it.
        self.announcing.add(Announcement::of(Fixed::Work, name, What::Made(Kind::Symlink)));
        let mut entry = self.fork_top(&mounted)?;
        if source.is_some() {
            // The fork's own name is different.
            self.forks.note_made(text, mounted.fork.uid());
            entry.entry_ttl = Duration::ZERO;
        }
        Ok(entry)
    }

    fn fork_from(&self, name: &str, source: Option<&str>, mode: u16) -> Result<Arc<Fork>> {
        self.catalog.home.require()?;
        // Finds the source first, so that a missing one leaves nothing behind.
        let image = match source {
            None => None,
            Some(source) => match self.registry(false)? {
                Some(registry) if registry.contains(source) => {
                    let source = self.read_back(&registry, source)?;
                    self.push(&source)?;
                    return registry.branch_as(&source, name, mode);
                }
                _ => Some(
                    line::image(self.store.here()?, source)
                        .map_err(|e| e.context(format_args!("cannot make fork {name:?} of {source:?}")))?,
                ),
            },
        };
        let registry = self.registry(true)?;
        let registry = registry.ok_or_else(|| {
            Error::new(ErrorKind::ReadOnly, "this mount cannot write the forks of its store")
        })?;
        registry.create_as(name, image, mode)
    }

    pub(super) fn rename_fork(&self, name: &[u8], new_name: &[u8], mode: RenameMode) -> Attempt<()> {
        may_wait()?;
        let utf8 = |name| std::str::from_utf8(name).map_err(|_| ErrorKind::InvalidInput);
        let (name, new_name) = (utf8(name)?, utf8(new_name)?);
        if !matches!(mode, RenameMode::Replace | RenameMode::NoReplace) {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.catalog.home.require().map_err(|error| error.kind())?;
        let registry = self.registry(false).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let renamed = registry.rename(name, new_name).map_err(logged)?;
        self.announcing.add(Announcement::of(Fixed::Work, name, What::Gone(Kind::Symlink)));
        self.announcing.add(Announcement::of(Fixed::Work, new_name, What::Made(Kind::Symlink)));
        for event in note::fork_renamed(name, new_name, renamed.base.as_ref()) {
            self.log().note(event);
        }
        Ok(())
    }

    /// Discards a fork, if `only` allows it. `place` is where the kernel has the fork's folder.
    pub(super) fn discard_fork(
        &self,
        name: &[u8],
        only: Only,
        place: Option<(Fixed, Vec<u8>)>,
    ) -> Attempt<()> {
        may_wait()?;
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        self.catalog.home.require().map_err(|error| error.kind())?;
        let registry = self.registry(false).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        // Judged during the discard, since before it the name may come to lead to another fork.
        let is_empty = |fork: &Fork| {
            let mut empty = true;
            fork.readdir(fork::Ino::TOP, 0, &mut |_| {
                empty = false;
                false
            })?;
            if empty || fork.is_blank() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Posix(Posix::NotEmpty), format!("fork {name:?} is not empty"))
                .with_hint(format!("use `pfimg discard {name}`")))
        };
        let is_sealed = |fork: &Fork| {
            if fork.damage().is_none() && !fork.is_changed() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Busy, format!("fork {name:?} has unsealed work")).with_hint(format!(
                "keep it with `pfimg seal {name}`, or lose it with `pfimg discard --force {name}`"
            )))
        };
        let gone = match only {
            Only::Any => registry.discard(name),
            Only::Empty => registry.discard_if(name, &is_empty),
            Only::Sealed => registry.discard_if(name, &is_sealed),
        };
        let gone = gone.map_err(|error| match error.kind() {
            // The usual answer of `rmdir` for a folder that is not empty.
            kind @ ErrorKind::Posix(Posix::NotEmpty) => kind.into(),
            _ => logged(error),
        })?;
        self.log().note(note::fork_discarded(name, gone.base.as_ref()));
        if let Some(uid) = gone.uid
            && let Some(old) = self.forks.discarded(&uid)
        {
            self.announcing.depart(Replaced::discarded(old, place));
        }
        self.announcing.add(Announcement::of(Fixed::Work, name, What::Gone(Kind::Symlink)));
        Ok(())
    }

    /// Shortens journals and frees unused space. Must be called from time to time.
    pub(crate) fn keep_house(&self) {
        self.tell_of_cache();
        let open = self.forks.registry.lock().clone();
        if let Some(registry) = open {
            registry.remove_left();
        }
        self.cache.settle(false);
        self.most.now(self.inodes.len());
        if self.catalog.home.check().is_err() {
            return;
        }
        for Mounted { fork, .. } in self.forks.in_use() {
            let kept =
                fork.reap().and_then(|_| if fork.wants_checkpoint() { fork.checkpoint() } else { Ok(false) });
            if let Err(error) = kept {
                tracing::warn!(fork = fork.uid(), "cannot free unused space yet: {error}");
            }
        }
    }
}
