//! The command line: one file per command.

mod apply;
mod audit;
mod cp;
mod demo;
mod diff;
mod discard;
mod envelope;
mod export;
mod fixture;
mod fork;
mod forks;
mod gc;
mod help;
mod holder;
mod images;
mod import;
mod log;
mod meant;
mod mount;
mod mv;
mod near;
mod output;
mod own;
mod packs;
mod pager;
mod pattern;
mod place;
mod progress;
mod prune;
mod replay;
mod restore;
mod run;
mod runs;
mod seal;
mod seals;
mod secret;
mod sharing;
mod show;
mod status;
mod statuses;
mod store_arg;
mod tag;
mod tags;
mod text;
mod umount;
mod untag;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::Result;
use crate::util::limits;
use store_arg::StoreArg;

/// Runs agents in writable copies of a project, shows their changes, and applies or undoes them.
#[derive(Debug, Parser)]
#[command(name = "pfimg", version, max_term_width = 100, subcommand_required = true)]
struct Cli {
    #[command(flatten)]
    store: StoreArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::MountArgs),
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArgs),
    Status(status::StatusArgs),
    Fork(fork::ForkArgs),
    Forks(forks::ForksArgs),
    Discard(discard::DiscardArgs),
    Mv(mv::MvArgs),
    Seal(seal::SealArgs),
    Restore(restore::RestoreArgs),
    Apply(apply::ApplyArgs),
    Seals(seals::SealsArgs),
    Run(run::RunArgs),
    Output(output::OutputArgs),
    Images(images::ImagesArgs),
    Log(log::LogArgs),
    Tags(tags::TagsArgs),
    Tag(tag::TagArgs),
    Untag(untag::UntagArgs),
    Cp(cp::CpArgs),
    Show(show::ShowArgs),
    Diff(diff::DiffArgs),
    Verify(verify::VerifyArgs),
    Audit(audit::AuditArgs),
    Replay(replay::ReplayArgs),
    Import(import::ImportArgs),
    Export(export::ExportArgs),
    Gc(gc::GcArgs),
    Prune(prune::PruneArgs),
    Fixture(fixture::FixtureArgs),
    Demo(demo::DemoArgs),
}

/// The definition of the command line: every command with its options.
pub fn definition() -> clap::Command {
    help::grouped(Cli::command())
}

/// Runs the command line and returns the exit code; [`Exit`](crate::error::Exit) says what each means.
pub fn run() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    // The command of `pfimg run` inherits the signal handling of its caller.
    if !matches!(cli.command, Command::Run(_)) {
        limits::outlive_large_files();
    }
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => envelope::fail(&near::explain(&cli.store, error)),
    }
}

/// Parses the command line. On failure prints the reason and returns the exit code.
fn parse() -> Result<Cli, ExitCode> {
    let args = as_called_by_mount(std::env::args_os().collect());
    // The parser needs more stack than some shells allow.
    limits::raise().map_err(|error| {
        envelope::begin_unparsed(&args);
        envelope::fail(&error)
    })?;
    let mut definition = definition();
    if args.len() < 2 {
        // Not an error: the bare name asks for the list of commands.
        let _ = definition.print_help();
        return Err(ExitCode::SUCCESS);
    }
    envelope::begin(&args, &definition);
    let args = json_behind_command(args, &definition);
    let args = run::with_command_apart(args, &definition).map_err(|error| envelope::fail(&error))?;
    let parsed = definition.try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| envelope::refuse(&with_usage_of_command(error, &args)))
}

/// Moves a `--json` from before the command to behind it, where each command defines the option. Without a
/// command, removes it.
fn json_behind_command(mut args: Vec<OsString>, definition: &clap::Command) -> Vec<OsString> {
    let command = envelope::command_at(&args, definition);
    let before = command.unwrap_or(args.len());
    let json = args.iter().take(before).take_while(|arg| *arg != "--").position(|arg| arg == "--json");
    if let Some(json) = json.map(|at| args.remove(at))
        && command.is_some()
    {
        // Removing the option has moved the command by one.
        args.insert(before, json);
    }
    args
}

/// Inserts the command `mount` if mount(8) is the caller, which passes the store first: `pfimg STORE MNT -o
/// OPTIONS`.
///
/// mount(8) does this for the type `fuse.pfimg`, through mount.fuse, to mount and to remount. No name of a
/// command contains a slash.
fn as_called_by_mount(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_path = |arg: Option<&OsString>| arg.is_some_and(|arg| arg.as_encoded_bytes().starts_with(b"/"));
    if is_path(args.get(1)) && is_path(args.get(2)) {
        args.insert(1, "mount".into());
    }
    args
}

/// Replaces the usage line of a parse error by that of the command's help.
///
/// The library lists each given option as if it were required, such as `--store <DIR>`.
fn with_usage_of_command(mut error: clap::Error, args: &[OsString]) -> clap::Error {
    if error.get(ContextKind::Usage).is_some() {
        let mut cli = Cli::command();
        cli.build();
        let named = args.iter().skip(1).find_map(|arg| {
            let name = arg.to_str()?;
            cli.find_subcommand(name).map(|_| name.to_owned())
        });
        if let Some(command) = named.and_then(|name| cli.find_subcommand_mut(name)) {
            let usage = command.render_usage();
            error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
        }
    }
    error
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    let store = &cli.store;
    match &cli.command {
        Command::Mount(args) => mount::run(store, args),
        Command::Umount(args) => umount::run(store, args),
        Command::Status(args) => status::run(store, args),
        Command::Fork(args) => fork::run(store, args),
        Command::Forks(args) => forks::run(store, args),
        Command::Discard(args) => discard::run(store, args),
        Command::Mv(args) => mv::run(store, args),
        Command::Seal(args) => seal::run(store, args),
        Command::Restore(args) => restore::run(store, args),
        Command::Apply(args) => apply::run(store, args),
        Command::Seals(args) => seals::run(store, args),
        Command::Run(args) => Ok(run::run(store, args)),
        Command::Output(args) => output::run(store, args),
        Command::Images(args) => images::run(store, args),
        Command::Log(args) => log::run(store, args),
        Command::Tags(args) => tags::run(store, args),
        Command::Tag(args) => tag::run(store, args),
        Command::Untag(args) => untag::run(store, args),
        Command::Cp(args) => cp::run(store, args),
        Command::Show(args) => show::run(store, args),
        Command::Diff(args) => diff::run(store, args),
        Command::Verify(args) => verify::run(store, args),
        Command::Audit(args) => audit::run(store, args),
        Command::Replay(args) => replay::run(store, args),
        Command::Import(args) => import::run(store, args),
        Command::Export(args) => export::run(store, args),
        Command::Gc(args) => gc::run(store, args),
        Command::Prune(args) => prune::run(store, args),
        Command::Fixture(args) => fixture::run(store, args),
        Command::Demo(args) => demo::run(args),
    }
}
