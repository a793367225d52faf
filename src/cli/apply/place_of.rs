//! Finds the directory and the paths of an apply.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::args::refuse;
use crate::cli::audit;
use crate::cli::place::{self, Place};
use crate::cli::text::plain;
use crate::control::protocol::Sealed;
use crate::daemon::{calls, forks};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::About;
use crate::fork::beside::{self, OnDisk};
use crate::mount::mountinfo::mounts;
use crate::ops::apply::Step;
use crate::ops::import::project::{Project, is_import_of};
use crate::ops::recover;
use crate::ops::seal::Sealer;
use crate::store::Store;

/// Returns the named directory, or the project of the current directory if the fork is a copy of it.
pub(super) fn directory(
    store: &Store,
    named: Option<&Path>,
    name: &str,
    is_fork: bool,
    base: Option<&Digest>,
) -> Result<PathBuf> {
    let dir = match named {
        Some(dir) => real(dir)?,
        None => project(store, name, is_fork, base)?,
    };
    if !fs::metadata(&dir).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(refuse(&dir, "it is not a directory"));
    }
    if mounts()?.iter().any(|mounted| mounted.is_ours() && dir.starts_with(&mounted.path)) {
        return Err(refuse(&dir, "it lies in a mount of pfimg").with_hint("name the project's own directory"));
    }
    if dir.starts_with(store.root()) {
        return Err(refuse(&dir, "it lies in the store").with_hint("name the project's own directory"));
    }
    Ok(dir)
}

fn real(dir: &Path) -> Result<PathBuf> {
    fs::canonicalize(dir).map_err(|e| Error::io(e, format!("cannot find {}", dir.display())))
}

fn project(store: &Store, name: &str, is_fork: bool, base: Option<&Digest>) -> Result<PathBuf> {
    let hint = format!("name the directory: `pfimg apply {} DIR`", plain(name, usize::MAX));
    let cwd = std::env::current_dir().map_err(|e| Error::io(e, "cannot find the current directory"))?;
    let root = Project::find(&cwd).map_err(|error| error.with_hint(hint.clone()))?.root;
    let recorded = if is_fork { beside::project(store.root(), name)? } else { None };
    let of_another = match recorded {
        Some(recorded) if recorded == root => return Ok(root),
        Some(recorded) => format!("fork {name:?} is a copy of {}", recorded.display()),
        None if base.is_some_and(|base| is_import_of(store, &root, base)) => return Ok(root),
        None => format!("pfimg has no record that {name:?} comes from it"),
    };
    Err(refuse(&root, &of_another).with_hint(hint))
}

/// Returns the named paths relative to the directory. The user types paths relative to the current directory if
/// that lies in the directory, else relative to the directory.
pub(super) fn below(dir: &Path, paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let cwd = std::env::current_dir().ok().filter(|cwd| cwd.starts_with(dir));
    let from = cwd.unwrap_or_else(|| dir.to_owned());
    paths.iter().map(|path| one_below(dir, &from, path)).collect()
}

fn one_below(dir: &Path, from: &Path, path: &Path) -> Result<Vec<u8>> {
    let mut whole = PathBuf::new();
    for component in from.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                whole.pop();
            }
            other => whole.push(other),
        }
    }
    let inside = whole.strip_prefix(dir).map_err(|_| {
        let what = format!("{} does not lie in {}", path.display(), dir.display());
        Error::new(ErrorKind::InvalidInput, what)
    })?;
    Ok(inside.as_os_str().as_bytes().to_vec())
}

/// Fails if a step would change the store itself.
pub(super) fn refuse_store(store: &Store, dir: &Path, steps: &[Step]) -> Result<()> {
    let Ok(inner) = store.root().strip_prefix(dir) else { return Ok(()) };
    let inner = inner.as_os_str().as_bytes();
    let touches = |step: &&Step| {
        let path = step.path.as_slice();
        path.strip_prefix(inner).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            || inner.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"))
    };
    match steps.iter().find(touches) {
        Some(step) => {
            let path = String::from_utf8_lossy(&step.path);
            Err(refuse(dir, &format!("{path} is the store, or lies in it")))
        }
        None => Ok(()),
    }
}

/// Seals unsealed changes of a fork, and returns the image of its present state. `None` for a fork that began
/// empty and is still empty.
pub(super) fn sealed(store: &Arc<Store>, name: &str) -> Result<Option<Digest>> {
    let done = match place::find(store)? {
        Place::Mount(served) => {
            calls::flush(&served.client, name)?;
            let now = OnDisk::read(store.root(), name)?;
            if now.is_untouched {
                return Ok(now.base);
            }
            calls::seal(&served.client, name, None, false, About::default())?
        }
        Place::Disk(registry) => {
            let log = audit::told(store, "apply");
            let fork = recover::read_back(store, &registry, name, &log)?;
            if !fork.is_changed() {
                return Ok(fork.base());
            }
            let sealer = Sealer::new(Arc::clone(store), forks::reader(store), None);
            let sealed = sealer.with_log(log).seal(&fork, None)?;
            registry.sync()?;
            Sealed { image: sealed.image, new: sealed.new, reports: sealed.reports }
        }
    };
    for report in &done.reports {
        eprintln!("pfimg: {report}");
    }
    Ok(Some(done.image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_current_directory_and_lie_in_the_given_one() {
        let (dir, from) = (Path::new("/p"), Path::new("/p/src"));
        let below = |path: &str| one_below(dir, from, Path::new(path));
        for (path, found) in
            [("a", "src/a"), ("./a/", "src/a"), ("../b", "b"), ("..", ""), ("/p/c", "c"), (".", "src")]
        {
            assert_eq!(below(path).unwrap(), found.as_bytes(), "{path}");
        }
        for path in ["../..", "/q", "/p/../q"] {
            assert!(below(path).is_err(), "{path}");
        }
    }
}
