//! Removes blobs without references, and images, from a store.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::atomic::write_durably;
use super::blob::Blobs;
use super::handle::Store;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// The result of removing a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The blob was removed.
    Yes,
    /// The blob is too young, or was made young during the call: it stays.
    Young,
    /// The blob did not exist.
    Gone,
}

impl Blobs {
    /// Returns the time since a blob was stored or relied on, and its bytes on disk; nothing if it does not
    /// exist.
    pub fn age(&self, digest: &Digest) -> Option<(Duration, u64)> {
        age(&self.path(digest))
    }

    /// Removes a blob that is at least as old as `grace`.
    ///
    /// [`Blobs::keep`] makes a blob young before a writer relies on it. So this function first renames the
    /// blob, out of reach of `keep`, and renames it back if `keep` came first. `keep` never finds a blob that
    /// is deleted right after.
    pub fn remove_older(&self, digest: &Digest, grace: Duration) -> Result<Removed> {
        let path = self.path(digest);
        let failed = |e| Error::io(e, format!("cannot remove blob {digest}"));
        match age(&path) {
            None => return Ok(Removed::Gone),
            Some((age, _)) if age < grace => return Ok(Removed::Young),
            Some(_) => {}
        }
        let (aside, _) = self.create_temp(&path).map_err(failed)?;
        match self.io().rename(&path, &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.io().remove(&aside).map_err(failed)?;
                return Ok(Removed::Gone);
            }
            other => other.map_err(failed)?,
        }
        if age(&aside).is_some_and(|(age, _)| age < grace) {
            // A program that stored the blob again in between stored the same bytes.
            self.io().rename(&aside, &path).map_err(failed)?;
            return Ok(Removed::Young);
        }
        self.io().remove(&aside).map_err(failed)?;
        Ok(Removed::Yes)
    }
}

fn age(path: &Path) -> Option<(Duration, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let age = metadata.modified().ok()?.elapsed().unwrap_or_default();
    Some((age, metadata.len()))
}

impl Store {
    /// Removes an image's marker, and with it the image; its blobs stay. Returns the marker's bytes, or
    /// nothing if there was no such image. Not durable before [`Store::sync`].
    pub fn remove_image(&self, id: &Digest) -> Result<Option<Vec<u8>>> {
        let marker = self.images().marker(id);
        let gone = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Ok(None),
            _ => Err(Error::io(e, format!("cannot remove marker {}", marker.display()))),
        };
        let bytes = match fs::read(&marker) {
            Ok(bytes) => bytes,
            Err(e) => return gone(e),
        };
        self.io().remove(&marker).map_or_else(gone, |()| Ok(Some(bytes)))
    }

    /// Makes an image of a marker that [`Store::remove_image`] returned.
    pub fn restore_image(&self, id: &Digest, marker: &[u8]) -> Result<()> {
        let path = self.images().marker(id);
        write_durably(self.io(), self.sharing(), &path, marker, false)
            .map_err(|e| Error::io(e, format!("cannot write marker {}", path.display())))
    }

    /// Makes every earlier change of the store durable.
    pub fn sync(&self) -> Result<()> {
        self.io()
            .sync_fs(self.root())
            .map_err(|e| Error::io(e, format!("cannot sync {}", self.root().display())))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::super::{Size, StoreIo, SystemIo};
    use super::*;
    use crate::store::manifest::tests::sample;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_removed_image_can_be_restored() {
        let (_dir, store) = store();
        let id = store.put_manifest(&sample()).unwrap();
        let marker = store.remove_image(&id).unwrap().unwrap();
        assert!(!store.images().contains(&id) && store.remove_image(&id).unwrap().is_none());
        store.restore_image(&id, &marker).unwrap();
        assert_eq!(store.image(&id).unwrap().manifest, sample());
    }

    #[test]
    fn a_blob_is_removed_only_if_it_is_old_and_no_program_made_it_young_during_the_call() {
        let (dir, store) = store();
        let digest = store.blobs().put(b"payload").unwrap();
        let path = store.blobs().path(&digest);
        let hour = Duration::from_hours(1);
        assert_eq!(store.blobs().remove_older(&digest, hour).unwrap(), Removed::Young);
        let age = || {
            let long_ago = SystemTime::now() - Duration::from_hours(24);
            File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        };
        age();
        let racing = Store::open(dir.path()).unwrap().with_io(Arc::new(Reliant));
        assert_eq!(racing.blobs().remove_older(&digest, hour).unwrap(), Removed::Young);
        assert_eq!(store.blobs().read(&digest, Size::Exact(7)).unwrap(), b"payload");
        age();
        assert_eq!(store.blobs().remove_older(&digest, hour).unwrap(), Removed::Yes);
        assert_eq!(store.blobs().remove_older(&digest, hour).unwrap(), Removed::Gone);
        assert!(!store.blobs().keep(&digest));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing is left aside");
    }

    /// Relies on a blob right before it is put aside.
    #[derive(Debug)]
    struct Reliant;

    impl StoreIo for Reliant {
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            if from.extension().is_some_and(|extension| extension == "zst") {
                SystemIo.refresh(from)?;
            }
            SystemIo.rename(from, to)
        }
    }
}
