//! The ends of ledgers as a kernel knows them that caches writes.
//!
//! Such a kernel takes a file's length from the first answer, and from then on only from its own writes. But a seal makes the
//! ledger longer. So the ledger is opened without the kernel's cache, and gets a new inode whenever it grew without the
//! kernel's knowledge. A program that has an older inode open still appends at the end.

use std::collections::HashMap;

use super::key::Ino;
use crate::sync::Mutex;

/// The end of each ledger as the kernel knows it.
#[derive(Default)]
pub(super) struct LedgerEnds(Mutex<HashMap<Ino, u64>>);

impl LedgerEnds {
    /// Notes the end that the kernel knows.
    pub(super) fn set(&self, ino: Ino, end: u64) {
        self.0.lock().insert(ino, end);
    }

    /// Whether the kernel knows this end of a ledger.
    pub(super) fn is_end(&self, ino: Ino, offset: u64) -> bool {
        self.0.lock().get(&ino) == Some(&offset)
    }

    /// Forgets an inode together with the kernel.
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }
}
