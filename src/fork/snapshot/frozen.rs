//! The state of a fork at one moment, and how it differs from its image.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::disk::{GenId, Generation};
use crate::fork::extents::BlobRef;
use crate::fork::ino::Ino;
use crate::fork::inode::{Attr, Body, Content, Inode, Name};
use crate::fork::journal::gaps_of;
use crate::fork::reader::{BaseReader, read_blob, settle};
use crate::fork::state::State;
use crate::layers::world::Kind;

/// The state of a fork at one moment. Later changes of the fork do not affect it.
#[derive(Clone)]
pub struct Frozen {
    pub(in crate::fork) state: State,
    pub(in crate::fork) baseline: Arc<State>,
    pub(in crate::fork) generations: Vec<Arc<Generation>>,
    pub(in crate::fork) image: Option<Digest>,
    pub(super) uid: String,
    pub(in crate::fork) pending: u32,
    pub(in crate::fork) reader: Arc<dyn BaseReader>,
    /// Its differences from its image, once [`Frozen::changes`] was called.
    pub(super) changes: OnceLock<Arc<Changes>>,
}

/// A file that a frozen fork has and its image lacks, or has in another version.
#[derive(Clone, Debug)]
pub struct Put {
    /// Its number; two paths with one number are one file.
    pub ino: Ino,
    /// The file itself. Times and owners that no program ever set are unset.
    pub inode: Arc<Inode>,
}

/// How a frozen fork differs from its image. Removing, then putting, turns the image into the fork.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Paths that no longer exist or are another file now, sorted. Each stands for everything below it as well.
    pub removed: Vec<Vec<u8>>,
    /// Paths that are new, another file now, or changed, sorted. A new or moved folder is listed with everything in it.
    pub put: BTreeMap<Vec<u8>, Put>,
}

impl Changes {
    /// Whether there are no differences.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.put.is_empty()
    }
}

impl Frozen {
    /// The image it rests on.
    pub fn image(&self) -> Option<Digest> {
        self.image
    }

    /// Whether anything was changed since the last seal. May also be true if the changes cancel each other out.
    pub fn is_changed(&self) -> bool {
        self.state.dirt().next().is_some()
    }

    /// Finds a path from the fork's own folder.
    pub fn resolve(&self, path: &[u8]) -> Option<(Ino, Arc<Inode>)> {
        let ino = self.state.resolve(path)?;
        Some((ino, self.settled(self.state.inode(ino)?).ok()?))
    }

    /// Whether a path exists. Does not look up the length of any file.
    pub fn contains(&self, path: &[u8]) -> bool {
        self.state.resolve(path).is_some()
    }

    /// Returns a file's recorded attributes, with default owners filled in.
    pub fn attr(&self, put: &Put) -> Attr {
        self.state.recorded(put.ino, &put.inode)
    }

    /// Lists a folder.
    pub fn list(&self, ino: Ino) -> Vec<(Name, Ino, Kind)> {
        let mut entries = Vec::new();
        self.state.list(ino, 0, &mut |entry| {
            entries.push((entry.name, entry.ino, entry.kind));
            true
        });
        entries
    }

    /// Reads from a file's content. Returns the number of bytes: fewer than the buffer has only at the end.
    pub fn read(&self, content: &Content, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if let Some(lazy) = content.unsettled() {
            settle(lazy, &*self.reader)?;
        }
        let mut blob =
            |blob: &BlobRef, offset: u64, buf: &mut [u8]| read_blob(&*self.reader, blob, offset, buf);
        content.settled().read(offset, buf, &mut blob)
    }

    fn settled(&self, inode: Arc<Inode>) -> Result<Arc<Inode>> {
        let Some(content) = inode.content() else { return Ok(inode) };
        if content.lazy.is_none() {
            return Ok(inode);
        }
        if let Some(lazy) = content.unsettled() {
            settle(lazy, &*self.reader)?;
        }
        let mut inode = (*inode).clone();
        if let Body::File(content) = &mut inode.body {
            content.settle();
        }
        Ok(Arc::new(inode))
    }

    /// Returns the differences from its image. The cost of the first call grows with the changes.
    pub fn changes(&self) -> Result<Arc<Changes>> {
        if let Some(changes) = self.changes.get() {
            return Ok(Arc::clone(changes));
        }
        let changes = Arc::new(self.find_changes()?);
        Ok(Arc::clone(self.changes.get_or_init(|| changes)))
    }

