//! The differences between two trees, of images and forks in their present state. Parts that both have from
//! the same image are skipped: the cost grows with the changes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::extents::BlobRef;
use super::ino::Ino;
use super::inode::{Body, Content, Inode, Name};
use super::owners::Owners;
use super::reader::{BaseReader, read_blob, settle};
use super::snapshot::Frozen;
use super::state::{At, Base, State, base_of};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::Kind;
use crate::tree::{NodeId, Tree};

/// Bytes of two files that are compared at a time.
const STEP: usize = 256 << 10;

/// All files of an image or a fork, at the moment when the view was taken.
#[derive(Clone)]
pub struct View {
    pub(super) state: State,
    reader: Arc<dyn BaseReader>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    /// The path was added.
    Added,
    /// The path was removed.
    Removed,
    /// A file's bytes, a link's target or a device's number.
    Content,
    /// The kind of file, for instance a file became a folder.
    Kind,
    /// Permission bits, owner or extended attributes alone. Times are not compared.
    Attributes,
}

/// The file at a path on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner, if recorded.
    pub uid: Option<u32>,
    /// Group, if recorded.
    pub gid: Option<u32>,
    /// Length in bytes, of a file.
    pub size: Option<u64>,
    /// The number of files in a folder that only this side has, and in the folders below, unless they are
    /// listed.
    pub below: u64,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// From the top folder of the image or fork: `world/fs/src/main.rs`.
    pub path: Vec<u8>,
    /// The difference.
    pub how: How,
    /// The file in the first tree.
    pub before: Option<Side>,
    /// The file in the second.
    pub after: Option<Side>,
    /// The names of extended attributes that differ, where both trees have a file there.
    pub attributes: Vec<Vec<u8>>,
}

/// The options of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compare {
    /// Whether to list the content of a folder that only one side has.
    pub all: bool,
    /// Whether to read written files of the same length, since the same bytes may have been written.
    /// Otherwise they count as changed.
    pub read: bool,
}

impl View {
    pub(super) fn new(state: State, reader: Arc<dyn BaseReader>) -> Self {
        Self { state, reader }
    }

    /// All files of an image; without an image, no files. For a place where forks cannot be read.
    pub fn of_image(reader: Arc<dyn BaseReader>, image: Option<Digest>) -> Result<Self> {
        let owners = Owners::of_process();
        let base = match image {
            None => Base::empty(owners, 0),
            Some(id) => base_of(id, reader.tree(&id)?, &reader.layers(&id)?, reader.times(&id)?, owners),
        };
        Ok(Self { state: State::over(Arc::new(base)), reader })
    }
}

impl Frozen {
    /// Passes on each path that differs from the last seal, with all that is in folders which came or went. Files whose bytes were
    /// written again and are the same do not differ: `stored` gives the blob of what was written.
    pub fn differences(
        &self,
        stored: &mut dyn FnMut(&[u8]) -> Option<Digest>,
        each: &mut dyn FnMut(Difference),
    ) -> Result<()> {
        let view = |state: &State| View { state: state.clone(), reader: Arc::clone(&self.reader) };
        let (before, after) = (view(&self.baseline), view(&self.state));
        compare(&before, &after, Compare { all: true, read: false }, &mut |difference| {
            let before = || {
                let inode = before.state.inode(before.state.resolve(&difference.path)?)?;
                inode.content().and_then(Content::digest)
            };
            let is_same = difference.how == How::Content
                && before().is_some_and(|before| stored(&difference.path) == Some(before));
            if !is_same {
                each(difference);
            }
            Ok(())
        })
    }
}

/// A path that still has to be compared, and its files in the two trees.
struct Pair {
    path: Vec<u8>,
    before: Option<Ino>,
    after: Option<Ino>,
}

/// Passes on each path that differs, in the order of a walk through sorted folders. An image's manifest is
/// not compared: it differs in every image.
pub fn compare(
    before: &View,
    after: &View,
    options: Compare,
    each: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    compare_where(before, after, options, &|_| true, each)
}

