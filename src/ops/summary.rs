//! A summary of an image: the content of each layer, and which layers are damaged.
//!
//! Reads the blob of every layer, but no file of the world and no page of the cache.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::digest::Digest;
use crate::layers::cache::PageManifest;
use crate::layers::effects::{Chain, Effects, Secret};
use crate::layers::env::Env;
use crate::layers::model::{Base, ModelDiff};
use crate::layers::procs::{Known, Procs};
use crate::layers::trace::{Record, Trace};
use crate::layers::world::Kind;
use crate::store::{LayerFile, Manifest, Size, Store};
use crate::tree::Tree;

/// A base of at most this many bytes is read as text; a larger one is weights.
const SMALL_BASE: usize = 4 << 10;

/// The content of one layer file, or why it is unknown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part<T> {
    /// Its blob.
    pub digest: Digest,
    /// Length of the blob in bytes, if it could be read.
    pub bytes: Option<u64>,
    /// Its content, if it could be read.
    #[serde(flatten)]
    pub content: Option<T>,
    /// Its fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// `model/base`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum BaseBrief {
    /// No model, only the name of an agent.
    Agent {
        /// The name.
        agent: String,
    },
    /// A short text, for instance a fingerprint.
    Text {
        /// The text.
        text: String,
    },
    /// Anything else.
    Opaque,
}

/// `model/diff.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiffBrief {
    /// `lora`, `ia3`, `full`, `in-place-ttt`, or another.
    pub kind: String,
    /// A note for people.
    pub note: Option<String>,
}

/// `cache/`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheBrief {
    /// Pages, each with keys and values.
    pub pages: u64,
    /// Bytes of the keys (or values) of a page, if the manifest has them.
    pub page_bytes: Option<u64>,
    /// Bytes of all pages, if the manifest has them.
    pub total_bytes: Option<u64>,
    /// Tokens in a page.
    pub page_size_tokens: Option<u32>,
    /// Layers of the model.
    pub n_layers: Option<u32>,
    /// Attention heads.
    pub n_heads: Option<u32>,
    /// Elements of a head.
    pub head_dim: Option<u32>,
    /// Type of an element.
    pub dtype: Option<String>,
    /// Sequences that use the pages.
    pub sequences: Option<u64>,
    /// A note for people.
    pub note: Option<String>,
}

/// `world/fs`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TreeBrief {
    /// Regular files.
    pub files: u64,
    /// Folders, the root not counted.
    pub folders: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Fifos, sockets and devices.
    pub specials: u64,
    /// Bytes of all files.
    pub content_bytes: u64,
}

/// `world/env.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvBrief {
    /// Working directory.
    pub cwd: Option<String>,
    /// The number of variables.
    pub vars: u64,
}

/// `world/procs.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcsBrief {
    /// `unsupported`, `criu`, `respawn`, or the name in the blob.
    pub kind: String,
    /// Command line, number of processes, or why there are no processes.
    pub detail: String,
}

/// `effects/ledger.jsonl`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EffectsBrief {
    /// `empty`, `ledger` or `merged`.
    pub kind: &'static str,
    /// The number of effects.
    pub entries: u64,
    /// The number of each class.
    pub classes: BTreeMap<String, u64>,
    /// `verified`, `unverifiable`, `unchained`, `broken` or `count-mismatch`; nothing without a chain.
    pub chain: Option<&'static str>,
}

/// `trace/messages.jsonl`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TraceBrief {
    /// Messages.
    pub messages: u64,
    /// Session events.
    pub events: u64,
    /// Other records.
    pub other: u64,
    /// The first message as `role: content`.
    pub first: Option<String>,
}

/// Every layer of an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "named after the layer files")]
pub struct Brief {
    pub model_base: Part<BaseBrief>,
    pub model_diff: Part<DiffBrief>,
    pub cache: Part<CacheBrief>,
    pub world_fs: Part<TreeBrief>,
    pub world_env: Part<EnvBrief>,
    pub world_procs: Part<ProcsBrief>,
    pub effects: Part<EffectsBrief>,
    pub trace: Part<TraceBrief>,
}

