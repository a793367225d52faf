//! The record of the last run in a fork: `forks/.runs/NAME.json` in the store.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::fork::beside::{self, OnDisk};

/// Longest record that is read, in bytes.
const MAX: u64 = 64 << 20;

/// A list of deletions longer than this, in bytes, has its own file: `pfimg forks` reads every record.
const LONG: usize = 256 << 10;

/// A run. Unknown values are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The process that the caller knows, and its start in ticks of the kernel: another process may get the
    /// number later.
    pub(crate) pid: u32,
    pub(crate) pid_started: Option<u64>,
    /// The command and its arguments. Bytes that are not UTF-8 are U+FFFD.
    pub(crate) command: Vec<String>,
    /// RFC 3339.
    pub(crate) started: String,
    pub(crate) ended: Option<String>,
    pub(crate) exit: Option<u8>,
    #[serde(default)]
    pub(crate) timed_out: bool,
    /// Whether the daemon of the mount ended during the run, so that the command lost its files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) interrupted: bool,
    pub(crate) seconds: Option<f64>,
    /// Files outside of `.git`.
    pub(crate) added: Option<u64>,
    pub(crate) changed: Option<u64>,
    pub(crate) deleted: Option<u64>,
    /// The deleted paths: a file, or a directory with a slash behind it.
    #[serde(default)]
    pub(crate) deletions: Vec<String>,
    /// Whether the deletions have their own file, so that the record stays short.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) deletions_apart: bool,
    /// Commits that were made in the fork.
    pub(crate) commits: Option<u64>,
    /// The directory over which the fork was shown.
    pub(crate) at: Option<String>,
    /// When the fork was made, in nanoseconds since 1970. Differs from that of an earlier fork with this name.
    pub(crate) fork_created_ns: i64,
}

impl Record {
    /// Makes the record of a run that begins now, in this process.
    pub(crate) fn begin(command: &[OsString], fork: &OnDisk, at: Option<&Path>) -> Self {
        let pid = std::process::id();
        Self {
            pid,
            pid_started: started_at(pid),
            command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            started: now(),
            at: at.map(|at| at.to_string_lossy().into_owned()),
            fork_created_ns: fork.created_ns,
            ..Self::default()
        }
    }

    /// Marks the run as ended.
    pub(crate) fn end(&mut self) {
        self.ended = Some(now());
    }

    /// Reads the record of a fork's last run. `None` if there was none, or if it was a run of another fork with
    /// this name.
    pub(crate) fn read(store: &Path, fork: &str) -> Result<Option<Self>> {
        let path = beside::run_record(store, fork);
        let damaged =
            || Error::new(ErrorKind::Damaged, format!("{} is not a record of a run", path.display()));
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX => return Err(damaged()),
            _ => {}
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(e, format!("cannot read {}", path.display()))),
        };
        let mut record: Self = serde_json::from_slice(&bytes).map_err(|e| damaged().with_source(e))?;
        if OnDisk::read(store, fork)?.created_ns != record.fork_created_ns {
            return Ok(None);
        }
        if std::mem::take(&mut record.deletions_apart) {
            let path = beside::run_deletions(store, fork);
            let bytes =
                fs::read(&path).map_err(|e| Error::io(e, format!("cannot read {}", path.display())))?;
            record.deletions = serde_json::from_slice(&bytes).map_err(|e| damaged().with_source(e))?;
        }
        Ok(Some(record))
    }

    /// Writes it as the record of a fork's last run.
    pub(crate) fn write(&self, store: &Path, fork: &str) -> Result<()> {
        let apart = beside::run_deletions(store, fork);
        if self.deletions.iter().map(String::len).sum::<usize>() <= LONG {
            let _ = fs::remove_file(&apart);
            return beside::write_run_file(store, &beside::run_record(store, fork), &json(self)?);
        }
        // The deletions come first, so that no record names a missing file.
        beside::write_run_file(store, &apart, &json(&self.deletions)?)?;
        let short = Self { deletions: Vec::new(), deletions_apart: true, ..self.clone() };
        beside::write_run_file(store, &beside::run_record(store, fork), &json(&short)?)
    }

    /// Returns whether the run is under way: it has no end yet, and its process exists.
    pub(crate) fn is_running(&self) -> bool {
        self.ended.is_none() && self.pid_started.is_some() && started_at(self.pid) == self.pid_started
    }
}

/// A value as a line of JSON.
fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write a record").with_source(e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// When the kernel started a process, `proc_pid_stat(5)`.
fn started_at(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name, which may hold anything. The 22nd is 20 words behind it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_under_way_while_its_process_exists() {
        let fork = OnDisk { uid: String::new(), created_ns: 7, base: None, is_untouched: true };
        let mut record = Record::begin(&["sh".into()], &fork, None);
        assert!(record.is_running());
        let other = Record { pid_started: record.pid_started.map(|ticks| ticks + 1), ..record.clone() };
        assert!(!other.is_running());
        record.end();
        assert!(!record.is_running());
    }

    #[test]
    fn a_record_stays_short_whatever_was_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let heads = dir.path().join("forks/heads");
        fs::create_dir_all(&heads).unwrap();
        let zeros = "0".repeat(32);
        let head = serde_json::json!({"uid": zeros, "created_ns": 7, "base": null, "generations": [zeros]});
        fs::write(heads.join("a.json"), head.to_string()).unwrap();
        let fork = OnDisk::read(dir.path(), "a").unwrap();
        let mut record = Record::begin(&["sh".into()], &fork, None);
        for number in [3, 30_000, 2] {
            record.deletions = (0..number).map(|n| format!("a/file/of/some/length/{n}")).collect();
            record.write(dir.path(), "a").unwrap();
            assert_eq!(Record::read(dir.path(), "a").unwrap().as_ref(), Some(&record));
            let len = fs::metadata(beside::run_record(dir.path(), "a")).unwrap().len();
            assert!(len < 2 * LONG as u64, "{number}: {len}");
            assert_eq!(beside::run_deletions(dir.path(), "a").exists(), number == 30_000);
        }
        let other = Record { fork_created_ns: 8, ..record };
        other.write(dir.path(), "a").unwrap();
        assert_eq!(Record::read(dir.path(), "a").unwrap(), None);
    }
}
