//! A fork's tree at one moment: persistent maps over the tree of its base. A clone takes pointers.

mod base;

use std::sync::{Arc, OnceLock};

use imbl::{HashMap as PMap, OrdMap};

use base::folder;
pub(super) use base::{Base, FOLDERS, fixed_ino};

use super::ino::{Ino, Intern};
use super::node::{Attr, Body, Content, Dir, Guard, Inode, LazyBlob, Name, Slot};
use super::owners::Given;
use super::records::{RECORDS, is_record};
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::tree::NodeId;

/// A file of the base that is not in its world's tree, by its path in the fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBase {
    /// For instance `model/diff.json`; must be a layer's name.
    pub path: String,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes, if known without reading the blob.
    pub size: Option<u64>,
    /// Its time in nanoseconds since 1970; without one it is the image's.
    pub mtime_ns: Option<i64>,
}

/// A fork's tree. Unlinked files are not in it.
#[derive(Clone)]
pub(super) struct State {
    pub(super) base: Arc<Base>,
    pub(super) intern: Arc<Intern>,
    pub(super) nodes: PMap<Ino, Arc<Inode>>,
    /// Base entries that were ever changed, moved or unlinked, and their numbers.
    pub(super) by_base: PMap<NodeId, Ino>,
    /// Files and folders changed since the last seal, with the epoch of the change.
    pub(super) dirty_nodes: OrdMap<Ino, u64>,
    /// Names that were added, removed or moved to another file since the last seal.
    pub(super) dirty_names: OrdMap<(Ino, Name), u64>,
    /// Grows with every freeze.
    pub(super) epoch: u64,
    /// Grows with every new file.
    pub(super) births: u64,
}

/// The target of a number.
pub(super) enum At<'a> {
    Own(&'a Arc<Inode>),
    Base(NodeId),
}

impl State {
    /// Makes a state of the unchanged base.
    pub(super) fn over(base: Arc<Base>) -> Self {
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
    pub(super) fn branch(&self) -> Self {
        Self { intern: Arc::default(), ..self.clone() }
    }

    /// A clone that does not change when this state forgets numbers.
    pub(super) fn detached(&self) -> Self {
        Self { intern: Arc::new(Intern::detached(&self.intern)), ..self.clone() }
    }

    pub(super) fn at(&self, ino: Ino) -> Option<At<'_>> {
        if let Some(inode) = self.nodes.get(&ino) {
            return Some(At::Own(inode));
        }
        let node = self.intern.node(ino)?;
        (!self.by_base.contains_key(&node)).then_some(At::Base(node))
    }

    /// The entry of the base that a file was, or still is.
    pub(super) fn base_node(&self, ino: Ino) -> Option<NodeId> {
        match self.at(ino)? {
            At::Own(inode) => inode.base,
            At::Base(node) => Some(node),
        }
    }

    /// A file by number.
    pub(super) fn inode(&self, ino: Ino) -> Option<Arc<Inode>> {
        Some(match self.at(ino)? {
            At::Own(inode) => inode.clone(),
            At::Base(node) => Arc::new(self.inode_of(node, ino)),
        })
    }

