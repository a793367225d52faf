//! `pfimg mount`: mounts a store, and returns once the mount answers.

mod answer;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXCPU};
use signal_hook::iterator::Signals;

mod idle;

use self::answer::{from_daemon, print_mounted, to_starter};
use self::idle::Idle;
use super::envelope::{self, print_json};
use super::holder::Holder;
use super::meant;
use super::own::OwnMount;
use super::secret::SecretArg;
use super::sharing::tell_if_open;
use super::statuses::read_status;
use super::store_arg::StoreArg;
use crate::daemon::dirs::default_log;
pub(crate) use crate::daemon::dirs::{cache_dir as default_cache_dir, state_dir as default_state_dir};
use crate::daemon::{Builder, MountedStore, Numbering, SealPolicy, Stopper};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::attach::{clear_dead, remount};
use crate::mount::hints;
use crate::mount::options::MountOptions;
use crate::store::{Sharing, Store};
use crate::util::limits;
use crate::util::units::{parse_bytes, parse_duration};

/// The size in bytes above which a starting mount sets the log aside.
const MAX_LOG: u64 = 8 << 20;

/// Show a store as a directory, with its images and writable forks.
#[derive(Debug, Args)]
#[command(after_help = "\
Below MNT are images/, tags/, latest, forks/ (writable), and work/, which leads to the project files of each fork.\n\
`mkdir MNT/forks/NAME@SOURCE` makes a fork. `pfimg umount MNT` ends the mount; forks stay in the store.\n\
`pfimg run` mounts the store by itself.")]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct MountArgs {
    /// The store's directory, and the mountpoint [default store: --store, `PF_STORE`, then ~/.processfork]
    #[arg(value_names = ["[STORE] MNT"], num_args = 1..=2, required = true)]
    paths: Vec<PathBuf>,
    /// Stay in the foreground and log to stderr
    #[arg(long)]
    foreground: bool,
    /// Memory for decompressed content and lists of files
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = parse_bytes)]
    cache_size: u64,
    /// Disk space for decompressed files of 1 MiB and more
    #[arg(long, value_name = "BYTES", default_value = "8GiB", value_parser = parse_bytes)]
    cache_disk: u64,
    /// Directory of these decompressed files. Several mounts may share it; it may be deleted at any time [default:
    /// ~/.cache/pfimg, below `XDG_CACHE_HOME` if that is set]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Give other users access (an ordinary user needs `user_allow_other` in /etc/fuse.conf)
    #[arg(long)]
    allow_other: bool,
    /// Owner to show for files of other users. `me`: you, so that you can read and change them. `keep`: the
    /// recorded owner. A seal always keeps the recorded owner [default: me; keep for root and with
    /// --allow-other]
    #[arg(long, value_name = "WHOSE")]
    owner: Option<Owner>,
    /// Support extended attributes and access control lists, and let the kernel enforce the lists; makes `ls
    /// -l` several times slower
    #[arg(long)]
    xattrs: bool,
    /// Inode numbers of files in images. `shared`: the same file at the same path has one number in all
    /// images. `distinct`: each image has its own numbers, as archives of several images and file locks need.
    /// `32`: as `shared`, with numbers below 2^32, for 32-bit programs
    #[arg(long, value_name = "HOW", default_value = "shared")]
    inodes: Inodes,
    /// Report holes in files to lseek(2) (`SEEK_HOLE`). Costs one request for each large file that `grep`
    /// reads. Cannot be combined with `--writes back`
    #[arg(long)]
    holes: bool,
    /// Show the secrets that sign ledgers (records of tool calls). With a secret, a reader can forge its
    /// ledger
    #[arg(long)]
    reveal_secrets: bool,
    /// Mount read-only
    #[arg(long)]
    read_only: bool,
    /// Mount over a directory with files, and hide these files until the mount ends
    #[arg(long)]
    nonempty: bool,
    /// When writes in forks reach the daemon. `through`: before write(2) returns. `back`: at the latest at
    /// close(2) or fsync(2). With `back` small writes are fast, but data not closed or fsynced is lost if the
    /// daemon dies
    #[arg(long, value_name = "WHEN", default_value = "through")]
    writes: Writes,
    /// When pfimg seals forks. `idle:5s`: five seconds after the last write. `interval:1m`: one minute after
    /// the first change. Both also seal when the mount ends. `manual`: never
    #[arg(long, value_name = "WHEN", default_value = "idle:5s", value_parser = parse_policy)]
    seal: SealPolicy,
    /// `auto`: on machines with two cores, keep the second core busy during a series of requests. Requests
    /// then take half the time, since program and daemon take turns on one core. `never`: leave the second
    /// core asleep
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    spin: Spin,
    /// Write the events of this mount to the store's audit log. Damage that pfimg finds is always reported,
    /// with a crash pack (a directory with the evidence)
    #[arg(long, value_name = "WHETHER", default_value = "on")]
    audit: Switch,
    #[command(flatten)]
    secret: SecretArg,
    /// Mount options of mount(8), separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Log file of the daemon [default: a file for each mountpoint in ~/.local/state/pfimg]
    // The starter appends the log to its own arguments for the daemon: the last value counts.
    #[arg(long, value_name = "FILE", overrides_with = "log")]
    log: Option<PathBuf>,
    /// For the mount of `pfimg run`: end it when it is idle, according to this file's lock
    #[arg(long, hide = true, value_name = "FILE")]
    until_idle: Option<PathBuf>,
    /// For that mount: the idle time before its end
    #[arg(long, hide = true, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    idle_after: Duration,
    /// Print JSON once the store is mounted
    #[arg(long)]
    json: bool,
    /// For the process that `mount` starts: report on stdout that the mount answers, or why it does not
    #[arg(long, hide = true)]
    daemon: bool,
}

