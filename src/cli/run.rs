//! `pfimg run`: runs a command that can change only a fork.

mod args;
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
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};

pub(crate) use self::args::RunArgs;
use self::args::{Stage, arguments, option};
pub(in crate::cli) use self::commits::{Commits, MAX_LOG, Made};
pub(crate) use self::kept::copy as copy_output;
use super::near;
use super::store_arg::StoreArg;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::refuse_fork_name;
use crate::sandbox::{self, CANNOT_RUN};

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

/// Returns the command line with the command of `pfimg run` behind `--`, whichever form it has.
pub(crate) fn with_command_apart(
    mut args: Vec<OsString>,
    definition: &clap::Command,
) -> Result<Vec<OsString>> {
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
    let mut cli = definition.clone();
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
