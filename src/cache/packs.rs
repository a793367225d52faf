//! Packs: small blobs that were read once, compressed as in the store, in the order of reading.
//!
//! A store has a file for each blob: reading a tree of twenty thousand files from a cold disk opens twenty
//! thousand files. Blobs that were read go into packs in the cache's folder, so that the next mount reads a
//! few files from beginning to end. A pack is trusted as little as the store: each blob is checked against
//! its digest.
//!
//! `<dir>/packs/<hex16>.pack`: compressed blobs; then, sorted by digest, for each of them 32 bytes of digest,
//! the offset (u64) and the length (u32) of its bytes; then the offset of that index (u64), the number of
//! blobs (u64) and [`MAGIC`]. Numbers are little-endian. A pack is written without a name and never changes
//! once it has one, and may be deleted at any time.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::SystemTime;

use super::folder;
use super::mapped::{Mapping, give_name};
use super::unkept::Trouble;
use crate::digest::Digest;
use crate::sync::{Mutex, RwLock};

/// The last bytes of a pack.
const MAGIC: &[u8; 8] = b"pfpack1\n";

/// Bytes of a blob in the index, and of what follows the index.
const ENTRY: usize = 32 + 8 + 4;
const TAIL: usize = 8 + 8 + 8;

/// A pack is finished at this many bytes or blobs: the index of a pack under construction is in memory.
const FULL_BYTES: u64 = 64 << 20;
const FULL_BLOBS: usize = 1 << 16;

/// Packs of less than half of that are joined when there are blobs to add.
const SMALL_BYTES: u64 = FULL_BYTES / 2;
const SMALL_BLOBS: usize = FULL_BLOBS / 2;

/// Bytes written at once.
const BUFFER: usize = 1 << 20;

/// Fewer bytes than this get no pack, unless the mount ends.
const LITTLE: u64 = 1 << 20;

/// A smaller budget turns packs off.
const LEAST: u64 = 4 << 20;

/// Bytes read ahead of a reader, and the distance from their end at which more are read.
const AHEAD: u64 = 8 << 20;
const NEAR: u64 = 2 << 20;

/// One finished pack.
#[derive(Debug)]
struct Pack {
    path: PathBuf,
    map: Mapping,
    /// Where the index begins, and the number of blobs.
    index: usize,
    blobs: usize,
    /// The end of the bytes that the disk was asked to read.
    asked: AtomicU64,
    used: AtomicBool,
}

impl Pack {
    fn open(path: PathBuf) -> Option<Self> {
        let file = File::open(&path).ok()?;
        let map = Mapping::new(&file).ok()?;
        let tail = map.len().checked_sub(TAIL)?;
        let number = |at: usize| Some(u64::from_le_bytes(map.get(at..at + 8)?.try_into().ok()?));
        let (index, blobs) = (number(tail)?, number(tail + 8)?);
        let (index, blobs) = (usize::try_from(index).ok()?, usize::try_from(blobs).ok()?);
        if map[tail + 16..] != *MAGIC || blobs.checked_mul(ENTRY)?.checked_add(index)? != tail {
            return None;
        }
        Some(Self { path, map, index, blobs, asked: AtomicU64::new(0), used: AtomicBool::new(false) })
    }

    fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    fn is_small(&self) -> bool {
        self.bytes() < SMALL_BYTES && self.blobs < SMALL_BLOBS
    }

    fn entry(&self, i: usize) -> &[u8] {
        &self.map[self.index + i * ENTRY..][..ENTRY]
    }

    /// The position of a blob's bytes, by the index.
    fn place(&self, i: usize) -> Option<(u64, &[u8])> {
        let entry = self.entry(i);
        let start = u64::from_le_bytes(entry[32..40].try_into().ok()?);
        let length = u32::from_le_bytes(entry[40..44].try_into().ok()?);
        let from = usize::try_from(start).ok()?;
        let bytes = self.map.get(from..from.checked_add(length as usize)?.min(self.index))?;
        Some((start, bytes))
    }

