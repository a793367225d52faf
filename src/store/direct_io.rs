//! Writes large data that is synced at once anyway: past the page cache.
//!
//! Through the cache, the kernel first finds memory for each page and copies into it, and writes it when it
//! is synced. In a virtual machine the memory alone may cost more than the disk (docs/PERFORMANCE.md,
//! *Sealing*). A filesystem without direct I/O is written in the usual way.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::io::StoreIo;

/// Offsets, lengths and memory must be multiples of a disk's sector; no disk has larger sectors.
const SECTOR: usize = 4096;

/// Bytes that are written at once.
const CHUNK: usize = 1 << 20;

/// A new file that is written from its start to its end.
pub(super) struct Direct<'a> {
    io: &'a dyn StoreIo,
    path: &'a Path,
    file: &'a mut File,
    /// A chunk, and the padding that aligns it to a sector.
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    /// Bytes in the file.
    written: u64,
    past_cache: bool,
}

/// Turns the page cache off or on from here on.
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    let wanted = if direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    Ok(fcntl_setfl(file, wanted)?)
}

impl<'a> Direct<'a> {
    /// Starts with an empty file.
    pub(super) fn new(io: &'a dyn StoreIo, path: &'a Path, file: &'a mut File) -> Self {
        let buffer = vec![0; CHUNK + SECTOR];
        let start = (buffer.as_ptr() as usize).next_multiple_of(SECTOR) - buffer.as_ptr() as usize;
        let past_cache = set_direct(file, true).is_ok();
        Self { io, path, file, buffer, start, filled: 0, written: 0, past_cache }
    }

    /// Appends all of `bytes`.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(CHUNK - self.filled);
            let at = self.start + self.filled;
            self.buffer[at..at + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled == CHUNK {
                self.put(0, CHUNK)?;
                self.filled = 0;
            }
        }
        Ok(())
    }

    /// Writes the rest. From then on the file is like any other.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let whole = self.filled - self.filled % SECTOR;
        if whole > 0 {
            self.put(0, whole)?;
        }
        if self.past_cache {
            set_direct(self.file, false)?;
        }
        if self.filled > whole {
            self.put(whole, self.filled)?;
        }
        Ok(())
    }

    fn put(&mut self, from: usize, to: usize) -> io::Result<()> {
        let bytes = &self.buffer[self.start + from..self.start + to];
        let mut put = self.io.write(self.path, self.file, bytes);
        if self.past_cache && put.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput) {
            // The filesystem promised direct I/O and refuses it.
            self.past_cache = false;
            set_direct(self.file, false)?;
            self.file.seek(SeekFrom::Start(self.written))?;
            put = self.io.write(self.path, self.file, bytes);
        }
        self.written += bytes.len() as u64;
        put
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Sharing;
    use super::super::io::SystemIo;
    use super::*;

    /// Refuses to write past the cache, after a part of the data.
    struct Refuses;

    impl StoreIo for Refuses {
        fn write(&self, path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
            if fcntl_getfl(&mut *file)?.contains(OFlags::DIRECT) {
                set_direct(file, false)?;
                SystemIo.write(path, file, &bytes[..bytes.len() / 3])?;
                return Err(rustix::io::Errno::INVAL.into());
            }
            SystemIo.write(path, file, bytes)
        }
    }

    #[test]
    fn every_written_byte_is_in_the_file_for_any_split_into_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let text: Vec<u8> =
            (0..3 * CHUNK as u32 + 77).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for (number, io) in [&SystemIo as &dyn StoreIo, &Refuses].into_iter().enumerate() {
            for length in [0, 1, SECTOR, SECTOR + 1, CHUNK - 1, CHUNK, CHUNK + SECTOR, text.len()] {
                for piece in [text.len(), CHUNK, 100_003] {
                    let path = dir.path().join(format!("{number}-{length}-{piece}"));
                    let mut file = io.create(&path, Sharing::Private).unwrap();
                    let mut direct = Direct::new(io, &path, &mut file);
                    for bytes in text[..length].chunks(piece) {
                        direct.write(bytes).unwrap();
                    }
                    direct.finish().unwrap();
                    assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
                    assert!(fs::read(&path).unwrap() == text[..length], "{length} bytes, {piece} at a time");
                    fs::remove_file(&path).unwrap();
                }
            }
        }
    }
}
