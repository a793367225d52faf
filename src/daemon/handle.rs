//! The handle of a running mount.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::calls;
use super::forks::{Forks, Sealed, check_fork_name};
use super::handler::Handler;
use super::serve::Stopper;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{About, Difference};
use crate::ops::back::{Asked, Outcome};
use crate::store::tags::check_new_tag;
use crate::store::{Store, plain_folder_mode};
use crate::sync::Mutex;
use crate::vfs::{NewSeal, Vfs};

/// How long a dropped handle waits for the end of its mount.
const DROPPED: Duration = Duration::from_secs(10);

/// A store that this process has mounted.
///
/// [`MountedStore::unmount`] seals forks as the mount's policy says, and reports errors. Dropping the handle unmounts at once:
/// - Running seals stop, and no fork is sealed. Unsealed changes stay in the forks, and the next mount has them.
/// - A program that has files of the mount open gets ENOTCONN. Where the kernel does not offer this to an ordinary user, the
///   mount leaves its path, and is served until these files are closed.
/// - The drop returns after 10 s at the latest, so that it never hangs.
///
/// A panic drops the handle, so it leaves no mount behind. A process that is killed does. The next mount at that path, or
/// `pfimg umount`, removes it.
#[derive(Debug)]
pub struct MountedStore {
    pub(super) store: Arc<Store>,
    pub(super) mountpoint: PathBuf,
    pub(super) cache_dir: PathBuf,
    pub(super) read_only: bool,
    pub(super) vfs: Weak<Vfs>,
    pub(super) handler: Handler,
    pub(super) stopper: Stopper,
    /// How the mount ended; nothing once that was taken.
    pub(super) ended: Mutex<Option<Receiver<Result<()>>>>,
}

impl MountedStore {
    /// Returns the absolute path of the mountpoint.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns a handle that ends the mount from any thread, for instance when a signal arrives.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Returns the names of the forks, sorted.
    ///
    /// # Errors
    /// `Io`: the mount does not answer.
    pub fn forks(&self) -> Result<Vec<String>> {
        wait_for(|done| self.handler.forks(done))
    }

    /// Returns where the files of a fork are: `forks/NAME/world/fs` below the mountpoint.
    pub fn files(&self, fork: &str) -> PathBuf {
        calls::files_of(&self.mountpoint, fork)
    }

    /// Makes a fork of a fork or an image, and returns where its files are. `source` is the name of a fork, `FORK@SEAL`, a tag,
    /// an id or the beginning of one, or `latest`.
    ///
    /// # Errors
    /// `NotFound`: there is no such source. `AlreadyExists`: a fork or a tag has the name. `InvalidInput`: no fork can have the
    /// name. `ReadOnly`: another program writes the forks, or the mount takes no writes.
    pub fn fork(&self, name: &str, source: &str) -> Result<PathBuf> {
        check_fork_name(name)?;
        let (new, source, mode) = (name.to_owned(), source.to_owned(), plain_folder_mode());
        wait_for(|done| self.handler.fork(new, source, mode, done))?;
        Ok(self.files(name))
    }

    /// Makes an image of a fork, and gives it a tag that no image has yet. Writes that have returned are in the image.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork. `AlreadyExists`: an image has the tag. `InvalidInput`: no image can have the tag.
    /// `Damaged`: a check found that the image would differ from the fork. `Busy`: programs write without a pause.
    pub fn seal(&self, fork: &str, tag: Option<&str>) -> Result<Sealed> {
        if let Some(tag) = tag {
            check_new_tag(tag)?;
        }
        let (fork, tag) = (fork.to_owned(), tag.map(str::to_owned));
        let NewSeal { image, new, reports } =
            wait_for(|done| self.handler.seal(fork, tag, false, About::default(), done))?;
        Ok(Sealed { image, new, reports })
    }

    /// Restores a fork to one of its seals: a number, a tag, or an id or the beginning of one. Unsealed changes are sealed
    /// first.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork or seal. `Missing`: its image was removed. Also those of [`MountedStore::seal`].
    pub fn restore(&self, fork: &str, seal: &str) -> Result<Outcome> {
        let (fork, asked) = (fork.to_owned(), Asked { seal: Some(seal.to_owned()), ..Asked::default() });
        wait_for(|done| self.handler.restore(fork, asked, done))
    }

    /// Lists the paths that differ between two forks or images, sorted. Each is named as in [`MountedStore::fork`].
    ///
    /// # Errors
    /// `NotFound`: there is no such fork or image. `Damaged` or `Missing`: its files are. `Busy`: programs write without a
    /// pause.
    pub fn diff(&self, before: &str, after: &str) -> Result<Vec<Difference>> {
        let forks = if self.read_only { Vec::new() } else { self.forks()? };
        for name in [before, after] {
            if forks.iter().any(|fork| fork == name) {
                wait_for(|done| self.handler.flush(name.to_owned(), done))?;
            }
        }
        Forks::open_read_only(Arc::clone(&self.store), &self.cache_dir)?.diff(before, after)
    }

    /// Removes a fork. Its seals stay. With `force` it also removes a fork that has unsealed changes.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork. `Busy`: it has unsealed changes, and `force` is false.
    pub fn discard(&self, fork: &str, force: bool) -> Result<()> {
        wait_for(|done| self.handler.discard(fork.to_owned(), force, done))
    }

    /// Returns a function that finds out whether a fork waits for an automatic seal.
    #[doc(hidden)]
    pub fn unsealed(&self) -> impl Fn() -> bool + Send + 'static {
        let vfs = self.vfs.clone();
        move || vfs.upgrade().is_some_and(|vfs| vfs.has_unsealed())
    }

    /// Unmounts the store, seals its forks as the policy says, and waits for the end.
    ///
    /// It waits at most 10 s for programs that have files open, and as long as the seals take. After it has returned, no thread
    /// of the mount uses the store.
    ///
    /// # Errors
    /// Those of [`MountedStore::wait`]. `Busy`: another filesystem is mounted over the mountpoint.
    pub fn unmount(self) -> Result<()> {
        self.stopper.stop();
        self.wait()
    }

    /// Waits until the mount has ended and its forks are sealed: after an unmount by any program, or by a [`Stopper`].
    ///
    /// # Errors
    /// `Io`: the connection to the kernel broke. A fork that cannot be sealed does not count: its changes stay in the fork, and
    /// the log names it.
    pub fn wait(self) -> Result<()> {
        let Some(ended) = self.ended.lock().take() else { return Ok(()) };
        ended.recv().unwrap_or_else(|_| Err(failed()))
    }
}

/// Waits for the result of a request.
fn wait_for<T: Send + 'static>(ask: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>)) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    ask(Box::new(move |result| drop(sender.send(result))));
    receiver.recv().unwrap_or_else(|_| Err(failed()))
}

fn failed() -> Error {
    Error::new(ErrorKind::Io(None), "an error in pfimg ended the mount")
}

impl Drop for MountedStore {
    fn drop(&mut self) {
        let Some(ended) = self.ended.lock().take() else { return };
        self.stopper.stop_at_once();
        let shown = self.mountpoint.display();
        match ended.recv_timeout(DROPPED) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("{error}"),
            Err(RecvTimeoutError::Disconnected) => tracing::error!("{}", failed()),
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("the mount at {shown} has not ended within {} s", DROPPED.as_secs());
            }
        }
    }
}
