//! Events of a store as session events: a fork is a process, the cache is memory, a seal is a checkpoint.

use serde_json::{Map, Value, json};

use super::event::{
    AgentProcessChanged, BudgetExceeded, KernelEventCategory, Noted, SessionEvent, SignalDisposed, Suspended,
};
use crate::digest::Digest;

/// A key and its value; nulls are left out.
fn noted(category: KernelEventCategory, extra: Value) -> Noted {
    let mut extra = if let Value::Object(extra) = extra { extra } else { Map::new() };
    extra.retain(|_, value| !value.is_null());
    Noted { turn: 0, category: Some(category), primitive: None, extra }
}

/// A fork was made, renamed, or removed. `ended` says how it was removed.
pub fn fork_changed(name: &str, base: Option<&Digest>, state: &str, ended: Option<&str>) -> SessionEvent {
    SessionEvent::AgentProcessChanged(AgentProcessChanged {
        agent_id: name.to_owned(),
        parent_session_id: base.map(Digest::to_string).unwrap_or_default(),
        role: "fork".to_owned(),
        isolation: "copy_on_write".to_owned(),
        context_inheritance: if base.is_some() { "full" } else { "none" }.to_owned(),
        state: Some(state.to_owned()),
        permitted_capability_ids: Vec::new(),
        result_termination: ended.map(str::to_owned),
        noted: noted(KernelEventCategory::Proc, Value::Null),
    })
}

/// A fork was made of an image, or of nothing.
pub fn fork_made(name: &str, base: Option<&Digest>) -> SessionEvent {
    fork_changed(name, base, "running", None)
}

/// A fork became an image.
pub fn fork_sealed(name: &str, image: &Digest) -> SessionEvent {
    fork_changed(name, Some(image), "joined", Some("sealed"))
}

/// A fork was discarded.
pub fn fork_discarded(name: &str, base: Option<&Digest>) -> SessionEvent {
    fork_changed(name, base, "aborted", Some("discarded"))
}

/// A fork was renamed: the process of the old name ends, that of the new name begins.
pub fn fork_renamed(name: &str, new_name: &str, base: Option<&Digest>) -> [SessionEvent; 2] {
    let ended = format!("renamed to {new_name}");
    [fork_changed(name, base, "renamed", Some(&ended)), fork_made(new_name, base)]
}

/// Blobs entered the cache.
pub fn page_in(blobs: u64, bytes: u64) -> SessionEvent {
    SessionEvent::PageIn(noted(KernelEventCategory::Mm, json!({"entry_count": blobs, "bytes": bytes})))
}

/// Blobs were dropped from the cache.
pub fn page_out(blobs: u64) -> SessionEvent {
    SessionEvent::PageOut(noted(KernelEventCategory::Mm, json!({"action": "evict", "message_count": blobs})))
}

/// A call was refused: `call` is its number, `path` its target.
pub fn gated(operation: &str, reason: &str, path: Option<&str>, call: &str) -> SessionEvent {
    let extra = json!({"call_id": call, "tool": operation, "reason": reason, "path": path});
    SessionEvent::ToolGated(noted(KernelEventCategory::Syscall, extra))
}

/// There was no room left: on disk, or in a budget.
pub fn budget_exceeded(budget: &str, operation: &str) -> SessionEvent {
    SessionEvent::BudgetExceeded(BudgetExceeded {
        budget: budget.to_owned(),
        noted: noted(KernelEventCategory::Sched, json!({"tool": operation})),
    })
}

/// An image was made of a fork, a folder or synthetic content.
pub fn checkpoint_taken(subject: &str, image: &Digest) -> SessionEvent {
    let extra = json!({"history_len": 0, "agent_id": subject, "image": image});
    SessionEvent::CheckpointTaken(noted(KernelEventCategory::Sched, extra))
}

/// An image was restored.
pub fn rollbacked(subject: &str, image: &Digest) -> SessionEvent {
    let extra = json!({"checkpoint_history_len": 0, "agent_id": subject, "image": image});
    SessionEvent::Rollbacked(noted(KernelEventCategory::Sched, extra))
}

/// A mount ended.
pub fn suspended(reason: &str, mountpoint: &str) -> SessionEvent {
    SessionEvent::Suspended(Suspended {
        reason: reason.to_owned(),
        pending_calls: Vec::new(),
        noted: noted(KernelEventCategory::Sched, json!({"mountpoint": mountpoint})),
    })
}

