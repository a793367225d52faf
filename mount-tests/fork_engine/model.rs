//! A filesystem as plain as can be.

use std::collections::BTreeMap;

use pfimg::fork::RenameMode;
use pfimg::layers::world::Kind;

pub type Id = usize;
pub type Outcome<T = ()> = Result<T, i32>;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub kind: Kind,
    pub mode: u16,
    pub content: Vec<u8>,
    pub children: BTreeMap<Vec<u8>, Id>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub parent: Id,
}

/// A tree whose root is node 0. Node numbers are never used again.
#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: BTreeMap<Id, Node>,
    next: Id,
}

pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Model {
    pub fn new() -> Self {
        let mut this = Self { nodes: BTreeMap::new(), next: 0 };
        this.add(Kind::Dir, 0o755, 0);
        this
    }

    fn add(&mut self, kind: Kind, mode: u16, parent: Id) -> Id {
        let node = Node {
            kind,
            mode,
            content: Vec::new(),
            children: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            parent,
        };
        self.nodes.insert(self.next, node);
        self.next += 1;
        self.next - 1
    }

    pub fn resolve(&self, path: &[u8]) -> Option<Id> {
        path.split(|b| *b == b'/')
            .filter(|c| !c.is_empty())
            .try_fold(0, |id, name| self.nodes[&id].children.get(name).copied())
    }

    /// All paths and their nodes, the root (empty path) included.
    pub fn paths(&self) -> Vec<(Vec<u8>, Id)> {
        let mut all = vec![(Vec::new(), 0)];
        let mut at = 0;
        while at < all.len() {
            let (path, id) = all[at].clone();
            for (name, child) in &self.nodes[&id].children {
                let path = if path.is_empty() { name.clone() } else { [&path[..], name].join(&b'/') };
                all.push((path, *child));
            }
            at += 1;
        }
        all
    }

    pub fn nlink(&self, id: Id) -> u32 {
        let node = &self.nodes[&id];
        if node.kind == Kind::Dir {
            return 2 + node.children.values().filter(|c| self.nodes[c].kind == Kind::Dir).count() as u32;
        }
        self.nodes.values().flat_map(|n| n.children.values()).filter(|c| **c == id).count() as u32
    }

    fn dir(&self, path: &[u8]) -> Outcome<Id> {
        let id = self.resolve(path).ok_or(libc::ENOENT)?;
        if self.nodes[&id].kind == Kind::Dir { Ok(id) } else { Err(libc::ENOTDIR) }
    }

    pub fn create(&mut self, path: &[u8], kind: Kind, mode: u16, target: &[u8]) -> Outcome<Id> {
        let (parent, name) = split(path);
        let parent = self.dir(parent)?;
        if self.nodes[&parent].children.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let mut mode = if kind == Kind::Symlink { 0o777 } else { mode };
        if kind == Kind::Dir && self.nodes[&parent].mode & 0o2000 != 0 {
            mode |= 0o2000;
        }
        let id = self.add(kind, mode, parent);
        self.node(id).content = target.to_vec();
        self.node(parent).children.insert(name.to_vec(), id);
        Ok(id)
    }

    pub fn node(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    fn drop_unlinked(&mut self, id: Id) {
        if self.nlink(id) == 0 || self.nodes[&id].kind == Kind::Dir {
            self.nodes.remove(&id);
        }
    }

    pub fn link(&mut self, path: &[u8], new: &[u8]) -> Outcome {
        let id = self.resolve(path).ok_or(libc::ENOENT)?;
        let (parent, name) = split(new);
        let parent = self.dir(parent)?;
        if self.nodes[&parent].children.contains_key(name) {
            return Err(libc::EEXIST);
        }
        if self.nodes[&id].kind == Kind::Dir {
            return Err(libc::EPERM);
        }
        self.node(parent).children.insert(name.to_vec(), id);
        Ok(())
    }

    pub fn remove(&mut self, path: &[u8], dir: bool) -> Outcome {
        let (parent, name) = split(path);
        let parent = self.dir(parent)?;
        let id = *self.nodes[&parent].children.get(name).ok_or(libc::ENOENT)?;
        match (self.nodes[&id].kind == Kind::Dir, dir) {
            (true, false) => return Err(libc::EISDIR),
            (false, true) => return Err(libc::ENOTDIR),
            _ => {}
        }
        if !self.nodes[&id].children.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.node(parent).children.remove(name);
        self.drop_unlinked(id);
        Ok(())
    }

    fn is_below(&self, mut id: Id, folder: Id) -> bool {
        loop {
            if id == folder {
                return true;
            }
            if id == 0 {
                return false;
            }
            id = self.nodes[&id].parent;
        }
    }

    pub fn rename(&mut self, old: &[u8], new: &[u8], mode: RenameMode) -> Outcome {
        let ((from, name), (to, new_name)) = (split(old), split(new));
        let from = self.dir(from)?;
        let id = *self.nodes[&from].children.get(name).ok_or(libc::ENOENT)?;
        let to = self.dir(to)?;
        let target = self.nodes[&to].children.get(new_name).copied();
        match (mode, target) {
            (RenameMode::NoReplace | RenameMode::Whiteout { replace: false, .. }, Some(_)) => {
                return Err(libc::EEXIST);
            }
            (RenameMode::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if target == Some(id) {
            return Ok(());
        }
        let is_dir = |id: Id| self.nodes[&id].kind == Kind::Dir;
        if is_dir(id) && self.is_below(to, id) {
            return Err(libc::EINVAL);
        }
        if let Some(target) = target {
            if mode == RenameMode::Exchange {
                if is_dir(target) && self.is_below(from, target) {
                    return Err(libc::EINVAL);
                }
            } else {
                match (is_dir(id), is_dir(target)) {
                    (true, false) => return Err(libc::ENOTDIR),
                    (false, true) => return Err(libc::EISDIR),
                    (true, true) if !self.nodes[&target].children.is_empty() => return Err(libc::ENOTEMPTY),
                    _ => {}
                }
            }
        }
        self.node(from).children.remove(name);
        self.node(to).children.insert(new_name.to_vec(), id);
        self.node(id).parent = to;
        match target {
            Some(target) if mode == RenameMode::Exchange => {
                self.node(from).children.insert(name.to_vec(), target);
                self.node(target).parent = from;
            }
            Some(target) => self.drop_unlinked(target),
            None => {}
        }
        if matches!(mode, RenameMode::Whiteout { .. }) {
            let device = self.add(Kind::Chardev, 0, from);
            self.node(from).children.insert(name.to_vec(), device);
        }
        Ok(())
    }

    pub fn write(&mut self, id: Id, offset: usize, bytes: &[u8]) {
        let content = &mut self.node(id).content;
        if content.len() < offset + bytes.len() {
            content.resize(offset + bytes.len(), 0);
        }
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}
