//! What the sides of an apply hold.

use std::collections::{BTreeMap, HashMap};

use super::entry::Entry;
use crate::digest::Digest;

/// What one side holds at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// What an apply carries over.
    Entry(Entry),
    /// What it does not, in words: "a fifo".
    Other(&'static str),
}

impl Held {
    pub(super) fn is_dir(&self) -> bool {
        matches!(self, Self::Entry(Entry::Dir { .. }))
    }

    /// Whether both hold the same. Numbers of hard links say nothing across sides.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Entry(a), Self::Entry(b)) => same_entry(a, b),
            (Self::Other(a), Self::Other(b)) => a == b,
            _ => false,
        }
    }

    pub(super) fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Other(_) => None,
        }
    }
}

pub(super) fn same_entry(a: &Entry, b: &Entry) -> bool {
    match (a, b) {
        (Entry::File { mode, content, .. }, Entry::File { mode: other_mode, content: other, .. }) => {
            mode == other_mode && content == other
        }
        _ => a == b,
    }
}

pub(super) fn same(a: Option<&Held>, b: Option<&Held>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.same(b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// The paths that differ between base and fork, as a tree. A directory that does not differ is in it for what differs below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// What the base holds.
    pub base: Option<Held>,
    /// What the fork holds.
    pub fork: Option<Held>,
    /// What lies in it on either side.
    pub below: BTreeMap<Vec<u8>, Node>,
}

impl Node {
    /// Whether the two sides differ at this very path.
    pub fn differs(&self) -> bool {
        !same(self.base.as_ref(), self.fork.as_ref())
    }
}

/// What the directory holds at the paths that a plan asks for.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// What is at a path. Numbers of hard links are the same for names of one file.
    pub held: HashMap<Vec<u8>, Held>,
    /// The names in a directory.
    pub names: HashMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl Here {
    pub(super) fn at(&self, path: &[u8]) -> Option<&Held> {
        self.held.get(path)
    }

    pub(super) fn entry(&self, path: &[u8]) -> Option<&Entry> {
        self.at(path).and_then(Held::entry)
    }
}

pub(super) fn file(entry: &Entry) -> Option<(u16, Content)> {
    match entry {
        Entry::File { mode, content, size, .. } => Some((*mode, Content { digest: *content, size: *size })),
        _ => None,
    }
}

/// Bytes of a file by name and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// SHA-256.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
}
