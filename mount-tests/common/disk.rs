//! Separate filesystems.

use std::path::Path;

use super::cli::tool;

/// A separate filesystem for a store, which is unmounted when dropped. For root.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn of_mebibytes(size: u32) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let size = format!("size={size}m");
        let args = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let args = args.iter().map(std::ffi::OsStr::new).chain([dir.path().as_os_str()]);
        tool("mount", args).exits(0);
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}
