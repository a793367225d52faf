//! A source tree that looks like real ones: many small files, a few large ones, text that compresses. The same seed
//! makes the same tree, to the last byte and nanosecond.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::result::Result;
use crate::scratch::Scratch;

/// Files for each folder: 20,000 in 3,500.
const FILES_PER_FOLDER: f64 = 5.7;

/// Mean size of a file in bytes.
const MEAN_BYTES: f64 = 14_000.0;

/// Spread of the logarithm of the sizes.
const SIGMA: f64 = 1.35;

/// Largest file in bytes.
const MAX_BYTES: f64 = 4e6;

/// No folder is deeper than this.
const MAX_DEPTH: u32 = 9;

/// The word that `grep` looks for: in one file of fifty.
pub(crate) const NEEDLE: &str = "needle_in_the_haystack";

/// Times lie in the year before this, in seconds since 1970.
const NEWEST: i64 = 1_767_225_600;
const YEAR: u64 = 365 * 86_400;

/// `SplitMix64`.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Evenly from 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Small numbers more often than large ones, as words are used in texts.
    fn skewed(&mut self, limit: usize) -> usize {
        let unit = self.unit();
        ((unit * unit * unit * limit as f64) as usize).min(limit.saturating_sub(1))
    }

    /// Normally distributed, mean 0, variance 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// What an item is.
#[derive(Clone)]
pub(crate) enum Kind {
    Folder,
    File { seed: u64, bytes: usize, executable: bool },
    Link { target: String },
}

/// A file, folder or link.
#[derive(Clone)]
pub(crate) struct Item {
    /// From the root of the tree.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// Nanoseconds since 1970.
    pub(crate) mtime_ns: i64,
}

/// A whole tree: folders before what is in them.
#[derive(Clone)]
pub(crate) struct SourceTree {
    pub(crate) items: Vec<Item>,
    words: Vec<String>,
}

impl SourceTree {
    /// Decides on a tree of `files` files. Writes nothing.
    pub(crate) fn new(files: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let words = vocabulary(&mut random);
        let mtime = |random: &mut Random| {
            let second = NEWEST - (random.next() % YEAR) as i64;
            second * 1_000_000_000 + (random.next() % 1_000_000_000) as i64
        };
        let mut taken = HashSet::new();
        let mut folders = vec![(String::new(), 0)];
        let mut items = Vec::new();
        for number in 0..(files as f64 / FILES_PER_FOLDER) as usize {
            let (parent, depth) = folders[random.below(folders.len())].clone();
            let (parent, depth) = if depth < MAX_DEPTH { (parent, depth) } else { (String::new(), 0) };
            let word = &words[random.below(words.len())];
            let mut path = format!("{parent}{word}");
            if !taken.insert(path.clone()) {
                path = format!("{parent}{word}_{number}");
                taken.insert(path.clone());
            }
            items.push(Item { path: path.clone(), kind: Kind::Folder, mtime_ns: mtime(&mut random) });
            folders.push((path + "/", depth + 1));
        }
        let scale = MEAN_BYTES / (SIGMA * SIGMA / 2.0).exp();
        for number in 0..files {
            // A few folders hold most files.
            let (folder, _) = &folders[random.skewed(folders.len())];
            let word = &words[random.below(words.len())];
            let suffix = ["rs", "c", "h", "py", "js", "md", "json", "toml"][random.skewed(8)];
            let path = format!("{folder}{word}_{number}.{suffix}");
            let bytes = (scale * (random.normal() * SIGMA).exp()).min(MAX_BYTES) as usize;
            let kind = Kind::File { seed: random.next(), bytes, executable: random.below(33) == 0 };
            if random.below(100) == 0 {
                let target = path.rsplit('/').next().unwrap_or_default().to_owned();
                let path = format!("{folder}{word}_{number}.link");
                items.push(Item { path, kind: Kind::Link { target }, mtime_ns: mtime(&mut random) });
            }
            items.push(Item { path, kind, mtime_ns: mtime(&mut random) });
        }
        Self { items, words }
    }

