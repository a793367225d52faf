//! The transfer oracle: judges a transfer by the observations of its steps.
//!
//! A seal, import, export, restore or recovery gathers a [`TransferState`] and asks for a verdict. The five
//! checks, their names, severities and evidence are those of asupersync's transfer oracle. All of it is pure:
//! the same state has the same verdict, here and wherever a crash pack is replayed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// The observations of a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferState {
    /// The hash of the manifest at its destination.
    pub manifest_hash: String,
    /// Its hash at its source.
    pub expected_manifest_hash: String,
    /// Numbers missing or out of order in the journal.
    pub journal_gaps: u32,
    /// Operations that had begun and had not ended when the transfer was made.
    pub pending_operations: u32,
    /// Temporary files, pins and handles that were not released.
    pub leaked_obligations: u32,
    /// Whether every path is the same at the destination as at the source.
    pub path_outcomes_consistent: bool,
}

impl Default for TransferState {
    /// A transfer without observations, and so without faults.
    fn default() -> Self {
        Self {
            manifest_hash: String::new(),
            expected_manifest_hash: String::new(),
            journal_gaps: 0,
            pending_operations: 0,
            leaked_obligations: 0,
            path_outcomes_consistent: true,
        }
    }
}

/// How severe a violation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ViolationSeverity {
    /// Worth knowing.
    Low,
    /// The transfer may differ from the intended one.
    Medium,
    /// The transfer differs from the intended one.
    High,
    /// Other data may be damaged as well.
    Critical,
}

impl ViolationSeverity {
    /// Its name in evidence.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// One fault of a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferViolation {
    /// Which check found it.
    pub violation_type: String,
    /// The fault, for people.
    pub description: String,
    /// Its severity.
    pub severity: ViolationSeverity,
    /// The evidence for it.
    pub evidence: BTreeMap<String, String>,
}

/// The amount of an oracle's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OracleStats {
    /// Checks that found a fault.
    pub entities_tracked: usize,
    /// Checks that were made.
    pub events_recorded: usize,
}

/// An oracle's verdict on a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferOracleResult {
    /// The oracle's name.
    pub oracle_name: String,
    /// The faults, in the order of the checks.
    pub violations: Vec<TransferViolation>,
    /// The amount of work.
    pub stats: OracleStats,
    /// Whether it found nothing.
    pub passed: bool,
}

impl TransferOracleResult {
    /// Whether there are violations.
    pub fn has_violations(&self) -> bool {
        !self.violations.is_empty()
    }

    /// The violations that are [`ViolationSeverity::High`].
    pub fn high_severity_violations(&self) -> Vec<&TransferViolation> {
        self.violations.iter().filter(|found| found.severity == ViolationSeverity::High).collect()
    }

    /// The error for the caller of a transfer, if there is a violation.
    pub fn error(&self) -> Option<Error> {
        if self.passed {
            return None;
        }
        let found: Vec<&str> = self.violations.iter().map(|found| found.description.as_str()).collect();
        Some(Error::new(ErrorKind::Damaged, format!("{}: {}", self.oracle_name, found.join("; "))))
    }
}

/// One of the five checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The manifest is the expected one.
    Manifest,
    /// The journal has no gap.
    Journal,
    /// No operation was under way.
    Quiescence,
    /// Nothing was left behind.
    Obligations,
    /// Paths are the same as before.
    Paths,
}

