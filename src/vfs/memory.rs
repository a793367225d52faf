//! Memory that is free goes back to the system.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

/// So many inodes take enough memory to be worth it.
const MANY: usize = 20_000;

/// The most inodes there were since memory was given back.
#[derive(Debug, Default)]
pub(super) struct Most(AtomicUsize);

impl Most {
    /// Gives memory back if the kernel has forgotten most of what it knew. To be called now and then.
    pub(super) fn now(&self, inodes: usize) {
        let most = self.0.fetch_max(inodes, Ordering::Relaxed);
        if most >= MANY && inodes < most / 2 {
            self.0.store(inodes, Ordering::Relaxed);
            give_back();
        }
    }
}

/// The C library keeps what was freed in the middle of its heaps, for ever.
fn give_back() {
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}
