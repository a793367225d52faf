//! The output of an apply: lines for people, JSON for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::args::{ApplyArgs, Subject};
use super::commits::{Commits, branch_of};
use super::own_commit::OwnCommit;
use crate::cli::envelope::{print_failure, print_json};
use crate::cli::text::{count, plain, plain_bytes, print};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::ops::apply::plan::{About, Plan};
use crate::ops::apply::{Entry, Outcome, Prepared, Step};

/// With more lines than this, additions and changes are counted by directory.
const MOST_LINES: usize = 40;

/// Width of a path before a remark.
const PATH: usize = 25;

/// The most settings and hooks named in one line.
const MOST_NAMED: usize = 8;

/// The kind of change that a step makes, in the words of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Deleted,
    Added,
    Content,
    Kind,
    Attributes,
    Merged,
}

impl Change {
    /// Returns the change of a step; `merged` tells whether its lines were merged.
    fn of(step: &Step, merged: bool) -> Self {
        match (&step.was, &step.becomes) {
            _ if merged => Self::Merged,
            (_, None) => Self::Deleted,
            (None, _) => Self::Added,
            (Some(Entry::Dir { .. }), Some(Entry::Dir { .. })) => Self::Attributes,
            (Some(Entry::File { content, .. }), Some(Entry::File { content: new, .. })) if content == new => {
                Self::Attributes
            }
            (Some(was), Some(becomes)) if std::mem::discriminant(was) != std::mem::discriminant(becomes) => {
                Self::Kind
            }
            _ => Self::Content,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Deleted => 'D',
            Self::Added => 'A',
            Self::Content => 'M',
            Self::Kind => 'T',
            Self::Attributes => 'P',
            Self::Merged => 'G',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Added => "added",
            Self::Content => "changed",
            Self::Kind => "of another kind",
            Self::Attributes => "with other permissions",
            Self::Merged => "merged",
        }
    }
}

/// A changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    change: Change,
    path: Vec<u8>,
    is_folder: bool,
}

/// Returns the changes for the output. Leaves out a directory that contains a path with the same change.
fn rows(plan: &Plan) -> Vec<Row> {
    let row = |step: &Step| Row {
        change: Change::of(step, plan.merged.contains(&step.path)),
        path: step.path.clone(),
        is_folder: matches!(step.becomes.as_ref().or(step.was.as_ref()), Some(Entry::Dir { .. })),
    };
    let mut rows: Vec<Row> = plan.steps.iter().map(row).collect();
    let holding: BTreeSet<(Change, Vec<u8>)> = rows
        .iter()
        .flat_map(|row| {
            let ends = row.path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            ends.map(|(end, _)| (row.change, row.path[..end].to_vec())).collect::<Vec<_>>()
        })
        .collect();
    rows.retain(|row| !row.is_folder || !holding.contains(&(row.change, row.path.clone())));
    rows.sort_by(|a, b| {
        let order = |row: &Row| (row.change != Change::Deleted, row.change == Change::Merged);
        order(a).cmp(&order(b)).then_with(|| a.path.cmp(&b.path))
    });
    rows
}

/// Returns the lines of changes. Each deletion and each merge has its own line.
fn lines(rows: &[Row]) -> String {
    let is_counted = |row: &&Row| !matches!(row.change, Change::Deleted | Change::Merged);
    let by_folder = rows.iter().filter(is_counted).count() > MOST_LINES;
    let mut folders: BTreeMap<(Change, &[u8]), u64> = BTreeMap::new();
    let mut text = String::new();
    let mut merged = String::new();
    for row in rows {
        let path = plain_bytes(&row.path, usize::MAX);
        let slash = if row.is_folder { "/" } else { "" };
        let letter = row.change.letter();
        if row.change == Change::Merged {
            merged.push_str(&remark(letter, &path, "merged with your change"));
        } else if by_folder && is_counted(&row) {
            let top =
                row.path.iter().position(|byte| *byte == b'/').map_or(&b"."[..], |end| &row.path[..end]);
            *folders.entry((row.change, top)).or_default() += 1;
        } else {
            let _ = writeln!(text, "{letter} {path}{slash}");
        }
    }
    for ((change, folder), number) in folders {
        let folder = plain_bytes(folder, usize::MAX);
        let _ = writeln!(text, "{} {folder}/  ({})", change.letter(), count(number, "path"));
    }
    text + &merged
}

pub(super) fn remark(letter: char, path: &str, remark: &str) -> String {
    format!("{letter} {path:PATH$}  {remark}\n")
}

