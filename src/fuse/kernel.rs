//! Notifies the kernel of changes that it cannot know.

use std::fmt;

use fuser::Notifier;

use super::announce::Announcer;
use super::invalidate::invalidate;
use crate::vfs::{Announcement, Invalidation};

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
    pub fn invalidate(&self, stale: &[Invalidation]) {
        invalidate(&self.notifier, stale);
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
