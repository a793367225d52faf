//! What commands ask a mount for: forks by their names, and errors for people.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::attempt::{Attempt, may_wait};
use super::dispatch::Vfs;
use super::fork_table::no_fork;
use super::forks_dir::Only;
use super::invalidation::Invalidation;
use super::key::Ino;
use super::moving::{Moving, To};
use super::node::{BuiltinDir, Node};
use super::seals::{AfterSeal, NewSeal};
use crate::error::{ErrorKind, Posix, Result};
use crate::fork::{About, refuse_fork_name};
use crate::ops::back::{Asked, Outcome};
use crate::ops::seal::Tag;

impl Vfs {
    /// Lists the names of the forks.
    pub fn fork_names(&self) -> Result<Vec<String>> {
        Ok(self.table.registry(false)?.map_or_else(Vec::new, |registry| registry.names()))
    }

    /// Makes a fork of a fork or an image. Its directory gets this mode.
    pub fn make_fork(&self, name: &str, source: &str, mode: u16) -> Result<()> {
        self.forks.make_announced(name, source, mode)
    }

    /// Seals a fork.
    pub fn seal_fork(&self, fork: &str, tag: Option<Tag<'_>>, about: &About) -> Result<(NewSeal, AfterSeal)> {
        self.seals.seal_for(&self.table.named(fork)?, tag, about)
    }

    /// Lists what the kernel has to drop before a fork is restored.
    pub fn before_restore_of(&self, fork: &str) -> Vec<Invalidation> {
        self.table.named(fork).map_or_else(|_| Vec::new(), |mounted| self.snap.before_restore(&mounted))
    }

    /// Restores a fork, or paths of it.
    pub fn restore_fork(&self, fork: &str, asked: &Asked) -> Result<(Outcome, AfterSeal)> {
        self.seals.restore_for(&self.table.named(fork)?, asked)
    }

    /// Makes the kernel hand in what programs wrote to a fork. Returns whether the fork has unsealed changes, or is damaged.
    pub fn flush_fork(&self, fork: &str) -> Result<bool> {
        let fork = self.table.named(fork)?.fork;
        self.cached_writes.push(&fork)?;
        Ok(fork.damage().is_some() || fork.is_changed())
    }

    /// Prepares to rename a fork; see [`Moving`].
    pub fn rename_of_fork(&self, fork: &str, name: &str) -> Result<Arc<Moving>> {
        check_name(fork)?;
        if !self.table.registry(false)?.is_some_and(|registry| registry.contains(fork)) {
            return Err(no_fork(fork));
        }
        self.forks.check_new(name)?;
        Ok(Arc::new(Moving::new(fork.to_owned(), To::Name(name.to_owned()))))
    }

    /// Prepares to discard a fork, with `force` also one with unsealed work.
    pub fn discard_of_fork(&self, fork: &str, force: bool) -> Result<Arc<Moving>> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        check_name(fork)?;
        let place = format!("discarded-{}", NUMBERS.fetch_add(1, Ordering::Relaxed));
        let only = if force { Only::Any } else { Only::Sealed };
        Ok(Arc::new(Moving::new(fork.to_owned(), To::Gone { place, only })))
    }

    /// Whether a restore replaces all of a fork, as far as can be told before its seals are read.
    pub fn restores_all(asked: &Asked) -> bool {
        asked.paths.is_none() && !asked.undo
    }

    /// Answers a rename by the thread that announces: does what the command asked for.
    pub fn rename_for_command(&self, from: Ino, name: &[u8], to: Ino, new_name: &[u8]) -> Attempt<()> {
        may_wait()?;
        let moving = self.announcer.moving().ok_or(ErrorKind::Posix(Posix::Stale))?;
        let is_it = match (self.nodes.get(from)?, self.nodes.get(to)?, &moving.to) {
            (Node::Builtin(BuiltinDir::Forks), Node::Builtin(BuiltinDir::Forks), To::Name(its)) => {
                its.as_bytes() == new_name
            }
            (
                Node::Builtin(BuiltinDir::Forks),
                Node::Builtin(BuiltinDir::Control),
                To::Gone { place, .. },
            ) => place.as_bytes() == new_name,
            _ => false,
        };
        if !is_it || moving.name.as_bytes() != name {
            return Err(ErrorKind::Posix(Posix::Stale).into());
        }
        moving.note(self.do_move(&moving, true));
        moving.kind().map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Returns the result of a rename by the thread that announces, and what the kernel still has to drop. If the kernel did
    /// not send the request (the fork cannot be read, or another mount covers this one), does now what the command asked for.
    pub fn finish_move(&self, moving: &Moving) -> (Result<()>, Vec<Invalidation>) {
        if let Some(done) = moving.take() {
            let moved = match &moving.to {
                To::Gone { place, .. } if done.is_ok() => {
                    vec![Invalidation::Name(BuiltinDir::Control.ino(), place.clone().into_bytes())]
                }
                _ => Vec::new(),
            };
            return (done, moved);
        }
        let done = self.do_move(moving, false);
        let name = |name: &String| Invalidation::Name(BuiltinDir::Forks.ino(), name.clone().into_bytes());
        let mut stale = vec![name(&moving.name)];
        if let To::Name(new_name) = &moving.to {
            stale.push(name(new_name));
        }
        (done, stale)
    }

    /// Renames or discards the fork. `by_kernel` says whether the kernel moves the name too.
    fn do_move(&self, moving: &Moving, by_kernel: bool) -> Result<()> {
        match &moving.to {
            To::Name(name) => self.forks.rename_checked(&moving.name, name),
            To::Gone { place, only } => {
                let place = by_kernel.then(|| (BuiltinDir::Control, place.clone().into_bytes()));
                self.forks.discard_named(&moving.name, *only, place)
            }
        }
    }
}

/// Fails for a word that is not a fork's name, such as a path.
fn check_name(fork: &str) -> Result<()> {
    refuse_fork_name(fork).map_or(Ok(()), |_| Err(no_fork(fork)))
}
