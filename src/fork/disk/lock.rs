//! The lock of the program that writes a store's forks.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};
use crate::store::Sharing;

/// Takes `forks/.lock`, unless another program has it.
pub(in crate::fork) fn lock(forks: &Path, sharing: Sharing) -> Result<Option<File>> {
    let path = forks.join(".lock");
    let failed = |e: io::Error| Error::io(e, format!("cannot open {}", path.display()));
    let file = sharing.open_or_create(File::options().write(true), &path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(failed(e.into())),
    }
}
