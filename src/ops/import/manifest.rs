//! Makes the manifest of an import.

use chrono::Utc;

use super::importing::Importing;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::cache::{LAYOUT, PageManifest};
use crate::layers::effects::{Header, Ledger};
use crate::layers::env::{Env, EnvV1};
use crate::layers::model::{Base, ModelDiff};
use crate::layers::procs::Procs;
use crate::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use crate::store::{Batch, Manifest, MarkerError};

/// The note in empty layers. It is a part of images, so it must not change.
const NOTE: &str = "imported from a folder";

/// The agent of an image that no agent made.
const AGENT: &str = "pfimg";

/// Returns an existing image with exactly the content to import: the parent, or the image of the last import.
pub(super) fn same(importing: &Importing<'_>, tree: Digest) -> Result<Option<Digest>> {
    let layers = layers(importing, tree, &|bytes| Ok(Digest::of(&bytes)))?;
    if let Some(parent) = &importing.parent
        && parent.manifest.blobs() == layers.blobs()
    {
        return Ok(Some(parent.id));
    }
    let Some(last) = importing.index.image else { return Ok(None) };
    match importing.store.image(&last) {
        Ok(image) => {
            let same = image.manifest.blobs() == layers.blobs() && image.manifest.parents == layers.parents;
            Ok(same.then_some(last))
        }
        Err(MarkerError::Absent(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes the manifest of the new image, and relies on all blobs that it takes from the parent.
pub(super) fn manifest(importing: &Importing<'_>, batch: &Batch<'_>, tree: Digest) -> Result<Manifest> {
    let manifest = layers(importing, tree, &|bytes| batch.put(&bytes))?;
    if let Some(parent) = &importing.parent {
        for (_, digest) in parent.manifest.blobs() {
            batch.require(digest);
        }
        if !importing.store.images().contains(&parent.id) {
            let message = format!("image {} was removed while its child was made", parent.id);
            return Err(Error::new(ErrorKind::Missing, message).with_hint("name another --parent"));
        }
    }
    Ok(manifest)
}

/// Makes the manifest. Its other layers are the parent's, or `pf`'s empty forms, whose digests `put` returns.
fn layers(
    importing: &Importing<'_>,
    tree: Digest,
    put: &dyn Fn(Vec<u8>) -> Result<Digest>,
) -> Result<Manifest> {
    let name = importing.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(parent) = &importing.parent {
        let old = parent.manifest.clone();
        let world = WorldRefs { fs: tree, ..old.world };
        return Ok(Manifest { world, created_at: Utc::now(), parents: vec![parent.id], ..old });
    }
    let agent = Agent { kind: AGENT.into(), version: env!("CARGO_PKG_VERSION").into(), fingerprint: name };
    with_empty_layers(agent, tree, Vec::new(), put)
}

/// A manifest of a tree whose other layers are `pf`'s empty forms, which `put` says the digests of.
pub(in crate::ops) fn with_empty_layers(
    agent: Agent,
    tree: Digest,
    parents: Vec<Digest>,
    put: &dyn Fn(Vec<u8>) -> Result<Digest>,
) -> Result<Manifest> {
    Ok(Manifest {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent,
        model: ModelRefs {
            base: put(Base::Agent(AGENT.into()).to_bytes())?,
            diff: put(ModelDiff::empty(NOTE).to_bytes())?,
        },
        cache: CacheRefs { layout: LAYOUT.into(), manifest: put(PageManifest::empty(NOTE).to_bytes())? },
        world: WorldRefs {
            fs: tree,
            env: put(Env::V1(EnvV1::default()).to_bytes())?,
            procs: put(Procs::empty(std::env::consts::OS, NOTE).to_bytes())?,
        },
        effects: EffectsRefs { ledger: put(empty_ledger())? },
        trace: TraceRefs { messages: put(Vec::new())? },
        created_at: Utc::now(),
        parents,
    })
}

/// Returns an empty ledger.
fn empty_ledger() -> Vec<u8> {
    Ledger { header: Header::default(), entries: Vec::new() }.to_bytes()
}
