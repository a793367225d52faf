//! Invalidates what the kernel has cached.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};

use crate::vfs::Invalidation;

/// Sends invalidations to the kernel. Must not be called while a request waits for it.
pub(super) fn invalidate(notifier: &Notifier, stale: &[Invalidation]) {
    for each in stale {
        // The kernel's error for an inode or name that it does not know is ignored.
        let _ = match each {
            Invalidation::Inode(ino) => notifier.inval_inode(INodeNo(*ino), 0, 0),
            Invalidation::Name(folder, name) => {
                notifier.inval_entry(INodeNo(*folder), OsStr::from_bytes(name))
            }
        };
    }
}
