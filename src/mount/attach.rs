//! Mounts and unmounts: as root by mount(2), otherwise through fusermount3 (FUSE's `_FUSE_COMMFD` protocol).
//!
//! The FUSE library's own functions are not used: they fail while files are open, and can unmount another filesystem that was
//! later mounted at the same path. Here a mount is identified by a number that the kernel never reuses, and only that mount is
//! unmounted.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{ffi::CString, ffi::OsStr};

use rustix::fs::FlockOperation;
use rustix::mount::UnmountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::hints;
use super::options::MountOptions;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::mount::identity::Identity;
pub(crate) use crate::mount::identity::Unmounted;
use crate::mount::mountinfo::{FS_TYPE, Mounted, mounted_at, mounts};
use crate::mount::silent::{self, Answer, Question};

const FUSERMOUNT: &str = "fusermount3";

/// How long to wait for another program that mounts at the same place, and how often to check.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// How long to watch a mount that answers, since its daemon may just have been killed, and how often to check.
const DYING: Duration = Duration::from_millis(200);
const PREPARES: u32 = 10;

/// How long the daemon may use its own mount, for instance to tell watchers of a seal.
const OWN_USE: Duration = Duration::from_millis(300);

/// A mount of this program.
#[derive(Debug)]
pub(crate) struct OwnMount {
    pub(crate) path: PathBuf,
    identity: Identity,
}

/// Returns the absolute path of a mountpoint, even of a dead mount, which answers only ENOTCONN.
pub(crate) fn absolute(mountpoint: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(e, format!("cannot use {} as a mountpoint", mountpoint.display()));
    match fs::canonicalize(mountpoint) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            let absolute = std::path::absolute(mountpoint).map_err(failed)?;
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                return Err(failed(e));
            };
            Ok(fs::canonicalize(parent).map_err(failed)?.join(name))
        }
        other => other.map_err(failed),
    }
}

/// Makes sure that a store can be mounted at `path`: unmounts a dead mount of this program, and refuses a live one.
pub(crate) fn prepare(path: &Path) -> Result<()> {
    prepare_within(path, PREPARES)
}

fn prepare_within(path: &Path, patience: u32) -> Result<()> {
    let shown = path.display();
    if let Some(mounted) = mounted_at(path)? {
        let Some(dead) = is_dead(path) else {
            if mounted.is_ours() {
                return Err(silent::no_answer(&mounted).context("a store is mounted there already"));
            }
            let what = format!(
                "{shown} is a mount of another filesystem ({}) that does not answer",
                mounted.fs_type
            );
            return Err(Error::new(ErrorKind::NoAnswer, what).with_hint("name another directory"));
        };
        match (mounted.is_ours(), dead) {
            (true, true) => {
                detach(path, true)?;
                tracing::info!("unmounted the dead mount that an ended daemon left at {shown}");
            }
            // A daemon that was killed keeps its connection for a moment.
            (true, false) if patience > 0 => {
                std::thread::sleep(DYING / PREPARES);
                return prepare_within(path, patience - 1);
            }
            (true, false) => {
                return Err(Error::new(ErrorKind::Busy, format!("a store is mounted at {shown} already"))
                    .with_hint(format!("end it with `pfimg umount {shown}`")));
            }
            (false, true) => {
                let fs_type = mounted.fs_type;
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("{shown} is a dead mount of another filesystem ({fs_type})"),
                )
                .with_hint(format!("run `umount {shown}`")));
            }
            (false, false) => {}
        }
    }
    let metadata = fs::metadata(path).map_err(|e| {
        let absent = e.kind() == std::io::ErrorKind::NotFound;
        let failed = Error::io(e, format!("cannot use {shown} as a mountpoint"));
        if absent { failed.with_hint(format!("make it with `mkdir -p {shown}`")) } else { failed }
    })?;
    if metadata.is_dir() {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Posix(Posix::NotADirectory),
            format!("{shown} is not a directory, so nothing can be mounted there"),
        ))
    }
}

