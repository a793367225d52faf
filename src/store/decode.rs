//! Decodes compressed bytes to a checked payload.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};

use sha2::Digest as _;
use zstd::zstd_safe::DCtx;

use super::blob_error::{BlobError, Size};
use crate::digest::Digest;

thread_local! {
    /// A context costs a hundred times as much as decoding a small blob, so each thread keeps one.
    static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

pub(super) fn check(digest: &Digest, bytes: &[u8], size: Size) -> Result<(), BlobError> {
    let measured = Digest::of(bytes);
    if measured != *digest {
        return Err(BlobError::Mismatch { digest: *digest, measured });
    }
    match size {
        Size::Exact(declared) if bytes.len() as u64 != declared => {
            Err(BlobError::WrongSize { digest: *digest, declared, found: bytes.len().to_string() })
        }
        _ => Ok(()),
    }
}

/// Decodes a whole stream into a buffer of exactly the declared size.
pub(super) fn decode_exact(digest: &Digest, compressed: &[u8], declared: u64) -> Result<Vec<u8>, BlobError> {
    // One byte more than declared, to tell "more" from "exactly".
    let Some(capacity) = usize::try_from(declared).ok().and_then(|n| n.checked_add(1)) else {
        return Err(BlobError::TooLarge { digest: *digest, limit: declared });
    };
    // A kilobyte that claims to hold a terabyte must not reserve one: zstd packs at most about 1:23,000.
    if declared / 40_000 > compressed.len() as u64 {
        return Err(BlobError::WrongSize { digest: *digest, declared, found: "far fewer".into() });
    }
    let mut bytes = Vec::with_capacity(capacity);
    CONTEXT.with_borrow_mut(|context| match context.decompress(&mut bytes, compressed) {
        Ok(_) => Ok(()),
        Err(code) => {
            let reason = zstd::zstd_safe::get_error_name(code);
            // ZSTD_error_dstSize_tooSmall, which has no constant in the safe API.
            if reason.contains("Destination buffer is too small") {
                Err(BlobError::too_long(digest, Size::Exact(declared)))
            } else {
                Err(BlobError::Undecodable { digest: *digest, reason: reason.into() })
            }
        }
    })?;
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Decodes one frame into at most `size` bytes; returns the decoder's message if that fails.
pub(super) fn decode_frame(compressed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(size);
    CONTEXT.with_borrow_mut(|context| {
        context
            .decompress(&mut bytes, compressed)
            // The text comes from `zstd`.
            .map_err(|code| zstd::zstd_safe::get_error_name(code).to_owned())
    })?;
    Ok(bytes)
}

pub(super) fn decode_stream(
    digest: &Digest,
    file: &mut File,
    size: Size,
    out: &mut dyn Write,
) -> Result<(), BlobError> {
    CONTEXT.with_borrow_mut(|context| {
        // An earlier stream that failed may have left the context in the middle of a frame.
        let _ = context.reset(zstd::zstd_safe::ResetDirective::SessionOnly);
        let reader = io::BufReader::with_capacity(256 << 10, file);
        let mut decoder = zstd::stream::read::Decoder::with_context(reader, context);
        let mut buffer = vec![0; 256 << 10];
        let mut total = 0u64;
        loop {
            let n = match decoder.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.raw_os_error().is_some() => return Err(BlobError::io(digest, e)),
                Err(e) => return Err(BlobError::Undecodable { digest: *digest, reason: e.to_string() }),
            };
            total += n as u64;
            if total > size.limit() {
                return Err(BlobError::too_long(digest, size));
            }
            out.write_all(&buffer[..n]).map_err(|e| BlobError::Io { digest: *digest, source: e })?;
        }
    })
}

/// Collects a payload in memory.
pub(super) struct Sink<'a> {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: &'a Digest,
    pub(super) size: Size,
}

impl Write for Sink<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        debug_assert!(self.bytes.len() as u64 <= self.size.limit(), "{}", self.digest);
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes the bytes that pass through.
pub(super) struct Hashing<'a> {
    pub(super) sink: &'a mut dyn Write,
    pub(super) hasher: sha2::Sha256,
    pub(super) written: u64,
    pub(super) digest: &'a Digest,
    pub(super) size: Size,
    pub(super) failed: Option<BlobError>,
}

impl Write for Hashing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        debug_assert!(self.written <= self.size.limit(), "{}", self.digest);
        self.hasher.update(data);
        self.sink.write_all(data).inspect_err(|e| {
            let source = io::Error::new(e.kind(), format!("cannot write its decompressed bytes: {e}"));
            self.failed = Some(BlobError::Io { digest: *self.digest, source });
        })?;
        self.written += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
