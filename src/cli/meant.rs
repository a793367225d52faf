//! Finds the directory that a user meant, if a store, a mountpoint or a project is named in place of another.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::statuses::read_status;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::mount::mountinfo::{Mounted, holding_among, mounts};
use crate::store::Store;

/// Returns the store that a path names: the mounted one if the path is a mountpoint, else the path itself.
///
/// Refuses everything below a mountpoint except the files of images and forks: a store made there would be a
/// fork.
pub(crate) fn store_meant(path: PathBuf) -> Result<PathBuf> {
    let path = expand_home(path, std::env::home_dir().as_deref())?;
    let mounts = match mounts() {
        Ok(mounts) if mounts.iter().any(Mounted::is_ours) => mounts,
        Ok(_) => return Ok(path),
        // Without /proc, the files at the path must tell.
        Err(_) => return Ok(read_status(&path).map_or(path, |status| status.info.store)),
    };
    // Checks the path as written first: the mountpoint of a daemon that has ended or stopped does not answer.
    if let Ok(absolute) = std::path::absolute(&path)
        && !absolute.components().any(|component| component == Component::ParentDir)
        && let Some((mounted, inside)) = holding_among(&mounts, &absolute)
        && mounted.is_ours()
    {
        if inside == Path::new("/") {
            return source_of(mounted);
        }
        // Paths inside can be checked while the daemon answers.
        if let Err(error) = read_status(&mounted.path)
            && error.kind() == ErrorKind::NoAnswer
        {
            return Err(error);
        }
    }
    let Some(real) = real(&path) else { return Ok(path) };
    let Some((mounted, inside)) = holding_among(&mounts, &real).filter(|(mounted, _)| mounted.is_ours())
    else {
        return Ok(path);
    };
    if inside == Path::new("/") {
        return source_of(mounted);
    }
    if is_content(&inside) {
        return Ok(path);
    }
    let (shown, store) = (path.display(), mounted.source.display());
    let what = format!("{shown} is not a store: it lies in the mount of the store {store}");
    Err(Error::new(ErrorKind::InvalidInput, what)
        .with_hint(format!("name the store itself: --store {store}")))
}

/// Replaces a leading `~` by the home directory. Shells keep it in `--store=~/s` and in quotes, and service
/// files have no shell.
fn expand_home(path: PathBuf, home: Option<&Path>) -> Result<PathBuf> {
    let Some(Component::Normal(first)) = path.components().next() else { return Ok(path) };
    if !first.as_encoded_bytes().starts_with(b"~") {
        return Ok(path);
    }
    let shown = path.display();
    let odd =
        |what: String| Error::new(ErrorKind::InvalidInput, what).with_hint("name the store by its full path");
    if path.exists() {
        return Err(odd(format!(
            "{shown} may be a path in the home directory, or in the directory named {}",
            first.display()
        )));
    }
    if first != "~" {
        return Err(odd(format!("{shown}: pfimg expands ~ only for your own home directory")));
    }
    let home = home.ok_or_else(|| odd(format!("{shown}: there is no home directory")))?;
    Ok(home.join(path.components().skip(1).collect::<PathBuf>()))
}

fn source_of(mounted: &Mounted) -> Result<PathBuf> {
    if mounted.source.is_dir() {
        return Ok(mounted.source.clone());
    }
    let (mountpoint, store) = (mounted.path.display(), mounted.source.display());
    let what = format!("{mountpoint} shows the store {store}, which no longer exists");
    Err(Error::new(ErrorKind::NotFound, what).with_hint("name the store with --store"))
}

/// Returns whether a path in a mount is one of an image's or a fork's files, where a store may lie as in any
/// directory.
fn is_content(inside: &Path) -> bool {
    let names: Vec<_> = inside.iter().skip(1).collect();
    names.len() >= 4
        && (names[0] == "images" || names[0] == "forks")
        && names[2] == "world"
        && names[3] == "fs"
}

/// Returns a path without links, as far as it exists.
fn real(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    absolute.ancestors().find_map(|ancestor| {
        let real = fs::canonicalize(ancestor).ok()?;
        let rest = absolute.strip_prefix(ancestor).ok()?;
        Some(if rest.as_os_str().is_empty() { real } else { real.join(rest) })
    })
}

/// Returns whether a directory is a store.
fn is_store(path: &Path) -> bool {
    Store::open(path).is_ok()
}

