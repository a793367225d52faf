//! Session events: JSON objects with a `kind`.
//!
//! Kinds, keys and categories are those of agent kernels' session logs (`deepstrike-core`,
//! `runtime::session`). pfimg keeps unknown keys and events of unknown kinds unchanged: it never refuses a
//! log because a newer kernel wrote it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema;

/// The part of a kernel that decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelEventCategory {
    /// Requests, allowed or refused.
    Syscall,
    /// Running, waiting and stopped tasks.
    Sched,
    /// The content of memory.
    Mm,
    /// The existing processes.
    Proc,
    /// Messages between processes.
    Ipc,
    /// An unknown category.
    #[serde(untagged)]
    Unknown(String),
}

impl KernelEventCategory {
    /// The category of a kind of event, for logs of later versions, which omit it.
    pub fn of_kind(kind: &str) -> Self {
        match kind {
            "tool_gated" | "capability_changed" => Self::Syscall,
            "compressed"
            | "page_out"
            | "page_in"
            | "context_renewed"
            | "large_result_spooled"
            | "memory_written"
            | "memory_queried"
            | "memory_validation_failed" => Self::Mm,
            "agent_process_changed" => Self::Proc,
            "signal_disposed" | "signal_delivery_disposed" => Self::Ipc,
            _ => Self::Sched,
        }
    }

    /// Its name in JSON.
    pub fn name(&self) -> &str {
        match self {
            Self::Syscall => "syscall",
            Self::Sched => "sched",
            Self::Mm => "mm",
            Self::Proc => "proc",
            Self::Ipc => "ipc",
            Self::Unknown(name) => name,
        }
    }

    /// The primitive that it belongs to; nothing for an unknown category.
    pub fn primitive(&self) -> Option<Primitive> {
        match self {
            Self::Syscall => Some(Primitive::Syscall),
            Self::Mm => Some(Primitive::Mm),
            Self::Sched | Self::Proc | Self::Ipc => Some(Primitive::Sched),
            Self::Unknown(_) => None,
        }
    }
}

/// One of the three parts of a kernel that its five categories are facets of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Primitive {
    /// Calls: asked for, and allowed or refused.
    Syscall,
    /// The table of tasks and their scheduling.
    Sched,
    /// Memory and its pages.
    Mm,
    /// An unknown primitive.
    #[serde(untagged)]
    Unknown(String),
}

/// The fields of every event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// The turn, counted by the session's clock.
    #[serde(default)]
    pub turn: u32,
    /// The part of the kernel that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<KernelEventCategory>,
    /// The category in a coarser grouping, as some kernels write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primitive: Option<Primitive>,
    /// Every other key.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The session was suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    /// The reason.
    pub reason: String,
    /// Calls that wait for an answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_calls: Vec<String>,
    /// The fields of every event.
    #[serde(flatten)]
    pub noted: Noted,
}

/// A signal was handled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalDisposed {
    /// The signal.
    pub signal_id: String,
    /// Its disposition.
    pub disposition: String,
    /// The length of the queue.
    #[serde(default)]
    pub queue_depth: u32,
    /// The fields of every event.
    #[serde(flatten)]
    pub noted: Noted,
}

/// A limit was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetExceeded {
    /// The budget.
    pub budget: String,
    /// The fields of every event.
    #[serde(flatten)]
    pub noted: Noted,
}

