//! The options of an import.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::parent::Parent;
use crate::audit::Log;
use crate::layers::ignore::Ignore;

/// The options of an import.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory to import.
    pub dir: PathBuf,
    /// The parent of the new image, which gets the parent's layers except the files.
    pub parent: Parent,
    /// The rules for paths to leave out.
    pub ignore: Ignore,
    /// Whether to skip other filesystems: their mountpoints become empty directories.
    pub one_file_system: bool,
    /// Directories of this program, such as caches and logs, which images never contain.
    pub own: Vec<PathBuf>,
    /// The directory of the indices of earlier imports. Without one, every file is read.
    pub index_dir: Option<PathBuf>,
    /// Whether to read every file, even if the index knows it.
    pub reread: bool,
    /// The number of threads.
    pub jobs: NonZeroUsize,
    /// The log that gets violations.
    pub log: Log,
}

impl Options {
    /// Options to import all of a directory, without an index.
    pub fn new(dir: impl Into<PathBuf>, log: Log) -> Self {
        Self {
            dir: dir.into(),
            parent: Parent::Last,
            ignore: Ignore::default(),
            one_file_system: false,
            own: Vec::new(),
            index_dir: None,
            reread: false,
            jobs: NonZeroUsize::MIN,
            log,
        }
    }
}
