//! `pfimg audit --packs`: the crash packs of a store.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::json;

use super::envelope::print_json;
use super::text::{plain, print, table};
use crate::audit::file::crash_dir;
use crate::crashpack::replay::replay;
use crate::crashpack::{Kept, kept};
use crate::error::Result;
use crate::store::Store;

/// A crash pack in the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    path: String,
    /// RFC 3339.
    kept_at: String,
    /// The oracles that judged.
    oracles: Vec<String>,
    /// The object of the transfer.
    subject: Option<String>,
    /// The kinds of violations, in order.
    violations: Vec<String>,
    /// The number of steps that led to the verdict.
    steps: usize,
    /// Damage of the pack itself.
    damage: Option<String>,
}

impl Row {
    fn of(pack: &Kept) -> Self {
        let kept_at = DateTime::<Utc>::from(pack.at).to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut row = Self {
            name: pack.name.clone(),
            path: pack.path.display().to_string(),
            kept_at,
            oracles: Vec::new(),
            subject: None,
            violations: Vec::new(),
            steps: 0,
            damage: None,
        };
        match replay(&pack.path, &[]) {
            Ok(found) => {
                row.subject = found.ledger.metadata.get("subject").cloned();
                row.steps = found.pack.steps();
                for result in found.results {
                    row.violations.extend(result.violations.into_iter().map(|found| found.violation_type));
                    row.oracles.push(result.oracle_name);
                }
            }
            Err(error) => row.damage = Some(error.to_string()),
        }
        row
    }
}

/// Prints the crash packs of a store, the newest first. Returns whether all are undamaged.
pub(super) fn list(store: &Store, json: bool) -> Result<bool> {
    let rows: Vec<Row> = kept(&crash_dir(store.root()))?.iter().map(Row::of).collect();
    if json {
        print_json(&json!({"packs": rows}))?;
    } else if rows.is_empty() {
        print("no crash pack\n")?;
    } else {
        let cells = |row: &Row| {
            let found = match &row.damage {
                Some(_) => "the pack was changed".to_owned(),
                None if row.violations.is_empty() => "nothing".to_owned(),
                None => row.violations.join(", "),
            };
            [
                plain(&row.name, 80),
                row.kept_at.clone(),
                row.steps.to_string(),
                plain(row.subject.as_deref().unwrap_or_default(), 80),
                plain(&found, 200),
            ]
        };
        let cells: Vec<_> = rows.iter().map(cells).collect();
        print(&table(["PACK", "KEPT", "STEPS", "SUBJECT", "FOUND"], &cells))?;
    }
    for damage in rows.iter().filter_map(|row| row.damage.as_ref()) {
        eprintln!("pfimg: {damage}");
    }
    Ok(rows.iter().all(|row| row.damage.is_none()))
}
