//! Inode numbers below 2^32, for programs that do not support larger ones.
//!
//! A hash of 32 bits would give two of 70,000 files the same number, so numbers are counted instead. A file gets its number
//! when it is first looked up. No other file gets it while the mount lasts, since `tar` and `rsync` remember files that the
//! kernel has forgotten. This takes about 23 bytes of memory for each file that was looked up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::attempt::Outcome;
use super::key::{FIRST_COMPUTED, Ino, Key};
use crate::error::ErrorKind;
use crate::sync::Mutex;

const SHARDS: usize = 64;

/// The assigned numbers.
pub(super) struct Counted {
    given: Vec<Mutex<BTreeMap<Key, u32>>>,
    next: AtomicU32,
    /// The first unused number.
    end: u32,
    /// Whether the log says that no number is left.
    told: AtomicBool,
}

impl Counted {
    /// A number that no inode has.
    pub(super) const UNUSED: Ino = u32::MAX as Ino;

    pub(super) fn new() -> Self {
        Self::up_to(u32::MAX)
    }

    fn up_to(end: u32) -> Self {
        let given = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { given, next: AtomicU32::new(FIRST_COMPUTED as u32), end, told: AtomicBool::new(false) }
    }

    fn shard(&self, key: Key) -> &Mutex<BTreeMap<Key, u32>> {
        &self.given[(key.0 >> 20) as usize % SHARDS]
    }

    /// Returns the number of a key, and assigns one if it has none.
    pub(super) fn number(&self, key: Key) -> Outcome<Ino> {
        let mut given = self.shard(key).lock();
        if let Some(number) = given.get(&key) {
            return Ok((*number).into());
        }
        let fresh = self
            .next
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < self.end).then(|| next + 1));
        let Ok(number) = fresh else {
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    "no inode number below {} is left: files that were not looked at yet are errors; mount again, or mount \
                     without --inodes 32",
                    self.end
                );
            }
            return Err(ErrorKind::Io(None));
        };
        given.insert(key, number);
        Ok(number.into())
    }

    /// Returns the number of a key, if it has one.
    pub(super) fn known(&self, key: Key) -> Option<Ino> {
        self.shard(key).lock().get(&key).map(|number| (*number).into())
    }

    /// Forgets a key that is never used again. Its number is not reused.
    pub(super) fn forget(&self, key: Key) {
        self.shard(key).lock().remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_unique_number_which_stays() {
        let counted = Counted::new();
        let keys: Vec<Key> = (0..1000).map(|n| Key(FIRST_COMPUTED + (n << 40))).collect();
        assert_eq!(counted.known(keys[0]), None);
        let numbers: Vec<Ino> = keys.iter().map(|key| counted.number(*key).unwrap()).collect();
        let different: std::collections::HashSet<_> = numbers.iter().collect();
        assert_eq!(different.len(), keys.len());
        for (key, number) in keys.iter().zip(&numbers) {
            assert_eq!((counted.number(*key).unwrap(), counted.known(*key)), (*number, Some(*number)));
        }
        counted.forget(keys[0]);
        assert!(!numbers.contains(&counted.number(keys[0]).unwrap()), "no number comes twice");
    }

    #[test]
    fn at_the_last_number_known_keys_keep_theirs_and_new_keys_are_errors() {
        let first = FIRST_COMPUTED as u32;
        let counted = Counted::up_to(first + 2);
        let key = |n| Key(FIRST_COMPUTED + n);
        let (a, b) = (counted.number(key(1)).unwrap(), counted.number(key(2)).unwrap());
        assert_eq!((a, b), (first.into(), (first + 1).into()));
        for _ in 0..3 {
            assert!(matches!(counted.number(key(3)), Err(ErrorKind::Io(_))));
        }
        assert_eq!((counted.number(key(1)), counted.number(key(2))), (Ok(a), Ok(b)));
    }
}
