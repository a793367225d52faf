//! Reads and stores the content of the files that an import found.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};

use super::importing::{Importing, Pending};
use super::report::Report;
use super::source::{self, Source};
use super::tree::{Body, Item};
use super::walk::{Meta, READABLE};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::Kind;
use crate::store::Batch;
use crate::sync::Mutex;
use crate::util::meter::Meter;
use crate::util::parallel::try_each;

/// The largest file in bytes that a thread holds in memory as a whole.
const WHOLE: u64 = 8 << 20;

/// How often a file that changes while it is read is read again.
const ATTEMPTS: usize = 4;

/// A file that was read: its place among the items, and the result. None if the file no longer existed.
type Done = (usize, Option<(Meta, Digest)>);

/// Stores the content of all files. Removes items whose files were removed after they were listed.
pub(super) fn store(
    importing: &Importing<'_>,
    batch: &Batch<'_>,
    items: &mut Vec<Item>,
    pending: &[Pending],
    report: &mut Report,
) -> Result<()> {
    // The first name of a file represents all of its names, so that they have the same content.
    let mut leaders: HashMap<(u64, u64), usize> = HashMap::new();
    let mut work = Vec::new();
    let mut followers = Vec::new();
    for pending in pending {
        let meta = &items[pending.item].meta;
        let leader = match meta.links {
            0 | 1 => pending.item,
            _ => *leaders.entry((meta.stamp.dev, meta.stamp.ino)).or_insert(pending.item),
        };
        if leader == pending.item {
            work.push(pending);
        } else {
            followers.push((pending.item, leader));
        }
    }
    // Large files first, so that no thread has to read one alone at the end.
    work.sort_by_key(|pending| std::cmp::Reverse(items[pending.item].meta.stamp.size.max(WHOLE)));
    let unknown = work.iter().filter(|pending| pending.known.is_none());
    importing.progress.to_read(unknown.map(|pending| items[pending.item].meta.stamp.size).sum());
    let done: Mutex<Vec<Done>> = Mutex::default();
    let read: Mutex<(u64, u64)> = Mutex::default();
    let view: &[Item] = items;
    try_each(importing.options.jobs, &work, &|pending| {
        let item = &view[pending.item];
        if let Some(digest) = pending.known
            && importing.store.blobs().keep(&digest)
        {
            batch.require(digest);
            return Ok(());
        }
        let stored = read_file(importing, batch, item)?;
        let mut read = read.lock();
        read.0 += 1;
        read.1 += stored.map_or(0, |(meta, _)| meta.stamp.size);
        drop(read);
        done.lock().push((pending.item, stored));
        Ok(())
    })?;
    for item in items.iter() {
        if let Body::Target(target, _) = &item.body {
            batch.put(target)?;
        }
    }
    let (files, bytes) = read.into_inner();
    report.files_read += files;
    report.bytes_read += bytes;
    let mut gone = HashSet::new();
    for (item, stored) in done.into_inner() {
        match stored {
            Some((meta, digest)) => (items[item].meta, items[item].body) = (meta, Body::Content(digest)),
            None => drop(gone.insert(item)),
        }
    }
    let inode = |item: &Item| (item.meta.stamp.dev, item.meta.stamp.ino);
    let mut stands: HashMap<usize, usize> = HashMap::new();
    for (item, leader) in followers {
        let stand = *stands.get(&leader).unwrap_or(&leader);
        // The item's metadata is still that of the listing, so its inode says whether both names are one file.
        if !gone.contains(&stand) && inode(&items[stand]) == inode(&items[item]) {
            (items[item].meta, items[item].body) = (items[stand].meta, items[stand].body.clone());
            continue;
        }
        // The name that was read for this file no longer exists, or now belongs to another file.
        report.files_read += 1;
        match read_file(importing, batch, &items[item])? {
            Some((meta, digest)) => {
                report.bytes_read += meta.stamp.size;
                if (meta.stamp.dev, meta.stamp.ino) == inode(&items[item]) {
                    stands.insert(leader, item);
                }
                (items[item].meta, items[item].body) = (meta, Body::Content(digest));
            }
            None => drop(gone.insert(item)),
        }
    }
    if !gone.is_empty() {
        let mut number = 0;
        items.retain(|_| {
            number += 1;
            !gone.contains(&(number - 1))
        });
    }
    Ok(())
}

/// Reads and stores a file. Returns none if the file no longer exists. The returned content and times are of the same moment,
/// unless another program keeps writing to the file.
fn read_file(importing: &Importing<'_>, batch: &Batch<'_>, item: &Item) -> Result<Option<(Meta, Digest)>> {
    if let Some(Source::Made(bytes)) = item.source.as_deref() {
        return Ok(Some((item.meta, batch.put(bytes)?)));
    }
    let (top, path) = source::place(item.source.as_deref(), importing.top, &item.path);
    let full = top.shown(path);
    let failed = |e| Error::io(e, format!("cannot read {}", full.display())).with_hint(READABLE);
    let report = |bytes| importing.progress.read(bytes);
    let mut meter = Meter::new(item.meta.stamp.size, &report);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut file = match top.file(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let look = |file: &fs::File| rustix::fs::fstat(file).map_err(|e| failed(e.into()));
        let before = Meta::of(&look(&file)?);
        if before.kind != Kind::File {
            let message = format!("{} was replaced while it was imported", full.display());
            return Err(Error::new(ErrorKind::Busy, message)
                .with_hint("stop programs that write there, and try again"));
        }
        let size = before.stamp.size;
        let mut bytes = Vec::new();
        let streamed = if size <= WHOLE {
            bytes.reserve_exact(size as usize + 1);
            meter.metered(&mut file).take(WHOLE + 1).read_to_end(&mut bytes).map_err(failed)?;
            None
        } else {
            let previous =
                importing.index.records.get(item.path.as_slice()).and_then(|record| record.content);
            let stored = batch.write_seekable(previous, &mut meter.metered(&mut file));
            Some(stored.map_err(|e| e.context(full.display()))?)
        };
        let mut after = Meta::of(&look(&file)?);
        let length = streamed.map_or(bytes.len() as u64, |(_, length)| length);
        let changed = after.stamp != before.stamp || length != size;
        if changed && attempt < ATTEMPTS {
            continue;
        }
        if changed {
            importing.report(format!(
                "{} changed while being read; the imported copy may mix old and new data",
                full.display()
            ));
            after.stamp.size = length;
        }
        let digest = match streamed {
            Some((digest, _)) => digest,
            None => batch.put(&bytes).map_err(|e| e.context(full.display()))?,
        };
        if item.source.is_some() {
            // The file's other names are not in the image.
            after.links = 1;
        }
        meter.finish();
        return Ok(Some((after, digest)));
    }
}