/// An agent was made, changed or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentProcessChanged {
    /// The agent.
    pub agent_id: String,
    /// The session it was made from.
    #[serde(default)]
    pub parent_session_id: String,
    /// Its role.
    #[serde(default)]
    pub role: String,
    /// How it is isolated.
    #[serde(default)]
    pub isolation: String,
    /// The context that it inherited.
    #[serde(default)]
    pub context_inheritance: String,
    /// Its state: `running`, `joined`, `aborted`. Later versions may omit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Its capabilities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permitted_capability_ids: Vec<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_termination: Option<String>,
    /// The fields of every event.
    #[serde(flatten)]
    pub noted: Noted,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionEvent {
    /// The conversation was compressed.
    Compressed(Noted),
    /// Content left the working memory.
    PageOut(Noted),
    /// Content entered the working memory.
    PageIn(Noted),
    /// The set of capabilities changed.
    CapabilityChanged(Noted),
    /// A new context took over.
    ContextRenewed(Noted),
    /// The session was suspended.
    Suspended(Suspended),
    /// The session resumed.
    Resumed(Noted),
    /// A call was delayed or refused.
    ToolGated(Noted),
    /// A signal was handled.
    SignalDisposed(SignalDisposed),
    /// The same under the name that later versions use.
    SignalDeliveryDisposed(Noted),
    /// A limit was reached.
    BudgetExceeded(BudgetExceeded),
    /// A checkpoint was kept.
    CheckpointTaken(Noted),
    /// A checkpoint was restored.
    Rollbacked(Noted),
    /// An agent was made, changed or ended.
    AgentProcessChanged(AgentProcessChanged),
    /// A milestone was reached.
    MilestoneAdvanced(Noted),
    /// A milestone was not reached.
    MilestoneBlocked(Noted),
    /// Evidence for or against a milestone.
    MilestoneEvidence(Noted),
    /// An entry was written to the long-term memory.
    MemoryWritten(Noted),
    /// The long-term memory was queried.
    MemoryQueried(Noted),
    /// The long-term memory rejected an entry.
    MemoryValidationFailed(Noted),
    /// The long-term memory answered.
    MemoryRetrievalResult(Noted),
    /// Any other object: of an unknown kind, or without a field that its kind needs.
    #[serde(untagged)]
    Other(Map<String, Value>),
}

impl SessionEvent {
    /// Parses one JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Its kind, as in JSON; empty if it has none.
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
            Self::SignalDeliveryDisposed(_) => "signal_delivery_disposed",
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

    /// The fields of every event; nothing for an event of an unknown kind.
    pub fn noted(&self) -> Option<&Noted> {
        match self {
            Self::Compressed(noted)
            | Self::PageOut(noted)
            | Self::PageIn(noted)
            | Self::CapabilityChanged(noted)
            | Self::ContextRenewed(noted)
            | Self::Resumed(noted)
            | Self::ToolGated(noted)
            | Self::SignalDeliveryDisposed(noted)
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
            | Self::SignalDeliveryDisposed(noted)
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

    /// Whether the event is a decision of a kernel that its audit needs a category for. Events of the
    /// long-term memory need none.
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
                | "signal_delivery_disposed"
                | "budget_exceeded"
                | "checkpoint_taken"
                | "rollbacked"
                | "agent_process_changed"
                | "milestone_advanced"
                | "milestone_blocked"
                | "milestone_evidence"
        )
    }

    /// Whether it names its category, or needs none.
    pub fn has_required_category(&self) -> bool {
        let category = match self {
            Self::Other(object) => object.get("category").is_some_and(Value::is_string),
            known => known.noted().is_some_and(|noted| noted.category.is_some()),
        };
        category || !self.needs_category()
    }

    /// The category of an event of a known kind: the one it names, else the one of its kind.
    pub fn category(&self) -> Option<KernelEventCategory> {
        let said = self.noted()?.category.clone();
        Some(said.unwrap_or_else(|| KernelEventCategory::of_kind(self.kind())))
    }

