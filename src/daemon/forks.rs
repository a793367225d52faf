//! The forks of a store, without a mount.

use std::path::Path;
use std::sync::Arc;

use super::dirs;
use crate::audit::{Log, note};
use crate::cache::{Cache, CacheConfig};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{
    self, About, BaseReader, Compare, Difference, Fork, Onto, Registry, View, compare, refuse_new_fork_name,
};
use crate::images;
use crate::ops::back::{Asked, Outcome, Target, restore_paths};
use crate::ops::line::{self, Line};
use crate::ops::recover;
use crate::ops::seal::{Sealer, Tag};
use crate::store::tags::check_new_tag;
use crate::store::{Store, plain_folder_mode};

/// Memory, in bytes, for the few blobs that are read to make or list forks.
const CACHE: u64 = 64 << 20;

/// Opens the forks on disk.
pub(crate) fn registry(store: &Arc<Store>, read_only: bool) -> Result<Registry> {
    open(store, reader(store), read_only)
}

fn open(store: &Store, reader: Arc<dyn BaseReader>, read_only: bool) -> Result<Registry> {
    let options = fork::Options { read_only, ..fork::Options::default() };
    Registry::open(store.root(), reader, options)
}

/// Returns the reader of the images that forks are based on.
pub(crate) fn reader(store: &Arc<Store>) -> Arc<dyn BaseReader> {
    reader_with(store, &dirs::cache_dir())
}

fn reader_with(store: &Arc<Store>, cache_dir: &Path) -> Arc<dyn BaseReader> {
    let cache = Arc::new(Cache::new(
        Arc::clone(store),
        &CacheConfig { heap_bytes: CACHE, disk_bytes: CACHE, dir: cache_dir.to_owned() },
    ));
    images::fork_reader(Arc::clone(store), cache)
}

/// Finds an image by a name from the user, which may be `FORK@SEAL`.
pub(crate) fn image(store: &Store, name: &str) -> Result<Digest> {
    line::image(store, name).map_err(|error| {
        let is_fork = fork::refuse_fork_name(name).is_none()
            && store.root().join("forks/heads").join(format!("{name}.json")).exists();
        if error.kind() == ErrorKind::NotFound && is_fork {
            return error.with_hint(format!("make an image of fork {name:?} with `pfimg seal {name}`"));
        }
        error
    })
}

/// The result of a seal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sealed {
    /// The image that holds the state of the fork.
    pub image: Digest,
    /// Whether the image is new. If not, the fork had no change since its last seal.
    pub new: bool,
    /// Remarks for the user, for instance on files that the image leaves out.
    pub reports: Vec<String>,
}

/// The forks of a store that no mount writes. Needs no FUSE.
///
/// One program at a time writes a store's forks: a mount, or the holder of this value. An operation is durable when the method
/// returns, except for writes to a [`Fork`], which need [`Fork::fsync`] for that.
pub struct Forks {
    store: Arc<Store>,
    reader: Arc<dyn BaseReader>,
    registry: Registry,
    sealer: Sealer,
    log: Log,
}

impl std::fmt::Debug for Forks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forks").field("store", &self.store.root()).finish_non_exhaustive()
    }
}

impl Forks {
    /// Opens the forks of a store for reading and writing. `cache_dir` takes large decompressed blobs; see
    /// [`Builder::cache_dir`](crate::Builder::cache_dir).
    ///
    /// # Errors
    /// `Busy`: another program writes the forks, for instance a mount. `Io` or `PermissionDenied`: the store cannot be written.
    pub fn open(store: impl Into<Arc<Store>>, cache_dir: impl AsRef<Path>) -> Result<Self> {
        let store = store.into();
        let this = Self::with(store, cache_dir.as_ref(), false)?;
        if this.registry.is_writable() {
            return Ok(this);
        }
        let what = format!("another program writes the forks of {}", this.store.root().display());
        Err(Error::new(ErrorKind::Busy, what).with_hint("unmount the store, or fork through its mount"))
    }

    /// Opens the forks of a store for reading. Another program may write them at the same time.
    ///
    /// # Errors
    /// `Io` or `PermissionDenied`: the forks cannot be read.
    pub fn open_read_only(store: impl Into<Arc<Store>>, cache_dir: impl AsRef<Path>) -> Result<Self> {
        Self::with(store.into(), cache_dir.as_ref(), true)
    }

