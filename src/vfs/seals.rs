//! Seals and restores forks of a mount.

use std::sync::Arc;

use chrono::DateTime;

use super::attempt::OnDisk;
use super::catalog::Catalog;
use super::fork_table::ForkTable;
use super::invalidation::Invalidation;
use super::mounted::Mounted;
use super::moved_paths::MovedPaths;
use super::node::BuiltinDir;
use super::nodes::Nodes;
use super::replaced::Replaced;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{About, Fork, Frozen, Onto, Seal};
use crate::ops::back::{Asked, Outcome, Target, restore_paths};
use crate::ops::line::{self, Line};
use crate::ops::seal::{Sealed, Sealer, Tag};
use crate::store::Home;
use crate::sync::Mutex;

/// How often a fork that programs write to is sealed before it is restored.
const SEALED_AGAIN: usize = 8;

/// What is left to do after a seal, once its caller has the answer.
#[derive(Debug, Default)]
pub struct AfterSeal {
    /// Invalidations for the kernel.
    pub stale: Vec<Invalidation>,
    /// The fork that was replaced by a restore.
    pub replaced: Option<Arc<Replaced>>,
    /// The paths that were restored.
    pub paths: Option<Arc<MovedPaths>>,
    /// A frozen state to drop, which removes files.
    pub frozen: Option<Frozen>,
}

/// The result of a seal or a restore, and what is left to do.
type Done<T> = (T, AfterSeal);

/// The result of a seal that a program asked for.
#[derive(Clone, Debug)]
pub struct NewSeal {
    /// The image that holds the state of the fork.
    pub image: Digest,
    /// Whether it is new.
    pub new: bool,
    /// Remarks for the user.
    pub reports: Vec<String>,
}

/// A seal's name in `.snap/`: when it was made, and the beginning of its id.
pub(super) fn seal_name(seal: &Seal) -> String {
    let at = DateTime::from_timestamp_nanos(seal.at_ns);
    format!("{}-{}", at.format("%Y%m%dT%H%M%S%.3fZ"), &seal.image.hex()[..12])
}

/// Seals and restores forks.
pub(super) struct Seals {
    pub(super) sealer: Sealer,
    pub(super) nodes: Arc<Nodes>,
    pub(super) table: Arc<ForkTable>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) store: OnDisk,
    pub(super) home: Arc<Home>,
}

impl Seals {
    /// Seals a fork of this mount. With `everything`, files that its `.pfignore` lists are sealed as well.
    pub(super) fn seal_mounted(
        &self,
        mounted: &Mounted,
        tag: Option<Tag<'_>>,
        everything: bool,
        about: &About,
    ) -> Result<(Sealed, Vec<Invalidation>)> {
        self.home.require()?;
        let sealed = self.sealer.seal_as(&mounted.fork, tag, everything, about)?;
        let fork = mounted.fork.name();
        for report in &sealed.reports {
            tracing::warn!(fork, image = %sealed.image, "{report}");
        }
        let mut stale = Vec::new();
        // A layer whose name was removed is shown again, even if there is no new image.
        for ino in &sealed.changed {
            self.nodes.forget_unless_known(mounted, *ino);
            stale.extend(self.nodes.known_folder(mounted, *ino).map(Invalidation::Inode));
        }
        if sealed.new {
            tracing::info!(fork, image = %sealed.image, "sealed");
            stale.extend(self.catalog.listings(&self.nodes).into_iter().map(Invalidation::Inode));
            stale.push(Invalidation::Name(BuiltinDir::Root.ino(), b"latest".to_vec()));
        }
        stale.extend(self.nodes.known(mounted.snap_key()).map(Invalidation::Inode));
        if let Some(tag) = tag {
            stale.push(Invalidation::Name(BuiltinDir::Tags.ino(), tag.name.as_bytes().to_vec()));
            stale.push(Invalidation::Inode(BuiltinDir::Tags.ino()));
        }
        Ok((sealed, stale))
    }

    /// Seals a fork for a request.
    pub(super) fn seal_for(
        &self,
        mounted: &Mounted,
        tag: Option<Tag<'_>>,
        about: &About,
    ) -> Result<Done<NewSeal>> {
        let (sealed, stale) = self.seal_mounted(mounted, tag, false, about)?;
        let Sealed { image, new, reports, frozen, .. } = sealed;
        let after = AfterSeal { stale, frozen, ..AfterSeal::default() };
        Ok((NewSeal { image, new, reports }, after))
    }

    /// Restores a fork, or paths of it.
    pub(super) fn restore_for(&self, mounted: &Mounted, asked: &Asked) -> Result<Done<Outcome>> {
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

    fn restore_mounted(&self, mounted: &Mounted, target: &Target) -> Result<Done<Outcome>> {
        let fork = &mounted.fork;
        // Nothing is lost: what was not sealed is.
        let about = target.about_before(None);
        let (mut sealed, mut stale) = self.seal_mounted(mounted, None, true, &about)?;
        let registry = self
            .table
            .registry(false)?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "this mount has no forks"))?;
        // What is written during the seal is sealed as well, a few times.
        let mut again = 0..SEALED_AGAIN;
        // Asked for its name each time: a program may rename it.
        let adopted = Mutex::new(None);
        let adopt =
            |new: &Arc<Fork>| *adopted.lock() = Replaced::hand_over(&self.nodes, &self.table, mounted, new);
        let new = loop {
            let restored = target.restored(Some(sealed.image));
            let onto = Onto { image: target.to.image, restored: Some(&restored) };
            match self.sealer.restore_and(&registry, &fork.name(), fork, &onto, &adopt) {
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
            self.table.discarded(fork.uid());
            stale.push(Invalidation::Name(BuiltinDir::Forks.ino(), name.clone().into_bytes()));
        }
        tracing::info!(fork = name, to = target.of, unsealed = %sealed.image, "restored");
        let outcome = Outcome::of_all(self.store.here()?, &new, target, &sealed)?;
        let replaced = replaced.map(Arc::new);
        Ok((outcome, AfterSeal { stale, replaced, frozen: sealed.frozen, ..AfterSeal::default() }))
    }

    fn restore_paths_mounted(&self, mounted: &Mounted, target: &Target) -> Result<Done<Outcome>> {
        let registry = self
            .table
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
        let paths = Some(Arc::new(MovedPaths::new(mounted, done.back)));
        Ok((outcome, AfterSeal { stale, paths, frozen, ..AfterSeal::default() }))
    }

    /// Lists the seals of a fork whose images exist, oldest first.
    pub(super) fn seals_of(&self, fork: &Fork) -> Result<Vec<Seal>> {
        let store = self.store.here()?;
        let mut seals = fork.seals()?;
        seals.retain(|seal| store.images().contains(&seal.image));
        Ok(seals)
    }

    /// Finds one of a fork's seals by its name in `.snap/`, its number, its tag or its id.
    pub(super) fn find_seal(&self, fork: &Fork, name: &str) -> Result<Digest> {
        if let Some(seal) = self.seals_of(fork)?.iter().find(|seal| seal_name(seal) == name) {
            return Ok(seal.image);
        }
        let store = self.store.here()?;
        line::find(store, &fork.name(), &Line::of_fork(store, fork)?, name)
    }
}
