//! Reads files of images.

use std::sync::Arc;

use super::answer::Data;
use super::attempt::{Attempt, may_wait};
use super::image_dirs::ImageDirs;
use super::node::{Origin, Place, Redaction, UNKNOWN_SIZE};
use crate::cache::Payload;
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::images::Pages;
use crate::store::BlobError;
use crate::sync::wait;

/// A file of an image: its blob and declared size, how it is shown, and where it was first seen.
#[derive(Clone, Copy)]
pub(super) struct ImageFile<'a> {
    pub(super) digest: &'a Digest,
    pub(super) size: u64,
    pub(super) redaction: Redaction,
    pub(super) origin: Origin,
}

/// The part of a blob that a read needs.
enum Filled {
    Whole(Payload),
    Part(Data),
}

impl ImageDirs {
    /// Reads up to `size` bytes of a file from `offset`; fewer only at the end.
    pub(super) fn read(&self, file: ImageFile<'_>, offset: u64, size: u32) -> Attempt<Data> {
        let ImageFile { digest, size: declared, redaction, origin } = file;
        let cached = match redaction {
            Redaction::Raw => self.cache.peek(digest),
            Redaction::Redacted => self.images.ledger_known(digest),
        };
        // Noted once for each request: only by the event loop, which tries it first.
        if let (Place::World(node), 0, false) = (origin.place, offset, wait::is_allowed())
            && let Ok(tree) = self.tree(origin.image)
        {
            self.readahead.was_read(&tree, node, cached.is_some());
        }
        let payload = match cached {
            Some(payload) if declared == UNKNOWN_SIZE || payload.len() as u64 == declared => payload,
            _ => match self.fill(file, offset, size)? {
                Filled::Whole(payload) => payload,
                Filled::Part(data) => return Ok(data),
            },
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(payload.len());
        let end = start.saturating_add(size as usize).min(payload.len());
        Ok(Data::Blob(payload, start, end))
    }

    /// Reads the part of a blob that a read needs and that is not in the cache.
    fn fill(&self, file: ImageFile<'_>, offset: u64, size: u32) -> Attempt<Filled> {
        may_wait()?;
        let ImageFile { digest, size: declared, redaction, origin } = file;
        let failed = |error: Arc<BlobError>| self.report(origin, &error);
        if redaction == Redaction::Redacted {
            return Ok(Filled::Whole(self.images.ledger(digest).map_err(failed)?));
        }
        if self.cache.is_read_in_parts(declared) {
            let length = match declared {
                UNKNOWN_SIZE => self.cache.length(digest).map_err(failed)?,
                declared => declared,
            };
            let range = self.cache.range(digest, length, offset, size as usize);
            let (payload, range) = range.map_err(failed)?;
            return Ok(Filled::Part(Data::Blob(payload, range.start, range.end)));
        }
        let declared = (declared != UNKNOWN_SIZE).then_some(declared);
        Ok(Filled::Whole(self.cache.get(digest, declared).map_err(failed)?))
    }

    /// Finds the size of a blob that no layer declares, by decompressing it.
    pub(super) fn find_size(&self, digest: &Digest, redaction: Redaction, origin: Origin) -> Attempt<u64> {
        may_wait()?;
        let failed = |error: Arc<BlobError>| self.report(origin, &error);
        Ok(match redaction {
            Redaction::Raw => self.images.length(digest).map_err(failed)?,
            Redaction::Redacted => self.images.ledger(digest).map_err(failed)?.len() as u64,
        })
    }

    /// Logs damage, once for each blob and image, and returns the reader's error.
    fn report(&self, origin: Origin, error: &BlobError) -> ErrorKind {
        let id = self.nodes.image_id(origin.image);
        let path = || String::from_utf8_lossy(&self.path_of(origin)).escape_debug().to_string();
        self.damage.blob((origin.image, &id), path, error)
    }

    /// The path of a file from the image's folder on.
    pub(super) fn path_of(&self, origin: Origin) -> Vec<u8> {
        match origin.place {
            Place::Layer(file) => file.path().into(),
            Place::Page { ix, key } => ["cache/pages/", &Pages::name(ix, key)].concat().into(),
            Place::World(node) => {
                let path = self.tree(origin.image).map(|tree| tree.path(node)).unwrap_or_default();
                [b"world/fs/", &path[..]].concat()
            }
        }
    }

    /// Like [`ImageDirs::path_of`], without reading the disk. Returns none if the tree is not in memory.
    pub(super) fn path_known(&self, origin: Origin) -> Option<Vec<u8>> {
        let Place::World(node) = origin.place else { return Some(self.path_of(origin)) };
        let path = self.images.tree_known(&self.nodes.image_id(origin.image))?.path(node);
        Some(if path.is_empty() { b"world/fs".to_vec() } else { [b"world/fs/", &path[..]].concat() })
    }
}
