//! A store with forks in it and no mount, and the real pf's view of what was sealed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pf_core::cas::BlobStore;
use pf_core::digest::Digest256;
use pf_core::store::PfStore;
use pfimg::cache::{Cache, CacheConfig};
use pfimg::digest::Digest;
use pfimg::fork::{BaseReader, Body, Fork, Ino, NewFile, Options, Put, Registry};
use pfimg::layers::effects::Secret;
use pfimg::layers::world::Kind;
use pfimg::ops::fixture::{FixtureSpec, build};
use pfimg::ops::seal::{Sealed, Sealer};
use pfimg::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use pfimg::store::{Manifest, Store, StoreIo};

/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_mins(1);

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

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// A store in a folder, and what opens its forks.
pub struct Place {
    pub store: Arc<Store>,
    pub reader: Arc<dyn BaseReader>,
}

impl Place {
    pub fn new(dir: &Path) -> Self {
        Self::of(Store::create(dir).unwrap())
    }

    pub fn with_io(dir: &Path, io: Arc<dyn StoreIo>) -> Self {
        Self::of(Store::create(dir).unwrap().with_io(io))
    }

    fn of(store: Store) -> Self {
        let store = Arc::new(store);
        let config =
            CacheConfig { heap_bytes: 256 << 20, disk_bytes: 1 << 30, dir: store.root().join("test-cache") };
        let cache = Arc::new(Cache::new(store.clone(), &config));
        let reader = pfimg::images::fork_reader(store.clone(), cache);
        Self { store, reader }
    }

    /// Opens the forks to write them. A program that another test starts holds the lock of the last one until it runs.
    pub fn registry(&self) -> Registry {
        let begun = Instant::now();
        loop {
            let registry =
                Registry::open(self.store.root(), self.reader.clone(), Options::default()).unwrap();
            if registry.is_writable() {
                return registry;
            }
            assert!(begun.elapsed() < PATIENCE, "somebody else writes these forks");
            std::thread::yield_now();
        }
    }

    pub fn sealer(&self, secret: Option<&str>) -> Sealer {
        Sealer::new(self.store.clone(), self.reader.clone(), secret.map(Secret::new))
    }

    pub fn seal(&self, fork: &Fork) -> Sealed {
        self.sealer(None).seal(fork, None).unwrap()
    }

    /// An image as pf-core's fixture makes it.
    pub fn fixture(&self, seed: u64) -> Digest {
        let spec = FixtureSpec {
            cache_pages: 3,
            page_bytes: 512,
            world_files: 10,
            world_file_bytes: 300,
            model_diff_bytes: 64,
            seed,
            ..FixtureSpec::default()
        };
        let layers = build(&spec, &mut |bytes| self.store.blobs().put(bytes)).unwrap();
        let manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            media_type: MEDIA_TYPE.into(),
            agent: Agent { kind: "fixture".into(), version: "7".into(), fingerprint: "f".into() },
            model: ModelRefs { base: layers.model_base, diff: layers.model_diff },
            cache: CacheRefs { layout: "paged-batchinvariant-v1".into(), manifest: layers.cache_manifest },
            world: WorldRefs { fs: layers.world_fs, env: layers.world_env, procs: layers.world_procs },
            effects: EffectsRefs { ledger: layers.effects_ledger },
            trace: TraceRefs { messages: layers.trace_messages },
            created_at: chrono::Utc::now(),
            parents: Vec::new(),
        };
        self.store.put_manifest(&manifest).unwrap()
    }
}

/// Finds or makes a file and writes all of it.
pub fn write(fork: &Fork, path: &str, bytes: &[u8]) -> Ino {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = dir(fork, folder);
    let ino = match fork.lookup(parent, name.as_bytes()) {
        Ok(attr) => attr.ino,
        Err(_) => {
            fork.create(parent, name.as_bytes(), &NewFile::new(Kind::File, 0o644, 1000, 100)).unwrap().ino
        }
    };
    fork.setattr(ino, &pfimg::fork::SetAttr { size: Some(0), ..Default::default() }).unwrap();
    let mut at = 0;
    while at < bytes.len() {
        at += fork.write(ino, at as u64, &bytes[at..(at + 100_000).min(bytes.len())], false).unwrap();
    }
    ino
}

