//! Large blobs in the seekable zstd form: frames of their own, and a table of them at the end.
//!
//! ```text
//! frame… │ 0x184D2A5E u32 │ bytes that follow u32 │ entry… │ frames u32 │ descriptor u8 │ 0x8F92EAB1 u32
//! entry: compressed bytes u32 │ bytes u32 │ with bit 7 of the descriptor a checksum u32
//! ```
//! Little-endian; the format of zstd's `contrib/seekable_format`. The table is in a skippable frame, so that the whole is
//! a valid zstd stream that every reader accepts. A table gives the positions of frames and does not prove their content:
//! a reader that uses it checks what it reads.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::Digest as _;

use super::batch::Batch;
use super::blob::Blobs;
use super::blob_error::{BlobError, Size};
use super::compress::compress;
use super::decode::decode_frame;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// Bytes of a payload in one frame.
pub const FRAME: usize = 1 << 20;

/// Frames of more bytes than this are not read separately: a frame is held in memory.
const MAX_FRAME: u32 = 64 << 20;

const SKIPPABLE: u32 = 0x184D_2A5E;
const MAGIC: u32 = 0x8F92_EAB1;
const FOOTER: usize = 9;
const CHECKSUMS: u8 = 1 << 7;
const RESERVED: u8 = 0b0111_1100;

/// A frame's place, in the file and in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it starts in the file.
    pub at: u64,
    /// Its bytes in the file.
    pub compressed: u32,
    /// Where its bytes start in the payload.
    pub start: u64,
    /// Its bytes in the payload.
    pub size: u32,
}

/// The positions of a blob's frames, in order and without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeekTable {
    frames: Vec<Frame>,
}

impl SeekTable {
    /// Bytes of the skippable frame that ends a file, by its last [`FOOTER`] bytes; nothing if they are not a
    /// footer.
    fn length(footer: &[u8; FOOTER]) -> Option<u64> {
        let [a, b, c, d, descriptor, magic @ ..] = *footer;
        if u32::from_le_bytes(magic) != MAGIC || descriptor & RESERVED != 0 {
            return None;
        }
        let entry = if descriptor & CHECKSUMS == 0 { 8 } else { 12 };
        Some(8 + u64::from(u32::from_le_bytes([a, b, c, d])) * entry + FOOTER as u64)
    }

    /// Reads the skippable frame at the end of a file of `file` bytes; nothing if it does not fit the file.
    pub fn parse(table: &[u8], file: u64) -> Option<Self> {
        let footer = table.last_chunk::<FOOTER>()?;
        if Self::length(footer)? != table.len() as u64 {
            return None;
        }
        let word = |at: usize| Some(u32::from_le_bytes(table.get(at..at + 4)?.try_into().ok()?));
        if word(0)? != SKIPPABLE || u64::from(word(4)?) != table.len() as u64 - 8 {
            return None;
        }
        let entry = if footer[4] & CHECKSUMS == 0 { 8 } else { 12 };
        let (mut at, mut start) = (0, 0);
        let mut frames = Vec::with_capacity(table.len() / entry);
        for place in (8..table.len() - FOOTER).step_by(entry) {
            let (compressed, size) = (word(place)?, word(place + 4)?);
            frames.push(Frame { at, compressed, start, size });
            at += u64::from(compressed);
            start += u64::from(size);
        }
        (at + table.len() as u64 == file).then_some(Self { frames })
    }

    fn push(&mut self, compressed: u32, size: u32) {
        let (at, start) = self
            .frames
            .last()
            .map_or((0, 0), |last| (last.at + u64::from(last.compressed), last.start + u64::from(last.size)));
        self.frames.push(Frame { at, compressed, start, size });
    }

    /// Writes the skippable frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = self.frames.len() * 8 + FOOTER;
        let mut out = Vec::with_capacity(8 + length);
        out.extend_from_slice(&SKIPPABLE.to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        for frame in &self.frames {
            out.extend_from_slice(&frame.compressed.to_le_bytes());
            out.extend_from_slice(&frame.size.to_le_bytes());
        }
        out.extend_from_slice(&(self.frames.len() as u32).to_le_bytes());
        out.push(0);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out
    }

    /// Bytes of the payload.
    pub fn size(&self) -> u64 {
        self.frames.last().map_or(0, |last| last.start + u64::from(last.size))
    }

