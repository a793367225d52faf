//! The variables of a command: each that names a socket or folder names one that the command finds.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::secrets::LEDGER_SECRET;
use super::view::TMP;

const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// Folders for temporary files, by the names that different programs look for.
const TEMPORARY: [&str; 3] = ["TMP", "TEMP", "TEMPDIR"];

/// Files and folders that go with sockets of the caller's session.
const BESIDE_SOCKETS: [&str; 5] =
    ["XAUTHORITY", "ICEAUTHORITY", "PULSE_RUNTIME_PATH", "PIPEWIRE_RUNTIME_DIR", "GNOME_KEYRING_CONTROL"];

/// Names of the caller's terminal.
const TERMINALS: [&str; 2] = ["GPG_TTY", "SSH_TTY"];

/// What is about the caller's own process, its session, or its place in a service manager, and misleads any other.
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

/// What the variables of this process name outside of the view.
pub(super) struct Variables {
    /// Variables that name a socket, or something beside one, and its path.
    named: Vec<(OsString, PathBuf)>,
    /// Those that the command gets as they are, since the caller named them.
    handed: Vec<OsString>,
    home: Option<PathBuf>,
}

impl Variables {
    /// To be made where the machine's sockets are seen.
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
                let beside = BESIDE_SOCKETS.iter().any(|known| name == *known);
                let is_named = if beside { path.exists() } else { is_socket(&path) };
                is_named.then_some((name, path))
            })
            .collect();
        let home = std::env::home_dir().filter(|home| home.is_dir());
        Self { named, handed: handed.to_vec(), home }
    }

    /// The sockets, and what is beside them, of variables that the caller named.
    pub(super) fn handed_sockets(&self) -> Vec<PathBuf> {
        let handed = self.named.iter().filter(|(name, _)| self.is_handed(name));
        handed.map(|(_, path)| path.clone()).collect()
    }

    fn is_handed(&self, name: &OsStr) -> bool {
        self.handed.iter().any(|handed| handed == name)
    }

    /// The variables that change for the command, `None` for those it does not get. To be called in the finished view.
    pub(super) fn changes(&self, runtime: &Path) -> Vec<(OsString, Option<OsString>)> {
        if let Some(home) = &self.home {
            // One that lies in a hidden folder for temporary files. Elsewhere nothing can be made.
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
        // A bus starts programs outside. An address without a path leads to one in spite of the view.
        if !self.named.iter().any(|(name, _)| name == BUS) {
            changes.push((BUS.into(), None));
        }
        changes.push((RUNTIME_DIR.into(), Some(runtime.into())));
        changes.retain(|(name, _)| name == LEDGER_SECRET || !self.is_handed(name));
        changes
    }
}

/// The folder for sockets that a command has for its own, in memory: where the caller's is, or where it usually is.
///
/// What lies in one of the folders `shown` can be nothing of its own.
pub(super) fn runtime_dir<'a>(shown: impl Iterator<Item = &'a PathBuf>) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    // As it has to be by its specification; anything else is a mistake.
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

/// The path in `PATH`, `unix:path=PATH,…`, `unix://PATH` and `unix:PATH`.
fn address(value: &OsStr) -> Option<PathBuf> {
    let bytes = value.as_bytes();
    let path = [&b"unix:path="[..], b"unix://", b"unix:", b""]
        .iter()
        .find_map(|before| bytes.strip_prefix(*before))?;
    let path = path.split(|byte| matches!(byte, b',' | b';')).next()?;
    path.starts_with(b"/").then(|| OsStr::from_bytes(path).into())
}

/// The socket of a display of this machine: `:0`, `:0.0`, `unix:0`.
fn display_socket(value: &OsStr) -> Option<PathBuf> {
    let number = value.to_str()?;
    let number = number.strip_prefix("unix").unwrap_or(number).strip_prefix(':')?;
    let number = number.split('.').next()?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("/tmp/.X11-unix/X{number}").into())
}

/// Whether a display has a socket that belongs to the network namespace as well, and that is the caller's.
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
