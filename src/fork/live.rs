//! A fork in memory: its state, its journal, and files that are open but no longer have a name.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use super::apply::{self, Applied};
use super::disk::Generation;
use super::head::Head;
use super::ino::Ino;
use super::journal::Writer;
use super::keep::Leftover;
use super::making::Making;
use super::node::{Content, Guard, Inode, LazyBlob};
use super::pieces::BlobRef;
use super::record::{Attrs, Record};
use super::records::Hidden;
use super::recover::Damage;
use super::registry::Shared;
use super::state::State;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::layers::world::Kind;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::tree::{NodeId, NodeTimes, Tree};

/// The times that an image shows, in nanoseconds since 1970.
#[derive(Clone, Debug)]
pub struct BaseTimes {
    /// When it was made.
    pub created_ns: i64,
    /// Of each entry of its tree that has none recorded.
    pub nodes: Arc<NodeTimes>,
}

impl Default for BaseTimes {
    /// All times are 0, the start of 1970.
    fn default() -> Self {
        Self { created_ns: 0, nodes: Arc::new(NodeTimes::all(0)) }
    }
}

/// Reads the base images of forks. The caller implements it over its cache.
pub trait BaseReader: Send + Sync {
    /// A blob's length in bytes, uncompressed.
    fn size(&self, digest: &Digest) -> Result<u64>;

    /// Reads from a blob of `size` bytes at `offset`. Returns the number of bytes: fewer than asked only at its end.
    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// Whether a blob is shown without the secret that it holds. Such a blob must not become the content of another file.
    fn is_held_back(&self, digest: &Digest) -> Result<bool> {
        let _ = digest;
        Ok(false)
    }

    /// The tree of an image's `world/fs`.
    fn tree(&self, image: &Digest) -> Result<Arc<crate::tree::Tree>>;

    /// The times that an image shows.
    fn times(&self, image: &Digest) -> Result<BaseTimes> {
        let _ = image;
        Ok(BaseTimes::default())
    }

    /// Counts the images before `image` in the line along which times are derived.
    fn line_behind(&self, image: &Digest) -> u32 {
        let _ = image;
        0
    }

    /// The other files of an image: its manifest, and those of its layers.
    fn layers(&self, image: &Digest) -> Result<Vec<super::LayerBase>>;
}

pub(super) fn posix(rule: Posix, message: &'static str) -> Error {
    Error::new(ErrorKind::Posix(rule), message)
}

pub(super) fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such file or directory")
}

/// The present time in nanoseconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// The present time by the clock that the kernel uses for files' times, which may be some milliseconds late.
fn coarse_now() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// The extended attribute with a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// What the fork's lock protects.
pub(super) struct Live {
    pub(super) state: State,
    /// The state at the last seal. Changes are differences from it.
    pub(super) baseline: Arc<State>,
    /// Files without a name that a program still has open. They end with this process, so no record is written for them.
    pub(super) orphans: HashMap<Ino, Arc<Inode>>,
    pub(super) writer: Writer,
    /// All generations, oldest first; the last one is the writer's.
    pub(super) generations: Vec<Arc<Generation>>,
    /// The fork's base image on disk, which the last seal may have replaced.
    pub(super) image: Option<Digest>,
    /// Changes up to this epoch are sealed, or were left out of the seal.
    pub(super) settled: Option<u64>,
    /// The generation with the files that the last seal left out, if there is one.
    pub(super) leftover: Option<Leftover>,
    /// By how many bytes each seal moved the end of an append-only file. Programs that have it open may use the old end.
    pub(super) moved: HashMap<Ino, Vec<i64>>,
    /// See [`Fork::resized`].
    pub(super) resized: u32,
    /// Removed names of the ledger and the trace. A restart shows them again, so no record is written for them.
    pub(super) hidden: Hidden,
}

impl Live {
    pub(super) fn new(
        state: State,
        baseline: Arc<State>,
        writer: Writer,
        generations: Vec<Arc<Generation>>,
        image: Option<Digest>,
    ) -> Self {
        let orphans = HashMap::new();
        Self {
            state,
            baseline,
            orphans,
            writer,
            generations,
            image,
            settled: None,
            leftover: None,
            moved: HashMap::new(),
            resized: 0,
            hidden: Hidden::default(),
        }
    }

    /// See [`Fork::version`].
    pub(super) fn version(&self) -> (super::GenId, u64) {
        (self.writer.generation.id, self.writer.seq)
    }

