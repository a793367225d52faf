//! Checks that no files import each other in circles.
//!
//! An arrow leads from a file to each file whose items it names, and to the files of the modules that it declares. So a module
//! may not import the file that declares it: that file only passes on what its modules define.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::imports::{Source, declared, is_judged, paths, sources};

/// The directories whose files are checked. Each is a crate, or several that share files.
const CRATES: [&str; 3] = ["src", "benches", "mount-tests"];

type Arrow = (PathBuf, PathBuf);

/// The root of a program, and the modules that it declares.
fn declares(root: &Source) -> (&Source, BTreeSet<String>) {
    let top = |(_, path): (usize, Vec<String>)| path.into_iter().next();
    (root, paths(&root.module, &root.text).into_iter().filter_map(top).collect())
}

/// Finds the files that no other file declares: the roots of programs. Their paths begin at their crate's root.
fn mark_roots(sources: &mut [Source]) {
    let declared: BTreeSet<String> =
        sources.iter().filter(|s| s.module.len() == 1).flat_map(|root| declared(&root.text)).collect();
    for source in sources {
        if source.module.len() == 1 && !declared.contains(&source.module[0]) {
            source.module.clear();
        }
    }
}

/// The arrows among the files of one directory, each with the line of the first path along it.
fn arrows_among(sources: &[Source]) -> BTreeMap<Arrow, usize> {
    let all: BTreeMap<&[String], &Source> =
        sources.iter().map(|source| (source.module.as_slice(), source)).collect();
    let roots: Vec<_> = sources.iter().filter(|source| source.module.is_empty()).map(declares).collect();
    let mut arrows = BTreeMap::new();
    for source in sources {
        for (line, path) in paths(&source.module, &source.text) {
            // `lib.rs` passes these on.
            let is_error = source.file.starts_with("src")
                && path
                    .first()
                    .is_some_and(|first| ["Error", "ErrorKind", "Result"].contains(&first.as_str()));
            let path = if is_error { vec!["error".to_owned()] } else { path };
            let targets: Vec<&Source> = match (1..=path.len()).rev().find_map(|len| all.get(&path[..len])) {
                Some(target) => vec![target],
                // An item of a program's root: a file may belong to several programs.
                None => roots
                    .iter()
                    .filter(|(_, declared)| source.module.first().is_some_and(|top| declared.contains(top)))
                    .map(|(root, _)| *root)
                    .collect(),
            };
            for target in targets.into_iter().filter(|target| target.file != source.file) {
                arrows.entry((source.file.clone(), target.file.clone())).or_insert(line);
            }
        }
    }
    arrows
}

/// Pairs of files: each file, and every file that it leads to by one arrow or more.
fn reached(arrows: &BTreeMap<Arrow, usize>) -> BTreeSet<(&Path, &Path)> {
    let mut next: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let mut found = BTreeSet::new();
    for start in next.keys() {
        let mut todo = vec![*start];
        while let Some(file) = todo.pop() {
            todo.extend(next.get(file).into_iter().flatten().filter(|to| found.insert((*start, **to))));
        }
    }
    found
}

/// Circles of files, and the arrows in them with their lines.
#[derive(Default)]
pub struct Circles {
    circles: Vec<BTreeSet<PathBuf>>,
    arrows: BTreeMap<Arrow, usize>,
}

impl Circles {
    /// Finds the circles among the files of one directory.
    fn among(sources: &[Source]) -> Self {
        let arrows = arrows_among(sources);
        let reached = reached(&arrows);
        let mut found = Self::default();
        for (file, _) in reached.iter().filter(|(from, to)| from == to) {
            if !found.circles.iter().any(|circle| circle.contains(*file)) {
                let both_ways = |other: &&Path| reached.contains(&(*other, *file));
                let others = reached.iter().filter(|(from, _)| from == file).map(|(_, to)| *to);
                found.circles.push(others.filter(both_ways).map(Path::to_owned).collect());
            }
        }
        let in_circle = |(from, to): &Arrow| reached.contains(&(to.as_path(), from.as_path()));
        found.arrows = arrows.clone();
        found.arrows.retain(|arrow, _| in_circle(arrow));
        found
    }

