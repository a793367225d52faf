//! Background work of a mount: it invalidates the kernel's caches after other programs changed the store, and tidies up forks.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::announce::Announcer;
use super::invalidate::invalidate;
use crate::vfs::{Invalidate, Vfs, Watched};

/// How often the store is checked, by one stat of each folder. The promise is one second.
const LOOK: Duration = Duration::from_millis(200);

/// How often a change of a listing is reported to the kernel. A listing that runs at the same time may reach its cache after the
/// first report.
const TELL: u32 = 3;

/// How often forks are tidied up.
const TIDY: Duration = Duration::from_secs(5);

/// How often forks that another mount writes are checked for changes.
const FOLLOW: Duration = Duration::from_millis(500);

/// How often forks are checked for an automatic seal.
const SEAL: Duration = Duration::from_millis(250);

/// The threads of the background work.
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the threads. `watched` is the state of the store before any program could look at the mount.
    pub(super) fn start(
        vfs: Arc<Vfs>,
        mut watched: Watched,
        notifier: Notifier,
        announcer: Announcer,
    ) -> io::Result<Self> {
        let mut this = Self { stop: Arc::default(), threads: Vec::new() };
        let (mut images, mut tags) = (0, 0);
        let (tidied, sealed, told) = (Arc::clone(&vfs), Arc::clone(&vfs), notifier.clone());
        let (follower, follows, mut before) = (Arc::clone(&vfs), notifier.clone(), Vec::new());
        this.every("pfimg-watch", LOOK, move || {
            let (changes, announcements) = vfs.changes(&mut watched);
            // No lock is held here. If the kernel does not know an inode, its error is ignored.
            for id in &changes.removed {
                let _ = notifier.inval_entry(INodeNo(Vfs::IMAGES), OsStr::new(&id.hex()));
            }
            announcer.announce(&notifier, announcements);
            if changes.images {
                images = TELL;
            }
            if changes.tags {
                tags = TELL;
            }
            if images > 0 || tags > 0 {
                for listing in vfs.listings_of_seals() {
                    let _ = notifier.inval_inode(INodeNo(listing), 0, 0);
                }
            }
            if images > 0 {
                images -= 1;
                for listing in vfs.listings_of_images() {
                    let _ = notifier.inval_inode(INodeNo(listing), 0, 0);
                }
                // The root lists `latest` only if there is one.
                let _ = notifier.inval_inode(INodeNo::ROOT, 0, 0);
            }
            if tags > 0 {
                tags -= 1;
                let _ = notifier.inval_inode(INodeNo(Vfs::TAGS), 0, 0);
            }
        })?;
        // On a separate thread, since a checkpoint waits for the disk.
        this.every("pfimg-tidy", TIDY, move || tidied.tidy())?;
        // On a separate thread too, since a seal reads and compresses all changes.
        let after_seal: Invalidate = Arc::new(move |stale| invalidate(&told, stale));
        this.every("pfimg-seal", SEAL, move || sealed.seal_due(&after_seal))?;
        this.every("pfimg-follow", FOLLOW, move || {
            let stale = follower.follow_forks();
            // Reported again, since a request that ran at the same time may have reached the kernel's cache after the first
            // report.
            invalidate(&follows, &before);
            invalidate(&follows, &stale);
            before = stale;
        })?;
        Ok(this)
    }

    fn every(
        &mut self,
        name: &str,
        period: Duration,
        mut work: impl FnMut() + Send + 'static,
    ) -> io::Result<()> {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::Builder::new().name(name.into()).spawn(move || {
            loop {
                thread::park_timeout(period);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                work();
            }
        })?);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
