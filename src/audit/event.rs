//! Session events: JSON objects with a `kind`.
//!
//! Kinds, keys and categories are those of agent kernels' session logs (`deepstrike-core`, `runtime::session`). Keys
//! this program has no use for are kept as they are, and so is an event of a kind it does not know: a log is never
//! refused for what a newer kernel says in it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which part of a kernel decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelEventCategory {
    /// What was asked for and allowed, or not.
    Syscall,
    /// Who runs, waits, and stops.
    Sched,
    /// What is in memory, and what was.
    Mm,
    /// Who there is.
    Proc,
    /// What was told to whom.
    Ipc,
    /// A category this program does not know.
    #[serde(untagged)]
    Unknown(String),
}

/// What every event says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// When, counted by the session's own clock.
    #[serde(default)]
    pub turn: u32,
    /// Which part of the kernel decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<KernelEventCategory>,
    /// The category rolled up further, as some kernels do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primitive: Option<String>,
    /// Every other key.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The session was put aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    /// Why.
    pub reason: String,
    /// Calls that wait for an answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_calls: Vec<String>,
    /// What every event says.
    #[serde(flatten)]
    pub noted: Noted,
}

/// A signal was taken note of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalDisposed {
    /// Which.
    pub signal_id: String,
    /// What was done with it.
    pub disposition: String,
    /// How many wait.
    #[serde(default)]
    pub queue_depth: u32,
    /// What every event says.
    #[serde(flatten)]
    pub noted: Noted,
}

/// A limit was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetExceeded {
    /// Which.
    pub budget: String,
    /// What every event says.
    #[serde(flatten)]
    pub noted: Noted,
}

/// An agent came, changed or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentProcessChanged {
    /// Which.
    pub agent_id: String,
    /// What it was made from.
    #[serde(default)]
    pub parent_session_id: String,
    /// What it is there for.
    #[serde(default)]
    pub role: String,
    /// How it is kept apart.
    #[serde(default)]
    pub isolation: String,
    /// What it got from its parent.
    #[serde(default)]
    pub context_inheritance: String,
    /// What it does now: `running`, `joined`, `aborted`.
    pub state: String,
    /// What it may do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permitted_capability_ids: Vec<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_termination: Option<String>,
    /// What every event says.
    #[serde(flatten)]
    pub noted: Noted,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionEvent {
    /// What was said was made shorter.
    Compressed(Noted),
    /// Something left the working memory.
    PageOut(Noted),
    /// Something came into the working memory.
    PageIn(Noted),
    /// What can be done changed.
    CapabilityChanged(Noted),
    /// A new context took over.
    ContextRenewed(Noted),
    /// The session was put aside.
    Suspended(Suspended),
    /// The session goes on.
    Resumed(Noted),
    /// A call was held up or refused.
    ToolGated(Noted),
    /// A signal was taken note of.
    SignalDisposed(SignalDisposed),
    /// A limit was reached.
    BudgetExceeded(BudgetExceeded),
    /// A state to come back to was kept.
    CheckpointTaken(Noted),
    /// A state that was kept was come back to.
    Rollbacked(Noted),
    /// An agent came, changed or went.
    AgentProcessChanged(AgentProcessChanged),
    /// A milestone was reached.
    MilestoneAdvanced(Noted),
    /// A milestone was not reached.
    MilestoneBlocked(Noted),
    /// Something speaks for or against a milestone.
    MilestoneEvidence(Noted),
    /// Something was put into the long-term memory.
    MemoryWritten(Noted),
    /// The long-term memory was asked.
    MemoryQueried(Noted),
    /// Something was not fit for the long-term memory.
    MemoryValidationFailed(Noted),
    /// The long-term memory answered.
    MemoryRetrievalResult(Noted),
    /// Any other object: of a kind this program does not know, or without what its kind needs.
    #[serde(untagged)]
    Other(Map<String, Value>),
}

impl SessionEvent {
    /// Parses one JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Its kind, as in JSON; empty if it says none.
    pub fn kind(&self) -> &str {
        match self {
            Self::Compressed(_) => "compressed",
            Self::PageOut(_) => "page_out",
            Self::PageIn(_) => "page_in",
            Self::CapabilityChanged(_) => "capability_changed",
            Self::ContextRenewed(_) => "context_renewed",
            Self::Suspended(_) => "suspended",
            Self::Resumed(_) => "resumed",
            Self::ToolGated(_) => "tool_gated",
            Self::SignalDisposed(_) => "signal_disposed",
            Self::BudgetExceeded(_) => "budget_exceeded",
            Self::CheckpointTaken(_) => "checkpoint_taken",
            Self::Rollbacked(_) => "rollbacked",
            Self::AgentProcessChanged(_) => "agent_process_changed",
            Self::MilestoneAdvanced(_) => "milestone_advanced",
            Self::MilestoneBlocked(_) => "milestone_blocked",
            Self::MilestoneEvidence(_) => "milestone_evidence",
            Self::MemoryWritten(_) => "memory_written",
            Self::MemoryQueried(_) => "memory_queried",
            Self::MemoryValidationFailed(_) => "memory_validation_failed",
            Self::MemoryRetrievalResult(_) => "memory_retrieval_result",
            Self::Other(object) => object.get("kind").and_then(Value::as_str).unwrap_or_default(),
        }
    }

