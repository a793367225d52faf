//! The meaning of paths and operations in a mounted store, independent of FUSE.
//!
//! ```text
//! images/<hex64>/…  tags/<name>  agents/<kind>/<time>-<hex12>  latest  forks/<name>/…  work/<name>
//! .pfimg/{audit.json,events.jsonl,metrics,status.json}
//! ```
//! The content of an image is immutable, so the kernel may cache it for ever. Names that can change have a lifetime of zero,
//! or the watcher invalidates them. Layers are parsed when a program first looks at them.

mod advice;
mod announce;
mod answer;
mod attempt;
mod audited;
mod autoseal;
mod back;
mod called;
mod caller;
mod catalog;
mod control;
mod counted;
mod facts;
mod fault;
mod forked;
mod forks;
mod image;
mod inode;
mod inodes;
mod ledger;
mod memory;
mod metrics;
mod place;
mod push;
mod readdir;
mod reader;
mod replaced;
mod snap;
mod tags;
mod trees;
mod xattrs;

use std::sync::Arc;
use std::time::Duration;

use advice::Advice;
pub use advice::Refusal;
pub use announce::{Announcement, What};
pub use answer::{Attr, Data, Entry};
pub use attempt::{Attempt, Stop};
use attempt::{OnDisk, may_wait};
pub use autoseal::{SealPolicy, Tell};
pub use back::PathsChanged;
pub use caller::Process;
pub(crate) use catalog::{Changes, Watched};
pub use control::MountInfo;
use control::Unread;
pub use counted::Numbering;
pub use forked::Writer;
// Types that this room's operations take and give.
pub use crate::fork::{Allocate, NewFile, RenameMode, SetAttr, SetTime, XattrMode};
pub use crate::layers::world::Kind;
pub use inode::Ino;
use memory::Most;
pub use metrics::{Metrics, Op};
pub(crate) use push::MARKER;
pub use push::{LeftWrite, Pusher};
pub use readdir::{DirEntry, Emit};
pub use replaced::Replaced;
pub use snap::{AfterSeal, Stale};

use crate::cache::{Cache, Payload};
use crate::digest::Digest;
use crate::error::{ErrorKind, Posix};
use crate::fork::{self, BaseReader};
use crate::layers::effects::Secret;
use crate::layers::world::MAX_NAME;
use crate::ops::seal::Sealer;
use crate::store::{BlobError, Store};
use crate::sync::{Mutex, wait};
use crate::vfs::readahead::Ahead;
use announce::Announcing;
use audited::Audit;
use autoseal::AutoSeal;
use catalog::Catalog;
use forks::Forks;
use image::Images;
use inode::{Fixed, Keyed, Node, Place, Recorded, Seen, Shown, UNKNOWN_SIZE};
use inodes::Inodes;
use push::{Late, MARKER_SIZE};
use reader::Reader;
use snap::Seals;
use trees::Trees;

/// Outcome of an operation that never waits for the disk. An error's kind alone decides the errno; its details were logged
/// where it occurred.
pub type Outcome<T> = Result<T, ErrorKind>;

/// How long the kernel may cache what never changes: ten years.
pub const FOREVER: Duration = Duration::from_hours(10 * 365 * 24);

/// Length of every folder in bytes: that of a small folder on ext4. Scripts take a folder of length 0 for empty (`test -s`).
const FOLDER_SIZE: u64 = 4096;

/// How much a caller has to know about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All attributes.
    Whole,
    /// Only what a listing needs. Unknown attributes are left open, with a lifetime of zero.
    Listing,
}

/// How the filesystem behaves.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a separate option")]
pub struct VfsConfig {
    /// Owner of files without a recorded owner.
    pub uid: u32,
    /// Group of files without a recorded group.
    pub gid: u32,
    /// Whether files of other users are shown as this user's.
    pub mine: bool,
    /// Whether ledgers are shown with the session secret that some of them hold.
    pub reveal_secrets: bool,
    /// Whether extended attributes are answered at all.
    pub xattrs: bool,
    /// How inodes are numbered.
    pub inodes: Numbering,
    /// Whether nothing may be written, forks included.
    pub read_only: bool,
    /// Whether the kernel caches writes, and sets their times itself.
    pub late_writes: bool,
    /// Bytes of parsed file trees to keep in memory.
    pub tree_bytes: u64,
    /// When the mount seals forks automatically.
    pub seal: SealPolicy,
    /// The secret that chains ledgers at a seal. Without it each ledger has its own.
    pub session_secret: Option<Secret>,
}

