//! Changes of the tree.

use std::sync::{Arc, OnceLock};

use super::base::folder;
use super::tree::{At, State};
use crate::fork::extents::BlobRef;
use crate::fork::frame::{FOLDERS, Frame, RECORDS, is_record};
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Content, Inode, LazyBlob, Name, Protection, Slot};
use crate::fork::reader::LayerBase;
use crate::layers::world::Kind;

impl State {
    /// Returns a file for a change. From now on the fork's maps hold it, and it counts as changed.
    pub(in crate::fork) fn edit(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.own(ino)?;
        self.dirty_nodes.insert(ino, self.epoch);
        self.nodes.get_mut(&ino).map(Arc::make_mut)
    }

    /// Copies a file into the fork's maps, after the folders above it: a lookup there needs no base.
    pub(in crate::fork) fn own(&mut self, ino: Ino) -> Option<()> {
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
    pub(in crate::fork) fn clear_entry(&mut self, parent: Ino, name: &Name, is_dir: bool) {
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
    pub(super) fn add_layer(&mut self, layer: &LayerBase, taken: impl Fn(Ino) -> bool) {
        let (folder, name) = layer.path.rsplit_once('/').unwrap_or(("", &layer.path));
        let Some(parent) = self.resolve(folder.as_bytes()) else { return };
        let name: Name = name.as_bytes().into();
        let guard = match layer.path.as_str() {
            "manifest.json" => Protection::Fixed,
            _ if is_record(parent, &name) => Protection::Append(None),
            _ => Protection::None,
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
        if guard == Protection::Fixed {
            inode.mode = 0o444;
        }
        self.nodes.insert(ino, Arc::new(inode));
        self.set_entry(parent, &name, ino, false);
    }

    /// Protects the present content of append-only files from now on.
    pub(in crate::fork) fn raise_floors(&mut self) {
        for (folder, name) in RECORDS {
            let Some(ino) = self.child(folder, name) else { continue };
            let Some(inode) = self.nodes.get_mut(&ino) else { continue };
            // Untouched content of unknown length is already protected as a whole.
            if inode.content().is_some_and(|content| content.lazy.is_none()) {
                let inode = Arc::make_mut(inode);
                inode.guard = Protection::Append(inode.content().map(Content::known_size));
            }
        }
    }

    /// Forgets what was changed up to an epoch.
    pub(in crate::fork) fn settle_dirt(&mut self, epoch: u64) {
        self.dirty_nodes =
            self.dirty_nodes.iter().filter(|(_, e)| **e > epoch).map(|(k, e)| (*k, *e)).collect();
        self.dirty_names =
            self.dirty_names.iter().filter(|(_, e)| **e > epoch).map(|(k, e)| (k.clone(), *e)).collect();
    }

    /// Replaces a file's content by a blob.
    pub(in crate::fork) fn forget_content(&mut self, ino: Ino, blob: BlobRef) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            let inode = Arc::make_mut(inode);
            if let Body::File(content) = &mut inode.body {
                *content = Content::blob(blob.digest, blob.size);
            }
        }
    }

    /// Shows a layer's file of another base, with a new number that is not `taken`. Returns the old file,
    /// which has no name now. A file that was changed since the seal stays, and so does an equal one.
    pub(in crate::fork) fn replace_layer(
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
    pub(in crate::fork) fn complete(
        &mut self,
        layers: &[LayerBase],
        taken: impl Fn(Ino) -> bool,
    ) -> Vec<Ino> {
        let (dirty_nodes, dirty_names) = (self.dirty_nodes.clone(), self.dirty_names.clone());
        let mut changed = Vec::new();
        for (ino, parent, name) in FOLDERS {
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
    pub(in crate::fork) fn give_way(&mut self, parent: Ino, name: &[u8], time: i64) -> bool {
        let Some(ino) = self.child(parent, name) else { return true };
        if !parent.is_frame() || self.nodes.get(&ino).is_none_or(|inode| inode.birth > 0 || inode.is_dir()) {
            return false;
        }
        let name: Name = name.into();
        self.clear_entry(parent, &name, false);
        self.drop_link(ino, parent, &name, time);
        true
    }

    /// Sets mode and owner of those folders around its files that it has.
    pub(in crate::fork) fn set_folders(&mut self, folders: &Frame) {
        folders.each(|ino, folder| {
            if let Some(inode) = self.nodes.get_mut(&ino) {
                let inode = Arc::make_mut(inode);
                (inode.mode, inode.uid, inode.gid) = (folder.mode, folder.uid, folder.gid);
            }
        });
    }
}

fn folder_file(parent: Ino, name: &Name, content: Content) -> Inode {
    Inode { mode: 0o644, body: Body::File(content), ..folder(vec![(parent, name.clone())], None) }
}
