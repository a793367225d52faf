//! The sum of a sequence of session events. Fields and their names are those of `deepstrike-core`'s
//! `runtime::replay`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::{KernelEventCategory, Primitive, SessionEvent};

/// How many unknown words are kept.
const NAMED: usize = 100;

/// A signal and its disposition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalDisposedRecord {
    /// The turn of the event.
    pub turn: u32,
    /// The signal.
    pub signal_id: String,
    /// Its disposition.
    pub disposition: String,
    /// The length of the queue.
    pub queue_depth: u32,
}

/// The newest state of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// The turn of the newest state.
    pub turn: u32,
    /// The agent.
    pub agent_id: String,
    /// The session it was made from.
    pub parent_session_id: String,
    /// Its state.
    pub state: String,
}

/// The last suspension of the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendRecord {
    /// The turn of the event.
    pub turn: u32,
    /// The reason.
    pub reason: String,
    /// Calls that waited for an answer.
    pub pending_calls: Vec<String>,
}

/// A limit that was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetExceededRecord {
    /// The turn of the event.
    pub turn: u32,
    /// The budget.
    pub budget: String,
}

/// The sum of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsSnapshot {
    /// The last suspension of the session.
    pub last_suspend: Option<SuspendRecord>,
    /// The turn at which it last resumed.
    pub last_resumed_turn: Option<u32>,
    /// The newest state of each agent, in the order in which they first appeared.
    pub process_by_agent: Vec<ProcessRecord>,
    /// Limits that were reached, in order.
    pub budget_exceeded: Vec<BudgetExceededRecord>,
    /// Signals, in order.
    pub signals: Vec<SignalDisposedRecord>,
    /// Events that removed content from the working memory.
    pub page_out_count: u32,
    /// Events that brought content into it.
    pub page_in_count: u32,
    /// Calls that were delayed or refused.
    pub tool_gated_count: u32,
    /// Writes to the long-term memory.
    #[serde(default)]
    pub memory_written_count: u32,
    /// Queries to it.
    #[serde(default)]
    pub memory_queried_count: u32,
    /// Entries that it rejected.
    #[serde(default)]
    pub memory_validation_failed_count: u32,
    /// Its answers.
    #[serde(default)]
    pub memory_retrieval_result_count: u32,
}

/// A snapshot that is kept up to date event by event.
#[derive(Clone, Debug, Default)]
pub struct Fold {
    snapshot: OsSnapshot,
    /// The index of each agent in the list.
    agents: HashMap<String, usize>,
}

impl Fold {
    /// The sum of the events so far.
    pub fn snapshot(&self) -> &OsSnapshot {
        &self.snapshot
    }

    /// Adds one event. An event of an unknown kind changes nothing.
    pub fn apply(&mut self, event: &SessionEvent) {
        let snapshot = &mut self.snapshot;
        let counter = match event {
            SessionEvent::PageOut(_) => &mut snapshot.page_out_count,
            SessionEvent::PageIn(_) => &mut snapshot.page_in_count,
            SessionEvent::ToolGated(_) => &mut snapshot.tool_gated_count,
            SessionEvent::MemoryWritten(_) => &mut snapshot.memory_written_count,
            SessionEvent::MemoryQueried(_) => &mut snapshot.memory_queried_count,
            SessionEvent::MemoryValidationFailed(_) => &mut snapshot.memory_validation_failed_count,
            SessionEvent::MemoryRetrievalResult(_) => &mut snapshot.memory_retrieval_result_count,
            SessionEvent::Resumed(noted) => {
                snapshot.last_resumed_turn = Some(noted.turn);
                return;
            }
            SessionEvent::Suspended(event) => {
                snapshot.last_suspend = Some(SuspendRecord {
                    turn: event.noted.turn,
                    reason: event.reason.clone(),
                    pending_calls: event.pending_calls.clone(),
                });
                return;
            }
            SessionEvent::BudgetExceeded(event) => {
                let record = BudgetExceededRecord { turn: event.noted.turn, budget: event.budget.clone() };
                return snapshot.budget_exceeded.push(record);
            }
            SessionEvent::SignalDisposed(event) => {
                return snapshot.signals.push(SignalDisposedRecord {
                    turn: event.noted.turn,
                    signal_id: event.signal_id.clone(),
                    disposition: event.disposition.clone(),
                    queue_depth: event.queue_depth,
                });
            }
            SessionEvent::SignalDeliveryDisposed(noted) => {
                let text = |key: &str| noted.extra.get(key).and_then(Value::as_str).map(str::to_owned);
                let depth = noted.extra.get("queue_depth").and_then(Value::as_u64).unwrap_or(0);
                return snapshot.signals.push(SignalDisposedRecord {
                    turn: noted.turn,
                    signal_id: text("signal_id").or_else(|| text("delivery_id")).unwrap_or_default(),
                    disposition: text("disposition").unwrap_or_default(),
                    queue_depth: u32::try_from(depth).unwrap_or(u32::MAX),
                });
            }
            SessionEvent::AgentProcessChanged(event) => {
                let record = ProcessRecord {
                    turn: event.noted.turn,
                    agent_id: event.agent_id.clone(),
                    parent_session_id: event.parent_session_id.clone(),
                    state: event.state.clone().unwrap_or_default(),
                };
                let agents = &mut snapshot.process_by_agent;
                if let Some(index) = self.agents.get(&event.agent_id) {
                    agents[*index] = record;
                } else {
                    self.agents.insert(event.agent_id.clone(), agents.len());
                    agents.push(record);
                }
                return;
            }
            _ => return,
        };
        *counter = counter.saturating_add(1);
    }
}

/// The source of the categories of a log's decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Categories {
    /// Every decision names its category.
    #[default]
    Said,
    /// Some decisions name none; their kind gives it.
    Inferred,
}

/// The categories of a log's events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Their source.
    pub categories: Categories,
    /// How many events of known kinds each has.
    pub by_category: BTreeMap<String, u64>,
    /// Unknown categories, at most 100.
    pub unknown_categories: BTreeSet<String>,
    /// Unknown primitives, at most 100.
    pub unknown_primitives: BTreeSet<String>,
}

impl Tally {
    /// Adds one event.
    pub fn apply(&mut self, event: &SessionEvent) {
        if !event.has_required_category() {
            self.categories = Categories::Inferred;
        }
        let Some(category) = event.category() else { return };
        let counted =
            if let KernelEventCategory::Unknown(_) = category { "unknown" } else { category.name() };
        *self.by_category.entry(counted.to_owned()).or_default() += 1;
        // A log with random words must not fill the memory.
        let keep = |names: &mut BTreeSet<String>, name: &str| {
            if names.len() < NAMED {
                names.insert(name.to_owned());
            }
        };
        if let KernelEventCategory::Unknown(name) = &category {
            keep(&mut self.unknown_categories, name);
        }
        if let Some(Primitive::Unknown(name)) = event.noted().and_then(|noted| noted.primitive.as_ref()) {
            keep(&mut self.unknown_primitives, name);
        }
    }
}

/// The sum of a log: the newest state of each agent, in the order in which they first appeared, and counts.
pub fn rebuild_os_snapshot_from_events(events: &[SessionEvent]) -> OsSnapshot {
    let mut fold = Fold::default();
    for event in events {
        fold.apply(event);
    }
    fold.snapshot
}

/// Whether every decision of a kernel in a log names its category.
pub fn session_log_has_required_categories(events: &[SessionEvent]) -> bool {
    events.iter().all(SessionEvent::has_required_category)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
