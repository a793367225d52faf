//! Errors that several parts of the engine give.

use crate::error::{Error, ErrorKind, Posix};

pub(super) fn posix(rule: Posix, message: &'static str) -> Error {
    Error::new(ErrorKind::Posix(rule), message)
}

pub(super) fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such file or directory")
}

pub(super) fn no_fork(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no fork {name:?}"))
        .with_name(name)
        .with_hint("list the forks with `pfimg forks`")
}

/// The error for a name that another fork has.
pub(super) fn taken(name: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("there is a fork {name:?} already"))
}
