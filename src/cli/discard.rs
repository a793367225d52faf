//! `pfimg discard`: discards forks.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::envelope::{Failure, print_json};
use super::place::{self, Place};
use super::progress::Bar;
use super::store_arg::StoreArg;
use super::text::{count, plain};
use super::{audit, near, pattern, prune, runs};
use crate::audit::note;
use crate::daemon::calls;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::fork;
use crate::mount::mountinfo::runs_in;
use crate::ops::gc;
use crate::ops::line::Line;
use crate::ops::prune::{SealsRemoved, remove_seals};
use crate::store::Store;
use crate::util::parallel::default_jobs;
use crate::util::units::format_bytes;

/// Discard forks, with everything in them. A fork with unsealed changes stays, unless --force is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --seals, the seals stay as images without a name. `pfimg discard NAME --seals` removes them later too, as does \
`pfimg prune`. `pfimg gc` deletes the data of removed images, but keeps data written in the last hour. `pfimg gc --grace 0s` deletes \
that too: use it only while no other program writes the store.\n\
\n\
To remove all forks with their seals: pfimg discard --all --force --seals && pfimg gc\n\
Tagged images and imports of projects stay: `pfimg prune --help` shows how to remove them.")]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct DiscardArgs {
    /// Names of forks, or patterns: 'try-*', 'try-{1..4}'
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// Discard every fork
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Remove the seals too, also of forks that were discarded before. Seals that a tag, another fork or another
    /// image needs stay
    #[arg(long)]
    seals: bool,
    /// Discard forks with unsealed changes too
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A fork that stays, and why.
#[derive(Serialize)]
struct Stays {
    fork: String,
    error: Failure,
}

pub(crate) fn run(store_arg: &StoreArg, args: &DiscardArgs) -> Result<ExitCode> {
    let store = Arc::new(store_arg.open()?);
    let place = place::find(&store)?;
    let there = place.names()?;
    let before = discarded_before(&store)?;
    let known: Vec<String> =
        if args.seals { before.iter().chain(&there).cloned().collect() } else { there.clone() };
    // A mistyped name must not discard the other named forks.
    let meant = |word: &String| names(word, &known, &before).map_err(|error| near::explain(store_arg, error));
    let mut wanted = if args.all {
        known.clone()
    } else {
        args.names.iter().map(meant).collect::<Result<Vec<_>>>()?.concat()
    };
    let mut seen = HashSet::new();
    wanted.retain(|name| seen.insert(name.clone()));
    let several = wanted.len() > 1;
    let mut errors = Vec::new();
    let (mut gone, mut seals) = (Vec::new(), Vec::new());
    for name in wanted.iter().filter(|name| there.contains(name)).cloned() {
        match discard(&store, &place, &name, args, &mut seals) {
            Ok(()) => gone.push(name),
            Err(error) => errors.push((name, near::explain(store_arg, error))),
        }
    }
    if !several && let Some((_, error)) = errors.pop() {
        return Err(error);
    }
    for (_, error) in &errors {
        eprintln!("pfimg: {error}");
    }
    drop(place);
    // The seals of every fork that had one of these names and is gone now.
    let is_gone = |name: &String| !errors.iter().any(|(stays, _)| stays == name);
    let mut left = Vec::new();
    for fork in fork::discarded(store.root())? {
        if wanted.contains(&fork.name) && is_gone(&fork.name) {
            left.extend(fork.seals.into_iter().filter(|image| store.images().contains(image)));
        }
    }
    let stay = if args.seals { 0 } else { left.len() as u64 };
    let removed = if args.seals && wanted.iter().any(is_gone) {
        seals.extend(left);
        Some(clear(&store, &seals)?)
    } else {
        None
    };
    report(args, &gone, &errors, (removed.as_ref(), stay))?;
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { Exit::Differs.into() })
}

/// Returns the names of discarded forks whose images are still in the store.
fn discarded_before(store: &Store) -> Result<Vec<String>> {
    let all = fork::discarded(store.root())?.into_iter();
    let left = all.filter(|fork| fork.seals.iter().any(|image| store.images().contains(image)));
    let mut names: Vec<String> = left.map(|fork| fork.name).collect();
    names.dedup();
    Ok(names)
}

