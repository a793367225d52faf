//! The options, the progress and the result of a check.

use std::num::NonZeroUsize;

use serde::Serialize;

use super::finding::{Finding, Severity};
use crate::digest::Digest;
use crate::layers::effects::Secret;

/// The options of a check.
#[derive(Clone, Debug)]
pub struct Options {
    /// These images and everything they refer to; `None` checks the whole store, with tags and with blobs
    /// without references.
    pub images: Option<Vec<Digest>>,
    /// How many threads work.
    pub jobs: NonZeroUsize,
    /// The operator's secret for ledgers that do not embed theirs.
    pub secret: Option<Secret>,
}

/// Receives the progress of a check.
pub trait Progress: Sync {
    /// The number of images to check.
    fn images(&self, total: u64) {
        let _ = total;
    }

    /// One image was checked.
    fn image_done(&self) {}

    /// The number of layers to parse.
    fn layers(&self, total: u64) {
        let _ = total;
    }

    /// One layer was parsed.
    fn layer_done(&self) {}

    /// The number of blobs to read, and their compressed bytes in all.
    fn blobs(&self, total: u64, bytes: u64) {
        let _ = (total, bytes);
    }

    /// One blob was read; `bytes` is its compressed size.
    fn blob_done(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// Reports to no receiver.
impl Progress for () {}

/// Results of verifying ledgers; a ledger that several images share counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledgers {
    /// The chain holds.
    pub verified: u64,
    /// Chained with a secret that was not given.
    pub unverifiable: u64,
    /// Without a chain and without a claim to one: nothing in it can be verified.
    pub unchained: u64,
    /// The chain does not hold.
    pub broken: u64,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Images that were checked.
    pub images: u64,
    /// Blobs read.
    pub blobs: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Ledgers by outcome.
    pub ledgers: Ledgers,
    /// Damage first, then notes.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings are of that severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}
