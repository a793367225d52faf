//! The weight of a verdict: how much more likely the observation is with a fault than without one.
//!
//! The arithmetic is that of asupersync's evidence ledger: a Bayes factor in powers of ten by the worst
//! severity, split evenly between the state and its detection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oracle::{TransferOracleResult, ViolationSeverity};

/// How strong evidence is (Kass and Raftery, 1995).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvidenceStrength {
    /// It speaks against the hypothesis: below 0.
    Against,
    /// Negligible: below 0.5.
    Negligible,
    /// Below 1.3.
    Positive,
    /// Below 2.2.
    Strong,
    /// From 2.2 on.
    VeryStrong,
}

impl EvidenceStrength {
    /// The strength of a Bayes factor, given as a power of ten.
    pub fn from_log10_bf(log10_bf: f64) -> Self {
        match log10_bf {
            x if x < 0.0 => Self::Against,
            x if x >= 2.2 => Self::VeryStrong,
            x if x >= 1.3 => Self::Strong,
            x if x >= 0.5 => Self::Positive,
            _ => Self::Negligible,
        }
    }
}

/// How much more likely the evidence is under a hypothesis than without it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BayesFactor {
    /// As a power of ten.
    pub log10_bf: f64,
    /// The hypothesis.
    pub hypothesis: String,
    /// In a word.
    pub strength: EvidenceStrength,
}

/// The parts of the factor, as powers of ten.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLikelihoodContributions {
    /// From the state.
    pub structural: f64,
    /// From the detection.
    pub detection: f64,
    /// Their sum.
    pub total: f64,
}

/// The derivation of the factor, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceLine {
    /// In symbols.
    pub equation: String,
    /// With the values put in.
    pub substitution: String,
    /// In words.
    pub intuition: String,
}

/// The evidence of one verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvidenceEntry {
    /// The claim.
    pub invariant: String,
    /// Whether it held.
    pub passed: bool,
    /// The weight of the evidence.
    pub bayes_factor: BayesFactor,
    /// The parts of the weight.
    pub log_likelihoods: LogLikelihoodContributions,
    /// Its derivation.
    pub evidence_lines: Vec<EvidenceLine>,
}

/// An entry, and the file of its evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The oracle.
    #[serde(alias = "oracle")]
    pub oracle_name: String,
    /// Its evidence.
    pub evidence: EvidenceEntry,
    /// Its index in the ledger, so that the same pack has the same bytes.
    #[serde(default)]
    pub timestamp: u64,
    /// The file with the input of the oracle.
    #[serde(alias = "artifact")]
    pub artifact_path: String,
}

/// `evidence-ledger.json`: the sources of a crash pack, and their weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvidenceLedger {
    /// [`super::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// One entry a verdict, in order.
    pub entries: Vec<LedgerEntry>,
    /// Seeds of random numbers by name.
    pub seeds: BTreeMap<String, u64>,
    /// The pack's files, then others.
    #[serde(alias = "artifacts")]
    pub artifact_paths: Vec<String>,
    /// Other useful facts.
    pub metadata: BTreeMap<String, String>,
}

/// The names of a ledger's keys. A pack is made again with the names it was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Spelling {
    /// The names in the first packs of pfimg.
    First,
    /// The names of asupersync's ledger.
    #[default]
    Original,
}

impl Spelling {
    /// The spelling of a ledger.
    pub(super) fn of(ledger: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Keys {
            artifacts: Option<serde::de::IgnoredAny>,
        }
        match serde_json::from_slice::<Keys>(ledger) {
            Ok(Keys { artifacts: Some(_) }) => Self::First,
            _ => Self::Original,
        }
    }
}

/// The ledger in the first spelling.
#[derive(Serialize)]
struct FirstLedger<'a> {
    schema_version: u32,
    seeds: &'a BTreeMap<String, u64>,
    metadata: &'a BTreeMap<String, String>,
    artifacts: &'a [String],
    entries: Vec<FirstEntry<'a>>,
}

#[derive(Serialize)]
struct FirstEntry<'a> {
    oracle: &'a str,
    artifact: &'a str,
    evidence: &'a EvidenceEntry,
}

