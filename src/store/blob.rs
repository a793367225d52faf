//! Content-addressed blobs: `blobs/sha256/<aa>/<hex64>.zst`, zstd of the payload, named by the payload's SHA-256.
//!
//! Reading accepts every zstd stream that `pf` accepts: any level, several frames, skippable frames, no content size.
//! No byte leaves this module before the whole blob has matched its digest, except into a sink that the caller
//! discards on error ([`Blobs::stream`]).

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::Digest as _;

use super::atomic::TempNames;
use super::blob_error::{BlobError, Size};
use super::decode::{Hashing, Sink, check, decode_exact, decode_stream};
use super::io::StoreIo;
use super::unsynced::Unsynced;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::sync::wait;
use crate::util::sharing::Sharing;

/// Largest payload of a blob that is parsed as a whole (manifests, trees, page manifests): 1 GiB.
pub const MAX_METADATA: u64 = 1 << 30;

/// Metadata compresses by a factor of 4 to 10 (its digests not at all), but a tree of a million files that
/// share a few digests by more than 100. A decompression bomb compresses by tens of thousands.
const MAX_METADATA_RATIO: u64 = 512;
const MIN_METADATA_LIMIT: u64 = 64 << 20;

/// Compressed files up to this size are read whole before decoding; larger ones are streamed.
const READ_WHOLE: u64 = 4 << 20;

/// Compressed files of fewer bytes are read at once by [`Blobs::read_small`].
const SMALL: usize = 256 << 10;