impl Check {
    /// All checks, in order.
    pub const ALL: [Self; 5] =
        [Self::Manifest, Self::Journal, Self::Quiescence, Self::Obligations, Self::Paths];

    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Journal => "journal",
            Self::Quiescence => "quiescence",
            Self::Obligations => "obligations",
            Self::Paths => "paths",
        }
    }

    fn find(self, state: &TransferState) -> Option<TransferViolation> {
        let violation = |violation_type: &str, severity, description, evidence: &[(&str, &str)]| {
            Some(TransferViolation {
                violation_type: violation_type.to_owned(),
                description,
                severity,
                evidence: evidence
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            })
        };
        match self {
            Self::Manifest if state.manifest_hash != state.expected_manifest_hash => {
                let (expected, actual) = (&state.expected_manifest_hash, &state.manifest_hash);
                violation(
                    "manifest_integrity",
                    ViolationSeverity::High,
                    format!("Manifest hash mismatch: expected {expected}, got {actual}"),
                    &[("expected_hash", expected), ("actual_hash", actual)],
                )
            }
            Self::Journal if state.journal_gaps > 0 => {
                let gaps = state.journal_gaps;
                violation(
                    "journal_consistency",
                    ViolationSeverity::High,
                    format!("Journal has {gaps} gaps or ordering violations"),
                    &[("gap_count", &gaps.to_string())],
                )
            }
            Self::Quiescence if state.pending_operations > 0 => {
                let pending = state.pending_operations;
                violation(
                    "quiescence",
                    ViolationSeverity::Medium,
                    format!("Transfer attempted with {pending} pending operations"),
                    &[("pending_count", &pending.to_string())],
                )
            }
            Self::Obligations if state.leaked_obligations > 0 => {
                let leaked = state.leaked_obligations;
                violation(
                    "obligation_leak",
                    ViolationSeverity::High,
                    format!("Found {leaked} leaked obligations"),
                    &[("leak_count", &leaked.to_string())],
                )
            }
            Self::Paths if !state.path_outcomes_consistent => violation(
                "path_consistency",
                ViolationSeverity::High,
                "Path outcomes are inconsistent across replicas".to_owned(),
                &[],
            ),
            _ => None,
        }
    }
}

/// Judges transfers by the enabled checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferOracle {
    oracle_name: String,
    checks: Vec<Check>,
}

impl TransferOracle {
    /// An oracle that makes all five checks.
    pub fn new(name: impl Into<String>) -> Self {
        Self { oracle_name: name.into(), checks: Check::ALL.to_vec() }
    }

    /// Enables or disables one check.
    #[must_use]
    pub fn with(mut self, check: Check, enabled: bool) -> Self {
        self.checks = Check::ALL
            .into_iter()
            .filter(|known| if *known == check { enabled } else { self.checks.contains(known) })
            .collect();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.oracle_name
    }

    /// The checks it makes, in order.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Judges a transfer. Every check counts as an event, every check that finds a fault as an entity.
    pub fn validate_transfer(&self, state: &TransferState) -> TransferOracleResult {
        let violations: Vec<_> = self.checks.iter().filter_map(|check| check.find(state)).collect();
        let stats = OracleStats { entities_tracked: violations.len(), events_recorded: self.checks.len() };
        let passed = violations.is_empty();
        TransferOracleResult { oracle_name: self.oracle_name.clone(), violations, stats, passed }
    }
}

/// The kind of a transfer. Names the oracle that judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferKind {
    /// A fork became an image.
    Seal,
    /// A folder became an image.
    Import,
    /// An image was written to a folder.
    Export,
    /// A fork was restored to an image.
    Restore,
    /// A fork was read back after its program ended.
    Recovery,
}

impl TransferKind {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seal => "seal",
            Self::Import => "import",
            Self::Export => "export",
            Self::Restore => "restore",
            Self::Recovery => "recovery",
        }
    }
}

impl fmt::Display for TransferKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A transfer to judge: its kind, its subject and its observations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The kind.
    pub kind: TransferKind,
    /// The subject: a fork's name or an image's id.
    pub subject: String,
    /// The observations.
    pub state: TransferState,
}

