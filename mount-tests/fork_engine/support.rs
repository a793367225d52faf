//! A store of images in memory, random numbers, and comparing a fork with its model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use pfimg::digest::Digest;
use pfimg::fork::{
    Attr, BaseReader, BlobRef, Changes, Fork, Frozen, Ino, LayerBase, Options, Registry, Sealed,
};
use pfimg::layers::world::{Entry, FsTree, Kind};
use pfimg::tree::Tree;
use pfimg::{Error, ErrorKind};

use super::model::{Id, Model};
use crate::common::failing::Program;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

pub fn programs(kind: &'static str, usual: u64, mut run: impl FnMut(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("PFIMG_FORK_SEED").unwrap_or(1);
    let count = number("PFIMG_FORK_PROGRAMS").unwrap_or(if first > 1 { 1 } else { usual });
    for seed in first..first + count {
        let again = format!("PFIMG_FORK_SEED={seed} cargo test --test engine fork_engine::");
        let _program = Program { what: kind, seed, again };
        run(seed);
    }
}

#[derive(Default)]
pub struct Images {
    pub blobs: Mutex<HashMap<Digest, Arc<Vec<u8>>>>,
    trees: Mutex<HashMap<Digest, Arc<Tree>>>,
    entries: Mutex<HashMap<Digest, BTreeMap<String, Entry<'static>>>>,
    layers: Mutex<HashMap<Digest, Vec<LayerBase>>>,
    pub reads: AtomicUsize,
    pub sizes: AtomicUsize,
}

impl BaseReader for Images {
    fn size(&self, digest: &Digest) -> pfimg::Result<u64> {
        self.sizes.fetch_add(1, Ordering::Relaxed);
        Ok(self.blob(digest)?.len() as u64)
    }

    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> pfimg::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let blob = self.blob(digest)?;
        assert_eq!(blob.len() as u64, size, "the size of a blob was made up");
        let rest = &blob[(offset as usize).min(blob.len())..];
        // Sometimes fewer bytes than requested: readers have to continue.
        let n = rest.len().min(buf.len()).min(100_000);
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn tree(&self, image: &Digest) -> pfimg::Result<Arc<Tree>> {
        self.trees.lock().get(image).cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, "no image"))
    }

    fn layers(&self, image: &Digest) -> pfimg::Result<Vec<LayerBase>> {
        Ok(self.layers.lock()[image].clone())
    }
}

pub const BIG: usize = 3 << 20;

impl Images {
    fn blob(&self, digest: &Digest) -> pfimg::Result<Arc<Vec<u8>>> {
        self.blobs.lock().get(digest).cloned().ok_or_else(|| Error::new(ErrorKind::Missing, "no blob"))
    }

    pub fn put(&self, bytes: &[u8]) -> BlobRef {
        let digest = Digest::of(bytes);
        self.blobs.lock().insert(digest, Arc::new(bytes.to_vec()));
        BlobRef { digest, size: bytes.len() as u64 }
    }

    pub fn add(&self, entries: BTreeMap<String, Entry<'static>>, mut layers: Vec<LayerBase>) -> Digest {
        let (specials, plain): (Vec<_>, Vec<_>) = entries
            .values()
            .cloned()
            .partition(|e| !matches!(e.kind, Kind::File | Kind::Dir | Kind::Symlink));
        let tree = FsTree { entries: plain, specials, ..FsTree::default() }.to_bytes().unwrap();
        let tree = Arc::new(Tree::parse(&tree).unwrap());
        let id = Digest::of(format!("image {}", self.trees.lock().len()).as_bytes());
        layers.retain(|layer| layer.path != "manifest.json");
        layers.push(self.layer("manifest.json", format!("{{\"id\":\"{id}\"}}").as_bytes(), true));
        self.trees.lock().insert(id, tree);
        self.entries.lock().insert(id, entries);
        self.layers.lock().insert(id, layers);
        id
    }

    pub fn layer(&self, path: &str, bytes: &[u8], sized: bool) -> LayerBase {
        let blob = self.put(bytes);
        LayerBase { path: path.into(), digest: blob.digest, size: sized.then_some(blob.size), mtime_ns: None }
    }

    pub fn layers_of(&self, image: &Digest) -> Vec<LayerBase> {
        self.layers.lock()[image].clone()
    }

