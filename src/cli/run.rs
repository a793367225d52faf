//! `pfimg run`: runs a command that can change only a fork.

mod changes;
mod commits;
mod conf;
mod forks;
pub(crate) mod inside;
mod kept;
mod many;
mod one;
pub(crate) mod record;
mod sandboxed;
mod words;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, CommandFactory as _};
use rustix::process::{Signal, set_parent_process_death_signal};

pub(in crate::cli) use self::commits::{Commits, MAX_LOG, Made};
pub(crate) use self::kept::copy as copy_output;
use super::text::print;
use super::{Cli, StoreArg, envelope, near};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::refuse_fork_name;
use crate::mount::mountinfo::{holding_among, mounts};
use crate::mount::silent::mode_known;
use crate::sandbox::{self, CANNOT_RUN, View};
use crate::util::units::parse_duration;

/// The meaning of `--json` without a file.
const STDOUT: &str = "-";

/// Run a command in a fork of the project, where it can change nothing else.
///
/// A fork is a writable copy. pfimg imports the project if it changed, makes the fork, and runs the command
/// in it. The project is the git work tree around the current directory, or that directory. The project
/// itself stays unchanged until `pfimg apply`. With several names the commands run side by side, and `pfimg
/// output NAME` prints the output of each. An existing fork is used as it is: its changes stay, and the
/// project is not imported again.
///
/// The command sees the fork at the project's own path. It can write there, in a private /tmp, and nowhere
/// else. It can read the rest of this machine except other forks and the store, devices, processes, services
/// (/run) and credentials: variables such as `*_TOKEN` unless --env names them, files such as ~/.ssh unless
/// --read names them. It has the network. After the command, pfimg removes its temporary files and ends its
/// remaining processes. `mkdir $PFIMG_SNAP/NAME` inside the run seals the fork.
///
/// `pfimg run FORK COMMAND…` without `--` runs in an existing fork. Outside of its project, the command then sees
/// the fork below the mountpoint, and pfimg prints no summary.
///
/// pfimg makes and mounts the store if necessary. Such a mount ends after 30 seconds without use (the
/// variable `PFIMG_IDLE` sets another time, such as 5m).
///
/// The file ~/.config/pfimg/run.conf contains options for every run, one per line, without dashes: `env
/// NAME`, `read PATH`, `write PATH`, `hide PATH`, `quiet`.
///
/// Exit code: that of the command, or the largest of several; 128 plus the signal that ended it; 124 after
/// --timeout; 2 for a wrong command line; 125 if pfimg cannot run the command, 126 if it cannot be executed,
/// 127 if it is not found.
#[derive(Debug, Default, Args)]
#[command(
    override_usage = "pfimg run [OPTIONS] [NAME[@SOURCE]]... -- COMMAND...\n       pfimg run FORK[@SOURCE] COMMAND..."
)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct RunArgs {
    /// Source of new forks: a fork, an image (its tag, the first digits of its id, or latest), or a
    /// directory, whose name contains a slash or is `.` [default: the project]
    #[arg(long, value_name = "DIR|IMAGE|FORK")]
    from: Option<String>,
    /// Check out this commit in new forks. Ignored files stay as they are in the project
    #[arg(long, value_name = "REV")]
    from_commit: Option<String>,
    /// Run in N forks side by side: NAME-1, NAME-2 and so on
    #[arg(short = 'n', long = "number", value_name = "N")]
    number: Option<NonZeroUsize>,
    /// Show the fork at PATH [default: the project's own path]
    #[arg(long, value_name = "PATH")]
    at: Option<PathBuf>,
    /// End the command with SIGTERM after TIME, such as 90s or 10m; kill it 10 seconds later
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Discard the forks that this run made, after the commands end
    #[arg(long)]
    rm: bool,
    /// Seal the fork when the command ends, and give the image this name
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Write one JSON object per line: when a run starts, and when it ends. Without FILE, or with `-`, write to
    /// stdout, and keep the commands' output for `pfimg output`
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = STDOUT)]
    json: Option<PathBuf>,
    /// Let the command write PATH, a directory, device or file. A program that saves a file by replacing it
    /// needs the directory. May be repeated, like --read and --hide
    #[arg(long, value_name = "PATH")]
    write: Vec<PathBuf>,
    /// Let the command read PATH, which would be hidden
    #[arg(long, value_name = "PATH")]
    read: Vec<PathBuf>,
    /// Hide PATH, a file or directory, from the command
    #[arg(long, value_name = "PATH")]
    hide: Vec<PathBuf>,
    /// Pass the variable NAME, although it looks like a credential, and the socket that it names. `*` stands
    /// for any text. NAME=VALUE sets a variable. May be repeated
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(|text| conf::variable(&text)))]
    env: Vec<OsString>,
    /// Print only what the command prints, and errors
    #[arg(long, short)]
    quiet: bool,
    /// Give the command only a loopback interface, and no other network
    #[arg(long)]
    no_network: bool,
    /// The fork; pfimg makes it if it is missing. NAME@SOURCE makes it from an image or another fork.
    /// `try-{1..4}` and `{a,b}` stand for several names [default: the project's name and the first free
    /// number]
    #[arg(value_name = "NAME[@SOURCE]")]
    names: Vec<String>,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    command: Vec<OsString>,
    /// For `run FORK COMMAND`: the fork must exist
    #[arg(long, hide = true)]
    older_form: bool,
    /// For a run of several: one of them, whose fork exists and whose output the first process reads
    #[arg(long, hide = true)]
    member: bool,
    /// For the processes that `run` starts: which of them this is
    #[arg(long, hide = true)]
    stage: Option<Stage>,
    /// For them: the descriptor for messages to the first one
    #[arg(long, hide = true, default_value_t = -1)]
    channel: i32,
    /// For them: where the store is mounted
    #[arg(long, hide = true)]
    mountpoint: Option<PathBuf>,
    /// For them: the fork
    #[arg(long, hide = true, default_value = "")]
    in_fork: String,
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
        None => check(args).and_then(|()| start(store, args)),
        Some(Stage::Builder) => {
            let own = vec![option("channel", &args.channel.to_string()), option("in-fork", &args.in_fork)];
            let init = arguments("init", &args.command, own);
            sandbox::build(!args.no_network, || args.view(), &init, args.channel).map_err(Failure::Run)
        }
        Some(Stage::Init) => sandbox::first_process(&args.command, args.channel).map_err(Failure::Run),
    };
    ExitCode::from(ended.unwrap_or_else(|failure| {
        let (error, code) = match failure {
            Failure::Usage(error) => (error, error_code()),
            Failure::Run(error) => (error, CANNOT_RUN),
        };
        let error = if args.stage.is_none() { near::explain(store, error) } else { error };
        sandbox::tell(&error);
        if args.stage.is_none() && !args.member {
            args.tell_json(&error);
        }
        code
    }))
}

