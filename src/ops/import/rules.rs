//! Reads the rules that leave paths of a directory out of its image.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::layers::ignore::{IGNORE_FILE, Ignore, PF_IGNORE_FILE, Rule};

/// Number of paths that each source of rules left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOutBy {
    /// `pf`'s built-in list.
    pub pf_ignores: u64,
    /// The directory's file of rules.
    pub ignore_file: u64,
    /// The caller's rules.
    pub ignore: u64,
}

impl LeftOutBy {
    pub(super) fn add(&mut self, rule: Rule) {
        *match rule {
            Rule::Pf => &mut self.pf_ignores,
            Rule::File => &mut self.ignore_file,
            Rule::Asked => &mut self.ignore,
        } += 1;
    }

    pub(super) fn append(&mut self, other: Self) {
        self.pf_ignores += other.pf_ignores;
        self.ignore_file += other.ignore_file;
        self.ignore += other.ignore;
    }
}

/// Reads the rules of a directory: its `.pfignore`, and those that the caller asks for.
///
/// With `pf_ignores`, adds `pf`'s built-in list and, if there is no `.pfignore`, the `.gitignore`, as `pf` does. The second part of
/// the result says which lines cannot be followed.
pub fn rules(dir: &Path, pf_ignores: bool, asked: &[String]) -> Result<(Ignore, Vec<String>)> {
    let mut ignore = if pf_ignores { Ignore::pf_rules() } else { Ignore::default() };
    let files = if pf_ignores { &[IGNORE_FILE, PF_IGNORE_FILE][..] } else { &[IGNORE_FILE] };
    let refused = add_file(&mut ignore, dir, files)?;
    for rule in asked {
        ignore.add(rule)?;
    }
    Ok((ignore, refused))
}

/// Adds the rules of the first of these files that a directory has. Returns a line for each rule that cannot be followed.
pub(super) fn add_file(ignore: &mut Ignore, dir: &Path, names: &[&str]) -> Result<Vec<String>> {
    for name in names {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(text) => {
                let lines = ignore.add_lines(&String::from_utf8_lossy(&text));
                let told = |line| format!("{}: {line:?} is not followed", path.display());
                return Ok(lines.into_iter().map(told).collect());
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(e, format!("cannot read {}", path.display()))),
        }
    }
    Ok(Vec::new())
}
