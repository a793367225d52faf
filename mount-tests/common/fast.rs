//! A store written file by file in the documented format: quick, large if need be, and as wrong as a test wants it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::Digest as _;

use super::digests::{bare, hex, hex_digest};
use super::machine::temp_dir;
use super::real;
use super::rng::Rng;

/// A store in a temporary folder.
pub struct FastStore {
    root: PathBuf,
    compressor: zstd::bulk::Compressor<'static>,
    _dir: tempfile::TempDir,
}

/// The layers of an image, as digests that a manifest names. The default is a small but complete image.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// The digest of the tree; an empty tree if there is none.
    pub fs: Option<String>,
    pub cache: Option<String>,
    pub ledger: Option<String>,
    pub base: Option<String>,
    pub trace: Option<String>,
    pub agent: Option<String>,
    pub fingerprint: String,
    pub created_at: Option<String>,
    pub parents: Vec<String>,
    pub schema: Option<u32>,
}

impl FastStore {
    pub fn new() -> Self {
        let (dir, root) = temp_dir();
        let root = root.join("store");
        std::fs::create_dir_all(root.join("images")).expect("a folder");
        for shard in 0..=255u8 {
            std::fs::create_dir_all(root.join(format!("blobs/sha256/{shard:02x}"))).expect("a folder");
        }
        let mut compressor = zstd::bulk::Compressor::new(1).expect("a compressor");
        // As pf writes them: the frame does not say how long the content is.
        compressor.include_contentsize(false).expect("to leave the size out");
        Self { root, compressor, _dir: dir }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = bare(digest);
        self.root.join("blobs/sha256").join(&hex[..2]).join(format!("{hex}.zst"))
    }

    pub fn marker_path(&self, id: &str) -> PathBuf {
        self.root.join("images").join(format!("{}.json", bare(id)))
    }

    /// Stores a blob and returns its digest with the `sha256:` in front.
    pub fn blob(&mut self, bytes: &[u8]) -> String {
        let digest = format!("sha256:{}", hex_digest(bytes));
        let packed = self.compressor.compress(bytes).expect("to compress");
        std::fs::write(self.blob_path(&digest), packed).expect("to write a blob");
        digest
    }

    pub fn blob_json(&mut self, value: &Value) -> String {
        self.blob(&serde_json::to_vec(value).expect("JSON"))
    }

    /// Stores a blob of `pieces` pieces that `piece` makes one after the other, without ever holding it whole.
    pub fn large_blob(&mut self, pieces: u64, mut piece: impl FnMut(u64) -> Vec<u8>) -> String {
        let temp = self.root.join("large");
        let mut encoder =
            zstd::stream::Encoder::new(File::create(&temp).expect("a file"), 1).expect("an encoder");
        let mut hasher = sha2::Sha256::new();
        for n in 0..pieces {
            let bytes = piece(n);
            hasher.update(&bytes);
            encoder.write_all(&bytes).expect("to compress");
        }
        encoder.finish().expect("to compress");
        let digest = format!("sha256:{}", hex(&hasher.finalize()));
        std::fs::rename(&temp, self.blob_path(&digest)).expect("to rename");
        digest
    }

    /// Stores a tree of these entries, sorted by path as the format wants them.
    pub fn tree(&mut self, entries: &[Value]) -> String {
        let mut entries = entries.to_vec();
        entries.sort_by(|a, b| Path::new(path_of(a)).cmp(Path::new(path_of(b))));
        self.tree_as_is(&entries)
    }

    /// Stores a tree of these entries in the order given.
    pub fn tree_as_is(&mut self, entries: &[Value]) -> String {
        self.blob_json(&json!({"kind": "fs.tree.v1", "entries": entries}))
    }