/// The owner that is shown for files of other users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Owner {
    Keep,
    Me,
}

/// When writes reach the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Writes {
    Through,
    Back,
}

/// How files of images are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Inodes {
    Shared,
    Distinct,
    #[value(name = "32")]
    Counted,
}

impl From<Inodes> for Numbering {
    fn from(inodes: Inodes) -> Self {
        match inodes {
            Inodes::Shared => Self::Shared,
            Inodes::Distinct => Self::Distinct,
            Inodes::Counted => Self::Counted,
        }
    }
}

/// Whether a second core is kept busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Spin {
    Auto,
    Never,
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

impl MountArgs {
    fn store_and_mountpoint(&self, store: &StoreArg) -> Result<(PathBuf, PathBuf)> {
        match self.paths.as_slice() {
            [mountpoint] => Ok((store.path()?, mountpoint.clone())),
            [store, mountpoint] => Ok((meant::store_meant(store.clone())?, mountpoint.clone())),
            _ => Err(no_mountpoint()),
        }
    }

    fn mount_options(&self) -> Result<MountOptions> {
        let mut options = MountOptions::default();
        for list in &self.options {
            options.apply(list)?;
        }
        options.allow_other |= self.allow_other;
        options.read_only |= self.read_only;
        if self.owner == Some(Owner::Me) && options.suid {
            // A set-user-id program of another user would run with the rights of the mounting user.
            let message = "--owner me and -o suid cannot be combined: set-user-id programs would run as you";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_hint("leave one of them out"));
        }
        options.nonempty |= self.nonempty;
        Ok(options)
    }

    /// Returns the mount with all options.
    fn builder(&self, store: Store, mountpoint: PathBuf, options: MountOptions) -> Builder {
        let mut builder = MountedStore::builder(store, mountpoint)
            .options(options)
            .cache_dir(self.cache_dir.clone().unwrap_or_else(default_cache_dir))
            .cache_memory(self.cache_size)
            .cache_disk(self.cache_disk)
            .log_file(self.log.clone())
            .reveal_secrets(self.reveal_secrets)
            .xattrs(self.xattrs)
            .numbering(self.inodes.into())
            .holes(self.holes)
            .spin(self.spin == Spin::Auto)
            .writeback(self.writes == Writes::Back)
            .seal(self.seal)
            .audit(self.audit == Switch::On);
        if let Some(owner) = self.owner {
            builder = builder.show_as_mine(owner == Owner::Me);
        }
        builder
    }
}

fn no_mountpoint() -> Error {
    Error::new(ErrorKind::InvalidInput, "no mountpoint is given")
}

pub(crate) fn run(store: &StoreArg, args: &MountArgs) -> Result<ExitCode> {
    let outcome = start(store, args).map_err(limits::explain);
    if let (true, Err(error)) = (args.daemon, &outcome) {
        // Another process was faster since the starter looked: the starter waits for an answer.
        print!("{}", to_starter(Err(error)));
    }
    outcome
}