    /// What every event says; nothing of one that is only kept.
    pub fn noted(&self) -> Option<&Noted> {
        match self {
            Self::Compressed(noted)
            | Self::PageOut(noted)
            | Self::PageIn(noted)
            | Self::CapabilityChanged(noted)
            | Self::ContextRenewed(noted)
            | Self::Resumed(noted)
            | Self::ToolGated(noted)
            | Self::CheckpointTaken(noted)
            | Self::Rollbacked(noted)
            | Self::MilestoneAdvanced(noted)
            | Self::MilestoneBlocked(noted)
            | Self::MilestoneEvidence(noted)
            | Self::MemoryWritten(noted)
            | Self::MemoryQueried(noted)
            | Self::MemoryValidationFailed(noted)
            | Self::MemoryRetrievalResult(noted) => Some(noted),
            Self::Suspended(event) => Some(&event.noted),
            Self::SignalDisposed(event) => Some(&event.noted),
            Self::BudgetExceeded(event) => Some(&event.noted),
            Self::AgentProcessChanged(event) => Some(&event.noted),
            Self::Other(_) => None,
        }
    }

    /// The same, to change it.
    pub fn noted_mut(&mut self) -> Option<&mut Noted> {
        match self {
            Self::Compressed(noted)
            | Self::PageOut(noted)
            | Self::PageIn(noted)
            | Self::CapabilityChanged(noted)
            | Self::ContextRenewed(noted)
            | Self::Resumed(noted)
            | Self::ToolGated(noted)
            | Self::CheckpointTaken(noted)
            | Self::Rollbacked(noted)
            | Self::MilestoneAdvanced(noted)
            | Self::MilestoneBlocked(noted)
            | Self::MilestoneEvidence(noted)
            | Self::MemoryWritten(noted)
            | Self::MemoryQueried(noted)
            | Self::MemoryValidationFailed(noted)
            | Self::MemoryRetrievalResult(noted) => Some(noted),
            Self::Suspended(event) => Some(&mut event.noted),
            Self::SignalDisposed(event) => Some(&mut event.noted),
            Self::BudgetExceeded(event) => Some(&mut event.noted),
            Self::AgentProcessChanged(event) => Some(&mut event.noted),
            Self::Other(_) => None,
        }
    }

    /// Whether a kernel of this kind decided something that its audit needs a category for. What was said to or by
    /// the long-term memory needs none.
    fn needs_category(&self) -> bool {
        matches!(
            self.kind(),
            "compressed"
                | "page_out"
                | "page_in"
                | "capability_changed"
                | "context_renewed"
                | "suspended"
                | "resumed"
                | "tool_gated"
                | "signal_disposed"
                | "budget_exceeded"
                | "checkpoint_taken"
                | "rollbacked"
                | "agent_process_changed"
                | "milestone_advanced"
                | "milestone_blocked"
                | "milestone_evidence"
        )
    }

    /// Whether it says its category, or needs none.
    pub fn has_required_category(&self) -> bool {
        let category = match self {
            Self::Other(object) => object.get("category").is_some_and(Value::is_string),
            known => known.noted().is_some_and(|noted| noted.category.is_some()),
        };
        category || !self.needs_category()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_written_as_it_was_read_whatever_else_it_says() {
        for event in [
            json!({"kind": "suspended", "turn": 3, "category": "sched", "reason": "ask_user", "pending_calls": ["c1"]}),
            json!({"kind": "page_in", "turn": 1, "category": "mm", "entry_count": 7, "new_key": {"a": [1.5, null]}}),
            json!({"kind": "agent_process_changed", "turn": 1, "category": "proc", "primitive": "sched",
                "agent_id": "a", "parent_session_id": "p", "role": "worker", "isolation": "shared",
                "context_inheritance": "none", "state": "running"}),
            json!({"kind": "invented_tomorrow", "turn": "not even a number"}),
            json!({"no": "kind"}),
            // A category of tomorrow, and an event that lacks what its kind needs.
            json!({"kind": "tool_gated", "turn": 1, "category": "net"}),
            json!({"kind": "suspended", "turn": 1}),
        ] {
            let read: SessionEvent = serde_json::from_value(event.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), event);
            assert_eq!(read.kind(), event.get("kind").and_then(Value::as_str).unwrap_or_default());
        }
    }

    #[test]
    fn what_is_no_object_is_no_event() {
        for bytes in [&b"1"[..], b"\"page_in\"", b"[]", b"null", b"{", b"", b"\xff"] {
            assert!(SessionEvent::parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_decision_needs_a_category_and_talk_does_not() {
        let says =
            |event: Value| serde_json::from_value::<SessionEvent>(event).unwrap().has_required_category();
        assert!(says(json!({"kind": "page_out", "category": "mm"})));
        assert!(!says(json!({"kind": "page_out"})));
        assert!(!says(json!({"kind": "suspended"})), "one that lacks its reason is a decision all the same");
        assert!(says(json!({"kind": "suspended", "category": "sched"})));
        for kind in ["memory_written", "memory_retrieval_result", "llm_completed", "invented_tomorrow"] {
            assert!(says(json!({"kind": kind})), "{kind}");
        }
    }
}
