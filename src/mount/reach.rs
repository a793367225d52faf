//! Uses paths of any length below an opened folder. The kernel accepts at most 4,095 bytes of a path at once, and trees may be
//! deeper. Package managers, `tar` and `rm` walk them by openat(2), so this program has to do the same.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, openat, openat2, readlinkat, statat};
use rustix::io::Errno;

/// The most bytes of a path that one call gets.
const AT_ONCE: usize = 4000;

/// Flags that open a folder without following a link.
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a path without following any link, even if a link has replaced a folder on the way.
fn open_at(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    match openat2(folder, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // A sandbox may lack the call. Then this is only sure that the last name is not a link.
        Err(Errno::NOSYS | Errno::PERM) => Ok(openat(folder, path, flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// An opened folder, below which paths of any length can be used.
#[derive(Debug)]
pub(crate) struct Top {
    path: PathBuf,
    folder: OwnedFd,
}

/// The rest of a path that fits into one call, and the folder that it starts from.
#[derive(Debug)]
struct Reached<'a> {
    top: BorrowedFd<'a>,
    opened: Option<OwnedFd>,
    rest: &'a [u8],
}

impl Reached<'_> {
    fn folder(&self) -> BorrowedFd<'_> {
        self.opened.as_ref().map_or(self.top, AsFd::as_fd)
    }
}

impl Top {
    /// Opens a folder.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), folder })
    }

    /// Opens a folder without following any link in its path.
    pub(crate) fn open_without_links(path: &Path) -> io::Result<Self> {
        let folder = open_at(rustix::fs::CWD, path.as_os_str().as_bytes(), FOLDER | OFlags::RDONLY)?;
        Ok(Self { path: path.to_owned(), folder })
    }

    /// The folder's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a path below the folder for messages. It may be too long for the kernel.
    pub(crate) fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.path.clone() } else { self.path.join(std::ffi::OsStr::from_bytes(path)) }
    }

    fn reach<'a>(&'a self, path: &'a [u8]) -> io::Result<Reached<'a>> {
        let rest = if path.is_empty() { b"." } else { path };
        let mut reached = Reached { top: self.folder.as_fd(), opened: None, rest };
        while reached.rest.len() > AT_ONCE {
            // A name has at most 255 bytes. The kernel refuses a longer one.
            let Some(at) = reached.rest[..AT_ONCE].iter().rposition(|b| *b == b'/') else { break };
            let (before, after) = (&reached.rest[..at], &reached.rest[at + 1..]);
            let opened = open_at(reached.folder(), before, FOLDER | OFlags::PATH)?;
            reached.opened = Some(opened);
            reached.rest = after;
        }
        Ok(reached)
    }

    /// Opens the folder, or one below it, for listing.
    pub(crate) fn folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let reached = self.reach(path)?;
        open_at(reached.folder(), reached.rest, FOLDER | OFlags::RDONLY)
    }

    /// Opens a file below the folder for reading. Does not wait for a fifo, and does not follow a link.
    pub(crate) fn file(&self, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let reached = self.reach(path)?;
        Ok(open_at(reached.folder(), reached.rest, flags)?.into())
    }

    /// Returns the attributes of a path below the folder. Does not follow a link.
    pub(crate) fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        let reached = self.reach(path)?;
        Ok(statat(reached.folder(), reached.rest, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Returns the target of a link below the folder.
    pub(crate) fn link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let reached = self.reach(path)?;
        Ok(readlinkat(reached.folder(), reached.rest, Vec::new())?.into_bytes())
    }

    /// Calls `call` with a path to a file below the folder that is short enough for the kernel. For calls that cannot start from
    /// an open folder.
    pub(crate) fn with_path<T>(&self, path: &[u8], call: impl FnOnce(&Path) -> T) -> io::Result<T> {
        if path.len() + self.path.as_os_str().len() < AT_ONCE {
            return Ok(call(&self.shown(path)));
        }
        let reached = self.reach(path)?;
        let start = PathBuf::from(format!("/proc/self/fd/{}", reached.folder().as_raw_fd()));
        Ok(call(&start.join(std::ffi::OsStr::from_bytes(reached.rest))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn files_folders_and_links_below_longer_paths_than_the_kernel_takes_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let name = "n".repeat(200);
        let mut folder = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..45 {
            rustix::fs::mkdirat(&folder, &*name, Mode::RWXU).unwrap();
            folder = openat(&folder, &*name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let file = openat(&folder, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        rustix::io::write(&file, b"at the bottom").unwrap();
        rustix::fs::symlinkat("file", &folder, "link").unwrap();
        let top = Top::open(dir.path()).unwrap();
        let deep = [name.as_str(); 45].join("/");
        let path = |name: &str| format!("{deep}/{name}").into_bytes();
        assert!(path("file").len() > 9000);
        let mut text = String::new();
        top.file(&path("file")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "at the bottom");
        assert_eq!(top.link(&path("link")).unwrap(), b"file");
        assert_eq!(top.stat(&path("file")).unwrap().st_size, 13);
        assert!(top.folder(deep.as_bytes()).is_ok() && top.folder(b"").is_ok());
        assert_eq!(
            top.with_path(&path("file"), |path| std::fs::read(path).unwrap()).unwrap(),
            b"at the bottom"
        );
        let errno = |path: &[u8]| top.file(path).unwrap_err().raw_os_error();
        assert_eq!(errno(&path("link")), Some(libc::ELOOP));
        // Nor is a link on the way followed.
        std::os::unix::fs::symlink(".", dir.path().join("way")).unwrap();
        std::fs::write(dir.path().join("plain"), "").unwrap();
        assert_eq!((errno(b"way/plain"), top.file(b"plain").is_ok()), (Some(libc::ELOOP), true));
        let opened =
            |name: &str| Top::open_without_links(&std::fs::canonicalize(dir.path()).unwrap().join(name));
        assert!(opened(&name).is_ok() && opened(&format!("way/{name}")).is_err());
        assert_eq!(errno(&path("none")), Some(libc::ENOENT));
        assert_eq!(errno(&vec![b'x'; 5000]), Some(libc::ENAMETOOLONG));
    }
}
