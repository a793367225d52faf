//! Crash packs: a folder with everything a verdict was come by, so that it can be come by again, elsewhere.
//!
//! ```text
//! transfer.atp-trace     what happened, and what each oracle judged (JSON)
//! manifest               what the pack is, a line a fact
//! journal                the verdicts, for people
//! journal.digest         SHA-256 and length of that
//! evidence-ledger.json   seeds, metadata, and what the verdicts weigh
//! pathlog quiclog repairlog   lines of the trace about paths, packets and repairs
//! replay_command.sh      judges again
//! ```
//! Names and forms are those of asupersync's crash packs. The same input makes the same bytes, so that a pack is whole
//! exactly if the trace and the ledger make all of it again: [`replay`] does so, and judges again. A pack is no
//! signature: who changes all of its files in step is not found out.

pub mod evidence;
#[cfg(test)]
pub(crate) mod failing;
mod quote;
pub mod replay;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::oracle::{Transfer, TransferOracle, TransferOracleResult};
use crate::store::{Digest, Sharing};
use evidence::{EvidenceLedger, LedgerEntry};
use quote::{line, seed_env_suffix, shell_arg};

/// The version of the form.
pub const SCHEMA_VERSION: u32 = 1;

/// The trace's file.
const TRACE: &str = "transfer.atp-trace";
/// The ledger's file.
const LEDGER: &str = "evidence-ledger.json";
/// The file to run.
const REPLAY: &str = "replay_command.sh";

/// The files of a pack.
pub const FILES: [&str; 9] =
    [TRACE, "manifest", "journal", "journal.digest", LEDGER, "pathlog", "quiclog", "repairlog", REPLAY];

/// Kinds of events that belong into the log of paths whatever they say.
const PATH_KINDS: [&str; 12] = [
    "path",
    "spawn",
    "schedule",
    "yield",
    "wake",
    "poll",
    "complete",
    "region_created",
    "region_close_begin",
    "region_close_complete",
    "region_cancelled",
    "checkpoint",
];

/// What an oracle was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The oracle, with the checks it made.
    pub oracle: TransferOracle,
    /// What it was shown.
    pub transfer: Transfer,
}

/// One thing that happened on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Its number, from 1.
    pub seq: u64,
    /// What kind of thing.
    pub kind: String,
    /// What, in words.
    pub message: String,
    /// What an oracle was shown, where that is what happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Judged>,
}

impl TraceEvent {
    fn says_any(&self, words: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }
}

/// A crash pack, not yet in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crashpack {
    trace: Vec<TraceEvent>,
    seeds: BTreeMap<String, u64>,
    artifact_paths: Vec<String>,
    metadata: BTreeMap<String, String>,
}

impl Crashpack {
    /// A pack of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what an oracle was shown. Its verdict is worked out from that.
    #[must_use]
    pub fn with_judged(self, oracle: TransferOracle, transfer: Transfer) -> Self {
        let message = format!("{} of {}", transfer.kind, transfer.subject);
        self.push("judged", message, Some(Judged { oracle, transfer }))
    }

    /// Adds something that happened on the way.
    #[must_use]
    pub fn with_trace(self, kind: &str, message: impl Into<String>) -> Self {
        self.push(kind, message.into(), None)
    }

    /// What happened first on the way, in words.
    pub fn first_message(&self) -> Option<&str> {
        self.trace.first().map(|event| event.message.as_str())
    }

    fn push(mut self, kind: &str, message: String, judged: Option<Judged>) -> Self {
        let seq = self.trace.len() as u64 + 1;
        self.trace.push(TraceEvent { seq, kind: kind.to_owned(), message, judged });
        self
    }

    /// Adds the seed of random numbers.
    #[must_use]
    pub fn with_seed(mut self, name: impl Into<String>, seed: u64) -> Self {
        self.seeds.insert(name.into(), seed);
        self
    }

    /// Adds the path of a file that belongs to it; once, however often it is added.
    #[must_use]
    pub fn with_artifact_path(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        if !self.artifact_paths.contains(&path) {
            self.artifact_paths.push(path);
        }
        self
    }

