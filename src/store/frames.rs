//! Blobs of several zstd frames, of which those are taken over as they are whose bytes another blob has too.
//!
//! A large document that changes in a few places is then compressed only there. Any zstd reader takes several frames.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::thread;

use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

use super::write::compress;
use super::{Batch, Blobs, Digest, MAX_METADATA};
use crate::error::{Error, Result};

/// Bytes of content in a frame: at least this, and less than twice as much.
const FRAME: usize = 32 << 10;

/// Content between two frames that is shorter than this is not worth a frame of its own.
const TOO_SHORT: usize = FRAME / 4;

/// A document of this many bytes is hashed by a thread of its own while it is compressed and written.
const WORTH_A_THREAD: usize = 1 << 20;

/// A stretch that a document has in common with the one it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Where it starts in the new document.
    pub at: usize,
    /// Where it starts in the old one.
    pub from: usize,
    /// Its length in bytes.
    pub len: usize,
}

/// A frame of a compressed blob: its bytes, and those of the content.
struct Frame {
    packed: Range<usize>,
    content: Range<usize>,
}

/// The frames of a blob; none if one of them does not state its length.
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

/// Compresses `text` in frames, taking over those of `packed` whose content it has.
fn pack(text: &[u8], packed: &[u8], taken: &[Taken]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(packed.len() + TOO_SHORT);
    let mut done = 0;
    let mut stretches = taken.iter().peekable();
    for frame in frames(packed) {
        let Range { start, end } = frame.content;
        while stretches.next_if(|taken| taken.from + taken.len <= start).is_some() {}
        let Some(taken) = stretches.peek() else { break };
        if start == end || taken.from > start || taken.from + taken.len < end {
            continue;
        }
        let at = taken.at + (start - taken.from);
        // What is left in between goes along with what comes behind it.
        let short = at > done && at - done < TOO_SHORT;
        if at < done || short {
            continue;
        }
        fill(&mut out, &text[done..at])?;
        out.extend_from_slice(&packed[frame.packed]);
        done = at + (end - start);
    }
    if done < text.len() || text.is_empty() {
        fill(&mut out, &text[done..])?;
    }
    Ok(out)
}

fn fill(out: &mut Vec<u8>, text: &[u8]) -> io::Result<()> {
    let pieces = (text.len() / FRAME).max(1);
    for piece in 0..pieces {
        let bounds = text.len() * piece / pieces..text.len() * (piece + 1) / pieces;
        if !bounds.is_empty() || out.is_empty() {
            out.extend_from_slice(&compress(&text[bounds])?);
        }
    }
    Ok(())
}

