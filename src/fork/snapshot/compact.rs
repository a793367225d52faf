//! Rewrites a fork's generations as one, which records only the present state.

use std::collections::HashSet;

use super::freeze::Snapshots;
use super::repoint::{repoint, take_pieces};
use super::rewrite::Rewriter;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::disk::{GenId, Head};
use crate::fork::extents::Src;
use crate::fork::inode::{Content, Protection};
use crate::fork::journal::Writer;
use crate::fork::replay::replay;
use crate::fork::state::State;

/// A journal of fewer bytes than this is never worth a checkpoint.
const SMALL: u64 = 32 << 20;

/// How many times larger a journal must be than the checkpoint would be.
const WORTH: u64 = 4;

impl Snapshots<'_> {
    /// Whether [`Snapshots::checkpoint`] would pay: the journals are large, and most of their records are outdated.
    pub(in crate::fork) fn wants_checkpoint(&self) -> bool {
        // A clone takes pointers: the lock is not held while the disk and all files are looked at.
        let (generations, state) = {
            let live = self.core.live.read();
            (live.generations.clone(), live.state.clone())
        };
        let journals: u64 =
            generations.iter().filter_map(|g| Some(std::fs::metadata(g.journal_path()).ok()?.len())).sum();
        if journals < SMALL {
            return false;
        }
        let mut needed = 128 * (state.dirty_names.len() + state.dirty_nodes.len()) as u64;
        state.each_content(&mut |_, content| {
            let inline = content.pieces.all().filter(|(_, piece)| matches!(piece.src, Src::Journal(_)));
            needed += inline.map(|(_, piece)| piece.len + 64).sum::<u64>();
        });
        journals > WORTH * needed
    }

    /// Writes the state that the fork's generations describe into a new one, and releases the old ones. Returns whether there
    /// was anything to write.
    ///
    /// Programs can use the fork during the call: they wait only for the freeze and for the switch of the head.
    pub(in crate::fork) fn checkpoint(&self) -> Result<bool> {
        // A seal is running, which includes a checkpoint's work.
        let Some(_only_one) = self.core.sealing.try_lock() else { return Ok(false) };
        let frozen = self.freeze()?;
        if frozen.generations.is_empty() {
            return Ok(false);
        }
        let shared = &self.core.shared;
        let base = shared.base(frozen.image, self.core.created_ns)?;
        // Replays the generations on disk: the state in memory still rests on the image before the last seal.
        let mut target = State::over(base.clone());
        let before = self.core.head.lock().folders.clone();
        target.set_folders(&before);
        if let Some(damage) = replay(&mut target, &frozen.generations, &*shared.reader)? {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("cannot write a checkpoint: {}", damage.what),
            ));
        }
        let new = shared.new_generation()?;
        shared.add_refs(&[new.id]);
        let folders = target.folders();
        let mut rewriter =
            Rewriter { state: State::over(base.clone()), writer: Writer::new(new.clone()), shared };
        rewriter.state.raise_floors();
        let written = rewriter.write(&frozen.with(target, State::over(base))).and_then(|()| {
            new.sync().map_err(|e| Error::io(e, format!("cannot make {} durable", new.path().display())))
        });
        if let Err(e) = written {
            shared.drop_refs(&[new.id]);
            return Err(e);
        }
        new.freeze();
        let changes = frozen.changes()?;
        let mut head = self.core.head.lock();
        let released = frozen.ids();
        if !head.generations.starts_with(&released) || head.base != frozen.image {
            // A seal came first, which includes a checkpoint's work.
            shared.drop_refs(&[new.id]);
            return Ok(false);
        }
        let mut next = Head { folders, ..head.clone() };
        next.generations.splice(..released.len(), [new.id]);
        let durable = self.core.switch_head(&mut head, next).inspect_err(|_| shared.drop_refs(&[new.id]))?;
        {
            let mut live = self.core.live.write();
            live.generations.splice(..released.len(), [new]);
            let gone: HashSet<GenId> = released.iter().copied().collect();
            for (path, put) in &changes.put {
                if put.inode.content().is_none() {
                    continue;
                }
                let Some(inode) = rewriter.state.resolve(path).and_then(|ino| rewriter.state.inode(ino))
                else {
                    continue;
                };
                let Some(content) = inode.content().map(Content::settled) else { continue };
                let mut take = |live: &mut Content, _: &mut Protection| {
                    take_pieces(live, &gone, &content.pieces);
                    false
                };
                repoint(&mut live, put, &gone, &mut take, &mut Vec::new());
            }
        }
        if durable {
            shared.drop_refs(&released);
        }
        Ok(true)
    }
}
