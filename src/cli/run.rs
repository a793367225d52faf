//! `pfimg run`: runs a command where it can change nothing but a fork.

mod conf;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use self::conf::Conf;
use super::fork::{check_name, make_under};
use super::mount::default_cache_dir;
use super::place::{self, Place};
use super::status::read_status;
use super::{StoreArg, envelope, near};
use crate::cache;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo::{aliases, holding_among, mounts};
use crate::mount::silent::mode_known;
use crate::sandbox::{self, CANNOT_RUN, ControlGroup, Environment, Hierarchy, View, secrets};
use crate::store::Store;

/// Run a command in a fork, where it can change nothing else.
///
/// The command starts in the fork's files and sees this machine read-only. It may write its fork and temporary files, which are
/// gone when it ends, as is all that it started. The store, images, other forks, other mounted stores, the machine's devices,
/// processes and services (/run) are hidden. Credentials stay outside: variables such as `*_TOKEN` unless --env names them, files such
/// as ~/.ssh unless --read does. The command may seal its fork: `mkdir $PFIMG_SNAP/NAME`.
///
/// ~/.config/pfimg/run.conf holds options for every run, one a line, without dashes: `env NAME`, `read PATH`, `write PATH`,
/// `hide PATH`, `quiet`.
///
/// Exit code: the command's; 128 and the signal that ended it; 2 if the command line is wrong, 125 if it cannot be run, 126 if it
/// cannot be executed, 127 if it is not found.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Allow writing PATH: a folder, a device, or a file. Name the folder where programs replace the file. May be given several
    /// times, as may the next two
    #[arg(long, value_name = "PATH")]
    write: Vec<PathBuf>,
    /// Allow reading PATH, which is hidden or lies in a hidden folder
    #[arg(long, value_name = "PATH")]
    read: Vec<PathBuf>,
    /// Hide PATH, a file or folder
    #[arg(long, value_name = "PATH")]
    hide: Vec<PathBuf>,
    /// Hand over the variable NAME, which holds a credential, and the socket that it names. `*` stands for any text; NAME=VALUE sets
    /// the variable. May be given several times
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(|text| conf::variable(&text)))]
    env: Vec<OsString>,
    /// Print no line about the variables that stay outside
    #[arg(long, short)]
    quiet: bool,
    /// Give the command a loopback interface of its own, and no other network
    #[arg(long)]
    no_network: bool,
    /// Print JSON if the command cannot be run. What it prints itself stays as it is
    #[arg(long)]
    json: bool,
    /// The fork. NAME@SOURCE makes it first, of an image or another fork
    #[arg(value_name = "FORK[@SOURCE]")]
    fork: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
    /// For the processes that `run` starts: which of them this is
    #[arg(long, hide = true)]
    stage: Option<Stage>,
    /// For them: the descriptor by which the first one is heard
    #[arg(long, hide = true, default_value_t = -1)]
    channel: i32,
    /// For them: where the store is mounted
    #[arg(long, hide = true)]
    mountpoint: Option<PathBuf>,
    /// For them: files with credentials
    #[arg(long, hide = true)]
    key: Vec<PathBuf>,
    /// For them: where the command starts, below the fork's files
    #[arg(long, hide = true)]
    start: Option<PathBuf>,
}

/// A process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    Builder,
    Init,
}

pub(crate) fn run(store: &StoreArg, args: &RunArgs) -> ExitCode {
    let ended = match args.stage {
        None => start(store, args),
        Some(Stage::Builder) => {
            let init =
                arguments("init", args, &args.fork, vec![option("channel", &args.channel.to_string())]);
            sandbox::build(!args.no_network, || args.view(), &init, args.channel)
        }
        Some(Stage::Init) => sandbox::first_process(&args.command, args.channel),
    };
    ExitCode::from(ended.unwrap_or_else(|error| {
        let error = if args.stage.is_none() { near::explain(store, error) } else { error };
        sandbox::tell(&error);
        if args.stage.is_none() && args.json {
            envelope::print_error(&error);
        }
        CANNOT_RUN
    }))
}

impl RunArgs {
    fn view(&self) -> Result<View> {
        let mountpoint = self.mountpoint.clone().unwrap_or_default();
        let mut hide = self.hide.clone();
        // What is mounted besides, and the stores of that. No daemon is asked: one that does not answer must not hold this up.
        let mounts = mounts()?;
        let others = mounts.iter().filter(|mounted| mounted.is_ours() && mounted.path != mountpoint);
        // A store in what is hidden is hidden with that.
        let lies_in_another = |path: &Path| {
            holding_among(&mounts, path).is_some_and(|(mounted, _)| {
                mounted.is_ours() && mounted.path != mountpoint && mounted.path != path
            })
        };
        let paths = others.flat_map(|mounted| [&mounted.path, &mounted.source]);
        // What cannot be looked at cannot be by the command either: a mount of another user.
        let seen = paths.filter(|path| !lies_in_another(path) && mode_known(path).is_some());
        hide.extend(seen.cloned());
        Ok(View {
            mountpoint,
            fork: self.fork.clone(),
            start: self.start.clone().unwrap_or_default(),
            write: self.write.clone(),
            read: self.read.clone(),
            hide,
            keys: self.key.clone(),
            variables: self.env.clone(),
        })
    }
}

fn option(name: &str, value: &(impl AsRef<OsStr> + ?Sized)) -> OsString {
    let mut option = OsString::from(format!("--{name}="));
    option.push(value);
    option
}

