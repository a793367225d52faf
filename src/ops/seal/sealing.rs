//! What all steps of one seal share.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::content;
use super::text::Texts;
use crate::digest::Digest;
use crate::fork::{BlobRef, Changes, Frozen, Put};
use crate::layers::effects::Secret;
use crate::store::{Batch, Manifest, Store};

/// The directory of a fork's files.
pub(super) const WORLD: &[u8] = b"world/fs";

/// Stored contents of changed files, by path in the fork.
pub(super) type Stored = HashMap<Vec<u8>, BlobRef>;

/// The base image of a fork.
pub(super) struct Parent {
    pub(super) id: Digest,
    pub(super) manifest: Manifest,
}

/// One seal under way.
pub(super) struct Sealing<'a> {
    pub(super) store: &'a Store,
    pub(super) batch: &'a Batch<'a>,
    pub(super) frozen: &'a Frozen,
    pub(super) changes: &'a Changes,
    pub(super) parent: Option<Parent>,
    pub(super) secret: Option<&'a Secret>,
    pub(super) texts: &'a Texts,
    pub(super) ended: content::Ended<'a>,
    /// Times to record that the fork shows and that no program set, by path.
    pub(super) times: BTreeMap<Vec<u8>, i64>,
    pub(super) reports: Vec<String>,
    /// The positions of new entries in the tree.
    pub(super) placed: HashMap<Vec<u8>, Range<usize>>,
}

impl Sealing<'_> {
    /// The time to record for a file: the one that a program set, or the one that the fork shows if the image
    /// would show another.
    pub(super) fn mtime(&self, path: &[u8], put: &Put) -> Option<i64> {
        put.inode.mtime.or_else(|| self.times.get(path).copied())
    }
}
