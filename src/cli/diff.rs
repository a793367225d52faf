//! `pfimg diff`: lists the differences between images, forks and directories.

mod json;
mod limits;
mod names;
mod patch;
mod sides;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use self::json::{CommitRow, Row, Shown, Stat, StatRow};
use self::limits::{FILES, Limits};
use self::patch::Files;
use self::sides::{Name, Side, Sides, Standing};
use super::envelope::print_json;
use super::pager::{self, Output, When};
use super::run::{Commits, MAX_LOG, Made};
use super::store_arg::StoreArg;
use super::text::{count, plain};
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::fork::{Compare, Difference, How, compare_where};
use crate::store::Store;
use crate::util::patch::paint::Paint;
use crate::util::patch::stat::{self, Total};

/// How often a comparison starts again because another program seals, discards or writes a side.
const ATTEMPTS: usize = 3;

/// Output is held back up to this number of bytes, so that the comparison can start again until then.
const KEPT: usize = 4 << 20;

/// List the changes of a fork, or between two forks, images or directories. Letters: A added, D deleted, M
/// other content, T another kind of file, P other permissions, owner or attributes. Times are not compared.
///
/// Below the changes of a fork, pfimg lists its git commits. Without TO, pfimg compares a fork with the image that it was made of, an image with its first parent, and
/// a directory with its last import. The name of a directory contains a slash or is `.`: the project or fork
/// around the current directory.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // each is an option
pub(crate) struct DiffArgs {
    /// A fork, a seal of it (FORK@SEAL), a directory, or an image: its tag, the first digits of its id, or
    /// latest
    #[arg(value_name = "FROM")]
    from: String,
    /// The other side of the comparison, in the same forms
    #[arg(value_name = "TO")]
    to: Option<String>,
    /// Compare only these paths, relative to the current directory in the project or fork; `*` also matches
    /// slashes
    #[arg(value_name = "PATH", last = true)]
    paths: Vec<OsString>,
    /// Print the changes of each file as a patch for `git apply`
    #[arg(short, long)]
    patch: bool,
    /// Count the changed lines of each file
    #[arg(long)]
    stat: bool,
    /// List paths without letters
    #[arg(long, conflicts_with_all = ["patch", "stat"])]
    name_only: bool,
    /// List everything in directories that only one side has
    #[arg(short, long)]
    recursive: bool,
    /// Compare all parts of images: files (below world/fs/), the state of the agent, and `.git` too
    #[arg(long, conflicts_with_all = ["patch", "stat"])]
    layers: bool,
    /// Exit with 1 if there is a difference
    #[arg(long)]
    exit_code: bool,
    /// When to use colours
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", default_missing_value = "always", num_args = 0..=1, require_equals = true)]
    color: When,
    /// Print without a pager, also at a terminal [default pager: `PFIMG_PAGER`, `GIT_PAGER`, `PAGER`, else
    /// less]
    #[arg(long)]
    no_pager: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The most commits that are listed, and the most characters of an id and of a subject.
const MOST_COMMITS: usize = 10;
const SHORT_COMMIT: usize = 7;
const MOST_SUBJECT: usize = 90;

/// Two sides and their differences.
struct Compared {
    from: Side,
    to: Side,
    limits: Limits,
    /// The differences, listed in full.
    found: Vec<Difference>,
    /// Commits that only the second side has.
    commits: Option<Made>,
}

pub(crate) fn run(store: &StoreArg, args: &DiffArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let mut attempt = 1;
    loop {
        let mut written = false;
        match compare_and_print(&store, args, &mut written) {
            Err(e)
                if attempt < ATTEMPTS
                    && !written
                    && matches!(e.kind(), ErrorKind::Missing | ErrorKind::Damaged | ErrorKind::Busy) =>
            {
                attempt += 1;
            }
            done => return done,
        }
    }
}

fn compare_and_print(store: &Arc<Store>, args: &DiffArgs, written: &mut bool) -> Result<ExitCode> {
    let compared = Compared::read(store, args)?;
    let differ = args.exit_code && !compared.found.is_empty();
    if args.json {
        let result = compared.shown(args)?;
        *written = true;
        print_json(&result)?;
    } else {
        let last = compared.print(args, written)?;
        eprintln!("pfimg: {} → {}: {last}", compared.from.label, compared.to.label);
        compared.commits.iter().for_each(list_commits);
    }
    Ok(if differ { Exit::Differs.into() } else { ExitCode::SUCCESS })
}

impl Compared {
    fn read(store: &Arc<Store>, args: &DiffArgs) -> Result<Self> {
        let sides = Sides::new(store, &args.from, args.to.as_deref())?;
        let (prefix, root) = sides.start(&Standing::here(store));
        // Paths of an image are not those of the project.
        let (prefix, root) = if args.layers { Default::default() } else { (prefix, root) };
        let mut limits = Limits::new(&args.paths, args.layers, &prefix, root.as_deref())?;
        if let Some(dir) = sides.directory() {
            if args.layers {
                let what = format!("{} has no layers: it is a directory", dir.display());
                return Err(Error::new(ErrorKind::InvalidInput, what).with_hint("leave --layers out"));
            }
            if limits.git {
                let what = format!("cannot compare .git of {}: it is a directory", dir.display());
                let hint = "name two forks or images, or leave .git out";
                return Err(Error::new(ErrorKind::InvalidInput, what).with_hint(hint));
            }
            limits.directory = Some(sides::rules_of(dir)?);
        }
        let (from, to) = sides.read(&limits)?;
        let mut found = Vec::new();
        let options = Compare { all: true, read: true };
        compare_where(&from.view, &to.view, options, &|path| limits.is_entered(path), &mut |difference| {
            let is_gone = matches!(difference.how, How::Removed | How::Kind);
            if limits.shown(&difference.path).is_some_and(|shown| limits.is_covered(shown, is_gone)) {
                found.push(difference);
            }
            Ok(())
        })?;
        for path in limits.plain() {
            let path = if args.layers { path.to_vec() } else { [FILES, b"/", path].concat() };
            if !from.view.contains(&path) && !to.view.contains(&path) {
                let shown = limits.shown(&path).unwrap_or(&path);
                eprintln!("pfimg: neither side has {}", crate::util::patch::name::quoted(shown));
            }
        }
        let commits = commits(&from, &to);
        Ok(Self { from, to, limits, found, commits })
    }

