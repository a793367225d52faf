//! Notifies the kernel, and programs that watch, after forks were sealed, restored, added or removed.

use std::sync::Arc;

use fuser::Notifier;

use super::announce::Announcer;
use super::invalidate::invalidate;
use crate::vfs::{AfterSeal, Invalidation, Replaced, Vfs};

/// Listings that are outdated after a fork was added or removed.
const LISTINGS_OF_FORKS: [Invalidation; 2] =
    [Invalidation::Inode(Vfs::FORKS), Invalidation::Inode(Vfs::WORK)];

/// Notifies the kernel, and programs that watch, of a seal or a restore.
pub(super) fn sealed(vfs: &Vfs, notifier: &Notifier, announcer: &Announcer, after: &AfterSeal) {
    let AfterSeal { stale, replaced, paths, .. } = after;
    invalidate(notifier, stale);
    if let Some(replaced) = replaced {
        announcer.depart(vfs, notifier, replaced);
    }
    if let Some(paths) = paths {
        let (all, stale) = vfs.announcer().moved_paths(paths);
        announcer.announce(notifier, all);
        invalidate(notifier, &stale);
        vfs.announcer().forget_moved(paths);
    }
}

/// Notifies the kernel, and programs that watch, of forks that were added or removed. Returns the removed ones.
pub(super) fn forks_changed(vfs: &Vfs, notifier: &Notifier, announcer: &Announcer) -> Vec<Arc<Replaced>> {
    invalidate(notifier, &LISTINGS_OF_FORKS);
    let departed = vfs.announcer().take_departed();
    for replaced in &departed {
        announcer.depart(vfs, notifier, replaced);
    }
    announcer.announce(notifier, vfs.announcer().take_pending());
    departed
}
