//! The arguments of `pfimg apply`, and what its steps share.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::progress::Bar;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::ops::apply::Hooks;
use crate::ops::apply::plan::{Decide, Others};

/// Apply a fork's changes to its project, or to another directory.
///
/// A path that only the fork changed becomes as in the fork. A text that both sides changed is merged line by
/// line. Anything else that both sides changed is a conflict. With a conflict, pfimg writes nothing and lists
/// all conflicts, unless an option resolves them. Changes are counted from the beginning of the fork.
///
/// Apply copies content, links, permissions, hard links and empty directories. It does not copy owners,
/// times, extended attributes or files of repositories (`.git`); commits become the branch pfimg/FORK. A
/// directory that the fork deleted stays if it contains files unknown to the fork. Apply first seals unsealed
/// changes of the fork, also with --dry-run. It keeps the previous content of changed paths as an image.
///
/// `pfimg apply --undo` undoes the last apply, with the branch pfimg/FORK; repeated, it undoes the ones before.
/// Applying the same fork twice changes nothing more. Exit code
/// 3: there are conflicts.
#[derive(Debug, Args)]
#[command(
    override_usage = "pfimg apply [OPTIONS] FORK|IMAGE [DIR] [-- PATH...]\n       pfimg apply --undo|--continue [--force] [DIR]"
)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct ApplyArgs {
    /// A fork, a seal of it (FORK@SEAL), or an image: its tag or the first digits of its id
    #[arg(value_name = "FORK|IMAGE", required_unless_present_any = ["undo", "continue"])]
    pub(super) name: Option<String>,
    /// The directory [default: the project around the current directory, if the fork is a copy of it]
    #[arg(value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// Apply only these paths and everything below them, and no commits
    #[arg(value_name = "PATH", last = true)]
    pub(super) paths: Vec<PathBuf>,
    /// Show the changes, and write nothing in the directory
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
    /// Write conflict markers (`<<<<<<<`) into texts whose lines conflict
    #[arg(long)]
    pub(super) merge: bool,
    /// Resolve conflicts in favour of the directory; in texts, only conflicting lines
    #[arg(long, conflicts_with_all = ["theirs", "skip"])]
    pub(super) ours: bool,
    /// Resolve conflicts in favour of the fork; in texts, only conflicting lines
    #[arg(long, conflicts_with = "skip")]
    pub(super) theirs: bool,
    /// Leave paths with conflicts unchanged
    #[arg(long)]
    pub(super) skip: bool,
    /// Commit the applied paths, and nothing else, in the directory's repository. No hook runs; --undo keeps
    /// the commit
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["dry_run", "undo", "continue"])]
    pub(super) commit: Option<String>,
    /// Undo the last apply to the directory
    #[arg(long, conflicts_with_all = ["paths", "dry_run", "merge", "ours", "theirs", "skip", "continue"])]
    pub(super) undo: bool,
    /// Finish an interrupted apply
    #[arg(long = "continue", conflicts_with_all = ["paths", "dry_run", "merge", "ours", "theirs", "skip"])]
    pub(super) r#continue: bool,
    /// With --undo: undo edits since the apply too; an image keeps them
    #[arg(long, requires = "undo")]
    pub(super) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The fork or image that is applied.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The name given by the user.
    pub(super) name: String,
    /// Whether it is a fork.
    pub(super) is_fork: bool,
    pub(super) base: Option<Digest>,
    /// `None` for a fork that began empty and is still empty.
    pub(super) image: Option<Digest>,
}

impl ApplyArgs {
    /// Returns what happens to conflicts.
    pub(super) fn decide(&self, is_fork: bool) -> Decide {
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

/// Shows the progress of the work.
pub(super) struct Progress(pub(super) Bar);

impl Hooks for Progress {
    fn total(&self, paths: u64) {
        self.0.start(paths, "{bar:30} {pos}/{len} paths{left}");
    }

    fn done(&self) {
        self.0.inc(1);
    }
}

/// Returns the error for a directory that cannot be applied to.
pub(super) fn refuse(dir: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("cannot apply to {}: {why}", dir.display()))
}