/// Returns whether a directory has entries. One that cannot be listed counts as empty: its user does not see
/// the entries anyway.
fn holds_something(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// Refuses a mountpoint with entries, which the mount would hide, and suggests what the user probably meant.
pub(crate) fn refuse_full(mountpoint: &Path) -> Result<()> {
    if !holds_something(mountpoint) {
        return Ok(());
    }
    let shown = mountpoint.display();
    let what =
        format!("cannot mount at {shown}: the directory is not empty, and the mount would hide its files");
    Err(Error::new(ErrorKind::Posix(Posix::NotEmpty), what)
        .with_path(mountpoint)
        .with_hint(format!("{}, or add --nonempty", probably(mountpoint))))
}

/// Returns what a user who names a full directory as mountpoint probably meant.
fn probably(mountpoint: &Path) -> String {
    let shown = mountpoint.display();
    let home = std::env::home_dir().and_then(|home| fs::canonicalize(home).ok());
    if is_store(mountpoint) {
        format!("run `pfimg mount {shown} MNT` with an empty directory MNT to mount this store")
    } else if mountpoint == Path::new("/") || home.is_some_and(|home| home.starts_with(mountpoint)) {
        "name an empty directory, such as ~/pf".into()
    } else {
        format!("{}, name an empty directory", project(mountpoint))
    }
}

/// Adds a hint to the error of a path that is not a store: what the user probably meant, judging by the
/// mountpoint.
pub(crate) fn explain_no_store(error: Error, store: &Path, mountpoint: &Path, named: bool) -> Error {
    if error.kind() != ErrorKind::NotAStore {
        return error;
    }
    let shown = mountpoint.display();
    if is_store(mountpoint) {
        let mnt = if named { store.display().to_string() } else { "MNT".to_owned() };
        return error.with_hint(format!("run `pfimg mount {shown} {mnt}` to mount the store {shown}"));
    }
    if !named && holds_something(mountpoint) {
        return error.with_path(mountpoint).with_hint(project(mountpoint));
    }
    error
}

/// Returns what to do with a directory that is a project, and neither store nor mount.
fn project(folder: &Path) -> String {
    let shown = folder.display();
    format!(
        "run `pfimg import {shown}` to make an image of {shown}, or `pfimg run NAME -- COMMAND` there to work on a copy of it"
    )
}

/// Adds a hint to the error of a directory where nothing is mounted: what a user who names a project probably
/// meant.
pub(crate) fn explain_no_mount(error: Error, folder: &Path) -> Error {
    if !holds_something(folder) {
        return error;
    }
    if is_store(folder) {
        return error.with_hint(format!("run `pfimg mount {} MNT` to mount this store", folder.display()));
    }
    error.with_hint(project(folder))
}

/// Adds to the error of a missing mountpoint how to make it.
pub(crate) fn explain_missing(error: Error, mountpoint: &Path) -> Error {
    // There may be a mount that does not answer.
    if error.kind() != ErrorKind::NotFound
        || !fs::metadata(mountpoint).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    {
        return error;
    }
    // mkdir cannot make a directory at a dangling link.
    let made = match fs::read_link(mountpoint) {
        Ok(target) => mountpoint.parent().unwrap_or(mountpoint).join(target),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::EINVAL) => {
            mountpoint.to_owned()
        }
        Err(_) => return error,
    };
    error.with_hint(format!("run `mkdir -p {}` to make it", made.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_images_and_forks_may_hold_a_store() {
        for (inside, content) in [
            ("/", false),
            ("/images", false),
            ("/forks/new", false),
            ("/forks/f/world", false),
            ("/forks/f/world/fs", true),
            ("/forks/f/world/fs/store", true),
            ("/images/abc/world/fs/store", true),
            ("/agents/a/world/fs", false),
        ] {
            assert_eq!(is_content(Path::new(inside)), content, "{inside}");
        }
    }

    #[test]
    fn a_leading_tilde_means_the_home_directory_and_makes_no_directory_of_that_name() {
        let home = Path::new("/home/me");
        let expanded = |path: &str| expand_home(path.into(), Some(home));
        for (path, meant) in [
            ("~/s", "/home/me/s"),
            ("~", "/home/me"),
            ("~/a//b", "/home/me/a/b"),
            ("/a/~/s", "/a/~/s"),
            ("a~", "a~"),
            ("./~/s", "./~/s"),
            ("", ""),
        ] {
            assert_eq!(expanded(path).unwrap(), Path::new(meant), "{path}");
        }
        for (path, home) in [("~someone/s", Some(home)), ("~/s", None)] {
            assert_eq!(expand_home(path.into(), home).unwrap_err().kind(), ErrorKind::InvalidInput, "{path}");
        }
    }

    #[test]
    fn a_missing_path_is_resolved_as_far_as_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        std::os::unix::fs::symlink(".", base.join("link")).unwrap();
        assert_eq!(real(&base.join("link/not/there")).unwrap(), base.join("not/there"));
        assert_eq!(real(&base).unwrap(), base);
    }
}
