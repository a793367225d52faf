//! The mount as a whole: it is made, watched, tidied and ended.

use std::sync::Arc;

use super::announcement::{self, Announcement};
use super::announcer::Announcer;
use super::answer::Entry;
use super::attempt::{Attempt, may_wait};
use super::build::build;
use super::cached_writes::{CachedWrites, Pusher};
use super::catalog::{Changes, Watched};
use super::config::VfsConfig;
use super::dispatch::Vfs;
use super::invalidation::{Invalidate, Invalidation};
use super::key::Ino;
use super::metrics::Metrics;
use super::node::{BuiltinDir, Node};
use super::nodes::Forgotten;
use super::seals::AfterSeal;
use crate::audit::Log;
use crate::cache::Cache;
use crate::control::MountInfo;
use crate::error::{ErrorKind, Posix};
use crate::store::Store;
use crate::sync::wait;

impl Vfs {
    /// The folders of images and of tags, for the watcher.
    pub(crate) const IMAGES: Ino = BuiltinDir::Images.ino();
    pub(crate) const TAGS: Ino = BuiltinDir::Tags.ino();

    /// The folders of forks and of the links to them.
    pub(crate) const FORKS: Ino = BuiltinDir::Forks.ino();
    pub(crate) const WORK: Ino = BuiltinDir::Work.ino();

    /// The folder into which a fork is moved to be discarded.
    pub(crate) const CONTROL: Ino = BuiltinDir::Control.ino();

