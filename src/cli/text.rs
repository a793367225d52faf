//! What commands print: plain text, tables, JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io(error, "cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

/// Writes a value as JSON to stdout.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write JSON").with_source(e))?;
    print(&format!("{json}\n"))
}

/// Text of a store for people: one line, no control characters, at most `max` characters.
pub(crate) fn plain(text: &str, max: usize) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == max {
            out.push('…');
            break;
        }
        // Nor characters that turn round what stands beside them.
        if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// `1 image`, `2 images`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Lays out rows in columns two blanks apart, under a header.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&header.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["ä".into(), "1".into()], ["long".into(), String::new()]];
        assert_eq!(table(["A", "NUMBER"], &rows), "A     NUMBER\nä     1\nlong\n");
        assert_eq!(table(["A", "B"], &[]), "A  B\n");
    }

    #[test]
    fn text_of_a_store_stays_on_its_line() {
        assert_eq!(plain("a\nb\u{1b}[2J", 100), r"a\nb\u{1b}[2J");
        assert_eq!(plain("a\u{202e}b", 100), r"a\u{202e}b");
        assert_eq!(plain("äöü", 2), "äö…");
        assert_eq!(plain("äöü", 3), "äöü");
    }

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!(
            [count(0, "image"), count(1, "image"), count(2, "image")],
            ["0 images", "1 image", "2 images"]
        );
    }
}
