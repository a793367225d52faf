//! Keeps records next to a fork: its project, and its runs.
//!
//! They are not part of the fork: the engine does not need them, and an older program ignores them. The project is stored
//! under the fork's `uid`, like its list of seals, so that a rename does not affect it. The files of runs have the fork's name.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::disk::{GenId, Generation, Head, head_path, refuse_fork_name};
use super::errors::no_fork;
use super::journal::HEADER;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Sharing, SystemIo, write_whole};

/// The folders of projects and of runs, in `forks/`.
const PROJECTS: &str = "projects";
const RUNS: &str = ".runs";

/// The files of a fork's last run: its record, its output, and the list of deleted paths if that is too long for the record.
const RECORD: &str = "json";
const OUTPUT: &str = "out";
const DELETIONS: &str = "gone";

/// All files of a run.
const OF_RUNS: [&str; 3] = [RECORD, OUTPUT, DELETIONS];

/// The longest path in bytes that is read: longer than any path that the kernel accepts.
const MAX_PATH: u64 = 64 << 10;

/// What a fork's head on disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// The fork's identity. A restore changes it.
    pub uid: String,
    /// When it was made, in nanoseconds since 1970. Stays through renames and restores.
    pub created_ns: i64,
    /// The image it rests on.
    pub base: Option<Digest>,
    /// Whether the fork has no changes over that image.
    pub is_untouched: bool,
}

impl OnDisk {
    /// Reads a fork's head and the lengths of its journals. Fails with [`ErrorKind::NotFound`] if there is no such fork.
    pub fn read(store: &Path, fork: &str) -> Result<Self> {
        let forks = store.join("forks");
        let head = head_of(&forks, fork)?;
        let is_empty = |id: &GenId| {
            // A generation that was never written to may lack its journal.
            let journal = fs::metadata(Generation::dir(&forks, *id).join("journal"));
            match journal {
                Ok(journal) => journal.len() <= HEADER as u64,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            }
        };
        let is_untouched = head.generations.iter().all(is_empty);
        Ok(Self { uid: head.uid, created_ns: head.created_ns, base: head.base, is_untouched })
    }
}

fn head_of(forks: &Path, fork: &str) -> Result<Head> {
    if refuse_fork_name(fork).is_some() {
        return Err(no_fork(fork));
    }
    Head::read(&head_path(forks, fork), fork).map_err(|error| match error.kind() {
        ErrorKind::NotFound => no_fork(fork),
        _ => error,
    })
}

/// Returns the project folder that was recorded for a fork. The folder may no longer exist.
pub fn project(store: &Path, fork: &str) -> Result<Option<PathBuf>> {
    let forks = store.join("forks");
    let path = forks.join(PROJECTS).join(head_of(&forks, fork)?.uid);
    let failed = |e| Error::io(e, format!("cannot read {}", path.display()));
    let bytes = match fs::metadata(&path) {
        Ok(metadata) if metadata.len() <= MAX_PATH => fs::read(&path),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => {
            let root = PathBuf::from(OsString::from_vec(bytes));
            Ok(root.is_absolute().then_some(root))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Records a fork's project folder, as the bytes of its path.
pub fn set_project(store: &Path, fork: &str, root: &Path) -> Result<()> {
    let (forks, sharing) = (store.join("forks"), Sharing::of(store));
    let folder = forks.join(PROJECTS);
    let path = folder.join(head_of(&forks, fork)?.uid);
    let written = sharing
        .create_dir_below(store, &folder)
        .and_then(|()| write_whole(&SystemIo, sharing, &path, root.as_os_str().as_bytes(), false, false));
    written.map_err(|e| Error::io(e, format!("cannot record the project of fork {fork:?}")))
}

/// Copies the project of a fork to the fork that replaces it.
pub(super) fn inherit(forks: &Path, sharing: Sharing, from: &str, to: &str) {
    let folder = forks.join(PROJECTS);
    let copied = fs::read(folder.join(from))
        .and_then(|root| write_whole(&SystemIo, sharing, &folder.join(to), &root, false, true));
    match copied {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("a restored fork lost the record of its project: {error}");
        }
        _ => {}
    }
}

/// Removes the project record of a fork that no longer exists.
pub(super) fn forget_project(forks: &Path, uid: &str) {
    let _ = fs::remove_file(forks.join(PROJECTS).join(uid));
}

/// The record of a fork's present or last run: `forks/.runs/NAME.json`.
pub fn run_record(store: &Path, fork: &str) -> PathBuf {
    run_file(&store.join("forks"), fork, RECORD)
}

/// The kept output of a fork's last run: `forks/.runs/NAME.out`.
pub fn run_output(store: &Path, fork: &str) -> PathBuf {
    run_file(&store.join("forks"), fork, OUTPUT)
}

/// The paths that a fork's last run deleted, if the record refers to this file: `forks/.runs/NAME.gone`.
pub fn run_deletions(store: &Path, fork: &str) -> PathBuf {
    run_file(&store.join("forks"), fork, DELETIONS)
}

/// The name of the command that runs in a fork, if one does. A record that cannot be read counts as none.
pub fn running(store: &Path, fork: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Run {
        pid: u32,
        pid_started: Option<u64>,
        command: Vec<String>,
        ended: Option<String>,
    }
    let bytes = fs::read(run_record(store, fork)).ok()?;
    let run: Run = serde_json::from_slice(&bytes).ok()?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", run.pid)).ok()?;
    // The second field is a name, which may hold anything. The 22nd is 20 words behind it.
    let began: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    if run.ended.is_some() || run.pid_started.is_some_and(|started| started != began) {
        return None;
    }
    run.command.first().map(|program| command_name(program))
}

/// The name by which people know a command: that of its program without the folders.
pub fn command_name(program: &str) -> String {
    program.rsplit('/').next().unwrap_or(program).to_owned()
}

fn run_file(forks: &Path, fork: &str, kind: &str) -> PathBuf {
    // No fork's name begins with a dot, and the ending is appended even if the name already has one.
    forks.join(RUNS).join(format!("{fork}.{kind}"))
}

/// Writes a file of runs, whole or not at all.
pub fn write_run_file(store: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let written =
        make_runs(store).and_then(|()| write_whole(&SystemIo, Sharing::of(store), path, bytes, false, false));
    written.map_err(|e| Error::io(e, format!("cannot write {}", path.display())))
}

/// Makes the folder of runs.
pub fn make_runs(store: &Path) -> io::Result<()> {
    Sharing::of(store).create_dir_below(store, &store.join("forks").join(RUNS))
}

/// Renames the files of runs with their fork.
pub(super) fn renamed(forks: &Path, from: &str, to: &str) {
    for kind in OF_RUNS {
        let (from, to) = (run_file(forks, from, kind), run_file(forks, to, kind));
        // A file that an earlier fork of the new name left belongs to another run.
        if fs::rename(&from, &to).is_err() {
            let _ = fs::remove_file(&to);
        }
    }
}

/// Removes the files of runs of a fork that no longer exists.
pub(super) fn gone(forks: &Path, fork: &str) {
    for kind in OF_RUNS {
        let _ = fs::remove_file(run_file(forks, fork, kind));
    }
}
