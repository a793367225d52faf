//! Applies records to a state. The same code runs when an operation happens and when the journal is replayed.

use std::sync::Arc;

use super::tree::State;
use crate::fork::disk::GenId;
use crate::fork::extents::Src;
use crate::fork::frame::{fixed_ino, is_record};
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Content, Dir, Inode, Name, Protection};
use crate::fork::owners::Given;
use crate::fork::record::{Attrs, Create, Record, Splice, Whiteout};
use crate::layers::world::Kind;

/// The error for a record that refers to missing files.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fork) struct RecordMismatch;

/// The result of an operation.
#[derive(Debug, Default)]
pub(in crate::fork) struct Applied {
    /// The file that lost its last name.
    pub(in crate::fork) unlinked: Option<(Ino, Arc<Inode>)>,
}

/// Applies a record that was made in `generation`. The length and pieces of the content it changes must be
/// known.
pub(in crate::fork) fn apply(
    state: &mut State,
    record: &Record,
    generation: GenId,
) -> Result<Applied, RecordMismatch> {
    let mut applied = Applied::default();
    match record {
        Record::Create(create) => make(state, create)?,
        Record::Link { ino, parent, name, time } => {
            let name: Name = name.as_slice().into();
            if state.child(*parent, &name).is_some() || state.kind(*parent) != Some(Kind::Dir) {
                return Err(RecordMismatch);
            }
            let inode = state.edit(*ino).filter(|inode| !inode.is_dir()).ok_or(RecordMismatch)?;
            inode.ctime = Some(*time);
            Arc::make_mut(&mut inode.links).push((*parent, name.clone()));
            state.set_entry(*parent, &name, *ino, false);
            touch(state, *parent, *time);
        }
        Record::Remove { parent, name, time } => {
            let name: Name = name.as_slice().into();
            let ino = state.child(*parent, &name).ok_or(RecordMismatch)?;
            let is_dir = state.kind(ino) == Some(Kind::Dir);
            state.clear_entry(*parent, &name, is_dir);
            touch(state, *parent, *time);
            applied.unlinked = state.drop_link(ino, *parent, &name, *time).map(|inode| (ino, inode));
        }
        Record::Rename { from, name, to, new_name, exchange, time } => {
            let (name, new_name): (Name, Name) = (name.as_slice().into(), new_name.as_slice().into());
            let (ino, target) = may_move(state, (*from, &name), (*to, &new_name), *exchange)?;
            let is_dir = state.kind(ino) == Some(Kind::Dir);
            if let (false, None) = (*exchange, target)
                && from == to
            {
                state.rename_entry(*from, &name, &new_name, ino);
            } else {
                state.set_entry(*to, &new_name, ino, is_dir);
                if let Some(other) = target.filter(|_| *exchange) {
                    let other_dir = state.kind(other) == Some(Kind::Dir);
                    state.set_entry(*from, &name, other, other_dir);
                    relink(state, other, (*to, &new_name), (*from, &name), *time);
                } else {
                    applied.unlinked = replace(state, target, (*to, &new_name), *time);
                    state.clear_entry(*from, &name, is_dir);
                }
            }
            relink(state, ino, (*from, &name), (*to, &new_name), *time);
            touch(state, *from, *time);
            touch(state, *to, *time);
        }
        Record::Whiteout(Whiteout { to, new_name, device }) => {
            let (name, new_name): (Name, Name) = (device.name.as_slice().into(), new_name.as_slice().into());
            let (from, time) = (device.parent, device.time);
            let (ino, target) = may_move(state, (from, &name), (*to, &new_name), false)?;
            if state.taken(device.ino) || device.kind == Kind::Dir {
                return Err(RecordMismatch);
            }
            let is_dir = state.kind(ino) == Some(Kind::Dir);
            state.set_entry(*to, &new_name, ino, is_dir);
            applied.unlinked = replace(state, target, (*to, &new_name), time);
            // The old name exists throughout, and keeps its place in the listing.
            begin(state, device, &name);
            state.set_entry(from, &name, device.ino, false);
            relink(state, ino, (from, &name), (*to, &new_name), time);
            touch(state, from, time);
            touch(state, *to, time);
        }
        Record::Attr(Attrs { ino, .. }) | Record::Splice(Splice { ino, .. }) | Record::Xattr { ino, .. } => {
            change(state.edit(*ino).ok_or(RecordMismatch)?, record, generation)?;
        }
    }
    Ok(applied)
}

