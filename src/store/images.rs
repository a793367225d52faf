//! Image markers: `images/<hex64>.json`, the manifest's exact bytes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::blob::Blobs;
use super::blob_error::{BlobError, Size};
use super::manifest::{Manifest, ManifestError};
use super::tags::Tags;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::wait;

/// Largest manifest in bytes: 16 MiB, room for 200,000 parents.
pub const MAX_MANIFEST: u64 = 16 << 20;

/// Shortest prefix of an id that is looked up, in hex digits.
pub const MIN_PREFIX: usize = 4;

/// An image's manifest, as bytes and as a value.
#[derive(Clone, Debug)]
pub struct Image {
    /// The id: SHA-256 of `bytes`.
    pub id: Digest,
    /// The manifest's exact bytes.
    pub bytes: Vec<u8>,
    /// Their parsed value.
    pub manifest: Manifest,
}

/// Why a marker that exists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// There is no marker of that name.
    #[error("there is no image {0}")]
    Absent(Digest),
    /// The marker's bytes hash to something else, and the manifest's blob cannot replace them.
    #[error("image {id}: its marker is damaged (the bytes hash to {measured}), and so is its blob: {blob}")]
    Mismatch {
        /// The image.
        id: Digest,
        /// The digest of the marker's bytes.
        measured: Digest,
        /// What is wrong with the manifest's blob.
        blob: Box<BlobError>,
    },
    /// The bytes are intact, but pfimg cannot read the manifest.
    #[error("image {id}: {source}")]
    Manifest {
        /// The image.
        id: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The file system failed.
    #[error("image {id}: cannot read its marker: {source}")]
    Io {
        /// The image.
        id: Digest,
        /// Its failure.
        source: io::Error,
    },
}

impl From<MarkerError> for Error {
    fn from(error: MarkerError) -> Self {
        let message = error.to_string();
        match error {
            MarkerError::Absent(_) => Error::new(ErrorKind::NotFound, message),
            MarkerError::Mismatch { .. } => Error::new(ErrorKind::Damaged, message)
                .with_hint("run `pfimg verify` to list all damage; a copy of the store may have it intact"),
            MarkerError::Manifest { id, source } => Error::from(source).context(format_args!("image {id}")),
            MarkerError::Io { id, source } => {
                Error::io(source, format!("image {id}: cannot read its marker"))
            }
        }
    }
}

