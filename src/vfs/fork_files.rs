//! Files of forks: finds them, reads them, and counts lookups.

use std::sync::Arc;
use std::time::Duration;

use super::answer::{Attr, Data, Entry, FOREVER};
use super::attempt::{Attempt, Outcome, Stop, may_wait, of_fork};
use super::cached_writes::CachedWrites;
use super::fork_table::ForkTable;
use super::invalidation::Invalidation;
use super::key::Ino;
use super::mounted::{Mounted, shown};
use super::node::{BuiltinDir, Node};
use super::nodes::Nodes;
use super::place::Place;
use super::readahead::Readahead;
use super::readdir::{DirEntry, Emit};
use crate::error::{ErrorKind, Posix, Result};
use crate::fork;
use crate::images::ImageReader;
use crate::layers::world::Kind;
use crate::store::Home;
use crate::sync::wait;

/// Entries of a folder that are read at a time, so that the fork's lock is not held while they are passed on.
const BATCH: usize = 256;

/// The files of forks.
pub(super) struct ForkFiles {
    pub(super) nodes: Arc<Nodes>,
    pub(super) table: Arc<ForkTable>,
    pub(super) images: Arc<ImageReader>,
    pub(super) readahead: Arc<Readahead>,
    pub(super) cached_writes: Arc<CachedWrites>,
    pub(super) home: Arc<Home>,
}

impl ForkFiles {
    /// Counts a lookup of a file that `find` has just found.
    pub(super) fn entry(
        &self,
        mounted: &Mounted,
        found: &fork::Attr,
        entry_ttl: Duration,
        find: impl Fn() -> Result<fork::Attr>,
    ) -> Attempt<Entry> {
        let mut found = *found;
        loop {
            let (ino, new) = self.nodes.intern_in_fork(mounted, found.ino)?;
            if new {
                // Between finding and counting, another thread may have forgotten the file, and the fork its number. Now
                // that the lookup is counted, this cannot happen again.
                let again = match find() {
                    Ok(again) => again,
                    Err(error) => {
                        self.nodes.take_back(ino);
                        return Err(of_fork(error));
                    }
                };
                let same = again.ino == found.ino;
                found = again;
                if !same {
                    // Another file has replaced this one: the name existed all the time.
                    self.nodes.take_back(ino);
                    continue;
                }
            }
            if let Err(gone) = mounted.require_present() {
                // Checked after the counting: if a restore begins later, it hands the counted inodes to the new fork.
                self.nodes.take_back(ino);
                return Err(gone.into());
            }
            let attr = Attr { ino, ..shown(&found) };
            // If the inode is not new to the kernel, it keeps its own length of a ledger.
            if new
                && let Some(ends) = self.nodes.ledger_ends()
                && mounted.fork.is_ledger(found.ino)
            {
                ends.set(ino, attr.size);
            }
            return Ok(Entry { attr, entry_ttl, attr_ttl: FOREVER });
        }
    }

    /// How long the kernel may cache a name in a folder of a fork.
    ///
    /// A seal replaces manifests and, if the kernel caches writes, the ledger. For cached names it would have to notify the
    /// kernel. The notification waits for lookups in that folder, and a daemon that is killed during it would wait for itself.
    pub(super) fn lifetime(&self, folder: fork::Ino, name: &[u8]) -> Duration {
        let manifest = (folder == fork::Ino::TOP || folder == fork::Ino::CACHE) && name == b"manifest.json";
        let ledger =
            folder == fork::Ino::EFFECTS && name == b"ledger.jsonl" && self.nodes.ledger_ends().is_some();
        if manifest || ledger { Duration::ZERO } else { FOREVER }
    }

    /// Looks up a fork's root folder.
    pub(super) fn root_entry(&self, mounted: &Mounted) -> Attempt<Entry> {
        let find = || mounted.fork.getattr(fork::Ino::TOP);
        let found = find().map_err(of_fork)?;
        self.entry(mounted, &found, FOREVER, find)
    }

