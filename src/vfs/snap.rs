//! `.snap/` in a fork's folder lists the images that were made of it, and seals the fork by `mkdir`.
//!
//! ```text
//! forks/F/.snap/                      unlisted; a link for each seal, oldest first
//! mkdir forks/F/.snap/NAME            seals F and tags the image NAME
//! mkdir forks/F/.snap/.seal-N         seals F; with `=TAG` or `!TAG` appended, also sets (or moves) a tag
//! mkdir forks/F/.snap/.restore-N=SEAL seals F, then restores it to one of its seals
//! mkdir forks/F/.snap/.ask-N-AT=TEXT a part of a request that is longer than a name, in base64; AT counts from 0
//! mkdir forks/F/.snap/.do-N           does what the parts of N ask for
//! mkdir forks/F/.snap/.push-N         makes the kernel hand in cached writes to F, for a command that reads F on disk
//! .pfimg/done-N.json                  the outcome of any of these
//! ```
//! The command line uses the dotted names, since an errno does not tell it enough. It chooses N.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::DateTime;
use lru::LruCache;
use serde_json::{Value, json};

use super::attempt::{logged, may_wait};
use super::back::{PathsChanged, Requests};
use super::forked::Mounted;
use super::inode::{Fixed, Ino, Key, Node};
use super::readdir::{DirEntry, Emit};
use super::replaced::Replaced;
use super::{Attempt, Entry, Vfs};
use crate::audit::Log;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::{self, About, Fork, Frozen, Seal};
use crate::layers::world::Kind;
use crate::ops::back::Asked;
use crate::ops::line::{self, Line};
use crate::ops::seal::{Sealed, Sealer, Tag};
use crate::sync::Mutex;

pub(super) const NAME: &[u8] = b".snap";

/// The number of `.snap/` in its fork, which no file gets.
const SNAP: fork::Ino = fork::Ino(9);

/// The most tags of one seal that are listed.
const NAMES: u64 = 1 << 16;

/// Number of outcomes that are remembered for the command line.
const REMEMBERED: usize = 256;

/// An invalidation for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// A file looks different, or a folder has another listing.
    Inode(Ino),
    /// A name in a folder leads to another file.
    Name(Ino, Vec<u8>),
}

/// What is left to do after a seal, once its caller has the answer.
#[derive(Debug, Default)]
pub struct AfterSeal {
    /// Invalidations for the kernel.
    pub stale: Vec<Stale>,
    /// The fork that was replaced by a restore.
    pub replaced: Option<Arc<Replaced>>,
    /// The paths that were restored.
    pub paths: Option<Arc<PathsChanged>>,
    /// A frozen state to drop, which removes files.
    pub frozen: Option<Frozen>,
}

/// The outcome of a request of the command line.
struct Answer {
    text: Arc<[u8]>,
    /// Whether the kernel already shows the new state. The outcome is hidden until then, so that a caller who has it does not
    /// see the old state.
    shows: bool,
}

/// Sealing in a mounted store.
pub(super) struct Seals {
    pub(super) sealer: Sealer,
    pub(super) requests: Requests,
    outcomes: Mutex<LruCache<String, Answer>>,
}

impl Seals {
    pub(super) fn new(sealer: Sealer) -> Self {
        Self {
            sealer,
            requests: Requests::default(),
            outcomes: Mutex::new(LruCache::new(NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN))),
        }
    }

    pub(super) fn log_to(&mut self, log: Log) {
        self.sealer.set_log(log);
    }
}

