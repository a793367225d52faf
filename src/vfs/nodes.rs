//! The inodes that the kernel knows, and the making of entries and attributes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::answer::{Attr, Entry, FOLDER_SIZE, FOREVER};
use super::attempt::{Attempt, Outcome};
use super::config::VfsConfig;
use super::image_numbers::ImageNumbers;
use super::inodes::Inodes;
use super::key::{Ino, Key, Slot};
use super::ledger_ends::LedgerEnds;
use super::mounted::Mounted;
use super::node::{ImageNo, Keyed, MARKER_SIZE, Node, Recorded};
use crate::control::Numbering;
use crate::digest::Digest;
use crate::error::{ErrorKind, Posix};
use crate::fork::{self, Fork};
use crate::layers::world::Kind;

/// An inode that the kernel has forgotten. Dropping it may remove files, so a thread that may wait should do it.
#[derive(Debug)]
#[must_use]
pub struct Forgotten(Option<Node>);

impl Forgotten {
    /// Whether dropping it may remove the files of a discarded fork.
    pub fn is_of_a_discarded_fork(&self) -> bool {
        match &self.0 {
            Some(Node::Forked { mounted, .. } | Node::Snap { mounted }) => mounted.fork.is_discarded(),
            _ => false,
        }
    }
}

/// The inodes of a mount.
pub(super) struct Nodes {
    inodes: Inodes,
    images: ImageNumbers,
    /// Present if the kernel caches writes.
    ledgers: Option<LedgerEnds>,
    uid: u32,
    gid: u32,
    numbering: Numbering,
    started_ns: i64,
    /// The key of the next pending folder.
    pending: AtomicU64,
}

impl Nodes {
    pub(super) fn new(config: &VfsConfig, started_ns: i64) -> Self {
        Self {
            inodes: Inodes::new(config.inodes),
            images: ImageNumbers::default(),
            ledgers: config.writeback.then(LedgerEnds::default),
            uid: config.uid,
            gid: config.gid,
            numbering: config.inodes,
            started_ns,
            pending: AtomicU64::new(1),
        }
    }

    /// When the mount began, in nanoseconds since 1970.
    pub(super) fn started_ns(&self) -> i64 {
        self.started_ns
    }

    /// Whether cookies must be short: a program without support for long inode numbers has none for long cookies either.
    pub(super) fn is_narrow(&self) -> bool {
        self.numbering == Numbering::Counted
    }

    /// Whether each image has separate inodes.
    pub(super) fn are_distinct(&self) -> bool {
        self.numbering == Numbering::Distinct
    }

    /// Returns the number of an image in this mount.
    pub(super) fn image_number(&self, id: &Digest) -> ImageNo {
        self.images.number(id)
    }

    /// Returns the image with this number.
    pub(super) fn image_id(&self, number: ImageNo) -> Digest {
        self.images.id(number)
    }

    /// Returns the node with a number. Fails with ESTALE if the kernel does not know it.
    pub(super) fn get(&self, ino: Ino) -> Outcome<Node> {
        self.inodes.get(ino).ok_or(ErrorKind::Posix(Posix::Stale))
    }

    /// A node and its key. Files and symlinks of images are made with their path instead.
    pub(super) fn keyed(&self, node: Node) -> Keyed {
        Keyed::of(node, |image| self.images.id(image))
    }

    /// Returns the number that a lookup of a node would return now, without counting a lookup. For listings.
    pub(super) fn number(&self, keyed: &Keyed) -> Outcome<Ino> {
        self.inodes.number(keyed)
    }

    /// Returns the number of a key, unless the kernel cannot know it.
    pub(super) fn known(&self, key: Key) -> Option<Ino> {
        self.inodes.known(key)
    }

    /// Returns a number that no inode has.
    pub(super) fn unused(&self) -> Ino {
        self.inodes.unused()
    }

    /// Counts the inodes that the kernel knows.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Counts the lookups of an inode that the kernel has not taken back.
    pub(super) fn lookups(&self, ino: Ino) -> u64 {
        self.inodes.lookups(ino)
    }

    /// Notes the size of a file that was only listed before.
    pub(super) fn set_size(&self, ino: Ino, size: u64) {
        self.inodes.set_size(ino, size);
    }

