//! `pfimg run`: runs a command where it can change nothing but a fork.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::StoreArg;
use super::fork::{check_name, make_under};
use super::mount::default_cache_dir;
use super::place::{self, Place};
use super::status::read_status;
use crate::cache;
use crate::confine::{self, CANNOT_RUN, View};
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::{aliases, mounts};
use crate::store::Store;

/// Run a command in a fork, where it can change nothing else.
///
/// The command starts in the fork's files and sees this machine read-only. It may write its fork and temporary files, which are
/// gone when it ends, as is all that it started. The store, images, other forks, other mounted stores, the machine's devices,
/// processes and services (/run) are hidden. It may seal its fork: `mkdir $PFIMG_SNAP/NAME`. Exit code: the command's; 128 and the
/// signal that ended it; 2 if the command line is wrong, 125 if it cannot be run, 126 if it cannot be executed, 127 if it is not
/// found.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Let it write there too: a folder, device, or file that is not replaced by another (name its folder then). May be given several
    /// times, as may the next two
    #[arg(long, value_name = "PATH")]
    write: Vec<PathBuf>,
    /// Let it read that, although it lies in something hidden
    #[arg(long, value_name = "PATH")]
    read: Vec<PathBuf>,
    /// Hide that file or folder from it
    #[arg(long, value_name = "PATH")]
    hide: Vec<PathBuf>,
    /// Give it no network but its own loopback interface
    #[arg(long)]
    no_network: bool,
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
            confine::build(!args.no_network, || args.view(), &init, args.channel)
        }
        Some(Stage::Init) => confine::first_process(&args.command, args.channel),
    };
    ExitCode::from(ended.unwrap_or_else(|error| {
        confine::tell(&error);
        CANNOT_RUN
    }))
}

impl RunArgs {
    fn view(&self) -> Result<View> {
        let mountpoint = self.mountpoint.clone().unwrap_or_default();
        let mut hide = self.hide.clone();
        // What is mounted besides, and the stores of that.
        let others = mounts()?.into_iter().filter(|mounted| mounted.is_ours() && mounted.path != mountpoint);
        // What cannot be looked at cannot be by the command either: a mount of another user, or a dead one.
        hide.extend(others.flat_map(|mounted| [mounted.path, mounted.source]).filter(|path| path.exists()));
        Ok(View {
            mountpoint,
            fork: self.fork.clone(),
            start: self.start.clone().unwrap_or_default(),
            write: self.write.clone(),
            read: self.read.clone(),
            hide,
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
    confine::start(|channel| {
        let mut options = vec![option("channel", &channel.to_string()), option("mountpoint", &mountpoint)];
        let mut option = |name: &str, value: &Path| options.push(option(name, value));
        if let Some(start) = below(&work) {
            option("start", &start);
        }
        args.write.iter().for_each(|path| option("write", path));
        args.read.iter().for_each(|path| option("read", path));
        args.hide.iter().chain(&hidden).for_each(|path| option("hide", path));
        if args.no_network {
            options.push("--no-network".into());
        }
        arguments("builder", args, fork, options)
    })
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
