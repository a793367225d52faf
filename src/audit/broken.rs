//! Where a log is broken.

use std::path::PathBuf;

use serde::Serialize;

/// The first break of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokenAt {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: u64,
    /// The fault.
    pub fault: String,
}
