//! Describes forks and the disk space that they take.

use std::fs;

use super::head::Head;
use super::registry::{Registry, Slot, no_fork};
use crate::digest::Digest;
use crate::error::Result;

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
    pub(super) fn of(head: &Head, damage: Option<&str>) -> Self {
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
    pub(super) fn damaged(name: &str, damage: &str) -> Self {
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
    /// The image it descends from, see [`Fork::lineage`](super::Fork::lineage).
    pub base: Option<Digest>,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
}

impl Registry {
    /// Returns what is known of a fork without reading its journals.
    pub fn info(&self, name: &str) -> Result<ForkInfo> {
        self.with_slot(name, |_, slot| {
            Ok(match slot {
                Slot::Known(head) => ForkInfo::of(head, None),
                Slot::Loaded(fork) => ForkInfo::of(&fork.head.lock(), fork.damage()),
                Slot::Bad(damage) => ForkInfo::damaged(name, damage),
                Slot::Gone => return Err(no_fork(name)),
            })
        })
    }

    /// Returns the disk space of a fork. Reads the fork from disk if necessary.
    pub fn stats(&self, name: &str) -> Result<ForkStats> {
        let fork = self.get(name)?;
        let (changed, generations) = {
            let live = fork.live.read();
            let names = live.state.dirty_names.len() + live.state.dirty_nodes.len();
            (names as u64, live.generations.clone())
        };
        let mut stats = ForkStats {
            changed,
            own_bytes: 0,
            all_bytes: 0,
            journal_bytes: 0,
            base: fork.lineage()?,
            created_ns: fork.created_ns(),
        };
        for generation in generations {
            let bytes = generation.disk_bytes();
            stats.all_bytes += bytes;
            stats.journal_bytes += fs::metadata(generation.journal_path()).map_or(0, |m| m.len());
            if self.shared.refs.lock().get(&generation.id) == Some(&1) {
                stats.own_bytes += bytes;
            }
        }
        Ok(stats)
    }
}
