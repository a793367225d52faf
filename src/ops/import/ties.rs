//! What in an imported tree names the place that it came from. From a fork or an export it leads back there: programs then
//! read the original's files in place of the copy's, or write to them. Nothing is changed here; an import names it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::tree::{Body, Item};
use crate::layers::world::Kind;
use crate::mount::reach::Top;

/// Of each kind, so many are kept, and so many are named in words.
const KEPT: usize = 100;
const NAMED: usize = 5;

/// Bytes of a file that are looked at. Those that matter are shorter.
const MAX_FILE: u64 = 1 << 20;

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TieKind {
    /// A `.git` file of a worktree or submodule whose repository lies elsewhere.
    GitFile,
    /// `core.worktree` in a repository's settings.
    GitWorktree,
    /// `objects/info/alternates` of a repository that takes objects from another one.
    GitAlternates,
    /// An absolute link into the folder.
    Link,
    /// A Python environment, whose scripts hold its absolute path.
    Venv,
    /// A line of a Python environment by which it imports code from the folder.
    PythonPath,
    /// A build folder of `CMake`, which holds the absolute path of the sources.
    Cmake,
}

/// Something that names the place it was imported from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Tie {
    /// What it is.
    pub kind: TieKind,
    /// Which file, link or folder, relative to what was imported.
    pub path: String,
    /// What it names.
    pub target: String,
}

impl Tie {
    /// What goes wrong with it in a copy.
    fn words(&self) -> String {
        let Self { kind, path, target } = self;
        match kind {
            TieKind::GitFile => {
                format!("{path} points to {target}: in a fork git works on that repository, or finds none")
            }
            TieKind::GitWorktree => {
                format!("{path} sets core.worktree to {target}: in a fork git works on that folder")
            }
            TieKind::GitAlternates => {
                format!("{path} takes objects from {target}: git in a fork depends on that repository")
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

/// What was found.
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

    /// A line for each, and one for those of a kind that would be too many.
    pub(super) fn words(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, count) in &self.counts {
            let of_kind = self.first.iter().filter(|tie| tie.kind == *kind);
            lines.extend(of_kind.take(NAMED).map(Tie::words));
            if *count > NAMED as u64 {
                lines.push(format!("{} more like the last one (--json lists them)", count - NAMED as u64));
            }
        }
        lines
    }
}

/// The place that is imported: its paths, as given and without links.
struct Place<'a> {
    top: &'a Top,
    names: Vec<PathBuf>,
}

/// Looks for what names the place among what was found.
pub(super) fn find(top: &Top, given: &Path, items: &[Item]) -> Ties {
    let mut names = vec![top.path().to_owned()];
    // Not by `..`, which is another folder behind a link.
    names.extend(std::path::absolute(given).ok().map(|path| resolved(Path::new("/"), &path)));
    names.dedup();
    let place = Place { top, names };
    let mut ties = Vec::new();
    for item in items {
        match &item.body {
            Body::Target(target, _) => {
                let target = Path::new(OsStr::from_bytes(target));
                if target.is_absolute() && place.holds(target) {
                    ties.push(tie(TieKind::Link, &item.path, target));
                }
            }
            _ if item.meta.kind == Kind::File => place.file(&item.path, &mut ties),
            _ => {}
        }
    }
    Ties::of(ties)
}

fn tie(kind: TieKind, path: &[u8], target: &Path) -> Tie {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Tie { kind, path: text(path), target: text(target.as_os_str().as_bytes()) }
}

impl Place<'_> {
    /// Whether a path is the place or lies below it.
    fn holds(&self, path: &Path) -> bool {
        let path = resolved(Path::new("/"), path);
        self.names.iter().any(|name| path.starts_with(name))
    }

    fn text(&self, path: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        if let Ok(file) = self.top.file(path) {
            // What cannot be read says nothing; an import that needs it says so itself.
            let _ = file.take(MAX_FILE).read_to_end(&mut text);
        }
        text
    }

    /// The folder that a file lies in, as an absolute path.
    fn folder(&self, path: &[u8]) -> PathBuf {
        self.top.path().join(OsStr::from_bytes(split(path).0))
    }

    /// A path that is written in a file whose relative paths begin at `from`, if it leads out of the place or is absolute.
    fn leaves(&self, from: &Path, written: &[u8]) -> Option<PathBuf> {
        let written = Path::new(OsStr::from_bytes(written));
        let resolved = resolved(from, written);
        (written.is_absolute() || !self.holds(&resolved)).then_some(resolved)
    }

