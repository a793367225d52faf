//! Answers the thread that announces names; see [`super::announcements`].

use std::sync::Arc;
use std::time::Duration;

use super::announcement::{Announcement, What};
use super::announcements::Announcements;
use super::answer::{Attr, Entry, FOREVER, Look};
use super::attempt::{Attempt, Outcome, may_wait};
use super::departures;
use super::fork_files::ForkFiles;
use super::invalidation::Invalidation;
use super::key::Ino;
use super::mounted::shown;
use super::moved_paths::MovedPaths;
use super::moving::Moving;
use super::node::{BuiltinDir, Node};
use super::nodes::Nodes;
use super::replaced::Replaced;
use crate::error::{ErrorKind, Posix};
use crate::fork;
use crate::layers::world::Kind;
use crate::sync::Mutex;

/// Looks up a name in a folder of the mount.
type Lookup<'a> = &'a dyn Fn(Ino, &[u8], Look) -> Attempt<Entry>;

/// The announcement under way.
struct Current {
    what: Announcement,
    replaced: Option<Arc<Replaced>>,
}

/// Announces names that appeared or disappeared without the kernel.
pub struct Announcer {
    nodes: Arc<Nodes>,
    files: Arc<ForkFiles>,
    announcements: Arc<Announcements>,
    current: Mutex<Option<Current>>,
    moving: Mutex<Option<Arc<Moving>>>,
}

impl std::fmt::Debug for Announcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announcer").finish_non_exhaustive()
    }
}

impl Announcer {
    pub(super) fn new(nodes: Arc<Nodes>, files: Arc<ForkFiles>, announcements: Arc<Announcements>) -> Self {
        let (current, moving) = Default::default();
        Self { nodes, files, announcements, current, moving }
    }

    /// Takes the changes by requests since the last call that the kernel does not know.
    pub fn take_pending(&self) -> Vec<Announcement> {
        self.announcements.take_pending()
    }

    /// Takes the forks that were discarded since the last call.
    pub fn take_departed(&self) -> Vec<Arc<Replaced>> {
        self.announcements.take_departed()
    }

    /// Begins an announcement, or without `what` ends the present one.
    pub fn announce(&self, what: Option<&Announcement>, replaced: Option<&Arc<Replaced>>) {
        let current = |what: &Announcement| Current { what: what.clone(), replaced: replaced.cloned() };
        *self.current.lock() = what.map(current);
    }

    /// Begins a rename of a fork by the thread that announces, or without `moving` ends the present one.
    pub fn begin_move(&self, moving: Option<&Arc<Moving>>) {
        *self.moving.lock() = moving.cloned();
    }

    /// The rename under way.
    pub(super) fn moving(&self) -> Option<Arc<Moving>> {
        self.moving.lock().clone()
    }

    /// Lists what the kernel has to drop first after a fork was replaced.
    pub fn outdated(&self, replaced: &Replaced) -> Vec<Invalidation> {
        replaced.outdated(&self.nodes)
    }

    /// Returns the announcements to make once the kernel has forgotten unused inodes, and what it has to drop in any case.
    pub fn departures(&self, replaced: &Replaced) -> (Vec<Announcement>, Vec<Invalidation>) {
        departures::departures(&self.nodes, replaced)
    }

    /// Returns the announcements for restored paths, and what the kernel has to drop.
    pub fn moved_paths(&self, moved: &Arc<MovedPaths>) -> (Vec<Announcement>, Vec<Invalidation>) {
        departures::moved(&self.nodes, moved)
    }

    /// Forgets files of restored paths that are gone and that no program uses. Must be called once all names are announced.
    pub fn forget_moved(&self, moved: &MovedPaths) {
        moved.forget(&self.nodes);
    }

    /// Answers a lookup of the thread that announces. `lookup` finds what other programs see.
    pub(super) fn lookup(&self, parent: Ino, name: &[u8], lookup: Lookup<'_>) -> Attempt<Entry> {
        may_wait()?;
        if self.moving().is_some() {
            return lookup_now(parent, name, lookup);
        }
        let (what, replaced, paths, is_name) = {
            let current = self.current.lock();
            let current = current.as_ref().ok_or(ErrorKind::NotFound)?;
            let (what, is_name) =
                (&current.what, current.what.name == name && self.is_folder_of(current, parent));
            (what.what, current.replaced.clone(), what.paths.clone(), is_name)
        };
        if let Some(paths) = paths {
            return self.lookup_moved(&paths, (what, is_name), parent, name, lookup);
        }
        match what {
            // The answer that it does not exist would take a folder away from programs that use it already.
            What::Made(Kind::Dir) if is_name && replaced.is_none() => {
                self.lookup_if_known(parent, name, lookup)
            }
            // The thread creates it next.
            What::Made(_) if is_name => Err(ErrorKind::NotFound.into()),
            _ => match &replaced {
                Some(replaced) => self.lookup_past(replaced, parent, name, lookup),
                None => match what {
                    What::Gone(kind) if is_name => self.pending(kind),
                    _ => lookup_now(parent, name, lookup),
                },
            },
        }
    }

    /// Looks a name up if the kernel already knows its inode.
    fn lookup_if_known(&self, parent: Ino, name: &[u8], lookup: Lookup<'_>) -> Attempt<Entry> {
        let entry = lookup_now(parent, name, lookup)?;
        if self.nodes.lookups(entry.attr.ino) > 1 {
            return Ok(entry);
        }
        self.nodes.take_back(entry.attr.ino);
        Err(ErrorKind::NotFound.into())
    }