    /// An image with a bit of everything, and the model of its tree.
    pub fn sample(&self) -> (Digest, Model) {
        let mut rng = Rng(7);
        let mut model = Model::new();
        let mut entries = BTreeMap::new();
        for dir in ["a", "a/b", "a/b/c", "d", "e"] {
            model.create(dir.as_bytes(), Kind::Dir, 0o755, b"").unwrap();
            entries.insert(dir.to_owned(), Entry::new(dir, Kind::Dir, 0o755));
        }
        for (path, len) in [
            ("a/x", 10),
            ("a/y", 5000),
            ("a/b/x", 100_000),
            ("a/b/c/z", 1),
            ("big", BIG),
            ("empty", 0),
            ("d/f", 70_000),
        ] {
            let bytes = rng.bytes(len);
            let id = model.create(path.as_bytes(), Kind::File, 0o644, b"").unwrap();
            model.node(id).content.clone_from(&bytes);
            let mut entry = Entry::new(path, Kind::File, 0o644);
            let blob = self.put(&bytes);
            (entry.blob, entry.size, entry.mtime_ns) = (Some(blob.digest), blob.size, Some(len as i64));
            if path == "a/x" {
                entry.hardlink = Some(9);
                let mut other = entry.clone();
                other.path = "d/hard".into();
                entries.insert("d/hard".to_owned(), other);
            }
            entries.insert(path.to_owned(), entry);
        }
        model.link(b"a/x", b"d/hard").unwrap();
        model.create(b"e/link", Kind::Symlink, 0o777, b"../a/x").unwrap();
        let mut link = Entry::new("e/link", Kind::Symlink, 0o777);
        link.link_target = Some("../a/x".into());
        entries.insert("e/link".to_owned(), link);
        let layers = vec![
            self.layer("model/base", &rng.bytes(200_000), false),
            self.layer("model/diff.json", b"{}", true),
            self.layer("cache/manifest.json", b"{\"pages\":[]}", false),
            self.layer("cache/pages/00000000.k", &rng.bytes(9000), false),
            self.layer("world/env.json", b"{\"kind\":\"env.v1\"}", true),
            self.layer("world/procs.json", b"{}", true),
            self.layer("effects/ledger.jsonl", b"{\"head\":1}\n", false),
            self.layer("trace/messages.jsonl", b"", true),
        ];
        (self.add(entries, layers), model)
    }

    /// Makes an image of a frozen fork, as a sealer would: what was removed goes, what was put comes.
    pub fn seal(
        &self,
        frozen: &Frozen,
        ledger: &dyn Fn(&[u8]) -> Vec<u8>,
    ) -> (Digest, Vec<LayerBase>, Sealed) {
        let changes: Arc<Changes> = frozen.changes().unwrap();
        let image = frozen.image();
        let mut entries = image.map(|id| self.entries.lock()[&id].clone()).unwrap_or_default();
        let mut layers = image.map(|id| self.layers_of(&id)).unwrap_or_default();
        let mut sealed = Sealed::new();
        for path in &changes.removed {
            let path = std::str::from_utf8(path).unwrap();
            layers.retain(|layer| layer.path != path);
            if let Some(path) = path.strip_prefix("world/fs/") {
                entries.retain(|p, _| p != path && !p.starts_with(&format!("{path}/")));
            }
        }
        // The fork's numbers may be those of other files in the image: groups get numbers of their own.
        let first = entries.values().filter_map(|e| e.hardlink).max().unwrap_or(0) + 1;
        let mut groups: HashMap<Ino, u64> = HashMap::new();
        for (path, put) in &changes.put {
            let shown = std::str::from_utf8(path).unwrap().to_owned();
            let mut blob = None;
            if let Some(content) = put.inode.content() {
                let mut bytes = vec![0; content.size as usize];
                assert_eq!(frozen.read(content, 0, &mut bytes).unwrap(), bytes.len());
                if shown == "effects/ledger.jsonl" {
                    bytes = ledger(&bytes);
                }
                blob = Some(self.put(&bytes));
                sealed.insert(path.clone(), self.put(&bytes));
            }
            let Some(inside) = shown.strip_prefix("world/fs/") else {
                if let Some(blob) = blob.filter(|_| shown != "manifest.json") {
                    layers.retain(|layer| layer.path != shown);
                    layers.push(LayerBase {
                        path: shown,
                        digest: blob.digest,
                        size: Some(blob.size),
                        mtime_ns: None,
                    });
                }
                continue;
            };
            let attr = frozen.attr(put);
            let mut entry = Entry::new(inside.to_owned(), attr.kind, attr.mode);
            (entry.uid, entry.gid, entry.mtime_ns) = (put.inode.uid, put.inode.gid, put.inode.mtime);
            if attr.kind == Kind::File {
                (entry.blob, entry.size) = (blob.map(|b| b.digest), attr.size);
            }
            if attr.nlink > 1 && attr.kind != Kind::Dir {
                let next = first + groups.len() as u64;
                entry.hardlink = Some(*groups.entry(put.ino).or_insert(next));
            }
            if let pfimg::fork::Body::Symlink(target) = &put.inode.body {
                entry.link_target = Some(String::from_utf8(target.to_vec()).unwrap().into());
            }
            entries.insert(inside.to_owned(), entry);
        }
        let id = self.add(entries, layers);
        (id, self.layers_of(&id), sealed)
    }
}

