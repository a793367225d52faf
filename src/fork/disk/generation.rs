//! Generations: a journal with its data files.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{FileKey, OpenFiles, read_exact, remove_generation};
use super::id::GenId;
use super::io::Io;
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, wait};

/// A part of a fork's history: a journal and its data files. The last one of a fork is written, all others
/// are frozen.
pub struct Generation {
    /// Its name.
    pub id: GenId,
    pub(super) dir: PathBuf,
    pub(super) files: Arc<OpenFiles>,
    frozen: AtomicBool,
    /// The next number and offset at the moment of the freeze, if this program wrote it.
    written: Mutex<Option<(u64, u64)>>,
    remove_on_drop: AtomicBool,
    /// Data files without references; removed after the journal that says so is durable.
    pub(super) unreferenced: Mutex<Vec<u64>>,
    /// Data files written since they were last made durable.
    pub(super) unsynced: Mutex<std::collections::BTreeSet<u64>>,
    journal_unsynced: AtomicBool,
    entry_unsynced: AtomicBool,
    /// Whether making it durable failed once.
    sync_failed: AtomicBool,
    /// Held during a sync: a second caller must not learn that there is nothing to do.
    syncing: Mutex<()>,
    next_data: AtomicU64,
}

impl Generation {
    /// The path of a generation.
    pub(in crate::fork) fn dir(forks: &Path, id: GenId) -> PathBuf {
        forks.join("gen").join(id.to_string())
    }

    pub(in crate::fork) fn new(forks: &Path, id: GenId, files: Arc<OpenFiles>) -> Arc<Self> {
        Arc::new(Self {
            id,
            dir: Self::dir(forks, id),
            files,
            frozen: AtomicBool::new(false),
            written: Mutex::default(),
            remove_on_drop: AtomicBool::new(false),
            unreferenced: Mutex::default(),
            unsynced: Mutex::default(),
            journal_unsynced: AtomicBool::new(false),
            entry_unsynced: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            syncing: Mutex::default(),
            next_data: AtomicU64::new(1),
        })
    }

    /// Makes its folder and a journal that starts with `header`.
    pub(in crate::fork) fn create(
        forks: &Path,
        files: Arc<OpenFiles>,
        header: impl Fn(GenId) -> Vec<u8>,
    ) -> Result<Arc<Self>> {
        let id = GenId::random()?;
        let this = Self::new(forks, id, files);
        this.entry_unsynced.store(true, Ordering::Relaxed);
        this.journal_unsynced.store(true, Ordering::Relaxed);
        let made = this.restart(&header(id));
        if made.is_err() {
            // The folder is still empty; the next opener would also remove it.
            let _ = fs::remove_dir_all(&this.dir);
        }
        made.map(|()| this)
    }

