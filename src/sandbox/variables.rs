//! Adapts the variables of a command, so that each one that names a socket or folder names one that the command can reach.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::secrets::LEDGER_SECRET;
use super::view::TMP;

const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// Variables that different programs read for the folder of temporary files.
const TEMPORARY: [&str; 3] = ["TMP", "TEMP", "TEMPDIR"];

/// Variables that name files and folders which belong to sockets of the caller's session.
const BESIDE_SOCKETS: [&str; 5] =
    ["XAUTHORITY", "ICEAUTHORITY", "PULSE_RUNTIME_PATH", "PIPEWIRE_RUNTIME_DIR", "GNOME_KEYRING_CONTROL"];

/// Variables that name the caller's terminal.
const TERMINALS: [&str; 2] = ["GPG_TTY", "SSH_TTY"];

/// Variables about the caller's process, its session or its service manager, which would mislead another process.
const CALLERS_OWN: [&str; 11] = [
    LEDGER_SECRET,
    "SESSION_MANAGER",
    "SSH_AGENT_PID",
    "DBUS_SESSION_BUS_PID",
    "DBUS_SESSION_BUS_WINDOWID",
    "STY",
    "JOURNAL_STREAM",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
];

const BUS: &str = "DBUS_SESSION_BUS_ADDRESS";
const WAYLAND: &str = "WAYLAND_DISPLAY";
const X11: &str = "DISPLAY";

/// Variables of this process that name paths outside of the view.
pub(super) struct Variables {
    /// Variables that name a socket or a file that belongs to one, and its path.
    named: Vec<(OsString, PathBuf)>,
    /// Variables that the command gets unchanged because the caller named them.
    handed: Vec<OsString>,
    home: Option<PathBuf>,
}

impl Variables {
    /// Reads the variables. Must be called while the machine's sockets are visible.
    pub(super) fn look(handed: &[OsString]) -> Self {
        let named = std::env::vars_os()
            .filter_map(|(name, value)| {
                let path = if name == WAYLAND {
                    Path::new(&std::env::var_os(RUNTIME_DIR).unwrap_or_default()).join(&value)
                } else if name == X11 {
                    display_socket(&value)?
                } else {
                    address(&value)?
                };
                let is_other = BESIDE_SOCKETS.iter().any(|known| name == *known);
                let is_named = if is_other { path.exists() } else { is_socket(&path) };
                is_named.then_some((name, path))
            })
            .collect();
        let home = std::env::home_dir().filter(|home| home.is_dir());
        Self { named, handed: handed.to_vec(), home }
    }

    /// Returns the sockets, and files that belong to them, of variables that the caller named.
    pub(super) fn handed_sockets(&self) -> Vec<PathBuf> {
        let handed = self.named.iter().filter(|(name, _)| self.is_handed(name));
        handed.map(|(_, path)| path.clone()).collect()
    }

    fn is_handed(&self, name: &OsStr) -> bool {
        self.handed.iter().any(|handed| handed == name)
    }

    /// Returns the variables that change for the command, with `None` for those that it does not get. Must be called in the
    /// finished view.
    pub(super) fn changes(&self, runtime: &Path) -> Vec<(OsString, Option<OsString>)> {
        if let Some(home) = &self.home {
            // Creates a home folder in a hidden folder for temporary files. Elsewhere the view is read-only.
            let _ = fs::create_dir_all(home);
        }
        let mut changes: Vec<(OsString, Option<OsString>)> = Vec::new();
        let mut change =
            |name: &str, value: Option<&str>| changes.push((name.into(), value.map(OsString::from)));
        for name in CALLERS_OWN {
            change(name, None);
        }
        change("TMPDIR", Some(TMP));
        for name in TEMPORARY {
            if std::env::var_os(name).is_some_and(|folder| !can_write(Path::new(&folder))) {
                change(name, Some(TMP));
            }
        }
        for name in TERMINALS {
            if std::env::var_os(name).is_some_and(|terminal| !Path::new(&terminal).exists()) {
                let own = "/dev/console";
                change(name, Path::new(own).exists().then_some(own));
            }
        }
        let gone =
            self.named.iter().filter(|(name, path)| !path.exists() && !is_reached_otherwise(name, path));
        changes.extend(gone.map(|(name, _)| (name.clone(), None)));
        // A message bus can start programs outside, and the view cannot hide an address without a path.
        if !self.named.iter().any(|(name, _)| name == BUS) {
            changes.push((BUS.into(), None));
        }
        changes.push((RUNTIME_DIR.into(), Some(runtime.into())));
        changes.retain(|(name, _)| name == LEDGER_SECRET || !self.is_handed(name));
        changes
    }
}

