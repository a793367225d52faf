//! The registry of a store's forks: lists, opens, renames and removes them.
//!
//! Several threads take and give up names at once. These rules keep them apart:
//!
//! - **Look again after each wait.** While a thread waits for a slot, another may discard or rename the fork. So
//!   [`Registry::with_slot`] checks, once it has the slot's lock, that the map still leads from the name to this slot, and
//!   starts again if not. No other function locks a slot in order to act on a name.
//! - A head file is created at, or renamed to, a name only if the name is free on disk. If two threads want a name, one of
//!   them gets it, whatever each found in the map before. That thread enters its slot into the map.
//! - A thread that gives up a name, on disk and then in the map, holds the slot's lock. It removes only its own slot: the next
//!   fork of that name may already be in the map.
//! - The slot of a discarded fork says so ([`Slot::Gone`]), for threads that have a reference to it.
//! - Locks are taken in this order: slot, head, live, map. The map's lock is held only for a look or a change.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::info::{ForkInfo, ForkStats};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::compare::View;
use crate::fork::core::Core;
use crate::fork::disk::{
    GenId, Head, Io, OpenFiles, RealIo, check_format, head_path, is_too_long, lock, refuse_fork_name,
    refuse_new_fork_name,
};
use crate::fork::errors::{no_fork, taken};
use crate::fork::handle::Fork;
use crate::fork::live::Live;
use crate::fork::owners::Owners;
use crate::fork::reader::BaseReader;
use crate::fork::replay::{Damage, Recovered, recover};
use crate::fork::shared::Shared;
use crate::fork::state::State;
use crate::store::{Sharing, tags};
use crate::sync::{Mutex, wait};

/// How to open the forks of a store.
pub struct Options {
    /// How owners are shown.
    pub owners: Owners,
    /// Open them for reading only, even if no other program writes them.
    pub read_only: bool,
    /// Whether writes come late, from a kernel that caches them and sets their times itself.
    pub writeback: bool,
    /// The calls that change files.
    pub io: Arc<dyn Io>,
}

impl Default for Options {
    fn default() -> Self {
        Self { owners: Owners::of_process(), read_only: false, writeback: false, io: Arc::new(RealIo) }
    }
}

#[derive(Clone)]
pub(in crate::fork) enum Slot {
    /// Only its head was read.
    Unloaded(Head),
    Loaded(Arc<Fork>),
    /// Its head cannot be read.
    Damaged(String),
    /// Its fork was discarded, and the map no longer has it.
    Gone,
}

/// The forks of a store. One program at a time may write them.
pub struct Registry {
    pub(in crate::fork) shared: Arc<Shared>,
    pub(super) slots: Mutex<BTreeMap<String, Arc<Mutex<Slot>>>>,
    /// Holds the lock while it is open.
    _lock: Option<File>,
    reports: Mutex<Vec<String>>,
    /// Change time of `heads/` before the heads were read.
    pub(super) heads_seen: Option<SystemTime>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("forks", &self.shared.forks).finish_non_exhaustive()
    }
}

impl Registry {
    /// Opens the forks of the store in `store`, reading only their heads. If another program writes them, they can still be
    /// read here; see [`Registry::is_writable`].
    pub fn open(store: &Path, reader: Arc<dyn BaseReader>, options: Options) -> Result<Self> {
        wait::disk("open-forks");
        let (forks, sharing) = (store.join("forks"), Sharing::of(store));
        let mut held = None;
        if !options.read_only {
            for folder in ["heads", "gen", "damaged"] {
                let folder = forks.join(folder);
                sharing
                    .create_dir_below(store, &folder)
                    .map_err(|e| Error::io(e, format!("cannot create {}", folder.display())))?;
            }
            held = lock(&forks, sharing)?;
        }
        Self::with_lock(forks, sharing, reader, options, held)
    }

