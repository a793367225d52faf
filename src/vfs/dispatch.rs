//! Finds the part of a mounted store that an inode belongs to, and calls it.

use std::sync::Arc;
use std::time::Duration;

use super::advice::Advice;
use super::announcements::Announcements;
use super::announcer::Announcer;
use super::answer::{Attr, Data, Entry, FOREVER, Look};
use super::attempt::{Attempt, OnDisk, Stop, may_wait, of_fork};
use super::audit_trail::AuditTrail;
use super::autoseal::AutoSeal;
use super::cached_writes::CachedWrites;
use super::catalog::Catalog;
use super::config::VfsConfig;
use super::control::ControlDir;
use super::fork_files::ForkFiles;
use super::fork_table::ForkTable;
use super::forks_dir::ForksDir;
use super::image_dirs::ImageDirs;
use super::image_files::ImageFile;
use super::key::Ino;
use super::malloc::MallocTrimmer;
use super::metrics::Metrics;
use super::node::{BuiltinDir, ImageDir, Node, UNKNOWN_SIZE};
use super::nodes::Nodes;
use super::readdir::{DirEntry, Emit, list_dots, list_looked_up};
use super::root::{RootDir, never_there};
use super::seals::Seals;
use super::snap::{self, SnapDir};
use super::tags::TagDir;
use crate::cache::Cache;
use crate::error::{ErrorKind, Posix};
use crate::fork;
use crate::layers::world::{Kind, MAX_NAME};
use crate::store::Home;

/// A mounted store.
pub struct Vfs {
    pub(super) store: OnDisk,
    pub(super) home: Arc<Home>,
    pub(super) cache: Arc<Cache>,
    pub(super) config: VfsConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Arc<AuditTrail>,
    pub(super) advice: Arc<Advice>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) root: RootDir,
    pub(super) tags: TagDir,
    pub(super) images: ImageDirs,
    pub(super) table: Arc<ForkTable>,
    pub(super) forks: ForksDir,
    pub(super) files: Arc<ForkFiles>,
    pub(super) snap: SnapDir,
    pub(super) seals: Arc<Seals>,
    pub(super) control: ControlDir,
    pub(super) cached_writes: Arc<CachedWrites>,
    pub(super) announcements: Arc<Announcements>,
    pub(super) announcer: Announcer,
    pub(super) auto_seal: Arc<AutoSeal>,
    pub(super) trimmer: MallocTrimmer,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs").field("store", &self.store.root()).finish_non_exhaustive()
    }
}

