//! `pfimg seals`: lists the states of a fork, and the changes between them.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use chrono::{DateTime, Local, SecondsFormat, Utc};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use unicode_width::UnicodeWidthStr as _;

use super::envelope::print_json;
use super::place;
use super::store_arg::StoreArg;
use super::text::{plain, print};
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::fork::{self, Compare, Counts, Fork, Registry, View, compare};
use crate::layers::ignore::Ignore;
use crate::ops::changes::Changes;
use crate::ops::line::{Line, Step};
use crate::store::Store;

/// The file that names the paths to leave out of seals, and its maximum length in bytes.
const RULES: &[u8] = b"world/fs/.pfignore";
const MAX_RULES: u64 = 1 << 20;

/// How often a comparison starts again because the fork was sealed in the meantime.
const ATTEMPTS: usize = 3;

/// List the seals of a fork, the changes in each, and the unsealed changes. `pfimg restore FORK@NO` restores
/// a seal.
#[derive(Debug, Args)]
pub(crate) struct SealsArgs {
    /// The fork's name
    #[arg(value_name = "FORK")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A state of a fork.
#[derive(Debug, Serialize)]
struct Row {
    /// `None` for unsealed changes.
    number: Option<usize>,
    image: Option<Digest>,
    /// RFC 3339.
    time: String,
    after: String,
    message: Option<String>,
    /// The changes since the previous row; `None` if unknown.
    changes: Option<Counts>,
    /// Whether the fork was restored to an earlier state.
    restore: bool,
    /// Whether the image is still in the store.
    in_store: bool,
    #[serde(skip)]
    at: DateTime<Utc>,
}

pub(crate) fn run(store: &StoreArg, args: &SealsArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let name = &args.name;
    if fork::refuse_fork_name(name).is_some() || !fork::is_fork(&store.root().join("forks"), name) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no fork {name:?}"))
            .with_name(name)
            .with_hint("list the forks with `pfimg forks`"));
    }
    place::take_in(&store, name)?;
    let mut attempt = 1;
    let (rows, problems) = loop {
        match rows(&store, name) {
            Err(e) if attempt < ATTEMPTS && matches!(e.kind(), ErrorKind::Missing | ErrorKind::Damaged) => {
                attempt += 1;
            }
            rows => break rows?,
        }
    };
    if args.json {
        print_json(&json!({"fork": name, "seals": rows, "problems": problems}))?;
    } else {
        print(&render(&rows))?;
    }
    for problem in &problems {
        eprintln!("pfimg: {}", plain(problem, usize::MAX));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

fn rows(store: &Arc<Store>, name: &str) -> Result<(Vec<Row>, Vec<String>)> {
    let registry = forks::registry(store, true)?;
    let fork = registry.get(name)?;
    let line = Line::of_fork(store, &fork)?;
    let mut problems = Vec::new();
    let mut rows = vec![beginning(store, &fork, &line)];
    let mut views = Views { registry: &registry, last: None };
    let mut before = line.origin();
    for (at, step) in line.steps().iter().enumerate() {
        let Step { image, at_ns, about, is_restore } = step;
        let counts = match &about.counts {
            Some(counts) => Some(counts.clone()),
            None => views.counts(before, *image),
        };
        rows.push(Row {
            number: Some(at + 1),
            image: *image,
            after: about.words(),
            message: about.message.clone(),
            changes: counts,
            restore: *is_restore,
            in_store: image.is_none_or(|image| store.images().contains(&image)),
            ..row_at(DateTime::from_timestamp_nanos(*at_ns))
        });
        before = *image;
    }
    let changes = match unsealed(&registry, &fork) {
        Ok(counts) => Some(counts),
        Err(error) if fork.damage().is_some() => {
            problems.push(format!("fork {name:?}: cannot find the unsealed changes: {error}"));
            None
        }
        Err(error) => return Err(error),
    };
    let after = "now".to_owned();
    rows.push(Row { after, changes, in_store: false, ..row_at(Utc::now()) });
    Ok((rows, problems))
}

fn row_at(at: DateTime<Utc>) -> Row {
    Row {
        number: None,
        image: None,
        time: at.to_rfc3339_opts(SecondsFormat::Millis, true),
        after: String::new(),
        message: None,
        changes: None,
        restore: false,
        in_store: true,
        at,
    }
}

/// Returns the row with number 0.
fn beginning(store: &Store, fork: &Fork, line: &Line) -> Row {
    let after = match line.origin() {
        Some(image) => {
            let short: String = image.hex().chars().take(7).collect();
            match name_of(store, &image) {
                Some(name) => format!("made of {name} ({short})"),
                None => format!("made of {short}"),
            }
        }
        None if line.began_empty() => "made empty".to_owned(),
        None => "made of an unknown image".to_owned(),
    };
    Row {
        number: Some(0),
        image: line.origin(),
        after: line.said_of_origin().map_or(after, str::to_owned),
        message: line.said_of_origin().map(str::to_owned),
        changes: Some(Counts::default()),
        in_store: line.origin().is_none_or(|image| store.images().contains(&image)),
        ..row_at(DateTime::from_timestamp_nanos(fork.created_ns()))
    }
}

/// Returns the name of an image for people: a tag, or the name of the project or fork that it was made of.
fn name_of(store: &Store, image: &Digest) -> Option<String> {
    let is_its = |tag: &String| store.tags().get(tag).is_ok_and(|named| named == *image);
    let tag = store.tags().names().unwrap_or_default().into_iter().find(is_its);
    let made = || store.image(image).ok().map(|image| image.manifest.agent.fingerprint);
    tag.or_else(made).filter(|name| !name.is_empty())
}

/// Views of images, kept because the next comparison needs the last one.
struct Views<'a> {
    registry: &'a Registry,
    last: Option<(Option<Digest>, View)>,
}

