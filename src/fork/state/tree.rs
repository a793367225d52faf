//! The tree, and what is read of it.

use std::sync::Arc;

use imbl::OrdMap;

use super::base::{Base, PMap};
use crate::fork::frame::{Folder, Frame};
use crate::fork::ino::{Ino, Intern};
use crate::fork::inode::{Attr, Body, Content, Dir, Inode, Name, Protection, Slot};
use crate::fork::owners::Given;
use crate::layers::world::Kind;
use crate::tree::NodeId;

/// A fork's tree. Unlinked files are not in it.
#[derive(Clone)]
pub(in crate::fork) struct State {
    pub(in crate::fork) base: Arc<Base>,
    pub(in crate::fork) intern: Arc<Intern>,
    pub(in crate::fork) nodes: PMap<Ino, Arc<Inode>>,
    /// Base entries that were ever changed, moved or unlinked, and their numbers.
    pub(in crate::fork) by_base: PMap<NodeId, Ino>,
    /// Files and folders changed since the last seal, with the epoch of the change.
    pub(in crate::fork) dirty_nodes: OrdMap<Ino, u64>,
    /// Names that were added, removed or moved to another file since the last seal.
    pub(in crate::fork) dirty_names: OrdMap<(Ino, Name), u64>,
    /// Grows with every freeze.
    pub(in crate::fork) epoch: u64,
    /// Grows with every new file.
    pub(super) births: u64,
}

/// The target of a number.
pub(in crate::fork) enum At<'a> {
    Own(&'a Arc<Inode>),
    Base(NodeId),
}

impl State {
    /// Makes a state of the unchanged base.
    pub(in crate::fork) fn over(base: Arc<Base>) -> Self {
        Self {
            nodes: base.nodes.clone(),
            by_base: base.by_base.clone(),
            base,
            intern: Arc::default(),
            dirty_nodes: OrdMap::new(),
            dirty_names: OrdMap::new(),
            epoch: 0,
            births: 0,
        }
    }

    /// Clones it for another fork, which numbers base entries separately.
    pub(in crate::fork) fn branch(&self) -> Self {
        Self { intern: Arc::default(), ..self.clone() }
    }

    /// A clone that does not change when this state forgets numbers.
    pub(in crate::fork) fn detached(&self) -> Self {
        Self { intern: Arc::new(Intern::detached(&self.intern)), ..self.clone() }
    }

