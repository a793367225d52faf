//! Explains refused changes that look possible. The caller sees only an errno.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::inode::{Fixed, Ino, Node};
use super::{Attempt, Stop, Vfs};
use crate::error::{ErrorKind, Posix};
use crate::sync::Mutex;

/// How long the log does not repeat the same advice.
const AGAIN: Duration = Duration::from_mins(1);

/// A refused change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused, why, and what to do.
    pub what: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// Refused changes, for the log and `.pfimg/status.json`.
#[derive(Default)]
pub(super) struct Advice {
    last: Mutex<Option<Refusal>>,
    /// The last advice in the log, and when it was logged.
    logged: Mutex<Option<(String, Instant)>>,
}

impl Advice {
    pub(super) fn last(&self) -> Option<Refusal> {
        self.last.lock().clone()
    }

    fn give(&self, what: String) {
        let mut logged = self.logged.lock();
        if logged.as_ref().is_none_or(|(said, at)| *said != what || at.elapsed() > AGAIN) {
            tracing::info!("refused: {what}");
            *logged = Some((what.clone(), Instant::now()));
        }
        *self.last.lock() = Some(Refusal { what, at: Utc::now() });
    }
}

impl Vfs {
    /// Returns the kind of error for a change outside of forks. In a mount that writes forks, `work/` is not called a
    /// read-only filesystem, since its links follow `forks/`. For a read-only mount the kernel itself answers.
    pub(super) fn outside_forks(&self, node: &Node) -> ErrorKind {
        if matches!(node, Node::Fixed(Fixed::Work)) && self.forks.are_written_here() {
            return ErrorKind::Posix(Posix::NotPermitted);
        }
        ErrorKind::ReadOnly
    }

    /// Returns the outcome unchanged. Logs why a name was refused, if another place would accept it.
    pub(super) fn advised<T>(&self, folder: Ino, name: &[u8], outcome: Attempt<T>) -> Attempt<T> {
        if let Err(Stop::Failed(kind @ (ErrorKind::ReadOnly | ErrorKind::Posix(Posix::NotPermitted)))) =
            &outcome
            && let Ok(folder) = self.node(folder)
            && let Some(what) = advice(&folder, &String::from_utf8_lossy(name), *kind)
        {
            self.advice.give(what);
        }
        outcome
    }
}

fn advice(folder: &Node, name: &str, kind: ErrorKind) -> Option<String> {
    let by_rule = kind != ErrorKind::ReadOnly;
    match folder {
        Node::Fixed(Fixed::Work) if by_rule => Some(format!(
            "work/{name}: work/ holds one link for each fork (`mkdir forks/NAME` makes a fork, `pfimg discard NAME` removes one)"
        )),
        Node::Fixed(Fixed::Root) => Some(format!(
            "{name} next to images/ and forks/: the mount takes no other folders or files there (`mkdir forks/NAME` makes a fork to write in)"
        )),
        Node::Forked { mounted, ino } if by_rule && ino.is_frame() => {
            // Another thread may be writing the head.
            let fork = mounted.fork.name_if_free().unwrap_or_else(|| "NAME".into());
            Some(format!(
                "{name} in forks/{fork}: layers keep their names and records (write files into forks/{fork}/world/fs)"
            ))
        }
        Node::ImageDir { .. } | Node::Dir { .. } => Some(format!(
            "{name} in an image: images never change (`mkdir forks/NAME@IMAGE` makes a fork of it to write in)"
        )),
        _ => None,
    }
}
