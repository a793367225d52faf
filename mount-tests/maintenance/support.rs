//! A store for maintenance tests, and exact comparisons of folders.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use pf_core::digest::Digest256;
use pf_core::store::PfStore;
use pf_world::{FsTree, RestoreOptions};
use serde_json::Value;

use crate::common::cli::{Output, Run};
use crate::common::{bare, hex_digest, temp_dir, tree};

/// A folder to work in: a store, a cache, and room for folders.
pub(crate) struct House {
    pub(crate) dir: PathBuf,
    _guard: tempfile::TempDir,
}

impl House {
    pub(crate) fn new() -> Self {
        let (guard, dir) = temp_dir();
        Self { dir, _guard: guard }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Runs `pfimg` on the store, with a separate cache.
    #[track_caller]
    pub(crate) fn pfimg<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        Run::new(args).env("PF_STORE", self.store()).env("XDG_CACHE_HOME", self.dir.join("cache")).run()
    }

    /// Imports a folder and gives what `--json` says.
    #[track_caller]
    pub(crate) fn import(&self, dir: &Path, more: &[&str]) -> Value {
        let args = [OsStr::new("import"), dir.as_os_str(), OsStr::new("--json")];
        self.pfimg(args.into_iter().chain(more.iter().map(OsStr::new))).exits(0).json()
    }

    /// The store as the real `pf` opens it.
    pub(crate) fn pf(&self) -> PfStore {
        PfStore::open(self.store()).expect("the real pf opens the store")
    }

    /// The tree of an image as the real `pf` reads it.
    pub(crate) fn pf_tree(&self, image: &str) -> FsTree {
        let pf = self.pf();
        let manifest = pf.get_manifest(&cid(image)).expect("the real pf reads the manifest");
        serde_json::from_slice(&pf.blobs().get(&manifest.world.fs).expect("the tree's blob")).expect("a tree")
    }

    /// The tree of an image as it is written.
    pub(crate) fn tree_json(&self, image: &str) -> Value {
        let pf = self.pf();
        let manifest = pf.get_manifest(&cid(image)).expect("the real pf reads the manifest");
        serde_json::from_slice(&pf.blobs().get(&manifest.world.fs).expect("the tree's blob")).expect("JSON")
    }

    /// Restores an image with the real code and reads it back.
    pub(crate) fn pf_restored(&self, image: &str) -> BTreeMap<PathBuf, tree::Node> {
        let pf = self.pf();
        let manifest = pf.get_manifest(&cid(image)).expect("the real pf reads the manifest");
        let (_guard, dir) = temp_dir();
        let into = dir.join("restored");
        let options = RestoreOptions { allow_absolute_symlinks: true };
        pf_world::restore_tree_with_options(&pf.blobs_arc(), &manifest.world.fs, &into, options)
            .expect("the real pf restores it");
        tree::read_tree(&into).expect("to read what was restored")
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = bare(digest);
        self.store().join("blobs/sha256").join(&hex[..2]).join(format!("{hex}.zst"))
    }

    /// The images' ids in hex, sorted.
    pub(crate) fn images(&self) -> Vec<String> {
        let names = crate::common::names(&self.store().join("images")).unwrap_or_default();
        names.iter().filter_map(|name| name.strip_suffix(".json")).map(str::to_owned).collect()
    }
}

/// An image's id as text, of what `--json` says.
#[track_caller]
pub(crate) fn id(report: &Value) -> String {
    report["image"].as_str().expect("an image's id").to_owned()
}

pub(crate) fn cid(image: &str) -> Digest256 {
    Digest256::parse(&format!("sha256:{}", bare(image))).expect("a digest")
}

/// All attributes of a file, and a digest of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exact {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime_ns: i64,
    rdev: u64,
    content: String,
    /// The first path, in order, that is the same file.
    same_as: Option<Vec<u8>>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// Reads a folder with everything in it, itself included.
