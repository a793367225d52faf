//! Keeps file times while a fork is being filled by `cp -r`.
//!
//! `cp -r` copies the files of another fork or of an image one by one, and sets no times. While nothing else happens in the
//! new fork, a file whose whole content comes from the same path keeps its time. Otherwise each file would be as new as its
//! copy, in the order of copying, and make would take an edited source that is not yet built for built. Copies stay separate
//! files: none becomes a hard link.

use std::sync::Weak;

use crate::digest::Digest;
use crate::fork::core::Core;

/// The source that a fork is being copied from.
#[derive(Default)]
pub(super) enum Making {
    /// The fork is not being copied, or the copying has ended.
    #[default]
    No,
    /// Nothing was copied yet.
    Begun,
    /// The fork or image that the first file came from.
    From(Source),
}

/// A fork or an image.
#[derive(Clone)]
pub(super) enum Source {
    Fork(Weak<Core>),
    Image(Digest),
}

impl Source {
    /// Whether a file from the other source also belongs to the copy.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fork(one), Self::Fork(two)) => one.ptr_eq(two),
            // A file's image is the one where it was first seen, which may be another image of the line.
            (Self::Image(_), Self::Image(_)) => true,
            _ => false,
        }
    }
}

/// The source of a file that is copied to the same path.
pub(super) struct Origin(pub(super) Source);