    /// Counts a lookup of a node with these attributes, which the kernel may cache for ever.
    pub(super) fn entry(&self, keyed: Keyed, attr: Attr, entry_ttl: Duration) -> Attempt<Entry> {
        let (ino, _) = self.inodes.intern(keyed)?;
        Ok(Entry { attr: Attr { ino, ..attr }, entry_ttl, attr_ttl: FOREVER })
    }

    /// Counts a lookup of a folder that the kernel forgets as soon as it is made.
    pub(super) fn pending_entry(&self) -> Attempt<Entry> {
        let key = self.pending.fetch_add(1, Ordering::Relaxed);
        self.own_entry(self.keyed(Node::Pending { key }), Duration::ZERO)
    }

    /// Counts a lookup, with placeholder attributes of lifetime zero, so that the kernel asks for them when needed.
    pub(super) fn entry_to_be_asked(
        &self,
        keyed: Keyed,
        kind: Kind,
        mode: u16,
        entry_ttl: Duration,
    ) -> Attempt<Entry> {
        let attr = Attr { kind, mode, uid: self.uid, gid: self.gid, ..Attr::default() };
        Ok(Entry { attr_ttl: Duration::ZERO, ..self.entry(keyed, attr, entry_ttl)? })
    }

    /// Attributes of a file that the mount itself shows, except its number.
    pub(super) fn attr(&self, kind: Kind, mode: u16, size: u64, mtime_ns: i64) -> Attr {
        Attr {
            ino: 0,
            kind,
            mode,
            nlink: 1,
            size,
            atime_ns: mtime_ns,
            mtime_ns,
            ctime_ns: mtime_ns,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
        }
    }

    /// Attributes of a folder, except its number.
    pub(super) fn folder(&self, nlink: u32, mtime_ns: i64) -> Attr {
        Attr { nlink, ..self.attr(Kind::Dir, 0o755, FOLDER_SIZE, mtime_ns) }
    }

    /// Attributes of a node that the mount itself shows and whose attributes need no look at the store, except its number.
    pub(super) fn own_attr(&self, node: &Node) -> Option<Attr> {
        Some(match node {
            Node::Builtin(dir) => self.folder(dir.links(), self.started_ns),
            Node::Snap { .. } | Node::Pending { .. } => self.folder(2, self.started_ns),
            Node::Marker => self.attr(Kind::File, 0o400, MARKER_SIZE, self.started_ns),
            Node::Link { target, mtime_ns, .. } => {
                self.attr(Kind::Symlink, 0o777, target.len() as u64, *mtime_ns)
            }
            Node::Doc { bytes, mtime_ns, .. } => self.attr(Kind::File, 0o444, bytes.len() as u64, *mtime_ns),
            Node::File { size, recorded, .. } => self.recorded(Kind::File, recorded, *size),
            Node::Symlink { target, recorded, .. } => {
                self.recorded(Kind::Symlink, recorded, target.len() as u64)
            }
            Node::Agent(_)
            | Node::ImageDir { .. }
            | Node::Dir { .. }
            | Node::Special { .. }
            | Node::Forked { .. } => return None,
        })
    }

    /// Counts a lookup of a node with attributes of [`Nodes::own_attr`].
    pub(super) fn own_entry(&self, keyed: Keyed, entry_ttl: Duration) -> Attempt<Entry> {
        let attr = self.own_attr(&keyed.node).ok_or(ErrorKind::InvalidInput)?;
        self.entry(keyed, attr, entry_ttl)
    }

    /// Attributes of a file of an image, except its number.
    pub(super) fn recorded(&self, kind: Kind, recorded: &Recorded, size: u64) -> Attr {
        Attr {
            uid: recorded.uid,
            gid: recorded.gid,
            nlink: recorded.links,
            ..self.attr(kind, recorded.mode, size, recorded.mtime_ns)
        }
    }

    /// Attributes of layer files and pages.
    pub(super) fn recorded_layer(&self, mode: u16, mtime_ns: i64) -> Recorded {
        Recorded { mode, mtime_ns, links: 1, xattrs: None, uid: self.uid, gid: self.gid }
    }

