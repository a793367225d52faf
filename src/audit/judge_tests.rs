//! Compares pfimg with the real `deepstrike-core` 0.2.32 on random logs.

use deepstrike_core::runtime::replay as judge;
use deepstrike_core::runtime::session::SessionEvent as Theirs;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

use super::event::SessionEvent;
use super::{rebuild_os_snapshot_from_events, schema, session_log_has_required_categories};

/// A valid event of each of the 31 kinds, with each field that it may have.
fn whole_events(text: &str, agent: &str, number: u32) -> Vec<Value> {
    let (wide, list) = (u64::from(number) << 20, json!([text, agent]));
    let message = json!({"role": "assistant", "content": text});
    vec![
        json!({"kind": "run_started", "run_id": agent, "goal": text, "criteria": list, "agent_id": agent, "system_prompt": text}),
        json!({"kind": "llm_completed", "turn": number, "message": message}),
        json!({"kind": "tool_requested", "turn": number, "calls": [{"id": agent, "name": text, "arguments": {"a": 1}}]}),
        json!({"kind": "tool_completed", "turn": number, "results":
            [{"call_id": agent, "output": text, "is_error": false, "token_count": number}]}),
        json!({"kind": "compressed", "turn": number, "archived_seq_range": [number, wide], "action": text, "summary": text,
            "summary_tokens": number, "archive_ref": text, "preserved_refs": list}),
        json!({"kind": "page_out", "turn": number, "action": text, "summary": text, "tier_hint": text, "message_count": number}),
        json!({"kind": "page_in", "turn": number, "entry_count": number}),
        json!({"kind": "large_result_spooled", "turn": number, "call_id": text, "tool": text, "original_size": number,
            "preview_size": number, "spool_ref": text}),
        json!({"kind": "run_terminal", "reason": text, "turns_used": number, "total_tokens": wide}),
        json!({"kind": "tool_argument_repaired", "turn": number, "tool": text, "original_arguments": text, "repaired_arguments": text}),
        json!({"kind": "permission_requested", "turn": number, "tool": text, "arguments": text, "reason": text}),
        json!({"kind": "permission_resolved", "turn": number, "approved": true, "responder": "user"}),
        json!({"kind": "tool_denied", "turn": number, "call_id": text, "tool_name": text, "reason": text}),
        json!({"kind": "capability_changed", "turn": number, "added": list, "removed": list, "change_kind": text,
            "capability_id": text, "version": text, "mounted_by": text, "mount_reason": text}),
        json!({"kind": "context_renewed", "turn": number, "sprint": number, "handoff_ref": text}),
        json!({"kind": "suspended", "turn": number, "reason": text, "pending_calls": list}),
        json!({"kind": "resumed", "turn": number, "approved": list, "denied": list}),
        json!({"kind": "tool_gated", "turn": number, "call_id": text, "tool": text, "reason": text}),
        json!({"kind": "signal_disposed", "turn": number, "signal_id": agent, "disposition": text, "queue_depth": number}),
        json!({"kind": "budget_exceeded", "turn": number, "budget": text}),
        json!({"kind": "checkpoint_taken", "turn": number, "history_len": number}),
        json!({"kind": "rollbacked", "turn": number, "checkpoint_history_len": number,
            "reason": {"kind": "fatal_tool_error", "tool_name": text, "error": text}}),
        json!({"kind": "cleanup_completed", "run_id": text, "freed_resources": list}),
        json!({"kind": "agent_process_changed", "turn": number, "agent_id": agent, "parent_session_id": text, "role": text,
            "isolation": text, "context_inheritance": text, "state": text, "permitted_capability_ids": list,
            "result_termination": text}),
        json!({"kind": "milestone_advanced", "turn": number, "phase_id": text, "capabilities_unlocked": list}),
        json!({"kind": "milestone_blocked", "turn": number, "phase_id": text, "reason": text}),
        json!({"kind": "milestone_evidence", "turn": number, "phase_id": text, "evidence": list}),
        json!({"kind": "memory_written", "turn": number, "memory_id": text, "memory_kind": text, "size_bytes": number}),
        json!({"kind": "memory_queried", "turn": number, "query_context": text, "requested_k": wide, "requires_async_response": false}),
        json!({"kind": "memory_validation_failed", "turn": number, "memory_id": text, "error": text}),
        json!({"kind": "memory_retrieval_result", "retrieval": {"selected_memory_ids": list, "selection_rationale": text}}),
    ]
}

/// Kinds whose fields pfimg does not check.
const UNJUDGED: [&str; 11] = [
    "run_started",
    "llm_completed",
    "tool_requested",
    "tool_completed",
    "large_result_spooled",
    "run_terminal",
    "tool_argument_repaired",
    "permission_requested",
    "permission_resolved",
    "tool_denied",
    "cleanup_completed",
];

