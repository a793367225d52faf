//! Operations in forks: finds the fork, calls the engine, and counts lookups.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::attempt::{logged, may_wait};
use super::forks::{DISCARD_SEALED, Only};
use super::inode::{Fixed, Ino, Key, Keyed, Node, Shown, UNKNOWN_SIZE};
use super::place::Place;
use super::readdir::DirEntry;
use super::{
    Attempt, Attr, Data, Emit, Entry, FOLDER_SIZE, FOREVER, Outcome, Process, Stale, Stop, Vfs, fault,
};
use crate::error::{Error, ErrorKind, Posix};
use crate::fork::{self, Allocate, CopySource, Fork, NewFile, RenameMode, SetAttr};
use crate::layers::world::Kind;
use crate::sync::wait;

/// Entries of a folder that are read at a time, so that the fork's lock is not held while they are passed on.
const BATCH: usize = 256;

/// The longest range in bytes that an event loop allocates. A worker allocates longer ones.
const SHORT: u64 = 4 << 20;

/// A fork's range of inode numbers.
pub(super) type Slot = u16;

/// A fork of this mount.
#[derive(Clone, Debug)]
pub(super) struct Mounted {
    /// The range of its files' numbers.
    pub(super) slot: Slot,
    /// Files whose numbers are in another slot. In `slot` the kernel knows files of the replaced fork by these numbers.
    pub(super) aside: Option<Arc<HashMap<fork::Ino, Slot>>>,
    pub(super) fork: Arc<Fork>,
}

impl Mounted {
    /// The key of a number in the fork.
    pub(super) fn key(&self, ino: fork::Ino) -> Key {
        let aside = self.aside.as_ref().and_then(|aside| aside.get(&ino));
        Key::of_fork(aside.copied().unwrap_or(self.slot), ino)
    }

    /// Whether both are the same fork.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fork, &other.fork)
    }
}

/// The origin of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A program that waits for the answer.
    Call(Process),
    /// The kernel, which writes whole pages that a program changed earlier.
    Pages,
}

/// Logs an error if it deserves a line, and returns its kind.
pub(super) fn kind(error: Error) -> Stop {
    match error.kind() {
        ErrorKind::Missing | ErrorKind::Damaged | ErrorKind::NoSpace | ErrorKind::Io(_) => logged(error),
        kind => kind.into(),
    }
}

/// Returns an error's kind without logging it: a request for too much space says nothing about the disk.
fn refused(error: Error) -> Stop {
    if error.kind() == ErrorKind::NoSpace { ErrorKind::NoSpace.into() } else { kind(error) }
}

/// Frees the space of deleted data if a change failed for lack of space. Returns whether any was freed.
fn make_room(fork: &Fork, error: &Error) -> Attempt<bool> {
    if error.kind() != ErrorKind::NoSpace || !fork.has_trash() {
        return Ok(false);
    }
    may_wait()?;
    Ok(fork.reap().is_ok_and(|freed| freed))
}

impl Vfs {
    /// Returns the fork of an inode and its number there, for a change. Fails if the inode is not in a fork.
    pub(super) fn in_fork(&self, ino: Ino) -> Outcome<(Mounted, fork::Ino)> {
        self.catalog.home.check()?;
        self.place_in_fork(ino)
    }

    /// Like [`Vfs::in_fork`], even if the store was moved.
    pub(super) fn place_in_fork(&self, ino: Ino) -> Outcome<(Mounted, fork::Ino)> {
        match self.node(ino)? {
            Node::Forked { mounted, ino } => Ok((mounted, ino)),
            node => Err(self.outside_forks(&node)),
        }
    }

    /// Adapts an error in a fork: if the store was moved, the fork's files are not at their paths.
    fn or_moved(&self, stop: Stop) -> Stop {
        if stop != Stop::Failed(ErrorKind::NotFound) {
            return stop;
        }
        // Nothing was changed yet, so a worker may repeat the operation.
        let moved = may_wait().map(|_| self.catalog.home.require().err());
        moved.map_or_else(|waits| waits, |moved| moved.map_or(stop, |moved| moved.kind().into()))
    }

