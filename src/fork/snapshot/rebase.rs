//! Moves a fork to an image that was made of its frozen state.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::freeze::Snapshots;
use super::frozen::Frozen;
use super::repoint::repoint;
use super::residue::{Keeping, Kept, keep, keeping};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::disk::GenId;
use crate::fork::extents::{BlobRef, Piece, Src};
use crate::fork::ino::Ino;
use crate::fork::inode::{Content, Protection};
use crate::fork::live::Live;
use crate::fork::reader::LayerBase;

/// Whether a file is append-only, and sealing may change the appended lines.
fn is_log(path: &[u8]) -> bool {
    matches!(path, b"effects/ledger.jsonl" | b"trace/messages.jsonl")
}

/// Number of seals after which a program's old offset of the end is still recognized.
const MOVES: usize = 1000;

/// Content of a file after a seal, by its path in the fork.
pub type Sealed = HashMap<Vec<u8>, BlobRef>;

impl Snapshots<'_> {
    /// See [`Fork::rebase_keeping`](crate::fork::Fork::rebase_keeping).
    pub(in crate::fork) fn rebase(
        &self,
        frozen: &Frozen,
        image: Digest,
        layers: &[LayerBase],
        sealed: &Sealed,
        kept: &Kept,
    ) -> Result<Vec<Ino>> {
        self.core.may_write()?;
        let changes = frozen.changes()?;
        let sealed_of = || changes.put.iter().filter(|(path, _)| !kept.contains_key(*path));
        for (path, put) in sealed_of() {
            let Some(content) = put.inode.content() else { continue };
            let shown = String::from_utf8_lossy(path);
            match sealed.get(path) {
                Some(blob) if blob.size == content.size || is_log(path) => {}
                // The base has the content already, or the file is empty.
                None if content.size == 0 || content.whole_blob().is_some() => {}
                Some(blob) => {
                    let message =
                        format!("{shown}: the seal has {} bytes, the file has {}", blob.size, content.size);
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                None => {
                    let message = format!("{shown}: the seal lacks the file, which would be lost");
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
            }
        }
        let keeping = keeping(self.core, frozen, image, kept)?;
        let leftover = keeping.as_ref().map(|keeping| &keeping.leftover.generation);
        let mut head = self.core.head.lock();
        let before = frozen.ids();
        let released: Vec<GenId> =
            before.iter().copied().filter(|id| leftover.is_none_or(|kept| kept.id != *id)).collect();
        let switched = if frozen.uid == self.core.uid
            && head.generations.starts_with(&before)
            && head.base == frozen.image
        {
            let mut next = head.clone();
            next.base = Some(image);
            next.folders = frozen.state.folders();
            next.generations.splice(..before.len(), leftover.map(|generation| generation.id));
            self.core.switch_head(&mut head, next)
        } else {
            Err(Error::new(ErrorKind::InvalidInput, "the fork was sealed by another program in the meantime"))
        };
        let durable = switched.inspect_err(|_| {
            if let Some(Keeping { leftover, state: Some(_) }) = &keeping {
                self.core.shared.drop_refs(&[leftover.generation.id]);
            }
        })?;
        let changed = {
            let mut live = self.core.live.write();
            live.image = Some(image);
            live.generations.splice(..before.len(), leftover.cloned());
            live.state.settle_dirt(frozen.state.epoch);
            live.settled = Some(frozen.state.epoch);
            let mut baseline = frozen.state.clone();
            let gone: HashSet<GenId> = released.iter().copied().collect();
            let mut changed = Vec::new();
            for (path, put) in sealed_of() {
                let Some(blob) = sealed.get(path) else { continue };
                // The baseline needs no content: pieces in it would keep released data on disk.
                baseline.forget_content(put.ino, *blob);
                let was = put.inode.content().cloned().unwrap_or_default();
                let mut seal = |content: &mut Content, guard: &mut Protection| {
                    if is_log(path) && *guard == Protection::None {
                        // From now on the sealed part cannot be changed, only appended to.
                        *guard = Protection::Append(Some(0));
                    }
                    seal_content(content, guard, &was, *blob, &gone)
                };
                repoint(&mut live, put, &gone, &mut seal, &mut changed);
                let moved = blob.size.checked_signed_diff(was.size).unwrap_or(0);
                if is_log(path) && moved != 0 {
                    live.resized += 1;
                    let all = live.moved.entry(put.ino).or_default();
                    all.push(moved);
                    // Older offsets are rejected.
                    all.drain(..all.len().saturating_sub(MOVES));
                }
            }
            keep(&mut live, frozen, kept, keeping, &gone, &mut baseline);
            {
                changed.extend(live.hidden.show_all(frozen.state.epoch));
                let Live { state, orphans, .. } = &mut *live;
                changed.extend(state.complete(layers, |ino| orphans.contains_key(&ino)));
                baseline.complete(layers, |_| false);
            }
            live.baseline = Arc::new(baseline);
            for path in ["manifest.json", "cache/manifest.json"] {
                let Live { state, orphans, .. } = &mut *live;
                if let Some((ino, inode)) =
                    state.replace_layer(layers, path, |ino| orphans.contains_key(&ino))
                {
                    // A program that has it open can read it to its end.
                    orphans.insert(ino, inode);
                    changed.push(ino);
                }
            }
            changed
        };
        if durable {
            self.core.shared.drop_refs(&released);
        }
        Ok(changed)
    }
}

/// Whether the frozen file had the same piece at the same place.
fn was_there(was: &Content, at: u64, piece: &Piece) -> bool {
    let Src::Blob(blob) = &piece.src else { return false };
    let mut end = at;
    for (from, frozen) in was.pieces.range(at, at + piece.len) {
        let Src::Blob(other) = &frozen.src else { return false };
        if from != end || other != blob || frozen.off + at != piece.off + from {
            return false;
        }
        end = from + frozen.len;
    }
    end == at + piece.len
}

/// Replaces the frozen pieces `was` of a file by a sealed blob. Returns whether the content looks different now.
fn seal_content(
    content: &mut Content,
    guard: &mut Protection,
    was: &Content,
    blob: BlobRef,
    gone: &HashSet<GenId>,
) -> bool {
    let (src, size) = (Src::Blob(Arc::new(blob)), was.size);
    if let Protection::Append(sealed_len) = guard {
        // Sealing may have rewritten the frozen lines; lines that were appended later follow them.
        let mut pieces = content.pieces.shift(size, blob.size);
        if blob.size > 0 {
            pieces.put(0, Piece { len: blob.size, off: 0, src });
        }
        content.pieces = pieces;
        content.size = blob.size + content.size.saturating_sub(size);
        *guard = Protection::Append(Some(blob.size + sealed_len.unwrap_or(size).saturating_sub(size)));
        return true;
    }
    // A piece never moves within its file, so the seal has the same bytes at the same place.
    let old = std::mem::take(&mut content.pieces);
    for (at, piece) in old.all() {
        // Blobs of earlier images are replaced as well: prune may remove those images, and nothing else needs the blobs.
        let released = piece.src.generation().is_some_and(|generation| gone.contains(&generation.id))
            || was_there(was, at, piece);
        let piece =
            if released { Piece { len: piece.len, off: at, src: src.clone() } } else { piece.clone() };
        content.pieces.put(at, piece);
    }
    false
}
