//! The records of a fork, which are its ledger and its trace: they can only be appended to.
//!
//! A program may remove their names and those of their folders, so that `rm -rf` of a fork succeeds. This removes only the
//! name: the fork keeps the file, programs that have it open can append to it, and the next seal includes all of it. No
//! journal records the removal. The name is therefore back after a seal, in a branch, and when the fork is read back. A
//! program that creates the file again finds its old content, and can append to it.

use super::ino::Ino;
use super::inode::Name;

/// Removed names of the records and their folders.
#[derive(Default)]
pub(super) struct Hidden {
    names: Vec<HiddenName>,
    /// How often the folders of the records were shown again: `effects`, `trace`.
    shown_again: [u32; 2],
}

struct HiddenName {
    folder: Ino,
    name: Name,
    /// The file or folder that had the name.
    ino: Ino,
    /// When the name was removed, as an epoch of the state.
    epoch: u64,
}

impl Hidden {
    /// Whether no name was removed.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Notes a removed name, and the epoch in which it was removed.
    pub(super) fn add(&mut self, folder: Ino, name: &[u8], ino: Ino, epoch: u64) {
        self.names.push(HiddenName { folder, name: name.into(), ino, epoch });
    }

    /// Shows a name again. Returns its file or folder.
    pub(super) fn show(&mut self, folder: Ino, name: &[u8]) -> Option<Ino> {
        let at = self.names.iter().position(|hidden| hidden.folder == folder && *hidden.name == *name)?;
        let HiddenName { ino, .. } = self.names.swap_remove(at);
        self.count_again(ino);
        Some(ino)
    }

    /// Shows all names again that were removed up to an epoch. Returns the folders that list more now.
    pub(super) fn show_all(&mut self, epoch: u64) -> Vec<Ino> {
        let (back, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.names).into_iter().partition(|hidden| hidden.epoch <= epoch);
        self.names = still;
        for hidden in &back {
            self.count_again(hidden.ino);
        }
        back.into_iter().map(|hidden| hidden.folder).collect()
    }

    /// Counts how often a folder of the records was shown again.
    pub(super) fn shown_again(&self, ino: Ino) -> u32 {
        match ino {
            Ino::EFFECTS => self.shown_again[0],
            Ino::TRACE => self.shown_again[1],
            _ => 0,
        }
    }

    pub(super) fn has(&self, folder: Ino, name: &[u8]) -> bool {
        self.names.iter().any(|hidden| hidden.folder == folder && *hidden.name == *name)
    }

    /// Whether the name of a file or folder was removed.
    pub(super) fn has_ino(&self, ino: Ino) -> bool {
        self.names.iter().any(|hidden| hidden.ino == ino)
    }

    pub(super) fn count_in(&self, folder: Ino) -> u64 {
        self.names.iter().filter(|hidden| hidden.folder == folder).count() as u64
    }

    /// Counts that a folder is shown again: the kernel takes its old number for a removed folder.
    fn count_again(&mut self, ino: Ino) {
        match ino {
            Ino::EFFECTS => self.shown_again[0] += 1,
            Ino::TRACE => self.shown_again[1] += 1,
            _ => {}
        }
    }
}
