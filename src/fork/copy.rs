//! Copies a range of one file into another, without touching the bytes if possible.

use super::caller::Caller;
use super::content::{INLINE, MAX_SIZE};
use super::ino::Ino;
use super::live::{Fork, posix};
use super::node::{Body, Content};
use super::pieces::{BlobRef, Piece, Pieces, Src};
use super::record::{From, Part, Record, Splice};
use super::records::may_clear;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::sync::wait;

/// The source of a copy.
#[derive(Clone, Debug)]
pub enum CopySource<'a> {
    /// A file of a fork, maybe the same one.
    Fork(&'a Fork, Ino),
    /// A file of an image.
    Blob(BlobRef),
    /// A file of a known image, at a path from the image's folder, with its time.
    Image {
        /// Its content.
        blob: BlobRef,
        /// The image.
        image: Digest,
        /// For instance `world/fs/src/main.rs`.
        path: &'a [u8],
        /// Its time in nanoseconds since 1970.
        mtime: i64,
    },
}

/// The most bytes that one record copies as bytes.
const BYTES: u64 = 4 << 20;

/// Pieces of other forks below this many bytes are copied: a hard link would cost more.
const WORTH_A_LINK: u64 = 64 << 10;

/// The most parts in one record.
const PARTS: usize = 64;

impl CopySource<'_> {
    /// Its content, and the time shown with that content.
    fn content(&self) -> Result<(Content, i64)> {
        match self {
            Self::Blob(blob) | Self::Image { blob, .. } => {
                let mtime = if let Self::Image { mtime, .. } = self { *mtime } else { 0 };
                Ok((Content { size: blob.size, pieces: Pieces::blob(*blob), ..Content::default() }, mtime))
            }
            Self::Fork(fork, ino) => {
                fork.settle(*ino)?;
                let live = fork.live.read();
                let inode = live.need(*ino)?;
                match &inode.body {
                    Body::File(content) => Ok((content.settled(), live.state.attr(*ino, &inode).mtime)),
                    Body::Dir(_) => Err(posix(Posix::IsADirectory, "a directory cannot be copied as a file")),
                    _ => Err(Error::new(
                        ErrorKind::InvalidInput,
                        "only a regular file can be copied from or to",
                    )),
                }
            }
        }
    }
}