impl Brief {
    /// Reads the layers of an image. A layer that cannot be read is in the result with its fault.
    pub fn of(store: &Store, manifest: &Manifest, secret: Option<&Secret>) -> Self {
        Self {
            model_base: base(store, manifest.model.base),
            model_diff: part(store, manifest.model.diff, |bytes| {
                ModelDiff::parse(bytes)
                    .map(|diff| whole(DiffBrief { kind: diff.kind().to_owned(), note: diff.note.clone() }))
            }),
            cache: part(store, manifest.cache.manifest, |bytes| {
                PageManifest::parse(bytes).map(|pages| whole(cache(&pages)))
            }),
            world_fs: part(store, manifest.world.fs, |bytes| Tree::parse(bytes).map(|t| whole(tree(&t)))),
            world_env: part(store, manifest.world.env, |bytes| {
                Env::parse(bytes).map(|env| {
                    let vars = match &env {
                        Env::V1(env) => env.vars.len(),
                        Env::Bare(object) => object.len(),
                    };
                    whole(EnvBrief { cwd: env.cwd().map(str::to_owned), vars: vars as u64 })
                })
            }),
            world_procs: part(store, manifest.world.procs, |bytes| {
                Procs::parse(bytes).map(|p| whole(procs(&p)))
            }),
            effects: part(store, manifest.effects.ledger, |bytes| {
                Effects::parse(bytes).map(|parsed| effects(&parsed, secret))
            }),
            trace: part(store, manifest.trace.messages, |bytes| Trace::parse(bytes).map(|t| trace(&t))),
        }
    }

    /// The damaged layer files, each with its fault.
    pub fn damage(&self) -> Vec<(LayerFile, &str)> {
        let all = [
            (LayerFile::ModelBase, &self.model_base.damage),
            (LayerFile::ModelDiff, &self.model_diff.damage),
            (LayerFile::CacheManifest, &self.cache.damage),
            (LayerFile::WorldFs, &self.world_fs.damage),
            (LayerFile::WorldEnv, &self.world_env.damage),
            (LayerFile::WorldProcs, &self.world_procs.damage),
            (LayerFile::EffectsLedger, &self.effects.damage),
            (LayerFile::TraceMessages, &self.trace.damage),
        ];
        all.into_iter().filter_map(|(file, damage)| Some((file, damage.as_deref()?))).collect()
    }
}

/// The content of a layer, and a fault that does not prevent reading it.
type Parsed<T> = (T, Option<String>);

fn whole<T>(content: T) -> Parsed<T> {
    (content, None)
}

fn part<T, E: fmt::Display>(
    store: &Store,
    digest: Digest,
    parse: impl FnOnce(&[u8]) -> Result<Parsed<T>, E>,
) -> Part<T> {
    match store.blobs().read_metadata(&digest) {
        Ok(bytes) => {
            let length = Some(bytes.len() as u64);
            match parse(&bytes) {
                Ok((content, damage)) => Part { digest, bytes: length, content: Some(content), damage },
                Err(error) => Part { digest, bytes: length, content: None, damage: Some(error.to_string()) },
            }
        }
        Err(error) => Part { digest, bytes: None, content: None, damage: Some(error.to_string()) },
    }
}

/// Keeps the start of the bytes that pass through.
struct Start(Vec<u8>);

