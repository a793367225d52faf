//! Logs of pfimg, and a thousand random ones against a model that shares no code with the snapshot.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::*;
use crate::audit::chain::{self, Checker, Head, Writer};

fn events(log: Value) -> Vec<SessionEvent> {
    serde_json::from_value(log).unwrap()
}

fn process(turn: u32, state: &str, ended: Option<&str>) -> Value {
    let mut event = json!({"kind": "agent_process_changed", "turn": turn, "category": "proc",
        "agent_id": "child-1", "parent_session_id": "parent", "role": "worker", "isolation": "shared",
        "context_inheritance": "none", "state": state});
    if let Some(ended) = ended {
        event["result_termination"] = ended.into();
    }
    event
}

#[test]
fn the_newest_state_of_an_agent_wins_and_signals_and_suspensions_are_kept() {
    let log = events(json!([
        process(1, "running", None),
        {"kind": "signal_disposed", "turn": 2, "category": "ipc", "signal_id": "sig-a", "disposition": "queue",
            "queue_depth": 1},
        {"kind": "suspended", "turn": 3, "category": "sched", "reason": "ask_user", "pending_calls": ["c1"]},
        process(4, "joined", Some("completed")),
    ]));
    let snapshot = rebuild_os_snapshot_from_events(&log);
    assert_eq!(snapshot.process_by_agent.len(), 1);
    assert_eq!(snapshot.process_by_agent[0].state, "joined");
    assert_eq!(snapshot.signals.len(), 1);
    assert_eq!(snapshot.last_suspend.unwrap().reason, "ask_user");
}

#[test]
fn the_life_of_two_agents_adds_up_in_the_order_in_which_they_came() {
    let agent = |turn: u32, id: &str, state: &str| {
        json!({"kind": "agent_process_changed", "turn": turn, "category": "proc", "agent_id": id,
            "parent_session_id": "s1", "role": "explore", "isolation": "read_only",
            "context_inheritance": "summary", "state": state, "permitted_capability_ids": ["read"]})
    };
    let log = events(json!([
        {"kind": "run_started", "run_id": "r", "goal": "try both", "agent_id": null, "system_prompt": null},
        {"kind": "checkpoint_taken", "turn": 1, "category": "sched", "history_len": 2},
        agent(1, "left", "running"),
        agent(1, "right", "running"),
        {"kind": "page_in", "turn": 2, "category": "mm", "entry_count": 3},
        {"kind": "page_out", "turn": 2, "category": "mm", "message_count": 9},
        {"kind": "page_out", "turn": 3, "category": "mm", "message_count": 1},
        {"kind": "memory_written", "turn": 3, "memory_id": "m", "memory_kind": "fact", "size_bytes": 4},
        {"kind": "memory_queried", "turn": 3, "query_context": "q", "requested_k": 2, "requires_async_response": true},
        {"kind": "memory_validation_failed", "turn": 3, "memory_id": "n", "error": "too long"},
        {"kind": "memory_retrieval_result", "retrieval": {}},
        agent(4, "right", "aborted"),
        {"kind": "budget_exceeded", "turn": 5, "category": "sched", "budget": "tokens"},
        agent(6, "left", "joined"),
        {"kind": "run_terminal", "reason": "done", "turns_used": 6, "total_tokens": 10},
    ]));
    assert!(session_log_has_required_categories(&log));
    let golden = json!({
        "last_suspend": null,
        "last_resumed_turn": null,
        "process_by_agent": [
            {"turn": 6, "agent_id": "left", "parent_session_id": "s1", "state": "joined"},
            {"turn": 4, "agent_id": "right", "parent_session_id": "s1", "state": "aborted"}],
        "budget_exceeded": [{"turn": 5, "budget": "tokens"}],
        "signals": [],
        "page_out_count": 2, "page_in_count": 1, "tool_gated_count": 0,
        "memory_written_count": 1, "memory_queried_count": 1,
        "memory_validation_failed_count": 1, "memory_retrieval_result_count": 1});
    let snapshot = rebuild_os_snapshot_from_events(&log);
    assert_eq!(serde_json::to_value(&snapshot).unwrap(), golden);
    assert_eq!(serde_json::from_value::<OsSnapshot>(golden).unwrap(), snapshot);
}

