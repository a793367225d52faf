//! What the tests of forks share.

/// Both ways of writing.
pub(super) const MODES: [&str; 2] = ["through", "back"];