/// Counts the changes by kind: `1 deleted, 1 added, 1 merged`.
fn summary(rows: &[Row]) -> String {
    let kinds =
        [Change::Deleted, Change::Added, Change::Content, Change::Kind, Change::Attributes, Change::Merged];
    let number = |kind: Change| rows.iter().filter(|row| row.change == kind).count();
    let parts = kinds.iter().filter(|kind| number(**kind) > 0);
    parts.map(|kind| format!("{} {}", number(*kind), kind.word())).collect::<Vec<_>>().join(", ")
}

/// A path for programs. Bytes that are not UTF-8 are U+FFFD in `path`; `path_b64` has the exact name.
#[derive(Debug, Serialize)]
pub(super) struct Path64 {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
}

impl Path64 {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let path = String::from_utf8_lossy(bytes).into_owned();
        let is_odd = path.as_bytes() != bytes;
        Self { path, path_b64: is_odd.then(|| data_encoding::BASE64.encode(bytes)) }
    }
}

#[derive(Debug, Serialize)]
struct ShownChange {
    change: Change,
    #[serde(flatten)]
    path: Path64,
}

#[derive(Debug, Serialize)]
struct ShownAbout {
    #[serde(flatten)]
    path: Path64,
    why: String,
}

impl ShownAbout {
    fn of(about: &About) -> Self {
        Self { path: Path64::of(&about.path), why: about.why.clone() }
    }
}

#[derive(Debug, Serialize)]
struct Conflicts {
    conflicts: Vec<ShownAbout>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    image: Option<Digest>,
    base: Option<Digest>,
    dir: std::borrow::Cow<'a, str>,
    /// Whether the directory was changed.
    applied: bool,
    changes: Vec<ShownChange>,
    /// Conflicts that an option resolved.
    decided: Vec<ShownAbout>,
    notes: Vec<ShownAbout>,
    /// Paths that were edited during the apply and left unchanged.
    left: Vec<ShownAbout>,
    /// New commits of the fork, and their branch.
    commits: u64,
    branch: Option<String>,
    /// The commit of the applied paths in the directory's own repository.
    commit: Option<&'a str>,
    /// Why that commit is missing although the user asked for it.
    commit_error: Option<String>,
    /// The image of the directory's state before the apply.
    kept: Option<Digest>,
    seconds: f64,
}

/// Warns of the fork's changes that an apply never copies.
pub(super) fn warn(prepared: &Prepared, subject: &Subject) {
    let programs = &prepared.programs;
    if programs.is_empty() {
        return;
    }
    let named: Vec<String> =
        programs.iter().take(MOST_NAMED).map(|path| plain_bytes(path, usize::MAX)).collect();
    let more = match programs.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let side = if subject.is_fork { "fork" } else { "image" };
    eprintln!(
        "pfimg: {side} {:?} changed settings or hooks of git, which apply never copies: {}{more}",
        plain(&subject.name, usize::MAX),
        named.join(", ")
    );
}

/// A finished or planned apply, for its output.
pub(super) struct Telling<'a> {
    pub(super) args: &'a ApplyArgs,
    pub(super) subject: &'a Subject,
    pub(super) dir: &'a Path,
    pub(super) plan: &'a Plan,
    pub(super) commits: Option<&'a Commits>,
    /// The commit in the directory's own repository, if one was asked for.
    pub(super) own: Option<Result<OwnCommit>>,
}

