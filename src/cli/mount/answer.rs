//! The answer of a daemon to the process that started it, and its output for programs.

use std::path::Path;

use serde_json::json;

use crate::cli::envelope::print_json;
use crate::control::protocol::{Nothing, reply, reply_line};
use crate::error::{Error, Result};

/// Returns what a daemon tells the process that started it, as one line of the protocol: that the mount answers, or why not.
pub(super) fn to_starter(started: Result<(), &Error>) -> String {
    String::from_utf8_lossy(&reply_line(started.map(|()| &Nothing {}))).into_owned()
}

/// Parses such a line; `None` if the daemon ended before it sent one.
pub(super) fn from_daemon(line: &str) -> Option<Result<()>> {
    let started = line.ends_with('\n').then(|| reply::<Nothing>(line.as_bytes()))?;
    Some(started.map(|Nothing {}| ()))
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
    use crate::error::ErrorKind;

    #[test]
    fn an_error_of_the_daemon_is_the_same_error_to_its_starter() {
        assert!(matches!(from_daemon(&to_starter(Ok(()))), Some(Ok(()))));
        for error in [
            Error::new(ErrorKind::Busy, "a \"quoted\"\nmessage").with_hint("try again").with_path("/mnt"),
            Error::new(ErrorKind::Posix(crate::error::Posix::NotEmpty), "full"),
        ] {
            let line = to_starter(Err(&error));
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let told = from_daemon(&line).unwrap().unwrap_err();
            assert_eq!((told.kind(), told.to_string()), (error.kind(), error.to_string()));
            assert_eq!(told.path(), error.path());
        }
        assert!(["", "ok", "{}"].iter().all(|line| from_daemon(line).is_none()));
        assert!(from_daemon("{}\n").unwrap().is_err());
    }
}
