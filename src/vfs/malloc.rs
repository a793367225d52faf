//! Returns free memory to the system.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of inodes from which on returning their memory is worth the time.
const MANY: usize = 20_000;

/// The largest number of inodes since memory was last returned.
#[derive(Debug, Default)]
pub(super) struct MallocTrimmer(AtomicUsize);

impl MallocTrimmer {
    /// Returns memory to the system if the kernel has forgotten most inodes, and says whether it did. Must be called from time
    /// to time.
    pub(super) fn trim(&self, inodes: usize) -> bool {
        let most = self.0.fetch_max(inodes, Ordering::Relaxed);
        let forgotten = most >= MANY && inodes < most / 2;
        if forgotten {
            self.0.store(inodes, Ordering::Relaxed);
            give_back();
        }
        forgotten
    }
}

/// Returns freed memory to the system: the C library would keep freed memory in the middle of its heaps for ever.
fn give_back() {
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_once_for_each_time_that_most_was_forgotten() {
        let trimmer = MallocTrimmer::default();
        let told = [10, MANY / 2, 0, MANY, MANY, MANY / 2, MANY / 2 - 1, 5, 0, 2 * MANY, 3, 3];
        let given: Vec<bool> = told.into_iter().map(|inodes| trimmer.trim(inodes)).collect();
        let times: Vec<usize> = (0..told.len()).filter(|at| given[*at]).collect();
        assert_eq!(times, [6, 10]);
    }
}
