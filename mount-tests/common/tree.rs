//! Folders full of odd things, made from a seed, and the comparison of two folders.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::digests::hex_digest_of_file;
use super::machine::is_root;
use super::rng::Rng;

/// What is at one path of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir { mode: u32 },
    File { mode: u32, len: u64, sha256: String },
    Link { target: OsString },
    Other,
}

/// Reads a whole folder without following links. The folder itself is not in it: no tree records its mode.
pub fn read_tree(root: &Path) -> std::io::Result<BTreeMap<PathBuf, Node>> {
    let mut nodes = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let full = root.join(&path);
            let meta = std::fs::symlink_metadata(&full)?;
            // The type that the listing gives must be the one that stat gives.
            assert_eq!(entry.file_type()?, meta.file_type(), "{}", full.display());
            let mode = meta.mode() & 0o7777;
            let node = if meta.is_dir() {
                todo.push(path.clone());
                Node::Dir { mode }
            } else if meta.is_symlink() {
                let target = std::fs::read_link(&full)?.into_os_string();
                assert_eq!(meta.len(), target.len() as u64, "length of the link {}", full.display());
                Node::Link { target }
            } else if meta.is_file() {
                Node::File { mode, len: meta.len(), sha256: hex_digest_of_file(&full)? }
            } else {
                Node::Other
            };
            nodes.insert(path, node);
        }
    }
    Ok(nodes)
}

/// Lists how `right` differs from `left`, at most a few lines.
pub fn differences(left: &BTreeMap<PathBuf, Node>, right: &BTreeMap<PathBuf, Node>) -> Vec<String> {
    let all: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    all.into_iter()
        .filter(|path| left.get(*path) != right.get(*path))
        .map(|path| format!("{}: {:?} against {:?}", path.display(), left.get(path), right.get(path)))
        .take(10)
        .collect()
}

/// How often each kind of thing was compared: a test that compares nothing proves nothing.
#[derive(Debug, Default)]
pub struct Seen {
    paths: usize,
    folders_in_folders: usize,
    empty_folders: usize,
    empty_files: usize,
    executables: usize,
    links: usize,
    spaces: usize,
    newlines: usize,
    not_ascii: usize,
    longest_names: usize,
    eight_mib: usize,
}

impl Seen {
    pub fn count(&mut self, nodes: &BTreeMap<PathBuf, Node>) {
        for (path, node) in nodes {
            let name = path.file_name().unwrap().to_str().unwrap();
            self.paths += 1;
            self.spaces += usize::from(name.contains(' '));
            self.newlines += usize::from(name.contains('\n'));
            self.not_ascii += usize::from(!name.is_ascii());
            self.longest_names += usize::from(name.len() == 255);
            match node {
                Node::Dir { .. } => {
                    self.folders_in_folders += usize::from(path.components().count() > 1);
                    self.empty_folders += usize::from(!nodes.keys().any(|p| p.parent() == Some(path)));
                }
                Node::File { mode, len, .. } => {
                    self.executables += usize::from(mode & 0o111 != 0);
                    self.empty_files += usize::from(*len == 0);
                    self.eight_mib += usize::from(*len == 8 << 20);
                }
                Node::Link { .. } => self.links += 1,
                Node::Other => panic!("{} is something else", path.display()),
            }
        }
    }

    pub fn assert_everything(&self) {
        assert!(self.paths > 2000, "{self:?}");
        let counts = [
            self.folders_in_folders,
            self.empty_folders,
            self.empty_files,
            self.executables,
            self.links,
            self.spaces,
            self.newlines,
            self.not_ascii,
            self.longest_names,
            self.eight_mib,
        ];
        assert!(counts.iter().all(|count| *count > 0), "{self:?}");
    }
}

/// File contents that several images share, so that their blobs are shared too.
const SHARED_CONTENTS: u64 = 60;

/// Modes of files that their owner can read. The capture must be able to read what it captures.
const FILE_MODES: [u32; 9] = [0o644, 0o644, 0o755, 0o600, 0o444, 0o640, 0o664, 0o711, 0o4755];
/// Modes of folders that the restore can fill.
const DIR_MODES: [u32; 6] = [0o755, 0o755, 0o700, 0o775, 0o1777, 0o750];

/// Pieces of names, all UTF-8 but the backslash, which the real capture takes for a separator.
const NAME_PIECES: [&str; 30] = [
    "a",
    "main",
    "lib",
    "README",
    "x.rs",
    ".hidden",
    "-rf",
    "--",
    " ",
    "two words",
    " lead",
    "trail ",
    "\n",
    "line\nbreak",
    "\t",
    "'",
    "\"",
    "$HOME",
    "*",
    "?",
    ";",
    "é",
    "e\u{301}",
    "日本語",
    "🦀",
    "\u{202e}rtl",
    "\u{1}",
    "\u{7f}",
    "%2f",
    "~",
];

