//! Invalidations of what the kernel has cached.

use std::sync::Arc;

use super::key::Ino;

/// An invalidation for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// A file looks different, or a folder has another listing.
    Inode(Ino),
    /// A name in a folder leads to another file.
    Name(Ino, Vec<u8>),
}

/// Invalidates what the kernel has cached.
pub type Invalidate = Arc<dyn Fn(&[Invalidation]) + Send + Sync>;
