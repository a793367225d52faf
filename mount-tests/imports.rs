//! Reads Rust files and resolves the paths by which they import each other.

use std::fs;
use std::path::PathBuf;

use super::checkout::{files, top};

/// A module of the crate: its path, and where its text is.
pub struct Source {
    pub module: Vec<String>,
    pub file: PathBuf,
    pub text: String,
}

/// The modules in the files below a directory at the top of the checkout.
pub fn sources(dir: &str) -> Vec<Source> {
    let source = |file: PathBuf| {
        let below = file.strip_prefix(dir).unwrap().with_extension("");
        let mut module: Vec<String> = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module == ["lib"] || module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let text = fs::read_to_string(top().join(&file)).unwrap();
        Source { module, file, text }
    };
    files(dir, "rs").into_iter().map(source).collect()
}

/// Whether a file of `src` is a part of the library. Tests and the program's root are not.
pub fn is_judged(source: &Source) -> bool {
    let last = source.module.last().map_or("", String::as_str);
    let is_test = ["tests", "interleavings", "robustness"].contains(&last)
        || last.ends_with("_tests")
        || source.module.iter().any(|part| part == "interleavings");
    !is_test && !source.module.is_empty() && source.module != ["main"]
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

/// The modules that a file declares: the names in `mod NAME;`.
pub fn declared(code: &str) -> Vec<String> {
    let names = code.lines().filter_map(|line| {
        let visible = line.strip_prefix("pub").map_or(line, |rest| match rest.strip_prefix('(') {
            Some(within) => within.split_once(") ").map_or(within, |(_, rest)| rest),
            None => rest.trim_start(),
        });
        Some(visible.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
    });
    names.collect()
}

/// The modules that a file declares, and all paths of it that begin with `crate`, `super`, `self` or such a module. The paths
/// begin at the crate's root. Each comes with its line.
pub fn paths(module: &[String], text: &str) -> Vec<(usize, Vec<String>)> {
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
        // Other paths begin with a module that the file declares.
        if rest.first().is_some_and(|first| first == "crate") {
            here.clear();
            rest = &rest[1..];
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
    let declared = declared(&code);
    for name in &declared {
        let at = code.find(&format!("mod {name};")).unwrap_or_default();
        add(at, vec!["self".to_owned(), name.clone()]);
    }
    for root in ["crate", "super", "self"].into_iter().chain(declared.iter().map(String::as_str)) {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            let rest = &code[at..];
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                || !rest[root.len()..].starts_with("::")
                // A visibility imports nothing.
                || code[..at].ends_with("(in ")
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
