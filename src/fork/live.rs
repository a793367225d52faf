//! A fork that is being written: its state, its journal, and the files that are open but have no name any more.

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
    /// Everything is of 1970.
    fn default() -> Self {
        Self { created_ns: 0, nodes: Arc::new(NodeTimes::all(0)) }
    }
}

/// Reads what forks are based on. The caller's cache stands behind it.
pub trait BaseReader: Send + Sync {
    /// A blob's length in bytes, uncompressed.
    fn size(&self, digest: &Digest) -> Result<u64>;

    /// Reads from a blob of `size` bytes at `offset`; returns how many bytes, less than asked only at its end.
    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// Whether a blob is shown otherwise than it is, without its secret: then it must not become another file's content.
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

    /// How many images are behind one in the line along which times are derived.
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
    Error::new(ErrorKind::NotFound, "no such file or folder")
}

/// Now, in nanoseconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// The same by the clock that the kernel takes files' times from, which may lie some milliseconds back.
fn coarse_now() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// The extended attribute with a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// What the fork's lock protects.
pub(super) struct Live {
    pub(super) state: State,
    /// The state at the last seal, which changes are told against.
    pub(super) baseline: Arc<State>,
    /// Files without a name that somebody still uses. A restart ends them, so they are not recorded.
    pub(super) orphans: HashMap<Ino, Arc<Inode>>,
    pub(super) writer: Writer,
    /// All generations, oldest first; the last one is the writer's.
    pub(super) generations: Vec<Arc<Generation>>,
    /// The image it rests on on disk, which the last seal may have replaced.
    pub(super) image: Option<Digest>,
    /// What was changed up to this epoch is sealed, or was kept out of the seal.
    pub(super) settled: Option<u64>,
    /// The generation that holds what was kept out, once there is one.
    pub(super) leftover: Option<Leftover>,
    /// By how many bytes each seal moved the end of a file that only grows. Whoever has it open may not know.
    pub(super) moved: HashMap<Ino, Vec<i64>>,
    /// See [`Fork::resized`].
    pub(super) resized: u32,
    /// Names of the records that were taken away. A restart shows them again, so they are not recorded.
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
        self.inode(ino).ok_or_else(|| posix(Posix::Stale, "the file is gone from its fork"))
    }

    /// Where bytes are meant to go that are written at `offset`: of a file that only grows, one that was its end before seals
    /// rewrote what was appended means its end now.
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

    /// Takes a file's capabilities from it, as another content or owner does: they were given to what it was.
    pub(super) fn drop_capability(&mut self, ino: Ino, inode: &Inode, time: i64) -> Result<()> {
        if !inode.xattrs.contains_key(CAPABILITY) {
            return Ok(());
        }
        self.commit(Record::Xattr { ino, name: CAPABILITY.to_vec(), value: None, time })
    }

    /// A number for a new file.
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

    /// Records an operation and makes it true.
    pub(super) fn commit(&mut self, mut record: Record) -> Result<()> {
        let generation = self.writer.generation.id;
        // A file without a name has nobody to tell after a restart.
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
            // The journal now says what did not happen. It must not be added to.
            self.writer.broken = Some("an operation was recorded that could not be applied".into());
            return Err(senseless());
        };
        if let Some((ino, inode)) = unlinked {
            self.writer.numbers.remove(&ino);
            self.orphans.insert(ino, inode);
        }
        Ok(())
    }

    /// Gives a folder a mode, if it has another one.
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
    Error::new(ErrorKind::Io(None), "an operation that does not fit the fork's state")
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
    /// What is wrong with it, if anything: then it can only be read.
    pub(super) damage: Option<Damage>,
    pub(super) discarded: AtomicBool,
    pub(super) head_unsynced: AtomicBool,
    /// Held while the head is made durable.
    pub(super) syncing: Mutex<()>,
    /// Whether what was sealed keeps its name; see [`Fork::set_guarded`].
    pub(super) guarded: AtomicBool,
    /// Held while it is sealed, or its journals are written anew.
    pub(super) sealing: Mutex<()>,
    /// Itself.
    pub(super) this: Weak<Fork>,
    /// What it is being copied together from, as long as it is.
    pub(super) making: Mutex<Making>,
    /// Those of several steps, which a freeze waits for.
    pub(super) operations: super::witness::Operations,
}

