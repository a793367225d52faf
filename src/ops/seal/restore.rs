//! Restores a fork to one of its images.

use std::sync::Arc;

use super::sealer::Sealer;
use super::witness::{seen_emptied, seen_restored};
use crate::audit::note;
use crate::digest::Digest;
use crate::error::Result;
use crate::fork::{Fork, Onto, Registry};
use crate::oracle::TransferKind;

impl Sealer {
    /// Restores a fork to `image`. The result is judged before; if that fails the fork stays unchanged.
    pub fn restore(&self, registry: &Registry, name: &str, fork: &Fork, image: &Digest) -> Result<Arc<Fork>> {
        self.restore_and(registry, name, fork, &Onto { image: Some(*image), restored: None }, &|_| ())
    }

    /// Restores a fork to an image or to nothing, and passes the new fork to `adopt` before any other thread can find it by its
    /// name.
    pub fn restore_and(
        &self,
        registry: &Registry,
        name: &str,
        fork: &Fork,
        onto: &Onto<'_>,
        adopt: &dyn Fn(&Arc<Fork>),
    ) -> Result<Arc<Fork>> {
        let judge = |restored: &Fork| {
            let seen = match &onto.image {
                Some(image) => seen_restored(&self.store, self.reader.as_ref(), name, restored, image)?,
                None => seen_emptied(name, restored),
            };
            self.judge(TransferKind::Restore, name, &seen)
        };
        let to = || onto.image.map_or_else(|| "its empty beginning".to_owned(), |image| image.to_string());
        let restored = registry
            .restore_and(name, fork, onto, &judge, adopt)
            .inspect_err(|e| self.log.note_failed("restore", e))
            .map_err(|e| e.context(format_args!("cannot restore fork {name:?} to {}", to())))?;
        if let Some(image) = &onto.image {
            self.log.note(note::rollbacked(name, image));
        }
        Ok(restored)
    }
}
