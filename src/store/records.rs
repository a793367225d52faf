//! Small files below `refs/` in which a store remembers projects and applies.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::io::StoreIo;
use crate::error::{Error, Result};
use crate::util::sharing::Sharing;

/// Longest such file that is read, in bytes. A path in it may be longer than the kernel takes at once.
const MAX_FILE: u64 = 1 << 20;

/// Returns the names in a directory, sorted. A missing directory has none.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(e, format!("cannot list {}", dir.display()))),
    };
    let mut names: Vec<_> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Reads a small regular file, if it exists. Anything else gives no bytes.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
    }
    Ok(Some(bytes))
}

/// Makes a directory of such files in a store, if it is not there. Durable.
pub(super) fn make_dir(io: &dyn StoreIo, store: &Path, dir: &Path, sharing: Sharing) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    io.create_dir_below(store, dir, sharing)?;
    let above = dir.ancestors().skip(1).take_while(|above| above.starts_with(store));
    above.into_iter().try_for_each(|dir| io.sync_dir(dir))
}
