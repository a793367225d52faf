//! Renames and discards of forks that commands ask for.
//!
//! A thread of the daemon renames the fork's folder through the mount, so that the kernel moves the name itself: programs and
//! mounts in the fork stay in it, and programs that watch see the rename. The daemon recognizes the request of that thread, and
//! does then what the command asked for.

use super::forks_dir::Only;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// A rename of a fork's folder by the daemon itself.
#[derive(Debug)]
pub struct Moving {
    /// The fork's name.
    pub(super) name: String,
    pub(super) to: To,
    /// The result; nothing before the kernel has sent the request.
    done: Mutex<Option<Result<()>>>,
}

/// Where the fork's folder goes.
#[derive(Debug)]
pub(super) enum To {
    /// To another name in `forks/`.
    Name(String),
    /// To a name in `.pfimg/`: the fork is discarded.
    Gone { place: String, only: Only },
}

impl Moving {
    pub(super) fn new(name: String, to: To) -> Self {
        Self { name, to, done: Mutex::default() }
    }

    /// The path of the fork's folder from the mountpoint, before and after.
    pub fn paths(&self) -> (String, String) {
        let to = match &self.to {
            To::Name(name) => format!("forks/{name}"),
            To::Gone { place, .. } => format!(".pfimg/{place}"),
        };
        (format!("forks/{}", self.name), to)
    }

    pub(super) fn note(&self, done: Result<()>) {
        *self.done.lock() = Some(done);
    }

    /// Takes the result out; nothing if the kernel sent no request.
    pub(super) fn take(&self) -> Option<Result<()>> {
        self.done.lock().take()
    }

    /// The error kind of the result, for the kernel.
    pub(super) fn kind(&self) -> Option<crate::error::ErrorKind> {
        self.done.lock().as_ref().and_then(|done| done.as_ref().err().map(Error::kind))
    }
}