    pub(super) fn with_lock(
        forks: PathBuf,
        sharing: Sharing,
        reader: Arc<dyn BaseReader>,
        options: Options,
        held: Option<File>,
    ) -> Result<Self> {
        let heads_seen = changed_at(&forks.join("heads"));
        let mut writable = held.is_some();
        if writable || forks.join("format.json").exists() {
            writable &= check_format(&forks, writable.then_some(sharing))?;
        }
        let files = Arc::new(OpenFiles::new(options.io, sharing, writable));
        let how = (writable, options.writeback);
        let shared = Arc::new(Shared::new(forks, files, reader, options.owners, how));
        let (slots, reports) = <(Mutex<_>, Mutex<_>)>::default();
        let this = Self { shared, slots, _lock: held, reports, heads_seen };
        this.read_heads()?;
        if writable {
            this.collect();
        }
        Ok(this)
    }

    /// Whether this program writes the forks. Otherwise another one may.
    pub fn is_writable(&self) -> bool {
        self.shared.writable
    }

    /// Returns messages about what was found and repaired, for the user. Empties the list.
    pub fn take_reports(&self) -> Vec<String> {
        std::mem::take(&mut self.reports.lock())
    }

    fn report(&self, what: String) {
        tracing::warn!("{what}");
        self.reports.lock().push(what);
    }

