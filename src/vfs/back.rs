//! Requests that are longer than a name in `.snap/`, restores, and what the kernel learns of restored paths.
//!
//! A restore of paths is made of operations of the fork that the kernel does not know. So the names that lead elsewhere are
//! announced (see `announce.rs`): removed, and made. A file that was replaced is a removed file to programs that have it open.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use lru::LruCache;
use serde_json::{Value, json};

use super::announce::{Announcement, What};
use super::forked::Mounted;
use super::inode::{Fixed, Ino, Node};
use super::replaced::Replaced;
use super::snap::{AfterSeal, Stale, seal_name};
use super::{Attempt, Entry, Vfs};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, About, Fork, MovedName, Onto, PathsBack};
use crate::layers::world::Kind;
use crate::ops::back::{Asked, Outcome, Request, Target, restore_paths};
use crate::ops::line::Line;
use crate::ops::seal::{Sealed, Tag};
use crate::sync::Mutex;

/// How often a fork that programs write to is sealed before it is restored.
const SEALED_AGAIN: usize = 8;

/// Requests that are put together at the same time.
const REQUESTS: usize = 16;

/// Longest request in bytes.
const MAX_REQUEST: usize = 4 << 20;

/// More names are not announced of one restore of paths; the kernel drops them without an event.
const MOST: usize = 8192;

/// What a request did: the answer to its command, and what is left to do.
type Done = (Value, AfterSeal);

/// Requests that are being put together, by their numbers.
pub(super) struct Requests(Mutex<LruCache<String, (usize, Vec<u8>)>>);

impl Default for Requests {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(REQUESTS).unwrap_or(NonZeroUsize::MIN))))
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("the request is invalid: {what}"))
}

impl Requests {
    /// Adds a part to a request.
    pub(super) fn add(&self, number: &str, at: &str, text: &str) -> Result<()> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| invalid("a part is not base64"))?;
        let mut all = self.0.lock();
        let (parts, request) = all.get_or_insert_mut(number.to_owned(), Default::default);
        if at.parse() != Ok(*parts) {
            return Err(invalid("a part is missing"));
        }
        if request.len() + bytes.len() > MAX_REQUEST {
            return Err(invalid("it is too long"));
        }
        *parts += 1;
        request.extend(bytes);
        Ok(())
    }

    fn read(bytes: &[u8]) -> Result<Request> {
        serde_json::from_slice(bytes)
            .map_err(|e| invalid("its JSON does not have the expected form").with_source(e))
    }

    /// Takes a request out.
    fn take(&self, number: &str) -> Result<Request> {
        let (_, bytes) = self.0.lock().pop(number).ok_or_else(|| invalid("no part"))?;
        Self::read(&bytes)
    }

    /// Whether a request restores a whole fork, as far as can be told before its line is read.
    pub(super) fn restores_all(&self, number: &str) -> bool {
        let mut all = self.0.lock();
        let request = all.get(number).and_then(|(_, bytes)| Self::read(bytes).ok());
        matches!(request, Some(Request::Restore(Asked { paths: None, undo: false, .. })))
    }
}

/// Paths of a fork that went back.
#[derive(Debug)]
pub struct PathsChanged {
    mounted: Mounted,
    back: PathsBack,
    /// What names led to before, by folder and name.
    before: HashMap<(fork::Ino, Vec<u8>), (fork::Ino, Kind)>,
}

impl PathsChanged {
    fn new(mounted: &Mounted, back: PathsBack) -> Self {
        let mut before = HashMap::new();
        for MovedName { folder, name, before: was, .. } in &back.names {
            if let Some(was) = was {
                before.entry((*folder, name.to_vec())).or_insert(*was);
            }
        }
        Self { mounted: mounted.clone(), back, before }
    }
}

impl Vfs {
    /// Does what the parts of a request ask for.
    pub(super) fn do_asked(&self, mounted: &Mounted, number: &str) -> Result<Done> {
        match self.sealing.requests.take(number)? {
            Request::Seal { tag, force, about } => {
                let tag = tag.as_deref().map(|name| Tag { name, force });
                self.seal_for(mounted, tag, &about)
            }
            Request::Restore(asked) => self.restore_for(mounted, &asked),
        }
    }