#[test]
fn a_session_that_asks_its_user_is_suspended_and_resumed() {
    let log = events(json!([
        {"kind": "tool_gated", "turn": 1, "category": "syscall", "call_id": "c1", "tool": "rm", "reason": "ask"},
        {"kind": "suspended", "turn": 1, "category": "sched", "reason": "ask_user", "pending_calls": ["c1", "c2"]},
        {"kind": "signal_disposed", "turn": 1, "category": "ipc", "signal_id": "s", "disposition": "interrupt",
            "queue_depth": 0},
        {"kind": "resumed", "turn": 2, "category": "sched", "approved": ["c1"], "denied": ["c2"]},
        {"kind": "tool_gated", "turn": 3, "category": "syscall", "call_id": "c3", "tool": "curl", "reason": "net"},
    ]));
    assert!(session_log_has_required_categories(&log));
    let snapshot = rebuild_os_snapshot_from_events(&log);
    let golden = json!({
        "last_suspend": {"turn": 1, "reason": "ask_user", "pending_calls": ["c1", "c2"]},
        "last_resumed_turn": 2,
        "process_by_agent": [],
        "budget_exceeded": [],
        "signals": [{"turn": 1, "signal_id": "s", "disposition": "interrupt", "queue_depth": 0}],
        "page_out_count": 0, "page_in_count": 0, "tool_gated_count": 2,
        "memory_written_count": 0, "memory_queried_count": 0,
        "memory_validation_failed_count": 0, "memory_retrieval_result_count": 0});
    assert_eq!(serde_json::to_value(&snapshot).unwrap(), golden);
    assert_eq!(serde_json::from_value::<OsSnapshot>(golden).unwrap(), snapshot);
}

/// Two sessions and their sums, byte for byte, as files that `pfimg audit --events FILE` reads.
#[test]
fn the_golden_sessions_add_up_to_their_golden_snapshots() {
    for (log, golden) in [
        (
            include_str!("../../mount-tests/golden/session/events_lifecycle.json"),
            include_str!("../../mount-tests/golden/session/snapshot_lifecycle.json"),
        ),
        (
            include_str!("../../mount-tests/golden/session/events_ask_user.json"),
            include_str!("../../mount-tests/golden/session/snapshot_ask_user.json"),
        ),
    ] {
        let parsed = crate::audit::read::parse(log.as_bytes(), crate::audit::read::Mode::Strict).unwrap();
        assert_eq!((parsed.others, parsed.faults.count), (0, 0));
        assert!(session_log_has_required_categories(&parsed.events));
        let snapshot = rebuild_os_snapshot_from_events(&parsed.events);
        assert_eq!(serde_json::to_string_pretty(&snapshot).unwrap() + "\n", golden);
        // The log is written as it was read.
        assert_eq!(
            serde_json::to_value(&parsed.events).unwrap(),
            serde_json::from_str::<Value>(log).unwrap()
        );
        let theirs: Vec<deepstrike_core::SessionEvent> = serde_json::from_str(log).unwrap();
        let theirs = deepstrike_core::runtime::replay::rebuild_os_snapshot_from_events(&theirs);
        assert_eq!(serde_json::to_string_pretty(&theirs).unwrap() + "\n", golden);
    }
}

#[test]
fn the_newest_resume_counts_also_where_turns_go_back() {
    let log = events(json!([
        {"kind": "resumed", "turn": 9, "category": "sched"},
        {"kind": "suspended", "turn": 8, "category": "sched", "reason": "first"},
        {"kind": "resumed", "turn": 2, "category": "sched"},
        {"kind": "suspended", "turn": 1, "category": "sched", "reason": "second"},
    ]));
    let snapshot = rebuild_os_snapshot_from_events(&log);
    assert_eq!(snapshot.last_resumed_turn, Some(2));
    assert_eq!(snapshot.last_suspend.unwrap().reason, "second");
}