/// A mount answers.
pub fn resumed(mountpoint: &str) -> SessionEvent {
    SessionEvent::Resumed(noted(KernelEventCategory::Sched, json!({"mountpoint": mountpoint})))
}

/// A signal arrived.
pub fn signal(name: &str, disposition: &str) -> SessionEvent {
    SessionEvent::SignalDisposed(SignalDisposed {
        signal_id: name.to_owned(),
        disposition: disposition.to_owned(),
        queue_depth: 0,
        noted: noted(KernelEventCategory::Ipc, Value::Null),
    })
}

/// Tags were made or removed. Each is given with the image it names, if that is known.
pub fn tags_changed(added: &[&str], removed: &[&str], image: Option<&Digest>) -> SessionEvent {
    let named = |names: &[&str]| names.iter().map(|name| format!("tag:{name}")).collect::<Vec<_>>();
    let extra =
        json!({"added": named(added), "removed": named(removed), "change_kind": "tag", "image": image});
    SessionEvent::CapabilityChanged(noted(KernelEventCategory::Syscall, extra))
}

/// Images were removed: no fork can be made of them from now on.
pub fn images_removed(images: &[Digest]) -> SessionEvent {
    let removed: Vec<String> = images.iter().map(|image| format!("image:{image}")).collect();
    let extra = json!({"added": [], "removed": removed, "change_kind": "image"});
    SessionEvent::CapabilityChanged(noted(KernelEventCategory::Syscall, extra))
}

/// An oracle found something wrong with a transfer; the evidence is kept in `crashpack`.
pub fn violation(phase: &str, subject: &str, reason: &str, crashpack: Option<&str>) -> SessionEvent {
    let extra = json!({"phase_id": phase, "agent_id": subject, "reason": reason, "crashpack": crashpack});
    SessionEvent::MilestoneBlocked(noted(KernelEventCategory::Sched, extra))
}

/// An event about the log itself, of a kind that no other kernel has.
pub fn about_the_log(kind: &str, mut what: Value) -> SessionEvent {
    what["kind"] = kind.into();
    what["category"] = "sched".into();
    SessionEvent::Other(if let Value::Object(what) = what { what } else { Map::new() })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::audit::snapshot::{rebuild_os_snapshot_from_events, session_log_has_required_categories};

    /// One event of each kind that is written.
    pub(in crate::audit) fn all_notes() -> Vec<SessionEvent> {
        let image = Digest::of(b"x");
        let mut all = vec![
            fork_made("a", Some(&image)),
            fork_made("b", None),
            fork_sealed("a", &image),
            fork_discarded("b", None),
            page_in(1, 2),
            page_out(3),
            gated("write", "read-only", Some("images/x/world/fs/a"), "7-1"),
            budget_exceeded("disk", "write"),
            checkpoint_taken("a", &image),
            rollbacked("a", &image),
            suspended("unmounted", "/mnt"),
            resumed("/mnt"),
            signal("SIGTERM", "unmount"),
            tags_changed(&["t"], &["u"], Some(&image)),
            images_removed(&[image]),
            violation("seal", "a", "gone", Some("seal-0123")),
            about_the_log("log_healed", json!({"lost_bytes": 1, "sha256": "00", "kept": "torn-1"})),
        ];
        all.extend(fork_renamed("a", "c", None));
        all
    }

    #[test]
    fn everything_that_is_noted_has_a_category_and_is_read_back_as_what_it_is() {
        let all = all_notes();
        assert!(session_log_has_required_categories(&all));
        for event in &all {
            let value = serde_json::to_value(event).unwrap();
            assert_eq!(value["category"].as_str().map(str::is_empty), Some(false), "{value}");
            assert_eq!(serde_json::from_value::<SessionEvent>(value).unwrap(), *event);
            assert_eq!(event.fault(), None);
        }
        let snapshot = rebuild_os_snapshot_from_events(&all);
        let states: Vec<(&str, &str)> =
            snapshot.process_by_agent.iter().map(|p| (p.agent_id.as_str(), p.state.as_str())).collect();
        assert_eq!(states, [("a", "renamed"), ("b", "aborted"), ("c", "running")]);
    }

    /// The words of each event, exactly as in a log. A changed word is a change of the format.
    #[test]
    fn every_note_is_written_as_the_golden_log_has_it() {
        let golden = include_str!("../../mount-tests/golden/session/notes.jsonl");
        let written: String =
            all_notes().iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
        assert_eq!(written, golden);
    }
}
