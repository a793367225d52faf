//! Lists folders. A folder that can change is listed in the order of its cookies. So an entry that exists throughout is listed
//! exactly once, even if others are added and removed between two calls.

use super::attempt::{logged, may_wait};
use super::inode::{Fixed, ImageDir, Ino, Node, hash_bytes};
use super::{Attempt, Entry, FOREVER, Look, Numbering, Stop, Vfs, control};
use crate::digest::Digest;
use crate::error::{ErrorKind, Posix};
use crate::fork;
use crate::layers::world::Kind;
use crate::tree::{NodeId, Tree};

/// Cookies 1 and 2 are those of `.` and `..`.
const FIRST_COOKIE: u64 = 3;

/// One name in a folder.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// Inode; never 0. It is the one that a lookup returns, if the name can be looked up.
    pub ino: Ino,
    /// Where the listing continues after this entry.
    pub cookie: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: &'a [u8],
    /// Its attributes, if the caller asked for them. They count as looked up.
    pub entry: Option<Entry>,
}

/// Takes an entry; returns false if there is no room for it. An entry that was not taken was not looked up.
pub type Emit<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> bool;

impl Vfs {
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
        let node = self.node(ino)?;
        if Self::is_listed_on_disk(&node, plus) {
            may_wait()?;
        }
        if let Node::Dir { image, .. } = &node {
            self.tree(*image)?;
        }
        match &node {
            Node::Fixed(_)
            | Node::Agent(_)
            | Node::ImageDir { .. }
            | Node::Dir { .. }
            | Node::Snap { .. }
            | Node::Stub { .. }
            | Node::Forked { .. } => {}
            _ => return Err(ErrorKind::Posix(Posix::NotADirectory).into()),
        }
        // The kernel counts no lookup of these two names.
        for (dots, name) in [(1, &b"."[..]), (2, b"..")] {
            if cookie >= dots {
                continue;
            }
            let ino = if dots == 1 { ino } else { self.parent(ino, &node)? };
            if !emit(DirEntry { ino, cookie: dots, kind: Kind::Dir, name, entry: None }) {
                return Ok(());
            }
        }
        if let Node::Dir { image, node } = node {
            return self.list_tree(&*self.tree(image)?, image, node, cookie, plus, emit);
        }
        if let Node::Forked { mounted, ino: dir } = &node {
            return self.list_forked(ino, mounted, *dir, cookie, plus, emit);
        }
        let (mut failed, of_forks) = (None, matches!(node, Node::Fixed(Fixed::Forks | Fixed::Work)));
        // Each name is looked up to get its number. The kernel counts the lookup only if the entry has attributes.
        let mut looked_up = |mut entry: DirEntry<'_>| {
            match self.find(ino, entry.name, Look::Listing) {
                Ok(found) => {
                    entry.ino = found.attr.ino;
                    if plus {
                        entry.entry = Some(found);
                    } else {
                        self.take_back(found.attr.ino);
                    }
                }
                // The file was removed, or is damaged and was logged.
                Err(Stop::Failed(ErrorKind::NotFound)) => return true,
                // A fork that cannot be read is listed too.
                Err(_) if of_forks => {}
                Err(stop) => {
                    failed = Some(stop);
                    return true;
                }
            }
            let (ino, counted) = (entry.ino, entry.entry.is_some());
            let taken = emit(entry);
            if !taken && counted {
                self.take_back(ino);
            }
            taken
        };
        match node {
            Node::Fixed(fixed) => self.list_fixed(fixed, cookie, &mut looked_up),
            Node::Snap { mounted } => self.list_snap(&mounted, cookie, &mut looked_up),
            Node::Agent(agent) => {
                let images = self.catalog.agent(&agent).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
                list_changing(
                    images.keys().map(|name| (name.as_str(), Kind::Symlink)),
                    cookie,
                    self.is_narrow(),
                    &mut looked_up,
                );
                Ok(())
            }
            Node::ImageDir { image, dir, .. } => {
                self.list_image(image, dir, cookie, &mut looked_up)?;
                // A folder of layers whose manifest cannot be read must not look empty.
                failed.map_or(Ok(()), Err)
            }
            _ => Ok(()),
        }
    }

    /// Returns the number of a folder's parent. The root is its own parent.
    fn parent(&self, ino: Ino, node: &Node) -> Attempt<Ino> {
        let parent = match node {
            Node::Fixed(_) => Node::Fixed(Fixed::Root),
            Node::Agent(_) => Node::Fixed(Fixed::Agents),
            Node::ImageDir { dir: ImageDir::Top, .. } => Node::Fixed(Fixed::Images),
            Node::ImageDir { image, dir } => {
                let dir = if *dir == ImageDir::Pages { ImageDir::Cache } else { ImageDir::Top };
                Node::ImageDir { image: *image, dir }
            }
            Node::Dir { image, node: NodeId::ROOT } => Node::ImageDir { image: *image, dir: ImageDir::World },
            Node::Dir { image, node } => Node::Dir { image: *image, node: self.tree(*image)?.parent(*node) },
            Node::Snap { mounted } => Node::Forked { mounted: mounted.clone(), ino: fork::Ino::TOP },
            Node::Forked { ino: fork::Ino::TOP, .. } => Node::Fixed(Fixed::Forks),
            Node::Forked { mounted, ino } => {
                return Ok(self.inodes.number(&self.keyed_in_fork(mounted, mounted.fork.parent(*ino)))?);
            }
            _ => return Ok(ino),
        };
        Ok(self.inodes.number(&self.keyed(parent))?)
    }

    fn list_tree(
        &self,
        tree: &Tree,
        image: u32,
        dir: NodeId,
        cookie: u64,
        plus: bool,
        emit: Emit<'_>,
    ) -> Attempt<()> {
        let children = tree.children(dir);
        let skip = u32::try_from(cookie.saturating_sub(FIRST_COOKIE - 1)).unwrap_or(u32::MAX);
        for child in children.start.saturating_add(skip)..children.end {
            let id = NodeId(child);
            let node = self.tree_node(tree, image, id)?;
            let cookie = u64::from(child - children.start) + FIRST_COOKIE;
            let (ino, entry) = if plus {
                let entry = self.entry_of(node, FOREVER)?;
                (entry.attr.ino, Some(entry))
            } else {
                (self.inodes.number(&node)?, None)
            };
            if !emit(DirEntry { ino, cookie, kind: tree.kind(id), name: tree.name(id), entry }) {
                if entry.is_some() {
                    self.take_back(ino);
                }
                break;
            }
        }
        Ok(())
    }

    /// Whether cookies must be short: a program without support for long inode numbers has none for long cookies either.
    pub(super) fn is_narrow(&self) -> bool {
        self.config.inodes == Numbering::Counted
    }

    fn list_fixed(&self, dir: Fixed, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let narrow = self.is_narrow();
        match dir {
            Fixed::Root => {
                let names = [
                    ("agents", Kind::Dir),
                    ("forks", Kind::Dir),
                    ("images", Kind::Dir),
                    ("latest", Kind::Symlink),
                    ("tags", Kind::Dir),
                    ("work", Kind::Dir),
                ];
                // If the store is missing, the rest of the mount can still be listed.
                let empty =
                    self.catalog.ids().map_or_else(|error| Err(logged(error)), |ids| Ok(ids.is_empty()));
                let empty =
                    empty.or_else(|stop| self.catalog.home.check().map_or(Ok(true), |()| Err(stop)))?;
                list_changing(
                    names.into_iter().filter(|(name, _)| !(empty && *name == "latest")),
                    cookie,
                    narrow,
                    emit,
                );
            }
            Fixed::Images => {
                let ids = self.catalog.ids().map_err(logged)?;
                // Images are sorted by id, and the cookie is the first bits of the id, so it says where to continue. Short
                // cookies of two images may be equal, so all images are gone through.
                let start = if narrow { 0 } else { ids.partition_point(|id| id_cookie(id) <= cookie) };
                let hashes = ids[start..].iter().map(id_cookie);
                for (id, at) in
                    ids[start..].iter().zip(cookies(hashes, narrow)).filter(|(_, at)| *at > cookie)
                {
                    let (hex, kind) = (id.hex(), Kind::Dir);
                    if !emit(DirEntry { ino: at, cookie: at, kind, name: hex.as_bytes(), entry: None }) {
                        break;
                    }
                }
            }
            Fixed::Tags => {
                let names = self.store.at(may_wait()?).tags().names().map_err(logged)?;
                list_changing(names.iter().map(|name| (name.as_str(), Kind::Symlink)), cookie, narrow, emit);
            }
            Fixed::Agents => {
                let names = self.catalog.agents().map_err(logged)?;
                list_changing(names.iter().map(|name| (&**name, Kind::Dir)), cookie, narrow, emit);
            }
            Fixed::Forks | Fixed::Work => {
                let kind = if dir == Fixed::Forks { Kind::Dir } else { Kind::Symlink };
                let names = self.fork_names().map_err(logged)?;
                list_changing(names.iter().map(|name| (name.as_str(), kind)), cookie, narrow, emit);
            }
            Fixed::Control => {
                list_changing(control::DOCS.into_iter().map(|name| (name, Kind::File)), cookie, narrow, emit);
            }
        }
        Ok(())
    }

    fn list_image(&self, image: u32, dir: ImageDir, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let fixed: &[(&str, Kind)] = match dir {
            ImageDir::Top => &[
                ("cache", Kind::Dir),
                ("effects", Kind::Dir),
                ("manifest.json", Kind::File),
                ("model", Kind::Dir),
                ("parents", Kind::Dir),
                ("trace", Kind::Dir),
                ("world", Kind::Dir),
            ],
            ImageDir::Model => &[("base", Kind::File), ("diff.json", Kind::File)],
            ImageDir::Cache => &[("manifest.json", Kind::File), ("pages", Kind::Dir)],
            ImageDir::World => &[("env.json", Kind::File), ("fs", Kind::Dir), ("procs.json", Kind::File)],
            ImageDir::Effects => &[("ledger.jsonl", Kind::File)],
            ImageDir::Trace => &[("messages.jsonl", Kind::File)],
            ImageDir::Pages => {
                let pages = self.pages(image)?;
                let names = pages.names();
                list_fixed_order(names.iter().map(|name| (name.as_str(), Kind::File)), cookie, emit);
                return Ok(());
            }
            ImageDir::Parents => {
                let names: Vec<_> = self.image(image)?.manifest.parents.iter().map(Digest::hex).collect();
                list_fixed_order(names.iter().map(|name| (name.as_str(), Kind::Symlink)), cookie, emit);
                return Ok(());
            }
        };
        list_fixed_order(fixed.iter().copied(), cookie, emit);
        Ok(())
    }
}

