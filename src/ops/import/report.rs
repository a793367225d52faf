//! The result of an import.

use serde::Serialize;

use super::large::Large;
use super::mended::Mended;
use super::recheck::Totals;
use super::rules::LeftOutBy;
use super::source::shown;
use super::ties::Tie;
use super::walk::{Found, Listing, Meta};
use crate::digest::Digest;
use crate::layers::world::Kind;

/// The result of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The image that holds the directory.
    pub image: Digest,
    /// Whether the image is new. If not, an earlier one has the same content.
    pub new: bool,
    /// Number of files.
    pub files: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Number of files that were read.
    pub files_read: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Number of paths that a rule left out.
    pub left_out: u64,
    /// Number of paths left out, by the source of the rule.
    pub left_out_by: LeftOutBy,
    /// The first of the paths left out, in order.
    pub left_out_paths: Vec<String>,
    /// Large directories that tools can probably make again.
    pub large: Vec<Large>,
    /// Git repositories that are complete only in the image.
    pub mended: Vec<Mended>,
    /// Directories that were not entered: mounts of this program, its own directories, and with `one_file_system` other
    /// filesystems.
    pub not_entered: Vec<String>,
    /// Files that refer to the imported directory by its path: the first of each kind, in order.
    pub ties: Vec<Tie>,
    /// Total number of such files.
    pub ties_total: u64,
    /// Messages for the user.
    pub reports: Vec<String>,
}

impl Report {
    /// The report of an import that made no image, since no file changed.
    pub(super) fn unchanged(image: Digest, (files, bytes): Totals) -> Self {
        Self { image, files, bytes, ..Self::of(&Listing::default(), &[]) }
    }

    /// The parts of a report that are known before files are read.
    pub(super) fn of(listing: &Listing, found: &[Found]) -> Self {
        let (files, bytes) = totals(found.iter().map(|found| &found.meta));
        Self {
            image: Digest::of(b""),
            new: false,
            files,
            bytes,
            files_read: 0,
            bytes_read: 0,
            left_out: listing.left_out.count,
            left_out_by: listing.left_out.by,
            left_out_paths: listing.left_out.first.iter().map(|path| shown(path)).collect(),
            large: Vec::new(),
            mended: Vec::new(),
            not_entered: listing.closed.iter().map(|(path, _)| shown(path)).collect(),
            ties: Vec::new(),
            ties_total: 0,
            reports: Vec::new(),
        }
    }
}

/// Counts files and their bytes.
pub(super) fn totals<'a>(all: impl Iterator<Item = &'a Meta>) -> (u64, u64) {
    let files = all.filter(|meta| meta.kind == Kind::File);
    files.fold((0, 0), |(files, bytes), meta| (files + 1, bytes + meta.stamp.size))
}