impl Views<'_> {
    fn view(&self, image: Option<Digest>) -> Option<View> {
        match &self.last {
            Some((last, view)) if *last == image => Some(view.clone()),
            _ => self.registry.view(image).ok(),
        }
    }

    /// Returns the changes from one image to another. `None` if either cannot be read.
    fn counts(&mut self, before: Option<Digest>, after: Option<Digest>) -> Option<Counts> {
        if before == after {
            return Some(Counts::default());
        }
        let (was, is) = (self.view(before)?, self.view(after)?);
        let counts = count(&was, &is, &Ignore::default()).ok();
        self.last = Some((after, is));
        counts
    }
}

fn count(before: &View, after: &View, ignore: &Ignore) -> Result<Counts> {
    let mut found = Vec::new();
    compare(before, after, Compare { all: true, read: true }, &mut |difference| {
        let inner = difference.path.strip_prefix(b"world/fs/").unwrap_or_default();
        let ends = inner.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        if !ends.chain([inner.len()]).any(|end| ignore.covers(&inner[..end])) {
            found.push(difference);
        }
        Ok(())
    })?;
    Ok(Changes::of(&found).counts())
}

/// Returns the unsealed changes of a fork, without paths that seals leave out.
fn unsealed(registry: &Registry, fork: &Fork) -> Result<Counts> {
    if !fork.is_changed() {
        return Ok(Counts::default());
    }
    let mut ignore = Ignore::default();
    if let Some(ino) = fork.resolve(RULES)
        && let Ok(attr) = fork.getattr(ino)
        && attr.size <= MAX_RULES
        && let Ok(rules) = fork.read_vec(ino, 0, MAX_RULES as usize)
    {
        ignore.add_lines(&String::from_utf8_lossy(&rules));
    }
    count(&registry.view(fork.base())?, &fork.view(), &ignore)
}

fn changes(counts: &Counts) -> String {
    let numbers = [('-', counts.deleted), ('+', counts.added), ('~', counts.changed)];
    let shown: Vec<_> = numbers
        .iter()
        .filter(|(_, number)| *number > 0)
        .map(|(sign, number)| format!("{sign}{number}"))
        .collect();
    match &counts.folder {
        Some(folder) if !shown.is_empty() => format!("{}   {}/", shown.join(" "), plain(folder, 60)),
        _ => shown.join(" "),
    }
}

fn render(rows: &[Row]) -> String {
    let today = Local::now().date_naive();
    let is_today = rows.iter().all(|row| row.at.with_timezone(&Local).date_naive() == today);
    let format = if is_today { "%H:%M:%S" } else { "%F %H:%M:%S" };
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let time = row.at.with_timezone(&Local).format(format).to_string();
            let gone = if row.in_store || row.number.is_none() { "" } else { " (removed)" };
            (row.number, time, format!("{}{gone}", plain(&row.after, 60)), row.changes.as_ref().map(changes))
        })
        .collect();
    let width = cells.iter().map(|(_, _, after, _)| after.width()).max().unwrap_or(0);
    let time = cells.iter().map(|(_, time, ..)| time.len()).max().unwrap_or(0);
    let mut out = format!(" NO  {:time$}  {:width$}  CHANGES\n", "TIME", "AFTER");
    for (number, at, after, changes) in cells {
        let number = number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let pad = " ".repeat(width - after.width());
        let line =
            format!("{number:>3}  {at:time$}  {after}{pad}  {}", changes.unwrap_or_else(|| "?".to_owned()));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_come_first_and_a_common_directory_is_named() {
        let counts = |deleted, added, changed, folder: Option<&str>| {
            changes(&Counts { added, changed, deleted, folder: folder.map(str::to_owned) })
        };
        assert_eq!(counts(980, 0, 0, Some("docs")), "-980   docs/");
        assert_eq!(counts(1, 2, 3, None), "-1 +2 ~3");
        assert_eq!(counts(0, 0, 0, Some("docs")), "");
    }

    #[test]
    fn the_table_has_a_line_for_each_state_and_one_for_unsealed_changes() {
        let row = |number, after: &str, counts: Option<Counts>| Row {
            number,
            after: after.to_owned(),
            changes: counts,
            ..row_at(Utc::now())
        };
        let text = render(&[
            row(Some(0), "made of project (0e24621)", Some(Counts::default())),
            row(Some(12), "idle, in my-agent", Some(Counts { changed: 4, ..Counts::default() })),
            row(Some(13), "restored 0", None),
            row(None, "now", Some(Counts { changed: 1, ..Counts::default() })),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], " NO  TIME      AFTER                      CHANGES");
        assert!(lines[1].starts_with("  0  ") && lines[1].ends_with("  made of project (0e24621)"), "{text}");
        assert!(
            lines[2].starts_with(" 12  ") && lines[2].ends_with("  idle, in my-agent          ~4"),
            "{text}"
        );
        assert!(lines[3].ends_with("  restored 0                 ?"), "{text}");
        assert!(
            lines[4].starts_with("  *  ") && lines[4].ends_with("  now                        ~1"),
            "{text}"
        );
    }
}
