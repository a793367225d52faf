//! Crash packs: a folder with all inputs of a verdict, to reproduce it elsewhere.
//!
//! ```text
//! transfer.atp-trace     the events, and the input of each oracle (JSON)
//! manifest               a description of the pack, a line a fact
//! journal                the verdicts, for people
//! journal.digest         SHA-256 and length of the journal
//! evidence-ledger.json   seeds, metadata, and the weights of the verdicts
//! pathlog quiclog repairlog   lines of the trace about paths, packets and repairs
//! replay_command.sh      runs the checks again
//! ```
//! Names and forms are those of asupersync's crash packs. The same input makes the same bytes, so a pack is whole
//! exactly if the trace and the ledger make all of it again: [`replay`] does so, and judges again. A pack is not a
//! signature: a consistent change of all its files is not detected.

pub mod evidence;
#[cfg(test)]
pub(crate) mod failing;
mod keep;
mod minimize;
mod pack;
mod quote;
pub mod replay;
mod steps;
mod trace;

pub use keep::{Kept, kept};
pub use pack::{Crashpack, FILES, SCHEMA_VERSION};
pub use quote::seed_variable;
pub use steps::Steps;
pub use trace::{Judged, Seen, TraceEvent};
