//! Blobs of several zstd frames. A new blob copies the frames whose bytes another blob has too.
//!
//! So a large document that changes in a few places is compressed only there. Any zstd reader accepts several
//! frames.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use rustix::fs::{Advice, fadvise};
use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

use super::batch::Batch;
use super::blob::{Blobs, MAX_METADATA};
use super::compress::compress;
use super::spliced::{CopiedRange, SplicedDocument};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Bytes of content in a frame: at least this, and less than twice as much.
const FRAME: usize = 32 << 10;

/// Content between two frames that is shorter than this gets no separate frame.
const TOO_SHORT: usize = FRAME / 4;

/// A separate thread hashes a document of at least this many bytes while it is compressed and written.
const WORTH_A_THREAD: usize = 1 << 20;

/// A frame of a compressed blob: its bytes, and the bytes of its content.
#[derive(Clone, Debug)]
struct Frame {
    packed: Range<usize>,
    content: Range<usize>,
}

/// A document in its stored form.
#[derive(Debug, Default)]
pub struct Packed {
    bytes: Vec<u8>,
    /// Empty, if one of the frames does not state its length.
    frames: Vec<Frame>,
}

impl Packed {
    fn of(bytes: Vec<u8>) -> Self {
        let frames = frames(&bytes);
        Self { bytes, frames }
    }

    /// Adds a frame with the next `content` bytes of the document.
    fn push(&mut self, frame: &[u8], content: usize) {
        let (at, from) = self.frames.last().map_or((0, 0), |last| (last.packed.end, last.content.end));
        self.frames.push(Frame { packed: at..at + frame.len(), content: from..from + content });
        self.bytes.extend_from_slice(frame);
    }

    /// Bytes of memory that it takes.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.frames.capacity() * size_of::<Frame>()
    }
}

/// A document that was stored.
#[derive(Debug)]
pub struct Edited {
    /// Its digest.
    pub digest: Digest,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its stored form, if it was stored just now: the next document may share frames with it.
    pub packed: Option<Packed>,
}

/// The frames of a blob; empty if one of them does not state its length.
fn frames(packed: &[u8]) -> Vec<Frame> {
    let mut found = Vec::new();
    let (mut at, mut content) = (0, 0);
    while at < packed.len() {
        let rest = &packed[at..];
        let Ok(len) = find_frame_compressed_size(rest) else { return Vec::new() };
        // Skippable frames have no content.
        let Ok(Some(size)) = get_frame_content_size(rest) else { return Vec::new() };
        let Ok(size) = usize::try_from(size) else { return Vec::new() };
        found.push(Frame { packed: at..at + len, content: content..content + size });
        at += len;
        content += size;
    }
    found
}

/// Compresses `text` in frames and copies the frames of `old` that have the same content. It checks their
/// content unless they are `known` to be right: otherwise a frame damaged on the disk would damage one blob
/// after the other.
fn pack(text: &[u8], old: &Packed, known: bool, taken: &[CopiedRange]) -> io::Result<Packed> {
    let mut out = Packed::default();
    out.bytes.reserve(old.bytes.len() + TOO_SHORT);
    out.frames.reserve(old.frames.len());
    let mut done = 0;
    let mut stretches = taken.iter().peekable();
    for frame in &old.frames {
        let Range { start, end } = frame.content;
        while stretches.next_if(|taken| taken.from + taken.len <= start).is_some() {}
        let Some(taken) = stretches.peek() else { break };
        if start == end || taken.from > start || taken.from + taken.len < end {
            continue;
        }
        let at = taken.at + (start - taken.from);
        // Bytes too few for a frame are compressed together with the bytes after them.
        let short = at > done && at - done < TOO_SHORT;
        if at < done || short {
            continue;
        }
        let content = &text[at..at + (end - start)];
        let right = |frame| zstd::bulk::decompress(frame, end - start).is_ok_and(|found| found == content);
        if !known && !right(&old.bytes[frame.packed.clone()]) {
            continue;
        }
        fill(&mut out, &text[done..at])?;
        out.push(&old.bytes[frame.packed.clone()], end - start);
        done = at + (end - start);
    }
    if done < text.len() || text.is_empty() {
        fill(&mut out, &text[done..])?;
    }
    Ok(out)
}

