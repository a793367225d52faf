//! The two images that an apply keeps before it changes anything: the paths concerned as they are, and as they are to be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::below::{At, Top, split};
use super::change;
use super::entry::{Entry, Step};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::{Kind, refuse_name};
use crate::layers::xattrs::Xattrs;
use crate::ops::import::index::Stamp;
use crate::ops::import::manifest::with_empty_layers;
use crate::ops::import::tree::{self, Body, Item};
use crate::ops::import::walk::Meta;
use crate::store::manifest::{APPLY_AGENT, Agent};
use crate::store::{Batch, Store};
use crate::tree::Tree;

/// The first of the paths of an error that are named in its message.
const NAMED: usize = 20;

/// Both images, and what each path was when it was read.
pub(super) struct Kept {
    pub(super) before: Digest,
    pub(super) after: Digest,
    /// What was seen where a file is what the step expects. It needs no second reading while it stays so.
    pub(super) seen: HashMap<Vec<u8>, Meta>,
}

/// What the images are called.
pub(super) struct Words {
    pub(super) before: String,
    pub(super) after: String,
}

/// Everything that one image holds.
pub(super) type Entries = BTreeMap<Vec<u8>, (Entry, Meta)>;

fn refuse(path: &[u8], why: &str) -> Error {
    let path = String::from_utf8_lossy(path).into_owned();
    Error::new(ErrorKind::InvalidInput, format!("cannot apply to {path:?}: {why}"))
}

/// Checks that steps fit together, and sorts them: no path twice, and a folder above each path that stays or comes.
fn sorted(steps: &[Step]) -> Result<BTreeMap<&[u8], &Step>> {
    let mut all = BTreeMap::new();
    for step in steps {
        if let Some(why) = step.path.split(|byte| *byte == b'/').find_map(refuse_name) {
            return Err(refuse(&step.path, &why));
        }
        if all.insert(&step.path[..], step).is_some() {
            return Err(refuse(&step.path, "there are two steps for it"));
        }
    }
    for step in steps.iter().filter(|step| step.becomes.is_some()) {
        let parent = split(&step.path).0;
        if let Some(above) = all.get(parent)
            && !matches!(above.becomes, Some(Entry::Dir { .. }))
        {
            return Err(refuse(&step.path, "there is no directory to hold it"));
        }
    }
    Ok(all)
}

/// All directories above a path, the nearest first.
pub(super) fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = split(rest).0;
        (!rest.is_empty()).then_some(rest)
    })
}

/// Makes both images of the steps, durably. Fails with [`ErrorKind::Conflict`], and keeps nothing, if the directory does not hold what
/// the steps expect.
pub(super) fn keep(store: &Store, top: &Top<'_>, steps: &[Step], words: &Words) -> Result<Kept> {
    let steps = sorted(steps)?;
    let batch = store.begin();
    let (mut before, mut after) = (Entries::new(), Entries::new());
    let (mut seen, mut edited) = (HashMap::new(), Vec::new());
    for (path, step) in &steps {
        let failed = |e| Error::io(e, format!("cannot read {}", top.shown(path).display()));
        let at = top.at(path).map_err(failed)?;
        let now = match &at {
            Some(at) => top.look(at).map_err(failed)?,
            None => None,
        };
        let is_as_expected = match (&step.was, &at, &now) {
            (None, _, None) => true,
            (Some(entry), Some(at), Some(now)) => store_if(&batch, top, path, at, now, entry)?,
            _ => false,
        };
        if !is_as_expected {
            edited.push(*path);
            continue;
        }
        if let (Some(entry), Some(now)) = (&step.was, now) {
            before.insert(path.to_vec(), (entry.clone(), now));
            seen.insert(path.to_vec(), now);
        }
    }
    if !edited.is_empty() {
        return Err(conflict(top, &edited));
    }
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    for (number, (path, step)) in steps.iter().enumerate() {
        if let Some(entry) = &step.becomes {
            let meta = meant(entry, number as u64, now_ns, top.meta());
            after.insert(path.to_vec(), (entry.clone(), meta));
        }
    }
    for path in steps.keys().flat_map(|path| above(path)).collect::<BTreeSet<_>>() {
        if steps.contains_key(path) {
            continue;
        }
        let failed = |e| Error::io(e, format!("cannot read {}", top.shown(path).display()));
        if let Some((_, meta)) = top.folder(path).map_err(failed)? {
            for side in [&mut before, &mut after] {
                side.insert(path.to_vec(), (Entry::Dir { mode: meta.mode }, meta));
            }
        } else if after.keys().any(|below| above(below).any(|folder| folder == path)) {
            return Err(refuse(path, "it is not there, and no step makes it"));
        }
    }
    for path in after.keys() {
        let parent = split(path).0;
        if !parent.is_empty() && !matches!(after.get(parent), Some((Entry::Dir { .. }, _))) {
            return Err(refuse(path, "there is no directory to hold it"));
        }
    }
    let before = image(store, top, &before, &words.before, None)?;
    let after = image(store, top, &after, &words.after, Some(before))?;
    Ok(Kept { before, after, seen })
}

