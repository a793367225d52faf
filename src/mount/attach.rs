//! Mounting and unmounting: as root by mount(2), else through fusermount3 (FUSE's `_FUSE_COMMFD` protocol).
//!
//! The FUSE library's own way is not used: it can unmount another filesystem that was mounted at the same path
//! meanwhile, and fails while files are open. Here a mount is known by a number the kernel gives out once, and only that
//! one is ever unmounted.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{ffi::CString, ffi::OsStr};

use rustix::fs::{AtFlags, FlockOperation, StatxFlags};
use rustix::mount::UnmountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::hints;
use super::options::MountOptions;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::mount::mountinfo::{Elsewhere, FS_TYPE, Mounted, elsewhere, mounted_at, mounts};
use crate::mount::silent::{self, Answer, Question};

const FUSERMOUNT: &str = "fusermount3";

/// How long another mount at the same place is waited for, and how often it is looked whether it is done.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// How long a mount that answers is given to turn out to be that of a daemon which was killed, and how often it is looked at meanwhile.
const DYING: Duration = Duration::from_millis(200);
const PREPARES: u32 = 10;

/// How long the daemon may use its own mount, for instance to tell watchers of a seal.
const OWN_USE: Duration = Duration::from_millis(300);

/// How long `pfimg run` may take to hide the mounts of other stores from what it runs.
const HIDING: Duration = Duration::from_millis(200);

/// A mount of ours that is there.
#[derive(Debug)]
pub(crate) struct OwnMount {
    pub(crate) path: PathBuf,
    identity: Identity,
}

/// What tells one mount from another at the same path. The kernel gives device numbers out again at once, so that
/// they alone do not; since Linux 6.8 it also has a number for each mount that never comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    device: String,
    /// The store.
    source: PathBuf,
    unique: Option<u64>,
}

/// `STATX_MNT_ID_UNIQUE` of linux/stat.h.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

impl Identity {
    /// That of what shows at `path`. Asks the kernel only, not the daemon behind the mount.
    fn at(path: &Path, mounted: &Mounted) -> Self {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let unique = rustix::fs::statx(rustix::fs::CWD, path, flags, MNT_ID_UNIQUE)
            .ok()
            .filter(|found| found.stx_mask & MNT_ID_UNIQUE.bits() != 0)
            .map(|found| found.stx_mnt_id);
        Self { device: mounted.device.clone(), source: mounted.source.clone(), unique }
    }
}

/// How an unmounting went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unmounted {
    /// It is gone.
    Clean,
    /// It is gone from the tree of files; programs that use it keep what they have open.
    Busy,
    /// It is gone from that path, and shows at another one: one of the two is a bind mount of the other.
    Shows(PathBuf),
    /// It is gone, but where nobody gets to it: below what hides it from a command that is kept to a fork of another store. Its daemon
    /// is not told of the end, and has to be.
    Held,
    /// It was gone already.
    Absent,
}

/// The absolute path of a mountpoint, also where a dead mount answers nothing but ENOTCONN.
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

/// Makes sure that something can be mounted at `path`: clears a dead mount of ours, refuses a live one.
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
            return Err(Error::new(ErrorKind::NoAnswer, what).with_hint("name another folder"));
        };
        match (mounted.is_ours(), dead) {
            (true, true) => {
                detach(path, true)?;
                tracing::info!("cleared the dead mount that an ended daemon left at {shown}");
            }
            // A daemon that is being killed has its connection for a moment.
            (true, false) if patience > 0 => {
                std::thread::sleep(DYING / PREPARES);
                return prepare_within(path, patience - 1);
            }
            (true, false) => {
                return Err(Error::new(ErrorKind::Busy, format!("a store is mounted at {shown} already"))
                    .with_hint(format!("`pfimg umount {shown}` ends it")));
            }
            (false, true) => {
                let fs_type = mounted.fs_type;
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("{shown} is a dead mount of another filesystem ({fs_type})"),
                )
                .with_hint("unmount it first"));
            }
            (false, false) => {}
        }
    }
    let metadata = fs::metadata(path).map_err(|e| {
        let absent = e.kind() == std::io::ErrorKind::NotFound;
        let failed = Error::io(e, format!("cannot use {shown} as a mountpoint"));
        if absent { failed.with_hint(format!("`mkdir -p {shown}` makes it")) } else { failed }
    })?;
    if metadata.is_dir() {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Posix(Posix::NotADirectory),
            format!("{shown} is not a folder, so nothing can be mounted there"),
        ))
    }
}

