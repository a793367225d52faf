//! Reads everything about the listed files except their content: links, extended attributes, and records of the last import.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::importing::{Importing, Known, Pending};
use super::source::Source;
use super::tree::{Body, Item};
use super::walk::{Found, READABLE};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::mount::reach::Top;
use crate::sync::Mutex;
use crate::util::parallel::try_each;

/// Bytes that most lists of names need, and bytes of the longest possible list or value.
const SHORT_LIST: usize = 256;
const MAX_XATTR: usize = 64 << 10;

/// Reads everything about the listed files except their content. Returns also the files whose content is still to store, with
/// what the index knows of it.
pub(super) fn look(importing: &Importing<'_>, found: &[Found]) -> Result<(Vec<Item>, Vec<Pending>)> {
    let looked: Mutex<Vec<(Item, Known)>> = Mutex::new(Vec::with_capacity(found.len()));
    let pieces: Vec<&[Found]> = found.chunks(256).collect();
    try_each(importing.options.jobs, &pieces, &|piece| {
        let mut done = Vec::with_capacity(piece.len());
        for found in *piece {
            if let Some(item) = look_at(importing, found)? {
                done.push(item);
            }
        }
        looked.lock().append(&mut done);
        Ok(())
    })?;
    let mut items = Vec::with_capacity(found.len());
    let mut pending = Vec::new();
    for (item, known) in looked.into_inner() {
        match known {
            Known::All => {}
            Known::Content(digest) => pending.push(Pending { item: items.len(), known: Some(digest) }),
            Known::Nothing => pending.push(Pending { item: items.len(), known: None }),
        }
        items.push(item);
    }
    Ok((items, pending))
}

/// Looks at one file. Returns none if it no longer exists.
fn look_at(importing: &Importing<'_>, found: &Found) -> Result<Option<(Item, Known)>> {
    let Found { path, meta, closed, source } = found;
    let mut item = Item {
        path: path.clone(),
        meta: *meta,
        body: Body::Nothing,
        xattrs: Xattrs::new(),
        source: source.clone(),
    };
    let (top, at) = found.place(importing.top);
    match meta.kind {
        Kind::File => {
            if let Some(Source::Made(bytes)) = source.as_deref() {
                let digest = Digest::of(bytes);
                item.body = Body::Content(digest);
                return Ok(Some((item, Known::Content(digest))));
            }
            let known = importing.index.unchanged(path, &meta.stamp);
            if known.is_none_or(|known| known.xattrs) {
                item.xattrs = read_xattrs(top, at)?;
            }
            let digest = known.and_then(|known| known.content);
            if let Some(digest) = digest {
                item.body = Body::Content(digest);
            }
            return Ok(Some((item, digest.map_or(Known::Nothing, Known::Content))));
        }
        Kind::Dir if *closed => {}
        Kind::Symlink => {
            let target = match top.link(at) {
                Ok(target) => target,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => {
                    let what = format!("cannot read link {}", top.shown(at).display());
                    return Err(Error::io(e, what).with_hint(READABLE));
                }
            };
            let digest = Digest::of(&target);
            item.body = Body::Target(target, digest);
        }
        // Fifos, sockets and devices can have access control lists too.
        _ => item.xattrs = read_xattrs(top, at)?,
    }
    Ok(Some((item, Known::All)))
}
/// Whether an extended attribute belongs to the file itself. Attributes that the system sets by its own rules do not.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

/// Reads the extended attributes of a file or directory. Returns none if the filesystem has none.
pub(super) fn read_xattrs(top: &Top, path: &[u8]) -> Result<Xattrs> {
    let read = top.with_path(path, |path| xattrs_at(path).map_err(io::Error::from)).flatten();
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Xattrs::new()),
        read => read.map_err(|e| {
            Error::io(e, format!("cannot read the extended attributes of {}", top.shown(path).display()))
        }),
    }
}

fn xattrs_at(path: &Path) -> Result<Xattrs, Errno> {
    let mut found = Xattrs::new();
    // For most files, which have none, this one call is enough.
    let mut list = vec![0; SHORT_LIST];
    let length = loop {
        match rustix::fs::llistxattr(path, &mut list[..]) {
            Ok(0) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOENT) => return Ok(found),
            Ok(length) => break length,
            Err(Errno::RANGE) if list.len() < MAX_XATTR => list.resize(MAX_XATTR, 0),
            Err(e) => return Err(e),
        }
    };
    list.truncate(length);
    let mut value = vec![0; MAX_XATTR];
    for name in list.split(|b| *b == 0).filter(|name| is_kept(name)) {
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => drop(found.insert(name.to_vec(), value[..length].to_vec())),
            // The attribute or file was removed after the listing.
            Err(Errno::NODATA | Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}
