//! A directory that is opened once, and everything below it by that descriptor.
//!
//! No path of a user's directory is ever given to the kernel as a whole. Each parent is opened below the descriptor, through no link and
//! into no other filesystem, so that a change cannot reach anything outside, also where another program swaps a directory for a
//! link in the same moment.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, fstat, openat, openat2, statat};
use rustix::io::Errno;
use sha2::Digest as _;

use super::entry::Entry;
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::ops::import::walk::Meta;

/// The kernel is given at most this many bytes of a path at once.
const AT_ONCE: usize = 4000;

/// Bytes that are read of a file at once.
const PIECE: usize = 128 << 10;

/// Largest value of an extended attribute, and largest list of their names, in bytes.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// How often the kernel is asked again for a path on which another program renames something.
const ATTEMPTS: usize = 16;

/// Hears of each call that changes the directory or the record of an apply, before the call. A test makes a call fail, or stops there
/// for good.
pub trait Hooks: Sync {
    /// A call is about to be made. An error takes its place.
    fn call(&self, what: &'static str) -> io::Result<()> {
        let _ = what;
        Ok(())
    }

    /// The number of paths to be changed.
    fn total(&self, paths: u64) {
        let _ = paths;
    }

    /// One more path was changed.
    fn done(&self) {}
}

impl Hooks for () {}

/// An opened directory.
pub(super) struct Top<'a> {
    path: PathBuf,
    folder: File,
    meta: Meta,
    hooks: &'a dyn Hooks,
}

/// A name in an opened directory.
#[derive(Debug)]
pub(super) struct At {
    folder: OwnedFd,
    name: Vec<u8>,
}

impl At {
    /// Another name in the same directory.
    pub(super) fn sibling(&self, name: Vec<u8>) -> io::Result<Self> {
        Ok(Self { folder: self.folder.try_clone()?, name })
    }

    fn at(&self) -> (BorrowedFd<'_>, &OsStr) {
        (self.folder.as_fd(), OsStr::from_bytes(&self.name))
    }
}

/// The parent's path and the last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Whether a call is one that the filesystem does not have.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP))
}

/// Whether two names cannot be exchanged: the filesystem has no such call, or not for these two. An overlay cannot move a directory
/// of its lower layer.
pub(super) fn cannot_exchange(error: &io::Error) -> bool {
    is_unsupported(error) || Errno::from_io_error(error) == Some(Errno::XDEV)
}