    fn find(&self, digest: &Digest) -> Option<usize> {
        let (mut low, mut high) = (0, self.blobs);
        while low < high {
            let middle = low.midpoint(high);
            match self.entry(middle)[..32].cmp(digest.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// A blob's compressed bytes, unchecked.
    fn get(&self, digest: &Digest) -> Option<&[u8]> {
        let (start, bytes) = self.place(self.find(digest)?)?;
        let asked = self.asked.load(Ordering::Relaxed);
        if start + NEAR > asked || start + AHEAD < asked {
            self.asked.store(start + AHEAD, Ordering::Relaxed);
            self.map.will_need(start as usize, AHEAD as usize);
        }
        if !self.used.swap(true, Ordering::Relaxed) {
            // Its time tells later mounts when it was last used.
            let _ = File::open(&self.path).and_then(|file| file.set_modified(SystemTime::now()));
        }
        Some(bytes)
    }
}

/// The pack that is being written.
#[derive(Debug)]
struct Writing {
    file: Arc<File>,
    buffer: Vec<u8>,
    /// The offset of the buffer's bytes in the pack.
    at: u64,
    index: Vec<(Digest, u64, u32)>,
    known: HashSet<Digest>,
    /// Buffers that threads are writing now, and whether a write failed.
    under_way: usize,
    failed: bool,
    /// Blobs at the last check of whether blobs are still being added.
    seen: usize,
}

impl Writing {
    fn new(dir: &Path) -> io::Result<Self> {
        // As for larger blobs: closed to others, and an existing folder is not changed.
        folder::make_inside(dir.parent().unwrap_or(dir), dir)?;
        Ok(Self {
            file: Arc::new(tempfile::tempfile_in(dir)?),
            buffer: Vec::with_capacity(BUFFER),
            at: 0,
            index: Vec::new(),
            known: HashSet::new(),
            under_way: 0,
            failed: false,
            seen: 0,
        })
    }

    fn bytes(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    fn is_full(&self) -> bool {
        self.bytes() >= FULL_BYTES || self.index.len() >= FULL_BLOBS
    }

    fn push(&mut self, digest: Digest, compressed: &[u8]) {
        if self.known.insert(digest) {
            self.index.push((digest, self.bytes(), compressed.len() as u32));
            self.buffer.extend_from_slice(compressed);
        }
    }

    /// Takes the buffer's bytes, to be written at their offset.
    fn take(&mut self) -> (Arc<File>, Vec<u8>, u64) {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER));
        let at = self.at;
        self.at += full.len() as u64;
        (Arc::clone(&self.file), full, at)
    }

    /// Writes the rest and the index, and gives the pack its name.
    fn finish(mut self, dir: &Path) -> io::Result<PathBuf> {
        let end = self.bytes();
        self.index.sort_unstable_by_key(|(digest, ..)| *digest);
        let mut name = std::collections::hash_map::DefaultHasher::new();
        for (digest, start, length) in &self.index {
            std::hash::Hash::hash(digest.as_bytes(), &mut name);
            self.buffer.extend_from_slice(digest.as_bytes());
            self.buffer.extend_from_slice(&start.to_le_bytes());
            self.buffer.extend_from_slice(&length.to_le_bytes());
        }
        self.buffer.extend_from_slice(&end.to_le_bytes());
        self.buffer.extend_from_slice(&(self.index.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(MAGIC);
        self.file.write_all_at(&self.buffer, self.at)?;
        let path = dir.join(format!("{:016x}.pack", std::hash::Hasher::finish(&name)));
        match give_name(&self.file, &path) {
            // Another mount read the same blobs.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
            other => other.map(|()| path),
        }
    }
}

/// The packs of a cache's folder.
#[derive(Debug)]
pub(super) struct Packs {
    dir: PathBuf,
    budget: u64,
    /// Oldest first.
    finished: RwLock<Vec<Arc<Pack>>>,
    writing: Mutex<Option<Writing>>,
    /// Whether writing a pack failed: it is not tried again.
    off: AtomicBool,
    /// Held by the one thread that finishes a pack.
    finishing: Mutex<()>,
    taken: AtomicU64,
    /// Done by the first reader.
    adopted: Once,
    trouble: Arc<Trouble>,
}

impl Packs {
    pub(super) fn new(cache: &Path, budget: u64, trouble: Arc<Trouble>) -> Self {
        Self {
            dir: cache.join("packs"),
            budget,
            finished: RwLock::default(),
            writing: Mutex::default(),
            off: AtomicBool::new(budget < LEAST),
            finishing: Mutex::new(()),
            taken: AtomicU64::new(0),
            adopted: Once::new(),
            trouble,
        }
    }

    /// The number of blobs that were taken from packs.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Opens the packs that earlier mounts left.
    fn scan_existing(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut found: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "pack"))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        found.sort_unstable();
        for (_, path) in found {
            match Pack::open(path.clone()) {
                Some(pack) => self.finished.write().push(Arc::new(pack)),
                None => discard(&path),
            }
        }
        self.shrink();
    }

    /// Gives a blob's compressed bytes to `decode`, if a pack has it. A pack with wrong bytes is deleted.
    pub(super) fn read<T, E: std::fmt::Display>(
        &self,
        digest: &Digest,
        decode: impl Fn(&[u8]) -> Result<T, E>,
    ) -> Option<T> {
        self.adopted.call_once(|| self.scan_existing());
        let packs = self.finished.read().clone();
        for pack in packs.iter().rev() {
            let Some(bytes) = pack.get(digest) else { continue };
            match decode(bytes) {
                Ok(decoded) => {
                    pack.map.was_read(bytes.len());
                    self.taken.fetch_add(1, Ordering::Relaxed);
                    return Some(decoded);
                }
                Err(error) => {
                    tracing::debug!(%digest, "in {}: {error}", pack.path.display());
                    self.finished.write().retain(|other| !Arc::ptr_eq(other, pack));
                    discard(&pack.path);
                }
            }
        }
        None
    }

    /// Notes a blob that was read from the store and matched its digest.
    pub(super) fn add(&self, digest: &Digest, compressed: &[u8]) {
        if self.off.load(Ordering::Relaxed) {
            return;
        }
        let mut writing = self.writing.lock();
        if writing.is_none() {
            // Made without the lock. Of two that are made at once one is not needed, and has no name.
            drop(writing);
            let new = match Writing::new(&self.dir) {
                Ok(new) => new,
                Err(error) => {
                    self.trouble.met(&error);
                    self.off.store(true, Ordering::Relaxed);
                    return;
                }
            };
            writing = self.writing.lock();
            writing.get_or_insert(new);
        }
        let Some(pack) = writing.as_mut() else { return };
        pack.push(*digest, compressed);
        if pack.buffer.len() < BUFFER {
            return;
        }
        let (file, full, at) = pack.take();
        pack.under_way += 1;
        drop(writing);
        let written = file.write_all_at(&full, at);
        if let Some(pack) = &mut *self.writing.lock() {
            pack.under_way -= 1;
            if let Err(error) = written {
                self.trouble.met(&error);
                pack.failed = true;
            }
        }
    }

    /// Finishes the pack under construction if it is full or no blobs were added recently; `at_the_end` in
    /// any case.
    pub(super) fn settle(&self, at_the_end: bool) {
        let _alone = self.finishing.lock();
        let ready = {
            let mut writing = self.writing.lock();
            let Some(pack) = &mut *writing else { return };
            let resting = pack.seen == pack.index.len() && pack.bytes() >= LITTLE;
            pack.seen = pack.index.len();
            let due = at_the_end || resting || pack.is_full();
            if pack.under_way > 0 || !due { None } else { writing.take() }
        };
        let Some(mut pack) = ready else { return };
        if pack.failed {
            return;
        }
        self.adopted.call_once(|| self.scan_existing());
        let absorbed = self.absorb(&mut pack);
        let finished = pack.finish(&self.dir).map(Pack::open);
        match finished {
            Ok(Some(pack)) => {
                let path = pack.path.clone();
                {
                    let mut packs = self.finished.write();
                    packs.retain(|other| {
                        other.path != path && !absorbed.iter().any(|a| Arc::ptr_eq(a, other))
                    });
                    packs.push(Arc::new(pack));
                }
                for old in absorbed.iter().filter(|old| old.path != path) {
                    let _ = fs::remove_file(&old.path);
                }
            }
            Ok(None) => {}
            Err(error) => self.trouble.met(&error),
        }
        self.shrink();
    }

    /// Adds the content of small packs, so that there are never many of them; returns those packs.
    fn absorb(&self, pack: &mut Writing) -> Vec<Arc<Pack>> {
        let mut absorbed = Vec::new();
        let small: Vec<_> = self.finished.read().iter().filter(|pack| pack.is_small()).cloned().collect();
        for old in small {
            if pack.bytes() + old.bytes() > FULL_BYTES || pack.index.len() + old.blobs > FULL_BLOBS {
                continue;
            }
            // In the order of their positions.
            let mut order: Vec<_> = (0..old.blobs).filter_map(|i| Some((old.place(i)?, i))).collect();
            order.sort_unstable_by_key(|((start, _), _)| *start);
            let mut written = Ok(());
            for ((_, bytes), i) in order {
                let mut digest = [0; 32];
                digest.copy_from_slice(&old.entry(i)[..32]);
                pack.push(Digest::from_bytes(digest), bytes);
                if pack.buffer.len() >= BUFFER {
                    let (file, full, at) = pack.take();
                    written = written.and(file.write_all_at(&full, at));
                }
            }
            pack.failed |= written.is_err();
            absorbed.push(old);
        }
        absorbed
    }

    /// Deletes the oldest packs until the rest is within the budget.
    fn shrink(&self) {
        let mut gone = Vec::new();
        {
            let mut packs = self.finished.write();
            let mut bytes: u64 = packs.iter().map(|pack| pack.bytes()).sum();
            while bytes > self.budget && !packs.is_empty() {
                let oldest = packs.remove(0);
                bytes -= oldest.bytes();
                gone.push(oldest);
            }
        }
        for pack in gone {
            let _ = fs::remove_file(&pack.path);
        }
    }
}

fn discard(path: &Path) {
    tracing::warn!("the pack {} is damaged; pfimg makes it again", path.display());
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(seed: u32, len: usize) -> (Digest, Vec<u8>) {
        let bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(seed + 7) >> 3) as u8).collect();
        (Digest::of(&bytes), bytes)
    }

