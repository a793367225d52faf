//! The events of a transfer, and what they show an oracle.

use serde::{Deserialize, Serialize};

use crate::oracle::{Transfer, TransferOracle, TransferState};

/// The observation that a step gives an oracle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// The hash of the manifest at its source.
    ManifestExpected(String),
    /// Its hash at its destination; empty if it cannot be read.
    ManifestFound(String),
    /// Numbers missing in the journals.
    JournalGaps(u32),
    /// Operations that had begun and had not ended.
    PendingOperations(u32),
    /// Things that were left behind.
    LeakedObligations(u32),
    /// A path that differs at the destination.
    PathDiffers(String),
}

impl Seen {
    fn add_to(&self, state: &mut TransferState) {
        match self {
            Self::ManifestExpected(hash) => state.expected_manifest_hash.clone_from(hash),
            Self::ManifestFound(hash) => state.manifest_hash.clone_from(hash),
            Self::JournalGaps(gaps) => state.journal_gaps = state.journal_gaps.saturating_add(*gaps),
            Self::PendingOperations(pending) => {
                state.pending_operations = state.pending_operations.saturating_add(*pending);
            }
            Self::LeakedObligations(leaked) => {
                state.leaked_obligations = state.leaked_obligations.saturating_add(*leaked);
            }
            Self::PathDiffers(_) => state.path_outcomes_consistent = false,
        }
    }
}

/// The state that the steps among these events give.
pub(super) fn state_of<'a>(events: impl IntoIterator<Item = &'a TraceEvent>) -> TransferState {
    let mut state = TransferState::default();
    for seen in events.into_iter().filter_map(|event| event.seen.as_ref()) {
        seen.add_to(&mut state);
    }
    state
}

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
    /// Whether its message has one of these words.
    pub(super) fn says_any(&self, words: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }
}