/// Lists what never changes: the cookie is the position.
fn list_fixed_order<'a>(names: impl Iterator<Item = (&'a str, Kind)>, cookie: u64, emit: Emit<'_>) {
    let skip = usize::try_from(cookie.saturating_sub(FIRST_COOKIE - 1)).unwrap_or(usize::MAX);
    for (at, (name, kind)) in names.enumerate().skip(skip) {
        let ino = name_cookie(name);
        if !emit(DirEntry { ino, cookie: at as u64 + FIRST_COOKIE, kind, name: name.as_bytes(), entry: None })
        {
            break;
        }
    }
}

/// Lists names that can change between two calls. The cookie is a hash of the name, and the names are in its order.
fn list_changing<'a>(
    names: impl Iterator<Item = (&'a str, Kind)>,
    cookie: u64,
    narrow: bool,
    emit: Emit<'_>,
) {
    let mut ordered: Vec<_> = names.map(|(name, kind)| (name_cookie(name), name, kind)).collect();
    ordered.sort_unstable_by_key(|(cookie, name, _)| (*cookie, *name));
    let cookies = cookies(ordered.iter().map(|(hash, ..)| *hash), narrow);
    for (at, (_, name, kind)) in cookies.zip(&ordered).filter(|(at, _)| *at > cookie) {
        let kind = *kind;
        if !emit(DirEntry { ino: at, cookie: at, kind, name: name.as_bytes(), entry: None }) {
            break;
        }
    }
}

/// Makes unequal cookies in the order of hashes of 62 bits. Narrow ones have 31 bits.
fn cookies(hashes: impl Iterator<Item = u64>, narrow: bool) -> impl Iterator<Item = u64> {
    hashes.scan(FIRST_COOKIE - 1, move |last, hash| {
        *last = (if narrow { hash >> 31 } else { hash }).max(*last + 1);
        Some(*last)
    })
}

fn name_cookie(name: &str) -> u64 {
    (hash_bytes(name.as_bytes()) >> 2).max(FIRST_COOKIE)
}

/// Returns the first 62 bits of an id. They have the same order as the ids.
fn id_cookie(id: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.as_bytes()[..8]);
    (u64::from_be_bytes(first) >> 2).max(FIRST_COOKIE)
}
