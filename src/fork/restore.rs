//! Restores paths of a fork from an image, while the rest of the fork continues.

mod paths;
mod plan;

pub use paths::{MovedName, PathsBack};
pub(super) use paths::{restore_paths, would_restore};
pub use plan::{Held, Moved};
