//! Raises events for programs that watch folders (inotify(7)).
//!
//! The kernel raises events for what programs do through the mount. It has no call by which a daemon could raise them. So a
//! thread of the daemon creates or removes names through the mount that appeared or disappeared without the kernel
//! ([`crate::fuse`]). The daemon recognizes the requests of that thread, changes nothing, and answers with the present
//! state. To the kernel, the name was created or removed at that moment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::attempt::may_wait;
use super::back::PathsChanged;
use super::inode::{Fixed, Ino, Node};
use super::replaced::Replaced;
use super::{Attempt, Attr, Entry, FOREVER, Look, Outcome, Stale, Vfs};
use crate::digest::Digest;
use crate::error::{ErrorKind, Posix};
use crate::fork;
use crate::layers::world::Kind;
use crate::sync::Mutex;

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was removed; this was its kind.
    Gone(Kind),
    /// It was added; this is its kind.
    Made(Kind),
}

/// A name that was added or removed without the kernel.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// The path of the folder, from the mountpoint.
    pub folder: Vec<u8>,
    /// The name in it.
    pub name: Vec<u8>,
    /// What happened to it.
    pub what: What,
    /// The folder's number, if it is in a fork.
    pub(super) of_fork: Option<fork::Ino>,
    /// The restored paths that this one belongs to.
    pub(super) paths: Option<Arc<PathsChanged>>,
    /// The invalidation to use if the name cannot be announced.
    pub instead: Option<Stale>,
}

impl Announcement {
    pub(super) fn of(folder: Fixed, name: impl Into<Vec<u8>>, what: What) -> Self {
        let (path, name): (&[u8], Vec<u8>) = (folder.path(), name.into());
        let instead = Some(Stale::Name(folder.ino(), name.clone()));
        Self { folder: path.to_vec(), name, what, of_fork: None, paths: None, instead }
    }
}

/// The announcement under way.
struct Current {
    what: Announcement,
    replaced: Option<Arc<Replaced>>,
}

/// Pending announcements, and the one under way.
#[derive(Default)]
pub(super) struct Announcing {
    current: Mutex<Option<Current>>,
    pending: Mutex<Vec<Announcement>>,
    departed: Mutex<Vec<Arc<Replaced>>>,
    /// The tags that watchers know of.
    tags: Mutex<BTreeMap<String, Digest>>,
}

impl Announcing {
    /// Notes a change by a request that the kernel does not know.
    pub(super) fn add(&self, what: Announcement) {
        self.pending.lock().push(what);
    }

    /// Notes a fork that was discarded or replaced.
    pub(super) fn depart(&self, replaced: Arc<Replaced>) {
        self.departed.lock().push(replaced);
    }

    /// Notes a change of tags that came through the kernel.
    pub(super) fn knows_tag(&self, name: &str, image: Option<Digest>) {
        let mut tags = self.tags.lock();
        match image {
            Some(image) => drop(tags.insert(name.to_owned(), image)),
            None => drop(tags.remove(name)),
        }
    }
}

/// Returns the announcements for removed and added images. `all` is the number of images now.
pub(super) fn of_images(removed: &[Digest], added: &[Digest], all: usize) -> Vec<Announcement> {
    // Removed images are not announced: an image may be back by then, and the call would take the name from programs that
    // use it.
    let made = |id: &Digest| Announcement::of(Fixed::Images, id.hex(), What::Made(Kind::Dir));
    let mut all_of_them: Vec<_> = added.iter().map(made).collect();
    if !added.is_empty() || !removed.is_empty() {
        // `latest` has another inode when the images change; see `Vfs::latest`.
        if all + removed.len() > added.len() {
            all_of_them.push(Announcement::of(Fixed::Root, "latest", What::Gone(Kind::Symlink)));
        }
        if all > 0 {
            all_of_them.push(Announcement::of(Fixed::Root, "latest", What::Made(Kind::Symlink)));
        }
    }
    all_of_them
}

impl Vfs {
    /// Takes the changes by requests since the last call that the kernel does not know.
    pub fn take_announcements(&self) -> Vec<Announcement> {
        std::mem::take(&mut self.announcing.pending.lock())
    }

    /// Takes the forks that were discarded since the last call.
    pub fn take_departed(&self) -> Vec<Arc<Replaced>> {
        std::mem::take(&mut self.announcing.departed.lock())
    }

    /// Begins an announcement, or without `what` ends the present one.
    pub fn announce(&self, what: Option<&Announcement>, replaced: Option<&Arc<Replaced>>) {
        let current = |what: &Announcement| Current { what: what.clone(), replaced: replaced.cloned() };
        *self.announcing.current.lock() = what.map(current);
    }