    /// Makes the filesystem of a store, which writes its events to `log`. Does not read the store.
    pub fn new(store: Arc<Store>, cache: Arc<Cache>, config: VfsConfig, info: MountInfo, log: Log) -> Self {
        build(store, cache, config, info, log)
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The log.
    pub fn log(&self) -> &Log {
        self.audit.log()
    }

    /// Whether extended attributes are answered at all.
    pub fn xattrs(&self) -> bool {
        self.config.xattrs
    }

    /// Returns a number that no inode has.
    pub fn unused(&self) -> Ino {
        self.nodes.unused()
    }

    /// Takes back lookups. Returns an inode that the kernel no longer knows, since dropping it may remove files.
    pub fn forget(&self, ino: Ino, lookups: u64) -> Forgotten {
        self.nodes.forget(ino, lookups)
    }

    /// Returns the space of the filesystem that holds the store.
    pub fn statfs(&self) -> Attempt<rustix::fs::StatVfs> {
        may_wait()?;
        wait::disk("statfs");
        rustix::fs::statvfs(self.store.root()).map_err(|e| ErrorKind::Io(Some(e.raw_os_error())).into())
    }

    /// Whether creating this name in this folder makes a fork from another fork or from an image.
    pub fn branches(folder: Ino, name: &[u8]) -> bool {
        folder == Self::FORKS && name.contains(&b'@')
    }

    /// Whether making a folder in this one seals a fork, which takes time.
    pub fn seals(&self, ino: Ino) -> bool {
        matches!(self.nodes.get(ino), Ok(Node::Snap { .. }))
    }

    /// Lists what the kernel has to drop before a request restores a fork. It then knows few inodes of the fork: those that
    /// programs use.
    pub fn before_restore(&self, parent: Ino, name: &[u8]) -> Vec<Invalidation> {
        match self.nodes.get(parent) {
            Ok(Node::Snap { mounted }) => self.snap.before_request(&mounted, name),
            _ => Vec::new(),
        }
    }

    /// Does what `mkdir` in `.snap/` asks for. The answer is a placeholder folder that is forgotten at once.
    pub fn make_in_snap(&self, parent: Ino, name: &[u8]) -> (Attempt<Entry>, AfterSeal) {
        match self.nodes.get(parent) {
            Ok(Node::Snap { mounted }) => self.snap.create(&mounted, name),
            _ => (Err(ErrorKind::Posix(Posix::Stale).into()), AfterSeal::default()),
        }
    }

    /// Lists all names of a file in a fork.
    pub fn names_of(&self, ino: Ino) -> Vec<Invalidation> {
        self.files.names_of(ino)
    }

    /// Whether a kernel that caches writes must not cache this file, which a program opens.
    pub fn bypasses_kernel_cache(&self, ino: Ino, writes: bool) -> bool {
        self.files.bypasses_kernel_cache(ino, writes)
    }

    /// The announcements of names that appeared or disappeared without the kernel.
    pub fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Answers a lookup of the thread that announces.
    pub fn lookup_announced(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        self.announcer.lookup(parent, name, &|parent, name, look| self.find(parent, name, look))
    }

    /// Answers the creation of a name by the thread that announces, with the existing file.
    pub fn make_announced(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        self.announcer.create(parent, name, &|parent, name, look| self.find(parent, name, look))
    }

    /// The writes that the kernel caches.
    pub fn cached_writes(&self) -> &Arc<CachedWrites> {
        &self.cached_writes
    }

    /// Sets the pusher to use from now on, or none.
    pub fn push_by(&self, pusher: Option<Arc<dyn Pusher>>) {
        self.cached_writes.push_by(pusher);
    }

    /// Returns the state from which the watcher starts.
    pub(crate) fn watch(&self) -> Watched {
        let watched = self.catalog.watch();
        let _ = self.announcements.of_tags(&self.store);
        watched
    }

    /// Returns what has changed in the store since `watched`, and the changes that can be announced.
    pub(crate) fn changes(&self, watched: &mut Watched) -> (Changes, Vec<Announcement>) {
        let changes = self.catalog.changes(watched);
        let mut all = announcement::of_images(&changes.removed, &changes.added, watched.images());
        if changes.tags {
            all.append(&mut self.announcements.of_tags(&self.store));
        }
        (changes, all)
    }

    /// Lists the folders whose cached listings are outdated after images were added or removed.
    pub(crate) fn listings_of_images(&self) -> Vec<Ino> {
        self.root.listings()
    }

    /// Lists the folders of seals. They list tags of existing images.
    pub(crate) fn listings_of_seals(&self) -> Vec<Ino> {
        self.table.in_use().iter().filter_map(|fork| self.nodes.known(fork.snap_key())).collect()
    }

    /// Follows forks that another program writes: shows their present state, and takes over writing when that program has
    /// ended. Returns the invalidations for the kernel. Inodes that the kernel already knows keep showing the old state.
    ///
    /// Must be called from time to time, by one thread.
    pub fn follow_forks(&self) -> Vec<Invalidation> {
        self.table.follow()
    }

    /// Logs what the cache has done since the last call. Must be called from time to time.
    pub(crate) fn tell_of_cache(&self) {
        self.audit.note_cache(&self.cache);
    }

    /// Shortens journals and frees unused space. Must be called from time to time.
    pub(crate) fn tidy(&self) {
        self.tell_of_cache();
        if let Some(registry) = self.table.open_registry() {
            registry.remove_left();
        }
        self.cache.settle(false);
        self.trimmer.trim(self.nodes.len());
        if self.home.check().is_ok() {
            self.table.tidy();
        }
    }

    /// Seals the forks that are due, on separate threads. `invalidate` gets the invalidations for the kernel.
    ///
    /// Must be called from time to time, by one thread.
    pub fn seal_due(&self, invalidate: &Invalidate) {
        self.auto_seal.seal_due(invalidate);
    }

    /// Whether a fork in use waits for an automatic seal.
    pub fn has_unsealed(&self) -> bool {
        self.auto_seal.has_unsealed()
    }

    /// Seals every fork in use that has unsealed changes. Called after the mount has ended.
    pub fn seal_all(&self) {
        self.auto_seal.seal_all();
    }

    /// Stops running seals and begins no more. Unsealed changes stay in the forks.
    pub fn stop_sealing(&self) {
        self.auto_seal.stop();
    }
}
