//! `pfimg apply`: applies a fork's changes to a directory.

mod commits;
mod own_commit;
mod place_of;
mod told;
mod undo;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use self::commits::Commits;
use super::StoreArg;
use super::progress::Bar;
use super::text::plain;
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{beside::OnDisk, refuse_fork_name};
use crate::ops::apply::plan::{About, Conflict, Decide, Others, Plan};
use crate::ops::apply::{
    Applying, Hooks, Options, base_of_fork, base_of_image, carry_out, prepare, refuse_interrupted,
};
use crate::ops::line::{self, Line};
use crate::store::Store;
use crate::store::applies::Branch;
use crate::util::parallel::default_jobs;

/// The name of the directory's side in conflict markers.
const YOURS: &str = "yours";

/// Apply a fork's changes to its project, or to another directory.
///
/// A path that only the fork changed becomes as in the fork. A text that both sides changed is merged line by
/// line. Anything else that both sides changed is a conflict. With a conflict, pfimg writes nothing and lists
/// all conflicts, unless an option resolves them. A change is a difference to the image that the fork was
/// made of.
///
/// Apply copies content, links, permissions, hard links and empty directories. It does not copy owners,
/// times, extended attributes or files of repositories (`.git`); commits become the branch pfimg/FORK. A
/// directory that the fork deleted stays if it contains files unknown to the fork. Apply first seals unsealed
/// changes of the fork, also with --dry-run. It keeps the previous content of changed paths as an image.
///
/// `pfimg apply --undo` undoes the last apply. Applying the same fork twice changes nothing more. Exit code
/// 3: there are conflicts.
#[derive(Debug, Args)]
#[command(
    override_usage = "pfimg apply [OPTIONS] FORK|IMAGE [DIR] [-- PATH...]\n       pfimg apply --undo|--continue [--force] [DIR]"
)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct ApplyArgs {
    /// A fork, a seal of it (FORK@SEAL), or an image: its tag or the first digits of its id
    #[arg(value_name = "FORK|IMAGE", required_unless_present_any = ["undo", "continue"])]
    name: Option<String>,
    /// The directory [default: the project around the current directory, if the fork is a copy of it]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Apply only these paths and everything below them
    #[arg(value_name = "PATH", last = true)]
    paths: Vec<PathBuf>,
    /// Show the changes, and write nothing in the directory
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Write conflict markers (`<<<<<<<`) into texts whose lines conflict
    #[arg(long)]
    merge: bool,
    /// Resolve conflicts in favour of the directory; in texts, only conflicting lines
    #[arg(long, conflicts_with_all = ["theirs", "skip"])]
    ours: bool,
    /// Resolve conflicts in favour of the fork; in texts, only conflicting lines
    #[arg(long, conflicts_with = "skip")]
    theirs: bool,
    /// Leave paths with conflicts unchanged
    #[arg(long)]
    skip: bool,
    /// Commit the applied paths, and nothing else, in the directory's repository. No hook runs; --undo keeps
    /// the commit
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["dry_run", "undo", "continue"])]
    commit: Option<String>,
    /// Undo the last apply to the directory
    #[arg(long, conflicts_with_all = ["paths", "dry_run", "merge", "ours", "theirs", "skip", "continue"])]
    undo: bool,
    /// Finish an interrupted apply
    #[arg(long = "continue", conflicts_with_all = ["paths", "dry_run", "merge", "ours", "theirs", "skip"])]
    r#continue: bool,
    /// With --undo: undo edits since the apply too; an image keeps them
    #[arg(long, requires = "undo")]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The fork or image that is applied.
#[derive(Clone, Debug)]
struct Subject {
    /// The name given by the user.
    name: String,
    /// Whether it is a fork.
    is_fork: bool,
    base: Option<Digest>,
    /// `None` for a fork that began empty and is still empty.
    image: Option<Digest>,
}

pub(crate) fn run(store: &StoreArg, args: &ApplyArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    if args.undo || args.r#continue {
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
        telling.own = Some(own_commit::commit(&dir, &plan.steps, message));
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
            plan.conflicts.push(Conflict { is_whole: true, path, why });
            None
        }
    }
}

impl ApplyArgs {
    fn decide(&self, is_fork: bool) -> Decide {
        let others = match (self.ours, self.theirs, self.skip) {
            (true, ..) => Others::Ours,
            (_, true, _) => Others::Theirs,
            (.., true) => Others::Skip,
            _ => Others::Refuse,
        };
        let them = if is_fork { "the fork" } else { "the image" };
        Decide { markers: self.merge, others, them }
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

/// Shows the progress of the work.
struct Progress(Bar);

impl Hooks for Progress {
    fn total(&self, paths: u64) {
        self.0.start(paths, "{bar:30} {pos}/{len} paths{left}");
    }

    fn done(&self) {
        self.0.inc(1);
    }
}

/// Returns the error for a directory that cannot be applied to.
fn refuse(dir: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("cannot apply to {}: {why}", dir.display()))
}
