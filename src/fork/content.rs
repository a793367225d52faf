//! Operations on what a file holds: read, write, cut, holes.

use std::io;
use std::sync::Arc;

use super::caller::{Caller, mode_after_write, stripped};
use super::disk::DataFile;
use super::ino::Ino;
use super::live::{Fork, Live, posix};
use super::node::{Content, Guard, Inode};
use super::pieces::{self, Src};
use super::policy;
use super::record::{Attrs, From, Part, Record, Splice};
use super::records::may_clear;
use crate::error::{Error, ErrorKind, Posix, Result};

/// Bytes of a file that one generation keeps in the journal. Further bytes go to the file's own sparse data file.
pub const INLINE: u64 = 64 << 10;

/// Pieces that a small file may have before it gets its own data file.
const INLINE_PIECES: usize = 64;

/// Pieces from which on a write fills up the pages that it touches. The file's length then bounds their number.
const FRAGMENTED: usize = 256;

const PAGE: u64 = 4096;

/// Attempts of a write to a file in many pieces when other writes keep changing the file.
const TRIES: usize = 4;

/// The same for an append-only file: a write must know which bytes the file already holds.
const TRIES_OF_RECORDS: usize = 1000;

/// Journal space in bytes to reserve for a record that refers to data files.
const RECORD_ROOM: u64 = 8192;

/// Longest file in bytes: offsets are signed.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// What to do to a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space; the file grows to the range's end.
    Extend,
    /// Reserve space, after the end of the file as well; the length stays.
    KeepSize,
    /// Turn the range into a hole; the length stays.
    PunchHole,
    /// Fill the range with zeros. The file grows to the range's end unless `keep_size` is set.
    ZeroRange {
        /// Whether the length stays.
        keep_size: bool,
    },
}

fn file_of(inode: &Inode) -> Result<&Content> {
    inode.content().ok_or_else(|| {
        if inode.is_dir() {
            posix(Posix::IsADirectory, "a directory cannot be read or written as a file")
        } else {
            Error::new(ErrorKind::InvalidInput, "only a regular file can be read or written")
        }
    })
}

pub(super) fn failed(e: io::Error) -> Error {
    Error::io(e, "cannot write the fork's data")
}

