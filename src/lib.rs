//! Mounts a `ProcessFork` store as a filesystem.

// Locks come from `sync.rs`.
#![warn(clippy::disallowed_types)]

pub mod audit;
pub mod cache;
pub mod cli;
pub mod control;
pub mod crashpack;
pub mod digest;
pub mod error;
pub mod fork;
pub mod fuse;
pub mod images;
pub mod layers;
pub mod mount;
pub mod ops;
pub mod oracle;
pub mod sandbox;
pub mod store;
mod sync;
pub mod tree;
pub mod util;
pub mod vfs;

pub use error::{Error, ErrorKind, Result};