impl Write for Start {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // One byte more than needed, to detect that there is more.
        let room = (SMALL_BASE + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&data[..room.min(data.len())]);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A base may be gigabytes of weights: it is hashed to the end, and its start is kept.
fn base(store: &Store, digest: Digest) -> Part<BaseBrief> {
    let mut start = Start(Vec::new());
    match store.blobs().stream(&digest, Size::AtMost(u64::MAX), &mut start) {
        Ok(length) => {
            let content = match Base::parse(&start.0) {
                _ if start.0.len() > SMALL_BASE => BaseBrief::Opaque,
                Ok(Base::Agent(agent)) => BaseBrief::Agent { agent },
                _ => match String::from_utf8(start.0) {
                    Ok(text) if !text.contains(char::is_control) => BaseBrief::Text { text },
                    _ => BaseBrief::Opaque,
                },
            };
            Part { digest, bytes: Some(length), content: Some(content), damage: None }
        }
        Err(error) => Part { digest, bytes: None, content: None, damage: Some(error.to_string()) },
    }
}

fn cache(manifest: &PageManifest) -> CacheBrief {
    let pages = manifest.pages.len() as u64;
    let page_bytes = manifest.page_bytes();
    let total_bytes = match pages {
        0 => Some(0),
        pages => page_bytes.and_then(|bytes| bytes.checked_mul(2)?.checked_mul(pages)),
    };
    CacheBrief {
        pages,
        page_bytes,
        total_bytes,
        page_size_tokens: manifest.page_size_tokens,
        n_layers: manifest.n_layers,
        n_heads: manifest.n_heads,
        head_dim: manifest.head_dim,
        dtype: manifest.dtype.as_ref().and_then(name),
        sequences: manifest.logical_seqs.as_ref().map(|seqs| seqs.len() as u64),
        note: manifest.extra.get("note").and_then(|note| note.as_str()).map(str::to_owned),
    }
}

/// The JSON text of a value.
fn name(value: &impl Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}

fn tree(tree: &Tree) -> TreeBrief {
    let mut brief = TreeBrief::default();
    for id in tree.nodes().skip(1) {
        match tree.kind(id) {
            Kind::File => {
                brief.files += 1;
                // A hostile tree may declare more than a number can hold.
                brief.content_bytes = brief.content_bytes.saturating_add(tree.size(id));
            }
            Kind::Dir => brief.folders += 1,
            Kind::Symlink => brief.symlinks += 1,
            Kind::Fifo | Kind::Socket | Kind::Chardev | Kind::Blockdev => brief.specials += 1,
        }
    }
    brief
}

fn procs(procs: &Procs) -> ProcsBrief {
    let (kind, detail) = match procs {
        Procs::Known(Known::Unsupported(why)) | Procs::Bare(why) => {
            ("unsupported", why.note.clone().unwrap_or_else(|| why.unsupported_on.clone()))
        }
        Procs::Known(Known::Criu(criu)) => ("criu", format!("processes {:?}", criu.pids)),
        Procs::Known(Known::Respawn(respawn)) => {
            let command = if respawn.argv.is_empty() { respawn.exe.clone() } else { respawn.argv.join(" ") };
            ("respawn", command)
        }
        Procs::Other(object) => {
            (object.get("kind").and_then(|kind| kind.as_str()).unwrap_or("unknown"), String::new())
        }
    };
    ProcsBrief { kind: kind.to_owned(), detail }
}

fn effects(effects: &Effects, secret: Option<&Secret>) -> Parsed<EffectsBrief> {
    let brief = |kind, entries, chain| EffectsBrief { kind, entries, classes: BTreeMap::new(), chain };
    match effects {
        Effects::Empty => whole(brief("empty", 0, None)),
        Effects::Merged(merged) => {
            let entries = merged.summary.a_entries.saturating_add(merged.summary.b_entries);
            whole(brief("merged", entries, None))
        }
        Effects::Ledger(ledger) => {
            let (verdict, damage) = match ledger.verify(secret) {
                Chain::Verified => ("verified", None),
                Chain::NoSecret => ("unverifiable", None),
                Chain::Unchained => ("unchained", None),
                Chain::Broken { line, reason } => {
                    ("broken", Some(format!("the ledger's chain is broken at line {line}: {reason}")))
                }
                Chain::CountMismatch { header, found } => (
                    "count-mismatch",
                    Some(format!("the ledger's header counts {header} entries, there are {found}")),
                ),
            };
            let mut brief = brief("ledger", ledger.entries.len() as u64, Some(verdict));
            for entry in &ledger.entries {
                let class = name(&entry.record().side_effect_class).unwrap_or_default();
                *brief.classes.entry(class).or_default() += 1;
            }
            (brief, damage)
        }
    }
}

fn trace(trace: &Trace) -> Parsed<TraceBrief> {
    let mut brief = TraceBrief::default();
    let mut damage = None;
    for line in trace.lines() {
        match &line.record {
            Ok(Record::Message(message)) => {
                brief.messages += 1;
                brief.first.get_or_insert_with(|| format!("{}: {}", message.role, message.content));
            }
            Ok(Record::Event(_)) => brief.events += 1,
            Ok(Record::Other(_)) => brief.other += 1,
            Err(error) => {
                damage.get_or_insert_with(|| error.to_string());
            }
        }
    }
    (brief, damage)
}
