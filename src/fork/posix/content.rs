//! Operations on what a file holds: read, write, cut, holes, copies.

use std::sync::Arc;

use super::caller::Caller;
use super::copy::{self, CopySource};
use super::files::Files;
use super::making::Making;
use super::policy::{self, may_clear};
use super::reserve::set_aside;
use super::store::{Around, MAX_SIZE, clear_suid, drop_capability, file_of, store_bytes};
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::core::Core;
use crate::fork::errors::posix;
use crate::fork::extents::BlobRef;
use crate::fork::ino::Ino;
use crate::fork::inode::{Attr, Content, Inode, Protection};
use crate::fork::live::Live;
use crate::fork::reader::settle;
use crate::fork::record::{Part, Record, Splice};
use crate::fork::state::At;

/// Pieces from which on a write fills up the pages that it touches. The file's length then bounds their number.
const FRAGMENTED: usize = 256;

const PAGE: u64 = 4096;

/// Attempts of a write to a file in many pieces when other writes keep changing the file.
const TRIES: usize = 4;

/// The same for an append-only file: a write must know which bytes the file already holds.
const TRIES_OF_RECORDS: usize = 1000;

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

impl Files {
    /// Reads into `buf` from `offset` on. Returns the number of bytes: fewer than the buffer has only at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.core.settle(ino)?;
        let inode = self.core.live.read().inode_or_stale(ino)?;
        let content = file_of(&inode)?.settled();
        self.core.read_content(&content, offset, buf)
    }

    /// Like [`Files::read`], into a new vector.
    pub fn read_vec(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>> {
        let size = self.getattr(ino)?.size;
        let mut buf = vec![0; size.saturating_sub(offset).min(len as u64) as usize];
        let read = self.read(ino, offset, &mut buf)?;
        buf.truncate(read);
        Ok(buf)
    }

    /// Returns the blob that is a file's whole content; none if the file was written to.
    pub fn whole_blob(&self, ino: Ino) -> Result<Option<BlobRef>> {
        self.core.settle(ino)?;
        Ok(file_of(&*self.core.live.read().inode_or_stale(ino)?)?.whole_blob())
    }

    /// Writes at `offset`. Returns the number of bytes: fewer than given only if the disk filled up during the write.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], by: impl Caller) -> Result<usize> {
        // The kernel does not look at the times of a file that is written past its cache.
        let time = |inode: &Inode| match inode.guard {
            Protection::Append(_) => self.core.now(),
            _ => self.core.time_of_change(inode),
        };
        self.write_at(ino, Some(offset), bytes, by, time)
    }

    /// Writes at the end that the file has when the fork is locked.
    pub fn append(&self, ino: Ino, bytes: &[u8], by: impl Caller) -> Result<usize> {
        self.write_at(ino, None, bytes, by, |_| self.core.now())
    }

    /// Writes whole pages that a program changed earlier, through a mapping or by a late write. For a late write the kernel
    /// sets the times that changed.
    ///
    /// In an append-only file a page may begin before the end of the recorded bytes. The appended part is written. The rest
    /// is refused only if it differs, since a program that appends did not change it.
    ///
    /// Writes all bytes or fails: the kernel does not check how many bytes of its pages were written.
    pub fn write_pages(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<usize> {
        let time = |inode: &Inode| self.core.time_of_change(inode);
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
        let _whole = self.core.gate.enter_or_wait()?;
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
        self.core.may_write()?;
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
            let live = self.core.live.write();
            live.writable()?;
            let inode = live.inode_or_stale(ino)?;
            let offset = match offset {
                Some(offset) => resolve_append_offset(&live, ino, &inode, offset),
                None => file_of(&inode)?.known_size(),
            };
            if !fits(offset) {
                return Err(too_large());
            }
            let content = file_of(&inode)?.settled();
            let before = before.filter(|before| before.is_of(&inode, offset));
            let most = if inode.guard == Protection::None { TRIES } else { TRIES_OF_RECORDS };
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
        let written = store_bytes(&mut live, around.as_ref(), &inode, &content, ino, offset, bytes)?;
        let size = content.size.max(offset + written.len);
        let clears_suid = clear_suid(&mut live, ino, &inode, by, time(&inode))?;
        drop_capability(&mut live, ino, &inode, time(&inode))?;
        let splice = Splice {
            ino,
            off: written.at,
            len: written.covered,
            size,
            parts: vec![Part { at: 0, len: written.covered, from: written.from }],
            clears_suid,
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
            let live = self.core.live.read();
            let own = match live.state.at(ino) {
                Some(At::Own(inode)) => Some(inode),
                Some(At::Base(_)) => None,
                None => live.orphans.get(&ino),
            };
            let Some((inode, content)) = own.and_then(|inode| Some((inode, inode.content()?))) else {
                return Ok(None);
            };
            let at = offset
                .map_or(content.known_size(), |offset| resolve_append_offset(&live, ino, inode, offset));
            let read = has_to_be_read(inode, content, at).then(|| Arc::clone(inode));
            (content.unsettled().cloned(), read, at)
        };
        if let Some(lazy) = lazy {
            settle(&lazy, &*self.core.shared.reader)?;
            // How the write has to treat the file depends on the length.
            return self.look_before(ino, offset, bytes);
        }
        let (Some(inode), offset) = (inode, at) else { return Ok(None) };
        let content = file_of(&inode)?.settled();
        let already = match inode.guard {
            Protection::Append(_) if offset < content.size => {
                written_already(&self.core, &inode, &content, offset, bytes)?
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
                self.core.read_content(&content, from, &mut head)?;
                self.core.read_content(&content, start + len, &mut tail)?;
                Some(Around { head, tail })
            }
            _ => None,
        };
        Ok(Some(Before { inode, offset, already, around }))
    }

    /// Allocates, punches or zeroes a range.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, what: Allocate, by: impl Caller) -> Result<()> {
        self.core.may_write()?;
        let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE);
        let end =
            end.ok_or_else(|| posix(Posix::TooLarge, "the file would be larger than a fork's file can be"))?;
        if len == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "the length of the range is zero"));
        }
        self.core.settle(ino)?;
        let mut live = self.core.live.write();
        live.writable()?;
        let inode = live.inode_or_stale(ino)?;
        let content = file_of(&inode)?.settled();
        let size = content.size;
        let grow = matches!(what, Allocate::Extend | Allocate::ZeroRange { keep_size: false });
        let new_size = if grow { size.max(end) } else { size };
        let cleared = matches!(what, Allocate::PunchHole | Allocate::ZeroRange { .. });
        if inode.guard == Protection::Fixed {
            policy::may_change(&inode, offset)?;
        }
        if !cleared && new_size == size && inode.guard != Protection::None {
            // In a ledger or trace only appended bytes count as a change.
            return Ok(());
        }
        may_clear(&inode, if cleared { offset } else { size }, end)?;
        if !cleared {
            set_aside(&mut live, &inode, &content, ino, offset, len)?;
        }
        // A hole after the end would be cut off again; an extension clears nothing.
        let cleared_len = if cleared { end.min(new_size).saturating_sub(offset) } else { 0 };
        let off = if cleared_len > 0 { offset } else { size };
        let time = self.core.time_of_change(&inode);
        let clears_suid = clear_suid(&mut live, ino, &inode, by, time)?;
        drop_capability(&mut live, ino, &inode, time)?;
        drop((inode, content));
        // Recorded even if no byte changes: the call counts as a change of the file and sets its times.
        live.commit(Record::Splice(Splice {
            ino,
            off,
            len: cleared_len,
            size: new_size,
            parts: Vec::new(),
            clears_suid,
            time,
        }))
    }

    /// Finds the next offset with data (`data`) or in a hole, from `offset` on, as lseek(2) does.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        self.core.settle(ino)?;
        let inode = self.core.live.read().inode_or_stale(ino)?;
        let content = file_of(&inode)?.settled();
        content
            .pieces
            .seek(offset, content.size, data)
            .ok_or_else(|| posix(Posix::NoSuchOffset, "the file has no data at or after that offset"))
    }

    /// Copies up to `len` bytes and returns the number copied. After a short copy the caller calls it again. Blobs and frozen
    /// data are shared, other bytes are copied.
    pub fn copy_range(
        &self,
        from: &CopySource<'_>,
        from_offset: u64,
        ino: Ino,
        offset: u64,
        len: u64,
        by: impl Caller,
    ) -> Result<u64> {
        copy::copy_range(self, (from, from_offset), (ino, offset), len, by)
    }

    /// Notes that the fork was made empty.
    pub(in crate::fork) fn begin_making(&self) {
        *self.making.lock() = Making::Begun;
    }

    /// Notes that a program does something else in the fork than copying a fork or an image. From now on no times are kept.
    pub fn end_making(&self) {
        *self.making.lock() = Making::No;
    }

    /// Whether the fork is being copied from another.
    pub fn is_being_made(&self) -> bool {
        !matches!(*self.making.lock(), Making::No)
    }

    /// Loads what [`Files::take_time_of_empty`] needs into memory. Must be called before a file is created.
    ///
    /// Fails with [`ErrorKind::Waits`] on an event loop if that takes the disk.
    pub fn prepare_to_take_times(&self) -> Result<()> {
        copy::prepare_to_take_times(self)
    }

    /// Sets the time of a newly created empty file to that of an empty file at the same path in the source. No byte of such a
    /// file is copied, so [`Files::copy_range`] never sees it. Returns the file's new attributes.
    pub fn take_time_of_empty(&self, made: &Attr) -> Result<Option<Attr>> {
        copy::take_time_of_empty(self, made)
    }
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