/// A name of any UTF-8 that is not one that the real capture leaves out.
pub fn random_name(rng: &mut Rng) -> String {
    loop {
        let name = match rng.below(20) {
            // The longest there is: 255 bytes, once of one byte each and once of several.
            0 => "n".repeat(254) + ["a", "b", "c"][rng.below(3) as usize],
            1 => "ü".repeat(127) + ["a", "b", "c"][rng.below(3) as usize],
            2 => {
                // Any scalar values at all.
                (0..=rng.below(6)).filter_map(|_| char::from_u32(rng.below(0x11_0000) as u32)).collect()
            }
            n => (0..=n % 3).map(|_| *rng.pick(&NAME_PIECES)).collect::<String>(),
        };
        let is_left_out = ["target", "node_modules", ".pfcid", ".venv", ".tox"].contains(&name.as_str());
        let is_possible = !name.is_empty() && name != "." && name != ".." && name.len() <= 255;
        if is_possible && !is_left_out && !name.contains(['/', '\\', '\0']) {
            return name;
        }
    }
}

/// One of the shared contents. Small ones mostly; some around the sizes where something changes; a few large.
fn shared_content(index: u64) -> Vec<u8> {
    let mut rng = Rng::new(0xc0_47e4 + index);
    let len = match index {
        0 => 0,
        1 => 1,
        2..=4 => 4094 + index as usize - 2,
        5..=7 => (128 << 10) + index as usize - 6,
        8 => 1 << 20,
        9 => 3_000_001,
        _ => 20 + rng.below(12_000) as usize,
    };
    if index.is_multiple_of(2) { rng.bytes(len) } else { text(&mut rng, len) }
}

/// `len` bytes of something that compresses.
fn text(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        bytes.extend_from_slice(
            format!("line {} of a text that repeats itself\n", rng.below(1000)).as_bytes(),
        );
    }
    bytes.truncate(len);
    bytes
}

/// Fills `root` with what `seed` says. The same seed gives the same tree.
pub fn generate(seed: u64, root: &Path) {
    let mut rng = Rng::new(seed);
    std::fs::create_dir_all(root).expect("a folder for the tree");
    let mut dirs = vec![PathBuf::new()];
    for _ in 0..rng.below(8) {
        let parent = rng.pick(&dirs).clone();
        let dir = parent.join(random_name(&mut rng));
        let full = root.join(&dir);
        // Paths have a limit too; a folder that exists already is simply used again.
        if full.as_os_str().len() < 3000 && dir.components().count() < 7 && std::fs::create_dir(&full).is_ok()
        {
            dirs.push(dir);
        }
    }
    for _ in 0..3 + rng.below(14) {
        let at = root.join(rng.pick(&dirs)).join(random_name(&mut rng));
        if at.symlink_metadata().is_ok() {
            continue;
        }
        if rng.chance(20) {
            symlink(random_target(&mut rng, &at, root), &at).expect("a link");
        } else {
            std::fs::write(&at, shared_content(rng.below(SHARED_CONTENTS))).expect("a file");
            set_mode(&at, *rng.pick(&FILE_MODES));
        }
    }
    // One file that only one other image has.
    let mut own = Rng::new(seed / 2);
    let own_len = 30 + own.below(2000) as usize;
    std::fs::write(root.join("own"), own.bytes(own_len)).expect("a file");
    // The largest files are in two images only: the real store compresses at a level that is slow.
    match seed % 100 {
        7 => std::fs::write(root.join("8 MiB of noise"), Rng::new(7).bytes(8 << 20)).expect("a file"),
        8 => std::fs::write(root.join("8 MiB of text"), text(&mut Rng::new(8), 8 << 20)).expect("a file"),
        _ => {}
    }
    for dir in dirs.iter().skip(1) {
        set_mode(&root.join(dir), *rng.pick(&DIR_MODES));
    }
    if is_root() {
        // Root can capture and restore files that no user may read.
        std::fs::write(root.join("closed"), b"closed").expect("a file");
        set_mode(&root.join("closed"), *rng.pick(&[0o000, 0o200, 0o2751]));
    }
}

/// A link's target: inside the tree, dangling, or absolute. Never one that climbs out: the real restore refuses it.
fn random_target(rng: &mut Rng, at: &Path, root: &Path) -> String {
    let depth = at.strip_prefix(root).expect("a path inside").components().count() - 1;
    // Some of a few, for each target is a blob and the real store takes its time for each.
    let few = rng.below(12);
    let name = random_name(&mut Rng::new(few));
    match rng.below(6) {
        0 => ".".to_owned(),
        1 => format!("/no/such place/{name}"),
        2 => "/etc/hostname".to_owned(),
        3 if depth > 0 => "../".repeat(depth) + "own",
        4 => "long/".repeat(1 + few as usize * 70) + "end",
        _ => name,
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("to set a mode");
}
