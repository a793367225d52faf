//! Prints what was measured, and writes all of it as JSON.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Value, json};

use crate::measure::{Row, median};
use crate::mounting::Mounting;
use crate::scale::Growth;
use crate::systems::{Memory, Requests};
use crate::text::{mebibytes, seconds, table, thousands, times_as_long};
use crate::waits::Waits;

/// Kinds of requests shown in a line of the table.
const KINDS: usize = 4;

/// A share of a core used by others above which a row is marked.
const DISTURBED: f64 = 0.25;

/// The machine, as far as it matters.
pub(crate) fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": after(&read("/proc/cpuinfo"), "model name"),
        "memory": after(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_at_start": read("/proc/loadavg").trim(),
    })
}

fn requests_text(requests: &Requests) -> String {
    let mut sorted: Vec<_> = requests.iter().collect();
    sorted.sort_by_key(|(_, count)| -**count);
    let mut text: Vec<_> = sorted
        .iter()
        .take(KINDS)
        .map(|(kind, count)| format!("{} {kind}", thousands(**count as u64)))
        .collect();
    let rest: i64 = sorted.iter().skip(KINDS).map(|(_, count)| **count).sum();
    if rest > 0 {
        text.push(format!("{} others", thousands(rest as u64)));
    }
    if text.is_empty() { "none".into() } else { text.join(", ") }
}

/// Systems that rows are about, but for the first of each row, in the order in which they turn up.
pub(crate) fn systems<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Vec<&'static str> {
    let mut systems = Vec::new();
    for series in rows.into_iter().flat_map(|row| &row.series[1..]) {
        if !systems.contains(&series.system) {
            systems.push(series.system);
        }
    }
    systems
}

/// The names of the groups of rows, each once.
pub(crate) fn groups(rows: &[Row]) -> Vec<&'static str> {
    let mut groups: Vec<_> = rows.iter().map(|row| row.group).collect();
    groups.dedup();
    groups
}

/// The tables of workloads, one for each group, and of the requests behind them.
pub(crate) fn workloads(rows: &[Row]) -> String {
    let mut out = String::new();
    for group in groups(rows) {
        let rows: Vec<_> = rows.iter().filter(|row| row.group == group).collect();
        let _ = writeln!(out, "## {group}\n\n{}", times(&rows));
        if let Some(requests) = requests(&rows) {
            let _ = writeln!(out, "{requests}");
        }
        for row in &rows {
            for note in &row.notes {
                let _ = writeln!(out, "- {}: {note}", row.label());
            }
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "A cell: the median, its ratio to the first system's (median of the pairs of each round), the least and most.\n\
         * others used more than {DISTURBED} of a core while this was measured"
    );
    out
}

fn times(rows: &[&Row]) -> String {
    let systems = systems(rows.iter().copied());
    let cell = |row: &Row, system: &str| {
        let Some(at) = row.series.iter().skip(1).position(|series| series.system == system) else {
            return String::new();
        };
        let ratio = row.ratio(at + 1);
        let time = seconds(row.series[at + 1].median());
        let [paired, least, most] = [ratio.paired, ratio.least, ratio.most].map(times_as_long);
        format!("{time}  {paired} ({least}–{most})")
    };
    let line = |row: &&Row| {
        let mark = if row.disturbance() > DISTURBED { " *" } else { "" };
        let base = match row.series[0].system {
            "native" => String::new(),
            other => format!(" ({other})"),
        };
        let first = [format!("{}{mark}", row.label()), seconds(row.series[0].median()) + &base];
        first.into_iter().chain(systems.iter().map(|system| cell(row, system))).collect()
    };
    let head: Vec<_> = ["workload", "native"].into_iter().chain(systems.iter().copied()).collect();
    table(&head, &rows.iter().map(line).collect::<Vec<_>>())
}

/// What daemons were asked during one run, as far as they say.
fn requests(rows: &[&Row]) -> Option<String> {
    let mut lines = Vec::new();
    for row in rows {
        for series in row.series.iter().filter(|series| series.counts()) {
            lines.push(vec![row.label(), series.system.into(), requests_text(&series.requests())]);
        }
    }
    (!lines.is_empty()).then(|| table(&["workload", "system", "requests of one run"], &lines))
}

/// The table of mounts.
pub(crate) fn mounting(all: &Mounting) -> String {
    let times = |name: &str, values: &[f64]| {
        let (least, most) = values.iter().fold((f64::INFINITY, 0f64), |(a, b), v| (a.min(*v), b.max(*v)));
        vec![
            name.to_owned(),
            seconds(median(values.to_vec())),
            format!("{}–{}", seconds(least), seconds(most)),
        ]
    };
    let memory = |name: &str, values: &[Memory]| {
        let peaks: Vec<u64> = values.iter().map(|memory| memory.peak).collect();
        let (least, most) = (peaks.iter().min().copied(), peaks.iter().max().copied());
        vec![
            name.to_owned(),
            mebibytes(median(peaks.iter().map(|p| *p as f64).collect()) as u64),
            format!("{}–{}", mebibytes(least.unwrap_or(0)), mebibytes(most.unwrap_or(0))),
        ]
    };
    table(
        &[&format!("store of {} images", all.images), "median", "range"],
        &[
            times("pfimg mount", &all.mount),
            memory("daemon's peak memory, mounted", &all.mounted),
            times("first ls images", &all.list_first),
            times("ls images again", &all.list_again),
            memory("daemon's peak memory, listed", &all.listed),
        ],
    )
}

fn memory_json(memory: &Memory) -> Value {
    json!({"peak_bytes": memory.peak, "resident_bytes": memory.resident})
}

/// Every figure.
pub(crate) fn json(
    rows: &[Row],
    mounts: Option<&Mounting>,
    scale: &[Growth],
    waits: Option<&Waits>,
    about: &Value,
) -> Value {
    let series = |row: &Row| -> Vec<Value> {
        row.series
            .iter()
            .enumerate()
            .map(|(at, series)| {
                let ratio = row.ratio(at);
                json!({
                    "system": series.system,
                    "median_seconds": series.median(),
                    "ratio_of_medians": ratio.of_medians,
                    "pairwise_ratio": {"median": ratio.paired, "min": ratio.least, "max": ratio.most},
                    "requests": series.requests(),
                    "memory": memory_json(&series.memory),
                    "runs": series.runs.iter().map(|run| json!({
                        "seconds": run.seconds,
                        "requests": run.requests,
                        "daemon_cpu_seconds": run.daemon_cpu,
                        "foreign_cpu_seconds": run.foreign_cpu,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect()
    };
    let workloads: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "group": row.group,
                "workload": row.name,
                "state": row.state.label(),
                "others_share_of_a_core": row.disturbance(),
                "notes": row.notes,
                "series": series(row),
            })
        })
        .collect();
    let mounting = mounts.map(|all| {
        json!({
            "images": all.images,
            "mount_seconds": all.mount,
            "first_list_seconds": all.list_first,
            "next_list_seconds": all.list_again,
            "memory_mounted": all.mounted.iter().map(memory_json).collect::<Vec<_>>(),
            "memory_listed": all.listed.iter().map(memory_json).collect::<Vec<_>>(),
        })
    });
    let scale: Vec<_> = scale.iter().map(Growth::json).collect();
    let waits = waits.map(Waits::json);
    json!({"about": about, "workloads": workloads, "mounting": mounting, "scale": scale, "waits": waits})
}
