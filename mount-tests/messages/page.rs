//! Reads the tables of docs/MESSAGES.md and compares them with what the code says.

use std::collections::{BTreeMap, BTreeSet};

use pfimg::ErrorKind;

use super::collect::{Found, LOG, NOTE, OF_THE_CAUSE, normalised};

/// The page, as messages of the test name it.
pub const PAGE: &str = "docs/MESSAGES.md";

/// A row of a table, by cells.
struct Row {
    line: usize,
    cells: Vec<String>,
}

/// Splits a row at each `|` that no backslash escapes.
fn cells(row: &str) -> Vec<String> {
    let inner = row.trim().trim_start_matches('|').trim_end_matches('|');
    let marked = inner.replace("\\|", "\u{0}");
    marked.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// The text between the backticks that enclose a cell.
fn code(cell: &str) -> &str {
    let ticks = cell.len() - cell.trim_start_matches('`').len();
    cell.get(ticks..cell.len() - ticks).unwrap_or_default().trim()
}

/// A text as a cell with code.
fn as_code(text: &str) -> String {
    let text = text.replace('|', "\\|");
    if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") }
}

/// The rows of the tables that begin with a column of this name.
fn rows(page: &str, column: &str) -> Vec<Row> {
    let (mut found, mut is_wanted) = (Vec::new(), false);
    for (at, line) in page.lines().enumerate() {
        if !line.starts_with('|') {
            is_wanted = false;
        } else if is_wanted && !line.starts_with("|---") {
            found.push(Row { line: at + 1, cells: cells(line) });
        } else if cells(line)[0] == column {
            is_wanted = true;
        }
    }
    found
}

/// The kinds by their names in the code, such as `NotFound`, with the name and the exit code that a user sees.
pub struct Kinds(BTreeMap<String, (String, u8)>);

impl Kinds {
    /// Reads the names from the tables of docs/TROUBLESHOOTING.md, which another test compares with the code.
    pub fn read(troubleshooting: &str) -> Self {
        let words =
            troubleshooting.lines().filter(|line| line.starts_with("| ")).flat_map(|line| line.split('`'));
        Self(
            words
                .filter_map(|word| Some((ErrorKind::named(word)?, word)))
                .filter(|(_, word)| *word != "usage")
                .map(|(kind, word)| {
                    let debug = format!("{kind:?}");
                    let name =
                        debug.strip_prefix("Posix(").unwrap_or(&debug).split(['(', ')']).next().unwrap();
                    (name.to_owned(), (word.to_owned(), kind.exit().into()))
                })
                .collect(),
        )
    }

    /// The cell for kinds of the code.
    fn cell(&self, kinds: &BTreeSet<String>) -> String {
        let shown = kinds.iter().filter_map(|kind| match kind.as_str() {
            OF_THE_CAUSE => Some("of the cause".to_owned()),
            NOTE => Some("note".to_owned()),
            LOG => Some("log".to_owned()),
            kind => self.0.get(kind).map(|(name, exit)| format!("`{name}` {exit}")),
        });
        shown.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Says whether a cell names kinds, each with its exit code.
    fn is_valid(&self, cell: &str) -> bool {
        cell.split(", ").all(|part| {
            ["of the cause", "note", "log", "`usage` 2"].contains(&part)
                || self.0.values().any(|(name, exit)| part == format!("`{name}` {exit}"))
        })
    }
}

/// Says in what the page and the code differ.
pub fn differences(page: &str, found: &Found, kinds: &Kinds) -> Vec<String> {
    let mut wrong: Vec<String> = found
        .unread
        .iter()
        .map(|call| {
            format!("the text of a message cannot be read at {call}; write it as a literal or with format!")
        })
        .collect();
    let mut seen = BTreeSet::new();
    for row in rows(page, "message") {
        let at = format!("{PAGE}:{}", row.line);
        let [message, kind, cause, what] = row.cells.as_slice() else {
            wrong.push(format!("{at}: the row has not four cells"));
            continue;
        };
        let message = normalised(code(message));
        if !seen.insert(message.clone()) {
            wrong.push(format!("{at}: the message has two rows"));
        }
        let Some(said) = found.messages.get(&message) else {
            wrong.push(format!("{at}: the code does not say {message:?}; delete or correct the row"));
            continue;
        };
        let expected = kinds.cell(&said.kinds);
        if if expected.is_empty() { !kinds.is_valid(kind) } else { *kind != expected } {
            wrong.push(format!("{at}: the kind is {kind:?} and not {expected:?}"));
        }
        if cause.is_empty() || what.is_empty() {
            wrong.push(format!("{at}: the cause, or what to do, is not said"));
        }
        let what = normalised(what).to_lowercase();
        for hint in said.hints.iter().filter(|hint| !what.contains(&hint.to_lowercase())) {
            wrong.push(format!("{at}: the last cell lacks the hint of the code: {hint}"));
        }
    }
    for (message, said) in found.messages.iter().filter(|(message, _)| !seen.contains(*message)) {
        let place = said.places.first().map_or("", String::as_str);
        let hints: Vec<&str> = said.hints.iter().map(String::as_str).collect();
        wrong.push(format!(
            "{place}: {PAGE} lacks the row\n| {} | {} |  | {} |",
            as_code(message),
            kinds.cell(&said.kinds),
            hints.join("; ").replace('|', "\\|")
        ));
    }
    let mut hints = BTreeSet::new();
    for row in rows(page, "hint") {
        let hint = normalised(&row.cells[0]);
        if !found.hints.contains_key(&hint) {
            wrong.push(format!("{PAGE}:{}: the code does not add the hint {hint:?}", row.line));
        }
        hints.insert(hint);
    }
    for (hint, places) in found.hints.iter().filter(|(hint, _)| !hints.contains(*hint)) {
        let place = places.first().map_or("", String::as_str);
        wrong.push(format!("{place}: {PAGE} lacks the row\n| {} |  |", hint.replace('|', "\\|")));
    }
    wrong
}