pub fn open(dir: &Path, images: &Arc<Images>) -> Registry {
    Registry::open(dir, images.clone(), Options::default()).unwrap()
}

pub fn world(path: &[u8]) -> Vec<u8> {
    [b"world/fs/", path].concat()
}

pub fn ino(fork: &Fork, path: &[u8]) -> Ino {
    fork.resolve(&world(path)).unwrap_or_else(|| panic!("no {}", path.escape_ascii()))
}

/// Every path of a fork, with what stat says.
pub fn walk(fork: &Fork, from: Ino) -> BTreeMap<Vec<u8>, Attr> {
    let mut all = BTreeMap::new();
    let mut todo = vec![(Vec::new(), from)];
    while let Some((path, dir)) = todo.pop() {
        let mut names = Vec::new();
        let mut cookie = 0;
        // A few entries a call, as a small buffer would have it.
        loop {
            let mut room = 5;
            let before = names.len();
            fork.readdir(dir, cookie, &mut |entry| {
                cookie = entry.cookie;
                names.push(entry);
                room -= 1;
                room > 0
            })
            .unwrap();
            if names.len() == before {
                break;
            }
        }
        for entry in names {
            let path =
                if path.is_empty() { entry.name.to_vec() } else { [&path[..], &entry.name].join(&b'/') };
            let attr = fork.lookup(dir, &entry.name).unwrap();
            assert_eq!((attr.ino, attr.kind), (entry.ino, entry.kind), "{}", path.escape_ascii());
            if attr.kind == Kind::Dir {
                todo.push((path.clone(), attr.ino));
            }
            assert!(all.insert(path.clone(), attr).is_none(), "{} is listed twice", path.escape_ascii());
        }
    }
    all
}

/// Says how a fork differs from its model.
pub fn difference(fork: &Fork, model: &Model) -> Option<String> {
    let found = walk(fork, Ino::FS);
    let expected: BTreeMap<Vec<u8>, Id> =
        model.paths().into_iter().filter(|(path, _)| !path.is_empty()).collect();
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (found.keys().collect(), expected.keys().collect());
    if a != b {
        let show = |paths: Vec<&&Vec<u8>>| {
            format!("{:?}", paths.iter().map(|p| p.escape_ascii().to_string()).collect::<Vec<_>>())
        };
        return Some(format!(
            "only in the fork {}, only in the model {}",
            show(a.difference(&b).collect()),
            show(b.difference(&a).collect())
        ));
    }
    let mut inos: HashMap<Ino, Id> = HashMap::new();
    for (path, attr) in &found {
        let id = expected[path];
        let node = &model.nodes[&id];
        let shown = path.escape_ascii();
        if *inos.entry(attr.ino).or_insert(id) != id {
            return Some(format!("{shown}: number {:?} belongs to another file", attr.ino));
        }
        let size = if node.kind == Kind::Dir { 0 } else { node.content.len() as u64 };
        let (is, should) =
            ((attr.kind, attr.mode, attr.nlink, attr.size), (node.kind, node.mode, model.nlink(id), size));
        if is != should {
            return Some(format!("{shown}: is {is:?}, should be {should:?}"));
        }
        match node.kind {
            Kind::File => {
                let bytes = match fork.read_vec(attr.ino, 0, usize::MAX) {
                    Ok(bytes) => bytes,
                    Err(e) => return Some(format!("{shown}: {e}")),
                };
                if bytes != node.content {
                    let at = bytes.iter().zip(&node.content).position(|(a, b)| a != b);
                    return Some(format!("{shown}: {} bytes, differ first at {at:?}", bytes.len()));
                }
            }
            Kind::Symlink if fork.readlink(attr.ino).unwrap() != node.content => {
                return Some(format!("{shown}: another target"));
            }
            _ => {}
        }
        let names = fork.listxattr(attr.ino).unwrap();
        let xattrs: BTreeMap<_, _> =
            names.into_iter().map(|n| (n.clone(), fork.getxattr(attr.ino, &n).unwrap())).collect();
        if xattrs != node.xattrs {
            return Some(format!("{shown}: xattrs {xattrs:?}, should be {:?}", node.xattrs));
        }
    }
    let distinct: BTreeSet<_> = inos.values().collect();
    (distinct.len() != inos.len()).then(|| "links of one file have several numbers".into())
}

pub fn same(fork: &Fork, model: &Model, when: &str) {
    if let Some(difference) = difference(fork, model) {
        panic!("{when}: {difference}");
    }
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
