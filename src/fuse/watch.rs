//! What a mount does by itself: it tells the kernel what other programs changed in the store, so that its caches do
//! not show it any longer, and tidies up its forks.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::announce::Announcer;
use crate::vfs::{Stale, Tell, Vfs, Watched};

/// How often the store is looked at: one stat of a folder each time. Promised is a second.
const LOOK: Duration = Duration::from_millis(200);

/// How often a change of a listing is told: one that was under way meanwhile can reach the kernel's cache after the
/// first time.
const TELL: u32 = 3;

/// How often forks are tidied up.
const TIDY: Duration = Duration::from_secs(5);

/// How often is looked whether another mount changed the forks, where one writes them.
const FOLLOW: Duration = Duration::from_millis(500);

/// How often forks are looked at that may have to be sealed.
const SEAL: Duration = Duration::from_millis(250);

/// The threads that do so.
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watcher {
    /// Starts them. `watched` is the store as it was before anybody could look at the mount.
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
            // No lock is held here. An inode the kernel does not know is an error that means nothing.
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
        // A thread of its own: a checkpoint takes as long as the disk does.
        this.every("pfimg-tidy", TIDY, move || tidied.keep_house())?;
        // So is this: a seal reads and compresses all that was written.
        let tell_of_seal: Tell = Arc::new(move |stale| tell(&told, stale));
        this.every("pfimg-seal", SEAL, move || sealed.seal_due(&tell_of_seal))?;
        this.every("pfimg-follow", FOLLOW, move || {
            let stale = follower.follow_forks();
            // What was under way meanwhile can reach the kernel's cache after the first time.
            tell(&follows, &before);
            tell(&follows, &stale);
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

/// Tells the kernel what looks different after a seal. Not to be called where a request waits for it.
pub(super) fn tell(notifier: &Notifier, stale: &[Stale]) {
    for stale in stale {
        // What the kernel does not know is an error that means nothing.
        let _ = match stale {
            Stale::Inode(ino) => notifier.inval_inode(INodeNo(*ino), 0, 0),
            Stale::Name(folder, name) => notifier.inval_entry(INodeNo(*folder), OsStr::from_bytes(name)),
        };
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
