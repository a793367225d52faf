//! The calls that change a store's files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

/// Everything a store is changed by. A trait, so that tests can make each call fail, or be the last one.
pub trait StoreIo: Send + Sync + 'static {
    /// Makes a folder, and those above it that are missing.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    /// Makes an empty file where there is none.
    fn create(&self, path: &Path) -> io::Result<File> {
        File::create_new(path)
    }

    /// Writes all of `bytes` at the end of what was written to `file`, which is at `path`.
    fn write(&self, _path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Gives a file another name, taking that name from whoever has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Gives a file a second name that must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Sets a file's modification time to the present.
    fn refresh(&self, path: &Path) -> io::Result<()> {
        let now = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        };
        Ok(rustix::fs::utimensat(CWD, path, &now, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Makes a file durable.
    fn sync_file(&self, _path: &Path, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Makes a folder's names durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Makes everything in the filesystem durable that `dir` is in.
    fn sync_fs(&self, dir: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(dir)?)?)
    }
}

/// The operating system itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIo;

impl StoreIo for SystemIo {}
