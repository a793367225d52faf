//! The effects layer: the calls of an agent's tools, as `effects.ledger.v1` (JSONL, `pf_effects::ledger` and
//! the `pf` command write it) or, after a merge, `effects.merged.v1` (`pf_merge::effects`).
//!
//! Lines are kept as bytes, so that a ledger is written exactly as it was read.

mod chain;
mod ledger;
mod redact;

pub use chain::{Chain, chain};
pub use ledger::{
    Effects, Entry, Header, Ledger, Merged, MergedSummary, REDACTED, Record, Secret, SideEffectClass,
};
pub use redact::redact;
