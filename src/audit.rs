//! The audit: what happened to a store, in the words agent kernels use for their own sessions.
//!
//! A [`SessionEvent`] is one thing that happened; an [`OsSnapshot`] is what a sequence of them adds up to; a
//! [`chain`] makes lines of them that nobody can change unseen. All of this is pure; what [`note`] says happened is
//! written by a [`Log`] and read by a [`Follower`]. `docs/AUDIT.md` describes the file for people who have nothing but
//! the file.

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