/// What the name of a folder made in `.snap/` asks for.
pub(super) enum Ask<'a> {
    Seal { number: Option<&'a str>, tag: Option<Tag<'a>> },
    Restore { number: &'a str, seal: &'a str },
    Push { number: &'a str },
    Part { number: &'a str, at: &'a str, text: &'a str },
    Do { number: &'a str },
}

impl<'a> Ask<'a> {
    pub(super) fn parse(name: &'a str) -> Self {
        if let Some(rest) = name.strip_prefix(".seal-") {
            let (number, tag) = match rest.find(['=', '!']) {
                Some(at) => (&rest[..at], Some(Tag { name: &rest[at + 1..], force: &rest[at..=at] == "!" })),
                None => (rest, None),
            };
            return Self::Seal { number: Some(number), tag };
        }
        if let Some((number, seal)) = name.strip_prefix(".restore-").and_then(|rest| rest.split_once('=')) {
            return Self::Restore { number, seal };
        }
        if let Some(number) = name.strip_prefix(".push-") {
            return Self::Push { number };
        }
        if let Some((part, text)) = name.strip_prefix(".ask-").and_then(|rest| rest.split_once('='))
            && let Some((number, at)) = part.split_once('-')
        {
            return Self::Part { number, at, text };
        }
        if let Some(number) = name.strip_prefix(".do-") {
            return Self::Do { number };
        }
        Self::Seal { number: None, tag: Some(Tag { name, force: false }) }
    }
}

/// A seal's name in `.snap/`: when it was made, and the beginning of its id.
pub(super) fn seal_name(seal: &Seal) -> String {
    let at = DateTime::from_timestamp_nanos(seal.at_ns);
    format!("{}-{}", at.format("%Y%m%dT%H%M%S%.3fZ"), &seal.image.hex()[..12])
}

impl Vfs {
    /// Whether making a folder of this name in `.snap/` restores a whole fork.
    pub(super) fn restores(&self, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| match Ask::parse(name) {
            Ask::Restore { .. } => true,
            Ask::Do { number } => self.sealing.requests.restores_all(number),
            _ => false,
        })
    }

    /// Whether making a folder in this one seals a fork, which takes time.
    pub fn seals(&self, ino: Ino) -> bool {
        matches!(self.node(ino), Ok(Node::Snap { .. }))
    }

    pub(super) fn snap_entry(&self, mounted: &Mounted) -> Attempt<Entry> {
        self.entry_with(Node::Snap { mounted: mounted.clone() }, Duration::ZERO)
    }

    pub(super) fn snap_key(mounted: &Mounted) -> Key {
        Key::of_fork(mounted.slot, SNAP)
    }

    /// Lists the seals of a fork whose images exist, oldest first.
    pub(super) fn seals_of(&self, fork: &Fork) -> Result<Vec<Seal>> {
        let store = self.store.here()?;
        let mut seals = fork.seals()?;
        seals.retain(|seal| store.images().contains(&seal.image));
        Ok(seals)
    }

    /// Finds one of a fork's seals by its name in `.snap/`, its number, its tag or its id.
    fn find_seal(&self, fork: &Fork, name: &str) -> Result<Digest> {
        if let Some(seal) = self.seals_of(fork)?.iter().find(|seal| seal_name(seal) == name) {
            return Ok(seal.image);
        }
        let store = self.store.here()?;
        line::find(store, &fork.name(), &Line::of_fork(store, fork)?, name)
    }

    pub(super) fn lookup_snap(&self, mounted: &Mounted, name: &[u8]) -> Attempt<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        if name == "latest" || name.starts_with('.') {
            return Err(ErrorKind::NotFound.into());
        }
        may_wait()?;
        let found = self.find_seal(&mounted.fork, name).map_err(|error| match error.kind() {
            ErrorKind::NotFound => ErrorKind::NotFound.into(),
            _ => logged(error),
        })?;
        let place = ["snap", mounted.fork.uid(), name].join("/");
        self.link_to(place.as_bytes(), format!("../../../images/{}", found.hex()), &found, Duration::ZERO)
    }

    pub(super) fn list_snap(&self, mounted: &Mounted, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let seals = self.seals_of(&mounted.fork).map_err(logged)?;
        let mut tags: Vec<(Digest, String)> = Vec::new();
        let store_tags = self.store.at(may_wait()?).tags();
        for name in store_tags.names().map_err(logged)? {
            if let Ok(image) = store_tags.get(&name) {
                tags.push((image, name));
            }
        }
        // Seals are only added, so the place in the list says where to continue. `.` and `..` come first.
        let (first, named) = (cookie.saturating_sub(3) / NAMES, cookie.saturating_sub(3) % NAMES);
        for (at, seal) in seals.iter().enumerate().skip(usize::try_from(first).unwrap_or(usize::MAX)) {
            let tags = tags.iter().filter(|(image, _)| *image == seal.image).map(|(_, tag)| tag.clone());
            let mut names: Vec<String> = tags.collect();
            if names.is_empty() {
                names.push(seal_name(seal));
            }
            let at = at as u64;
            let told = if at == first && cookie > 2 { named + 1 } else { 0 };
            for (which, name) in (0..NAMES).zip(&names).skip(told as usize) {
                let cookie = 3 + at * NAMES + which;
                let (kind, name) = (Kind::Symlink, name.as_bytes());
                if !emit(DirEntry { ino: cookie, cookie, kind, name, entry: None }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Does what `mkdir` in `.snap/` asks for. The answer is a placeholder folder that is forgotten at once.
    pub fn make_in_snap(&self, parent: Ino, name: &[u8]) -> (Attempt<Entry>, AfterSeal) {
        let failed = |stop| (Err(stop), AfterSeal::default());
        if let Err(stop) = may_wait() {
            return failed(stop);
        }
        let Ok(Node::Snap { mounted }) = self.node(parent) else {
            return failed(ErrorKind::Posix(Posix::Stale).into());
        };
        let Ok(name) = std::str::from_utf8(name) else { return failed(ErrorKind::InvalidInput.into()) };
        let (number, done) = match Ask::parse(name) {
            Ask::Seal { number, tag } => (number, self.seal_for(&mounted, tag, &About::default())),
            Ask::Restore { number, seal } => {
                let asked = Asked { seal: Some(seal.to_owned()), ..Asked::default() };
                (Some(number), self.restore_for(&mounted, &asked))
            }
            Ask::Part { number, at, text } => {
                let kept = self.sealing.requests.add(number, at, text);
                return (kept.map_err(logged).and_then(|()| self.stub()), AfterSeal::default());
            }
            Ask::Do { number } => (Some(number), self.do_asked(&mounted, number)),
            Ask::Push { number } => {
                let pushed = self.push(&mounted.fork);
                let unsealed = mounted.fork.damage().is_some() || mounted.fork.is_changed();
                self.remember(
                    number,
                    pushed.as_ref().map(|()| json!({"pushed": true, "unsealed": unsealed})),
                );
                return (pushed.map_err(logged).and_then(|()| self.stub()), AfterSeal::default());
            }
        };
        if let Some(number) = number {
            self.remember(number, done.as_ref().map(|(answer, _)| answer.clone()));
        }
        match done {
            // The kernel need not be told that the name is a link now, since the folder's entry expires at once. An
            // invalidation of the name would wait for the next seal, which holds `.snap`, and could not be interrupted.
            Ok((_, after)) => (self.stub(), after),
            Err(error) => failed(logged(error)),
        }
    }

    pub(super) fn stub(&self) -> Attempt<Entry> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.entry_with(Node::Stub { key: NEXT.fetch_add(1, Ordering::Relaxed) }, Duration::ZERO)
    }

    fn remember(&self, number: &str, outcome: Result<Value, &Error>) {
        let shows = outcome.is_err();
        let text = outcome.unwrap_or_else(|error| {
            let (kind, hint) = (error.kind().name(), error.hint());
            json!({"error": error.message(), "kind": kind, "hint": hint, "exit_code": error.exit_code()})
        });
        let answer = Answer { text: text.to_string().into_bytes().into(), shows };
        self.sealing.outcomes.lock().put(number.to_owned(), answer);
    }

    /// Returns the outcome of a request of the command line, once the kernel shows the new state.
    pub(super) fn outcome(&self, number: &str) -> Option<Arc<[u8]>> {
        let mut outcomes = self.sealing.outcomes.lock();
        outcomes.get(number).filter(|answer| answer.shows).map(|answer| Arc::clone(&answer.text))
    }

    /// Notes that the kernel knows what the folder of this name in a `.snap/` changed.
    pub fn shows(&self, name: &[u8]) {
        let (Ask::Seal { number: Some(number), .. }
        | Ask::Restore { number, .. }
        | Ask::Push { number }
        | Ask::Do { number }) = Ask::parse(std::str::from_utf8(name).unwrap_or_default())
        else {
            return;
        };
        if let Some(answer) = self.sealing.outcomes.lock().get_mut(number) {
            answer.shows = true;
        }
    }

    /// Notes that the kernel knows that the fork moved to this name in `.pfimg/` is discarded.
    pub fn shows_discarded(&self, name: &[u8]) {
        let number = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix("discarded-"));
        if let Some(number) = number {
            let text = json!({"discarded": true}).to_string().into_bytes().into();
            self.sealing.outcomes.lock().put(number.to_owned(), Answer { text, shows: true });
        }
    }

    /// Seals a fork of this mount. With `everything`, files that its `.pfignore` lists are sealed as well.
    pub(super) fn seal_mounted(
        &self,
        mounted: &Mounted,
        tag: Option<Tag<'_>>,
        everything: bool,
        about: &About,
    ) -> Result<(Sealed, Vec<Stale>)> {
        self.catalog.home.require()?;
        let sealed = self.sealing.sealer.seal_as(&mounted.fork, tag, everything, about)?;
        let fork = mounted.fork.name();
        for report in &sealed.reports {
            tracing::warn!(fork, image = %sealed.image, "{report}");
        }
        let mut stale = Vec::new();
        // A layer whose name was removed is shown again, even if there is no new image.
        for ino in &sealed.changed {
            self.forget_unless_known(mounted, *ino);
            stale.extend(self.known_folder(mounted, *ino).map(Stale::Inode));
        }
        if sealed.new {
            tracing::info!(fork, image = %sealed.image, "sealed");
            stale.extend(self.listings_of_images().into_iter().map(Stale::Inode));
            stale.push(Stale::Name(Fixed::Root.ino(), b"latest".to_vec()));
        }
        stale.extend(self.inodes.known(Self::snap_key(mounted)).map(Stale::Inode));
        if let Some(tag) = tag {
            stale.push(Stale::Name(Fixed::Tags.ino(), tag.name.as_bytes().to_vec()));
            stale.push(Stale::Inode(Fixed::Tags.ino()));
        }
        Ok((sealed, stale))
    }
}