    /// The fault of an event of a known kind that was parsed already. A missing `turn` is not detected.
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Other(object) => schema::fault(object),
            Self::Suspended(_)
            | Self::SignalDisposed(_)
            | Self::BudgetExceeded(_)
            | Self::AgentProcessChanged(_) => None,
            noted_only => schema::fault_of_rest(noted_only.kind(), &noted_only.noted()?.extra),
        }
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
            // An unknown category, and an event without a field that its kind needs.
            json!({"kind": "tool_gated", "turn": 1, "category": "net"}),
            json!({"kind": "suspended", "turn": 1}),
            // A later version: other names, no category, no state.
            json!({"kind": "signal_delivery_disposed", "turn": 1, "delivery_id": "d", "disposition": "queue"}),
            json!({"kind": "agent_process_changed", "turn": 1, "agent_id": "a", "parent_session_id": "p",
                "role": "r", "isolation": "i", "context_inheritance": "n"}),
            json!({"kind": "page_in", "turn": 1, "primitive": "net"}),
        ] {
            let read: SessionEvent = serde_json::from_value(event.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), event);
            assert_eq!(read.kind(), event.get("kind").and_then(Value::as_str).unwrap_or_default());
        }
    }

    #[test]
    fn only_an_object_is_an_event() {
        for bytes in [&b"1"[..], b"\"page_in\"", b"[]", b"null", b"{", b"", b"\xff"] {
            assert!(SessionEvent::parse(bytes).is_err(), "{bytes:?}");
        }
    }

    /// The kinds of `deepstrike-core` 0.2.32, each with its category and whether an event must name one.
    const KINDS: [(&str, &str, bool); 31] = [
        ("run_started", "sched", false),
        ("llm_completed", "sched", false),
        ("tool_requested", "sched", false),
        ("tool_completed", "sched", false),
        ("compressed", "mm", true),
        ("page_out", "mm", true),
        ("page_in", "mm", true),
        ("large_result_spooled", "mm", false),
        ("run_terminal", "sched", false),
        ("tool_argument_repaired", "sched", false),
        ("permission_requested", "sched", false),
        ("permission_resolved", "sched", false),
        ("tool_denied", "sched", false),
        ("capability_changed", "syscall", true),
        ("context_renewed", "mm", true),
        ("suspended", "sched", true),
        ("resumed", "sched", true),
        ("tool_gated", "syscall", true),
        ("signal_disposed", "ipc", true),
        ("budget_exceeded", "sched", true),
        ("checkpoint_taken", "sched", true),
        ("rollbacked", "sched", true),
        ("cleanup_completed", "sched", false),
        ("agent_process_changed", "proc", true),
        ("milestone_advanced", "sched", true),
        ("milestone_blocked", "sched", true),
        ("milestone_evidence", "sched", true),
        ("memory_written", "mm", false),
        ("memory_queried", "mm", false),
        ("memory_validation_failed", "mm", false),
        ("memory_retrieval_result", "sched", false),
    ];

    #[test]
    fn sixteen_kinds_need_a_category_and_each_kind_has_its_own() {
        let event = |value: Value| serde_json::from_value::<SessionEvent>(value).unwrap();
        for (kind, category, needs) in KINDS {
            assert_eq!(event(json!({"kind": kind})).has_required_category(), !needs, "{kind}");
            assert!(event(json!({"kind": kind, "category": "net"})).has_required_category(), "{kind}");
            assert_eq!(KernelEventCategory::of_kind(kind).name(), category, "{kind}");
            let judge = deepstrike_core::runtime::event_log::category_for_kind(kind);
            assert_eq!(serde_json::to_value(judge).unwrap(), category, "{kind}");
            let ours = KernelEventCategory::of_kind(kind).primitive();
            assert_eq!(serde_json::to_value(ours).unwrap(), judge.primitive().label(), "{kind}");
        }
        assert_eq!(KINDS.iter().filter(|(_, _, needs)| *needs).count(), 16);
        assert!(!event(json!({"kind": "signal_delivery_disposed"})).has_required_category());
        assert!(event(json!({"kind": "invented_tomorrow"})).has_required_category());
    }

    #[test]
    fn a_missing_category_is_that_of_the_kind() {
        let category = |event: Value| {
            serde_json::from_value::<SessionEvent>(event).unwrap().category().map(|c| c.name().to_owned())
        };
        assert_eq!(category(json!({"kind": "page_out"})).as_deref(), Some("mm"));
        assert_eq!(category(json!({"kind": "page_out", "category": "net"})).as_deref(), Some("net"));
        assert_eq!(category(json!({"kind": "invented_tomorrow"})), None);
        assert_eq!(KernelEventCategory::Unknown("net".into()).primitive(), None);
    }

    #[test]
    fn an_event_that_was_read_still_shows_what_it_lacks() {
        let fault = |event: Value| serde_json::from_value::<SessionEvent>(event).unwrap().fault();
        assert_eq!(fault(json!({"kind": "suspended", "turn": 1})).as_deref(), Some("\"reason\" is missing"));
        assert_eq!(
            fault(json!({"kind": "page_in", "turn": 1})).as_deref(),
            Some("\"entry_count\" is missing")
        );
        assert_eq!(fault(json!({"kind": "page_in", "entry_count": 1})), None);
        assert_eq!(fault(json!({"kind": "suspended", "reason": "r"})), None);
        assert_eq!(fault(json!({"kind": "invented_tomorrow"})), None);
    }
}
