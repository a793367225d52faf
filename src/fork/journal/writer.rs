//! Writes journals.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

use super::frame::{FRAME, MAX_PAYLOAD, put_frame};
use super::header::HEADER;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::disk::{DataFile, GenId, Generation};
use crate::fork::ino::{Hashes, Ino};
use crate::fork::record::{self, Record};
use crate::fork::state::State;

/// Writes the journal of the generation that a fork is in.
#[derive(Debug)]
pub(in crate::fork) struct Writer {
    pub(in crate::fork) generation: Arc<Generation>,
    /// Where the next record goes, and its number.
    pub(in crate::fork) end: u64,
    pub(in crate::fork) seq: u64,
    /// Files that have a number in this generation.
    pub(in crate::fork) numbers: HashMap<Ino, u64, Hashes>,
    pub(in crate::fork) next_number: u64,
    /// Why nothing more can be written.
    pub(in crate::fork) broken: Option<String>,
    /// Whether another fork is about to replace this one, so that writes would be lost.
    pub(in crate::fork) leaving: bool,
    /// Frozen files of other generations that have a second name here.
    linked: HashMap<(GenId, u64), Weak<DataFile>>,
    /// Files that hold parts of files which cannot have a second name.
    copied: HashMap<(GenId, u64), Weak<DataFile>>,
    reserved: u64,
    /// Journal bytes that are reserved for writes into space of fallocate(2).
    promised: u64,
    /// Memory for the next record, kept for the one after it.
    buffer: Vec<u8>,
}

/// The most memory that is kept for the next record: a write's content and more.
const KEPT: usize = 128 << 10;

/// Journal space is reserved in steps of this many bytes.
const RESERVE: u64 = 16 << 10;

impl Writer {
    pub(in crate::fork) fn new(generation: Arc<Generation>) -> Self {
        Self {
            generation,
            end: HEADER as u64,
            seq: 1,
            numbers: HashMap::default(),
            next_number: 1,
            broken: None,
            leaving: false,
            linked: HashMap::new(),
            copied: HashMap::new(),
            reserved: 0,
            promised: 0,
            buffer: Vec::new(),
        }
    }

    /// Whether nothing was recorded yet.
    pub(in crate::fork) fn is_empty(&self) -> bool {
        self.end == HEADER as u64
    }

    /// Fails if the journal takes no more records.
    pub(in crate::fork) fn check(&self) -> Result<()> {
        match &self.broken {
            None if self.leaving => {
                Err(Error::new(ErrorKind::Posix(Posix::Stale), "pfimg is restoring the fork to a seal"))
            }
            None => Ok(()),
            Some(why) => Err(Error::new(ErrorKind::ReadOnly, format!("the fork is read-only: {why}"))
                .with_hint("mount the store again; every acknowledged write is kept")),
        }
    }

