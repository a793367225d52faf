//! Restores paths of a fork from an image, while the rest of the fork continues.
//!
//! The changes are operations of the fork, each with its record in the journal. Content is shared with the image: no byte is copied.
//! A file that differs is replaced as rename(2) does it, by one that is complete: a reader has the old file or the new one. What was
//! written since the last seal is in no image, and stays.

use std::collections::HashSet;
use std::sync::Arc;

use super::plan::{Held, Moved, Plan, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::compare::View;
use crate::fork::core::Core;
use crate::fork::extents::{Piece, Src};
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Content, Inode, Name};
use crate::fork::live::Live;
use crate::fork::owners::Given;
use crate::fork::record::{Attrs, Create, From, Part, Record, Splice};
use crate::fork::state::State;
use crate::layers::world::Kind;
use crate::sync::wait;

/// Steps that are made under the fork's lock at a time.
const STEPS: usize = 1024;

/// How often a plan is made without the lock while programs write. The next one is made under the lock.
const TRIES: usize = 3;

/// How often a plan is made again that changes attributes alone, which programs change again.
const IDLE_ROUNDS: usize = 8;

/// What begins the name that a file has before it is complete.
const UNFINISHED: &str = ".pfimg-restore-";

/// A name that leads to another file now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedName {
    /// The folder.
    pub folder: Ino,
    /// The name in it.
    pub name: Name,
    /// What it led to.
    pub before: Option<(Ino, Kind)>,
    /// What it leads to.
    pub after: Option<(Ino, Kind)>,
}

/// What putting paths back did.
#[derive(Clone, Debug, Default)]
pub struct PathsBack {
    /// The paths that changed, sorted. Of a folder that came or went all that is in it is listed.
    pub moved: Vec<Moved>,
    /// The paths that stay.
    pub held: Vec<Held>,
    /// The names that lead elsewhere, in the order in which they changed.
    pub names: Vec<MovedName>,
    /// Files and folders with other attributes or another number of names.
    pub touched: HashSet<Ino>,
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let at = path.iter().rposition(|b| *b == b'/');
    at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]))
}

fn changed_meanwhile() -> Error {
    Error::new(ErrorKind::Busy, "programs keep changing the paths that the restore changes")
        .with_hint("try again when no program writes to them")
}

/// What [`restore_paths`] would do now: the paths that change, and those that stay.
pub(in crate::fork) fn would_restore(core: &Core, from: &View, paths: &[Vec<u8>]) -> Result<PathsBack> {
    let (state, settled) = {
        let live = core.live.read();
        (live.state.detached(), live.settled)
    };
    let Plan { moved, held, .. } = Plan::of(&state, &from.state, paths, settled, core.shared.writeback)?;
    Ok(PathsBack { moved, held, ..PathsBack::default() })
}

/// Puts paths of the fork's files back to what `from` has there, each with all that is below it. What no image holds stays.
pub(in crate::fork) fn restore_paths(core: &Core, from: &View, paths: &[Vec<u8>]) -> Result<PathsBack> {
    wait::required()?;
    core.may_write()?;
    let mut back = PathsBack::default();
    let mut seen = HashSet::new();
    let (mut tries, mut idle) = (0, 0);
    loop {
        let (version, state, settled) = {
            let live = core.live.read();
            (live.version(), live.state.detached(), live.settled)
        };
        let plan_for =
            |state: &State, settled| Plan::of(state, &from.state, paths, settled, core.shared.writeback);
        let mut plan = plan_for(&state, settled)?;
        if plan.steps.is_empty() {
            back.held = plan.held;
            back.moved.sort_by(|a, b| a.path.cmp(&b.path));
            return Ok(back);
        }
        let mut live = core.live.write();
        live.writable()?;
        if live.version() != version {
            tries += 1;
            if tries < TRIES {
                continue;
            }
            plan = plan_for(&live.state, live.settled)?;
        }
        tries = 0;
        let names = back.names.len();
        for step in plan.steps.iter().take(STEPS) {
            core.may_write()?;
            Steps { live: &mut live, from: &from.state, time: core.now() }.make(step, &mut back)?;
        }
        drop(live);
        for moved in plan.moved {
            if seen.insert(moved.path.clone()) {
                back.moved.push(moved);
            }
        }
        // Attributes of a folder alone: a program that writes there changes them again.
        idle = if back.names.len() == names { idle + 1 } else { 0 };
        if idle > IDLE_ROUNDS {
            back.held = plan.held;
            return Ok(back);
        }
    }
}