/// Why no command ran.
enum Failure {
    /// The command line has no meaning.
    Usage(Error),
    Run(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Run(error)
    }
}

/// The exit code of a wrong command line.
fn error_code() -> u8 {
    Error::new(ErrorKind::InvalidInput, "").exit_code()
}

/// Finds conflicting options before anything is made.
fn check(args: &RunArgs) -> Result<(), Failure> {
    let refuse = |what: &'static str, hint: &'static str| {
        Err(Failure::Usage(Error::new(ErrorKind::InvalidInput, what).with_hint(hint)))
    };
    let several = args.names.len() > 1 || args.number.is_some_and(|number| number.get() > 1);
    if args.number.is_some() && args.names.len() > 1 {
        return refuse("-n needs a single name", "write NAME -n 4, or NAME-{1..4}");
    }
    if several && args.tag.is_some() {
        return refuse(
            "--tag needs a single fork",
            "tag one of the forks later: `pfimg seal FORK --tag TAG`",
        );
    }
    Ok(())
}

fn start(store: &StoreArg, args: &RunArgs) -> Result<u8, Failure> {
    if args.member {
        // The run of several owns the terminal, and passes signals on.
        let _ = rustix::process::setsid();
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
    let runs = forks::Runs::prepare(store, args)?;
    if runs.forks.len() == 1 && !args.is_json_on_stdout() {
        Ok(one::run(&runs, args)?)
    } else {
        Ok(many::run(&runs, args)?)
    }
}

impl RunArgs {
    fn is_json_on_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new(STDOUT))
    }

    /// Writes the error that ends this run, for programs.
    fn tell_json(&self, error: &Error) {
        let line = envelope::error_line("run", error);
        if self.is_json_on_stdout() {
            let _ = print(&line);
        } else if let Some(path) = &self.json {
            let file = File::options().append(true).create(true).open(path);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
    }

    fn view(&self) -> Result<View> {
        let mountpoint = self.mountpoint.clone().unwrap_or_default();
        let mut hide = self.hide.clone();
        // Other mounts, and their stores. No daemon is asked: a silent one must not block this.
        let mounts = mounts()?;
        let others = mounts.iter().filter(|mounted| mounted.is_ours() && mounted.path != mountpoint);
        // A store in a hidden directory is hidden with it.
        let lies_in_another = |path: &Path| {
            holding_among(&mounts, path).is_some_and(|(mounted, _)| {
                mounted.is_ours() && mounted.path != mountpoint && mounted.path != path
            })
        };
        let paths = others.flat_map(|mounted| [&mounted.path, &mounted.source]);
        // Neither this process nor the command can look at such a mount, which is another user's.
        let seen = paths.filter(|path| !lies_in_another(path) && mode_known(path).is_some());
        hide.extend(seen.cloned());
        Ok(View {
            mountpoint,
            fork: self.in_fork.clone(),
            at: self.at.clone(),
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

/// Returns the arguments for a process of a run.
fn arguments(stage: &str, command: &[OsString], options: Vec<OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["run".into(), "--stage".into(), stage.into()];
    all.extend(options);
    all.push("--".into());
    all.extend(command.iter().cloned());
    all
}

/// Returns the command line with the command of `pfimg run` behind `--`, whichever form it has.
pub(crate) fn with_command_apart(mut args: Vec<OsString>) -> Result<Vec<OsString>> {
    // The only option before the command that takes a value.
    let mut at = 1;
    let mut store = std::env::var_os("PF_STORE").filter(|store| !store.is_empty());
    while let Some(word) = args.get(at) {
        let text = word.to_string_lossy();
        if text == "--store" {
            store = args.get(at + 1).cloned();
            at += 2;
        } else if let Some(value) = text.strip_prefix("--store=") {
            store = Some(value.into());
            at += 1;
        } else if text.starts_with('-') {
            at += 1;
        } else {
            break;
        }
    }
    // The run's own processes get their arguments from it.
    if args.get(at).is_none_or(|word| word != "run") || args.get(at + 1).is_some_and(|word| word == "--stage")
    {
        return Ok(args);
    }
    let mut cli = Cli::command();
    cli.build();
    let words = args.split_off(at + 1);
    let store = store.map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".processfork")));
    let known = KnownHere { command: cli.find_subcommand("run").cloned().unwrap_or_default(), store };
    args.extend(words::arrange(words, &known)?);
    Ok(args)
}

/// The meaning of words on this machine.
struct KnownHere {
    command: clap::Command,
    store: Option<PathBuf>,
}

impl words::Known for KnownHere {
    fn takes_value(&self, option: &str) -> bool {
        let found = self.command.get_arguments().find(|known| match option.strip_prefix("--") {
            Some(long) => known.get_long() == Some(long),
            None => known.get_short() == option.chars().nth(1),
        });
        found.is_some_and(|known| known.get_action().takes_values() && !known.is_require_equals_set())
    }

    fn is_fork(&self, name: &str) -> bool {
        let Some(store) = self.store.as_ref().filter(|_| refuse_fork_name(name).is_none()) else {
            return false;
        };
        // The store may be named by its mountpoint.
        store.join("forks/heads").join(format!("{name}.json")).exists()
            || store.join("forks").join(name).exists()
    }

    fn is_program(&self, name: &OsStr) -> bool {
        words::is_program(name)
    }
}
