//! Paths of a fork that were restored, until the kernel knows.
//!
//! A restore of paths is made of operations of the fork that the kernel does not know. So the names that lead elsewhere are
//! announced (see `departures.rs`): removed, and made. A file that was replaced is a removed file to programs that have it open.

use std::collections::HashMap;

use super::key::Ino;
use super::mounted::Mounted;
use super::node::Node;
use super::nodes::Nodes;
use crate::fork::{self, MovedName, PathsBack};
use crate::layers::world::Kind;

/// Paths of a fork that were restored.
#[derive(Debug)]
pub struct MovedPaths {
    pub(super) mounted: Mounted,
    pub(super) back: PathsBack,
    /// The files that names led to before, by folder and name.
    pub(super) before: HashMap<(fork::Ino, Vec<u8>), (fork::Ino, Kind)>,
}

impl MovedPaths {
    pub(super) fn new(mounted: &Mounted, back: PathsBack) -> Self {
        let mut before = HashMap::new();
        for MovedName { folder, name, before: was, .. } in &back.names {
            if let Some(was) = was {
                before.entry((*folder, name.to_vec())).or_insert(*was);
            }
        }
        Self { mounted: mounted.clone(), back, before }
    }

    /// Forgets files that are gone and that no program uses. Must be called once all names are announced.
    pub(super) fn forget(&self, nodes: &Nodes) {
        for (ino, _) in self.before.values() {
            if self.mounted.fork.links(*ino).is_empty() {
                nodes.forget_unless_known(&self.mounted, *ino);
            }
        }
    }

    /// Returns the number in the fork of a folder, for the thread that announces.
    pub(super) fn folder(&self, nodes: &Nodes, folder: Ino) -> Option<fork::Ino> {
        match nodes.get(folder).ok()? {
            Node::Forked { mounted, ino } => mounted.is_same(&self.mounted).then_some(ino),
            _ => None,
        }
    }
}
