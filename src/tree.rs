//! The immutable file tree of an image, compact: about 105 bytes a file.
//!
//! Nodes are numbered breadth-first; the children of a folder are neighbours, sorted by name. The same bytes
//! give the same numbers, so a number stays valid after the tree was dropped and built again.

mod build;
mod node;
mod path;
mod times;

pub(crate) use build::IMPLIED_DIR_MODE;
pub use node::{NodeId, Owner, Tree};
pub(crate) use path::{PathHash, hash_bytes, mix};
#[cfg(test)]
pub(crate) use times::tests as times_tests;
pub use times::{MAX_MOMENTS, NodeTimes};
