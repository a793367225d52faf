//! `pfimg forks`: lists the forks and their cost.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::SecondsFormat;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::envelope::print_json;
use super::place;
use super::runs::{self, Run};
use super::store_arg::StoreArg;
use super::text::{count, plain, print, table};
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Exit, Result};
use crate::fork::{Compare, ForkInfo, Registry, View, compare};
use crate::ops::line::Line;
use crate::store::Store;
use crate::util::units::format_bytes;

/// Longer commands are cut, in characters.
const COMMAND: usize = 40;

/// List the forks, each with its running or last command.
#[derive(Debug, Args)]
#[command(after_help = "\
BASE is the image that the fork was made of, and LAST SEAL its newest saved state. BY THE RUN counts the files that its last \
run changed. OWN, with --long, is the space on disk that no other fork uses.")]
pub(crate) struct ForksArgs {
    /// Read each fork: count its changed paths and bytes on disk, and check it for damage
    #[arg(long, short)]
    long: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A fork in the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// The image that it was made of; `pfimg diff FORK` compares with it.
    base: Option<Digest>,
    /// The image of its last seal, unless that is the image that it was made of.
    last_seal: Option<Digest>,
    /// RFC 3339.
    created_at: String,
    age_seconds: u64,
    /// Its last run, under way or ended.
    run: Option<Run>,
    /// Paths that differ from the image that the fork was made of, as `pfimg diff -r` lists them. Written files
    /// of unchanged length are not read, and count. Only with --long, like the next two fields.
    changed: Option<u64>,
    /// Bytes on disk that no other fork uses.
    own_bytes: Option<u64>,
    damage: Option<String>,
}

pub(crate) fn run(store: &StoreArg, args: &ForksArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let registry = forks::registry(&store, true)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let (mut rows, mut origins, mut there) = (Vec::new(), HashMap::new(), HashMap::new());
    for name in registry.names() {
        let info = registry.info(&name)?;
        let made_ns = info.created_ns;
        let found = if args.long {
            read(&store, &registry, &info, &mut origins)?
        } else {
            Found::of_head(&store, info, &mut there)
        };
        rows.push(Row {
            base: found.base,
            last_seal: found.rests_on.filter(|_| found.rests_on != found.base),
            created_at: chrono::DateTime::from_timestamp_nanos(made_ns)
                .to_rfc3339_opts(SecondsFormat::AutoSi, true),
            age_seconds: (now - made_ns).max(0) as u64 / 1_000_000_000,
            run: runs::last(store.root(), &name, made_ns),
            changed: found.changed,
            own_bytes: found.own_bytes,
            damage: found.damage,
            name,
        });
    }
    if args.json {
        print_json(&json!({"forks": rows}))?;
    } else if rows.is_empty() {
        eprintln!("pfimg: there is no fork in {}", store.root().display());
    } else if args.long {
        let cells: Vec<[String; 9]> = rows.iter().map(long_cells).collect();
        print(&table(
            ["FORK", "BASE", "LAST SEAL", "AGE", "LAST RUN", "BY THE RUN", "CHANGED", "OWN", ""],
            &cells,
        ))?;
    } else {
        let cells: Vec<[String; 7]> = rows.iter().map(cells).collect();
        print(&table(["FORK", "BASE", "LAST SEAL", "AGE", "LAST RUN", "BY THE RUN", ""], &cells))?;
    }
    let damaged = rows.iter().any(|row| row.damage.is_some());
    Ok(if damaged { Exit::Damage.into() } else { ExitCode::SUCCESS })
}

/// The findings about a fork.
struct Found {
    /// The image that it was made of.
    base: Option<Digest>,
    rests_on: Option<Digest>,
    changed: Option<u64>,
    own_bytes: Option<u64>,
    damage: Option<String>,
}

impl Found {
    /// Reads a fork's head and list of seals, and no tree. `there` remembers which images are in the store.
    fn of_head(store: &Store, info: ForkInfo, there: &mut HashMap<Digest, bool>) -> Self {
        let base = match Line::of_name(store, &info.name) {
            Ok(line) if line.began_empty() => None,
            Ok(line) => line.origin().or(info.base),
            Err(_) => info.base,
        };
        let mut is_there =
            |image: Digest| *there.entry(image).or_insert_with(|| store.images().contains(&image));
        let gone = info.base.filter(|image| !is_there(*image));
        let gone = gone.map(|image| format!("it rests on image {image}, which is not in the store"));
        let damage = info.damage.or(gone);
        Self { base, rests_on: info.base, changed: None, own_bytes: None, damage }
    }
}

