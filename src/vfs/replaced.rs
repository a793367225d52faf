//! Forks that were restored or discarded, and the inodes of them that the kernel still knows.
//!
//! A restored fork is a new fork. Its unchanged files, and folders at the same path, keep their inodes, so a shell in such a
//! folder sees the restored files. All other inodes that the kernel knows stay with the old fork: open files can be read to
//! their end, and folders answer ESTALE. The new fork uses other numbers for these files.
//!
//! Then the kernel drops names that lead to other files now, and forgets inodes that no program uses. Those that it does not
//! forget are open, watched, or some program's working directory. They are announced by name (see `announce.rs`): as removed,
//! and as created.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use super::announce::{Announcement, Known, What};
use super::forked::{Mounted, Slot};
use super::inode::{Fixed, Ino, Key, Node};
use super::{Attempt, Entry, FOREVER, Stale, Vfs};
use crate::error::ErrorKind;
use crate::fork::{self, Fork};
use crate::layers::world::Kind;
use crate::sync::Mutex;

/// The most names of one fork that are announced. Further names are dropped without an event.
const MOST: usize = 8192;

/// A removed fork, and the fork that replaced it.
#[derive(Debug)]
pub struct Replaced {
    old: Mounted,
    new: Option<Mounted>,
    /// Folders that the new fork has too.
    kept: HashSet<fork::Ino>,
    /// The place of its top folder in the mount. Without one, none of its files can be reached.
    place: Option<(Fixed, Vec<u8>)>,
    known: OnceLock<Known>,
    /// Folders of the old fork that the kernel had forgotten, by the numbers that stand for them now.
    stubs: Mutex<HashMap<Ino, fork::Ino>>,
}

impl Replaced {
    /// Describes a discarded fork whose folder the kernel has at `place`.
    pub(super) fn discarded(old: Mounted, place: Option<(Fixed, Vec<u8>)>) -> Arc<Self> {
        let (new, kept, known, stubs) = Default::default();
        Arc::new(Self { old, new, kept, place, known, stubs })
    }

    fn path_of(&self, folder: &[u8]) -> Option<Vec<u8>> {
        let (parent, name) = self.place.as_ref()?;
        let parts = [parent.path(), name, folder];
        Some(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'/'))
    }
}

impl Vfs {
    /// Hands the inodes of a fork to the restored fork that replaces it.
    pub(super) fn hand_over(&self, old: &Mounted, new: &Arc<Fork>) -> Option<Replaced> {
        let all_times = self.config.late_writes;
        let known = self.inodes.known_of(&old.fork);
        let mut compared = new.compare_with(&old.fork, all_times);
        let (mut given, mut barred): (HashMap<fork::Ino, Slot>, HashSet<fork::Ino>) = Default::default();
        let (mut kept, mut folders) = (HashSet::new(), HashSet::new());
        for (number, ino) in known {
            let is_its_number = self.inodes.known(old.key(ino)) == Some(number);
            if is_its_number && compared.stays(ino) {
                kept.insert(ino);
                if old.key(ino).slot() != old.slot {
                    given.insert(ino, old.key(ino).slot());
                }
                if compared.folder_stays(ino) {
                    folders.insert(ino);
                }
            } else {
                barred.insert(ino);
            }
        }
        // Files of forks that were replaced before.
        let is_known = |ino: &fork::Ino| {
            let number = self.inodes.known(Key::of_fork(old.slot, *ino));
            number.is_some_and(|number| self.inodes.get(number).is_some())
        };
        let before = old.aside.iter().flat_map(|aside| aside.keys());
        barred.extend(before.filter(|ino| !kept.contains(ino) && is_known(ino)));
        let mounted = self.forks.hand_over(old, new, given, &barred, || self.inodes.fork_slots())?;
        self.inodes.hand_over(&old.fork, &mounted, |ino| kept.contains(&ino));
        let place = Some((Fixed::Forks, new.name().into_bytes()));
        let (known, stubs) = Default::default();
        Some(Replaced { old: old.clone(), new: Some(mounted), kept: folders, place, known, stubs })
    }