/// Whether the daemon of what is mounted at a path has ended; nothing if it does not answer.
///
/// Not by stat: the kernel goes on answering it from what it knows.
fn is_dead(path: &Path) -> Option<bool> {
    match silent::ask_one(Question::Space(path.to_owned())) {
        Answer::Failed(e) => Some(silent::has_ended(&e)),
        Answer::Is(_) => Some(false),
        Answer::None => None,
    }
}

/// Takes away a mount of ours whose daemon has just ended, if one shows at a path.
pub(crate) fn clear_dead(mountpoint: &Path) -> Result<()> {
    for _ in 0..PREPARES {
        if !mounted_at(mountpoint)?.is_some_and(|mounted| mounted.is_ours()) {
            return Ok(());
        }
        if is_dead(mountpoint) == Some(true) {
            return detach(mountpoint, true);
        }
        // A daemon that was killed has its connection for a moment.
        std::thread::sleep(DYING / PREPARES);
    }
    Ok(())
}

/// Mounts and returns the connection to the kernel.
///
/// `source` is what the list of mounts calls what is mounted.
pub(crate) fn mount(path: &Path, source: &Path, options: &MountOptions) -> Result<(OwnedFd, OwnMount)> {
    // Two that start at once must not lie on each other: the second would pass for the first.
    let _alone = alone_at(path)?;
    prepare(path)?;
    let fd = if rustix::process::geteuid().is_root() {
        match mount_directly(path, source, options) {
            // Root in a container need not have the capability, but fusermount3 may help all the same.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                mount_by_helper(path, source, options)
                    .map_err(|helper| hints::root_refused(error.with_source(helper)))?
            }
            other => other?,
        }
    } else {
        if options.suid || options.dev {
            return Err(Error::new(ErrorKind::PermissionDenied, "only root may mount with suid or dev"));
        }
        mount_by_helper(path, source, options)?
    };
    let mounted = mounted_at(path)?.filter(Mounted::is_ours).ok_or_else(|| {
        Error::new(ErrorKind::Io(None), format!("{} was mounted but is not in mountinfo", path.display()))
    })?;
    Ok((fd, OwnMount { path: path.to_owned(), identity: Identity::at(path, &mounted) }))
}

/// Locks the folder that will be covered, until what is returned is dropped.
fn alone_at(path: &Path) -> Result<Option<File>> {
    // A folder that may be mounted on need not be readable. Then two at once are not told apart.
    let Ok(folder) = File::open(path) else { return Ok(None) };
    let asked = Instant::now();
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(folder)),
            // Not every filesystem has locks.
            Err(e) if e != rustix::io::Errno::WOULDBLOCK => return Ok(None),
            Err(_) if asked.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            Err(_) => {
                let what = format!("somebody else is mounting at {}, or has locked it", path.display());
                return Err(Error::new(ErrorKind::Busy, what));
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
            error.with_hint("it needs mode 0666, which Debian's package fuse3 sets at boot")
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
        // EPERM is "not allowed" here, whatever else it may mean.
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
    // The helper's end has to survive exec, ours must not.
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)
            .map_err(failed)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(failed)?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(options.for_fusermount(source))
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| hints::helper_not_started(e, FUSERMOUNT))?;
    drop(theirs);
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
                error.with_hint("root has to put user_allow_other into /etc/fuse.conf")
            } else if said.contains("/dev/fuse") {
                error.with_hint("/dev/fuse needs mode 0666, which Debian's package fuse3 sets at boot")
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

/// Takes a mount off its path, lazily if told so.
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

/// Takes a mount off its path if it is the one that shows there; lazily if it is busy.
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
            .with_hint("unmount that one first"));
        }
        _ => return Ok(Unmounted::Absent),
    }
    let asked = Instant::now();
    let mut detached = detach(path, false);
    // After a seal or a restore the daemon itself has something of its mount open for a moment.
    while detached.as_ref().is_err_and(|e| e.errno() == libc::EBUSY) && asked.elapsed() < OWN_USE {
        std::thread::sleep(4 * LOOK);
        detached = detach(path, false);
    }
    match detached {
        Ok(()) => Ok(left_of(identity)),
        Err(error) if error.errno() == libc::EBUSY => detach(path, true).map(|()| Unmounted::Busy),
        // Gone between the look and the call.
        Err(error) if matches!(error.errno(), libc::EINVAL | libc::ENOENT) => Ok(Unmounted::Absent),
        Err(error) => Err(error),
    }
}