    fn check(digest: &Digest, bytes: &[u8]) -> Result<Vec<u8>, String> {
        if Digest::of(bytes) == *digest { Ok(bytes.to_vec()) } else { Err("damaged".into()) }
    }

    fn reopened(dir: &Path, budget: u64) -> Packs {
        let packs = Packs::new(dir, budget, Arc::new(Trouble::new(dir)));
        packs.adopted.call_once(|| packs.scan_existing());
        packs
    }

    fn on_disk(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir.join("packs")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn added_blobs_are_kept_for_the_next_mount_and_small_packs_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        let blobs: Vec<_> = (0..3000).map(|i| blob(i, (i as usize * 37) % 5000)).collect();
        for part in blobs.chunks(700) {
            let packs = reopened(dir.path(), 64 << 20);
            for (digest, bytes) in part {
                packs.add(digest, bytes);
                packs.add(digest, bytes);
            }
            packs.settle(true);
            for (digest, bytes) in part {
                assert_eq!(packs.read(digest, |found| check(digest, found)).as_ref(), Some(bytes));
            }
            assert_eq!(on_disk(dir.path()).len(), 1);
        }
        let packs = reopened(dir.path(), 64 << 20);
        for (digest, bytes) in &blobs {
            assert_eq!(packs.read(digest, |found| check(digest, found)).as_ref(), Some(bytes));
        }
        assert!(packs.read(&Digest::of(b"elsewhere"), |_| Ok::<_, String>(())).is_none());
    }