/// Adds to the end of a file, which is made if it is not there.
pub fn append(fork: &Fork, path: &str, bytes: &[u8]) {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = dir(fork, folder);
    let attr = match fork.lookup(parent, name.as_bytes()) {
        Ok(attr) => attr,
        Err(_) => fork.create(parent, name.as_bytes(), &NewFile::new(Kind::File, 0o644, 0, 0)).unwrap(),
    };
    assert_eq!(fork.write(attr.ino, attr.size, bytes, false).unwrap(), bytes.len());
}

/// Finds or makes a folder and those above it.
pub fn dir(fork: &Fork, path: &str) -> Ino {
    path.split('/').filter(|name| !name.is_empty()).fold(Ino::TOP, |parent, name| {
        if let Ok(attr) = fork.lookup(parent, name.as_bytes()) {
            return attr.ino;
        }
        let new = NewFile::new(Kind::Dir, 0o755, 1000, 100);
        fork.create(parent, name.as_bytes(), &new).unwrap().ino
    })
}

pub fn read(fork: &Fork, path: &str) -> Option<Vec<u8>> {
    let ino = path
        .split('/')
        .try_fold(Ino::TOP, |parent, name| fork.lookup(parent, name.as_bytes()).ok().map(|attr| attr.ino))?;
    let size = fork.getattr(ino).unwrap().size;
    Some(fork.read_vec(ino, 0, size as usize).unwrap())
}

/// All there is to know of a file of a frozen fork but its change and access time.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub kind: Kind,
    pub mode: u16,
    pub owner: (Option<u32>, Option<u32>),
    /// As it is shown, whether an image records it or not.
    pub mtime: i64,
    pub rdev: u64,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Its other names, sorted.
    pub names: Vec<Vec<u8>>,
}

/// Everything below `world/fs`, which is itself the empty path.
pub fn world(fork: &Fork) -> BTreeMap<Vec<u8>, Shown> {
    let frozen = fork.freeze().unwrap();
    let mut all = BTreeMap::new();
    let mut by_ino: BTreeMap<Ino, Vec<Vec<u8>>> = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    let mut inos = Vec::new();
    while let Some(path) = todo.pop() {
        let full = [b"world/fs/".as_slice(), &path].concat();
        let Some((ino, inode)) = frozen.resolve(&full) else {
            assert!(path.is_empty(), "{} is listed and not there", path.escape_ascii());
            return all;
        };
        let mut content = Vec::new();
        match &inode.body {
            Body::File(file) => {
                content = vec![0; file.size as usize];
                assert_eq!(frozen.read(file, 0, &mut content).unwrap(), content.len());
            }
            Body::Symlink(target) => content = target.to_vec(),
            Body::Dir(_) => {
                for (name, ..) in frozen.list(ino) {
                    let below =
                        if path.is_empty() { name.to_vec() } else { [&path[..], b"/", &name].concat() };
                    todo.push(below);
                }
            }
            Body::Special(_) => {}
        }
        if !inode.is_dir() {
            by_ino.entry(ino).or_default().push(path.clone());
        }
        inos.push((path.clone(), ino));
        let shown = Shown {
            kind: inode.kind(),
            mode: inode.mode,
            owner: (inode.uid, inode.gid),
            mtime: frozen.attr(&Put { ino, inode: inode.clone() }).mtime,
            rdev: inode.rdev,
            content,
            xattrs: (*inode.xattrs).clone(),
            names: Vec::new(),
        };
        all.insert(path, shown);
    }
    for (path, ino) in inos {
        let names = by_ino.get(&ino).into_iter().flatten();
        let mut names: Vec<_> = names.filter(|other| **other != path).cloned().collect();
        names.sort();
        all.get_mut(&path).unwrap().names = names;
    }
    all
}

/// The real pf's store.
pub struct Pf(pub PfStore);

impl Pf {
    pub fn open(place: &Place) -> Self {
        Self(PfStore::open(place.store.root()).unwrap())
    }

    pub fn manifest(&self, image: &Digest) -> pf_core::manifest::Manifest {
        let cid = cid(image);
        assert!(self.0.iter_manifests().unwrap().any(|(found, _)| found == cid), "pf does not list {image}");
        self.0.get_manifest(&cid).unwrap()
    }