    /// Lists what the kernel has to drop before a request restores a fork. It then knows few inodes of the fork: those that
    /// programs use.
    pub fn before_restore(&self, parent: Ino, name: &[u8]) -> Vec<Stale> {
        let Ok(Node::Snap { mounted }) = self.node(parent) else { return Vec::new() };
        let folder = self.inodes.known(mounted.key(fork::Ino::FS));
        let (true, Some(number)) = (self.restores(name), folder) else { return Vec::new() };
        let names = mounted.fork.listed(fork::Ino::FS).unwrap_or_default();
        let known = names.into_iter().filter(|(_, (ino, _))| self.is_known(&mounted, *ino));
        known.map(|(name, _)| Stale::Name(number, name.to_vec())).collect()
    }

    /// Whether the kernel knows a file of a fork.
    fn is_known(&self, mounted: &Mounted, ino: fork::Ino) -> bool {
        self.inodes.known(mounted.key(ino)).is_some_and(|number| self.inodes.get(number).is_some())
    }

    /// Lists what the kernel has to drop first after a fork was replaced.
    pub fn outdated(&self, replaced: &Replaced) -> Vec<Stale> {
        let old = &replaced.old;
        let Some(new) = &replaced.new else {
            let name = replaced.place.iter().map(|(folder, name)| Stale::Name(folder.ino(), name.clone()));
            return name.collect();
        };
        let mut stale = Vec::new();
        let frame = replaced.kept.iter().filter(|ino| ino.is_frame() || **ino == fork::Ino::FS);
        for folder in frame {
            let Some(number) = self.inodes.known(new.key(*folder)) else { continue };
            stale.push(Stale::Inode(number));
            let (Ok(was), Ok(is)) = (old.fork.listed(*folder), new.fork.listed(*folder)) else { continue };
            let is_kept =
                |ino: fork::Ino| (ino.is_frame() || ino == fork::Ino::FS) && replaced.kept.contains(&ino);
            let gone = was.iter().filter(|(_, (ino, _))| self.is_known(old, *ino) && !is_kept(*ino));
            // The kernel may have cached that these names do not exist.
            let come = is.iter().filter(|(name, _)| !was.contains_key(*name));
            stale.extend(gone.chain(come).map(|(name, _)| Stale::Name(number, name.to_vec())));
        }
        stale
    }