    #[test]
    fn a_folder_that_was_there_keeps_its_mode_and_the_packs_in_it_are_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let packs = reopened(dir.path(), 64 << 20);
        let (digest, bytes) = blob(1, 1000);
        packs.add(&digest, &bytes);
        packs.settle(true);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode(dir.path()), mode(&dir.path().join("packs"))], [0o1777, 0o700]);
        assert_eq!(mode(&on_disk(dir.path())[0]) & 0o077, 0);
    }

    #[test]
    fn a_pack_that_is_damaged_anywhere_gives_no_wrong_byte_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let blobs: Vec<_> = (0..40).map(|i| blob(i, 10 + i as usize)).collect();
        let packs = reopened(dir.path(), 64 << 20);
        for (digest, bytes) in &blobs {
            packs.add(digest, bytes);
        }
        packs.settle(true);
        drop(packs);
        let path = on_disk(dir.path()).remove(0);
        let good = fs::read(&path).unwrap();
        let cut = (0..=TAIL + ENTRY).map(|cut| good[..good.len() - cut].to_vec());
        let flipped = (0..good.len()).map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            bad
        });
        for bad in cut.chain(flipped) {
            let _ = fs::remove_file(&path);
            fs::write(&path, &bad).unwrap();
            let packs = reopened(dir.path(), 64 << 20);
            for (digest, bytes) in &blobs {
                let found = packs.read(digest, |found| check(digest, found));
                assert!(found.is_none_or(|found| found == *bytes));
            }
        }
    }

    #[test]
    fn the_oldest_go_when_the_budget_is_used_up_and_nothing_is_kept_without_one() {
        let dir = tempfile::tempdir().unwrap();
        // Too large to be joined with others.
        let large = |seed| blob(seed, (SMALL_BYTES + 1) as usize);
        let budget = 2 * SMALL_BYTES + (1 << 20);
        for seed in 0..4 {
            let packs = reopened(dir.path(), budget);
            let (digest, bytes) = large(seed);
            packs.add(&digest, &bytes);
            packs.settle(true);
            assert!(packs.read(&digest, |found| check(&digest, found)).is_some());
        }
        let left: u64 = on_disk(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(left <= budget, "{left}");
        let none = tempfile::tempdir().unwrap();
        let packs = reopened(none.path(), LEAST - 1);
        let (digest, bytes) = blob(1, 100);
        packs.add(&digest, &bytes);
        packs.settle(true);
        assert!(!none.path().join("packs").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_logged_once_and_reading_continues() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("packs"), b"a file is in the way").unwrap();
        let packs = reopened(dir.path(), 64 << 20);
        let (digest, bytes) = blob(1, 100);
        packs.add(&digest, &bytes);
        packs.settle(true);
        assert!(packs.read(&digest, |found| check(&digest, found)).is_none());
    }

    #[test]
    fn threads_that_add_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let packs = reopened(dir.path(), 256 << 20);
        let blobs: Vec<_> = (0..400).map(|i| blob(i, 20_000 + i as usize)).collect();
        std::thread::scope(|scope| {
            for part in blobs.chunks(100) {
                let packs = &packs;
                scope.spawn(move || part.iter().for_each(|(digest, bytes)| packs.add(digest, bytes)));
            }
        });
        packs.settle(true);
        for (digest, bytes) in &blobs {
            assert_eq!(packs.read(digest, |found| check(digest, found)).as_ref(), Some(bytes));
        }
    }
}