/// Returns where to put the command's own folder for sockets: at the caller's, or at the usual place. It is kept in memory.
///
/// It cannot lie in one of the folders `shown`.
pub(super) fn runtime_dir<'a>(shown: impl Iterator<Item = &'a PathBuf>) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    // The specification requires owner and mode; another folder is a mistake.
    let is_own = |own: &PathBuf| {
        let metadata = fs::metadata(own);
        let private = |metadata: &fs::Metadata| metadata.uid() == uid && metadata.mode() & 0o777 == 0o700;
        own.is_absolute()
            && metadata.is_ok_and(|metadata| metadata.is_dir() && private(&metadata))
            && !std::env::home_dir().is_some_and(|home| home.starts_with(own))
    };
    let own = std::env::var_os(RUNTIME_DIR).map(PathBuf::from).filter(is_own);
    if let Some(own) = own.and_then(|own| fs::canonicalize(own).ok()) {
        return own;
    }
    let shown: Vec<PathBuf> = shown.filter_map(|path| fs::canonicalize(path).ok()).collect();
    let usual = fs::canonicalize("/run").ok().map(|run| run.join(format!("user/{uid}")));
    let places = usual.into_iter().chain([Path::new(TMP).join(format!("runtime-{uid}"))]);
    let is_free = |place: &PathBuf| !shown.iter().any(|shown| place.starts_with(shown));
    places.into_iter().find(is_free).unwrap_or_else(|| format!("/dev/shm/runtime-{uid}").into())
}

/// Returns the path in `PATH`, `unix:path=PATH,…`, `unix://PATH` and `unix:PATH`.
fn address(value: &OsStr) -> Option<PathBuf> {
    let bytes = value.as_bytes();
    let path = [&b"unix:path="[..], b"unix://", b"unix:", b""]
        .iter()
        .find_map(|before| bytes.strip_prefix(*before))?;
    let path = path.split(|byte| matches!(byte, b',' | b';')).next()?;
    path.starts_with(b"/").then(|| OsStr::from_bytes(path).into())
}

/// Returns the socket of a display of this machine: `:0`, `:0.0`, `unix:0`.
fn display_socket(value: &OsStr) -> Option<PathBuf> {
    let number = value.to_str()?;
    let number = number.strip_prefix("unix").unwrap_or(number).strip_prefix(':')?;
    let number = number.split('.').next()?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("/tmp/.X11-unix/X{number}").into())
}

/// Whether a display also has a socket in the network namespace, and the command shares the caller's.
fn is_reached_otherwise(name: &OsStr, path: &Path) -> bool {
    let listed = || fs::read_to_string("/proc/net/unix").unwrap_or_default();
    name == X11 && listed().lines().any(|line| line.ends_with(&format!(" @{}", path.display())))
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn can_write(folder: &Path) -> bool {
    folder.is_dir() && rustix::fs::access(folder, Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_address_is_found() {
        for (value, path) in [
            ("/run/user/1/bus", Some("/run/user/1/bus")),
            ("unix:path=/run/bus,guid=1;tcp:x", Some("/run/bus")),
            ("unix:///var/run/docker.sock", Some("/var/run/docker.sock")),
            ("unix:/run/pulse", Some("/run/pulse")),
            ("/tmp/tmux-0/default,12,0", Some("/tmp/tmux-0/default")),
            ("unix:abstract=/tmp/x", None),
            ("tcp://host", None),
            ("relative/path", None),
            ("", None),
        ] {
            assert_eq!(address(OsStr::new(value)), path.map(PathBuf::from), "{value}");
        }
    }

    #[test]
    fn the_socket_of_a_display_is_found() {
        for (value, path) in [
            (":0", Some("/tmp/.X11-unix/X0")),
            (":12.1", Some("/tmp/.X11-unix/X12")),
            ("unix:1", Some("/tmp/.X11-unix/X1")),
            ("host:0", None),
            (":", None),
            (":a", None),
            ("", None),
        ] {
            assert_eq!(display_socket(OsStr::new(value)), path.map(PathBuf::from), "{value}");
        }
    }
}
