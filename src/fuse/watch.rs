//! Tells the kernel what other programs changed in the store, so that its caches do not show it any longer.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::vfs::Vfs;

/// How often the store is looked at: one stat of a folder each time. Promised is a second.
const PERIOD: Duration = Duration::from_millis(200);

/// The watcher's thread.
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start(vfs: Arc<Vfs>, notifier: Notifier) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("pfimg-watch".into()).spawn(move || {
            let mut watched = vfs.watch();
            while !stopped.load(Ordering::Relaxed) {
                thread::park_timeout(PERIOD);
                let changes = vfs.changes(&mut watched);
                // No lock is held here. An inode the kernel does not know is an error that means nothing.
                for id in &changes.removed {
                    let _ = notifier.inval_entry(INodeNo(Vfs::IMAGES), OsStr::new(&id.hex()));
                }
                if changes.images {
                    for listing in vfs.listings_of_images() {
                        let _ = notifier.inval_inode(INodeNo(listing), 0, 0);
                    }
                    // The root lists `latest` only if there is one.
                    let _ = notifier.inval_inode(INodeNo::ROOT, 0, 0);
                }
                if changes.tags {
                    let _ = notifier.inval_inode(INodeNo(Vfs::TAGS), 0, 0);
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
