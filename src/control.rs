//! The documents by which the daemon of a mount and the commands tell each other their state.

mod status;

pub use status::{MountInfo, Numbering, Refusal};