    fn with(store: Arc<Store>, cache_dir: &Path, read_only: bool) -> Result<Self> {
        let reader = reader_with(&store, cache_dir);
        let registry = open(&store, Arc::clone(&reader), read_only)?;
        let log = if read_only {
            Log::off()
        } else {
            Log::start(store.root(), "library").map_err(|e| Error::io(e, "cannot start a thread"))?
        };
        let sealer = Sealer::new(Arc::clone(&store), Arc::clone(&reader), None).with_log(log.clone());
        Ok(Self { store, reader, registry, sealer, log })
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the names of the forks, sorted.
    pub fn names(&self) -> Vec<String> {
        self.registry.names()
    }

    /// Returns a fork.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork. `Damaged` or `Missing`: its files or its image are.
    pub fn get(&self, name: &str) -> Result<Arc<Fork>> {
        recover::read_back(&self.store, &self.registry, name, &self.log)
    }

    /// Makes a fork without files.
    ///
    /// # Errors
    /// `AlreadyExists`: a fork has the name. `InvalidInput`: no fork can have the name.
    pub fn create(&self, name: &str) -> Result<Arc<Fork>> {
        check_fork_name(name)?;
        let made = self.registry.create_as(name, None, plain_folder_mode())?;
        self.made(name, made)
    }

    fn made(&self, name: &str, made: Arc<Fork>) -> Result<Arc<Fork>> {
        self.registry.sync()?;
        self.log.note_quietly(note::fork_made(name, made.base().as_ref()));
        Ok(made)
    }

    /// Makes a fork of a fork or an image. `source` is the name of a fork, `FORK@SEAL`, a tag, an id or the beginning of one,
    /// or `latest`.
    ///
    /// # Errors
    /// `NotFound`: there is no such source. `AlreadyExists`: a fork has the name. `InvalidInput`: no fork can have the name.
    pub fn fork(&self, name: &str, source: &str) -> Result<Arc<Fork>> {
        check_fork_name(name)?;
        let made = if self.registry.contains(source) {
            self.registry.branch_as(&*self.get(source)?, name, plain_folder_mode())?
        } else {
            self.registry.create_as(name, Some(image(&self.store, source)?), plain_folder_mode())?
        };
        self.made(name, made)
    }

    /// Makes an image of a fork, and gives it a tag that no image has yet.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork. `AlreadyExists`: an image has the tag. `InvalidInput`: no image can have the tag.
    /// `Damaged`: a check found that the image would differ from the fork.
    pub fn seal(&self, name: &str, tag: Option<&str>) -> Result<Sealed> {
        if let Some(tag) = tag {
            check_new_tag(tag)?;
        }
        let tag = tag.map(|name| Tag { name, force: false });
        let sealed = self.sealer.seal_as(&*self.get(name)?, tag, false, &About::default())?;
        self.registry.sync()?;
        Ok(Sealed { image: sealed.image, new: sealed.new, reports: sealed.reports })
    }

    /// Restores a fork to one of its seals: a number, a tag, or an id or the beginning of one. Unsealed changes are sealed
    /// first.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork or seal. `Missing`: its image was removed.
    pub fn restore(&self, name: &str, seal: &str) -> Result<Outcome> {
        let asked = Asked { seal: Some(seal.to_owned()), ..Asked::default() };
        let restored = restore(&self.store, &self.registry, &self.sealer, &*self.get(name)?, &asked)?;
        self.registry.sync()?;
        Ok(restored)
    }

    /// Removes a fork with all its unsealed changes. Its seals stay.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork.
    pub fn discard(&self, name: &str) -> Result<()> {
        let gone = self.registry.discard(name)?;
        self.log.note_quietly(note::fork_discarded(name, gone.base.as_ref()));
        Ok(())
    }

    /// Returns all files of a fork or an image, as they are now. `name` is one of those that [`Forks::fork`] takes.
    ///
    /// # Errors
    /// `NotFound`: there is no such fork or image. `Damaged` or `Missing`: its files are.
    pub fn view(&self, name: &str) -> Result<View> {
        if self.registry.contains(name) {
            return Ok(self.registry.get(name)?.view());
        }
        View::of_image(Arc::clone(&self.reader), Some(image(&self.store, name)?))
    }

    /// Lists the paths that differ between two forks or images, sorted. Files of the same length whose bytes were written
    /// again are read and compared.
    ///
    /// # Errors
    /// Those of [`Forks::view`].
    pub fn diff(&self, before: &str, after: &str) -> Result<Vec<Difference>> {
        differences(&self.view(before)?, &self.view(after)?)
    }

    /// Lists the paths of a fork or an image, sorted.
    ///
    /// # Errors
    /// Those of [`Forks::view`].
    pub fn paths(&self, name: &str) -> Result<Vec<Vec<u8>>> {
        let nothing = View::of_image(Arc::clone(&self.reader), None)?;
        let all = differences(&nothing, &self.view(name)?)?;
        Ok(all.into_iter().map(|difference| difference.path).collect())
    }
}

fn differences(before: &View, after: &View) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    compare(before, after, Compare { all: true, read: true }, &mut |difference| {
        all.push(difference);
        Ok(())
    })?;
    Ok(all)
}

/// Fails if a new fork cannot have this name.
pub(crate) fn check_fork_name(name: &str) -> Result<()> {
    refuse_new_fork_name(name).map_or(Ok(()), |why| {
        Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a fork's name: {why}")))
    })
}

/// Restores a fork on disk, or paths of it, to one of its seals.
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