impl Telling<'_> {
    /// Prints the conflicts that no option resolves, and returns the exit code.
    pub(super) fn conflicts(&self) -> Result<ExitCode> {
        let conflicts = &self.plan.conflicts;
        let name = plain(&self.subject.name, usize::MAX);
        let first = format!("conflicts in {} of {}", conflicts.len(), count(self.plan.concerned, "path"));
        let branch = branch_of(&self.subject.name).into_bytes();
        let example = conflicts.iter().rfind(|conflict| conflict.path != branch);
        let example = example.map(|last| format!(" -- {}", plain_bytes(&last.path, usize::MAX)));
        let dir = self.args.dir.as_ref().map_or_else(|| ".".to_owned(), |dir| dir.display().to_string());
        let both = format!("pfimg diff {name} {dir} -p{}", example.unwrap_or_default());
        let ways = self.ways();
        let error = Error::new(ErrorKind::Conflict, format!("{first}, nothing was written"));
        if self.args.json {
            let error = error.with_hint(format!("{ways}; compare both sides with `{both}`"));
            let about = |conflict: &crate::ops::apply::plan::Conflict| ShownAbout {
                path: Path64::of(&conflict.path),
                why: conflict.why.clone(),
            };
            eprintln!("pfimg: {}", error.message());
            print_failure(&error, &Conflicts { conflicts: conflicts.iter().map(about).collect() })?;
            return Ok(error.kind().exit().into());
        }
        let lines = conflicts.iter();
        let lines =
            lines.map(|conflict| remark('C', &plain_bytes(&conflict.path, usize::MAX), &conflict.why));
        print(&lines.collect::<String>())?;
        eprintln!("pfimg: {}", error.message());
        eprintln!("       {ways}");
        eprintln!("       compare: {both}");
        Ok(error.kind().exit().into())
    }

    /// Returns the options that resolve the conflicts.
    fn ways(&self) -> String {
        let (lines, others): (Vec<_>, Vec<_>) =
            self.plan.conflicts.iter().partition(|conflict| conflict.by_markers);
        if self.args.theirs {
            return "resolve with --ours or --skip: apply cannot replace these paths".to_owned();
        }
        if self.args.merge {
            return "add --ours, --theirs or --skip for these paths: --merge resolves only lines of texts"
                .to_owned();
        }
        if others.is_empty() {
            return "resolve with --merge (markers), --ours, --theirs or --skip".to_owned();
        }
        if lines.is_empty() {
            return "resolve with --ours, --theirs or --skip".to_owned();
        }
        let named: Vec<String> =
            lines.iter().take(MOST_NAMED).map(|conflict| plain_bytes(&conflict.path, usize::MAX)).collect();
        let more = if lines.len() > named.len() { " and others" } else { "" };
        format!(
            "resolve with --ours, --theirs or --skip; add --merge for markers in {}{more}",
            named.join(", ")
        )
    }

    /// Prints a plan that is not carried out.
    pub(super) fn planned(&self, took: Duration) -> Result<()> {
        let rows = rows(self.plan);
        self.changes(&rows, None, took)?;
        let (name, dir) = (plain(&self.subject.name, usize::MAX), shown(self.dir));
        let parts = [summary(&rows), self.branch("would be")];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            eprintln!("pfimg: nothing to apply: {dir} already has the changes of {name}");
        } else {
            eprintln!("pfimg: would apply {name} to {dir}: {}; nothing was written", parts.join("; "));
        }
        Ok(())
    }

    /// Prints a finished apply.
    pub(super) fn applied(&self, outcome: &Outcome, took: Duration) -> Result<ExitCode> {
        let rows = rows(self.plan);
        self.changes(&rows, Some(outcome), took)?;
        let (name, dir) = (plain(&self.subject.name, usize::MAX), shown(self.dir));
        let time = format!("{:.2} s", took.as_secs_f64());
        let parts: Vec<String> = [summary(&rows), time].into_iter().filter(|part| !part.is_empty()).collect();
        let moved = outcome.branch.as_ref().is_some_and(|(_, moved)| moved.is_ok());
        let branch = if moved { format!("; {}", self.branch("is")) } else { String::new() };
        eprintln!("pfimg: applied {name} to {dir}: {}{branch}", parts.join(", "));
        if let Some((branch, Err(why))) = &outcome.branch {
            eprintln!("pfimg: {} stays: {why}", branch.trim_start_matches("refs/heads/"));
        }
        let named = self.args.dir.as_ref().map_or_else(String::new, |_| format!(" {dir}"));
        eprintln!("undo:  pfimg apply --undo{named}");
        match &self.own {
            Some(Ok(own)) => eprintln!("pfimg: {}", own.words()),
            Some(Err(error)) => {
                eprintln!("pfimg: the files are applied, but not committed: {error}");
                return Ok(Exit::Differs.into());
            }
            None => {}
        }
        if outcome.conflicts.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let number = count(outcome.conflicts.len() as u64, "path");
        eprintln!("pfimg: {number} edited during the apply: left unchanged");
        Ok(ErrorKind::Conflict.exit().into())
    }

    /// `1 commit is branch pfimg/try-2`.
    fn branch(&self, verb: &str) -> String {
        let Some(commits) = self.commits else { return String::new() };
        let branch = plain(&branch_of(&self.subject.name), usize::MAX);
        let verb = if commits.number == 1 || verb != "is" { verb } else { "are" };
        format!("{} {verb} branch {branch}", count(commits.number, "commit"))
    }

    fn changes(&self, rows: &[Row], outcome: Option<&Outcome>, took: Duration) -> Result<()> {
        let Plan { decided, notes, .. } = self.plan;
        let left = outcome.map_or(&[][..], |outcome| &outcome.conflicts);
        if self.args.json {
            let change = |row: &Row| ShownChange { change: row.change, path: Path64::of(&row.path) };
            return print_json(&Shown {
                name: &self.subject.name,
                image: self.subject.image,
                base: self.subject.base,
                dir: self.dir.to_string_lossy(),
                applied: outcome.is_some(),
                changes: rows.iter().map(change).collect(),
                decided: decided.iter().map(ShownAbout::of).collect(),
                notes: notes.iter().map(ShownAbout::of).collect(),
                left: left
                    .iter()
                    .map(|left| ShownAbout { path: Path64::of(&left.path), why: left.why.words().to_owned() })
                    .collect(),
                commits: self.commits.map_or(0, |commits| commits.number),
                branch: self.commits.map(|_| branch_of(&self.subject.name)),
                commit: self.own.as_ref().and_then(|own| own.as_ref().ok()).map(|own| own.id.as_str()),
                commit_error: self.own.as_ref().and_then(|own| own.as_ref().err()).map(Error::to_string),
                kept: outcome.map(|outcome| outcome.before),
                seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
            });
        }
        // A path with a remark has only that line. If it is deleted, the line says so.
        let has_remark = |row: &Row| decided.iter().any(|about| about.path == row.path);
        let is_deleted =
            |path: &[u8]| rows.iter().any(|row| row.path == path && row.change == Change::Deleted);
        let plain_rows = rows.iter().filter(|row| !has_remark(row));
        let mut text = lines(&plain_rows.cloned().collect::<Vec<_>>());
        for about in decided {
            let letter = if is_deleted(&about.path) { 'D' } else { 'C' };
            text.push_str(&remark(letter, &plain_bytes(&about.path, usize::MAX), &about.why));
        }
        for left in left {
            text.push_str(&remark('C', &plain_bytes(&left.path, usize::MAX), left.why.words()));
        }
        print(&text)?;
        for note in notes {
            eprintln!("pfimg: {}: {}", plain_bytes(&note.path, usize::MAX), note.why);
        }
        Ok(())
    }
}

