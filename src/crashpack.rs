//! Crash packs: a folder with all inputs of a verdict, to reproduce it elsewhere.
//!
//! ```text
//! transfer.atp-trace     the events, and the input of each oracle (JSON)
//! manifest               a description of the pack, a line a fact
//! journal                the verdicts, for people
//! journal.digest         SHA-256 and length of the journal
//! evidence-ledger.json   seeds, metadata, and the weights of the verdicts
//! pathlog quiclog repairlog   lines of the trace about paths, packets and repairs
//! replay_command.sh      runs the checks again
//! ```
//! Names and forms are those of asupersync's crash packs. The same input makes the same bytes, so a pack is whole
//! exactly if the trace and the ledger make all of it again: [`replay`] does so, and judges again. A pack is not a
//! signature: a consistent change of all its files is not detected.

pub mod evidence;
#[cfg(test)]
pub(crate) mod failing;
mod keep;
mod minimize;
mod quote;
pub mod replay;
mod steps;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::oracle::{Transfer, TransferOracle, TransferOracleResult};
use evidence::{EvidenceLedger, LedgerEntry, Spelling};
use quote::{line, shell_arg};

pub use keep::{Kept, kept};
pub use quote::seed_variable;
pub use steps::{Seen, Steps};

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

/// Kinds of events that go to the log of paths whatever their message.
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

/// The kind of events whose messages are searched.
const MESSAGE: &str = "message";

/// The input of an oracle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The oracle, with the checks it made.
    pub oracle: TransferOracle,
    /// The transfer that it judged.
    pub transfer: Transfer,
}

/// One event of the transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Its number, from 1.
    pub seq: u64,
    /// Its kind.
    pub kind: String,
    /// Its message.
    pub message: String,
    /// The observation that the step gives an oracle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
    /// The input of an oracle, if the event is a judgement.
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
    spelling: Spelling,
}

impl Crashpack {
    /// Makes an empty pack.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the input of an oracle. The verdict is computed from it.
    #[must_use]
    pub fn with_judged(self, oracle: TransferOracle, transfer: Transfer) -> Self {
        let message = format!("{} of {}", transfer.kind, transfer.subject);
        self.push("judged", message, None, Some(Judged { oracle, transfer }))
    }

    /// Adds an event of the transfer.
    #[must_use]
    pub fn with_trace(self, kind: &str, message: impl Into<String>) -> Self {
        self.push(kind, message.into(), None, None)
    }

    fn push(mut self, kind: &str, message: String, seen: Option<Seen>, judged: Option<Judged>) -> Self {
        let seq = self.trace.len() as u64 + 1;
        self.trace.push(TraceEvent { seq, kind: kind.to_owned(), message, seen, judged });
        self
    }

    /// The number of a judged event whose state differs from the one that the steps before it give; nothing
    /// if all match, and in a pack whose steps show nothing.
    fn contradiction(&self) -> Option<u64> {
        if self.trace.iter().all(|event| event.seen.is_none()) {
            return None;
        }
        let contradicts = |(index, event): (usize, &TraceEvent)| {
            let judged = event.judged.as_ref()?;
            let state = steps::state_of(&self.trace[..index]);
            (state != judged.transfer.state).then_some(event.seq)
        };
        self.trace.iter().enumerate().find_map(contradicts)
    }

    /// Adds the seed of random numbers.
    #[must_use]
    pub fn with_seed(mut self, name: impl Into<String>, seed: u64) -> Self {
        self.seeds.insert(name.into(), seed);
        self
    }

    /// Adds the path of a file that belongs to the pack; a repeated path counts once.
    #[must_use]
    pub fn with_artifact_path(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        if !self.artifact_paths.contains(&path) {
            self.artifact_paths.push(path);
        }
        self
    }

    /// Adds a useful fact.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The events, in order.
    pub fn trace(&self) -> &[TraceEvent] {
        &self.trace
    }

    /// The number of steps that led to the judgement.
    pub fn steps(&self) -> usize {
        self.trace.iter().filter(|event| event.judged.is_none()).count()
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
        // The first spelling searched the message of every event, so that a name could fill a log.
        let searched = |e: &TraceEvent| e.kind == MESSAGE || self.spelling == Spelling::First;
        let says = |e: &TraceEvent, words: &[&str]| searched(e) && e.says_any(words);
        let ledger = json(self.ledger(&results).to_bytes(self.spelling))?;
        Ok(BTreeMap::from([
            (TRACE, trace),
            ("manifest", manifest.into_bytes()),
            ("journal.digest", format!("digest: {journal_digest}\nbytes: {}\n", journal.len()).into_bytes()),
            ("journal", journal.into_bytes()),
            (LEDGER, ledger),
            (
                "pathlog",
                log(&|e| PATH_KINDS.contains(&e.kind.as_str()) || says(e, &["path", "route", "racing"])),
            ),
            ("quiclog", log(&|e| says(e, &["quic", "udp", "packet", "connection id"]))),
            ("repairlog", log(&|e| says(e, &["repair", "raptorq", "fec", "symbol"]))),
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
            artifact_paths: own.chain(self.artifact_paths.iter().cloned()).collect(),
            entries: results
                .iter()
                .zip(0..)
                .map(|(result, timestamp)| LedgerEntry {
                    oracle_name: result.oracle_name.clone(),
                    evidence: evidence::of(result),
                    timestamp,
                    artifact_path: TRACE.to_owned(),
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
            let _ = writeln!(out, "export {}={seed}", seed_variable(name));
        }
        out.push_str("cd \"$(dirname \"$0\")\" || exit 1\nexec \"${PFIMG:-pfimg}\" replay");
        for result in results {
            // With `=`, so that no name can be mistaken for an option.
            let _ = write!(out, " --oracle={}", shell_arg(&result.oracle_name));
        }
        out.push_str(" .\n");
        out
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