/// Whether a file has to be read before it is written at an offset.
fn has_to_be_read(inode: &Inode, content: &Content, offset: u64) -> bool {
    content.pieces.count() > FRAGMENTED
        || (matches!(inode.guard, Protection::Append(_)) && offset < content.known_size())
}

/// The pages of a file that a range touches: from the first byte that may change, to the end of the file at most.
fn pages(inode: &Inode, content: &Content, offset: u64, len: u64) -> Option<(u64, u64)> {
    let sealed_len = inode.sealed_len();
    let start = offset.checked_sub(sealed_len)?;
    let end = start.checked_add(len)?.checked_next_multiple_of(PAGE)?.checked_add(sealed_len)?;
    Some((sealed_len + start / PAGE * PAGE, end.min(content.size.max(offset + len))))
}

/// Returns the offset that a write at `offset` means. In an append-only file an old end means the present end: a seal may
/// have rewritten the appended lines to another length.
fn resolve_append_offset(live: &Live, ino: Ino, inode: &Inode, offset: u64) -> u64 {
    let (Protection::Append(_), Some(content)) = (inode.guard, inode.content()) else { return offset };
    let end = content.known_size();
    let mut was = Some(end);
    for moved in live.moved.get(&ino).into_iter().flatten().rev() {
        if was == Some(offset) {
            return end;
        }
        was = was.and_then(|was| was.checked_add_signed(-moved));
    }
    if was == Some(offset) { end } else { offset }
}

/// Checks a write over bytes that an append-only file already holds, and returns how many bytes need not be written.
///
/// The same bytes may be written again. Zeros after the floor may be replaced: a file that was made longer has them, and
/// they do not count as written. Any other change fails.
fn written_already(
    core: &Core,
    inode: &Inode,
    content: &Content,
    offset: u64,
    bytes: &[u8],
) -> Result<usize> {
    let inside = content.size.saturating_sub(offset).min(bytes.len() as u64) as usize;
    let mut there = vec![0; inside];
    core.read_content(content, offset, &mut there)?;
    let zeros_from = usize::try_from(inode.sealed_len().saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut first = inside;
    for (at, (old, new)) in there.iter().zip(bytes).enumerate() {
        if old == new {
            continue;
        }
        if at < zeros_from || *old != 0 {
            return Err(policy::recorded());
        }
        first = first.min(at);
    }
    Ok(first)
}
