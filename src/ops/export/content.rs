//! The content of exported files: verified, with holes for zeros, and shared with the cache if possible.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use sha2::Digest as _;

use crate::digest::Digest;
use crate::store::{BlobError, Blobs, MAX_METADATA, Size};
use crate::util::meter::Meter;

/// Files of fewer bytes are read into memory; the cache keeps only larger ones as files.
const LARGE: u64 = 1 << 20;

/// A payload without a declared length may be this many times its compressed size: a bomb must not fill the
/// disk.
const MAX_UNDECLARED_RATIO: u64 = 100;

/// Zeros of this many bytes, and as many more, become a hole.
const HOLE: usize = 64 << 10;

/// Writes bytes, and holes for long stretches of zeros.
struct Sparse<'a> {
    file: &'a mut File,
    /// The stretch under examination, until it is complete.
    buffer: Vec<u8>,
    at: u64,
}

impl<'a> Sparse<'a> {
    fn new(file: &'a mut File) -> Self {
        Self { file, buffer: Vec::with_capacity(HOLE), at: 0 }
    }

    fn put(&mut self, stretch: &[u8]) -> io::Result<()> {
        if stretch.iter().all(|b| *b == 0) {
            self.file.seek(SeekFrom::Current(stretch.len() as i64))?;
        } else {
            self.file.write_all(stretch)?;
        }
        self.at += stretch.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.buffer);
        // The last stretch is short, and a hole at the end needs a length.
        self.file.write_all(&rest)?;
        let length = self.at + rest.len() as u64;
        self.file.set_len(length)
    }
}