impl Fork {
    /// Reads into `buf` from `offset` on. Returns the number of bytes: fewer than the buffer has only at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.settle(ino)?;
        let inode = self.live.read().need(ino)?;
        let content = file_of(&inode)?.settled();
        self.read_content(&content, offset, buf)
    }

    /// Like [`Fork::read`], into a new vector.
    pub fn read_vec(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>> {
        let size = self.getattr(ino)?.size;
        let mut buf = vec![0; size.saturating_sub(offset).min(len as u64) as usize];
        let read = self.read(ino, offset, &mut buf)?;
        buf.truncate(read);
        Ok(buf)
    }

    /// Reads content that was looked up before, even if its file has changed or gone since.
    pub(super) fn read_content(&self, content: &Content, offset: u64, buf: &mut [u8]) -> Result<usize> {
        read_content(content, offset, buf, &mut |blob, offset, buf| self.read_blob(blob, offset, buf))
    }

    /// Returns the blob that is a file's whole content; none if the file was written to.
    pub fn whole_blob(&self, ino: Ino) -> Result<Option<super::pieces::BlobRef>> {
        self.settle(ino)?;
        Ok(file_of(&*self.live.read().need(ino)?)?.whole_blob())
    }

    /// Writes at `offset`. Returns the number of bytes: fewer than given only if the disk filled up during the write.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], by: impl Caller) -> Result<usize> {
        // The kernel does not look at the times of a file that is written past its cache.
        let time = |inode: &Inode| match inode.guard {
            Guard::Append(_) => self.now(),
            _ => self.time_of_change(inode),
        };
        self.write_at(ino, Some(offset), bytes, by, time)
    }

    /// Writes at the end that the file has when the fork is locked.
    pub fn append(&self, ino: Ino, bytes: &[u8], by: impl Caller) -> Result<usize> {
        self.write_at(ino, None, bytes, by, |_| self.now())
    }

    /// Writes whole pages that a program changed earlier, through a mapping or by a late write. For a late write the kernel
    /// sets the times that changed.
    ///
    /// In an append-only file a page may begin before the end of the recorded bytes. The appended part is written. The rest
    /// is refused only if it differs, since a program that appends did not change it.
    ///
    /// Writes all bytes or fails: the kernel does not check how many bytes of its pages were written.
    pub fn write_pages(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<usize> {
        let time = |inode: &Inode| self.time_of_change(inode);
        let end = self.getattr(ino)?.size;
        let refused = match self.write_all_at(ino, offset, bytes, time) {
            Err(error) if error.kind() == ErrorKind::Posix(Posix::NotPermitted) && offset < end => error,
            written => return written,
        };
        let head = (end - offset).min(bytes.len() as u64) as usize;
        self.write_all_at(ino, end, &bytes[head..], time)?;
        Err(refused)
    }

    fn write_all_at(
        &self,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
        time: impl Fn(&Inode) -> i64 + Copy,
    ) -> Result<usize> {
        let _whole = self.operation_or_wait()?;
        let mut done = 0;
        while done < bytes.len() {
            done += self.write_at(ino, Some(offset + done as u64), &bytes[done..], false, time)?;
        }
        Ok(done)
    }

    /// Writes at `offset`, or at the end if there is none.
    fn write_at(
        &self,
        ino: Ino,
        offset: Option<u64>,
        bytes: &[u8],
        by: impl Caller,
        time: impl Fn(&Inode) -> i64,
    ) -> Result<usize> {
        self.may_write()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let fits = |offset: u64| offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= MAX_SIZE);
        let too_large = || posix(Posix::TooLarge, "the file would be larger than a fork's file can be");
        if !fits(offset.unwrap_or(0)) {
            return Err(too_large());
        }
        let mut tries = 0;
        let (mut live, inode, content, offset, before) = loop {
            let before = self.look_before(ino, offset, bytes)?;
            let live = self.live.write();
            live.writable()?;
            let inode = live.need(ino)?;
            let offset = match offset {
                Some(offset) => live.meant(ino, &inode, offset),
                None => file_of(&inode)?.known_size(),
            };
            if !fits(offset) {
                return Err(too_large());
            }
            let content = file_of(&inode)?.settled();
            let before = before.filter(|before| before.is_of(&inode, offset));
            let most = if inode.guard == Guard::None { TRIES } else { TRIES_OF_RECORDS };
            if before.is_none() && has_to_be_read(&inode, &content, offset) && tries < most {
                // Another write changed the file after `look_before`.
                tries += 1;
                continue;
            }
            break (live, inode, content, offset, before);
        };
        let already = if let Some(before) = &before {
            before.already
        } else {
            policy::may_change(&inode, offset)?;
            0
        };
        let offset = offset + already as u64;
        let bytes = &bytes[already..];
        if bytes.is_empty() {
            return Ok(already);
        }
        let around = before.and_then(|before| before.around);
        let written = live.place(around.as_ref(), &inode, &content, ino, offset, bytes)?;
        let size = content.size.max(offset + written.len);
        let strip = live.strip(ino, &inode, by, time(&inode))?;
        live.drop_capability(ino, &inode, time(&inode))?;
        let splice = Splice {
            ino,
            off: written.at,
            len: written.covered,
            size,
            parts: vec![Part { at: 0, len: written.covered, from: written.from }],
            strip,
            time: time(&inode),
        };
        // Drops what the file no longer needs only after the lock.
        drop((inode, content));
        live.commit(Record::Splice(splice))?;
        Ok(already + written.len as usize)
    }

    /// Reads the bytes of a file that a write has to know, without the fork's lock, since they may lie in a blob. Also finds
    /// out the file's length.
    fn look_before(&self, ino: Ino, offset: Option<u64>, bytes: &[u8]) -> Result<Option<Before>> {
        let (lazy, inode, at) = {
            let live = self.live.read();
            let own = match live.state.at(ino) {
                Some(super::state::At::Own(inode)) => Some(inode),
                Some(super::state::At::Base(_)) => None,
                None => live.orphans.get(&ino),
            };
            let Some((inode, content)) = own.and_then(|inode| Some((inode, inode.content()?))) else {
                return Ok(None);
            };
            let at = offset.map_or(content.known_size(), |offset| live.meant(ino, inode, offset));
            let read = has_to_be_read(inode, content, at).then(|| Arc::clone(inode));
            (content.unsettled().cloned(), read, at)
        };
        if let Some(lazy) = lazy {
            super::live::settle(&lazy, &*self.shared.reader)?;
            // How the write has to treat the file depends on the length.
            return self.look_before(ino, offset, bytes);
        }
        let (Some(inode), offset) = (inode, at) else { return Ok(None) };
        let content = file_of(&inode)?.settled();
        let already = match inode.guard {
            Guard::Append(_) if offset < content.size => {
                self.written_already(&inode, &content, offset, bytes)?
            }
            _ => {
                policy::may_change(&inode, offset)?;
                0
            }
        };
        let (start, len) = (offset + already as u64, (bytes.len() - already) as u64);
        let around = match pages(&inode, &content, start, len) {
            Some((from, to)) if len > 0 && content.pieces.count() > FRAGMENTED => {
                let (mut head, mut tail) =
                    (vec![0; (start - from) as usize], vec![0; (to - start - len) as usize]);
                self.read_content(&content, from, &mut head)?;
                self.read_content(&content, start + len, &mut tail)?;
                Some(Around { head, tail })
            }
            _ => None,
        };
        Ok(Some(Before { inode, offset, already, around }))
    }

    /// Allocates, punches or zeroes a range.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, what: Allocate, by: impl Caller) -> Result<()> {
        self.may_write()?;
        let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE);
        let end =
            end.ok_or_else(|| posix(Posix::TooLarge, "the file would be larger than a fork's file can be"))?;
        if len == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "the length of the range is zero"));
        }
        self.settle(ino)?;
        let mut live = self.live.write();
        live.writable()?;
        let inode = live.need(ino)?;
        let content = file_of(&inode)?.settled();
        let size = content.size;
        let grow = matches!(what, Allocate::Extend | Allocate::ZeroRange { keep_size: false });
        let new_size = if grow { size.max(end) } else { size };
        let cleared = matches!(what, Allocate::PunchHole | Allocate::ZeroRange { .. });
        if inode.guard == Guard::Fixed {
            policy::may_change(&inode, offset)?;
        }
        if !cleared && new_size == size && inode.guard != Guard::None {
            // In a ledger or trace only appended bytes count as a change.
            return Ok(());
        }
        may_clear(&inode, if cleared { offset } else { size }, end)?;
        if !cleared {
            live.set_aside(&inode, &content, ino, offset, len)?;
        }
        // A hole after the end would be cut off again; an extension clears nothing.
        let cleared_len = if cleared { end.min(new_size).saturating_sub(offset) } else { 0 };
        let off = if cleared_len > 0 { offset } else { size };
        let time = self.time_of_change(&inode);
        let strip = live.strip(ino, &inode, by, time)?;
        live.drop_capability(ino, &inode, time)?;
        drop((inode, content));
        // Recorded even if no byte changes: the call counts as a change of the file and sets its times.
        live.commit(Record::Splice(Splice {
            ino,
            off,
            len: cleared_len,
            size: new_size,
            parts: Vec::new(),
            strip,
            time,
        }))
    }

    /// Finds the next offset with data (`data`) or in a hole, from `offset` on, as lseek(2) does.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        self.settle(ino)?;
        let inode = self.live.read().need(ino)?;
        let content = file_of(&inode)?.settled();
        content
            .pieces
            .seek(offset, content.size, data)
            .ok_or_else(|| posix(Posix::NoSuchOffset, "the file has no data at or after that offset"))
    }
}

