//! Notifies the kernel of changes that it cannot know.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};

use super::announce::Announcer;
use crate::vfs::{Announcement, Stale};

/// Notifies the kernel of changes. Clones notify the same kernel. No method may be called while a request waits for it.
#[derive(Clone)]
pub struct Kernel {
    notifier: Notifier,
    announcer: Announcer,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl Kernel {
    pub(super) fn new(notifier: Notifier, announcer: Announcer) -> Self {
        Self { notifier, announcer }
    }

    /// Makes the kernel drop what it has cached.
    pub fn invalidate(&self, stale: &[Stale]) {
        tell(&self.notifier, stale);
    }

    /// Raises events for programs that watch folders.
    pub fn announce(&self, all: Vec<Announcement>) {
        self.announcer.announce(&self.notifier, all);
    }

    /// Ends all announcements, before the store is unmounted.
    pub fn stop_announcing(&self) {
        self.announcer.stop();
    }
}

/// Sends invalidations to the kernel. Must not be called while a request waits for it.
pub(super) fn tell(notifier: &Notifier, stale: &[Stale]) {
    for stale in stale {
        // The kernel's error for an inode or name that it does not know is ignored.
        let _ = match stale {
            Stale::Inode(ino) => notifier.inval_inode(INodeNo(*ino), 0, 0),
            Stale::Name(folder, name) => notifier.inval_entry(INodeNo(*folder), OsStr::from_bytes(name)),
        };
    }
}
