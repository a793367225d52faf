//! The few descriptors of a fork's files that are open.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use rustix::io::{Errno, ReadWriteFlags};

use super::id::GenId;
use super::io::Io;
use crate::store::Sharing;
use crate::sync::{Mutex, wait};

/// Descriptors that stay open: the system's limit may be as low as 1,024, and forks have many files.
const OPEN_FILES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FileKey {
    Journal(GenId),
    Data(GenId, u64),
}

/// Opens files on demand and keeps the most recently used ones open.
pub(in crate::fork) struct OpenFiles {
    open: Mutex<LruCache<FileKey, Arc<File>>>,
    writable: bool,
    /// Whether the filesystem has hard links, once a refused link made a check necessary.
    links: OnceLock<bool>,
    /// Who may use new files.
    pub(in crate::fork) sharing: Sharing,
    pub(in crate::fork) io: Arc<dyn Io>,
    /// Folders of generations that a thread which may wait will remove.
    left: Mutex<Vec<PathBuf>>,
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        self.remove_left();
    }
}

impl OpenFiles {
    pub(in crate::fork) fn new(io: Arc<dyn Io>, sharing: Sharing, writable: bool) -> Self {
        let capacity = std::num::NonZeroUsize::new(OPEN_FILES).unwrap_or(std::num::NonZeroUsize::MIN);
        let (open, left) = (Mutex::new(LruCache::new(capacity)), Mutex::default());
        Self { open, writable, links: OnceLock::new(), sharing, io, left }
    }

    /// Gives a data file a second name, in the folder `data`. A filesystem without hard links is detected
    /// once, and links are not tried again.
    pub(super) fn link(&self, from: &Path, data: &Path, to: &Path) -> io::Result<()> {
        if self.links.get() == Some(&false) {
            return Err(Errno::NOTSUP.into());
        }
        self.io.link(from, to).inspect_err(|e| {
            let refused = matches!(
                Errno::from_io_error(e),
                Some(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL)
            );
            if refused && self.links.get().is_none() {
                self.probe(data);
            }
        })
    }

    /// Checks whether a new file can have two names. A link may also be refused because of one file: an
    /// immutable one, or another user's under `fs.protected_hardlinks`.
    fn probe(&self, data: &Path) {
        let (one, two) = (data.join(".link-1"), data.join(".link-2"));
        // A full disk proves nothing about links.
        if self.io.create(&one, self.sharing).is_err() {
            return;
        }
        let linked = self.io.link(&one, &two);
        for path in [&one, &two] {
            let _ = self.io.remove(path);
        }
        if let Err(e) = &linked {
            tracing::warn!(
                "{}: this filesystem has no hard links ({e}); data is copied instead",
                data.display()
            );
        }
        let _ = self.links.set(linked.is_ok());
    }

    /// Removes the folders that an event loop has left.
    pub(in crate::fork) fn remove_left(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        for dir in left {
            remove_generation(&dir);
        }
    }

    /// Leaves a generation's folder to a thread that may wait.
    pub(super) fn leave(&self, dir: PathBuf) {
        self.left.lock().push(dir);
    }

    /// Returns an open file, opening it if necessary. An event loop also opens a file to write, as a part of the write.
    pub(super) fn get(&self, key: FileKey, path: impl FnOnce() -> PathBuf) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.lock().get(&key) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::options().read(true).write(self.writable).open(path())?);
        // The last holder closes the evicted file, outside the lock.
        let _evicted = self.open.lock().push(key, file.clone());
        Ok(file)
    }

    /// Like [`OpenFiles::get`], for reading. An event loop leaves a closed file to a worker.
    pub(super) fn get_to_read(&self, key: FileKey, path: impl FnOnce() -> PathBuf) -> io::Result<Arc<File>> {
        if !wait::is_allowed() {
            return self.open.lock().get(&key).cloned().ok_or_else(|| io::ErrorKind::WouldBlock.into());
        }
        self.get(key, path)
    }

    pub(super) fn forget(&self, key: FileKey) {
        let _closed = self.open.lock().pop(&key);
    }

    /// Closes all files of a generation: while they are open, removed files take space.
    pub(super) fn forget_all(&self, id: GenId) {
        let mut open = self.open.lock();
        let of = |key: &FileKey| matches!(key, FileKey::Journal(of) | FileKey::Data(of, _) if *of == id);
        let keys: Vec<FileKey> = open.iter().map(|(key, _)| *key).filter(of).collect();
        let closed: Vec<_> = keys.iter().filter_map(|key| open.pop(key)).collect();
        drop(open);
        drop(closed);
    }
}

pub(super) fn remove_generation(dir: &Path) {
    wait::disk("remove-generation");
    if let Err(e) = fs::remove_dir_all(dir)
        && e.kind() != io::ErrorKind::NotFound
    {
        // Nothing refers to it, so the next opener collects it.
        tracing::warn!("cannot remove {}: {e}", dir.display());
    }
}

/// Fills a buffer from a file. On an event loop it fails with [`io::ErrorKind::WouldBlock`] unless the kernel has the bytes
/// in memory.
pub(super) fn read_exact(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    if wait::is_allowed() {
        wait::disk("data");
        return file.read_exact_at(buf, offset);
    }
    let mut done = 0;
    while done < buf.len() {
        let part = &mut [io::IoSliceMut::new(&mut buf[done..])];
        match rustix::io::preadv2(file, part, offset + done as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            // Not every filesystem can read without waiting.
            Err(Errno::AGAIN | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
