//! The mount that `pfimg run` makes itself if a store is not mounted.
//!
//! It lies in the user's runtime directory, and its daemon ends when it is idle. Programs that use the mount
//! hold a shared lock on a file next to it. The daemon ends with the exclusive lock held. So a command either
//! finds the mount and keeps it, or waits for its end and finds none.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::statuses::read_status;
use crate::daemon::dirs::{is_private, make_private, runtime_folder};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::hints;
use crate::mount::mountinfo::mounted_at;
use crate::store::Store;
use crate::sync::Mutex;

/// How long a command waits for an ending daemon, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);

/// How long the daemon of an idle mount may take to end on request.
const ENDING: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The name of the mountpoint in its directory.
const MOUNTPOINT: &str = "mnt";

/// How long such a mount stays unused, and the variable that changes this time.
const STAYS: &str = "30s";
const STAYS_VARIABLE: &str = "PFIMG_IDLE";

/// The directories of the mounts that this process keeps.
static KEPT: OnceLock<Mutex<Vec<PathBuf>>> = OnceLock::new();

/// pfimg's own mount of one store, and its files.
#[derive(Clone, Debug)]
pub(crate) struct OwnMount {
    /// The existing directory, in which everything else is made.
    top: PathBuf,
    folder: PathBuf,
    store: PathBuf,
}

impl OwnMount {
    /// Returns where the mount of a store is, or would be.
    pub(crate) fn of(store: &Store) -> Option<Self> {
        let (top, below) = runtime_folder()?;
        Some(Self { folder: top.join(below).join(id(store)), top, store: store.root().to_owned() })
    }

    /// Returns the own mount of a store that is at a path, even if it was made below another runtime directory.
    pub(crate) fn at(store: &Store, mountpoint: &Path) -> Option<Self> {
        let folder = mountpoint.parent().filter(|_| mountpoint.ends_with(MOUNTPOINT))?;
        let is_own = folder.file_name() == Some(OsStr::new(&id(store)));
        is_own.then(|| Self {
            top: folder.to_owned(),
            folder: folder.to_owned(),
            store: store.root().to_owned(),
        })
    }

    /// The mountpoint.
    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.folder.join(MOUNTPOINT)
    }

    /// Returns the file that users of the mount lock.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// Keeps the mount until this process ends, and returns whether this call made the difference. Waits for
    /// the end of a mount that is ending. Does nothing if there was never a mount.
    pub(crate) fn keep(&self) -> Result<bool> {
        if KEPT.get_or_init(Mutex::default).lock().contains(&self.folder) {
            return Ok(false);
        }
        if !self.is_ours() {
            return Ok(false);
        }
        match File::open(self.lock_file()) {
            Ok(file) => self.hold(file).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Returns whether the directory exists and is this user's. A directory of another user, such as root's in
    /// a user namespace, holds no mount of this user, and a lock there must block nothing.
    fn is_ours(&self) -> bool {
        is_private(&self.folder).is_ok_and(|is| is)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(error, format!("cannot use the directory {}", self.folder.display()))
    }

    fn hold(&self, file: File) -> Result<()> {
        let asked = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => {
                    // The daemon sees from it that the mount was used, even by a command that has ended.
                    let _ = file.set_modified(SystemTime::now());
                    // Open until this process ends.
                    std::mem::forget(file);
                    KEPT.get_or_init(Mutex::default).lock().push(self.folder.clone());
                    return Ok(());
                }
                Err(rustix::io::Errno::WOULDBLOCK) if asked.elapsed() < PATIENCE => thread::sleep(LOOK),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let what = format!("the mount of {} has not ended within 30 s", self.store.display());
                    return Err(Error::new(ErrorKind::NoAnswer, what)
                        .with_hint(format!("run `pfimg umount {}`", self.mountpoint().display())));
                }
                Err(error) => return Err(self.failed(error.into())),
            }
        }
    }

    /// Makes the directory, and keeps the future mount.
    pub(crate) fn prepare(&self) -> Result<()> {
        make_private(&self.top, &self.mountpoint()).map_err(|e| self.failed(e))?;
        let options = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(self.lock_file()).map_err(|e| self.failed(e))?;
        self.hold(file)
    }

    /// Lets one program at a time start the daemon, while it holds the returned lock.
    pub(crate) fn alone(&self) -> Result<File> {
        let options = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(self.folder.join("start")).map_err(|e| self.failed(e))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
            .map_err(|e| self.failed(e.into()))?;
        Ok(file)
    }

    /// Starts the daemon, and returns once the mount answers. The caller holds the lock of [`Self::alone`], and
    /// keeps the mount.
    pub(crate) fn start(&self) -> Result<()> {
        let doing = "cannot mount the store";
        let stays = std::env::var_os(STAYS_VARIABLE).unwrap_or_else(|| STAYS.into());
        let program = std::env::current_exe().map_err(|e| Error::io(e, doing))?;
        let output = Command::new(program)
            .arg("mount")
            .arg("--until-idle")
            .arg(self.lock_file())
            .arg("--idle-after")
            .arg(stays)
            .arg(&self.store)
            .arg(self.mountpoint())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(|e| hints::not_started(e, doing.into()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("pfimg: ").replace('\n', "; ");
        Err(Error::new(ErrorKind::Io(None), format!("{doing} {} for this run: {said}", self.store.display())))
    }

    /// Ends an unused mount, so that another mount can write the store's forks. Without a mount, does nothing.
    pub(crate) fn end_if_idle(&self) {
        if !self.is_ours() {
            return;
        }
        let Ok(file) = File::open(self.lock_file()) else { return };
        let is_mounted = || mounted_at(&self.mountpoint()).is_ok_and(|mounted| mounted.is_some());
        if !is_mounted() || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        let Ok(status) = read_status(&self.mountpoint()) else { return };
        let daemon = i32::try_from(status.info.pid).ok().and_then(Pid::from_raw);
        if let Some(daemon) = daemon.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            && pidfd_send_signal(&daemon, Signal::TERM).is_ok()
        {
            let _ = poll(&mut [PollFd::new(&daemon, PollFlags::IN)], Some(&ENDING));
        }
    }
}

/// Returns the name of the directory for a store's mount: each path of a store has its own.
fn id(store: &Store) -> String {
    Digest::of(store.root().as_os_str().as_encoded_bytes()).hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, DirBuilder};
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn no_mount_is_kept_in_a_directory_that_others_may_enter() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("abc");
        let own = OwnMount { top: dir.path().to_owned(), folder: folder.clone(), store: "/store".into() };
        assert!(!own.keep().unwrap());
        DirBuilder::new().mode(0o700).create(&folder).unwrap();
        let lock = File::create(own.lock_file()).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        // Its owner would block every command.
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        assert!(!own.keep().unwrap());
        own.end_if_idle();
        drop(lock);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(own.keep().unwrap());
    }
}