/// See [`Fork::read_content`].
pub(super) fn read_content(
    content: &Content,
    offset: u64,
    buf: &mut [u8],
    blob: &mut pieces::ReadBlob<'_>,
) -> Result<usize> {
    let len = content.size.saturating_sub(offset).min(buf.len() as u64);
    let buf = &mut buf[..len as usize];
    let mut done = 0;
    for (at, piece) in content.pieces.range(offset, offset + len) {
        let from = (at - offset) as usize;
        buf[done..from].fill(0);
        done = from + piece.len as usize;
        pieces::fill(&piece, 0, &mut buf[from..done], blob)?;
    }
    buf[done..].fill(0);
    Ok(len as usize)
}

/// What a write has to know of the file before the write.
struct Before {
    inode: Arc<Inode>,
    offset: u64,
    /// Number of the bytes that an append-only file already holds.
    already: usize,
    /// The other bytes of the pages, if the write fills these up.
    around: Option<Around>,
}

impl Before {
    fn is_of(&self, inode: &Arc<Inode>, offset: u64) -> bool {
        Arc::ptr_eq(&self.inode, inode) && self.offset == offset
    }
}

/// The bytes before and after a range, to the edges of its pages.
pub(super) struct Around {
    head: Vec<u8>,
    tail: Vec<u8>,
}

