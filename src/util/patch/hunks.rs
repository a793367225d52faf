//! Which lines of two texts differ, and the hunks that show them.

use imara_diff::{Algorithm, Diff, Hunk, InternedInput};

use super::paint::{Colour, Paint};
use super::stat::Count;

/// Lines shown before and behind a change.
const CONTEXT: u32 = 3;

/// As much of a line as is shown behind `@@`, in bytes.
const HEADING: usize = 80;

/// Two texts and the lines in which they differ.
pub(super) struct Edits<'a> {
    input: InternedInput<&'a [u8]>,
    hunks: Vec<Hunk>,
}

impl<'a> Edits<'a> {
    /// Compares two texts by lines, as git does: Myers' algorithm, and changes that could be shown in several places are shown
    /// where the indentation suggests.
    pub(super) fn between(before: &'a [u8], after: &'a [u8]) -> Self {
        let lines = |text: &'a [u8]| text.split_inclusive(|byte| *byte == b'\n');
        let mut input = InternedInput::default();
        input.update_before(lines(before));
        input.update_after(lines(after));
        let mut diff = Diff::compute(Algorithm::Myers, &input);
        diff.postprocess_lines(&input);
        let hunks = diff.hunks().collect();
        Self { input, hunks }
    }

    /// How many lines are new and gone.
    pub(super) fn count(&self) -> Count {
        let sum = |of: fn(&Hunk) -> u32| self.hunks.iter().map(|hunk| u64::from(of(hunk))).sum();
        Count::Lines {
            added: sum(|hunk| hunk.after.end - hunk.after.start),
            deleted: sum(|hunk| hunk.before.end - hunk.before.start),
        }
    }

    /// Writes the hunks.
    pub(super) fn write(&self, paint: Paint, out: &mut Vec<u8>) {
        let mut rest = &self.hunks[..];
        let mut headings = Headings { looked_at: 0, last: None };
        while let Some(first) = rest.first() {
            // Changes share a hunk where no line between them would be left out.
            let near = |pair: &[Hunk]| pair[1].before.start - pair[0].before.end <= 2 * CONTEXT;
            let together = 1 + rest.windows(2).take_while(|pair| near(pair)).count();
            let (changes, others) = rest.split_at(together);
            rest = others;
            self.write_hunk(first, changes, &mut headings, paint, out);
        }
    }

    fn write_hunk(
        &self,
        first: &Hunk,
        changes: &[Hunk],
        headings: &mut Headings<'a>,
        paint: Paint,
        out: &mut Vec<u8>,
    ) {
        let last = changes.last().unwrap_or(first);
        let lead = first.before.start.min(CONTEXT);
        let tail = (self.input.before.len() as u32 - last.before.end).min(CONTEXT);
        let (from, to) = (first.before.start - lead, last.before.end + tail);
        let (new_from, new_to) = (first.after.start - lead, last.after.end + tail);
        let place = format!("@@ -{} +{} @@", range(from, to), range(new_from, new_to));
        paint.bytes(Colour::Hunk, place.as_bytes(), out);
        if let Some(heading) = headings.before(self, from) {
            out.push(b' ');
            out.extend_from_slice(heading);
        }
        out.push(b'\n');
        let mut at = from;
        for change in changes {
            (at..change.before.start).for_each(|line| Self::write_line(self.old(line), None, paint, out));
            for line in change.before.clone() {
                Self::write_line(self.old(line), Some(Colour::Old), paint, out);
            }
            for line in change.after.clone() {
                let line = self.input.interner[self.input.after[line as usize]];
                Self::write_line(line, Some(Colour::New), paint, out);
            }
            at = change.before.end;
        }
        (at..to).for_each(|line| Self::write_line(self.old(line), None, paint, out));
    }

    fn old(&self, line: u32) -> &'a [u8] {
        self.input.interner[self.input.before[line as usize]]
    }

    fn write_line(line: &[u8], colour: Option<Colour>, paint: Paint, out: &mut Vec<u8>) {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let mark = match colour {
            Some(Colour::Old) => b'-',
            Some(_) => b'+',
            None => b' ',
        };
        if let Some(colour) = colour {
            paint.bytes(colour, &[&[mark], text].concat(), out);
        } else {
            out.push(mark);
            out.extend_from_slice(text);
        }
        out.push(b'\n');
        if text.len() == line.len() {
            out.extend_from_slice(b"\\ No newline at end of file\n");
        }
    }
}