/// Whether an error says that a path leads through something that does not exist, or through a file or link.
fn leads_nowhere(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

#[expect(clippy::unused_self, reason = "a look belongs to the opened directory, as a change does")]
impl<'a> Top<'a> {
    /// Opens a directory.
    pub(super) fn open(path: &Path, hooks: &'a dyn Hooks) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let meta = Meta::of(&fstat(&folder)?);
        Ok(Self { path: path.to_owned(), folder, meta, hooks })
    }

    /// Its path, as it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path below it, for people.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.path.clone() } else { self.path.join(OsStr::from_bytes(path)) }
    }

    /// What it was when it was opened.
    pub(super) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Keeps other programs of pfimg from changing the directory until it is closed. Returns whether another one does.
    pub(super) fn is_held(&self) -> bool {
        let how = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        // A filesystem without locks on directories has the store's lock alone.
        matches!(rustix::fs::flock(&self.folder, how), Err(Errno::WOULDBLOCK))
    }

    /// Lets other programs of pfimg change the directory.
    pub(super) fn release(&self) {
        let _ = rustix::fs::flock(&self.folder, rustix::fs::FlockOperation::Unlock);
    }

    pub(super) fn hooks(&self) -> &'a dyn Hooks {
        self.hooks
    }

    /// To be called before each call that changes something.
    pub(super) fn call(&self, what: &'static str) -> io::Result<()> {
        dies();
        self.hooks.call(what)
    }

    fn open_below(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let open = |folder: BorrowedFd<'_>, path: &[u8]| {
            let mut attempts = 0;
            loop {
                match openat2(folder, path, flags, Mode::empty(), within) {
                    // Something on the way was renamed in this moment.
                    Err(Errno::AGAIN | Errno::INTR) if attempts < ATTEMPTS => attempts += 1,
                    opened => return opened,
                }
            }
        };
        if path.is_empty() {
            return open(self.folder.as_fd(), b".");
        }
        let mut opened: Option<OwnedFd> = None;
        let mut rest = path;
        while rest.len() > AT_ONCE {
            // A name is at most 255 bytes. A longer one is left to the kernel, which refuses it.
            let Some(at) = rest[..AT_ONCE].iter().rposition(|byte| *byte == b'/') else { break };
            opened = Some(open(opened.as_ref().map_or(self.folder.as_fd(), AsFd::as_fd), &rest[..at])?);
            rest = &rest[at + 1..];
        }
        open(opened.as_ref().map_or(self.folder.as_fd(), AsFd::as_fd), rest)
    }

    /// The place of a path. Nothing if its parent does not exist, or is a file or link, or lies behind a link.
    pub(super) fn at(&self, path: &[u8]) -> io::Result<Option<At>> {
        let (parent, name) = split(path);
        match self.open_below(parent) {
            Ok(folder) => Ok(Some(At { folder, name: name.to_vec() })),
            Err(error) if leads_nowhere(error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether something else is where a path has a directory: a link, or a file.
    pub(super) fn leads_over_others(&self, path: &[u8]) -> bool {
        matches!(self.open_below(split(path).0), Err(Errno::LOOP | Errno::NOTDIR))
    }

    /// What is at a place now.
    pub(super) fn look(&self, at: &At) -> io::Result<Option<Meta>> {
        let (folder, name) = at.at();
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Meta::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the directory of a place is now.
    pub(super) fn look_at_folder(&self, at: &At) -> io::Result<Meta> {
        Ok(Meta::of(&fstat(&at.folder)?))
    }

    /// A directory below it, or itself, with what it is now. Nothing if there is none.
    pub(super) fn folder(&self, path: &[u8]) -> io::Result<Option<(OwnedFd, Meta)>> {
        match self.open_below(path) {
            Ok(folder) => {
                let meta = Meta::of(&fstat(&folder)?);
                Ok(Some((folder, meta)))
            }
            Err(error) if leads_nowhere(error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names in a directory.
    pub(super) fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let Some((folder, _)) = self.folder(path)? else { return Ok(Vec::new()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(&folder, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Opens a regular file for reading, if it is still the one that was looked at.
    pub(super) fn open_file(&self, at: &At, seen: &Meta) -> io::Result<Option<File>> {
        let (folder, name) = at.at();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) if leads_nowhere(error) || error == Errno::NXIO => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let is_same = Meta::of(&fstat(&file)?) == *seen;
        Ok(is_same.then_some(file))
    }

    /// The digest of a regular file. Nothing if it changes while it is read.
    fn hash(&self, at: &At, seen: &Meta) -> io::Result<Option<Digest>> {
        let Some(mut file) = self.open_file(at, seen)? else { return Ok(None) };
        let (mut hasher, mut buffer) = (sha2::Sha256::new(), vec![0; PIECE]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hasher.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let is_same = Meta::of(&fstat(&file)?) == *seen;
        Ok(is_same.then(|| Digest::from_bytes(hasher.finalize().into())))
    }

    /// What is at a place as an entry, but for hard links. Nothing for what an entry cannot say, or if it changes in this moment.
    pub(super) fn entry(&self, at: &At, seen: &Meta) -> io::Result<Option<Entry>> {
        Ok(match seen.kind {
            Kind::Dir => Some(Entry::Dir { mode: seen.mode }),
            Kind::File => self.hash(at, seen)?.map(|content| Entry::File {
                mode: seen.mode,
                content,
                size: seen.stamp.size,
                links: None,
            }),
            Kind::Symlink => self.target(at)?.map(|target| Entry::Link { target }),
            _ => None,
        })
    }

    /// The target of a link, if it is still one.
    pub(super) fn target(&self, at: &At) -> io::Result<Option<Vec<u8>>> {
        let (folder, name) = at.at();
        match rustix::fs::readlinkat(folder, name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether what was seen at a place is an entry, but for hard links.
    pub(super) fn is(&self, at: &At, seen: &Meta, entry: &Entry) -> io::Result<bool> {
        Ok(match entry {
            Entry::Dir { mode } => seen.kind == Kind::Dir && seen.mode == *mode,
            Entry::File { mode, content, size, .. } => {
                seen.kind == Kind::File
                    && seen.mode == *mode
                    && seen.stamp.size == *size
                    && self.hash(at, seen)? == Some(*content)
            }
            Entry::Link { target } => seen.kind == Kind::Symlink && self.target(at)?.as_ref() == Some(target),
        })
    }

    // From here on: calls that change something.

    /// Makes an empty file at a free place, for its owner alone.
    pub(super) fn create(&self, at: &At) -> io::Result<File> {
        self.call("create")?;
        let (folder, name) = at.at();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// A file that counts each write as a call.
    pub(super) fn writer<'f>(&'f self, file: &'f mut File) -> Counted<'f> {
        Counted { top: self, file, failed: None }
    }

    /// Sets the permissions of an opened file.
    pub(super) fn set_mode(&self, file: &File, mode: u16) -> io::Result<()> {
        self.call("chmod")?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode.into()))?;
        let is_set = Meta::of(&fstat(file)?).mode == mode;
        if is_set { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }

    /// Gives an opened file to the owner and group of another one, as far as that is allowed.
    pub(super) fn set_owner(&self, file: &File, like: &Meta) -> io::Result<()> {
        let now = Meta::of(&fstat(file)?);
        if (now.uid, now.gid) == (like.uid, like.gid) {
            return Ok(());
        }
        self.call("chown")?;
        let group = Some(rustix::fs::Gid::from_raw(like.gid));
        let owner = (now.uid != like.uid).then(|| rustix::fs::Uid::from_raw(like.uid));
        // A user cannot give files away, but may give them to another of the user's groups.
        if rustix::fs::fchown(file, owner, group).is_err() && owner.is_some() {
            let _ = rustix::fs::fchown(file, None, group);
        }
        Ok(())
    }

    /// Copies the extended attributes of a file that another one replaces, as far as that is allowed: those of users, and access lists.
    pub(super) fn copy_attributes(&self, at: &At, seen: &Meta, file: &File) -> io::Result<()> {
        let Some(old) = self.open_file(at, seen)? else { return Ok(()) };
        let mut list = vec![0; MAX_ATTRIBUTE];
        // Most files have none.
        let length = rustix::fs::flistxattr(&old, &mut list[..]).unwrap_or_default();
        let mut value = vec![0; MAX_ATTRIBUTE];
        for name in list[..length].split(|byte| *byte == 0) {
            if !name.starts_with(b"user.") && name != b"system.posix_acl_access" {
                continue;
            }
            if let Ok(length) = rustix::fs::fgetxattr(&old, name, &mut value[..]) {
                self.call("setxattr")?;
                let flags = rustix::fs::XattrFlags::empty();
                // A filesystem may have room for fewer.
                let _ = rustix::fs::fsetxattr(file, name, &value[..length], flags);
            }
        }
        Ok(())
    }

    /// Sets the permissions of the file or directory at a place, if it is still the inode that was looked at.
    pub(super) fn set_mode_at(&self, at: &At, seen: &Meta, mode: u16) -> io::Result<bool> {
        self.call("chmod")?;
        let (folder, name) = at.at();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match openat(folder, name, flags, Mode::empty()) {
            Err(error) if leads_nowhere(error) => return Ok(false),
            opened => opened?,
        };
        let now = Meta::of(&fstat(&opened)?);
        let is_same = (now.kind, now.stamp.dev, now.stamp.ino) == (seen.kind, seen.stamp.dev, seen.stamp.ino);
        if !is_same || !matches!(now.kind, Kind::File | Kind::Dir) {
            return Ok(false);
        }
        chmod_opened(&opened, mode)?;
        Ok(true)
    }

    /// Sets the permissions of a directory below it, or its own.
    pub(super) fn set_folder_mode(&self, folder: &OwnedFd, mode: u16) -> io::Result<()> {
        self.call("chmod")?;
        chmod_opened(folder, mode)
    }

    /// Makes a link.
    pub(super) fn symlink(&self, target: &[u8], at: &At) -> io::Result<()> {
        self.call("symlink")?;
        let (folder, name) = at.at();
        Ok(rustix::fs::symlinkat(OsStr::from_bytes(target), folder, name)?)
    }

    /// Gives a file a second name.
    pub(super) fn link(&self, from: &At, to: &At) -> io::Result<()> {
        self.call("link")?;
        let ((folder, name), (new_folder, new_name)) = (from.at(), to.at());
        Ok(rustix::fs::linkat(folder, name, new_folder, new_name, AtFlags::empty())?)
    }

    /// Makes a directory, for its owner alone.
    pub(super) fn mkdir(&self, at: &At, mode: u16) -> io::Result<()> {
        self.call("mkdir")?;
        let (folder, name) = at.at();
        rustix::fs::mkdirat(folder, name, Mode::RWXU)?;
        let made = openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let meta = Meta::of(&fstat(&made)?);
        // The kernel passes a directory's setgid bit on to the directories that are made in it.
        if meta.mode == mode { Ok(()) } else { self.set_folder_mode(&made, mode) }
    }

    /// Renames within a directory. What has the new name is replaced.
    pub(super) fn rename(&self, from: &At, to: &At) -> io::Result<()> {
        self.call("rename")?;
        let ((folder, name), (new_folder, new_name)) = (from.at(), to.at());
        Ok(rustix::fs::renameat(folder, name, new_folder, new_name)?)
    }

    /// Renames within a directory to a free name, or fails with [`io::ErrorKind::AlreadyExists`].
    ///
    /// Where the filesystem cannot do that in one call, a file or link gets the new name as a second one first, which fails for a name
    /// that is taken as well. A directory is then renamed after a look, and a program that makes a directory of that name in this
    /// moment loses an empty one at most.
    pub(super) fn rename_new(&self, from: &At, to: &At) -> io::Result<()> {
        let ((folder, name), (new_folder, new_name)) = (from.at(), to.at());
        let rename = || {
            self.call("rename-new")?;
            let how = RenameFlags::NOREPLACE;
            Ok::<_, io::Error>(rustix::fs::renameat_with(folder, name, new_folder, new_name, how)?)
        };
        match rename() {
            Err(e) if is_unsupported(&e) => {}
            renamed => return renamed,
        }
        if self.look(from)?.is_some_and(|seen| seen.kind != Kind::Dir) {
            match rustix::fs::linkat(folder, name, new_folder, new_name, AtFlags::empty()) {
                Err(Errno::PERM | Errno::NOSYS | Errno::NOTSUP | Errno::MLINK) => {}
                linked => {
                    linked?;
                    return self.unlink(from);
                }
            }
        }
        if self.look(to)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    /// Exchanges what has two names, in one step.
    pub(super) fn exchange(&self, one: &At, other: &At) -> io::Result<()> {
        self.call("exchange")?;
        let ((folder, name), (other_folder, other_name)) = (one.at(), other.at());
        Ok(rustix::fs::renameat_with(folder, name, other_folder, other_name, RenameFlags::EXCHANGE)?)
    }

    /// Removes a file or link.
    pub(super) fn unlink(&self, at: &At) -> io::Result<()> {
        self.call("unlink")?;
        let (folder, name) = at.at();
        Ok(rustix::fs::unlinkat(folder, name, AtFlags::empty())?)
    }

    /// Removes a directory. Returns whether it could: one that is not empty stays, and so does a mountpoint.
    pub(super) fn rmdir(&self, at: &At) -> io::Result<bool> {
        self.call("rmdir")?;
        let (folder, name) = at.at();
        match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(false),
            removed => removed.map(|()| true).map_err(Into::into),
        }
    }

    /// Makes all changes durable: one call in place of one for each file.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.call("sync")?;
        Ok(rustix::fs::syncfs(&self.folder)?)
    }
}

/// Sets the permissions of a file that is opened in any way. The kernel has no call for a descriptor that only names a file.
fn chmod_opened(opened: &OwnedFd, mode: u16) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
    rustix::fs::chmod(path, Mode::from_raw_mode(mode.into()))?;
    let is_set = Meta::of(&fstat(opened)?).mode == mode;
    if is_set { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// A file that is written, and why that failed if it did.
pub(super) struct Counted<'a> {
    top: &'a Top<'a>,
    file: &'a mut File,
    pub(super) failed: Option<io::Error>,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.top.call("write").and_then(|()| self.file.write(bytes));
        written.inspect_err(|e| {
            // The caller of this one hears of a blob, and not of the file.
            self.failed = e.raw_os_error().map(io::Error::from_raw_os_error);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Ends a debug build here, as a crash would, at the call of the number that `PFIMG_TEST_DIES` holds.
#[cfg(debug_assertions)]
fn dies() {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static AT: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("PFIMG_TEST_DIES").ok().and_then(|number| number.parse().ok()));
    static CALLS: AtomicU64 = AtomicU64::new(0);
    if AT.is_some_and(|at| CALLS.fetch_add(1, Ordering::Relaxed) >= at) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline]
fn dies() {}