/// Whether a file has to be read before it is written at an offset.
fn has_to_be_read(inode: &Inode, content: &Content, offset: u64) -> bool {
    content.pieces.count() > FRAGMENTED
        || (matches!(inode.guard, Guard::Append(_)) && offset < content.known_size())
}

/// The pages of a file that a range touches: from the first byte that may change, to the end of the file at most.
fn pages(inode: &Inode, content: &Content, offset: u64, len: u64) -> Option<(u64, u64)> {
    let floor = inode.floor();
    let start = offset.checked_sub(floor)?;
    let end = start.checked_add(len)?.checked_next_multiple_of(PAGE)?.checked_add(floor)?;
    Some((floor + start / PAGE * PAGE, end.min(content.size.max(offset + len))))
}

/// Where written bytes ended up.
pub(super) struct Placed {
    /// Number of bytes written, from the first on.
    pub(super) len: u64,
    /// Where the piece starts in the file. The piece is longer than the written bytes if pages were filled up.
    pub(super) at: u64,
    pub(super) covered: u64,
    pub(super) from: From,
}

impl Live {
    /// Clears suid and sgid of a file whose content `by` is about to change. Returns whether the record of that change has
    /// to clear them.
    pub(super) fn strip(&mut self, ino: Ino, inode: &Inode, by: impl Caller, time: i64) -> Result<bool> {
        if inode.mode & 0o6000 == 0 {
            return Ok(false);
        }
        let mode = mode_after_write(inode.mode, self.state.attr(ino, inode).gid, by);
        if mode == inode.mode || mode == stripped(inode.mode) {
            return Ok(mode != inode.mode);
        }
        // A splice cannot record this mode, so it takes a separate record. That one comes first: if the write then fails,
        // a bit is lost, which is safer than a write that leaves the bit.
        self.commit(Record::Attr(Attrs { mode: Some(mode), ..Attrs::of(ino, time) }))?;
        Ok(false)
    }

    /// Finds a place for bytes: in the next record, or in the file's own data file, which gets them at once. `around` fills up
    /// their pages.
    ///
    /// Like the record, this is part of the write that acknowledges an operation: it creates, writes and reserves, but reads
    /// nothing.
    pub(super) fn place(
        &mut self,
        around: Option<&Around>,
        inode: &Inode,
        content: &Content,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Placed> {
        let generation = self.writer.generation.clone();
        let len = bytes.len() as u64;
        let own = content.own_of(&generation);
        let inline = if content.inline_gen == Some(generation.id) { content.inline } else { 0 };
        let small = inline + len <= INLINE && content.pieces.count() < INLINE_PIECES;
        if own.is_none() && small && !self.orphans.contains_key(&ino) {
            return Ok(Placed { len, at: offset, covered: len, from: From::Bytes(bytes.to_vec()) });
        }
        // The bytes cannot be removed again if the journal has no room for the record that refers to them.
        self.writer.reserve(RECORD_ROOM).map_err(failed)?;
        let floor = inode.floor();
        let own = match own {
            Some(own) => own,
            None => DataFile::create(&generation).map_err(failed)?,
        };
        let filled = around.map(|around| [&around.head[..], bytes, &around.tail].concat());
        let at = around.map_or(offset, |around| offset - around.head.len() as u64);
        let out = filled.as_deref().unwrap_or(bytes);
        let covered = own.write_at(out, at - floor).map_err(failed)? as u64;
        let written = (at + covered).min(offset + len).saturating_sub(offset);
        if written == 0 {
            return Err(Error::new(ErrorKind::NoSpace, "cannot write the fork's data"));
        }
        Ok(Placed { len: written, at, covered, from: From::There(at - floor, Src::Data(own)) })
    }
}
