//! The paths of a comparison.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use globset::{GlobBuilder, GlobMatcher};

use crate::error::{Error, ErrorKind, Result};
use crate::layers::ignore::Ignore;

/// The path of a project's files in an image or fork.
pub(super) const FILES: &[u8] = b"world/fs";

/// Git's own directory.
const GIT: &[u8] = b".git";

/// A path or a pattern that the user gave.
#[derive(Clone, Debug)]
enum Limit {
    /// This path and everything below it.
    At(Vec<u8>),
    /// Paths that match, and everything below them. As in git, `*` also matches slashes.
    Pattern(GlobMatcher),
}

/// The paths of a comparison.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    asked: Vec<Limit>,
    /// Whether all layers are compared, by their paths in an image.
    pub(super) layers: bool,
    /// Whether git's directories are compared.
    pub(super) git: bool,
    /// Set if a side is a directory: the rules by which its import leaves paths out. Its `.git` is never
    /// compared.
    pub(super) directory: Option<Ignore>,
}

impl Limits {
    /// Parses the user's paths, relative to `prefix`, a directory of the tree. `root` is the directory that the
    /// tree is a copy of.
    pub(super) fn new(paths: &[OsString], layers: bool, prefix: &Path, root: Option<&Path>) -> Result<Self> {
        let mut limits = Vec::new();
        let mut git = layers;
        for path in paths {
            let inside = inside(path, prefix, root)?;
            // A path that names git's directory asks for it.
            git |= inside.split(|byte| *byte == b'/').any(|name| name == GIT);
            if inside.iter().any(|byte| b"*?[".contains(byte)) {
                limits.push(Limit::Pattern(pattern(&inside)?));
            }
            limits.push(Limit::At(inside));
        }
        Ok(Self { asked: limits, layers, git, directory: None })
    }

    /// Returns the path of a file as users see it; `None` for a file that is not shown.
    pub(super) fn shown<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        if self.layers {
            return Some(path);
        }
        if path == FILES {
            return Some(b".");
        }
        path.strip_prefix(FILES)?.strip_prefix(b"/")
    }

    /// Returns whether a path of an image, or something below it, is compared.
    pub(super) fn is_entered(&self, path: &[u8]) -> bool {
        if self.layers {
            return self.is_near(path);
        }
        if path == b"world" || path == FILES {
            return true;
        }
        self.shown(path).is_some_and(|inside| self.is_there(inside) && self.is_near(inside))
    }

    /// Returns whether a path of a project counts: no rule leaves it out, and it is outside of git's
    /// directories.
    pub(super) fn is_there(&self, inside: &[u8]) -> bool {
        if let Some(ignore) = &self.directory
            && (ignore.covers(inside) || is_git(inside))
        {
            return false;
        }
        self.git || !is_in_git(inside)
    }

    /// Returns whether the user asked for a path, given as users see it. A new or changed git directory is not
    /// reported; a deleted one is.
    pub(super) fn is_covered(&self, shown: &[u8], is_gone: bool) -> bool {
        if !self.git && !is_gone && is_git(shown) {
            return false;
        }
        self.asked.is_empty() || self.asked.iter().any(|limit| limit.covers(shown))
    }

    fn is_near(&self, path: &[u8]) -> bool {
        self.asked.is_empty() || self.asked.iter().any(|limit| limit.covers(path) || limit.may_be_below(path))
    }

    /// Returns the requested paths that are not patterns.
    pub(super) fn plain(&self) -> impl Iterator<Item = &[u8]> {
        let is_pattern = |path: &[u8]| path.iter().any(|byte| b"*?[".contains(byte));
        self.asked.iter().filter_map(move |limit| match limit {
            Limit::At(path) if !is_pattern(path) => Some(path.as_slice()),
            _ => None,
        })
    }
}

impl Limit {
    fn covers(&self, path: &[u8]) -> bool {
        match self {
            Self::At(limit) => is_at_or_below(path, limit),
            Self::Pattern(pattern) => {
                let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
                ends.chain([path.len()]).any(|end| pattern.is_match(OsStr::from_bytes(&path[..end])))
            }
        }
    }

    /// Returns whether a directory may hold requested paths.
    fn may_be_below(&self, folder: &[u8]) -> bool {
        match self {
            Self::At(limit) => is_at_or_below(limit, folder),
            Self::Pattern(_) => true,
        }
    }
}

