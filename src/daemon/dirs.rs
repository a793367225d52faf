//! The directories of a user that a daemon writes, unless it gets others.

use std::path::{Path, PathBuf};

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
