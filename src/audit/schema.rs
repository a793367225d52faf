//! The fields that an event of each known kind needs, and their types. Pure.
//!
//! The tables are those of `deepstrike-core` 0.2.32, which refuses a whole log for one wrong field. pfimg
//! names the event instead. It accepts fields that a table does not list, and events of kinds without a
//! table.

use serde_json::{Map, Value};

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    /// Text.
    Text,
    /// A whole number of 32 bits.
    Number,
    /// A whole number of 64 bits.
    Size,
    /// `true` or `false`.
    Bool,
    /// A list of texts.
    Texts,
    /// Two whole numbers of 64 bits.
    Range,
    /// An answer of the long-term memory.
    Retrieval,
    /// The reason for restoring a state.
    Rollback,
}

/// Whether a field may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// It must be there.
    Needed,
    /// It may be missing, but must not be `null`.
    Defaulted,
    /// It may be missing, and `null` counts as missing.
    Optional,
}

use Presence::{Defaulted, Needed, Optional};
use Type::{Bool, Number, Range, Retrieval, Rollback, Size, Text, Texts};

type Field = (&'static str, Type, Presence);

const TURN: Field = ("turn", Number, Needed);

/// Fields of every event. The value of a category is not checked here: an unknown one is reported, not
/// refused.
const COMMON: [Field; 2] = [("category", Text, Optional), ("primitive", Text, Optional)];

/// The fields of a kind apart from the common ones; nothing for a kind without a table.
fn fields(kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "compressed" => &[
            TURN,
            ("archived_seq_range", Range, Needed),
            ("action", Text, Optional),
            ("summary", Text, Optional),
            ("summary_tokens", Number, Optional),
            ("archive_ref", Text, Optional),
            ("preserved_refs", Texts, Defaulted),
        ],
        "page_out" => &[
            TURN,
            ("action", Text, Optional),
            ("summary", Text, Optional),
            ("tier_hint", Text, Optional),
            ("message_count", Number, Defaulted),
        ],
        "page_in" => &[TURN, ("entry_count", Number, Needed)],
        "capability_changed" => &[
            TURN,
            ("added", Texts, Defaulted),
            ("removed", Texts, Defaulted),
            ("change_kind", Text, Optional),
            ("capability_id", Text, Optional),
            ("version", Text, Optional),
            ("mounted_by", Text, Optional),
            ("mount_reason", Text, Optional),
        ],
        "context_renewed" => &[TURN, ("sprint", Number, Needed), ("handoff_ref", Text, Needed)],
        "suspended" => &[TURN, ("reason", Text, Needed), ("pending_calls", Texts, Defaulted)],
        "resumed" => &[TURN, ("approved", Texts, Defaulted), ("denied", Texts, Defaulted)],
        "tool_gated" => &[TURN, ("call_id", Text, Needed), ("tool", Text, Needed), ("reason", Text, Needed)],
        "signal_disposed" => &[
            TURN,
            ("signal_id", Text, Needed),
            ("disposition", Text, Needed),
            ("queue_depth", Number, Needed),
        ],
        // The name that later versions give to the event before.
        "signal_delivery_disposed" => &[
            TURN,
            ("signal_id", Text, Optional),
            ("delivery_id", Text, Optional),
            ("disposition", Text, Needed),
            ("queue_depth", Number, Optional),
        ],
        "budget_exceeded" => &[TURN, ("budget", Text, Needed)],
        "checkpoint_taken" => &[TURN, ("history_len", Number, Needed)],
        "rollbacked" => &[TURN, ("checkpoint_history_len", Number, Needed), ("reason", Rollback, Optional)],
        "agent_process_changed" => &[
            TURN,
            ("agent_id", Text, Needed),
            ("parent_session_id", Text, Needed),
            ("role", Text, Needed),
            ("isolation", Text, Needed),
            ("context_inheritance", Text, Needed),
            ("state", Text, Needed),
            ("permitted_capability_ids", Texts, Defaulted),
            ("result_termination", Text, Optional),
        ],
        "milestone_advanced" => {
            &[TURN, ("phase_id", Text, Needed), ("capabilities_unlocked", Texts, Defaulted)]
        }
        "milestone_blocked" => &[TURN, ("phase_id", Text, Needed), ("reason", Text, Needed)],
        "milestone_evidence" => &[TURN, ("phase_id", Text, Needed), ("evidence", Texts, Defaulted)],
        "memory_written" => &[
            TURN,
            ("memory_id", Text, Needed),
            ("memory_kind", Text, Needed),
            ("size_bytes", Number, Needed),
        ],
        "memory_queried" => &[
            TURN,
            ("query_context", Text, Needed),
            ("requested_k", Size, Needed),
            ("requires_async_response", Bool, Needed),
        ],
        "memory_validation_failed" => &[TURN, ("memory_id", Text, Needed), ("error", Text, Needed)],
        "memory_retrieval_result" => &[("retrieval", Retrieval, Needed)],
        _ => return None,
    })
}