    fn find_changes(&self) -> Result<Changes> {
        let mut removed = Vec::new();
        let mut put = BTreeMap::new();
        for (dir, name) in self.state.dirty_names.keys() {
            // Files of a removed folder went with it, or are found at their new place.
            let Some(folder) = self.state.nodes.get(dir) else { continue };
            let now = self.state.child(*dir, name).and_then(|ino| Some((ino, self.state.inode(ino)?)));
            let then_dir = before(&self.baseline, *dir, folder);
            let then = then_dir
                .and_then(|then_dir| Some((then_dir, self.baseline.child(then_dir, name)?)))
                .and_then(|(then_dir, ino)| Some((then_dir, ino, self.baseline.inode(ino)?)));
            if let (Some((_, now)), Some((.., then))) = (&now, &then)
                && same_file(now, then)
            {
                continue;
            }
            if let Some((then_dir, ..)) = then {
                let path = self.baseline.path(then_dir).ok_or_else(lost)?;
                removed.push(join(&path, name));
            }
            if let Some((ino, inode)) = now {
                let path = join(&self.state.path(*dir).ok_or_else(lost)?, name);
                self.put_all(path, ino, inode, &mut put)?;
            }
        }
        for ino in self.state.dirty_nodes.keys() {
            let Some(inode) = self.state.nodes.get(ino) else { continue };
            if *ino == Ino::TOP {
                continue;
            }
            for (parent, name) in inode.links.iter() {
                let path = join(&self.state.path(*parent).ok_or_else(lost)?, name);
                if let Entry::Vacant(vacant) = put.entry(path) {
                    vacant.insert(Put { ino: *ino, inode: self.settled(inode.clone())? });
                }
            }
        }
        removed.sort_unstable();
        removed.dedup();
        let mut outer: Vec<Vec<u8>> = Vec::new();
        // In byte order "a.b" comes between "a" and "a/b", so every ancestor is looked up.
        let all: HashSet<Vec<u8>> = removed.iter().cloned().collect();
        for path in removed {
            let covered = (0..path.len()).any(|i| path[i] == b'/' && all.contains(&path[..i]));
            if !covered {
                outer.push(path);
            }
        }
        Ok(Changes { removed: outer, put })
    }

    /// Returns the file at a path, with everything below it.
    pub fn below(&self, path: &[u8]) -> Result<BTreeMap<Vec<u8>, Put>> {
        let mut put = BTreeMap::new();
        if let Some((ino, inode)) =
            self.state.resolve(path).and_then(|ino| Some((ino, self.state.inode(ino)?)))
        {
            self.put_all(path.to_vec(), ino, inode, &mut put)?;
        }
        // A file found here may have other names elsewhere.
        put.retain(|found, _| found.starts_with(path) && matches!(found.get(path.len()), None | Some(b'/')));
        Ok(put)
    }

    /// Whether its image has a path.
    pub fn was_there(&self, path: &[u8]) -> bool {
        self.baseline.resolve(path).is_some()
    }

    /// Paths that lead to a file.
    pub(in crate::fork) fn names<'a>(&'a self, inode: &'a Inode) -> impl Iterator<Item = Vec<u8>> + 'a {
        inode.links.iter().filter_map(|(parent, name)| Some(join(&self.state.path(*parent)?, name)))
    }

    fn put_all(
        &self,
        path: Vec<u8>,
        ino: Ino,
        inode: Arc<Inode>,
        put: &mut BTreeMap<Vec<u8>, Put>,
    ) -> Result<()> {
        let mut todo = vec![(path, ino, inode)];
        while let Some((path, ino, inode)) = todo.pop() {
            if inode.is_dir() {
                for (name, child, _) in self.list(ino) {
                    let inode = self.state.inode(child).ok_or_else(lost)?;
                    todo.push((join(&path, &name), child, inode));
                }
            }
            let inode = self.settled(inode)?;
            if inode.links.len() > 1 {
                // All names of a file are listed together, since the link between them may be new.
                for (parent, name) in inode.links.iter() {
                    let path = join(&self.state.path(*parent).ok_or_else(lost)?, name);
                    put.insert(path, Put { ino, inode: inode.clone() });
                }
            }
            put.insert(path, Put { ino, inode });
        }
        Ok(())
    }

    /// A copy with other states.
    pub(in crate::fork) fn with(&self, state: State, baseline: State) -> Self {
        Self { state, baseline: Arc::new(baseline), changes: OnceLock::new(), ..self.clone() }
    }

    pub(in crate::fork) fn ids(&self) -> Vec<GenId> {
        self.generations.iter().map(|generation| generation.id).collect()
    }

    /// Counts the operations of several steps that were still running at the freeze.
    pub fn pending_operations(&self) -> u32 {
        self.pending
    }

    /// Counts record numbers that are missing or out of order in the journals on disk. The cost grows with the changes.
    ///
    /// Fails if a journal cannot be read.
    pub fn journal_gaps(&self) -> Result<u32> {
        self.generations.iter().try_fold(0_u32, |gaps, generation| {
            let found = gaps_of(generation)
                .map_err(|e| Error::io(e, format!("cannot read {}", generation.journal_path().display())))?;
            Ok(gaps.saturating_add(found))
        })
    }
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen").field("image", &self.image).finish_non_exhaustive()
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Io(None), "cannot find the path of a changed file")
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') }
}

/// Whether two values, of two moments, are the same file.
pub(super) fn same_file(now: &Inode, then: &Inode) -> bool {
    now.base == then.base && now.birth == then.birth && now.kind() == then.kind()
}

/// The number a file had in an earlier state, if it was there.
fn before(then: &State, ino: Ino, now: &Inode) -> Option<Ino> {
    if let Some(inode) = then.nodes.get(&ino) {
        return same_file(now, inode).then_some(ino);
    }
    then.number_of(now.base?)
}