#[test]
fn a_signal_counts_under_both_of_its_names() {
    let log = events(json!([
        {"kind": "signal_disposed", "turn": 1, "category": "ipc", "signal_id": "a", "disposition": "queue", "queue_depth": 4},
        {"kind": "signal_delivery_disposed", "turn": 2, "signal_id": "b", "disposition": "drop", "queue_depth": 5,
            "operation_id": "o", "delivery_id": "d", "attempt": 1},
        {"kind": "signal_delivery_disposed", "turn": 3, "delivery_id": "d", "disposition": "drop"},
    ]));
    let signals = serde_json::to_value(rebuild_os_snapshot_from_events(&log).signals).unwrap();
    assert_eq!(
        signals,
        json!([
            {"turn": 1, "signal_id": "a", "disposition": "queue", "queue_depth": 4},
            {"turn": 2, "signal_id": "b", "disposition": "drop", "queue_depth": 5},
            {"turn": 3, "signal_id": "d", "disposition": "drop", "queue_depth": 0},
        ])
    );
}

#[test]
fn a_tally_says_where_categories_come_from_and_which_are_unknown() {
    let tally = |log: Value| {
        let mut tally = Tally::default();
        for event in &events(log) {
            tally.apply(event);
        }
        serde_json::to_value(tally).unwrap()
    };
    let said = json!([{"kind": "page_in", "turn": 1, "category": "mm"}, {"kind": "invented_tomorrow"}]);
    assert_eq!(
        tally(said),
        json!({"categories": "said", "by_category": {"mm": 1}, "unknown_categories": [], "unknown_primitives": []})
    );
    let later = json!([
        {"kind": "tool_gated", "turn": 1},
        {"kind": "signal_delivery_disposed", "turn": 1, "primitive": "bus"},
        {"kind": "page_in", "turn": 1, "category": "net"},
        {"kind": "memory_written", "turn": 1},
    ]);
    assert_eq!(
        tally(later),
        json!({"categories": "inferred", "by_category": {"ipc": 1, "mm": 1, "syscall": 1, "unknown": 1},
            "unknown_categories": ["net"], "unknown_primitives": ["bus"]})
    );
}

#[test]
fn one_decision_without_a_category_spoils_a_log_and_an_unknown_kind_does_not() {
    let mut log = events(json!([
        {"kind": "page_in", "turn": 1, "category": "mm"},
        {"kind": "invented_tomorrow", "turn": 1},
    ]));
    assert!(session_log_has_required_categories(&log));
    log.extend(events(json!([{"kind": "rollbacked", "turn": 2, "checkpoint_history_len": 1}])));
    assert!(!session_log_has_required_categories(&log));
    assert!(session_log_has_required_categories(&[]));
}

#[test]
fn a_snapshot_without_counts_of_memory_is_read_as_having_none() {
    let old = json!({"last_suspend": null, "last_resumed_turn": 1, "process_by_agent": [], "budget_exceeded": [],
        "signals": [], "page_out_count": 1, "page_in_count": 2, "tool_gated_count": 3});
    let snapshot: OsSnapshot = serde_json::from_value(old).unwrap();
    assert_eq!((snapshot.page_in_count, snapshot.memory_written_count), (2, 0));
    assert!(serde_json::from_value::<OsSnapshot>(json!({"last_suspend": null})).is_err());
}

/// Any event, of kinds known and not, with agents that recur.
fn any_event() -> impl Strategy<Value = Value> {
    let kinds = prop::sample::select(vec![
        "suspended",
        "resumed",
        "tool_gated",
        "agent_process_changed",
        "agent_process_changed",
        "budget_exceeded",
        "signal_disposed",
        "page_out",
        "page_in",
        "memory_written",
        "memory_queried",
        "memory_validation_failed",
        "memory_retrieval_result",
        "compressed",
        "checkpoint_taken",
        "milestone_evidence",
        "llm_completed",
        "invented_tomorrow",
    ]);
    let agents = prop::sample::select(vec!["a", "b", "c", "ü"]);
    (kinds, agents, "[a-z\n\"\\\\ä]{0,6}", any::<bool>(), any::<u32>()).prop_map(
        |(kind, agent, text, whole, depth)| {
            let mut event = json!({"kind": kind, "category": "sched", "extra": text});
            if whole {
                event["agent_id"] = agent.into();
                event["state"] = text.as_str().into();
                event["reason"] = text.as_str().into();
                event["budget"] = text.as_str().into();
                event["signal_id"] = agent.into();
                event["disposition"] = text.as_str().into();
                event["queue_depth"] = depth.into();
            }
            event
        },
    )
}

