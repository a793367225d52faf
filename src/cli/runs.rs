//! Records of runs: `forks/.runs/NAME.json` in a store describes the last run in a fork.
//!
//! Another program may have written a record, or a power cut may have damaged it. A record with impossible
//! values is ignored.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;

/// The longest valid record, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// Allows for a changed clock while a command runs, and for the moment between the start of the process and
/// `started`.
const SLACK: chrono::Duration = chrono::Duration::seconds(2);

/// The last run in a fork, or the one under way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Run {
    /// Whether its process still exists.
    pub(crate) running: bool,
    pub(crate) pid: Option<u32>,
    /// The command and its arguments.
    pub(crate) command: Vec<String>,
    /// RFC 3339, as the next.
    pub(crate) started: Option<String>,
    pub(crate) ended: Option<String>,
    /// The exit code; `None` while it runs, or if it was killed together with its starter.
    pub(crate) exit: Option<i64>,
    pub(crate) seconds: Option<f64>,
    pub(crate) added: Option<u64>,
    pub(crate) changed: Option<u64>,
    pub(crate) deleted: Option<u64>,
    pub(crate) commits: Option<u64>,
}

/// Returns the path of the record of a fork's run.
pub(crate) fn path(store: &Path, fork: &str) -> PathBuf {
    store.join("forks/.runs").join(format!("{fork}.json"))
}

/// Returns the last run in a fork with this creation time, in nanoseconds since 1970. Ignores the record of an
/// earlier fork with the same name.
pub(crate) fn last(store: &Path, fork: &str, made_ns: i64) -> Option<Run> {
    let mut text = Vec::new();
    fs::File::open(path(store, fork)).ok()?.take(MAX_RECORD).read_to_end(&mut text).ok()?;
    let made = DateTime::from_timestamp_nanos(made_ns);
    parse(&text, made, &|pid| process_began(pid, boot_time()?))
}

/// `began` returns the start time of the process with a number, if it exists.
fn parse(text: &[u8], made: DateTime<Utc>, began: &dyn Fn(u32) -> Option<DateTime<Utc>>) -> Option<Run> {
    let record: Value = serde_json::from_slice(text).ok()?;
    let record = record.as_object()?;
    let number = |key: &str| record.get(key).and_then(Value::as_u64);
    let command = match record.get("command") {
        Some(Value::String(command)) => vec![command.clone()],
        Some(Value::Array(words)) => {
            words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    let started = record.get("started").and_then(time);
    if started.is_some_and(|started| started + SLACK < made) {
        return None;
    }
    let ended = record.get("ended").and_then(time);
    let pid = number("pid").and_then(|pid| u32::try_from(pid).ok());
    // Another process may have the number: it began later.
    let is_it = |began: DateTime<Utc>| started.is_none_or(|started| began <= started + SLACK);
    let running = record.get("ended").is_none_or(Value::is_null) && pid.and_then(began).is_some_and(is_it);
    let shown = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    Some(Run {
        running,
        pid,
        command,
        started: started.map(shown),
        ended: ended.map(shown),
        exit: record.get("exit").and_then(Value::as_i64),
        seconds: record.get("seconds").and_then(Value::as_f64),
        added: number("added"),
        changed: number("changed"),
        deleted: number("deleted"),
        commits: number("commits"),
    })
}

/// Parses a time in RFC 3339, or in seconds since 1970.
fn time(value: &Value) -> Option<DateTime<Utc>> {
    match value {
        Value::String(text) => Some(DateTime::parse_from_rfc3339(text).ok()?.to_utc()),
        Value::Number(seconds) => DateTime::from_timestamp_millis((seconds.as_f64()? * 1000.0) as i64),
        _ => None,
    }
}

/// Returns when the machine was started.
fn boot_time() -> Option<DateTime<Utc>> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    DateTime::from_timestamp(seconds.trim().parse().ok()?, 0)
}

/// Returns when a process began, if it exists and has not ended.
fn process_began(pid: u32, boot: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let ticks: i64 = fields.nth(18)?.parse().ok()?;
    let per_second = i64::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    Some(boot + chrono::Duration::milliseconds(ticks * 1000 / per_second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MADE: &str = "2026-11-30T10:00:00Z";

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    fn run(record: &Value, began: Option<&str>) -> Option<Run> {
        parse(record.to_string().as_bytes(), at(MADE), &|_| began.map(at))
    }

    #[test]
    fn a_run_is_under_way_while_the_very_process_that_began_it_is_there() {
        let open = json!({"pid": 7, "command": ["sh", "-c", "x"], "started": "2026-11-30T10:00:05.5Z"});
        let mut ended = open.clone();
        ended["ended"] = json!("2026-11-30T10:00:09Z");
        ended["exit"] = json!(3);
        for (record, began, running) in [
            (&open, Some("2026-11-30T10:00:05Z"), true),
            (&open, Some("2026-11-30T09:59:00Z"), true),
            (&open, Some("2026-11-30T10:00:20Z"), false),
            (&open, None, false),
            (&ended, Some("2026-11-30T10:00:05Z"), false),
        ] {
            assert_eq!(run(record, began).unwrap().running, running, "{record} {began:?}");
        }
        let run = run(&ended, None).unwrap();
        assert_eq!((run.exit, run.command), (Some(3), vec!["sh".to_owned(), "-c".into(), "x".into()]));
        // This very process.
        let own = process_began(std::process::id(), boot_time().unwrap()).unwrap();
        let age = Utc::now() - own;
        assert!(age > chrono::Duration::seconds(-3) && age < chrono::Duration::hours(2), "{age}");
    }

    #[test]
    fn an_impossible_record_is_ignored_and_odd_values_are_left_out() {
        for text in ["", "{", "[]", "7", "\u{0}", "null"] {
            assert_eq!(parse(text.as_bytes(), at(MADE), &|_| None), None, "{text}");
        }
        let odd = json!({"pid": -1, "command": 7, "started": "yesterday", "exit": "x", "added": -3, "seconds": 1.5});
        let run = run(&odd, Some(MADE)).unwrap();
        assert!(!run.running && run.command.is_empty() && run.added.is_none() && run.seconds == Some(1.5));
        // A record of the earlier fork with the name.
        let before = json!({"pid": 7, "command": "x", "started": "2026-11-30T09:00:00Z"});
        assert_eq!(super::tests::run(&before, None), None);
        assert_eq!(time(&json!(1_764_496_800.25)).unwrap(), at("2025-11-30T10:00:00.25Z"));
    }
}
