//! What all steps of an import share.

use std::path::{Path, PathBuf};

use super::index::Index;
use super::options::Options;
use super::progress::Progress;
use crate::digest::Digest;
use crate::mount::reach::Top;
use crate::store::{Image, Store};
use crate::sync::Mutex;

/// The state of the repository at the top of an image, if it differs from the directory's.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// The content of `HEAD`.
    pub(super) head: Vec<u8>,
    /// The file that becomes the index.
    pub(super) index: PathBuf,
}

/// Settings of an import of a project or a commit.
#[derive(Default)]
pub(super) struct Special {
    /// Whether it is for a run. The report of an unchanged directory may then lack everything but the image and the totals, which
    /// is the fastest way to find that nothing changed.
    pub(super) for_run: bool,
    /// The state of the repository at the top of the image.
    pub(super) standing: Option<Standing>,
    /// The directory whose index says which files need not be read. The import does not replace that index.
    pub(super) known_as: Option<PathBuf>,
}

/// A file whose content is not yet stored: its place among the items, and its content by the index.
pub(super) struct Pending {
    pub(super) item: usize,
    pub(super) known: Option<Digest>,
}

/// What is known of a file after it was looked at.
pub(super) enum Known {
    /// Everything: it is not a regular file.
    All,
    /// The content of a regular file, by the index.
    Content(Digest),
    /// Nothing about the content of a regular file.
    Nothing,
}

/// An import that is under way.
pub(super) struct Importing<'a> {
    pub(super) store: &'a Store,
    pub(super) dir: &'a Path,
    pub(super) top: &'a Top,
    pub(super) options: &'a Options,
    pub(super) special: &'a Special,
    pub(super) progress: &'a dyn Progress,
    pub(super) index: Index<'a>,
    pub(super) parent: Option<Image>,
    pub(super) reports: Mutex<Vec<String>>,
}

impl Importing<'_> {
    /// Adds a message for the user.
    pub(super) fn report(&self, what: String) {
        self.reports.lock().push(what);
    }
}