thread_local! {
    static COMPRESSED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The blobs of one store.
pub struct Blobs {
    root: PathBuf,
    io: Arc<dyn StoreIo>,
    sharing: Sharing,
    temp_names: TempNames,
    unsynced: Unsynced,
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Blobs {
    pub(super) fn new(store: &Path, io: Arc<dyn StoreIo>, sharing: Sharing) -> Self {
        Self {
            root: store.join("blobs").join("sha256"),
            io,
            sharing,
            temp_names: TempNames::default(),
            unsynced: Unsynced::default(),
        }
    }

    /// The folder of shards.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The store that holds them.
    pub(super) fn store_root(&self) -> &Path {
        self.root.ancestors().nth(2).unwrap_or(&self.root)
    }

    pub(super) fn io(&self) -> &dyn StoreIo {
        &*self.io
    }

    pub(super) fn sharing(&self) -> Sharing {
        self.sharing
    }

    pub(super) fn unsynced(&self) -> &Unsynced {
        &self.unsynced
    }

    pub(super) fn temp_names(&self) -> &TempNames {
        &self.temp_names
    }

    /// Where the blob lies, whether it exists or not.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.root.join(&hex[..2]);
        path.push(format!("{hex}.zst"));
        path
    }

    /// Whether the blob's file exists. Says nothing about its bytes.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// Bytes the blob takes on disk, compressed.
    pub fn compressed_size(&self, digest: &Digest) -> Result<u64, BlobError> {
        Ok(self.open(digest)?.1)
    }

    pub(super) fn open(&self, digest: &Digest) -> Result<(File, u64), BlobError> {
        wait::disk("blob");
        // Non-blocking, so that a fifo planted under a blob's name cannot hang the reader.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(self.path(digest))
            .map_err(|e| BlobError::io(digest, e))?;
        let metadata = file.metadata().map_err(|e| BlobError::io(digest, e))?;
        if !metadata.is_file() {
            return Err(BlobError::Undecodable { digest: *digest, reason: "not a regular file".into() });
        }
        Ok((file, metadata.len()))
    }

    /// Reads a whole payload into memory and checks it. Takes at most the declared size or limit in memory
    /// (and the compressed bytes, if they are few).
    pub fn read(&self, digest: &Digest, size: Size) -> Result<Vec<u8>, BlobError> {
        let (mut file, compressed) = self.open(digest)?;
        let bytes = match size {
            Size::Exact(declared) if compressed <= READ_WHOLE => {
                let mut whole = Vec::with_capacity(compressed as usize + 1);
                file.read_to_end(&mut whole).map_err(|e| BlobError::io(digest, e))?;
                decode_exact(digest, &whole, declared)?
            }
            _ => {
                let mut out = Sink { bytes: Vec::new(), digest, size };
                decode_stream(digest, &mut file, size, &mut out)?;
                out.bytes
            }
        };
        check(digest, &bytes, size)?;
        Ok(bytes)
    }

    /// Reads a payload of a declared size that is small: one open and one read, as a rule. `keep` sees the compressed bytes
    /// once the payload has matched its digest.
    pub fn read_small(
        &self,
        digest: &Digest,
        declared: u64,
        keep: impl FnOnce(&[u8]),
    ) -> Result<Vec<u8>, BlobError> {
        wait::disk("blob");
        COMPRESSED
            .with_borrow_mut(|scratch| {
                let mut file = File::options()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open(self.path(digest))
                    .map_err(|e| BlobError::io(digest, e))?;
                if scratch.len() < SMALL {
                    scratch.resize(SMALL, 0);
                }
                // Anything but a regular file reads as an error or as nothing.
                let length = file.read(scratch).unwrap_or(0);
                if (1..scratch.len()).contains(&length) {
                    let payload = Self::decode(digest, &scratch[..length], declared)?;
                    keep(&scratch[..length]);
                    return Ok(payload);
                }
                Err(BlobError::TooLarge { digest: *digest, limit: SMALL as u64 })
            })
            .or_else(|error| match error {
                // Larger than a small blob can be when compressed, or unreadable: the common path handles
                // every case.
                BlobError::TooLarge { .. } => self.read(digest, Size::Exact(declared)),
                other => Err(other),
            })
    }

    /// Whether the `compressed` bytes of a blob's open file decompress to just `payload`. Hashes nothing.
    pub(super) fn is_payload(
        &self,
        digest: &Digest,
        file: &mut File,
        compressed: u64,
        payload: &[u8],
    ) -> bool {
        let declared = payload.len() as u64;
        if compressed >= SMALL as u64 {
            return self.read(digest, Size::Exact(declared)).is_ok_and(|bytes| bytes == payload);
        }
        COMPRESSED.with_borrow_mut(|scratch| {
            if scratch.len() < SMALL {
                scratch.resize(SMALL, 0);
            }
            let length = file.read(scratch).unwrap_or(0);
            length as u64 == compressed
                && decode_exact(digest, &scratch[..length], declared).is_ok_and(|bytes| bytes == payload)
        })
    }

    /// Decompresses a payload of a declared size and checks it.
    pub fn decode(digest: &Digest, compressed: &[u8], declared: u64) -> Result<Vec<u8>, BlobError> {
        let bytes = decode_exact(digest, compressed, declared)?;
        check(digest, &bytes, Size::Exact(declared))?;
        Ok(bytes)
    }

    /// Reads a blob that is parsed as a whole and has no declared size. The limit follows the compressed
    /// size, so that a few kilobytes cannot fill a gigabyte.
    pub fn read_metadata(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        self.read(digest, Size::AtMost(self.metadata_limit(digest)?))
    }

    /// The most bytes of a document that are read.
    fn metadata_limit(&self, digest: &Digest) -> Result<u64, BlobError> {
        let compressed = self.compressed_size(digest)?;
        Ok(compressed.saturating_mul(MAX_METADATA_RATIO).clamp(MIN_METADATA_LIMIT, MAX_METADATA))
    }

    /// Fails if a stored document of `len` bytes is too long to be read back.
    pub fn check_metadata(&self, digest: &Digest, len: usize) -> crate::Result<()> {
        let limit = self.metadata_limit(digest)?;
        if len as u64 <= limit {
            return Ok(());
        }
        let message =
            format!("a tree of {len} bytes cannot be read back: at most {limit} bytes of this one can");
        Err(Error::new(ErrorKind::InvalidInput, message).with_hint("use fewer or shorter paths"))
    }

    /// Decompresses a payload into `sink` while hashing it; returns its length in bytes. If this fails, the
    /// caller must discard what was written to the sink: the digest is known only at the end.
    pub fn stream(&self, digest: &Digest, size: Size, sink: &mut dyn Write) -> Result<u64, BlobError> {
        let (mut file, _) = self.open(digest)?;
        let mut hashing =
            Hashing { sink, hasher: sha2::Sha256::new(), written: 0, digest, size, failed: None };
        let result = decode_stream(digest, &mut file, size, &mut hashing);
        if let Some(error) = hashing.failed.take() {
            return Err(error);
        }
        result?;
        let measured = Digest::from_bytes(hashing.hasher.finalize().into());
        if measured != *digest {
            return Err(BlobError::Mismatch { digest: *digest, measured });
        }
        if let Size::Exact(declared) = size
            && hashing.written != declared
        {
            return Err(BlobError::WrongSize {
                digest: *digest,
                declared,
                found: hashing.written.to_string(),
            });
        }
        Ok(hashing.written)
    }

    /// Calls `found` for each blob in the store with its compressed size in bytes, in no order. Names that
    /// are not blobs (temp files, odd folders) go to `odd`.
    pub fn for_each(
        &self,
        found: &mut dyn FnMut(Digest, u64),
        odd: &mut dyn FnMut(PathBuf),
    ) -> crate::Result<()> {
        let shards = match fs::read_dir(&self.root) {
            Ok(shards) => shards,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(e, format!("cannot list {}", self.root.display()))),
        };
        for shard in shards {
            let shard =
                shard.map_err(|e| Error::io(e, format!("cannot list {}", self.root.display())))?.path();
            // A link may lead anywhere; pfimg must not count or delete files outside the store.
            let is_shard = shard.file_name().is_some_and(|name| is_shard(name.as_encoded_bytes()))
                && fs::symlink_metadata(&shard).is_ok_and(|shard| shard.is_dir());
            let Some(entries) = is_shard.then(|| fs::read_dir(&shard).ok()).flatten() else {
                odd(shard);
                continue;
            };
            for entry in entries {
                let entry = entry.map_err(|e| Error::io(e, format!("cannot list {}", shard.display())))?;
                let name = entry.file_name();
                let digest = name
                    .to_str()
                    .and_then(|name| name.strip_suffix(".zst"))
                    .and_then(|hex| Digest::from_hex(hex).ok())
                    .filter(|digest| shard.file_name().is_some_and(|s| s == &digest.hex()[..2]));
                match (digest, entry.metadata()) {
                    (Some(digest), Ok(metadata)) => found(digest, metadata.len()),
                    _ => odd(entry.path()),
                }
            }
        }
        Ok(())
    }
}