/// Returns the forks that a word names. Fails if one of them does not exist. `before` are forks that were
/// discarded and left seals.
fn names(word: &str, there: &[String], before: &[String]) -> Result<Vec<String>> {
    let names = pattern::names(word, there)?;
    match names.iter().find(|name| !there.contains(name)) {
        Some(missing) if before.contains(missing) => {
            Err(Error::new(ErrorKind::NotFound, format!("fork {missing:?} is discarded already"))
                .with_name(missing)
                .with_hint(format!("remove its seals with `pfimg discard {missing} --seals`")))
        }
        Some(missing) => Err(Error::new(ErrorKind::NotFound, format!("there is no fork {missing:?}"))
            .with_name(missing)
            .with_hint("list the forks with `pfimg forks`; no fork was discarded")),
        None => Ok(names),
    }
}

/// Discards one fork, and adds its seals to `seals`.
fn discard(
    store: &Arc<Store>,
    place: &Place,
    name: &str,
    args: &DiscardArgs,
    seals: &mut Vec<Digest>,
) -> Result<()> {
    if !args.force {
        place::refuse_unsealed(store, place, name)?;
    }
    // Discarding removes the fork's list of seals.
    let its_seals = if args.seals { Line::of_name(store, name)?.seals() } else { Vec::new() };
    match place {
        Place::Mount(served) => {
            let runs = runs_in(&served.mountpoint, name);
            calls::discard(&served.client, name, args.force)?;
            if runs {
                place::warn_of_run(name);
            }
        }
        Place::Disk(registry) => {
            let gone = registry.discard(name)?;
            audit::tell(store, "discard", [note::fork_discarded(name, gone.base.as_ref())]);
        }
    }
    seals.extend(its_seals);
    // The record of a run belongs to the discarded fork alone.
    let _ = fs::remove_file(runs::path(store.root(), name));
    Ok(())
}

/// The removed and kept seals, and the bytes that the next collection frees; `None` if unknown.
struct Cleared {
    seals: SealsRemoved,
    gc_frees: Option<u64>,
}

fn clear(store: &Arc<Store>, seals: &[Digest]) -> Result<Cleared> {
    let seals = remove_seals(store, seals, &prune::lineage(store)?)?;
    if !seals.removed.is_empty() {
        audit::tell(store, "discard", seals.removed.chunks(prune::IN_A_LINE).map(note::images_removed));
    }
    let options = gc::Options { grace: gc::DEFAULT_GRACE, dry_run: true, jobs: default_jobs() };
    let bar = Bar::new();
    let found = gc::collect(store, &options, &bar);
    bar.finish();
    let found = found?;
    let gc_frees = found.problems.is_empty().then(|| found.freed_bytes + found.young_bytes);
    Ok(Cleared { seals, gc_frees })
}

/// Prints the result. `stay` is the number of seals that nothing asked to remove.
fn report(
    args: &DiscardArgs,
    gone: &[String],
    errors: &[(String, Error)],
    (cleared, stay): (Option<&Cleared>, u64),
) -> Result<()> {
    if args.json {
        let failed: Vec<Stays> =
            errors.iter().map(|(fork, error)| Stays { fork: fork.clone(), error: error.into() }).collect();
        return print_json(&json!({
            "discarded": gone,
            "failed": failed,
            "seals_removed": cleared.map(|cleared| &cleared.seals.removed),
            "seals_kept": cleared.map_or(stay, |cleared| cleared.seals.kept),
            "gc_frees_bytes": cleared.and_then(|cleared| cleared.gc_frees),
        }));
    }
    let mut line = match cleared {
        Some(Cleared { seals, .. }) => {
            let removed = count(seals.removed.len() as u64, "seal");
            let kept = if seals.kept > 0 { format!(" ({} needed, kept)", seals.kept) } else { String::new() };
            if gone.is_empty() {
                format!("removed {removed} of discarded forks{kept}")
            } else {
                format!("discarded {} and {removed}{kept}", count(gone.len() as u64, "fork"))
            }
        }
        None if args.all || gone.len() + errors.len() > 1 => {
            let forks = count(gone.len() as u64, "fork");
            if stay > 0 {
                let seals = count(stay, "seal");
                format!("discarded {forks}; `--seals` removes {seals} too")
            } else {
                format!("discarded {forks}")
            }
        }
        // Silent, as tools are that do one thing.
        None => return Ok(()),
    };
    if let Some(bytes) = cleared.and_then(|cleared| cleared.gc_frees) {
        let _ =
            write!(line, "; `pfimg gc` frees {} one hour after this data was written", format_bytes(bytes));
    }
    eprintln!("pfimg: {line}");
    for note in cleared.iter().flat_map(|cleared| &cleared.seals.notes) {
        eprintln!("pfimg: {}", plain(note, usize::MAX));
    }
    Ok(())
}
