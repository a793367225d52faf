//! Derived times, kept between runs: a file for each image, in `times/` of the cache's folder.
//!
//! ```text
//! "pfimgtim" │ version u32 │ image 32 │ end of its line 32 │ moments u32 │ nodes u32 │ moments i64 … │ places │ crc32c u32
//! ```
//! `<16 hex of the image>-<16 hex of the end>.times`. Little-endian, moments in nanoseconds since 1970. `places` are zstd: for each node of
//! the tree, by its number, the index of its time among the moments (u16); with 0 nodes all have the first. The
//! checksum covers everything before it. The image's id stands for its whole line, and the end for how much of
//! the line the store had: so a file never becomes wrong. A file that is truncated, belongs to another user or
//! names a moment of no image is ignored. That costs time and never changes an answer.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache;
use crate::digest::Digest;
use crate::tree::{MAX_MOMENTS, NodeTimes};

const MAGIC: &[u8; 8] = b"pfimgtim";
const VERSION: u32 = 1;

/// Bytes before the moments.
const HEADER: usize = 8 + 4 + 32 + 32 + 4 + 4;

/// Largest file that is read, and the limit for all files together; the oldest are removed first.
const LARGEST: u64 = 64 << 20;
const BUDGET: u64 = 64 << 20;

/// The folder is cleaned once for this many written files.
const LOOK_OVER: u64 = 64;

/// Most nodes of a tree: larger trees would not be read back.
const MOST_NODES: usize = 1 << 26;

/// The folder of stored times.
#[derive(Debug)]
pub(super) struct Kept {
    dir: PathBuf,
    written: AtomicU64,
}

impl Kept {
    pub(super) fn new(cache_dir: &Path) -> Self {
        Self { dir: cache_dir.join("times"), written: AtomicU64::new(0) }
    }

    fn path(&self, image: &Digest, end: &Digest) -> PathBuf {
        self.dir.join(format!("{}-{}.times", &image.hex()[..16], &end.hex()[..16]))
    }

    /// Reads the stored times of an image whose line ends at `end`; `allowed` says which moments are valid.
    pub(super) fn read(
        &self,
        image: &Digest,
        end: &Digest,
        allowed: &dyn Fn(i64) -> bool,
    ) -> Option<NodeTimes> {
        let path = self.path(image, end);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(&path).ok()?;
        let metadata = file.metadata().ok()?;
        let ours = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw();
        let mut bytes = Vec::new();
        if ours && metadata.len() <= LARGEST {
            file.take(LARGEST).read_to_end(&mut bytes).ok()?;
        }
        let found = decode(&bytes, image, end).filter(|times| times.parts().0.iter().all(|m| allowed(*m)));
        if found.is_none() {
            tracing::debug!("{} is damaged; pfimg ignores it", path.display());
            let _ = fs::remove_file(&path);
        }
        found
    }

    /// Stores an image's times. If that fails they are derived again the next time.
    pub(super) fn write(&self, image: &Digest, end: &Digest, times: &NodeTimes) {
        let write = || -> io::Result<()> {
            let bytes = encode(image, end, times)?;
            // Closed to others, like everything in the cache's folder.
            cache::folder::make_inside(self.dir.parent().unwrap_or(&self.dir), &self.dir)?;
            if self.written.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_OVER) {
                self.shrink();
            }
            let mut temp = tempfile::Builder::new().prefix(".tmp-").tempfile_in(&self.dir)?;
            temp.write_all(&bytes)?;
            temp.persist(self.path(image, end))?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!("cannot write times to {}: {error}", self.dir.display());
        }
    }

    /// Removes the oldest files until the budget holds, and files that a killed program left half written.
    fn shrink(&self) {
        let mut files: Vec<_> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        files.sort_unstable();
        let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if bytes <= BUDGET {
                break;
            }
            if fs::remove_file(path).is_ok() {
                bytes -= len;
            }
        }
    }
}

fn encode(image: &Digest, end: &Digest, times: &NodeTimes) -> io::Result<Vec<u8>> {
    let (moments, places) = times.parts();
    let mut out = Vec::with_capacity(HEADER + moments.len() * 8 + 1024);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(image.as_bytes());
    out.extend_from_slice(end.as_bytes());
    out.extend_from_slice(&(moments.len() as u32).to_le_bytes());
    out.extend_from_slice(&(places.len() as u32).to_le_bytes());
    out.extend(moments.iter().flat_map(|moment| moment.to_le_bytes()));
    let places: Vec<u8> = places.iter().flat_map(|place| place.to_le_bytes()).collect();
    out.extend(zstd::bulk::compress(&places, 1)?);
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    Ok(out)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

fn decode(bytes: &[u8], image: &Digest, end: &Digest) -> Option<NodeTimes> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut rest = body;
    let named = take::<8>(&mut rest)? == *MAGIC
        && u32::from_le_bytes(take(&mut rest)?) == VERSION
        && take::<32>(&mut rest)? == *image.as_bytes()
        && take::<32>(&mut rest)? == *end.as_bytes();
    let moments = u32::from_le_bytes(take(&mut rest)?) as usize;
    let nodes = u32::from_le_bytes(take(&mut rest)?) as usize;
    if !named || moments > MAX_MOMENTS || nodes > MOST_NODES {
        return None;
    }
    let moments = (0..moments).map(|_| take(&mut rest).map(i64::from_le_bytes)).collect::<Option<_>>()?;
    let places = zstd::bulk::decompress(rest, nodes * 2).ok()?;
    if places.len() != nodes * 2 {
        return None;
    }
    let (pairs, _) = places.as_chunks::<2>();
    NodeTimes::from_parts(moments, pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> (Digest, Digest, NodeTimes) {
        let times = NodeTimes::from_parts(vec![5, -7, i64::MAX], vec![0, 1, 2, 1, 0]).unwrap();
        (Digest::of(b"image"), Digest::of(b"end"), times)
    }

    #[test]
    fn remembered_times_return_only_for_the_same_image_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path());
        let (image, end, times) = sample();
        kept.write(&image, &end, &times);
        assert_eq!(kept.read(&image, &end, &|_| true), Some(times.clone()));
        assert_eq!(kept.read(&end, &image, &|_| true), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&kept.dir), mode(&kept.path(&image, &end))), (0o700, 0o600));
        // A moment that no image of the line has makes the file invalid, whichever program wrote it.
        assert_eq!(kept.read(&image, &end, &|moment| moment != -7), None);
        let all = NodeTimes::all(3);
        kept.write(&image, &end, &all);
        assert_eq!(kept.read(&image, &end, &|_| true), Some(all));
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn a_changed_file_of_remembered_times_is_ignored(at in any::<proptest::sample::Index>(), bit in 0u8..8, cut: bool) {
            let (image, end, times) = sample();
            let mut bytes = encode(&image, &end, &times).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            prop_assert_eq!(decode(&bytes, &image, &end), None);
        }

        #[test]
        fn arbitrary_bytes_with_a_right_checksum_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (image, end, _) = sample();
            let mut whole = MAGIC.to_vec();
            whole.extend(VERSION.to_le_bytes());
            whole.extend_from_slice(image.as_bytes());
            whole.extend_from_slice(end.as_bytes());
            whole.append(&mut bytes);
            whole.extend(crc32c::crc32c(&whole).to_le_bytes());
            let _ = decode(&whole, &image, &end);
        }
    }
}
