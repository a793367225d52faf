//! `pfimg diff -p` and `--stat`, judged by git.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::common::cli::{clean_command, pfimg_on};
use crate::common::{PFIMG, Rng, temp_dir};

/// What git knows of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File { runs: bool, bytes: Vec<u8> },
    Link(Vec<u8>),
}

/// Files and links by path. Folders are there where something is in them.
type Tree = BTreeMap<Vec<u8>, Node>;

/// Names as they may come, each once.
const NAMES: [&[u8]; 16] = [
    b"plain",
    b"with blank",
    b" before and behind ",
    b"tab\there",
    b"line\nend",
    b"quo\"te",
    b"back\\slash",
    b"caf\xe9",
    "caf\u{e9}".as_bytes(),
    b"\xff\xfe",
    b"-dash",
    b"\x01\x7f\x1b[31m",
    b"a",
    b"a.b",
    b"b a",
    b"it's; $x",
];

/// Names that git and this program quote alike.
const TAME: [&[u8]; 6] = [b"main.rs", b"README", b"a", b"a.b", b"lib", b"with blank"];

fn path_at(rng: &mut Rng, top: &[u8], names: &[&[u8]]) -> Vec<u8> {
    let mut path = top.to_vec();
    for _ in 0..=rng.below(3) {
        path.push(b'/');
        path.extend_from_slice(rng.pick::<&[u8]>(names));
    }
    path
}