impl Vfs {
    /// Finds a name in a folder and counts the lookup. Returns [`Entry::ABSENT`] for a name that can never exist there.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        self.find(parent, name, Look::Whole)
    }

    pub(super) fn find(&self, parent: Ino, name: &[u8], look: Look) -> Attempt<Entry> {
        // `NAME@SOURCE` asks for a fork. It may be longer than a file's name.
        if name.len() > MAX_NAME && !Self::branches(parent, name) {
            return Err(ErrorKind::Posix(Posix::NameTooLong).into());
        }
        match self.nodes.get(parent)? {
            Node::Builtin(dir) => self.find_builtin(dir, name, look),
            Node::Agent(agent) => self.root.lookup_of_agent(&agent, name),
            Node::ImageDir { image, dir } => self.images.lookup(image, dir, name, look),
            Node::Dir { image, node } => self.images.lookup_in_tree(image, node, name),
            Node::Forked { mounted, ino: fork::Ino::TOP } if name == snap::NAME => self.snap.entry(&mounted),
            Node::Forked { mounted, ino } => self.files.lookup(&mounted, ino, name),
            Node::Snap { mounted } => self.snap.lookup(&mounted, name),
            Node::Pending { .. } => Err(ErrorKind::NotFound.into()),
            _ => Err(ErrorKind::Posix(Posix::NotADirectory).into()),
        }
    }

    fn find_builtin(&self, dir: BuiltinDir, name: &[u8], look: Look) -> Attempt<Entry> {
        // All names in these folders are UTF-8.
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        match dir {
            _ if never_there(dir, name) => Ok(Entry::ABSENT),
            BuiltinDir::Root => self.root.lookup(name, look),
            BuiltinDir::Images => self.root.lookup_image(name, look),
            BuiltinDir::Tags => self.tags.lookup(name),
            BuiltinDir::Agents => self.root.lookup_agent(name),
            BuiltinDir::Control => self.control.lookup(name),
            BuiltinDir::Forks => self.forks.lookup(name),
            BuiltinDir::Work => self.forks.lookup_link(name),
        }
    }

    /// Returns the attributes of an inode, and how long the kernel may cache them.
    pub fn getattr(&self, ino: Ino) -> Attempt<(Attr, Duration)> {
        let mut node = self.nodes.get(ino)?;
        if let Node::File { digest, size: size @ UNKNOWN_SIZE, redaction, origin, .. } = &mut node {
            *size = self.images.find_size(digest, *redaction, *origin)?;
            self.nodes.set_size(ino, *size);
        }
        if let Node::Link { target, key, .. } = &node
            && target.is_empty()
        {
            node = self.root.follow_latest(*key)?;
        }
        let attr = match &node {
            Node::Forked { mounted, ino } => mounted.getattr(*ino)?,
            Node::Agent(agent) => self.root.agent_attr(agent),
            node => self.images.attr(node)?,
        };
        Ok((Attr { ino, ..attr }, FOREVER))
    }

    /// A symlink's target.
    pub fn readlink(&self, ino: Ino) -> Attempt<Vec<u8>> {
        match self.nodes.get(ino)? {
            Node::Symlink { target, .. } => Ok(target.to_vec()),
            Node::Forked { mounted, ino } => Ok(mounted.fork.readlink(ino).map_err(|error| error.kind())?),
            Node::Link { target, key, .. } if target.is_empty() => match self.root.follow_latest(key)? {
                Node::Link { target, .. } => Ok(target.as_bytes().to_vec()),
                _ => Err(ErrorKind::NotFound.into()),
            },
            Node::Link { target, .. } => Ok(target.as_bytes().to_vec()),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// Reads up to `size` bytes from `offset`; fewer only at the end.
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Attempt<Data> {
        match self.nodes.get(ino)? {
            Node::File { digest, size: declared, redaction, origin, .. } => self.images.read(
                ImageFile { digest: &digest, size: declared, redaction, origin },
                offset,
                size,
            ),
            Node::Doc { bytes, key, .. } => {
                self.control.was_read(key);
                Ok(Data::document(bytes, offset, size))
            }
            Node::Forked { mounted, ino } => self.files.read(&mounted, ino, offset, size),
            Node::Marker => {
                self.cached_writes.passes(offset);
                Ok(Data::document(Arc::from([0u8].as_slice()), 0, 1))
            }
            node if node.is_dir() => Err(ErrorKind::Posix(Posix::IsADirectory).into()),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// Lists a folder from a cookie on (0: from the start). With `plus`, entries have their attributes and count as looked up.
    ///
    /// Where it would have to wait for the disk, the listing ends early. It fails with [`Stop::Waits`] only before the first
    /// entry.
    pub fn readdir(&self, ino: Ino, cookie: u64, plus: bool, emit: Emit<'_>) -> Attempt<()> {
        let mut some = false;
        let mut emit = |entry: DirEntry<'_>| {
            let taken = emit(entry);
            some |= taken;
            taken
        };
        match self.list(ino, cookie, plus, &mut emit) {
            // The caller continues after the entries that it got.
            Err(Stop::Waits) if some => Ok(()),
            listed => listed,
        }
    }

    fn list(&self, ino: Ino, cookie: u64, plus: bool, emit: Emit<'_>) -> Attempt<()> {
        let node = self.nodes.get(ino)?;
        if node.is_listed_on_disk(plus) {
            may_wait()?;
        }
        if let Node::Dir { image, .. } = &node {
            self.images.tree(*image)?;
        }
        if !node.is_dir() {
            return Err(ErrorKind::Posix(Posix::NotADirectory).into());
        }
        if !list_dots(ino, || self.parent(ino, &node), cookie, emit)? {
            return Ok(());
        }
        match node {
            Node::Dir { image, node } => return self.images.list_tree(image, node, cookie, plus, emit),
            Node::Forked { mounted, ino: dir } => {
                return self.files.list(ino, (&mounted, dir), cookie, plus, emit);
            }
            _ => {}
        }
        let lenient = matches!(node, Node::Builtin(BuiltinDir::Forks | BuiltinDir::Work));
        let lookup = |name: &[u8]| self.find(ino, name, Look::Listing);
        let (listed, failed) =
            list_looked_up(&self.nodes, (plus, lenient), emit, lookup, |emit| match &node {
                Node::Builtin(BuiltinDir::Root) => self.root.list(cookie, emit),
                Node::Builtin(BuiltinDir::Images) => self.root.list_images(cookie, emit),
                Node::Builtin(BuiltinDir::Tags) => self.tags.list(cookie, emit),
                Node::Builtin(BuiltinDir::Agents) => self.root.list_agents(cookie, emit),
                Node::Builtin(BuiltinDir::Forks) => self.table.list(Kind::Dir, cookie, emit),
                Node::Builtin(BuiltinDir::Work) => self.table.list(Kind::Symlink, cookie, emit),
                Node::Builtin(BuiltinDir::Control) => {
                    self.control.list(cookie, emit);
                    Ok(())
                }
                Node::Snap { mounted } => self.snap.list(mounted, cookie, emit),
                Node::Agent(agent) => self.root.list_agent(agent, cookie, emit),
                Node::ImageDir { image, dir } => self.images.list(*image, *dir, cookie, emit),
                _ => Ok(()),
            });
        match failed {
            // A folder of layers whose manifest cannot be read must not look empty.
            Some(stop) if matches!(node, Node::ImageDir { .. }) => listed.and(Err(stop)),
            _ => listed,
        }
    }

    /// Returns the number of a folder's parent. The root is its own parent.
    fn parent(&self, ino: Ino, node: &Node) -> Attempt<Ino> {
        let parent = match node {
            Node::Builtin(_) => Node::Builtin(BuiltinDir::Root),
            Node::Agent(_) => Node::Builtin(BuiltinDir::Agents),
            Node::ImageDir { dir: ImageDir::Top, .. } => Node::Builtin(BuiltinDir::Images),
            Node::ImageDir { image, dir: ImageDir::Pages } => {
                Node::ImageDir { image: *image, dir: ImageDir::Cache }
            }
            Node::ImageDir { image, .. } => Node::ImageDir { image: *image, dir: ImageDir::Top },
            Node::Dir { image, node } => self.images.parent_in_tree(*image, *node)?,
            Node::Forked { ino: fork::Ino::TOP, .. } => Node::Builtin(BuiltinDir::Forks),
            Node::Snap { mounted } => Node::Forked { mounted: mounted.clone(), ino: fork::Ino::TOP },
            Node::Forked { mounted, ino } => {
                return Ok(self
                    .nodes
                    .number(&self.nodes.keyed_in_fork(mounted, mounted.fork.parent(*ino)))?);
            }
            _ => return Ok(ino),
        };
        Ok(self.nodes.number(&self.nodes.keyed(parent))?)
    }

    /// Finds the next data or hole from an offset on.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Attempt<u64> {
        match self.nodes.get(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.seek(ino, offset, data).map_err(of_fork),
            Node::File { size, .. } if offset < size && size != UNKNOWN_SIZE => {
                Ok(if data { offset } else { size })
            }
            Node::Doc { bytes, .. } if offset < bytes.len() as u64 => {
                Ok(if data { offset } else { bytes.len() as u64 })
            }
            _ => Err(ErrorKind::Posix(Posix::NoSuchOffset).into()),
        }
    }

    /// Returns an extended attribute of a file in a fork or an image.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Attempt<Vec<u8>> {
        match self.nodes.get(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.getxattr(ino, name).map_err(of_fork),
            node => {
                let xattrs = self.images.xattrs_of(&node)?;
                let value = xattrs.as_ref().and_then(|xattrs| xattrs.get(name));
                Ok(value.cloned().ok_or(if fork::is_bare_prefix(name) {
                    ErrorKind::InvalidInput
                } else {
                    ErrorKind::Posix(Posix::NoAttribute)
                })?)
            }
        }
    }

    /// Lists the names of a file's extended attributes.
    pub fn listxattr(&self, ino: Ino) -> Attempt<Vec<Vec<u8>>> {
        match self.nodes.get(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.listxattr(ino).map_err(of_fork),
            node => {
                let xattrs = self.images.xattrs_of(&node)?;
                Ok(xattrs.map_or_else(Vec::new, |xattrs| xattrs.keys().cloned().collect()))
            }
        }
    }
}
