//! `pfimg apply`: applies a fork's changes to a directory.

mod args;
mod commits;
mod own_commit;
mod place_of;
mod told;
mod undo;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use self::args::ApplyArgs;
use self::args::{Progress, Subject};
use self::commits::Commits;
use super::progress::Bar;
use super::store_arg::StoreArg;
use super::text::plain;
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{beside::OnDisk, refuse_fork_name};
use crate::ops::apply::plan::{About, Conflict, Others, Plan};
use crate::ops::apply::{
    Applying, Options, base_of_fork, base_of_image, carry_out, note_commit, prepare, refuse_interrupted,
};
use crate::ops::line::{self, Line};
use crate::store::Store;
use crate::store::applies::Branch;
use crate::util::parallel::default_jobs;

/// The name of the directory's side in conflict markers.
const YOURS: &str = "yours";

pub(crate) fn run(store: &StoreArg, args: &ApplyArgs) -> Result<ExitCode> {
    let is_back = args.undo || args.r#continue;
    let store = match store.open() {
        Err(error) if is_back && error.kind() == ErrorKind::NotAStore => {
            return Err(
                error.with_hint("applies are recorded in the store: name it with --store or PF_STORE")
            );
        }
        opened => Arc::new(opened?),
    };
    if is_back {
        return undo::run(&store, args);
    }
    let started = Instant::now();
    let name = args.name.as_deref().unwrap_or_default();
    let is_fork = is_fork(&store, name);
    let base = if is_fork { base_of_fork(&store, name)? } else { Some(base_of(&store, name)?) };
    let dir = place_of::directory(&store, args.dir.as_deref(), name, is_fork, base.as_ref())?;
    refuse_interrupted(&store, &dir)?;
    if args.commit.is_some() && !commits::has_repository(&dir) {
        let what = format!("{} is not the top of a git repository, so nothing was applied", dir.display());
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .with_path(&dir)
            .with_hint("leave out --commit"));
    }
    let only = place_of::below(&dir, &args.paths)?;
    let image = if is_fork { place_of::sealed(&store, name)? } else { Some(forks::image(&store, name)?) };
    let subject = Subject { name: name.to_owned(), is_fork, base, image };
    let _pin = store.pin(&[base, image].into_iter().flatten().collect::<Vec<_>>());
    let prepared = match image {
        None => crate::ops::apply::Prepared::default(),
        Some(image) => {
            let options = Options {
                dir: &dir,
                only: &only,
                decide: args.decide(is_fork),
                names: (YOURS, name),
                store_merged: !args.dry_run,
                jobs: default_jobs(),
            };
            prepare(&store, base.as_ref(), &image, options)?
        }
    };
    told::warn(&prepared, &subject);
    let mut plan = prepared.plan;
    // Files come first: pfimg fetches no commit if a file conflicts.
    let commits = if plan.conflicts.is_empty() && prepared.has_commits && only.is_empty() {
        commits_of(&store, &subject, &dir, args)
    } else {
        None
    };
    let branch = commits.as_ref().and_then(|commits| judged(commits, &subject, args, &mut plan));
    let mut telling = told::Telling {
        args,
        subject: &subject,
        dir: &dir,
        plan: &plan,
        commits: commits.as_ref(),
        own: None,
    };
    if !plan.conflicts.is_empty() {
        return telling.conflicts();
    }
    if prepared.has_commits && !only.is_empty() {
        eprintln!(
            "pfimg: only the named paths are applied; for a branch with the commits, apply without paths"
        );
    }
    place_of::refuse_store(&store, &dir, &plan.steps)?;
    let Some(image) = image.filter(|_| !args.dry_run && (!plan.steps.is_empty() || branch.is_some())) else {
        telling.planned(started.elapsed())?;
        return Ok(ExitCode::SUCCESS);
    };
    let applying = Applying { dir: &dir, fork: name, base, image, steps: &plan.steps, branch };
    let progress = Progress(Bar::new());
    let outcome = carry_out(&store, &applying, &progress);
    progress.0.finish();
    let outcome = outcome?;
    // A path that was edited during the apply differs from the fork.
    let is_whole = outcome.conflicts.is_empty() && !plan.steps.is_empty();
    if let Some(message) = args.commit.as_ref().filter(|_| is_whole) {
        let made = own_commit::commit(&dir, &plan.steps, message);
        if let Ok(own) = &made
            && let Err(error) = note_commit(&store, &dir, &own.id)
        {
            eprintln!("pfimg: cannot record the commit {:.12}: {error}", own.id);
        }
        telling.own = Some(made);
    }
    telling.applied(&outcome, started.elapsed())
}

/// Returns the new commits of a fork, after adding their objects to the directory's repository. On failure the
/// files are applied without commits.
fn commits_of(store: &Arc<Store>, subject: &Subject, dir: &Path, args: &ApplyArgs) -> Option<Commits> {
    if !commits::has_repository(dir) {
        return None;
    }
    let name = plain(&subject.name, usize::MAX);
    if !subject.is_fork {
        eprintln!("pfimg: git commits of an image are not applied; apply the fork to get them");
        return None;
    }
    let fetched = commits::fetch(store, &subject.name, dir, args.dry_run);
    fetched.unwrap_or_else(|error| {
        eprintln!("pfimg: cannot apply the git commits of fork {name:?}: {error}");
        None
    })
}

/// Checks the branch that moves. A branch that cannot be fast-forwarded is a conflict.
fn judged(commits: &Commits, subject: &Subject, args: &ApplyArgs, plan: &mut Plan) -> Option<Branch> {
    if !commits.diverged {
        return commits.branch.clone();
    }
    let path = commits::branch_of(&subject.name).into_bytes();
    let why = "the branch has commits that the fork does not have".to_owned();
    match args.decide(true).others {
        Others::Theirs => {
            plan.decided.push(About { path, why: format!("{why}: moved to the fork's commit") });
            commits.branch.clone()
        }
        Others::Ours | Others::Skip => {
            plan.decided.push(About { path, why: format!("{why}: left unchanged") });
            None
        }
        Others::Refuse => {
            plan.concerned += 1;
            plan.conflicts.push(Conflict::whole(&path, why));
            None
        }
    }
}

/// Returns whether a name belongs to a fork. A name of both a fork and an image means the fork.
fn is_fork(store: &Store, name: &str) -> bool {
    let is_fork = refuse_fork_name(name).is_none() && OnDisk::read(store.root(), name).is_ok();
    if is_fork && store.resolve(name).is_ok() {
        let name = plain(name, usize::MAX);
        eprintln!("pfimg: {name:?} is a fork and an image; using the fork");
    }
    is_fork
}

/// Returns the image to compare with. For `FORK@SEAL` that is the image that the fork was made of.
fn base_of(store: &Store, name: &str) -> Result<Digest> {
    let image = line::image(store, name).map_err(|e| match e.kind() {
        ErrorKind::NotFound => e.context("no fork has that name (`pfimg forks` lists them)"),
        _ => e,
    })?;
    if let Some((fork, _)) = name.split_once('@')
        && store.resolve(name).is_err()
        && Line::of_name(store, fork).is_ok_and(|line| line.numbered().any(|(_, its)| its == image))
        && let Some(base) = base_of_fork(store, fork)?
    {
        return Ok(base);
    }
    base_of_image(store, &image)
}
