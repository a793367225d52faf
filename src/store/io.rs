//! The calls that change a store's files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use crate::sync::wait;
use crate::util::sharing::Sharing;

/// Every call that changes a store. A trait, so that tests can make each call fail, or be the last one.
pub trait StoreIo: Send + Sync + 'static {
    /// Makes a folder of the store in `root`, and the missing ones between; see
    /// [`Sharing::create_dir_below`].
    fn create_dir_below(&self, root: &Path, dir: &Path, sharing: Sharing) -> io::Result<()> {
        sharing.create_dir_below(root, dir)
    }

    /// Makes an empty file with a name that is free.
    fn create(&self, path: &Path, sharing: Sharing) -> io::Result<File> {
        sharing.create_new(path)
    }

    /// Writes all of `bytes` at the end of `file`, which is at `path`.
    fn write(&self, _path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Renames a file. A file that has the new name is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        wait::disk("rename");
        fs::rename(from, to)
    }

    /// Renames a file in one step; the new name must be free. Not every filesystem supports this;
    /// `rename_new` works everywhere.
    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        wait::disk("rename");
        Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }

    /// Gives a file a second name that must be free. Not every filesystem has hard links.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        wait::disk("remove");
        fs::remove_file(path)
    }

    /// Sets a file's modification time to the present.
    fn refresh(&self, path: &Path) -> io::Result<()> {
        let set = |access| {
            let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
            let times = Timestamps { last_access: time(access), last_modification: time(UTIME_NOW) };
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        };
        match set(UTIME_OMIT) {
            // Another member of the group owns the file. A user who may write a file may set both times to the present.
            Err(Errno::PERM) => Ok(set(UTIME_NOW)?),
            other => Ok(other?),
        }
    }

    /// Makes a file durable.
    fn sync_file(&self, _path: &Path, file: &File) -> io::Result<()> {
        wait::disk("sync-file");
        file.sync_all()
    }

    /// Makes a folder's names durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        wait::disk("sync-dir");
        File::open(dir)?.sync_all()
    }

    /// Makes everything in the filesystem of `dir` durable.
    fn sync_fs(&self, dir: &Path) -> io::Result<()> {
        wait::disk("sync-fs");
        Ok(rustix::fs::syncfs(File::open(dir)?)?)
    }
}

/// Renames a file; the new name must be free, else the error is [`io::ErrorKind::AlreadyExists`]. Needs no
/// hard links.
///
/// Where the filesystem cannot rename without replacing, an empty file takes the name first and is replaced
/// then. A crash between the two leaves the empty file, and the file under its old name. An empty file is
/// neither a valid tag nor a valid head, so it is never mistaken for one. Other programs see the empty file
/// for that moment.
pub(crate) fn rename_new(io: &dyn StoreIo, from: &Path, to: &Path) -> io::Result<()> {
    match io.rename_noreplace(from, to) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP)) => {
            drop(io.create(to, Sharing::Private)?);
            io.rename(from, to).inspect_err(|_| {
                let _ = io.remove(to);
            })
        }
        other => other,
    }
}

/// The operating system itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIo;

impl StoreIo for SystemIo {}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A filesystem that cannot rename without replacing, and cannot link; here the second rename may fail.
    struct Plain {
        fails: bool,
    }

    impl StoreIo for Plain {
        fn rename_noreplace(&self, _: &Path, _: &Path) -> io::Result<()> {
            Err(Errno::INVAL.into())
        }
        fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
            Err(Errno::PERM.into())
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            if self.fails { Err(Errno::NOSPC.into()) } else { SystemIo.rename(from, to) }
        }
    }

    fn two_files() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, "1").unwrap();
        (dir, one, two)
    }

    #[test]
    fn a_file_gets_a_free_name_and_never_a_taken_one_on_every_kind_of_filesystem() {
        for io in [&SystemIo as &dyn StoreIo, &Plain { fails: false }] {
            let (_dir, one, two) = two_files();
            rename_new(io, &one, &two).unwrap();
            assert_eq!((one.exists(), fs::read(&two).unwrap()), (false, b"1".to_vec()));
            fs::write(&one, "another").unwrap();
            let error = rename_new(io, &one, &two).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(
                (fs::read(&one).unwrap(), fs::read(&two).unwrap()),
                (b"another".to_vec(), b"1".to_vec())
            );
        }
    }

    #[test]
    fn a_file_that_cannot_get_its_new_name_keeps_the_old_one_and_leaves_the_new_one_free() {
        let (_dir, one, two) = two_files();
        rename_new(&Plain { fails: true }, &one, &two).unwrap_err();
        assert_eq!((fs::read(&one).unwrap(), two.exists()), (b"1".to_vec(), false));
    }
}
