//! The error of the codecs.

use std::borrow::Cow;
use std::fmt;

/// The error for bytes that do not fit their layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// The format that was expected, for instance `fs.tree.v1`.
    pub format: &'static str,
    /// The position: a line number (from 1), an entry's path or the like; empty if it concerns the whole.
    pub at: String,
    /// What is wrong there.
    pub reason: Cow<'static, str>,
}

impl FormatError {
    pub(crate) fn new(
        format: &'static str,
        at: impl Into<String>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { format, at: at.into(), reason: reason.into() }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() {
            write!(f, "not {}: {}", self.format, self.reason)
        } else {
            write!(f, "not {}: {}: {}", self.format, self.at, self.reason)
        }
    }
}

impl std::error::Error for FormatError {}
