//! The answer of a daemon to the process that started it, and its output for programs.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::envelope::print_json;
use crate::error::{Error, ErrorKind, Result};

/// Returns an error as one line for the process that started the daemon.
pub(super) fn to_starter(error: &Error) -> String {
    json!({"kind": error.kind().name(), "message": error.message(), "hint": error.hint()}).to_string()
}

/// Parses the error that a daemon sent to its starter; `None` if the daemon ended without an answer.
pub(super) fn from_daemon(line: &str) -> Option<Error> {
    let told: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| told.get(key)?.as_str().map(str::to_owned);
    // The text comes from `to_starter`.
    let error = Error::new(ErrorKind::named(&text("kind")?)?, text("message")?);
    Some(match text("hint") {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
}

/// Prints the mounted store, the mountpoint and the daemon's process for programs.
pub(super) fn print_mounted(store: &Path, mountpoint: &Path, pid: u32, log: Option<&Path>) -> Result<()> {
    print_json(&json!({
        "store": store.to_string_lossy(),
        "mountpoint": mountpoint.to_string_lossy(),
        "pid": pid,
        "log": log.map(Path::to_string_lossy),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_daemon_is_the_same_error_to_its_starter() {
        for error in [
            Error::new(ErrorKind::Busy, "a \"quoted\"\nmessage").with_hint("try again"),
            Error::new(ErrorKind::Posix(crate::error::Posix::NotEmpty), "full"),
        ] {
            let line = to_starter(&error);
            assert!(!line.contains('\n'), "{line}");
            let told = from_daemon(&line).unwrap();
            assert_eq!((told.kind(), told.to_string()), (error.kind(), error.to_string()));
        }
        assert!(
            ["", "ok", "{}", "{\"kind\":\"new\",\"message\":\"x\"}"]
                .iter()
                .all(|line| from_daemon(line).is_none())
        );
    }
}