    /// Stores `content` and gives the tree entry of a file that holds it.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Value {
        let digest = self.blob(content);
        file_entry(path, &digest, content.len() as u64)
    }

    /// Stores the manifest and the marker of an image and returns its id's 64 hex digits.
    pub fn image(&mut self, spec: &Spec) -> String {
        let manifest = self.manifest(spec);
        self.image_of(&serde_json::to_vec(&manifest).expect("JSON"))
    }

    /// Stores the exact bytes of a manifest, with their marker.
    pub fn image_of(&mut self, manifest: &[u8]) -> String {
        let digest = self.blob(manifest);
        std::fs::write(self.marker_path(&digest), manifest).expect("to write a marker");
        bare(&digest).to_owned()
    }

    /// The manifest of `spec`, with every layer that it does not name stored as a generic one.
    pub fn manifest(&mut self, spec: &Spec) -> Value {
        let agent = spec.agent.clone().unwrap_or_else(|| "test".into());
        let fs = spec.fs.clone().unwrap_or_else(|| self.tree(&[]));
        let cache = spec.cache.clone().unwrap_or_else(|| {
            self.blob_json(&json!({
                "dtype": "bf16", "head_dim": 0, "layout": "paged-batchinvariant-v1", "logical_seqs": [], "n_heads": 0,
                "n_layers": 0, "note": "no engine", "page_size_tokens": 16, "pages": [],
            }))
        });
        let ledger = spec.ledger.clone().unwrap_or_else(|| self.ledger(1, 2));
        let base = spec.base.clone().unwrap_or_else(|| self.blob(b"base:test"));
        let trace =
            spec.trace.clone().unwrap_or_else(|| self.blob(b"{\"content\":\"hello\",\"role\":\"user\"}\n"));
        let diff = self.blob_json(&json!({
            "diff": {"adapters": [], "kind": "lora"}, "layout": "model.diff.v1", "note": "nothing was trained",
        }));
        let env = self.blob_json(&json!({"kind": "env.v1", "cwd": "/work", "vars": {"LANG": "C"}}));
        let procs = self.blob_json(
            &json!({"kind": "procs.unsupported.v1", "unsupported_on": "linux", "note": "no criu"}),
        );
        json!({
            "schema_version": spec.schema.unwrap_or(1),
            "media_type": "application/vnd.processfork.image.v1+json",
            "agent": {"kind": agent, "version": "1", "fingerprint": spec.fingerprint},
            "model": {"base": base, "diff": diff},
            "cache": {"layout": "paged-batchinvariant-v1", "manifest": cache},
            "world": {"fs": fs, "env": env, "procs": procs},
            "effects": {"ledger": ledger},
            "trace": {"messages": trace},
            "created_at": spec.created_at.clone().unwrap_or_else(|| "2026-11-20T09:20:56.312327059Z".into()),
            "parents": spec.parents,
        })
    }

    /// Stores a well-formed ledger with its secret embedded.
    pub fn ledger(&mut self, seed: u64, entries: usize) -> String {
        let bytes = real::ledger(seed, &secret(seed), entries).expect("a ledger");
        self.blob(&bytes)
    }

    /// Stores `count` K and V pages and the page manifest that lists them.
    pub fn pages(&mut self, seed: u64, count: u32) -> String {
        let meta = json!({
            "layout": "paged-batchinvariant-v1", "page_size_tokens": 16, "n_layers": 2, "n_heads": 2, "head_dim": 16,
            "dtype": "bf16", "logical_seqs": [{"id": "seq-A", "page_ixs": [0], "fill_in_last_page": 7}],
        });
        let mut rng = Rng::new(seed);
        let pages: Vec<Value> = (0..count)
            .map(|ix| {
                let (k, v) = (self.blob(&rng.bytes(2048)), self.blob(&rng.bytes(2048)));
                json!({"ix": ix, "k": k, "v": v})
            })
            .collect();
        let mut manifest = meta;
        manifest["pages"] = pages.into();
        self.blob_json(&manifest)
    }

    /// The bytes of a blob, decoded and checked with the reference implementation.
    pub fn read_blob(&self, digest: &str) -> Option<Vec<u8>> {
        let bytes = zstd::decode_all(File::open(self.blob_path(digest)).ok()?).ok()?;
        (hex_digest(&bytes) == bare(digest)).then_some(bytes)
    }
}

/// The secret that [`FastStore::ledger`] chains with.
pub fn secret(seed: u64) -> Vec<u8> {
    Rng::new(seed).bytes(32)
}

pub fn file_entry(path: &str, digest: &str, size: u64) -> Value {
    json!({"path": path, "mode": "0644", "size": size, "kind": "file", "blob": digest})
}

pub fn dir_entry(path: &str) -> Value {
    json!({"path": path, "mode": "0755", "size": 0, "kind": "dir"})
}

pub fn link_entry(path: &str, target: &str) -> Value {
    json!({"path": path, "mode": "0777", "size": target.len(), "kind": "symlink", "link_target": target})
}

fn path_of(entry: &Value) -> &str {
    entry["path"].as_str().unwrap_or_default()
}

/// Every file of a small image under the mount with its bytes, worked out without the product.
pub fn expected_files(store: &FastStore, id: &str) -> BTreeMap<String, Vec<u8>> {
    let marker = std::fs::read(store.marker_path(id)).expect("the marker");
    let manifest: Value = serde_json::from_slice(&marker).expect("JSON");
    let bytes = |digest: &Value| store.read_blob(digest.as_str().expect("a digest")).expect("a sound blob");
    let mut files = BTreeMap::from([("manifest.json".to_owned(), marker.clone())]);
    for (path, pointer) in [
        ("model/base", "/model/base"),
        ("model/diff.json", "/model/diff"),
        ("cache/manifest.json", "/cache/manifest"),
        ("world/env.json", "/world/env"),
        ("world/procs.json", "/world/procs"),
        ("effects/ledger.jsonl", "/effects/ledger"),
        ("trace/messages.jsonl", "/trace/messages"),
    ] {
        files.insert(path.to_owned(), bytes(manifest.pointer(pointer).expect("a layer")));
    }
    let pages: Value = serde_json::from_slice(&files["cache/manifest.json"]).expect("JSON");
    for page in pages["pages"].as_array().expect("pages") {
        for side in ["k", "v"] {
            let path = format!("cache/pages/{:08}.{side}", page["ix"].as_u64().expect("an index"));
            files.insert(path, bytes(&page[side]));
        }
    }
    let tree: Value = serde_json::from_slice(&bytes(&manifest["world"]["fs"])).expect("JSON");
    for entry in tree["entries"].as_array().expect("entries").iter().filter(|e| e["kind"] == "file") {
        files.insert(format!("world/fs/{}", path_of(entry)), bytes(&entry["blob"]));
    }
    files
}
