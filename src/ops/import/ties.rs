//! Finds ties: files in an imported tree that name the directory from which it came.
//!
//! From a fork or an export such a file leads back to the original. Programs then read the original's files instead of the copy's,
//! or write to them. The import does not change these files, but reports them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::tree::{Body, Item};
use crate::layers::world::Kind;
use crate::mount::reach::Top;

/// The most ties of each kind that are kept, and that are named in messages.
const KEPT: usize = 100;
const NAMED: usize = 5;

/// Bytes of a file to look at. Files that matter are shorter.
const MAX_FILE: u64 = 1 << 20;

/// The kind of a tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TieKind {
    /// A `.git` file that does not lead to a repository.
    GitFile,
    /// A `.git` file that leads to a repository which cannot be made complete. The image leaves it out.
    GitLeftOut,
    /// A `core.worktree` in a repository's settings that names a directory outside of the image. In the image it is unset.
    GitWorktree,
    /// An `objects/info/alternates` that names objects which cannot be added.
    GitAlternates,
    /// A value of a repository's settings that names the original, or that has another meaning at another place.
    GitConfig,
    /// Settings of a repository that cannot be read.
    GitUnread,
    /// An absolute link into the directory.
    Link,
    /// A Python environment, whose scripts hold its absolute path.
    Venv,
    /// A line of a Python environment by which it imports code from the directory.
    PythonPath,
    /// A build directory of `CMake`, which holds the absolute path of the sources.
    Cmake,
}

/// A file, link or directory that names the place from which it was imported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Tie {
    /// Its kind.
    pub kind: TieKind,
    /// Its path, relative to the imported directory.
    pub path: String,
    /// The path that it names.
    pub target: String,
}

impl TieKind {
    /// Whether it matters only where the files are at another path than they were imported from.
    fn needs_another_path(self) -> bool {
        matches!(self, Self::GitConfig | Self::Link | Self::Venv | Self::PythonPath | Self::Cmake)
    }
}

impl Tie {
    /// Describes the problem that it causes in a copy.
    fn words(&self) -> String {
        let Self { kind, path, target } = self;
        match kind {
            TieKind::GitFile => {
                format!(
                    "{path} points to {target}, which is not a repository: git in a fork finds none, as here"
                )
            }
            TieKind::GitLeftOut => format!(
                "{path} is left out: pfimg cannot make a whole repository of {target}; git in a fork finds none"
            ),
            TieKind::GitWorktree => format!(
                "{path} set core.worktree to {target}; in the image it is unset, and git works on the files next to it"
            ),
            TieKind::GitAlternates => {
                format!(
                    "{path} takes objects from {target}, which cannot be taken in: git in a fork lacks them"
                )
            }
            TieKind::GitConfig => {
                format!("{path} sets {target}: git in a fork uses the original there, or does not find it")
            }
            TieKind::GitUnread => {
                format!("{path} cannot be read ({target}): it may tie a fork to the original")
            }
            TieKind::Link => format!("{path} is a link to {target}: in a fork it leads to the original"),
            TieKind::Venv => format!(
                "{path} is a virtual environment with absolute paths ({target}): its scripts run the original's Python"
            ),
            TieKind::PythonPath => {
                format!("{path} has Python import {target}: in a fork that is the original's code")
            }
            TieKind::Cmake => {
                format!("{path} names the sources {target}: in a fork it builds the original's code")
            }
        }
    }
}

/// The ties of an import.
#[derive(Debug, Default)]
pub(super) struct Ties {
    /// The first of each kind, in order.
    pub(super) first: Vec<Tie>,
    counts: BTreeMap<TieKind, u64>,
}

impl Ties {
    fn of(mut all: Vec<Tie>) -> Self {
        all.sort();
        let mut counts = BTreeMap::new();
        all.retain(|tie| {
            let count: &mut u64 = counts.entry(tie.kind).or_default();
            *count += 1;
            *count <= KEPT as u64
        });
        Self { first: all, counts }
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Returns a message for each tie, and one for further ties of a kind. With `same_path` the files are used at the path that
    /// they were imported from.
    pub(super) fn words(&self, same_path: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, count) in self.counts.iter().filter(|(kind, _)| !(same_path && kind.needs_another_path()))
        {
            let of_kind = self.first.iter().filter(|tie| tie.kind == *kind);
            lines.extend(of_kind.take(NAMED).map(Tie::words));
            if *count > NAMED as u64 {
                lines.push(format!("{} more like the last one (--json lists them)", count - NAMED as u64));
            }
        }
        lines
    }
}

/// The imported directory, by its paths as given and without links.
pub(super) struct Place<'a> {
    pub(super) top: &'a Top,
    names: Vec<PathBuf>,
}

/// Finds ties among the items. `known` are ties of git's files.
pub(super) fn find(top: &Top, given: &Path, items: &[Item], known: Vec<Tie>) -> Ties {
    let place = Place::new(top, given);
    let mut ties = known;
    for item in items {
        match &item.body {
            Body::Target(target, _) => {
                let target = Path::new(OsStr::from_bytes(target));
                if target.is_absolute() && place.holds(target) {
                    ties.push(tie(TieKind::Link, &item.path, target));
                }
            }
            _ if item.meta.kind == Kind::File && item.source.is_none() => place.file(&item.path, &mut ties),
            _ => {}
        }
    }
    Ties::of(ties)
}

