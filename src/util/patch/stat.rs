//! The table of `git diff --stat`.

use std::fmt::Write as _;
use std::ops::{Add, AddAssign};

use unicode_width::UnicodeWidthStr;

use super::name::quoted;
use super::paint::{Colour, Paint};

/// How much of a file differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// Lines of a text.
    Lines {
        /// Lines that are new.
        added: u64,
        /// Lines that are gone.
        deleted: u64,
    },
    /// The lengths of both sides in bytes, of a binary file.
    Bytes {
        /// Before.
        before: u64,
        /// After.
        after: u64,
    },
}

impl Default for Count {
    fn default() -> Self {
        Self::Lines { added: 0, deleted: 0 }
    }
}

impl Count {
    /// Lines that are new, and lines that are gone.
    pub(crate) fn lines(self) -> (u64, u64) {
        match self {
            Self::Lines { added, deleted } => (added, deleted),
            Self::Bytes { .. } => (0, 0),
        }
    }
}

impl Add for Count {
    type Output = Self;

    /// Of the two parts of one path. Bytes and lines do not add up: bytes stay.
    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Self::Lines { added, deleted }, Self::Lines { added: more, deleted: fewer }) => {
                Self::Lines { added: added + more, deleted: deleted + fewer }
            }
            (Self::Bytes { before, after }, Self::Bytes { before: was, after: is }) => {
                Self::Bytes { before: before + was, after: after + is }
            }
            (bytes @ Self::Bytes { .. }, _) | (_, bytes @ Self::Bytes { .. }) => bytes,
        }
    }
}

/// What a patch or a table comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Files in it.
    pub(crate) files: u64,
    /// Lines that are new.
    pub(crate) added: u64,
    /// Lines that are gone.
    pub(crate) deleted: u64,
}

impl Total {
    /// What the rows of a table come to.
    pub(crate) fn of(rows: &[Row]) -> Self {
        let mut total = Self::default();
        for row in rows {
            total += row.count;
        }
        total
    }
}

impl AddAssign<Count> for Total {
    fn add_assign(&mut self, count: Count) {
        let (added, deleted) = count.lines();
        self.files += 1;
        self.added += added;
        self.deleted += deleted;
    }
}

/// A file of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its path.
    pub(crate) path: Vec<u8>,
    /// How much of it differs.
    pub(crate) count: Count,
}

/// Digits of a number.
fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Scales a number, at most `most`, to at most `width` signs. A number above 0 gets at least one.
fn scaled(number: u64, width: usize, most: u64) -> usize {
    if number == 0 {
        return 0;
    }
    let others = u128::from(number) * (width as u128 - 1) / u128::from(most.max(1));
    1 + usize::try_from(others).unwrap_or(width)
}

/// Writes the table, at most `columns` wide, and the sum below it. Without rows it writes nothing.
pub(crate) fn write(rows: &[Row], columns: usize, paint: Paint, out: &mut Vec<u8>) {
    if rows.is_empty() {
        return;
    }
    let shown: Vec<(String, Count)> = rows.iter().map(|row| (quoted(&row.path), row.count)).collect();
    let longest = shown.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    let (mut most, mut bytes_width, mut number_width) = (0, 0, 0);
    for (_, count) in &shown {
        match count {
            Count::Lines { added, deleted } => most = most.max(added + deleted),
            Count::Bytes { before, after } => {
                // "Bin 1 -> 2 bytes", with "Bin" where the numbers of lines stand.
                bytes_width = bytes_width.max(14 + digits(*before) + digits(*after));
                number_width = 3;
            }
        }
    }
    number_width = number_width.max(digits(most));
    let width = columns.max(16 + 6 + number_width);
    let wanted = usize::try_from(most).unwrap_or(usize::MAX);
    let mut graph_width =
        if wanted.saturating_add(4) > bytes_width { wanted } else { bytes_width.saturating_sub(4) };
    let mut name_width = longest;
    if name_width.saturating_add(number_width + 6).saturating_add(graph_width) > width {
        // Names get five eighths where both do not fit.
        graph_width = graph_width.min((width * 3 / 8).saturating_sub(number_width + 6).max(6));
        let left = width.saturating_sub(number_width + 6 + graph_width);
        if name_width > left {
            name_width = left;
        } else {
            graph_width = width - number_width - 6 - name_width;
        }
    }
    let mut total = Total::default();
    for (name, count) in &shown {
        total += *count;
        let (dots, name) = cut(name, name_width);
        let padding = name_width.saturating_sub(dots.len() + name.width());
        out.extend_from_slice(format!(" {dots}{name}{:padding$} | ", "").as_bytes());
        match *count {
            Count::Bytes { before, after } => {
                out.extend_from_slice(format!("{:>number_width$}", "Bin").as_bytes());
                if (before, after) != (0, 0) {
                    out.push(b' ');
                    paint.bytes(Colour::Old, before.to_string().as_bytes(), out);
                    out.extend_from_slice(b" -> ");
                    paint.bytes(Colour::New, after.to_string().as_bytes(), out);
                    out.extend_from_slice(b" bytes");
                }
            }
            Count::Lines { added, deleted } => {
                out.extend_from_slice(format!("{:>number_width$}", added + deleted).as_bytes());
                if added + deleted > 0 {
                    out.push(b' ');
                }
                let (plus, minus) = signs(added, deleted, graph_width, most);
                for (colour, sign, number) in [(Colour::New, "+", plus), (Colour::Old, "-", minus)] {
                    if number > 0 {
                        paint.bytes(colour, sign.repeat(number).as_bytes(), out);
                    }
                }
            }
        }
        out.push(b'\n');
    }
    out.extend_from_slice(sum(&total).as_bytes());
}