/// Puts something at a path, in place of what is at it, above it and below it.
fn put(tree: &mut Tree, path: &[u8], node: Node) {
    let is_at_or_below = |path: &[u8], folder: &[u8]| {
        path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    tree.retain(|other, _| !is_at_or_below(other, path) && !is_at_or_below(path, other));
    tree.insert(path.to_vec(), node);
}

fn line(rng: &mut Rng) -> Vec<u8> {
    let indent = *rng.pick(&["", "", "  ", "    ", "\t"]);
    let word = *rng.pick(&["{", "}", "", "let x = 1;", "return x", "# note", "fn f() {", "caf\u{e9}"]);
    let mut line = [indent, word].concat().into_bytes();
    if rng.chance(3) {
        line.extend_from_slice(b"\xe9\xff");
    }
    line
}

fn text(lines: &[Vec<u8>], end: &[u8], is_ended: bool) -> Vec<u8> {
    let mut text = lines.join(end);
    if is_ended && !lines.is_empty() {
        text.extend_from_slice(end);
    }
    text
}

fn node(rng: &mut Rng) -> Node {
    let runs = rng.chance(20);
    let bytes = match rng.below(12) {
        // None leads back to itself: git does not look behind such a link when it makes a folder of it.
        0 => return Node::Link(rng.pick(&[&b"to"[..], b"../x y", b"t\xe9", b"tab\t\nend"]).to_vec()),
        1 => Vec::new(),
        2 => {
            let length = rng.below(6000) as usize;
            rng.bytes(length)
        }
        3 => [b"text, and then \0".as_slice(), &vec![0; rng.below(5000) as usize]].concat(),
        _ => {
            let number = *rng.pick(&[1, 2, 5, 20, 60, 300]);
            let lines: Vec<_> = (0..=rng.below(number)).map(|_| line(rng)).collect();
            let end = if rng.chance(15) { &b"\r\n"[..] } else { b"\n" };
            text(&lines, end, !rng.chance(20))
        }
    };
    Node::File { runs, bytes }
}

/// Another content: some lines, the ends of all of them, or the end of the last one.
fn edited(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    match rng.below(8) {
        0 => return bytes.strip_suffix(b"\n").map_or_else(|| [bytes, b"\n"].concat(), <[u8]>::to_vec),
        1 => return text(&lines, b"\r\n", false),
        _ => {}
    }
    for _ in 0..=rng.below(5) {
        let at = rng.below(lines.len() as u64 + 1) as usize;
        match rng.below(4) {
            0 if at < lines.len() => drop(lines.remove(at)),
            1 if at < lines.len() => lines[at] = line(rng),
            // A piece that is there twice fits in two places.
            2 if at > 2 => {
                let piece = lines[at - 2..at].to_vec();
                lines.splice(at..at, piece);
            }
            _ => lines.insert(at, line(rng)),
        }
    }
    text(&lines, b"\n", false)
}

/// A random tree below a folder, and one that it became.
fn pair(rng: &mut Rng, top: &[u8], names: &[&[u8]]) -> (Tree, Tree) {
    let mut before = Tree::new();
    for _ in 0..2 + rng.below(3) {
        let path = path_at(rng, top, names);
        let node = node(rng);
        put(&mut before, &path, node);
    }
    let mut after = before.clone();
    for path in before.keys() {
        match (rng.below(10), after.get(path).cloned()) {
            (0, _) => drop(after.remove(path)),
            (1, _) => {
                let node = node(rng);
                put(&mut after, path, node);
            }
            (2, Some(Node::File { runs, bytes })) => {
                put(&mut after, path, Node::File { runs: !runs, bytes });
            }
            // A file becomes a folder.
            (3, Some(_)) => {
                let (below, node) = (path_at(rng, path, names), node(rng));
                put(&mut after, &below, node);
            }
            // A folder becomes a file or a link.
            (4, Some(_)) => {
                let folder = path.rsplitn(2, |byte| *byte == b'/').last().unwrap();
                if folder.len() > top.len() {
                    let node = node(rng);
                    put(&mut after, folder, node);
                }
            }
            (5..8, Some(Node::File { runs, bytes })) => {
                let bytes = edited(rng, &bytes);
                put(&mut after, path, Node::File { runs, bytes });
            }
            _ => {}
        }
    }
    for _ in 0..rng.below(3) {
        let (path, node) = (path_at(rng, top, names), node(rng));
        put(&mut after, &path, node);
    }
    (before, after)
}

fn write(tree: &Tree, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for (path, node) in tree {
        let path = dir.join(OsStr::from_bytes(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match node {
            Node::Link(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Node::File { runs, bytes } => {
                fs::write(&path, bytes).unwrap();
                let mode = if *runs { 0o755 } else { 0o644 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    }
}

fn read(dir: &Path) -> Tree {
    let (mut tree, mut todo) = (Tree::new(), vec![dir.to_owned()]);
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
            if name == b".git" {
                continue;
            }
            let node = if meta.is_dir() {
                todo.push(path);
                continue;
            } else if meta.is_symlink() {
                Node::Link(fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
            } else {
                Node::File { runs: meta.permissions().mode() & 0o100 != 0, bytes: fs::read(&path).unwrap() }
            };
            tree.insert(name, node);
        }
    }
    tree
}

#[track_caller]
fn assert_same(got: &Tree, expected: &Tree, what: &str) {
    let all: std::collections::BTreeSet<_> = got.keys().chain(expected.keys()).collect();
    let other: Vec<_> = all
        .into_iter()
        .filter(|path| got.get(*path) != expected.get(*path))
        .map(|path| format!("{}: {:?} and not {:?}", path.escape_ascii(), got.get(path), expected.get(path)))
        .collect();
    assert!(other.is_empty(), "{what}: {} paths, the first: {:.2000}", other.len(), other[0]);
}

/// Git with no settings but these.
#[track_caller]
fn git(dir: &Path, args: &[&str]) -> Output {
    let mut command = clean_command(Path::new("git"));
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CEILING_DIRECTORIES", dir.parent().unwrap());
    command.args([
        "-c",
        "core.fsync=none",
        "-c",
        "core.quotePath=false",
        "-c",
        "core.autocrlf=false",
        "-c",
        "core.fileMode=true",
    ]);
    let out = command.args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// Two trees, each in a folder and as an image.
struct Images {
    dir: PathBuf,
    store: PathBuf,
    ids: [String; 2],
    _guard: tempfile::TempDir,
}

impl Images {
    fn of(before: &Tree, after: &Tree) -> Self {
        let (guard, dir) = temp_dir();
        let store = dir.join("store");
        let ids = [("before", before), ("after", after)].map(|(name, tree)| {
            write(tree, &dir.join(name));
            let import = ["import", "--no-parent", dir.join(name).to_str().unwrap()].map(str::to_owned);
            pfimg_on(&store, import).exits(0).stdout.trim().to_owned()
        });
        Self { dir, store, ids, _guard: guard }
    }

    /// What `pfimg diff` prints, byte for byte.
    #[track_caller]
    fn diff(&self, args: &[&str]) -> Vec<u8> {
        let mut command = clean_command(Path::new(PFIMG));
        command.env("PF_STORE", &self.store).arg("diff").args(args).current_dir(&self.dir);
        let out = command.stdin(Stdio::null()).output().unwrap();
        assert!(out.status.success(), "diff {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }

    /// Applies a patch to the files of the first tree, and gives what they are then.
    fn applied(&self, patch: &[u8]) -> Tree {
        let (file, work) = (self.dir.join("patch"), self.dir.join("before"));
        fs::write(&file, patch).unwrap();
        git(&work, &["apply", "--whitespace=nowarn", file.to_str().unwrap()]);
        read(&work)
    }
}

/// The parts of a patch, by their headers.
fn parts(patch: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut parts = BTreeMap::<Vec<u8>, Vec<u8>>::new();
    let mut header = Vec::new();
    for line in patch.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b"diff --git ") {
            header = line.to_vec();
        }
        // Git names contents everywhere, and writes bytes as what changed in them.
        if !line.starts_with(b"index ") {
            parts.entry(header.clone()).or_default().extend_from_slice(line);
        }
    }
    parts.retain(|_, part| !part.windows(17).any(|text| text == b"\nGIT binary patch"));
    parts
}

#[test]
fn git_applies_every_patch_and_counts_and_writes_the_same() {
    let mut rng = Rng::new(0x9a7c);
    let (mut before, mut after) = (Tree::new(), Tree::new());
    for number in 0..300 {
        let (top, names) = match number % 3 {
            0 => (format!("tame/p{number}"), &TAME[..]),
            _ => (format!("p{number}"), &NAMES[..]),
        };
        let (was, is) = pair(&mut rng, top.as_bytes(), names);
        before.extend(was);
        after.extend(is);
    }
    let images = Images::of(&before, &after);
    let [one, two] = [images.ids[0].as_str(), images.ids[1].as_str()];
    let patch = images.diff(&[one, two, "-p"]);
    assert_same(&images.applied(&patch), &after, "forth");
    // Not by `apply -R`: git 2.47 brings back a deleted link or program as a plain file.
    let back = images.diff(&[two, one, "--patch"]);
    assert_same(&images.applied(&back), &before, "back");
    assert!(images.diff(&[one, one, "-p"]).is_empty());

    // Git's own view of the two trees.
    let repository = images.dir.join("before");
    git(&repository, &["init", "-q"]);
    let tree = |name: &str| {
        let work_tree = images.dir.join(name);
        git(&repository, &["--work-tree", work_tree.to_str().unwrap(), "add", "-A", "-f"]);
        String::from_utf8(git(&repository, &["write-tree"]).stdout).unwrap().trim().to_owned()
    };
    let (was, is) = (tree("before"), tree("after"));
    let theirs = |args: &[&str]| {
        let asked = ["diff", "--no-renames", &was, &is];
        git(&repository, &[&asked, args, &["--", "tame"]].concat()).stdout
    };
    let stat = String::from_utf8(images.diff(&[one, two, "--stat", "--", "tame"])).unwrap();
    let their_stat = String::from_utf8(theirs(&["--stat=80"])).unwrap();
    for (ours, theirs) in stat.lines().zip(their_stat.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(stat.lines().count(), their_stat.lines().count());
    assert!(stat.lines().count() > 100, "{stat}");
    let theirs = parts(&theirs(&["-p", "--binary"]));
    let ours = parts(&images.diff(&[one, two, "-p", "--", "tame"]));
    let other: Vec<_> = theirs.iter().filter(|(header, part)| ours.get(*header) != Some(part)).collect();
    for (header, theirs) in &other {
        let ours = ours.get(*header).map_or(&b""[..], |part| part);
        let [ours, theirs] = [ours, theirs].map(String::from_utf8_lossy);
        println!("--- ours\n{ours}\n--- git's\n{theirs}");
    }
    // The library weighs blank lines at the end of a file otherwise than git, which moves a change that fits in two places.
    assert!(other.len() <= 1 && theirs.len() > 50, "{} of {} are others", other.len(), theirs.len());
    assert_eq!(theirs.len(), ours.len());
}
