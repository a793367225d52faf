//! Freezes a fork's state at one moment, and moves the fork to an image made of that state.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use super::content::read_content;
use super::disk::{GenId, Generation};
use super::frame::Frame;
use super::head::Head;
use super::ino::Ino;
use super::journal::Writer;
use super::keep::{Keeping, Kept};
use super::live::{BaseReader, Fork, Live, read_blob, settle};
use super::node::{Attr, Body, Content, Guard, Inode, Name};
use super::pieces::{BlobRef, Piece, Pieces, Src};
use super::state::{LayerBase, State};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::Kind;
use crate::sync::atomic::Ordering;
use crate::sync::{MutexGuard, wait};

/// The state of a fork at one moment. Later changes of the fork do not affect it.
#[derive(Clone)]
pub struct Frozen {
    pub(super) state: State,
    pub(super) baseline: Arc<State>,
    pub(super) generations: Vec<Arc<Generation>>,
    pub(super) image: Option<Digest>,
    uid: String,
    pub(super) pending: u32,
    pub(super) reader: Arc<dyn BaseReader>,
    /// Its differences from its image, once [`Frozen::changes`] was called.
    changes: OnceLock<Arc<Changes>>,
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
        read_content(&content.settled(), offset, buf, &mut blob)
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
    pub(super) fn names<'a>(&'a self, inode: &'a Inode) -> impl Iterator<Item = Vec<u8>> + 'a {
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
    pub(super) fn with(&self, state: State, baseline: State) -> Self {
        Self { state, baseline: Arc::new(baseline), changes: OnceLock::new(), ..self.clone() }
    }

    pub(super) fn ids(&self) -> Vec<GenId> {
        self.generations.iter().map(|generation| generation.id).collect()
    }
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen").field("image", &self.image).finish_non_exhaustive()
    }
}

pub(super) fn lost() -> Error {
    Error::new(ErrorKind::Io(None), "cannot find the path of a changed file")
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') }
}

/// Whether two values, of two moments, are the same file.
fn same_file(now: &Inode, then: &Inode) -> bool {
    now.base == then.base && now.birth == then.birth && now.kind() == then.kind()
}

/// The number a file had in an earlier state, if it was there.
fn before(then: &State, ino: Ino, now: &Inode) -> Option<Ino> {
    if let Some(inode) = then.nodes.get(&ino) {
        return same_file(now, inode).then_some(ino);
    }
    then.number_of(now.base?)
}

/// Whether a file is append-only, and sealing may change the appended lines.
fn is_log(path: &[u8]) -> bool {
    matches!(path, b"effects/ledger.jsonl" | b"trace/messages.jsonl")
}

/// Number of seals after which a program's old offset of the end is still recognized.
const MOVES: usize = 1000;

/// Content of a file after a seal, by its path in the fork.
pub type Sealed = HashMap<Vec<u8>, BlobRef>;

impl Fork {
    /// Freezes the present state, which takes a pointer. The fork continues at once in a new generation.
    ///
    /// Waits for operations of several steps, for one second at most.
    pub fn freeze(&self) -> Result<Frozen> {
        wait::required()?;
        self.operations.pause(|pending| {
            let mut head = self.head.lock();
            let frozen = self.freeze_locked(&mut head)?;
            Ok(Frozen { pending, ..frozen })
        })
    }

    pub(super) fn freeze_locked(&self, head: &mut MutexGuard<'_, Head>) -> Result<Frozen> {
        wait::required()?;
        self.may_write()?;
        {
            let mut live = self.live.write();
            live.writable()?;
            if live.writer.is_empty() {
                let frozen = self.frozen(&live, 1);
                // Tells later changes apart from the frozen ones.
                live.state.epoch += 1;
                return Ok(frozen);
            }
        }
        let new = self.shared.new_generation()?;
        self.shared.add_refs(&[new.id]);
        let mut next = head.clone();
        next.generations.push(new.id);
        // The head names the new generation before anything is written to it. Until then operations go to the old one.
        // Either head therefore leads to all of them.
        if let Err(e) = next.write(&self.shared.files, &self.shared.forks, true) {
            self.shared.drop_refs(&[new.id]);
            return Err(e);
        }
        **head = next;
        self.head_unsynced.store(true, Ordering::Release);
        let mut live = self.live.write();
        live.state.raise_floors();
        let frozen = self.frozen(&live, 0);
        live.writer.generation.freeze_at(live.writer.seq, live.writer.end);
        live.state.epoch += 1;
        live.generations.push(new.clone());
        live.writer = Writer::new(new);
        Ok(frozen)
    }

    /// The last `behind` generations hold nothing of the frozen state.
    fn frozen(&self, live: &super::live::Live, behind: usize) -> Frozen {
        let kept = live.generations.len() - behind;
        Frozen {
            state: live.state.detached(),
            baseline: live.baseline.clone(),
            generations: live.generations[..kept].to_vec(),
            image: live.image,
            uid: self.uid.clone(),
            pending: 0,
            reader: self.shared.reader.clone(),
            changes: OnceLock::new(),
        }
    }

