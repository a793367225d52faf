//! A crash pack in memory, and the bytes of its files.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::evidence::{self, EvidenceLedger, LedgerEntry, Spelling};
use super::quote::{line, seed_variable, shell_arg};
use super::trace::{Judged, Seen, TraceEvent, state_of};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::oracle::{Transfer, TransferOracle, TransferOracleResult};

/// The version of the form.
pub const SCHEMA_VERSION: u32 = 1;

/// The trace's file.
pub(super) const TRACE: &str = "transfer.atp-trace";
/// The ledger's file.
pub(super) const LEDGER: &str = "evidence-ledger.json";
/// The file to run.
pub(super) const REPLAY: &str = "replay_command.sh";

/// The files of a pack.
pub const FILES: [&str; 9] =
    [TRACE, "manifest", "journal", "journal.digest", LEDGER, "pathlog", "quiclog", "repairlog", REPLAY];

/// Kinds of events that go to the log of paths whatever their message.
pub(super) const PATH_KINDS: [&str; 12] = [
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

/// A crash pack, not yet in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crashpack {
    pub(super) trace: Vec<TraceEvent>,
    pub(super) seeds: BTreeMap<String, u64>,
    pub(super) artifact_paths: Vec<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) spelling: Spelling,
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

    pub(super) fn push(
        mut self,
        kind: &str,
        message: String,
        seen: Option<Seen>,
        judged: Option<Judged>,
    ) -> Self {
        let seq = self.trace.len() as u64 + 1;
        self.trace.push(TraceEvent { seq, kind: kind.to_owned(), message, seen, judged });
        self
    }

    /// The number of a judged event whose state differs from the one that the steps before it give; nothing
    /// if all match, and in a pack whose steps show nothing.
    pub(super) fn contradiction(&self) -> Option<u64> {
        if self.trace.iter().all(|event| event.seen.is_none()) {
            return None;
        }
        let contradicts = |(index, event): (usize, &TraceEvent)| {
            let judged = event.judged.as_ref()?;
            let state = state_of(&self.trace[..index]);
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

    pub(super) fn ledger(&self, results: &[TransferOracleResult]) -> EvidenceLedger {
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
