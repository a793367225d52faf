//! Rewrites a fork's generations as one, which records only the present state.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::apply::apply;
use super::disk::GenId;
use super::frame::Frame;
use super::freeze::{Changes, Frozen, Put, take_pieces};
use super::head::Head;
use super::ino::Ino;
use super::journal::Writer;
use super::live::{Fork, now, settle};
use super::node::{Body, Content, Guard, Inode};
use super::pieces::{self, Src};
use super::record::{Attrs, Create, From, Part, Record, Splice};
use super::recover::replay;
use super::registry::Shared;
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::Kind;

/// A journal of fewer bytes than this is never worth a checkpoint.
const SMALL: u64 = 32 << 20;

/// How many times larger a journal must be than the checkpoint would be.
const WORTH: u64 = 4;

/// The most parts and bytes in one record.
const PARTS: usize = 64;
const BYTES: u64 = 1 << 20;

impl Fork {
    /// Whether [`Fork::checkpoint`] would pay: the journals are large, and most of their records are outdated.
    pub fn wants_checkpoint(&self) -> bool {
        // A clone takes pointers: the lock is not held while the disk and all files are looked at.
        let (generations, state) = {
            let live = self.live.read();
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
    pub fn checkpoint(&self) -> Result<bool> {
        // A seal is running, which includes a checkpoint's work.
        let Some(_only_one) = self.sealing.try_lock() else { return Ok(false) };
        let frozen = self.freeze()?;
        if frozen.generations.is_empty() {
            return Ok(false);
        }
        let shared = &self.shared;
        let base = shared.base(frozen.image, self.created_ns())?;
        // Replays the generations on disk: the state in memory still rests on the image before the last seal.
        let mut target = State::over(base.clone());
        let before = self.head.lock().folders.clone();
        before.apply(&mut target);
        if let Some(damage) = replay(&mut target, &frozen.generations, &*shared.reader)? {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("cannot write a checkpoint: {}", damage.what),
            ));
        }
        let new = shared.new_generation()?;
        shared.add_refs(&[new.id]);
        let folders = Frame::of(&target);
        let mut scratch =
            Scratch { state: State::over(base.clone()), writer: Writer::new(new.clone()), shared };
        scratch.state.raise_floors();
        let written = scratch.write(&frozen.with(target, State::over(base))).and_then(|()| {
            new.sync().map_err(|e| Error::io(e, format!("cannot make {} durable", new.path().display())))
        });
        if let Err(e) = written {
            shared.drop_refs(&[new.id]);
            return Err(e);
        }
        new.freeze();
        let changes = frozen.changes()?;
        let mut head = self.head.lock();
        let released = frozen.ids();
        if !head.generations.starts_with(&released) || head.base != frozen.image {
            // A seal came first, which includes a checkpoint's work.
            shared.drop_refs(&[new.id]);
            return Ok(false);
        }
        let mut next = Head { folders, ..head.clone() };
        next.generations.splice(..released.len(), [new.id]);
        let durable = self.switch_head(&mut head, next).inspect_err(|_| shared.drop_refs(&[new.id]))?;
        {
            let mut live = self.live.write();
            live.generations.splice(..released.len(), [new]);
            let gone: HashSet<GenId> = released.iter().copied().collect();
            for (path, put) in &changes.put {
                if put.inode.content().is_none() {
                    continue;
                }
                let Some(inode) = scratch.state.resolve(path).and_then(|ino| scratch.state.inode(ino)) else {
                    continue;
                };
                let Some(content) = inode.content().map(Content::settled) else { continue };
                let mut take = |live: &mut Content, _: &mut Guard| {
                    take_pieces(live, &gone, &content.pieces);
                    false
                };
                live.repoint(put, &gone, &mut take, &mut Vec::new());
            }
        }
        if durable {
            shared.drop_refs(&released);
        }
        Ok(true)
    }
}