/// The sum of such events, computed from the JSON alone.
fn model(log: &[Value]) -> Value {
    let numbered = || log.iter().enumerate().map(|(index, event)| (index + 1, event));
    let of = |kind: &'static str| numbered().filter(move |(_, event)| event["kind"] == kind);
    let whole = |kind: &'static str| of(kind).filter(|(_, event)| event.get("state").is_some());
    let mut agents: Vec<&str> = Vec::new();
    for (_, event) in whole("agent_process_changed") {
        let id = event["agent_id"].as_str().unwrap();
        if !agents.contains(&id) {
            agents.push(id);
        }
    }
    let processes: Vec<Value> = agents
        .iter()
        .map(|id| {
            let (turn, event) =
                whole("agent_process_changed").rfind(|(_, event)| event["agent_id"] == *id).unwrap();
            json!({"turn": turn, "agent_id": id, "parent_session_id": "", "state": event["state"]})
        })
        .collect();
    let budgets: Vec<Value> = whole("budget_exceeded")
        .map(|(turn, event)| json!({"turn": turn, "budget": event["budget"]}))
        .collect();
    let signals: Vec<Value> = whole("signal_disposed")
        .map(|(turn, event)| {
            json!({"turn": turn, "signal_id": event["signal_id"], "disposition": event["disposition"],
                "queue_depth": event["queue_depth"]})
        })
        .collect();
    let suspended = whole("suspended")
        .next_back()
        .map(|(turn, event)| json!({"turn": turn, "reason": event["reason"], "pending_calls": []}));
    json!({
        "last_suspend": suspended,
        "last_resumed_turn": of("resumed").next_back().map(|(turn, _)| turn),
        "process_by_agent": processes,
        "budget_exceeded": budgets,
        "signals": signals,
        "page_out_count": of("page_out").count(),
        "page_in_count": of("page_in").count(),
        "tool_gated_count": of("tool_gated").count(),
        "memory_written_count": of("memory_written").count(),
        "memory_queried_count": of("memory_queried").count(),
        "memory_validation_failed_count": of("memory_validation_failed").count(),
        "memory_retrieval_result_count": of("memory_retrieval_result").count(),
    })
}

/// A thousand logs: cut at any line, the sum kept while writing equals the sum rebuilt from the bytes, and
/// both equal the model; and any flipped byte is found on its line.
#[test]
fn the_live_snapshot_equals_a_rebuilt_one_for_a_log_cut_anywhere() {
    let logs = (prop::collection::vec(any_event(), 0..24), any::<prop::sample::Index>(), 0..8u8);
    let mut runner = TestRunner::new(Config { cases: 1000, ..crate::crashpack::failing::config() });
    runner
        .run(&logs, |(log, at, bit)| {
            let writer = Writer { pid: 1, by: "test".into() };
            let (mut head, mut live, mut bytes) = (Head::START, Fold::default(), Vec::new());
            let mut kept = vec![live.snapshot().clone()];
            for event in &log {
                let event = serde_json::from_value(event.clone()).unwrap();
                let line = chain::encode(&mut head, chrono::DateTime::UNIX_EPOCH, &writer, event).unwrap();
                let record = chain::decode(line.strip_suffix(b"\n").unwrap()).unwrap().0;
                live.apply(&record.event);
                kept.push(live.snapshot().clone());
                bytes.extend_from_slice(&line);
            }
            let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
            for (cut, kept) in kept.iter().enumerate() {
                let mut checker = Checker::behind(Head::START);
                let events: Vec<SessionEvent> = lines[..cut]
                    .iter()
                    .map(|line| checker.line(line.strip_suffix(b"\n").unwrap()).unwrap().event)
                    .collect();
                prop_assert_eq!(&rebuild_os_snapshot_from_events(&events), kept);
                prop_assert_eq!(serde_json::to_value(kept).unwrap(), model(&log[..cut]));
            }
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                let line = bytes[..at].split(|byte| *byte == b'\n').count() as u64;
                bytes[at] ^= 1 << bit;
                prop_assert_eq!(chain::verify(Head::START, &bytes).unwrap_err().line, line);
            }
            Ok(())
        })
        .unwrap();
}