fn any_event() -> impl Strategy<Value = Value> {
    let agents = prop::sample::select(vec!["a", "b", "ü"]);
    let categories = prop::sample::select(vec!["", "syscall", "sched", "mm", "proc", "ipc"]);
    let primitives = prop::sample::select(vec!["", "", "syscall", "sched", "mm"]);
    (any::<prop::sample::Index>(), "[a-z\n\"\\\\ä]{0,6}", agents, any::<u32>(), categories, primitives)
        .prop_map(|(kind, text, agent, number, category, primitive)| {
            let mut events = whole_events(&text, agent, number);
            let mut event = events.swap_remove(kind.index(events.len()));
            for (key, word) in [("category", category), ("primitive", primitive)] {
                if !word.is_empty() {
                    event[key] = word.into();
                }
            }
            event
        })
}

fn object(event: &Value) -> &Map<String, Value> {
    event.as_object().unwrap()
}

/// The snapshot of a log by `deepstrike-core`, which removes answers of the long-term memory before it counts
/// them.
fn by_judge(log: &[Value]) -> (Value, bool) {
    let events: Vec<Theirs> = serde_json::from_value(log.into()).unwrap();
    let mut snapshot = serde_json::to_value(judge::rebuild_os_snapshot_from_events(&events)).unwrap();
    assert_eq!(snapshot["memory_retrieval_result_count"], 0);
    let answers = log.iter().filter(|event| event["kind"] == "memory_retrieval_result").count();
    snapshot["memory_retrieval_result_count"] = answers.into();
    (snapshot, judge::session_log_has_required_categories(&events))
}

#[test]
fn three_hundred_random_logs_come_to_what_deepstrike_core_makes_of_them() {
    let mut runner = TestRunner::new(Config { cases: 300, ..crate::crashpack::failing::config() });
    runner
        .run(&prop::collection::vec(any_event(), 0..40), |log| {
            let events: Vec<SessionEvent> = serde_json::from_value(log.as_slice().into()).unwrap();
            for event in &log {
                prop_assert_eq!(schema::fault(object(event)), None, "{}", event);
            }
            let ours = serde_json::to_value(rebuild_os_snapshot_from_events(&events)).unwrap();
            let (theirs, said) = by_judge(&log);
            prop_assert_eq!(ours, theirs);
            prop_assert_eq!(session_log_has_required_categories(&events), said);
            Ok(())
        })
        .unwrap();
}

#[test]
fn an_event_with_one_wrong_field_is_a_fault_exactly_where_deepstrike_core_refuses_it() {
    let wrong = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(7),
        json!(1.5),
        json!(1.0),
        json!(u64::from(u32::MAX) + 1),
        json!("text"),
        json!([]),
        json!(["text", 1]),
        json!([1, 2]),
        json!([1, 2, 3]),
        json!({}),
        json!({"kind": "timeout"}),
        json!({"kind": "provider_failure"}),
    ];
    let mut tried = 0;
    for whole in whole_events("t", "a", 3) {
        let kind = whole["kind"].as_str().unwrap().to_owned();
        if UNJUDGED.contains(&kind.as_str()) {
            continue;
        }
        let mut whole = whole;
        // The kind without these two keys there.
        if kind != "memory_retrieval_result" {
            whole["category"] = "sched".into();
            whole["primitive"] = "sched".into();
        }
        let keys: Vec<String> = object(&whole).keys().filter(|key| *key != "kind").cloned().collect();
        for key in keys {
            let mut without = whole.clone();
            without.as_object_mut().unwrap().remove(&key);
            let changed = wrong.iter().map(|value| {
                let mut event = whole.clone();
                event[&key] = value.clone();
                event
            });
            for event in changed.chain([without]) {
                // Unknown values of a category are reported; a missing state belongs to a later version.
                let word = ["category", "primitive"].contains(&key.as_str()) && event[&key] == "text";
                let theirs = serde_json::from_value::<Theirs>(event.clone()).is_err() && !word;
                assert_eq!(schema::fault(object(&event)).is_some(), theirs, "{event}");
                tried += 1;
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}

#[test]
fn deepstrike_core_reads_every_event_of_a_stores_own_log_but_those_about_the_log() {
    for event in super::note::tests::all_notes() {
        let mut event = serde_json::to_value(event).unwrap();
        event["turn"] = 1.into();
        let about_the_log = event["kind"] == "log_healed";
        assert_eq!(serde_json::from_value::<Theirs>(event.clone()).is_err(), about_the_log, "{event}");
        assert_eq!(schema::fault(object(&event)), None, "{event}");
    }
}