/// Does the same for the paths that are `wanted`. A path that is not is not looked at, nor is anything below it.
pub fn compare_where(
    before: &View,
    after: &View,
    options: Compare,
    wanted: &dyn Fn(&[u8]) -> bool,
    each: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    let both = Both { before, after, options, wanted };
    let mut todo = both.children(&[], Some(Ino::TOP), Some(Ino::TOP));
    todo.retain(|pair| pair.path != b"manifest.json");
    while let Some(pair) = todo.pop() {
        let about = |e: Error| e.context(String::from_utf8_lossy(&pair.path));
        let inodes = (before.inode(pair.before).map_err(about)?, after.inode(pair.after).map_err(about)?);
        if let Some(difference) = both.difference(&pair, &inodes)? {
            each(difference)?;
        }
        let in_both = inodes.0.is_some_and(|a| a.is_dir()) && inodes.1.is_some_and(|b| b.is_dir());
        if in_both || options.all {
            todo.append(&mut both.children(&pair.path, pair.before, pair.after));
        }
    }
    Ok(())
}

struct Both<'a> {
    before: &'a View,
    after: &'a View,
    options: Compare,
    wanted: &'a dyn Fn(&[u8]) -> bool,
}

impl Both<'_> {
    /// Whether both sides have an entry from the same place of the same image, and changed neither it nor
    /// anything in it.
    fn is_untouched(&self, pair: &Pair) -> bool {
        let (Some(before), Some(after)) = (pair.before, pair.after) else { return false };
        let (a, b) = (&self.before.state, &self.after.state);
        // A fork holds every folder above a change in its maps.
        let (Some(At::Base(was)), Some(At::Base(is))) = (a.at(before), b.at(after)) else { return false };
        let same_base = a.base.image.is_some() && a.base.image == b.base.image;
        was == is && (same_base || Arc::ptr_eq(&a.base.tree, &b.base.tree))
    }

    /// The entries of a folder of one or both sides that may differ, the last name first.
    fn children(&self, path: &[u8], before: Option<Ino>, after: Option<Ino>) -> Vec<Pair> {
        if let (Some(before), Some(after)) = (before, after)
            && let Some(At::Base(was)) = self.before.state.at(before)
            && let Some(At::Base(is)) = self.after.state.at(after)
        {
            return self.children_of_bases(path, (before, was), (after, is));
        }
        let (was, is) = (self.before.list(before), self.after.list(after));
        let (mut was, mut is) = (was.into_iter().rev().peekable(), is.into_iter().rev().peekable());
        let mut pairs = Vec::new();
        loop {
            let order = match (was.peek(), is.peek()) {
                (None, None) => return pairs,
                (Some(_), None) => Ordering::Greater,
                (None, Some(_)) => Ordering::Less,
                (Some((was, _)), Some((is, _))) => was.cmp(is),
            };
            let left = if order.is_ge() { was.next() } else { None };
            let right = if order.is_le() { is.next() } else { None };
            let Some((name, _)) = left.as_ref().or(right.as_ref()) else { return pairs };
            let path = if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') };
            let pair = Pair { path, before: left.map(|(_, ino)| ino), after: right.map(|(_, ino)| ino) };
            if !self.is_untouched(&pair) && (self.wanted)(&pair.path) {
                pairs.push(pair);
            }
        }
    }

    /// The same for two folders that no fork changed. Equal files cost no more than a look at both trees.
    fn children_of_bases(
        &self,
        path: &[u8],
        (before, was): (Ino, NodeId),
        (after, is): (Ino, NodeId),
    ) -> Vec<Pair> {
        let (a, b) = (&self.before.state, &self.after.state);
        let (one, two) = (&*a.base.tree, &*b.base.tree);
        let (mut was, mut is) = (one.children(was).rev().peekable(), two.children(is).rev().peekable());
        let mut pairs = Vec::new();
        loop {
            let order = match (was.peek(), is.peek()) {
                (None, None) => return pairs,
                (Some(_), None) => Ordering::Greater,
                (None, Some(_)) => Ordering::Less,
                (Some(was), Some(is)) => one.name(NodeId(*was)).cmp(two.name(NodeId(*is))),
            };
            let left = if order.is_ge() { was.next().map(NodeId) } else { None };
            let right = if order.is_le() { is.next().map(NodeId) } else { None };
            let name = match (left, right) {
                (Some(left), Some(right)) if are_equal_files((one, left), (two, right)) => continue,
                (Some(left), _) => one.name(left),
                (None, Some(right)) => two.name(right),
                (None, None) => return pairs,
            };
            let path = [path, name].join(&b'/');
            if !(self.wanted)(&path) {
                continue;
            }
            let left = left.map(|node| a.ino_in(before, node));
            let pair = Pair { path, before: left, after: right.map(|node| b.ino_in(after, node)) };
            if !self.is_untouched(&pair) {
                pairs.push(pair);
            }
        }
    }

    fn difference(
        &self,
        pair: &Pair,
        inodes: &(Option<Arc<Inode>>, Option<Arc<Inode>>),
    ) -> Result<Option<Difference>> {
        let how = match inodes {
            (None, None) => return Ok(None),
            (None, Some(_)) => How::Added,
            (Some(_), None) => How::Removed,
            (Some(a), Some(b)) if a.kind() != b.kind() => How::Kind,
            (Some(a), Some(b)) => {
                let same = self.same_body(a, b).map_err(|e| {
                    e.context(format_args!("cannot compare {}", String::from_utf8_lossy(&pair.path)))
                })?;
                match same {
                    false => How::Content,
                    // Of other layers an image has bytes alone.
                    true if is_in_world(&pair.path) && !same_attributes(a, b) => How::Attributes,
                    true => return Ok(None),
                }
            }
        };
        let alone = |mine: &Option<Arc<Inode>>, other: &Option<Arc<Inode>>| {
            let is_dir = |inode: &Option<Arc<Inode>>| inode.as_ref().is_some_and(|inode| inode.is_dir());
            !self.options.all && is_dir(mine) && !is_dir(other)
        };
        let side = |view: &View, ino: Option<Ino>, mine: &Option<Arc<Inode>>, other: &Option<Arc<Inode>>| {
            let (Some(ino), Some(inode)) = (ino, mine) else { return Ok(None) };
            let below = if alone(mine, other) { view.count(ino) } else { 0 };
            let size = inode.content().map(|content| view.size(content)).transpose()?;
            let (mode, uid, gid) = (inode.mode, inode.uid, inode.gid);
            Ok::<_, Error>(Some(Side { kind: inode.kind(), mode, uid, gid, size, below }))
        };
        let attributes = match inodes {
            (Some(a), Some(b)) if is_in_world(&pair.path) => other_attributes(a, b),
            _ => Vec::new(),
        };
        Ok(Some(Difference {
            path: pair.path.clone(),
            how,
            before: side(self.before, pair.before, &inodes.0, &inodes.1)?,
            after: side(self.after, pair.after, &inodes.1, &inodes.0)?,
            attributes,
        }))
    }

    fn same_body(&self, a: &Inode, b: &Inode) -> Result<bool> {
        Ok(match (&a.body, &b.body) {
            (Body::File(a), Body::File(b)) => self.same_content(a, b)?,
            (Body::Symlink(a), Body::Symlink(b)) => a == b,
            (Body::Special(_), Body::Special(_)) => a.rdev == b.rdev,
            // Folders are walked.
            _ => true,
        })
    }

    fn same_content(&self, a: &Content, b: &Content) -> Result<bool> {
        if let (Some(a), Some(b)) = (a.digest(), b.digest()) {
            return Ok(a == b);
        }
        let size = self.before.size(a)?;
        if size != self.after.size(b)? {
            return Ok(false);
        }
        let (a, b) = (a.settled(), b.settled());
        if a.pieces.same(&b.pieces) {
            return Ok(true);
        }
        if !self.options.read {
            return Ok(false);
        }
        let (mut left, mut right) = (vec![0; STEP], vec![0; STEP]);
        let mut at = 0;
        while at < size {
            let len = usize::try_from(size - at).unwrap_or(STEP).min(STEP);
            self.before.read(&a, at, &mut left[..len])?;
            self.after.read(&b, at, &mut right[..len])?;
            if left[..len] != right[..len] {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }
}

impl View {
    /// The bytes of a file or the target of a link, if they are at most `most`; nothing for what is neither.
    pub fn bytes(&self, path: &[u8], most: u64) -> Result<Option<Vec<u8>>> {
        let Some(inode) = self.inode(self.state.resolve(path))? else { return Ok(None) };
        let content = match &inode.body {
            Body::Symlink(target) => {
                let fits = target.len() as u64 <= most;
                return Ok(fits.then(|| target.to_vec()));
            }
            Body::File(content) => content,
            _ => return Ok(None),
        };
        let about = |e: Error| e.context(format_args!("cannot read {}", String::from_utf8_lossy(path)));
        let size = self.size(content).map_err(about)?;
        if size > most {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let read = self.read(&content.settled(), 0, &mut bytes).map_err(about)?;
        bytes.truncate(read);
        Ok(Some(bytes))
    }

    /// What is at a path of the files, from their top; the empty path is the top.
    pub fn kind_at(&self, path: &[u8]) -> Option<Kind> {
        self.state.kind(self.state.resolve(&in_world(path))?)
    }

    /// Whether anything is at a path.
    pub fn contains(&self, path: &[u8]) -> bool {
        self.state.resolve(path).is_some()
    }

    fn inode(&self, ino: Option<Ino>) -> Result<Option<Arc<Inode>>> {
        let lost = || Error::new(ErrorKind::Damaged, "the tree lacks a file that it lists");
        ino.map(|ino| self.state.inode(ino).ok_or_else(lost)).transpose()
    }

    /// The entries of a folder, by name; empty if it is not a folder.
    fn list(&self, ino: Option<Ino>) -> BTreeMap<Name, Ino> {
        let mut entries = BTreeMap::new();
        if let Some(ino) = ino {
            self.state.list(ino, 0, &mut |entry| {
                entries.insert(entry.name, entry.ino);
                true
            });
        }
        entries
    }

    /// The number of files in a folder and the folders below.
    fn count(&self, ino: Ino) -> u64 {
        let (mut count, mut todo) = (0, vec![ino]);
        while let Some(ino) = todo.pop() {
            self.state.list(ino, 0, &mut |entry| {
                count += 1;
                if entry.kind == Kind::Dir {
                    todo.push(entry.ino);
                }
                true
            });
        }
        count
    }

    fn size(&self, content: &Content) -> Result<u64> {
        if let Some(lazy) = content.unsettled() {
            settle(lazy, &*self.reader)?;
        }
        Ok(content.known_size())
    }

    fn read(&self, content: &Content, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut blob =
            |blob: &BlobRef, offset: u64, buf: &mut [u8]| read_blob(&*self.reader, blob, offset, buf);
        content.read(offset, buf, &mut blob)
    }
}

/// The folder of a fork's files.
pub(super) const WORLD: &[u8] = b"world/fs";

/// The path in the fork of a path of its files.
pub(super) fn in_world(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { WORLD.to_vec() } else { [WORLD, path].join(&b'/') }
}

/// Whether an image keeps more than the bytes of a file at this path.
fn is_in_world(path: &[u8]) -> bool {
    path.strip_prefix(WORLD).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn same_attributes(a: &Inode, b: &Inode) -> bool {
    let mode = matches!(a.body, Body::Symlink(_)) || a.mode == b.mode;
    let xattrs = Arc::ptr_eq(&a.xattrs, &b.xattrs) || other_attributes(a, b).is_empty();
    mode && same_owner(a.uid, b.uid) && same_owner(a.gid, b.gid) && xattrs
}

/// An owner that an image does not record is equal to any.
fn same_owner(a: Option<u32>, b: Option<u32>) -> bool {
    a.is_none() || b.is_none() || a == b
}

/// Whether two entries of trees are no folders and equal in all that is compared. A file with several names may have been changed
/// under another one, and counts as unequal.
fn are_equal_files((one, was): (&Tree, NodeId), (two, is): (&Tree, NodeId)) -> bool {
    let kind = one.kind(was);
    let (before, after) = (one.owner(was), two.owner(is));
    kind == two.kind(is)
        && kind != Kind::Dir
        && (kind == Kind::Symlink || one.mode(was) == two.mode(is))
        && one.blob(was) == two.blob(is)
        && one.target(was) == two.target(is)
        && one.rdev(was) == two.rdev(is)
        && same_owner(before.uid, after.uid)
        && same_owner(before.gid, after.gid)
        && one.xattrs(was) == two.xattrs(is)
        && one.hardlink(was).is_none()
        && two.hardlink(is).is_none()
}

/// The names of the extended attributes that differ.
fn other_attributes(a: &Inode, b: &Inode) -> Vec<Vec<u8>> {
    let mut names: Vec<&Vec<u8>> = a.xattrs.keys().chain(b.xattrs.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !is_of_overlay(name) && a.xattrs.get(*name) != b.xattrs.get(*name));
    names.into_iter().cloned().collect()
}

/// Whether an attribute only says where an overlay filesystem has a file from. Copying a file sets it, without any change to the file.
fn is_of_overlay(name: &[u8]) -> bool {
    let users = [&b"user.overlay.origin"[..], b"user.overlay.impure", b"user.overlay.nlink"];
    name.starts_with(b"trusted.overlay.") || users.contains(&name)
}