impl Type {
    fn fits(self, value: &Value) -> bool {
        let text = |value: &Value| value.is_string();
        let texts = |value: &Value| value.as_array().is_some_and(|all| all.iter().all(text));
        match self {
            Text => text(value),
            Number => value.as_u64().is_some_and(|number| u32::try_from(number).is_ok()),
            Size => value.is_u64(),
            Bool => value.is_boolean(),
            Texts => texts(value),
            Range => value.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(Value::is_u64)),
            Retrieval => {
                value.get("selected_memory_ids").is_some_and(texts)
                    && value.get("selection_rationale").is_some_and(text)
            }
            Rollback => {
                let has = |key: &str| value.get(key).is_some_and(text);
                match value.get("kind").and_then(Value::as_str) {
                    Some("fatal_tool_error") => has("tool_name") && has("error"),
                    Some("governance_denied") => has("tool_name") && has("reason"),
                    Some("provider_failure") => has("error"),
                    Some("malformed_replay") => has("reason"),
                    Some("timeout" | "user_interrupt") => true,
                    _ => false,
                }
            }
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Text => "text",
            Number => "a whole number from 0 to 4294967295",
            Size => "a whole number from 0",
            Bool => "true or false",
            Texts => "a list of texts",
            Range => "a list of two whole numbers",
            Retrieval => "an object with selected_memory_ids and selection_rationale",
            Rollback => "a known reason",
        }
    }
}

/// Says why a field does not fit; nothing if it does.
fn misfit((key, kind, presence): Field, value: Option<&Value>) -> Option<String> {
    match (value, presence) {
        (None, Needed) => Some(format!("{key:?} is missing")),
        (None, _) | (Some(Value::Null), Optional) => None,
        (Some(value), _) if kind.fits(value) => None,
        (Some(_), _) => Some(format!("{key:?} is not {}", kind.name())),
    }
}

/// Says what is wrong with an event of a known kind; nothing if it is valid, or of another kind.
pub fn fault(event: &Map<String, Value>) -> Option<String> {
    let kind = event.get("kind").and_then(Value::as_str)?;
    let fields = fields(kind)?;
    // Later versions omit the category, and may omit the state.
    let later = !event.contains_key("category");
    let may_lack = |key: &str| later && kind == "agent_process_changed" && key == "state";
    fields
        .iter()
        .chain(&COMMON)
        .filter(|(key, ..)| event.contains_key(*key) || !may_lack(key))
        .find_map(|field| misfit(*field, event.get(field.0)))
        .or_else(|| unnamed_signal(kind, event))
}

/// A signal of later versions has one of two keys for its name.
fn unnamed_signal(kind: &str, event: &Map<String, Value>) -> Option<String> {
    let named = ["signal_id", "delivery_id"].iter().any(|key| event.get(*key).is_some_and(Value::is_string));
    (kind == "signal_delivery_disposed" && !named).then(|| "\"signal_id\" is missing".to_owned())
}

/// Does the same for the fields of an event that its type has not read already.
pub(super) fn fault_of_rest(kind: &str, rest: &Map<String, Value>) -> Option<String> {
    let read = ["turn", "category", "primitive"];
    let fields = fields(kind)?.iter().filter(|(key, ..)| !read.contains(key));
    fields.copied().find_map(|field| misfit(field, rest.get(field.0))).or_else(|| unnamed_signal(kind, rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fault_of(event: Value) -> Option<String> {
        let Value::Object(event) = event else { panic!("{event}") };
        fault(&event)
    }

    #[test]
    fn a_fault_names_the_field_and_what_it_should_be() {
        for (event, said) in [
            (json!({"kind": "suspended", "turn": 1}), "\"reason\" is missing"),
            (json!({"kind": "suspended", "reason": "r"}), "\"turn\" is missing"),
            (
                json!({"kind": "page_in", "turn": 1, "entry_count": -1}),
                "\"entry_count\" is not a whole number",
            ),
            (json!({"kind": "page_in", "turn": 1.0, "entry_count": 1}), "\"turn\" is not a whole number"),
            (json!({"kind": "page_out", "turn": 1, "message_count": null}), "\"message_count\" is not"),
            (json!({"kind": "resumed", "turn": 1, "approved": [1]}), "\"approved\" is not a list of texts"),
            (json!({"kind": "resumed", "turn": 1, "primitive": 1}), "\"primitive\" is not text"),
            (
                json!({"kind": "compressed", "turn": 1, "archived_seq_range": [1]}),
                "a list of two whole numbers",
            ),
            (
                json!({"kind": "signal_delivery_disposed", "turn": 1, "disposition": "d"}),
                "\"signal_id\" is missing",
            ),
        ] {
            let found = fault_of(event.clone()).unwrap_or_default();
            assert!(found.contains(said), "{event}: {found:?}");
        }
    }

    #[test]
    fn later_versions_and_unknown_kinds_are_let_through() {
        let process = |more: Value| {
            let mut event = json!({"kind": "agent_process_changed", "turn": 1, "agent_id": "a",
                "parent_session_id": "p", "role": "r", "isolation": "i", "context_inheritance": "n"});
            event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            fault_of(event)
        };
        assert_eq!(process(json!({})), None, "no category and no state");
        assert_eq!(process(json!({"category": "proc"})).as_deref(), Some("\"state\" is missing"));
        assert_eq!(process(json!({"category": "proc", "state": "running"})), None);
        for sound in [
            json!({"kind": "invented_tomorrow", "turn": "x"}),
            json!({"kind": "llm_completed"}),
            json!({"no": "kind"}),
            json!({"kind": "signal_delivery_disposed", "turn": 1, "delivery_id": "d", "disposition": "queue", "attempt": 2}),
            json!({"kind": "rollbacked", "turn": 1, "checkpoint_history_len": 2, "reason": null}),
        ] {
            assert_eq!(fault_of(sound.clone()), None, "{sound}");
        }
    }
}
