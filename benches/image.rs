//! Stores and images, written by the library alone.

use std::fs;
use std::path::Path;

use chrono::{DateTime, Duration, Utc};
use pfimg::fixture::{self, FixtureLayers, FixtureSpec};
use pfimg::layers::cache::LAYOUT;
use pfimg::layers::world::{Entry, FsTree, Kind as EntryKind, Root};
use pfimg::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, Manifest, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use pfimg::store::{Digest, Store};

use crate::Result;
use crate::scratch::Scratch;
use crate::source::{Kind, SourceTree};

fn manifest(layers: &FixtureLayers, created_at: DateTime<Utc>) -> Manifest {
    Manifest {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent: Agent { kind: "bench".into(), version: "1".into(), fingerprint: "bench".into() },
        model: ModelRefs { base: layers.model_base, diff: layers.model_diff },
        cache: CacheRefs { layout: LAYOUT.into(), manifest: layers.cache_manifest },
        world: WorldRefs { fs: layers.world_fs, env: layers.world_env, procs: layers.world_procs },
        effects: EffectsRefs { ledger: layers.effects_ledger },
        trace: TraceRefs { messages: layers.trace_messages },
        created_at,
        parents: Vec::new(),
    }
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(1_770_000_000_000_000_000)
}

fn small_layers(store: &Store) -> Result<FixtureLayers> {
    Ok(fixture::build(&FixtureSpec::default(), &mut |bytes| store.blobs().put(bytes))?)
}

/// Stores a tree as an image. Blobs that are there already are not written again.
pub(crate) fn write(store: &Store, source: &SourceTree, scratch: &Scratch) -> Result<Digest> {
    let mut tree = FsTree::default();
    tree.header.root = Some(Root { mode: Some("0755".into()), ..Root::default() });
    let mut content = Vec::new();
    for item in &source.items {
        scratch.go_on()?;
        let kind = match item.kind {
            Kind::Folder => EntryKind::Dir,
            Kind::File { .. } => EntryKind::File,
            Kind::Link { .. } => EntryKind::Symlink,
        };
        let mut entry = Entry::new(item.path.clone(), kind, item.mode());
        entry.mtime_ns = Some(item.mtime_ns);
        match &item.kind {
            Kind::Folder => {}
            Kind::Link { target } => {
                entry.size = target.len() as u64;
                entry.link_target = Some(target.clone().into());
            }
            Kind::File { seed, bytes, .. } => {
                source.content(*seed, *bytes, &mut content);
                entry.size = content.len() as u64;
                entry.blob = Some(store.blobs().put(&content)?);
            }
        }
        tree.entries.push(entry);
    }
    tree.entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut layers = small_layers(store)?;
    layers.world_fs = store.blobs().put(&tree.to_bytes()?)?;
    Ok(store.put_manifest(&manifest(&layers, start()))?)
}

/// Makes a store of so many images that share their layers.
pub(crate) fn write_many(path: &Path, images: usize, scratch: &Scratch) -> Result<()> {
    let store = Store::create(path)?;
    let layers = small_layers(&store)?;
    for number in 0..images {
        scratch.go_on()?;
        let manifest = manifest(&layers, start() + Duration::seconds(number as i64));
        let bytes = manifest.to_bytes()?;
        // Without the syncs of `put_manifest`, which would take minutes.
        let id = store.blobs().put(&bytes)?;
        fs::write(store.images().marker(&id), bytes)?;
    }
    Ok(())
}
