//! Explains refused changes that look possible. The caller sees only an errno.

use std::time::{Duration, Instant};

use chrono::Utc;

use super::node::{BuiltinDir, Node};
use crate::control::Refusal;
use crate::error::{ErrorKind, Posix};
use crate::sync::Mutex;

/// How long the log does not repeat the same advice.
const AGAIN: Duration = Duration::from_mins(1);

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

    /// Logs why a name in a folder was refused, if another place would accept it.
    pub(super) fn refused(&self, folder: &Node, name: &[u8], kind: ErrorKind) {
        let possible = matches!(kind, ErrorKind::ReadOnly | ErrorKind::Posix(Posix::NotPermitted));
        let Some(what) = possible.then(|| advice(folder, &String::from_utf8_lossy(name), kind)).flatten()
        else {
            return;
        };
        let mut logged = self.logged.lock();
        if logged.as_ref().is_none_or(|(said, at)| *said != what || at.elapsed() > AGAIN) {
            tracing::info!("refused: {what}");
            *logged = Some((what.clone(), Instant::now()));
        }
        *self.last.lock() = Some(Refusal { what, at: Utc::now() });
    }
}

fn advice(folder: &Node, name: &str, kind: ErrorKind) -> Option<String> {
    let by_rule = kind != ErrorKind::ReadOnly;
    match folder {
        Node::Builtin(BuiltinDir::Work) if by_rule => Some(format!(
            "work/{name}: work/ holds one link for each fork (`mkdir forks/NAME` makes a fork, `pfimg discard NAME` removes one)"
        )),
        Node::Builtin(BuiltinDir::Root) => Some(format!(
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
