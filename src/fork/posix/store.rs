//! Stores the bytes of a write, and clears what a write takes from a file.

use std::io;

use super::caller::{Caller, mode_after_write};
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::disk::DataFile;
use crate::fork::errors::posix;
use crate::fork::extents::Src;
use crate::fork::ino::Ino;
use crate::fork::inode::{CAPABILITY, Content, Inode, stripped};
use crate::fork::live::Live;
use crate::fork::record::{Attrs, From, Record};

/// Bytes of a file that one generation keeps in the journal. Further bytes go to the file's own sparse data file.
pub const INLINE: u64 = 64 << 10;

/// Pieces that a small file may have before it gets its own data file.
const INLINE_PIECES: usize = 64;

/// Journal space in bytes to reserve for a record that refers to data files.
const RECORD_ROOM: u64 = 8192;

/// Longest file in bytes: offsets are signed.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// The content of a regular file.
pub(super) fn file_of(inode: &Inode) -> Result<&Content> {
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

/// The bytes before and after a range, to the edges of its pages.
pub(super) struct Around {
    pub(super) head: Vec<u8>,
    pub(super) tail: Vec<u8>,
}

/// Where written bytes ended up.
pub(super) struct StoredRange {
    /// Number of bytes written, from the first on.
    pub(super) len: u64,
    /// Where the piece starts in the file. The piece is longer than the written bytes if pages were filled up.
    pub(super) at: u64,
    pub(super) covered: u64,
    pub(super) from: From,
}

/// Clears suid and sgid of a file whose content `by` is about to change. Returns whether the record of that change has
/// to clear them.
pub(super) fn clear_suid(
    live: &mut Live,
    ino: Ino,
    inode: &Inode,
    by: impl Caller,
    time: i64,
) -> Result<bool> {
    if inode.mode & 0o6000 == 0 {
        return Ok(false);
    }
    let mode = mode_after_write(inode.mode, live.state.attr(ino, inode).gid, by);
    if mode == inode.mode || mode == stripped(inode.mode) {
        return Ok(mode != inode.mode);
    }
    // A splice cannot record this mode, so it takes a separate record. That one comes first: if the write then fails,
    // a bit is lost, which is safer than a write that leaves the bit.
    live.commit(Record::Attr(Attrs { mode: Some(mode), ..Attrs::of(ino, time) }))?;
    Ok(false)
}

/// Removes a file's capabilities. A change of content or owner does this, since they were given to the old file.
pub(super) fn drop_capability(live: &mut Live, ino: Ino, inode: &Inode, time: i64) -> Result<()> {
    if !inode.xattrs.contains_key(CAPABILITY) {
        return Ok(());
    }
    live.commit(Record::Xattr { ino, name: CAPABILITY.to_vec(), value: None, time })
}

/// Finds a place for bytes: in the next record, or in the file's own data file, which gets them at once. `around` fills up
/// their pages.
///
/// Like the record, this is part of the write that acknowledges an operation: it creates, writes and reserves, but reads
/// nothing.
pub(super) fn store_bytes(
    live: &mut Live,
    around: Option<&Around>,
    inode: &Inode,
    content: &Content,
    ino: Ino,
    offset: u64,
    bytes: &[u8],
) -> Result<StoredRange> {
    let generation = live.writer.generation.clone();
    let len = bytes.len() as u64;
    let own = content.own_of(&generation);
    let inline = if content.inline_gen == Some(generation.id) { content.inline } else { 0 };
    let small = inline + len <= INLINE && content.pieces.count() < INLINE_PIECES;
    if own.is_none() && small && !live.orphans.contains_key(&ino) {
        return Ok(StoredRange { len, at: offset, covered: len, from: From::Bytes(bytes.to_vec()) });
    }
    // The bytes cannot be removed again if the journal has no room for the record that refers to them.
    live.writer.reserve(RECORD_ROOM).map_err(failed)?;
    let sealed_len = inode.sealed_len();
    let own = match own {
        Some(own) => own,
        None => DataFile::create(&generation).map_err(failed)?,
    };
    let filled = around.map(|around| [&around.head[..], bytes, &around.tail].concat());
    let at = around.map_or(offset, |around| offset - around.head.len() as u64);
    let out = filled.as_deref().unwrap_or(bytes);
    let covered = own.write_at(out, at - sealed_len).map_err(failed)? as u64;
    let written = (at + covered).min(offset + len).saturating_sub(offset);
    if written == 0 {
        return Err(Error::new(ErrorKind::NoSpace, "cannot write the fork's data"));
    }
    Ok(StoredRange { len: written, at, covered, from: From::There(at - sealed_len, Src::Data(own)) })
}
