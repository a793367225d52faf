//! Merges what two sides changed in a file, line by line, as `git merge-file` does.
//!
//! Changes that touch or overlap are a conflict unless they are equal. A conflict is then made as small as the two sides' common lines
//! allow, and joined with the next one where only few lines, or none with a letter or digit, lie between them.

use std::ops::Range;

use gix_imara_diff::{Algorithm, Diff, InternedInput, sources::byte_lines};

/// At most this many lines between two conflicts are drawn into one.
const NEAR: usize = 3;

/// The length of the beginning in which git looks for a NUL, in bytes. A file with one is not text.
const LOOKED_AT: usize = 8000;

/// Whether git would take a file for one without lines.
pub(super) fn is_binary(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(LOOKED_AT)].contains(&0)
}

/// How lines are decided that both sides changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Favor<'a> {
    /// By markers, with these names of the two sides.
    Markers(&'a [u8], &'a [u8]),
    /// As ours.
    Ours,
    /// As theirs.
    Theirs,
}

/// A merged text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// Our lines that conflict, counted from 1. A range without lines is a place where only theirs has lines.
    pub(super) conflicts: Vec<Range<usize>>,
    /// The lines of the result that the conflicts take up, markers included, counted from 1.
    pub(super) marked: Vec<Range<usize>>,
}

/// Merges ours and theirs, which both come from a base.
pub(super) fn merge(base: &[u8], ours: &[u8], theirs: &[u8], favor: Favor<'_>) -> Text {
    let sides = Sides { base: lines(base), ours: lines(ours), theirs: lines(theirs) };
    let (to_ours, to_theirs) = (changes(base, ours), changes(base, theirs));
    let whole = |bytes: &[u8]| Text { bytes: bytes.to_owned(), ..Text::default() };
    if to_ours.is_empty() {
        return whole(theirs);
    }
    if to_theirs.is_empty() {
        return whole(ours);
    }
    let regions = sides.regions(&to_ours, &to_theirs);
    let regions = joined(sides.refined(regions), &sides.ours);
    sides.written(&regions, favor)
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').collect()
}

/// Lines that one side has instead of others.
#[derive(Clone, Debug)]
struct Change {
    before: Range<usize>,
    after: Range<usize>,
}

fn changes(before: &[u8], after: &[u8]) -> Vec<Change> {
    let input = InternedInput::new(byte_lines(before), byte_lines(after));
    let mut diff = Diff::compute(Algorithm::Myers, &input);
    diff.postprocess_no_heuristic(&input);
    let range = |range: Range<u32>| range.start as usize..range.end as usize;
    diff.hunks().map(|hunk| Change { before: range(hunk.before), after: range(hunk.after) }).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    /// Both sides have the same lines, or theirs did not change them.
    Ours,
    Theirs,
    Conflict,
}

/// Lines that are changed, by their place on both sides.
#[derive(Clone, Debug)]
struct Region {
    take: Take,
    ours: Range<usize>,
    theirs: Range<usize>,
}

struct Sides<'a> {
    base: Vec<&'a [u8]>,
    ours: Vec<&'a [u8]>,
    theirs: Vec<&'a [u8]>,
}

/// Where lines of the base are behind a side's last change. Lines that this change has are those of a region that is there already:
/// only where they end counts.
fn moved(lines: &Range<usize>, last: Option<&Change>) -> Range<usize> {
    let at = |line: usize| last.map_or(line, |last| (last.after.end + line).saturating_sub(last.before.end));
    at(lines.start)..at(lines.end)
}

