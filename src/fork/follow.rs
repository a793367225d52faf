//! Forks that another program writes: what it made of them since they were read here, and whether it still does.

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

/// Lengths of journals when they were last found to be others than what was read of them, in bytes. One whose end was never
/// finished stays so.
pub type Lengths = HashMap<GenId, u64>;

pub(super) fn changed_at(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder).and_then(|folder| folder.modified()).ok()
}

impl Registry {
    /// Opens the forks anew if that shows something else: if another program, which writes them, changed any that was read
    /// here, made one or took one away; or if nobody writes them any more, so that this program can. Nothing if not.
    pub fn newer(&self, options: Options, lengths: &mut Lengths) -> Result<Option<Self>> {
        if self.is_writable() {
            return Ok(None);
        }
        let shared = &self.shared;
        // What cannot be locked, on a disk that cannot be written, can be read all the same.
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
        // All of them are looked at, for their lengths.
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