    /// Whether anything was changed since the last seal.
    pub(super) fn is_changed(&self) -> bool {
        self.state.dirt().any(|epoch| self.settled.is_none_or(|settled| epoch > settled))
    }

    pub(super) fn inode(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.state.inode(ino).or_else(|| self.orphans.get(&ino).cloned())
    }

    pub(super) fn need(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.inode(ino).ok_or_else(|| posix(Posix::Stale, "the fork no longer has the file"))
    }

    /// Returns the offset that a write at `offset` means. In an append-only file an old end means the present end: a seal may
    /// have rewritten the appended lines to another length.
    pub(super) fn meant(&self, ino: Ino, inode: &Inode, offset: u64) -> u64 {
        let (Guard::Append(_), Some(content)) = (inode.guard, inode.content()) else { return offset };
        let end = content.known_size();
        let mut was = Some(end);
        for moved in self.moved.get(&ino).into_iter().flatten().rev() {
            if was == Some(offset) {
                return end;
            }
            was = was.and_then(|was| was.checked_add_signed(-moved));
        }
        if was == Some(offset) { end } else { offset }
    }

    /// Removes a file's capabilities. A change of content or owner does this, since they were given to the old file.
    pub(super) fn drop_capability(&mut self, ino: Ino, inode: &Inode, time: i64) -> Result<()> {
        if !inode.xattrs.contains_key(CAPABILITY) {
            return Ok(());
        }
        self.commit(Record::Xattr { ino, name: CAPABILITY.to_vec(), value: None, time })
    }

    /// Returns an unused number for a new file.
    pub(super) fn fresh(&self, parent: Ino, name: &[u8]) -> Ino {
        let mut probe = 0;
        loop {
            let ino = Ino::derive(parent, name, probe);
            if !self.state.taken(ino) && !self.orphans.contains_key(&ino) {
                return ino;
            }
            probe += 1;
        }
    }

    /// Records an operation and applies it to the state.
    pub(super) fn commit(&mut self, mut record: Record) -> Result<()> {
        let generation = self.writer.generation.id;
        // A file without a name does not survive a restart, so nothing is recorded.
        if let [Some(ino), None] = record.inos()
            && record.made().is_none()
            && !matches!(record, Record::Remove { .. })
            && let Some(inode) = self.orphans.get_mut(&ino)
        {
            let inode = Arc::make_mut(inode);
            apply::change(inode, &record, generation).map_err(|_| senseless())?;
            return Ok(());
        }
        let floor = match &record {
            Record::Attr(Attrs { ino, .. }) | Record::Splice(super::record::Splice { ino, .. }) => {
                self.need(*ino)?.floor()
            }
            _ => 0,
        };
        self.writer.commit(&self.state, &mut record, floor)?;
        let Ok(Applied { unlinked }) = apply::apply(&mut self.state, &record, generation) else {
            // The journal now has a record of something that did not happen. No further record may follow it.
            self.writer.broken = Some("an operation was recorded that could not be applied".into());
            return Err(senseless());
        };
        if let Some((ino, inode)) = unlinked {
            self.writer.numbers.remove(&ino);
            self.orphans.insert(ino, inode);
        }
        Ok(())
    }

    /// Changes a folder's mode, if it is different.
    pub(super) fn set_mode(&mut self, ino: Ino, mode: u16) -> Result<()> {
        if self.need(ino)?.mode == mode {
            return Ok(());
        }
        self.commit(Record::Attr(Attrs { mode: Some(mode), ..Attrs::of(ino, now()) }))
    }

    pub(super) fn writable(&self) -> Result<()> {
        self.writer.check()
    }
}

fn senseless() -> Error {
    Error::new(ErrorKind::Io(None), "the operation contradicts the state of the fork")
}

/// One fork, loaded.
pub struct Fork {
    pub(super) shared: Arc<Shared>,
    /// Random, 128 bits; stays with the fork through renames.
    pub(super) uid: String,
    /// See [`Fork::created_ns`].
    pub(super) created_ns: i64,
    /// See [`Fork::numbered_by`].
    pub(super) numbered_by: String,
    /// Held while the head on disk changes, always before `live`.
    pub(super) head: Mutex<Head>,
    pub(super) live: RwLock<Live>,
    /// Its damage, if any. A damaged fork can only be read.
    pub(super) damage: Option<Damage>,
    pub(super) discarded: AtomicBool,
    pub(super) head_unsynced: AtomicBool,
    /// Held while the head is made durable.
    pub(super) syncing: Mutex<()>,
    /// Whether sealed files keep their names; see [`Fork::set_guarded`].
    pub(super) guarded: AtomicBool,
    /// Held during a seal or a checkpoint.
    pub(super) sealing: Mutex<()>,
    /// A reference to this value itself.
    pub(super) this: Weak<Fork>,
    /// The source that it is being copied from, while that lasts.
    pub(super) making: Mutex<Making>,
    /// Running operations of several steps, which a freeze waits for.
    pub(super) operations: super::witness::Operations,
}