impl Blobs {
    /// Reads stretches of a document as it is stored, decompressing only the frames that hold them. They are sorted. What
    /// is read is not checked: it is for finding out whether it is what it should be. A stretch behind the end is empty.
    pub fn read_stretches(&self, digest: &Digest, stretches: &[Range<usize>]) -> Result<Vec<Vec<u8>>> {
        let failed = |e| Error::io(e, format!("cannot read blob {digest}"));
        if stretches.is_empty() {
            return Ok(Vec::new());
        }
        let packed = std::fs::read(self.path(digest)).map_err(failed)?;
        let mut frames = frames(&packed);
        if frames.iter().any(|frame| frame.content.len() as u64 > MAX_METADATA) {
            frames.clear();
        }
        let mut read = vec![Vec::new(); stretches.len()];
        if frames.is_empty() {
            let whole = self.read_metadata(digest)?;
            for (bytes, stretch) in read.iter_mut().zip(stretches) {
                bytes.extend_from_slice(whole.get(stretch.clone()).unwrap_or_default());
            }
            return Ok(read);
        }
        let mut first = 0;
        for Frame { packed: place, content } in frames {
            while stretches.get(first).is_some_and(|stretch| stretch.end <= content.start) {
                first += 1;
            }
            let held = stretches[first..].iter().take_while(|stretch| stretch.start < content.end).count();
            if held == 0 {
                continue;
            }
            let bytes = zstd::bulk::decompress(&packed[place], content.len()).map_err(failed)?;
            for (read, stretch) in read[first..].iter_mut().zip(&stretches[first..first + held]) {
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
    /// Stores a document that has stretches in common with another blob, whose content the caller has verified. They
    /// are in order, in both.
    pub fn put_edited(&self, text: &[u8], base: Option<&Digest>, taken: &[Taken]) -> Result<Digest> {
        let digest = match base {
            Some(base) if text.len() >= WORTH_A_THREAD => self.put_large(text, base, taken)?,
            base => {
                let digest = Digest::of(text);
                let blobs = self.store().blobs();
                if !blobs.holds(&digest, text) {
                    let packed = self.pack_edited(text, base, taken)?;
                    blobs.put_compressed(&digest, &packed)?;
                }
                digest
            }
        };
        self.rely_on(digest);
        Ok(digest)
    }

    /// The same with the digest found out while the document is written, under a temporary name.
    fn put_large(&self, text: &[u8], base: &Digest, taken: &[Taken]) -> Result<Digest> {
        let blobs = self.store().blobs();
        let (digest, temp) = thread::scope(|scope| {
            let hashing = scope.spawn(|| Digest::of(text));
            let temp = self.pack_edited(text, Some(base), taken).and_then(|packed| {
                let written = blobs.write_temp(base, &packed).and_then(|temp| {
                    // The disk has time for it now: hashing takes longer, and the commit would wait for it.
                    let synced = File::open(&temp).and_then(|file| blobs.io().sync_file(&temp, &file));
                    synced.inspect_err(|_| blobs.discard(&temp))?;
                    Ok(temp)
                });
                written.map_err(|e| {
                    let beside = blobs.path(base);
                    Error::io(e, format!("cannot write a blob beside {}", beside.display()))
                })
            });
            (hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), temp)
        });
        let temp = temp?;
        if blobs.holds(&digest, text) {
            blobs.discard(&temp);
        } else {
            blobs.name(&temp, &digest).inspect_err(|_| blobs.discard(&temp))?;
        }
        Ok(digest)
    }

    fn pack_edited(&self, text: &[u8], base: Option<&Digest>, taken: &[Taken]) -> Result<Vec<u8>> {
        let blobs = self.store().blobs();
        // Without the old frames it only takes longer.
        let packed = base.and_then(|base| std::fs::read(blobs.path(base)).ok()).unwrap_or_default();
        let ordered = taken.is_sorted_by(|a, b| a.at + a.len <= b.at && a.from + a.len <= b.from);
        pack(text, &packed, if ordered { taken } else { &[] })
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

    #[test]
    fn only_frames_that_changed_are_compressed_again() {
        let old = lines(20_000);
        let packed = pack(&old, &[], &[]).unwrap();
        assert_eq!(zstd::decode_all(&packed[..]).unwrap(), old);
        assert!(frames(&packed).len() > 8);
        let mut new = old.clone();
        new.splice(700_000..700_010, *b"a few bytes more than that");
        new.splice(0..0, *b"at the start");
        let taken = [
            Taken { at: 12, from: 0, len: 700_000 },
            Taken { at: 700_038, from: 700_010, len: old.len() - 700_010 },
        ];
        let again = pack(&new, &packed, &taken).unwrap();
        assert_eq!(zstd::decode_all(&again[..]).unwrap(), new);
        let known: Vec<&[u8]> = frames(&packed).into_iter().map(|frame| &packed[frame.packed]).collect();
        let kept = frames(&again).into_iter().filter(|f| known.contains(&&again[f.packed.clone()])).count();
        assert!(kept + 3 >= known.len(), "{kept} of {} frames were taken over", known.len());
        assert!(frames(&again).iter().all(|f| f.content.len() >= TOO_SHORT || f.content.end == new.len()));
    }

    #[test]
    fn stretches_are_read_back_wherever_frames_begin() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let text = lines(20_000);
        let digest = store.begin().put_edited(&text, None, &[]).unwrap();
        let end = text.len();
        let stretches = [0..10, FRAME - 5..FRAME + 5, 300_000..700_000, 700_000..700_001, end - 3..end];
        let expected: Vec<&[u8]> = stretches.iter().map(|stretch| &text[stretch.clone()]).collect();
        assert_eq!(store.blobs().read_stretches(&digest, &stretches).unwrap(), expected);
        std::fs::write(store.blobs().path(&digest), zstd::encode_all(&text[..], 3).unwrap()).unwrap();
        assert_eq!(store.blobs().read_stretches(&digest, &stretches).unwrap(), expected);
    }

    #[test]
    fn a_large_document_is_stored_once_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let batch = store.begin();
        let old = lines(20_000);
        assert!(old.len() > WORTH_A_THREAD);
        let base = batch.put_edited(&old, None, &[]).unwrap();
        let new = [&old[..], b"and more"].concat();
        let taken = [Taken { at: 0, from: 0, len: old.len() }];
        for _ in 0..2 {
            let digest = batch.put_edited(&new, Some(&base), &taken).unwrap();
            assert_eq!(digest, Digest::of(&new));
            assert_eq!(store.blobs().read(&digest, Size::Exact(new.len() as u64)).unwrap(), new);
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
        for text in [lines(5000), Vec::new(), b"short".to_vec()] {
            let whole = [Taken { at: 0, from: 0, len: text.len() }];
            let digest = batch.put_edited(&text, Some(&missing), &whole).unwrap();
            assert_eq!(store.blobs().read(&digest, Size::Exact(text.len() as u64)).unwrap(), text);
            // As pf writes it, without the length of its content.
            let theirs = zstd::encode_all(&text[..], 3).unwrap();
            std::fs::write(store.blobs().path(&digest), theirs).unwrap();
            let longer = [&text[..], b"and more"].concat();
            let digest = batch.put_edited(&longer, Some(&digest), &whole).unwrap();
            assert_eq!(store.blobs().read(&digest, Size::Exact(longer.len() as u64)).unwrap(), longer);
        }
    }
}
