//! Running hashes of paths.

/// Mixes a number into a hash (the finaliser of splitmix64).
pub(crate) fn mix(hash: u64, value: u64) -> u64 {
    let mut z = hash.rotate_left(29) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hashes bytes the same way in every run (FNV-1a, then mixed).
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv, bytes.len() as u64)
}

/// Hashes bytes with a function that is independent of [`hash_bytes`]: eight bytes at a time.
fn hash_words(hash: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| {
        let hash = (hash ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25);
        hash ^ (hash >> 32)
    };
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    step(words.fold(hash.rotate_left(17), step), bytes.len() as u64)
}

/// Two hashes of a path, each of 64 bits and independent of the other. The same in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathHash {
    pub(crate) first: u64,
    pub(crate) second: u64,
}

impl PathHash {
    /// The empty path.
    pub(crate) const TOP: Self = Self { first: 0x243f_6a88_85a3_08d3, second: 0x1319_8a2e_0370_7344 };

    /// The path of a name in this folder.
    pub(crate) fn child(self, name: &[u8]) -> Self {
        Self { first: mix(self.first, hash_bytes(name)), second: hash_words(self.second, name) }
    }

    /// The hash of the same path in another space.
    pub(crate) fn salted(self, salt: u64) -> Self {
        Self { first: mix(self.first, salt), second: hash_words(self.second, &salt.to_le_bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_hash_is_the_same_in_every_run_and_tells_names_and_folders_apart() {
        let path = |names: &[&str]| names.iter().fold(PathHash::TOP, |at, name| at.child(name.as_bytes()));
        assert_eq!(path(&["src", "main.rs"]), path(&["src", "main.rs"]));
        let all = [
            path(&[]),
            path(&["a"]),
            path(&["a", "b"]),
            path(&["b", "a"]),
            path(&["ab"]),
            path(&["a\0"]),
            path(&["a", ""]),
            path(&["a"]).salted(1),
            path(&["a"]).salted(2),
        ];
        assert_eq!(all.iter().map(|hash| hash.first).collect::<HashSet<_>>().len(), all.len());
        assert_eq!(all.iter().map(|hash| hash.second).collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn neither_hash_of_a_hundred_thousand_names_comes_twice() {
        let names = (0..100_000).map(|n| PathHash::TOP.child(format!("file_{n}.rs").as_bytes()));
        let (first, second): (HashSet<u64>, HashSet<u64>) =
            names.map(|hash| (hash.first, hash.second)).unzip();
        assert_eq!((first.len(), second.len()), (100_000, 100_000));
    }
}