/// The longest manifest in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

impl std::fmt::Debug for Fork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fork").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl Fork {
    /// Its identity, which stays when it is renamed: 32 hex digits.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.head.lock().name.clone()
    }

    /// Its name, unless the head is being written just now.
    pub(crate) fn name_if_free(&self) -> Option<String> {
        self.head.try_lock().map(|head| head.name.clone())
    }

    /// The fork's damage in words, if any. A damaged fork is readable up to the damaged record, and cannot be written.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_ref().map(|damage| damage.what.as_str())
    }

    /// Counts the record numbers that were missing when the journals were read back. Any other damage counts as one.
    pub fn journal_gaps(&self) -> u32 {
        self.damage.as_ref().map_or(0, |damage| damage.gaps)
    }

    /// The fork's base image on disk.
    pub fn base(&self) -> Option<Digest> {
        self.live.read().image
    }

    /// The image it descends from: its base, or the image whose manifest it holds, as in a copy of a fork's folder. The store
    /// may no longer have that image.
    pub fn lineage(&self) -> Result<Option<Digest>> {
        if let Some(image) = self.base() {
            return Ok(Some(image));
        }
        let Ok(manifest) = self.lookup(Ino::TOP, b"manifest.json") else { return Ok(None) };
        if manifest.kind != Kind::File || manifest.size == 0 || manifest.size > MAX_MANIFEST {
            return Ok(None);
        }
        Ok(Some(Digest::of(&self.read_vec(manifest.ino, 0, MAX_MANIFEST as usize)?)))
    }

    /// The image that it was made of, where its head says so; and whether that says that it began with nothing.
    pub fn beginning(&self) -> (Option<Digest>, bool) {
        let head = self.head.lock();
        (head.origin, head.began_empty)
    }

    /// When it was made, in nanoseconds since 1970.
    pub fn created_ns(&self) -> i64 {
        self.created_ns
    }

    /// Whether anything was changed since the last seal. May also be true if the changes cancel each other out.
    pub fn is_changed(&self) -> bool {
        self.live.read().is_changed()
    }

    /// Whether it holds anything that its image lacks: later changes, or files that the seal left out.
    pub fn is_unlike_its_image(&self) -> bool {
        self.live.read().state.dirt().next().is_some()
    }

    /// A value that is different after every change.
    pub fn version(&self) -> (super::GenId, u64) {
        self.live.read().version()
    }

    /// Waits until no other seal of this fork runs. None begins until the guard is dropped.
    pub(crate) fn sealing(&self) -> MutexGuard<'_, ()> {
        self.sealing.lock()
    }

    /// Whether it began empty and still is.
    pub fn is_blank(&self) -> bool {
        let live = self.live.read();
        live.image.is_none() && live.state.dirt().next().is_none()
    }

    /// The present time for files. With late writes it comes from the kernel's clock: a time that the kernel sets later must
    /// not be older than one that was set here.
    pub(super) fn now(&self) -> i64 {
        if self.shared.late_writes { coarse_now() } else { now() }
    }

    /// The time of a change of content. If the kernel sets the times, it sets none for a second change within one tick of its
    /// clock. Such a change must keep the time of the first.
    pub(super) fn time_of_change(&self, inode: &Inode) -> i64 {
        match (inode.mtime, inode.ctime) {
            (Some(mtime), Some(ctime)) if self.shared.late_writes && mtime == ctime => mtime,
            _ => self.now(),
        }
    }

    /// Fails if a file, or the whole fork, cannot be written at all. The sealed part of an append-only file is not checked.
    pub fn may_be_written(&self, ino: Ino) -> Result<()> {
        self.may_write()?;
        let inode = self.live.read().need(ino)?;
        if inode.guard == Guard::Fixed { super::policy::may_change(&inode, 0) } else { Ok(()) }
    }

    /// Whether it was discarded, or replaced by a restore.
    pub(crate) fn is_discarded(&self) -> bool {
        self.discarded.load(Ordering::Acquire)
    }

    pub(crate) fn may_write(&self) -> Result<()> {
        if let Some(damage) = self.damage() {
            return Err(Error::new(ErrorKind::Damaged, format!("the fork is damaged: {damage}"))
                .with_hint("the fork is readable up to the damaged record"));
        }
        if !self.shared.writable {
            return Err(Error::new(ErrorKind::ReadOnly, "another daemon writes this store's forks")
                .with_hint("unmount it there, or use that mount"));
        }
        if self.is_discarded() {
            return Err(posix(Posix::Stale, "the fork was discarded"));
        }
        Ok(())
    }

    /// Finds out the length of a file whose blob was not yet looked at. Takes no lock while it reads.
    pub(super) fn settle(&self, ino: Ino) -> Result<()> {
        let lazy: Option<Arc<LazyBlob>> = {
            let live = self.live.read();
            let own = match live.state.at(ino) {
                Some(super::state::At::Own(inode)) => Some(inode),
                Some(super::state::At::Base(_)) => None,
                None => live.orphans.get(&ino),
            };
            own.and_then(|inode| inode.content()).and_then(Content::unsettled).cloned()
        };
        if let Some(lazy) = lazy {
            settle(&lazy, &*self.shared.reader)?;
        }
        Ok(())
    }

    pub(super) fn read_blob(&self, blob: &BlobRef, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_blob(&*self.shared.reader, blob, offset, buf)
    }

    /// Notes that the kernel no longer knows the number. A file without a name is then removed, and its space freed.
    pub fn forget(&self, ino: Ino) {
        {
            let live = self.live.read();
            if !live.orphans.contains_key(&ino) {
                live.state.forget(ino);
                return;
            }
        }
        // Dropped after the lock is released: the data file may be large.
        let _gone = self.live.write().orphans.remove(&ino);
    }

    /// Counts the numbers of unchanged files that are remembered, and the files without a name.
    pub fn remembered(&self) -> (usize, usize) {
        let live = self.live.read();
        (live.state.intern.len(), live.orphans.len())
    }

    /// The tree that a file comes from and its place there, if it has one.
    pub fn base_place(&self, ino: Ino) -> Option<(Arc<Tree>, NodeId)> {
        let live = self.live.read();
        let node = live.state.base_node(ino)?;
        Some((Arc::clone(&live.state.base.tree), node))
    }

    /// All names of a file: the folder, and the name there.
    pub fn links(&self, ino: Ino) -> Vec<(Ino, super::node::Name)> {
        self.live.read().inode(ino).map(|inode| inode.links.to_vec()).unwrap_or_default()
    }

    /// Whether it is `effects/ledger.jsonl`, whose entries a seal chains.
    pub fn is_ledger(&self, ino: Ino) -> bool {
        self.live.read().state.child(Ino::EFFECTS, b"ledger.jsonl") == Some(ino)
    }

    /// Notes that the kernel may have an outdated length of the ledger.
    pub fn resize(&self) {
        self.live.write().resized += 1;
    }

    /// Counts how often the ledger's length has changed without the kernel's knowledge since the fork was read back: by a
    /// seal, or noted by [`Fork::resize`]. For any other file it returns 0.
    pub fn resized(&self, ino: Ino) -> u32 {
        let live = self.live.read();
        let is_ledger = live.resized > 0 && live.state.child(Ino::EFFECTS, b"ledger.jsonl") == Some(ino);
        if is_ledger { live.resized } else { 0 }
    }

    /// Returns which changes a file allows, and the length from which on bytes can be appended.
    pub fn guard(&self, ino: Ino) -> Result<(Guard, u64)> {
        self.settle(ino)?;
        let inode = self.live.read().need(ino)?;
        Ok((inode.guard, inode.floor()))
    }
}

pub(super) fn settle(lazy: &LazyBlob, reader: &dyn BaseReader) -> Result<()> {
    if lazy.size.get().is_none() {
        let size = reader.size(&lazy.digest)?;
        lazy.size.get_or_init(|| size);
    }
    Ok(())
}

pub(super) fn read_blob(reader: &dyn BaseReader, blob: &BlobRef, offset: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match reader.read(&blob.digest, blob.size, offset + done as u64, &mut buf[done..])? {
            0 => {
                let message = format!("blob {} ends before its {} bytes", blob.digest, blob.size);
                return Err(Error::new(ErrorKind::Damaged, message));
            }
            n => done += n,
        }
    }
    Ok(())
}
