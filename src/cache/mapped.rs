//! Large blobs as files `<dir>/<aa>/<hex64>`, mapped.
//!
//! A file appears under its name only after its bytes matched the digest, and is never written again. This
//! program, another mount that shares the folder, or a user may delete it at any time: a mapping keeps its
//! content.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use lru::LruCache;
use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::folder;
use super::unfilled::Unfilled;
use super::unkept::{Keeping, Trouble};
use crate::digest::Digest;
use crate::store::BlobError;
use crate::sync::{Mutex, wait};

/// Bytes read through a mapping after which its pages are released: hot pages are in the kernel's page cache.
const RELEASE_AFTER: usize = 8 << 20;

/// Links an unnamed file under a name, read-only.
pub(super) fn give_name(file: &File, path: &Path) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o400))?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    Ok(rustix::fs::linkat(rustix::fs::CWD, unnamed, rustix::fs::CWD, path, flags)?)
}

/// A mapped file, or nothing for an empty one, which cannot be mapped.
#[derive(Debug)]
pub struct Mapping {
    map: Option<Mmap>,
    read: AtomicUsize,
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

impl Mapping {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let map = if file.metadata()?.len() == 0 {
            None
        } else {
            // SAFETY: this user owns the file, it was made read-only before it got its name, and pfimg never
            // writes to it or shortens it afterwards; deleting it keeps the mapping.
            Some(unsafe { Mmap::map(file)? })
        };
        Ok(Self { map, read: AtomicUsize::new(0) })
    }

    /// Asks the kernel to read a stretch from the disk soon. Leaves out bytes after the end.
    pub(super) fn will_need(&self, start: usize, length: usize) {
        if let Some(map) = &self.map {
            let length = length.min(map.len().saturating_sub(start));
            let _ = map.advise_range(Advice::WillNeed, start, length);
        }
    }

    /// Counts bytes read and releases the pages now and then, so that a gigabyte that is read once does not
    /// stay in this process.
    pub(super) fn was_read(&self, bytes: usize) {
        if self.read.fetch_add(bytes, Ordering::Relaxed) + bytes >= RELEASE_AFTER {
            self.read.store(0, Ordering::Relaxed);
            if let Some(map) = &self.map {
                // SAFETY: the mapping is shared and backed by a file that is never written: dropped pages
                // come back with the same bytes.
                let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
            }
        }
    }
}

#[derive(Debug)]
struct CachedFile {
    len: u64,
    /// Empty for a file of an earlier run until it is verified.
    mapping: Option<Arc<Mapping>>,
}

#[derive(Debug)]
struct Inner {
    files: LruCache<Digest, CachedFile>,
    bytes: u64,
}

/// The files of a cache folder.
#[derive(Debug)]
pub(super) struct Mapped {
    dir: PathBuf,
    budget: u64,
    inner: Mutex<Inner>,
    evictions: AtomicU64,
    /// Shared with the folder, and with files elsewhere, which stand in for it.
    trouble: Arc<Trouble>,
    elsewhere: Trouble,
}

