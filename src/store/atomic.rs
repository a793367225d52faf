//! Writes files whole or not at all, under temporary names first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::io::{StoreIo, rename_new};
use crate::util::sharing::Sharing;

/// Makes names for temporary files of this program.
#[derive(Debug, Default)]
pub(super) struct TempNames {
    next: AtomicU64,
    left: AtomicU64,
}

impl TempNames {
    /// Makes a file next to `path`, with a temporary name in the style of `pf`. `pf` and pfimg skip such
    /// names.
    pub(super) fn create(
        &self,
        io: &dyn StoreIo,
        path: &Path,
        sharing: Sharing,
    ) -> io::Result<(PathBuf, File)> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let temp = path.with_extension(format!("tmp.{}.{number}", std::process::id()));
            match io.create(&temp, sharing) {
                // Left by a killed program that had the same number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => return Ok((temp, other?)),
            }
        }
    }

    /// Notes that a temporary file was renamed or removed.
    pub(super) fn done_with(&self, temp: &Path) {
        if fs::symlink_metadata(temp).is_ok() {
            tracing::warn!("{} was left behind", temp.display());
            self.left.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the temporary files that were neither renamed nor removed.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

/// Writes a small file whole, or not at all: to a temporary file, which is synced if `sync`, and then
/// renamed. An existing file is replaced; with `new` it stays, and the error is
/// [`io::ErrorKind::AlreadyExists`].
pub(crate) fn write_whole(
    io: &dyn StoreIo,
    sharing: Sharing,
    path: &Path,
    bytes: &[u8],
    new: bool,
    sync: bool,
) -> io::Result<()> {
    static NAMES: TempNames = TempNames { next: AtomicU64::new(0), left: AtomicU64::new(0) };
    let hidden = path.parent().unwrap_or(path).join(".tmp-new");
    let (temp, mut file) = NAMES.create(io, &hidden, sharing)?;
    let written = io
        .write(&temp, &mut file, bytes)
        .and_then(|()| if sync { io.sync_file(&temp, &file) } else { Ok(()) })
        .and_then(|()| if new { rename_new(io, &temp, path) } else { io.rename(&temp, path) });
    written.inspect_err(|_| {
        let _ = io.remove(&temp);
    })
}

/// Does the same durably, including the name. If the name of a new file cannot be made durable, the file is
/// removed.
pub(super) fn write_durably(
    io: &dyn StoreIo,
    sharing: Sharing,
    path: &Path,
    bytes: &[u8],
    new: bool,
) -> io::Result<()> {
    write_whole(io, sharing, path, bytes, new, true)?;
    io.sync_dir(path.parent().unwrap_or(path)).inspect_err(|_| {
        if new {
            let _ = io.remove(path);
        }
    })
}