/// Returns the reader of forks' base images, for programs that change forks without a mount.
pub fn fork_reader(store: Arc<Store>, cache: Arc<Cache>) -> Arc<dyn BaseReader> {
    Arc::new(Reader::new(store, cache, Arc::new(Trees::new(0)), false))
}

/// The part of a blob that a read needs.
enum Filled {
    Whole(Payload),
    Part(Data),
}

/// An inode that the kernel has forgotten. Dropping it may remove files, so a thread that may wait should do it.
#[derive(Debug)]
#[must_use]
pub struct Forgotten(Option<Node>);

impl Forgotten {
    /// Whether dropping it may remove the files of a discarded fork.
    pub fn is_of_a_fork_that_is_gone(&self) -> bool {
        match &self.0 {
            Some(Node::Forked { mounted, .. } | Node::Snap { mounted }) => mounted.fork.is_discarded(),
            _ => false,
        }
    }
}

/// A mounted store.
pub struct Vfs {
    store: OnDisk,
    cache: Arc<Cache>,
    config: VfsConfig,
    owners: fork::Owners,
    inodes: Inodes,
    catalog: Catalog,
    images: Images,
    trees: Arc<Trees>,
    reader: Arc<Reader>,
    forks: Forks,
    ahead: Ahead,
    sealing: Seals,
    auto_seal: Arc<AutoSeal>,
    ledger_ends: ledger::Ends,
    late: Arc<Late>,
    metrics: Metrics,
    info: Mutex<MountInfo>,
    unread: Unread,
    most: Most,
    audit: Audit,
    announcing: Announcing,
    advice: Advice,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs").field("store", &self.store.root()).finish_non_exhaustive()
    }
}

impl Vfs {
    /// Makes the filesystem of a store. Does not read the store.
    pub fn new(store: Arc<Store>, cache: Arc<Cache>, config: VfsConfig, info: MountInfo) -> Self {
        let trees = Arc::new(Trees::new(config.tree_bytes));
        let reader = Arc::new(Reader::new(
            Arc::clone(&store),
            Arc::clone(&cache),
            Arc::clone(&trees),
            config.reveal_secrets,
        ));
        let owners = if config.mine { fork::Owners::mine } else { fork::Owners::kept };
        let late = Arc::new(Late::default());
        let mut sealer = Sealer::new(Arc::clone(&store), reader.clone(), config.session_secret.clone());
        sealer.push_before({
            let late = Arc::clone(&late);
            move |fork| late.push(fork)
        });
        Self {
            ahead: Ahead::new(Arc::clone(&cache)),
            sealing: Seals::new(sealer),
            auto_seal: Arc::default(),
            ledger_ends: ledger::Ends::default(),
            late,
            inodes: Inodes::new(config.inodes),
            catalog: Catalog::new(Arc::clone(&store)),
            images: Images::new(),
            forks: Forks::new(Arc::clone(&reader), config.read_only),
            trees,
            reader,
            metrics: Metrics::new(),
            unread: Unread::default(),
            most: Most::default(),
            info: Mutex::new(info),
            audit: Audit::new(&store),
            announcing: Announcing::default(),
            advice: Advice::default(),
            store: OnDisk::new(store),
            cache,
            owners: owners(config.uid, config.gid),
            config,
        }
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether extended attributes are answered at all.
    pub fn xattrs(&self) -> bool {
        self.config.xattrs
    }

    fn node(&self, ino: Ino) -> Outcome<Node> {
        self.inodes.get(ino).ok_or(ErrorKind::Posix(Posix::Stale))
    }

    /// Finds a name in a folder and counts the lookup. Returns [`Entry::ABSENT`] for a name that can never exist there.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        self.find(parent, name, Look::Whole)
    }