    fn files(&self) -> Files<'_> {
        Files::of(&self.from.view, &self.to.view, &self.limits, &self.found)
    }

    /// Returns the listed differences: a directory of one side is one difference, unless everything is to be
    /// listed.
    fn listed(&self, args: &DiffArgs) -> Vec<Difference> {
        if args.name_only {
            names::without_full_folders(self.found.clone())
        } else if args.recursive {
            self.found.clone()
        } else {
            names::fold(self.found.clone())
        }
    }

    /// Prints to stdout, and returns the text of the last line.
    fn print(&self, args: &DiffArgs, written: &mut bool) -> Result<String> {
        let paint = args.color.paint();
        let mut summary = "no difference".to_owned();
        if self.found.is_empty() {
            return Ok(self.with_commits(summary));
        }
        let mut writer = Writer { output: None, kept: Vec::new(), paged: !args.no_pager };
        if args.patch || args.stat {
            let files = self.files();
            let mut total = Total::default();
            if args.stat {
                let rows = files.rows()?;
                total = Total::of(&rows);
                stat::write(&rows, pager::columns(), paint, &mut writer.kept);
                if args.patch && !rows.is_empty() {
                    writer.kept.push(b'\n');
                }
            }
            if args.patch {
                total = files.patches(paint, &mut |text| writer.add(text, written))?;
            }
            summary = words(&total, files.others);
        } else {
            let listed = self.listed(args);
            for difference in &listed {
                let line = if args.name_only {
                    names::path(difference, &self.limits) + "\n"
                } else {
                    names::line(difference, &self.limits)
                };
                writer.kept.extend_from_slice(line.as_bytes());
            }
            summary = names::summary(&listed);
        }
        writer.end(written)?;
        Ok(self.with_commits(summary))
    }

    fn with_commits(&self, summary: String) -> String {
        match self.commits.as_ref().map_or(0, |made| made.number) {
            0 => summary,
            number => format!("{summary}, {}", count(number, "commit")),
        }
    }

