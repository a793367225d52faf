//! Mounts a `ProcessFork` store as a filesystem.

// Locks come from `sync.rs`.
#![warn(clippy::disallowed_types)]

pub mod audit;
pub mod brief;
pub mod cache;
pub mod cli;
pub mod confine;
pub mod crashpack;
pub mod error;
pub mod export;
pub mod fixture;
pub mod fork;
pub mod fuse;
pub mod gc;
pub mod import;
pub mod jobs;
pub mod layers;
mod limits;
mod meter;
mod mountinfo;
pub mod oracle;
pub mod prune;
mod reach;
pub mod recovery;
pub mod seal;
mod silent;
pub mod store;
mod sync;
pub mod times;
pub mod tree;
pub mod verify;
pub mod vfs;

pub use error::{Error, ErrorKind, Result};