fn fill(out: &mut Packed, text: &[u8]) -> io::Result<()> {
    let pieces = (text.len() / FRAME).max(1);
    for piece in 0..pieces {
        let bounds = text.len() * piece / pieces..text.len() * (piece + 1) / pieces;
        if !bounds.is_empty() || out.bytes.is_empty() {
            let content = bounds.len();
            out.push(&compress(&text[bounds])?, content);
        }
    }
    Ok(())
}

impl Blobs {
    /// Reads stretches of a stored document and decompresses only the frames that hold them, which `packed`
    /// may name. The stretches are sorted. The result is not checked: the caller compares it with what it
    /// should be. A stretch after the end is empty.
    pub fn read_stretches(
        &self,
        digest: &Digest,
        packed: Option<&Packed>,
        stretches: &[Range<usize>],
    ) -> Result<Vec<Vec<u8>>> {
        if stretches.is_empty() {
            return Ok(Vec::new());
        }
        if packed.is_some()
            && let Ok(read) = self.read_stretches_in(digest, packed, stretches)
        {
            return Ok(read);
        }
        // Its stored form may have changed since.
        self.read_stretches_in(digest, None, stretches)
    }

    fn read_stretches_in(
        &self,
        digest: &Digest,
        packed: Option<&Packed>,
        stretches: &[Range<usize>],
    ) -> Result<Vec<Vec<u8>>> {
        let path = self.path(digest);
        let failed = |e| Error::io(e, format!("cannot read blob {digest}"));
        let own;
        let (packed, file) = if let Some(packed) = packed {
            (packed, Some(File::open(&path).map_err(failed)?))
        } else {
            own = Packed::of(std::fs::read(&path).map_err(failed)?);
            (&own, None)
        };
        let mut frames = &packed.frames[..];
        if frames.iter().any(|frame| frame.content.len() as u64 > MAX_METADATA) {
            frames = &[];
        }
        let mut read = vec![Vec::new(); stretches.len()];
        if frames.is_empty() {
            let whole = self.read_metadata(digest)?;
            for (bytes, stretch) in read.iter_mut().zip(stretches) {
                bytes.extend_from_slice(whole.get(stretch.clone()).unwrap_or_default());
            }
            return Ok(read);
        }
        let mut needed = Vec::new();
        let mut first = 0;
        for frame in frames {
            while stretches.get(first).is_some_and(|stretch| stretch.end <= frame.content.start) {
                first += 1;
            }
            let held =
                stretches[first..].iter().take_while(|stretch| stretch.start < frame.content.end).count();
            if held > 0 {
                needed.push((frame, first..first + held));
            }
        }
        if let Some(file) = &file {
            for (frame, _) in &needed {
                // All requests start at once, so that there is one wait.
                let len = NonZeroU64::new(frame.packed.len() as u64);
                let _ = fadvise(file, frame.packed.start as u64, len, Advice::WillNeed);
            }
        }
        for (Frame { packed: place, content }, held) in needed {
            let frame = match &file {
                None => Cow::Borrowed(&packed.bytes[place.clone()]),
                Some(file) => {
                    let mut bytes = vec![0; place.len()];
                    file.read_exact_at(&mut bytes, place.start as u64).map_err(failed)?;
                    Cow::Owned(bytes)
                }
            };
            let bytes = zstd::bulk::decompress(&frame, content.len()).map_err(failed)?;
            for (read, stretch) in read[held.clone()].iter_mut().zip(&stretches[held]) {
                let (from, to) = (stretch.start.max(content.start), stretch.end.min(content.end));
                if from < to {
                    let part = bytes.get(from - content.start..to - content.start);
                    read.extend_from_slice(part.unwrap_or_default());
                }
            }
        }
        Ok(read)
    }
}

