//! Finds the program that writes a store's forks, its place, and the way to end it.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::help::is_command;
use super::meant;
use super::statuses::{Status, read_statuses};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo::{Mounted, mounts_elsewhere, mounts_of};
use crate::mount::silent::{self, Daemon};
use crate::store::Store;

/// The program that writes a store's forks.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: u32,
    place: Place,
}

/// The place of the program, as seen from here.
#[derive(Debug)]
enum Place {
    /// Another user's program, of this user number.
    OtherUser(u32),
    /// A daemon in another mount namespace, with its mountpoint there.
    OtherNamespace(Option<PathBuf>),
    /// A daemon whose mount shows here.
    Mounted(PathBuf),
    /// A daemon whose mount was detached while in use.
    Detached,
    /// A command, by its name.
    Command(String),
}

impl Holder {
    /// Finds the program that holds the lock of a store's forks, as far as the kernel shows it.
    pub(crate) fn of(store: &Store) -> Option<Self> {
        let path = store.root().join("forks/.lock");
        let lock = fs::metadata(&path).ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let device = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
        // A filesystem with subvolumes shows other device numbers here than in stat(2). Then an open file of
        // the process decides.
        let (pid, _) = holders(&locks, lock.ino())
            .filter(|(pid, _)| is_pfimg(*pid))
            .find(|(pid, its)| *its == device || has_open(*pid, &path))?;
        Some(Self { pid, place: place(pid, store.root()) })
    }

    /// Returns the hint for an error.
    pub(crate) fn hint(&self) -> String {
        let pid = self.pid;
        match &self.place {
            Place::OtherUser(_) => format!("run this as that user, or have that user run `kill {pid}`"),
            Place::OtherNamespace(_) => format!("run `kill {pid}` to end it"),
            Place::Mounted(mountpoint) => format!("run `pfimg umount {}` to end it", mountpoint.display()),
            Place::Detached => format!("end the programs that use its files, or run `kill {pid}` to end it"),
            Place::Command(_) => "try again when it has ended".into(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        match &self.place {
            Place::OtherUser(uid) => write!(f, "process {pid} of user {uid}"),
            Place::OtherNamespace(Some(mountpoint)) => {
                write!(f, "process {pid}, mounted at {} in another mount namespace", mountpoint.display())
            }
            Place::OtherNamespace(None) => write!(f, "process {pid} in another mount namespace"),
            Place::Mounted(mountpoint) => write!(f, "process {pid}, mounted at {}", mountpoint.display()),
            Place::Detached => write!(f, "process {pid}, unmounted while it was in use"),
            Place::Command(name) => write!(f, "process {pid} (pfimg {name})"),
        }
    }
}

/// Returns the error of a command that must write forks and cannot.
pub(crate) fn busy(store: &Store) -> Error {
    let shown = store.root().display();
    match Holder::of(store) {
        Some(holder) => Error::new(ErrorKind::Busy, format!("{holder} writes the forks of {shown}"))
            .with_hint(holder.hint()),
        None => Error::new(
            ErrorKind::Busy,
            format!("a program that cannot be found from here writes the forks of {shown}"),
        )
        .with_hint(
            "try again; if that fails, run this as the user who mounted the store, or in the same container",
        ),
    }
}

/// Returns the processes that hold a lock of flock(2) on a file of this inode, with its device:
/// `1: FLOCK ADVISORY WRITE 4711 08:01:131 0 EOF`.
fn holders(locks: &str, inode: u64) -> impl Iterator<Item = (u32, (u32, u32))> {
    locks.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let mut place = fields.get(5)?.split(':');
        let mut device = || u32::from_str_radix(place.next()?, 16).ok();
        let device = (device()?, device()?);
        let its: u64 = place.next()?.parse().ok()?;
        (fields.get(1) == Some(&"FLOCK") && its == inode)
            .then(|| Some((fields.get(4)?.parse().ok()?, device)))?
    })
}

/// Returns whether a process has a file open, as far as permissions show it.
fn has_open(pid: u32, path: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|open| open == path))
}

