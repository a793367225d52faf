//! `.snap/` in a fork's folder lists the images that were made of it, and seals the fork by `mkdir`.
//!
//! ```text
//! forks/F/.snap/                      unlisted; a link for each seal, oldest first
//! mkdir forks/F/.snap/NAME            seals F and tags the image NAME
//! mkdir forks/F/.snap/.restore-N=SEAL seals F, then restores it to one of its seals; N is any word
//! ```
//! Commands ask over the socket (`commands`), since an errno does not tell them enough.

use std::sync::Arc;
use std::time::Duration;

use super::answer::Entry;
use super::attempt::{Attempt, OnDisk, logged, may_wait};
use super::image_links::ImageLinks;
use super::invalidation::Invalidation;
use super::mounted::Mounted;
use super::node::Node;
use super::nodes::Nodes;
use super::readdir::{DirEntry, Emit};
use super::seals::{AfterSeal, Seals, seal_name};
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::fork::{self, About};
use crate::layers::world::Kind;
use crate::ops::back::Asked;
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
    pub(super) store: OnDisk,
}

impl SnapDir {
    /// Finds the folder itself in a fork.
    pub(super) fn entry(&self, mounted: &Mounted) -> Attempt<Entry> {
        let node = Node::Snap { mounted: mounted.clone() };
        self.nodes.own_entry(self.nodes.keyed(node), Duration::ZERO)
    }

    /// Lists what the kernel has to drop before a request restores a fork.
    pub(super) fn before_request(&self, mounted: &Mounted, name: &[u8]) -> Vec<Invalidation> {
        if seal_to_restore(name).is_some() { self.before_restore(mounted) } else { Vec::new() }
    }

    /// Lists what the kernel has to drop before a fork is restored. It then knows few inodes of the fork: those that programs
    /// use.
    pub(super) fn before_restore(&self, mounted: &Mounted) -> Vec<Invalidation> {
        let Some(number) = self.nodes.known(mounted.key(fork::Ino::FS)) else { return Vec::new() };
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
        let done = match seal_to_restore(name) {
            Some(seal) => {
                let asked = Asked { seal: Some(seal.to_owned()), ..Asked::default() };
                self.seals.restore_for(mounted, &asked).map(|(_, after)| after)
            }
            None => match std::str::from_utf8(name) {
                Ok(name) => {
                    let tag = Some(Tag { name, force: false });
                    self.seals.seal_for(mounted, tag, &About::default()).map(|(_, after)| after)
                }
                Err(_) => return failed(ErrorKind::InvalidInput.into()),
            },
        };
        match done {
            // The kernel need not be told that the name is a link now, since the folder's entry expires at once. An
            // invalidation of the name would wait for the next seal, which holds `.snap`, and could not be interrupted.
            Ok(after) => (self.nodes.pending_entry(), after),
            Err(error) => failed(logged(error)),
        }
    }
}

/// Returns the seal to restore the fork to, if the name of a folder made in `.snap/` asks for that.
fn seal_to_restore(name: &[u8]) -> Option<&str> {
    let (_, seal) = std::str::from_utf8(name).ok()?.strip_prefix(".restore-")?.split_once('=')?;
    Some(seal)
}
