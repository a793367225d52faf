//! The observations of a seal, for the oracle to judge. Their cost grows with what was changed.

use super::sealing::{Sealing, Stored, WORLD};
use crate::crashpack::Steps;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::fork::{BaseReader, Body, Fork, Put};
use crate::layers::world::Entry;
use crate::ops::fixture;
use crate::store::{MarkerError, Store};

/// The leftovers of a seal, in words for a crash pack.
pub(crate) const LEFT: &str = "temporary files left behind";

/// The result of reading an image's manifest.
type Found = std::result::Result<(Vec<u8>, Option<Digest>), MarkerError>;

/// Returns the manifest of an older image: its blob is as good as its marker.
pub(crate) fn readable(found: Found) -> Found {
    found.map(|(bytes, _)| (bytes, None))
}

/// Adds the expected manifest to the steps of a transfer, and the hash of the one that was found: that of the
/// marker, if the marker differs from the manifest's bytes.
pub(crate) fn see_manifest(steps: &mut Steps, expected: &Digest, found: Found) {
    let (hash, why) = match found {
        Ok((bytes, None)) => (Digest::of(&bytes).to_string(), None),
        Ok((_, Some(measured))) => {
            (measured.to_string(), Some("the marker is not the manifest that was hashed".to_owned()))
        }
        Err(error) => (String::new(), Some(error.to_string())),
    };
    steps.saw_manifest(expected, hash, why.as_deref());
}

/// The observations of a fork that was restored to `image`: that it has this base, and shows it.
pub(super) fn seen_restored(
    store: &Store,
    reader: &dyn BaseReader,
    name: &str,
    restored: &Fork,
    image: &Digest,
) -> Result<Steps> {
    let mut steps = Steps::new();
    steps.did("checkpoint", format!("made fork {name} again from {image}"));
    steps.concerns(format!("forks/heads/{name}.json"));
    let found = store.images().bytes(store.blobs(), image);
    see_manifest(&mut steps, image, readable(found));
    if let Ok(image) = store.image(image) {
        steps.made_by(fixture::seed_of(&image.manifest.agent));
    }
    let layers = reader.layers(image)?;
    let missing = layers
        .iter()
        .filter(|layer| restored.resolve(layer.path.as_bytes()).is_none())
        .map(|layer| (layer.path.clone(), "not in the fork".to_owned()));
    let other = (restored.base() != Some(*image) || restored.is_changed())
        .then(|| ("world/fs".to_owned(), "the fork differs from the image".to_owned()));
    steps.saw_paths(&format!("forks/{name}"), missing.chain(other));
    Ok(steps)
}
/// The observations of a fork that was restored to its empty beginning.
pub(super) fn seen_emptied(name: &str, restored: &Fork) -> Steps {
    let mut steps = Steps::new();
    steps.did("checkpoint", format!("made fork {name} again with nothing in it"));
    steps.concerns(format!("forks/heads/{name}.json"));
    let other = (!restored.is_blank()).then(|| ("world/fs".to_owned(), "it is not empty".to_owned()));
    steps.saw_paths(&format!("forks/{name}"), other);
    steps
}
/// Paths that differ between the fork and the stored tree, each with the difference. The tree is read
/// back where it was changed.
pub(super) fn differing_paths(
    sealing: &Sealing<'_>,
    tree: &Digest,
    stored: &Stored,
) -> Result<Vec<(String, String)>> {
    let mut differing = Vec::new();
    let mut placed = Vec::new();
    for (path, put) in &sealing.changes.put {
        let Some(inner) = path.strip_prefix(WORLD).and_then(|path| path.strip_prefix(b"/")) else {
            continue;
        };
        match sealing.placed.get(inner) {
            Some(place) => placed.push((place.clone(), path, put)),
            None => differing.push((path.escape_ascii().to_string(), "not in the tree".to_owned())),
        }
    }
    placed.sort_unstable_by_key(|(place, ..)| place.start);
    let stretches: Vec<_> = placed.iter().map(|(place, ..)| place.clone()).collect();
    let kept = sealing.texts.kept(tree);
    let packed = kept.as_ref().and_then(|text| text.packed.as_ref());
    let texts = match sealing.store.blobs().read_stretches(tree, packed, &stretches) {
        Ok(texts) => texts,
        Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Missing) => {
            return Ok(vec![("world/fs".to_owned(), error.to_string())]);
        }
        Err(error) => return Err(error),
    };
    for (text, (_, path, put)) in texts.iter().zip(placed) {
        let blob = stored.get(path).map(|blob| blob.digest);
        let same = serde_json::from_slice::<Entry<'_>>(text)
            .is_ok_and(|entry| entry.mtime_ns == sealing.mtime(path, put) && shows(&entry, path, put, blob));
        if !same {
            differing.push((path.escape_ascii().to_string(), "otherwise in the tree".to_owned()));
        }
    }
    Ok(differing)
}
/// Whether an entry equals what the fork shows.
fn shows(entry: &Entry<'_>, path: &[u8], put: &Put, stored: Option<Digest>) -> bool {
    let inode = &put.inode;
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let entry_name = entry.path.rsplit('/').next().unwrap_or_default();
    let content = match &inode.body {
        Body::File(content) => {
            entry.size == content.size && entry.blob == Some(stored.unwrap_or_else(|| Digest::of(b"")))
        }
        Body::Symlink(target) => match &entry.link_target_b64 {
            Some(bytes) => bytes.as_slice() == &target[..],
            None => entry.link_target.as_ref().is_some_and(|text| text.as_bytes() == &target[..]),
        },
        Body::Dir(_) | Body::Special(_) => true,
    };
    content
        && entry.kind == inode.kind()
        && entry.mode == inode.mode
        && (entry.uid, entry.gid) == (inode.uid, inode.gid)
        && entry.name_b64.as_deref().unwrap_or(entry_name.as_bytes()) == name
}