/// What is left of a mount that was unmounted here.
fn left_of(identity: &Identity) -> Unmounted {
    let device = &identity.device;
    let here = mounts().unwrap_or_default();
    // The kernel may have given the device number to another store's mount by now.
    let is_same = |mounted: &Mounted| {
        mounted.is_ours() && mounted.device == *device && mounted.source == identity.source
    };
    if let Some(other) = here.into_iter().find(is_same) {
        return Unmounted::Shows(other.path);
    }
    let asked = Instant::now();
    let mut left = elsewhere(device);
    // A command that is being started has not hidden it yet.
    while left == Elsewhere::Seen && asked.elapsed() < HIDING {
        std::thread::sleep(LOOK);
        left = elsewhere(device);
    }
    match left {
        Elsewhere::Nowhere => Unmounted::Clean,
        Elsewhere::Covered => Unmounted::Held,
        Elsewhere::Seen => Unmounted::Busy,
    }
}

impl OwnMount {
    /// What is left of it once it is unmounted, whoever did that.
    pub(crate) fn left(&self) -> Unmounted {
        left_of(&self.identity)
    }

    /// Its device, as `major:minor`.
    pub(crate) fn device(&self) -> &str {
        &self.identity.device
    }

    /// Unmounts this mount and no other.
    pub(crate) fn unmount(&self) -> Result<Unmounted> {
        unmount_identity(&self.path, &self.identity)
    }

    /// Whether it is there still, as far as can be told.
    pub(crate) fn is_mounted(&self) -> bool {
        match mounted_at(&self.path) {
            Ok(Some(mounted)) => mounted.is_ours() && Identity::at(&self.path, &mounted) == self.identity,
            Ok(None) => false,
            Err(_) => true,
        }
    }
}

/// A mount that shows at a path, for its daemon to end.
#[derive(Debug)]
pub(crate) struct MountHere {
    path: PathBuf,
    identity: Identity,
}

impl MountHere {
    /// The one that shows at a path now. Asks the kernel alone.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let mounted = mounted_at(path)?.filter(Mounted::is_ours).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no store is mounted at {}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), identity: Identity::at(path, &mounted) })
    }

    /// Unmounts it if no program uses it, and says whether it is gone. A folder that a program stands in is in use.
    pub(crate) fn unmount_unless_busy(&self) -> Result<bool> {
        match mounted_at(&self.path)? {
            Some(mounted) if mounted.is_ours() && Identity::at(&self.path, &mounted) == self.identity => {}
            // Another mount lies on it, or it is gone, which its daemon hears of by itself.
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
    /// Whether it shows in another mount namespace, once it is unmounted here.
    pub(crate) fn shows_elsewhere(&self) -> bool {
        left_of(&self.identity) != Unmounted::Clean
    }
}

/// Changes the options of the mount at `mountpoint` that mount(2) can change, by lists in the words of mount(8): root only.
pub(crate) fn remount(mountpoint: &Path, lists: &[String]) -> Result<()> {
    let path = absolute(mountpoint)?;
    let shown = path.display();
    let Some(mounted) = mounted_at(&path)?.filter(Mounted::is_ours) else {
        return Err(Error::new(ErrorKind::NotFound, format!("no store is mounted at {shown}"))
            .with_hint("run `pfimg status` to list what is mounted"));
    };
    // What no list names stays.
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
            let what = format!("cannot remount {shown}: only root may");
            return Error::new(ErrorKind::PermissionDenied, what)
                .with_hint("run `pfimg umount`, then `pfimg mount --read-only`");
        }
        Error::io(e.into(), format!("cannot remount {shown}"))
    })
}

/// Unmounts the store that is mounted at `mountpoint`, dead or alive. Anything else there is left alone.
pub(crate) fn unmount(mountpoint: &Path) -> Result<Unmounted> {
    let path = absolute(mountpoint)?;
    let nothing = |what: String| {
        Err(Error::new(ErrorKind::NotFound, what).with_hint("`pfimg status` lists what is mounted"))
    };
    match mounted_at(&path)? {
        Some(mounted) if mounted.is_ours() => unmount_identity(&path, &Identity::at(&path, &mounted)),
        Some(mounted) => {
            nothing(format!("what is mounted at {} is not a store but {}", path.display(), mounted.fs_type))
        }
        None => nothing(format!("nothing is mounted at {}", path.display())),
    }
}
