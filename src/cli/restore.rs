//! `pfimg restore`: restores a fork, or paths of it, to one of its seals.

mod paths;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::audit;
use super::envelope::print_json;
use super::place::{self, Place};
use super::secret::SecretArg;
use super::store_arg::StoreArg;
use super::text::{plain, plain_bytes, print};
use crate::daemon::{calls, forks};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo::runs_in;
use crate::ops::back::{Asked, Bytes, Outcome};
use crate::ops::line;
use crate::ops::recover;
use crate::ops::seal::Sealer;

/// Restore a fork, or only PATHs of it, to one of its seals. Unsealed changes are sealed first, so nothing is
/// lost.
///
/// FORK alone means the last seal that the fork had before this command, FORK@0 its beginning. Without PATHs,
/// git commits go back too. A PATH starts at the top of the fork, or
/// at the current directory if that is inside the fork.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The fork and its seal: a number from `pfimg seals FORK`, a tag, or the beginning of an id
    #[arg(value_name = "FORK[@SEAL]")]
    what: String,
    /// The seal, in the older form
    #[arg(value_name = "SEAL", hide = true)]
    seal: Option<String>,
    /// Restore only these files and directories
    #[arg(value_name = "PATH", last = true)]
    paths: Vec<OsString>,
    /// Return to the state before the last restore
    #[arg(long, conflicts_with_all = ["seal", "paths"])]
    undo: bool,
    #[command(flatten)]
    secret: SecretArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl RestoreArgs {
    /// Returns the two parts of `FORK[@SEAL]`, also if they are separate words.
    fn fork_and_seal(&self) -> Result<(&str, Option<&str>)> {
        let what = &*self.what;
        let (name, seal) = match (&self.seal, what.split_once('@')) {
            (Some(seal), _) => (what, Some(&**seal)),
            (None, Some((name, seal))) => (name, Some(seal)),
            (None, None) => (what, None),
        };
        match seal {
            Some(_) if self.undo => Err(Error::new(
                ErrorKind::InvalidInput,
                "--undo takes no seal: it returns to the state before the last restore",
            )
            .with_hint(format!("write `pfimg restore {name} --undo`, or leave --undo out"))),
            // A path would lead out of the directory that the mount uses for requests.
            Some(seal) if seal.contains('/') => Err(line::no_seal(name, seal)),
            Some("") => Err(Error::new(ErrorKind::InvalidInput, format!("{what:?} names no seal"))
                .with_hint(format!("write {name}@SEAL; `pfimg seals {name}` lists the seals"))),
            _ if name.is_empty() && self.seal.is_none() => {
                Err(Error::new(ErrorKind::InvalidInput, format!("{what:?} names no fork"))
                    .with_hint("write FORK@SEAL; `pfimg forks` lists the forks"))
            }
            seal => Ok((name, seal)),
        }
    }
}

pub(crate) fn run(store: &StoreArg, args: &RestoreArgs) -> Result<ExitCode> {
    let (name, seal) = args.fork_and_seal()?;
    let store = Arc::new(store.open()?);
    let place = place::find(&store)?;
    let paths = if args.paths.is_empty() {
        None
    } else {
        let mountpoint = if let Place::Mount(served) = &place { Some(&*served.mountpoint) } else { None };
        let within = |path: &OsString| Ok(Bytes(paths::in_fork(&store, mountpoint, name, path)?));
        Some(args.paths.iter().map(within).collect::<Result<Vec<_>>>()?)
    };
    let asked = Asked { seal: seal.map(str::to_owned), undo: args.undo, paths };
    let done = match place {
        Place::Mount(served) => {
            place::check_secret(&served.mountpoint, &args.secret)?;
            let runs = runs_in(&served.mountpoint, name);
            let done = calls::restore(&served.client, name, asked)?;
            if runs && done.paths.is_none() {
                place::warn_of_restore(name);
            }
            done
        }
        Place::Disk(registry) => {
            let log = audit::told(&store, "restore");
            let fork = recover::read_back(&store, &registry, name, &log)?;
            let reader = forks::reader(&store);
            let sealer = Sealer::new(Arc::clone(&store), reader, args.secret.read()?).with_log(log);
            let done = forks::restore(&store, &registry, &sealer, &fork, &asked)?;
            registry.sync()?;
            done
        }
    };
    tell(name, args, &done)?;
    Ok(ExitCode::SUCCESS)
}

fn tell(name: &str, args: &RestoreArgs, done: &Outcome) -> Result<()> {
    for report in &done.reports {
        eprintln!("pfimg: {report}");
    }
    let shown = |path: &Bytes| plain_bytes(&path.0, usize::MAX);
    let held: Vec<String> = done.held.iter().map(|held| shown(&held.path)).collect();
    if args.json {
        let entry = |line: &crate::ops::back::PathLine| json!({"status": line.status.to_string(), "path": shown(&line.path), "directory": line.is_folder});
        return print_json(&json!({
            "fork": name,
            "seal": done.number,
            "image": done.image,
            "sealed_before": done.new,
            "before": {"seal": done.before_number, "image": done.before},
            "paths": done.paths.as_ref().map(|paths| paths.iter().map(shown).collect::<Vec<_>>()),
            "entries": done.moved.iter().map(entry).collect::<Vec<_>>(),
            "kept": held,
            "reports": done.reports,
        }));
    }
    if let Some(paths) = &done.paths {
        print(&paths::listing(&done.moved, paths))?;
    }
    for path in &held {
        eprintln!("pfimg: {path} stays: a program wrote it just now, or .pfignore keeps it out of seals");
    }
    let name = plain(name, usize::MAX);
    let what = match &done.paths {
        None => name.clone(),
        Some(paths) => format!("{} of {name}", paths::in_words(paths)),
    };
    if done.paths.is_some() && done.moved.is_empty() {
        eprintln!("pfimg: {what} is already as in seal {}, nothing was changed", done.number);
        return Ok(());
    }
    let before = match done.before_number {
        Some(number) => format!("seal {number}"),
        None => done.before.hex()[..12].to_owned(),
    };
    let are = if done.paths.as_ref().is_some_and(|paths| paths.len() > 1) { "are" } else { "is" };
    eprintln!(
        "pfimg: {what} {are} as in seal {}; the state before this is {before}. Undo: pfimg restore {name} --undo",
        done.number
    );
    Ok(())
}
