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

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::Entry;
use super::attempt::{Attempt, OnDisk, logged, may_wait};
use super::cached_writes::CachedWrites;
use super::image_links::ImageLinks;
use super::invalidation::Invalidation;
use super::mounted::Mounted;
use super::node::Node;
use super::nodes::Nodes;
use super::outcomes::Outcomes;
use super::readdir::{DirEntry, Emit};
use super::requests::{Ask, Requests};
use super::seals::{AfterSeal, Seals, seal_name};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::fork::{self, About};
use crate::layers::world::Kind;
use crate::ops::back::{Asked, Request};
use crate::ops::seal::Tag;

/// The folder's name.
pub(super) const NAME: &[u8] = b".snap";

/// The most tags of one seal that are listed.
const NAMES: u64 = 1 << 16;

/// The folders of seals in forks.
pub(super) struct SnapDir {
    pub(super) nodes: Arc<Nodes>,
    pub(super) seals: Arc<Seals>,
    pub(super) links: Arc<ImageLinks>,
    pub(super) cached_writes: Arc<CachedWrites>,
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) requests: Requests,
    pub(super) store: OnDisk,
}

impl SnapDir {
    /// Finds the folder itself in a fork.
    pub(super) fn entry(&self, mounted: &Mounted) -> Attempt<Entry> {
        let node = Node::Snap { mounted: mounted.clone() };
        self.nodes.own_entry(self.nodes.keyed(node), Duration::ZERO)
    }

    /// Whether making a folder of this name in `.snap/` restores a whole fork.
    fn restores(&self, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| match Ask::parse(name) {
            Ask::Restore { .. } => true,
            Ask::Do { number } => self.requests.restores_all(number),
            _ => false,
        })
    }

    /// Lists what the kernel has to drop before a request restores a fork. It then knows few inodes of the fork: those that
    /// programs use.
    pub(super) fn before_restore(&self, mounted: &Mounted, name: &[u8]) -> Vec<Invalidation> {
        let folder = self.nodes.known(mounted.key(fork::Ino::FS));
        let (true, Some(number)) = (self.restores(name), folder) else { return Vec::new() };
        let names = mounted.fork.listed(fork::Ino::FS).unwrap_or_default();
        let known = names.into_iter().filter(|(_, (ino, _))| self.nodes.in_kernel(mounted, *ino).is_some());
        known.map(|(name, _)| Invalidation::Name(number, name.to_vec())).collect()
    }

    /// Finds a seal, by its name in `.snap/`, its number, its tag or its id.
    pub(super) fn lookup(&self, mounted: &Mounted, name: &[u8]) -> Attempt<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        if name == "latest" || name.starts_with('.') {
            return Err(ErrorKind::NotFound.into());
        }
        may_wait()?;
        let found = self.seals.find_seal(&mounted.fork, name).map_err(|error| match error.kind() {
            ErrorKind::NotFound => ErrorKind::NotFound.into(),
            _ => logged(error),
        })?;
        let place = ["snap", mounted.fork.uid(), name].join("/");
        self.links.entry(place.as_bytes(), format!("../../../images/{}", found.hex()), &found, Duration::ZERO)
    }

    /// Lists a fork's seals, oldest first.
    pub(super) fn list(&self, mounted: &Mounted, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let seals = self.seals.seals_of(&mounted.fork).map_err(logged)?;
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
    pub(super) fn create(&self, mounted: &Mounted, name: &[u8]) -> (Attempt<Entry>, AfterSeal) {
        let failed = |stop| (Err(stop), AfterSeal::default());
        if let Err(stop) = may_wait() {
            return failed(stop);
        }
        let Ok(name) = std::str::from_utf8(name) else { return failed(ErrorKind::InvalidInput.into()) };
        let (number, done) = match Ask::parse(name) {
            Ask::Seal { number, tag } => (number, self.seals.seal_for(mounted, tag, &About::default())),
            Ask::Restore { number, seal } => {
                let asked = Asked { seal: Some(seal.to_owned()), ..Asked::default() };
                (Some(number), self.seals.restore_for(mounted, &asked))
            }
            Ask::Part { number, at, text } => {
                let kept = self.requests.add(number, at, text);
                return (
                    kept.map_err(logged).and_then(|()| self.nodes.pending_entry()),
                    AfterSeal::default(),
                );
            }
            Ask::Do { number } => (Some(number), self.run_request(mounted, number)),
            Ask::Push { number } => {
                let pushed = self.cached_writes.push(&mounted.fork);
                let unsealed = mounted.fork.damage().is_some() || mounted.fork.is_changed();
                let done = pushed.as_ref().map(|()| json!({"pushed": true, "unsealed": unsealed}));
                self.outcomes.put(number, done);
                return (
                    pushed.map_err(logged).and_then(|()| self.nodes.pending_entry()),
                    AfterSeal::default(),
                );
            }
        };
        if let Some(number) = number {
            self.outcomes.put(number, done.as_ref().map(|(answer, _)| answer.clone()));
        }
        match done {
            // The kernel need not be told that the name is a link now, since the folder's entry expires at once. An
            // invalidation of the name would wait for the next seal, which holds `.snap`, and could not be interrupted.
            Ok((_, after)) => (self.nodes.pending_entry(), after),
            Err(error) => failed(logged(error)),
        }
    }

    /// Does what the parts of a request ask for.
    fn run_request(&self, mounted: &Mounted, number: &str) -> Result<(Value, AfterSeal)> {
        match self.requests.take(number)? {
            Request::Seal { tag, force, about } => {
                let tag = tag.as_deref().map(|name| Tag { name, force });
                self.seals.seal_for(mounted, tag, &about)
            }
            Request::Restore(asked) => self.seals.restore_for(mounted, &asked),
        }
    }
}
