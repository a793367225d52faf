//! A folder for all files and mounts of a run. It leaves none of them behind, even after an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::result::Result;

/// How long to try to delete the folder.
const END: Duration = Duration::from_secs(10);

/// How long ext4 remembers what was deleted.
const REST: Duration = Duration::from_mins(1);

/// The program under test. Set once, before anything is mounted.
pub(crate) static PFIMG: OnceLock<PathBuf> = OnceLock::new();

/// Runs the program under test.
pub(crate) fn pfimg(command: &str) -> Command {
    let mut pfimg = Command::new(PFIMG.get_or_init(|| env!("CARGO_BIN_EXE_pfimg").into()));
    pfimg.arg(command).stdin(Stdio::null());
    pfimg
}

/// The folder, and whether a stop was requested.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    stopped: Arc<AtomicBool>,
    cleans_up: bool,
    /// When something was last made or deleted where the folder is.
    touched: SystemTime,
}

impl Scratch {
    /// Makes the folder in `parent`, to be deleted in the end unless it is to be kept, and takes SIGINT, SIGTERM and SIGHUP.
    pub(crate) fn new(parent: &Path, keep: bool) -> Result<Self> {
        fs::create_dir_all(parent)?;
        let touched = fs::metadata(parent)?.modified()?;
        let mut dir = tempfile::Builder::new().prefix("pfimg-bench-").tempdir_in(parent.canonicalize()?)?;
        dir.disable_cleanup(keep);
        let stopped = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stopped))?;
        }
        Ok(Self { dir, stopped, cleans_up: !keep, touched })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a folder in it that was not there.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(self.path())?;
        fs::create_dir(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        Ok(path)
    }

    /// Waits until nothing was deleted here for a minute, for instance by the run before: until then ext4 without a journal
    /// takes several times longer to make a file, since it does not use an inode again so soon.
    pub(crate) fn let_rest(&self) -> Result<()> {
        rustix::fs::sync();
        while self.touched.elapsed().is_ok_and(|passed| passed < REST) {
            self.go_on()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Fails once a stop was requested, so that the caller unwinds and everything is cleaned up.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.stopped.load(Ordering::Relaxed) { Err("stopped by a signal".into()) } else { Ok(()) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Twice: a mount that is busy at first may be free after its users have ended.
        for _ in 0..2 {
            for mountpoint in mounts_below(self.path()).into_iter().rev() {
                let gone = pfimg("umount").arg(&mountpoint).stderr(Stdio::null()).status();
                if !gone.is_ok_and(|status| status.success()) {
                    let _ = rustix::mount::unmount(&mountpoint, rustix::mount::UnmountFlags::DETACH);
                }
            }
        }
        let left = mounts_below(self.path());
        if !left.is_empty() {
            // Removing the folder would then reach into the mount.
            eprintln!("still mounted, and so {} is left: {left:?}", self.path().display());
            self.dir.disable_cleanup(true);
            return;
        }
        // A mount that was unmounted just now may still be written to.
        let started = Instant::now();
        while self.cleans_up && fs::remove_dir_all(self.path()).is_err() && started.elapsed() < END {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Mountpoints below a folder, in the order they were mounted.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(dir))
        .collect()
}
