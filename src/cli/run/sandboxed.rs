//! Starting a command in a fork, with what it may see.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::args::{RunArgs, arguments, option};
use super::conf::{self, Conf};
use crate::cache;
use crate::cli::mount::default_cache_dir;
use crate::daemon::calls;
use crate::daemon::dirs::{make_socket_folder, socket_folders};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo::{aliases, mounts};
use crate::sandbox::{self, ControlGroup, Environment, Hierarchy, Outcome, secrets};
use crate::store::Store;

/// A command in a fork, and its environment.
pub(super) struct Job<'a> {
    pub(super) store: &'a Store,
    pub(super) mountpoint: &'a Path,
    /// The socket of the mount's daemon.
    pub(super) socket: Option<&'a Path>,
    /// The cache of the mount.
    pub(super) cache_dir: &'a Path,
    pub(super) fork: &'a str,
    /// Where the fork's files are shown in addition.
    pub(super) at: Option<&'a Path>,
    /// The directory of the fork's project.
    pub(super) project: Option<&'a Path>,
    /// Where the command starts, below the fork's files.
    pub(super) start: &'a Path,
    pub(super) command: &'a [OsString],
}

/// Runs the command to its end.
pub(super) fn run(job: &Job<'_>, args: &RunArgs, conf: &Conf, given: Given) -> Result<Outcome> {
    let work = calls::files_of(job.mountpoint, job.fork);
    // A fork that began empty has no such directory yet.
    fs::create_dir_all(&work).map_err(|e| {
        calls::explain(e, format!("cannot make the directory {}", work.display()), job.mountpoint)
    })?;
    let keys = keys(&given);
    // A path on the command line overrides the same path in the settings file.
    let named = [&args.write, &args.read, &args.hide];
    let not_named = |paths: &[PathBuf]| {
        let unnamed = paths.iter().filter(|path| !named.iter().any(|named| named.contains(path)));
        unnamed.cloned().collect::<Vec<_>>()
    };
    let (write, read, hide) = (not_named(&conf.write), not_named(&conf.read), not_named(&conf.hide));
    let shown: Vec<_> = [&args.write, &args.read, &write, &read].into_iter().flatten().collect();
    let hidden = hidden(job, &shown)?;
    sandbox::start(given.environment, &control_groups()?, args.timeout, |channel| {
        let mut options = vec![
            option("channel", &channel.to_string()),
            option("mountpoint", job.mountpoint),
            option("in-fork", job.fork),
        ];
        let mut option = |name: &str, value: &Path| options.push(option(name, value));
        if let Some(at) = job.at {
            option("at", at);
        }
        if !job.start.as_os_str().is_empty() {
            option("start", job.start);
        }
        args.write.iter().chain(&write).for_each(|path| option("write", path));
        args.read.iter().chain(&read).for_each(|path| option("read", path));
        args.hide.iter().chain(&hide).chain(&hidden).for_each(|path| option("hide", path));
        for key in &keys {
            option("key", key);
        }
        for name in &given.names {
            option("env", Path::new(name));
        }
        if args.no_network {
            options.push("--no-network".into());
        }
        arguments("builder", job.command, options)
    })
}

/// The caller's variables that hold credentials, or that are named.
pub(super) struct Given {
    environment: Environment,
    /// The named variables that exist.
    names: Vec<OsString>,
}

impl Given {
    /// `options` are names, with `*` in them or a value behind `=`.
    pub(super) fn of<'a>(options: impl Iterator<Item = &'a OsString>) -> Self {
        let mut environment = Environment::default();
        let mut patterns = Vec::new();
        for option in options {
            match split(option) {
                // The command line has precedence.
                Some((name, _)) if environment.set.iter().any(|(set, _)| *set == name) => {}
                Some(variable) => environment.set.push(variable),
                None => patterns.push(option.to_string_lossy()),
            }
        }
        let mut names: Vec<OsString> = environment.set.iter().map(|(name, _)| name.clone()).collect();
        for (name, _) in std::env::vars_os() {
            if names.contains(&name) {
                continue;
            }
            if patterns.iter().any(|pattern| secrets::matches(pattern, &name))
                && name != secrets::LEDGER_SECRET
            {
                names.push(name);
            } else if secrets::is_credential(&name) {
                environment.held.push(name);
            }
        }
        environment.held.sort();
        Self { environment, names }
    }

    /// Prints which variables stay outside, and how to pass them.
    pub(super) fn tell(&self) {
        let held = self.environment.held.iter().filter(|name| *name != secrets::LEDGER_SECRET);
        let names: Vec<_> = held.map(|name| name.to_string_lossy()).collect();
        if names.is_empty() {
            return;
        }
        let shown = names.iter().take(MAX_SHOWN).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
        let more = match names.len().saturating_sub(MAX_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let file = conf::path().unwrap_or_else(|| "~/.config/pfimg/run.conf".into());
        sandbox::tell(&format_args!(
            "credentials stay outside: {shown}{more}. To pass one, add --env NAME, or write `env NAME` into {}",
            file.display()
        ));
    }
}