fn start(store: &StoreArg, args: &MountArgs) -> Result<ExitCode> {
    if args.foreground {
        limits::raise_for_daemon();
    }
    limits::check()?;
    // Every check that can be made before the start is made here, where a terminal can show the error.
    let options = args.mount_options()?;
    if options.remount {
        // mount(8) also names the store; the mount keeps its own.
        let mountpoint = args.paths.last().ok_or_else(no_mountpoint)?;
        remount(mountpoint, &args.options)?;
        if args.json {
            print_json(&json!({"mountpoint": mountpoint.to_string_lossy(), "remounted": true}))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (store_path, mountpoint) = args.store_and_mountpoint(store)?;
    if args.holes && args.writes == Writes::Back {
        let message = "--holes and --writes back cannot be combined: the kernel asks for holes before it passes on written data";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_hint("leave one of them out"));
    }
    let store = Store::open(&store_path)
        .map_err(|e| meant::explain_no_store(e, &store_path, &mountpoint, args.paths.len() > 1))?;
    let checked = args.builder(store, mountpoint.clone(), options).check();
    let mut builder = checked.map_err(|e| meant::explain_missing(e, &mountpoint))?;
    if !options.nonempty && meant::refuse_full(builder.mountpoint()).is_err() {
        // Another mount may have begun there since the check.
        builder = builder.check()?;
        meant::refuse_full(builder.mountpoint())?;
    }
    if !args.daemon && args.until_idle.is_none() {
        tell_if_open(builder.store());
        // The mount left by `pfimg run` would block writes to the forks here.
        let own = OwnMount::of(builder.store());
        if let Some(own) = own.filter(|own| own.mountpoint() != builder.mountpoint()) {
            own.end_if_idle();
        }
        if let Some((what, hint)) = limits::hindering() {
            eprintln!("pfimg: the limits of this shell also apply to the daemon: {what} ({hint})");
        }
    }
    if args.foreground {
        Ok(foreground(args, builder))
    } else {
        background(args, builder.store(), builder.mountpoint())
    }
}

/// Starts the daemon in its own process, and waits until its mount answers.
fn background(args: &MountArgs, store: &Store, mountpoint: &Path) -> Result<ExitCode> {
    let failed = |e| Error::io(e, "cannot start the daemon");
    let log = log(args, mountpoint)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    // This process reads the daemon's stdout.
    command
        .args(std::env::args_os().skip(1).filter(|arg| arg != "--json"))
        .args(["--foreground", "--daemon"]);
    let log = if let Some((path, file)) = log {
        command.arg("--log").arg(&path).stderr(file);
        Some(path)
    } else {
        command.stderr(Stdio::null());
        None
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // In its own process group, so that Ctrl-C at the terminal does not reach it.
        .process_group(0)
        .spawn()
        .map_err(|e| hints::not_started(e, "cannot start the daemon".into()))?;
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut answer).map_err(failed)?;
    }
    let told = from_daemon(&answer);
    if let Some(Ok(())) = told {
        let status = read_status(mountpoint);
        if !args.mount_options()?.read_only && status.as_ref().is_ok_and(|status| !status.writes_forks) {
            let (holder, hint) = match Holder::of(store) {
                Some(holder) => (format!(" ({holder})"), format!(". {}", holder.hint())),
                None => (String::new(), String::new()),
            };
            eprintln!(
                "pfimg: another program writes this store's forks{holder}: here they are read-only until it has ended{hint}"
            );
        }
        if args.json {
            print_mounted(store.root(), mountpoint, child.id(), log.as_deref())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // A daemon that was killed during its start leaves a dead mount.
    let ended = child.wait();
    let cleared = clear_dead(mountpoint);
    let Some(Err(error)) = told else {
        cleared?;
        let how = ended.map_or_else(|_| "ended early".to_owned(), |status| format!("ended early ({status})"));
        let error = Error::new(ErrorKind::Io(None), format!("the daemon (pid {}) {how}", child.id()));
        if let Some((what, hint)) = limits::hindering() {
            return Err(error.with_hint(format!("limits of this shell: {what}; {hint}")));
        }
        return Err(match log {
            Some(log) => error.with_hint(format!("read its log, {}", log.display())),
            None => error.with_hint("name a file for its log with --log"),
        });
    };
    Err(error)
}

/// Returns the log's absolute path, and the opened file. `None` if the default path cannot be written: a mount
/// works without a log.
fn log(args: &MountArgs, mountpoint: &Path) -> Result<Option<(PathBuf, File)>> {
    if let Some(log) = &args.log {
        let log = std::path::absolute(log).map_err(|e| Error::io(e, "--log"))?;
        return open_log(&log).map(|file| Some((log, file)));
    }
    let log = default_log(mountpoint);
    let opened = open_log(&log).and_then(|file| {
        // An older pfimg made logs that others can read.
        Sharing::Private
            .tighten(&file)
            .map_err(|e| Error::io(e, format!("cannot close the log {}", log.display())))?;
        Ok(file)
    });
    match opened {
        Ok(file) => Ok(Some((log, file))),
        Err(error) => {
            eprintln!("pfimg: {error}: the daemon logs nothing. Name another file with --log");
            Ok(None)
        }
    }
}

fn open_log(path: &Path) -> Result<File> {
    let failed = |e| Error::io(e, format!("cannot write the log {}", path.display()));
    if let Some(dir) = path.parent() {
        Sharing::Private.create_dir_all(dir).map_err(failed)?;
    }
    if fs::metadata(path).is_ok_and(|m| m.len() > MAX_LOG) {
        fs::rename(path, path.with_extension("log.old")).map_err(failed)?;
    }
    Sharing::Private.open_or_create(File::options().append(true), path).map_err(failed)
}

fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PFIMG_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // A log that cannot grow (a full disk, `ulimit -f`) must not end the mount: the library would report
        // that to the same log, and panic.
        .log_internal_errors(false)
        .try_init();
}

fn foreground(args: &MountArgs, builder: Builder) -> ExitCode {
    init_log();
    if args.daemon {
        // Away from the terminal, so that closing it does not end the daemon.
        let _ = rustix::process::setsid();
    }
    let answer = |started: Result<(), &Error>| {
        if args.daemon {
            let mut stdout = std::io::stdout();
            let _ = stdout.write_all(to_starter(started).as_bytes()).and_then(|()| stdout.flush());
        }
    };
    let (root, mountpoint) = (builder.store().root().to_owned(), builder.mountpoint().to_owned());
    let ready = || {
        answer(Ok(()));
        if args.json {
            // The programs that read it may have ended; the mount stays.
            let _ = print_mounted(&root, &mountpoint, std::process::id(), args.log.as_deref());
        }
    };
    let served = mount_and_serve(args, builder, ready).map_err(limits::explain);
    if let Err(error) = &served {
        tracing::error!("{error}");
        answer(Err(error));
        if args.json {
            envelope::print_error(error);
        }
    }
    // The error is already in the log, or with the starter.
    served.map_or_else(|error| ExitCode::from(error.exit_code()), |()| ExitCode::SUCCESS)
}

fn mount_and_serve(args: &MountArgs, builder: Builder, ready: impl FnOnce()) -> Result<()> {
    let builder = builder.session_secret(args.secret.read()?);
    if args.daemon {
        // All paths are absolute here, and a daemon must not keep its caller's directory busy.
        std::env::set_current_dir("/").map_err(|e| Error::io(e, "cannot change to /"))?;
    }
    // Before mounting, so that no signal can end this process and leave a dead mount.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXCPU])
        .map_err(|e| Error::io(e, "cannot handle signals"))?;
    let mounted = builder.mount()?;
    stop_by(signals, mounted.stopper())?;
    if let Some(lock) = args.until_idle.clone() {
        Idle { lock, after: args.idle_after }.watch(mounted.mountpoint(), mounted.unsealed())?;
    }
    ready();
    mounted.wait()
}

/// Ends the mount when a signal comes.
fn stop_by(mut signals: Signals, stopper: Stopper) -> Result<()> {
    let stop = move || {
        for signal in &mut signals {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("unknown");
            stopper.stop_for_signal(signal, name);
        }
    };
    thread::Builder::new()
        .name("pfimg-signals".into())
        .spawn(stop)
        .map_err(|e| Error::io(e, "cannot start a thread"))?;
    Ok(())
}

/// Parses `idle:TIME`, `interval:TIME` or `manual`.
fn parse_policy(text: &str) -> Result<SealPolicy, String> {
    let parse = |time| match parse_duration(time) {
        Ok(Duration::ZERO) => Err("the interval must be greater than zero".into()),
        other => other,
    };
    match text.split_once(':') {
        Some(("idle", time)) => parse(time).map(SealPolicy::Idle),
        Some(("interval", time)) => parse(time).map(SealPolicy::Interval),
        None if text == "manual" => Ok(SealPolicy::Manual),
        _ => Err("write idle:5s, interval:1m or manual".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        mount: MountArgs,
    }

    #[test]
    fn the_daemon_takes_its_starters_arguments_with_a_log_of_its_own_behind_them() {
        let args = ["pfimg", "mnt", "--log", "given", "--foreground", "--daemon", "--log", "/absolute/given"];
        let parsed = Cli::try_parse_from(args).unwrap();
        assert_eq!(parsed.mount.log, Some(PathBuf::from("/absolute/given")));
    }
}