    /// Makes the missing parts of its folder, and an empty journal.
    pub(in crate::fork) fn restart(&self, header: &[u8]) -> Result<()> {
        let make = || {
            // It is in forks/gen of the store.
            let store = self.dir.ancestors().nth(3).unwrap_or(&self.dir);
            self.io().create_dir_below(store, &self.dir.join("data"), self.files.sharing)?;
            let _ = fs::remove_file(self.journal_path());
            let file = self.io().create(&self.journal_path(), self.files.sharing)?;
            let mut done = 0;
            while done < header.len() {
                match self.io().write_at(&file, &header[done..], done as u64)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    n => done += n,
                }
            }
            Ok(())
        };
        make().map_err(|e| Error::io(e, format!("cannot create {}", self.dir.display())))
    }

    /// Path of its journal.
    pub fn journal_path(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub(super) fn data_path(&self, number: u64) -> PathBuf {
        self.dir.join("data").join(number.to_string())
    }

    pub(in crate::fork) fn journal(&self) -> io::Result<Arc<File>> {
        self.files.get(FileKey::Journal(self.id), || self.journal_path())
    }

    /// Fills a buffer from its journal; see [`read_exact`].
    pub(in crate::fork) fn read_journal(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.files.get_to_read(FileKey::Journal(self.id), || self.journal_path())?;
        read_exact(&file, buf, offset)
    }

    pub(in crate::fork) fn io(&self) -> &dyn Io {
        &*self.files.io
    }

    pub(in crate::fork) fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    /// Freezes it; the next record, of number `seq`, would be at `end`.
    pub(in crate::fork) fn freeze_at(&self, seq: u64, end: u64) {
        *self.written.lock() = Some((seq, end));
        self.freeze();
    }

    /// The values given to [`Generation::freeze_at`].
    pub(in crate::fork) fn written(&self) -> Option<(u64, u64)> {
        *self.written.lock()
    }

    pub(in crate::fork) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Removes it from disk once nothing in memory refers to it.
    pub(in crate::fork) fn doom(&self) {
        self.remove_on_drop.store(true, Ordering::Release);
    }

    /// Call it after the write: if it came before, a sync that does not cover the write could clear the note.
    pub(in crate::fork) fn note_journal_write(&self) {
        self.journal_unsynced.store(true, Ordering::Release);
    }

    /// Makes numbers of data files start after this one.
    pub(super) fn saw_data(&self, number: u64) {
        self.next_data.fetch_max(number.saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next_data.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes everything it holds durable: data first, so that no durable record refers to bytes that are not
    /// durable. Everything written before the call is durable after it, also with concurrent calls.
    ///
    /// After one failure every call fails. The kernel reports such an error once, and then treats the pages that it could not
    /// write as written. Their content is still in memory, so a seal can store it in an image. The next generation is not
    /// affected.
    pub(in crate::fork) fn sync(&self) -> io::Result<()> {
        let _turn = self.syncing.lock();
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(rustix::io::Errno::IO.into());
        }
        let dirty: Vec<u64> = std::mem::take(&mut *self.unsynced.lock()).into_iter().collect();
        for (at, number) in dirty.iter().enumerate() {
            let synced = match self.files.get(FileKey::Data(self.id, *number), || self.data_path(*number)) {
                Ok(file) => self.sync_data(&file),
                // Removed in between: nothing refers to it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(e),
            };
            if let Err(e) = synced {
                self.unsynced.lock().extend(&dirty[at..]);
                return Err(e);
            }
        }
        let entries = self.entry_unsynced.swap(false, Ordering::AcqRel);
        if entries || !dirty.is_empty() {
            let synced = self
                .io()
                .sync_dir(&self.dir.join("data"))
                .and_then(|()| if entries { self.io().sync_dir(&self.dir) } else { Ok(()) });
            let synced = synced.and_then(|()| match self.dir.parent() {
                Some(parent) if entries => self.io().sync_dir(parent),
                _ => Ok(()),
            });
            if let Err(e) = synced {
                self.entry_unsynced.store(true, Ordering::Release);
                return Err(e);
            }
        }
        if self.journal_unsynced.swap(false, Ordering::AcqRel) {
            let synced = self.journal().and_then(|file| self.sync_data(&file));
            if synced.is_err() {
                self.journal_unsynced.store(true, Ordering::Release);
            }
            synced?;
        }
        Ok(())
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.io().sync_data(file).inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    /// Whether there are data files that only wait for removal.
    pub(in crate::fork) fn has_trash(&self) -> bool {
        !self.unreferenced.lock().is_empty()
    }

    /// Takes the data files to remove. Call [`Generation::sync`] between this and [`Generation::remove`].
    pub(in crate::fork) fn take_trash(&self) -> Vec<u64> {
        std::mem::take(&mut *self.unreferenced.lock())
    }

    pub(in crate::fork) fn return_unreferenced(&self, unreferenced: Vec<u64>) {
        self.unreferenced.lock().extend(unreferenced);
    }

    pub(in crate::fork) fn remove(&self, numbers: Vec<u64>) {
        for number in numbers {
            self.files.forget(FileKey::Data(self.id, number));
            if let Err(e) = fs::remove_file(self.data_path(number))
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("cannot remove {}: {e}", self.data_path(number).display());
            }
        }
    }

    /// Assumes that nothing in it is durable yet; it has data files of these numbers.
    pub(in crate::fork) fn assume_unsynced(&self, numbers: Vec<u64>) {
        for number in &numbers {
            self.saw_data(*number);
        }
        self.unsynced.lock().extend(numbers);
        self.entry_unsynced.store(true, Ordering::Release);
        self.journal_unsynced.store(true, Ordering::Release);
    }

    /// Numbers of the data files that existed when it was read back.
    pub(in crate::fork) fn known_data(&self) -> Vec<u64> {
        self.unsynced.lock().iter().copied().collect()
    }

    /// Free bytes of its filesystem for the user of this program.
    pub(in crate::fork) fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        // A part may be reserved for root.
        let blocks = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
        Ok(blocks.saturating_mul(disk.f_frsize))
    }

    /// Bytes it occupies on disk.
    pub(in crate::fork) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let blocks = |path: PathBuf| fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
        let data = fs::read_dir(self.dir.join("data")).into_iter().flatten().flatten();
        blocks(self.journal_path()) + data.map(|entry| blocks(entry.path())).sum::<u64>()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.files.forget_all(self.id);
        if !*self.remove_on_drop.get_mut() {
            return;
        }
        if wait::is_allowed() {
            remove_generation(&self.dir);
        } else {
            self.files.leave(std::mem::take(&mut self.dir));
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.id)
    }
}