/// The error for paths that do not hold what a step expects.
fn conflict(top: &Top<'_>, edited: &[&[u8]]) -> Error {
    let mut words = format!("{} changed after it was compared: ", top.path().display());
    for (number, path) in edited.iter().take(NAMED).enumerate() {
        let comma = if number > 0 { ", " } else { "" };
        let _ = write!(words, "{comma}{}", String::from_utf8_lossy(path));
    }
    if edited.len() > NAMED {
        let _ = write!(words, " and {} more", edited.len() - NAMED);
    }
    Error::new(ErrorKind::Conflict, words).with_hint("nothing was written; apply again")
}

/// Stores what is at a place if it is the entry; says whether it is.
fn store_if(
    batch: &Batch<'_>,
    top: &Top<'_>,
    path: &[u8],
    at: &At,
    now: &Meta,
    entry: &Entry,
) -> Result<bool> {
    let failed = |e: io::Error| Error::io(e, format!("cannot read {}", top.shown(path).display()));
    let Entry::File { mode, content, size, .. } = entry else {
        return top.is(at, now, entry).map_err(failed);
    };
    if now.kind != Kind::File || now.mode != *mode || now.stamp.size != *size {
        return Ok(false);
    }
    Ok(store_file(batch, top, path, at, now)? == Some(*content))
}

/// Stores a file. Nothing if it changes while it is read.
pub(super) fn store_file(
    batch: &Batch<'_>,
    top: &Top<'_>,
    path: &[u8],
    at: &At,
    now: &Meta,
) -> Result<Option<Digest>> {
    let failed = |e: io::Error| Error::io(e, format!("cannot read {}", top.shown(path).display()));
    let Some(mut file) = top.open_file(at, now).map_err(failed)? else { return Ok(None) };
    let (digest, length) = batch.put_stream(&mut file, Some(now.stamp.size))?;
    let is_same = top.look(at).map_err(failed)?.as_ref() == Some(now) && length == now.stamp.size;
    Ok(is_same.then_some(digest))
}

/// Everything that an image of an apply holds.
pub(super) fn entries(tree: &Tree, top: &Meta) -> Entries {
    let all = change::entries(tree).into_iter().enumerate();
    all.map(|(number, (path, entry))| {
        let meta = meant(&entry, number as u64, 0, top);
        (path, (entry, meta))
    })
    .collect()
}

/// The times and owner of something that is to be made. Hard links share an inode number; the number of anything else is unique.
fn meant(entry: &Entry, number: u64, now_ns: i64, top: &Meta) -> Meta {
    let (kind, mode, size, links) = match entry {
        Entry::Dir { mode } => (Kind::Dir, *mode, 0, None),
        Entry::File { mode, size, links, .. } => (Kind::File, *mode, *size, *links),
        Entry::Link { target } => (Kind::Symlink, 0o777, target.len() as u64, None),
    };
    // Files with one name are never compared by it.
    let (dev, ino) = links.map_or((0, number), |links| (1, links));
    let stamp = Stamp { size, mtime_ns: now_ns, ctime_ns: now_ns, ino, dev };
    let links = if links.is_some() { 2 } else { 1 };
    Meta { kind, mode, stamp, links, uid: top.uid, gid: top.gid, rdev: 0 }
}

/// Makes an image of entries, durably.
pub(super) fn image(
    store: &Store,
    top: &Top<'_>,
    entries: &Entries,
    words: &str,
    parent: Option<Digest>,
) -> Result<Digest> {
    let own = store.begin();
    let mut items = Vec::with_capacity(entries.len());
    for (path, (entry, meta)) in entries {
        let body = match entry {
            Entry::Dir { .. } => Body::Nothing,
            Entry::File { size: 0, .. } => Body::Content(own.put(b"")?),
            Entry::File { content, .. } => {
                own.require(*content);
                Body::Content(*content)
            }
            Entry::Link { target } => Body::Target(target.clone(), own.put(target)?),
        };
        items.push(Item::new(path.clone(), *meta, body));
    }
    let tree = tree::build(top.meta(), &Xattrs::new(), items)
        .to_bytes()
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write the tree").with_source(e))?;
    let stored = own.put(&tree)?;
    store.blobs().check_metadata(&stored, tree.len())?;
    let agent = Agent {
        kind: APPLY_AGENT.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: words.to_owned(),
    };
    let parents = parent.into_iter().collect();
    let manifest = with_empty_layers(agent, stored, parents, &|bytes| own.put(&bytes))?;
    own.commit(&manifest)
}