impl Batch<'_> {
    /// Stores a document that is made from `base`, whose content the caller has verified. `packed` is that
    /// blob in the form in which this program stored it, if it is known.
    pub fn put_edited(
        &self,
        draft: &SplicedDocument<'_>,
        base: Option<(&Digest, Option<&Packed>)>,
    ) -> Result<Edited> {
        let edited = match base {
            Some((base, packed)) if draft.len() >= WORTH_A_THREAD => self.put_large(draft, base, packed)?,
            base => {
                let bytes = draft.bytes();
                let digest = Digest::of(&bytes);
                let blobs = self.store().blobs();
                let mut stored = None;
                if !blobs.holds(&digest, &bytes) {
                    let packed = self.pack_edited(draft, &bytes, base)?;
                    blobs.put_compressed(&digest, &packed.bytes)?;
                    stored = Some(packed);
                }
                Edited { digest, bytes, packed: stored }
            }
        };
        self.require(edited.digest);
        Ok(edited)
    }

    /// Does the same, but computes the digest while it writes the document under a temporary name.
    fn put_large(
        &self,
        draft: &SplicedDocument<'_>,
        base: &Digest,
        packed: Option<&Packed>,
    ) -> Result<Edited> {
        let blobs = self.store().blobs();
        let (begun, hashed) = (AtomicBool::new(false), OnceLock::new());
        let written = rayon::in_place_scope(|scope| -> Result<_> {
            // Offered to two threads: one of them may be about to run on this core, and wait for it.
            for _ in 0..2 {
                scope.spawn(|_| {
                    if !begun.swap(true, Ordering::Relaxed) {
                        _ = hashed.set(draft.digest());
                    }
                });
            }
            let bytes = draft.bytes();
            let packed = self.pack_edited(draft, &bytes, Some((base, packed)))?;
            // The disk is free now: hashing takes longer, and the commit would wait for the disk.
            let temp = blobs.write_synced(base, &packed.bytes).map_err(|e| {
                let near = blobs.path(base);
                Error::io(e, format!("cannot write a blob next to {}", near.display()))
            })?;
            Ok((bytes, packed, temp))
        });
        let (bytes, packed, temp) = written?;
        let digest = hashed.into_inner().unwrap_or_else(|| draft.digest());
        if blobs.holds(&digest, &bytes) {
            blobs.discard(&temp);
            // Its stored form may be a different one.
            return Ok(Edited { digest, bytes, packed: None });
        }
        blobs.name(&temp, &digest).inspect_err(|_| blobs.discard(&temp))?;
        Ok(Edited { digest, bytes, packed: Some(packed) })
    }

    /// Returns the stored form of a document's blob, if its frames match this content.
    pub fn packed_of(&self, digest: &Digest, content: &[u8]) -> Option<Packed> {
        let packed = self.packed(digest);
        let right = |frame: &Frame| {
            // The length is checked first: a frame may claim to hold any amount.
            let Some(wanted) = content.get(frame.content.clone()) else { return false };
            let found = zstd::bulk::decompress(&packed.bytes[frame.packed.clone()], wanted.len());
            found.is_ok_and(|found| found == wanted)
        };
        let whole = packed.frames.last().is_some_and(|last| last.content.end == content.len());
        (whole && packed.frames.par_iter().all(right)).then_some(packed)
    }

    /// Returns a blob in its stored form. If that fails, the document only takes longer.
    fn packed(&self, digest: &Digest) -> Packed {
        Packed::of(std::fs::read(self.store().blobs().path(digest)).unwrap_or_default())
    }

    fn pack_edited(
        &self,
        draft: &SplicedDocument<'_>,
        bytes: &[u8],
        base: Option<(&Digest, Option<&Packed>)>,
    ) -> Result<Packed> {
        let blobs = self.store().blobs();
        let read;
        let (old, known) = match base {
            Some((_, Some(packed))) => (packed, true),
            other => {
                read = other.map(|(base, _)| self.packed(base)).unwrap_or_default();
                (&read, false)
            }
        };
        pack(bytes, old, known, &draft.taken())
            .map_err(|e| Error::io(e, format!("cannot compress a blob for {}", blobs.root().display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Size, Store};

    fn lines(count: usize) -> Vec<u8> {
        (0..count).flat_map(|n| format!("{n} {}\n", Digest::of(&n.to_le_bytes())).into_bytes()).collect()
    }

    /// A document that is the start of `base` and some more bytes.
    fn longer<'b>(base: &'b [u8], more: &[u8]) -> SplicedDocument<'b> {
        let mut draft = SplicedDocument::of(base);
        draft.take(0, base.len());
        draft.put(more);
        draft
    }

    fn new(text: &[u8]) -> SplicedDocument<'static> {
        let mut draft = SplicedDocument::of(b"");
        draft.put(text);
        draft
    }

    #[test]
    fn only_frames_that_changed_are_compressed_again() {
        let old = lines(20_000);
        let packed = pack(&old, &Packed::default(), false, &[]).unwrap();
        assert_eq!(zstd::decode_all(&packed.bytes[..]).unwrap(), old);
        assert!(packed.frames.len() > 8);
        let mut draft = SplicedDocument::of(&old);
        draft.put(b"at the start");
        draft.take(0, 700_000);
        draft.put(b"a few bytes more than that");
        draft.take(700_010, old.len() - 700_010);
        let again = pack(&draft.bytes(), &packed, false, &draft.taken()).unwrap();
        assert_eq!(zstd::decode_all(&again.bytes[..]).unwrap(), draft.bytes());
        let known: Vec<&[u8]> =
            packed.frames.iter().map(|frame| &packed.bytes[frame.packed.clone()]).collect();
        let kept = again.frames.iter().filter(|f| known.contains(&&again.bytes[f.packed.clone()])).count();
        assert!(kept + 3 >= known.len(), "{kept} of {} frames were taken over", known.len());
        let end = draft.len();
        assert!(again.frames.iter().all(|f| f.content.len() >= TOO_SHORT || f.content.end == end));
        // Compares the positions of frames by their bytes.
        let told = |frames: &[Frame]| {
            frames.iter().map(|f| (f.packed.clone(), f.content.clone())).collect::<Vec<_>>()
        };
        assert_eq!(told(&again.frames), told(&frames(&again.bytes)));
    }

    #[test]
    fn stretches_are_read_back_wherever_frames_begin() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let base = lines(20_000);
        let batch = store.begin();
        let first = batch.put_edited(&new(&base), None).unwrap();
        let edited = batch.put_edited(&longer(&base, b"and more"), Some((&first.digest, None))).unwrap();
        let (digest, text, packed) = (edited.digest, edited.bytes, edited.packed.unwrap());
        assert_eq!(text, [&base[..], b"and more"].concat());
        let end = text.len();
        let stretches = [0..10, FRAME - 5..FRAME + 5, 300_000..700_000, 700_000..700_001, end - 3..end];
        let expected: Vec<&[u8]> = stretches.iter().map(|stretch| &text[stretch.clone()]).collect();
        for packed in [None, Some(&packed)] {
            assert_eq!(store.blobs().read_stretches(&digest, packed, &stretches).unwrap(), expected);
        }
        std::fs::write(store.blobs().path(&digest), zstd::encode_all(&text[..], 3).unwrap()).unwrap();
        assert_eq!(store.blobs().read_stretches(&digest, None, &stretches).unwrap(), expected);
        assert_eq!(store.blobs().read_stretches(&digest, Some(&packed), &stretches).unwrap(), expected);
    }

    #[test]
    fn a_large_document_is_stored_once_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let batch = store.begin();
        let old = lines(20_000);
        assert!(old.len() > WORTH_A_THREAD);
        let base = batch.put_edited(&new(&old), None).unwrap();
        let draft = longer(&old, b"and more");
        let mut known: Option<Packed> = None;
        for _ in 0..3 {
            let edited = batch.put_edited(&draft, Some((&base.digest, known.as_ref()))).unwrap();
            assert_eq!((edited.digest, &edited.bytes), (draft.digest(), &draft.bytes()));
            let size = Size::Exact(draft.len() as u64);
            assert_eq!(store.blobs().read(&edited.digest, size).unwrap(), draft.bytes());
            known = known.or(edited.packed);
        }
        let (mut blobs, mut odd) = (0, Vec::new());
        store.blobs().for_each(&mut |_, _| blobs += 1, &mut |path| odd.push(path)).unwrap();
        assert_eq!((blobs, odd), (2, Vec::new()));
    }

    #[test]
    fn a_document_is_stored_whatever_its_base_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let batch = store.begin();
        let missing = Digest::of(b"nowhere");
        for text in [lines(20_000), lines(5000), Vec::new(), b"short".to_vec()] {
            let digest = batch.put_edited(&longer(&text, b""), Some((&missing, None))).unwrap().digest;
            assert_eq!(store.blobs().read(&digest, Size::Exact(text.len() as u64)).unwrap(), text);
            // The form that pf writes, without the length of its content.
            let theirs = zstd::encode_all(&text[..], 3).unwrap();
            std::fs::write(store.blobs().path(&digest), theirs).unwrap();
            let draft = longer(&text, b"and more");
            let digest = batch.put_edited(&draft, Some((&digest, None))).unwrap().digest;
            assert_eq!(store.blobs().read(&digest, Size::Exact(draft.len() as u64)).unwrap(), draft.bytes());
        }
    }
}
