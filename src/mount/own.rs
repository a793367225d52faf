//! Lets threads of the daemon make calls on its own mount.
//!
//! Such a thread needs a separate table of descriptors without the connection to the kernel. Otherwise a process that is killed
//! while one of its threads waits for its own mount would hold the connection open, and wait for ever.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};

use crate::mount::mountinfo::{Mounted, mounts};
use crate::util::descriptors::own_descriptors;

/// Gives the calling thread its own table of descriptors.
pub(crate) fn prepare_thread() {
    if let Err(error) = own_descriptors() {
        tracing::info!(
            "this kernel has no close_range(2) ({error}): a daemon that is killed while it seals may hang"
        );
    }
}

/// The place of the mount.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The mountpoint.
    pub(crate) path: PathBuf,
    /// The device of the mount, as `major:minor`.
    pub(crate) device: String,
    /// The store, as the list of mounts names it.
    pub(crate) source: PathBuf,
}

impl Place {
    /// Opens the root of the mount, also if it was moved. Recognizes it by its device, since other mounts may cover it.
    ///
    /// An error says in words why the mount cannot be reached.
    pub(crate) fn root(&self) -> Result<File, String> {
        if let Some(root) = self.open(&self.path) {
            return Ok(root);
        }
        // The text comes from `mounts`.
        let all = mounts().map_err(|error| error.to_string())?;
        // The kernel reuses a device number once its mount has ended.
        let is_this = |mounted: &&Mounted| {
            mounted.is_ours()
                && mounted.device == self.device
                && mounted.source == self.source
                && mounted.root.as_os_str() == "/"
        };
        let mut ours = all.iter().filter(is_this);
        ours.find_map(|mounted| self.open(&mounted.path)).ok_or_else(|| {
            let path = self.path.display();
            format!("the mount at {path} is covered by another one, or detached while in use")
        })
    }

    fn open(&self, path: &Path) -> Option<File> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = openat(CWD, path, flags, Mode::empty()).ok()?;
        // Asks only the kernel: the daemon of a mount that covers this one may never answer.
        let asked = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = statx(&place, "", asked, StatxFlags::empty()).ok()?;
        if format!("{}:{}", found.stx_dev_major, found.stx_dev_minor) != self.device {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&place, ".", flags, Mode::empty()).ok().map(File::from)
    }
}