impl EvidenceLedger {
    /// The ledger's bytes.
    pub(super) fn to_bytes(&self, spelling: Spelling) -> serde_json::Result<Vec<u8>> {
        match spelling {
            Spelling::Original => serde_json::to_vec_pretty(self),
            Spelling::First => serde_json::to_vec_pretty(&FirstLedger {
                schema_version: self.schema_version,
                seeds: &self.seeds,
                metadata: &self.metadata,
                artifacts: &self.artifact_paths,
                entries: self
                    .entries
                    .iter()
                    .map(|entry| FirstEntry {
                        oracle: &entry.oracle_name,
                        artifact: &entry.artifact_path,
                        evidence: &entry.evidence,
                    })
                    .collect(),
            }),
        }
    }
}

fn log10_bf(severity: ViolationSeverity) -> f64 {
    match severity {
        ViolationSeverity::Low => 0.6,
        ViolationSeverity::Medium => 1.0,
        ViolationSeverity::High => 1.6,
        ViolationSeverity::Critical => 2.4,
    }
}

/// The evidence of a verdict.
pub fn of(result: &TransferOracleResult) -> EvidenceEntry {
    let name = &result.oracle_name;
    let worst = result.violations.iter().map(|violation| violation.severity).max();
    let weight = if result.passed { -1.0 } else { worst.map_or(0.5, log10_bf) };
    let found = result.violations.len();
    EvidenceEntry {
        invariant: name.clone(),
        passed: result.passed,
        bayes_factor: BayesFactor {
            log10_bf: weight,
            hypothesis: format!("{name} violation"),
            strength: EvidenceStrength::from_log10_bf(weight),
        },
        log_likelihoods: LogLikelihoodContributions {
            structural: weight / 2.0,
            detection: weight / 2.0,
            total: weight,
        },
        evidence_lines: vec![EvidenceLine {
            equation: "BF = P(oracle evidence | violation) / P(oracle evidence | clean)".to_owned(),
            substitution: format!(
                "passed={}, violations={found}, events_recorded={}, entities_tracked={}, max_severity={}",
                result.passed,
                result.stats.events_recorded,
                result.stats.entities_tracked,
                worst.map_or("none", ViolationSeverity::label),
            ),
            intuition: if result.passed {
                format!("{name} produced deterministic clean evidence")
            } else {
                format!("{name} reported {found} deterministic violation(s)")
            },
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{OracleStats, TransferViolation};

    fn result(severities: &[ViolationSeverity], passed: bool) -> TransferOracleResult {
        let violations = severities.iter().map(|severity| TransferViolation {
            violation_type: "x".into(),
            description: "x".into(),
            severity: *severity,
            evidence: BTreeMap::new(),
        });
        TransferOracleResult {
            oracle_name: "seal".into(),
            violations: violations.collect(),
            stats: OracleStats { entities_tracked: severities.len(), events_recorded: 5 },
            passed,
        }
    }

    #[test]
    fn the_worst_severity_decides_the_weight() {
        use ViolationSeverity::{Critical, High, Low, Medium};
        for (severities, passed, weight, strength, worst) in [
            (&[][..], true, -1.0, EvidenceStrength::Against, "none"),
            (&[][..], false, 0.5, EvidenceStrength::Positive, "none"),
            (&[Low], false, 0.6, EvidenceStrength::Positive, "low"),
            (&[Medium, Low], false, 1.0, EvidenceStrength::Positive, "medium"),
            (&[Medium, High], false, 1.6, EvidenceStrength::Strong, "high"),
            (&[High, Critical, Low], false, 2.4, EvidenceStrength::VeryStrong, "critical"),
        ] {
            let entry = of(&result(severities, passed));
            assert!((entry.bayes_factor.log10_bf - weight).abs() < 1e-12, "{severities:?}");
            assert_eq!(entry.bayes_factor.strength, strength, "{severities:?}");
            let parts = entry.log_likelihoods;
            assert!((parts.structural + parts.detection - parts.total).abs() < 1e-12);
            assert!((parts.structural - weight / 2.0).abs() < 1e-12);
            let line = &entry.evidence_lines[0];
            assert!(line.substitution.ends_with(&format!("max_severity={worst}")), "{line:?}");
        }
    }

    #[test]
    fn strengths_change_at_their_bounds() {
        for (weight, strength) in [
            (-0.001, EvidenceStrength::Against),
            (0.0, EvidenceStrength::Negligible),
            (0.49, EvidenceStrength::Negligible),
            (0.5, EvidenceStrength::Positive),
            (1.3, EvidenceStrength::Strong),
            (2.2, EvidenceStrength::VeryStrong),
            (f64::NAN, EvidenceStrength::Negligible),
        ] {
            assert_eq!(EvidenceStrength::from_log10_bf(weight), strength, "{weight}");
        }
    }
}
