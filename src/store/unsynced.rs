//! Blobs that were written and are not yet durable, and blobs that the disk failed to write.
//!
//! When writing pages fails, Linux reports it once, and keeps the pages as if they were written. A program
//! that tries again gets success, and reads from memory bytes that the disk does not have.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};

use super::{Batch, Blobs, Size};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// Bytes copied at once.
const COPIED: usize = 1 << 20;

/// How often pfimg tries to make blobs durable when the disk fails each time.
const SYNCS: usize = 3;

/// Blobs that were written and are not yet durable, and whether the disk may have failed to write them.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<HashMap<Digest, bool>>);

impl Unsynced {
    pub(super) fn written(&self, digest: Digest) {
        self.0.lock().insert(digest, false);
    }

    fn pending(&self) -> Vec<Digest> {
        self.0.lock().keys().copied().collect()
    }

    /// Notes that the `pending` blobs are durable, except the doubted ones.
    fn synced(&self, pending: &[Digest]) {
        let mut all = self.0.lock();
        for digest in pending {
            if all.get(digest) == Some(&false) {
                all.remove(digest);
            }
        }
    }

    /// Notes that making them durable failed: it is unknown which of them the disk has, and no later try can
    /// tell.
    fn failed(&self) {
        self.0.lock().values_mut().for_each(|doubted| *doubted = true);
    }

    /// Those among `digests` that the disk may have failed to write.
    fn doubted(&self, digests: &HashSet<Digest>) -> Vec<Digest> {
        let all = self.0.lock();
        all.iter()
            .filter(|(digest, doubted)| **doubted && digests.contains(*digest))
            .map(|(d, _)| *d)
            .collect()
    }
}

impl Blobs {
    /// Stores a blob once more unchanged, if it matches its digest.
    fn store_again(&self, digest: &Digest) -> Result<()> {
        let failed = |e| Error::io(e, format!("cannot write blob {digest} again"));
        self.stream(digest, Size::AtMost(u64::MAX), &mut io::sink())?;
        let mut old = File::open(self.path(digest)).map_err(failed)?;
        let (temp, mut new) = self.create_temp(&self.path(digest)).map_err(failed)?;
        let mut buffer = vec![0; COPIED];
        let copied = loop {
            match old.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    if let Err(e) = self.io().write(&temp, &mut new, &buffer[..n]) {
                        break Err(e);
                    }
                }
                Err(e) => break Err(e),
            }
        };
        copied.map_err(failed).and_then(|()| self.name(&temp, digest)).inspect_err(|_| self.discard(&temp))
    }
}

impl Batch<'_> {
    /// Makes every blob durable that is relied on. Blobs that the disk may have failed to write are written
    /// again before an image uses them.
    pub(super) fn sync(&self) -> Result<()> {
        let blobs = self.blobs();
        let failed = |e| Error::io(e, format!("cannot make the blobs in {} durable", blobs.root().display()));
        for _ in 0..SYNCS {
            // Checked in each round, since other threads may rely on further blobs by then.
            let doubted = blobs.unsynced().doubted(&self.relied_on.lock());
            for digest in doubted {
                blobs.store_again(&digest)?;
            }
            let pending = blobs.unsynced().pending();
            blobs.io().sync_fs(blobs.root()).inspect_err(|_| blobs.unsynced().failed()).map_err(failed)?;
            blobs.unsynced().synced(&pending);
            // Another sync may have failed in between, and may have received the error of this one.
            if blobs.unsynced().doubted(&self.relied_on.lock()).is_empty() {
                return Ok(());
            }
        }
        Err(failed(io::Error::other("the disk fails to write")))
    }
}