impl Fork {
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
        self.may_write()?;
        let origin = self.origin(from, ino, from_offset, offset)?;
        let (mut source, mut mtime) = from.content()?;
        if let CopySource::Fork(fork, _) = from
            && !std::ptr::eq(*fork, self)
            && fork.may_write().is_ok()
            && source
                .pieces
                .range(from_offset, from_offset.saturating_add(len))
                .into_iter()
                .any(|(_, piece)| is_open(&piece))
        {
            // Its changes since its last seal are shared as well: frozen data never changes.
            fork.freeze()?;
            (source, mtime) = from.content()?;
        }
        let ends = from_offset.saturating_add(len);
        if source.pieces.range(from_offset, ends).iter().any(|(_, piece)| !matches!(piece.src, Src::Blob(_)))
        {
            // Sharing a data file gives it a second name, on the disk.
            wait::required()?;
        }
        let whole = len >= source.size;
        let len = len.min(source.size.saturating_sub(from_offset));
        let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE);
        let end =
            end.ok_or_else(|| posix(Posix::TooLarge, "the file would be larger than a fork's file can be"))?;
        if let CopySource::Fork(fork, other) = from
            && std::ptr::eq(*fork, self)
            && *other == ino
            && offset < from_offset + len
            && from_offset < end
        {
            return Err(Error::new(ErrorKind::InvalidInput, "the source and the target of the copy overlap"));
        }
        self.settle(ino)?;
        let (mut done, mut shares) = (0, true);
        while done < len {
            let from = from_offset + done;
            let copied = self.copy_some(&source, (from, len - done), ino, offset + done, by, shares)?;
            // A piece that cannot be shared is read first, without the fork's lock.
            shares = copied.len > 0;
            done += copied.len;
            if copied.short {
                break;
            }
        }
        if let Some(origin) = origin.filter(|_| whole && done == source.size) {
            self.take_time(ino, &origin, mtime, done)?;
        }
        Ok(done)
    }

    /// Copies as many pieces as one record takes. With `shares`, copies nothing if the first piece cannot be shared. The caller
    /// then calls again without `shares`, which reads the piece.
    fn copy_some(
        &self,
        source: &Content,
        (from, len): (u64, u64),
        ino: Ino,
        to: u64,
        by: impl Caller,
        shares: bool,
    ) -> Result<Copied> {
        // Bytes are read before the lock is taken: they may be in another fork or a blob.
        let mut plan = Vec::new();
        let (mut at, mut bytes) = (from, 0);
        let pieces = source.pieces.range(from, from + len);
        let mut cut = from + len;
        for (start, piece) in pieces {
            if plan.len() + 1 >= PARTS {
                cut = start;
                break;
            }
            let held_back = match &piece.src {
                Src::Blob(blob) => self.shared.reader.is_held_back(&blob.digest)?,
                _ => false,
            };
            if shareable(&piece) && !held_back && (shares || !plan.is_empty()) {
                at = start + piece.len;
                plan.push((start, Step::Share(piece)));
                continue;
            }
            let take = piece.len.min(BYTES.saturating_sub(bytes));
            if take == 0 {
                cut = start;
                break;
            }
            let mut buf = vec![0; take as usize];
            super::pieces::fill(&piece, 0, &mut buf, &mut |blob, off, buf| self.read_blob(blob, off, buf))?;
            bytes += take;
            at = start + take;
            plan.push((start, Step::Bytes(buf)));
            if take < piece.len {
                cut = at;
                break;
            }
        }
        let len = cut.max(at) - from;
        let mut live = self.live.write();
        live.writable()?;
        let inode = live.need(ino)?;
        may_clear(&inode, to, to.saturating_add(len))?;
        let Body::File(content) = &inode.body else {
            return Err(Error::new(ErrorKind::InvalidInput, "only a regular file can be copied from or to"));
        };
        let mut content = content.settled();
        let mut parts = Vec::new();
        let mut covered = len;
        // If one part has to go to a data file, all parts do: the journal takes 64 KiB of a file, not of a
        // part.
        if bytes > INLINE {
            content.inline = INLINE;
            content.inline_gen = Some(live.writer.generation.id);
        }
        for (start, step) in plan {
            let at = start - from;
            match step {
                Step::Share(piece) => match Self::share(&mut live, &piece) {
                    Ok(src) => {
                        parts.push(Part { at, len: piece.len, from: From::There(piece.off, src) });
                    }
                    Err(e) => {
                        // That file cannot have a second name: its bytes are copied, in a separate call.
                        tracing::debug!("cannot share a data file: {e}");
                        if at == 0 {
                            return Ok(Copied { len: 0, short: false });
                        }
                        covered = at;
                        break;
                    }
                },
                Step::Bytes(buf) => {
                    let (from, wrote) = live.place_exact(&inode, &content, ino, to + at, &buf)?;
                    if let From::There(_, Src::Data(own)) = &from {
                        content.own = Some(own.clone());
                    }
                    content.inline += wrote;
                    parts.push(Part { at, len: wrote, from });
                    if wrote < buf.len() as u64 {
                        covered = at + wrote;
                        break;
                    }
                }
            }
        }
        let size = content.size.max(to + covered);
        let time = self.time_of_change(&inode);
        let strip = live.strip(ino, &inode, by, time)?;
        live.drop_capability(ino, &inode, time)?;
        drop((inode, content));
        live.commit(Record::Splice(Splice { ino, off: to, len: covered, size, parts, strip, time }))?;
        Ok(Copied { len: covered, short: covered == 0 })
    }

    fn share(live: &mut super::live::Live, piece: &Piece) -> std::io::Result<Src> {
        match &piece.src {
            Src::Data(file) => Ok(Src::Data(live.writer.link(file)?)),
            other => Ok(other.clone()),
        }
    }
}

struct Copied {
    len: u64,
    short: bool,
}

enum Step {
    Share(Piece),
    Bytes(Vec<u8>),
}

/// Whether a piece could be shared if its generation were frozen.
fn is_open(piece: &Piece) -> bool {
    matches!(&piece.src, Src::Data(file) if !file.is_frozen()) && piece.len >= WORTH_A_LINK
}

fn shareable(piece: &Piece) -> bool {
    match &piece.src {
        Src::Blob(_) => true,
        Src::Journal(_) => false,
        Src::Data(file) => file.is_frozen() && piece.len >= WORTH_A_LINK,
    }
}

impl super::live::Live {
    /// Like [`super::live::Live::place`], but without filling up pages.
    fn place_exact(
        &mut self,
        inode: &super::node::Inode,
        content: &Content,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(From, u64)> {
        // A content without other pieces has no page to fill up.
        let alone = Content { pieces: Pieces::default(), ..content.clone() };
        let placed = self.place(None, inode, &alone, ino, offset, bytes)?;
        Ok((placed.from, placed.len))
    }
}

/// A blob of an image to copy from.
impl std::convert::From<(Digest, u64)> for CopySource<'_> {
    fn from((digest, size): (Digest, u64)) -> Self {
        Self::Blob(BlobRef { digest, size })
    }
}
