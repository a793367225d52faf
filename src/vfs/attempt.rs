//! Operations that may have to wait for the disk.
//!
//! An operation that may wait returns an [`Attempt`], others an [`Outcome`]. On an event loop an attempt ends
//! with [`Stop::Waits`] before it has changed anything. A worker then repeats all of it, including lookups.

use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::store::Store;
use crate::sync::wait::{self, MayWait};

/// Why an attempt gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The calling thread never waits for the disk.
    Waits,
    /// The operation failed.
    Failed(ErrorKind),
}

/// Outcome of an operation that never waits for the disk. An error's kind alone decides the errno; its details were logged
/// where it occurred.
pub type Outcome<T> = Result<T, ErrorKind>;

/// Outcome of an operation that may have to wait for the disk.
pub type Attempt<T> = Result<T, Stop>;

impl From<ErrorKind> for Stop {
    fn from(kind: ErrorKind) -> Self {
        if kind == ErrorKind::Waits { Self::Waits } else { Self::Failed(kind) }
    }
}

impl Stop {
    /// The kind that the caller of a file operation gets, on a thread that may wait.
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Waits => ErrorKind::Io(None),
            Self::Failed(kind) => kind,
        }
    }
}

/// Leave to wait for the disk. To be asked for before anything is changed.
pub(super) fn may_wait() -> Attempt<MayWait> {
    MayWait::here().ok_or(Stop::Waits)
}

/// Logs an error that names its path itself.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn logged(error: Error) -> Stop {
    if error.kind() != ErrorKind::Waits {
        tracing::error!("{error}");
    }
    error.kind().into()
}

/// Logs an error of a fork's operation if it deserves a line.
pub(super) fn of_fork(error: Error) -> Stop {
    match error.kind() {
        ErrorKind::Missing | ErrorKind::Damaged | ErrorKind::NoSpace | ErrorKind::Io(_) => logged(error),
        kind => kind.into(),
    }
}

/// The store below a mount. Only a thread that may wait gets at it.
#[derive(Clone, Debug)]
pub(super) struct OnDisk(Arc<Store>);

impl OnDisk {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self(store)
    }

    /// The store.
    pub(super) fn at(&self, _: MayWait) -> &Arc<Store> {
        &self.0
    }

    /// The store, for a thread that may wait.
    pub(super) fn here(&self) -> crate::Result<&Arc<Store>> {
        wait::required().map(|wait| self.at(wait))
    }

    /// Its folder.
    pub(super) fn root(&self) -> &std::path::Path {
        self.0.root()
    }
}