    pub(super) fn seal_for(&self, mounted: &Mounted, tag: Option<Tag<'_>>, about: &About) -> Result<Done> {
        let (sealed, stale) = self.seal_mounted(mounted, tag, false, about)?;
        let Sealed { image, new, reports, frozen, .. } = sealed;
        let after = AfterSeal { stale, frozen, ..AfterSeal::default() };
        Ok((json!({"image": image, "new": new, "reports": reports}), after))
    }

    /// Restores a fork, or paths of it.
    pub(super) fn restore_for(&self, mounted: &Mounted, asked: &Asked) -> Result<Done> {
        let (fork, store) = (&mounted.fork, self.store.here()?);
        let mut asked = asked.clone();
        if let Some(name) = &asked.seal
            && let Some(seal) = self.seals_of(fork)?.iter().find(|seal| seal_name(seal) == *name)
        {
            asked.seal = Some(seal.image.hex());
        }
        let target = Target::find(store, &fork.name(), &Line::of_fork(store, fork)?, &asked)?;
        if target.paths.is_some() {
            self.restore_paths_mounted(mounted, &target)
        } else {
            self.restore_mounted(mounted, &target)
        }
    }

    fn restore_mounted(&self, mounted: &Mounted, target: &Target) -> Result<Done> {
        let fork = &mounted.fork;
        // Nothing is lost: what was not sealed is.
        let about = target.about_before(None);
        let (mut sealed, mut stale) = self.seal_mounted(mounted, None, true, &about)?;
        let registry = self
            .registry(false)?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "this mount has no forks"))?;
        // What is written during the seal is sealed as well, a few times.
        let mut again = 0..SEALED_AGAIN;
        // Asked for its name each time: a program may rename it.
        let adopted = Mutex::new(None);
        let adopt = |new: &Arc<Fork>| *adopted.lock() = self.hand_over(mounted, new);
        let new = loop {
            let restored = target.restored(Some(sealed.image));
            let onto = Onto { image: target.to.image, restored: Some(&restored) };
            match self.sealing.sealer.restore_and(&registry, &fork.name(), fork, &onto, &adopt) {
                Err(error) if error.kind() == ErrorKind::Busy && again.next().is_some() => {}
                done => break done?,
            }
            let (more, seen) = self.seal_mounted(mounted, None, true, &about)?;
            stale.extend(seen);
            sealed = Sealed { new: sealed.new || more.new, ..more };
        };
        let name = fork.name();
        let replaced: Option<Replaced> = adopted.into_inner();
        if replaced.is_none() {
            // It has other numbers, and the kernel finds it by its name.
            self.forks.discarded(fork.uid());
            stale.push(Stale::Name(Fixed::Forks.ino(), name.clone().into_bytes()));
        }
        tracing::info!(fork = name, to = target.of, unsealed = %sealed.image, "restored");
        let outcome = Outcome::of_all(self.store.here()?, &new, target, &sealed)?;
        let replaced = replaced.map(Arc::new);
        Ok((json!(outcome), AfterSeal { stale, replaced, frozen: sealed.frozen, ..AfterSeal::default() }))
    }

    fn restore_paths_mounted(&self, mounted: &Mounted, target: &Target) -> Result<Done> {
        let registry = self
            .registry(false)?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "this mount has no forks"))?;
        let then = registry.view(target.to.image)?;
        let mut stale = Vec::new();
        let mut seal = |everything: bool, about: &About| {
            let (sealed, seen) = self.seal_mounted(mounted, None, everything, about)?;
            stale.extend(seen);
            Ok(sealed)
        };
        let done = restore_paths(&mounted.fork, target, &then, &mut seal)?;
        let name = mounted.fork.name();
        tracing::info!(fork = name, to = target.of, paths = done.back.moved.len(), "restored paths");
        let outcome = Outcome::of_paths(self.store.here()?, &mounted.fork, target, &then, &done)?;
        let frozen = done.sealed.frozen;
        let paths = Some(Arc::new(PathsChanged::new(mounted, done.back)));
        Ok((json!(outcome), AfterSeal { stale, paths, frozen, ..AfterSeal::default() }))
    }

    /// What is announced of paths that went back, and what the kernel drops.
    pub fn moved_paths(&self, changed: &Arc<PathsChanged>) -> (Vec<Announcement>, Vec<Stale>) {
        let PathsChanged { mounted, back, .. } = &**changed;
        let fork = &mounted.fork;
        let known = |ino: fork::Ino| {
            self.inodes.known(mounted.key(ino)).filter(|number| self.inodes.get(*number).is_some())
        };
        let top = [Fixed::Forks.path(), fork.name().as_bytes()].join(&b'/');
        let (mut gone, mut made, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        let mut told = HashSet::new();
        // The folders that are gone have the paths that they had.
        let mut paths: HashMap<fork::Ino, Vec<u8>> = HashMap::new();
        let parents: HashMap<fork::Ino, (fork::Ino, Vec<u8>)> = changed
            .before
            .iter()
            .filter(|(_, (_, kind))| *kind == Kind::Dir)
            .map(|((folder, name), (ino, _))| (*ino, (*folder, name.clone())))
            .collect();
        for MovedName { folder, name, .. } in &back.names {
            let Some(number) = known(*folder) else { continue };
            if !told.insert((*folder, name.clone())) {
                continue;
            }
            let path = paths.entry(*folder).or_insert_with(|| path_of(fork, *folder, &parents));
            let announcement = |what| Announcement {
                folder: [&top[..], path].join(&b'/'),
                name: name.to_vec(),
                what,
                of_fork: Some(*folder),
                paths: Some(Arc::clone(changed)),
                instead: Some(Stale::Name(number, name.to_vec())),
            };
            let before = changed.before.get(&(*folder, name.to_vec()));
            gone.extend(before.map(|(_, kind)| announcement(What::Gone(*kind))));
            let after = fork.lookup(*folder, name).ok();
            made.extend(after.map(|attr| announcement(What::Made(attr.kind))));
        }
        stale.extend(back.touched.iter().filter_map(|ino| known(*ino)).map(Stale::Inode));
        let depth = |told: &Announcement| told.folder.split(|b| *b == b'/').count();
        // What is in a folder goes before the folder.
        gone.sort_by_key(|told| std::cmp::Reverse(depth(told)));
        made.sort_by_key(depth);
        let mut all: Vec<_> = gone.into_iter().chain(made).collect();
        if all.len() > MOST {
            stale.extend(all.split_off(MOST).into_iter().filter_map(|told| told.instead));
        }
        (all, stale)
    }

    /// To be called once all of it is announced: files that are gone and that no program uses are forgotten.
    pub fn forget_moved(&self, changed: &PathsChanged) {
        for (ino, _) in changed.before.values() {
            if changed.mounted.fork.links(*ino).is_empty() {
                self.forget_unless_known(&changed.mounted, *ino);
            }
        }
    }

    /// The number in the fork of a folder, to the thread that announces.
    pub(super) fn moved_folder(&self, changed: &PathsChanged, folder: Ino) -> Option<fork::Ino> {
        match self.inodes.get(folder)? {
            Node::Forked { mounted, ino } => mounted.is_same(&changed.mounted).then_some(ino),
            _ => None,
        }
    }

    /// Answers a lookup of the thread that announces paths which went back.
    pub(super) fn lookup_moved(
        &self,
        changed: &PathsChanged,
        what: What,
        is_name: bool,
        parent: Ino,
        name: &[u8],
    ) -> Attempt<Entry> {
        match what {
            What::Made(Kind::Dir) if is_name => self.lookup_if_known(parent, name),
            What::Made(_) if is_name => Err(ErrorKind::NotFound.into()),
            What::Made(_) => self.lookup_now(parent, name),
            What::Gone(_) => {
                let past = self
                    .moved_folder(changed, parent)
                    .and_then(|folder| changed.before.get(&(folder, name.to_vec())));
                let Some((ino, kind)) = past else { return self.lookup_now(parent, name) };
                let number = self.inodes.known(changed.mounted.key(*ino));
                let attr = changed.mounted.fork.getattr(*ino).ok();
                if let (Some(number), Some(attr)) = (number, attr)
                    && let Some(entry) = self.entry_again(number, &attr)
                {
                    return Ok(Entry { entry_ttl: Duration::ZERO, ..entry });
                }
                if is_name { self.stub_of(*kind) } else { Err(ErrorKind::NotFound.into()) }
            }
        }
    }
}

/// The path of a folder, also of one that is gone.
fn path_of(fork: &Fork, folder: fork::Ino, parents: &HashMap<fork::Ino, (fork::Ino, Vec<u8>)>) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = folder;
    while let Some((above, name)) = parents.get(&at) {
        names.push(name.clone());
        at = *above;
    }
    names.push(fork.path(at).unwrap_or_default());
    names.reverse();
    names.join(&b'/')
}
