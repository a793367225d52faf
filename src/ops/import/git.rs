//! Makes the git repositories of an image complete.
//!
//! A worktree, a submodule that is imported alone, and a repository with alternates depend on other folders. Git in a fork would
//! write to these folders, or find nothing. The image therefore contains a complete repository in their place. The imported
//! folder does not change. The import never starts git: it reads git's files itself.

mod config;
mod links;
mod objects;
mod settings;
mod whole;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

pub(super) use self::whole::Standing;
use super::source::{Source, read};
use super::ties::{Place, Tie, split};
use super::walk::{self, Found, Limits, Listing, Meta, joined};
use super::{Importing, Progress, Report};
use crate::error::{Error, Result};
use crate::layers::world::Kind;
use crate::mount::reach::Top;

/// The longest of git's small files in bytes that is read. Git makes no longer ones.
const MAX_FILE: u64 = 16 << 20;

/// The most messages for each kind.
const NAMED: usize = 5;

/// How a repository was made complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MendedKind {
    /// The `.git` file of a worktree became a repository.
    Worktree,
    /// The `.git` file or link of a submodule, or of a repository that lies elsewhere, became that repository.
    GitFile,
    /// The entries of other worktrees are left out of a repository.
    Worktrees,
    /// `core.worktree` is unset, or leads to the same folder of the image.
    CoreWorktree,
    /// Objects that a repository took from another one were added to it.
    Alternates,
    /// A link out of a repository was replaced by its target.
    Link,
}

/// A repository that was made complete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mended {
    /// How it was made complete.
    pub kind: MendedKind,
    /// The path in the image.
    pub path: String,
    /// The path that it depended on.
    pub from: String,
}

impl Mended {
    fn words(&self) -> String {
        let Self { kind, path, from } = self;
        match kind {
            MendedKind::Worktree => {
                format!("{path} is a whole repository in the image: here, a worktree of {from}")
            }
            MendedKind::GitFile => format!("{path} is a whole repository in the image: here, it is {from}"),
            MendedKind::Worktrees => {
                format!("{path} is left out: it names other worktrees of the repository")
            }
            MendedKind::CoreWorktree => format!("{path} names no work tree in the image: here, {from}"),
            MendedKind::Alternates => format!("{path} has the objects of {from} in the image"),
            MendedKind::Link => format!("{path} is not a link in the image: here, it leads to {from}"),
        }
    }
}

/// The repositories of a listing.
pub(super) struct Whole {
    /// How they were made complete.
    pub(super) mended: Vec<Mended>,
    /// Dependencies that could not be removed.
    pub(super) ties: Vec<Tie>,
    /// Their folders, as paths of the image.
    pub(super) repositories: Vec<Vec<u8>>,
}

impl Importing<'_> {
    /// Makes the repositories of a listing complete, and lists dependencies that it cannot remove.
    pub(super) fn mend(
        &self,
        listing: &mut Listing,
        limits: &Limits<'_>,
        progress: &dyn Progress,
    ) -> Result<Whole> {
        let place = Place::new(self.top, &self.options.dir);
        let mut mender = Mender {
            importing: self,
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
        mender.git_files()?;
        mender.links()?;
        let repositories = mender.repositories()?;
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
    pub(super) fn report_mended(&self, report: &Report) {
        // The import of a commit makes the repository itself.
        if !report.new || self.parent.is_some() || self.special.standing.is_some() {
            return;
        }
        for of_kind in report.mended.chunk_by(|a, b| a.kind == b.kind) {
            of_kind.iter().take(NAMED).for_each(|mended| self.report(mended.words()));
            if of_kind.len() > NAMED {
                self.report(format!("{} more like the last one (--json lists them)", of_kind.len() - NAMED));
            }
        }
    }
}

struct Mender<'a> {
    importing: &'a Importing<'a>,
    place: Place<'a>,
    limits: &'a Limits<'a>,
    progress: &'a dyn Progress,
    listing: &'a mut Listing,
    /// Whether paths outside of the folder are refused, once that was determined.
    confined: Option<bool>,
    /// Repositories that replace a `.git` file in the image.
    whole: HashSet<Vec<u8>>,
    /// Paths that the image leaves out, with everything below them.
    dropped: Vec<Vec<u8>>,
    /// Folders whose own files the image replaces by others.
    replaced: Vec<Vec<u8>>,
    mended: Vec<Mended>,
    ties: Vec<Tie>,
}

