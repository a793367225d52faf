//! Copies a range of one file into another, without touching the bytes if possible.

use std::sync::Arc;

use super::caller::Caller;
use super::files::{Files, SetAttr, SetTime};
use super::making::{Making, Origin, Source};
use super::policy::may_clear;
use super::store::{INLINE, MAX_SIZE, clear_suid, drop_capability, file_of, store_bytes};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::core::Core;
use crate::fork::errors::posix;
use crate::fork::extents::{self, BlobRef, Piece, Pieces, Src};
use crate::fork::ino::Ino;
use crate::fork::inode::{Attr, Content, Inode};
use crate::fork::live::Live;
use crate::fork::record::{From, Part, Record, Splice};
use crate::fork::snapshot::Snapshots;
use crate::layers::world::Kind;
use crate::sync::wait;
use crate::tree::NodeId;

/// The source of a copy.
#[derive(Clone, Debug)]
pub enum CopySource<'a> {
    /// A file of a fork, maybe the same one.
    Fork(&'a Files, Ino),
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
                fork.core.settle(*ino)?;
                let live = fork.core.live.read();
                let inode = live.inode_or_stale(*ino)?;
                Ok((file_of(&inode)?.settled(), live.state.attr(*ino, &inode).mtime))
            }
        }
    }
}

/// Copies up to `len` bytes and returns the number copied. After a short copy the caller calls it again. Blobs and frozen
/// data are shared, other bytes are copied.
pub(super) fn copy_range(
    files: &Files,
    (from, from_offset): (&CopySource<'_>, u64),
    (ino, offset): (Ino, u64),
    len: u64,
    by: impl Caller,
) -> Result<u64> {
    let core = &*files.core;
    core.may_write()?;
    let origin = origin(files, from, ino, from_offset, offset)?;
    let (mut source, mut mtime) = from.content()?;
    if let CopySource::Fork(fork, _) = from
        && !std::ptr::eq(*fork, files)
        && fork.core.may_write().is_ok()
        && source
            .pieces
            .range(from_offset, from_offset.saturating_add(len))
            .into_iter()
            .any(|(_, piece)| is_open(&piece))
    {
        // Its changes since its last seal are shared as well: frozen data never changes.
        Snapshots::of(&fork.core).freeze()?;
        (source, mtime) = from.content()?;
    }
    let ends = from_offset.saturating_add(len);
    if source.pieces.range(from_offset, ends).iter().any(|(_, piece)| !matches!(piece.src, Src::Blob(_))) {
        // Sharing a data file gives it a second name, on the disk.
        wait::required()?;
    }
    let whole = len >= source.size;
    let len = len.min(source.size.saturating_sub(from_offset));
    let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE);
    let end =
        end.ok_or_else(|| posix(Posix::TooLarge, "the file would be larger than a fork's file can be"))?;
    if let CopySource::Fork(fork, other) = from
        && std::ptr::eq(*fork, files)
        && *other == ino
        && offset < from_offset + len
        && from_offset < end
    {
        return Err(Error::new(ErrorKind::InvalidInput, "the source and the target of the copy overlap"));
    }
    core.settle(ino)?;
    let (mut done, mut shares) = (0, true);
    while done < len {
        let from = from_offset + done;
        let copied = copy_some(core, &source, (from, len - done), ino, offset + done, by, shares)?;
        // A piece that cannot be shared is read first, without the fork's lock.
        shares = copied.len > 0;
        done += copied.len;
        if copied.short {
            break;
        }
    }
    if let Some(origin) = origin.filter(|_| whole && done == source.size) {
        take_time(files, ino, &origin, mtime, done)?;
    }
    Ok(done)
}

/// Copies as many pieces as one record takes. With `shares`, copies nothing if the first piece cannot be shared. The caller
/// then calls again without `shares`, which reads the piece.
fn copy_some(
    core: &Core,
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
            Src::Blob(blob) => core.shared.reader.is_held_back(&blob.digest)?,
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
        extents::fill(&piece, 0, &mut buf, &mut |blob, off, buf| core.read_blob(blob, off, buf))?;
        bytes += take;
        at = start + take;
        plan.push((start, Step::Bytes(buf)));
        if take < piece.len {
            cut = at;
            break;
        }
    }
    let len = cut.max(at) - from;
    let mut live = core.live.write();
    live.writable()?;
    let inode = live.inode_or_stale(ino)?;
    may_clear(&inode, to, to.saturating_add(len))?;
    let mut content = file_of(&inode)?.settled();
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
            Step::Share(piece) => match share(&mut live, &piece) {
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
                let (from, wrote) = store_exactly(&mut live, &inode, &content, ino, to + at, &buf)?;
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
    let time = core.time_of_change(&inode);
    let clears_suid = clear_suid(&mut live, ino, &inode, by, time)?;
    drop_capability(&mut live, ino, &inode, time)?;
    drop((inode, content));
    live.commit(Record::Splice(Splice { ino, off: to, len: covered, size, parts, clears_suid, time }))?;
    Ok(Copied { len: covered, short: covered == 0 })
}

fn share(live: &mut Live, piece: &Piece) -> std::io::Result<Src> {
    match &piece.src {
        Src::Data(file) => Ok(Src::Data(live.writer.link(file)?)),
        other => Ok(other.clone()),
    }
}

