//! Judges a crash pack again. It reads only the pack's files.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::evidence::{EvidenceLedger, Spelling};
use super::pack::{Crashpack, FILES, LEDGER, REPLAY, SCHEMA_VERSION, TRACE};
use super::trace::TraceEvent;
use crate::error::{Error, ErrorKind, Result};
use crate::oracle::TransferOracleResult;

/// Largest file of a pack that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// A pack that is whole, and its verdicts.
#[derive(Debug)]
pub struct Replay {
    /// The verdicts, computed again.
    pub results: Vec<TransferOracleResult>,
    /// Its evidence ledger.
    pub ledger: EvidenceLedger,
    /// The pack.
    pub pack: Crashpack,
}

impl Replay {
    /// Whether the replay found a violation.
    pub fn reproduces(&self) -> bool {
        self.results.iter().any(TransferOracleResult::has_violations)
    }

    /// The result and its subject, in a line.
    pub fn found(&self) -> String {
        let subject = self.ledger.metadata.get("subject").map(|subject| format!(" of {subject}"));
        let subject = subject.unwrap_or_default();
        let found: Vec<&str> = self
            .results
            .iter()
            .flat_map(|result| &result.violations)
            .map(|violation| violation.description.as_str())
            .collect();
        let oracles: Vec<&str> = self.results.iter().map(|result| result.oracle_name.as_str()).collect();
        let found = if found.is_empty() { "no violation".to_owned() } else { found.join("; ") };
        let oracles = if oracles.is_empty() { "no oracle".to_owned() } else { oracles.join(", ") };
        format!("{oracles}{subject}: {found}")
    }
}

/// Files that identify a crash pack.
const MARKS: [&str; 4] = [TRACE, LEDGER, "journal.digest", REPLAY];

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    let failed = |e: io::Error| match e.raw_os_error() {
        // Missing, a link, or a socket.
        Some(libc::ENOENT | libc::ELOOP | libc::ENXIO) => changed(dir, name, &e.to_string()),
        _ => Error::io(e, format!("cannot read {}", path.display())),
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(changed(dir, name, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(changed(dir, name, "it is larger than any file of a pack"));
    }
    Ok(bytes)
}

fn changed(dir: &Path, name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("crash pack {} was changed: {name}: {why}", dir.display()))
        .with_hint("replay a copy that was not changed; nothing in this one can be relied on")
}

/// Fails if a folder is not a crash pack, or holds more than one.
fn look(dir: &Path) -> Result<()> {
    let none = || {
        Error::new(ErrorKind::NotFound, format!("there is no crash pack in {}", dir.display()))
            .with_hint("name a directory with transfer.atp-trace and evidence-ledger.json")
    };
    let failed = |e: io::Error| Error::io(e, format!("cannot list {}", dir.display()));
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(none());
        }
        Err(e) => return Err(failed(e)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    if !names.iter().any(|name| MARKS.iter().any(|mark| name == mark)) {
        return Err(none());
    }
    match names.iter().find(|name| FILES.iter().all(|file| name != file)) {
        Some(more) => Err(changed(dir, &more.to_string_lossy(), "no crash pack has such a file")),
        None => Ok(()),
    }
}

/// Reads a pack, computes everything in it again, and refuses it if a byte differs. With `oracles`, all of
/// these must be among those that judged.
pub fn replay(dir: &Path, oracles: &[String]) -> Result<Replay> {
    let pack = load(dir)?;
    let results = pack.results();
    if let Some(missing) = oracles.iter().find(|name| !results.iter().any(|r| r.oracle_name == **name)) {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no oracle {missing:?} judged in crash pack {}", dir.display()),
        ));
    }
    let ledger = pack.ledger(&results);
    Ok(Replay { results, ledger, pack })
}

/// Reads a pack and refuses it if a byte differs.
fn load(dir: &Path) -> Result<Crashpack> {
    look(dir)?;
    let found: Vec<(&str, Vec<u8>)> =
        FILES.iter().map(|name| Ok((*name, read(dir, name)?))).collect::<Result<_>>()?;
    let bytes_of = |name: &str| {
        found.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, bytes)| bytes.as_slice())
    };
    let trace: Vec<TraceEvent> =
        serde_json::from_slice(bytes_of(TRACE)).map_err(|e| changed(dir, TRACE, &e.to_string()))?;
    let ledger: EvidenceLedger =
        serde_json::from_slice(bytes_of(LEDGER)).map_err(|e| changed(dir, LEDGER, &e.to_string()))?;
    if ledger.schema_version > SCHEMA_VERSION {
        return Err(Error::new(
            ErrorKind::UnsupportedSchema,
            format!("crash pack {} has schema version {}", dir.display(), ledger.schema_version),
        )
        .with_hint("use a newer pfimg"));
    }
    let pack = Crashpack {
        trace,
        seeds: ledger.seeds,
        artifact_paths: ledger.artifact_paths.into_iter().skip(FILES.len()).collect(),
        metadata: ledger.metadata,
        spelling: Spelling::of(bytes_of(LEDGER)),
    };
    let made = pack.files()?;
    for (name, bytes) in &found {
        if made.get(name) != Some(bytes) {
            return Err(changed(dir, name, "it differs from what the trace and the ledger give"));
        }
    }
    if let Some(seq) = pack.contradiction() {
        let why = format!(
            "the steps before event {seq} give a different state from the one that the oracle judged"
        );
        return Err(changed(dir, TRACE, &why));
    }
    Ok(pack)
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
