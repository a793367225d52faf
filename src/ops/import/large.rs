//! Finds large directories that tools can make again, since a user may want to leave them out.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::walk::Found;
use crate::layers::world::Kind;
use crate::util::units::format_bytes;

/// A directory with this many bytes or more is large.
pub const LARGE: u64 = 1 << 30;

/// Names of directories that tools make and can make again.
const REBUILT: &[&str] = &[
    "target",
    "node_modules",
    ".venv",
    "venv",
    "build",
    "dist",
    "out",
    "__pycache__",
    ".tox",
    ".nox",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".cache",
    ".gradle",
    ".next",
    ".nuxt",
    ".parcel-cache",
    ".turbo",
    ".terraform",
    "bazel-out",
    "_build",
    "cmake-build-debug",
    "cmake-build-release",
    "DerivedData",
    "Pods",
];

/// A large directory that tools can probably make again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Large {
    /// The directory, relative to what was imported.
    pub path: String,
    /// Bytes of the files below it.
    pub bytes: u64,
    /// The line of `.pfignore` that leaves it out.
    pub ignore: String,
}

impl Large {
    /// Returns advice for the user.
    pub fn words(&self) -> String {
        let Self { path, bytes, ignore } = self;
        format!(
            "{path} holds {} and looks rebuilt; the line {ignore} in .pfignore leaves it out",
            format_bytes(*bytes)
        )
    }
}

/// Returns the topmost directories that tools can probably make again and that have at least `least` bytes, in order.
pub(super) fn find(found: &[Found], least: u64) -> Vec<Large> {
    let mut sizes: BTreeMap<&[u8], u64> = BTreeMap::new();
    let mut counted = HashSet::new();
    for found in found.iter().filter(|found| found.meta.kind == Kind::File) {
        let Some(folder) = rebuilt(&found.path) else { continue };
        let stamp = &found.meta.stamp;
        if found.meta.links > 1 && !counted.insert((stamp.dev, stamp.ino)) {
            continue;
        }
        *sizes.entry(folder).or_default() += stamp.size;
    }
    let large = sizes.into_iter().filter(|(_, bytes)| *bytes >= least);
    large
        .map(|(path, bytes)| {
            let path = String::from_utf8_lossy(path).into_owned();
            Large { ignore: rule(&path), path, bytes }
        })
        .collect()
}

/// Returns the topmost directory above a file whose name says that tools make it.
fn rebuilt(path: &[u8]) -> Option<&[u8]> {
    let mut start = 0;
    for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        let name = &path[start..end];
        if name == b".git" {
            return None;
        }
        if REBUILT.iter().any(|rebuilt| rebuilt.as_bytes() == name) {
            return Some(&path[..end]);
        }
        start = end + 1;
    }
    None
}

/// Returns a rule that covers a path, and as few others as possible. A rule of one name covers all directories of that name.
fn rule(path: &str) -> String {
    // In a rule, `#` and `!` at the start, blanks at the ends and wildcards have a special meaning.
    let plain = !path.starts_with(['#', '!']) && path.trim() == path && !path.contains(['*', '?', '[', '\n']);
    if plain { path.to_owned() } else { path.rsplit('/').next().unwrap_or(path).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::index::Stamp;
    use super::super::walk::Meta;
    use super::*;

    fn file(path: &str, size: u64, ino: u64, links: u64) -> Found {
        let stamp = Stamp { size, mtime_ns: 0, ctime_ns: 0, ino, dev: 1 };
        let meta = Meta { kind: Kind::File, mode: 0o644, stamp, links, uid: 0, gid: 0, rdev: 0 };
        Found { path: path.into(), meta, closed: false, source: None }
    }

    #[test]
    fn the_topmost_folders_that_can_be_made_again_are_added_up() {
        let found = [
            file("target/debug/a", 60, 1, 1),
            file("target/build/b", 40, 2, 1),
            file("x/node_modules/a/dist/c", 99, 3, 1),
            file("y/node_modules/d", 100, 4, 2),
            // Another name of the same file.
            file("y/node_modules/e", 100, 4, 2),
            file("y/dist", 1000, 5, 1),
            file("src/targets/f", 1000, 6, 1),
            file(".git/modules/build/objects/g", 1000, 7, 1),
            file("# odd/build/h", 100, 8, 1),
        ];
        let large = find(&found, 100);
        let told: Vec<_> = large.iter().map(|l| (l.path.as_str(), l.bytes, l.ignore.as_str())).collect();
        assert_eq!(
            told,
            [
                ("# odd/build", 100, "build"),
                ("target", 100, "target"),
                ("y/node_modules", 100, "y/node_modules")
            ]
        );
        let mut rules = crate::layers::ignore::Ignore::default();
        for large in &large {
            assert_eq!(rules.add_lines(&large.ignore), [""; 0]);
            assert!(rules.covers(large.path.as_bytes()), "{large:?}");
        }
    }
}
