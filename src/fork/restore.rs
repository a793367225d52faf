//! Restores paths of a fork from an image, while the rest of the fork continues.

mod paths;
mod plan;

pub use paths::{MovedName, PathsBack};
pub(super) use paths::{put_paths_back, would_put_back};
pub use plan::{Held, Moved};
