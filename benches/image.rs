//! Stores and images that only the library writes.

use std::fs;
use std::path::Path;

use chrono::{DateTime, Duration, Utc};
use pfimg::layers::cache::LAYOUT;
use pfimg::layers::world::{Entry, FsTree, Kind};
use pfimg::ops::fixture::{self, FixtureLayers, FixtureSpec};
use pfimg::store::Store;
use pfimg::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, Manifest, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};

use crate::result::Result;
use crate::scratch::Scratch;
use crate::source::Random;

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

/// Makes a store of `images` images that share their layers.
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

/// Files in each folder of the trees that [`write_tree`] makes.
pub(crate) const IN_A_FOLDER: usize = 100;

/// Makes a store with one image of `files` files, which share a few contents; in folders of a hundred, or in
/// one.
pub(crate) fn write_tree(path: &Path, files: usize, in_one: bool, scratch: &Scratch) -> Result<()> {
    let store = Store::create(path)?;
    let blobs = (0..50)
        .map(|n| {
            let content = format!("content {n}\n").repeat(n + 1);
            Ok((store.blobs().put(content.as_bytes())?, content.len() as u64))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut tree = FsTree::default();
    let mut random = Random::new(5);
    for n in 0..files {
        if n.is_multiple_of(if in_one { usize::MAX } else { IN_A_FOLDER }) {
            scratch.go_on()?;
            tree.entries.push(Entry::new(format!("d{:05}", n / IN_A_FOLDER), Kind::Dir, 0o755));
        }
        let folder = if in_one { 0 } else { n / IN_A_FOLDER };
        let mut entry = Entry::new(format!("d{folder:05}/f{n:07}"), Kind::File, 0o644);
        // All times differ, as in real trees: a tree that compresses more than 64 times would be taken for a bomb.
        entry.mtime_ns = Some((random.next() >> 3) as i64);
        let (blob, size) = blobs[n % blobs.len()];
        (entry.blob, entry.size) = (Some(blob), size);
        tree.entries.push(entry);
    }
    let mut layers = small_layers(&store)?;
    layers.world_fs = store.blobs().put(&tree.to_bytes()?)?;
    store.put_manifest(&manifest(&layers, start()))?;
    Ok(())
}