/// How many signs stand for the new and the gone lines of a file.
fn signs(added: u64, deleted: u64, width: usize, most: u64) -> (usize, usize) {
    if width as u64 > most {
        return (added as usize, deleted as usize);
    }
    let mut all = scaled(added + deleted, width, most);
    if all < 2 && added > 0 && deleted > 0 {
        all = 2;
    }
    if added < deleted {
        let plus = scaled(added, width, most);
        (plus, all.saturating_sub(plus))
    } else {
        let minus = scaled(deleted, width, most);
        (all.saturating_sub(minus), minus)
    }
}

/// Cuts a name to at most `width` columns: dots and its end, which begins at a slash if there is one.
fn cut(name: &str, width: usize) -> (&'static str, &str) {
    let wide = name.width();
    if wide <= width {
        return ("", name);
    }
    let left = width.saturating_sub(3);
    let end = name.char_indices().map(|(at, _)| &name[at..]).find(|end| end.width() <= left);
    let end = end.unwrap_or_default();
    ("...", end.find('/').map_or(end, |slash| &end[slash..]))
}

fn sum(total: &Total) -> String {
    let plural = |number: u64| if number == 1 { "" } else { "s" };
    let mut text = format!(" {} file{} changed", total.files, plural(total.files));
    if total.added > 0 || total.deleted == 0 {
        let _ = write!(text, ", {} insertion{}(+)", total.added, plural(total.added));
    }
    if total.deleted > 0 || total.added == 0 {
        let _ = write!(text, ", {} deletion{}(-)", total.deleted, plural(total.deleted));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, Count)], columns: usize) -> String {
        let rows: Vec<_> =
            rows.iter().map(|(path, count)| Row { path: path.as_bytes().to_vec(), count: *count }).collect();
        let mut out = Vec::new();
        write(&rows, columns, Paint::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn lines(added: u64, deleted: u64) -> Count {
        Count::Lines { added, deleted }
    }

    #[test]
    fn a_table_is_that_of_git() {
        let rows = [
            ("CHANGES.md", lines(0, 1)),
            ("docs/alpha0/p1.md", lines(2, 0)),
            ("package.json", lines(1, 1)),
            ("logo", Count::Bytes { before: 0, after: 120 }),
            ("run.sh", lines(0, 0)),
        ];
        let expected = " CHANGES.md        |   1 -
 docs/alpha0/p1.md |   2 ++
 package.json      |   2 +-
 logo              | Bin 0 -> 120 bytes
 run.sh            |   0
 5 files changed, 3 insertions(+), 2 deletions(-)
";
        assert_eq!(table(&rows, 80), expected);
        assert_eq!(table(&[], 80), "");
        assert_eq!(table(&rows[..1], 80).lines().last(), Some(" 1 file changed, 1 deletion(-)"));
        let none = " x | 0\n 1 file changed, 0 insertions(+), 0 deletions(-)\n";
        assert_eq!(table(&[("x", lines(0, 0))], 80), none);
    }

    #[test]
    fn large_numbers_are_scaled_and_long_names_cut_at_a_slash() {
        let long = format!("{}/{}/name.rs", "a".repeat(30), "b".repeat(30));
        let text = table(&[(&long, lines(1000, 10)), ("x", lines(1, 1))], 80);
        let rows: Vec<&str> = text.lines().collect();
        let name = format!(".../{}/name.rs", "b".repeat(30));
        assert!(rows[0].starts_with(&format!(" {name}")), "{text}");
        assert!(rows[0].contains(" | 1010 ") && rows[0].width() <= 80, "{text}");
        assert!(rows[1].ends_with(" |    2 +-"), "{text}");
        // Even for a terminal of no columns.
        assert!(table(&[(&long, lines(7, 7))], 0).lines().all(|row| row.width() < 60));
    }
}