pub(super) fn tie(kind: TieKind, path: &[u8], target: &Path) -> Tie {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Tie { kind, path: text(path), target: text(target.as_os_str().as_bytes()) }
}

impl<'a> Place<'a> {
    pub(super) fn new(top: &'a Top, given: &Path) -> Self {
        let mut names = vec![top.path().to_owned()];
        // Removes `..` from the given path by name, without following links.
        names.extend(std::path::absolute(given).ok().map(|path| resolved(Path::new("/"), &path)));
        names.dedup();
        Self { top, names }
    }

    /// Whether a path is the imported directory or lies below it.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let path = resolved(Path::new("/"), path);
        self.names.iter().any(|name| path.starts_with(name))
    }

    fn text(&self, path: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        if let Ok(file) = self.top.file(path) {
            // Ignores a file that cannot be read. If the import needs it, that reports the error.
            let _ = file.take(MAX_FILE).read_to_end(&mut text);
        }
        text
    }

    /// Returns the directory of a file as an absolute path.
    fn folder(&self, path: &[u8]) -> PathBuf {
        self.top.path().join(OsStr::from_bytes(split(path).0))
    }

    fn file(&self, path: &[u8], ties: &mut Vec<Tie>) {
        let (folder, name) = split(path);
        match name {
            b"pyvenv.cfg" if !is_relocatable(&self.text(path)) => {
                let shown = if folder.is_empty() { b"." } else { folder };
                ties.push(tie(TieKind::Venv, shown, &self.folder(path)));
            }
            _ if name.ends_with(b".pth") || name.ends_with(b".egg-link") => {
                let text = self.text(path);
                let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
                for line in lines.map(|line| Path::new(OsStr::from_bytes(line))) {
                    if line.is_absolute() && self.holds(line) {
                        ties.push(tie(TieKind::PythonPath, path, line));
                    }
                }
            }
            b"CMakeCache.txt" => {
                if let Some(sources) = cmake_sources(&self.text(path))
                    && self.holds(Path::new(OsStr::from_bytes(sources)))
                {
                    ties.push(tie(TieKind::Cmake, path, Path::new(OsStr::from_bytes(sources))));
                }
            }
            _ => {}
        }
    }
}

/// Splits a path into its directory and last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Resolves `.` and `..` in a path without looking at the disk.
pub(super) fn resolved(from: &Path, path: &Path) -> PathBuf {
    let mut all = PathBuf::from("/");
    for component in from.join(path).components() {
        match component {
            Component::ParentDir => drop(all.pop()),
            Component::Normal(name) => all.push(name),
            _ => {}
        }
    }
    all
}

/// Whether a Python environment's settings say that it can be moved.
fn is_relocatable(text: &[u8]) -> bool {
    text.split(|b| *b == b'\n').any(|line| {
        let mut parts = line.splitn(2, |b| *b == b'=').map(<[u8]>::trim_ascii);
        parts.next() == Some(b"relocatable")
            && parts.next().is_some_and(|is| is.eq_ignore_ascii_case(b"true"))
    })
}

/// Returns the directory of sources that a build directory of `CMake` names.
fn cmake_sources(text: &[u8]) -> Option<&[u8]> {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"CMAKE_HOME_DIRECTORY:"))?;
    let at = line.iter().position(|b| *b == b'=')?;
    Some(line[at + 1..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_file_are_read_from_it() {
        assert!(
            is_relocatable(b"home = /usr/bin\nrelocatable = true\n") && is_relocatable(b"relocatable=True")
        );
        assert!(!is_relocatable(b"home = /usr/bin\n") && !is_relocatable(b"relocatable = false\n"));
        assert_eq!(cmake_sources(b"# x\nCMAKE_HOME_DIRECTORY:INTERNAL=/a/b\n"), Some(&b"/a/b"[..]));
        assert_eq!(cmake_sources(b"CMAKE_HOME_DIRECTORY"), None);
    }

    #[test]
    fn paths_are_resolved_without_looking_at_the_disk() {
        let resolve = |from: &str, path: &str| resolved(Path::new(from), Path::new(path));
        assert_eq!(resolve("/a/b", "../c/./d"), Path::new("/a/c/d"));
        assert_eq!(resolve("/a/b", "/c"), Path::new("/c"));
        assert_eq!(resolve("/", "../.."), Path::new("/"));
    }

    #[test]
    fn many_of_a_kind_are_counted_and_few_are_named() {
        let link = |n| tie(TieKind::Link, format!("l{n:04}").as_bytes(), Path::new("/p"));
        let mut all: Vec<_> = (0..1000).rev().map(link).collect();
        all.push(tie(TieKind::GitLeftOut, b".git", Path::new("/r")));
        let ties = Ties::of(all);
        assert_eq!((ties.total(), ties.first.len()), (1001, 1 + KEPT));
        assert_eq!(ties.words(true).len(), 1);
        let words = ties.words(false);
        assert_eq!(words.len(), 1 + NAMED + 1);
        assert!(words[0].starts_with(".git is left out") && words[1].starts_with("l0000"), "{words:?}");
        assert!(words.last().unwrap().starts_with("995 more"), "{words:?}");
    }
}
