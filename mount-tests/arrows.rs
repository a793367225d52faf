//! Checks that the rooms of `src` import each other only along the arrows in docs/ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A module of the crate: its path, and where its text is.
struct Source {
    module: Vec<String>,
    file: PathBuf,
    text: String,
}

fn sources() -> Vec<Source> {
    let (mut found, mut todo) = (Vec::new(), vec![top().join("src")]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let below = path.strip_prefix(top().join("src")).unwrap().with_extension("");
                let mut module: Vec<String> =
                    below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                if module == ["lib"] {
                    module.clear();
                }
                let file = path.strip_prefix(top()).unwrap().to_owned();
                found.push(Source { module, file, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    assert!(found.len() > 200, "only {} files are found in src", found.len());
    found
}

/// Blanks comments, strings and characters in a text. Lines keep their lengths.
fn code(text: &str) -> String {
    let (bytes, mut out) = (text.as_bytes(), String::with_capacity(text.len()));
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let end = if rest.starts_with("//") {
            at + rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            at + rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r\"") || rest.starts_with("r#") {
            let hashes = rest[1..].bytes().take_while(|&byte| byte == b'#').count();
            if rest.as_bytes().get(1 + hashes) == Some(&b'"') {
                let close = format!("\"{}", "#".repeat(hashes));
                let body = at + hashes + 2;
                body + text[body..].find(&close).map_or(text.len() - body, |end| end + close.len())
            } else {
                at
            }
        } else if rest.starts_with('"') {
            let mut end = at + 1;
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            (end + 1).min(bytes.len())
        } else if rest.starts_with("'{'") || rest.starts_with("'}'") || rest.starts_with("'\"'") {
            at + 3
        } else {
            at
        };
        if end == at {
            let one = rest.chars().next().unwrap();
            out.push(one);
            at += one.len_utf8();
        } else {
            out.extend(text[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where a block ends that begins with the `{` before `start`.
fn block_end(code: &str, start: usize) -> usize {
    let mut depth = 1;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Blanks the modules that only tests compile: `#[cfg(test)] mod NAME { … }`. Tests may import what they like.
fn without_tests(mut code: String) -> String {
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(") {
        let at = from + found;
        from = at + 1;
        let line_end = at + code[at..].find('\n').unwrap_or(code.len() - at);
        if !code[at..line_end].contains("test") {
            continue;
        }
        let item = code[line_end..].trim_start();
        let start = code.len() - item.len();
        let is_module = item.trim_start_matches("pub(crate) ").trim_start_matches("pub ").starts_with("mod ");
        let end = match (item.find('{'), item.find(';')) {
            (Some(open), semicolon) if is_module && semicolon.is_none_or(|at| open < at) => {
                block_end(&code, start + open + 1)
            }
            (_, Some(semicolon)) if is_module || item.starts_with("use ") => start + semicolon + 1,
            _ => continue,
        };
        let blank: String = code[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(at..end, &blank);
    }
    code
}

/// The inline modules of a file: where each begins and ends, and its name.
fn inline_modules(code: &str) -> Vec<(usize, usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("mod ") {
        let rest = &code[at + 4..];
        let name: String = rest.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect();
        let after = rest[name.len()..].trim_start();
        if !name.is_empty() && after.starts_with('{') {
            let start = code.len() - after.len() + 1;
            found.push((start, block_end(code, start), name));
        }
    }
    found
}

/// The paths that a use tree names: `a::{b, c::{self, d}}` gives `a::b`, `a::c` and `a::c::d`.
fn flatten(tree: &str, prefix: &[String], out: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let segments = |text: &str| -> Vec<String> {
        let text = text.split(" as ").next().unwrap();
        text.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    let Some(open) = tree.find('{') else {
        let mut path = prefix.to_vec();
        path.extend(segments(tree));
        if path.len() > 1 && path.last().is_some_and(|last| last == "self" || last == "*") {
            path.pop();
        }
        out.push(path);
        return;
    };
    let mut inner = prefix.to_vec();
    inner.extend(segments(&tree[..open]));
    let body = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut start) = (0, 0);
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                flatten(&body[start..at], &inner, out);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !body[start..].trim().is_empty() {
        flatten(&body[start..], &inner, out);
    }
}

/// All paths of a file that begin with `crate`, `super` or `self`, from the crate's root, each with its line.
fn paths(module: &[String], text: &str) -> Vec<(usize, Vec<String>)> {
    let code = without_tests(code(text));
    let inline = inline_modules(&code);
    let mut found = Vec::new();
    let mut add = |at: usize, path: Vec<String>| {
        let mut here = module.to_vec();
        here.extend(
            inline
                .iter()
                .filter(|(start, end, _)| (*start..*end).contains(&at))
                .map(|(_, _, name)| name.clone()),
        );
        let mut rest = path.as_slice();
        match rest.first().map(String::as_str) {
            Some("crate") => {
                here.clear();
                rest = &rest[1..];
            }
            Some("super" | "self") => {}
            _ => return,
        }
        while let Some(step @ ("super" | "self")) = rest.first().map(String::as_str) {
            if step == "super" {
                here.pop();
            }
            rest = &rest[1..];
        }
        here.extend(rest.iter().cloned());
        found.push((code[..at].matches('\n').count() + 1, here));
    };
    for root in ["crate", "super", "self"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            let rest = &code[at..];
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                || !rest[root.len()..].starts_with("::")
            {
                continue;
            }
            // As far as the path goes, and through the braces of a use tree.
            let plain: usize = rest
                .chars()
                .take_while(|&c| c.is_alphanumeric() || c == '_' || c == ':')
                .map(char::len_utf8)
                .sum();
            let end = if rest[plain..].starts_with('{') { block_end(rest, plain + 1) } else { plain };
            let mut out = Vec::new();
            flatten(rest[..end].trim_end_matches(':'), &[], &mut out);
            for path in out {
                add(at, path);
            }
        }
    }
    found
}

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

struct Table {
    /// Room → the line of its row, and the rooms that it may import.
    allowed: BTreeMap<String, (usize, BTreeSet<String>)>,
    /// (file, room) → line: arrows that the table forbids and that are there today.
    today: BTreeMap<(String, String), usize>,
}

fn read_table() -> Table {
    let document = fs::read_to_string(top().join("docs/ARCHITECTURE.md")).unwrap();
    let words = |cell: &str| -> Vec<String> { cell.split_whitespace().map(str::to_owned).collect() };
    let allowed = table(&document, "## Arrows")
        .into_iter()
        .flat_map(|(line, cells)| {
            let to: BTreeSet<String> = words(&cells[1]).into_iter().filter(|word| word != "-").collect();
            words(&cells[0]).into_iter().map(move |from| (from, (line, to.clone())))
        })
        .collect();
    let today = table(&document, "## Arrows that still have to go")
        .into_iter()
        .flat_map(|(line, cells)| words(&cells[1]).into_iter().map(move |to| ((cells[0].clone(), to), line)))
        .collect();
    Table { allowed, today }
}

/// What is wrong with the arrows of one file. Adds the exceptions that it needed to `used`.
fn judge(source: &Source, table: &Table, used: &mut BTreeSet<(String, String)>) -> Vec<String> {
    let from = room(&source.module);
    let mut wrong = Vec::new();
    for (line, path) in paths(&source.module, &source.text) {
        let to = room(&path);
        if to == from || to == "lib" {
            continue;
        }
        let file = source.file.display().to_string();
        match table.allowed.get(&from) {
            Some((_, allowed)) if allowed.contains(&to) => {}
            Some((row, _)) => {
                let exception = (file.clone(), to.clone());
                if table.today.contains_key(&exception) {
                    used.insert(exception);
                } else {
                    wrong.push(format!(
                        "{file}:{line}: {from} may not import {to} ({}); the row of {from} is docs/ARCHITECTURE.md:{row}",
                        path.join("::")
                    ));
                }
            }
            None => wrong.push(format!("{file}:{line}: docs/ARCHITECTURE.md has no row for the room {from}")),
        }
    }
    wrong
}

/// Files that are neither a room nor a test.
fn is_judged(source: &Source) -> bool {
    let last = source.module.last().map_or("", String::as_str);
    let is_test = ["tests", "interleavings", "robustness"].contains(&last)
        || last.ends_with("_tests")
        || source.module.iter().any(|part| part == "interleavings");
    !is_test && !source.module.is_empty() && source.module != ["main"]
}

#[test]
fn rooms_import_along_the_arrows_of_the_table_alone() {
    let table = read_table();
    let mut used = BTreeSet::new();
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|source| is_judged(source))
        .flat_map(|source| judge(source, &table, &mut used))
        .collect();
    assert!(wrong.is_empty(), "arrows that the table does not allow:\n{}", wrong.join("\n"));
    let gone: Vec<_> = table.today.iter().filter(|(arrow, _)| !used.contains(arrow)).collect();
    assert!(
        gone.is_empty(),
        "rows of \"Arrows that still have to go\" without such an arrow; delete them: {gone:?}"
    );
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
        let wrong = judge(&source, &table, &mut BTreeSet::new());
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
        assert_eq!(judge(&source, &table, &mut BTreeSet::new()), Vec::<String>::new(), "{text}");
    }
}