/// Whether the daemon of the mount at a path has ended. Returns none if the daemon does not answer.
///
/// Does not use stat(2), which the kernel would answer from its cache.
fn is_dead(path: &Path) -> Option<bool> {
    match silent::ask_one(Question::Space(path.to_owned())) {
        Answer::Failed(e) => Some(silent::has_ended(&e)),
        Answer::Is(_) => Some(false),
        Answer::None => None,
    }
}

/// Unmounts a dead mount of this program at a path, if there is one. Its daemon may have ended just now.
pub(crate) fn clear_dead(mountpoint: &Path) -> Result<()> {
    for _ in 0..PREPARES {
        if !mounted_at(mountpoint)?.is_some_and(|mounted| mounted.is_ours()) {
            return Ok(());
        }
        if is_dead(mountpoint) == Some(true) {
            return detach(mountpoint, true);
        }
        // A daemon that was killed keeps its connection for a moment.
        std::thread::sleep(DYING / PREPARES);
    }
    Ok(())
}

/// Mounts a store and returns the connection to the kernel.
///
/// `source` is the name that the list of mounts shows: the store's folder.
pub(crate) fn mount(path: &Path, source: &Path, options: &MountOptions) -> Result<(OwnedFd, OwnMount)> {
    // Two mounts at the same time must not cover each other: the second would be taken for the first.
    let _alone = alone_at(path)?;
    prepare(path)?;
    let fd = if rustix::process::geteuid().is_root() {
        match mount_directly(path, source, options) {
            // Root in a container may lack the capability, but fusermount3 may still be able to mount.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                mount_by_helper(path, source, options)
                    .map_err(|helper| hints::root_refused(error.with_source(helper)))?
            }
            other => other?,
        }
    } else {
        if options.suid || options.dev {
            return Err(Error::new(ErrorKind::PermissionDenied, "only root can mount with suid or dev")
                .with_hint("leave these options out"));
        }
        mount_by_helper(path, source, options)?
    };
    let mounted = mounted_at(path)?.filter(Mounted::is_ours).ok_or_else(|| {
        Error::new(
            ErrorKind::Io(None),
            format!("{} was mounted but is missing in /proc/self/mountinfo", path.display()),
        )
    })?;
    Ok((fd, OwnMount { path: path.to_owned(), identity: Identity::at(path, &mounted) }))
}

/// Locks the mountpoint's folder until the result is dropped.
fn alone_at(path: &Path) -> Result<Option<File>> {
    // A mountpoint need not be readable. Without a lock, two programs that mount there at the same time are not detected.
    let Ok(folder) = File::open(path) else { return Ok(None) };
    let asked = Instant::now();
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(folder)),
            // The filesystem has no locks.
            Err(e) if e != rustix::io::Errno::WOULDBLOCK => return Ok(None),
            Err(_) if asked.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            Err(_) => {
                let what = format!("another program is mounting at {}, or has locked it", path.display());
                return Err(Error::new(ErrorKind::Busy, what).with_hint("try again"));
            }
        }
    }
}

fn device_error(e: io::Error) -> Error {
    let error = Error::io(e, "cannot open /dev/fuse");
    match error.kind() {
        ErrorKind::NotFound => {
            error.with_hint("load the kernel module: modprobe fuse; in a container, pass --device /dev/fuse")
        }
        ErrorKind::PermissionDenied => {
            error.with_hint("set its mode to 0666, as Debian's package fuse3 does at boot")
        }
        _ => error,
    }
}

fn mount_directly(path: &Path, source: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(device_error)?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    if options.need_checks() {
        data.push_str(",default_permissions");
    }
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data =
        CString::new(data).map_err(|_| Error::new(ErrorKind::InvalidInput, "mount options contain NUL"))?;
    rustix::mount::mount(source, path, FS_TYPE, options.flags(), &*data).map_err(|e| {
        // EPERM means here that the caller may not mount.
        let kind = if e == rustix::io::Errno::PERM {
            ErrorKind::PermissionDenied
        } else {
            ErrorKind::Io(Some(e.raw_os_error()))
        };
        Error::new(kind, format!("cannot mount at {}", path.display())).with_source(io::Error::from(e))
    })?;
    Ok(device.into())
}

