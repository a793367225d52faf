//! Asks a mount for something through its own files, from any process that may use it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::dirs::log_of;
use super::forks::image;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork;
use crate::mount::silent;
use crate::ops::back::Request;
use crate::store::{Store, tags};

/// How long a mount may take to report the result of a request, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

/// The result of asking the kernel for data that programs wrote.
#[derive(Deserialize)]
pub(crate) struct Pushed {
    #[serde(rename = "pushed")]
    _pushed: bool,
    /// Whether the fork has unsealed changes; `None` from an older daemon.
    pub(crate) unsealed: Option<bool>,
}

/// Makes the mount that writes a fork take in written data that the kernel still keeps.
pub(crate) fn push(mountpoint: &Path, fork: &str) -> Result<()> {
    let doing = format!("cannot take in data that programs wrote to fork {fork:?}");
    let Pushed { .. } = ask(mountpoint, fork, &doing, |number| format!(".push-{number}"))?;
    Ok(())
}

/// The result of a seal or a restore.
#[derive(Debug, Deserialize)]
pub(crate) struct Done {
    pub(crate) image: Digest,
    pub(crate) new: bool,
    pub(crate) reports: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Done(T),
    Failed(Failed),
}

/// Why a mount refused a request. Older daemons send no kind, and put the hint into the error.
#[derive(Deserialize)]
struct Failed {
    error: String,
    exit_code: u8,
    kind: Option<String>,
    hint: Option<String>,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        let Failed { error, exit_code, kind, hint } = failed;
        let by_code = || match exit_code {
            2 => ErrorKind::InvalidInput,
            4 => ErrorKind::Damaged,
            _ => ErrorKind::Io(None),
        };
        let kind = kind.and_then(|kind| ErrorKind::named(&kind)).unwrap_or_else(by_code);
        // The text comes from `Vfs`, in the daemon.
        let error = Self::new(kind, error);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// Sends a request about a fork to a mount: makes a directory in its `.snap/`, named by a number, and reads the
/// answer under that number.
pub(crate) fn ask<T: DeserializeOwned>(
    mountpoint: &Path,
    fork: &str,
    doing: &str,
    name: impl FnOnce(&str) -> String,
) -> Result<T> {
    let number = fork::GenId::random()?.to_string();
    let name = name(&number);
    ask_as(mountpoint, fork, doing, &number, &name)
}

fn ask_as<T: DeserializeOwned>(
    mountpoint: &Path,
    fork: &str,
    doing: &str,
    number: &str,
    name: &str,
) -> Result<T> {
    let folder = fork_folder(mountpoint, fork)?;
    let made = std::fs::create_dir(folder.join(".snap").join(name));
    let answer = answer_to(mountpoint, number, made.is_ok());
    match (made, answer.ok().and_then(|text| serde_json::from_slice(&text).ok())) {
        (Ok(()), Some(Answer::Done(done))) => Ok(done),
        (_, Some(Answer::Failed(failed))) => Err(failed.into()),
        (Err(e), _) => Err(explain(e, doing.to_owned(), mountpoint)),
        (Ok(()), None) => Err(Error::new(ErrorKind::Io(None), format!("{doing}: the daemon sent no reply"))),
    }
}

/// The most bytes of a request in one name, before base64. A name has at most 255 bytes.
const PART: usize = 150;

/// Sends a request of any length about a fork to a mount. The request goes in parts, each as the name of a
/// directory in `.snap/`: the kernel checks the same permission as for a seal, and nothing remains.
pub(crate) fn ask_for<T: DeserializeOwned>(
    mountpoint: &Path,
    fork: &str,
    doing: &str,
    request: &Request,
) -> Result<T> {
    let snap = fork_folder(mountpoint, fork)?.join(".snap");
    let number = fork::GenId::random()?.to_string();
    let bytes = serde_json::to_vec(request)
        .map_err(|e| Error::new(ErrorKind::InvalidInput, doing.to_owned()).with_source(e))?;
    for (at, part) in bytes.chunks(PART).enumerate() {
        let name = format!(".ask-{number}-{at}={}", BASE64URL_NOPAD.encode(part));
        std::fs::create_dir(snap.join(name)).map_err(|e| explain(e, doing.to_owned(), mountpoint))?;
    }
    ask_as(mountpoint, fork, doing, &number, &format!(".do-{number}"))
}

/// Reads the answer of a mount to the request with a number. If it `will` answer, waits for that: the mount
/// answers once the kernel shows the result, a moment later.
fn answer_to(mountpoint: &Path, number: &str, will: bool) -> std::io::Result<Vec<u8>> {
    let done = mountpoint.join(format!(".pfimg/done-{number}.json"));
    let mut answer = std::fs::read(&done);
    let asked = Instant::now();
    while will
        && answer.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        && asked.elapsed() < PATIENCE
    {
        std::thread::sleep(LOOK);
        answer = std::fs::read(&done);
    }
    answer
}

/// Returns the names of the forks under a mountpoint.
pub(crate) fn names(mountpoint: &Path) -> Result<Vec<String>> {
    let folder = mountpoint.join("forks");
    let failed = |e| Error::io(e, format!("cannot list {}", folder.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        // A fork's name is UTF-8.
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Discards a fork of a mount, with `force` also one with unsealed work. Returns once the kernel no longer
/// shows it.
pub(crate) fn discard_under(mountpoint: &Path, name: &str, force: bool) -> Result<()> {
    let folder = fork_folder(mountpoint, name)?;
    // The daemon checks again: a program may have written since this process checked.
    let number = format!("{}{}", if force { "" } else { "sealed-" }, fork::GenId::random()?);
    let doing = format!("cannot discard fork {name:?}");
    // Moving a fork there discards it at once, with everything in it.
    std::fs::rename(folder, mountpoint.join(format!(".pfimg/discarded-{number}")))
        .map_err(|e| explain(e, doing.clone(), mountpoint))?;
    answer_to(mountpoint, &number, true).map(drop).map_err(|error| {
        let what = format!(
            "fork {name:?} is discarded, but the daemon did not confirm it: programs may still see it"
        );
        Error::new(ErrorKind::Io(None), what).with_source(error)
    })
}

/// Returns a fork's directory under a mountpoint. Fails for a word that is not a fork's name, such as a path.
pub(crate) fn fork_folder(mountpoint: &Path, name: &str) -> Result<PathBuf> {
    let folder = mountpoint.join("forks").join(name);
    if fork::refuse_fork_name(name).is_some() || !folder.exists() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no fork {name:?}"))
            .with_name(name)
            .with_hint("list the forks with `pfimg forks`"));
    }
    Ok(folder)
}

/// Returns where a fork's files are under a mountpoint: the directory itself, and not the link in `work/`.
/// Programs that watch a directory or walk through it do not follow a link given to them.
pub(crate) fn files_of(mountpoint: &Path, name: &str) -> PathBuf {
    mountpoint.join("forks").join(name).join("world/fs")
}

/// Returns where a new fork's directory will be. Fails if the name is invalid or taken.
pub(crate) fn new_fork_folder(store: &Store, mountpoint: &Path, name: &str) -> Result<PathBuf> {
    if let Some(why) = fork::refuse_new_fork_name(name) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a fork's name: {why}")));
    }
    let folder = mountpoint.join("forks").join(name);
    if folder.exists() {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a fork {name:?} already")));
    }
    if tags::is_there(store.root(), name) {
        let what = format!("{name:?} cannot be a fork's name: a tag has it");
        return Err(Error::new(ErrorKind::AlreadyExists, what).with_hint("choose another name"));
    }
    Ok(folder)
}

/// Makes a fork through a mount.
pub(crate) fn make_under(mountpoint: &Path, store: &Store, source: &str, name: &str) -> Result<()> {
    new_fork_folder(store, mountpoint, name)?;
    // This error says more than an errno.
    if fork_folder(mountpoint, source).is_err() {
        image(store, source)?;
    }
    std::fs::create_dir(mountpoint.join("forks").join(format!("{name}@{source}")))
        .map_err(|e| explain(e, format!("cannot make fork {name:?} of {source:?}"), mountpoint))
}

/// Explains a failed call under a mount, which gives only an error number.
pub(crate) fn explain(error: std::io::Error, doing: String, mountpoint: &Path) -> Error {
    let known = matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::InvalidInput
    );
    let has_ended = silent::has_ended(&error);
    let failed = Error::io(error, doing);
    if known {
        return failed;
    }
    if has_ended {
        let shown = mountpoint.display();
        return match log_of(mountpoint) {
            Some(log) => failed.with_hint(format!(
                "the daemon of {shown} has ended; its log is {}. Run the command again: completed writes are kept",
                log.display()
            )),
            None => failed.with_hint(format!(
                "the daemon of {shown} has ended. Run the command again: completed writes are kept"
            )),
        };
    }
    failed.with_hint(format!(
        "read the log of the mount at {}; `pfimg status` shows its path",
        mountpoint.display()
    ))
}