    /// The frames, in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The number of the frame that holds a byte of the payload.
    fn holding(&self, offset: u64) -> Option<usize> {
        let after = self.frames.partition_point(|frame| frame.start + u64::from(frame.size) <= offset);
        (after < self.frames.len()).then_some(after)
    }

    fn of(file: &File, length: u64) -> io::Result<Option<Self>> {
        let mut footer = [0; FOOTER];
        let Some(at) = length.checked_sub(FOOTER as u64) else { return Ok(None) };
        file.read_exact_at(&mut footer, at)?;
        let Some(table) = Self::length(&footer).filter(|table| *table <= length) else { return Ok(None) };
        let mut bytes = vec![0; table as usize];
        file.read_exact_at(&mut bytes, length - table)?;
        Ok(Self::parse(&bytes, length))
    }
}

/// A blob whose frames may be copied.
struct Previous {
    file: File,
    table: SeekTable,
    compressed: Vec<u8>,
}

impl Previous {
    fn open(blobs: &Blobs, digest: &Digest) -> Option<Self> {
        let (file, length) = blobs.open(digest).ok()?;
        let table = SeekTable::of(&file, length).ok()??;
        Some(Self { file, table, compressed: Vec::new() })
    }

    /// Returns the compressed form of a stretch, if the blob has exactly that stretch as its frame of that
    /// number. The frame is decompressed and compared: a tenth of the work of compressing, without trust in
    /// the old blob.
    fn take(&mut self, number: usize, stretch: &[u8]) -> Option<&[u8]> {
        let frame = self.table.frames.get(number)?;
        if frame.size as usize != stretch.len() || frame.compressed as usize > stretch.len() + FRAME {
            return None;
        }
        self.compressed.resize(frame.compressed as usize, 0);
        self.file.read_exact_at(&mut self.compressed, frame.at).ok()?;
        let same = decode_frame(&self.compressed, stretch.len()).is_ok_and(|bytes| bytes == stretch);
        same.then_some(&self.compressed)
    }
}

/// Fills a buffer until it is full or the reader ends; returns the bytes read.
fn read_full(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

impl Blobs {
    /// Stores a payload in the seekable form; returns its digest and length. Frames that `previous` has at
    /// the same place are copied without being compressed. Memory stays small for any length.
    pub fn put_seekable(&self, previous: Option<&Digest>, from: &mut dyn Read) -> Result<(Digest, u64)> {
        let failed = |e| Error::io(e, format!("cannot write a blob into {}", self.root().display()));
        // The right shard is known only at the end.
        let (temp, mut file) =
            self.create_temp(&self.root().join("00").join("stream.zst")).map_err(failed)?;
        let mut previous = previous.and_then(|digest| Previous::open(self, digest));
        let mut write = || {
            let mut table = SeekTable::default();
            let mut hasher = sha2::Sha256::new();
            let mut stretch = vec![0; FRAME];
            loop {
                let length = read_full(from, &mut stretch)?;
                if length == 0 && !table.frames.is_empty() {
                    break;
                }
                let stretch = &stretch[..length];
                hasher.update(stretch);
                let taken = previous.as_mut().and_then(|previous| previous.take(table.frames.len(), stretch));
                let written = if let Some(frame) = taken {
                    self.io().write(&temp, &mut file, frame)?;
                    frame.len()
                } else {
                    let frame = compress(stretch)?;
                    self.io().write(&temp, &mut file, &frame)?;
                    frame.len()
                };
                table.push(written as u32, length as u32);
                if length < FRAME {
                    break;
                }
            }
            self.io().write(&temp, &mut file, &table.to_bytes())?;
            Ok((Digest::from_bytes(hasher.finalize().into()), table.size()))
        };
        let stored = write().map_err(failed).and_then(|(digest, length)| {
            // Replaces an existing file: a power cut may have left it in part.
            self.name(&temp, &digest)?;
            Ok((digest, length))
        });
        stored.inspect_err(|_| {
            let _ = self.io().remove(&temp);
        })
    }

    /// Opens a blob of the seekable form for reading ranges of it, once the whole of it has matched its
    /// digest; nothing if it has another form. Takes 48 bytes of memory for each of its frames.
    pub fn open_seekable(&self, digest: &Digest, size: Size) -> Result<Option<Seekable>, BlobError> {
        let (file, length) = self.open(digest)?;
        let failed = |source| BlobError::Io { digest: *digest, source };
        let Some(table) = SeekTable::of(&file, length).map_err(failed)? else { return Ok(None) };
        if table.frames.iter().any(|frame| frame.size > MAX_FRAME || frame.compressed > MAX_FRAME) {
            return Ok(None);
        }
        if let Size::Exact(declared) = size
            && declared != table.size()
        {
            let found = table.size().to_string();
            return Err(BlobError::WrongSize { digest: *digest, declared, found });
        }
        let mut seekable =
            Seekable { digest: *digest, file, checks: Vec::new(), table, last: Mutex::default() };
        let mut hasher = sha2::Sha256::new();
        let mut compressed = Vec::new();
        for frame in seekable.table.frames.clone() {
            let bytes = seekable.decode(&frame, &mut compressed, None)?;
            seekable.checks.push(sha2::Sha256::digest(&compressed).into());
            hasher.update(&bytes);
        }
        let measured = Digest::from_bytes(hasher.finalize().into());
        if measured != *digest {
            return Err(BlobError::Mismatch { digest: *digest, measured });
        }
        Ok(Some(seekable))
    }
}

impl Batch<'_> {
    /// Stores a payload in the seekable form and copies frames from the blob of the file's previous content;
    /// see [`Blobs::put_seekable`].
    pub fn write_seekable(&self, previous: Option<Digest>, from: &mut dyn Read) -> Result<(Digest, u64)> {
        let stored = self.blobs().put_seekable(previous.as_ref(), from)?;
        self.require(stored.0);
        Ok(stored)
    }
}

