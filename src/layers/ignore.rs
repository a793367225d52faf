//! Decides which paths an image leaves out, by the rules of `pf`.
//!
//! A rule without `*`, `?` and `[` is one name or several with slashes between them, and matches wherever a
//! path has these components in a row. Any other rule is a glob, matched against the path and against its
//! last name; its `*` matches slashes too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use crate::error::{Error, ErrorKind, Result};

/// `pf`'s built-in list: what can be made again, and its own note of the parent.
const PF_RULES: &[&str] = &[
    ".git/objects",
    "target",
    "node_modules",
    ".pfcid",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".tox",
    ".coverage",
    ".venv",
    ".DS_Store",
    "*.pyc",
    "*.pyo",
];

/// The file at the top of a folder that holds rules, a line each.
pub const IGNORE_FILE: &str = ".pfignore";

/// The file of rules that `pf` reads where there is no `.pfignore`.
pub const PF_IGNORE_FILE: &str = ".gitignore";

/// Where a rule comes from. Of several rules for one path the last of these counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// `pf`'s built-in list.
    Pf,
    /// A file of rules in the folder.
    File,
    /// The caller.
    Asked,
}

/// Rules that leave paths out.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    /// Consecutive names.
    plain: Vec<(Vec<Box<[u8]>>, Rule)>,
    globs: Vec<(GlobMatcher, Rule)>,
}

impl Ignore {
    /// `pf`'s built-in list.
    pub fn pf_rules() -> Self {
        let mut this = Self::default();
        for rule in PF_RULES {
            // Each is known to be sound, and a test says so.
            let _ = this.add_of(rule, Rule::Pf);
        }
        this
    }

    /// Adds a rule from the caller.
    pub fn add(&mut self, rule: &str) -> Result<()> {
        self.add_of(rule, Rule::Asked)
    }

    fn add_of(&mut self, rule: &str, of: Rule) -> Result<()> {
        if rule.contains(['*', '?', '[']) {
            let glob = GlobBuilder::new(rule).build().map_err(|e| {
                Error::new(ErrorKind::InvalidInput, format!("{rule:?} is not a valid pattern"))
                    .with_source(e)
                    .with_hint("write a name, a path or a glob, such as target, docs/build or *.log")
            })?;
            self.globs.push((glob.compile_matcher(), of));
            return Ok(());
        }
        let names: Vec<Box<[u8]>> =
            rule.split('/').filter(|name| !name.is_empty()).map(|name| name.as_bytes().into()).collect();
        if names.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{rule:?} names nothing to leave out")));
        }
        self.plain.push((names, of));
        Ok(())
    }

    /// Adds the rules of a file such as `.gitignore`: a line each, without comments. Returns the lines that
    /// cannot be followed: negations (`!`), as with `pf`, and invalid patterns.
    pub fn add_lines(&mut self, text: &str) -> Vec<String> {
        let mut refused = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let rule = line.trim_start_matches('/').trim_end_matches('/');
            if line.starts_with('!') || (!rule.is_empty() && self.add_of(rule, Rule::File).is_err()) {
                refused.push(line.to_owned());
            }
        }
        refused
    }

    /// Returns the rules as text, in no order.
    pub fn texts(&self) -> Vec<String> {
        let plain =
            self.plain.iter().map(|(names, _)| String::from_utf8_lossy(&names.join(&b'/')).into_owned());
        plain.chain(self.globs.iter().map(|(glob, _)| glob.glob().glob().to_owned())).collect()
    }

    /// Whether a path, relative to the folder, is left out. The caller leaves out everything below it.
    pub fn covers(&self, path: &[u8]) -> bool {
        self.covered_by(path).is_some()
    }

    /// Where the rule comes from that leaves a path out.
    pub fn covered_by(&self, path: &[u8]) -> Option<Rule> {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        let ends_with = |names: &Vec<Box<[u8]>>| {
            // The folders above were checked before, so only a match that ends here is new.
            let mut rest = path.rsplit(|b| *b == b'/');
            names.iter().rev().all(|name| rest.next().is_some_and(|component| component == &**name))
        };
        let glob = |glob: &GlobMatcher| {
            glob.is_match(Path::new(OsStr::from_bytes(path)))
                || glob.is_match(Path::new(OsStr::from_bytes(name)))
        };
        let plain = self.plain.iter().filter(|(names, _)| ends_with(names)).map(|(_, rule)| *rule);
        let globs = self.globs.iter().filter(|(pattern, _)| glob(pattern)).map(|(_, rule)| *rule);
        plain.chain(globs).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_as_they_do_with_pf() {
        let mut ignore = Ignore::pf_rules();
        assert_eq!(ignore.plain.len() + ignore.globs.len(), PF_RULES.len());
        ignore.add("a/b").unwrap();
        ignore.add("**/build/**").unwrap();
        ignore.add("log?.txt").unwrap();
        for covered in [
            "target",
            "x/target",
            "x/.git/objects",
            ".pfcid",
            "m.pyc",
            "x/y/m.pyc",
            "a/b",
            "x/a/b",
            "x/build/y",
            "log1.txt",
            "x/log1.txt",
        ] {
            assert!(ignore.covers(covered.as_bytes()), "{covered}");
        }
        for kept in
            ["targets", "x/targeted", ".git", "objects", "x/objects", "b", "a/c/b", "log12.txt", "mpyc"]
        {
            assert!(!ignore.covers(kept.as_bytes()), "{kept}");
        }
        assert!(Ignore::default().add("[").is_err() && Ignore::default().add("/").is_err());
    }

    #[test]
    fn a_file_of_rules_is_read_as_pf_reads_it() {
        let mut ignore = Ignore::default();
        let refused = ignore.add_lines("# comment\n\n /dist/ \n*.log\n!keep.log\n[\n/\n");
        assert_eq!(refused, ["!keep.log", "["]);
        assert!(ignore.covers(b"dist") && ignore.covers(b"x/dist") && ignore.covers(b"x.log"));
        assert!(!ignore.covers(b"distance"));
    }

    #[test]
    fn the_callers_rule_counts_before_those_of_files() {
        let mut ignore = Ignore::pf_rules();
        ignore.add("*.pyc").unwrap();
        ignore.add("mine").unwrap();
        ignore.add_lines("mine\n*.log\nnode_modules\n");
        for (path, rule) in [
            ("target", Some(Rule::Pf)),
            ("node_modules", Some(Rule::File)),
            ("x.log", Some(Rule::File)),
            ("x.pyo", Some(Rule::Pf)),
            ("x.pyc", Some(Rule::Asked)),
            ("mine", Some(Rule::Asked)),
            ("x", None),
        ] {
            assert_eq!(ignore.covered_by(path.as_bytes()), rule, "{path}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_match_by_their_bytes() {
        let mut ignore = Ignore::default();
        ignore.add("*.log").unwrap();
        assert!(ignore.covers(b"caf\xe9.log") && !ignore.covers(b"caf\xe9"));
    }
}
