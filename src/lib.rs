//! Mounts a `ProcessFork` store as a filesystem.

pub mod cache;
pub mod cli;
pub mod error;
pub mod fork;
pub mod layers;
pub mod store;
pub mod tree;

pub use error::{Error, ErrorKind, Result};