/// Judges a transfer by all five checks.
pub fn judge(transfer: &Transfer) -> TransferOracleResult {
    TransferOracle::new(transfer.kind.name()).validate_transfer(&transfer.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A check, a state that fails it, and the resulting description.
    type Faulty =
        (Check, TransferState, &'static str, ViolationSeverity, &'static [(&'static str, &'static str)]);

    fn faulty() -> [Faulty; 5] {
        use ViolationSeverity::{High, Medium};

        let good = TransferState::default;
        let hashes =
            TransferState { manifest_hash: "got".into(), expected_manifest_hash: "meant".into(), ..good() };
        [
            (
                Check::Manifest,
                hashes,
                "manifest_integrity",
                High,
                &[("actual_hash", "got"), ("expected_hash", "meant")],
            ),
            (
                Check::Journal,
                TransferState { journal_gaps: 2, ..good() },
                "journal_consistency",
                High,
                &[("gap_count", "2")],
            ),
            (
                Check::Quiescence,
                TransferState { pending_operations: 3, ..good() },
                "quiescence",
                Medium,
                &[("pending_count", "3")],
            ),
            (
                Check::Obligations,
                TransferState { leaked_obligations: 4, ..good() },
                "obligation_leak",
                High,
                &[("leak_count", "4")],
            ),
            (
                Check::Paths,
                TransferState { path_outcomes_consistent: false, ..good() },
                "path_consistency",
                High,
                &[],
            ),
        ]
    }

    #[test]
    fn a_transfer_without_a_fault_passes_all_five_checks() {
        let result = TransferOracle::new("seal").validate_transfer(&TransferState::default());
        assert!(result.passed && !result.has_violations() && result.error().is_none());
        assert_eq!(result.stats, OracleStats { entities_tracked: 0, events_recorded: 5 });
    }

    #[test]
    fn each_fault_is_found_by_its_check_with_its_severity_and_evidence() {
        for (check, state, name, severity, evidence) in faulty() {
            let result = TransferOracle::new("seal").validate_transfer(&state);
            assert!(!result.passed, "{check:?}");
            assert_eq!(result.stats, OracleStats { entities_tracked: 1, events_recorded: 5 });
            let [found] = &result.violations[..] else { panic!("{check:?}: {:?}", result.violations) };
            assert_eq!((found.violation_type.as_str(), found.severity), (name, severity));
            let told: Vec<(&str, &str)> =
                found.evidence.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(told, evidence);
            assert_eq!(
                result.high_severity_violations().len(),
                usize::from(severity == ViolationSeverity::High)
            );
            let error = result.error().unwrap();
            assert!(error.to_string().contains(&found.description) && error.exit_code() == 4, "{error}");
        }
    }

    #[test]
    fn a_check_that_is_switched_off_finds_nothing_and_is_not_counted() {
        for (check, state, ..) in faulty() {
            let oracle = TransferOracle::new("seal").with(check, false);
            let result = oracle.validate_transfer(&state);
            assert!(result.passed, "{check:?}");
            assert_eq!(result.stats.events_recorded, 4);
            assert!(!oracle.with(check, true).validate_transfer(&state).passed);
        }
    }

    #[test]
    fn faults_are_told_in_the_order_of_the_checks() {
        let all = TransferState {
            manifest_hash: "got".into(),
            journal_gaps: 1,
            pending_operations: 1,
            leaked_obligations: 1,
            path_outcomes_consistent: false,
            ..TransferState::default()
        };
        let transfer = Transfer { kind: TransferKind::Import, subject: "x".into(), state: all };
        let result = judge(&transfer);
        let names: Vec<&str> = result.violations.iter().map(|v| v.violation_type.as_str()).collect();
        let order = [
            "manifest_integrity",
            "journal_consistency",
            "quiescence",
            "obligation_leak",
            "path_consistency",
        ];
        assert_eq!((names.as_slice(), result.oracle_name.as_str()), (&order[..], "import"));
        assert_eq!(result.stats, OracleStats { entities_tracked: 5, events_recorded: 5 });
    }

    #[test]
    fn each_violation_is_described_in_these_words() {
        let descriptions: Vec<String> = faulty()
            .into_iter()
            .map(|(_, state, ..)| {
                TransferOracle::new("seal").validate_transfer(&state).violations[0].description.clone()
            })
            .collect();
        assert_eq!(
            descriptions,
            [
                "Manifest hash mismatch: expected meant, got got",
                "Journal has 2 gaps or ordering violations",
                "Transfer attempted with 3 pending operations",
                "Found 4 leaked obligations",
                "Path outcomes are inconsistent across replicas",
            ]
        );
    }

    #[test]
    fn only_high_is_high() {
        use ViolationSeverity::{Critical, High, Low, Medium};
        let violation = |severity: ViolationSeverity| TransferViolation {
            violation_type: severity.label().into(),
            description: String::new(),
            severity,
            evidence: BTreeMap::new(),
        };
        let result = TransferOracleResult {
            oracle_name: "x".into(),
            violations: [Low, Medium, High, Critical].map(violation).into(),
            stats: OracleStats::default(),
            passed: false,
        };
        let high: Vec<&str> =
            result.high_severity_violations().iter().map(|found| found.violation_type.as_str()).collect();
        assert_eq!(high, ["high"]);
        assert!(Low < Medium && Medium < High && High < Critical);
    }

    #[test]
    fn words_in_json_are_those_of_the_log() {
        for check in Check::ALL {
            assert_eq!(serde_json::to_value(check).unwrap(), check.name());
        }
        assert_eq!(serde_json::to_value(ViolationSeverity::High).unwrap(), "High");
        assert_eq!(serde_json::to_value(TransferKind::Recovery).unwrap(), TransferKind::Recovery.name());
    }
}