/// A blob that matched its digest when it was opened, and is read frame by frame.
#[derive(Debug)]
pub struct Seekable {
    digest: Digest,
    file: File,
    table: SeekTable,
    /// The hash of each compressed frame when the whole blob matched.
    checks: Vec<[u8; 32]>,
    /// The frame that was read last: readers ask for less than a frame at a time.
    last: Mutex<Option<(usize, Arc<[u8]>)>>,
}

impl Seekable {
    /// Bytes of the payload.
    pub fn size(&self) -> u64 {
        self.table.size()
    }

    /// Bytes of memory it takes at most.
    pub fn heap_bytes(&self) -> usize {
        let frame = self.table.frames.iter().map(|frame| frame.size).max().unwrap_or(0);
        self.checks.len() * (32 + size_of::<Frame>()) + frame as usize
    }

    /// Reads from the payload; returns how many bytes, less than asked only at its end. Decompresses only the frames
    /// that hold the range, each checked.
    pub fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<usize, BlobError> {
        let mut done = 0;
        while let (false, Some(number)) = (buffer.is_empty(), self.table.holding(offset)) {
            let frame = self.table.frames[number];
            let bytes = self.frame(number, &frame)?;
            let stretch = &bytes[(offset - frame.start) as usize..];
            let n = stretch.len().min(buffer.len());
            buffer[..n].copy_from_slice(&stretch[..n]);
            (offset, done) = (offset + n as u64, done + n);
            buffer = &mut buffer[n..];
        }
        Ok(done)
    }