/// A hunk's lines: the first, counted from 1, and their number where it is not 1. No lines are named by the one before.
fn range(from: u32, to: u32) -> String {
    match to - from {
        0 => format!("{from},0"),
        1 => format!("{}", from + 1),
        lines => format!("{},{lines}", from + 1),
    }
}

/// The line that a hunk probably lies below: the last one before it that begins with a letter.
struct Headings<'a> {
    looked_at: u32,
    last: Option<&'a [u8]>,
}

impl<'a> Headings<'a> {
    fn before(&mut self, edits: &Edits<'a>, line: u32) -> Option<&'a [u8]> {
        let begins = |text: &&[u8]| {
            text.first().is_some_and(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$'))
        };
        let found = (self.looked_at..line).rev().map(|line| edits.old(line)).find(begins);
        self.looked_at = line;
        self.last = found.or(self.last);
        let text = self.last.map(|text| text[..text.len().min(HEADING)].trim_ascii_end())?;
        // Git cuts it before the first byte that is not UTF-8.
        text.utf8_chunks().next().map(|chunk| chunk.valid().as_bytes()).or(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hunks(before: &str, after: &str) -> String {
        let mut out = Vec::new();
        Edits::between(before.as_bytes(), after.as_bytes()).write(Paint::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn numbered(lines: std::ops::Range<u32>) -> String {
        lines.map(|line| [line.to_string(), "\n".into()].concat()).collect()
    }

    #[test]
    fn a_change_has_three_lines_around_it_and_near_changes_share_a_hunk() {
        let before = numbered(1..21);
        assert_eq!(
            hunks(&before, &before.replace("\n10\n", "\nten\n")),
            "@@ -7,7 +7,7 @@\n 7\n 8\n 9\n-10\n+ten\n 11\n 12\n 13\n"
        );
        let near = before.replace("\n5\n", "\n").replace("\n12\n", "\n12\nx\n");
        assert_eq!(
            hunks(&before, &near),
            "@@ -2,7 +2,6 @@\n 2\n 3\n 4\n-5\n 6\n 7\n 8\n@@ -10,6 +9,7 @@\n 10\n 11\n 12\n+x\n 13\n 14\n 15\n"
        );
        let nearer = before.replace("\n5\n", "\n").replace("\n12\n", "\nx\n");
        assert_eq!(
            hunks(&before, &nearer),
            "@@ -2,14 +2,13 @@\n 2\n 3\n 4\n-5\n 6\n 7\n 8\n 9\n 10\n 11\n-12\n+x\n 13\n 14\n 15\n"
        );
        assert_eq!(hunks("", "a\n"), "@@ -0,0 +1 @@\n+a\n");
        assert_eq!(hunks("a\nb\n", ""), "@@ -1,2 +0,0 @@\n-a\n-b\n");
        assert_eq!(hunks(&before, &before), "");
    }

    #[test]
    fn a_missing_line_end_is_marked_on_each_side() {
        assert_eq!(hunks("a\nb", "a\nb\n"), "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n");
        assert_eq!(hunks("a\nb", "c\nb"), "@@ -1,2 +1,2 @@\n-a\n+c\n b\n\\ No newline at end of file\n");
        assert_eq!(hunks("a\r\n", "a\n"), "@@ -1 +1 @@\n-a\r\n+a\n");
    }

    #[test]
    fn a_hunk_is_headed_by_the_line_it_lies_below() {
        let before = format!("fn one() {{  \n{}fn two() {{\n{}}}\n", numbered(1..10), numbered(11..19));
        let after = before.replace("\n8\n", "\neight\n").replace("\n18\n", "\nend\n");
        let text = hunks(&before, &after);
        assert!(text.contains("@@ -6,7 +6,7 @@ fn one() {\n"), "{text}");
        assert!(text.contains("@@ -16,5 +16,5 @@ fn two() {\n"), "{text}");
    }

    #[test]
    fn a_change_that_fits_in_two_places_is_shown_where_the_indentation_suggests() {
        let before = "for a {\n    x\n}\n";
        let after = "for b {\n    x\n}\n\nfor a {\n    x\n}\n";
        assert_eq!(hunks(before, after), "@@ -1,3 +1,7 @@\n+for b {\n+    x\n+}\n+\n for a {\n     x\n }\n");
    }

    #[test]
    fn colours_are_those_of_git() {
        let mut out = Vec::new();
        Edits::between(b"a\nb\n", b"a\nc\n").write(Paint { on: true }, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\x1b[36m@@ -1,2 +1,2 @@\x1b[m\n a\n\x1b[31m-b\x1b[m\n\x1b[32m+c\x1b[m\n"
        );
    }
}