/// A state that is changed step by step from the base to the target, with the journal of these changes.
pub(super) struct Scratch<'a> {
    pub(super) state: State,
    pub(super) writer: Writer,
    pub(super) shared: &'a Shared,
}

impl Scratch<'_> {
    pub(super) fn commit(&mut self, mut record: Record) -> Result<()> {
        let floor = match &record {
            Record::Attr(Attrs { ino, .. }) | Record::Splice(Splice { ino, .. }) => {
                self.state.inode(*ino).map_or(0, |inode| inode.floor())
            }
            _ => 0,
        };
        self.writer.commit(&self.state, &mut record, floor)?;
        apply(&mut self.state, &record, self.writer.generation.id).map(|_| ()).map_err(|_| {
            Error::new(ErrorKind::Io(None), "cannot write a checkpoint: a record contradicts the tree")
        })
    }

    fn write(&mut self, target: &Frozen) -> Result<()> {
        self.lead(target, &*target.changes()?)
    }

    /// Applies the target's changes to the state.
    pub(super) fn lead(&mut self, target: &Frozen, changes: &Changes) -> Result<()> {
        for path in &changes.removed {
            self.remove_all(path)?;
        }
        let mut made: HashMap<Ino, Ino> = HashMap::new();
        let mut as_it_is = HashSet::new();
        for put in changes.put.values().filter(|put| put.inode.links.len() > 1) {
            // A name that is not among the changes already leads to the right file.
            let others = target.names(&put.inode).filter(|path| !changes.put.contains_key(path));
            for ino in others.filter_map(|path| self.state.resolve(&path)) {
                made.insert(put.ino, ino);
                as_it_is.insert(ino);
            }
        }
        // A file that already exists under one of its names is not created again.
        for (path, put) in &changes.put {
            if let Some(ino) = self.state.resolve(path) {
                made.entry(put.ino).or_insert(ino);
            }
        }
        let (mut created, mut filled) = (HashSet::new(), HashSet::new());
        for (path, put) in &changes.put {
            let at = path.iter().rposition(|b| *b == b'/');
            let (folder, name) = at.map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
            let parent = self.state.resolve(folder).ok_or_else(unfit)?;
            let there = self.state.child(parent, name);
            let ino = match made.get(&put.ino) {
                Some(ino) if there.is_none() => {
                    self.commit(Record::Link { ino: *ino, parent, name: name.to_vec(), time: now() })?;
                    *ino
                }
                Some(ino) => *ino,
                None => {
                    let ino = self.make(target, parent, name, put)?;
                    created.insert(ino);
                    made.insert(put.ino, ino);
                    ino
                }
            };
            if !as_it_is.contains(&ino) && filled.insert(ino) {
                self.fill(ino, &put.inode)?;
            }
        }
        // Last, since all steps above change times.
        for (path, put) in &changes.put {
            let ino = self.state.resolve(path).ok_or_else(unfit)?;
            if as_it_is.contains(&ino) {
                continue;
            }
            let attr = target.attr(put);
            // A moved base file is created again, so its times count as set although no program set them.
            let or_shown = |time: Option<i64>, shown| time.or(created.contains(&ino).then_some(shown));
            self.commit(Record::Attr(Attrs {
                ino,
                mode: Some(put.inode.mode),
                uid: put.inode.uid,
                gid: put.inode.gid,
                size: None,
                atime: or_shown(put.inode.atime, attr.atime),
                mtime: or_shown(put.inode.mtime, attr.mtime),
                ctime: attr.ctime,
            }))?;
        }
        Ok(())
    }

    fn remove_all(&mut self, path: &[u8]) -> Result<()> {
        let mut order = vec![path.to_vec()];
        let mut at = 0;
        while at < order.len() {
            if let Some(ino) = self.state.resolve(&order[at]) {
                let mut below = Vec::new();
                self.state.list(ino, 0, &mut |entry| {
                    below.push([&order[at][..], &entry.name].join(&b'/'));
                    true
                });
                order.extend(below);
            }
            at += 1;
        }
        for path in order.iter().rev() {
            let at = path.iter().rposition(|b| *b == b'/');
            let (folder, name) = at.map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
            let parent = self.state.resolve(folder).ok_or_else(unfit)?;
            self.commit(Record::Remove { parent, name: name.to_vec(), time: now() })?;
        }
        Ok(())
    }

    fn make(&mut self, target: &Frozen, parent: Ino, name: &[u8], put: &Put) -> Result<Ino> {
        let attr = target.attr(put);
        let mut ino = put.ino;
        let mut probe = 0;
        while self.state.taken(ino) && ino.0 > Ino::TRACE.0 {
            ino = Ino::derive(parent, name, probe);
            probe += 1;
        }
        let link = if let Body::Symlink(link) = &put.inode.body { link.to_vec() } else { Vec::new() };
        self.commit(Record::Create(Create {
            parent,
            name: name.to_vec(),
            ino,
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            target: link,
            time: attr.ctime,
        }))?;
        Ok(ino)
    }

    /// Gives a file the content and the extended attributes it should have.
    fn fill(&mut self, ino: Ino, wanted: &Arc<Inode>) -> Result<()> {
        let there = self.state.inode(ino).map(|inode| inode.xattrs.clone()).unwrap_or_default();
        for name in there.keys().filter(|name| !wanted.xattrs.contains_key(*name)) {
            self.commit(Record::Xattr { ino, name: name.clone(), value: None, time: now() })?;
        }
        for (name, value) in wanted.xattrs.iter() {
            let (name, value) = (name.clone(), Some(value.clone()));
            self.commit(Record::Xattr { ino, name, value, time: now() })?;
        }
        let Some(content) = wanted.content() else { return Ok(()) };
        let inode = self.state.inode(ino).filter(|i| i.kind() == Kind::File).ok_or_else(unfit)?;
        let there = inode.content().ok_or_else(unfit)?;
        if let Some(lazy) = there.unsettled() {
            settle(lazy, &*self.shared.reader)?;
        }
        if there.whole_blob().is_some() && there.whole_blob() == content.whole_blob() {
            return Ok(());
        }
        let floor = inode.floor();
        let size = |size| Attrs {
            ino,
            mode: None,
            uid: None,
            gid: None,
            size: Some(size),
            atime: None,
            mtime: None,
            ctime: now(),
        };
        self.commit(Record::Attr(size(floor)))?;
        let mut parts: Vec<Part> = Vec::new();
        let (mut from, mut bytes) = (floor, 0);
        for (at, piece) in content.pieces.range(floor, content.size) {
            if parts.len() >= PARTS || bytes >= BYTES {
                self.splice(ino, from, at - from, std::mem::take(&mut parts))?;
                (from, bytes) = (at, 0);
            }
            let source = match &piece.src {
                Src::Blob(_) => From::There(piece.off, piece.src.clone()),
                Src::Data(file) => {
                    let linked = self
                        .writer
                        .link_or_copy(file, piece.off, piece.len)
                        .map_err(|e| Error::io(e, "cannot link or copy a data file"))?;
                    From::There(piece.off, Src::Data(linked))
                }
                Src::Journal(_) => {
                    let mut buf = vec![0; piece.len as usize];
                    pieces::fill(&piece, 0, &mut buf, &mut |_, _, _| Err(unfit()))?;
                    bytes += piece.len;
                    From::Bytes(buf)
                }
            };
            parts.push(Part { at: at - from, len: piece.len, from: source });
        }
        self.splice(ino, from, content.size - from, parts)
    }

    fn splice(&mut self, ino: Ino, off: u64, len: u64, parts: Vec<Part>) -> Result<()> {
        let size = off + len;
        self.commit(Record::Splice(Splice { ino, off, len, size, parts, strip: false, time: now() }))
    }
}

pub(super) fn unfit() -> Error {
    Error::new(ErrorKind::Io(None), "cannot write a checkpoint: it contradicts its base image")
}
