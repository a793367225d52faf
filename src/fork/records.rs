//! The records of a fork, which are its ledger and its trace: they can only be appended to.
//!
//! A program may remove their names and those of their folders, so that `rm -rf` of a fork succeeds. This removes only the
//! name: the fork keeps the file, programs that have it open can append to it, and the next seal includes all of it. No
//! journal records the removal. The name is therefore back after a seal, in a branch, and when the fork is read back. A
//! program that creates the file again finds its old content, and can append to it.

use super::ino::Ino;
use super::live::{Fork, Live};
use super::node::{Attr, Body, Content, Guard, Inode, Name};
use super::policy;
use super::record::{Attrs, Record};
use super::state::State;
use crate::error::Result;

/// Where the records are: the folder, and the name in it.
pub(super) const RECORDS: [(Ino, &[u8]); 2] =
    [(Ino::EFFECTS, b"ledger.jsonl"), (Ino::TRACE, b"messages.jsonl")];

/// Whether a name is that of the ledger or the trace.
pub(super) fn is_record(folder: Ino, name: &[u8]) -> bool {
    RECORDS.contains(&(folder, name))
}

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
    /// When the name was removed, as a [`State::epoch`].
    epoch: u64,
}

impl Hidden {
    fn has(&self, folder: Ino, name: &[u8]) -> bool {
        self.names.iter().any(|hidden| hidden.folder == folder && *hidden.name == *name)
    }

    /// Whether the name of a file or folder was removed.
    pub(super) fn has_ino(&self, ino: Ino) -> bool {
        self.names.iter().any(|hidden| hidden.ino == ino)
    }

    fn count_in(&self, folder: Ino) -> u64 {
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

impl Live {
    /// The child of a folder, unless its name was removed.
    pub(super) fn shown_child(&self, folder: Ino, name: &[u8]) -> Option<Ino> {
        if self.hidden.has(folder, name) {
            return None;
        }
        self.state.child(folder, name)
    }

    /// The attributes of a file. A file whose name was removed has link count 0.
    pub(super) fn attr_of(&self, ino: Ino, inode: &Inode) -> Attr {
        let mut attr = self.state.attr(ino, inode);
        if !self.hidden.names.is_empty() {
            if self.hidden.has_ino(ino) {
                attr.nlink = 0;
            } else if ino == Ino::TOP {
                attr.nlink = attr.nlink.saturating_sub(self.hidden.count_in(ino) as u32);
            }
        }
        attr
    }

    /// How many entries a folder shows.
    pub(super) fn entries(&self, ino: Ino) -> u64 {
        let all = self
            .state
            .inode(ino)
            .map_or(0, |inode| if let Body::Dir(dir) = &inode.body { dir.len } else { 0 });
        all.saturating_sub(self.hidden.count_in(ino))
    }

    /// Whether a listing shows a name.
    pub(super) fn is_listed(&self, folder: Ino, name: &[u8]) -> bool {
        self.hidden.names.is_empty() || !self.hidden.has(folder, name)
    }

    /// Removes a name and keeps the file.
    pub(super) fn hide(&mut self, folder: Ino, name: &[u8], ino: Ino, time: i64) -> Result<()> {
        self.touch(folder, time)?;
        let epoch = self.state.epoch;
        self.hidden.names.push(HiddenName { folder, name: name.into(), ino, epoch });
        Ok(())
    }

    /// Shows a removed name again. Returns its file or folder, or [`None`] if the name was not removed.
    pub(super) fn show(&mut self, folder: Ino, name: &[u8], time: i64) -> Result<Option<Ino>> {
        let Some(at) =
            self.hidden.names.iter().position(|hidden| hidden.folder == folder && *hidden.name == *name)
        else {
            return Ok(None);
        };
        self.touch(folder, time)?;
        let HiddenName { ino, .. } = self.hidden.names.swap_remove(at);
        self.hidden.count_again(ino);
        Ok(Some(ino))
    }

    /// Shows all names again that were removed up to an epoch. Returns the folders that list more now.
    pub(super) fn show_all(&mut self, epoch: u64) -> Vec<Ino> {
        let (back, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.hidden.names).into_iter().partition(|hidden| hidden.epoch <= epoch);
        self.hidden.names = still;
        for hidden in &back {
            self.hidden.count_again(hidden.ino);
        }
        back.into_iter().map(|hidden| hidden.folder).collect()
    }

    fn touch(&mut self, folder: Ino, time: i64) -> Result<()> {
        self.commit(Record::Attr(Attrs {
            ino: folder,
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(time),
            ctime: time,
        }))
    }
}

impl Fork {
    /// Shows all removed names of the records again. Returns the folders that list more now.
    pub(crate) fn show_records(&self) -> Vec<Ino> {
        // Most forks have none, so this first looks under the read lock, which holds up no readers.
        if self.live.read().hidden.names.is_empty() {
            return Vec::new();
        }
        let mut live = self.live.write();
        let epoch = live.state.epoch;
        live.show_all(epoch)
    }

    /// Counts how often a folder of the records was shown again after its name was removed. Each time it needs a new number,
    /// since the kernel takes the old folder for removed. For any other file this is 0.
    pub fn shown_again(&self, ino: Ino) -> u32 {
        match ino {
            Ino::EFFECTS => self.live.read().hidden.shown_again[0],
            Ino::TRACE => self.live.read().hidden.shown_again[1],
            _ => 0,
        }
    }

    /// Checks a write over bytes that an append-only file already holds, and returns how many bytes need not be written.
    ///
    /// The same bytes may be written again. Zeros after the floor may be replaced: a file that was made longer has them, and
    /// they do not count as written. Any other change fails.
    pub(super) fn written_already(
        &self,
        inode: &Inode,
        content: &Content,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize> {
        let inside = content.size.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let mut there = vec![0; inside];
        self.read_content(content, offset, &mut there)?;
        let zeros_from = usize::try_from(inode.floor().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut first = inside;
        for (at, (old, new)) in there.iter().zip(bytes).enumerate() {
            if old == new {
                continue;
            }
            if at < zeros_from || *old != 0 {
                return Err(policy::recorded());
            }
            first = first.min(at);
        }
        Ok(first)
    }
}

/// Refuses to clear a range of an append-only file, unless nothing was ever written there.
pub(super) fn may_clear(inode: &Inode, from: u64, to: u64) -> Result<()> {
    policy::may_change(inode, from)?;
    let (Guard::Append(_), Some(content)) = (inode.guard, inode.content()) else { return Ok(()) };
    let content = content.settled();
    if from < content.size && !content.pieces.range(from, to.min(content.size)).is_empty() {
        return Err(policy::recorded());
    }
    Ok(())
}

impl State {
    /// Which changes a new file of this name allows.
    pub(super) fn guard_of_new(folder: Ino, name: &[u8]) -> Guard {
        if is_record(folder, name) { Guard::Append(Some(0)) } else { Guard::None }
    }
}
