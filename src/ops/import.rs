//! Imports a directory as an image.
//!
//! The import lists the directory, then hashes, compresses and stores its files on all cores. It does not read a file again if the
//! index of the last import knows its times, size and inode. A git repository that depends on another directory becomes a complete
//! one in the image. Layers that a directory does not have come from the parent, or are `pf`'s empty forms. If nothing changed, the
//! result is the existing image.

mod commit;
mod contents;
pub mod folder;
mod git;
mod importing;
pub(in crate::ops) mod index;
mod index_file;
mod large;
mod limits;
mod look;
mod make;
pub(in crate::ops) mod manifest;
mod mended;
mod options;
mod parent;
mod progress;
pub mod project;
mod recheck;
mod report;
mod rules;
mod settle;
mod source;
mod ties;
pub(in crate::ops) mod tree;
pub(in crate::ops) mod walk;
mod witness;

pub use commit::from_commit;
pub use index::{InOrder, Index, Record, Stamp};
pub use large::{LARGE, Large};
pub use make::import;
pub use mended::{Mended, MendedKind};
pub use options::Options;
pub use parent::Parent;
pub use progress::Progress;
pub use report::Report;
pub use rules::{LeftOutBy, rules};
pub use ties::{Tie, TieKind};
