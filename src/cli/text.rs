//! Output of commands: plain text, tables, JSON.

use std::fmt::Write as _;
use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use crate::error::{Error, Result};

/// Writes to stdout. A reader that closes the output early (`| head`) is not an error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io(error, "cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

/// Returns text of a store for people: one line, no control characters, at most `max` characters.
pub(crate) fn plain(text: &str, max: usize) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == max {
            out.push('…');
            break;
        }
        // Also without characters that reverse the text next to them.
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

/// Does the same for a name of any bytes. A byte that is not UTF-8 becomes `\xe9`, so that different names stay
/// different.
pub(crate) fn plain_bytes(name: &[u8], max: usize) -> String {
    let mut out = String::new();
    for chunk in name.utf8_chunks() {
        out.push_str(&plain(chunk.valid(), max));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    if out.chars().count() > max { plain(&out, max) } else { out }
}

/// Counts in words: `1 image`, `2 images`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Counts directories in words.
pub(crate) fn count_directories(number: u64) -> String {
    if number == 1 { "1 directory".to_owned() } else { format!("{number} directories") }
}

/// Lays out rows in columns two blanks apart, under a header. Widths are cells of a terminal: East Asian letters
/// and most emoji take two, combining characters none.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(UnicodeWidthStr::width);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&header.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
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
        let wide = [["日本".into(), "1".into()], ["e\u{301}x".into(), "2".into()], ["👍".into(), "3".into()]];
        assert_eq!(table(["TAG", "N"], &wide), "TAG   N\n日本  1\ne\u{301}x    2\n👍    3\n");
    }

    #[test]
    fn text_of_a_store_stays_on_its_line() {
        assert_eq!(plain("a\nb\u{1b}[2J", 100), r"a\nb\u{1b}[2J");
        assert_eq!(plain("a\u{202e}b", 100), r"a\u{202e}b");
        assert_eq!(plain("äöü", 2), "äö…");
        assert_eq!(plain("äöü", 3), "äöü");
    }

    #[test]
    fn two_names_that_are_not_utf8_stay_two_names() {
        assert_eq!(plain_bytes(b"caf\xe9", 100), r"caf\xe9");
        assert_eq!(plain_bytes(b"caf\xe8/\xff\n", 100), r"caf\xe8/\xff\n");
        assert_eq!(plain_bytes("äöü".as_bytes(), 2), "äö…");
    }

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!(
            [count(0, "image"), count(1, "image"), count(2, "image")],
            ["0 images", "1 image", "2 images"]
        );
        assert_eq!([count_directories(1), count_directories(2)], ["1 directory", "2 directories"]);
    }
}
