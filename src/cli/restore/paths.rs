//! Paths of a restore: their places in the fork, and their output.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use crate::cli::text::{count, plain_bytes};
use crate::daemon::calls;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::beside;
use crate::ops::back::{Bytes, PathLine};
use crate::store::Store;

/// Above this number of lines, additions and changes are counted by directory.
const LINES: usize = 40;

/// A path from the top of a fork's files. Links are not followed.
pub(super) fn in_fork(store: &Store, mountpoint: Option<&Path>, name: &str, path: &OsStr) -> Result<Vec<u8>> {
    let files = mountpoint.map(|mountpoint| calls::files_of(mountpoint, name));
    let project = beside::project(store.root(), name).ok().flatten();
    let given = Path::new(path);
    let tops: Vec<&Path> = [files.as_deref(), project.as_deref()].into_iter().flatten().collect();
    let cwd = std::env::current_dir().ok();
    let start = match (&files, cwd.as_deref()) {
        (Some(files), Some(cwd)) => cwd.strip_prefix(files).ok().map(Path::to_owned),
        _ => None,
    };
    within(given, start.as_deref().unwrap_or(Path::new("")), &tops).ok_or_else(|| {
        let what = format!("{} is not inside fork {name:?}", given.display());
        Error::new(ErrorKind::InvalidInput, what)
            .with_hint("write the path from the top of the fork, for instance src/main.rs")
    })
}

/// Returns a path from the top of some files: `start` is where relative paths begin, and `tops` are where the
/// files are shown.
fn within(given: &Path, start: &Path, tops: &[&Path]) -> Option<Vec<u8>> {
    let whole = if given.is_absolute() {
        tops.iter().find_map(|top| given.strip_prefix(top).ok())?.to_owned()
    } else {
        start.join(given)
    };
    let mut clean = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir if clean.pop() => {}
            _ => return None,
        }
    }
    Some(clean.as_os_str().as_bytes().to_vec())
}

/// Lists paths in words.
pub(super) fn in_words(paths: &[Bytes]) -> String {
    let word = |path: &Bytes| {
        if path.0.is_empty() { "all files".to_owned() } else { plain_bytes(&path.0, usize::MAX) }
    };
    match paths {
        [one] => word(one),
        [one, two] => format!("{} and {}", word(one), word(two)),
        [one, two, more @ ..] => format!("{}, {} and {} more", word(one), word(two), more.len()),
        [] => String::new(),
    }
}

/// Lists the changes in lines: all deletions first, a whole directory once.
pub(super) fn listing(moved: &[PathLine], paths: &[Bytes]) -> String {
    let mut out = String::new();
    let gone: Vec<&PathLine> = tops(moved, 'D');
    for line in &gone {
        let _ = writeln!(out, "D {}{}", shown(line), files_in(moved, line));
    }
    let others: Vec<&PathLine> = tops(moved, 'A')
        .into_iter()
        .chain(moved.iter().filter(|line| matches!(line.status, 'M' | 'T')))
        .collect();
    if others.len() <= LINES {
        for line in others {
            let _ = writeln!(out, "{} {}{}", line.status, shown(line), files_in(moved, line));
        }
        return out;
    }
    let mut folders: BTreeMap<(Vec<u8>, char), u64> = BTreeMap::new();
    for line in moved.iter().filter(|line| line.status != 'D' && !line.is_folder) {
        *folders.entry((folder_of(&line.path.0, paths), line.status)).or_default() += 1;
    }
    for ((folder, status), files) in folders {
        let folder = if folder.is_empty() { "./".to_owned() } else { plain_bytes(&folder, usize::MAX) };
        let _ = writeln!(out, "{status} {folder}  ({})", count(files, "file"));
    }
    out
}

/// Returns the paths with a status that lie in no directory with that status.
fn tops(moved: &[PathLine], status: char) -> Vec<&PathLine> {
    let folders: std::collections::HashSet<&[u8]> = moved
        .iter()
        .filter(|line| line.status == status && line.is_folder)
        .map(|line| &line.path.0[..])
        .collect();
    let is_inside = |path: &[u8]| (0..path.len()).any(|at| path[at] == b'/' && folders.contains(&path[..at]));
    moved.iter().filter(|line| line.status == status && !is_inside(&line.path.0)).collect()
}

