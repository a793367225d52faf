//! `pfimg forks`: lists the forks and what they cost.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::SecondsFormat;
use clap::Args;
use serde::Serialize;

use super::StoreArg;
use super::place;
use super::text::{print, print_json, table};
use crate::digest::Digest;
use crate::error::Result;
use crate::fork::{Compare, Registry, View, compare};
use crate::store::Store;
use crate::util::units::format_bytes;

/// List the forks.
#[derive(Debug, Args)]
pub(crate) struct ForksArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A fork in the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// The image it was made of, with which `pfimg diff FORK` compares.
    base: Option<Digest>,
    /// The image it was sealed as last, if that is another one.
    last_seal: Option<Digest>,
    /// RFC 3339.
    created_at: String,
    age_seconds: u64,
    /// Paths that differ from the image it was made of, as `pfimg diff -r` lists them. Files of the same length that were written to are not
    /// read, and count.
    changed: u64,
    /// Bytes on disk that no other fork rests on.
    own_bytes: u64,
    damage: Option<String>,
}

pub(crate) fn run(store: &StoreArg, args: &ForksArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let registry = place::registry(&store, true)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let (mut rows, mut origins) = (Vec::new(), HashMap::new());
    for name in registry.names() {
        let info = registry.info(&name)?;
        // A fork that cannot be read is listed as damaged, and hides no other.
        let (stats, damage) = match registry.stats(&name) {
            Ok(stats) => (Some(stats), registry.info(&name)?.damage),
            Err(error) => (None, Some(error.to_string())),
        };
        let (origin, changed) = match &stats {
            Some(stats) => {
                changed(&store, &registry, &name, &mut origins).unwrap_or((stats.base, stats.changed))
            }
            None => (None, 0),
        };
        let rests_on = stats.as_ref().map_or(info.base, |stats| stats.base);
        let base = if stats.is_some() { origin } else { info.base };
        rows.push(Row {
            base,
            last_seal: rests_on.filter(|_| rests_on != base),
            created_at: chrono::DateTime::from_timestamp_nanos(info.created_ns)
                .to_rfc3339_opts(SecondsFormat::AutoSi, true),
            age_seconds: (now - info.created_ns).max(0) as u64 / 1_000_000_000,
            changed,
            own_bytes: stats.as_ref().map_or(0, |stats| stats.own_bytes),
            damage,
            name,
        });
    }
    if args.json {
        print_json(&rows)?;
    } else if rows.is_empty() {
        eprintln!("pfimg: there is no fork in {}", store.root().display());
    } else {
        let cells: Vec<_> = rows.iter().map(cells).collect();
        print(&table(["FORK", "BASE", "LAST SEAL", "AGE", "CHANGED", "OWN", ""], &cells))?;
    }
    let damaged = rows.iter().any(|row| row.damage.is_some());
    Ok(if damaged { ExitCode::from(super::images::DAMAGED) } else { ExitCode::SUCCESS })
}

/// What a fork was made of, and how many paths differ from that. Many forks are made of one image, which is read once.
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
    [
        row.name.clone(),
        row.base.as_ref().map_or_else(|| "(empty)".into(), short),
        row.last_seal.as_ref().map_or_else(|| "-".into(), short),
        age(row.age_seconds),
        row.changed.to_string(),
        format_bytes(row.own_bytes),
        row.damage.as_ref().map_or_else(String::new, |damage| format!("damaged: {damage}")),
    ]
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
    fn an_age_is_told_in_its_largest_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(age(seconds), text);
        }
    }
}