/// Makes the steps of a plan.
struct Steps<'a> {
    live: &'a mut Live,
    /// The image that has the files.
    from: &'a State,
    /// The time that new files and changed folders get.
    time: i64,
}

impl Steps<'_> {
    fn spot(&self, path: &[u8]) -> Result<(Ino, Name)> {
        let (folder, name) = split(path);
        let folder = self.live.state.resolve(folder).ok_or_else(changed_meanwhile)?;
        Ok((folder, name.into()))
    }

    /// Makes one step of a plan. Nothing was changed since the plan was made but by its own steps.
    fn make(&mut self, step: &Step, back: &mut PathsBack) -> Result<()> {
        let time = self.time;
        match step {
            Step::Remove(path) => {
                let (folder, name) = self.spot(path)?;
                let before = at(self.live, folder, &name);
                self.live.commit(Record::Remove { parent: folder, name: name.to_vec(), time })?;
                back.note(self.live, folder, name, before);
            }
            Step::Folder(path, source) => {
                let (folder, name) = self.spot(path)?;
                let ino = self.live.fresh(folder, &name);
                self.create(*source, (folder, &name, ino))?;
                self.fill(*source, ino)?;
                back.note(self.live, folder, name, None);
            }
            Step::File(path, source) => {
                let (folder, name) = self.spot(path)?;
                let before = at(self.live, folder, &name);
                let unfinished = self.unfinished(folder);
                let ino = self.live.fresh(folder, &name);
                self.create(*source, (folder, &unfinished, ino))?;
                self.fill(*source, ino)?;
                self.attributes(*source, ino)?;
                self.take_place(folder, &unfinished, &name)?;
                back.note(self.live, folder, name, before);
            }
            Step::Link(path, to) => {
                let (folder, name) = self.spot(path)?;
                let before = at(self.live, folder, &name);
                let ino = self.live.state.resolve(to).ok_or_else(changed_meanwhile)?;
                if before.is_none() {
                    self.live.commit(Record::Link { ino, parent: folder, name: name.to_vec(), time })?;
                } else {
                    let unfinished = self.unfinished(folder);
                    let link = Record::Link { ino, parent: folder, name: unfinished.to_vec(), time };
                    self.live.commit(link)?;
                    self.take_place(folder, &unfinished, &name)?;
                }
                back.touched.insert(ino);
                back.note(self.live, folder, name, before);
            }
            Step::Attributes(path, source) => {
                let ino = self.live.state.resolve(path).ok_or_else(changed_meanwhile)?;
                self.fill_xattrs(*source, ino)?;
                self.attributes(*source, ino)?;
                back.touched.insert(ino);
            }
        }
        Ok(())
    }

    /// A free name for a file that is not complete yet.
    fn unfinished(&self, folder: Ino) -> Name {
        let mut number = 0_u64;
        loop {
            let name = format!("{UNFINISHED}{number}").into_bytes();
            if self.live.state.child(folder, &name).is_none() {
                return name.into();
            }
            number += 1;
        }
    }

    fn take_place(&mut self, folder: Ino, unfinished: &Name, name: &Name) -> Result<()> {
        self.live.commit(Record::Rename {
            from: folder,
            name: unfinished.to_vec(),
            to: folder,
            new_name: name.to_vec(),
            exchange: false,
            time: self.time,
        })
    }

    fn create(&mut self, source: Ino, (folder, name, ino): (Ino, &Name, Ino)) -> Result<()> {
        let wanted = source_inode(self.from, source)?;
        let attr = self.from.recorded(source, &wanted);
        let target = if let Body::Symlink(target) = &wanted.body { target.to_vec() } else { Vec::new() };
        self.live.commit(Record::Create(Create {
            parent: folder,
            name: name.to_vec(),
            ino,
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            target,
            time: self.time,
        }))
    }

    /// Gives a new file the content and the extended attributes of another.
    fn fill(&mut self, source: Ino, ino: Ino) -> Result<()> {
        let wanted = source_inode(self.from, source)?;
        if let Some(content) = wanted.content().map(Content::settled)
            && content.size > 0
        {
            let part = |(at, piece): (u64, Piece)| match &piece.src {
                Src::Blob(_) => Ok(Part { at, len: piece.len, from: From::There(piece.off, piece.src) }),
                _ => Err(Error::new(
                    ErrorKind::InvalidInput,
                    "a file of the restored image refers to data of a fork",
                )),
            };
            let parts = content.pieces.all().map(|(at, piece)| part((at, piece.clone())));
            let parts = parts.collect::<Result<Vec<_>>>()?;
            let size = content.size;
            self.live.commit(Record::Splice(Splice {
                ino,
                off: 0,
                len: size,
                size,
                parts,
                clears_suid: false,
                time: self.time,
            }))?;
        }
        self.fill_xattrs(source, ino)
    }

    fn fill_xattrs(&mut self, source: Ino, ino: Ino) -> Result<()> {
        let wanted = source_inode(self.from, source)?;
        let (there, time) = (self.live.inode_or_stale(ino)?.xattrs.clone(), self.time);
        for name in there.keys().filter(|name| !wanted.xattrs.contains_key(*name)) {
            self.live.commit(Record::Xattr { ino, name: name.clone(), value: None, time })?;
        }
        for (name, value) in wanted.xattrs.iter().filter(|(name, value)| there.get(*name) != Some(value)) {
            self.live.commit(Record::Xattr { ino, name: name.clone(), value: Some(value.clone()), time })?;
        }
        Ok(())
    }

    /// Gives a file the mode, owner and times of another.
    fn attributes(&mut self, source: Ino, ino: Ino) -> Result<()> {
        let wanted = source_inode(self.from, source)?;
        let (attr, there) = (self.from.recorded(source, &wanted), self.live.inode_or_stale(ino)?);
        self.live.commit(Record::Attr(Attrs {
            mode: Some(attr.mode),
            // Where neither says whose it is, it stays so.
            uid: wanted.uid.or_else(|| there.uid.map(|_| attr.uid)),
            gid: wanted.gid.or_else(|| there.gid.map(|_| attr.gid)),
            atime: Some(attr.atime),
            mtime: Some(attr.mtime),
            ..Attrs::of(ino, self.time)
        }))?;
        // It belongs to the user whom the image shows, as after a restart.
        if let Some(inode) = self.live.state.nodes.get_mut(&ino) {
            Arc::make_mut(inode).given = Given::default();
        }
        Ok(())
    }
}

/// What a name leads to.
fn at(live: &Live, folder: Ino, name: &[u8]) -> Option<(Ino, Kind)> {
    let ino = live.state.child(folder, name)?;
    Some((ino, live.state.kind(ino)?))
}

fn source_inode(from: &State, source: Ino) -> Result<Arc<Inode>> {
    from.inode(source)
        .ok_or_else(|| Error::new(ErrorKind::Io(None), "the restored image lacks a file that it listed"))
}

impl PathsBack {
    fn note(&mut self, live: &Live, folder: Ino, name: Name, before: Option<(Ino, Kind)>) {
        let after = at(live, folder, &name);
        self.touched.insert(folder);
        self.touched.extend(before.map(|(ino, _)| ino));
        self.names.push(MovedName { folder, name, before, after });
    }
}
