//! A generation's journal: a header, then records in sequence, each with its length, sequence number and checksum.
//!
//! ```text
//! crc32c u32 │ length of the payload u32 │ sequence number u64 │ kind u8 │ payload
//! ```
//! Little-endian. The checksum covers the generation's name, the record's offset in the journal, and everything
//! after the checksum. A file's content therefore never passes for a record.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

use super::disk::{DataFile, GenId, Generation};
use super::ino::Ino;
use super::record::{self, HEADER, Record};
use super::state::State;
use crate::error::{Error, ErrorKind, Posix, Result};

/// Bytes in front of a record's payload.
pub(super) const FRAME: usize = 17;

/// Longest payload in bytes. An operation carries at most 64 KiB of content, two names and a few pieces.
const MAX_PAYLOAD: u32 = 64 << 20;

fn checksum(id: GenId, offset: u64, rest: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&id.0.to_be_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, rest)
}

fn put_frame(out: &mut Vec<u8>, id: GenId, offset: u64, seq: u64, kind: u8, payload: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
    let crc = checksum(id, offset, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A record in a journal, not yet decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    pub(super) seq: u64,
    pub(super) payload: &'a [u8],
    /// Where the payload starts in the journal.
    pub(super) start: u64,
    /// Where the next record starts.
    pub(super) end: u64,
}

/// The record at `offset`, if there is one whose checksum holds.
pub(super) fn frame_at(journal: &[u8], id: GenId, offset: usize) -> Option<Frame<'_>> {
    let rest = journal.get(offset..)?;
    let head = rest.get(..FRAME)?;
    let crc = u32::from_le_bytes(head[..4].try_into().ok()?);
    let len = u32::from_le_bytes(head[4..8].try_into().ok()?);
    if len > MAX_PAYLOAD {
        return None;
    }
    let whole = rest.get(..FRAME + len as usize)?;
    (checksum(id, offset as u64, &whole[4..]) == crc).then(|| Frame {
        kind: head[16],
        seq: u64::from_le_bytes(head[8..16].try_into().unwrap_or_default()),
        payload: &whole[FRAME..],
        start: (offset + FRAME) as u64,
        end: (offset + whole.len()) as u64,
    })
}

/// Returns where a sound record with a number of at least `seq` starts after `offset`, if any does.
pub(super) fn sound_behind(journal: &[u8], id: GenId, offset: usize, seq: u64) -> Option<u64> {
    (offset..journal.len().saturating_sub(FRAME - 1)).find_map(|at| {
        // Most offsets are ruled out by the number alone.
        let number = u64::from_le_bytes(journal[at + 8..at + 16].try_into().ok()?);
        (number >= seq && number - seq <= journal.len() as u64)
            .then(|| frame_at(journal, id, at))
            .flatten()
            .map(|_| at as u64)
    })
}

/// Returns the number of a later record that lies whole at `offset`, where record `seq` should be. The records between them
/// were removed. An unfinished operation looks different: it has number `seq` or none.
pub(super) fn out_of_place(journal: &[u8], offset: usize, seq: u64) -> Option<u64> {
    let rest = journal.get(offset..)?;
    let len = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?);
    let number = u64::from_le_bytes(rest.get(8..16)?.try_into().ok()?);
    rest.get(..FRAME + len as usize)?;
    (number > seq && number - seq <= journal.len() as u64).then_some(number)
}

/// Writes the journal of the generation that a fork is in.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) generation: Arc<Generation>,
    /// Where the next record goes, and its number.
    pub(super) end: u64,
    pub(super) seq: u64,
    /// Files that have a number in this generation.
    pub(super) numbers: HashMap<Ino, u64>,
    pub(super) next_number: u64,
    /// Why nothing more can be written.
    pub(super) broken: Option<String>,
    /// Whether another fork is about to replace this one, so that writes would be lost.
    pub(super) leaving: bool,
    /// Frozen files of other generations that have a second name here.
    linked: HashMap<(GenId, u64), Weak<DataFile>>,
    /// Files that hold parts of files which cannot have a second name.
    copied: HashMap<(GenId, u64), Weak<DataFile>>,
    reserved: u64,
    /// Journal bytes that are reserved for writes into space of fallocate(2).
    promised: u64,
}

/// Journal space is reserved in steps of this many bytes.
const RESERVE: u64 = 16 << 10;

impl Writer {
    pub(super) fn new(generation: Arc<Generation>) -> Self {
        Self {
            generation,
            end: HEADER as u64,
            seq: 1,
            numbers: HashMap::new(),
            next_number: 1,
            broken: None,
            leaving: false,
            linked: HashMap::new(),
            copied: HashMap::new(),
            reserved: 0,
            promised: 0,
        }
    }

    /// Whether nothing was recorded yet.
    pub(super) fn is_empty(&self) -> bool {
        self.end == HEADER as u64
    }

    /// Fails if the journal takes no more records.
    pub(super) fn check(&self) -> Result<()> {
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
    pub(super) fn reserve(&mut self, len: u64) -> io::Result<()> {
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
    pub(super) fn promise(&mut self, len: u64) -> io::Result<()> {
        self.promised += len;
        self.reserve(RESERVE).inspect_err(|_| self.promised -= len)
    }

    /// Records an operation with one write. On failure nothing has happened. If the traces of the attempt cannot be
    /// removed, the journal takes no more records.
    pub(super) fn commit(&mut self, state: &State, record: &mut Record, floor: u64) -> Result<()> {
        self.check()?;
        let id = self.generation.id;
        let mut out = Vec::new();
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
            let payload = record::encode_bind(next, &path);
            let offset = self.end + out.len() as u64;
            put_frame(&mut out, id, offset, seq, record::kind::BIND, &payload);
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
        let payload = record::encode(record, &numbers, floor, offset + FRAME as u64, &self.generation);
        if payload.len() > MAX_PAYLOAD as usize {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the operation is larger than a record of the journal can be",
            ));
        }
        put_frame(&mut out, id, offset, seq, kind, &payload);
        self.write(&out)?;
        self.end += out.len() as u64;
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
    pub(super) fn link(&mut self, file: &Arc<DataFile>) -> io::Result<Arc<DataFile>> {
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
    pub(super) fn link_or_copy(
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