    /// Whether a number is in use.
    pub(super) fn taken(&self, ino: Ino) -> bool {
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
    pub(super) fn ino_in(&self, parent: Ino, node: NodeId) -> Ino {
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
    fn inode_of(&self, node: NodeId, ino: Ino) -> Inode {
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
            guard: Guard::None,
            birth: 0,
            body,
        }
    }

    /// The attributes that `stat` shows of a file.
    pub(super) fn attr(&self, ino: Ino, inode: &Inode) -> Attr {
        let (uid, gid) = self.base.owners.shown(inode.uid, inode.gid, inode.given);
        Attr { uid, gid, ..self.recorded(ino, inode) }
    }

    /// The same with the recorded owner instead of the shown one.
    pub(super) fn recorded(&self, ino: Ino, inode: &Inode) -> Attr {
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
    pub(super) fn child(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
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
    pub(super) fn is_in_place(&self, folder: Ino, name: &[u8]) -> bool {
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
    pub(super) fn resolve(&self, path: &[u8]) -> Option<Ino> {
        path.split(|b| *b == b'/')
            .filter(|c| !c.is_empty())
            .try_fold(Ino::TOP, |dir, name| self.child(dir, name))
    }

    /// A path of a file; one of them if there are several.
    pub(super) fn path(&self, mut ino: Ino) -> Option<Vec<u8>> {
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
    pub(super) fn place(&self, ino: Ino) -> Option<(Ino, Name)> {
        Some(match self.at(ino)? {
            At::Own(inode) => inode.links.first()?.clone(),
            At::Base(node) => {
                let tree = &self.base.tree;
                (self.ino_of(tree.parent(node)), tree.name(node).into())
            }
        })
    }

    /// Whether `ino` is `folder` or lies anywhere below it.
    pub(super) fn is_below(&self, mut ino: Ino, folder: Ino) -> bool {
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
    pub(super) fn parent(&self, ino: Ino) -> Ino {
        match self.at(ino) {
            Some(At::Own(inode)) => inode.links.first().map_or(Ino::TOP, |(parent, _)| *parent),
            Some(At::Base(node)) => self.ino_of(self.base.tree.parent(node)),
            None => Ino::TOP,
        }
    }

    /// The kind of a file.
    pub(super) fn kind(&self, ino: Ino) -> Option<Kind> {
        Some(match self.at(ino)? {
            At::Own(inode) => inode.kind(),
            At::Base(node) => self.base.tree.kind(node),
        })
    }

    /// Epochs of the changes since the last seal that an image would show. Of the folders around `world/fs`
    /// an image shows only their content.
    pub(super) fn dirt(&self) -> impl Iterator<Item = u64> {
        let nodes = self.dirty_nodes.iter().filter(|(ino, _)| !ino.is_frame()).map(|(_, epoch)| *epoch);
        self.dirty_names.values().copied().chain(nodes)
    }

    /// Returns a file for a change. From now on the fork's maps hold it, and it counts as changed.
    pub(super) fn edit(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.own(ino)?;
        self.dirty_nodes.insert(ino, self.epoch);
        self.nodes.get_mut(&ino).map(Arc::make_mut)
    }

    /// Copies a file into the fork's maps, after the folders above it: a lookup there needs no base.
    pub(super) fn own(&mut self, ino: Ino) -> Option<()> {
        let mut wanted = vec![ino];
        while let Some(ino) = wanted.last().copied() {
            let At::Base(node) = self.at(ino)? else {
                wanted.pop();
                continue;
            };
            let inode = self.inode_of(node, ino);
            let above = inode.links.iter().map(|(parent, _)| *parent);
            let missing: Vec<Ino> = above.filter(|parent| !self.nodes.contains_key(parent)).collect();
            if missing.is_empty() {
                self.nodes.insert(ino, Arc::new(inode));
                self.by_base.insert(node, ino);
                wanted.pop();
            } else {
                wanted.extend(missing);
            }
        }
        Some(())
    }

    /// Puts a file into a folder under a name, at the name's place in the listing if it had one. A file that
    /// had the name must lose its link afterwards.
    pub(super) fn set_entry(&mut self, parent: Ino, name: &Name, ino: Ino, is_dir: bool) {
        let had = self.child(parent, name);
        let had_dir = had.and_then(|ino| self.kind(ino)) == Some(Kind::Dir);
        self.dirty_names.insert((parent, name.clone()), self.epoch);
        let Some(inode) = self.edit(parent) else { return };
        let Body::Dir(dir) = &mut inode.body else { return };
        let seq = match dir.names.get(name) {
            Some(Slot::Here { seq, .. }) => *seq,
            // The base's entry is replaced in its place.
            None if had.is_some() => 0,
            _ => {
                dir.next += 1;
                dir.order.insert(dir.next, name.clone());
                dir.next
            }
        };
        dir.names.insert(name.clone(), Slot::Here { ino, seq });
        dir.len += u64::from(had.is_none());
        dir.subdirs = dir.subdirs.saturating_sub(u32::from(had_dir)) + u32::from(is_dir);
    }

    /// Gives a file a new, free name in its folder. A place in the listing that the folder's maps hold stays,
    /// so that a program that renames the entries it lists comes to an end.
    pub(super) fn rename_entry(&mut self, parent: Ino, name: &Name, new_name: &Name, ino: Ino) {
        let is_dir = self.kind(ino) == Some(Kind::Dir);
        let dir = self.nodes.get(&parent).and_then(|inode| inode.dir());
        let place = match dir.and_then(|dir| dir.names.get(name)) {
            Some(Slot::Here { seq, .. }) if *seq > 0 => *seq,
            _ => {
                self.set_entry(parent, new_name, ino, is_dir);
                return self.clear_entry(parent, name, is_dir);
            }
        };
        self.clear_entry(parent, name, is_dir);
        self.dirty_names.insert((parent, new_name.clone()), self.epoch);
        let Some(inode) = self.edit(parent) else { return };
        let Body::Dir(dir) = &mut inode.body else { return };
        dir.order.insert(place, new_name.clone());
        dir.names.insert(new_name.clone(), Slot::Here { ino, seq: place });
        dir.len += 1;
        dir.subdirs += u32::from(is_dir);
    }

    /// Removes a name from a folder.
    pub(super) fn clear_entry(&mut self, parent: Ino, name: &Name, is_dir: bool) {
        self.dirty_names.insert((parent, name.clone()), self.epoch);
        let tree = self.base.tree.clone();
        let Some(inode) = self.edit(parent) else { return };
        let Body::Dir(dir) = &mut inode.body else { return };
        if let Some(Slot::Here { seq, .. }) = dir.names.remove(name) {
            dir.order.remove(&seq);
        }
        if dir.base.is_some_and(|base| tree.lookup(base, name).is_some()) {
            dir.names.insert(name.clone(), Slot::Gone);
        }
        dir.len = dir.len.saturating_sub(1);
        dir.subdirs = dir.subdirs.saturating_sub(u32::from(is_dir));
    }

    /// Removes one link from a file; returns the file if that was the last link and the state dropped it.
    pub(super) fn drop_link(&mut self, ino: Ino, parent: Ino, name: &Name, time: i64) -> Option<Arc<Inode>> {
        let inode = self.edit(ino)?;
        inode.ctime = Some(time);
        let links = Arc::make_mut(&mut inode.links);
        if let Some(at) = links.iter().position(|(p, n)| *p == parent && n == name) {
            links.swap_remove(at);
        }
        if !links.is_empty() {
            return None;
        }
        self.dirty_nodes.remove(&ino);
        let inode = self.nodes.remove(&ino);
        self.intern.forget(ino);
        inode
    }

    /// Adds a file of the base that is not in its tree. It gets an unused number, neither in use here nor
    /// among those that are `taken` elsewhere.
    fn add_layer(&mut self, layer: &LayerBase, taken: impl Fn(Ino) -> bool) {
        let (folder, name) = layer.path.rsplit_once('/').unwrap_or(("", &layer.path));
        let Some(parent) = self.resolve(folder.as_bytes()) else { return };
        let name: Name = name.as_bytes().into();
        let guard = match layer.path.as_str() {
            "manifest.json" => Guard::Fixed,
            _ if is_record(parent, &name) => Guard::Append(None),
            _ => Guard::None,
        };
        let content = match layer.size {
            Some(size) => Content::blob(layer.digest, size),
            None => Content {
                lazy: Some(Arc::new(LazyBlob { digest: layer.digest, size: OnceLock::new() })),
                ..Content::default()
            },
        };
        let mut ino = Ino::derive(parent, &name, 0);
        for probe in 1.. {
            if !self.taken(ino) && !taken(ino) {
                break;
            }
            ino = Ino::derive(parent, &name, probe);
        }
        let mut inode = folder_file(parent, &name, content);
        // No change time: otherwise the next change would count as one of the same moment.
        (inode.mtime, inode.atime) = (layer.mtime_ns, layer.mtime_ns);
        inode.guard = guard;
        if guard == Guard::Fixed {
            inode.mode = 0o444;
        }
        self.nodes.insert(ino, Arc::new(inode));
        self.set_entry(parent, &name, ino, false);
    }

    /// Protects the present content of append-only files from now on.
    pub(super) fn raise_floors(&mut self) {
        for (folder, name) in RECORDS {
            let Some(ino) = self.child(folder, name) else { continue };
            let Some(inode) = self.nodes.get_mut(&ino) else { continue };
            // Untouched content of unknown length is already protected as a whole.
            if inode.content().is_some_and(|content| content.lazy.is_none()) {
                let inode = Arc::make_mut(inode);
                inode.guard = Guard::Append(inode.content().map(Content::known_size));
            }
        }
    }

    /// Forgets a number that no caller knows. Changed files keep theirs.
    pub(super) fn forget(&self, ino: Ino) {
        if !self.nodes.contains_key(&ino) {
            self.intern.forget(ino);
        }
    }

    /// The number of a base entry that is still in its place.
    pub(super) fn number_of(&self, node: NodeId) -> Option<Ino> {
        (!self.by_base.contains_key(&node)).then(|| self.ino_of(node))
    }

    /// Forgets what was changed up to an epoch.
    pub(super) fn settle_dirt(&mut self, epoch: u64) {
        self.dirty_nodes =
            self.dirty_nodes.iter().filter(|(_, e)| **e > epoch).map(|(k, e)| (*k, *e)).collect();
        self.dirty_names =
            self.dirty_names.iter().filter(|(_, e)| **e > epoch).map(|(k, e)| (k.clone(), *e)).collect();
    }

    /// Replaces a file's content by a blob.
    pub(super) fn forget_content(&mut self, ino: Ino, blob: super::pieces::BlobRef) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            let inode = Arc::make_mut(inode);
            if let Body::File(content) = &mut inode.body {
                *content = Content::blob(blob.digest, blob.size);
            }
        }
    }

    /// Shows a layer's file of another base, with a new number that is not `taken`. Returns the old file,
    /// which has no name now. A file that was changed since the seal stays, and so does an equal one.
    pub(super) fn replace_layer(
        &mut self,
        layers: &[LayerBase],
        path: &str,
        taken: impl Fn(Ino) -> bool,
    ) -> Option<(Ino, Arc<Inode>)> {
        let layer = layers.iter().find(|layer| layer.path == path)?;
        let old = self.resolve(path.as_bytes());
        let changed = |ino: &Ino| self.dirty_nodes.contains_key(ino);
        let same = |ino: &Ino| {
            let content = self.nodes.get(ino).and_then(|inode| inode.content());
            content.is_some_and(|content| content.holds(&layer.digest))
        };
        if old.as_ref().is_some_and(|ino| changed(ino) || same(ino)) {
            return None;
        }
        let (dirty_nodes, dirty_names) = (self.dirty_nodes.clone(), self.dirty_names.clone());
        self.add_layer(layer, taken);
        let replaced = old.and_then(|old| Some((old, self.nodes.remove(&old)?)));
        (self.dirty_nodes, self.dirty_names) = (dirty_nodes, dirty_names);
        replaced.map(|(old, mut inode)| {
            Arc::make_mut(&mut inode).links = Arc::default();
            (old, inode)
        })
    }

    /// Adds files around `world/fs` that the base has and this state lacks, except files that were removed: a
    /// seal gives an image every layer. Returns the folders whose listing changed.
    pub(super) fn complete(&mut self, layers: &[LayerBase], taken: impl Fn(Ino) -> bool) -> Vec<Ino> {
        let (dirty_nodes, dirty_names) = (self.dirty_nodes.clone(), self.dirty_names.clone());
        let mut changed = Vec::new();
        for (ino, parent, name) in base::FOLDERS {
            if !self.nodes.contains_key(&ino) && self.child(parent, name).is_none() {
                self.nodes.insert(ino, Arc::new(folder(vec![(parent, name.into())], None)));
                self.set_entry(parent, &name.into(), ino, true);
                changed.push(parent);
            }
        }
        for layer in layers {
            let (folder, name) = layer.path.rsplit_once('/').unwrap_or(("", &layer.path));
            let Some(parent) = self.resolve(folder.as_bytes()) else { continue };
            let taken_away = dirty_names.contains_key(&(parent, name.as_bytes().into()));
            if !taken_away && self.child(parent, name.as_bytes()).is_none() {
                self.add_layer(layer, &taken);
                changed.push(parent);
            }
        }
        (self.dirty_nodes, self.dirty_names) = (dirty_nodes, dirty_names);
        changed.dedup();
        changed
    }

    /// Makes room for a file that a record makes outside of `world/fs`, since the image of a later seal may
    /// show another file there. Returns false if a record made the present file as well.
    pub(super) fn give_way(&mut self, parent: Ino, name: &[u8], time: i64) -> bool {
        let Some(ino) = self.child(parent, name) else { return true };
        if !parent.is_frame() || self.nodes.get(&ino).is_none_or(|inode| inode.birth > 0 || inode.is_dir()) {
            return false;
        }
        let name: Name = name.into();
        self.clear_entry(parent, &name, false);
        self.drop_link(ino, parent, &name, time);
        true
    }

    /// Calls `each` with every piece of every changed file.
    pub(super) fn each_content(&self, each: &mut dyn FnMut(Ino, &Content)) {
        for (ino, inode) in &self.nodes {
            if let Some(content) = inode.content() {
                each(*ino, content);
            }
        }
    }
}

fn folder_file(parent: Ino, name: &Name, content: Content) -> Inode {
    Inode { mode: 0o644, body: Body::File(content), ..folder(vec![(parent, name.clone())], None) }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("base", &self.base)
            .field("own", &self.nodes.len())
            .finish_non_exhaustive()
    }
}
