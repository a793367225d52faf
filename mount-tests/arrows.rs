//! Checks that the rooms of `src` import each other only along the arrows in docs/ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::checkout::top;
use super::imports::{Source, is_judged, paths, sources};

/// The room of a path: its first module. What `lib.rs` exports itself comes from `error`.
fn room(path: &[String]) -> String {
    match path.first().map(String::as_str) {
        Some("Error" | "ErrorKind" | "Result") => "error".to_owned(),
        Some(first) => first.to_owned(),
        None => "lib".to_owned(),
    }
}

/// The cells of the table below a heading of docs/ARCHITECTURE.md, row by row.
fn table(document: &str, heading: &str) -> Vec<(usize, Vec<String>)> {
    let lines: Vec<&str> = document.lines().collect();
    let start =
        lines.iter().position(|line| *line == heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let rows = lines[start + 1..].iter().take_while(|line| !line.starts_with('#')).enumerate();
    rows.filter(|(_, line)| line.starts_with('|') && !line.starts_with("|---"))
        .skip(1)
        .map(|(n, line)| {
            let cells = line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', ""));
            (start + 2 + n, cells.collect())
        })
        .collect()
}

/// Room → the line of its row, and the rooms that it may import.
type Table = BTreeMap<String, (usize, BTreeSet<String>)>;

fn read_table() -> Table {
    let document = fs::read_to_string(top().join("docs/ARCHITECTURE.md")).unwrap();
    let words = |cell: &str| -> Vec<String> { cell.split_whitespace().map(str::to_owned).collect() };
    table(&document, "## Arrows")
        .into_iter()
        .flat_map(|(line, cells)| {
            let to: BTreeSet<String> = words(&cells[1]).into_iter().filter(|word| word != "-").collect();
            words(&cells[0]).into_iter().map(move |from| (from, (line, to.clone())))
        })
        .collect()
}

/// What is wrong with the arrows of one file.
fn judge(source: &Source, table: &Table) -> Vec<String> {
    let from = room(&source.module);
    let mut wrong = Vec::new();
    for (line, path) in paths(&source.module, &source.text) {
        let to = room(&path);
        if to == from || to == "lib" {
            continue;
        }
        let file = source.file.display().to_string();
        match table.get(&from) {
            Some((_, allowed)) if allowed.contains(&to) => {}
            Some((row, _)) => wrong.push(format!(
                "{file}:{line}: {from} may not import {to} ({}); the row of {from} is docs/ARCHITECTURE.md:{row}",
                path.join("::")
            )),
            None => wrong.push(format!("{file}:{line}: docs/ARCHITECTURE.md has no row for the room {from}")),
        }
    }
    wrong
}

#[test]
fn rooms_import_along_the_arrows_of_the_table_alone() {
    let table = read_table();
    let sources = sources("src");
    assert!(sources.len() > 200, "only {} files are found in src", sources.len());
    let wrong: Vec<String> =
        sources.iter().filter(|source| is_judged(source)).flat_map(|source| judge(source, &table)).collect();
    assert!(wrong.is_empty(), "arrows that the table does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn an_arrow_that_is_planted_is_found_however_it_is_written() {
    let table = read_table();
    for (module, text) in [
        ("store::blob", "use crate::fork::Fork;"),
        ("store::blob", "use crate::{cache::Cache, vfs};"),
        ("store::blob", "use super::super::vfs::Vfs;"),
        ("layers::world", "fn f() { crate::store::open(); }"),
        ("tree::build", "fn f() -> crate::cli::Exit { todo() }"),
        ("fork::live", "impl crate::vfs::Reader for X {}"),
        ("cache::fill", "mod inner { use super::super::super::ops::seal; }"),
        ("error", "use crate::digest::{self, Digest};"),
        ("oracle", "pub(crate) use crate::audit::{chain::{Head, self}, log};"),
        ("vfs::image", "macro_rules! m { () => { $x; crate::cli::run() } }"),
    ] {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        let source = Source { module, file: "planted.rs".into(), text: text.to_owned() };
        let wrong = judge(&source, &table);
        assert!(!wrong.is_empty(), "{text} is not found");
    }
    // Comments, strings, tests and paths inside a room do not count as arrows.
    for text in [
        "// use crate::fork::Fork;",
        "const S: &str = \"crate::fork::Fork\";",
        "#[cfg(test)]\nmod tests {\n    use crate::fork::Fork;\n}",
        "use super::tags; use crate::store::tags::Tag; use crate::error::Error;",
    ] {
        let module = vec!["store".to_owned(), "blob".to_owned()];
        let source = Source { module, file: "planted.rs".into(), text: text.to_owned() };
        assert_eq!(judge(&source, &table), Vec::<String>::new(), "{text}");
    }
}
