//! Checks whether the records of an image continue those of its parent.

use super::finding::Code;
use super::layers::{Checker, GIANT, Place, Ref};
use crate::digest::Digest;
use crate::layers::continuing::{ledger_departs, trace_departs};
use crate::store::LayerFile;

impl Checker<'_> {
    /// Compares the ledger and the trace of an image with those of its only parent. A layer that cannot be
    /// read was reported before.
    pub(super) fn descent(&self, image: u32, parent: &Digest) {
        let Ok(before) = self.store.image(parent) else { return };
        let Some(layers) = self.state.lock().layers.get(&image).copied() else { return };
        for (file, digest) in layers {
            let old = match file {
                LayerFile::EffectsLedger => before.manifest.effects.ledger,
                LayerFile::TraceMessages => before.manifest.trace.messages,
                _ => continue,
            };
            if old == digest {
                continue;
            }
            let blobs = self.store.blobs();
            let is_giant = |digest| blobs.compressed_size(digest).is_ok_and(|size| size > GIANT);
            let _one_at_a_time = (is_giant(&old) || is_giant(&digest)).then(|| self.giants.lock());
            let (Ok(there), Ok(here)) = (blobs.read_metadata(&old), blobs.read_metadata(&digest)) else {
                continue;
            };
            let (code, departs) = match file {
                LayerFile::EffectsLedger => (Code::LedgerNotContinued, ledger_departs((&old, &there), &here)),
                _ => (Code::TraceNotContinued, trace_departs(&there, &here)),
            };
            if let Some((same, all)) = departs {
                let at = Ref { image, place: Place::Layer(file), size: None };
                let detail = format!("it continues {same} of the {all} lines of its parent {parent}");
                self.problem(code, digest, at, detail);
            }
        }
    }
}