fn is_pfimg(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(b"pfimg"))
}

fn place(pid: u32, store: &Path) -> Place {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
    let arguments: Vec<_> = arguments.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    if !["mount", "--foreground"].iter().all(|word| arguments.iter().any(|argument| argument == word)) {
        let name = arguments.iter().skip(1).find(|argument| is_command(argument));
        return Place::Command(name.map(ToString::to_string).unwrap_or_default());
    }
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt"));
    let Ok(its) = namespace(&process) else {
        return Place::OtherUser(fs::metadata(&process).map_or(0, |metadata| metadata.uid()));
    };
    let shows_store =
        |mounted: &Mounted| mounted.is_ours() && mounted.source == store && mounted.root == Path::new("/");
    let mounts: Vec<_> = mounts_of(&process).into_iter().filter(shows_store).collect();
    // Several daemons may show one store.
    let its_own = mounts.iter().rfind(|mounted| silent::serves(pid, mounted) == Some(true));
    let may_be = || mounts.iter().rfind(|mounted| silent::serves(pid, mounted).is_none());
    let mountpoint = its_own.or_else(may_be).map(|mounted| mounted.path.clone());
    if namespace(Path::new("/proc/self")).is_ok_and(|own| own != its) {
        return Place::OtherNamespace(mountpoint);
    }
    mountpoint.map_or(Place::Detached, Place::Mounted)
}

/// A mount in another mount namespace.
pub(crate) struct Elsewhere {
    pub(crate) mountpoint: PathBuf,
    pub(crate) store: PathBuf,
    /// The status from its daemon, if this user may ask the daemon.
    pub(crate) status: Option<Status>,
    /// The daemon, if it names itself or holds the lock of the store's forks.
    pub(crate) pid: Option<u32>,
}

/// Returns the mounts in other mount namespaces, as far as permissions show their processes.
pub(crate) fn elsewhere() -> Result<Vec<Elsewhere>> {
    let found = mounts_elsewhere()?;
    let folder = |(process, mounted): &(PathBuf, Mounted)| {
        process.join("root").join(mounted.path.strip_prefix("/").unwrap_or(&mounted.path))
    };
    let statuses = read_statuses(&found.iter().map(folder).collect::<Vec<_>>());
    let look = |((_, mounted), status): ((PathBuf, Mounted), Result<Status>)| {
        let status = status.ok();
        let known = status.as_ref().map(|status| status.info.pid);
        let serving = || Daemon::serving(&mounted).map(|daemon| daemon.pid);
        let holding = || Holder::of(&Store::open(&mounted.source).ok()?).map(|holder| holder.pid);
        let pid = known.or_else(serving).or_else(holding);
        Elsewhere { mountpoint: mounted.path, store: mounted.source, status, pid }
    };
    Ok(found.into_iter().zip(statuses).map(look).collect())
}

/// Adds to the error of a path without a mount that another mount namespace has one there.
pub(crate) fn explain_nothing_mounted(error: Error, mountpoint: &Path) -> Error {
    let Ok(path) = std::path::absolute(mountpoint) else { return error };
    let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
    let found = elsewhere().unwrap_or_default();
    let Some(there) = found.into_iter().find(|there| there.mountpoint == path || there.mountpoint == real)
    else {
        return meant::explain_no_mount(error, mountpoint).with_path(mountpoint);
    };
    let (shown, store) = (mountpoint.display(), there.store.display());
    let what =
        format!("nothing is mounted at {shown} here; {store} is mounted there in another mount namespace");
    let error = Error::new(ErrorKind::NotFound, what).with_path(mountpoint);
    match there.pid {
        Some(pid) => error.with_hint(format!("run `kill {pid}` to end its daemon")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_of_a_lock_are_known_by_its_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:131 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 22 08:01:131 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 33 08:01:131 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 44 08:01:1310 0 EOF\n\
            garbage\n";
        assert_eq!(holders(locks, 131).collect::<Vec<_>>(), [(22, (8, 1))]);
        assert_eq!(holders(locks, 7).count(), 0);
    }
}