    /// Attributes of a file in a fork, except its inode number.
    pub(super) fn fork_attr(attr: &fork::Attr) -> Attr {
        Attr {
            ino: 0,
            kind: attr.kind,
            mode: attr.mode,
            nlink: attr.nlink,
            size: if attr.kind == Kind::Dir { FOLDER_SIZE } else { attr.size },
            atime_ns: attr.atime,
            mtime_ns: attr.mtime,
            ctime_ns: attr.ctime,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev as u32,
        }
    }

    /// The node of a file in a fork.
    pub(super) fn keyed_in_fork(&self, mounted: &Mounted, ino: fork::Ino) -> Keyed {
        let node = Node::Forked { mounted: mounted.clone(), ino };
        Keyed { key: self.key_in_fork(mounted, ino), node }
    }

    /// The number of a file in a fork, unless the kernel cannot know it.
    pub(super) fn known_in_fork(&self, mounted: &Mounted, ino: fork::Ino) -> Option<Ino> {
        self.inodes.known(mounted.key(ino))
    }

    /// Counts a lookup of a file that `find` has just found.
    pub(super) fn fork_entry(
        &self,
        mounted: &Mounted,
        found: &fork::Attr,
        entry_ttl: Duration,
        find: impl Fn() -> crate::Result<fork::Attr>,
    ) -> Attempt<Entry> {
        let mut found = *found;
        loop {
            let (ino, new) = self.inodes.intern(self.keyed_in_fork(mounted, found.ino))?;
            if new {
                // Between finding and counting, another thread may have forgotten the file, and the fork its number. Now
                // that the lookup is counted, this cannot happen again.
                let again = match find() {
                    Ok(again) => again,
                    Err(error) => {
                        self.take_back(ino);
                        return Err(kind(error));
                    }
                };
                let same = again.ino == found.ino;
                found = again;
                if !same {
                    // Another file has replaced this one: the name existed all the time.
                    self.take_back(ino);
                    continue;
                }
            }
            if let Err(gone) = Self::is_past(mounted) {
                // Checked after the counting: if a restore begins later, it hands the counted inodes to the new fork.
                self.take_back(ino);
                return Err(gone.into());
            }
            let attr = Attr { ino, ..Self::fork_attr(&found) };
            self.note_length(mounted, found.ino, &attr, new);
            return Ok(Entry { attr, entry_ttl, attr_ttl: FOREVER });
        }
    }

    /// How long the kernel may cache a name in a folder of a fork.
    ///
    /// A seal replaces manifests and, if the kernel caches writes, the ledger. For cached names it would have to notify the
    /// kernel. The notification waits for lookups in that folder, and a daemon that is killed during it would wait for itself.
    fn lifetime(&self, folder: fork::Ino, name: &[u8]) -> Duration {
        let manifest = (folder == fork::Ino::TOP || folder == fork::Ino::CACHE) && name == b"manifest.json";
        let ledger = folder == fork::Ino::EFFECTS && name == b"ledger.jsonl" && self.config.late_writes;
        if manifest || ledger { Duration::ZERO } else { FOREVER }
    }

    /// Looks up a fork's top folder.
    pub(super) fn fork_top(&self, mounted: &Mounted) -> Attempt<Entry> {
        let find = || mounted.fork.getattr(fork::Ino::TOP);
        let found = find().map_err(kind)?;
        self.fork_entry(mounted, &found, FOREVER, find)
    }

