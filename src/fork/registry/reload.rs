//! Follows forks that another program writes: finds out whether they changed, and whether that program still runs.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::table::{Options, Registry, changed_at};
use crate::error::Result;
use crate::fork::disk::{GenId, Head, head_path, lock};
use crate::fork::handle::Fork;

/// Lengths in bytes of journals that are longer or shorter than what was read of them, when that was last seen. A journal
/// with an unfinished record at its end stays in this state.
pub type Lengths = HashMap<GenId, u64>;

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
            lock(&shared.forks, shared.files.sharing).unwrap_or_default()
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
        self.loaded().iter().filter(|fork| is_outdated(fork, forks, lengths)).count() > 0
    }
}

/// Whether a fork looks different on disk than what was read of it.
fn is_outdated(fork: &Fork, forks: &Path, lengths: &mut Lengths) -> bool {
    let head = fork.core.head.lock();
    let now = Head::read(&head_path(forks, &head.name), &head.name);
    if now.is_ok_and(|now| now != *head) {
        return true;
    }
    drop(head);
    let (generation, end) = {
        let live = fork.core.live.read();
        (Arc::clone(&live.writer.generation), live.writer.end)
    };
    let Ok(journal) = fs::metadata(generation.journal_path()) else { return false };
    journal.len() != end && lengths.insert(generation.id, journal.len()) != Some(journal.len())
}
