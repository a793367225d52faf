//! Reads the status of mounts from their daemons.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::text::plain;
use crate::control::{MountInfo, Refusal};
use crate::daemon::dirs::log_of;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo::holding;
use crate::mount::silent::{self, Answer, Question};

/// `.pfimg/status.json` of a mount.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    #[serde(flatten)]
    pub(crate) info: MountInfo,
    pub(crate) images: u64,
    /// Whether the forks are written through this mount; if not, another mount may write them.
    pub(crate) writes_forks: bool,
    /// The crash packs of the store; none from an older daemon.
    #[serde(default)]
    pub(crate) crash_packs: CrashPacks,
    pub(crate) counters: Map<String, Value>,
    /// Why the cache directory is not used.
    #[serde(default)]
    pub(crate) cache_problem: Option<String>,
    /// Where the store is now, if another program moved it.
    #[serde(default)]
    pub(crate) moved_to: Option<String>,
    /// The last refused change that another place would have accepted.
    #[serde(default)]
    pub(crate) refused: Option<Refusal>,
    /// Whether the mount is visible only in another mount namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) elsewhere: bool,
}

/// Crash packs of a store: how many, and the names of the newest.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct CrashPacks {
    pub(crate) count: u64,
    pub(crate) newest: Vec<String>,
}

/// Returns the status of the mount at a path.
pub(crate) fn read_status(mountpoint: &Path) -> Result<Status> {
    let folder = mountpoint.to_owned();
    read_statuses(std::slice::from_ref(&folder)).pop().unwrap_or_else(|| Err(unanswered(&folder)))
}

/// Returns the status of each mount, or why there is none. Waits for all daemons together no longer than for
/// one.
pub(crate) fn read_statuses(folders: &[PathBuf]) -> Vec<Result<Status>> {
    let questions: Vec<_> = folders.iter().map(|folder| Question::Read(document(folder))).collect();
    let answers = silent::ask(&questions);
    folders.iter().zip(answers).map(|(folder, answer)| status(folder, answer)).collect()
}

fn document(folder: &Path) -> PathBuf {
    folder.join(".pfimg/status.json")
}

fn status(folder: &Path, answer: Answer) -> Result<Status> {
    let shown = folder.display();
    let text = match answer {
        Answer::Is(text) => text,
        Answer::None => return Err(unanswered(folder)),
        Answer::Failed(e) => {
            return Err(match e.raw_os_error() {
                _ if silent::has_ended(&e) => {
                    let shown = plain(&folder.to_string_lossy(), usize::MAX);
                    let ended = Error::io(e, format!("the daemon of {shown} has ended"));
                    match log_of(folder) {
                        Some(log) => ended.with_hint(format!(
                            "read its log, {}; clear the mount with `pfimg umount {shown}`",
                            log.display()
                        )),
                        None => ended.with_hint(format!("clear the mount with `pfimg umount {shown}`")),
                    }
                }
                Some(libc::ENOENT | libc::ENOTDIR) => {
                    Error::new(ErrorKind::NotFound, format!("no store is mounted at {shown}"))
                }
                _ => Error::io(e, format!("cannot ask the mount at {shown}")),
            });
        }
    };
    serde_json::from_slice(&text).map_err(|e| {
        Error::new(ErrorKind::Damaged, format!("cannot read {}: {e}", document(folder).display()))
    })
}

/// Returns the error for a mount that does not answer.
fn unanswered(folder: &Path) -> Error {
    let path = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    match holding(&path) {
        Ok(Some((mounted, _))) => silent::no_answer(&mounted),
        _ => Error::new(ErrorKind::NoAnswer, format!("the mount at {} does not answer", folder.display())),
    }
}
