//! Restores a fork to one of its images.

use std::sync::Arc;

use super::{Sealer, TransferKind, note};
use crate::digest::Digest;
use crate::error::Result;
use crate::fork::{Fork, Registry};

impl Sealer {
    /// Restores a fork to `image`. The result is judged before; if that fails the fork stays unchanged.
    pub fn restore(&self, registry: &Registry, name: &str, fork: &Fork, image: &Digest) -> Result<Arc<Fork>> {
        self.restore_and(registry, name, fork, image, &|_| ())
    }

    /// Does the same, and passes the new fork to `adopt` before any other thread can find it by its name.
    pub fn restore_and(
        &self,
        registry: &Registry,
        name: &str,
        fork: &Fork,
        image: &Digest,
        adopt: &dyn Fn(&Arc<Fork>),
    ) -> Result<Arc<Fork>> {
        let judge = |restored: &Fork| {
            self.judge(TransferKind::Restore, name, &self.seen_restored(name, restored, image)?)
        };
        let restored = registry
            .put_back_and(name, fork, *image, &judge, adopt)
            .inspect_err(|e| self.log.note_failed("restore", e))
            .map_err(|e| e.context(format_args!("cannot restore fork {name:?} to {image}")))?;
        self.log.note(note::rollbacked(name, image));
        Ok(restored)
    }
}