fn is_shard(name: &[u8]) -> bool {
    name.len() == 2 && name.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::super::io::SystemIo;
    use super::*;

    fn store() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        (dir, blobs)
    }

    fn plant(blobs: &Blobs, digest: &Digest, compressed: &[u8]) {
        let path = blobs.path(digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, compressed).unwrap();
    }

    #[test]
    fn a_stored_blob_is_read_back_by_size_by_limit_and_as_a_stream() {
        let (_dir, blobs) = store();
        for len in [0usize, 1, 4096, 3 << 20] {
            let payload: Vec<u8> = (0..len).map(|i| ((i * i) >> 7) as u8).collect();
            let digest = blobs.put(&payload).unwrap();
            assert_eq!(digest, Digest::of(&payload));
            assert_eq!(blobs.read(&digest, Size::Exact(len as u64)).unwrap(), payload);
            assert_eq!(blobs.read(&digest, Size::AtMost(MAX_METADATA)).unwrap(), payload);
            let mut kept = None;
            let small = blobs.read_small(&digest, len as u64, |bytes| kept = Some(bytes.to_vec())).unwrap();
            assert_eq!(small, payload);
            assert!(kept.is_none_or(|kept| kept == fs::read(blobs.path(&digest)).unwrap()));
            let mut out = Vec::new();
            assert_eq!(blobs.stream(&digest, Size::Exact(len as u64), &mut out).unwrap(), len as u64);
            assert_eq!(out, payload);
        }
    }

    #[test]
    fn every_zstd_stream_that_pf_accepts_is_accepted() {
        let (_dir, blobs) = store();
        let payload = b"hello hello hello hello".repeat(1000);
        let digest = Digest::of(&payload);
        let (a, b) = payload.split_at(700);
        let mut frames = zstd::encode_all(a, 19).unwrap();
        // A skippable frame: magic, little-endian length, content.
        frames.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        frames.extend_from_slice(&zstd::bulk::compress(b, 1).unwrap());
        for stream in [zstd::encode_all(&payload[..], 19).unwrap(), frames] {
            plant(&blobs, &digest, &stream);
            assert_eq!(blobs.read(&digest, Size::Exact(payload.len() as u64)).unwrap(), payload);
            assert_eq!(blobs.read(&digest, Size::AtMost(1 << 20)).unwrap(), payload);
        }
    }

    #[test]
    fn damage_of_every_kind_is_named_and_no_byte_is_handed_out() {
        let (_dir, blobs) = store();
        let payload = b"some payload that is long enough to be damaged".repeat(50);
        let len = payload.len() as u64;
        let digest = blobs.put(&payload).unwrap();
        let good = fs::read(blobs.path(&digest)).unwrap();
        let code = |size| {
            let code = blobs.read(&digest, size).unwrap_err().code();
            if let Size::Exact(declared) = size {
                let small = blobs.read_small(&digest, declared, |_| panic!("kept")).unwrap_err().code();
                assert_eq!(small, code, "{declared}");
            }
            code
        };

        for size in [Size::Exact(len), Size::AtMost(1 << 20)] {
            plant(&blobs, &digest, &good[..good.len() / 2]);
            assert_eq!(code(size), "blob-undecodable");
            plant(&blobs, &digest, &zstd::bulk::compress(&vec![7; payload.len()], 3).unwrap());
            assert_eq!(code(size), "blob-digest-mismatch");
            plant(&blobs, &digest, b"");
            assert!(matches!(code(size), "blob-digest-mismatch" | "blob-undecodable"));
        }
        plant(&blobs, &digest, &good);
        assert_eq!(code(Size::Exact(len - 1)), "blob-size-mismatch");
        assert_eq!(code(Size::Exact(len + 1)), "blob-size-mismatch");
        assert_eq!(code(Size::Exact(1 << 50)), "blob-size-mismatch");
        assert_eq!(code(Size::AtMost(len - 1)), "blob-too-large");
        fs::remove_file(blobs.path(&digest)).unwrap();
        assert_eq!(code(Size::Exact(len)), "blob-missing");
        fs::create_dir(blobs.path(&digest)).unwrap();
        assert_eq!(code(Size::Exact(len)), "blob-undecodable");
    }

    #[test]
    fn a_large_tree_of_equal_files_does_not_count_as_a_bomb() {
        let (_dir, blobs) = store();
        let rest = format!(r#","mode":"0644","size":0,"kind":"file","blob":"sha256:{:064}"}},"#, 0);
        let mut text = String::new();
        for i in 0..600_000 {
            text.push_str(r#"{"path":"d/"#);
            text.push_str(&i.to_string());
            text.push('"');
            text.push_str(&rest);
        }
        assert!(text.len() as u64 > MIN_METADATA_LIMIT);
        let digest = blobs.put(text.as_bytes()).unwrap();
        assert!(blobs.compressed_size(&digest).unwrap() < text.len() as u64 / 64);
        assert_eq!(blobs.read_metadata(&digest).unwrap().len(), text.len());
    }

    #[test]
    fn a_bit_flipped_anywhere_is_never_served() {
        let (_dir, blobs) = store();
        let payload: Vec<u8> = (0..2000u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
        let digest = blobs.put(&payload).unwrap();
        let good = fs::read(blobs.path(&digest)).unwrap();
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            plant(&blobs, &digest, &bad);
            // Some bits of a zstd header are unused: then the payload is still right.
            if let Ok(read) = blobs.read(&digest, Size::Exact(payload.len() as u64)) {
                assert_eq!(read, payload);
            }
        }
    }

    #[test]
    fn a_fifo_under_a_blobs_name_does_not_hang_the_reader() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"x");
        fs::create_dir_all(blobs.path(&digest).parent().unwrap()).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            blobs.path(&digest),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(blobs.read(&digest, Size::Exact(1)).unwrap_err().code(), "blob-undecodable");
        assert_eq!(blobs.read_small(&digest, 1, |_| ()).unwrap_err().code(), "blob-undecodable");
    }
}