    /// Reserves space for a record of up to `len` bytes, so that writing it cannot fail for lack of space.
    pub(in crate::fork) fn reserve(&mut self, len: u64) -> io::Result<()> {
        let needed = self.end + len;
        if needed + self.promised <= self.reserved {
            return Ok(());
        }
        let file = self.generation.journal()?;
        let step = len.max(RESERVE) + self.promised;
        match self.generation.io().reserve(&file, self.end, step) {
            Ok(()) => self.reserved = self.end + step,
            // The disk is full: the space that was reserved for this case is enough.
            Err(_) if needed <= self.reserved => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Reserves `len` more bytes of journal for writes into space of fallocate(2).
    pub(in crate::fork) fn promise(&mut self, len: u64) -> io::Result<()> {
        self.promised += len;
        self.reserve(RESERVE).inspect_err(|_| self.promised -= len)
    }

    /// Records an operation with one write. On failure nothing has happened. If the traces of the attempt cannot be
    /// removed, the journal takes no more records.
    pub(in crate::fork) fn commit(
        &mut self,
        state: &State,
        record: &mut Record,
        sealed_len: u64,
    ) -> Result<()> {
        self.check()?;
        let id = self.generation.id;
        let mut out = std::mem::take(&mut self.buffer);
        out.clear();
        let mut seq = self.seq;
        let mut next = self.next_number;
        let mut new: Vec<(Ino, u64)> = Vec::new();
        for ino in record.inos().into_iter().flatten() {
            if self.numbers.contains_key(&ino) || new.iter().any(|(known, _)| *known == ino) {
                continue;
            }
            let path = state.path(ino).ok_or_else(|| {
                Error::new(ErrorKind::Posix(Posix::Stale), "the fork no longer has the file")
            })?;
            let offset = self.end + out.len() as u64;
            put_frame(&mut out, id, offset, (seq, record::kind::BIND), |out| {
                record::encode_bind(next, &path, out);
            });
            new.push((ino, next));
            (seq, next) = (seq + 1, next + 1);
        }
        if let Some(create) = record.made() {
            // A file that had this `Ino` before may have left a number.
            new.push((create.ino, next));
            next += 1;
        }
        let offset = self.end + out.len() as u64;
        let numbers = |ino: Ino| {
            let known = new.iter().find(|(known, _)| *known == ino).map(|(_, number)| *number);
            known.or_else(|| self.numbers.get(&ino).copied()).unwrap_or(0)
        };
        let kind = record.kind();
        let (start, generation) = (offset + FRAME as u64, &self.generation);
        let len = put_frame(&mut out, id, offset, (seq, kind), |out| {
            record::encode(record, &numbers, sealed_len, start, generation, out);
        });
        if len > MAX_PAYLOAD as usize {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the operation is larger than a record of the journal can be",
            ));
        }
        self.write(&out)?;
        self.end += out.len() as u64;
        if out.capacity() <= KEPT {
            self.buffer = out;
        }
        self.seq = seq + 1;
        self.next_number = next;
        self.numbers.extend(new);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |e: io::Error| Error::io(e, "cannot write the fork's journal");
        let file = self.generation.journal().map_err(failed)?;
        let error = loop {
            match self.generation.io().write_at(&file, bytes, self.end) {
                Ok(n) if n == bytes.len() => {
                    self.generation.note_journal_write();
                    return Ok(());
                }
                // The rest of the record did not fit.
                Ok(_) => break io::Error::from_raw_os_error(libc::ENOSPC),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e,
            }
        };
        if let Err(e) = self.generation.io().truncate(&file, self.end) {
            self.broken = Some(format!("cannot remove the traces of a failed write: {e}"));
        }
        self.reserved = 0;
        Err(failed(error))
    }

    /// Gives a frozen data file a name in this generation.
    pub(in crate::fork) fn link(&mut self, file: &Arc<DataFile>) -> io::Result<Arc<DataFile>> {
        if Arc::ptr_eq(&file.generation, &self.generation) {
            return Ok(file.clone());
        }
        let key = (file.generation.id, file.number);
        if let Some(linked) = self.linked.get(&key).and_then(Weak::upgrade) {
            return Ok(linked);
        }
        let linked = file.link(&self.generation)?;
        self.linked.insert(key, Arc::downgrade(&linked));
        Ok(linked)
    }

    /// Like [`Writer::link`], for a range of the file. If the file cannot have a second name, the range is copied to a file of
    /// this generation, at the same offset. Only for a generation that is complete before any head names it.
    pub(in crate::fork) fn link_or_copy(
        &mut self,
        file: &Arc<DataFile>,
        off: u64,
        len: u64,
    ) -> io::Result<Arc<DataFile>> {
        if let Ok(linked) = self.link(file) {
            return Ok(linked);
        }
        let key = (file.generation.id, file.number);
        let twin = match self.copied.get(&key).and_then(Weak::upgrade) {
            Some(twin) => twin,
            None => DataFile::twin(&self.generation)?,
        };
        self.copied.insert(key, Arc::downgrade(&twin));
        twin.copy_from(file, off, len)?;
        Ok(twin)
    }
}