/// The images of one store.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    pub(super) fn new(store: &Path) -> Self {
        Self { dir: store.join("images") }
    }

    /// The folder of markers.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of an image's marker, whether it exists or not.
    pub fn marker(&self, id: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", id.hex()))
    }

    /// Whether an image's marker exists.
    pub fn contains(&self, id: &Digest) -> bool {
        wait::disk("marker");
        self.marker(id).exists()
    }

    /// Ids of all markers, sorted. Reads names only. Entries that are not markers go to `odd`.
    pub fn ids(&self, odd: &mut dyn FnMut(PathBuf)) -> Result<Vec<Digest>> {
        wait::disk("markers");
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(e, format!("cannot list {}", self.dir.display()))),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(e, format!("cannot list {}", self.dir.display())))?;
            let name = entry.file_name();
            let id = name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|hex| Digest::from_hex(hex).ok());
            match id {
                Some(id) => ids.push(id),
                None => odd(entry.path()),
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// The time at which the folder of markers last changed: each marker that is added or removed changes it.
    pub fn changed_at(&self) -> Option<(i64, i64)> {
        fs::metadata(&self.dir).ok().map(|m| (m.mtime(), m.mtime_nsec()))
    }

    /// Returns the manifest's bytes from the marker, or, if the marker does not hash to its name, from its
    /// blob. The second value is the digest of the marker's bytes in that case.
    pub fn bytes(&self, blobs: &Blobs, id: &Digest) -> Result<(Vec<u8>, Option<Digest>), MarkerError> {
        wait::disk("manifest");
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::NotFound {
                MarkerError::Absent(*id)
            } else {
                MarkerError::Io { id: *id, source }
            }
        };
        let mut bytes = Vec::new();
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(self.marker(id))
            .map_err(failed)?;
        if file.metadata().map_err(failed)?.is_file() {
            file.take(MAX_MANIFEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        }
        let measured = Digest::of(&bytes);
        if measured == *id {
            return Ok((bytes, None));
        }
        // The manifest is stored twice, as marker and as blob: either copy is enough.
        match blobs.read(id, Size::AtMost(MAX_MANIFEST)) {
            Ok(bytes) => Ok((bytes, Some(measured))),
            Err(blob) => Err(MarkerError::Mismatch { id: *id, measured, blob: Box::new(blob) }),
        }
    }

    /// Reads and parses an image's manifest.
    pub fn get(&self, blobs: &Blobs, id: &Digest) -> Result<Image, MarkerError> {
        let (bytes, damaged) = self.bytes(blobs, id)?;
        if let Some(measured) = damaged {
            tracing::warn!(image = %id, %measured, "marker {} is damaged; its blob is used instead", self.marker(id).display());
        }
        let manifest = Manifest::parse(&bytes).map_err(|source| MarkerError::Manifest { id: *id, source })?;
        Ok(Image { id: *id, bytes, manifest })
    }

    /// Ids that start with `prefix` (hex digits, at least [`MIN_PREFIX`]), at most two of them.
    pub fn with_prefix(&self, prefix: &str) -> Result<Vec<Digest>> {
        let lowercase_hex = prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if prefix.len() < MIN_PREFIX || prefix.len() > 64 || !lowercase_hex {
            return Ok(Vec::new());
        }
        let mut found = self.ids(&mut |_| ())?;
        found.retain(|id| id.hex().starts_with(prefix));
        found.truncate(2);
        Ok(found)
    }

    /// Finds an image by `latest`, tag, `sha256:` and digits, or a unique prefix of its id.
    pub fn resolve(&self, blobs: &Blobs, tags: &Tags, text: &str) -> Result<Digest> {
        if text == "latest" {
            return self.newest(blobs)?.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("there is no image in {}", self.dir.display()))
                    .with_hint("make an image of a directory with `pfimg import DIR`")
            });
        }
        let digits = text.strip_prefix("sha256:");
        // Even if there is a tag that looks like an id, as `pf` makes them.
        if let Ok(id) = Digest::from_hex(text)
            && self.contains(&id)
        {
            return Ok(id);
        }
        if digits.is_none() {
            match tags.get(text) {
                Ok(id) if self.contains(&id) => return Ok(id),
                Ok(id) => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("tag {text:?} names {id}, which is no longer in the store"),
                    )
                    .with_hint(format!(
                        "restore the image from a copy of the store, or run `pfimg untag {text}`"
                    )));
                }
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {}
                Err(e) => return Err(e),
            }
        }
        match self.with_prefix(digits.unwrap_or(text))?.as_slice() {
            [] => Err(Error::new(ErrorKind::NotFound, format!("there is no image {text:?}"))
                .with_name(text)
                .with_hint(
                    "name an image by a tag, at least 4 digits of its id, sha256:…, latest, or FORK@SEAL",
                )),
            [id] => Ok(*id),
            _ => Err(Error::new(ErrorKind::InvalidInput, format!("{text:?} fits several images"))
                .with_hint("give more digits")),
        }
    }

    /// Returns the image with the latest `created_at`; of equals the one with the greater id. Reads every
    /// marker. Markers that cannot be read are reported and left out.
    pub fn newest(&self, blobs: &Blobs) -> Result<Option<Digest>> {
        let mut newest = None;
        for id in self.ids(&mut |_| ())? {
            match self.get(blobs, &id) {
                Ok(image) if image.manifest.may_be_latest() => {
                    newest = newest.max(Some((image.manifest.created_at, id)));
                }
                Ok(_) | Err(MarkerError::Absent(_)) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(newest.map(|(_, id)| id))
    }
}