    /// Makes an image of `frozen` the fork's base. Releases the generations of `frozen` and keeps later changes.
    ///
    /// The image and its blobs must be durable. `sealed` names the content of every changed file. For an append-only
    /// file it may have another length. Returns the files whose content or length looks different now, and those that were
    /// replaced. The caller must call [`Fork::forget`] for the ones whose number the kernel does not know.
    pub fn rebase(
        &self,
        frozen: &Frozen,
        image: Digest,
        layers: &[LayerBase],
        sealed: &Sealed,
    ) -> Result<Vec<Ino>> {
        self.rebase_keeping(frozen, image, layers, sealed, &Kept::new())
    }

    /// Like [`Fork::rebase`], with an image that lacks the files in `kept`. These stay in the fork.
    pub fn rebase_keeping(
        &self,
        frozen: &Frozen,
        image: Digest,
        layers: &[LayerBase],
        sealed: &Sealed,
        kept: &Kept,
    ) -> Result<Vec<Ino>> {
        self.may_write()?;
        let changes = frozen.changes()?;
        let sealed_of = || changes.put.iter().filter(|(path, _)| !kept.contains_key(*path));
        for (path, put) in sealed_of() {
            let Some(content) = put.inode.content() else { continue };
            let shown = String::from_utf8_lossy(path);
            match sealed.get(path) {
                Some(blob) if blob.size == content.size || is_log(path) => {}
                // The base has the content already, or the file is empty.
                None if content.size == 0 || content.whole_blob().is_some() => {}
                Some(blob) => {
                    let message =
                        format!("{shown}: the seal has {} bytes, the file has {}", blob.size, content.size);
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                None => {
                    let message = format!("{shown}: the seal lacks the file, which would be lost");
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
            }
        }
        let keeping = self.keeping(frozen, image, kept)?;
        let leftover = keeping.as_ref().map(|keeping| &keeping.leftover.generation);
        let mut head = self.head.lock();
        let before = frozen.ids();
        let released: Vec<GenId> =
            before.iter().copied().filter(|id| leftover.is_none_or(|kept| kept.id != *id)).collect();
        let switched = if frozen.uid == self.uid
            && head.generations.starts_with(&before)
            && head.base == frozen.image
        {
            let mut next = head.clone();
            next.base = Some(image);
            next.folders = Frame::of(&frozen.state);
            next.generations.splice(..before.len(), leftover.map(|generation| generation.id));
            self.switch_head(&mut head, next)
        } else {
            Err(Error::new(ErrorKind::InvalidInput, "the fork was sealed by another program in the meantime"))
        };
        let durable = switched.inspect_err(|_| {
            if let Some(Keeping { leftover, state: Some(_) }) = &keeping {
                self.shared.drop_refs(&[leftover.generation.id]);
            }
        })?;
        let changed = {
            let mut live = self.live.write();
            live.image = Some(image);
            live.generations.splice(..before.len(), leftover.cloned());
            live.state.settle_dirt(frozen.state.epoch);
            live.settled = Some(frozen.state.epoch);
            let mut baseline = frozen.state.clone();
            let gone: HashSet<GenId> = released.iter().copied().collect();
            let mut changed = Vec::new();
            for (path, put) in sealed_of() {
                let Some(blob) = sealed.get(path) else { continue };
                // The baseline needs no content: pieces in it would keep released data on disk.
                baseline.forget_content(put.ino, *blob);
                let was = put.inode.content().cloned().unwrap_or_default();
                let mut seal = |content: &mut Content, guard: &mut Guard| {
                    if is_log(path) && *guard == Guard::None {
                        // From now on the sealed part cannot be changed, only appended to.
                        *guard = Guard::Append(Some(0));
                    }
                    seal_content(content, guard, &was, *blob, &gone)
                };
                live.repoint(put, &gone, &mut seal, &mut changed);
                let moved = blob.size.checked_signed_diff(was.size).unwrap_or(0);
                if is_log(path) && moved != 0 {
                    live.resized += 1;
                    let all = live.moved.entry(put.ino).or_default();
                    all.push(moved);
                    // Older offsets are rejected.
                    all.drain(..all.len().saturating_sub(MOVES));
                }
            }
            live.keep(frozen, kept, keeping, &gone, &mut baseline);
            {
                changed.extend(live.show_all(frozen.state.epoch));
                let Live { state, orphans, .. } = &mut *live;
                changed.extend(state.complete(layers, |ino| orphans.contains_key(&ino)));
                baseline.complete(layers, |_| false);
            }
            live.baseline = Arc::new(baseline);
            for path in ["manifest.json", "cache/manifest.json"] {
                let Live { state, orphans, .. } = &mut *live;
                if let Some((ino, inode)) =
                    state.replace_layer(layers, path, |ino| orphans.contains_key(&ino))
                {
                    // A program that has it open can read it to its end.
                    orphans.insert(ino, inode);
                    changed.push(ino);
                }
            }
            changed
        };
        if durable {
            self.shared.drop_refs(&released);
        }
        Ok(changed)
    }

    /// Replaces the fork's head. Returns whether the new head is durable. Only then may the caller remove generations that it
    /// does not name; otherwise the next opener does. After an error the fork has its old head.
    pub(super) fn switch_head(&self, head: &mut MutexGuard<'_, Head>, next: Head) -> Result<bool> {
        // Checked under the head's lock: a fork that another thread has discarded must not come back and replace a new fork of
        // its name.
        self.may_write()?;
        wait::disk("switch-head");
        let io = &*self.shared.files.io;
        next.write(&self.shared.files, &self.shared.forks, true)?;
        **head = next;
        let heads = self.shared.forks.join("heads");
        let synced = io.sync_dir(&heads);
        if let Err(e) = &synced {
            self.head_unsynced.store(true, Ordering::Release);
            tracing::error!("cannot make {} durable yet: {e}", heads.display());
        }
        Ok(synced.is_ok())
    }
}

impl Live {
    /// Changes where a file's content lies, if the file is still there.
    pub(super) fn repoint(
        &mut self,
        put: &Put,
        gone: &HashSet<GenId>,
        change: &mut dyn FnMut(&mut Content, &mut Guard) -> bool,
        changed: &mut Vec<Ino>,
    ) {
        let slot = match self.state.nodes.get_mut(&put.ino) {
            Some(inode) if same_file(inode, &put.inode) => inode,
            _ => match self.orphans.get_mut(&put.ino) {
                Some(inode) if same_file(inode, &put.inode) => inode,
                _ => return,
            },
        };
        let inode = Arc::make_mut(slot);
        let Body::File(content) = &mut inode.body else { return };
        content.settle();
        if content.own.as_ref().is_some_and(|own| gone.contains(&own.generation.id)) {
            content.own = None;
        }
        if change(content, &mut inode.guard) && !changed.contains(&put.ino) {
            changed.push(put.ino);
        }
        replace_gone(content, gone);
    }
}

/// Reports a piece that was not replaced, which is an error in this program. It stays readable while the fork is in memory.
fn replace_gone(content: &Content, gone: &HashSet<GenId>) {
    let left = content.pieces.all().any(|(_, p)| p.src.generation().is_some_and(|g| gone.contains(&g.id)));
    if left {
        tracing::error!("a file still uses a generation that was released");
    }
}

/// Whether the frozen file had the same piece at the same place.
fn was_there(was: &Content, at: u64, piece: &Piece) -> bool {
    let Src::Blob(blob) = &piece.src else { return false };
    let mut end = at;
    for (from, frozen) in was.pieces.range(at, at + piece.len) {
        let Src::Blob(other) = &frozen.src else { return false };
        if from != end || other != blob || frozen.off + at != piece.off + from {
            return false;
        }
        end = from + frozen.len;
    }
    end == at + piece.len
}

/// Replaces the frozen pieces `was` of a file by a sealed blob. Returns whether the content looks different now.
fn seal_content(
    content: &mut Content,
    guard: &mut Guard,
    was: &Content,
    blob: BlobRef,
    gone: &HashSet<GenId>,
) -> bool {
    let (src, size) = (Src::Blob(Arc::new(blob)), was.size);
    if let Guard::Append(floor) = guard {
        // Sealing may have rewritten the frozen lines; lines that were appended later follow them.
        let mut pieces = content.pieces.shift(size, blob.size);
        if blob.size > 0 {
            pieces.put(0, Piece { len: blob.size, off: 0, src });
        }
        content.pieces = pieces;
        content.size = blob.size + content.size.saturating_sub(size);
        *guard = Guard::Append(Some(blob.size + floor.unwrap_or(size).saturating_sub(size)));
        return true;
    }
    // A piece never moves within its file, so the seal has the same bytes at the same place.
    let old = std::mem::take(&mut content.pieces);
    for (at, piece) in old.all() {
        // Blobs of earlier images are replaced as well: prune may remove those images, and nothing else needs the blobs.
        let released = piece.src.generation().is_some_and(|generation| gone.contains(&generation.id))
            || was_there(was, at, piece);
        let piece =
            if released { Piece { len: piece.len, off: at, src: src.clone() } } else { piece.clone() };
        content.pieces.put(at, piece);
    }
    false
}

/// Like [`seal_content`], with other pieces that hold the same bytes.
pub(super) fn take_pieces(content: &mut Content, gone: &HashSet<GenId>, from: &Pieces) {
    let old = std::mem::take(&mut content.pieces);
    for (at, piece) in old.all() {
        if piece.src.generation().is_some_and(|g| gone.contains(&g.id)) {
            for (at, piece) in from.range(at, at + piece.len) {
                content.pieces.put(at, piece);
            }
        } else {
            content.pieces.put(at, piece.clone());
        }
    }
}
