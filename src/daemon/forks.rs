//! The forks of a store on disk, without a mount.

use std::sync::Arc;

use super::dirs;
use crate::cache::{Cache, CacheConfig};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, About, BaseReader, Fork, Onto, Registry, refuse_new_fork_name};
use crate::ops::back::{Asked, Outcome, Target, restore_paths};
use crate::ops::line::{self, Line};
use crate::ops::seal::Sealer;
use crate::store::Store;
use crate::vfs;

/// Memory for the few blobs that making or listing forks reads, in bytes.
const CACHE: u64 = 64 << 20;

/// The forks on disk.
pub(crate) fn registry(store: &Arc<Store>, read_only: bool) -> Result<Registry> {
    let options = fork::Options { read_only, ..fork::Options::default() };
    Registry::open(store.root(), reader(store), options)
}

/// The reader of the images that forks are based on.
pub(crate) fn reader(store: &Arc<Store>) -> Arc<dyn BaseReader> {
    let cache = Arc::new(Cache::new(
        Arc::clone(store),
        &CacheConfig { heap_bytes: CACHE, disk_bytes: CACHE, dir: dirs::cache_dir() },
    ));
    vfs::fork_reader(Arc::clone(store), cache)
}

/// Finds an image by a name that a user gave; `FORK@SEAL` is one.
pub(crate) fn image(store: &Store, name: &str) -> Result<Digest> {
    line::image(store, name).map_err(|error| {
        let is_fork = fork::refuse_fork_name(name).is_none()
            && store.root().join("forks/heads").join(format!("{name}.json")).exists();
        if error.kind() == ErrorKind::NotFound && is_fork {
            return error.with_hint(format!("{name:?} is a fork: `pfimg seal {name}` makes an image of it"));
        }
        error
    })
}

/// Fails if no new fork can have this name.
pub(crate) fn check_fork_name(name: &str) -> Result<()> {
    refuse_new_fork_name(name).map_or(Ok(()), |why| {
        Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a fork's name: {why}")))
    })
}

/// Puts a fork on disk, or paths of it, back to one of its seals.
pub(crate) fn restore(
    store: &Store,
    registry: &Registry,
    sealer: &Sealer,
    fork: &Fork,
    asked: &Asked,
) -> Result<Outcome> {
    let name = &fork.name();
    let target = Target::find(store, name, &Line::of_fork(store, fork)?, asked)?;
    if target.paths.is_some() {
        let then = registry.view(target.to.image)?;
        let mut seal = |everything: bool, about: &About| sealer.seal_as(fork, None, everything, about);
        let done = restore_paths(fork, &target, &then, &mut seal)?;
        return Outcome::of_paths(store, fork, &target, &then, &done);
    }
    let sealed = sealer.seal_as(fork, None, true, &target.about_before(None))?;
    let restored = target.restored(Some(sealed.image));
    let onto = Onto { image: target.to.image, restored: Some(&restored) };
    let new = sealer.restore_and(registry, name, fork, &onto, &|_| ())?;
    Outcome::of_all(store, &new, &target, &sealed)
}