    fn read_heads(&self) -> Result<()> {
        let dir = self.shared.forks.join("heads");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(e, format!("cannot list {}", dir.display()))),
        };
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(e, format!("cannot list {}", dir.display())))?;
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(".json"));
            let Some(name) = name.filter(|name| refuse_fork_name(name).is_none()) else { continue };
            let slot = match Head::read(&entry.path(), name) {
                Ok(head) => {
                    self.shared.add_refs(&head.generations);
                    Slot::Unloaded(head)
                }
                // A power cut came before the content of a new head reached the disk. Nothing of the fork was durable.
                Err(_) if self.shared.writable && entry.metadata().is_ok_and(|m| m.len() == 0) => {
                    let kept = self.shared.forks.join("damaged").join(&file_name);
                    let moved = fs::rename(entry.path(), &kept);
                    self.report(format!("fork {name:?} was never finished; its head was moved: {moved:?}"));
                    continue;
                }
                Err(error) => {
                    self.report(format!("fork {name:?} is damaged: {error}"));
                    Slot::Damaged(error.to_string())
                }
            };
            self.slots.lock().insert(name.to_owned(), Arc::new(Mutex::new(slot)));
        }
        Ok(())
    }

    /// Removes generations that no head names: leftovers of a discard or of a program that died. Removes nothing while a head
    /// is damaged, since that head may name them.
    fn collect(&self) {
        let heads = self.shared.forks.join("heads");
        for entry in fs::read_dir(&heads).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                let _ = fs::remove_file(entry.path());
            }
        }
        let bad_head = self.all_slots().iter().any(|slot| matches!(&*slot.lock(), Slot::Damaged(_)));
        let set_aside =
            fs::read_dir(self.shared.forks.join("damaged")).into_iter().flatten().flatten().any(|e| {
                e.path().extension().is_some_and(|ext| ext == "json")
                    && e.metadata().is_ok_and(|m| m.len() > 0)
            });
        if bad_head || set_aside {
            self.report("a fork's head is damaged: generations that no fork names are kept".into());
            return;
        }
        let refs = self.shared.named();
        for entry in fs::read_dir(self.shared.forks.join("gen")).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(GenId::parse);
            if id.is_some_and(|id| !refs.contains(&id)) {
                tracing::info!("removing {}, which no fork names", entry.path().display());
                if let Err(e) = fs::remove_dir_all(entry.path()) {
                    tracing::warn!("cannot remove {}: {e}", entry.path().display());
                }
            }
        }
    }

    /// Names of all forks, sorted.
    pub fn names(&self) -> Vec<String> {
        self.slots.lock().keys().cloned().collect()
    }

    /// Whether there is a fork of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.slots.lock().contains_key(name)
    }

    /// Returns a fork that is in memory, if its slot is free now. A thread that reads a fork back or discards it holds the
    /// slot while it waits for the disk.
    pub fn loaded_named(&self, name: &str) -> Option<Arc<Fork>> {
        let slot = self.slots.lock().get(name).cloned()?;
        match &*slot.try_lock()? {
            // If another thread has renamed or discarded the fork, the name no longer leads to it.
            Slot::Loaded(fork) if self.slots.lock().get(name).is_some_and(|now| Arc::ptr_eq(now, &slot)) => {
                Some(Arc::clone(fork))
            }
            _ => None,
        }
    }

    /// Removes the files of generations that an event loop has released. Must be called from time to time.
    pub fn remove_left(&self) {
        self.shared.files.remove_left();
    }

    pub(super) fn slot(&self, name: &str) -> Result<Arc<Mutex<Slot>>> {
        self.slots.lock().get(name).cloned().ok_or_else(|| no_fork(name))
    }

    fn all_slots(&self) -> Vec<Arc<Mutex<Slot>>> {
        self.slots.lock().values().cloned().collect()
    }

    /// Hands the locked slot of a name to `act`. The slot has the name even if forks were discarded or renamed while this
    /// waited for the lock, and keeps it until `act` returns or gives it up.
    pub(super) fn with_slot<T>(
        &self,
        name: &str,
        act: impl FnOnce(&Arc<Mutex<Slot>>, &mut Slot) -> Result<T>,
    ) -> Result<T> {
        loop {
            let slot = self.slot(name)?;
            let mut held = slot.lock();
            let is_current = self.slots.lock().get(name).is_some_and(|now| Arc::ptr_eq(now, &slot));
            if is_current {
                return act(&slot, &mut held);
            }
        }
    }

    /// Removes a name from the map, unless another slot already has it.
    pub(super) fn unlist(&self, name: &str, slot: &Arc<Mutex<Slot>>) {
        let mut slots = self.slots.lock();
        if slots.get(name).is_some_and(|now| Arc::ptr_eq(now, slot)) {
            slots.remove(name);
        }
    }

    /// Returns a fork, and reads it from disk if necessary.
    pub fn get(&self, name: &str) -> Result<Arc<Fork>> {
        // Only threads that want the same fork wait here.
        self.with_slot(name, |_, slot| self.get_in(name, slot))
    }

    /// Returns the fork of a slot, and reads it from disk if necessary.
    pub(super) fn get_in(&self, name: &str, slot: &mut Slot) -> Result<Arc<Fork>> {
        let head = match &*slot {
            Slot::Loaded(fork) => return Ok(fork.clone()),
            Slot::Damaged(damage) => {
                return Err(Error::new(ErrorKind::Damaged, format!("fork {name:?}: {damage}")));
            }
            Slot::Gone => return Err(no_fork(name)),
            Slot::Unloaded(head) => head.clone(),
        };
        let fork = self.load(head).map_err(|e| e.context(format_args!("fork {name:?}")))?;
        *slot = Slot::Loaded(fork.clone());
        Ok(fork)
    }

    /// Reads a fork back. Its slot stays locked, so that the journals are read once: other threads that want the fork, or ask
    /// what is known of it, wait for the result. Event loops do not wait, see [`Registry::loaded_named`].
    fn load(&self, mut head: Head) -> Result<Arc<Fork>> {
        wait::disk("load");
        if !self.shared.writable {
            // Another program writes the fork, and may have replaced the head since it was read here.
            head = Head::read(&head_path(&self.shared.forks, &head.name), &head.name)?;
        }
        let base = self.shared.base(head.base, head.created_ns)?;
        let baseline = Arc::new(State::over(base.clone()));
        let generations: Vec<_> = head.generations.iter().map(|id| self.shared.generation(*id)).collect();
        let Recovered { state, writer, damage, cut } =
            recover(&self.shared, base, &head.folders, &generations)?;
        if let Some(damage) = &damage {
            self.report(format!("fork {:?} is damaged: {}", head.name, damage.what));
        } else if cut > 0 {
            self.report(format!("fork {:?}: cut off {cut} bytes of an unfinished operation", head.name));
        }
        let image = head.base;
        let live = Live::new(state, baseline, writer, generations, image);
        Ok(self.fork(head, live, damage))
    }

    pub(super) fn fork(&self, head: Head, live: Live, damage: Option<Damage>) -> Arc<Fork> {
        Arc::new(Fork::new(Core::new(self.shared.clone(), head, live, damage)))
    }

    pub(in crate::fork) fn may_write(&self) -> Result<()> {
        if self.shared.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ReadOnly, "another program writes this store's forks")
            .with_hint("unmount it there, or use that mount"))
    }

    pub(super) fn check_new(&self, name: &str) -> Result<()> {
        self.may_write()?;
        if let Some(why) = refuse_new_fork_name(name) {
            let kind = if is_too_long(name) {
                ErrorKind::Posix(Posix::NameTooLong)
            } else {
                ErrorKind::InvalidInput
            };
            return Err(Error::new(kind, format!("{name:?} cannot be a fork's name: {why}")));
        }
        if self.contains(name) {
            return Err(taken(name));
        }
        let store = self.shared.forks.parent().unwrap_or(&self.shared.forks);
        if tags::is_there(store, name) {
            let what = format!("{name:?} cannot be a fork's name: a tag has it");
            return Err(Error::new(ErrorKind::AlreadyExists, what).with_hint("choose another name"));
        }
        Ok(())
    }

    /// Lists the base images of forks, which must not be collected.
    pub fn bases(&self) -> Vec<Digest> {
        let base = |slot: &Arc<Mutex<Slot>>| match &*slot.lock() {
            Slot::Unloaded(head) => head.base,
            Slot::Loaded(fork) => fork.base(),
            Slot::Damaged(_) | Slot::Gone => None,
        };
        self.all_slots().iter().filter_map(base).collect()
    }

    /// Makes every fork in memory durable.
    pub fn sync(&self) -> Result<()> {
        if self.shared.writable {
            self.loaded().iter().try_for_each(|fork| fork.core.fsync_unless_discarded())?;
        }
        Ok(())
    }

    /// Lists the forks in memory. Holds no lock when it returns.
    pub(super) fn loaded(&self) -> Vec<Arc<Fork>> {
        let loaded = |slot: &Arc<Mutex<Slot>>| match &*slot.lock() {
            Slot::Loaded(fork) => Some(Arc::clone(fork)),
            Slot::Unloaded(_) | Slot::Damaged(_) | Slot::Gone => None,
        };
        self.all_slots().iter().filter_map(loaded).collect()
    }

    /// Returns what is known of a fork without reading its journals.
    pub fn info(&self, name: &str) -> Result<ForkInfo> {
        self.with_slot(name, |_, slot| {
            Ok(match slot {
                Slot::Unloaded(head) => ForkInfo::of(head, None),
                Slot::Loaded(fork) => ForkInfo::of(&fork.core.head.lock(), fork.damage()),
                Slot::Damaged(damage) => ForkInfo::damaged(name, damage),
                Slot::Gone => return Err(no_fork(name)),
            })
        })
    }

    /// Returns the disk space of a fork. Reads the fork from disk if necessary.
    pub fn stats(&self, name: &str) -> Result<ForkStats> {
        let fork = self.get(name)?;
        let (changed, generations) = {
            let live = fork.core.live.read();
            let names = live.state.dirty_names.len() + live.state.dirty_nodes.len();
            (names as u64, live.generations.clone())
        };
        let mut stats = ForkStats {
            changed,
            own_bytes: 0,
            all_bytes: 0,
            journal_bytes: 0,
            base: fork.lineage()?,
            created_ns: fork.created_ns(),
        };
        for generation in generations {
            let bytes = generation.disk_bytes();
            stats.all_bytes += bytes;
            stats.journal_bytes += fs::metadata(generation.journal_path()).map_or(0, |m| m.len());
            if self.shared.is_named_once(generation.id) {
                stats.own_bytes += bytes;
            }
        }
        Ok(stats)
    }

    /// All files of an image; without an image, no files.
    pub fn view(&self, image: Option<Digest>) -> Result<View> {
        let state = State::over(self.shared.base(image, 0)?);
        Ok(View::new(state, Arc::clone(&self.shared.reader)))
    }
}

/// Change time of a folder.
pub(super) fn changed_at(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder).and_then(|folder| folder.modified()).ok()
}