/// Longer files are no manifests, in bytes.
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

    /// What is wrong with it, if anything. A damaged fork can be read as far as it is sound, and not be written.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_ref().map(|damage| damage.what.as_str())
    }

    /// Numbers that were missing in its journals when they were read back, up to where it is sound. Damage of any other
    /// kind is one.
    pub fn journal_gaps(&self) -> u32 {
        self.damage.as_ref().map_or(0, |damage| damage.gaps)
    }

    /// The image it rests on on disk.
    pub fn base(&self) -> Option<Digest> {
        self.live.read().image
    }

    /// The image it descends from: the one it rests on, or the one whose manifest it holds, as a copy of a fork's
    /// folder does. Whether the store still has that image is not looked at.
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

    /// Whether anything was changed since the last seal. May say yes where changes cancelled each other out.
    pub fn is_changed(&self) -> bool {
        self.live.read().is_changed()
    }

    /// Whether it holds anything that its image does not: what was changed since, or kept out of it.
    pub fn is_unlike_its_image(&self) -> bool {
        self.live.read().state.dirt().next().is_some()
    }

    /// Something that is another with every change.
    pub fn version(&self) -> (super::GenId, u64) {
        self.live.read().version()
    }

    /// Waits until nobody else seals it; nobody does until the guard is dropped.
    pub(crate) fn sealing(&self) -> MutexGuard<'_, ()> {
        self.sealing.lock()
    }

    /// Whether it began empty and nothing was put into it yet.
    pub fn is_blank(&self) -> bool {
        let live = self.live.read();
        live.image.is_none() && live.state.dirt().next().is_none()
    }

    /// Now, as files' times tell it. What the kernel sets itself must not be older than what is set here before.
    pub(super) fn now(&self) -> i64 {
        if self.shared.late_writes { coarse_now() } else { now() }
    }

    /// The time of a change of content. One within the same tick of the kernel's clock as the change before it sets none
    /// where the kernel sets the times, and must not get another one here.
    pub(super) fn time_of_change(&self, inode: &Inode) -> i64 {
        match (inode.mtime, inode.ctime) {
            (Some(mtime), Some(ctime)) if self.shared.late_writes && mtime == ctime => mtime,
            _ => self.now(),
        }
    }

    /// Fails if a file, or all of the fork, cannot be written at all. What is sealed of a file that only grows is another thing.
    pub fn may_be_written(&self, ino: Ino) -> Result<()> {
        self.may_write()?;
        let inode = self.live.read().need(ino)?;
        if inode.guard == Guard::Fixed { super::policy::may_change(&inode, 0) } else { Ok(()) }
    }

    /// Whether it was discarded, or put back to a seal and so replaced by another fork.
    pub(crate) fn is_discarded(&self) -> bool {
        self.discarded.load(Ordering::Acquire)
    }

    pub(crate) fn may_write(&self) -> Result<()> {
        if let Some(damage) = self.damage() {
            return Err(Error::new(ErrorKind::Damaged, format!("the fork is damaged: {damage}"))
                .with_hint("it can still be read as far as it is sound"));
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

    /// Finds out the length of a file whose blob nobody has looked at yet, outside of any lock.
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

    /// Tells that nobody knows the number any more: a file without a name goes for good, its space with it.
    pub fn forget(&self, ino: Ino) {
        {
            let live = self.live.read();
            if !live.orphans.contains_key(&ino) {
                live.state.forget(ino);
                return;
            }
        }
        // Dropped behind the lock: its data file may be large.
        let _gone = self.live.write().orphans.remove(&ino);
    }

    /// Numbers of unchanged files that are remembered, and files without a name.
    pub fn remembered(&self) -> (usize, usize) {
        let live = self.live.read();
        (live.state.intern.len(), live.orphans.len())
    }

    /// The tree that a file comes from and its place there, where it has one.
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

    /// Notes that somebody's knowledge of the ledger's length is not true any more.
    pub fn resize(&self) {
        self.live.write().resized += 1;
    }

    /// How often the ledger's length became another without everybody's knowledge since it was read back: by a seal, or as
    /// [`Fork::resize`] says. Of any other file it does not.
    pub fn resized(&self, ino: Ino) -> u32 {
        let live = self.live.read();
        let is_ledger = live.resized > 0 && live.state.child(Ino::EFFECTS, b"ledger.jsonl") == Some(ino);
        if is_ledger { live.resized } else { 0 }
    }

    /// Whether a file takes no change at all, or only appending behind the returned length.
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