    pub fn blob(&self, digest: &Digest256) -> Vec<u8> {
        // pf's get verifies the digest.
        self.0.blobs().get(digest).unwrap()
    }

    /// Loads everything an image reaches.
    pub fn judge(&self, image: &Digest) {
        let manifest = self.manifest(image);
        let layers = [
            &manifest.model.base,
            &manifest.model.diff,
            &manifest.world.env,
            &manifest.world.procs,
            &manifest.trace.messages,
        ];
        for digest in layers {
            self.blob(digest);
        }
        let tree: pf_world::fs::FsTree = serde_json::from_slice(&self.blob(&manifest.world.fs)).unwrap();
        for (one, next) in tree.entries.iter().zip(tree.entries.iter().skip(1)) {
            let ordered = Path::new(&one.path) < Path::new(&next.path);
            assert!(ordered, "pf's order is another: {:?} before {:?}", one.path, next.path);
        }
        for entry in &tree.entries {
            if let Some(blob) = &entry.blob {
                assert_eq!(self.blob(blob).len() as u64, entry.size, "{}", entry.path);
            }
        }
        let pages: serde_json::Value = serde_json::from_slice(&self.blob(&manifest.cache.manifest)).unwrap();
        for page in pages["pages"].as_array().unwrap() {
            for half in ["k", "v"] {
                self.blob(&Digest256::parse(page[half].as_str().unwrap()).unwrap());
            }
        }
        for parent in &manifest.parents {
            self.0.get_manifest(parent).unwrap();
        }
        // What pf would push to a registry.
        for digest in pf_registry::registry::transitive_blob_digests(&manifest, self.0.blobs()).unwrap() {
            self.blob(&digest);
        }
    }

    /// Pushes an image to a registry that is a folder and pulls it again; both are equal.
    pub fn push_and_pull(&self, image: &Digest, folder: &Path) {
        use pf_registry::{FileRegistry, ImageRef, Registry as _};
        let target = ImageRef::File { path: folder.to_owned() };
        let (manifest, registry) = (self.manifest(image), FileRegistry::new());
        at_once(registry.push(&target, &manifest, self.0.blobs())).unwrap();
        let pulled = at_once(registry.pull(&target)).unwrap();
        assert_eq!(serde_json::to_vec(&pulled.manifest).unwrap(), serde_json::to_vec(&manifest).unwrap());
        let reached = pf_registry::registry::transitive_blob_digests(&manifest, self.0.blobs()).unwrap();
        assert_eq!(pulled.blobs.len(), reached.len());
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// The image's files as pf restores them: kind, mode and content by path.
    pub fn restore(&self, image: &Digest, into: &Path) -> BTreeMap<Vec<u8>, (Kind, u32, Vec<u8>)> {
        let manifest = self.manifest(image);
        let blobs: Arc<dyn BlobStore> = self.0.blobs_arc();
        let options = pf_world::fs::RestoreOptions { allow_absolute_symlinks: true };
        pf_world::fs::restore_tree_with_options(&blobs, &manifest.world.fs, into, options).unwrap();
        let mut all = BTreeMap::new();
        let mut todo = vec![into.to_owned()];
        while let Some(folder) = todo.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                use std::os::unix::ffi::OsStrExt;
                use std::os::unix::fs::PermissionsExt;
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                let (kind, content) = if metadata.is_dir() {
                    todo.push(path.clone());
                    (Kind::Dir, Vec::new())
                } else if metadata.is_symlink() {
                    (Kind::Symlink, path.read_link().unwrap().as_os_str().as_bytes().to_vec())
                } else {
                    (Kind::File, std::fs::read(&path).unwrap())
                };
                let inner = path.strip_prefix(into).unwrap().as_os_str().as_bytes().to_vec();
                all.insert(inner, (kind, metadata.permissions().mode() & 0o7777, content));
            }
        }
        all
    }
}

/// The result of a future that waits for nothing.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}

pub fn cid(digest: &Digest) -> Digest256 {
    Digest256::parse(&digest.to_string()).unwrap()
}
