//! Identifies a mount, so that no other one at its path is taken for it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatxFlags};

use crate::mount::mountinfo::{Elsewhere, Mounted, elsewhere, mounts};

/// How long `pfimg run` may take to hide the mounts of other stores from what it runs.
const HIDING: Duration = Duration::from_millis(200);

/// How often to check for that.
const LOOK: Duration = Duration::from_millis(5);

/// Distinguishes a mount from others at the same path. The device number alone is not enough, since the kernel reuses it at
/// once. Since Linux 6.8 each mount also has a number that is never reused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The device, as `major:minor`.
    pub(super) device: String,
    /// The store.
    source: PathBuf,
    unique: Option<u64>,
}

/// `STATX_MNT_ID_UNIQUE` of linux/stat.h.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

impl Identity {
    /// Returns the identity of the mount that shows at `path`. Asks only the kernel, not the daemon of the mount.
    pub(super) fn at(path: &Path, mounted: &Mounted) -> Self {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let unique = rustix::fs::statx(rustix::fs::CWD, path, flags, MNT_ID_UNIQUE)
            .ok()
            .filter(|found| found.stx_mask & MNT_ID_UNIQUE.bits() != 0)
            .map(|found| found.stx_mnt_id);
        Self { device: mounted.device.clone(), source: mounted.source.clone(), unique }
    }

    /// Finds out whether the mount, which was unmounted here, still exists elsewhere.
    pub(super) fn left(&self) -> Unmounted {
        let device = &self.device;
        let here = mounts().unwrap_or_default();
        // The kernel may have reused the device number for the mount of another store.
        let is_same = |mounted: &Mounted| {
            mounted.is_ours() && mounted.device == *device && mounted.source == self.source
        };
        if let Some(other) = here.into_iter().find(is_same) {
            return Unmounted::Shows(other.path);
        }
        let asked = Instant::now();
        let mut left = elsewhere(device);
        // A `pfimg run` that is just starting has not hidden the mount yet.
        while left == Elsewhere::Seen && asked.elapsed() < HIDING {
            thread::sleep(LOOK);
            left = elsewhere(device);
        }
        match left {
            Elsewhere::Nowhere => Unmounted::Clean,
            Elsewhere::Covered => Unmounted::Held,
            Elsewhere::Seen => Unmounted::Busy,
        }
    }
}

/// The result of an unmount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unmounted {
    /// The mount has ended.
    Clean,
    /// The mount was detached from its path. Programs can still use the files that they have open.
    Busy,
    /// The mount was removed from its path, and still shows at another: one of the two is a bind mount of the other.
    Shows(PathBuf),
    /// The mount is left only in the view of a `pfimg run` of another store, which hides it, so no program can reach it. The kernel
    /// does not tell its daemon of the end, so the daemon has to end by itself.
    Held,
    /// The mount had already ended.
    Absent,
}
