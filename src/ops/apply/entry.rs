//! The steps of an apply, and what is at their paths.

use std::collections::BTreeMap;

use crate::digest::Digest;

/// The name of git's directory or file, which is never merged as files.
pub(super) const GIT: &[u8] = b".git";

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

/// Steps while they are collected: of each path, what the directory holds there and what it shall hold.
pub(super) type Steps = BTreeMap<Vec<u8>, (Option<Entry>, Option<Entry>)>;