impl Sides<'_> {
    /// The regions in which a side has a change, as git finds them.
    fn regions(&self, to_ours: &[Change], to_theirs: &[Change]) -> Vec<Region> {
        let mut regions: Vec<Region> = Vec::new();
        let (mut at_ours, mut at_theirs) = (0, 0);
        loop {
            let (ours, theirs) = (to_ours.get(at_ours), to_theirs.get(at_theirs));
            let last_ours = at_ours.checked_sub(1).and_then(|at| to_ours.get(at));
            let last_theirs = at_theirs.checked_sub(1).and_then(|at| to_theirs.get(at));
            let region = match (ours, theirs) {
                (Some(ours), theirs) if theirs.is_none_or(|theirs| ours.before.end < theirs.before.start) => {
                    at_ours += 1;
                    let theirs = moved(&ours.before, last_theirs);
                    Region { take: Take::Ours, ours: ours.after.clone(), theirs }
                }
                (ours, Some(theirs)) if ours.is_none_or(|ours| theirs.before.end < ours.before.start) => {
                    at_theirs += 1;
                    let ours = moved(&theirs.before, last_ours);
                    Region { take: Take::Theirs, ours, theirs: theirs.after.clone() }
                }
                (Some(ours), Some(theirs)) => {
                    let same = ours.before == theirs.before
                        && self.ours[ours.after.clone()] == self.theirs[theirs.after.clone()];
                    if same {
                        (at_ours, at_theirs) = (at_ours + 1, at_theirs + 1);
                        continue;
                    }
                    // Each side's lines for all of the base that either of them changed.
                    let (before, after) = (&ours.before, &theirs.before);
                    let (start, end) = (before.start.min(after.start), before.end.max(after.end));
                    let spread = |change: &Change| {
                        (change.after.start + start).saturating_sub(change.before.start)
                            ..change.after.end + (end - change.before.end)
                    };
                    let region = Region { take: Take::Conflict, ours: spread(ours), theirs: spread(theirs) };
                    let (ends_first, ends_last) = (before.end <= after.end, before.end >= after.end);
                    at_ours += usize::from(ends_first);
                    at_theirs += usize::from(ends_last);
                    region
                }
                (None, _) | (_, None) => return regions,
            };
            match regions.last_mut() {
                Some(last)
                    if region.ours.start <= last.ours.end || region.theirs.start <= last.theirs.end =>
                {
                    if last.take != region.take {
                        last.take = Take::Conflict;
                    }
                    last.ours.end = region.ours.end;
                    last.theirs.end = region.theirs.end;
                }
                _ => regions.push(region),
            }
        }
    }

    /// Takes the lines out of conflicts that both sides have.
    fn refined(&self, regions: Vec<Region>) -> Vec<Region> {
        let mut refined = Vec::new();
        for region in regions {
            if region.take != Take::Conflict || region.ours.is_empty() || region.theirs.is_empty() {
                refined.push(region);
                continue;
            }
            let ours = self.ours[region.ours.clone()].concat();
            let theirs = self.theirs[region.theirs.clone()].concat();
            let from = |start: usize, range: &Range<usize>| start + range.start..start + range.end;
            refined.extend(changes(&ours, &theirs).iter().map(|change| Region {
                take: Take::Conflict,
                ours: from(region.ours.start, &change.before),
                theirs: from(region.theirs.start, &change.after),
            }));
        }
        refined
    }

    fn written(&self, regions: &[Region], favor: Favor<'_>) -> Text {
        let mut text = Text::default();
        let mut line = 0;
        let push = |text: &mut Text, lines: &[&[u8]]| {
            for line in lines {
                text.bytes.extend_from_slice(line);
            }
        };
        // Lines of the result so far: counted, as a text may end without an end of line.
        let mut made = 0;
        for region in regions {
            push(&mut text, &self.ours[line..region.ours.start]);
            made += region.ours.start - line;
            line = region.ours.end;
            let (ours, theirs) = (&self.ours[region.ours.clone()], &self.theirs[region.theirs.clone()]);
            match (region.take, favor) {
                (Take::Ours, _) => push(&mut text, ours),
                (Take::Theirs, _) => push(&mut text, theirs),
                (Take::Conflict, _) => {
                    text.conflicts.push(region.ours.start + 1..region.ours.end + 1);
                    match favor {
                        Favor::Ours => push(&mut text, ours),
                        Favor::Theirs => push(&mut text, theirs),
                        Favor::Markers(our_name, their_name) => {
                            let end: &[u8] = if self.ends_with_cr(region) { b"\r\n" } else { b"\n" };
                            let marked = |text: &mut Text, mark: &[u8], name: &[u8]| {
                                text.bytes.extend_from_slice(mark);
                                if !name.is_empty() {
                                    text.bytes.push(b' ');
                                    text.bytes.extend_from_slice(name);
                                }
                                text.bytes.extend_from_slice(end);
                            };
                            let whole = |text: &mut Text, lines: &[&[u8]]| {
                                push(text, lines);
                                if lines.last().is_some_and(|line| !line.ends_with(b"\n")) {
                                    text.bytes.extend_from_slice(end);
                                }
                            };
                            marked(&mut text, b"<<<<<<<", our_name);
                            whole(&mut text, ours);
                            marked(&mut text, b"=======", b"");
                            whole(&mut text, theirs);
                            marked(&mut text, b">>>>>>>", their_name);
                            let length = ours.len() + theirs.len() + 3;
                            text.marked.push(made + 1..made + 1 + length);
                            made += length;
                            continue;
                        }
                    }
                }
            }
            let is_theirs = match region.take {
                Take::Ours => false,
                Take::Theirs => true,
                Take::Conflict => favor == Favor::Theirs,
            };
            made += if is_theirs { theirs.len() } else { ours.len() };
        }
        push(&mut text, &self.ours[line..]);
        text
    }

    /// Whether lines end with CR and LF where a marker goes: as the lines before it do on both sides, and the base's first one.
    fn ends_with_cr(&self, region: &Region) -> bool {
        let ours = has_cr(&self.ours, region.ours.start.saturating_sub(1));
        let both = if ours == Some(false) {
            ours
        } else {
            has_cr(&self.theirs, region.theirs.start.saturating_sub(1))
        };
        let all = if both == Some(false) { both } else { has_cr(&self.base, 0) };
        all.unwrap_or(false)
    }
}

