//! What the steps share that make repositories complete: the listing that they change, and what a repository is.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::importing::Importing;
use super::super::limits::is_in_mount;
use super::super::mended::{Mended, MendedKind};
use super::super::progress::Progress;
use super::super::source::{Source, read, shown};
use super::super::ties::{Place, Tie, split};
use super::super::walk::{self, Found, Limits, Listing, Meta, joined};
use crate::error::{Error, Result};
use crate::layers::world::Kind;
use crate::mount::reach::Top;

/// The longest of git's small files in bytes that is read. Git makes no longer ones.
pub(super) const MAX_FILE: u64 = 16 << 20;

/// What the steps share that make repositories complete.
pub(super) struct Mender<'a> {
    pub(super) importing: &'a Importing<'a>,
    pub(super) place: Place<'a>,
    pub(super) limits: &'a Limits<'a>,
    pub(super) progress: &'a dyn Progress,
    pub(super) listing: &'a mut Listing,
    /// Whether paths outside of the directory are refused, once that was determined.
    pub(super) confined: Option<bool>,
    /// Repositories that replace a `.git` file in the image.
    pub(super) whole: HashSet<Vec<u8>>,
    /// Paths that the image leaves out, with everything below them.
    pub(super) dropped: Vec<Vec<u8>>,
    /// Directories whose own files the image replaces by others.
    pub(super) replaced: Vec<Vec<u8>>,
    pub(super) mended: Vec<Mended>,
    pub(super) ties: Vec<Tie>,
}

impl Mender<'_> {
    /// The imported directory.
    pub(super) fn top(&self) -> &Top {
        self.importing.top
    }

    /// Notes that something was made complete.
    pub(super) fn mended(&mut self, kind: MendedKind, path: &[u8], from: &Path) {
        let path = String::from_utf8_lossy(path).into_owned();
        self.mended.push(Mended { kind, path, from: from.display().to_string() });
    }

    /// Whether a path without links may be added to the image. Files that an agent wrote in a fork must not bring other directories
    /// into an image.
    pub(super) fn may_take(&mut self, path: &Path) -> bool {
        let importing = self.importing;
        path.starts_with(importing.dir) || !*self.confined.get_or_insert_with(|| is_in_mount(importing))
    }

    /// Lists a directory that lies elsewhere and that the image gets at `at`. The directory itself comes first.
    pub(super) fn copy(
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
pub(super) struct Members(pub(super) HashMap<Vec<u8>, usize>);

impl Members {
    pub(super) fn of(found: &[Found]) -> Self {
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

    pub(super) fn get(&self, folder: &[u8], name: &[u8]) -> Option<usize> {
        self.0.get(&*joined(folder, name)).copied()
    }

    /// The directories that are repositories, in order.
    pub(super) fn repositories(&self, top: &Top, found: &[Found]) -> Vec<Vec<u8>> {
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
pub(super) fn copy_file(at: &[u8], from: &Path) -> Option<Found> {
    let name = from.file_name()?.as_bytes().to_vec();
    let top = Top::open_without_links(from.parent()?).ok()?;
    let mut meta = Meta::of(&top.stat(&name).ok()?);
    meta.links = 1;
    let source = Some(Arc::new(Source::Elsewhere(Arc::new(top), name)));
    Some(Found { path: at.to_vec(), meta, closed: false, source })
}

/// Whether a path is a repository's `HEAD`: it names a branch or a commit, or is a link to the branch.
pub(super) fn is_head(top: &Top, path: &[u8]) -> bool {
    let text = match top.link(path) {
        Ok(target) => return target.starts_with(b"refs/"),
        Err(_) => read(top, path, MAX_FILE).ok().flatten().unwrap_or_default(),
    };
    let is_commit = |text: &[u8]| text.len() >= 40 && text.iter().all(u8::is_ascii_hexdigit);
    text.starts_with(b"ref:") || is_commit(text.trim_ascii_end())
}

/// Whether `path` is `folder`, or lies below it.
pub(super) fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Bytes as a path.
pub(super) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Resolves all links of a path, if it exists.
pub(super) fn canonical(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}