impl Mapped {
    pub(super) fn new(dir: &Path, budget: u64, trouble: Arc<Trouble>) -> Self {
        let inner = Mutex::new(Inner { files: LruCache::unbounded(), bytes: 0 });
        let elsewhere = Trouble::quiet(&std::env::temp_dir());
        Self { dir: dir.to_owned(), budget, inner, evictions: AtomicU64::new(0), trouble, elsewhere }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    pub(super) fn bytes(&self) -> u64 {
        self.inner.lock().bytes
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.join(&hex[..2]).join(hex)
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<Mapping>> {
        self.inner.lock().files.get(digest)?.mapping.clone()
    }

    /// Lists the files that are in the folder already.
    pub(super) fn scan_existing(&self) {
        let mut found = Vec::new();
        let Ok(shards) = fs::read_dir(&self.dir) else { return };
        for shard in shards.flatten() {
            let Ok(entries) = fs::read_dir(shard.path()) else { continue };
            for entry in entries.flatten() {
                let (name, metadata) = (entry.file_name(), entry.metadata());
                let digest = name.to_str().and_then(|hex| Digest::from_hex(hex).ok());
                if let (Some(digest), Ok(metadata)) = (digest, metadata) {
                    found.push((
                        metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                        digest,
                        metadata.len(),
                    ));
                }
            }
        }
        // Newest first: each is listed after the newer ones, so the oldest is the next to be evicted. The files
        // in use stay longest.
        found.sort_unstable_by(|a, b| b.cmp(a));
        let mut inner = self.inner.lock();
        for (_, digest, len) in found {
            if !inner.files.contains(&digest) {
                inner.files.put(digest, CachedFile { len, mapping: None });
                inner.files.demote(&digest);
                inner.bytes += len;
            }
        }
        let gone = self.shrink(&mut inner, None);
        drop(inner);
        self.remove(&gone);
    }

    /// Maps a file of an earlier run or another mount, if its bytes still match the digest.
    pub(super) fn reopen(&self, digest: &Digest) -> Option<Arc<Mapping>> {
        wait::disk("cache");
        let path = self.path(digest);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(&path).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
            // The file's owner could shorten it while it is mapped.
            self.trouble.met(&format_args!("{} is another user's file", path.display()));
            let _ = fs::remove_file(&path);
            return None;
        }
        let mapping = Mapping::new(&file).ok()?;
        if Digest::of(&mapping) != *digest {
            tracing::warn!(%digest, "cached file {} is damaged; pfimg makes it again", path.display());
            let _ = fs::remove_file(&path);
            self.forget(digest);
            return None;
        }
        mapping.was_read(RELEASE_AFTER);
        // Its time tells the next run when it was last used.
        let _ = file.set_modified(SystemTime::now());
        Some(self.insert(*digest, mapping))
    }

    /// Makes the file of a blob: `write` streams the payload and has verified it when it returns.
    pub(super) fn fill(
        &self,
        digest: &Digest,
        write: &mut dyn FnMut(&mut dyn Write) -> Result<u64, BlobError>,
    ) -> Result<Arc<Mapping>, Unfilled> {
        let path = self.path(digest);
        // Without a name until it is whole: a daemon that is killed before that leaves nothing behind.
        if let Some((file, mapping)) = attempt(&self.trouble, || self.unnamed_file(&path), write)? {
            match give_name(&file, &path) {
                Ok(()) => self.trouble.over(),
                // Another mount was faster, or the folder was deleted. The mapping is good without a name.
                Err(error) => tracing::debug!("cannot keep {}: {error}", path.display()),
            }
            return Ok(self.insert(*digest, mapping));
        }
        // The cache is optional: without its folder the payload lives elsewhere while it is used.
        match attempt(&self.elsewhere, tempfile::tempfile, write)? {
            Some((_, mapping)) => Ok(self.insert(*digest, mapping)),
            None => Err(Unfilled::Unkept),
        }
    }

    fn unnamed_file(&self, path: &Path) -> io::Result<File> {
        let shard = path.parent().unwrap_or(&self.dir);
        // Decompressed bytes may be secret, whatever the folder's parents allow. An existing folder is not
        // changed: it may have other uses.
        folder::make_inside(&self.dir, shard)?;
        tempfile::tempfile_in(shard)
    }

    fn insert(&self, digest: Digest, mapping: Mapping) -> Arc<Mapping> {
        let len = mapping.len() as u64;
        let mapping = Arc::new(mapping);
        let known = CachedFile { len, mapping: Some(Arc::clone(&mapping)) };
        let mut inner = self.inner.lock();
        inner.bytes += len;
        if let Some(old) = inner.files.put(digest, known) {
            inner.bytes -= old.len;
        }
        let gone = self.shrink(&mut inner, Some(&digest));
        drop(inner);
        self.remove(&gone);
        mapping
    }

    fn forget(&self, digest: &Digest) {
        let mut inner = self.inner.lock();
        if let Some(old) = inner.files.pop(digest) {
            inner.bytes -= old.len;
        }
    }

    /// Drops the least recently used files until the budget holds, but never `keep`: otherwise each read
    /// would decompress a blob larger than the budget again. Returns the dropped ones, whose files the caller removes
    /// without the lock: every look at the cache takes it.
    fn shrink(&self, inner: &mut Inner, keep: Option<&Digest>) -> Vec<(Digest, CachedFile)> {
        let mut gone = Vec::new();
        while inner.bytes > self.budget {
            match inner.files.peek_lru() {
                Some((digest, _)) if Some(digest) != keep => {}
                _ => break,
            }
            if let Some((digest, known)) = inner.files.pop_lru() {
                inner.bytes -= known.len;
                self.evictions.fetch_add(1, Ordering::Relaxed);
                gone.push((digest, known));
            }
        }
        gone
    }

    fn remove(&self, gone: &[(Digest, CachedFile)]) {
        for (digest, _) in gone {
            // Another thread may just have made the file again. Its mapping does not need the name.
            let _ = fs::remove_file(self.path(digest));
        }
    }
}

/// Makes a file and has a payload written to it. Nothing if there is no room for it, now or a moment ago.
fn attempt(
    trouble: &Trouble,
    make: impl FnOnce() -> io::Result<File>,
    write: &mut dyn FnMut(&mut dyn Write) -> Result<u64, BlobError>,
) -> Result<Option<(File, Mapping)>, Unfilled> {
    if trouble.is_recent() {
        return Ok(None);
    }
    let mut file = match make() {
        Ok(file) => file,
        Err(error) => {
            trouble.met(&error);
            return Ok(None);
        }
    };
    let mut keeping = Keeping { to: &mut file, failed: None };
    let written = write(&mut keeping);
    if let Some(error) = keeping.failed {
        trouble.met(&error);
        return Ok(None);
    }
    written?;
    match Mapping::new(&file) {
        Ok(mapping) => Ok(Some((file, mapping))),
        // The address space has no room for it.
        Err(error) => {
            trouble.met(&error);
            Ok(None)
        }
    }
}