/// Whether a line ends with CR and LF; a last line without an end is judged by the one before. Nothing if no line tells.
fn has_cr(lines: &[&[u8]], at: usize) -> Option<bool> {
    let line = lines.get(at)?;
    let line = if line.ends_with(b"\n") { line } else { lines.get(at.checked_sub(1)?)? };
    Some(line.ends_with(b"\r\n"))
}

/// Joins conflicts that are near each other.
fn joined(regions: Vec<Region>, ours: &[&[u8]]) -> Vec<Region> {
    let mut joined: Vec<Region> = Vec::new();
    for region in regions {
        if let Some(last) = joined.last_mut()
            && last.take == Take::Conflict
            && region.take == Take::Conflict
        {
            let between = &ours[last.ours.end..region.ours.start];
            let tells = between.iter().any(|line| line.iter().any(u8::is_ascii_alphanumeric));
            if between.len() <= NEAR || !tells {
                last.ours.end = region.ours.end;
                last.theirs.end = region.theirs.end;
                continue;
            }
        }
        joined.push(region);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;
    use std::process::Command;

    /// What git makes of it: the bytes, and whether there is a conflict.
    fn git(dir: &Path, base: &[u8], ours: &[u8], theirs: &[u8], option: Option<&str>) -> (Vec<u8>, bool) {
        for (name, bytes) in [("base", base), ("ours", ours), ("theirs", theirs)] {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        let done = Command::new("git")
            .current_dir(dir)
            .args(["merge-file", "-p", "-q", "-L", "yours", "-L", "base", "-L", "try"])
            .args(option)
            .args(["ours", "base", "theirs"])
            .output()
            .unwrap();
        let code = done.status.code().unwrap();
        assert!(code < 128, "{}", String::from_utf8_lossy(&done.stderr));
        (done.stdout, code > 0)
    }

    /// A text of lines out of few, and edits of it.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0_u8..12, 0..30)
    }

    #[derive(Clone, Debug)]
    enum Edit {
        Insert(usize, Vec<u8>),
        Remove(usize, usize),
        Replace(usize, u8),
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let edit = prop_oneof![
            (0_usize..40, proptest::collection::vec(0_u8..14, 1..4))
                .prop_map(|(at, lines)| Edit::Insert(at, lines)),
            (0_usize..40, 1_usize..4).prop_map(|(at, length)| Edit::Remove(at, length)),
            (0_usize..40, 0_u8..14).prop_map(|(at, line)| Edit::Replace(at, line)),
        ];
        proptest::collection::vec(edit, 0..6)
    }

    fn edited(text: &[u8], edits: &[Edit]) -> Vec<u8> {
        let mut text = text.to_vec();
        for edit in edits {
            match edit {
                Edit::Insert(at, lines) => {
                    let at = *at % (text.len() + 1);
                    text.splice(at..at, lines.iter().copied());
                }
                Edit::Remove(at, length) if !text.is_empty() => {
                    let at = *at % text.len();
                    text.drain(at..text.len().min(at + length));
                }
                Edit::Replace(at, line) if !text.is_empty() => {
                    let at = *at % text.len();
                    text[at] = *line;
                }
                Edit::Remove(..) | Edit::Replace(..) => {}
            }
        }
        text
    }

    /// The bytes of a text. Some lines are blank or have no letter; `end` ends lines, and the last one may have none.
    fn written(text: &[u8], end: &str, last: bool) -> Vec<u8> {
        let line = |number: &u8| match number {
            0 => String::new(),
            1 => "}".to_owned(),
            2 => "  {".to_owned(),
            _ => format!("line {number}"),
        };
        let mut text = text.iter().map(|number| line(number) + end).collect::<String>();
        if !last && text.ends_with(end) {
            text.truncate(text.len() - end.len());
        }
        text.into_bytes()
    }

    /// How many cases are tried against git.
    fn cases() -> u32 {
        std::env::var("PFIMG_MERGES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(), ..crate::crashpack::failing::config() })]

        #[test]
        fn a_merge_is_byte_for_byte_that_of_git(
            base in text(), ours in edits(), theirs in edits(), cr in any::<bool>(),
            ends in proptest::array::uniform3(proptest::bool::weighted(0.8)), option in 0..3
        ) {
            let end = if cr { "\r\n" } else { "\n" };
            let (our, their) = (edited(&base, &ours), edited(&base, &theirs));
            let texts = [written(&base, end, ends[0]), written(&our, end, ends[1]), written(&their, end, ends[2])];
            let (option, favor) = match option {
                0 => (Some("--ours"), Favor::Ours),
                1 => (Some("--theirs"), Favor::Theirs),
                _ => (None, Favor::Markers(b"yours", b"try")),
            };
            let dir = tempfile::tempdir().unwrap();
            let (expected, conflicts) = git(dir.path(), &texts[0], &texts[1], &texts[2], option);
            let merged = merge(&texts[0], &texts[1], &texts[2], favor);
            prop_assert_eq!(merged.bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());
            if option.is_none() {
                prop_assert_eq!(!merged.conflicts.is_empty(), conflicts);
                for marked in &merged.marked {
                    let lines = lines(&merged.bytes);
                    prop_assert!(lines[marked.start - 1].starts_with(b"<<<<<<<"));
                    prop_assert!(lines[marked.end - 2].starts_with(b">>>>>>>"));
                }
            }
        }
    }

    #[test]
    fn conflicts_are_named_by_the_lines_of_our_side() {
        let base = b"a\nb\nc\nd\ne\nf\ng\nh\ni\n";
        let ours = b"a\nB\nc\nd\ne\nf\ng\nh\n";
        let theirs = b"a\nX\nc\nd\ne\nf\ng\nh\nI\n";
        let favor = Favor::Markers(b"x", b"y");
        assert_eq!(merge(base, ours, theirs, favor).conflicts, [2..3, 9..9]);
        assert_eq!(merge(base, ours, theirs, favor).marked, [2..7, 13..17]);
        assert_eq!(merge(b"", b"a\n", b"b\n", favor).bytes, b"<<<<<<< x\na\n=======\nb\n>>>>>>> y\n");
        assert!(
            is_binary(b"a\0b") && !is_binary(b"ab\n") && !is_binary(&[b"a".repeat(8000), vec![0]].concat())
        );
    }
}
