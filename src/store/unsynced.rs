//! Blobs that were written and are not yet durable, and blobs that the disk failed to write.
//!
//! When writing pages fails, Linux reports it once, and keeps the pages as if they were written. A program
//! that tries again gets success, and reads from memory bytes that the disk does not have.

use std::collections::{HashMap, HashSet};

use crate::digest::Digest;
use crate::sync::Mutex;

/// Blobs that were written and are not yet durable, and whether the disk may have failed to write them.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<HashMap<Digest, bool>>);

impl Unsynced {
    pub(super) fn written(&self, digest: Digest) {
        self.0.lock().insert(digest, false);
    }

    pub(super) fn pending(&self) -> Vec<Digest> {
        self.0.lock().keys().copied().collect()
    }

    /// Notes that the `pending` blobs are durable, except the doubted ones.
    pub(super) fn synced(&self, pending: &[Digest]) {
        let mut all = self.0.lock();
        for digest in pending {
            if all.get(digest) == Some(&false) {
                all.remove(digest);
            }
        }
    }

    /// Notes that making them durable failed: it is unknown which of them the disk has, and no later try can
    /// tell.
    pub(super) fn failed(&self) {
        self.0.lock().values_mut().for_each(|doubted| *doubted = true);
    }

    /// Those among `digests` that the disk may have failed to write.
    pub(super) fn doubted(&self, digests: &HashSet<Digest>) -> Vec<Digest> {
        let all = self.0.lock();
        all.iter()
            .filter(|(digest, doubted)| **doubted && digests.contains(*digest))
            .map(|(d, _)| *d)
            .collect()
    }
}