    pub(in crate::fork) fn at(&self, ino: Ino) -> Option<At<'_>> {
        if let Some(inode) = self.nodes.get(&ino) {
            return Some(At::Own(inode));
        }
        let node = self.intern.node(ino)?;
        (!self.by_base.contains_key(&node)).then_some(At::Base(node))
    }

    /// The entry of the base that a file was, or still is.
    pub(in crate::fork) fn base_node(&self, ino: Ino) -> Option<NodeId> {
        match self.at(ino)? {
            At::Own(inode) => inode.base,
            At::Base(node) => Some(node),
        }
    }

    /// A file by number.
    pub(in crate::fork) fn inode(&self, ino: Ino) -> Option<Arc<Inode>> {
        Some(match self.at(ino)? {
            At::Own(inode) => inode.clone(),
            At::Base(node) => Arc::new(self.inode_of(node, ino)),
        })
    }

    /// Whether a number is in use.
    pub(in crate::fork) fn taken(&self, ino: Ino) -> bool {
        self.at(ino).is_some()
    }

    /// The number of a base entry.
    fn ino_of(&self, node: NodeId) -> Ino {
        let node = self.base.canonical(node);
        if let Some(ino) = self.by_base.get(&node) {
            return *ino;
        }
        let tree = &self.base.tree;
        let parent = self.ino_of(tree.parent(node));
        self.intern.ino(node, parent, tree.name(node), |ino| self.nodes.contains_key(&ino))
    }

    /// The number of a base entry whose folder's number is known.
    pub(in crate::fork) fn ino_in(&self, parent: Ino, node: NodeId) -> Ino {
        let tree = &self.base.tree;
        if tree.hardlink(node).is_some() {
            return self.ino_of(node);
        }
        if let Some(ino) = self.by_base.get(&node) {
            return *ino;
        }
        self.intern.ino(node, parent, tree.name(node), |ino| self.nodes.contains_key(&ino))
    }

    /// A base entry as a file of the fork.
    pub(super) fn inode_of(&self, node: NodeId, ino: Ino) -> Inode {
        let tree = &self.base.tree;
        let body = match tree.kind(node) {
            Kind::File => match tree.blob(node) {
                Some(digest) => Body::File(Content::blob(*digest, tree.size(node))),
                None => Body::File(Content::default()),
            },
            Kind::Dir => {
                let len = tree.children(node).len() as u64;
                Body::Dir(Dir { base: Some(node), subdirs: tree.subdirs(node), len, ..Dir::default() })
            }
            Kind::Symlink => Body::Symlink(tree.target(node).unwrap_or_default().into()),
            special => Body::Special(special),
        };
        let names = match tree.hardlink(node).and_then(|number| self.base.groups.get(&number)) {
            Some(nodes) if nodes.contains(&node) => nodes.clone(),
            _ => vec![node],
        };
        let links = if ino == Ino::FS {
            vec![(Ino::WORLD, Name::from(&b"fs"[..]))]
        } else {
            names.iter().map(|n| (self.ino_of(tree.parent(*n)), tree.name(*n).into())).collect()
        };
        let owner = tree.owner(node);
        let mtime = tree.mtime_ns(node);
        Inode {
            mode: tree.mode(node),
            uid: owner.uid,
            gid: owner.gid,
            given: Given::default(),
            atime: mtime,
            mtime,
            ctime: mtime,
            rdev: tree.rdev(node),
            links: Arc::new(links),
            base: Some(node),
            xattrs: tree.xattrs(node).cloned().unwrap_or_default(),
            guard: Protection::None,
            birth: 0,
            body,
        }
    }

    /// The attributes that `stat` shows of a file.
    pub(in crate::fork) fn attr(&self, ino: Ino, inode: &Inode) -> Attr {
        let (uid, gid) = self.base.owners.shown(inode.uid, inode.gid, inode.given);
        Attr { uid, gid, ..self.recorded(ino, inode) }
    }

    /// The same with the recorded owner instead of the shown one.
    pub(in crate::fork) fn recorded(&self, ino: Ino, inode: &Inode) -> Attr {
        let size = match &inode.body {
            Body::File(content) => content.known_size(),
            Body::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let (uid, gid) = self.base.owners.recorded(inode.uid, inode.gid);
        let mtime = inode.mtime.unwrap_or_else(|| self.base.time(inode.base));
        Attr {
            ino,
            kind: inode.kind(),
            mode: inode.mode,
            nlink: inode.nlink(ino == Ino::TOP),
            uid,
            gid,
            rdev: inode.rdev,
            size,
            // A time that was never set does not follow later changes.
            atime: inode.atime.unwrap_or_else(|| self.base.time(inode.base)),
            mtime,
            ctime: inode.ctime.unwrap_or(mtime),
        }
    }

    /// Finds a name in a folder. [`None`] also if `parent` is not a folder.
    pub(in crate::fork) fn child(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        let below = match self.at(parent)? {
            At::Base(node) => node,
            At::Own(inode) => {
                let Body::Dir(dir) = &inode.body else { return None };
                match dir.names.get(name) {
                    Some(Slot::Gone) => return None,
                    Some(Slot::Here { ino, .. }) => return Some(*ino),
                    None => dir.base?,
                }
            }
        };
        self.base.tree.lookup(below, name).map(|node| self.ino_in(parent, node))
    }

    /// Whether a name is an entry of the base that was never moved, in folders that never were.
    pub(in crate::fork) fn is_in_place(&self, folder: Ino, name: &[u8]) -> bool {
        let (mut folder, mut name): (Ino, Name) = (folder, name.into());
        while folder != Ino::WORLD {
            match self.at(folder) {
                // The file is unmoved; a folder above it may not be.
                Some(At::Base(node)) => {
                    let tree = &self.base.tree;
                    (folder, name) = (self.ino_of(tree.parent(node)), tree.name(node).into());
                }
                Some(At::Own(inode)) => {
                    let Body::Dir(dir) = &inode.body else { return false };
                    if dir.base.is_none() || dir.names.contains_key(&name) {
                        return false;
                    }
                    let Some(link) = inode.links.first() else { return false };
                    (folder, name) = link.clone();
                }
                None => return false,
            }
        }
        true
    }

    /// Finds a path, `/` between its components; the empty path is the fork's top folder.
    pub(in crate::fork) fn resolve(&self, path: &[u8]) -> Option<Ino> {
        path.split(|b| *b == b'/')
            .filter(|c| !c.is_empty())
            .try_fold(Ino::TOP, |dir, name| self.child(dir, name))
    }

    /// A path of a file; one of them if there are several.
    pub(in crate::fork) fn path(&self, mut ino: Ino) -> Option<Vec<u8>> {
        let mut names: Vec<Name> = Vec::new();
        while ino != Ino::TOP {
            let (parent, name) = self.place(ino)?;
            names.push(name);
            // Deeper than any tree can be: a cycle, which no operation makes.
            if names.len() > 1 << 20 {
                return None;
            }
            ino = parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// The folder that holds a file, and its name there; one of them if there are several.
    pub(in crate::fork) fn place(&self, ino: Ino) -> Option<(Ino, Name)> {
        Some(match self.at(ino)? {
            At::Own(inode) => inode.links.first()?.clone(),
            At::Base(node) => {
                let tree = &self.base.tree;
                (self.ino_of(tree.parent(node)), tree.name(node).into())
            }
        })
    }

    /// Whether `ino` is `folder` or lies anywhere below it.
    pub(in crate::fork) fn is_below(&self, mut ino: Ino, folder: Ino) -> bool {
        loop {
            if ino == folder {
                return true;
            }
            let parent = match self.at(ino) {
                Some(At::Own(inode)) => inode.links.first().map(|(parent, _)| *parent),
                Some(At::Base(node)) => Some(self.ino_of(self.base.tree.parent(node))),
                None => None,
            };
            match parent {
                Some(parent) if ino != Ino::TOP => ino = parent,
                _ => return false,
            }
        }
    }

    /// The parent of a folder; the top folder is its own parent.
    pub(in crate::fork) fn parent(&self, ino: Ino) -> Ino {
        match self.at(ino) {
            Some(At::Own(inode)) => inode.links.first().map_or(Ino::TOP, |(parent, _)| *parent),
            Some(At::Base(node)) => self.ino_of(self.base.tree.parent(node)),
            None => Ino::TOP,
        }
    }

    /// The kind of a file.
    pub(in crate::fork) fn kind(&self, ino: Ino) -> Option<Kind> {
        Some(match self.at(ino)? {
            At::Own(inode) => inode.kind(),
            At::Base(node) => self.base.tree.kind(node),
        })
    }

    /// Epochs of the changes since the last seal that an image would show. Of the folders around `world/fs`
    /// an image shows only their content.
    pub(in crate::fork) fn dirt(&self) -> impl Iterator<Item = u64> {
        let nodes = self.dirty_nodes.iter().filter(|(ino, _)| !ino.is_frame()).map(|(_, epoch)| *epoch);
        self.dirty_names.values().copied().chain(nodes)
    }

    /// The number of a base entry that is still in its place.
    pub(in crate::fork) fn number_of(&self, node: NodeId) -> Option<Ino> {
        (!self.by_base.contains_key(&node)).then(|| self.ino_of(node))
    }

    /// Forgets a number that no caller knows. Changed files keep theirs.
    pub(in crate::fork) fn forget(&self, ino: Ino) {
        if !self.nodes.contains_key(&ino) {
            self.intern.forget(ino);
        }
    }

    /// Calls `each` with every piece of every changed file.
    pub(in crate::fork) fn each_content(&self, each: &mut dyn FnMut(Ino, &Content)) {
        for (ino, inode) in &self.nodes {
            if let Some(content) = inode.content() {
                each(*ino, content);
            }
        }
    }

    /// Mode and owner of the folders around its files.
    pub(in crate::fork) fn folders(&self) -> Frame {
        Frame::of(|ino| {
            let inode = self.nodes.get(&ino)?;
            Some(Folder { mode: inode.mode, uid: inode.uid, gid: inode.gid })
        })
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("base", &self.base)
            .field("own", &self.nodes.len())
            .finish_non_exhaustive()
    }
}
