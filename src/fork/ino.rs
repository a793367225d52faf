//! Numbers of files in a fork: 48 bits, derived from where a file first appeared.

use std::fmt;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::sync::RwLock;
use crate::tree::NodeId;

/// A file's number in its fork. Never 0, and at most 48 bits, so that a mount has room for the fork's own number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

const BITS: u64 = (1 << 48) - 1;

/// Numbers below this are given to the folders that every fork has.
const RESERVED: u64 = 64;

impl Ino {
    /// The fork's own folder.
    pub const TOP: Self = Self(1);
    /// `model`
    pub const MODEL: Self = Self(2);
    /// `cache`
    pub const CACHE: Self = Self(3);
    /// `cache/pages`
    pub const PAGES: Self = Self(4);
    /// `world`
    pub const WORLD: Self = Self(5);
    /// `world/fs`
    pub const FS: Self = Self(6);
    /// `effects`
    pub const EFFECTS: Self = Self(7);
    /// `trace`
    pub const TRACE: Self = Self(8);

    /// Whether this is a folder outside of `world/fs`, where lengths may have to be found out by decompressing.
    pub fn is_frame(self) -> bool {
        self.0 <= Self::TRACE.0 && self != Self::FS
    }

    /// The number that a file named `name` in `parent` gets, or the `probe`-th to try if that is taken. The same
    /// in every run and version: it is what keeps a number stable over remounts and seals.
    pub fn derive(parent: Self, name: &[u8], probe: u32) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in parent.0.to_le_bytes().iter().chain(name).chain(&probe.to_le_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // FNV-1a leaves its high bits weak; this is MurmurHash3's finaliser.
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        let number = hash & BITS;
        Self(if number < RESERVED { number + RESERVED } else { number })
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ino {:#x}", self.0)
    }
}

/// Spare capacity below this many numbers is not worth freeing.
const ROOM: usize = 1 << 10;

/// Maps numbers to unchanged base entries that were looked up, since a hash cannot be inverted. An entry can be dropped once
/// the kernel has forgotten the number.
#[derive(Debug, Default)]
pub(super) struct Intern {
    maps: RwLock<Maps>,
    /// The map that assigns the numbers.
    from: Option<Arc<Intern>>,
}

/// Hashes the keys of a fork's maps: numbers of files, which are hashes already, and numbers of base entries, which pfimg
/// assigns in order. No program chooses them freely, so a hash that resists chosen keys is not necessary.
#[derive(Default)]
pub(super) struct Hashed(u64);

/// Makes [`Hashed`] for a map.
pub(super) type Hashes = BuildHasherDefault<Hashed>;

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "only numbers are hashed");
    }

    fn write_u64(&mut self, ino: u64) {
        let hash = ino.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Maps use both ends of a hash.
        self.0 = hash ^ (hash >> 32);
    }

    fn write_u32(&mut self, node: u32) {
        self.write_u64(u64::from(node));
    }
}

#[derive(Debug, Default)]
struct Maps {
    nodes: HashMap<Ino, NodeId, Hashes>,
    /// Entries whose first number was taken.
    odd: HashMap<NodeId, Ino, Hashes>,
}

impl Intern {
    /// The base entry that a number was given to.
    pub(super) fn node(&self, ino: Ino) -> Option<NodeId> {
        let known = self.maps.read().nodes.get(&ino).copied();
        known.or_else(|| self.from.as_ref()?.node(ino))
    }

    /// Returns the number of the base entry `name` in `parent`. A new number is neither `taken` nor one of another base
    /// entry.
    pub(super) fn ino(&self, node: NodeId, parent: Ino, name: &[u8], taken: impl Fn(Ino) -> bool) -> Ino {
        let first = Ino::derive(parent, name, 0);
        {
            let maps = self.maps.read();
            if maps.nodes.get(&first) == Some(&node) && !taken(first) {
                return first;
            }
            if let Some(odd) = maps.odd.get(&node)
                && !taken(*odd)
            {
                return *odd;
            }
        }
        if let Some(from) = &self.from {
            let ino = from.ino(node, parent, name, taken);
            let mut maps = self.maps.write();
            maps.nodes.insert(ino, node);
            if ino != first {
                maps.odd.insert(node, ino);
            }
            return ino;
        }
        let mut maps = self.maps.write();
        for probe in 0.. {
            let ino = Ino::derive(parent, name, probe);
            if taken(ino) || maps.nodes.get(&ino).is_some_and(|other| *other != node) {
                continue;
            }
            maps.nodes.insert(ino, node);
            if probe > 0 {
                maps.odd.insert(node, ino);
            }
            return ino;
        }
        first
    }

    /// Makes a map with the same numbers, which keeps a number that this one forgets.
    pub(super) fn detached(this: &Arc<Self>) -> Self {
        Self { maps: RwLock::default(), from: Some(Arc::clone(this)) }
    }

    /// Forgets a number.
    pub(super) fn forget(&self, ino: Ino) {
        let mut maps = self.maps.write();
        if let Some(node) = maps.nodes.remove(&ino) {
            maps.odd.remove(&node);
        }
        let few = maps.nodes.len().max(ROOM);
        if maps.nodes.capacity() / 8 > few {
            maps.nodes.shrink_to(2 * few);
        }
    }

    /// How many numbers are known.
    pub(super) fn len(&self) -> usize {
        self.maps.read().nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_in_every_run_and_fits_48_bits() {
        assert_eq!(Ino::derive(Ino::FS, b"src", 0), Ino(0x0000_bfef_e71c_9fde));
        for i in 0..1000u32 {
            let ino = Ino::derive(Ino::FS, &i.to_le_bytes(), i);
            assert!(ino.0 >= RESERVED && ino.0 <= BITS);
        }
    }

    #[test]
    fn a_taken_number_is_noticed_and_another_one_given_for_good() {
        let intern = Intern::default();
        let first = Ino::derive(Ino::FS, b"x", 0);
        let given = intern.ino(NodeId(7), Ino::FS, b"x", |ino| ino == first);
        assert_ne!(given, first);
        assert_eq!(intern.node(given), Some(NodeId(7)));
        // The number stays even when nothing else has the first one.
        assert_eq!(intern.ino(NodeId(7), Ino::FS, b"x", |_| false), given);
        // Two base entries with one hash: the second gets another number.
        let other = Intern::default();
        assert_eq!(other.ino(NodeId(1), Ino::FS, b"x", |_| false), first);
        assert_ne!(other.ino(NodeId(2), Ino::FS, b"x", |_| false), first);
    }

    #[test]
    fn forgotten_numbers_free_their_memory() {
        let intern = Intern::default();
        let many: Vec<Ino> =
            (0..50_000u32).map(|n| intern.ino(NodeId(n), Ino::FS, &n.to_le_bytes(), |_| false)).collect();
        assert!(intern.maps.read().nodes.capacity() >= many.len());
        for ino in &many[10..] {
            intern.forget(*ino);
        }
        assert!(intern.maps.read().nodes.capacity() <= 16 * ROOM);
        assert!((0..10).all(|n| intern.node(many[n as usize]) == Some(NodeId(n))));
    }
}
