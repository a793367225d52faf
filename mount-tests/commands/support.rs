//! Runs `pfimg`, and writes stores with the real pf-core.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use pf_core::digest::Digest256;
use pf_core::fixture::{
    FixtureCacheCapture, FixtureEffectsCapture, FixtureModelCapture, FixtureSpec, FixtureTraceCapture,
    FixtureWorldCapture,
};
use pf_core::manifest::{AgentInfo, Manifest};
use pf_core::snapshot::Snapshotter;
use pf_core::store::PfStore;
use serde_json::Value;

/// What a finished command left.
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// The result in the command's JSON; checks the envelope.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let whole: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.stdout));
        assert_eq!(whole["pfimg"], 1, "no envelope: {whole}");
        whole.get("result").unwrap_or_else(|| panic!("no result: {whole}")).clone()
    }
}

/// `pfimg`, seeing nothing of the caller's stores and settings.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfimg"));
    for name in ["PF_STORE", "PF_SESSION_SECRET", "XDG_CACHE_HOME", "XDG_STATE_HOME"] {
        command.env_remove(name);
    }
    command.args(args).env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A store that the real pf-core writes, in a temporary folder.
pub(crate) struct RealStore {
    pub(crate) pf: PfStore,
    dir: tempfile::TempDir,
}

impl RealStore {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pf = PfStore::open(dir.path()).unwrap();
        Self { pf, dir }
    }

    /// A separate store with the same files: the real code compresses thoroughly, and that takes its time.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        copy_folder(self.root(), copy.root());
        copy
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// `pfimg --store THIS ARGS…`
    pub(crate) fn pfimg(&self, args: &[&str]) -> Output {
        run(command(args).arg("--store").arg(self.root()))
    }

    /// Takes an image with the real snapshot code and the real fixture; its id's 64 hex digits.
    pub(crate) fn snapshot(&self, seed: u64, parents: &[&str]) -> String {
        self.snapshot_of(&small(seed), parents)
    }

    /// The same of any numbers.
    pub(crate) fn snapshot_of(&self, spec: &FixtureSpec, parents: &[&str]) -> String {
        let spec = spec.clone();
        let agent =
            AgentInfo { kind: "claude-code".into(), version: "1.0".into(), fingerprint: "test".into() };
        let snapshotter = Snapshotter::new(
            agent,
            Arc::new(FixtureModelCapture(spec.clone())),
            Arc::new(FixtureCacheCapture(spec.clone())),
            Arc::new(FixtureWorldCapture(spec.clone())),
            Arc::new(FixtureEffectsCapture(spec.clone())),
            Arc::new(FixtureTraceCapture(spec)),
        );
        let parents = parents.iter().map(|parent| digest(parent)).collect();
        snapshotter.snapshot(&self.pf, parents).unwrap().hex().to_owned()
    }

    pub(crate) fn manifest(&self, id: &str) -> Manifest {
        self.pf.get_manifest(&digest(id)).unwrap()
    }

    pub(crate) fn put(&self, bytes: &[u8]) -> Digest256 {
        self.pf.blobs().put(bytes).unwrap()
    }

    pub(crate) fn get(&self, digest: &Digest256) -> Vec<u8> {
        self.pf.blobs().get(digest).unwrap()
    }

    /// Takes the image `id`, changes its manifest, and stores that instead.
    pub(crate) fn change(&self, id: &str, change: impl FnOnce(&mut Manifest)) -> String {
        let mut manifest = self.manifest(id);
        change(&mut manifest);
        let new = self.pf.put_manifest(&manifest).unwrap();
        if new.hex() != id {
            std::fs::remove_file(self.marker(id)).unwrap();
        }
        new.hex().to_owned()
    }

    /// Stores any bytes as a manifest, as blob and as marker.
    pub(crate) fn image_of(&self, bytes: &[u8]) -> String {
        let id = self.put(bytes);
        std::fs::write(self.marker(id.hex()), bytes).unwrap();
        id.hex().to_owned()
    }

    pub(crate) fn marker(&self, id: &str) -> PathBuf {
        self.root().join(format!("images/{id}.json"))
    }

    pub(crate) fn blob(&self, digest: &Digest256) -> PathBuf {
        let hex = digest.hex();
        self.root().join(format!("blobs/sha256/{}/{hex}.zst", &hex[..2]))
    }

    /// Lets a blob's file decode to other bytes.
    pub(crate) fn overwrite(&self, digest: &Digest256, payload: &[u8]) {
        std::fs::write(self.blob(digest), zstd::bulk::compress(payload, 1).unwrap()).unwrap();
    }

    pub(crate) fn tag(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.root().join("refs/tags")).unwrap();
        std::fs::write(self.root().join("refs/tags").join(name), text).unwrap();
    }

    /// The digest of the file at that place in an image's tree.
    pub(crate) fn file(&self, id: &str, index: usize) -> Digest256 {
        let tree: Value = serde_json::from_slice(&self.get(&self.manifest(id).world.fs)).unwrap();
        Digest256::parse(tree["entries"][index]["blob"].as_str().unwrap()).unwrap()
    }

    /// The payload sizes of all blobs by name, worked out without the product.
    pub(crate) fn payloads(&self) -> BTreeMap<String, u64> {
        let shards = std::fs::read_dir(self.root().join("blobs/sha256")).unwrap();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
        files
            .map(|file| {
                let file = file.unwrap();
                let payload = zstd::decode_all(std::fs::File::open(file.path()).unwrap()).unwrap();
                (file.file_name().into_string().unwrap(), payload.len() as u64)
            })
            .collect()
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A fixture of a few kilobytes. Seeds that differ in their last digits only share files.
pub(crate) fn small(seed: u64) -> FixtureSpec {
    FixtureSpec {
        cache_pages: 2,
        page_bytes: 64,
        world_files: 3,
        world_file_bytes: 100,
        model_diff_bytes: 64,
        effects_entries: 6,
        trace_messages: 3,
        seed,
    }
}

pub(crate) fn digest(id: &str) -> Digest256 {
    Digest256::parse(&format!("sha256:{id}")).unwrap()
}

/// A ledger with three entries, chained by the real code. Without a secret in its header unless `embedded`.
pub(crate) fn ledger(secret: &[u8], embedded: bool) -> String {
    let mut ledger = pf_effects::Ledger::new(pf_effects::SessionSecret::new(secret));
    for number in 0..3_u8 {
        let at = chrono::DateTime::from_timestamp(1_790_000_000 + i64::from(number), 0).unwrap();
        let (args, result) = (Digest256::of(&[number]), Digest256::of(&[number, 1]));
        let class = pf_effects::SideEffectClass::Pure;
        ledger.append(at, format!("tool_{number}"), args, format!("key-{number}"), result, class).unwrap();
    }
    let blobs = pf_core::cas::MemBlobStore::new();
    let digest = ledger.serialize(&blobs).unwrap();
    let text = String::from_utf8(pf_core::cas::BlobStore::get(&blobs, &digest).unwrap()).unwrap();
    if !embedded {
        return text;
    }
    let (_, entries) = text.split_once('\n').unwrap();
    let hex = data_encoding::HEXLOWER.encode(secret);
    format!("{{\"entries\":3,\"kind\":\"effects.ledger.v1\",\"session_secret_hex\":\"{hex}\"}}\n{entries}")
}