/// More names than this would make a line too long.
const MAX_SHOWN: usize = 8;

/// Splits `NAME=VALUE`.
fn split(text: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    Some((part(&bytes[..at]), part(&bytes[at + 1..])))
}

/// Returns the files with credentials that the command could read.
fn keys(given: &Given) -> Vec<PathBuf> {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let is_handed = |name: &str| given.names.iter().any(|given| given == name);
    let elsewhere = |home: &Path| {
        let real = fs::canonicalize(home).ok();
        real.and_then(|real| aliases(&real).ok()).unwrap_or_default()
    };
    let uid = rustix::process::geteuid().as_raw();
    let own = std::env::var_os("HOME").map(PathBuf::from);
    let homes = secrets::homes(uid, &String::from_utf8_lossy(&passwd), own);
    secrets::keys(&homes, |name| std::env::var_os(name), is_handed, elsewhere)
}

/// Returns the control groups of this process.
fn control_groups() -> Result<Vec<ControlGroup>> {
    let mounts = mounts()?;
    let hierarchies = mounts.iter().map(|mounted| Hierarchy {
        fs_type: &mounted.fs_type,
        options: &mounted.options,
        root: &mounted.root,
        path: &mounted.path,
    });
    // A kernel without control groups has no such file.
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(sandbox::control_groups(&text, &hierarchies.collect::<Vec<_>>()))
}

/// Returns the directories outside of mountpoints that hold images and forks: the store, also where its
/// directories are links or mounts, and caches. Also the directories of sockets for commands.
fn hidden(job: &Job<'_>, shown: &[&PathBuf]) -> Result<Vec<PathBuf>> {
    let Job { store, mountpoint, .. } = *job;
    let cache = job.cache_dir.to_owned();
    if cache.to_string_lossy().contains(char::REPLACEMENT_CHARACTER) {
        let what = format!(
            "cannot hide the cache of the mount: its directory's name, {}, is not UTF-8",
            cache.display()
        );
        return Err(Error::new(ErrorKind::Unsupported, what).with_hint("mount with another --cache-dir"));
    }
    // Other mounts and commands use the default cache.
    let caches = [cache, default_cache_dir()];
    for cache in &caches {
        // A missing directory could be made during the run, so it is made now. A user who cannot make it now
        // cannot make it then.
        let _ = cache::folder::make(cache);
    }
    let mut hidden = vec![store.root().to_owned()];
    hidden.extend(caches);
    hidden.extend(sockets(job, shown));
    let entries = fs::read_dir(store.root())
        .map_err(|e| Error::io(e, format!("cannot list {}", store.root().display())))?;
    hidden.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_symlink()));
    // The project itself lies under the fork, unless the fork is shown elsewhere.
    hidden.extend(job.project.map(Path::to_owned));
    let mut hidden: Vec<PathBuf> = hidden.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    for folder in hidden.clone() {
        hidden.extend(aliases(&folder)?.into_iter().filter(|path| path.exists()));
    }
    hidden.retain(|path| path != mountpoint && Some(path.as_path()) != job.at);
    hidden.sort();
    hidden.dedup();
    Ok(hidden)
}

/// Returns the directories of sockets for commands, if options show paths of the machine. Without such options a run does not see
/// them: they lie below directories that each run replaces by empty ones. The paths are not looked up, since one may lie in the
/// mount of a daemon that does not answer.
fn sockets(job: &Job<'_>, shown: &[&PathBuf]) -> Vec<PathBuf> {
    if shown.is_empty() {
        return Vec::new();
    }
    // A missing directory could be made during the run, so it is made now.
    let _ = make_socket_folder();
    let of_mount = job.socket.and_then(Path::parent).map(Path::to_owned);
    of_mount.into_iter().chain(socket_folders()).collect()
}
