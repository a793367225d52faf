//! Makes the git repositories of an image complete.
//!
//! A worktree, a submodule that is imported alone, and a repository with alternates depend on other directories. Git in a fork
//! would write to these directories, or find nothing. The image therefore contains a complete repository in their place. The
//! imported directory does not change. The import never starts git: it reads git's files itself.

mod config;
mod links;
mod mender;
mod objects;
mod settings;
mod whole;

use std::collections::HashSet;

use super::importing::Importing;
use super::mended::{Mended, MendedKind};
use super::progress::Progress;
use super::report::Report;
use super::ties::{Place, Tie};
use super::walk::{Found, Limits, Listing, joined};
use crate::error::Result;
use links::links;
use mender::{Members, Mender, is_at_or_below};
use settings::settings;
use whole::git_files;

/// The most messages for each kind.
const NAMED: usize = 5;

/// The repositories of a listing.
pub(super) struct Whole {
    /// How they were made complete.
    pub(super) mended: Vec<Mended>,
    /// Dependencies that could not be removed.
    pub(super) ties: Vec<Tie>,
    /// Their directories, as paths of the image.
    pub(super) repositories: Vec<Vec<u8>>,
}

/// Makes the repositories of a listing complete, and lists dependencies that it cannot remove.
pub(super) fn mend(
    importing: &Importing<'_>,
    listing: &mut Listing,
    limits: &Limits<'_>,
    progress: &dyn Progress,
) -> Result<Whole> {
    let place = Place::new(importing.top, &importing.options.dir);
    let mut mender = Mender {
        importing,
        place,
        limits,
        progress,
        listing,
        confined: None,
        whole: HashSet::new(),
        dropped: Vec::new(),
        replaced: Vec::new(),
        mended: Vec::new(),
        ties: Vec::new(),
    };
    git_files(&mut mender)?;
    links(&mut mender)?;
    let repositories = repositories(&mut mender)?;
    let Mender { listing, dropped, replaced, mut mended, ties, .. } = mender;
    if !dropped.is_empty() || !replaced.is_empty() {
        let is_below =
            |found: &Found, paths: &[Vec<u8>]| paths.iter().any(|path| is_at_or_below(&found.path, path));
        listing.found.retain(|found| {
            !is_below(found, &dropped) && (found.source.is_some() || !is_below(found, &replaced))
        });
    }
    mended.sort();
    Ok(Whole { mended, ties, repositories })
}

/// Reports which repositories were made complete, at the first import of a line.
pub(super) fn report_mended(importing: &Importing<'_>, report: &Report) {
    // The import of a commit makes the repository itself.
    if !report.new || importing.parent.is_some() || importing.special.standing.is_some() {
        return;
    }
    for of_kind in report.mended.chunk_by(|a, b| a.kind == b.kind) {
        // The text comes from `words`.
        of_kind.iter().take(NAMED).for_each(|mended| importing.report(mended.words()));
        if of_kind.len() > NAMED {
            importing.report(format!("{} more like the last one (--json lists them)", of_kind.len() - NAMED));
        }
    }
}

/// Handles the repositories of the image, and returns their directories.
fn repositories(mender: &mut Mender<'_>) -> Result<Vec<Vec<u8>>> {
    let members = Members::of(&mender.listing.found);
    let repositories = members.repositories(mender.top(), &mender.listing.found);
    for folder in &repositories {
        if let Some(worktrees) = members.get(folder, b"worktrees") {
            let path = mender.listing.found[worktrees].path.clone();
            let origin = mender.listing.found[worktrees].origin(mender.top());
            mender.mended(MendedKind::Worktrees, &path, &origin);
            mender.dropped.push(path);
        }
        for name in [&b"config"[..], b"config.worktree"] {
            if let Some(config) = members.get(folder, name) {
                settings(mender, folder, config);
            }
        }
        if let (Some(objects), Some(alternates)) =
            (members.get(folder, b"objects"), members.get(&joined(folder, b"objects/info"), b"alternates"))
        {
            objects::alternates(mender, &members, objects, alternates)?;
        }
    }
    Ok(repositories)
}