/// Returns whether a path equals another one or lies below it. Every path lies below the empty one.
fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Returns whether a path is a directory of git, or the file that stands for one.
fn is_git(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').next() == Some(GIT)
}

/// Returns whether a path lies in a directory of git.
fn is_in_git(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').rev().skip(1).any(|name| name == GIT)
}

fn pattern(inside: &[u8]) -> Result<GlobMatcher> {
    let shown = String::from_utf8_lossy(inside);
    let invalid = |why: String| {
        Error::new(ErrorKind::InvalidInput, format!("{shown:?} cannot be read as a pattern: {why}"))
    };
    let text = std::str::from_utf8(inside).map_err(|e| invalid(e.to_string()))?;
    let glob = GlobBuilder::new(text).literal_separator(false).backslash_escape(true).build();
    Ok(glob.map_err(|e| invalid(e.kind().to_string()))?.compile_matcher())
}

/// A path from the user, relative to the top of the tree.
fn inside(path: &OsStr, prefix: &Path, root: Option<&Path>) -> Result<Vec<u8>> {
    let outside = || {
        let what = format!("{} lies outside of the compared files", Path::new(path).display());
        Error::new(ErrorKind::InvalidInput, what).with_path(path)
    };
    let path = Path::new(path);
    let (mut names, path): (Vec<&OsStr>, &Path) = if path.is_absolute() {
        (Vec::new(), root.and_then(|root| path.strip_prefix(root).ok()).ok_or_else(outside)?)
    } else {
        (prefix.iter().collect(), path)
    };
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop().ok_or_else(outside)?),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let names: Vec<&[u8]> = names.into_iter().map(OsStr::as_bytes).collect();
    Ok(names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(paths: &[&str], prefix: &str) -> Limits {
        let paths: Vec<_> = paths.iter().map(OsString::from).collect();
        Limits::new(&paths, false, Path::new(prefix), Some(Path::new("/home/me/shop"))).unwrap()
    }

    #[test]
    fn paths_are_relative_to_the_current_directory_and_include_everything_below() {
        let is = |limits: &Limits, path: &str| limits.is_covered(path.as_bytes(), false);
        let here = limits(&["main.rs", "../docs", "/home/me/shop/lib/x"], "src");
        for (path, covered) in [
            ("src/main.rs", true),
            ("main.rs", false),
            ("docs/a/b", true),
            ("docs", true),
            ("docs.md", false),
            ("lib/x", true),
            ("lib/xy", false),
        ] {
            assert_eq!(is(&here, path), covered, "{path}");
        }
        assert!(here.is_entered(b"world/fs/lib") && !here.is_entered(b"world/fs/other"));
        assert!(!here.is_entered(b"model") && here.is_entered(b"world"));
        assert!(is(&limits(&["."], ""), "anything") && is(&limits(&[".."], "src"), "anything"));
        let patterns = limits(&["*.rs", "[ab]"], "");
        for (path, covered) in
            [("src/x.rs", true), ("a", true), ("b/c", true), ("c", false), ("x.rst", false)]
        {
            assert_eq!(is(&patterns, path), covered, "{path}");
        }
        let refused = |path: &str, prefix: &str| {
            Limits::new(&[path.into()], false, Path::new(prefix), Some(Path::new("/home/me/shop")))
                .unwrap_err()
                .kind()
        };
        assert_eq!(refused("../../x", "src"), ErrorKind::InvalidInput);
        assert_eq!(refused("/etc/passwd", ""), ErrorKind::InvalidInput);
        assert_eq!(refused("[", ""), ErrorKind::InvalidInput);
    }

    #[test]
    fn git_directories_are_left_out_unless_they_are_named() {
        let all = limits(&[], "");
        assert!(!all.is_entered(b"world/fs/.git/config") && !all.is_entered(b"world/fs/sub/.git/x"));
        assert!(all.is_entered(b"world/fs/.gitignore") && all.is_entered(b"world/fs/a.git/x"));
        assert!(!all.is_covered(b".git", false) && all.is_covered(b"sub/.git", true));
        let named = limits(&[".git/config"], "");
        assert!(named.is_entered(b"world/fs/.git/config") && named.is_covered(b".git/config", false));
        assert!(!named.is_entered(b"world/fs/.git/objects"));
        let directory = Limits { directory: Some(Ignore::default()), ..limits(&[], "") };
        assert!(!directory.is_entered(b"world/fs/.git"));
    }
}
