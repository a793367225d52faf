//! Mountpoints: mounts and unmounts stores, and reads the kernel's list of mounts.

pub(crate) mod abort;
pub(crate) mod attach;
pub(crate) mod hints;
mod identity;
pub mod mountinfo;
pub(crate) mod options;
pub(crate) mod own;
pub(crate) mod reach;
pub(crate) mod silent;