    pub(super) fn lookup_forked(&self, mounted: &Mounted, parent: fork::Ino, name: &[u8]) -> Attempt<Entry> {
        Self::is_past(mounted)?;
        let find = || mounted.fork.lookup(parent, name);
        let found = match find() {
            // The name can only be created through the kernel, which may remember until then that it does not exist. Among
            // the layers, names that layers do not have never exist.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && (self.changes_come_by_here(parent) || !fork::can_be_there(parent, name)) =>
            {
                return Ok(Entry::ABSENT);
            }
            found => found.map_err(kind)?,
        };
        self.fork_entry(mounted, &found, self.lifetime(parent, name), find)
    }

    /// Whether all changes of names in a fork's folder come through this mount's kernel. This is not so if another mount
    /// writes the forks, nor among the layers, since a seal may create their files.
    fn changes_come_by_here(&self, folder: fork::Ino) -> bool {
        !folder.is_frame() && self.forks.are_written_here()
    }

    pub(super) fn getattr_forked(mounted: &Mounted, ino: fork::Ino) -> Attempt<Attr> {
        let attr = mounted.fork.getattr(ino).map_err(kind)?;
        // A program may still have files of a discarded fork open, like removed files.
        let nlink = if mounted.fork.is_discarded() { 0 } else { attr.nlink };
        Ok(Attr { nlink, ..Self::fork_attr(&attr) })
    }

    pub(super) fn read_forked(
        &self,
        mounted: &Mounted,
        ino: fork::Ino,
        offset: u64,
        size: u32,
    ) -> Attempt<Data> {
        // A file without writes is served from the cache directly.
        if let Some(blob) = mounted.fork.whole_blob(ino).map_err(kind)? {
            let cached = self.reader.part_known(&blob.digest, blob.size, offset, size as usize);
            // Noted once for each request: only by the event loop, which tries it first.
            if let (0, false) = (offset, wait::is_allowed())
                && let Some((tree, node)) = mounted.fork.base_place(ino)
            {
                self.ahead.was_read(&tree, node, cached.is_some());
            }
            if let Some((payload, part)) = cached {
                return Ok(Data::Blob(payload, part.start, part.end));
            }
            may_wait()?;
            let part = self.reader.part(&blob.digest, blob.size, offset, size as usize);
            let (payload, part) = part.map_err(|error| {
                let path = mounted.fork.path(ino).unwrap_or_default();
                let path = String::from_utf8_lossy(&path).into_owned();
                tracing::error!(fork = mounted.fork.uid(), path, digest = %blob.digest, "cannot be read: {error}");
                ErrorKind::Damaged
            })?;
            return Ok(Data::Blob(payload, part.start, part.end));
        }
        let bytes = mounted.fork.read_vec(ino, offset, size as usize).map_err(kind)?;
        let len = bytes.len();
        Ok(Data::Doc(bytes.into(), 0, len))
    }