    /// Some of its files, from all over it.
    pub(crate) fn some_files(&self, count: usize) -> Vec<&str> {
        let is_file = |item: &&Item| matches!(item.kind, Kind::File { .. });
        let files: Vec<_> = self.items.iter().filter(is_file).map(|item| &*item.path).collect();
        let step = (files.len() / count.max(1)).max(1);
        files.into_iter().step_by(step).take(count).collect()
    }

    pub(crate) fn folders(&self) -> usize {
        self.items.iter().filter(|item| matches!(item.kind, Kind::Folder)).count()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.items.iter().map(|i| if let Kind::File { bytes, .. } = i.kind { bytes as u64 } else { 0 }).sum()
    }

    /// The content of a file, in `out`.
    pub(crate) fn content(&self, seed: u64, bytes: usize, out: &mut Vec<u8>) {
        out.clear();
        let mut random = Random::new(seed);
        // What is named in a file is named again and again.
        let local: Vec<&str> = (0..40).map(|_| &*self.words[random.skewed(self.words.len())]).collect();
        let mut indent = 0usize;
        if seed.is_multiple_of(50) && bytes > NEEDLE.len() {
            out.extend(NEEDLE.as_bytes());
            out.push(b'\n');
        }
        while out.len() < bytes {
            out.extend(std::iter::repeat_n(b' ', indent * 4));
            for _ in 0..=random.below(7) {
                out.extend(local[random.skewed(local.len())].as_bytes());
                let glue = [" ", ".", "(", ", ", " = ", ") ", "::", " -> ", "[", "] ", " & ", " // "]
                    [random.skewed(12)];
                out.extend(glue.as_bytes());
            }
            match random.below(6) {
                0 => {
                    out.extend(b" {\n");
                    indent = (indent + 1).min(6);
                }
                1 if indent > 0 => {
                    out.extend(b" }\n");
                    indent -= 1;
                }
                2 => out.extend(format!("{};\n", random.next() % 100_000).as_bytes()),
                _ => out.extend(b";\n"),
            }
        }
        out.truncate(bytes.saturating_sub(1));
        if bytes > 0 {
            out.push(b'\n');
        }
    }

    /// Writes the tree into an empty folder.
    pub(crate) fn write(&self, root: &Path, scratch: &Scratch) -> Result<()> {
        let mut content = Vec::new();
        for item in &self.items {
            scratch.go_on()?;
            let path = root.join(&item.path);
            match &item.kind {
                Kind::Folder => fs::create_dir(&path)?,
                Kind::Link { target } => symlink(target, &path)?,
                Kind::File { seed, bytes, executable } => {
                    self.content(*seed, *bytes, &mut content);
                    fs::write(&path, &content)?;
                    if *executable {
                        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                    }
                }
            }
        }
        // Last, since every new entry moves its folder's time on.
        for item in &self.items {
            let time = Timespec {
                tv_sec: item.mtime_ns.div_euclid(1_000_000_000),
                tv_nsec: item.mtime_ns.rem_euclid(1_000_000_000) as _,
            };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, root.join(&item.path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

/// Words that could be identifiers.
fn vocabulary(random: &mut Random) -> Vec<String> {
    let syllables = [
        "re", "con", "tree", "lo", "map", "der", "ing", "ta", "node", "ex", "si", "port", "ver", "ma", "le",
        "in", "set", "ro", "ent", "key", "un", "stat", "get", "ble", "ar", "file", "pro", "ter", "in", "de",
    ];
    let mut words = Vec::new();
    let mut taken = HashSet::new();
    while words.len() < 4000 {
        let mut word = String::new();
        for part in 0..=random.below(4) {
            if part == 2 {
                word.push('_');
            }
            word.push_str(syllables[random.below(syllables.len())]);
        }
        if taken.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}
