//! What an oracle said of a transfer, with what was kept of it.

use std::path::PathBuf;

use crate::error::Error;
use crate::oracle::TransferOracleResult;

/// A verdict, and where to look when something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What the oracle said.
    pub result: TransferOracleResult,
    /// The crash pack that was kept, if there is one.
    pub pack: Option<PathBuf>,
    /// What was seen first on the way, in words.
    pub(super) seen: Option<String>,
}

impl Verdict {
    /// The error the caller of a transfer gets, if there is one to get. Says what was seen and where the crash pack is.
    pub fn error(&self) -> Option<Error> {
        let error = self.result.error()?;
        Some(self.explain(match &self.seen {
            Some(seen) => error.with_hint(seen.clone()),
            None => error,
        }))
    }

    /// Adds to an error where the crash pack is.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        let Some(pack) = &self.pack else { return error };
        let pack = format!("`pfimg replay {}` judges it again", pack.display());
        let hint = error.hint().map_or_else(|| pack.clone(), |hint| format!("{hint}; {pack}"));
        error.with_hint(hint)
    }
}
