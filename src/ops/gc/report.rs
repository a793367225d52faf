//! The options, the progress and the result of a collection.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Serialize;

/// The options of a collection.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blobs younger than this are kept.
    pub grace: Duration,
    /// Whether this is a dry run: nothing is deleted.
    pub dry_run: bool,
    /// How many threads read.
    pub jobs: NonZeroUsize,
}

/// The result of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether this was a dry run: nothing was deleted.
    pub dry_run: bool,
    /// Images that were kept, with everything they refer to.
    pub images: u64,
    /// Blobs with references.
    pub kept: u64,
    /// Blobs without references that are too young to delete.
    pub young: u64,
    /// Their bytes on disk.
    pub young_bytes: u64,
    /// Blobs that were deleted.
    pub deleted: u64,
    /// Temporary files of killed programs; deleted too.
    pub temp_files: u64,
    /// Bytes on disk that were freed.
    pub freed_bytes: u64,
    /// References that cannot be read, in words. If there is any, nothing was deleted.
    pub problems: Vec<String>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// Receives the progress of a collection.
pub trait Progress: Sync {
    /// The number of further layers to read.
    fn layers(&self, more: u64) {
        let _ = more;
    }

    /// One layer was read.
    fn layer_done(&self) {}

    /// The number of blobs to delete.
    fn deleting(&self, total: u64) {
        let _ = total;
    }

    /// One blob was deleted, or kept after the second check.
    fn deleted(&self) {}
}

/// Reports to no receiver.
impl Progress for () {}