    /// Returns the announcements to make once the kernel has forgotten unused inodes, and what it has to drop in any case.
    pub fn departures(&self, replaced: &Replaced) -> (Vec<Announcement>, Vec<Stale>) {
        let old = &replaced.old.fork;
        let left: Known = self.inodes.known_of(old).into_iter().map(|(number, ino)| (ino, number)).collect();
        let (mut gone, mut made, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        let mut told = HashSet::new();
        if let Some(new) = &replaced.new {
            let mut compared = new.fork.compare_with(old, self.config.late_writes);
            for (number, folder) in self.inodes.known_of(&new.fork) {
                if !replaced.kept.contains(&folder) {
                    continue;
                }
                stale.push(Stale::Inode(number));
                let (Some(path), Ok(changed)) = (
                    new.fork.path(folder).and_then(|path| replaced.path_of(&path)),
                    new.fork.changed_names(old, folder, &mut compared),
                ) else {
                    continue;
                };
                for change in changed {
                    told.insert((folder, change.name.clone()));
                    let announcement = |what| Announcement {
                        folder: path.clone(),
                        name: change.name.clone(),
                        what,
                        of_fork: Some(folder),
                        paths: None,
                        instead: Some(Stale::Name(number, change.name.clone())),
                    };
                    gone.extend(change.before.map(|kind| announcement(What::Gone(kind))));
                    made.extend(change.after.map(|kind| announcement(What::Made(kind))));
                }
            }
        }
        for (ino, number) in &left {
            let Ok(attr) = old.getattr(*ino) else { continue };
            if *ino == fork::Ino::TOP {
                continue;
            }
            stale.push(Stale::Inode(*number));
            for (folder, name) in old.links(*ino) {
                let path = old.path(folder).and_then(|path| replaced.path_of(&path));
                let instead = left.get(&folder).map(|parent| Stale::Name(*parent, name.to_vec()));
                let Some(path) = path.filter(|_| told.insert((folder, name.to_vec()))) else {
                    stale.extend(instead);
                    continue;
                };
                let what = What::Gone(attr.kind);
                let (name, of_fork, paths) = (name.to_vec(), Some(folder), None);
                let announcement = Announcement { folder: path, name, what, of_fork, paths, instead };
                gone.push(announcement);
            }
        }
        if let (None, Some((folder, name))) = (&replaced.new, &replaced.place) {
            // The fork's top folder comes last.
            gone.push(Announcement::of(*folder, name.clone(), What::Gone(Kind::Dir)));
        }
        let _ = replaced.known.set(left);
        let depth = |told: &Announcement| told.folder.split(|b| *b == b'/').count();
        // Files in a folder are removed before the folder.
        gone.sort_by_key(|told| std::cmp::Reverse(depth(told)));
        made.sort_by_key(depth);
        let mut all: Vec<_> = gone.into_iter().chain(made).collect();
        if all.len() > MOST {
            stale.extend(all.split_off(MOST).into_iter().filter_map(|told| told.instead));
        }
        (all, stale)
    }

    /// Returns the number of a folder in the old fork, for the thread that announces.
    pub(super) fn past_folder(&self, replaced: &Replaced, folder: Ino) -> Option<fork::Ino> {
        if let Some(ino) = replaced.stubs.lock().get(&folder) {
            return Some(*ino);
        }
        match self.inodes.get(folder)? {
            Node::Forked { mounted, ino } => {
                let of_it = mounted.is_same(&replaced.old)
                    || replaced.new.as_ref().is_some_and(|new| mounted.is_same(new));
                of_it.then_some(ino)
            }
            _ => None,
        }
    }

    /// Finds a name in the old fork, for the thread that announces.
    pub(super) fn lookup_past(&self, replaced: &Replaced, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        let old = &replaced.old.fork;
        let found = if let Some(folder) = self.past_folder(replaced, parent) {
            old.lookup(folder, name)
        } else {
            let is_place = replaced.place.as_ref().is_some_and(|(at, its)| at.ino() == parent && its == name);
            if !is_place || replaced.new.is_some() {
                return self.lookup_now(parent, name);
            }
            old.getattr(fork::Ino::TOP)
        };
        let attr = found.map_err(|error| error.kind())?;
        if let Some(new) = &replaced.new
            && attr.kind == Kind::Dir
            && new.fork.compare_with(old, false).folder_stays(attr.ino)
            && !replaced.known.get().is_some_and(|known| known.contains_key(&attr.ino))
        {
            let find = || new.fork.getattr(attr.ino);
            let now = find().map_err(|error| error.kind())?;
            return self.fork_entry(new, &now, FOREVER, find);
        }
        let number = replaced.known.get().and_then(|known| known.get(&attr.ino));
        if let Some(entry) = number.and_then(|number| self.entry_again(*number, &attr)) {
            return Ok(entry);
        }
        let stub = self.stub_of(attr.kind)?;
        replaced.stubs.lock().insert(stub.attr.ino, attr.ino);
        Ok(stub)
    }

    /// Fails with ESTALE if a fork was discarded or replaced: a program may still use its inodes.
    pub(super) fn is_past(mounted: &Mounted) -> Result<(), ErrorKind> {
        if mounted.fork.is_discarded() { Err(ErrorKind::Posix(crate::error::Posix::Stale)) } else { Ok(()) }
    }
}