pub(crate) fn exact(root: &Path) -> BTreeMap<Vec<u8>, Exact> {
    let mut paths = vec![PathBuf::new()];
    let mut at = 0;
    while at < paths.len() {
        let full = root.join(&paths[at]);
        if std::fs::symlink_metadata(&full).unwrap().is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                paths.push(paths[at].join(entry.unwrap().file_name()));
            }
        }
        at += 1;
    }
    paths.sort();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    for path in paths {
        let full = root.join(&path);
        let meta = std::fs::symlink_metadata(&full).unwrap();
        let bytes = path.as_os_str().as_bytes().to_vec();
        let file_type = meta.file_type();
        let (kind, content) = if file_type.is_dir() {
            ("dir", String::new())
        } else if file_type.is_symlink() {
            ("link", hex_digest(std::fs::read_link(&full).unwrap().as_os_str().as_bytes()))
        } else if file_type.is_fifo() {
            ("fifo", String::new())
        } else if file_type.is_socket() {
            ("socket", String::new())
        } else if file_type.is_char_device() {
            ("chardev", String::new())
        } else {
            ("file", hex_digest(&std::fs::read(&full).unwrap()))
        };
        let same_as = (!file_type.is_dir() && meta.nlink() > 1)
            .then(|| first.entry(meta.ino()).or_insert_with(|| bytes.clone()).clone());
        let exact = Exact {
            kind: kind.to_owned(),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            rdev: if file_type.is_char_device() { meta.rdev() } else { 0 },
            content,
            same_as,
            xattrs: xattrs(&full),
        };
        nodes.insert(bytes, exact);
    }
    nodes
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..length].split(|b| *b == 0).filter(|name| name.starts_with(b"user."));
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
        })
        .collect()
}

/// A folder of everything that a tree can record, as far as this user can make it.
pub(crate) fn everything(root: &Path) {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let write =
        |name: &[u8], bytes: &[u8]| std::fs::write(root.join(OsStr::from_bytes(name)), bytes).unwrap();
    std::fs::create_dir_all(root.join("d/empty")).unwrap();
    write(b"plain", b"plain\n");
    write(b"d/run", b"#!/bin/sh\n");
    write(b"empty", b"");
    write(b"caf\xe9", b"latin");
    write("caf\u{fffd}".as_bytes(), b"replaced");
    write(b"big", &crate::common::Rng::new(3).bytes(9 << 20));
    std::fs::hard_link(root.join("plain"), root.join("d/same")).unwrap();
    symlink("../plain", root.join("d/link")).unwrap();
    symlink(OsStr::from_bytes(b"nowhere\xff"), root.join("dangling")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let holes = std::fs::File::create(root.join("holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"x", 1 << 20).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let _ = rustix::fs::setxattr(root.join("plain"), "user.note", b"\x00\xff", flags);
    let _ = rustix::fs::setxattr(root.join("d"), "user.folder", b"f", flags);
    if crate::common::is_root() {
        for name in ["plain", "d", "dangling"] {
            std::os::unix::fs::lchown(root.join(name), Some(1234), Some(4321)).unwrap();
        }
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("null"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o640),
            rustix::fs::makedev(1, 3),
        )
        .unwrap();
    }
    // Only root can import files that no user may read.
    let closed = if crate::common::is_root() { 0o000 } else { 0o400 };
    for (name, mode) in
        [("d/run", 0o4755), ("d/empty", 0o1777), ("d", 0o2751), ("empty", closed), ("", 0o750)]
    {
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut names: Vec<_> = exact(root).into_keys().collect();
    // What is in a folder before the folder, whose time it would change.
    names.reverse();
    for (second, name) in (1_000_000_000..).zip(names) {
        let time = rustix::fs::Timespec { tv_sec: second, tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let at = root.join(OsStr::from_bytes(&name));
        rustix::fs::utimensat(rustix::fs::CWD, &at, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
