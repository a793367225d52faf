//! Random changes of a fork, and the check of their seals by pf.

use std::collections::BTreeMap;
use std::path::Path;

use super::support::{Pf, Place, Rng, Shown, append, dir, world, write};
use pfimg::digest::Digest;
use pfimg::fork::{Fork, Ino, NewFile, RenameMode, SetAttr, SetTime, XattrMode};
use pfimg::layers::world::Kind;

/// Names to choose from: few, so that they are used often. Some are not UTF-8, and some look like the texts of such names.
const NAMES: [&[u8]; 14] = [
    &[b'\xfe'; 255],
    &[b'\xfe'; 254],
    b"a",
    b"b",
    b"a.b",
    b"src",
    b"file_0001.rs",
    b"file_0002.rs",
    b"caf\xe9",
    b"caf\xe8",
    "caf\u{fffd}".as_bytes(),
    "caf\u{fffd}~2".as_bytes(),
    b"q\"uo\\te\n",
    b"\xff",
];

pub struct Program<'a> {
    pub rng: &'a mut Rng,
    pub fork: &'a Fork,
}

impl Program<'_> {
    /// A folder somewhere below `world/fs`.
    fn folder(&mut self) -> Ino {
        let mut at = dir(self.fork, "world/fs");
        while self.rng.below(3) > 0 {
            let name = NAMES[self.rng.below(NAMES.len())];
            match self.fork.lookup(at, name) {
                Ok(attr) if attr.kind == Kind::Dir => at = attr.ino,
                _ => break,
            }
        }
        at
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.rng.below(NAMES.len())]
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = match self.rng.below(20) {
            0 => 0,
            1 => 200_000 + self.rng.below(300_000),
            _ => self.rng.below(5000),
        };
        // What compresses and what does not.
        if self.rng.below(2) == 0 { vec![b'x'; len] } else { self.rng.bytes(len) }
    }

    /// Makes a random change. A refused change must do no harm.
    pub fn step(&mut self) {
        let (folder, name) = (self.folder(), self.name());
        let found = self.fork.lookup(folder, name).ok();
        match self.rng.below(16) {
            0..=4 => {
                let kind = match self.rng.below(12) {
                    0 => Kind::Fifo,
                    1 => Kind::Socket,
                    2 => Kind::Chardev,
                    3 => Kind::Symlink,
                    4..=6 => Kind::Dir,
                    _ => Kind::File,
                };
                let mode = [0o644, 0o755, 0o4711, 0o700][self.rng.below(4)];
                let is_open = kind == Kind::Dir && !rustix::process::geteuid().is_root();
                let mut new = NewFile::new(kind, if is_open { mode | 0o700 } else { mode }, 7, 8);
                new.rdev = 0x0103;
                if kind == Kind::Symlink {
                    new.target = [&b"a"[..], b"caf\xe9", b"/abs/olute"][self.rng.below(3)];
                }
                if let Ok(made) = self.fork.create(folder, name, &new)
                    && kind == Kind::File
                {
                    let bytes = self.bytes();
                    self.write(made.ino, 0, &bytes);
                }
            }
            5..=7 => {
                if let Some(attr) = found.filter(|attr| attr.kind == Kind::File) {
                    let bytes = self.bytes();
                    let at = self.rng.below(attr.size as usize + 10) as u64;
                    self.write(attr.ino, at, &bytes);
                }
            }
            8 => {
                if let Some(attr) = found.filter(|attr| attr.kind == Kind::File) {
                    let size = Some(self.rng.below(attr.size as usize * 2 + 2) as u64);
                    let _ = self.fork.setattr(attr.ino, &SetAttr { size, ..SetAttr::default() });
                }
            }
            9 => drop(self.fork.unlink(folder, name).map(|ino| self.fork.forget(ino))),
            10 => drop(self.fork.rmdir(folder, name)),
            11 | 12 => {
                let (to, new_name) = (self.folder(), self.name());
                let mode = if self.rng.below(4) == 0 { RenameMode::Exchange } else { RenameMode::Replace };
                let _ = self.fork.rename(folder, name, to, new_name, mode);
            }
            13 => {
                if let Some(attr) = found {
                    let (to, new_name) = (self.folder(), self.name());
                    let _ = self.fork.link(attr.ino, to, new_name);
                }
            }
            14 => {
                if let Some(attr) = found {
                    // Only root's restore can fill a folder that its owner may not enter.
                    let is_open = attr.kind == Kind::Dir && !rustix::process::geteuid().is_root();
                    let least = if is_open { 0o700 } else { 0o600 };
                    let set = SetAttr {
                        mode: Some([least, 0o755, 0o2750][self.rng.below(3)]),
                        uid: Some(self.rng.below(3) as u32),
                        mtime: Some(SetTime::At(self.rng.below(1 << 40) as i64 - (1 << 38))),
                        ..SetAttr::default()
                    };
                    self.fork.setattr(attr.ino, &set).unwrap();
                }
            }
            _ => {
                if let Some(attr) = found {
                    let name = [&b"user.a"[..], b"user.\xff"][self.rng.below(2)];
                    if self
                        .fork
                        .setxattr(attr.ino, name, &self.rng.next().to_le_bytes(), XattrMode::Any)
                        .is_ok()
                        && self.rng.below(3) == 0
                    {
                        self.fork.removexattr(attr.ino, name).unwrap();
                    }
                }
            }
        }
    }

    fn write(&mut self, ino: Ino, at: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let end = (done + 60_000).min(bytes.len());
            done += self.fork.write(ino, at + done as u64, &bytes[done..end], false).unwrap();
        }
    }

    /// Something in each of the other layers, now and then.
    pub fn layers(&mut self) {
        let fork = self.fork;
        let number = self.rng.next();
        if self.rng.below(2) == 0 {
            append(
                fork,
                "trace/messages.jsonl",
                format!("{{\"content\":\"{number}\",\"role\":\"user\"}}\n").as_bytes(),
            );
        }
        if self.rng.below(2) == 0 {
            append(fork, "effects/ledger.jsonl", super::layers::effect(number).as_bytes());
        }
        if self.rng.below(4) == 0 {
            write(
                fork,
                "world/env.json",
                format!("{{\"kind\":\"env.v1\",\"cwd\":\"/{number}\",\"vars\":{{}}}}").as_bytes(),
            );
        }
        if self.rng.below(4) == 0 {
            let ix = self.rng.below(5);
            for half in ["k", "v"] {
                write(fork, &format!("cache/pages/{ix:08}.{half}"), &self.rng.bytes(512));
            }
        }
        if self.rng.below(6) == 0 {
            write(fork, "model/base", &number.to_le_bytes());
        }
        if self.rng.below(6) == 0 {
            let diff = format!(
                "{{\"layout\":\"model.diff.v1\",\"diff\":{{\"kind\":\"lora\",\"adapters\":[]}},\"note\":\"{number}\"}}"
            );
            write(fork, "model/diff.json", diff.as_bytes());
        }
        if self.rng.below(6) == 0 {
            let procs = format!(
                "{{\"kind\":\"procs.unsupported.v1\",\"unsupported_on\":\"linux\",\"note\":\"{number}\"}}"
            );
            write(fork, "world/procs.json", procs.as_bytes());
        }
    }
}

