//! What all operations on a fork share: its state, its head, and whether it takes changes.

use std::fs::File;
use std::sync::Arc;

use super::clock::{coarse_now, now};
use super::disk::{Head, SealList};
use super::errors::posix;
use super::extents::BlobRef;
use super::gate::Gate;
use super::ino::Ino;
use super::inode::{Content, Inode, LazyBlob};
use super::live::Live;
use super::reader::{read_blob, settle};
use super::replay::Damage;
use super::shared::Shared;
use super::state::At;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock, wait};

/// One fork, loaded.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    /// Random, 128 bits; stays with the fork through renames.
    pub(super) uid: String,
    /// When it was made, in nanoseconds since 1970.
    pub(super) created_ns: i64,
    /// Held while the head on disk changes, always before `live`.
    ///
    /// Also held over the fsync of the head: after a rename or a switch in between, the present head would count as durable
    /// although another file was synced. Threads that ask for the name may wait for the disk here, so event loops only try
    /// the lock (`Fork::name_if_free`).
    pub(super) head: Mutex<Head>,
    pub(super) live: RwLock<Live>,
    /// Its damage, if any. A damaged fork can only be read.
    pub(super) damage: Option<Damage>,
    discarded: AtomicBool,
    head_unsynced: AtomicBool,
    /// Held while the head is made durable.
    syncing: Mutex<()>,
    /// Held during a seal or a checkpoint.
    pub(super) sealing: Mutex<()>,
    /// Running operations of several steps, which a freeze waits for.
    pub(super) gate: Gate,
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, head: Head, live: Live, damage: Option<Damage>) -> Self {
        Self {
            shared,
            uid: head.uid.clone(),
            created_ns: head.created_ns,
            head: Mutex::new(head),
            live: RwLock::new(live),
            damage,
            discarded: AtomicBool::new(false),
            head_unsynced: AtomicBool::new(true),
            syncing: Mutex::default(),
            sealing: Mutex::default(),
            gate: Gate::default(),
        }
    }

    /// Whether it was discarded, or replaced by a restore.
    pub(super) fn is_discarded(&self) -> bool {
        self.discarded.load(Ordering::Acquire)
    }

    /// Notes that it was discarded, or replaced by a restore.
    pub(super) fn note_discard(&self) {
        self.discarded.store(true, Ordering::Release);
    }

    /// Whether the head was written since it was last made durable.
    pub(super) fn has_unsynced_head(&self) -> bool {
        self.head_unsynced.load(Ordering::Acquire)
    }

    /// Notes that the head was written, and is not durable.
    pub(super) fn note_head(&self) {
        self.head_unsynced.store(true, Ordering::Release);
    }

    /// The damage in words.
    pub(super) fn damage(&self) -> Option<&str> {
        self.damage.as_ref().map(|damage| damage.what.as_str())
    }

    /// Fails if the fork takes no changes.
    pub(super) fn may_write(&self) -> Result<()> {
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

    /// The present time for files. With late writes it comes from the kernel's clock: a time that the kernel sets later must
    /// not be older than one that was set here.
    pub(super) fn now(&self) -> i64 {
        if self.shared.writeback { coarse_now() } else { now() }
    }

    /// The time of a change of content. If the kernel sets the times, it sets none for a second change within one tick of its
    /// clock. Such a change must keep the time of the first.
    pub(super) fn time_of_change(&self, inode: &Inode) -> i64 {
        match (inode.mtime, inode.ctime) {
            (Some(mtime), Some(ctime)) if self.shared.writeback && mtime == ctime => mtime,
            _ => self.now(),
        }
    }

    /// Finds out the length of a file whose blob was not yet looked at. Takes no lock while it reads.
    pub(super) fn settle(&self, ino: Ino) -> Result<()> {
        let lazy: Option<Arc<LazyBlob>> = {
            let live = self.live.read();
            let own = match live.state.at(ino) {
                Some(At::Own(inode)) => Some(inode),
                Some(At::Base(_)) => None,
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

    /// Reads content that was looked up before, even if its file has changed or gone since.
    pub(super) fn read_content(&self, content: &Content, offset: u64, buf: &mut [u8]) -> Result<usize> {
        content.read(offset, buf, &mut |blob, offset, buf| self.read_blob(blob, offset, buf))
    }

    /// The fork's list of seals.
    pub(super) fn seal_list(&self) -> SealList<'_> {
        SealList { forks: &self.shared.forks, files: &self.shared.files, uid: &self.uid }
    }

    /// Replaces the fork's head. Returns whether the new head is durable. Only then may the caller remove generations that it
    /// does not name; otherwise the next opener does. After an error the fork has its old head.
    pub(super) fn switch_head(&self, head: &mut MutexGuard<'_, Head>, next: Head) -> Result<bool> {
        // Checked under the head's lock: a fork that another thread has discarded must not come back and replace a new fork of
        // its name.
        self.may_write()?;
        wait::disk("switch-head");
        let io = &*self.shared.files.io;
        next.write(&self.shared.files, &self.shared.forks, true)?;
        **head = next;
        let heads = self.shared.forks.join("heads");
        let synced = io.sync_dir(&heads);
        if let Err(e) = &synced {
            self.note_head();
            tracing::error!("cannot make {} durable yet: {e}", heads.display());
        }
        Ok(synced.is_ok())
    }

    /// Makes everything that was acknowledged durable: all of the fork, since a durable journal must not
    /// refer to data that is not durable. Writers continue during the call.
    pub(super) fn fsync(&self) -> Result<()> {
        wait::required()?;
        let generations = self.live.read().generations.clone();
        for generation in &generations {
            generation
                .sync()
                .map_err(|e| Error::io(e, format!("cannot make {} durable", generation.path().display())))?;
        }
        let _turn = self.syncing.lock();
        if self.head_unsynced.swap(false, Ordering::AcqRel)
            && let Err(e) = self.sync_head()
        {
            self.head_unsynced.store(true, Ordering::Release);
            return Err(e);
        }
        Ok(())
    }

    /// Like [`Core::fsync`], but succeeds without doing anything once another thread has discarded the fork.
    pub(super) fn fsync_unless_discarded(&self) -> Result<()> {
        self.fsync().or_else(|error| if self.is_discarded() { Ok(()) } else { Err(error) })
    }

    fn sync_head(&self) -> Result<()> {
        let head = self.head.lock();
        let dir = self.shared.forks.join("heads");
        let path = dir.join(format!("{}.json", head.name));
        let failed = |e| Error::io(e, format!("cannot make {} durable", path.display()));
        let io = &*self.shared.files.io;
        File::open(&path).and_then(|file| io.sync_file(&path, &file)).map_err(failed)?;
        io.sync_dir(&dir).and_then(|()| io.sync_dir(&self.shared.forks)).map_err(failed)
    }
}
