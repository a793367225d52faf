//! Follows forks that another program writes: finds out whether they changed, and whether that program still runs.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::disk::GenId;
use super::head::{self, Head};
use super::live::Fork;
use super::registry::{self, Options, Registry};
use crate::error::Result;

/// Lengths in bytes of journals that are longer or shorter than what was read of them, when that was last seen. A journal
/// with an unfinished record at its end stays in this state.
pub type Lengths = HashMap<GenId, u64>;

pub(super) fn changed_at(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder).and_then(|folder| folder.modified()).ok()
}

impl Registry {
    /// Opens the forks again if they look different now. Returns [`None`] if they do not.
    ///
    /// They do if the program that writes them made or removed a fork, or changed one that was read here. They also do if no
    /// program writes them now, because this program then can.
    pub fn newer(&self, options: Options, lengths: &mut Lengths) -> Result<Option<Self>> {
        if self.is_writable() {
            return Ok(None);
        }
        let shared = &self.shared;
        // A read-only disk takes no lock, but the forks on it can still be read.
        let held = if options.read_only {
            None
        } else {
            registry::lock(&shared.forks, shared.files.sharing).unwrap_or_default()
        };
        if held.is_none() && !self.is_outdated(lengths) {
            return Ok(None);
        }
        let (forks, sharing) = (shared.forks.clone(), shared.files.sharing);
        Self::with_lock(forks, sharing, Arc::clone(&shared.reader), options, held).map(Some)
    }

    fn is_outdated(&self, lengths: &mut Lengths) -> bool {
        let forks = &self.shared.forks;
        if changed_at(&forks.join("heads")) != self.heads_seen {
            return true;
        }
        // Checks all forks, not only up to the first outdated one: each check notes lengths.
        self.loaded().iter().filter(|fork| fork.is_outdated(forks, lengths)).count() > 0
    }
}

impl Fork {
    fn is_outdated(&self, forks: &Path, lengths: &mut Lengths) -> bool {
        let head = self.head.lock();
        let now = Head::read(&head::path(forks, &head.name), &head.name);
        if now.is_ok_and(|now| now != *head) {
            return true;
        }
        drop(head);
        let (generation, end) = {
            let live = self.live.read();
            (Arc::clone(&live.writer.generation), live.writer.end)
        };
        let Ok(journal) = fs::metadata(generation.journal_path()) else { return false };
        journal.len() != end && lengths.insert(generation.id, journal.len()) != Some(journal.len())
    }
}