    /// Finds all circles of the checkout.
    pub fn of_the_checkout() -> Self {
        let mut all = Self::default();
        for dir in CRATES {
            let mut sources = sources(dir);
            if dir == "src" {
                sources.retain(is_judged);
            } else {
                mark_roots(&mut sources);
            }
            let found = Self::among(&sources);
            all.circles.extend(found.circles);
            all.arrows.extend(found.arrows);
        }
        all
    }

    /// Describes each circle: its files, and the arrows between them.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for circle in &self.circles {
            writeln!(text, "a circle of {} files:", circle.len()).unwrap();
            for file in circle {
                let arrows = self.arrows.iter().filter(|((from, _), _)| from == file);
                for ((from, to), line) in arrows {
                    writeln!(text, "  {}:{line} imports {}", from.display(), to.display()).unwrap();
                }
            }
        }
        text
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_eq!(Circles::of_the_checkout().describe(), "");
}

/// Files of `src`, each with its module and text.
fn planted(files: &[(&str, &str)]) -> Vec<Source> {
    let one = |(module, text): &(&str, &str)| {
        let file = PathBuf::from(format!("src/{}.rs", module.replace("::", "/")));
        let module = module.split("::").map(str::to_owned).collect();
        Source { module, file, text: (*text).to_owned() }
    };
    files.iter().map(one).collect()
}

#[test]
fn a_circle_that_is_planted_is_found_however_it_is_written() {
    for files in [
        &[("a", "mod b; mod c;"), ("a::b", "use super::c::C;"), ("a::c", "fn f(b: super::b::B) {}")][..],
        &[("a", "mod b;\n"), ("a::b", "use super::A;")],
        &[("a", "pub mod b;\n"), ("a::b", "use super::*;")],
        &[("a", "pub(crate) mod b;\n"), ("a::b", "use crate::a::{self, A};")],
        &[("a", "pub(in crate::a) mod b;\n"), ("a::b", "use super::A;")],
        &[("a", "pub(super) mod b;\n"), ("a::b", "use super::A;")],
        &[("a", "use b::B;\nmod b;\n"), ("a::b", "fn f() { super::f() }")],
        &[("a", "fn f() { crate::b::f() }"), ("b", "use crate::c::{d::D};"), ("c", "use crate::{a::A};")],
        &[("a", "mod inner { use super::super::b::B; }"), ("b", "pub(crate) use crate::a::inner::A;")],
        &[("error", "use crate::a::A;"), ("a", "use crate::{Error, b};")],
    ] {
        let found = Circles::among(&planted(files));
        assert!(!found.circles.is_empty(), "no circle is found in {files:?}");
        assert!(found.circles.iter().all(|circle| circle.len() > 1), "{}", found.describe());
    }
    // A module that imports its program's root.
    let mut files = planted(&[("program", "mod a;\nfn f() { a::f() }"), ("a", "use super::f;")]);
    mark_roots(&mut files);
    assert_eq!(Circles::among(&files).circles.len(), 1);
    for files in [
        &[("a", "pub use b::B;\nmod b;\nmod c;\n"), ("a::b", "use super::c::C;"), ("a::c", "")][..],
        &[("a", "use crate::b::B;"), ("b", "// use crate::a::A;\nconst S: &str = \"crate::a::A\";")],
        &[("a", "use crate::b::B;"), ("b", "#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}")],
        &[("a", "mod b;\n"), ("a::b", "pub(in crate::a) fn f() { self::g() }")],
        &[("a", "use crate::b::B; use crate::c::C;"), ("b", "use crate::c::C;"), ("c", "use std::fmt;")],
    ] {
        let found = Circles::among(&planted(files));
        assert_eq!(found.describe(), "", "{files:?}");
    }
}