    fn file(&self, path: &[u8], ties: &mut Vec<Tie>) {
        let (folder, name) = split(path);
        match name {
            b".git" => {
                if let Some(target) =
                    git_file(&self.text(path)).and_then(|to| self.leaves(&self.folder(path), to))
                {
                    ties.push(tie(TieKind::GitFile, path, &target));
                }
            }
            b"config" | b"config.worktree" if self.is_repository(folder) => {
                let text = self.text(path);
                if let Some(target) = core_worktree(&text).and_then(|to| self.leaves(&self.folder(path), &to))
                {
                    ties.push(tie(TieKind::GitWorktree, path, &target));
                }
            }
            b"alternates" if folder.ends_with(b"objects/info") => {
                let objects = self.folder(split(folder).0);
                let objects = objects.join("objects");
                for line in alternates(&self.text(path)) {
                    if let Some(target) = self.leaves(&objects, line) {
                        ties.push(tie(TieKind::GitAlternates, path, &target));
                    }
                }
            }
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

    /// Whether a folder is a repository of git: the one of a work tree, a bare one, or a submodule's.
    fn is_repository(&self, folder: &[u8]) -> bool {
        let inside =
            |name: &[u8]| if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() };
        self.top.stat(&inside(b"HEAD")).is_ok() && self.top.stat(&inside(b"refs")).is_ok()
    }
}

/// A path's folder and last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A path with `.` and `..` taken out, and nothing looked up.
fn resolved(from: &Path, path: &Path) -> PathBuf {
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

/// Where a `.git` file leads.
fn git_file(text: &[u8]) -> Option<&[u8]> {
    let target = text.strip_prefix(b"gitdir:")?.trim_ascii();
    (!target.is_empty()).then_some(target)
}

/// `core.worktree` of git's settings.
fn core_worktree(text: &[u8]) -> Option<Vec<u8>> {
    let mut in_core = false;
    let mut found = None;
    for line in text.split(|b| *b == b'\n') {
        let mut line = line.trim_ascii();
        if let Some(section) = line.strip_prefix(b"[") {
            let end = section.iter().position(|b| *b == b']')?;
            in_core = section[..end].trim_ascii().eq_ignore_ascii_case(b"core");
            line = section[end + 1..].trim_ascii();
        }
        let Some(at) = line.iter().position(|b| *b == b'=') else { continue };
        if in_core && line[..at].trim_ascii().eq_ignore_ascii_case(b"worktree") {
            // The last one counts, as with git.
            found = Some(unquoted(line[at + 1..].trim_ascii()));
        }
    }
    found.filter(|path| !path.is_empty())
}

/// A value of git's settings: without quotation marks, escapes, and what is behind it.
fn unquoted(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut quoted, mut bytes) = (false, value.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' => out.extend(bytes.next()),
            b'#' | b';' if !quoted => break,
            byte => out.push(*byte),
        }
    }
    if value.contains(&b'"') { out } else { out.trim_ascii_end().to_vec() }
}

/// The folders of objects that `objects/info/alternates` names.
fn alternates(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// Whether a Python environment says of itself that it can be moved.
fn is_relocatable(text: &[u8]) -> bool {
    text.split(|b| *b == b'\n').any(|line| {
        let mut parts = line.splitn(2, |b| *b == b'=').map(<[u8]>::trim_ascii);
        parts.next() == Some(b"relocatable")
            && parts.next().is_some_and(|is| is.eq_ignore_ascii_case(b"true"))
    })
}

/// The folder of sources that a build folder of `CMake` names.
fn cmake_sources(text: &[u8]) -> Option<&[u8]> {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"CMAKE_HOME_DIRECTORY:"))?;
    let at = line.iter().position(|b| *b == b'=')?;
    Some(line[at + 1..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_git_are_read_as_git_reads_them() {
        let worktree =
            |text: &str| core_worktree(text.as_bytes()).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(worktree("[core]\n\tworktree = ../../../sub\n").unwrap(), "../../../sub");
        assert_eq!(worktree("[Core] WorkTree=/a b ; note\n").unwrap(), "/a b");
        assert_eq!(worktree("[core]\nworktree = \"/a \\\"b\\\"# \"\n").unwrap(), "/a \"b\"# ");
        assert_eq!(worktree("[core]\nworktree = /a\nworktree = /b\n").unwrap(), "/b");
        for none in [
            "",
            "[core]\nbare = true\n",
            "[other]\nworktree = /a\n",
            "[core \"x\"]\nworktree = /a\n",
            "[core",
        ] {
            assert_eq!(worktree(none), None, "{none:?}");
        }
    }

    #[test]
    fn what_a_file_names_is_read_from_it() {
        assert_eq!(git_file(b"gitdir: ../.git/modules/sub\n"), Some(&b"../.git/modules/sub"[..]));
        assert_eq!((git_file(b"gitdir:\n"), git_file(b"other")), (None, None));
        assert_eq!(
            alternates(b"/a/objects\n\n# note\n../b\n").collect::<Vec<_>>(),
            [&b"/a/objects"[..], b"../b"]
        );
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
        all.push(tie(TieKind::GitFile, b".git", Path::new("/r")));
        let ties = Ties::of(all);
        assert_eq!((ties.total(), ties.first.len()), (1001, 1 + KEPT));
        let words = ties.words();
        assert_eq!(words.len(), 1 + NAMED + 1);
        assert!(words[0].starts_with(".git points to /r") && words[1].starts_with("l0000"), "{words:?}");
        assert!(words.last().unwrap().starts_with("995 more"), "{words:?}");
    }
}