/// Applies a record that concerns one file alone, linked or not.
pub(in crate::fork) fn change(
    inode: &mut Inode,
    record: &Record,
    generation: GenId,
) -> Result<(), RecordMismatch> {
    match record {
        Record::Attr(attrs) => {
            inode.mode = attrs.mode.unwrap_or(inode.mode);
            inode.uid = attrs.uid.or(inode.uid);
            inode.gid = attrs.gid.or(inode.gid);
            inode.given.uid |= attrs.uid.is_some();
            inode.given.gid |= attrs.gid.is_some();
            inode.atime = attrs.atime.or(inode.atime);
            inode.mtime = attrs.mtime.or(inode.mtime);
            inode.ctime = Some(attrs.ctime);
            if let Some(size) = attrs.size {
                inode.fix_floor();
                let Body::File(content) = &mut inode.body else { return Err(RecordMismatch) };
                content.resize(size);
                if size == 0 {
                    // The old content may be large; the next large write begins a new file.
                    content.own = None;
                }
            }
        }
        Record::Splice(splice) => {
            inode.fix_floor();
            let sealed_len = inode.sealed_len();
            let Body::File(content) = &mut inode.body else { return Err(RecordMismatch) };
            put(content, splice, sealed_len, generation);
            inode.mtime = Some(splice.time);
            inode.ctime = Some(splice.time);
            if splice.clears_suid {
                inode.strip_suid();
            }
        }
        Record::Xattr { name, value, time, .. } => {
            let xattrs = Arc::make_mut(&mut inode.xattrs);
            match value {
                Some(value) => xattrs.insert(name.clone(), value.clone()),
                None => xattrs.remove(name),
            };
            inode.ctime = Some(*time);
        }
        _ => return Err(RecordMismatch),
    }
    Ok(())
}

fn put(content: &mut Content, splice: &Splice, sealed_len: u64, generation: GenId) {
    content.settle();
    content.pieces.clear(splice.off, splice.off + splice.len);
    for part in &splice.parts {
        let Some(piece) = part.piece() else { continue };
        match &piece.src {
            Src::Journal(_) => {
                if content.inline_gen != Some(generation) {
                    (content.inline, content.inline_gen) = (0, Some(generation));
                }
                content.inline += piece.len;
            }
            // A data file that belongs to one file holds each byte at the byte's offset after the floor.
            Src::Data(file) if !file.shared && piece.off + sealed_len == splice.off + part.at => {
                content.own = Some(file.clone());
            }
            _ => {}
        }
        content.pieces.put(splice.off + part.at, piece);
    }
    content.resize(splice.size);
}

fn make(state: &mut State, create: &Create) -> Result<(), RecordMismatch> {
    let name: Name = create.name.as_slice().into();
    if state.child(create.parent, &name).is_some() || state.kind(create.parent) != Some(Kind::Dir) {
        return Err(RecordMismatch);
    }
    let is_dir = create.kind == Kind::Dir;
    if state.taken(create.ino) || (is_dir && fixed_ino(create.parent, &name).is_some_and(|i| i != create.ino))
    {
        return Err(RecordMismatch);
    }
    begin(state, create, &name);
    state.set_entry(create.parent, &name, create.ino, is_dir);
    touch(state, create.parent, create.time);
    Ok(())
}

/// Adds a new file to the files; no folder shows it yet.
fn begin(state: &mut State, create: &Create, name: &Name) {
    let time = Some(create.time);
    state.births += 1;
    let inode = Inode {
        mode: create.mode,
        uid: Some(create.uid),
        gid: Some(create.gid),
        given: Given { uid: true, gid: true },
        atime: time,
        mtime: time,
        ctime: time,
        rdev: create.rdev,
        links: Arc::new(vec![(create.parent, name.clone())]),
        base: None,
        xattrs: Arc::default(),
        guard: if is_record(create.parent, name) { Protection::Append(Some(0)) } else { Protection::None },
        birth: state.births,
        body: match create.kind {
            Kind::File => Body::File(Content::default()),
            Kind::Dir => Body::Dir(Dir::default()),
            Kind::Symlink => Body::Symlink(create.target.as_slice().into()),
            special => Body::Special(special),
        },
    };
    state.nodes.insert(create.ino, Arc::new(inode));
    state.dirty_nodes.insert(create.ino, state.epoch);
}

/// Returns the file to be moved, and the file that has its new name. Checks the whole move before anything is
/// changed.
fn may_move(
    state: &State,
    (from, name): (Ino, &Name),
    (to, new_name): (Ino, &Name),
    exchange: bool,
) -> Result<(Ino, Option<Ino>), RecordMismatch> {
    let ino = state.child(from, name).ok_or(RecordMismatch)?;
    let target = state.child(to, new_name);
    let is_mismatch = state.kind(to) != Some(Kind::Dir)
        || target == Some(ino)
        || (exchange && target.is_none())
        || (state.kind(ino) == Some(Kind::Dir) && state.is_below(to, ino));
    if is_mismatch { Err(RecordMismatch) } else { Ok((ino, target)) }
}

/// Removes a name from the file that had it; returns the file if that was its last name.
fn replace(
    state: &mut State,
    target: Option<Ino>,
    (to, new_name): (Ino, &Name),
    time: i64,
) -> Option<(Ino, Arc<Inode>)> {
    let target = target?;
    state.drop_link(target, to, new_name, time).map(|inode| (target, inode))
}

fn touch(state: &mut State, ino: Ino, time: i64) {
    if let Some(inode) = state.edit(ino) {
        inode.mtime = Some(time);
        inode.ctime = Some(time);
    }
}

fn relink(state: &mut State, ino: Ino, from: (Ino, &Name), to: (Ino, &Name), time: i64) {
    let Some(inode) = state.edit(ino) else { return };
    inode.ctime = Some(time);
    let links = Arc::make_mut(&mut inode.links);
    match links.iter_mut().find(|(parent, name)| *parent == from.0 && name == from.1) {
        Some(link) => *link = (to.0, to.1.clone()),
        None => links.push((to.0, to.1.clone())),
    }
}
