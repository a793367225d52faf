//! A mount that ends itself when nothing uses it.
//!
//! Programs that use the mount set the time of a file next to it, and hold a shared lock on that file. The daemon
//! waits until it gets the exclusive lock, and then until no program has used the mount for a while. It holds the lock from the unmount to its end. A command that needs
//! the mount in this time waits, and then makes a new one. A mount that is the current directory of a shell, or
//! that has an open file, is busy to the kernel, and stays.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};
use crate::mount::attach::MountHere;

/// How long the daemon leaves a busy mount, or one with unsealed forks, alone before it looks again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the daemon waits for seals. Unsealed changes stay in the forks.
const SEALING: Duration = Duration::from_mins(2);

/// How often the daemon looks whether its unmounted mount still shows in another mount namespace.
const ENDING: Duration = Duration::from_secs(5);

/// When a mount ends.
#[derive(Clone, Debug)]
pub(super) struct Idle {
    /// The file with the lock.
    pub(super) lock: PathBuf,
    /// How long the mount must be unused.
    pub(super) after: Duration,
}

impl Idle {
    /// Ends the mount at `mountpoint` when it is idle, in a new thread. `unsealed` tells whether forks wait for
    /// a seal.
    pub(super) fn watch(
        &self,
        mountpoint: &Path,
        unsealed: impl Fn() -> bool + Send + 'static,
    ) -> Result<()> {
        let failed = |e| Error::io(e, format!("cannot use {}", self.lock.display()));
        let file = File::open(&self.lock).map_err(failed)?;
        let mount = MountHere::at(mountpoint)?;
        let after = self.after;
        thread::Builder::new()
            .name("pfimg-idle".into())
            .spawn(move || {
                if let Err(error) = end(&file, after, &mount, &unsealed) {
                    tracing::error!("this mount does not end by itself: {error}");
                }
            })
            .map_err(|e| Error::io(e, "cannot start a thread"))?;
        Ok(())
    }
}

fn end(lock: &File, after: Duration, mount: &MountHere, unsealed: &dyn Fn() -> bool) -> Result<()> {
    let failed = |e: rustix::io::Errno| Error::io(e.into(), "cannot lock the file of its users");
    let mut unsealed_since = None;
    loop {
        rustix::io::retry_on_intr(|| rustix::fs::flock(lock, FlockOperation::LockExclusive))
            .map_err(failed)?;
        // Without the lock while it waits: the next command must not wait for that.
        let last = last_use(lock);
        rustix::fs::flock(lock, FlockOperation::Unlock).map_err(failed)?;
        thread::sleep(after);
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                unsealed_since = None;
                continue;
            }
            Err(error) => return Err(failed(error)),
        }
        if last_use(lock) != last {
            // A command used the mount during this time, and has ended.
            unsealed_since = None;
            rustix::fs::flock(lock, FlockOperation::Unlock).map_err(failed)?;
            continue;
        }
        let waits = unsealed() && unsealed_since.get_or_insert_with(Instant::now).elapsed() < SEALING;
        if !waits && mount.unmount_unless_busy()? {
            tracing::info!("unmounted: nothing used the mount for {after:?}");
            // The process ends with the lock held, once it has sealed. Only another mount namespace can keep the session alive.
            loop {
                thread::sleep(ENDING);
                if mount.shows_elsewhere() {
                    tracing::warn!("the mount still shows in another mount namespace, and is served there");
                    return rustix::fs::flock(lock, FlockOperation::Unlock).map_err(failed);
                }
            }
        }
        if !waits {
            unsealed_since = None;
        }
        rustix::fs::flock(lock, FlockOperation::Unlock).map_err(failed)?;
        thread::sleep(AGAIN);
    }
}

/// Returns when a program last began to use the mount.
fn last_use(lock: &File) -> Option<SystemTime> {
    lock.metadata().and_then(|meta| meta.modified()).ok()
}
