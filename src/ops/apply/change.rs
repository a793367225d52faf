//! What an apply changes: the difference of the two images that it keeps. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::entry::Entry;
use crate::layers::world::Kind;
use crate::ops::import::tree::order;
use crate::tree::{NodeId, Tree};

/// A path that differs between the two images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: Vec<u8>,
    pub(super) before: Option<Entry>,
    pub(super) after: Option<Entry>,
}

/// The difference of two images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// What differs, each directory right before what is in it. The order never changes: temporary names count by it.
    pub(super) changes: Vec<Change>,
    /// The directories that both sides have with the same permissions, the top as an empty path.
    pub(super) folders: BTreeMap<Vec<u8>, u16>,
}

/// The entries of a tree. Hard links are numbered by one of their names.
pub(super) fn entries(tree: &Tree) -> HashMap<Vec<u8>, Entry> {
    let entry = |id: NodeId| {
        let mode = tree.mode(id);
        Some(match tree.kind(id) {
            Kind::Dir => Entry::Dir { mode },
            Kind::File => {
                let (first, names) = tree.file(id);
                let links = (names > 1).then_some(u64::from(first.0));
                Entry::File { mode, content: *tree.blob(id)?, size: tree.size(id), links }
            }
            Kind::Symlink => Entry::Link { target: tree.target(id)?.to_vec() },
            _ => return None,
        })
    };
    let below = tree.nodes().filter(|id| *id != NodeId::ROOT);
    below.filter_map(|id| Some((tree.path(id), entry(id)?))).collect()
}

/// The names of each group of hard links.
fn groups(entries: &HashMap<Vec<u8>, Entry>) -> HashMap<u64, BTreeSet<&[u8]>> {
    let mut groups: HashMap<u64, BTreeSet<&[u8]>> = HashMap::new();
    for (path, entry) in entries {
        if let Entry::File { links: Some(number), .. } = entry {
            groups.entry(*number).or_default().insert(path);
        }
    }
    groups
}

/// The entry without its number, and the names that are the same file.
fn sides<'a>(
    entry: Option<&'a Entry>,
    groups: &'a HashMap<u64, BTreeSet<&'a [u8]>>,
) -> (Option<Entry>, Option<&'a BTreeSet<&'a [u8]>>) {
    let names = match entry {
        Some(Entry::File { links: Some(number), .. }) => groups.get(number),
        _ => None,
    };
    (entry.map(plain), names)
}

/// An entry without the number of its hard links.
pub(super) fn plain(entry: &Entry) -> Entry {
    match entry {
        Entry::File { mode, content, size, .. } => {
            Entry::File { mode: *mode, content: *content, size: *size, links: None }
        }
        other => other.clone(),
    }
}

impl Difference {
    /// Compares two images.
    pub(super) fn of(before: &Tree, after: &Tree) -> Self {
        let (one, two) = (entries(before), entries(after));
        let (one_groups, two_groups) = (groups(&one), groups(&two));
        let mut found = Self::default();
        let paths: BTreeSet<&Vec<u8>> = one.keys().chain(two.keys()).collect();
        for path in paths {
            let (before, after) = (one.get(path), two.get(path));
            if sides(before, &one_groups) != sides(after, &two_groups) {
                let (before, after) = (before.cloned(), after.cloned());
                found.changes.push(Change { path: path.clone(), before, after });
            } else if let Some(Entry::Dir { mode }) = before {
                found.folders.insert(path.clone(), *mode);
            }
        }
        if before.mode(NodeId::ROOT) == after.mode(NodeId::ROOT) {
            found.folders.insert(Vec::new(), before.mode(NodeId::ROOT));
        }
        found.changes.sort_by(|a, b| order(&a.path, &b.path));
        found
    }
}
