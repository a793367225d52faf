//! The calls that change a fork's files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use crate::store::StoreIo;
use crate::sync::wait;

/// The calls that change a fork's files. A trait, so that tests can make each of them fail.
pub trait Io: StoreIo {
    /// Writes at an offset; may write less than asked.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }

    /// Cuts a file.
    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Reserves space so that writing `len` bytes at `offset` cannot run out of it; the file's length stays.
    fn reserve(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
            // Not every filesystem can promise space. On others a write may fail late.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Reserves space for writes of `len` bytes at `offset`; the file's length stays. Fails if the filesystem
    /// cannot promise it.
    fn set_aside(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    /// Makes a file's content durable.
    fn sync_data(&self, file: &File) -> io::Result<()> {
        wait::disk("sync-data");
        file.sync_data()
    }
}

/// The operating system itself.
#[derive(Debug, Default)]
pub struct RealIo;

impl StoreIo for RealIo {}
impl Io for RealIo {}
