//! A running mount: builds the parts of a daemon, serves the kernel, does background work, and ends. Also forks without a mount.
//!
//! This room takes no signals and starts no program but `fusermount3`, so that any program can hold a mount.

mod builder;
pub(crate) mod calls;
pub(crate) mod dirs;
mod first;
pub(crate) mod forks;
mod handle;
mod handler;
mod peer;
mod serve;
mod server;
mod socket;
mod tasks;

pub use builder::Builder;
pub use forks::{Forks, Sealed};
pub use handle::MountedStore;
pub use serve::Stopper;

pub use crate::control::Numbering;
pub use crate::ops::back::Outcome as Restored;
pub use crate::vfs::SealPolicy;
