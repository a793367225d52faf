//! The audit: what happened to a store, in the words agent kernels use for their own sessions.
//!
//! A [`SessionEvent`] is one thing that happened; an [`OsSnapshot`] is what a sequence of them adds up to; a
//! [`chain`] makes lines of them that nobody can change unseen. All of this is pure. `docs/AUDIT.md` describes the
//! file for people who have nothing but the file.

pub mod chain;
pub mod event;
pub mod snapshot;

pub use chain::{Break, Head, Record};
pub use event::{KernelEventCategory, SessionEvent};
pub use snapshot::{Fold, OsSnapshot, rebuild_os_snapshot_from_events, session_log_has_required_categories};