/// The arguments for a process of a run.
fn arguments(stage: &str, args: &RunArgs, fork: &str, options: Vec<OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["run".into(), "--stage".into(), stage.into()];
    all.extend(options);
    all.extend(["--".into(), fork.into()]);
    all.extend(args.command.iter().cloned());
    all
}

fn start(store: &StoreArg, args: &RunArgs) -> Result<u8> {
    let conf = Conf::load()?;
    let store = Arc::new(store.open()?);
    let Place::Mount(mountpoint) = place::find(&store)? else {
        let what = format!("the forks of {} are not mounted", store.root().display());
        return Err(Error::new(ErrorKind::NotFound, what)
            .with_hint(format!("`pfimg mount {} FOLDER` does that", store.root().display())));
    };
    let fork = match args.fork.split_once('@') {
        Some((name, source)) => {
            check_name(name)?;
            make_under(&mountpoint, &store, source, name)?;
            name
        }
        None => &args.fork,
    };
    let work = place::fork_folder(&mountpoint, fork)?.join("world/fs");
    // One that began empty has none yet.
    fs::create_dir_all(&work)
        .map_err(|e| place::explain(e, format!("cannot make the folder {}", work.display()), &mountpoint))?;
    let hidden = hidden(&store, &mountpoint)?;
    let given = Given::of(args.env.iter().chain(&conf.env));
    let keys = keys(&given);
    if !args.quiet && !conf.quiet {
        given.tell();
    }
    // What the command line says of a path counts, whatever the file of settings says of it.
    let named = [&args.write, &args.read, &args.hide];
    let besides = |paths: &[PathBuf]| {
        let unnamed = paths.iter().filter(|path| !named.iter().any(|named| named.contains(path)));
        unnamed.cloned().collect::<Vec<_>>()
    };
    let (write, read, hide) = (besides(&conf.write), besides(&conf.read), besides(&conf.hide));
    sandbox::start(given.environment, &control_groups()?, |channel| {
        let mut options = vec![option("channel", &channel.to_string()), option("mountpoint", &mountpoint)];
        let mut option = |name: &str, value: &Path| options.push(option(name, value));
        if let Some(start) = below(&work) {
            option("start", &start);
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
        arguments("builder", args, fork, options)
    })
}

/// The caller's variables, as far as they hold credentials or are named.
struct Given {
    environment: Environment,
    /// Those that are named, and that there are.
    names: Vec<OsString>,
}

impl Given {
    /// `options` are names, with `*` in them or a value behind `=`.
    fn of<'a>(options: impl Iterator<Item = &'a OsString>) -> Self {
        let mut environment = Environment::default();
        let mut patterns = Vec::new();
        for option in options {
            match split(option) {
                // The command line comes first.
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

    /// Says what stays outside, and how to hand it over.
    fn tell(&self) {
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
            "credentials stay outside: {shown}{more}. To hand one over, type --env NAME, or write `env NAME` into {}",
            file.display()
        ));
    }
}

/// More names than this make a line too long.
const MAX_SHOWN: usize = 8;

/// `NAME=VALUE` in two.
fn split(text: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    Some((part(&bytes[..at]), part(&bytes[at + 1..])))
}

/// The files with credentials that the command could read.
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

/// The control groups of this process.
fn control_groups() -> Result<Vec<ControlGroup>> {
    let mounts = mounts()?;
    let hierarchies = mounts.iter().map(|mounted| Hierarchy {
        fs_type: &mounted.fs_type,
        options: &mounted.options,
        root: &mounted.root,
        path: &mounted.path,
    });
    // A kernel without them has no such file.
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(sandbox::control_groups(&text, &hierarchies.collect::<Vec<_>>()))
}

/// Where images and forks can be read besides under mountpoints: the store, wherever its folders lie or are mounted, and caches.
fn hidden(store: &Store, mountpoint: &Path) -> Result<Vec<PathBuf>> {
    let cache = read_status(mountpoint)?.info.cache_dir;
    if cache.to_string_lossy().contains(char::REPLACEMENT_CHARACTER) {
        let what = format!(
            "cannot hide the cache of the mount: its folder's name, {}, is not UTF-8",
            cache.display()
        );
        return Err(Error::new(ErrorKind::Unsupported, what).with_hint("mount with another --cache-dir"));
    }
    // Other mounts and commands use the usual one.
    let caches = [cache, default_cache_dir()];
    for cache in &caches {
        // One that is not there yet would be made while the command runs. Who cannot make it will not.
        let _ = cache::folder::make(cache);
    }
    let mut hidden = vec![store.root().to_owned()];
    hidden.extend(caches);
    let entries = fs::read_dir(store.root())
        .map_err(|e| Error::io(e, format!("cannot list {}", store.root().display())))?;
    hidden.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_symlink()));
    let mut hidden: Vec<PathBuf> = hidden.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    for folder in hidden.clone() {
        hidden.extend(aliases(&folder)?.into_iter().filter(|path| path.exists()));
    }
    hidden.retain(|path| path != mountpoint);
    hidden.sort();
    hidden.dedup();
    Ok(hidden)
}

/// Where the caller stands, if that is below the fork's files.
fn below(work: &Path) -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.strip_prefix(work).ok().filter(|below| !below.as_os_str().is_empty()).map(Path::to_owned)
}
