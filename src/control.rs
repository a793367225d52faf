//! How the daemon of a mount and the commands talk: the document that describes the mount, and the protocol.

pub(crate) mod client;
pub mod protocol;
mod status;

pub use client::Client;
pub use status::{MountInfo, Numbering, Refusal};