fn mount_by_helper(path: &Path, source: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| Error::io(e.into(), "cannot make a socket for fusermount3");
    // The helper gets its end as standard input, so that no other program that this process starts gets it.
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(options.for_fusermount(source))
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| hints::helper_not_started(e, FUSERMOUNT))?;
    let received = receive_fd(&ours);
    let output = child.wait_with_output().map_err(|e| Error::io(e, format!("cannot run {FUSERMOUNT}")))?;
    match received {
        Ok(Some(fd)) if output.status.success() => Ok(fd),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().trim_start_matches("fusermount3: ");
            let error = Error::new(
                ErrorKind::PermissionDenied,
                format!("fusermount3 cannot mount at {}: {said}", path.display()),
            );
            Err(if said.contains("user_allow_other") {
                error.with_hint("add user_allow_other to /etc/fuse.conf, as root")
            } else if said.contains("/dev/fuse") {
                error.with_hint("set the mode of /dev/fuse to 0666, as Debian's package fuse3 does at boot")
            } else if said.contains("determine username") {
                error.with_hint(
                    "this user has no name: add a line for the user to /etc/passwd, or mount in a user namespace: \
                     `unshare --user --map-root-user --mount`, then `pfimg mount` in its shell",
                )
            } else {
                hints::helper_refused(error, FUSERMOUNT)
            })
        }
    }
}

fn receive_fd(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fd)
}

/// Detaches the mount at a path; with `lazily` even if programs use it.
fn detach(path: &Path, lazily: bool) -> Result<()> {
    let failed = |e| Error::io(e, format!("cannot unmount {}", path.display()));
    if rustix::process::geteuid().is_root() {
        let mut flags = UnmountFlags::NOFOLLOW;
        flags.set(UnmountFlags::DETACH, lazily);
        match rustix::mount::unmount(path, flags) {
            Err(rustix::io::Errno::PERM) => {}
            other => return other.map_err(|e| failed(e.into())),
        }
    }
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    let output = command
        .args([OsStr::new("--"), path.as_os_str()])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| hints::helper_not_started(e, FUSERMOUNT))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if said.contains("busy") {
        ErrorKind::Busy
    } else if said.contains("not permitted") {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::Io(None)
    };
    let error = Error::new(kind, format!("cannot unmount {}: {said}", path.display()));
    Err(if kind == ErrorKind::Busy { error } else { hints::helper_refused(error, FUSERMOUNT) })
}

/// Detaches a mount if it is the one that shows at its path, even if programs use it.
fn unmount_identity(path: &Path, identity: &Identity) -> Result<Unmounted> {
    match mounted_at(path)? {
        Some(mounted) if mounted.is_ours() => {
            if Identity::at(path, &mounted) != *identity {
                return Ok(Unmounted::Absent);
            }
        }
        Some(cover) if mounts()?.iter().any(|m| m.path == path && m.device == identity.device) => {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} is covered by another mount ({})", path.display(), cover.fs_type),
            )
            .with_hint(format!("run `umount {}` first", path.display())));
        }
        _ => return Ok(Unmounted::Absent),
    }
    let asked = Instant::now();
    let mut detached = detach(path, false);
    // After a seal or a restore the daemon itself has files of its mount open for a moment.
    while detached.as_ref().is_err_and(|e| e.errno() == libc::EBUSY) && asked.elapsed() < OWN_USE {
        std::thread::sleep(4 * LOOK);
        detached = detach(path, false);
    }
    match detached {
        Ok(()) => Ok(identity.left()),
        Err(error) if error.errno() == libc::EBUSY => detach(path, true).map(|()| Unmounted::Busy),
        // Another program unmounted it between the check and the call.
        Err(error) if matches!(error.errno(), libc::EINVAL | libc::ENOENT) => Ok(Unmounted::Absent),
        Err(error) => Err(error),
    }
}

