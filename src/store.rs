//! The `ProcessFork` store on disk: content-addressed blobs, image markers and tags.

pub mod digest;

pub use digest::Digest;
