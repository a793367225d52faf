//! Makes images of blobs.
//!
//! Commit order of an image: its blobs, its manifest's blob, the marker under a temporary name, one `syncfs`, the marker's
//! name, the folder of the marker. Wherever the program ends in between, no marker refers to a missing blob.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use rayon::prelude::*;

use super::blob::Blobs;
use super::handle::Store;
use super::manifest::Manifest;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;

/// From this many blobs on, all cores check whether they exist.
const WORTH_ALL_CORES: usize = 64;

/// How often pfimg tries to make blobs durable when the disk fails each time.
const SYNCS: usize = 3;

/// The blobs of an image that is being made. Several threads may use it.
#[derive(Debug)]
pub struct Batch<'s> {
    store: &'s Store,
    relied_on: Mutex<HashSet<Digest>>,
}

impl Batch<'_> {
    pub(super) fn store(&self) -> &Store {
        self.store
    }

    pub(super) fn blobs(&self) -> &Blobs {
        self.store.blobs()
    }

    /// Stores a payload; see [`Blobs::put`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = self.store.blobs().put(bytes)?;
        self.require(digest);
        Ok(digest)
    }

    /// Stores a payload that is read piece by piece; see [`Blobs::put_stream`].
    pub fn put_stream(&self, from: &mut dyn Read, size: Option<u64>) -> Result<(Digest, u64)> {
        let stored = self.store.blobs().put_stream(from, size)?;
        self.require(stored.0);
        Ok(stored)
    }

    /// Makes [`Batch::commit`] check that a blob exists which another writer stored.
    pub fn require(&self, digest: Digest) {
        self.relied_on.lock().insert(digest);
    }

    /// Stores the manifest of an image whose blobs are all in the store, and makes it an image, durably.
    /// Returns its id. If this fails there is no image.
    pub fn commit(self, manifest: &Manifest) -> Result<Digest> {
        let bytes = manifest.to_bytes()?;
        let id = self.put(&bytes)?;
        let (io, images, blobs) = (self.store.io(), self.store.images().dir(), self.store.blobs().root());
        let marker = self.store.images().marker(&id);
        let failed = |e| Error::io(e, format!("cannot write marker {}", marker.display()));
        let (temp, mut file) =
            self.store.blobs().temp_names().create(io, &marker, self.store.sharing()).map_err(failed)?;
        let committed = (|| {
            io.write(&temp, &mut file, &bytes).map_err(failed)?;
            // One syncfs instead of an fsync a blob: everything the marker reaches is durable before it exists.
            self.sync().map_err(|e| e.context(format_args!("cannot write marker {}", marker.display())))?;
            if fs::metadata(blobs).map_err(failed)?.dev() != file.metadata().map_err(failed)?.dev() {
                io.sync_file(&temp, &file).map_err(failed)?;
            }
            // Collectors of pfimg wait from here on. `pf gc` does not know of images in the making.
            let _held = self.store.hold_blobs()?;
            if let Some(lost) = self.lost() {
                let message = format!("blob {lost} was removed from the store while an image was made of it");
                return Err(Error::new(ErrorKind::Missing, message).with_hint("try again"));
            }
            io.rename(&temp, &marker).map_err(failed)
        })();
        committed.inspect_err(|_| {
            let _ = io.remove(&temp);
        })?;
        self.store.blobs().temp_names().done_with(&temp);
        io.sync_dir(images).map_err(failed).inspect_err(|_| {
            // A marker that cannot be made durable must not be visible either.
            let _ = io.remove(&marker);
        })?;
        Ok(id)
    }

    /// Returns a blob that is relied on and does not exist.
    fn lost(&self) -> Option<Digest> {
        let digests: Vec<Digest> = self.relied_on.lock().iter().copied().collect();
        let lost = |digest: &Digest| !self.store.blobs().contains(digest);
        if digests.len() < WORTH_ALL_CORES {
            digests.into_iter().find(lost)
        } else {
            digests.into_par_iter().find_any(lost)
        }
    }

    /// Makes every blob durable that is relied on. Blobs that the disk may have failed to write are written
    /// again before an image uses them.
    fn sync(&self) -> Result<()> {
        let blobs = self.blobs();
        let failed = |e| Error::io(e, format!("cannot make the blobs in {} durable", blobs.root().display()));
        for _ in 0..SYNCS {
            // Checked in each round, since other threads may rely on further blobs by then.
            let doubted = blobs.unsynced().doubted(&self.relied_on.lock());
            for digest in doubted {
                blobs.store_again(&digest)?;
            }
            let pending = blobs.unsynced().pending();
            blobs.io().sync_fs(blobs.root()).inspect_err(|_| blobs.unsynced().failed()).map_err(failed)?;
            blobs.unsynced().synced(&pending);
            // Another sync may have failed in between, and may have received the error of this one.
            if blobs.unsynced().doubted(&self.relied_on.lock()).is_empty() {
                return Ok(());
            }
        }
        Err(failed(io::Error::other("the disk fails to write")))
    }
}

impl Store {
    /// Begins an image.
    pub fn begin(&self) -> Batch<'_> {
        Batch { store: self, relied_on: Mutex::default() }
    }

    /// Makes an image from blobs in the store; see [`Batch::commit`].
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Digest> {
        self.begin().commit(manifest)
    }
}
