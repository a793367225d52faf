//! How payloads are compressed.

use std::cell::RefCell;
use std::io;

use rayon::prelude::*;
use zstd::bulk::Compressor;

/// zstd level of what this program writes. `pf` reads any; the level is part of no digest.
const ZSTD_LEVEL: i32 = 3;

/// Payloads of more bytes than this are written in the seekable form.
pub const SEEKABLE_FROM: u64 = 4 << 20;

/// Bytes of a piece of compressed payload; a payload of at least twice as many bytes is compressed in pieces.
pub(super) const PIECE: usize = 128 << 10;

thread_local! {
    /// Making a context costs more than compressing a small blob, so each thread keeps one.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses a payload as one frame that states its length.
pub fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        if compressor.is_none() {
            *compressor = Some(Compressor::new(ZSTD_LEVEL)?);
        }
        match compressor {
            Some(compressor) => compressor.compress(bytes),
            None => Err(io::ErrorKind::Other.into()),
        }
    })
}

/// Compresses a payload, on all cores if that is faster: then as several frames, and each frame states
/// its length.
pub(super) fn compress_in_pieces(bytes: &[u8]) -> io::Result<Vec<u8>> {
    if bytes.len() < 2 * PIECE {
        return compress(bytes);
    }
    let frames: Vec<_> = bytes.par_chunks(PIECE).map(compress).collect::<io::Result<_>>()?;
    Ok(frames.concat())
}
