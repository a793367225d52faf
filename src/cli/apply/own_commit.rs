//! Commits the paths that an apply changed, and nothing else, in the directory's own repository.
//!
//! No hook runs: `core.hooksPath` may name a directory of the directory, and the apply may have changed the hooks in it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::commits::{ask, git};
use crate::cli::text::count;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply::{Entry, Step};

/// Options that make git read paths literally: NUL-separated bytes, no patterns.
const PATHS: [&str; 2] = ["--pathspec-from-file=-", "--pathspec-file-nul"];

/// A commit of the paths that an apply changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnCommit {
    /// Its id.
    pub(super) id: String,
    /// The number of paths in it.
    pub(super) paths: u64,
    /// The number of paths left out of it, because the repository ignores them.
    pub(super) ignored: u64,
}

impl OwnCommit {
    /// Describes the commit in words.
    pub(super) fn words(&self) -> String {
        let ignored = match self.ignored {
            0 => String::new(),
            _ => format!("; git ignores {}", count(self.ignored, "other path")),
        };
        format!(
            "committed {} as {:.12}{ignored}; --undo keeps this commit",
            count(self.paths, "path"),
            self.id
        )
    }
}

/// Commits the files of some steps as they are in the directory. Other staged paths stay staged.
pub(super) fn commit(dir: &Path, steps: &[Step], message: &str) -> Result<OwnCommit> {
    let is_folder = |entry: &Option<Entry>| matches!(entry, Some(Entry::Dir { .. }));
    let is_file = |step: &&Step| {
        step.was.is_some() && !is_folder(&step.was) || step.becomes.is_some() && !is_folder(&step.becomes)
    };
    let changed: Vec<&[u8]> = steps.iter().filter(is_file).map(|step| step.path.as_slice()).collect();
    let tracked = ask(dir, &["ls-files", "-z", "--cached"], b"")?.success()?;
    let tracked: HashSet<&[u8]> = tracked.split(|byte| *byte == 0).collect();
    let exists = |path: &[u8]| fs::symlink_metadata(dir.join(OsStr::from_bytes(path))).is_ok();
    let (tracked, others): (Vec<&[u8]>, Vec<&[u8]>) =
        changed.iter().partition(|path| tracked.contains(**path));
    let others: Vec<&[u8]> = others.into_iter().filter(|path| exists(path)).collect();
    let ignored = ignored(dir, &others)?;
    let ignored: HashSet<&[u8]> = ignored.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    let mut paths = tracked;
    paths.extend(others.iter().filter(|path| !ignored.contains(**path)));
    if paths.is_empty() {
        let what = format!("nothing to commit in {}: git ignores the paths that changed", dir.display());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let list = paths.join(&0);
    ask(dir, &[&["--literal-pathspecs", "add", "--all"], &PATHS[..]].concat(), &list)?.success()?;
    let args = ["--literal-pathspecs", "commit", "--quiet", "--only", "--message", message];
    ask(dir, &[&args[..], &PATHS].concat(), &list)?.success()?;
    let id = git(dir, &["rev-parse", "HEAD"])?.trim().to_owned();
    Ok(OwnCommit { id, paths: paths.len() as u64, ignored: ignored.len() as u64 })
}

/// Returns the paths that git ignores, with a NUL behind each.
fn ignored(dir: &Path, paths: &[&[u8]]) -> Result<Vec<u8>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let answer = ask(dir, &["check-ignore", "-z", "--stdin"], &paths.join(&0))?;
    // 1: git ignores none of them.
    if answer.code == Some(1) { Ok(Vec::new()) } else { answer.success() }
}