    /// Adds something worth knowing.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The verdicts, in order.
    pub fn results(&self) -> Vec<TransferOracleResult> {
        let judged = self.trace.iter().filter_map(|event| event.judged.as_ref());
        judged.map(|judged| judged.oracle.validate_transfer(&judged.transfer.state)).collect()
    }

    /// Every file's name and bytes. The same pack has the same bytes.
    pub fn files(&self) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        let json = |value: serde_json::Result<Vec<u8>>| {
            value.map_err(|e| Error::new(ErrorKind::Io(None), "cannot write a crash pack").with_source(e))
        };
        let results = self.results();
        let trace = json(serde_json::to_vec_pretty(&self.trace))?;
        let journal = journal(&results);
        let journal_digest = Digest::of(journal.as_bytes());
        let manifest = self.manifest(&results, &journal_digest, &Digest::of(&trace));
        let log = |include: &dyn Fn(&TraceEvent) -> bool| {
            let lines = self.trace.iter().filter(|event| include(event));
            lines
                .map(|e| format!("[{:06}] {} {}", e.seq, line(&e.kind), line(&e.message)))
                .collect::<Vec<_>>()
                .join("\n")
                .into_bytes()
        };
        Ok(BTreeMap::from([
            (TRACE, trace),
            ("manifest", manifest.into_bytes()),
            ("journal.digest", format!("digest: {journal_digest}\nbytes: {}\n", journal.len()).into_bytes()),
            ("journal", journal.into_bytes()),
            (LEDGER, json(serde_json::to_vec_pretty(&self.ledger(&results)))?),
            (
                "pathlog",
                log(&|e| PATH_KINDS.contains(&e.kind.as_str()) || e.says_any(&["path", "route", "racing"])),
            ),
            ("quiclog", log(&|e| e.says_any(&["quic", "udp", "packet", "connection id"]))),
            ("repairlog", log(&|e| e.says_any(&["repair", "raptorq", "fec", "symbol"]))),
            (REPLAY, self.replay_command(&results).into_bytes()),
        ]))
    }

    fn manifest(&self, results: &[TransferOracleResult], journal: &Digest, trace: &Digest) -> String {
        let violations: usize = results.iter().map(|result| result.violations.len()).sum();
        let mut out = format!(
            "# ATP Crashpack Manifest\nschema_version: {SCHEMA_VERSION}\nviolations: {violations}\n\
             trace_digest: {trace}\njournal_digest: {journal}\njournal_digest_artifact: journal.digest\n\
             evidence_ledger: {LEDGER}\n"
        );
        for (key, value) in &self.metadata {
            let _ = writeln!(out, "metadata.{}: {}", line(key), line(value));
        }
        if !self.seeds.is_empty() {
            out.push_str("seeds:\n");
        }
        for (name, seed) in &self.seeds {
            let _ = writeln!(out, "  {}: {seed}", line(name));
        }
        if !self.artifact_paths.is_empty() {
            out.push_str("artifact_paths:\n");
        }
        for path in &self.artifact_paths {
            let _ = writeln!(out, "  - {}", line(path));
        }
        out
    }

    fn ledger(&self, results: &[TransferOracleResult]) -> EvidenceLedger {
        let own = FILES.iter().map(|name| (*name).to_owned());
        EvidenceLedger {
            schema_version: SCHEMA_VERSION,
            seeds: self.seeds.clone(),
            metadata: self.metadata.clone(),
            artifacts: own.chain(self.artifact_paths.iter().cloned()).collect(),
            entries: results
                .iter()
                .map(|result| LedgerEntry {
                    oracle: result.oracle_name.clone(),
                    artifact: TRACE.to_owned(),
                    evidence: evidence::of(result),
                })
                .collect(),
        }
    }

    fn replay_command(&self, results: &[TransferOracleResult]) -> String {
        let mut out = String::from(
            "#!/bin/sh\n# Judges this crash pack again, from its own files alone.\n\
             # Exit code: 0 nothing wrong, 3 the violation is reproduced, 4 the pack was changed.\n\n",
        );
        for (name, seed) in &self.seeds {
            let _ = writeln!(out, "export PFIMG_SEED_{}={seed}", seed_env_suffix(name));
        }
        out.push_str("cd \"$(dirname \"$0\")\" || exit 1\nexec \"${PFIMG:-pfimg}\" replay");
        for result in results {
            // With `=`, so that no name can pass for an option.
            let _ = write!(out, " --oracle={}", shell_arg(&result.oracle_name));
        }
        out.push_str(" .\n");
        out
    }

    /// Writes the pack into a new folder, which lasts once this returns. It is for its user alone.
    pub fn write_to(&self, dir: &Path) -> Result<()> {
        self.write_shared(dir, Sharing::Private)
    }

    fn write_shared(&self, dir: &Path, sharing: Sharing) -> Result<()> {
        let files = self.files()?;
        let failed = |e: io::Error| Error::io(e, format!("cannot write crash pack {}", dir.display()));
        sharing.create_dir_all(dir).map_err(failed)?;
        for (name, bytes) in files {
            let made = sharing.open_or_create(File::options().write(true).truncate(true), &dir.join(name));
            let mut file = made.map_err(failed)?;
            file.write_all(&bytes).map_err(failed)?;
            if name == REPLAY {
                sharing.make_runnable(&file).map_err(failed)?;
            }
            file.sync_all().map_err(failed)?;
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    /// Keeps the pack below `parent` in a folder named after what is in it, and says where. One that is there already is
    /// left as it is.
    pub fn keep_in(&self, parent: &Path) -> Result<PathBuf> {
        let failed = |e: io::Error| Error::io(e, format!("cannot create {}", parent.display()));
        Sharing::Private.create_dir_all(parent).map_err(failed)?;
        self.keep_shared(parent, Sharing::Private)
    }

    /// The same in a folder that is there, of a store that is shared.
    pub(crate) fn keep_shared(&self, parent: &Path, sharing: Sharing) -> Result<PathBuf> {
        let failed = |e: io::Error| Error::io(e, format!("cannot keep a crash pack in {}", parent.display()));
        let files = self.files()?;
        let digest = Digest::of(files.get("manifest").map_or(&[][..], Vec::as_slice)).hex();
        let kinds =
            self.results().first().map_or_else(|| "pack".to_owned(), |r| seed_env_suffix(&r.oracle_name));
        let dir = parent.join(format!("{}-{}", kinds.to_ascii_lowercase(), &digest[..16]));
        if dir.join(REPLAY).exists() {
            return Ok(dir);
        }
        let closed = Sharing::Private.folder_permissions();
        let temp = tempfile::Builder::new()
            .prefix(".tmp-")
            .permissions(closed)
            .tempdir_in(parent)
            .map_err(failed)?;
        self.write_shared(temp.path(), sharing)?;
        sharing.grant_dir(temp.path()).map_err(failed)?;
        match fs::rename(temp.path(), &dir) {
            Ok(()) => {
                let _ = temp.keep();
            }
            // Somebody kept the same pack just now.
            Err(_) if dir.join(REPLAY).exists() => return Ok(dir),
            Err(e) => return Err(failed(e)),
        }
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(dir)
    }
}

fn journal(results: &[TransferOracleResult]) -> String {
    let mut out = String::from("# ATP Journal Digest\n");
    for result in results {
        let _ = writeln!(out, "oracle: {}", line(&result.oracle_name));
        let _ = writeln!(out, "  events_recorded: {}", result.stats.events_recorded);
        let _ = writeln!(out, "  entities_tracked: {}", result.stats.entities_tracked);
        let _ = writeln!(out, "  passed: {}", result.passed);
        if result.has_violations() {
            out.push_str("  violations:\n");
        }
        for violation in &result.violations {
            let _ = writeln!(out, "    - type: {}", line(&violation.violation_type));
            let _ = writeln!(out, "      severity: {:?}", violation.severity);
            let _ = writeln!(out, "      description: {}", line(&violation.description));
            if !violation.evidence.is_empty() {
                out.push_str("      evidence:\n");
            }
            for (key, value) in &violation.evidence {
                let _ = writeln!(out, "        {}: {}", line(key), line(value));
            }
        }
    }
    out
}
