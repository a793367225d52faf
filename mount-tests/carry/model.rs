//! Directories as values: made at random, written to disk, read back, and compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use pfimg::digest::Digest;
use pfimg::ops::apply::{Entry, Step};
use pfimg::store::Store;

use crate::common::Rng;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir {
        mode: u32,
    },
    /// With the first of its names, if it has several.
    File {
        mode: u32,
        content: Vec<u8>,
        first: Option<Vec<u8>>,
    },
    Link {
        target: Vec<u8>,
    },
}

/// A directory by its paths.
pub type Files = BTreeMap<Vec<u8>, Node>;

pub fn at(dir: &Path, path: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(path))
}

pub fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

/// Whether a path equals another one, or lies below it.
pub fn is_in(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

const NAMES: [&[u8]; 7] = [b"a", b"b", b"c", b"d d", b"e\xff", b"f\n", b"g"];
const FILE_MODES: [u32; 5] = [0o644, 0o755, 0o600, 0o444, 0o400];
const DIR_MODES: [u32; 4] = [0o755, 0o755, 0o700, 0o555];

fn content(rng: &mut Rng) -> Vec<u8> {
    match rng.below(6) {
        0 => Vec::new(),
        1 => b"the same in many files\n".to_vec(),
        2 => {
            let len = 1 + rng.below(9000) as usize;
            rng.bytes(len)
        }
        _ => format!("text {}\n", rng.below(1000)).into_bytes(),
    }
}

fn node(rng: &mut Rng) -> Node {
    match rng.below(10) {
        0..=5 => Node::File { mode: *rng.pick(&FILE_MODES), content: content(rng), first: None },
        6 | 7 => Node::Dir { mode: *rng.pick(&DIR_MODES) },
        8 => Node::Link {
            target: rng.pick(&[&b"a"[..], b"../c", b"/etc/passwd", b"\xfe", b"nowhere"]).to_vec(),
        },
        _ => Node::Dir { mode: 0o755 },
    }
}

fn path(rng: &mut Rng, files: &Files) -> Vec<u8> {
    let folders: Vec<&Vec<u8>> =
        files.iter().filter(|(_, node)| matches!(node, Node::Dir { .. })).map(|(path, _)| path).collect();
    let name = rng.pick(&NAMES).to_vec();
    if folders.is_empty() || rng.chance(35) {
        return name;
    }
    let folder = folders[rng.below(folders.len() as u64) as usize];
    if folder.split(|byte| *byte == b'/').count() > 3 { name } else { [&folder[..], b"/", &name].concat() }
}

fn remove(files: &mut Files, path: &[u8]) {
    files.retain(|other, _| !is_in(other, path));
}

/// Names files that lost all names but one as such, and groups by their first names.
fn settle(files: &mut Files) {
    let mut groups: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for (path, node) in files.iter() {
        if let Node::File { first: Some(first), .. } = node {
            groups.entry(first.clone()).or_default().push(path.clone());
        }
    }
    for names in groups.values() {
        for name in names {
            if let Some(Node::File { first, .. }) = files.get_mut(name) {
                *first = (names.len() > 1).then(|| names[0].clone());
            }
        }
    }
}

/// Changes a directory in one way.
fn mutate(rng: &mut Rng, files: &mut Files) {
    let paths: Vec<Vec<u8>> = files.keys().cloned().collect();
    match rng.below(10) {
        0 | 1 if !paths.is_empty() => remove(files, rng.pick(&paths).as_slice()),
        2 | 3 if !paths.is_empty() => match files.get_mut(rng.pick(&paths)) {
            Some(Node::Dir { mode }) => *mode = *rng.pick(&DIR_MODES),
            Some(Node::Link { target }) => *target = b"another".to_vec(),
            Some(Node::File { mode, content: bytes, first }) => {
                *first = None;
                if rng.chance(40) {
                    *mode = *rng.pick(&FILE_MODES);
                } else {
                    *bytes = content(rng);
                }
            }
            None => {}
        },
        4 => {
            let plain: Vec<Vec<u8>> =
                paths.iter().filter(|path| matches!(files[*path], Node::File { .. })).cloned().collect();
            if !plain.is_empty() {
                let one = rng.pick(&plain).clone();
                let other = path(rng, files);
                if !is_in(&one, &other) && !is_in(&other, &one) {
                    remove(files, &other);
                    if let Some(Node::File { first, .. }) = files.get_mut(&one) {
                        first.get_or_insert(one.clone());
                        let same = files[&one].clone();
                        files.insert(other, same);
                    }
                }
            }
        }
        _ => {
            let path = path(rng, files);
            let is_below = matches!(files.get(&path), Some(Node::Dir { .. }));
            if !is_below || rng.chance(50) {
                remove(files, &path);
                files.insert(path, node(rng));
            }
        }
    }
    settle(files);
}

/// A random directory.
pub fn random(rng: &mut Rng) -> Files {
    let mut files = Files::new();
    for _ in 0..3 + rng.below(14) {
        mutate(rng, &mut files);
    }
    files
}

/// A directory that a few changes lead to, or an unrelated one.
pub fn changed(rng: &mut Rng, files: &Files) -> Files {
    if rng.chance(20) {
        return random(rng);
    }
    let mut files = files.clone();
    for _ in 0..=rng.below(6) {
        mutate(rng, &mut files);
    }
    files
}

/// Writes a directory to disk, into an empty folder.
pub fn write(dir: &Path, files: &Files) {
    for (path, node) in files {
        let full = at(dir, path);
        match node {
            Node::Dir { .. } => fs::create_dir(&full).unwrap(),
            Node::File { first: Some(first), .. } if first != path => {
                fs::hard_link(at(dir, first), &full).unwrap();
            }
            Node::File { mode, content, .. } => {
                fs::write(&full, content).unwrap();
                fs::set_permissions(&full, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Node::Link { target } => symlink(OsStr::from_bytes(target), &full).unwrap(),
        }
    }
    for (path, node) in files.iter().rev() {
        if let Node::Dir { mode } = node {
            fs::set_permissions(at(dir, path), fs::Permissions::from_mode(*mode)).unwrap();
        }
    }
}

/// Reads a directory from disk. A fifo counts as a link to one.
pub fn read(dir: &Path) -> Files {
    let mut files = Files::new();
    let mut inodes: BTreeMap<u64, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(at(dir, &folder)).unwrap() {
            let entry = entry.unwrap();
            let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
            let path = [&folder[..], slash, entry.file_name().as_bytes()].concat();
            let full = at(dir, &path);
            let meta = fs::symlink_metadata(&full).unwrap();
            let mode = meta.mode() & 0o7777;
            let node = if meta.is_dir() {
                todo.push(path.clone());
                Node::Dir { mode }
            } else if meta.is_symlink() {
                Node::Link { target: fs::read_link(&full).unwrap().into_os_string().as_bytes().to_vec() }
            } else if meta.is_file() {
                inodes.entry(meta.ino()).or_default().insert(path.clone());
                Node::File { mode, content: fs::read(&full).unwrap(), first: None }
            } else {
                Node::Link { target: b"a fifo".to_vec() }
            };
            files.insert(path, node);
        }
    }
    for names in inodes.values().filter(|names| names.len() > 1) {
        for name in names {
            if let Some(Node::File { first, .. }) = files.get_mut(name) {
                *first = names.first().cloned();
            }
        }
    }
    files
}

/// Makes a folder writable again, so that it can be removed.
pub fn open_up(dir: &Path) {
    for (path, node) in read(dir) {
        if let Node::Dir { .. } = node {
            let _ = fs::set_permissions(at(dir, &path), fs::Permissions::from_mode(0o755));
        }
    }
}

fn entry(node: &Node, numbers: &mut HashMap<Vec<u8>, u64>) -> Entry {
    match node {
        Node::Dir { mode } => Entry::Dir { mode: *mode as u16 },
        Node::Link { target } => Entry::Link { target: target.clone() },
        Node::File { mode, content, first } => {
            let links = first.as_ref().map(|first| {
                let next = numbers.len() as u64 + 1;
                *numbers.entry(first.clone()).or_insert(next)
            });
            Entry::File {
                mode: *mode as u16,
                content: Digest::of(content),
                size: content.len() as u64,
                links,
            }
        }
    }
}

/// The names that are one file with a path.
pub fn names<'a>(files: &'a Files, path: &[u8]) -> BTreeSet<&'a Vec<u8>> {
    let Some(Node::File { first: Some(first), .. }) = files.get(path) else { return BTreeSet::new() };
    let same = |node: &Node| matches!(node, Node::File { first: Some(other), .. } if other == first);
    files.iter().filter(|(_, node)| same(node)).map(|(path, _)| path).collect()
}