impl Mender<'_> {
    fn top(&self) -> &Top {
        self.importing.top
    }

    fn mended(&mut self, kind: MendedKind, path: &[u8], from: &Path) {
        let path = String::from_utf8_lossy(path).into_owned();
        self.mended.push(Mended { kind, path, from: from.display().to_string() });
    }

    /// Whether a path without links may be added to the image. Files that an agent wrote in a fork must not bring other folders
    /// into an image.
    fn may_take(&mut self, path: &Path) -> bool {
        let importing = self.importing;
        path.starts_with(importing.dir) || !*self.confined.get_or_insert_with(|| importing.is_in_mount())
    }

    /// Handles the repositories of the image, and returns their folders.
    fn repositories(&mut self) -> Result<Vec<Vec<u8>>> {
        let members = Members::of(&self.listing.found);
        let repositories = members.repositories(self.top(), &self.listing.found);
        for folder in &repositories {
            if let Some(worktrees) = members.get(folder, b"worktrees") {
                let path = self.listing.found[worktrees].path.clone();
                let origin = self.listing.found[worktrees].origin(self.top());
                self.mended(MendedKind::Worktrees, &path, &origin);
                self.dropped.push(path);
            }
            for name in [&b"config"[..], b"config.worktree"] {
                if let Some(config) = members.get(folder, name) {
                    self.settings(folder, config);
                }
            }
            if let (Some(objects), Some(alternates)) = (
                members.get(folder, b"objects"),
                members.get(&joined(folder, b"objects/info"), b"alternates"),
            ) {
                self.alternates(&members, objects, alternates)?;
            }
        }
        Ok(repositories)
    }

    /// Lists a folder that lies elsewhere and that the image gets at `at`. The folder itself comes first.
    fn copy(
        &mut self,
        at: &[u8],
        from: &Path,
        wanted: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> Result<Vec<Found>> {
        let failed = |e| Error::io(e, format!("cannot read {}, which {} needs", from.display(), shown(at)));
        let top = Arc::new(Top::open_without_links(from).map_err(failed)?);
        let root = Meta::of(&top.stat(b"").map_err(failed)?);
        let limits = Limits { prefix: at, wanted, mounts: walk::mounts_below(from), ..*self.limits };
        let jobs = self.importing.options.jobs;
        let mut copied = walk::walk(&top, &root, &limits, jobs, self.progress)?;
        self.listing.left_out.append(&mut copied.left_out);
        let closed = copied.closed.into_iter();
        self.listing.closed.extend(closed.map(|(path, why)| (joined(at, &path).into_owned(), why)));
        let source = |path: Vec<u8>| Some(Arc::new(Source::Elsewhere(Arc::clone(&top), path)));
        let itself = Found { path: at.to_vec(), meta: root, closed: false, source: source(Vec::new()) };
        let below = copied.found.into_iter().map(|mut found| {
            let path = std::mem::take(&mut found.path);
            found.path = joined(at, &path).into_owned();
            // The file's other names are not in the image.
            found.meta.links = 1;
            found.source = source(path);
            found
        });
        Ok(std::iter::once(itself).chain(below).collect())
    }
}

/// Paths of a listing that identify repositories, with their places in it.
struct Members(HashMap<Vec<u8>, usize>);

impl Members {
    fn of(found: &[Found]) -> Self {
        let is_member = |name: &[u8]| {
            let names: [&[u8]; 8] = [
                b"HEAD",
                b"objects",
                b"refs",
                b"reftable",
                b"config",
                b"config.worktree",
                b"alternates",
                b"worktrees",
            ];
            names.contains(&name)
        };
        let members = found.iter().enumerate().filter(|(_, found)| is_member(split(&found.path).1));
        Self(members.map(|(index, found)| (found.path.clone(), index)).collect())
    }

    fn get(&self, folder: &[u8], name: &[u8]) -> Option<usize> {
        self.0.get(&*joined(folder, name)).copied()
    }

    /// The folders that are repositories, in order.
    fn repositories(&self, top: &Top, found: &[Found]) -> Vec<Vec<u8>> {
        let is_repository = |path: &Vec<u8>, head: usize| {
            let (folder, name) = split(path);
            if name != b"HEAD" || found[head].meta.kind == Kind::Dir {
                return false;
            }
            let has = |name: &[u8]| {
                // Rules may leave out the objects.
                let (top, head) = found[head].place(top);
                self.get(folder, name).is_some() || top.stat(&joined(split(head).0, name)).is_ok()
            };
            let (place, at) = found[head].place(top);
            has(b"objects") && (has(b"refs") || has(b"reftable")) && is_head(place, at)
        };
        let heads = self.0.iter().filter(|(path, head)| is_repository(path, **head));
        let mut folders: Vec<Vec<u8>> = heads.map(|(path, _)| split(path).0.to_vec()).collect();
        folders.sort_unstable();
        folders
    }
}

/// Returns a file that lies elsewhere and that the image gets at `at`. Returns none if it does not exist.
fn copy_file(at: &[u8], from: &Path) -> Option<Found> {
    let name = from.file_name()?.as_bytes().to_vec();
    let top = Top::open_without_links(from.parent()?).ok()?;
    let mut meta = Meta::of(&top.stat(&name).ok()?);
    meta.links = 1;
    let source = Some(Arc::new(Source::Elsewhere(Arc::new(top), name)));
    Some(Found { path: at.to_vec(), meta, closed: false, source })
}

/// Whether a path is a repository's `HEAD`: it names a branch or a commit, or is a link to the branch.
fn is_head(top: &Top, path: &[u8]) -> bool {
    let text = match top.link(path) {
        Ok(target) => return target.starts_with(b"refs/"),
        Err(_) => read(top, path, MAX_FILE).ok().flatten().unwrap_or_default(),
    };
    let is_commit = |text: &[u8]| text.len() >= 40 && text.iter().all(u8::is_ascii_hexdigit);
    text.starts_with(b"ref:") || is_commit(text.trim_ascii_end())
}

/// Whether `path` is `folder`, or lies below it.
fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Bytes as a path.
fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Resolves all links of a path, if it exists.
fn canonical(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}
