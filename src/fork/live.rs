//! A fork in memory: its state, its journal, and files that are open but no longer have a name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::disk::{GenId, Generation};
use super::errors::posix;
use super::hidden::Hidden;
use super::ino::Ino;
use super::inode::Inode;
use super::journal::Writer;
use super::record::{Attrs, Record, Splice};
use super::state::{Applied, State, apply, change};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};

/// What the fork's lock protects.
pub(super) struct Live {
    pub(super) state: State,
    /// The state at the last seal. Changes are differences from it.
    pub(super) baseline: Arc<State>,
    /// Files without a name that a program still has open. They end with this process, so no record is written for them.
    pub(super) orphans: HashMap<Ino, Arc<Inode>>,
    pub(super) writer: Writer,
    /// All generations, oldest first; the last one is the writer's.
    pub(super) generations: Vec<Arc<Generation>>,
    /// The fork's base image on disk, which the last seal may have replaced.
    pub(super) image: Option<Digest>,
    /// Changes up to this epoch are sealed, or were left out of the seal.
    pub(super) settled: Option<u64>,
    /// The generation with the files that the last seal left out, if there is one.
    pub(super) leftover: Option<Leftover>,
    /// By how many bytes each seal moved the end of an append-only file. Programs that have it open may use the old end.
    pub(super) moved: HashMap<Ino, Vec<i64>>,
    /// See `Files::resized`.
    pub(super) resized: u32,
    /// Removed names of the ledger and the trace. A restart shows them again, so no record is written for them.
    pub(super) hidden: Hidden,
}

impl Live {
    pub(super) fn new(
        state: State,
        baseline: Arc<State>,
        writer: Writer,
        generations: Vec<Arc<Generation>>,
        image: Option<Digest>,
    ) -> Self {
        let orphans = HashMap::new();
        Self {
            state,
            baseline,
            orphans,
            writer,
            generations,
            image,
            settled: None,
            leftover: None,
            moved: HashMap::new(),
            resized: 0,
            hidden: Hidden::default(),
        }
    }

    /// A value that is different after every change.
    pub(super) fn version(&self) -> (GenId, u64) {
        (self.writer.generation.id, self.writer.seq)
    }

    /// Whether anything was changed since the last seal.
    pub(super) fn is_changed(&self) -> bool {
        self.state.dirt().any(|epoch| self.settled.is_none_or(|settled| epoch > settled))
    }

    pub(super) fn inode(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.state.inode(ino).or_else(|| self.orphans.get(&ino).cloned())
    }

    pub(super) fn inode_or_stale(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.inode(ino).ok_or_else(|| posix(Posix::Stale, "the fork no longer has the file"))
    }

    /// Returns an unused number for a new file.
    pub(super) fn fresh(&self, parent: Ino, name: &[u8]) -> Ino {
        let mut probe = 0;
        loop {
            let ino = Ino::derive(parent, name, probe);
            if !self.state.taken(ino) && !self.orphans.contains_key(&ino) {
                return ino;
            }
            probe += 1;
        }
    }

    /// Records an operation and applies it to the state.
    pub(super) fn commit(&mut self, mut record: Record) -> Result<()> {
        let generation = self.writer.generation.id;
        // A file without a name does not survive a restart, so nothing is recorded.
        if let [Some(ino), None] = record.inos()
            && record.made().is_none()
            && !matches!(record, Record::Remove { .. })
            && let Some(inode) = self.orphans.get_mut(&ino)
        {
            let inode = Arc::make_mut(inode);
            change(inode, &record, generation).map_err(|_| mismatch())?;
            return Ok(());
        }
        let sealed_len = match &record {
            Record::Attr(Attrs { ino, .. }) | Record::Splice(Splice { ino, .. }) => {
                self.inode_or_stale(*ino)?.sealed_len()
            }
            _ => 0,
        };
        self.writer.commit(&self.state, &mut record, sealed_len)?;
        let Ok(Applied { unlinked }) = apply(&mut self.state, &record, generation) else {
            // The journal now has a record of something that did not happen. No further record may follow it.
            self.writer.broken = Some("an operation was recorded that could not be applied".into());
            return Err(mismatch());
        };
        if let Some((ino, inode)) = unlinked {
            self.writer.numbers.remove(&ino);
            self.orphans.insert(ino, inode);
        }
        Ok(())
    }

    pub(super) fn writable(&self) -> Result<()> {
        self.writer.check()
    }
}

fn mismatch() -> Error {
    Error::new(ErrorKind::Io(None), "the operation contradicts the state of the fork")
}

/// The generation that holds the files left out of an image, and what it was written for.
#[derive(Clone)]
pub(super) struct Leftover {
    pub(super) generation: Arc<Generation>,
    pub(super) paths: BTreeMap<Vec<u8>, Ino>,
    pub(super) folders: Folders,
}

/// Folders of an image from which something was left out, with the times that they show: modified and changed.
pub(super) type Folders = BTreeMap<Vec<u8>, (i64, i64)>;
