//! The target folder of an export. Every name is made relative to a folder that was opened without following
//! links, so that nothing is ever made or changed outside.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::layers::acl::{self, Acl};
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::tree::{NodeId, NodeTimes, Owner, Tree};

/// The folder, and whether files may get other owners.
#[derive(Debug)]
pub(super) struct Dest {
    root: OwnedFd,
    /// Whether owners are restored: only root may.
    owners: bool,
}

/// The attributes of a file apart from its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attrs<'a> {
    pub(super) mode: u16,
    pub(super) owner: Owner,
    pub(super) mtime_ns: i64,
    pub(super) xattrs: Option<&'a Xattrs>,
}

impl<'a> Attrs<'a> {
    pub(super) fn of(tree: &'a Tree, id: NodeId, times: &NodeTimes) -> Self {
        Self {
            mode: tree.mode(id),
            owner: tree.owner(id),
            mtime_ns: tree.shown_mtime_ns(id, times),
            xattrs: tree.xattrs(id).map(|xattrs| &**xattrs),
        }
    }
}

/// A modification time in the form of the system calls.
fn times(mtime_ns: i64) -> Timestamps {
    let (seconds, rest) = (mtime_ns.div_euclid(1_000_000_000), mtime_ns.rem_euclid(1_000_000_000));
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: rest },
    }
}

fn ids(owner: Owner) -> (Option<Uid>, Option<Gid>) {
    // The highest number means "leave unchanged" to the kernel.
    let known = |id: &u32| *id != u32::MAX;
    (owner.uid.filter(known).map(Uid::from_raw), owner.gid.filter(known).map(Gid::from_raw))
}

/// Whether a file got its owner. Root in a container may not change owners, or has no number for the new one.
fn given(outcome: rustix::io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The bits of a mode that give a program its owner's or group's rights.
const SET_ID: u16 = 0o6000;

/// The name of the owner in a list of refused attributes.
pub(super) const OWNER: &[u8] = b"owner";

impl Dest {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())?;
        Ok(Self { root, owners: rustix::process::geteuid().is_root() })
    }

    /// Opens a folder below, component by component, without following links.
    pub(super) fn folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut folder = openat(&self.root, c".", flags, Mode::empty())?;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            folder = openat(&folder, name, flags, Mode::empty())?;
        }
        Ok(folder)
    }

    /// Makes a folder that only its maker may enter until it is finished.
    pub(super) fn make_folder(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        Ok(mkdirat(parent, name, Mode::RWXU)?)
    }

    /// Makes an empty file that only its maker may open until it is finished.
    pub(super) fn make_file(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Makes a symbolic link with any target: no code here follows it.
    pub(super) fn make_link(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        target: &[u8],
        attrs: Attrs<'_>,
    ) -> io::Result<()> {
        symlinkat(target, parent, name)?;
        self.finish_named(parent, name, attrs)
    }

    /// Makes a fifo, socket or device. Returns false for a device that only root may make.
    pub(super) fn make_special(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        kind: Kind,
        rdev: u64,
        attrs: Attrs<'_>,
    ) -> io::Result<bool> {
        let file_type = match kind {
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::Chardev => FileType::CharacterDevice,
            _ => FileType::BlockDevice,
        };
        match mknodat(parent, name, file_type, Mode::RUSR | Mode::WUSR, rdev) {
            Err(Errno::PERM) if matches!(kind, Kind::Chardev | Kind::Blockdev) => return Ok(false),
            other => other?,
        }
        // Made just now, in a folder that only its maker can enter: it is not a link.
        if self.owners {
            let (uid, gid) = ids(attrs.owner);
            given(chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        }
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(u32::from(attrs.mode)), AtFlags::empty())?;
        if let Some((value, list)) = attrs.xattrs.and_then(access_list)
            && !set_list(parent, name, value)?
        {
            let mode = attrs.mode & (list.mode_alone() | !0o777);
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(u32::from(mode)), AtFlags::empty())?;
        }
        Self::set_time(parent, name, attrs.mtime_ns)?;
        Ok(true)
    }

    /// Gives a file a second name.
    pub(super) fn link(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> io::Result<()> {
        Ok(linkat(from.0, from.1, to.0, to.1, AtFlags::empty())?)
    }

    /// Whether an error of [`Dest::link`] says that the file cannot have a second name there.
    pub(super) fn cannot_link(error: &io::Error) -> bool {
        let refusals = [Errno::PERM, Errno::NOTSUP, Errno::NOSYS, Errno::MLINK];
        Errno::from_io_error(error).is_some_and(|errno| refusals.contains(&errno))
    }

    fn finish_named(&self, parent: BorrowedFd<'_>, name: &[u8], attrs: Attrs<'_>) -> io::Result<()> {
        if self.owners {
            let (uid, gid) = ids(attrs.owner);
            given(chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        }
        Self::set_time(parent, name, attrs.mtime_ns)
    }

    fn set_time(parent: BorrowedFd<'_>, name: &[u8], mtime_ns: i64) -> io::Result<()> {
        Ok(utimensat(parent, name, &times(mtime_ns), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives an open file or folder its attributes: the owner first, which would clear permissions, the time
    /// last. Returns the attributes that could not be set, since the filesystem does not support them or only
    /// root may set them.
    pub(super) fn finish(&self, file: impl AsFd, attrs: Attrs<'_>) -> io::Result<Vec<Vec<u8>>> {
        let file = file.as_fd();
        let mut refused = Vec::new();
        let (uid, gid) = ids(attrs.owner);
        let given = self.owners && given(fchown(file, uid, gid))?;
        if self.owners && !given {
            refused.push(OWNER.to_vec());
        }
        let mut mode = attrs.mode;
        if uid.is_some_and(|uid| !given && uid != rustix::process::geteuid()) {
            // It would run with the rights of the exporting user. Where no owner is recorded that is what pf
            // does.
            mode &= !SET_ID;
        }
        fchmod(file, Mode::from_raw_mode(u32::from(mode)))?;
        for (name, value) in attrs.xattrs.into_iter().flatten() {
            let Ok(c_name) = CString::new(name.as_slice()) else {
                refused.push(name.clone());
                continue;
            };
            match fsetxattr(file, &c_name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not supported here, or too large for this filesystem, though another one accepted it.
                Err(
                    Errno::NOTSUP
                    | Errno::PERM
                    | Errno::ACCESS
                    | Errno::INVAL
                    | Errno::NOSPC
                    | Errno::TOOBIG
                    | Errno::RANGE
                    | Errno::DQUOT,
                ) => refused.push(name.clone()),
                Err(e) => return Err(e.into()),
            }
        }
        let list = attrs.xattrs.and_then(access_list);
        if let Some((_, list)) = list.filter(|_| refused.iter().any(|name| name == acl::ACCESS)) {
            // The group bits are the list's mask. Without the list the group would get permissions that it
            // did not have.
            let mode = mode & (list.mode_alone() | !0o777);
            fchmod(file, Mode::from_raw_mode(u32::from(mode)))?;
        }
        futimens(file, &times(attrs.mtime_ns))?;
        Ok(refused)
    }
}

/// The attribute with an access control list, and the list.
fn access_list(xattrs: &Xattrs) -> Option<(&[u8], Acl)> {
    let value = xattrs.get(acl::ACCESS)?;
    Some((value, Acl::parse(value)?))
}

/// Sets the list of a fifo, socket or device. It must not be opened, so it is named through the folder.
/// Returns false if the filesystem does not support lists.
fn set_list(parent: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> io::Result<bool> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    match rustix::fs::lsetxattr(path, acl::ACCESS, value, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