    pub(super) fn list_forked(
        &self,
        own: Ino,
        mounted: &Mounted,
        dir: fork::Ino,
        cookie: u64,
        plus: bool,
        emit: Emit<'_>,
    ) -> Attempt<()> {
        Self::is_past(mounted)?;
        let (mut at, end) = if let Some(place) = Place::of(cookie) {
            (place.at, Some(place.end))
        } else {
            // Either a listing begins, or this one uses plain cookies: short ones were asked for, or too many files were created
            // in the folder for a place to fit. `.` and `..` have cookies 1 and 2.
            let begins = cookie <= 2 && !self.is_narrow();
            (cookie.saturating_sub(2), begins.then(|| mounted.fork.end_of_listing(dir)))
        };
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            mounted
                .fork
                .readdir_to(dir, at, end, &mut |entry| {
                    batch.push(entry);
                    batch.len() < BATCH
                })
                .map_err(kind)?;
            let last = batch.len() < BATCH;
            for found in batch {
                at = found.cookie;
                let number = self.inodes.number(&self.keyed_in_fork(mounted, found.ino))?;
                let entry = if plus {
                    let find = || mounted.fork.lookup(dir, &found.name);
                    let ttl = self.lifetime(dir, &found.name);
                    match find().map_err(kind).and_then(|attr| self.fork_entry(mounted, &attr, ttl, find)) {
                        Ok(entry) => Some(entry),
                        // The file was removed after the listing.
                        Err(Stop::Failed(ErrorKind::NotFound)) => continue,
                        Err(Stop::Waits) => return Err(Stop::Waits),
                        // A damaged file does not affect the others: it is listed, and looking it up is an error.
                        Err(_) => None,
                    }
                } else {
                    None
                };
                // The file may have been replaced after the listing.
                let number = entry.as_ref().map_or(number, |entry: &Entry| entry.attr.ino);
                let place = end.and_then(|end| Place { at: found.cookie, end }.cookie());
                let cookie = place.unwrap_or(found.cookie + 2);
                debug_assert_ne!(number, own);
                if !emit(DirEntry { ino: number, cookie, kind: found.kind, name: &found.name, entry }) {
                    if entry.is_some() {
                        self.take_back(number);
                    }
                    return Ok(());
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    pub(super) fn make(&self, parent: Ino, name: &[u8], new: &NewFile<'_>) -> Attempt<Entry> {
        match self.node(parent)? {
            Node::Fixed(Fixed::Forks) => return self.make_fork(name, new),
            Node::Fixed(Fixed::Tags) => return self.make_tag(name, new),
            _ => {}
        }
        let (mounted, parent) = self.in_fork(parent)?;
        // Before the file is created, since this may have to wait.
        mounted.fork.prepare_to_take_times().map_err(kind)?;
        let mut made = mounted.fork.create(parent, name, new).map_err(kind)?;
        if let Some(taken) = mounted.fork.take_time_of_empty(&made).map_err(kind)? {
            made = taken;
        }
        self.fork_entry(&mounted, &made, self.lifetime(parent, name), || mounted.fork.lookup(parent, name))
    }

    pub(super) fn do_link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        let (mounted, parent) = self.in_fork(parent)?;
        let (source, ino) = self.in_fork(ino).map_err(|_| ErrorKind::Posix(Posix::CrossesDevices))?;
        if !source.is_same(&mounted) {
            return Err(ErrorKind::Posix(Posix::CrossesDevices).into());
        }
        let linked = mounted.fork.link(ino, parent, name).map_err(kind)?;
        self.fork_entry(&mounted, &linked, self.lifetime(parent, name), || mounted.fork.lookup(parent, name))
    }

    pub(super) fn do_unlink(&self, parent: Ino, name: &[u8]) -> Attempt<()> {
        if let Node::Fixed(Fixed::Tags) = self.node(parent)? {
            return self.remove_tag(name);
        }
        let (mounted, parent) = self.in_fork(parent)?;
        mounted.fork.end_making();
        let gone = mounted.fork.unlink(parent, name).map_err(kind)?;
        self.forget_unless_known(&mounted, gone);
        Ok(())
    }

    pub(super) fn do_rmdir(&self, parent: Ino, name: &[u8]) -> Attempt<()> {
        if let Node::Fixed(Fixed::Forks) = self.node(parent)? {
            return self.discard_fork(name, Only::Empty, None);
        }
        let (mounted, parent) = self.in_fork(parent)?;
        let gone = mounted.fork.rmdir(parent, name).map_err(kind)?;
        self.forget_unless_known(&mounted, gone);
        Ok(())
    }

    /// Lets the fork forget a file that the kernel no longer knows.
    pub(super) fn forget_unless_known(&self, mounted: &Mounted, gone: fork::Ino) {
        if self.known_in_fork(mounted, gone).and_then(|ino| self.inodes.get(ino)).is_none() {
            mounted.fork.forget(gone);
        }
    }

    pub(super) fn do_rename(
        &self,
        from: Ino,
        name: &[u8],
        to: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Attempt<()> {
        self.catalog.home.check()?;
        match (self.node(from)?, self.node(to)?) {
            (Node::Fixed(Fixed::Forks), Node::Fixed(Fixed::Forks)) => self.rename_fork(name, new_name, mode),
            (Node::Fixed(Fixed::Forks), Node::Fixed(Fixed::Control)) => {
                let only = if new_name.starts_with(DISCARD_SEALED) { Only::Sealed } else { Only::Any };
                self.discard_fork(name, only, Some((Fixed::Control, new_name.to_vec())))
            }
            (Node::Fixed(Fixed::Tags), Node::Fixed(Fixed::Tags)) => self.rename_tag(name, new_name, mode),
            (Node::Forked { mounted, ino: from }, Node::Forked { mounted: other, ino: to }) => {
                if !mounted.is_same(&other) {
                    return Err(ErrorKind::Posix(Posix::CrossesDevices).into());
                }
                mounted.fork.end_making();
                let gone = mounted.fork.rename(from, name, to, new_name, mode).map_err(kind)?;
                if let Some(gone) = gone {
                    self.forget_unless_known(&mounted, gone);
                }
                Ok(())
            }
            (Node::Forked { .. }, _) | (_, Node::Forked { .. }) => {
                Err(ErrorKind::Posix(Posix::CrossesDevices).into())
            }
            (_, work @ Node::Fixed(Fixed::Work)) | (work @ Node::Fixed(Fixed::Work), _) => {
                Err(self.outside_forks(&work).into())
            }
            _ => Err(ErrorKind::ReadOnly.into()),
        }
    }

    pub(super) fn do_setattr(&self, ino: Ino, set: &SetAttr, by: Process) -> Attempt<(Attr, Duration)> {
        let (mounted, in_fork) = self.in_fork(ino)?;
        if set.mtime.is_some() || set.size.is_some_and(|size| size > 0) {
            mounted.fork.end_making();
        }
        if set.size.is_some() {
            self.late.held_back();
        }
        let attr = mounted.fork.setattr_by(in_fork, set, by).map_err(kind)?;
        Ok((Attr { ino, ..Self::fork_attr(&attr) }, FOREVER))
    }

    /// Lists all names of a file in a fork.
    pub fn names_of(&self, ino: Ino) -> Vec<Stale> {
        let Ok((mounted, ino)) = self.place_in_fork(ino) else { return Vec::new() };
        let links = mounted.fork.links(ino).into_iter();
        let known = |(folder, name): (fork::Ino, fork::Name)| {
            Some(Stale::Name(self.known_folder(&mounted, folder)?, name.to_vec()))
        };
        links.filter_map(known).collect()
    }

    pub(super) fn do_open(&self, ino: Ino, writes: bool) -> Outcome<()> {
        if !writes {
            return self.node(ino).map(|_| ());
        }
        // A kernel that caches writes accepts them as soon as the file is open, so the check comes here.
        let (mounted, ino) = self.in_fork(ino)?;
        mounted.fork.may_be_written(ino).map_err(|error| error.kind())
    }

    /// Whether a write's effect on a file's mode depends on the writer's groups.
    pub fn goes_by_the_writers_group(&self, ino: Ino) -> bool {
        self.in_fork(ino).is_ok_and(|(mounted, ino)| {
            mounted
                .fork
                .getattr(ino)
                .is_ok_and(|attr| attr.kind == Kind::File && attr.mode & 0o2010 == 0o2000)
        })
    }

    pub(super) fn do_write(&self, ino: Ino, offset: u64, bytes: &[u8], by: Writer) -> Attempt<usize> {
        let (mounted, in_fork) = match by {
            Writer::Call { .. } => self.in_fork(ino)?,
            // The write was acknowledged to a program before the store was moved: open files still accept it.
            Writer::Pages => self.place_in_fork(ino)?,
        };
        let fork = &mounted.fork;
        fork.end_making();
        let write = || match by {
            Writer::Call(by) if self.config.late_writes => {
                self.write_late(&mounted, (ino, in_fork), offset, bytes, by)
            }
            Writer::Call(by) => fork.write(in_fork, offset, bytes, by),
            Writer::Pages => fork.write_pages(in_fork, offset, bytes),
        };
        let written = match fault::write(fork, by).and_then(|()| write()) {
            // The space of deleted data may not have been freed yet.
            Err(error) => match make_room(fork, &error) {
                Ok(true) => write().map_err(kind),
                Ok(false) => Err(kind(error)),
                Err(waits) => Err(waits),
            },
            Ok(written) => Ok(written),
        };
        let written = written.map_err(|stop| self.or_moved(stop));
        if by == Writer::Pages && !matches!(written, Err(Stop::Waits)) {
            self.late.was_handed_in(fork, in_fork, written.as_ref().err().map(|stop| stop.kind()));
        }
        written
    }

    pub(super) fn do_fallocate(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        what: Allocate,
        by: Process,
    ) -> Attempt<()> {
        if len > SHORT {
            // The disk may have to look for the space.
            may_wait()?;
        }
        let (mounted, ino) = self.in_fork(ino)?;
        let fork = &mounted.fork;
        fork.end_making();
        match fork.fallocate(ino, offset, len, what, by) {
            // The space of deleted data may not have been freed yet.
            Err(error) if make_room(fork, &error)? => {
                fork.fallocate(ino, offset, len, what, by).map_err(refused)
            }
            done => done.map_err(refused),
        }
    }

    /// Finds the next data or hole from an offset on.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Attempt<u64> {
        match self.node(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.seek(ino, offset, data).map_err(kind),
            Node::File { size, .. } if offset < size && size != UNKNOWN_SIZE => {
                Ok(if data { offset } else { size })
            }
            Node::Doc { bytes, .. } if offset < bytes.len() as u64 => {
                Ok(if data { offset } else { bytes.len() as u64 })
            }
            _ => Err(ErrorKind::Posix(Posix::NoSuchOffset).into()),
        }
    }

    pub(super) fn do_copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        offset: u64,
        len: u64,
        by: Process,
    ) -> Attempt<u64> {
        let (target, ino) = self.in_fork(to)?;
        match self.node(from)? {
            Node::Forked { mounted, ino: source } => {
                let source = CopySource::Fork(&mounted.fork, source);
                target.fork.copy_range(&source, from_offset, ino, offset, len, by).map_err(kind)
            }
            Node::File { digest, size, shown: Shown::Raw, recorded, seen, .. } if size != UNKNOWN_SIZE => {
                let (blob, image) = (fork::BlobRef { digest, size }, self.catalog.id(seen.image));
                let path = if target.fork.is_being_made() {
                    self.tree(seen.image)?;
                    self.path_of_bytes(seen)
                } else {
                    Vec::new()
                };
                let source = CopySource::Image { blob, image, path: &path, mtime: recorded.mtime_ns };
                target.fork.copy_range(&source, from_offset, ino, offset, len, by).map_err(kind)
            }
            // Other files do not show a blob of known length as it is, so their bytes are copied.
            _ => {
                let size = u32::try_from(len).unwrap_or(u32::MAX).min(1 << 20);
                let data = self.read(from, from_offset, size)?;
                if data.bytes().is_empty() {
                    return Ok(0);
                }
                target.fork.write(ino, offset, data.bytes(), by).map(|n| n as u64).map_err(kind)
            }
        }
    }

    /// Makes the inode's whole fork durable. Files outside of forks are durable already.
    pub fn fsync(&self, ino: Ino) -> Attempt<()> {
        match self.node(ino)? {
            Node::Forked { mounted, .. } => {
                may_wait()?;
                self.late.held_back();
                mounted.fork.fsync().map_err(kind).map_err(|stop| self.or_moved(stop))
            }
            _ => Ok(()),
        }
    }
}