    pub(super) fn find(&self, parent: Ino, name: &[u8], look: Look) -> Attempt<Entry> {
        // `NAME@SOURCE` asks for a fork. It may be longer than a file's name.
        let makes_fork = parent == Self::FORKS && name.contains(&b'@');
        if name.len() > MAX_NAME && !makes_fork {
            return Err(ErrorKind::Posix(Posix::NameTooLong).into());
        }
        match self.node(parent)? {
            Node::Fixed(fixed) => self.lookup_fixed(fixed, name, look),
            Node::Agent(agent) => self.lookup_agent(&agent, name),
            Node::ImageDir { image, dir } => self.lookup_in_image(image, dir, name, look),
            Node::Dir { image, node } => {
                let tree = self.tree(image)?;
                // A tree never changes, so the kernel may also remember that a name is not in it.
                let Some(child) = tree.lookup(node, name) else { return Ok(Entry::ABSENT) };
                self.entry_of(self.tree_node(&tree, image, child)?, FOREVER)
            }
            Node::Forked { mounted, ino: fork::Ino::TOP } if name == snap::NAME => self.snap_entry(&mounted),
            Node::Forked { mounted, ino } => self.lookup_forked(&mounted, ino, name),
            Node::Snap { mounted } => self.lookup_snap(&mounted, name),
            Node::Stub { .. } => Err(ErrorKind::NotFound.into()),
            _ => Err(ErrorKind::Posix(Posix::NotADirectory).into()),
        }
    }

    /// Returns the attributes of an inode, and how long the kernel may cache them.
    pub fn getattr(&self, ino: Ino) -> Attempt<(Attr, Duration)> {
        let mut node = self.node(ino)?;
        if let Node::File { digest, size: size @ UNKNOWN_SIZE, shown, seen, .. } = &mut node {
            *size = self.find_size(digest, *shown, *seen)?;
            self.inodes.set_size(ino, *size);
        }
        if let Node::Link { target, key, .. } = &node
            && target.is_empty()
        {
            node = self.follow_latest(*key)?;
        }
        if let Node::Forked { mounted, ino: in_fork } = &node {
            return Ok((Attr { ino, ..Self::getattr_forked(mounted, *in_fork)? }, FOREVER));
        }
        Ok((self.attr(ino, &node)?, FOREVER))
    }

