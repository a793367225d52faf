//! Background work of a mount: it invalidates the kernel's caches after other programs changed the store, follows forks that
//! another mount writes, tidies forks up and seals them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::fuse::Kernel;
use crate::vfs::{Invalidate, Invalidation, Vfs, Watched};

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

/// The root of the mount, which lists `latest` only if there is an image.
const ROOT: u64 = 1;

/// The threads of the background work. They end when it is dropped.
pub(super) struct Tasks {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Starts the threads. `watched` is the state of the store before any program could look at the mount.
    pub(super) fn start(vfs: &Arc<Vfs>, watched: Watched, kernel: &Kernel) -> io::Result<Self> {
        let mut this = Self { stop: Arc::default(), threads: Vec::new() };
        this.every("pfimg-watch", LOOK, watch(Arc::clone(vfs), watched, kernel.clone()))?;
        // On a separate thread, since a checkpoint waits for the disk.
        let tidied = Arc::clone(vfs);
        this.every("pfimg-tidy", TIDY, move || tidied.tidy())?;
        // On a separate thread too, since a seal reads and compresses all changes.
        let (sealed, told) = (Arc::clone(vfs), kernel.clone());
        let after_seal: Invalidate = Arc::new(move |stale| told.invalidate(stale));
        this.every("pfimg-seal", SEAL, move || sealed.seal_due(&after_seal))?;
        this.every("pfimg-follow", FOLLOW, follow(Arc::clone(vfs), kernel.clone()))?;
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

/// Reports changes of images and tags by other programs.
fn watch(vfs: Arc<Vfs>, mut watched: Watched, kernel: Kernel) -> impl FnMut() + Send + 'static {
    let (mut images, mut tags) = (0, 0);
    move || {
        let (changes, announcements) = vfs.changes(&mut watched);
        // No lock is held here.
        let removed: Vec<_> =
            changes.removed.iter().map(|id| Invalidation::Name(Vfs::IMAGES, id.hex().into_bytes())).collect();
        kernel.invalidate(&removed);
        kernel.announce(announcements);
        if changes.images {
            images = TELL;
        }
        if changes.tags {
            tags = TELL;
        }
        let mut listings = Vec::new();
        if images > 0 || tags > 0 {
            listings.extend(vfs.listings_of_seals());
        }
        if images > 0 {
            images -= 1;
            listings.extend(vfs.listings_of_images());
            listings.push(ROOT);
        }
        if tags > 0 {
            tags -= 1;
            listings.push(Vfs::TAGS);
        }
        let listings: Vec<_> = listings.into_iter().map(Invalidation::Inode).collect();
        kernel.invalidate(&listings);
    }
}

/// Reports changes of forks by another mount.
fn follow(vfs: Arc<Vfs>, kernel: Kernel) -> impl FnMut() + Send + 'static {
    let mut before = Vec::new();
    move || {
        let stale = vfs.follow_forks();
        // Reported again, since a request that ran at the same time may have reached the kernel's cache after the first
        // report.
        kernel.invalidate(&before);
        kernel.invalidate(&stale);
        before = stale;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
