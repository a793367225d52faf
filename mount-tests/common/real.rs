//! Stores written by the real `pf-core`, `pf-world`, `pf-cache` and `pf-effects`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pf_cache::{CacheMeta, Dtype, SyntheticCachePager, capture_cache};
use pf_core::digest::Digest256;
use pf_core::manifest::{AgentInfo, CacheLayer, EffectsLayer, Manifest, ModelLayer, TraceLayer, WorldLayer};
use pf_core::snapshot::{LayerCapture, LayerDescriptor, LayerKind, Snapshotter};
use pf_core::store::PfStore;
use pf_effects::{Ledger, SessionSecret, SideEffectClass};
use pf_world::{EnvCapture, FsEntryKind, FsTree, ProcsCapture, RestoreOptions, WalkFsCapture};

use super::digests::hex;
use super::machine::temp_dir;
use super::rng::Rng;
use super::tree;

/// One image in a [`RealStore`].
#[derive(Clone, Debug)]
pub struct Image {
    /// The id's 64 hex digits.
    pub id: String,
    pub seed: u64,
    /// The secret in the ledger's header.
    pub secret: String,
    pub manifest: Manifest,
    /// Folders that the tree does not list, only their children.
    pub implied: Vec<PathBuf>,
}

/// The agents that the images are from.
pub const AGENTS: [&str; 3] = ["claude-code", "langgraph", "vllm"];

/// Takes the image that `seed` describes with the real snapshot code.
pub fn snapshot(store: &PfStore, seed: u64, parents: Vec<Digest256>) -> Image {
    let mut rng = Rng::new(seed ^ 0x1a4e);
    // Four images in a row share a session, and with it a ledger.
    let session = seed / 4;
    let secret = Rng::new(session).bytes(32);
    let (_source, source) = temp_dir();
    tree::generate(seed, &source.join("world"));
    let world = Arc::new(World { root: source.join("world"), seed, implied: std::sync::Mutex::default() });
    let agent = AgentInfo {
        kind: (*rng.pick(&AGENTS)).into(),
        version: "1.0.15".into(),
        fingerprint: format!("seed-{seed}"),
    };
    let snapshotter = Snapshotter::new(
        agent.clone(),
        Arc::new(Model(agent.kind)),
        Arc::new(Cache(seed)),
        Arc::clone(&world) as Arc<dyn LayerCapture>,
        Arc::new(Effects { session, secret: secret.clone() }),
        Arc::new(Trace(seed)),
    );
    let id = snapshotter.snapshot(store, parents).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    let manifest = store.get_manifest(&id).expect("the manifest just written");
    let implied = world.implied.lock().expect("no panic before").clone();
    Image { id: id.hex().to_owned(), seed, secret: hex(&secret), manifest, implied }
}

/// Restores an image's tree with the real code and reads it back.
pub fn restored(store: &PfStore, image: &Image) -> BTreeMap<PathBuf, tree::Node> {
    let (_dir, dir) = temp_dir();
    let into = dir.join("restored");
    let options = RestoreOptions { allow_absolute_symlinks: true };
    pf_world::restore_tree_with_options(&store.blobs_arc(), &image.manifest.world.fs, &into, options)
        .unwrap_or_else(|e| panic!("seed {}: the real restore: {e}", image.seed));
    let mut nodes = tree::read_tree(&into).expect("to read what was restored");
    for path in &image.implied {
        // The restore makes these with whatever umask the caller has; nothing records a mode for them.
        nodes.insert(path.clone(), tree::Node::Dir { mode: 0o755 });
    }
    nodes
}

struct World {
    root: PathBuf,
    seed: u64,
    implied: std::sync::Mutex<Vec<PathBuf>>,
}

impl LayerCapture for World {
    fn kind(&self) -> LayerKind {
        LayerKind::World
    }