    /// Finds a name in a folder of a fork.
    pub(super) fn lookup(&self, mounted: &Mounted, parent: fork::Ino, name: &[u8]) -> Attempt<Entry> {
        mounted.require_present()?;
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
            found => found.map_err(of_fork)?,
        };
        self.entry(mounted, &found, self.lifetime(parent, name), find)
    }

    /// Whether all changes of names in a fork's folder come through this mount's kernel. This is not so if another mount
    /// writes the forks, nor among the layers, since a seal may create their files.
    fn changes_come_by_here(&self, folder: fork::Ino) -> bool {
        !folder.is_frame() && self.table.are_written_here()
    }

    /// Reads up to `size` bytes of a file from `offset`; fewer only at the end.
    pub(super) fn read(&self, mounted: &Mounted, ino: fork::Ino, offset: u64, size: u32) -> Attempt<Data> {
        // A file without writes is served from the cache directly.
        if let Some(blob) = mounted.fork.whole_blob(ino).map_err(of_fork)? {
            let cached = self.images.part_known(&blob.digest, blob.size, offset, size as usize);
            // Noted once for each request: only by the event loop, which tries it first.
            if let (0, false) = (offset, wait::is_allowed())
                && let Some((tree, node)) = mounted.fork.base_place(ino)
            {
                self.readahead.was_read(&tree, node, cached.is_some());
            }
            if let Some((payload, part)) = cached {
                return Ok(Data::Blob(payload, part.start, part.end));
            }
            may_wait()?;
            let part = self.images.part(&blob.digest, blob.size, offset, size as usize);
            let (payload, part) = part.map_err(|error| {
                let path = mounted.fork.path(ino).unwrap_or_default();
                let path = String::from_utf8_lossy(&path).into_owned();
                tracing::error!(fork = mounted.fork.uid(), path, digest = %blob.digest, "cannot be read: {error}");
                ErrorKind::Damaged
            })?;
            return Ok(Data::Blob(payload, part.start, part.end));
        }
        let bytes = mounted.fork.read_vec(ino, offset, size as usize).map_err(of_fork)?;
        let len = bytes.len();
        Ok(Data::Doc(bytes.into(), 0, len))
    }

    /// Lists a folder of a fork, whose own number is `own`.
    pub(super) fn list(
        &self,
        own: Ino,
        (mounted, dir): (&Mounted, fork::Ino),
        cookie: u64,
        plus: bool,
        emit: Emit<'_>,
    ) -> Attempt<()> {
        mounted.require_present()?;
        let (mut at, end) = if let Some(place) = Place::of(cookie) {
            (place.at, Some(place.end))
        } else {
            // Either a listing begins, or this one uses plain cookies: short ones were asked for, or too many files were created
            // in the folder for a place to fit. `.` and `..` have cookies 1 and 2.
            let begins = cookie <= 2 && !self.nodes.is_narrow();
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
                .map_err(of_fork)?;
            let last = batch.len() < BATCH;
            for found in batch {
                at = found.cookie;
                let number = self.nodes.number(&self.nodes.keyed_in_fork(mounted, found.ino))?;
                let entry = if plus {
                    let find = || mounted.fork.lookup(dir, &found.name);
                    let ttl = self.lifetime(dir, &found.name);
                    match find().map_err(of_fork).and_then(|attr| self.entry(mounted, &attr, ttl, find)) {
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
                        self.nodes.take_back(number);
                    }
                    return Ok(());
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Returns the fork of an inode and its number there, even if the store was moved. Otherwise returns why `node` cannot be
    /// changed.
    pub(super) fn place_of(&self, node: Node) -> Outcome<(Mounted, fork::Ino)> {
        match node {
            Node::Forked { mounted, ino } => Ok((mounted, ino)),
            node => Err(self.outside_forks(&node)),
        }
    }

    /// Returns the kind of error for a change outside of forks. In a mount that writes forks, `work/` is not called a
    /// read-only filesystem, since its links follow `forks/`. For a read-only mount the kernel itself answers.
    pub(super) fn outside_forks(&self, node: &Node) -> ErrorKind {
        if matches!(node, Node::Builtin(BuiltinDir::Work)) && self.table.are_written_here() {
            return ErrorKind::Posix(Posix::NotPermitted);
        }
        ErrorKind::ReadOnly
    }

    fn of_ino(&self, ino: Ino) -> Option<(Mounted, fork::Ino)> {
        match self.nodes.get(ino) {
            Ok(Node::Forked { mounted, ino }) => Some((mounted, ino)),
            _ => None,
        }
    }

    /// Lists all names of a file.
    pub(super) fn names_of(&self, ino: Ino) -> Vec<Invalidation> {
        let Some((mounted, ino)) = self.of_ino(ino) else { return Vec::new() };
        let links = mounted.fork.links(ino).into_iter();
        let known = |(folder, name): (fork::Ino, fork::Name)| {
            Some(Invalidation::Name(self.nodes.known_folder(&mounted, folder)?, name.to_vec()))
        };
        links.filter_map(known).collect()
    }

    /// Whether a write's effect on a file's mode depends on the writer's groups.
    fn goes_by_the_writers_group(mounted: &Mounted, ino: fork::Ino) -> bool {
        let attr = mounted.fork.getattr(ino);
        attr.is_ok_and(|attr| attr.kind == Kind::File && attr.mode & 0o2010 == 0o2000)
    }

    /// Whether a kernel that caches writes must not cache this file.
    ///
    /// Such a kernel uses only its own length of a file. If a seal has made the file longer, the kernel would show too little
    /// and append in the middle. Nor does it clear a set-group-id bit without group execution, and a late write does not say
    /// which program wrote it.
    pub(super) fn bypasses_kernel_cache(&self, ino: Ino, writes: bool) -> bool {
        self.of_ino(ino).is_some_and(|(mounted, ino)| {
            mounted.fork.is_ledger(ino)
                || writes && self.home.check().is_ok() && Self::goes_by_the_writers_group(&mounted, ino)
        })
    }
}
