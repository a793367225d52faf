//! Mounts a `ProcessFork` store as a filesystem.

pub mod error;
pub mod fixture;
pub mod layers;
pub mod store;

pub use error::{Error, ErrorKind, Result};
