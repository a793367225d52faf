//! Writes the journal of the changes that lead from a base to a state.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::frozen::{Changes, Frozen, Put};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::clock::now;
use crate::fork::extents::{self, Src};
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Inode};
use crate::fork::journal::Writer;
use crate::fork::reader::settle;
use crate::fork::record::{Attrs, Create, From, Part, Record, Splice};
use crate::fork::shared::Shared;
use crate::fork::state::{State, apply};
use crate::layers::world::Kind;

/// The most parts and bytes in one record.
const PARTS: usize = 64;
const BYTES: u64 = 1 << 20;

/// A state that is changed step by step from the base to the target, with the journal of these changes.
pub(super) struct Rewriter<'a> {
    pub(super) state: State,
    pub(super) writer: Writer,
    pub(super) shared: &'a Shared,
}

impl Rewriter<'_> {
    pub(super) fn commit(&mut self, mut record: Record) -> Result<()> {
        let sealed_len = match &record {
            Record::Attr(Attrs { ino, .. }) | Record::Splice(Splice { ino, .. }) => {
                self.state.inode(*ino).map_or(0, |inode| inode.sealed_len())
            }
            _ => 0,
        };
        self.writer.commit(&self.state, &mut record, sealed_len)?;
        apply(&mut self.state, &record, self.writer.generation.id).map(|_| ()).map_err(|_| {
            Error::new(ErrorKind::Io(None), "cannot write a checkpoint: a record contradicts the tree")
        })
    }

    pub(super) fn write(&mut self, target: &Frozen) -> Result<()> {
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
            let parent = self.state.resolve(folder).ok_or_else(mismatch)?;
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
            let ino = self.state.resolve(path).ok_or_else(mismatch)?;
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
            let parent = self.state.resolve(folder).ok_or_else(mismatch)?;
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
        let inode = self.state.inode(ino).filter(|i| i.kind() == Kind::File).ok_or_else(mismatch)?;
        let there = inode.content().ok_or_else(mismatch)?;
        if let Some(lazy) = there.unsettled() {
            settle(lazy, &*self.shared.reader)?;
        }
        if there.whole_blob().is_some() && there.whole_blob() == content.whole_blob() {
            return Ok(());
        }
        let sealed_len = inode.sealed_len();
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
        self.commit(Record::Attr(size(sealed_len)))?;
        let mut parts: Vec<Part> = Vec::new();
        let (mut from, mut bytes) = (sealed_len, 0);
        for (at, piece) in content.pieces.range(sealed_len, content.size) {
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
                    extents::fill(&piece, 0, &mut buf, &mut |_, _, _| Err(mismatch()))?;
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
        self.commit(Record::Splice(Splice { ino, off, len, size, parts, clears_suid: false, time: now() }))
    }
}

pub(super) fn mismatch() -> Error {
    Error::new(ErrorKind::Io(None), "cannot write a checkpoint: it contradicts its base image")
}
