//! Brings what a fork changed into a directory, and takes it back.
//!
//! An apply is a list of [`Step`]s: a path, what the directory holds there, and what it shall hold. Nothing in the directory changes
//! before the whole list is known, has no conflict, and is in the store with the bytes of both sides.

mod below;
mod branch;
mod carry;
mod change;
mod held;
mod judge;
mod keep;
mod merge;
mod names;
pub mod plan;
mod prepare;
mod read;
mod session;
mod sides;
mod subject;
mod swap;
mod within;
mod words;

#[cfg(test)]
mod tests;

use crate::digest::Digest;

pub use below::Hooks;
pub use carry::{How, Left, Why};
pub use held::{Content, Held, Here, Node};
pub use names::Group;
pub use prepare::{MAX_MERGE, Options, Prepared, prepare};
pub use session::{
    Applying, Outcome, REMEMBERED, carry_out, find_dir, finish, forget_finished, of_dir, refuse_interrupted,
    undo,
};
pub use sides::Sides;
pub use subject::{base_of_fork, base_of_image};

/// The name of git's folder or file, which is never merged as files.
const GIT: &[u8] = b".git";

/// What is at a path. Times and owners are not compared and not carried over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A directory, without what is in it.
    Dir {
        /// Permission bits, at most `0o7777`.
        mode: u16,
    },
    /// A regular file.
    File {
        /// Permission bits, at most `0o7777`.
        mode: u16,
        /// SHA-256 of its bytes, and the name of their blob.
        content: Digest,
        /// Length in bytes.
        size: u64,
        /// Entries with the same number are one file with several names.
        links: Option<u64>,
    },
    /// A symbolic link.
    Link {
        /// Its target: any bytes but NUL.
        target: Vec<u8>,
    },
}

/// One path that an apply changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Relative to the directory, `/` between components; bytes, not text. Never empty.
    pub path: Vec<u8>,
    /// What the directory holds there; nothing if there is no such path.
    pub was: Option<Entry>,
    /// What it shall hold. Content that is not in the store yet is put there before the first step is carried out.
    pub becomes: Option<Entry>,
}
