//! The directories of a user that daemons write, unless they get others, and those that only this user may enter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::mount::mountinfo::mounted_at;

/// Returns `$variable/pfimg`, `~/fallback/pfimg`, or a directory in /tmp.
fn user_dir(variable: &str, fallback: &str) -> PathBuf {
    let base = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(fallback)));
    match base {
        Some(base) => base.join("pfimg"),
        None => std::env::temp_dir().join(format!("pfimg-{}", rustix::process::geteuid().as_raw())),
    }
}

/// Where decompressed blobs are kept.
pub(crate) fn cache_dir() -> PathBuf {
    user_dir("XDG_CACHE_HOME", ".cache")
}

/// Where daemons log.
pub(crate) fn state_dir() -> PathBuf {
    user_dir("XDG_STATE_HOME", ".local/state")
}

/// Returns the file in which the daemon of a mountpoint logs, unless it gets another one.
pub(crate) fn default_log(mountpoint: &Path) -> PathBuf {
    let name = mountpoint.to_string_lossy().trim_matches('/').replace('/', "-");
    // Long paths differ at their ends.
    let start = name.char_indices().rev().nth(150).map_or(0, |(at, _)| at);
    state_dir().join(format!("{}.log", &name[start..]))
}

/// Returns that file, if it exists.
pub(crate) fn log_of(mountpoint: &Path) -> Option<PathBuf> {
    let log = default_log(&std::path::absolute(mountpoint).ok()?);
    log.is_file().then_some(log)
}

/// The directories whose content no command of `pfimg run` sees: each run has its own.
const HIDDEN_FROM_RUNS: [&str; 3] = ["/run", "/tmp", "/var/tmp"];

/// The directory of sockets, below the user's directory for this boot.
const SOCKETS: &str = "sockets";

/// Returns the directories in which this user's daemons put their sockets. The first is the one for new daemons: it may depend
/// on the environment, and the other one does not.
pub(crate) fn socket_folders() -> Vec<PathBuf> {
    let is_hidden = |top: &Path| HIDDEN_FROM_RUNS.iter().any(|hidden| top.starts_with(hidden));
    let given = runtime_folder().filter(|(top, _)| is_hidden(top) && top.to_str().is_some());
    let mut all: Vec<PathBuf> = given
        .into_iter()
        .chain(temporary_folder())
        .map(|(top, below)| top.join(below).join(SOCKETS))
        .collect();
    all.dedup();
    all
}

/// Makes the directory for the socket of a new daemon.
pub(crate) fn make_socket_folder() -> io::Result<PathBuf> {
    let folder =
        socket_folders().into_iter().next().ok_or_else(|| io::Error::other("/tmp does not exist"))?;
    // The directory for this boot is below an existing one.
    let top = folder.ancestors().nth(2).unwrap_or(&folder);
    make_private(top, &folder)?;
    Ok(folder)
}

/// Returns the directory for this user's mounts, as an existing directory and a path to make in it: in
/// `$XDG_RUNTIME_DIR`, or `/tmp/pfimg-run-UID` if that is not set or not the user's.
pub(crate) fn runtime_folder() -> Option<(PathBuf, PathBuf)> {
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let given = given.filter(|folder| folder.is_absolute() && is_private(folder).is_ok_and(|is| is));
    // A mountpoint's path must not contain links.
    if let Some(given) = given.and_then(|folder| fs::canonicalize(folder).ok()) {
        return Some((given, "pfimg".into()));
    }
    temporary_folder()
}

/// Returns such a directory in /tmp.
fn temporary_folder() -> Option<(PathBuf, PathBuf)> {
    let user = rustix::process::geteuid().as_raw();
    // Not the directory that may hold the cache: users may delete that one at any time, with everything mounted
    // in it.
    Some((fs::canonicalize("/tmp").ok()?, format!("pfimg-run-{user}").into()))
}

/// Returns whether a directory is this user's and closed to all others.
pub(crate) fn is_private(folder: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(folder)?;
    Ok(metadata.is_dir()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode().trailing_zeros() >= 6)
}

/// Makes a directory below `top` for this user alone, and its parents. Refuses one that is another user's, or
/// open to others: its owner could replace the mount.
pub(crate) fn make_private(top: &Path, folder: &Path) -> io::Result<()> {
    let mut path = top.to_owned();
    for name in folder.strip_prefix(top).map_err(io::Error::other)?.components() {
        path.push(name);
        make_one(&path)?;
    }
    Ok(())
}

fn make_one(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    if mounted_at(folder).is_ok_and(|mounted| mounted.is_some()) || is_private(folder)? {
        return Ok(());
    }
    let what = format!("{} is not a directory of this user alone (mode 0700)", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pfimg-7/mounts/abc");
        make_private(dir.path(), &folder).unwrap();
        make_private(dir.path(), &folder).unwrap();
        for at in [folder.as_path(), folder.parent().unwrap(), folder.parent().unwrap().parent().unwrap()] {
            assert_eq!(fs::metadata(at).unwrap().mode() & 0o7777, 0o700);
            fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(
                make_private(dir.path(), &folder).unwrap_err().kind(),
                io::ErrorKind::PermissionDenied
            );
            fs::set_permissions(at, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let other = dir.path().join("pfimg-8");
        std::os::unix::fs::symlink(&folder, &other).unwrap();
        assert!(make_private(dir.path(), &other.join("mounts")).is_err());
    }
}
