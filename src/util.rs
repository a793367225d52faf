//! Small helpers that do not depend on stores. `home` and `sharing` know the directory of a store, but not its content.

pub mod bytes;
pub(crate) mod descriptors;
pub(crate) mod home;
pub(crate) mod limits;
pub(crate) mod meter;
pub(crate) mod names;
pub mod parallel;
pub(crate) mod patch;
pub mod sharing;
pub(crate) mod units;
