//! The entries of a new image's tree, for the files that changed.

use super::sealing::{Sealing, Stored, WORLD};
use super::tree::{NewEntry, TreeChanges};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BlobRef, Body, Put};
use crate::layers::world::{Entry, Kind, MAX_DEPTH, Root};
use crate::layers::xattrs;

/// The changes of the tree.
pub(super) fn tree_changes(sealing: &Sealing<'_>, stored: &Stored) -> Result<TreeChanges> {
    let mut changes = TreeChanges::default();
    let inside = |path: &[u8]| path.strip_prefix(WORLD)?.strip_prefix(b"/").map(<[u8]>::to_vec);
    changes.removed = sealing.changes.removed.iter().filter_map(|path| inside(path)).collect();
    for (path, put) in &sealing.changes.put {
        if path == WORLD {
            changes.root = Some(root(put, sealing.mtime(path, put)));
        } else if let Some(inner) = inside(path) {
            let depth = inner.split(|byte| *byte == b'/').count();
            if depth > MAX_DEPTH {
                let shown = String::from_utf8_lossy(&inner[..inner.len().min(200)]).into_owned();
                let message =
                    format!("{shown}… is {depth} directories deep, and an image holds at most {MAX_DEPTH}");
                return Err(
                    Error::new(ErrorKind::InvalidInput, message).with_hint("move it up, or remove it")
                );
            }
            let entry = entry(sealing, path, put, stored.get(path))?;
            let group = (!put.inode.is_dir() && put.inode.links.len() > 1).then_some(put.ino.0);
            changes.put.insert(inner, NewEntry { entry, group });
        }
    }
    if changes.is_empty() {
        return Ok(changes);
    }
    put_folders(sealing, &mut changes)?;
    Ok(changes)
}

fn entry(sealing: &Sealing<'_>, path: &[u8], put: &Put, stored: Option<&BlobRef>) -> Result<Entry<'static>> {
    let inode = &put.inode;
    let mut entry = Entry::new("", inode.kind(), inode.mode);
    (entry.uid, entry.gid, entry.mtime_ns) = (inode.uid, inode.gid, sealing.mtime(path, put));
    match &inode.body {
        Body::File(content) => {
            entry.size = content.size;
            entry.blob = Some(match stored {
                Some(blob) => blob.digest,
                None => sealing.batch.put(b"")?,
            });
        }
        Body::Symlink(target) => {
            entry.size = target.len() as u64;
            entry.blob = Some(sealing.batch.put(target)?);
            if std::str::from_utf8(target).is_err() {
                entry.link_target_b64 = Some(target.to_vec());
            }
            entry.link_target = Some(String::from_utf8_lossy(target).into_owned().into());
        }
        Body::Special(Kind::Chardev | Kind::Blockdev) => entry.rdev = Some(inode.rdev),
        Body::Dir(_) | Body::Special(_) => {}
    }
    xattrs::write(&inode.xattrs, &mut entry.extra);
    Ok(entry)
}

/// Adds the folders in which something changed to a tree, so that they keep their times and do not show
/// that of the seal.
fn put_folders(sealing: &Sealing<'_>, changes: &mut TreeChanges) -> Result<()> {
    for path in sealing.times.keys().filter(|path| !sealing.changes.put.contains_key(*path)) {
        let Some((ino, inode)) = sealing.frozen.resolve(path).filter(|(_, inode)| inode.is_dir()) else {
            continue;
        };
        let put = Put { ino, inode };
        if path == WORLD {
            changes.root = Some(root(&put, sealing.mtime(path, &put)));
        } else if let Some(inner) = path.strip_prefix(WORLD).and_then(|path| path.strip_prefix(b"/")) {
            let entry = entry(sealing, path, &put, None)?;
            changes.put.insert(inner.to_vec(), NewEntry { entry, group: None });
        }
    }
    Ok(())
}

fn root(put: &Put, mtime_ns: Option<i64>) -> Root {
    let inode = &put.inode;
    let mut root = Root {
        mode: Some(format!("{:04o}", inode.mode)),
        mtime_ns,
        uid: inode.uid,
        gid: inode.gid,
        ..Root::default()
    };
    xattrs::write(&inode.xattrs, &mut root.extra);
    root
}