    fn frame(&self, number: usize, frame: &Frame) -> Result<Arc<[u8]>, BlobError> {
        if let Some((_, bytes)) = self.last.lock().as_ref().filter(|(last, _)| *last == number) {
            return Ok(Arc::clone(bytes));
        }
        let check = self.checks.get(number);
        let bytes: Arc<[u8]> = self.decode(frame, &mut Vec::new(), check)?.into();
        *self.last.lock() = Some((number, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Reads a frame's compressed bytes into `compressed`, checks them if there is a check, and decompresses them.
    fn decode(
        &self,
        frame: &Frame,
        compressed: &mut Vec<u8>,
        check: Option<&[u8; 32]>,
    ) -> Result<Vec<u8>, BlobError> {
        let digest = self.digest;
        compressed.clear();
        compressed.resize(frame.compressed as usize, 0);
        self.file.read_exact_at(compressed, frame.at).map_err(|source| BlobError::Io { digest, source })?;
        if check.is_some_and(|check| sha2::Sha256::digest(&compressed)[..] != check[..]) {
            let reason = format!("its frame at byte {} has changed since it was checked", frame.at);
            return Err(BlobError::Undecodable { digest, reason });
        }
        let bytes = decode_frame(compressed, frame.size as usize)
            .map_err(|reason| BlobError::Undecodable { digest, reason })?;
        if bytes.len() != frame.size as usize {
            let reason = format!("its frame at byte {} has another size than its table says", frame.at);
            return Err(BlobError::Undecodable { digest, reason });
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Store;
    use super::*;
    use proptest::prelude::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        (dir, store)
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut x = seed * 2 + 1;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 60) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn table(store: &Store, digest: &Digest) -> SeekTable {
        let (file, length) = store.blobs().open(digest).unwrap();
        SeekTable::of(&file, length).unwrap().unwrap()
    }

    #[test]
    fn the_real_pf_and_every_zstd_reads_it_and_the_table_says_where_frames_lie() {
        let (dir, store) = store();
        for length in [0, 1, FRAME - 1, FRAME, FRAME + 1, 5 * FRAME + 77] {
            let payload = noise(length as u64, length);
            let (digest, stored) = store.blobs().put_seekable(None, &mut &payload[..]).unwrap();
            assert_eq!((digest, stored), (Digest::of(&payload), length as u64));
            let theirs = pf_core::store::PfStore::open(dir.path()).unwrap();
            let cid = pf_core::digest::Digest256::parse(&digest.to_string()).unwrap();
            assert!(theirs.blobs().get(&cid).unwrap() == payload);
            for size in [Size::Exact(length as u64), Size::AtMost(1 << 30)] {
                assert!(store.blobs().read(&digest, size).unwrap() == payload);
            }
            let table = table(&store, &digest);
            assert_eq!((table.size(), table.frames().len()), (length as u64, length.div_ceil(FRAME).max(1)));
            let file = fs::read(store.blobs().path(&digest)).unwrap();
            for frame in table.frames() {
                let compressed = &file[frame.at as usize..][..frame.compressed as usize];
                let bytes = zstd::bulk::decompress(compressed, frame.size as usize).unwrap();
                assert!(bytes == payload[frame.start as usize..][..frame.size as usize]);
            }
        }
    }

    #[test]
    fn frames_that_did_not_change_are_taken_over_as_they_are() {
        let (_dir, store) = store();
        let mut payload = noise(1, 6 * FRAME + 99);
        let (old, _) = store.blobs().put_seekable(None, &mut &payload[..]).unwrap();
        // Compressed by another program at another level: this shows which frames were copied.
        let marked = {
            let mut table = SeekTable::default();
            let mut file = Vec::new();
            for stretch in payload.chunks(FRAME) {
                let frame = zstd::bulk::compress(stretch, 1).unwrap();
                table.push(frame.len() as u32, stretch.len() as u32);
                file.extend(frame);
            }
            file.extend(table.to_bytes());
            fs::write(store.blobs().path(&old), &file).unwrap();
            file
        };
        payload[3 * FRAME + 5] ^= 1;
        let (new, _) = store.blobs().put_seekable(Some(&old), &mut &payload[..]).unwrap();
        let file = fs::read(store.blobs().path(&new)).unwrap();
        let (before, after) = (
            SeekTable::of(&fs::File::open(store.blobs().path(&old)).unwrap(), marked.len() as u64),
            table(&store, &new),
        );
        let before = before.unwrap().unwrap();
        for (number, (a, b)) in before.frames().iter().zip(after.frames()).enumerate() {
            let taken = marked[a.at as usize..][..a.compressed as usize]
                == file[b.at as usize..][..b.compressed as usize];
            assert_eq!(taken, number != 3, "frame {number}");
        }
        assert!(store.blobs().read(&new, Size::Exact(payload.len() as u64)).unwrap() == payload);
    }

    #[test]
    fn nothing_of_the_previous_blob_is_believed() {
        let (_dir, store) = store();
        let payload = noise(2, 3 * FRAME);
        let (old, _) = store.blobs().put_seekable(None, &mut &payload[..]).unwrap();
        let mut table = SeekTable::default();
        let mut file = Vec::new();
        // Frames that hold something else, more than they say, or nothing that decodes.
        for stretch in [noise(3, FRAME), noise(4, 2 * FRAME), Vec::new()] {
            let frame = if stretch.is_empty() { b"no frame".to_vec() } else { compress(&stretch).unwrap() };
            table.push(frame.len() as u32, FRAME as u32);
            file.extend(frame);
        }
        file.extend(table.to_bytes());
        fs::write(store.blobs().path(&old), file).unwrap();
        let mut changed = payload.clone();
        changed[7] ^= 1;
        for previous in [old, Digest::of(b"not there")] {
            let (new, _) = store.blobs().put_seekable(Some(&previous), &mut &changed[..]).unwrap();
            assert!(store.blobs().read(&new, Size::Exact(changed.len() as u64)).unwrap() == changed);
            fs::remove_file(store.blobs().path(&new)).unwrap();
        }
    }

    #[test]
    fn a_range_is_read_from_its_frames_alone_and_each_is_checked() {
        let (_dir, store) = store();
        let payload = noise(5, 4 * FRAME + 1000);
        let (digest, length) = store.blobs().put_seekable(None, &mut &payload[..]).unwrap();
        let seekable = store.blobs().open_seekable(&digest, Size::Exact(length)).unwrap().unwrap();
        let read = |offset: usize, len: usize| {
            let mut buffer = vec![0; len];
            seekable.read_at(offset as u64, &mut buffer).map(|n| buffer[..n].to_vec())
        };
        for (offset, len) in [
            (0, 10),
            (FRAME - 5, 10),
            (FRAME, FRAME),
            (payload.len() - 3, 10),
            (payload.len(), 1),
            (0, payload.len()),
        ] {
            let end = (offset + len).min(payload.len());
            assert!(read(offset, len).unwrap() == payload[offset..end], "{offset} {len}");
        }
        // Damage in frame 2 affects only reads of that frame.
        let path = store.blobs().path(&digest);
        let mut file = fs::read(&path).unwrap();
        file[table(&store, &digest).frames()[2].at as usize + 500] ^= 8;
        fs::write(&path, file).unwrap();
        assert!(read(FRAME, 100).unwrap() == payload[FRAME..FRAME + 100]);
        assert_eq!(read(2 * FRAME + 7, 100).unwrap_err().code(), "blob-undecodable");
        assert!(store.blobs().open_seekable(&digest, Size::Exact(length)).is_err(), "nor is it opened again");
    }

    #[test]
    fn other_forms_are_not_seekable_and_lies_about_the_size_are_damage() {
        let (_dir, store) = store();
        let plain = store.blobs().put(&noise(6, 1000)).unwrap();
        assert!(store.blobs().open_seekable(&plain, Size::AtMost(1 << 20)).unwrap().is_none());
        let (digest, length) = store.blobs().put_seekable(None, &mut &noise(7, FRAME * 2)[..]).unwrap();
        let lie = store.blobs().open_seekable(&digest, Size::Exact(length + 1)).unwrap_err();
        assert_eq!(lie.code(), "blob-size-mismatch");
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn arbitrary_tables_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), file: u64, whole: bool) {
            let mut bytes = bytes;
            if whole {
                let count = (bytes.len() / 8) as u32;
                bytes.truncate(count as usize * 8);
                let length = bytes.len() as u32 + FOOTER as u32;
                let mut table = [SKIPPABLE.to_le_bytes(), length.to_le_bytes()].concat();
                table.append(&mut bytes);
                table.extend(count.to_le_bytes());
                table.push(0);
                table.extend(MAGIC.to_le_bytes());
                bytes = table;
            }
            if let Some(table) = SeekTable::parse(&bytes, file) {
                let end = table.frames().last().map_or(0, |frame| frame.at + u64::from(frame.compressed));
                prop_assert_eq!(end + bytes.len() as u64, file);
            }
        }

        #[test]
        fn a_table_comes_back_and_finds_every_byte(sizes in proptest::collection::vec((1u32..1000, 0u32..1000), 0..20)) {
            let mut table = SeekTable::default();
            for (compressed, size) in &sizes {
                table.push(*compressed, *size);
            }
            let bytes = table.to_bytes();
            let file = sizes.iter().map(|(compressed, _)| u64::from(*compressed)).sum::<u64>() + bytes.len() as u64;
            prop_assert_eq!(SeekTable::parse(&bytes, file), Some(table.clone()));
            for offset in 0..table.size() {
                let frame = table.frames()[table.holding(offset).unwrap()];
                prop_assert!((frame.start..frame.start + u64::from(frame.size)).contains(&offset));
            }
            prop_assert_eq!(table.holding(table.size()), None);
        }
    }
}