/// Formats a directory for people: with `~` for the home directory.
pub(super) fn shown(dir: &Path) -> String {
    let home = std::env::home_dir().and_then(|home| std::fs::canonicalize(home).ok());
    let below = home.as_deref().and_then(|home| dir.strip_prefix(home).ok());
    let short = below.filter(|below| !below.as_os_str().is_empty()).map(|below| Path::new("~").join(below));
    plain(&short.unwrap_or_else(|| dir.to_owned()).to_string_lossy(), usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(path: &str, was: Option<Entry>, becomes: Option<Entry>) -> Step {
        Step { path: path.as_bytes().to_vec(), was, becomes }
    }

    fn file(text: &str, mode: u16) -> Entry {
        Entry::File { mode, content: Digest::of(text.as_bytes()), size: 0, links: None }
    }

    #[test]
    fn deletions_come_first_and_only_empty_directories_have_their_own_line() {
        let dir = || Some(Entry::Dir { mode: 0o755 });
        let link = Some(Entry::Link { target: b"x".to_vec() });
        let plan = Plan {
            steps: vec![
                step("old/x", Some(file("x", 0o644)), None),
                step("old", dir(), None),
                step("empty", None, dir()),
                step("new", None, dir()),
                step("new/a", None, Some(file("a", 0o644))),
                step("kind", Some(file("a", 0o644)), link),
                step("merged", Some(file("a", 0o644)), Some(file("b", 0o644))),
                step("mode", Some(file("a", 0o644)), Some(file("a", 0o755))),
                step("text", Some(file("a", 0o644)), Some(file("b", 0o755))),
            ],
            merged: BTreeSet::from([b"merged".to_vec()]),
            ..Plan::default()
        };
        let rows = rows(&plan);
        assert_eq!(
            lines(&rows),
            "D old/x\nA empty/\nT kind\nP mode\nA new/a\nM text\nG merged                     merged with your change\n"
        );
        assert_eq!(
            summary(&rows),
            "1 deleted, 2 added, 1 changed, 1 of another kind, 1 with other permissions, 1 merged"
        );
    }

    #[test]
    fn many_additions_are_counted_by_directory_and_every_deletion_is_named() {
        let mut plan = Plan::default();
        for number in 0..50 {
            plan.steps.push(step(&format!("gone/{number:02}"), Some(file("x", 0o644)), None));
            plan.steps.push(step(&format!("src/{number:02}"), None, Some(file("x", 0o644))));
        }
        plan.steps.push(step("top", None, Some(file("x", 0o644))));
        let text = lines(&rows(&plan));
        assert_eq!(text.lines().filter(|line| line.starts_with("D gone/")).count(), 50);
        assert!(text.ends_with("A ./  (1 path)\nA src/  (50 paths)\n"), "{text}");
    }
}