impl Write for Sparse<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.buffer.is_empty() && rest.len() >= HOLE {
                let (stretch, after) = rest.split_at(HOLE);
                self.put(stretch)?;
                rest = after;
                continue;
            }
            let (more, after) = rest.split_at(rest.len().min(HOLE - self.buffer.len()));
            self.buffer.extend_from_slice(more);
            rest = after;
            if self.buffer.len() == HOLE {
                let mut buffer = std::mem::take(&mut self.buffer);
                self.put(&buffer)?;
                buffer.clear();
                self.buffer = buffer;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a file has no content.
#[derive(Debug)]
pub(super) enum Failed {
    /// The blob.
    Blob(BlobError),
    /// The file.
    File(io::Error),
}

/// Writes a blob of a declared size into an empty file. On failure no unverified byte stays in it.
pub(super) fn write(
    blobs: &Blobs,
    cache_dir: Option<&Path>,
    digest: &Digest,
    size: u64,
    file: &mut File,
    meter: &mut Meter<'_>,
) -> Result<(), Failed> {
    if size < LARGE {
        let bytes = blobs.read(digest, Size::Exact(size)).map_err(Failed::Blob)?;
        let mut sparse = Sparse::new(file);
        return sparse.write_all(&bytes).and_then(|()| sparse.finish()).map_err(Failed::File);
    }
    let clear = |file: &mut File| file.set_len(0).and_then(|()| file.rewind()).map_err(Failed::File);
    if let Some(dir) = cache_dir {
        if share(dir, digest, size, file, meter).unwrap_or(false) {
            return Ok(());
        }
        clear(file)?;
    }
    stream(blobs, digest, Size::Exact(size), file, meter).map(drop).or_else(|error| {
        clear(file)?;
        Err(error)
    })
}

/// Writes a layer without a declared length into an empty file, and returns its length. On failure the file
/// is unusable.
pub(super) fn write_layer(blobs: &Blobs, digest: &Digest, file: &mut File) -> Result<u64, Failed> {
    let compressed = blobs.compressed_size(digest).map_err(Failed::Blob)?;
    let limit = compressed.saturating_mul(MAX_UNDECLARED_RATIO).max(MAX_METADATA);
    // The total does not include the length of a layer.
    stream(blobs, digest, Size::AtMost(limit), file, &mut Meter::new(0, &|_| ()))
}

fn stream(
    blobs: &Blobs,
    digest: &Digest,
    size: Size,
    file: &mut File,
    meter: &mut Meter<'_>,
) -> Result<u64, Failed> {
    let mut sparse = Sparse::new(file);
    // A write error must not be mistaken for a damaged blob.
    let mut refused = None;
    let streamed =
        blobs.stream(digest, size, &mut Watched { to: meter.metered(&mut sparse), failed: &mut refused });
    match (streamed, refused) {
        (Ok(length), _) => sparse.finish().map(|()| length).map_err(Failed::File),
        (Err(_), Some(error)) => Err(Failed::File(error)),
        (Err(error), None) => Err(Failed::Blob(error)),
    }
}

/// Keeps the error of the writer.
struct Watched<'a, W> {
    to: W,
    failed: &'a mut Option<io::Error>,
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes).map_err(|e| {
            let copy =
                e.raw_os_error().map_or_else(|| io::Error::from(e.kind()), io::Error::from_raw_os_error);
            *self.failed = Some(e);
            copy
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Copies a content from the cache's file: by sharing its blocks where the filesystem can, else by a copy in
/// the kernel. The copy is checked, so nothing depends on later changes of that file. Returns false if it is
/// wrong.
fn share(
    cache_dir: &Path,
    digest: &Digest,
    size: u64,
    file: &mut File,
    meter: &mut Meter<'_>,
) -> io::Result<bool> {
    let hex = digest.hex();
    let path = cache_dir.join(&hex[..2]).join(&hex);
    // The folder may have any owner: opening a fifo would wait.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let cached = File::options().read(true).custom_flags(flags).open(path)?;
    let found = cached.metadata()?;
    if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() || found.len() != size {
        return Ok(false);
    }
    if rustix::fs::ioctl_ficlone(&*file, &cached).is_err() {
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(&cached, None, &*file, None, most)? {
                0 => return Ok(false),
                copied => left -= copied as u64,
            }
        }
    }
    file.rewind()?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut checked = meter.metered(file);
    loop {
        match checked.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(Digest::from_bytes(hasher.finalize().into()) == *digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn content_written_in_any_pieces_is_read_back(
            runs in proptest::collection::vec((any::<bool>(), 1usize..200_000), 0..8), piece in 1usize..100_000,
        ) {
            let bytes: Vec<u8> =
                runs.iter().flat_map(|(zero, length)| std::iter::repeat_n(u8::from(!zero), *length)).collect();
            let mut file = tempfile::tempfile().unwrap();
            let mut sparse = Sparse::new(&mut file);
            for chunk in bytes.chunks(piece) {
                sparse.write_all(chunk).unwrap();
            }
            sparse.finish().unwrap();
            file.rewind().unwrap();
            let mut back = Vec::new();
            file.read_to_end(&mut back).unwrap();
            prop_assert!(back == bytes);
        }
    }

    #[test]
    fn long_stretches_of_zeros_take_no_space() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sparse = Sparse::new(&mut file);
        sparse.write_all(&vec![0; 8 << 20]).unwrap();
        sparse.finish().unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 8 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_cached_file_is_used_if_it_holds_the_blob_and_the_store_is_if_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::create(dir.path().join("store")).unwrap();
        let bytes: Vec<u8> = (0..3u32 << 20).map(|n| (n / 7) as u8).collect();
        let digest = store.blobs().put(&bytes).unwrap();
        let cache = dir.path().join("cache");
        let cached = cache.join(&digest.hex()[..2]).join(digest.hex());
        std::fs::create_dir_all(cached.parent().unwrap()).unwrap();
        let mut damaged = bytes.clone();
        damaged[77] ^= 1;
        for in_cache in [&bytes, &damaged, &bytes[..100].to_vec()] {
            std::fs::write(&cached, in_cache).unwrap();
            let mut file = tempfile::tempfile().unwrap();
            write(
                store.blobs(),
                Some(&cache),
                &digest,
                bytes.len() as u64,
                &mut file,
                &mut Meter::new(0, &|_| ()),
            )
            .unwrap();
            file.rewind().unwrap();
            let mut back = Vec::new();
            file.read_to_end(&mut back).unwrap();
            assert!(back == bytes);
        }
        // Only the cache has it.
        std::fs::write(&cached, &bytes).unwrap();
        std::fs::remove_file(store.blobs().path(&digest)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        write(
            store.blobs(),
            Some(&cache),
            &digest,
            bytes.len() as u64,
            &mut file,
            &mut Meter::new(0, &|_| ()),
        )
        .unwrap();
        let gone =
            write(store.blobs(), None, &digest, bytes.len() as u64, &mut file, &mut Meter::new(0, &|_| ()));
        assert!(matches!(gone, Err(Failed::Blob(BlobError::Missing(_)))), "{gone:?}");
    }
}