    /// Takes back lookups. Returns an inode that the kernel no longer knows, since dropping it may remove files.
    pub(super) fn forget(&self, ino: Ino, lookups: u64) -> Forgotten {
        Forgotten(self.inodes.forget(ino, lookups, |node| {
            if let Node::Forked { mounted, ino: in_fork } = node {
                if let Some(ledgers) = &self.ledgers {
                    ledgers.forget(ino);
                }
                mounted.fork.forget(*in_fork);
            }
        }))
    }

    /// Takes back a lookup that was not reported to the kernel.
    pub(super) fn take_back(&self, ino: Ino) {
        drop(self.forget(ino, 1));
    }
}

/// Inodes of files in forks.
impl Nodes {
    /// The ends of ledgers, if the kernel caches writes.
    pub(super) fn ledger_ends(&self) -> Option<&LedgerEnds> {
        self.ledgers.as_ref()
    }

    /// Counts a lookup of a file in a fork. Returns its number, and whether the kernel did not know it before.
    pub(super) fn intern_in_fork(&self, mounted: &Mounted, ino: fork::Ino) -> Outcome<(Ino, bool)> {
        self.inodes.intern(self.keyed_in_fork(mounted, ino))
    }

    /// The node of a file in a fork.
    pub(super) fn keyed_in_fork(&self, mounted: &Mounted, ino: fork::Ino) -> Keyed {
        let node = Node::Forked { mounted: mounted.clone(), ino };
        Keyed { key: self.key_in_fork(mounted, ino), node }
    }

    /// Returns the key under which the kernel knows a file in a fork now.
    pub(super) fn key_in_fork(&self, mounted: &Mounted, ino: fork::Ino) -> Key {
        let again = mounted.fork.shown_again(ino);
        if again > 0 {
            // The kernel keeps the removed folder while a program uses it, so the one that is shown again needs another key.
            return mounted.key(fork::Ino::derive(ino, b"again", again));
        }
        let resized = if self.ledgers.is_some() { mounted.fork.resized(ino) } else { 0 };
        let ino = if resized > 0 { fork::Ino::derive(ino, b"resized", resized) } else { ino };
        mounted.key(ino)
    }

    /// Returns the number of a folder in a fork; for another file, the number that it has before any seal resizes it. Returns
    /// none if the kernel cannot know it.
    pub(super) fn known_folder(&self, mounted: &Mounted, ino: fork::Ino) -> Option<Ino> {
        if mounted.fork.shown_again(ino) > 0 {
            return self.known(self.key_in_fork(mounted, ino));
        }
        self.known(mounted.key(ino))
    }

    /// Returns the number of a file in a fork if the kernel knows it.
    pub(super) fn in_kernel(&self, mounted: &Mounted, ino: fork::Ino) -> Option<Ino> {
        self.in_kernel_by(mounted.key(ino))
    }

    /// Returns the number of a key if the kernel knows it.
    pub(super) fn in_kernel_by(&self, key: Key) -> Option<Ino> {
        self.known(key).filter(|number| self.inodes.get(*number).is_some())
    }

    /// Lets the fork forget a file that the kernel no longer knows.
    pub(super) fn forget_unless_known(&self, mounted: &Mounted, gone: fork::Ino) {
        if self.in_kernel(mounted, gone).is_none() {
            mounted.fork.forget(gone);
        }
    }

    /// Counts a lookup of an inode of a removed fork, if the kernel knows it.
    pub(super) fn entry_again(&self, number: Ino, attr: Attr) -> Option<Entry> {
        let entry =
            Entry { attr: Attr { ino: number, ..attr }, entry_ttl: Duration::ZERO, attr_ttl: FOREVER };
        self.inodes.again(number).then_some(entry)
    }

    /// Lists the slots of forks that have an inode in the kernel.
    pub(super) fn fork_slots(&self) -> HashSet<Slot> {
        self.inodes.fork_slots()
    }

    /// Lists the inodes of a fork that the kernel knows.
    pub(super) fn known_of(&self, fork: &Arc<Fork>) -> Vec<(Ino, fork::Ino)> {
        self.inodes.known_of(fork)
    }

    /// Hands inodes of a fork to the fork that replaces it: those that `kept` allows, and its list of seals.
    pub(super) fn hand_over(&self, old: &Arc<Fork>, new: &Mounted, kept: impl Fn(fork::Ino) -> bool) {
        self.inodes.hand_over(old, new, kept);
    }
}
