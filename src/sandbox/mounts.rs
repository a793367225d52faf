//! Mounts of single paths.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::sys;
use crate::error::{Error, Result};

/// Copies the mount that contains `path`, with `path` as the root of the copy. With `whole`, includes all mounts below it.
pub(super) fn tree(path: &Path, whole: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, whole);
    open_tree(CWD, path, flags).map_err(|e| Error::io(e.into(), format!("cannot show {}", path.display())))
}

/// Write-protects a copied mount.
pub(super) fn protect_tree(tree: &OwnedFd, attributes: u64) -> Result<()> {
    protect(tree.as_fd(), Path::new(""), attributes, true)
        .map_err(|e| Error::io(e, "cannot write-protect a mount of the view"))
}

/// Gives the mount at `path` attributes, and lets it have no set-user-id programs.
pub(super) fn protect(dir: BorrowedFd<'_>, path: &Path, attributes: u64, whole: bool) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    sys::change_mount(dir, &path, (attributes | libc::MOUNT_ATTR_NOSUID, 0), whole)
}

/// Write-protects the mount at `path`.
pub(super) fn write_protect(path: &Path) -> io::Result<()> {
    protect(CWD, path, libc::MOUNT_ATTR_RDONLY, false)
}
