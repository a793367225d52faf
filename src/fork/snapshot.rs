//! Snapshots of forks, and the images that are made of them.

mod compact;
mod freeze;
mod frozen;
mod rebase;
mod repoint;
mod residue;
mod rewrite;
mod times;

pub(super) use freeze::Snapshots;
pub use frozen::{Changes, Frozen, Put};
pub use rebase::Sealed;
pub use residue::Kept;
