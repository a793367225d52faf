//! Does what commands ask a mount for, on threads of its connection, and notifies the kernel before the command has its reply.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use fuser::Notifier;

use super::announce::Announcer;
use super::invalidate::invalidate;
use super::pool::Workers;
use super::spin::CoreSpinner;
use super::tell::{forks_changed, sealed};
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{AfterSeal, Invalidation, Moving, Vfs};

/// The way for commands to reach the threads of a mount. It does not keep the mount: afterwards each request fails.
///
/// Each method returns at once. `done` gets the result when the kernel shows it, on a thread for which other programs may wait.
#[derive(Clone)]
pub struct Commands {
    pub(super) vfs: Weak<Vfs>,
    pub(super) notifier: Arc<OnceLock<Notifier>>,
    pub(super) notices: Workers,
    pub(super) sealers: Workers,
    pub(super) branchers: Workers,
    pub(super) announcer: Announcer,
    pub(super) spinner: Option<Weak<CoreSpinner>>,
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands").finish_non_exhaustive()
    }
}

impl Commands {
    /// Seals or restores a fork. The kernel first drops what `before` lists.
    pub fn seal<T: Send + 'static>(
        &self,
        before: impl FnOnce(&Vfs) -> Vec<Invalidation> + Send + 'static,
        work: impl FnOnce(&Vfs) -> Result<(T, AfterSeal)> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        if let Some(spinner) = self.spinner.as_ref().and_then(Weak::upgrade) {
            spinner.stop();
        }
        let this = self.clone();
        self.sealers.run(move || {
            let Some(vfs) = this.vfs.upgrade() else { return done(Err(ended())) };
            let dropped = before(&vfs);
            if let Some(notifier) = this.notifier.get().filter(|_| !dropped.is_empty()) {
                this.announcer.forget(notifier, &dropped);
            }
            let (value, mut after) = match work(&vfs) {
                Ok(worked) => worked,
                Err(error) => return done(Err(error)),
            };
            let frozen = after.frozen.take();
            let (notifier, announcer) = (Arc::clone(&this.notifier), this.announcer.clone());
            this.notices.run(move || {
                if let Some(notifier) = notifier.get() {
                    sealed(&vfs, notifier, &announcer, &after);
                }
                drop((after, vfs));
                done(Ok(value));
            });
            drop(frozen);
        });
    }

    /// Looks at something that may have to wait for the disk or for the kernel.
    pub fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Vfs) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let vfs = self.vfs.clone();
        self.branchers.run(move || {
            let worked = vfs.upgrade().ok_or_else(ended).and_then(|vfs| work(&vfs));
            done(worked);
        });
    }

    /// Makes a fork.
    pub fn make_fork(
        &self,
        work: impl FnOnce(&Vfs) -> Result<()> + Send + 'static,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let this = self.clone();
        self.branchers.run(move || {
            let Some(vfs) = this.vfs.upgrade() else { return done(Err(ended())) };
            match work(&vfs) {
                Ok(()) => this.tell_of_forks(vfs, Vec::new(), move || done(Ok(()))),
                Err(error) => done(Err(error)),
            }
        });
    }

    /// Renames or discards a fork.
    pub fn move_fork(
        &self,
        prepare: impl FnOnce(&Vfs) -> Result<Arc<Moving>> + Send + 'static,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let this = self.clone();
        self.branchers.run(move || {
            let Some(vfs) = this.vfs.upgrade() else { return done(Err(ended())) };
            let moving = match prepare(&vfs) {
                Ok(moving) => moving,
                Err(error) => return done(Err(error)),
            };
            this.announcer.move_fork(&moving);
            match vfs.finish_move(&moving) {
                (Ok(()), stale) => this.tell_of_forks(vfs, stale, move || done(Ok(()))),
                (Err(error), _) => done(Err(error)),
            }
        });
    }

    /// Notifies the kernel of forks that were added or removed, and calls `then`.
    fn tell_of_forks(&self, vfs: Arc<Vfs>, stale: Vec<Invalidation>, then: impl FnOnce() + Send + 'static) {
        let (notifier, announcer) = (Arc::clone(&self.notifier), self.announcer.clone());
        self.notices.run(move || {
            let departed = notifier.get().map(|notifier| {
                let departed = forks_changed(&vfs, notifier, &announcer);
                invalidate(notifier, &stale);
                departed
            });
            // The command does not wait for the files of a discarded fork to be removed.
            then();
            drop((departed, vfs));
        });
    }
}

/// The error for a request that comes when the mount has ended.
fn ended() -> Error {
    Error::new(ErrorKind::NoAnswer, "the mount has ended").with_hint("mount the store again")
}
