//! The arguments of `pfimg run`, also of the processes that it starts.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use super::conf;
use crate::cli::envelope;
use crate::cli::text::print;
use crate::error::{Error, Result};
use crate::mount::mountinfo::{holding_among, mounts};
use crate::mount::silent::mode_known;
use crate::sandbox::View;
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
/// remaining processes. `mkdir $PFIMG_SNAP/NAME` inside the run seals the fork, and gives the image the tag NAME.
///
/// `pfimg run FORK COMMAND…` without `--` runs in an existing fork, and never makes one.
///
/// pfimg makes and mounts the store if necessary, and tags the image of the project with the name of its
/// directory. Such a mount ends after 30 seconds without use (the
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
    pub(super) from: Option<String>,
    /// Check out this commit in new forks. Ignored files stay as they are in the project
    #[arg(long, value_name = "REV")]
    pub(super) from_commit: Option<String>,
    /// Run in N forks side by side: NAME-1, NAME-2 and so on
    #[arg(short = 'n', long = "number", value_name = "N")]
    pub(super) number: Option<NonZeroUsize>,
    /// Show the fork at PATH [default: the project's own path]
    #[arg(long, value_name = "PATH")]
    pub(super) at: Option<PathBuf>,
    /// End the command with SIGTERM after TIME, such as 90s or 10m; kill it 10 seconds later
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// Discard the forks that this run made, after the commands end
    #[arg(long)]
    pub(super) rm: bool,
    /// Seal the fork when the command ends, and give the image this name
    #[arg(long, value_name = "TAG")]
    pub(super) tag: Option<String>,
    /// Write one JSON object per line: when a run starts, and when it ends. Without FILE, or with `-`, write to
    /// stdout, and keep the commands' output for `pfimg output`
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = STDOUT)]
    pub(super) json: Option<PathBuf>,
    /// Let the command write PATH, a directory, device or file. A program that saves a file by replacing it
    /// needs the directory. May be repeated, like --read and --hide
    #[arg(long, value_name = "PATH")]
    pub(super) write: Vec<PathBuf>,
    /// Let the command read PATH, which would be hidden
    #[arg(long, value_name = "PATH")]
    pub(super) read: Vec<PathBuf>,
    /// Hide PATH, a file or directory, from the command
    #[arg(long, value_name = "PATH")]
    pub(super) hide: Vec<PathBuf>,
    /// Pass the variable NAME, although it looks like a credential, and the socket that it names. `*` stands
    /// for any text. NAME=VALUE sets a variable. May be repeated
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(|text| conf::variable(&text)))]
    pub(super) env: Vec<OsString>,
    /// Print only what the command prints, and errors
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// Give the command only a loopback interface, and no other network
    #[arg(long)]
    pub(super) no_network: bool,
    /// The fork; pfimg makes it if it is missing. NAME@SOURCE makes it from an image or another fork.
    /// `try-{1..4}` and `{a,b}` stand for several names [default: the project's name and the first free
    /// number]
    #[arg(value_name = "NAME[@SOURCE]")]
    pub(super) names: Vec<String>,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub(super) command: Vec<OsString>,
    /// For `run FORK COMMAND`: the fork must exist
    #[arg(long, hide = true)]
    pub(super) older_form: bool,
    /// For a run of several: one of them, whose fork exists and whose output the first process reads
    #[arg(long, hide = true)]
    pub(super) member: bool,
    /// For the processes that `run` starts: which of them this is
    #[arg(long, hide = true)]
    pub(super) stage: Option<Stage>,
    /// For them: the descriptor for messages to the first one
    #[arg(long, hide = true, default_value_t = -1)]
    pub(super) channel: i32,
    /// For them: where the store is mounted
    #[arg(long, hide = true)]
    pub(super) mountpoint: Option<PathBuf>,
    /// For them: the fork
    #[arg(long, hide = true, default_value = "")]
    pub(super) in_fork: String,
    /// For them: files with credentials
    #[arg(long, hide = true)]
    pub(super) key: Vec<PathBuf>,
    /// For them: where the command starts, below the fork's files
    #[arg(long, hide = true)]
    pub(super) start: Option<PathBuf>,
}

/// A process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Stage {
    Builder,
    Init,
}

impl RunArgs {
    /// Whether the JSON lines go to stdout.
    pub(super) fn is_json_on_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new(STDOUT))
    }

    /// Writes the error that ends this run, for programs.
    pub(super) fn tell_json(&self, error: &Error) {
        let line = envelope::error_line("run", error);
        if self.is_json_on_stdout() {
            let _ = print(&line);
        } else if let Some(path) = &self.json {
            let file = File::options().append(true).create(true).open(path);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
    }

    /// Returns what the command may see, by the options of a process of a run.
    pub(super) fn view(&self) -> Result<View> {
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

/// Returns an option with its value, as one argument.
pub(super) fn option(name: &str, value: &(impl AsRef<OsStr> + ?Sized)) -> OsString {
    let mut option = OsString::from(format!("--{name}="));
    option.push(value);
    option
}

/// Returns the arguments for a process of a run.
pub(super) fn arguments(stage: &str, command: &[OsString], options: Vec<OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["run".into(), "--stage".into(), stage.into()];
    all.extend(options);
    all.push("--".into());
    all.extend(command.iter().cloned());
    all
}
