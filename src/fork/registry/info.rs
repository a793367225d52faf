//! Describes forks and the disk space that they take.

use std::path::Path;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::fork::disk::{Entry, Head, head_path, history_of, refuse_fork_name};
use crate::fork::errors::no_fork;

/// What is known of a fork without reading its journals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkInfo {
    /// Its name.
    pub name: String,
    /// Its identity, if its head can be read.
    pub uid: Option<String>,
    /// Its base image.
    pub base: Option<Digest>,
    /// The image that it was made of, where its head says so.
    pub origin: Option<Digest>,
    /// Whether its head says that it began with nothing.
    pub began_empty: bool,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
    /// Number of its generations on disk.
    pub generations: usize,
    /// Its damage, if any is known.
    pub damage: Option<String>,
}

impl ForkInfo {
    pub(in crate::fork) fn of(head: &Head, damage: Option<&str>) -> Self {
        Self {
            name: head.name.clone(),
            uid: Some(head.uid.clone()),
            base: head.base,
            origin: head.origin,
            began_empty: head.began_empty,
            created_ns: head.created_ns,
            generations: head.generations.len(),
            damage: damage.map(str::to_owned),
        }
    }

    /// Describes a fork whose head cannot be read.
    pub(in crate::fork) fn damaged(name: &str, damage: &str) -> Self {
        let (name, damage) = (name.to_owned(), Some(damage.to_owned()));
        Self {
            name,
            uid: None,
            base: None,
            origin: None,
            began_empty: false,
            created_ns: 0,
            generations: 0,
            damage,
        }
    }
}

/// The disk space of a fork, and the number of its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkStats {
    /// Number of files, folders and names that were changed since the last seal.
    pub changed: u64,
    /// Bytes on disk of generations that no other fork uses.
    pub own_bytes: u64,
    /// Bytes on disk of all its generations.
    pub all_bytes: u64,
    /// Bytes of its journals.
    pub journal_bytes: u64,
    /// The image it descends from, see [`Fork::lineage`](crate::fork::Fork::lineage).
    pub base: Option<Digest>,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
}

/// Reads what the disk records of a fork, with its seals and restores. Reads only its head and its list of seals.
pub fn on_disk(store: &Path, name: &str) -> Result<(ForkInfo, Vec<Entry>)> {
    let read = || match refuse_fork_name(name) {
        Some(_) => Err(no_fork(name)),
        None => Head::read(&head_path(&store.join("forks"), name), name),
    };
    let head = read().map_err(|e| if e.kind() == ErrorKind::NotFound { no_fork(name) } else { e })?;
    let entries = history_of(store, &head.uid)?;
    Ok((ForkInfo::of(&head, None), entries))
}