/// Kind and content by path.
type AsText = BTreeMap<Vec<u8>, (Kind, Vec<u8>)>;

/// What pf can show of a tree: no specials, no owners, and odd names as text.
fn as_pf_shows(world: &BTreeMap<Vec<u8>, Shown>) -> (AsText, usize) {
    let plain = |shown: &&Shown| matches!(shown.kind, Kind::File | Kind::Dir | Kind::Symlink);
    let count = world.values().filter(plain).count() - 1;
    let utf8 = world.iter().filter(|(path, shown)| {
        let target_is_text = shown.kind != Kind::Symlink || std::str::from_utf8(&shown.content).is_ok();
        !path.is_empty() && plain(shown) && std::str::from_utf8(path).is_ok() && target_is_text
    });
    (utf8.map(|(path, shown)| (path.clone(), (shown.kind, shown.content.clone()))).collect(), count)
}

pub fn judge(place: &Place, image: &Digest, world: &BTreeMap<Vec<u8>, Shown>, into: &Path) {
    let pf = Pf::open(place);
    pf.judge(image);
    let restored = pf.restore(image, into);
    let (expected, count) = as_pf_shows(world);
    assert_eq!(restored.len(), count, "as many files as in the fork");
    for (path, (kind, content)) in expected {
        // One that only looks like the text of a name that is not may be shown as another.
        if path.windows(3).any(|w| w == "\u{fffd}".as_bytes()) {
            continue;
        }
        let Some(found) = restored.get(&path) else { panic!("pf does not restore {}", path.escape_ascii()) };
        assert_eq!((found.0, &found.2), (kind, &content), "{}", path.escape_ascii());
    }
    std::fs::remove_dir_all(into).unwrap();
}

pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The world; an empty one for a fork that has none.
pub fn world_of(fork: &Fork) -> BTreeMap<Vec<u8>, Shown> {
    dir(fork, "world/fs");
    world(fork)
}