/// Returns the source of content that is copied into a file, if the file keeps its time.
fn origin(
    files: &Files,
    from: &CopySource<'_>,
    ino: Ino,
    from_offset: u64,
    offset: u64,
) -> Result<Option<Origin>> {
    if from_offset != 0 || offset != 0 || !files.is_being_made() {
        return Ok(None);
    }
    let own = {
        let live = files.core.live.read();
        if live.image.is_some()
            || live.inode(ino).is_none_or(|inode| inode.content().is_none_or(|c| c.known_size() > 0))
        {
            return Ok(None);
        }
        live.state.path(ino)
    };
    let (source, path) = match from {
        CopySource::Fork(fork, _) if std::ptr::eq(*fork, files) => return Ok(None),
        CopySource::Fork(fork, other) => {
            let live = fork.core.live.read();
            let inode = live.inode_or_stale(*other)?;
            // A file with several names matches by any of them.
            let names = inode.links.iter().filter_map(|(folder, name)| {
                let folder = live.state.path(*folder)?;
                Some(if folder.is_empty() { name.to_vec() } else { [&folder[..], name].join(&b'/') })
            });
            let path = names.into_iter().find(|path| own.as_ref() == Some(path));
            (Source::Fork(Arc::downgrade(&fork.core)), path)
        }
        CopySource::Image { image, path, .. } => (Source::Image(*image), Some(path.to_vec())),
        CopySource::Blob(_) => return Ok(None),
    };
    if own.is_none() || own != path {
        return Ok(None);
    }
    let mut making = files.making.lock();
    match &*making {
        Making::Begun => *making = Making::From(source.clone()),
        Making::From(first) if first.is(&source) => {}
        Making::From(_) | Making::No => return Ok(None),
    }
    Ok(Some(Origin(source)))
}

/// Sets a file's time to that of its source, if all `size` bytes were copied.
fn take_time(files: &Files, ino: Ino, origin: &Origin, mtime: i64, size: u64) -> Result<()> {
    let same = matches!(&*files.making.lock(), Making::From(source) if source.is(&origin.0));
    let as_copied = files.getattr(ino).is_ok_and(|attr| attr.size == size);
    if same && as_copied {
        set_mtime(files, ino, mtime)?;
    }
    Ok(())
}

/// See [`Files::prepare_to_take_times`].
pub(super) fn prepare_to_take_times(files: &Files) -> Result<()> {
    let image = match &*files.making.lock() {
        Making::From(Source::Image(image)) => *image,
        _ => return Ok(()),
    };
    let reader = &files.core.shared.reader;
    match reader.tree(&image).and_then(|_| reader.times(&image)) {
        Err(error) if error.kind() == ErrorKind::Waits => Err(error),
        // Without the image the time is not taken.
        _ => Ok(()),
    }
}

/// See [`Files::take_time_of_empty`].
pub(super) fn take_time_of_empty(files: &Files, made: &Attr) -> Result<Option<Attr>> {
    if made.kind != Kind::File {
        return Ok(None);
    }
    let source = match &*files.making.lock() {
        Making::From(source) => source.clone(),
        Making::No | Making::Begun => return Ok(None),
    };
    let Some(path) = files.core.live.read().state.path(made.ino) else { return Ok(None) };
    let found = match source {
        Source::Fork(fork) => fork.upgrade().and_then(|fork| {
            let ino = fork.live.read().state.resolve(&path)?;
            fork.settle(ino).ok()?;
            let live = fork.live.read();
            let attr = live.attr_of(ino, &*live.inode_or_stale(ino).ok()?);
            (attr.kind == Kind::File && attr.size == 0).then_some(attr.mtime)
        }),
        Source::Image(image) => path.strip_prefix(b"world/fs/").and_then(|path| {
            let reader = &files.core.shared.reader;
            let tree = reader.tree(&image).ok()?;
            let node: NodeId = tree.resolve(path)?;
            let empty = tree.kind(node) == Kind::File && tree.size(node) == 0;
            empty.then(|| Some(tree.shown_mtime_ns(node, &reader.times(&image).ok()?.nodes)))?
        }),
    };
    found.map(|mtime| set_mtime(files, made.ino, mtime)).transpose()
}

fn set_mtime(files: &Files, ino: Ino, mtime: i64) -> Result<Attr> {
    files.setattr(ino, &SetAttr { mtime: Some(SetTime::At(mtime)), ..SetAttr::default() })
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

/// Like [`store_bytes`], but without filling up pages.
fn store_exactly(
    live: &mut Live,
    inode: &Inode,
    content: &Content,
    ino: Ino,
    offset: u64,
    bytes: &[u8],
) -> Result<(From, u64)> {
    // A content without other pieces has no page to fill up.
    let alone = Content { pieces: Pieces::default(), ..content.clone() };
    let stored = store_bytes(live, None, inode, &alone, ino, offset, bytes)?;
    Ok((stored.from, stored.len))
}

/// A blob of an image to copy from.
impl std::convert::From<(Digest, u64)> for CopySource<'_> {
    fn from((digest, size): (Digest, u64)) -> Self {
        Self::Blob(BlobRef { digest, size })
    }
}
