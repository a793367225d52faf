//! Undoes an apply, or finishes an interrupted one.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::args::{ApplyArgs, Progress};
use super::told::{Path64, remark, shown};
use crate::cli::envelope::print_json;
use crate::cli::progress::Bar;
use crate::cli::text::{count, plain, plain_bytes, print};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply::{How, Outcome, find_dir, finish, undo};
use crate::store::Store;
use crate::store::applies::State;

#[derive(Debug, Serialize)]
struct ShownPath {
    #[serde(flatten)]
    path: Path64,
    why: &'static str,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    dir: std::borrow::Cow<'a, str>,
    state: State,
    changes: Vec<ShownPath>,
    left: Vec<ShownPath>,
    /// The image of edits that were undone too.
    edits: Option<Digest>,
}

pub(super) fn run(store: &Store, args: &ApplyArgs) -> Result<ExitCode> {
    if args.dir.is_some() {
        let what = "--undo and --continue take one argument, the directory";
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let dir = if let Some(dir) = &args.name {
        PathBuf::from(dir)
    } else {
        let cwd = std::env::current_dir().map_err(|e| Error::io(e, "cannot find the current directory"))?;
        find_dir(store, &cwd)?
    };
    let progress = Progress(Bar::new());
    let outcome =
        if args.undo { undo(store, &dir, args.force, &progress) } else { finish(store, &dir, &progress) };
    progress.0.finish();
    tell(&outcome?, args)
}

fn tell(outcome: &Outcome, args: &ApplyArgs) -> Result<ExitCode> {
    let word = |how: How| match how {
        How::Added => "added",
        How::Changed => "changed",
        How::Deleted => "deleted",
    };
    if args.json {
        print_json(&Shown {
            name: &outcome.fork,
            dir: outcome.dir.to_string_lossy(),
            state: outcome.state,
            changes: outcome
                .changed
                .iter()
                .map(|(path, how)| ShownPath { path: Path64::of(path), why: word(*how) })
                .collect(),
            left: outcome
                .conflicts
                .iter()
                .map(|left| ShownPath { path: Path64::of(&left.path), why: left.why.name() })
                .collect(),
            edits: outcome.edits,
        })?;
    } else {
        let mut text = String::new();
        for left in &outcome.conflicts {
            text.push_str(&remark('C', &plain_bytes(&left.path, usize::MAX), left.why.words()));
        }
        print(&text)?;
    }
    for (was, is) in &outcome.aside {
        let (was, is) = (plain_bytes(was, usize::MAX), plain_bytes(is, usize::MAX));
        eprintln!("pfimg: the edit of {was} is now at {is}");
    }
    for path in &outcome.staying {
        eprintln!("pfimg: {}/ stays: it holds other files", plain_bytes(path, usize::MAX));
    }
    let (name, dir) = (plain(&outcome.fork, usize::MAX), shown(&outcome.dir));
    let is_undone = matches!(outcome.state, State::Undone | State::Undoing);
    let what = words(outcome, is_undone);
    if is_undone {
        eprintln!("pfimg: undid applying {name} to {dir}: {what}");
    } else {
        eprintln!("pfimg: finished applying {name} to {dir}: {what}");
    }
    if let Some(commit) = outcome.commit.as_ref().filter(|_| is_undone) {
        eprintln!("pfimg: the commit {commit:.12} stays, so git shows the undone paths as changed");
    }
    if let Some(edits) = &outcome.edits {
        eprintln!("pfimg: the undone edits are kept as image {}", &edits.hex()[..12]);
    }
    let mut is_whole = outcome.conflicts.is_empty();
    if let Some((branch, Err(why))) = &outcome.branch {
        eprintln!("pfimg: {} stays: {why}", branch.trim_start_matches("refs/heads/"));
        is_whole = false;
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ErrorKind::Conflict.exit().into() })
}

/// Counts what was done: `1 path removed, 2 paths restored, branch pfimg/try-2 removed`.
fn words(outcome: &Outcome, is_undone: bool) -> String {
    let number = |how: fn(How) -> bool| outcome.changed.iter().filter(|(_, done)| how(*done)).count() as u64;
    let counted = if is_undone {
        let removed = number(|how| how == How::Deleted);
        vec![(removed, "removed"), (outcome.changed.len() as u64 - removed, "restored")]
    } else {
        vec![(outcome.changed.len() as u64, "changed")]
    };
    let counted = counted.into_iter().filter(|(number, _)| *number > 0);
    let mut parts: Vec<String> =
        counted.map(|(number, word)| format!("{} {word}", count(number, "path"))).collect();
    if let Some((branch, Ok(()))) = &outcome.branch {
        let word = match (is_undone, outcome.branch_is_new) {
            (true, true) => "removed",
            (true, false) => "restored",
            (false, _) => "moved",
        };
        parts.push(format!("branch {} {word}", branch.trim_start_matches("refs/heads/")));
    }
    if parts.is_empty() { "no path changed".to_owned() } else { parts.join(", ") }
}
