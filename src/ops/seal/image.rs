//! Stores the content, the tree and the layers of a new image, and makes its manifest.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::Utc;

use super::content::{self, Job};
use super::entries::tree_changes;
use super::layers::layers;
use super::sealing::{Sealing, Stored};
use super::text::Text;
use super::tree::{Merged, merge};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BlobRef, Ino};
use crate::layers::FormatError;
use crate::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use crate::store::{LayerFile, Manifest};

/// The agent of a fork that began empty.
const AGENT: &str = "pfimg";

/// Stores everything and makes the manifest.
pub(super) fn image(sealing: &mut Sealing<'_>, name: &str) -> Result<(Manifest, Stored)> {
    let stored = contents(sealing)?;
    let tree = tree(sealing, &stored)?;
    let none = Digest::of(b"");
    let agent = match &sealing.parent {
        Some(parent) => parent.manifest.agent.clone(),
        None => Agent {
            kind: AGENT.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            fingerprint: String::new(),
        },
    };
    let mut manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent: Agent { fingerprint: name.to_owned(), ..agent },
        model: ModelRefs { base: none, diff: none },
        cache: CacheRefs { layout: String::new(), manifest: none },
        world: WorldRefs { fs: tree, env: none, procs: none },
        effects: EffectsRefs { ledger: none },
        trace: TraceRefs { messages: none },
        created_at: Utc::now(),
        parents: sealing.parent.iter().map(|parent| parent.id).collect(),
    };
    layers(sealing, &stored, tree, &mut manifest)?;
    Ok((manifest, stored))
}

/// Stores the contents of changed files, except the ledger: its sealed form differs from the written one.
fn contents(sealing: &Sealing<'_>) -> Result<Stored> {
    let mut stored = Stored::new();
    // The first name of a file represents all of its names.
    let mut first: HashMap<Ino, &[u8]> = HashMap::new();
    let mut jobs = Vec::new();
    for (path, put) in &sealing.changes.put {
        let Some(content) = put.inode.content() else { continue };
        if path == LayerFile::EffectsLedger.path().as_bytes() || path == b"manifest.json" {
            continue;
        }
        if let Some(blob) = content.whole_blob() {
            sealing.batch.require(blob.digest);
            stored.insert(path.clone(), blob);
        } else if *first.entry(put.ino).or_insert(path) == path.as_slice() {
            jobs.push(Job { path, content });
        }
    }
    let blobs = content::store(sealing.batch, sealing.frozen, &jobs, sealing.ended)?;
    for (job, blob) in jobs.iter().zip(blobs) {
        stored.insert(job.path.to_vec(), blob);
    }
    for (path, put) in &sealing.changes.put {
        if let Some(blob) = first.get(&put.ino).and_then(|first| stored.get(*first)).copied() {
            stored.entry(path.clone()).or_insert(blob);
        }
    }
    if let Some((_, put)) = sealing.changes.put.get_key_value(&b"manifest.json"[..])
        && let Some(content) = put.inode.content()
    {
        // Sealed by its meaning, not as a layer.
        let mut bytes = Vec::new();
        content::read_all(sealing.frozen, content, &mut bytes).map_err(|e| e.context("manifest.json"))?;
        let blob = BlobRef { digest: sealing.batch.put(&bytes)?, size: content.size };
        stored.insert(b"manifest.json".to_vec(), blob);
    }
    Ok(stored)
}

/// Stores the tree.
fn tree(sealing: &mut Sealing<'_>, stored: &Stored) -> Result<Digest> {
    let changes = tree_changes(sealing, stored)?;
    if let Some(parent) = &sealing.parent
        && sealing.frozen.image().is_some()
        && changes.is_empty()
    {
        return Ok(parent.manifest.world.fs);
    }
    let damaged = |e: FormatError| Error::new(ErrorKind::Damaged, format!("the base's {e}"));
    // A copied fork has all of its tree itself.
    let parent = sealing.parent.as_ref().filter(|_| sealing.frozen.image().is_some());
    let base = parent.map(|parent| &parent.manifest.world.fs);
    let old = match base {
        Some(base) => {
            let read = || {
                let text = Text::parse(sealing.store.blobs().read_metadata(base)?);
                Ok(text.map(|text| Text { packed: sealing.batch.packed_of(base, &text.bytes), ..text }))
            };
            sealing.texts.get(base, read)?.map_err(damaged)?
        }
        None => Arc::new(Text::nothing()),
    };
    let Merged { draft, mut text, placed } = merge(&old, changes).map_err(damaged)?;
    let edited = sealing.batch.put_edited(&draft, base.map(|base| (base, old.packed.as_ref())))?;
    // A tree that cannot be read back would lose the fork that has it as base.
    sealing.store.blobs().check_metadata(&edited.digest, edited.bytes.len())?;
    (text.bytes, text.packed) = (edited.bytes, edited.packed);
    sealing.placed = placed;
    sealing.texts.keep(edited.digest, text, base);
    Ok(edited.digest)
}
