//! How the daemon of a mount and the commands talk: the document that describes the mount, and the protocol.

pub mod protocol;
mod status;

pub use status::{MountInfo, Numbering, Refusal};