    fn capture(&self, store: &PfStore) -> pf_core::Result<LayerDescriptor> {
        let blobs = store.blobs_arc();
        let mut fs = WalkFsCapture::new(&self.root).capture(&blobs)?;
        if self.seed % 10 == 3 {
            let mut tree: FsTree = serde_json::from_slice(&blobs.get(&fs)?)?;
            *self.implied.lock().expect("no panic before") = loosen(&mut tree);
            fs = blobs.put(&serde_json::to_vec(&tree)?)?;
        }
        let env =
            EnvCapture::new().scrub("(?i)token|secret|key|password").expect("a regex").capture(&blobs)?;
        let procs = ProcsCapture::new([]).capture(&blobs)?;
        Ok(LayerDescriptor::World(WorldLayer { fs, env, procs }))
    }
}

/// Writes the same tree as other programs do: folders implied by their children, modes with type bits, links
/// without a blob. Returns the folders that the tree no longer lists.
fn loosen(tree: &mut FsTree) -> Vec<PathBuf> {
    let paths: Vec<String> = tree.entries.iter().map(|e| e.path.clone()).collect();
    let has_child =
        |path: &str| paths.iter().any(|p| p.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')));
    let (implied, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut tree.entries)
        .into_iter()
        .partition(|e| e.kind == FsEntryKind::Dir && has_child(&e.path));
    tree.entries = kept;
    for entry in &mut tree.entries {
        match entry.kind {
            FsEntryKind::File => entry.mode = format!("10{}", entry.mode),
            FsEntryKind::Dir => entry.mode = format!("4{}", entry.mode),
            FsEntryKind::Symlink => entry.blob = None,
        }
    }
    implied.into_iter().map(|e| e.path.into()).collect()
}

struct Model(String);

impl LayerCapture for Model {
    fn kind(&self) -> LayerKind {
        LayerKind::Model
    }

    fn capture(&self, store: &PfStore) -> pf_core::Result<LayerDescriptor> {
        let diff = serde_json::json!({
            "diff": {"adapters": [], "kind": "lora"}, "layout": "model.diff.v1", "note": "nothing was trained",
        });
        Ok(LayerDescriptor::Model(ModelLayer {
            base: store.blobs().put(format!("base:{}", self.0).as_bytes())?,
            diff: store.blobs().put(&serde_json::to_vec(&diff)?)?,
        }))
    }
}

struct Cache(u64);

impl LayerCapture for Cache {
    fn kind(&self) -> LayerKind {
        LayerKind::Cache
    }

    fn capture(&self, store: &PfStore) -> pf_core::Result<LayerDescriptor> {
        let manifest = if self.0.is_multiple_of(4) {
            // What a snapshot without an engine holds.
            let empty = serde_json::json!({
                "dtype": "bf16", "head_dim": 0, "layout": "paged-batchinvariant-v1", "logical_seqs": [], "n_heads": 0,
                "n_layers": 0, "note": "no engine", "page_size_tokens": 16, "pages": [],
            });
            store.blobs().put(&serde_json::to_vec(&empty)?)?
        } else {
            let dtype = [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::Fp8E4m3][(self.0 % 7 % 4) as usize];
            let meta = CacheMeta { page_size_tokens: 16, n_layers: 2, n_heads: 2, head_dim: 16, dtype };
            let mut pager = SyntheticCachePager::new(meta);
            // A few seeds for all images, so that most pages are shared.
            pager.populate_synthetic(1 + (self.0 % 3) as u32, self.0 % 6)?;
            capture_cache(&mut pager, store.blobs())?
        };
        Ok(LayerDescriptor::Cache(CacheLayer { layout: pf_cache::LAYOUT_V1.into(), manifest }))
    }
}

struct Effects {
    session: u64,
    secret: Vec<u8>,
}

impl LayerCapture for Effects {
    fn kind(&self) -> LayerKind {
        LayerKind::Effects
    }

    fn capture(&self, store: &PfStore) -> pf_core::Result<LayerDescriptor> {
        let ledger = store.blobs().put(&ledger(self.session, &self.secret, (self.session % 4) as usize)?)?;
        Ok(LayerDescriptor::Effects(EffectsLayer { ledger }))
    }
}

/// A ledger chained by the real code, with the secret in its header as the command line writes it.
pub fn ledger(seed: u64, secret: &[u8], entries: usize) -> pf_core::Result<Vec<u8>> {
    let mut ledger = Ledger::new(SessionSecret::new(secret));
    let start = chrono::DateTime::from_timestamp(1_790_000_000, 123_456_789).expect("a time");
    let classes = [
        SideEffectClass::Pure,
        SideEffectClass::Idempotent,
        SideEffectClass::Irreversible,
        SideEffectClass::NetworkOnly,
    ];
    for n in 0..entries {
        let hash = |what: &str| Digest256::of(format!("{what} {seed} {n}").as_bytes());
        let (args, result) = (hash("args"), hash("result"));
        ledger.append(start, format!("tool_{n}"), args, format!("key-{seed}-{n}"), result, classes[n % 4])?;
    }
    let header = serde_json::json!({
        "entries": entries, "kind": "effects.ledger.v1", "session_secret_hex": hex(secret),
        "verification_mode": "tamper-detection",
    });
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    for entry in ledger.entries() {
        bytes.extend(serde_json::to_vec(entry)?);
        bytes.push(b'\n');
    }
    Ok(bytes)
}

struct Trace(u64);

impl LayerCapture for Trace {
    fn kind(&self) -> LayerKind {
        LayerKind::Trace
    }

    fn capture(&self, store: &PfStore) -> pf_core::Result<LayerDescriptor> {
        let mut bytes = Vec::new();
        for n in 0..self.0 % 8 {
            let role = if n % 2 == 0 { "user" } else { "assistant" };
            bytes.extend(serde_json::to_vec(
                &serde_json::json!({"content": format!("message {n} 🦀"), "role": role}),
            )?);
            bytes.push(b'\n');
        }
        Ok(LayerDescriptor::Trace(TraceLayer { messages: store.blobs().put(&bytes)? }))
    }
}

/// Every raw layer file of an image under the mount, with the digest it must have.
pub fn raw_layers(store: &PfStore, manifest: &Manifest) -> Vec<(PathBuf, Digest256)> {
    let mut files: Vec<(PathBuf, Digest256)> = [
        ("model/base", &manifest.model.base),
        ("model/diff.json", &manifest.model.diff),
        ("cache/manifest.json", &manifest.cache.manifest),
        ("world/env.json", &manifest.world.env),
        ("world/procs.json", &manifest.world.procs),
        ("effects/ledger.jsonl", &manifest.effects.ledger),
        ("trace/messages.jsonl", &manifest.trace.messages),
    ]
    .map(|(path, digest)| (path.into(), digest.clone()))
    .into();
    let pages = store.blobs().get(&manifest.cache.manifest).expect("the page manifest");
    let pages: serde_json::Value = serde_json::from_slice(&pages).expect("JSON");
    for page in pages["pages"].as_array().expect("pages") {
        for side in ["k", "v"] {
            let path = format!("cache/pages/{:08}.{side}", page["ix"].as_u64().expect("an index"));
            let digest = Digest256::parse(page[side].as_str().expect("a digest")).expect("a digest");
            files.push((path.into(), digest));
        }
    }
    files
}

/// A store of many generated images.
pub struct RealStore {
    pub store: PfStore,
    pub images: Vec<Image>,
}

impl RealStore {
    /// Fills `root` with `count` images, on as many threads as there are cores. Every third one has a parent, every
    /// tenth two.
    pub fn generate(root: &Path, first_seed: u64, count: u64) -> Self {
        let store = PfStore::open(root).expect("a new store");
        let next = std::sync::atomic::AtomicU64::new(0);
        let images = std::sync::Mutex::new(Vec::<Image>::new());
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if n >= count {
                            return;
                        }
                        let wanted = if n % 10 == 9 { 2 } else { usize::from(n % 3 == 1) };
                        let parents: Vec<String> = {
                            let images = images.lock().expect("no panic before");
                            images.iter().rev().take(wanted).map(|i| i.id.clone()).collect()
                        };
                        let parents = parents
                            .iter()
                            .map(|id| Digest256::parse(&format!("sha256:{id}")).expect("an id"));
                        let image = snapshot(&store, first_seed + n, parents.collect());
                        images.lock().expect("no panic before").push(image);
                    }
                });
            }
        });
        let images = images.into_inner().expect("no panic before");
        Self { store, images }
    }

    /// The image that was taken last.
    pub fn latest(&self) -> &Image {
        self.images.iter().max_by_key(|i| i.manifest.created_at).expect("an image")
    }
}