    /// Returns an entry that stands for a removed file, for the kernel to remove.
    fn pending(&self, kind: Kind) -> Attempt<Entry> {
        let pending = self.nodes.pending_entry()?;
        Ok(Entry { attr: Attr { kind, ..pending.attr }, ..pending })
    }

    /// Finds a name in a fork that was replaced or discarded.
    fn lookup_past(
        &self,
        replaced: &Replaced,
        parent: Ino,
        name: &[u8],
        lookup: Lookup<'_>,
    ) -> Attempt<Entry> {
        let old = &replaced.old.fork;
        let found = if let Some(folder) = replaced.past_folder(&self.nodes, parent) {
            old.lookup(folder, name)
        } else {
            let is_place = replaced.place.as_ref().is_some_and(|(at, its)| at.ino() == parent && its == name);
            if !is_place || replaced.new.is_some() {
                return lookup_now(parent, name, lookup);
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
            return self.files.entry(new, &now, FOREVER, find);
        }
        let number = replaced.known.get().and_then(|known| known.get(&attr.ino));
        if let Some(entry) = number.and_then(|number| self.nodes.entry_again(*number, shown(&attr))) {
            return Ok(entry);
        }
        let pending = self.pending(attr.kind)?;
        replaced.pending.lock().insert(pending.attr.ino, attr.ino);
        Ok(pending)
    }

    /// Finds a name in a fork after a restore of some of its paths.
    fn lookup_moved(
        &self,
        moved: &MovedPaths,
        (what, is_name): (What, bool),
        parent: Ino,
        name: &[u8],
        lookup: Lookup<'_>,
    ) -> Attempt<Entry> {
        match what {
            What::Made(Kind::Dir) if is_name => self.lookup_if_known(parent, name, lookup),
            What::Made(_) if is_name => Err(ErrorKind::NotFound.into()),
            What::Made(_) => lookup_now(parent, name, lookup),
            What::Gone(_) => {
                let past = moved
                    .folder(&self.nodes, parent)
                    .and_then(|folder| moved.before.get(&(folder, name.to_vec())));
                let Some((ino, kind)) = past else { return lookup_now(parent, name, lookup) };
                let number = self.nodes.known(moved.mounted.key(*ino));
                let attr = moved.mounted.fork.getattr(*ino).ok();
                if let (Some(number), Some(attr)) = (number, attr)
                    && let Some(entry) = self.nodes.entry_again(number, shown(&attr))
                {
                    return Ok(Entry { entry_ttl: Duration::ZERO, ..entry });
                }
                if is_name { self.pending(*kind) } else { Err(ErrorKind::NotFound.into()) }
            }
        }
    }

    /// Answers the creation of a name by the thread that announces, with the existing file.
    pub(super) fn create(&self, parent: Ino, name: &[u8], lookup: Lookup<'_>) -> Attempt<Entry> {
        may_wait()?;
        let kind = match self.current(parent, name)? {
            What::Made(kind) => kind,
            What::Gone(_) => return Err(ErrorKind::Posix(Posix::NotPermitted).into()),
        };
        let entry = match self.nodes.get(parent)? {
            // Finding the image that `latest` leads to may take reading every manifest.
            Node::Builtin(BuiltinDir::Root) => lookup(parent, name, Look::Listing)?,
            _ => lookup_now(parent, name, lookup)?,
        };
        if entry.attr.kind != kind {
            self.nodes.take_back(entry.attr.ino);
            return Err(ErrorKind::Posix(Posix::Stale).into());
        }
        Ok(entry)
    }

    /// Answers the removal of a name by the thread that announces. Nothing is removed.
    pub fn remove(&self, parent: Ino, name: &[u8]) -> Outcome<()> {
        match self.current(parent, name)? {
            What::Gone(_) => Ok(()),
            What::Made(_) => Err(ErrorKind::Posix(Posix::NotPermitted)),
        }
    }

    fn current(&self, parent: Ino, name: &[u8]) -> Outcome<What> {
        let current = self.current.lock();
        match &*current {
            Some(current) if current.what.name == name && self.is_folder_of(current, parent) => {
                Ok(current.what.what)
            }
            _ => Err(ErrorKind::Posix(Posix::Stale)),
        }
    }

    /// Whether a folder is the one of the announcement: another may have been renamed to its path.
    fn is_folder_of(&self, current: &Current, parent: Ino) -> bool {
        match (current.what.of_fork, &current.replaced) {
            (Some(folder), Some(replaced)) => replaced.past_folder(&self.nodes, parent) == Some(folder),
            (Some(folder), None) => {
                let paths = current.what.paths.as_ref();
                paths.is_some_and(|paths| paths.folder(&self.nodes, parent) == Some(folder))
            }
            _ => {
                matches!(self.nodes.get(parent), Ok(Node::Builtin(dir)) if dir.path() == current.what.folder)
            }
        }
    }
}

fn lookup_now(parent: Ino, name: &[u8], lookup: Lookup<'_>) -> Attempt<Entry> {
    match lookup(parent, name, Look::Whole)? {
        entry if entry.attr.ino != 0 => Ok(entry),
        _ => Err(ErrorKind::NotFound.into()),
    }
}
