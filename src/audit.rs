//! The audit: events of a store, in the terms that agent kernels use for their sessions.
//!
//! A [`SessionEvent`] is one event; an [`OsSnapshot`] is the sum of a sequence of events; a [`chain`] writes
//! them as lines, in which a change shows. All of this is pure. [`note`] makes events, a [`Log`] writes them
//! and a [`Follower`] reads them. `docs/AUDIT.md` describes the file for people who have nothing but the
//! file.

pub mod broken;
pub mod chain;
pub mod event;
pub mod file;
pub mod follow;
#[cfg(test)]
mod judge_tests;
pub mod log;
pub mod note;
pub mod read;
pub mod schema;
pub mod snapshot;
pub mod verdict;
pub mod violations;

pub use chain::{Break, Head, Record};
pub use event::{KernelEventCategory, Primitive, SessionEvent};
pub use follow::{Follower, Report};
pub use log::Log;
pub use snapshot::{
    Categories, Fold, OsSnapshot, Tally, rebuild_os_snapshot_from_events, session_log_has_required_categories,
};
pub use verdict::Verdict;
pub use violations::{Packs, Violation, Violations};
