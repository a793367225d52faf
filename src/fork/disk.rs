//! A fork's files on disk: generations, their data files, and the few open descriptors.

mod data;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::{Error, Result};
use crate::store::{Sharing, StoreIo};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, wait};
pub(super) use data::DataFile;

/// Descriptors that stay open: the system's limit may be as low as 1,024, and forks have many files.
const OPEN_FILES: usize = 256;

/// A generation's name: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenId(pub u128);

impl GenId {
    /// Draws a new one.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(|e| Error::io(e, "cannot read /dev/urandom"))?;
        Ok(Self(u128::from_be_bytes(bytes)))
    }

    /// Parses 32 lowercase hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        canonical.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for GenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for GenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The calls that change a fork's files. A trait, so that tests can make each of them fail.
pub trait Io: StoreIo {
    /// Writes at an offset; may write less than asked.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }

    /// Cuts a file.
    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Reserves space so that writing `len` bytes at `offset` cannot run out of it; the file's length stays.
    fn reserve(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
            // Not every filesystem can promise space. On others a write may fail late.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Reserves space for writes of `len` bytes at `offset`; the file's length stays. Fails if the filesystem
    /// cannot promise it.
    fn set_aside(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    /// Makes a file's content durable.
    fn sync_data(&self, file: &File) -> io::Result<()> {
        wait::disk("sync-data");
        file.sync_data()
    }
}

/// The operating system itself.
#[derive(Debug, Default)]
pub struct RealIo;

impl StoreIo for RealIo {}
impl Io for RealIo {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FileKey {
    Journal(GenId),
    Data(GenId, u64),
}

/// Opens files on demand and keeps the most recently used ones open.
pub(super) struct Files {
    open: Mutex<LruCache<FileKey, Arc<File>>>,
    writable: bool,
    /// Whether the filesystem has hard links, once a refused link made a check necessary.
    links: OnceLock<bool>,
    /// Who may use new files.
    pub(super) sharing: Sharing,
    pub(super) io: Arc<dyn Io>,
    /// Folders of generations that a thread which may wait will remove.
    left: Mutex<Vec<PathBuf>>,
}

impl Drop for Files {
    fn drop(&mut self) {
        self.remove_left();
    }
}

impl Files {
    pub(super) fn new(io: Arc<dyn Io>, sharing: Sharing, writable: bool) -> Self {
        let capacity = std::num::NonZeroUsize::new(OPEN_FILES).unwrap_or(std::num::NonZeroUsize::MIN);
        let (open, left) = (Mutex::new(LruCache::new(capacity)), Mutex::default());
        Self { open, writable, links: OnceLock::new(), sharing, io, left }
    }

    /// Gives a data file a second name, in the folder `data`. A filesystem without hard links is detected
    /// once, and links are not tried again.
    fn link(&self, from: &Path, data: &Path, to: &Path) -> io::Result<()> {
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
    pub(super) fn remove_left(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        for dir in left {
            remove_generation(&dir);
        }
    }

    /// Returns an open file, opening it if necessary. An event loop also opens a file to write, as a part of the write.
    fn get(&self, key: FileKey, path: impl FnOnce() -> PathBuf) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.lock().get(&key) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::options().read(true).write(self.writable).open(path())?);
        // The last holder closes the evicted file, outside the lock.
        let _evicted = self.open.lock().push(key, file.clone());
        Ok(file)
    }

    /// Like [`Files::get`], for reading. An event loop leaves a closed file to a worker.
    fn get_to_read(&self, key: FileKey, path: impl FnOnce() -> PathBuf) -> io::Result<Arc<File>> {
        if !wait::is_allowed() {
            return self.open.lock().get(&key).cloned().ok_or_else(|| io::ErrorKind::WouldBlock.into());
        }
        self.get(key, path)
    }

    fn forget(&self, key: FileKey) {
        let _closed = self.open.lock().pop(&key);
    }

    /// Closes all files of a generation: while they are open, removed files take space.
    fn forget_all(&self, id: GenId) {
        let mut open = self.open.lock();
        let of = |key: &FileKey| matches!(key, FileKey::Journal(of) | FileKey::Data(of, _) if *of == id);
        let keys: Vec<FileKey> = open.iter().map(|(key, _)| *key).filter(of).collect();
        let closed: Vec<_> = keys.iter().filter_map(|key| open.pop(key)).collect();
        drop(open);
        drop(closed);
    }
}

fn remove_generation(dir: &Path) {
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
fn read_exact(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
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

/// A part of a fork's history: a journal and its data files. The last one of a fork is written, all others
/// are frozen.
pub struct Generation {
    /// Its name.
    pub id: GenId,
    dir: PathBuf,
    files: Arc<Files>,
    frozen: AtomicBool,
    /// The next number and offset at the moment of the freeze, if this program wrote it.
    written: Mutex<Option<(u64, u64)>>,
    doomed: AtomicBool,
    /// Data files without references; removed after the journal that says so is durable.
    trash: Mutex<Vec<u64>>,
    /// Data files written since they were last made durable.
    unsynced: Mutex<std::collections::BTreeSet<u64>>,
    journal_unsynced: AtomicBool,
    entry_unsynced: AtomicBool,
    /// Whether making it durable failed once.
    doubted: AtomicBool,
    /// Held during a sync: a second caller must not learn that there is nothing to do.
    syncing: Mutex<()>,
    next_data: AtomicU64,
}

impl Generation {
    /// The path of a generation.
    pub(super) fn dir(forks: &Path, id: GenId) -> PathBuf {
        forks.join("gen").join(id.to_string())
    }

    pub(super) fn new(forks: &Path, id: GenId, files: Arc<Files>) -> Arc<Self> {
        Arc::new(Self {
            id,
            dir: Self::dir(forks, id),
            files,
            frozen: AtomicBool::new(false),
            written: Mutex::default(),
            doomed: AtomicBool::new(false),
            trash: Mutex::default(),
            unsynced: Mutex::default(),
            journal_unsynced: AtomicBool::new(false),
            entry_unsynced: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            syncing: Mutex::default(),
            next_data: AtomicU64::new(1),
        })
    }

    /// Makes its folder and a journal that starts with `header`.
    pub(super) fn create(
        forks: &Path,
        files: Arc<Files>,
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
    pub(super) fn restart(&self, header: &[u8]) -> Result<()> {
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

    pub(super) fn journal(&self) -> io::Result<Arc<File>> {
        self.files.get(FileKey::Journal(self.id), || self.journal_path())
    }

    /// Fills a buffer from its journal; see [`read_exact`].
    pub(super) fn read_journal(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.files.get_to_read(FileKey::Journal(self.id), || self.journal_path())?;
        read_exact(&file, buf, offset)
    }

    pub(super) fn io(&self) -> &dyn Io {
        &*self.files.io
    }

    pub(super) fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    /// Freezes it; the next record, of number `seq`, would be at `end`.
    pub(super) fn freeze_at(&self, seq: u64, end: u64) {
        *self.written.lock() = Some((seq, end));
        self.freeze();
    }

    /// The values given to [`Generation::freeze_at`].
    pub(super) fn written(&self) -> Option<(u64, u64)> {
        *self.written.lock()
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Removes it from disk once nothing in memory refers to it.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Call it after the write: if it came before, a sync that does not cover the write could clear the note.
    pub(super) fn note_journal_write(&self) {
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
    pub(super) fn sync(&self) -> io::Result<()> {
        let _turn = self.syncing.lock();
        if self.doubted.load(Ordering::Acquire) {
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
        self.io().sync_data(file).inspect_err(|_| self.doubted.store(true, Ordering::Release))
    }

    /// Whether there are data files that only wait for removal.
    pub(super) fn has_trash(&self) -> bool {
        !self.trash.lock().is_empty()
    }

    /// Takes the data files to remove. Call [`Generation::sync`] between this and [`Generation::remove`].
    pub(super) fn take_trash(&self) -> Vec<u64> {
        std::mem::take(&mut *self.trash.lock())
    }

    pub(super) fn put_back(&self, trash: Vec<u64>) {
        self.trash.lock().extend(trash);
    }

    pub(super) fn remove(&self, numbers: Vec<u64>) {
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
    pub(super) fn assume_unsynced(&self, numbers: Vec<u64>) {
        for number in &numbers {
            self.saw_data(*number);
        }
        self.unsynced.lock().extend(numbers);
        self.entry_unsynced.store(true, Ordering::Release);
        self.journal_unsynced.store(true, Ordering::Release);
    }

    /// Numbers of the data files that existed when it was read back.
    pub(super) fn known_data(&self) -> Vec<u64> {
        self.unsynced.lock().iter().copied().collect()
    }

    /// Free bytes of its filesystem for the user of this program.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        // A part may be reserved for root.
        let blocks = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
        Ok(blocks.saturating_mul(disk.f_frsize))
    }

    /// Bytes it occupies on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let blocks = |path: PathBuf| fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
        let data = fs::read_dir(self.dir.join("data")).into_iter().flatten().flatten();
        blocks(self.journal_path()) + data.map(|entry| blocks(entry.path())).sum::<u64>()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.files.forget_all(self.id);
        if !*self.doomed.get_mut() {
            return;
        }
        if wait::is_allowed() {
            remove_generation(&self.dir);
        } else {
            self.files.left.lock().push(std::mem::take(&mut self.dir));
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.id)
    }
}
