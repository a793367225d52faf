//! Asks the daemon of a mount for something, from any process of the user who mounted the store.

use std::path::{Path, PathBuf};

use super::dirs::log_of;
use crate::control::Client;
use crate::control::protocol::{Flushed, Forks, Nothing, Request, Sealed};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, About};
use crate::mount::silent;
use crate::ops::back::{Asked, Outcome};
use crate::store::plain_folder_mode;

/// Makes the mount that writes a fork take in written data that the kernel still keeps. Returns whether the fork has unsealed
/// changes, or is damaged.
pub(crate) fn flush(client: &Client, fork: &str) -> Result<bool> {
    let Flushed { unsealed } = client.ask(&Request::Flush { fork: fork.to_owned() })?;
    Ok(unsealed)
}

/// Makes an image of a fork.
pub(crate) fn seal(
    client: &Client,
    fork: &str,
    tag: Option<&str>,
    force: bool,
    about: About,
) -> Result<Sealed> {
    let About { after, message, .. } = about;
    client.ask(&Request::Seal { fork: fork.to_owned(), tag: tag.map(str::to_owned), force, after, message })
}

/// Restores a fork, or paths of it.
pub(crate) fn restore(client: &Client, fork: &str, asked: Asked) -> Result<Outcome> {
    let Asked { seal, undo, paths } = asked;
    client.ask(&Request::Restore { fork: fork.to_owned(), seal, undo, paths })
}

/// Returns the names of the forks, sorted.
pub(crate) fn names(client: &Client) -> Result<Vec<String>> {
    let Forks { forks } = client.ask(&Request::Forks {})?;
    Ok(forks)
}

/// Makes a fork of a fork or an image.
pub(crate) fn fork(client: &Client, source: &str, name: &str) -> Result<()> {
    let mode = plain_folder_mode();
    let Nothing {} = client.ask(&Request::Fork { name: name.to_owned(), source: source.to_owned(), mode })?;
    Ok(())
}

/// Renames a fork.
pub(crate) fn rename(client: &Client, fork: &str, name: &str) -> Result<()> {
    let Nothing {} = client.ask(&Request::Rename { fork: fork.to_owned(), name: name.to_owned() })?;
    Ok(())
}

/// Discards a fork, with `force` also one with unsealed work. Returns once the kernel no longer shows it.
pub(crate) fn discard(client: &Client, fork: &str, force: bool) -> Result<()> {
    let Nothing {} = client.ask(&Request::Discard { fork: fork.to_owned(), force })?;
    Ok(())
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
