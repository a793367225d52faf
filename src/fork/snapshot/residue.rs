//! Keeps the files that a seal left out of its image in the fork: in a separate generation over the image.

use std::collections::{BTreeMap, HashSet};

use super::frozen::{Changes, Frozen, Put};
use super::repoint::{repoint, take_pieces};
use super::rewrite::{Rewriter, mismatch};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fork::core::Core;
use crate::fork::disk::GenId;
use crate::fork::ino::Ino;
use crate::fork::inode::{Content, Name, Protection};
use crate::fork::journal::Writer;
use crate::fork::live::{Folders, Leftover, Live};
use crate::fork::record::{Attrs, Record};
use crate::fork::state::State;

/// The files that are left out of an image, by path in the fork. Everything below a path is listed too.
pub type Kept = BTreeMap<Vec<u8>, Put>;

/// The files that a seal leaves out, written for the fork.
pub(super) struct Keeping {
    pub(super) leftover: Leftover,
    /// The state that refers to the generation, if it is new.
    pub(super) state: Option<State>,
}

fn folder_of(path: &[u8]) -> (&[u8], &[u8]) {
    let at = path.iter().rposition(|b| *b == b'/');
    at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]))
}

/// Writes the files that are left out of an image to a durable generation over that image. Reuses the generation of the
/// last seal if it still fits.
pub(super) fn keeping(core: &Core, frozen: &Frozen, image: Digest, kept: &Kept) -> Result<Option<Keeping>> {
    if kept.is_empty() {
        return Ok(None);
    }
    let paths: BTreeMap<_, _> = kept.iter().map(|(path, put)| (path.clone(), put.ino)).collect();
    let mut folders = Folders::new();
    for path in kept.keys() {
        let folder = folder_of(path).0;
        if !kept.contains_key(folder)
            && !folders.contains_key(folder)
            && let Some((ino, inode)) = frozen.resolve(folder)
        {
            let attr = frozen.attr(&Put { ino, inode });
            folders.insert(folder.to_vec(), (attr.mtime, attr.ctime));
        }
    }
    if let Some(leftover) = still_right(core, frozen, kept, &paths, &folders) {
        return Ok(Some(Keeping { leftover, state: None }));
    }
    let shared = &core.shared;
    let base = shared.base(Some(image), 0)?;
    let generation = shared.new_generation()?;
    shared.add_refs(&[generation.id]);
    let writer = Writer::new(generation.clone());
    let mut rewriter = Rewriter { state: State::over(base), writer, shared };
    rewriter.state.raise_floors();
    let changes = Changes { removed: Vec::new(), put: kept.clone() };
    let written = rewriter.lead(frozen, &changes).and_then(|()| {
        // Creating files in a folder has changed its times.
        for (folder, (mtime, ctime)) in &folders {
            let ino = rewriter.state.resolve(folder).ok_or_else(mismatch)?;
            rewriter.commit(Record::Attr(Attrs {
                ino,
                mode: None,
                uid: None,
                gid: None,
                size: None,
                atime: None,
                mtime: Some(*mtime),
                ctime: *ctime,
            }))?;
        }
        let path = generation.path();
        generation.sync().map_err(|e| Error::io(e, format!("cannot make {} durable", path.display())))
    });
    written.inspect_err(|_| shared.drop_refs(&[generation.id]))?;
    generation.freeze();
    Ok(Some(Keeping { leftover: Leftover { generation, paths, folders }, state: Some(rewriter.state) }))
}

/// Returns the generation of the last seal, if none of its files has changed since.
fn still_right(
    core: &Core,
    frozen: &Frozen,
    kept: &Kept,
    paths: &BTreeMap<Vec<u8>, Ino>,
    folders: &Folders,
) -> Option<Leftover> {
    let live = core.live.read();
    let last = live.leftover.as_ref()?;
    let unchanged = |put: &Put| {
        // If a file also has a name elsewhere, that name may have changed.
        let inside =
            put.inode.links.len() <= 1 || frozen.names(&put.inode).all(|path| kept.contains_key(&path));
        let epoch = frozen.state.dirty_nodes.get(&put.ino);
        inside && epoch.is_none_or(|epoch| live.settled.is_some_and(|settled| *epoch <= settled))
    };
    let right = frozen.generations.first().is_some_and(|first| first.id == last.generation.id)
        && last.paths == *paths
        && last.folders == *folders
        && kept.values().all(unchanged);
    right.then(|| last.clone())
}

/// Marks the files that were left out as changed, as they will be when the fork is read back, and removes them from the
/// baseline.
pub(super) fn keep(
    live: &mut Live,
    frozen: &Frozen,
    kept: &Kept,
    keeping: Option<Keeping>,
    gone: &HashSet<GenId>,
    baseline: &mut State,
) {
    let epoch = frozen.state.epoch;
    for (path, put) in kept {
        let (folder, name) = folder_of(path);
        let Some(parent) = frozen.state.resolve(folder) else { continue };
        let name: Name = name.into();
        if !kept.contains_key(folder) {
            // Changes are looked for only in folders that the fork's maps hold.
            let _ = live.state.own(parent);
            baseline.clear_entry(parent, &name, put.inode.is_dir());
        }
        if !live.state.dirty_names.contains_key(&(parent, name.clone())) {
            live.state.dirty_names.insert((parent, name), epoch);
        }
        if live.state.nodes.contains_key(&put.ino) && !live.state.dirty_nodes.contains_key(&put.ino) {
            live.state.dirty_nodes.insert(put.ino, epoch);
        }
    }
    for put in kept.values() {
        if let Some(node) = put.inode.base {
            baseline.by_base.insert(node, put.ino);
        }
        if frozen.names(&put.inode).all(|path| kept.contains_key(&path)) {
            baseline.nodes.remove(&put.ino);
        }
    }
    live.leftover = keeping.map(|Keeping { leftover, state }| {
        if let Some(state) = state {
            for (path, put) in kept {
                lie_in(live, &state, path, put, gone);
            }
        }
        leftover
    });
}

/// Points a file's content to its copy in the new generation.
fn lie_in(live: &mut Live, state: &State, path: &[u8], put: &Put, gone: &HashSet<GenId>) {
    let Some(inode) = state.resolve(path).and_then(|ino| state.inode(ino)) else { return };
    let Some(content) = inode.content().map(Content::settled) else { return };
    let mut take = |there: &mut Content, _: &mut Protection| {
        take_pieces(there, gone, &content.pieces);
        false
    };
    repoint(live, put, gone, &mut take, &mut Vec::new());
}
