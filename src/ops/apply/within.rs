//! Reading below an opened directory: through no link, across no mount.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// The kernel is given at most this many bytes of a path at once.
const AT_ONCE: usize = 4000;

/// How paths are followed.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// An opened directory.
#[derive(Debug)]
pub(crate) struct Below {
    path: PathBuf,
    folder: OwnedFd,
}

impl Below {
    /// Opens a directory. Fails on a kernel that cannot keep paths within one.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |e: Errno| Error::io(e.into(), format!("cannot open {}", path.display()));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        match openat2(&folder, c".", flags, Mode::empty(), WITHIN) {
            Ok(_) => Ok(Self { path: path.to_owned(), folder }),
            Err(Errno::NOSYS | Errno::PERM) => Err(Error::new(
                ErrorKind::Unsupported,
                "this kernel or sandbox lacks openat2(2), which keeps an apply within its directory",
            )
            .with_hint("use Linux 5.6 or later, outside a sandbox that forbids the call")),
            Err(e) => Err(failed(e)),
        }
    }

    /// A path below it, for people to read.
    pub(crate) fn shown(&self, path: &[u8]) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(path))
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let mut opened: Option<OwnedFd> = None;
        let mut rest = if path.is_empty() { b"." } else { path };
        while rest.len() > AT_ONCE {
            let Some(at) = rest[..AT_ONCE].iter().rposition(|b| *b == b'/') else { break };
            let folder = opened.as_ref().map_or(self.folder.as_fd(), AsFd::as_fd);
            let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
            opened = Some(open_within(folder, &rest[..at], flags)?);
            rest = &rest[at + 1..];
        }
        let folder = opened.as_ref().map_or(self.folder.as_fd(), AsFd::as_fd);
        Ok(open_within(folder, rest, flags | OFlags::CLOEXEC)?)
    }

    /// What is at a path, without opening it. Nothing where no such path is, or where it would lead through a link.
    pub(crate) fn look(&self, path: &[u8]) -> io::Result<Option<(OwnedFd, Stat)>> {
        let opened = match self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(opened) => opened,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        let stat = fstat(&opened)?;
        Ok(Some((opened, stat)))
    }

    /// Where a link leads that [`Self::look`] found.
    pub(crate) fn target(link: &OwnedFd) -> io::Result<Vec<u8>> {
        Ok(readlinkat(link, c"", Vec::new())?.into_bytes())
    }

    /// Opens a file for reading. A fifo is not waited for.
    pub(crate) fn file(&self, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(self.open_at(path, flags)?.into())
    }

    /// The names in a folder, sorted.
    pub(crate) fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let folder = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder)? {
            let name = entry?.file_name().to_bytes().to_owned();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn open_within(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    loop {
        match openat2(folder, path, flags, Mode::empty(), WITHIN) {
            // The kernel asks for another try where a path was renamed while it was followed.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// Whether an error says that a path is not there: a name is missing, or a folder on the way is a file or a link.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}
