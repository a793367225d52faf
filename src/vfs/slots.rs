//! The ranges of inode numbers that forks of a mount have.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::key::{Slot, hash_bytes};
use super::mounted::Mounted;
use crate::fork::{self, Fork};

/// The most forks in use at once. A fork's number and a file's number share the 64 bits of an inode number.
pub(super) const SLOTS: Slot = 1 << 14;

/// The ranges of the numbers of a fork's files; see [`Mounted`].
#[derive(Clone)]
struct Numbers {
    slot: Slot,
    aside: Option<Arc<HashMap<fork::Ino, Slot>>>,
}

impl Numbers {
    fn of(self, fork: &Arc<Fork>) -> Mounted {
        Mounted { slot: self.slot, aside: self.aside, fork: Arc::clone(fork) }
    }
}

/// The forks in use, and their ranges.
#[derive(Default)]
pub(super) struct Slots {
    by_uid: HashMap<String, Numbers>,
    /// The fork of each slot. None after its discard, while the kernel may know inodes of it.
    taken: HashMap<Slot, Option<Arc<Fork>>>,
}

impl Slots {
    /// Returns a fork's numbers. They are the same after a remount, unless another fork has taken them.
    pub(super) fn of(&mut self, fork: &Arc<Fork>, known: impl FnOnce() -> HashSet<Slot>) -> Option<Mounted> {
        if let Some(numbers) = self.by_uid.get(fork.uid()) {
            let taken = self.taken.get(&numbers.slot).and_then(Option::as_ref);
            if taken.is_some_and(|taken| Arc::ptr_eq(taken, fork)) {
                return Some(numbers.clone().of(fork));
            }
            // The fork was read again, so the kernel may know an outdated state of it.
            self.discard(fork.uid());
        }
        let slot = self.take(fork, fork.numbered_by(), known)?;
        let numbers = Numbers { slot, aside: None };
        self.by_uid.insert(fork.uid().to_owned(), numbers.clone());
        Some(numbers.of(fork))
    }

    /// Takes a free slot for a fork, if possible the one derived from `seed`.
    fn take(&mut self, fork: &Arc<Fork>, seed: &str, known: impl FnOnce() -> HashSet<Slot>) -> Option<Slot> {
        if self.taken.len() >= usize::from(SLOTS) {
            // Keeps a slot while the kernel knows an inode in it: the inode's number would mean a file of another fork.
            let known = known();
            self.taken.retain(|slot, fork| fork.is_some() || known.contains(slot));
        }
        let wanted = (hash_bytes(seed.as_bytes()) % u64::from(SLOTS)) as Slot;
        let free = (0..SLOTS).map(|i| (wanted + i) % SLOTS).find(|slot| !self.taken.contains_key(slot))?;
        self.taken.insert(free, Some(Arc::clone(fork)));
        Some(free)
    }

    /// Gives a fork the numbers of the fork that it replaces. Files in `given` have numbers in another slot. Files in `barred`
    /// get new ones, since the kernel knows other files by their numbers.
    pub(super) fn hand_over(
        &mut self,
        old: &Mounted,
        new: &Arc<Fork>,
        given: HashMap<fork::Ino, Slot>,
        barred: &HashSet<fork::Ino>,
        known: impl FnOnce() -> HashSet<Slot>,
    ) -> Option<Mounted> {
        let mut aside = given;
        if !barred.is_empty() {
            let slot = self.take(new, new.uid(), known)?;
            aside.extend(barred.iter().map(|ino| (*ino, slot)));
        }
        let used: HashSet<Slot> = aside.values().copied().chain([old.slot]).collect();
        for (slot, fork) in &mut self.taken {
            if fork.as_ref().is_some_and(|fork| Arc::ptr_eq(fork, &old.fork)) {
                *fork = used.contains(slot).then(|| Arc::clone(new));
            }
        }
        self.by_uid.remove(old.fork.uid());
        let aside = (!aside.is_empty()).then(|| Arc::new(aside));
        let numbers = Numbers { slot: old.slot, aside };
        self.by_uid.insert(new.uid().to_owned(), numbers.clone());
        Some(numbers.of(new))
    }

    /// Lists the forks in use.
    pub(super) fn in_use(&self) -> Vec<Mounted> {
        let mounted = |numbers: &Numbers| {
            let fork = self.taken.get(&numbers.slot)?.as_ref()?;
            Some(numbers.clone().of(fork))
        };
        self.by_uid.values().filter_map(mounted).collect()
    }

    /// Whether a fork is in use.
    pub(super) fn knows(&self, fork: &Fork) -> bool {
        self.by_uid.contains_key(fork.uid())
    }

    /// Forgets all forks.
    pub(super) fn discard_all(&mut self) {
        self.by_uid.clear();
        self.taken.values_mut().for_each(|fork| *fork = None);
    }

    /// Frees a discarded fork's slots once the kernel has forgotten its inodes.
    pub(super) fn discard(&mut self, uid: &str) -> Option<Mounted> {
        let numbers = self.by_uid.remove(uid)?;
        let fork = self.taken.get(&numbers.slot)?.clone()?;
        let of_it = |taken: &&mut Option<Arc<Fork>>| taken.as_ref().is_some_and(|taken| taken.uid() == uid);
        self.taken.values_mut().filter(of_it).for_each(|taken| *taken = None);
        Some(numbers.of(&fork))
    }
}