    /// Returns announcements for tags that were added, removed or moved since the last call.
    pub(super) fn announce_tags(&self) -> Vec<Announcement> {
        let Ok(store) = self.store.here() else { return Vec::new() };
        let Ok(names) = store.tags().names() else { return Vec::new() };
        let now: BTreeMap<_, _> = names
            .into_iter()
            .filter_map(|name| store.tags().get(&name).ok().map(|image| (name, image)))
            .collect();
        let before = std::mem::replace(&mut *self.announcing.tags.lock(), now.clone());
        let tag = |name: &String, what| Announcement::of(Fixed::Tags, name.as_str(), what);
        let mut all: Vec<_> = before
            .iter()
            .filter(|(name, image)| now.get(*name) != Some(image))
            .map(|(name, _)| tag(name, What::Gone(Kind::Symlink)))
            .collect();
        let made = now.iter().filter(|(name, image)| before.get(*name) != Some(image));
        all.extend(made.map(|(name, _)| tag(name, What::Made(Kind::Symlink))));
        all
    }

    /// Answers a lookup of the thread that announces.
    pub fn lookup_announced(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        may_wait()?;
        let (what, replaced, paths, is_name) = {
            let current = self.announcing.current.lock();
            let current = current.as_ref().ok_or(ErrorKind::NotFound)?;
            let (what, is_name) =
                (&current.what, current.what.name == name && self.is_folder_of(current, parent));
            (what.what, current.replaced.clone(), what.paths.clone(), is_name)
        };
        if let Some(paths) = paths {
            return self.lookup_moved(&paths, what, is_name, parent, name);
        }
        match what {
            // The answer that it does not exist would take a folder away from programs that use it already.
            What::Made(Kind::Dir) if is_name && replaced.is_none() => self.lookup_if_known(parent, name),
            // The thread creates it next.
            What::Made(_) if is_name => Err(ErrorKind::NotFound.into()),
            _ => match &replaced {
                Some(replaced) => self.lookup_past(replaced, parent, name),
                None => match what {
                    What::Gone(kind) if is_name => self.stub_of(kind),
                    _ => self.lookup_now(parent, name),
                },
            },
        }
    }

    /// Looks a name up if the kernel already knows its inode.
    pub(super) fn lookup_if_known(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        let entry = self.lookup_now(parent, name)?;
        if self.inodes.lookups(entry.attr.ino) > 1 {
            return Ok(entry);
        }
        drop(self.forget(entry.attr.ino, 1));
        Err(ErrorKind::NotFound.into())
    }

    pub(super) fn lookup_now(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        match self.lookup(parent, name)? {
            entry if entry.attr.ino != 0 => Ok(entry),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Returns an entry that stands for a removed file, for the kernel to remove.
    pub(super) fn stub_of(&self, kind: Kind) -> Attempt<Entry> {
        let stub = self.stub()?;
        let attr = Attr { kind, ..stub.attr };
        Ok(Entry { attr, ..stub })
    }

    /// Answers the creation of a name by the thread that announces, with the existing file.
    pub fn make_announced(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        may_wait()?;
        let kind = match self.announced(parent, name)? {
            What::Made(kind) => kind,
            What::Gone(_) => return Err(ErrorKind::Posix(Posix::NotPermitted).into()),
        };
        let listed = matches!(self.node(parent)?, Node::Fixed(Fixed::Root));
        let entry = if listed {
            // Finding the image that it leads to may take reading every manifest.
            self.find(parent, name, Look::Listing)?
        } else {
            self.lookup_now(parent, name)?
        };
        if entry.attr.kind != kind {
            self.take_back(entry.attr.ino);
            return Err(ErrorKind::Posix(Posix::Stale).into());
        }
        Ok(entry)
    }

    /// Answers the removal of a name by the thread that announces. Nothing is removed.
    pub fn remove_announced(&self, parent: Ino, name: &[u8]) -> Outcome<()> {
        match self.announced(parent, name)? {
            What::Gone(_) => Ok(()),
            What::Made(_) => Err(ErrorKind::Posix(Posix::NotPermitted)),
        }
    }

    fn announced(&self, parent: Ino, name: &[u8]) -> Outcome<What> {
        let current = self.announcing.current.lock();
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
            (Some(folder), Some(replaced)) => self.past_folder(replaced, parent) == Some(folder),
            (Some(folder), None) => current
                .what
                .paths
                .as_ref()
                .is_some_and(|paths| self.moved_folder(paths, parent) == Some(folder)),
            _ => {
                matches!(self.inodes.get(parent), Some(Node::Fixed(fixed)) if fixed.path() == current.what.folder)
            }
        }
    }

    /// Counts a lookup of an inode of a removed fork.
    pub(super) fn entry_again(&self, number: Ino, attr: &fork::Attr) -> Option<Entry> {
        let attr = Attr { ino: number, ..Self::fork_attr(attr) };
        let entry = Entry { attr, entry_ttl: std::time::Duration::ZERO, attr_ttl: FOREVER };
        self.inodes.again(number).then_some(entry)
    }
}

/// Inodes of a removed fork that the kernel knows, by their numbers in the fork.
pub(super) type Known = HashMap<fork::Ino, Ino>;