    /// A symlink's target.
    pub fn readlink(&self, ino: Ino) -> Attempt<Vec<u8>> {
        match self.node(ino)? {
            Node::Symlink { target, .. } => Ok(target.to_vec()),
            Node::Forked { mounted, ino } => Ok(mounted.fork.readlink(ino).map_err(|error| error.kind())?),
            Node::Link { target, key, .. } if target.is_empty() => match self.follow_latest(key)? {
                Node::Link { target, .. } => Ok(target.as_bytes().to_vec()),
                _ => Err(ErrorKind::NotFound.into()),
            },
            Node::Link { target, .. } => Ok(target.as_bytes().to_vec()),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// Reads up to `size` bytes from `offset`; fewer only at the end.
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Attempt<Data> {
        let slice = |len: usize| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
            (start, start.saturating_add(size as usize).min(len))
        };
        match self.node(ino)? {
            Node::File { digest, size: declared, shown, seen, .. } => {
                let cached = match shown {
                    Shown::Raw => self.cache.peek(&digest),
                    Shown::Redacted => self.images.redacted(&digest).map(Payload::Heap),
                };
                // Noted once for each request: only by the event loop, which tries it first.
                if let (Place::World(node), 0, false) = (seen.place, offset, wait::is_allowed())
                    && let Ok(tree) = self.tree(seen.image)
                {
                    self.ahead.was_read(&tree, node, cached.is_some());
                }
                let payload = match cached {
                    Some(payload) if declared == UNKNOWN_SIZE || payload.len() as u64 == declared => payload,
                    _ => match self.fill(&digest, declared, shown, seen, (offset, size))? {
                        Filled::Whole(payload) => payload,
                        Filled::Part(data) => return Ok(data),
                    },
                };
                let (start, end) = slice(payload.len());
                Ok(Data::Blob(payload, start, end))
            }
            Node::Doc { bytes, key, .. } => {
                self.unread.read(key);
                let (start, end) = slice(bytes.len());
                Ok(Data::Doc(bytes, start, end))
            }
            Node::Forked { mounted, ino } => self.read_forked(&mounted, ino, offset, size),
            Node::Marker => {
                self.late.passes(offset);
                Ok(Data::Doc(Arc::from([0u8].as_slice()), 0, 1))
            }
            Node::Fixed(_)
            | Node::Agent(_)
            | Node::ImageDir { .. }
            | Node::Dir { .. }
            | Node::Snap { .. }
            | Node::Stub { .. } => Err(ErrorKind::Posix(Posix::IsADirectory).into()),
            Node::Symlink { .. } | Node::Link { .. } | Node::Special { .. } => {
                Err(ErrorKind::InvalidInput.into())
            }
        }
    }

    /// Reads the part of a blob that a read needs and that is not in the cache.
    fn fill(
        &self,
        digest: &Digest,
        declared: u64,
        shown: Shown,
        seen: Seen,
        (offset, size): (u64, u32),
    ) -> Attempt<Filled> {
        may_wait()?;
        if matches!(shown, Shown::Raw) && self.cache.is_read_in_parts(declared) {
            let failed = |error: Arc<BlobError>| self.report(seen, &error);
            let length = match declared {
                UNKNOWN_SIZE => self.cache.length(digest).map_err(failed)?,
                declared => declared,
            };
            let range = self.cache.range(digest, length, offset, size as usize);
            let (payload, range) = range.map_err(failed)?;
            return Ok(Filled::Part(Data::Blob(payload, range.start, range.end)));
        }
        Ok(Filled::Whole(self.payload(digest, declared, shown, seen)?))
    }

    fn payload(&self, digest: &Digest, declared: u64, shown: Shown, seen: Seen) -> Outcome<Payload> {
        match shown {
            Shown::Raw => self
                .cache
                .get(digest, (declared != UNKNOWN_SIZE).then_some(declared))
                .map_err(|error| self.report(seen, &error)),
            Shown::Redacted => {
                let raw = self.cache.get(digest, None).map_err(|error| self.report(seen, &error))?;
                Ok(Payload::Heap(self.images.redact(digest, &raw)))
            }
        }
    }

    /// Takes back lookups. Returns an inode that the kernel no longer knows, since dropping it may remove files.
    pub fn forget(&self, ino: Ino, lookups: u64) -> Forgotten {
        Forgotten(self.inodes.forget(ino, lookups, |node| {
            if let Node::Forked { mounted, ino: in_fork } = node {
                if self.config.late_writes {
                    self.ledger_ends.forget(ino);
                }
                mounted.fork.forget(*in_fork);
            }
        }))
    }

    /// Takes back a lookup that was not reported to the kernel.
    pub(super) fn take_back(&self, ino: Ino) {
        drop(self.forget(ino, 1));
    }

    /// Returns the space of the filesystem that holds the store.
    pub fn statfs(&self) -> Attempt<rustix::fs::StatVfs> {
        may_wait()?;
        wait::disk("statfs");
        rustix::fs::statvfs(self.store.root()).map_err(|e| ErrorKind::Io(Some(e.raw_os_error())).into())
    }

    /// Returns the state from which the watcher starts.
    pub(crate) fn watch(&self) -> Watched {
        let watched = self.catalog.watch();
        let _ = self.announce_tags();
        watched
    }

    /// Returns what has changed in the store since `watched`, and the changes that can be announced.
    pub(crate) fn changes(&self, watched: &mut Watched) -> (Changes, Vec<Announcement>) {
        let changes = self.catalog.changes(watched);
        let mut all = announce::of_images(&changes.removed, &changes.added, watched.images());
        if changes.tags {
            all.append(&mut self.announce_tags());
        }
        (changes, all)
    }

    /// Lists the folders whose cached listings are outdated after images were added or removed.
    pub(crate) fn listings_of_images(&self) -> Vec<Ino> {
        let mut listings = vec![Fixed::Images.ino(), Fixed::Agents.ino()];
        let agents = self.catalog.agents_looked_at();
        let known = |name| self.inodes.known(self.keyed(Node::Agent(name)).key);
        listings.extend(agents.into_iter().filter_map(known));
        listings
    }

    /// Lists the folders of seals. They list tags of existing images.
    pub(crate) fn listings_of_seals(&self) -> Vec<Ino> {
        self.forks.in_use().iter().filter_map(|fork| self.inodes.known(Self::snap_key(fork))).collect()
    }

    /// The folders of images and of tags, for the watcher.
    pub(crate) const IMAGES: Ino = Fixed::Images.ino();
    pub(crate) const TAGS: Ino = Fixed::Tags.ino();

    /// The folders of forks and of the links to them.
    pub(crate) const FORKS: Ino = Fixed::Forks.ino();
    pub(crate) const WORK: Ino = Fixed::Work.ino();

    /// The folder into which a fork is moved to be discarded.
    pub(crate) const CONTROL: Ino = Fixed::Control.ino();

    /// Returns a number that no inode has.
    pub fn unused(&self) -> Ino {
        self.inodes.unused()
    }

    fn keyed(&self, node: Node) -> Keyed {
        Keyed::of(node, |image| self.catalog.id(image))
    }

    /// Interns a node whose name and attributes never change.
    fn entry(&self, node: Node) -> Attempt<Entry> {
        self.entry_with(node, FOREVER)
    }

    fn entry_with(&self, node: Node, entry_ttl: Duration) -> Attempt<Entry> {
        self.entry_of(self.keyed(node), entry_ttl)
    }

    fn entry_of(&self, keyed: Keyed, entry_ttl: Duration) -> Attempt<Entry> {
        // Attributes first: after interning no step may fail, or the lookup would never be taken back.
        let mut attr = self.attr(0, &keyed.node)?;
        (attr.ino, _) = self.inodes.intern(keyed)?;
        Ok(Entry { attr, entry_ttl, attr_ttl: FOREVER })
    }

    fn attr(&self, ino: Ino, node: &Node) -> Attempt<Attr> {
        let attr = |kind, mode, size, mtime_ns| Attr {
            ino,
            kind,
            mode,
            nlink: 1,
            size,
            atime_ns: mtime_ns,
            mtime_ns,
            ctime_ns: mtime_ns,
            uid: self.config.uid,
            gid: self.config.gid,
            rdev: 0,
        };
        let recorded = |kind, recorded: &Recorded, size| Attr {
            uid: recorded.uid,
            gid: recorded.gid,
            nlink: recorded.links,
            ..attr(kind, recorded.mode, size, recorded.mtime_ns)
        };
        let folder = |nlink, mtime_ns| Attr { nlink, ..attr(Kind::Dir, 0o755, FOLDER_SIZE, mtime_ns) };
        Ok(match node {
            Node::Forked { mounted, ino } => Self::getattr_forked(mounted, *ino)?,
            Node::Fixed(fixed) => folder(fixed.links(), self.info.lock().started_ns()),
            Node::Snap { .. } | Node::Stub { .. } => folder(2, self.info.lock().started_ns()),
            Node::Agent(name) => {
                folder(2, self.catalog.newest_of(name).unwrap_or_else(|| self.info.lock().started_ns()))
            }
            Node::ImageDir { image, dir } => {
                folder(dir.links(), self.time_of_image(&self.catalog.id(*image))?)
            }
            Node::Marker => attr(Kind::File, 0o400, MARKER_SIZE, self.info.lock().started_ns()),
            Node::File { size, recorded: r, .. } => recorded(Kind::File, r, *size),
            Node::Symlink { target, recorded: r, .. } => recorded(Kind::Symlink, r, target.len() as u64),
            Node::Link { target, mtime_ns, .. } => attr(Kind::Symlink, 0o777, target.len() as u64, *mtime_ns),
            Node::Doc { bytes, mtime_ns, .. } => attr(Kind::File, 0o444, bytes.len() as u64, *mtime_ns),
            Node::Dir { image, node } | Node::Special { image, node } => {
                let tree = self.tree(*image)?;
                let mut attr = recorded(tree.kind(*node), &self.recorded(*image, &tree, *node)?, 0);
                if attr.kind == Kind::Dir {
                    attr.size = FOLDER_SIZE;
                    attr.nlink = tree.subdirs(*node).saturating_add(2);
                }
                attr.rdev = tree.rdev(*node) as u32;
                attr
            }
        })
    }
}

mod readahead;
mod root;
#[cfg(test)]
mod tests;
