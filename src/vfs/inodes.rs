//! The table of inodes that the kernel knows, by number. It holds only inodes that the kernel has looked up.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::attempt::Outcome;
use super::counted::Counted;
use super::key::{FIRST_COMPUTED, Ino, Key, Slot};
use super::mounted::Mounted;
use super::node::{BuiltinDir, Keyed, Node};
use crate::control::Numbering;
use crate::digest::Digest;
use crate::fork::{self, Fork};
use crate::sync::Mutex;

struct Held {
    node: Node,
    lookups: u64,
}

/// A hash table would be twice as large just after it grew, which all shards do at the same time.
type Shard = BTreeMap<Ino, Held>;

const SHARDS: usize = 256;

/// The inodes that the kernel knows, each with its number of lookups.
pub(super) struct Inodes {
    shards: Vec<Mutex<Shard>>,
    /// Assigns the numbers, if these are not the keys.
    counted: Option<Counted>,
}

impl Inodes {
    pub(super) fn new(numbering: Numbering) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(),
            counted: (numbering == Numbering::Counted).then(Counted::new),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        // All bits of hashes are evenly distributed; of counted numbers only the last ones are.
        &self.shards[(ino ^ (ino >> 20)) as usize % SHARDS]
    }

    /// Returns the number of a key. A counted number is assigned when first asked for.
    fn shown(&self, key: Key) -> Outcome<Ino> {
        match &self.counted {
            Some(counted) if key.0 >= FIRST_COMPUTED => counted.number(key),
            _ => Ok(key.0),
        }
    }

    /// Returns the number of a key, unless the kernel cannot know it.
    pub(super) fn known(&self, key: Key) -> Option<Ino> {
        match &self.counted {
            Some(counted) if key.0 >= FIRST_COMPUTED => counted.known(key),
            _ => Some(key.0),
        }
    }

    /// Returns a number that no inode has.
    pub(super) fn unused(&self) -> Ino {
        if self.counted.is_some() { Counted::UNUSED } else { Ino::MAX }
    }

    /// Returns the number that a lookup of the node would return now, without counting a lookup. For listings.
    pub(super) fn number(&self, keyed: &Keyed) -> Outcome<Ino> {
        let mut key = keyed.key;
        loop {
            let ino = self.shown(key)?;
            if self.shard(ino).lock().get(&ino).is_none_or(|held| held.node.same(&keyed.node)) {
                return Ok(ino);
            }
            key = key.next();
        }
    }

    /// Counts a lookup of the node and returns its number, and whether the kernel did not know it before. Two nodes
    /// never share a number.
    pub(super) fn intern(&self, Keyed { mut key, node }: Keyed) -> Outcome<(Ino, bool)> {
        loop {
            let ino = self.shown(key)?;
            let mut shard = self.shard(ino).lock();
            match shard.entry(ino) {
                MapEntry::Vacant(slot) => {
                    slot.insert(Held { node, lookups: 1 });
                    return Ok((ino, true));
                }
                MapEntry::Occupied(mut slot) if slot.get().node.same(&node) => {
                    let held = slot.get_mut();
                    held.lookups += 1;
                    let older =
                        held.node.is_older_than(&node).then(|| std::mem::replace(&mut held.node, node));
                    // The old node is dropped without the lock.
                    drop(shard);
                    drop(older);
                    return Ok((ino, false));
                }
                MapEntry::Occupied(_) => key = key.next(),
            }
        }
    }

    /// Returns the node with a number.
    pub(super) fn get(&self, ino: Ino) -> Option<Node> {
        match ino {
            1 => Some(Node::Builtin(BuiltinDir::Root)),
            _ => self.shard(ino).lock().get(&ino).map(|held| held.node.clone()),
        }
    }

    /// Counts the lookups of an inode that the kernel has not taken back.
    pub(super) fn lookups(&self, ino: Ino) -> u64 {
        self.shard(ino).lock().get(&ino).map_or(0, |held| held.lookups)
    }

    /// Notes the size of a file that was only listed before.
    pub(super) fn set_size(&self, ino: Ino, found: u64) {
        if let Some(Held { node: Node::File { size, .. }, .. }) = self.shard(ino).lock().get_mut(&ino) {
            *size = found;
        }
    }

    /// Takes back `lookups` lookups. When none is left, calls `gone` with the node before another thread can look it up again,
    /// and returns the node.
    ///
    /// The caller must drop the node without a lock: with the last node of a discarded fork its files are removed.
    pub(super) fn forget(&self, ino: Ino, lookups: u64, gone: impl FnOnce(&Node)) -> Option<Node> {
        let mut shard = self.shard(ino).lock();
        let held = shard.get_mut(&ino)?;
        held.lookups = held.lookups.saturating_sub(lookups);
        if held.lookups > 0 {
            return None;
        }
        gone(&held.node);
        let Held { node, .. } = shard.remove(&ino)?;
        if let Some(counted) = self.counted.as_ref().filter(|_| node.comes_once()) {
            counted.forget(Keyed::of(node.clone(), |_| Digest::of(b"")).key);
        }
        Some(node)
    }

    /// Lists the slots of forks that have an inode in the kernel.
    pub(super) fn fork_slots(&self) -> HashSet<Slot> {
        let mut slots = HashSet::new();
        self.each(|_, node| match node {
            Node::Forked { mounted, ino } => drop(slots.insert(mounted.key(*ino).slot())),
            Node::Snap { mounted } => drop(slots.insert(mounted.slot)),
            _ => {}
        });
        slots
    }

    /// Calls `show` with each inode that the kernel knows.
    fn each(&self, mut show: impl FnMut(Ino, &Node)) {
        for shard in &self.shards {
            shard.lock().iter().for_each(|(ino, held)| show(*ino, &held.node));
        }
    }

    /// Lists the inodes of a fork that the kernel knows.
    pub(super) fn known_of(&self, fork: &Arc<Fork>) -> Vec<(Ino, fork::Ino)> {
        let mut known = Vec::new();
        self.each(|number, node| {
            if let Node::Forked { mounted, ino } = node
                && Arc::ptr_eq(&mounted.fork, fork)
            {
                known.push((number, *ino));
            }
        });
        known
    }

    /// Hands inodes of a fork to the fork that replaces it: those that `kept` allows, and its list of seals.
    pub(super) fn hand_over(&self, old: &Arc<Fork>, new: &Mounted, kept: impl Fn(fork::Ino) -> bool) {
        for shard in &self.shards {
            for (_, held) in shard.lock().iter_mut() {
                match &mut held.node {
                    Node::Forked { mounted, ino } if Arc::ptr_eq(&mounted.fork, old) && kept(*ino) => {
                        *mounted = new.clone();
                    }
                    Node::Snap { mounted } if Arc::ptr_eq(&mounted.fork, old) => *mounted = new.clone(),
                    _ => {}
                }
            }
        }
    }

    /// Counts one more lookup of a number, if the kernel knows it.
    pub(super) fn again(&self, ino: Ino) -> bool {
        self.shard(ino).lock().get_mut(&ino).map(|held| held.lookups += 1).is_some()
    }

    /// Counts the inodes that the kernel knows.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::FORKED;
    use super::super::node::{ImageNo, Origin, Place, Recorded, Redaction};
    use super::*;
    use crate::tree::{NodeId, PathHash};

    fn file(path: &str, content: &[u8], mode: u16) -> Keyed {
        let recorded = Recorded { mode, mtime_ns: 0, uid: 0, gid: 0, links: 1, xattrs: None };
        let origin = Origin { image: 0, place: Place::World(NodeId::ROOT) };
        let at = PathHash::TOP.child(path.as_bytes());
        Keyed::file(at, (Digest::of(content), content.len() as u64), recorded, Redaction::Raw, origin)
    }

    fn folder(image: ImageNo, node: u32) -> Keyed {
        Keyed::of(Node::Dir { image, node: NodeId(node) }, |image| Digest::of(&image.to_le_bytes()))
    }

    fn both() -> [Inodes; 2] {
        [Inodes::new(Numbering::Shared), Inodes::new(Numbering::Counted)]
    }

    #[test]
    fn the_same_content_at_the_same_path_is_the_same_inode_wherever_it_was_seen() {
        for inodes in both() {
            let (a, _) = inodes.intern(file("p", b"x", 0o644)).unwrap();
            let mut elsewhere = file("p", b"x", 0o644);
            if let Node::File { origin, .. } = &mut elsewhere.node {
                origin.image = 7;
            }
            assert_eq!(inodes.number(&elsewhere).unwrap(), a);
            assert_eq!(inodes.intern(elsewhere).unwrap(), (a, false));
            for other in [file("p", b"x", 0o755), file("p", b"y", 0o644), file("q", b"x", 0o644)] {
                let listed = inodes.number(&other).unwrap();
                assert_ne!(listed, a);
                assert_eq!(inodes.intern(other).unwrap(), (listed, true));
            }
            assert_eq!(inodes.len(), 4);
        }
    }

    #[test]
    fn an_inode_lives_as_long_as_the_kernel_knows_it_and_gets_its_number_back() {
        for inodes in both() {
            let x = || file("p", b"x", 0o644);
            let (ino, _) = inodes.intern(x()).unwrap();
            inodes.intern(x()).unwrap();
            assert!(inodes.forget(ino, 1, |_| ()).is_none());
            assert!(inodes.get(ino).is_some());
            assert!(inodes.forget(ino, 1, |_| ()).is_some());
            assert!(inodes.get(ino).is_none());
            assert!(inodes.forget(ino, 1, |_| ()).is_none());
            assert_eq!(inodes.len(), 0);
            assert_ne!(inodes.intern(file("q", b"x", 0o644)).unwrap().0, ino);
            assert_eq!(inodes.intern(x()).unwrap(), (ino, true));
        }
    }

    #[test]
    fn folders_of_different_images_differ_and_nothing_takes_a_fixed_number() {
        for inodes in both() {
            let most = if inodes.counted.is_some() { 1 << 32 } else { FORKED };
            let mut seen = std::collections::HashSet::new();
            for image in 0..100 {
                for node in 0..100 {
                    let (ino, _) = inodes.intern(folder(image, node)).unwrap();
                    assert!((FIRST_COMPUTED..most).contains(&ino));
                    assert!(seen.insert(ino));
                }
            }
            assert!(!seen.contains(&inodes.unused()));
        }
    }

    #[test]
    fn two_nodes_whose_keys_collide_get_different_numbers_which_listings_tell_too() {
        for inodes in both() {
            let (a, b) = (file("p", b"a", 0o644), file("p", b"b", 0o644));
            // Another node has the key that `a` should have.
            let (taken, _) = inodes.intern(Keyed { key: a.key, node: b.node }).unwrap();
            let listed = inodes.number(&a).unwrap();
            assert_ne!(listed, taken);
            assert_eq!(inodes.intern(a.clone()).unwrap(), (listed, true));
            assert_eq!(inodes.intern(a).unwrap(), (listed, false));
        }
    }

    #[test]
    fn a_key_that_is_used_once_leaves_nothing_behind_and_no_number_is_reused() {
        let inodes = Inodes::new(Numbering::Counted);
        let mut seen = std::collections::HashSet::new();
        for key in 0..100 {
            let pending = Keyed::of(Node::Pending { key }, |_| unreachable!());
            let (ino, _) = inodes.intern(pending.clone()).unwrap();
            assert!(seen.insert(ino));
            inodes.forget(ino, 1, |_| ());
            assert_eq!(inodes.known(pending.key), None);
        }
    }

    #[test]
    fn an_inode_takes_at_most_112_bytes() {
        assert!(size_of::<(Ino, Held)>() <= 112, "{}", size_of::<(Ino, Held)>());
    }
}
