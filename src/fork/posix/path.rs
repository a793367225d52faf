//! Whole files of a fork by their paths, for programs that use a fork without a mount.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::files::{Files, SetAttr};
use super::names::NewFile;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::errors::posix;
use crate::fork::ino::Ino;
use crate::fork::inode::Attr;
use crate::layers::world::Kind;

/// Permission bits of new files and directories.
const FILE_MODE: u16 = 0o644;
const DIR_MODE: u16 = 0o755;

impl Files {
    /// Writes a file. `path` starts at the top of the fork: `world/fs/notes.txt`. The old content is replaced, and missing
    /// directories are made. New files belong to the user of this process.
    ///
    /// The write survives the death of this process. [`Fork::fsync`](crate::Fork::fsync) makes it survive that of the machine.
    ///
    /// # Errors
    /// `ReadOnly`: this program may not write the fork, or the path belongs to a part of the image that never changes.
    /// `Posix`: a file stands where the path needs a directory, or the path names a directory. `InvalidInput`: the path names
    /// a link, a device or the like. `NoSpace`: the disk is full.
    pub fn write_file(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = path.as_ref();
        let about = |error: Error| error.context(format_args!("cannot write {}", path.display()));
        self.write_whole(path, bytes).map_err(about)
    }

    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let names = names(path)?;
        let (name, folders) = names.split_last().ok_or_else(is_directory)?;
        let mut parent = Ino::TOP;
        for folder in folders {
            parent = self.make(parent, folder, Kind::Dir, DIR_MODE)?.ino;
        }
        let file = self.make(parent, name, Kind::File, FILE_MODE)?;
        self.setattr(file.ino, &SetAttr { size: Some(0), ..SetAttr::default() })?;
        let mut written = 0;
        while written < bytes.len() {
            written += self.write(file.ino, written as u64, &bytes[written..], true)?;
        }
        Ok(())
    }

    /// Finds a file or directory of this kind, or makes it.
    fn make(&self, parent: Ino, name: &[u8], kind: Kind, mode: u16) -> Result<Attr> {
        match self.lookup(parent, name) {
            Ok(attr) if attr.kind == kind => Ok(attr),
            Ok(attr) if attr.kind == Kind::Dir => Err(is_directory()),
            Ok(_) if kind == Kind::Dir => {
                Err(posix(Posix::NotADirectory, "a file stands where the path needs a directory"))
            }
            Ok(_) => Err(Error::new(ErrorKind::InvalidInput, "the path names a link, a device or the like")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
                self.create(parent, name, &NewFile::new(kind, mode, uid.as_raw(), gid.as_raw()))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a file. `path` starts at the top of the fork: `world/fs/notes.txt`.
    ///
    /// # Errors
    /// `NotFound`: there is no such file. `Posix`: it is a directory. `Missing` or `Damaged`: its content is.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let about = |error: Error| error.context(format_args!("cannot read {}", path.display()));
        self.read_whole(path).map_err(about)
    }

    fn read_whole(&self, path: &Path) -> Result<Vec<u8>> {
        let mut file = self.getattr(Ino::TOP)?;
        for name in names(path)? {
            file = self.lookup(file.ino, name)?;
        }
        if file.kind == Kind::Dir {
            return Err(is_directory());
        }
        self.read_vec(file.ino, 0, usize::try_from(file.size).unwrap_or(usize::MAX))
    }
}

fn is_directory() -> Error {
    posix(Posix::IsADirectory, "the path names a directory")
}

/// The names of a path.
fn names(path: &Path) -> Result<Vec<&[u8]>> {
    path.components()
        .map(|part| match part {
            Component::Normal(name) => Ok(name.as_bytes()),
            _ => Err(Error::new(ErrorKind::InvalidInput, "the path must consist of names")
                .with_hint("leave out `/` at the beginning, `.` and `..`")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_consists_of_names() {
        assert_eq!(names(Path::new("world/fs/a")).unwrap(), [&b"world"[..], b"fs", b"a"]);
        for path in ["/world", "../world", "world/../fs"] {
            assert_eq!(names(Path::new(path)).unwrap_err().kind(), ErrorKind::InvalidInput, "{path}");
        }
    }
}
