//! A verdict on a transfer, with the crash pack that was kept.

use std::path::PathBuf;

use crate::error::Error;
use crate::oracle::TransferOracleResult;

/// A verdict, and the place of its evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The oracle's result.
    pub result: TransferOracleResult,
    /// The crash pack that was kept, if there is one.
    pub pack: Option<PathBuf>,
    /// The first observation of a fault, in words.
    pub(super) seen: Option<String>,
}

impl Verdict {
    /// The error for the caller of a transfer, if there is a violation. It names the observation and the
    /// crash pack.
    pub fn error(&self) -> Option<Error> {
        let error = self.result.error()?;
        Some(self.explain(match &self.seen {
            // The text comes from `Steps`, which saw it.
            Some(seen) => error.with_hint(seen.clone()),
            None => error,
        }))
    }

    /// Adds the path of the crash pack to an error.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        let Some(pack) = &self.pack else { return error };
        let pack = format!("judge it again with `pfimg replay {}`", pack.display());
        let hint = match error.hint() {
            Some(hint) => format!("{hint}; {pack}"),
            None => pack,
        };
        error.with_hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::oracle::{Transfer, TransferKind, TransferState, judge};

    #[test]
    fn an_error_says_what_was_seen_first_and_which_command_judges_it_again() {
        let state = TransferState { journal_gaps: 1, ..TransferState::default() };
        let result = judge(&Transfer { kind: TransferKind::Seal, subject: "f".into(), state });
        let mut verdict =
            Verdict { result, pack: Some("/s/audit/crash/seal-1".into()), seen: Some("a gap".into()) };
        let error = verdict.error().unwrap();
        assert_eq!(error.hint(), Some("a gap; judge it again with `pfimg replay /s/audit/crash/seal-1`"));
        assert_eq!(error.kind(), ErrorKind::Damaged);
        verdict.seen = None;
        let error = verdict.error().unwrap();
        assert_eq!(error.hint(), Some("judge it again with `pfimg replay /s/audit/crash/seal-1`"));
        verdict.pack = None;
        assert_eq!(verdict.error().unwrap().hint(), None);
        verdict.result = judge(&Transfer {
            kind: TransferKind::Seal,
            subject: "f".into(),
            state: TransferState::default(),
        });
        assert!(verdict.error().is_none());
    }
}