impl OwnMount {
    /// Finds out whether the mount still exists elsewhere after any program has unmounted it here.
    pub(crate) fn left(&self) -> Unmounted {
        self.identity.left()
    }

    /// Its device, as `major:minor`.
    pub(crate) fn device(&self) -> &str {
        &self.identity.device
    }

    /// Unmounts this mount, but no other one at its path.
    pub(crate) fn unmount(&self) -> Result<Unmounted> {
        unmount_identity(&self.path, &self.identity)
    }

    /// Whether the mount still exists, as far as the kernel's list of mounts shows.
    pub(crate) fn is_mounted(&self) -> bool {
        match mounted_at(&self.path) {
            Ok(Some(mounted)) => mounted.is_ours() && Identity::at(&self.path, &mounted) == self.identity,
            Ok(None) => false,
            Err(_) => true,
        }
    }
}

/// A mount that shows at a path and that its daemon may end.
#[derive(Debug)]
pub(crate) struct MountHere {
    path: PathBuf,
    identity: Identity,
}

impl MountHere {
    /// Returns the mount that shows at a path now. Asks only the kernel.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let mounted = mounted_at(path)?.filter(Mounted::is_ours).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no store is mounted at {}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), identity: Identity::at(path, &mounted) })
    }

    /// Unmounts it if no program uses it, and returns whether it has ended. A working folder of a program counts as use.
    pub(crate) fn unmount_unless_busy(&self) -> Result<bool> {
        match mounted_at(&self.path)? {
            Some(mounted) if mounted.is_ours() && Identity::at(&self.path, &mounted) == self.identity => {}
            // Another mount covers this one, or this one has ended, and the kernel tells its daemon.
            Some(_) => return Ok(false),
            None => return Ok(true),
        }
        match detach(&self.path, false) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == libc::EBUSY => Ok(false),
            Err(error) if matches!(error.errno(), libc::EINVAL | libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl MountHere {
    /// Whether it shows in another mount namespace after it was unmounted here.
    pub(crate) fn shows_elsewhere(&self) -> bool {
        self.identity.left() != Unmounted::Clean
    }
}

/// Changes options of the mount at `mountpoint` that mount(2) can change. `lists` use the words of mount(8). Only root can do
/// this.
pub(crate) fn remount(mountpoint: &Path, lists: &[String]) -> Result<()> {
    let path = absolute(mountpoint)?;
    let shown = path.display();
    let Some(mounted) = mounted_at(&path)?.filter(Mounted::is_ours) else {
        return Err(Error::new(ErrorKind::NotFound, format!("no store is mounted at {shown}"))
            .with_hint("list the mounts with `pfimg status`"));
    };
    // Options that no list names stay.
    let mut options = MountOptions::default();
    for word in mounted.options.split(',') {
        // Another program may have added words that pfimg does not know.
        let _ = options.apply(word);
    }
    for list in lists {
        options.apply(list)?;
    }
    rustix::mount::mount_remount(&path, options.flags(), c"").map_err(|e| {
        if e == rustix::io::Errno::PERM {
            let what = format!("cannot remount {shown}: only root can");
            return Error::new(ErrorKind::PermissionDenied, what)
                .with_hint("run `pfimg umount`, then `pfimg mount --read-only`");
        }
        Error::io(e.into(), format!("cannot remount {shown}"))
    })
}

/// Unmounts the store that is mounted at `mountpoint`, dead or alive. Refuses to unmount another filesystem.
pub(crate) fn unmount(mountpoint: &Path) -> Result<Unmounted> {
    let path = absolute(mountpoint)?;
    let nothing = |what: String| {
        Err(Error::new(ErrorKind::NotFound, what).with_hint("list the mounts with `pfimg status`"))
    };
    match mounted_at(&path)? {
        Some(mounted) if mounted.is_ours() => unmount_identity(&path, &Identity::at(&path, &mounted)),
        Some(mounted) => {
            nothing(format!("the mount at {} is not a store but {}", path.display(), mounted.fs_type))
        }
        None => nothing(format!("nothing is mounted at {}", path.display())),
    }
}
