//! Gives the fork engine the base images of forks.

use std::sync::Arc;

use super::ledgers::BaseLedger;
use super::pages::Pages;
use super::reader::ImageReader;
use super::times::page_time;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BaseReader, BaseTimes, LayerBase};
use crate::store::{BlobError, LayerFile};
use crate::sync::wait;
use crate::tree::{NodeTimes, Tree};

/// Converts a shared error: every waiter gets the same one, so this cannot take it apart.
#[allow(clippy::needless_pass_by_value)]
fn shared(error: Arc<BlobError>) -> Error {
    let kind = match &*error {
        BlobError::Missing(_) => ErrorKind::Missing,
        BlobError::Io { .. } => ErrorKind::Io(None),
        _ => ErrorKind::Damaged,
    };
    // The text comes from `BlobError`.
    Error::new(kind, error.to_string())
}

impl BaseReader for ImageReader {
    fn size(&self, digest: &Digest) -> Result<u64> {
        wait::required()?;
        match self.ledgers.of_base(digest) {
            // Without a secret the file shows the blob.
            None | Some(BaseLedger::Plain) => self.length(digest).map_err(shared),
            Some(_) => Ok(self.redact(digest).map_err(shared)?.length),
        }
    }

    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (payload, part) = if let Some(known) = self.part_known(digest, size, offset, buf.len()) {
            known
        } else {
            wait::required()?;
            self.part(digest, size, offset, buf.len()).map_err(shared)?
        };
        let n = part.len();
        buf[..n].copy_from_slice(&payload[part]);
        payload.was_read(n);
        Ok(n)
    }

    fn is_held_back(&self, digest: &Digest) -> Result<bool> {
        match self.ledgers.of_base(digest) {
            None | Some(BaseLedger::Plain) => return Ok(false),
            Some(BaseLedger::Redacted(_)) => return Ok(true),
            Some(BaseLedger::Unread) => wait::required()?,
        };
        Ok(self.redact(digest).map_err(shared)?.redacted.is_some())
    }

    fn tree(&self, image: &Digest) -> Result<Arc<Tree>> {
        ImageReader::tree(self, image).map_err(|error| error.of(image))
    }

    fn times(&self, image: &Digest) -> Result<BaseTimes> {
        let times = ImageReader::times(self);
        if times.created_known(image).is_none() {
            wait::required()?;
        }
        let created_ns = times.created(image)?;
        let tree = ImageReader::tree(self, image).map_err(|error| error.of(image))?;
        let nodes = if tree.lacks_times() {
            self.node_times(image).map_err(|error| error.of(image))?
        } else {
            Arc::new(NodeTimes::all(created_ns))
        };
        Ok(BaseTimes { created_ns, nodes })
    }

    fn line_behind(&self, image: &Digest) -> u32 {
        ImageReader::times(self).behind(image)
    }

    fn layers(&self, image: &Digest) -> Result<Vec<LayerBase>> {
        wait::required()?;
        // From the disk: an image that was removed must not become the base of a fork.
        let found = self.read_manifest(image)?;
        let times = ImageReader::times(self);
        let mut layers = vec![LayerBase {
            path: "manifest.json".into(),
            digest: *image,
            size: Some(found.bytes.len() as u64),
            mtime_ns: Some(times.created(image)?),
        }];
        for (file, digest) in found.manifest.blobs() {
            if file != LayerFile::WorldFs {
                let mtime_ns = Some(times.layer(image, file)?);
                layers.push(LayerBase { path: file.path().into(), digest, size: None, mtime_ns });
            }
            if file == LayerFile::EffectsLedger && !self.reveals_secrets() {
                self.ledgers.add_base(digest);
            }
        }
        let pages = self.pages_of(&found).map_err(|error| error.of(image))?;
        let size = pages.page_bytes();
        let times = if pages.list().is_empty() {
            Arc::default()
        } else {
            self.page_times(image).map_err(|error| error.of(image))?
        };
        for (ix, k, v) in pages.list() {
            for (key, digest) in [(true, *k), (false, *v)] {
                let path = format!("cache/pages/{}", Pages::name(*ix, key));
                layers.push(LayerBase { path, digest, size, mtime_ns: page_time(&times, *ix, key) });
            }
        }
        Ok(layers)
    }
}