    fn shown(&self, args: &DiffArgs) -> Result<Shown<'_>> {
        let (mut stat, mut patch) = (None, None);
        if args.patch || args.stat {
            let files = self.files();
            let rows = files.rows()?;
            let total = Total::of(&rows);
            stat = Some(Stat {
                files: total.files,
                added_lines: total.added,
                deleted_lines: total.deleted,
                in_no_patch: files.others,
                rows: rows.iter().map(|row| StatRow::of(&row.path, row.count)).collect(),
            });
            if args.patch {
                let mut text = Vec::new();
                files.patches(Paint::default(), &mut |part| {
                    text.extend_from_slice(part);
                    Ok(true)
                })?;
                patch = Some(json::text(&text));
            }
        }
        let (patch, patch_b64) = patch.map_or((None, None), |(patch, b64)| (Some(patch), b64));
        Ok(Shown {
            from: &self.from.name,
            to: &self.to.name,
            commits: self.commits.as_ref().map(|made| made.number),
            commit_list: self.commits.as_ref().map(rows),
            entries: self.listed(args).iter().map(|found| Row::of(found, &self.limits)).collect(),
            stat,
            patch,
            patch_b64,
        })
    }
}

/// Holds back the beginning of the output: a comparison that fails before any output can start again.
struct Writer {
    output: Option<Output>,
    kept: Vec<u8>,
    paged: bool,
}

impl Writer {
    /// Adds text; returns whether more is wanted.
    fn add(&mut self, text: &[u8], written: &mut bool) -> Result<bool> {
        self.kept.extend_from_slice(text);
        if self.kept.len() < KEPT {
            return Ok(true);
        }
        Ok(self.flush(written)?.is_open())
    }

    fn flush(&mut self, written: &mut bool) -> Result<&mut Output> {
        *written = true;
        let output = self.output.get_or_insert_with(|| Output::begin(self.paged));
        output.write(&self.kept)?;
        self.kept.clear();
        Ok(output)
    }

    fn end(mut self, written: &mut bool) -> Result<()> {
        if !self.kept.is_empty() {
            self.flush(written)?;
        }
        self.output.map_or(Ok(()), Output::end)
    }
}

/// Returns the newest commits.
fn rows(made: &Made) -> Vec<CommitRow<'_>> {
    let row = |(id, subject)| CommitRow { id, subject };
    made.listed().take(MOST_COMMITS).map(row).collect()
}

/// Lists commits, one line each.
fn list_commits(made: &Made) {
    for CommitRow { id, subject } in rows(made) {
        eprintln!("       {}  {}", id.get(..SHORT_COMMIT).unwrap_or(id), plain(subject, MOST_SUBJECT));
    }
    if let more @ 1.. = made.listed().count().saturating_sub(MOST_COMMITS) {
        eprintln!("       and {} before these", count(more as u64, "commit"));
    }
}

/// Returns the commits that only the second side has. A directory's repository is not read.
fn commits(from: &Side, to: &Side) -> Option<Made> {
    let read = |side: &Side| match side.name {
        Name::Directory(_) => None,
        _ => Some(Commits::of(&|path| {
            let path = [FILES, b"/", path.as_bytes()].concat();
            side.view.bytes(&path, MAX_LOG).ok().flatten()
        })),
    };
    read(to)?.since(&read(from)?)
}

/// Summarizes a patch in words.
fn words(total: &Total, others: u64) -> String {
    let mut words = count(total.files, "file");
    if total.added + total.deleted > 0 {
        let part = |sign: &str, lines: u64| if lines > 0 { format!("{sign}{lines}") } else { String::new() };
        let parts = [part("+", total.added), part("-", total.deleted)];
        let parts: Vec<&str> = parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect();
        words = format!("{words}, {}", parts.join(" "));
    }
    if others > 0 {
        words = format!("{words} ({} not in the patch: `pfimg diff` lists all)", count(others, "path"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_sums_up_a_patch() {
        let total = |files, added, deleted| Total { files, added, deleted };
        assert_eq!(words(&total(3, 2, 3), 0), "3 files, +2 -3");
        assert_eq!(words(&total(1, 0, 1), 0), "1 file, -1");
        assert_eq!(words(&total(1, 0, 0), 2), "1 file (2 paths not in the patch: `pfimg diff` lists all)");
    }
}