fn without_names(node: Option<&Node>) -> Option<Node> {
    node.cloned().map(|node| match node {
        Node::File { mode, content, .. } => Node::File { mode, content, first: None },
        other => other,
    })
}

/// The paths in which two directories differ.
pub fn differing(before: &Files, after: &Files) -> BTreeSet<Vec<u8>> {
    let paths: BTreeSet<&Vec<u8>> = before.keys().chain(after.keys()).collect();
    let differs = |path: &Vec<u8>| {
        without_names(before.get(path)) != without_names(after.get(path))
            || names(before, path) != names(after, path)
    };
    paths.into_iter().filter(|path| differs(path)).cloned().collect()
}

/// The steps from one directory to another. All new content is put into the store.
pub fn steps(store: &Store, before: &Files, after: &Files) -> Vec<Step> {
    let (mut old, mut new) = (HashMap::new(), HashMap::new());
    let step = |path: &Vec<u8>| {
        if let Some(Node::File { content, .. }) = after.get(path) {
            store.blobs().put(content).unwrap();
        }
        Step {
            path: path.clone(),
            was: before.get(path).map(|node| entry(node, &mut old)),
            becomes: after.get(path).map(|node| entry(node, &mut new)),
        }
    };
    differing(before, after).iter().map(step).collect()
}

/// What is at a path, in a few words.
pub fn shown(files: &Files, path: &[u8]) -> String {
    match files.get(path) {
        Some(Node::File { mode, content, first }) => {
            format!(
                "file {mode:o}, {} bytes, {:.8}, first {first:?}",
                content.len(),
                Digest::of(content).hex()
            )
        }
        other => format!("{other:?}"),
    }
}
