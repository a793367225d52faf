//! Writes blobs into a store. No other module writes them.
//!
//! A blob appears under its name whole or not at all, and is not synced separately.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::blob::Blobs;
use super::blob_error::Size;
use super::compress::{SEEKABLE_FROM, compress_in_pieces};
use super::direct_io::Direct;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// The age above which an existing blob is made young again. Collecting garbage spares young blobs, since
/// there may be no reference to them yet; its grace must be well above this.
pub const REFRESH_AFTER: Duration = Duration::from_mins(1);

/// Bytes copied at once.
const COPIED: usize = 1 << 20;

/// First bytes of a zstd frame, and of a skippable one except for the lowest four bits.
const ZSTD_MAGIC: u32 = 0xFD2F_B528;
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;

impl Blobs {
    /// Stores a payload under its digest, unless it exists. Visible wholly or not at all; not synced.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.holds(&digest, bytes) {
            if bytes.len() as u64 > SEEKABLE_FROM {
                return Ok(self.put_seekable(None, &mut &*bytes)?.0);
            }
            let compressed = compress_in_pieces(bytes)
                .map_err(|e| Error::io(e, format!("cannot compress blob {digest}")))?;
            self.put_compressed(&digest, &compressed)?;
        }
        Ok(digest)
    }

    /// Stores a payload that is read piece by piece; `size` is its length if that is known. Returns its
    /// digest and length. Memory stays small for any length: a large payload is stored in the seekable form.
    pub fn put_stream(&self, from: &mut dyn Read, size: Option<u64>) -> Result<(Digest, u64)> {
        if size.is_some_and(|size| size > SEEKABLE_FROM) {
            return self.put_seekable(None, from);
        }
        let mut start = Vec::with_capacity(size.map_or(0, |size| size as usize + 1));
        from.take(SEEKABLE_FROM + 1)
            .read_to_end(&mut start)
            .map_err(|e| Error::io(e, format!("cannot read a blob for {}", self.root().display())))?;
        if start.len() as u64 > SEEKABLE_FROM {
            return self.put_seekable(None, &mut start.chain(from));
        }
        Ok((self.put(&start)?, start.len() as u64))
    }

    /// Stores the compressed payload of `digest`, in any form of zstd. The caller guarantees that the bytes
    /// match.
    pub fn put_compressed(&self, digest: &Digest, compressed: &[u8]) -> Result<()> {
        let temp = self
            .write_temp(digest, compressed)
            .map_err(|e| Error::io(e, format!("cannot write blob {digest}")))?;
        self.name(&temp, digest).inspect_err(|_| self.discard(&temp))
    }

    /// Writes the bytes of a future blob to a temporary file, in the shard of `near`.
    pub(super) fn write_temp(&self, near: &Digest, compressed: &[u8]) -> io::Result<PathBuf> {
        let (temp, mut file) = self.create_temp(&self.path(near))?;
        self.io().write(&temp, &mut file, compressed).inspect_err(|_| self.discard(&temp))?;
        Ok(temp)
    }

    /// Does the same with a large blob, and makes it durable.
    pub(super) fn write_synced(&self, near: &Digest, compressed: &[u8]) -> io::Result<PathBuf> {
        let (temp, mut file) = self.create_temp(&self.path(near))?;
        let written = (|| {
            let mut direct = Direct::new(self.io(), &temp, &mut file);
            direct.write(compressed)?;
            direct.finish()?;
            self.io().sync_file(&temp, &file)
        })();
        written.inspect_err(|_| self.discard(&temp))?;
        Ok(temp)
    }

    pub(super) fn discard(&self, temp: &Path) {
        let _ = self.io().remove(temp);
    }

    pub(super) fn name(&self, temp: &Path, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        let renamed = match self.io().rename(temp, &path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let shard = path.parent().unwrap_or(self.root());
                self.create_shard(shard).and_then(|()| self.io().rename(temp, &path))
            }
            other => other,
        };
        renamed.map_err(|e| Error::io(e, format!("cannot write blob {digest}")))?;
        self.temp_names().done_with(temp);
        self.unsynced().written(*digest);
        Ok(())
    }

    fn create_shard(&self, shard: &Path) -> io::Result<()> {
        self.io().create_dir_below(self.store_root(), shard, self.sharing())
    }

    /// The number of temporary files that this store has left behind since it was opened.
    pub fn files_left(&self) -> u64 {
        self.temp_names().left()
    }

    pub(super) fn create_temp(&self, path: &Path) -> io::Result<(PathBuf, File)> {
        match self.temp_names().create(self.io(), path, self.sharing()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.create_shard(path.parent().unwrap_or(self.root()))?;
                self.temp_names().create(self.io(), path, self.sharing())
            }
            other => other,
        }
    }

    /// Returns whether a blob exists and is `payload`, and keeps it. A power cut may leave a blob without
    /// references truncated or with zeros in it, under its name. So a blob that is not known to be synced is
    /// compared before a writer relies on it.
    pub(super) fn holds(&self, digest: &Digest, payload: &[u8]) -> bool {
        let Ok((mut file, length)) = self.open(digest) else { return false };
        self.is_payload(digest, &mut file, length, payload) && self.refresh_if_old(digest, &file)
    }

    /// Returns whether a blob exists that was synced once: a regular file that begins like zstd. Makes it
    /// young again, so that collecting garbage spares it.
    pub fn keep(&self, digest: &Digest) -> bool {
        let Ok((file, _)) = self.open(digest) else { return false };
        let mut magic = [0; 4];
        if file.read_exact_at(&mut magic, 0).is_err() {
            return false;
        }
        let magic = u32::from_le_bytes(magic);
        if magic != ZSTD_MAGIC && magic & !0xF != SKIPPABLE_MAGIC {
            return false;
        }
        self.refresh_if_old(digest, &file)
    }

    /// Makes a blob young again. Returns whether it still exists.
    fn refresh_if_old(&self, digest: &Digest, file: &File) -> bool {
        let old = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > REFRESH_AFTER));
        // Another user's file may refuse this; its age then stays.
        if old && let Err(e) = self.io().refresh(&self.path(digest)) {
            tracing::debug!("cannot refresh blob {digest}: {e}");
            return e.kind() != io::ErrorKind::NotFound;
        }
        true
    }

    /// Stores a blob once more unchanged, if it matches its digest.
    pub(super) fn store_again(&self, digest: &Digest) -> Result<()> {
        let failed = |e| Error::io(e, format!("cannot write blob {digest} again"));
        self.stream(digest, Size::AtMost(u64::MAX), &mut io::sink())?;
        let mut old = File::open(self.path(digest)).map_err(failed)?;
        let (temp, mut new) = self.create_temp(&self.path(digest)).map_err(failed)?;
        let mut buffer = vec![0; COPIED];
        let copied = loop {
            match old.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    if let Err(e) = self.io().write(&temp, &mut new, &buffer[..n]) {
                        break Err(e);
                    }
                }
                Err(e) => break Err(e),
            }
        };
        copied.map_err(failed).and_then(|()| self.name(&temp, digest)).inspect_err(|_| self.discard(&temp))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::SystemTime;

    use super::super::compress::PIECE;
    use super::super::io::{StoreIo, SystemIo};
    use super::super::manifest::tests::sample;
    use super::super::{Sharing, Store};
    use super::*;
    use crate::error::ErrorKind;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_frame_states_its_length_and_the_real_pf_reads_it() {
        let (dir, store) = store();
        let payload = b"to be or not to be ".repeat(4096);
        let digest = store.blobs().put(&payload).unwrap();
        let mut reader = &payload[..];
        let (streamed, length) = store.begin().put_stream(&mut reader, Some(payload.len() as u64)).unwrap();
        assert_eq!((streamed, length), (digest, payload.len() as u64));
        fs::remove_file(store.blobs().path(&digest)).unwrap();
        for size in [None, Some(payload.len() as u64)] {
            let mut reader = &payload[..];
            assert_eq!(store.blobs().put_stream(&mut reader, size).unwrap().0, digest);
            let file = fs::read(store.blobs().path(&digest)).unwrap();
            let stated = zstd::zstd_safe::get_frame_content_size(&file).unwrap();
            assert_eq!(stated, Some(payload.len() as u64));
            let theirs = pf_core::store::PfStore::open(dir.path()).unwrap();
            let cid = pf_core::digest::Digest256::parse(&digest.to_string()).unwrap();
            assert_eq!(theirs.blobs().get(&cid).unwrap(), payload);
            fs::remove_file(store.blobs().path(&digest)).unwrap();
        }
        store.blobs().put(&payload).unwrap();
        let file = fs::read(store.blobs().path(&digest)).unwrap();
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&file).unwrap(), Some(payload.len() as u64));
        assert_eq!(
            fs::read_dir(dir.path().join("blobs/sha256/00")).map_or(0, Iterator::count),
            0,
            "no temp file is left"
        );
    }

    #[test]
    fn a_payload_compressed_in_pieces_is_one_payload_to_every_reader() {
        let (dir, store) = store();
        for length in [2 * PIECE - 1, 2 * PIECE, 3 * PIECE + 5, SEEKABLE_FROM as usize] {
            let payload: Vec<u8> =
                (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 27) as u8).collect();
            let digest = store.blobs().put(&payload).unwrap();
            assert_eq!(digest, Digest::of(&payload));
            assert_eq!(store.blobs().read(&digest, Size::Exact(length as u64)).unwrap(), payload);
            assert_eq!(store.blobs().read_metadata(&digest).unwrap(), payload);
            let theirs = pf_core::store::PfStore::open(dir.path()).unwrap();
            let cid = pf_core::digest::Digest256::parse(&digest.to_string()).unwrap();
            assert_eq!(theirs.blobs().get(&cid).unwrap(), payload);
            // It is known to exist, and is not written again.
            let before = fs::metadata(store.blobs().path(&digest)).unwrap().ino();
            store.blobs().put(&payload).unwrap();
            assert_eq!(fs::metadata(store.blobs().path(&digest)).unwrap().ino(), before);
        }
    }

    #[test]
    fn a_blob_that_is_there_is_made_young_and_not_written_again() {
        let (_dir, store) = store();
        let digest = store.blobs().put(b"payload").unwrap();
        let path = store.blobs().path(&digest);
        let long_ago = SystemTime::now() - Duration::from_hours(24);
        File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        let before = fs::metadata(&path).unwrap();
        store.blobs().put(b"payload").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(before.ino(), after.ino());
        assert!(after.modified().unwrap().elapsed().unwrap() < Duration::from_hours(1));
    }

    #[test]
    fn a_blob_damaged_by_a_crash_is_written_again() {
        let (_dir, store) = store();
        let digest = store.blobs().put(b"payload").unwrap();
        let path = store.blobs().path(&digest);
        for left in [&b""[..], b"\x28\xb5", &[0; 64]] {
            fs::write(&path, left).unwrap();
            store.blobs().put(b"payload").unwrap();
            assert_eq!(store.blobs().read(&digest, Size::Exact(7)).unwrap(), b"payload");
        }
        for length in [5000u32, SEEKABLE_FROM as u32 + 5000] {
            let payload: Vec<u8> = (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let digest = store.blobs().put(&payload).unwrap();
            let path = store.blobs().path(&digest);
            let whole = fs::read(&path).unwrap();
            let (start, end) = whole.split_at(whole.len() / 2);
            for left in [start.to_vec(), [start, &vec![0; end.len()]].concat()] {
                fs::write(&path, left).unwrap();
                store.blobs().put(&payload).unwrap();
                assert_eq!(store.blobs().read(&digest, Size::Exact(length.into())).unwrap(), payload);
            }
        }
    }

    /// Takes blobs away as soon as everything is synced, as `pf gc` might.
    struct Collector(PathBuf);

    impl StoreIo for Collector {
        fn sync_fs(&self, dir: &Path) -> io::Result<()> {
            fs::remove_file(&self.0)?;
            SystemIo.sync_fs(dir)
        }
    }

    #[test]
    fn no_image_is_made_of_a_blob_that_gc_has_just_collected() {
        let (_dir, store) = store();
        let victim = store.blobs().path(&Digest::of(b"victim"));
        let store = store.with_io(Arc::new(Collector(victim)));
        let batch = store.begin();
        batch.put(b"victim").unwrap();
        assert_eq!(batch.commit(&sample()).unwrap_err().kind(), ErrorKind::Missing);
        assert_eq!(fs::read_dir(store.images().dir()).unwrap().count(), 0);
    }

    /// Fails one call.
    #[derive(Debug, Default)]
    struct Failing {
        calls: AtomicUsize,
        at: usize,
    }

    impl Failing {
        fn call<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
            if self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            call()
        }
    }

    impl StoreIo for Failing {
        fn create_dir_below(&self, root: &Path, dir: &Path, sharing: Sharing) -> io::Result<()> {
            self.call(|| SystemIo.create_dir_below(root, dir, sharing))
        }
        fn create(&self, path: &Path, sharing: Sharing) -> io::Result<File> {
            self.call(|| SystemIo.create(path, sharing))
        }
        fn write(&self, path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
            self.call(|| SystemIo.write(path, file, bytes))
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.call(|| SystemIo.rename(from, to))
        }
        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            self.call(|| SystemIo.sync_dir(dir))
        }
        fn sync_fs(&self, dir: &Path) -> io::Result<()> {
            self.call(|| SystemIo.sync_fs(dir))
        }
    }

    #[test]
    fn whichever_call_fails_there_is_no_image_and_no_temporary_file() {
        let mut done = false;
        for at in 0.. {
            let (dir, store) = store();
            let store = store.with_io(Arc::new(Failing { at, ..Failing::default() }));
            let made = (|| {
                store.blobs().put(b"x")?;
                store.blobs().put_stream(&mut &b"y"[..], None)?;
                store.put_manifest(&sample())
            })();
            let left =
                |dir: PathBuf| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
            let temps = left(dir.path().join("blobs/sha256")).into_iter().flat_map(left);
            assert_eq!(
                temps.filter(|path| path.extension().is_none_or(|e| e != "zst")).count(),
                0,
                "call {at}"
            );
            match made {
                Ok(id) => {
                    assert_eq!(store.image(&id).unwrap().manifest, sample());
                    done = true;
                    break;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "call {at}: {error}");
                    assert_eq!(left(store.images().dir().to_owned()), Vec::<PathBuf>::new(), "call {at}");
                }
            }
        }
        assert!(done);
    }
}