fn shown(line: &PathLine) -> String {
    let slash = if line.is_folder { "/" } else { "" };
    format!("{}{slash}", plain_bytes(&line.path.0, usize::MAX))
}

/// Counts the files that came or went with a directory.
fn files_in(moved: &[PathLine], folder: &PathLine) -> String {
    if !folder.is_folder || folder.status == 'M' {
        return String::new();
    }
    let inside = |line: &&PathLine| {
        let rest = line.path.0.strip_prefix(&folder.path.0[..]);
        !line.is_folder && line.status == folder.status && rest.is_some_and(|rest| rest.starts_with(b"/"))
    };
    let files = moved.iter().filter(inside).count() as u64;
    format!("  ({})", count(files, "file"))
}

/// Returns the directory by which a path is counted: the first one below the requested path.
fn folder_of(path: &[u8], paths: &[Bytes]) -> Vec<u8> {
    let asked = paths.iter().filter(|asked| asked.0.ends_with(b"/") && path.starts_with(&asked.0));
    let top = asked.map(|asked| asked.0.len()).max().unwrap_or(0);
    let end = path[top..].iter().position(|byte| *byte == b'/').map_or(top, |at| top + at + 1);
    path[..end].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_at_the_top_or_at_the_current_directory_and_stays_inside() {
        let tops = [Path::new("/mnt/forks/f/world/fs"), Path::new("/home/u/project")];
        let path = |given: &str, start: &str| {
            within(Path::new(given), Path::new(start), &tops).map(|path| String::from_utf8(path).unwrap())
        };
        for (given, start, expected) in [
            ("docs", "", Some("docs")),
            ("docs/", "", Some("docs")),
            ("./a/../b", "", Some("b")),
            (".", "", Some("")),
            (".", "src/x", Some("src/x")),
            ("../y", "src/x", Some("src/y")),
            ("..", "", None),
            ("../../..", "src/x", None),
            ("/mnt/forks/f/world/fs/a b", "src", Some("a b")),
            ("/home/u/project/src", "", Some("src")),
            ("/etc/passwd", "", None),
            ("/home/u/project/../x", "", None),
        ] {
            assert_eq!(path(given, start).as_deref(), expected, "{given} in {start:?}");
        }
    }

    fn line(status: char, path: &str) -> PathLine {
        let is_folder = path.ends_with('/');
        PathLine { path: Bytes(path.trim_end_matches('/').into()), status, is_folder }
    }

    #[test]
    fn deletions_come_first_and_many_lines_are_counted_by_directory() {
        let docs = [Bytes(b"docs/".to_vec())];
        let moved = [
            line('M', "docs/a"),
            line('A', "docs/n/"),
            line('A', "docs/n/x"),
            line('D', "docs/o"),
            line('T', "docs/t"),
        ];
        assert_eq!(listing(&moved, &docs), "D docs/o\nA docs/n/  (1 file)\nM docs/a\nT docs/t\n");
        let mut many: Vec<_> = (0..45).map(|n| line('D', &format!("docs/gone{n}"))).collect();
        many.extend((0..30).map(|n| line('A', &format!("docs/p/{n}"))));
        many.extend((0..30).map(|n| line('M', &format!("docs/q/{n}"))));
        let text = listing(&many, &docs);
        assert_eq!(text.lines().filter(|line| line.starts_with("D ")).count(), 45);
        assert!(text.ends_with("A docs/p/  (30 files)\nM docs/q/  (30 files)\n"), "{text}");
        let whole: Vec<_> = [line('A', "docs/")]
            .into_iter()
            .chain((0..980).map(|n| line('A', &format!("docs/{n}"))))
            .collect();
        assert_eq!(listing(&whole, &docs), "A docs/  (980 files)\n");
    }
}
