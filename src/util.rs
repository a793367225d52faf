//! Small helpers that do not depend on stores.

pub(crate) mod descriptors;
pub(crate) mod limits;
pub(crate) mod meter;
pub(crate) mod names;
pub mod parallel;
pub(crate) mod patch;
pub(crate) mod units;