/// Reads a fork. A fork that cannot be read is listed as damaged, and does not hide the others.
fn read(
    store: &Store,
    registry: &Registry,
    info: &ForkInfo,
    origins: &mut HashMap<Option<Digest>, View>,
) -> Result<Found> {
    let stats = match registry.stats(&info.name) {
        Ok(stats) => stats,
        Err(error) => {
            let damage = Some(error.to_string());
            return Ok(Found {
                base: info.base,
                rests_on: info.base,
                changed: None,
                own_bytes: None,
                damage,
            });
        }
    };
    let (base, changed) =
        changed(store, registry, &info.name, origins).unwrap_or((stats.base, stats.changed));
    Ok(Found {
        base,
        rests_on: stats.base,
        changed: Some(changed),
        own_bytes: Some(stats.own_bytes),
        damage: registry.info(&info.name)?.damage,
    })
}

/// Returns the origin of a fork, and the number of paths that differ from it. Many forks may share one origin,
/// which is read once.
fn changed(
    store: &Store,
    registry: &Registry,
    name: &str,
    origins: &mut HashMap<Option<Digest>, View>,
) -> Result<(Option<Digest>, u64)> {
    let fork = registry.get(name)?;
    let origin = place::origin(store, &fork)?;
    let before = match origins.entry(origin) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(slot) => slot.insert(registry.view(origin)?),
    };
    let mut changed = 0;
    let options = Compare { all: true, read: false };
    compare(before, &fork.view(), options, &mut |_| {
        changed += 1;
        Ok(())
    })?;
    Ok((origin, changed))
}

fn cells(row: &Row) -> [String; 7] {
    let short = |id: &Digest| id.hex()[..super::images::SHORT].to_owned();
    let (run, by_the_run) = row.run.as_ref().map_or_else(|| ("-".into(), String::new()), run_cells);
    [
        row.name.clone(),
        // A copy made file by file names its image in its files, which the short list does not read.
        row.base.as_ref().map_or_else(|| "-".into(), short),
        row.last_seal.as_ref().map_or_else(|| "-".into(), short),
        age(row.age_seconds),
        run,
        by_the_run,
        row.damage.as_ref().map_or_else(String::new, |damage| format!("damaged: {damage}")),
    ]
}

fn long_cells(row: &Row) -> [String; 9] {
    let [name, base, last_seal, age, run, by_the_run, damage] = cells(row);
    let base = if row.base.is_none() { "(empty)".into() } else { base };
    let changed = row.changed.map_or_else(|| "-".into(), |changed| changed.to_string());
    let own = row.own_bytes.map_or_else(|| "-".into(), format_bytes);
    [name, base, last_seal, age, run, by_the_run, changed, own, damage]
}

/// Describes a run and its changes in words.
fn run_cells(run: &Run) -> (String, String) {
    let command = plain(&run.command.join(" "), COMMAND);
    let state = match (run.running, run.exit) {
        (true, _) => "runs".to_owned(),
        (false, Some(code)) => format!("exit {code}"),
        (false, None) => "killed".to_owned(),
    };
    let time = run.seconds.filter(|_| !run.running).map_or_else(String::new, |time| format!(" {time:.1} s"));
    let marks = [('-', run.deleted), ('+', run.added), ('~', run.changed)];
    let mut changes: Vec<String> = marks
        .into_iter()
        .filter_map(|(mark, number)| {
            number.filter(|number| *number > 0).map(|number| format!("{mark}{number}"))
        })
        .collect();
    changes.extend(run.commits.filter(|commits| *commits > 0).map(|commits| count(commits, "commit")));
    (format!("{state}{time}: {command}"), changes.join(" "))
}

/// A time span in its largest unit.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_shown_in_its_largest_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn a_run_is_shown_with_its_end_and_its_changes() {
        let run = Run {
            running: false,
            pid: Some(1),
            command: vec!["make".into(), "test".into()],
            started: None,
            ended: None,
            exit: Some(2),
            seconds: Some(1.26),
            added: Some(1),
            changed: Some(2),
            deleted: Some(0),
            commits: Some(1),
        };
        assert_eq!(run_cells(&run), ("exit 2 1.3 s: make test".into(), "+1 ~2 1 commit".into()));
        let running = Run { running: true, exit: None, command: vec!["a\nb".into()], ..run };
        assert_eq!(run_cells(&running).0, r"runs: a\nb");
    }
}
