//! Import: a folder becomes an image.
//!
//! The folder is listed, and what is in it hashed, compressed and stored, on all cores; a file that an index of the last
//! import knows by its times, size and inode is not read again. The layers that a folder does not have are the parent's,
//! or `pf`'s empty forms. Nothing changed: the image that is there already, and no new one.

mod index;
mod limits;
mod look;
mod parent;
pub mod project;
mod ties;
mod tree;
mod walk;
mod witness;

use crate::layers::ignore::Ignore;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::Utc;
use serde::Serialize;

pub use crate::ops::import::index::{Index, Record, Stamp};
pub use crate::ops::import::parent::Parent;
pub use crate::ops::import::ties::{Tie, TieKind};

use crate::audit::{Log, note};
use crate::cache;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::cache::{LAYOUT, PageManifest};
use crate::layers::effects::{Header, Ledger};
use crate::layers::env::{Env, EnvV1};
use crate::layers::model::{Base, ModelDiff};
use crate::layers::procs::Procs;
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::mount::reach::Top;
use crate::ops::import::tree::{Body, Item};
use crate::ops::import::walk::{Limits, Meta, READABLE};
use crate::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use crate::store::{Batch, Image, Manifest, MarkerError, Store};
use crate::sync::Mutex;
use crate::util::meter::Meter;
use crate::util::parallel::try_each;

/// What layers say that nobody filled.
const NOTE: &str = "imported from a folder";

/// What an agent is called that is none.
const AGENT: &str = "pfimg";

/// Files up to this many bytes are held in memory as a whole, by each thread.
const WHOLE: u64 = 8 << 20;

/// A file that changes while it is read is read this often.
const ATTEMPTS: usize = 4;

/// What to import, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder.
    pub dir: PathBuf,
    /// What the new image comes from; the layers of that are taken over but for the files.
    pub parent: Parent,
    /// What to leave out.
    pub ignore: Ignore,
    /// Whether other filesystems are not entered: their mountpoints become empty folders.
    pub one_file_system: bool,
    /// Folders of this program's own (caches, logs), which are no part of an image.
    pub own: Vec<PathBuf>,
    /// Where the indices of earlier imports are kept; without one every file is read.
    pub index_dir: Option<PathBuf>,
    /// Whether every file is read though the index knows it.
    pub reread: bool,
    /// How many threads work.
    pub jobs: NonZeroUsize,
    /// What is told of an import that is not what was meant.
    pub log: Log,
}

/// What an import came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The image that holds the folder.
    pub image: Digest,
    /// Whether it was made just now; else an earlier one holds the same.
    pub new: bool,
    /// Files, and the bytes in them.
    pub files: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Files that had to be read.
    pub files_read: u64,
    /// Bytes that had to be read.
    pub bytes_read: u64,
    /// Paths that a rule left out.
    pub left_out: u64,
    /// Those of them that only default rules, or a file of rules in the folder, leave out.
    pub left_out_by_default: u64,
    /// The first of the paths left out, in order.
    pub left_out_paths: Vec<String>,
    /// Folders that were not entered: mounts of this program, its own folders, and other filesystems if they were not wanted.
    pub not_entered: Vec<String>,
    /// What names the place that it was imported from: the first of each kind, in order.
    pub ties: Vec<Tie>,
    /// How much of that there is in all.
    pub ties_total: u64,
    /// What somebody should know of, in words.
    pub reports: Vec<String>,
}

/// Is told how far an import is.
pub trait Progress: Sync {
    /// So many more files, folders and links were found.
    fn found(&self, more: u64) {
        let _ = more;
    }

    /// So many bytes are to be read.
    fn to_read(&self, bytes: u64) {
        let _ = bytes;
    }

    /// So many more were.
    fn read(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// Nobody is told.
impl Progress for () {}

/// Imports a folder; see the module.
pub fn import(store: &Store, options: &Options, progress: &dyn Progress) -> Result<Report> {
    let started_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let failed = |e| Error::io(e, format!("cannot import {}", options.dir.display()));
    let dir = fs::canonicalize(&options.dir).map_err(failed)?;
    if !fs::metadata(&dir).map_err(failed)?.is_dir() {
        let message = format!("{} is not a folder", dir.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    limits::refuse_mount(&dir)?;
    let top = Top::open(&dir).map_err(failed)?;
    let root = top.stat(b"").map_err(failed)?;
    if fs::canonicalize(store.root()).is_ok_and(|store| dir.starts_with(store)) {
        let message = format!("{} is in the store that it would be imported into", dir.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let index_path = options.index_dir.as_ref().map(|at| at.join(index_name(store, &dir)));
    let index_bytes = index_path.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let mut index = Index::parse(&index_bytes).unwrap_or_default();
    if options.reread {
        index.files.clear();
    }
    let parent = options.parent.image(store, index.image)?;
    let mut importing = Importing {
        store,
        dir: &dir,
        top: &top,
        options,
        progress,
        index,
        parent,
        reports: Mutex::default(),
    };
    let (report, records) =
        importing.run(&Meta::of(&root)).inspect_err(|e| options.log.note_failed("import", e))?;
    if report.new {
        options.log.note(note::checkpoint_taken(&dir.display().to_string(), &report.image));
    }
    if let Some(path) = index_path
        && (report.new || report.files_read > 0 || importing.index.image != Some(report.image))
    {
        let records: Vec<_> = records.iter().map(|(path, record)| (path.as_slice(), *record)).collect();
        // An index that cannot be kept costs the next import time, and nothing else.
        if let Err(e) = keep_index(&path, &Index::write(started_ns, &report.image, &records)) {
            tracing::warn!("cannot keep {}: {e}; the next import reads everything again", path.display());
        }
    }
    Ok(report)
}

/// An index's name: it is of one store and one folder.
fn index_name(store: &Store, dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let names = [store.root().as_os_str().as_bytes(), dir.as_os_str().as_bytes()].join(&0);
    format!("{}.idx", &Digest::of(&names).hex()[..32])
}

fn keep_index(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    cache::folder::make_inside(dir.parent().unwrap_or(dir), dir)?;
    let mut temp = tempfile::NamedTempFile::new_in(dir)?;
    temp.write_all(bytes)?;
    temp.persist(path)?;
    Ok(())
}

/// What files looked like when they were read, by path.
type Records = Vec<(Vec<u8>, Record)>;

/// A file whose content is not known yet, as its place among the items, with what the index knows of it.
struct Pending {
    item: usize,
    known: Option<Digest>,
}

/// What is known of something that was looked at.
enum Known {
    /// Everything: it is no file.
    All,
    /// A file's content, by the index.
    Content(Digest),
    /// Nothing of a file's content.
    Nothing,
}

/// A file that was read, as its place among the items; nothing if it was gone by then.
type Done = (usize, Option<(Meta, Digest)>);

struct Importing<'a> {
    store: &'a Store,
    dir: &'a Path,
    top: &'a Top,
    options: &'a Options,
    progress: &'a dyn Progress,
    index: Index<'a>,
    parent: Option<Image>,
    reports: Mutex<Vec<String>>,
}

impl Importing<'_> {
    fn run(&mut self, root: &Meta) -> Result<(Report, Records)> {
        let limits = Limits {
            ignore: &self.options.ignore,
            own: self.own_folders(),
            mounts: walk::mounts_below(self.dir),
            one_file_system: self.options.one_file_system,
        };
        let listing = walk::walk(self.top, root, &limits, self.options.jobs, self.progress)?;
        self.report_closed(&listing.closed);
        let root_xattrs = look::read_xattrs(self.top, b"")?;
        let (mut items, pending) = self.look(&listing.found)?;
        let ties = ties::find(self.top, &self.options.dir, &items);
        ties.words().into_iter().for_each(|line| self.report(line));
        let left = self.store.blobs().files_left();
        let batch = self.store.begin();
        let mut report = Report {
            image: Digest::of(b""),
            new: false,
            files: items.iter().filter(|item| item.meta.kind == Kind::File).count() as u64,
            bytes: 0,
            files_read: 0,
            bytes_read: 0,
            left_out: listing.left_out.count,
            left_out_by_default: listing.left_out.by_default,
            left_out_paths: listing.left_out.first.iter().map(|path| shown(path)).collect(),
            not_entered: listing.closed.iter().map(|(path, _)| shown(path)).collect(),
            ties_total: ties.total(),
            ties: ties.first,
            reports: Vec::new(),
        };
        // What an image holds that is there still needs no look at every blob.
        let mut image = None;
        if pending.iter().all(|pending| pending.known.is_some()) {
            let tree = text(root, &root_xattrs, &items)?;
            image = self.same(Digest::of(&tree))?;
        }
        if image.is_none() {
            self.store_contents(&batch, &mut items, &pending, &mut report)?;
            let tree = text(root, &root_xattrs, &items)?;
            image = self.same(Digest::of(&tree))?;
            if image.is_none() {
                let stored = batch.put(&tree)?;
                self.store.blobs().check_metadata(&stored, tree.len())?;
                let manifest = self.manifest(&batch, stored)?;
                image = Some(batch.commit(&manifest)?);
                report.new = true;
            }
        }
        report.image = image.unwrap_or(report.image);
        self.judge(&report, left, &items)?;
        let records: Records = items
            .into_iter()
            .filter_map(|item| match item.body {
                Body::Content(digest) => {
                    report.bytes += item.meta.stamp.size;
                    let record = Record { stamp: item.meta.stamp, digest, xattrs: !item.xattrs.is_empty() };
                    Some((item.path, record))
                }
                _ => None,
            })
            .collect();
        report.reports = std::mem::take(&mut *self.reports.lock());
        Ok((report, records))
    }

    fn report(&self, what: String) {
        self.reports.lock().push(what);
    }

    /// Has every content in the store. What vanished meanwhile is taken off the items.
    fn store_contents(
        &self,
        batch: &Batch<'_>,
        items: &mut Vec<Item>,
        pending: &[Pending],
        report: &mut Report,
    ) -> Result<()> {
        // Of the names of one file the first stands for all, so that they hold the same.
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
        // Large files first, so that none is left over at the end for one thread.
        work.sort_by_key(|pending| std::cmp::Reverse(items[pending.item].meta.stamp.size.max(WHOLE)));
        let unknown = work.iter().filter(|pending| pending.known.is_none());
        self.progress.to_read(unknown.map(|pending| items[pending.item].meta.stamp.size).sum());
        let done: Mutex<Vec<Done>> = Mutex::default();
        let read: Mutex<(u64, u64)> = Mutex::default();
        let view: &[Item] = items;
        try_each(self.options.jobs, &work, &|pending| {
            let item = &view[pending.item];
            if let Some(digest) = pending.known
                && self.store.blobs().keep(&digest)
            {
                batch.rely_on(digest);
                return Ok(());
            }
            let stored = self.read(batch, item)?;
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
        (report.files_read, report.bytes_read) = read.into_inner();
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
            // Its metadata is that of when it was found.
            if !gone.contains(&stand) && inode(&items[stand]) == inode(&items[item]) {
                (items[item].meta, items[item].body) = (items[stand].meta, items[stand].body.clone());
                continue;
            }
            // The name that was read for it is gone, or another file's by now.
            report.files_read += 1;
            match self.read(batch, &items[item])? {
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

    /// Reads a file and stores it; nothing if it is gone. What it returns fits together: the content is that of the
    /// file when it had these times, unless somebody writes into it all the while.
    fn read(&self, batch: &Batch<'_>, item: &Item) -> Result<Option<(Meta, Digest)>> {
        let full = self.top.shown(&item.path);
        let failed = |e| Error::io(e, format!("cannot read {}", full.display())).with_hint(READABLE);
        let report = |bytes| self.progress.read(bytes);
        let mut meter = Meter::new(item.meta.stamp.size, &report);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut file = match self.top.file(&item.path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(failed(e)),
            };
            let look = |file: &fs::File| rustix::fs::fstat(file).map_err(|e| failed(e.into()));
            let before = Meta::of(&look(&file)?);
            if before.kind != Kind::File {
                let message = format!("{} became something else while it was imported", full.display());
                return Err(
                    Error::new(ErrorKind::Busy, message).with_hint("try again when nobody writes there")
                );
            }
            let size = before.stamp.size;
            let mut bytes = Vec::new();
            let streamed = if size <= WHOLE {
                bytes.reserve_exact(size as usize + 1);
                meter.metered(&mut file).take(WHOLE + 1).read_to_end(&mut bytes).map_err(failed)?;
                None
            } else {
                let previous = self.index.files.get(item.path.as_slice()).map(|record| record.digest);
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
                self.report(format!("{} changed while it was read; a mixture is imported", full.display()));
                after.stamp.size = length;
            }
            let digest = match streamed {
                Some((digest, _)) => digest,
                None => batch.put(&bytes).map_err(|e| e.context(full.display()))?,
            };
            meter.finish();
            return Ok(Some((after, digest)));
        }
    }

    /// An image that holds just what would be imported: the one that the last import made, or the parent.
    fn same(&self, tree: Digest) -> Result<Option<Digest>> {
        let layers = self.layers(tree, &|bytes| Ok(Digest::of(&bytes)))?;
        if let Some(parent) = &self.parent
            && parent.manifest.blobs() == layers.blobs()
        {
            return Ok(Some(parent.id));
        }
        let Some(last) = self.index.image else { return Ok(None) };
        match self.store.image(&last) {
            Ok(image) => {
                let same =
                    image.manifest.blobs() == layers.blobs() && image.manifest.parents == layers.parents;
                Ok(same.then_some(last))
            }
            Err(MarkerError::Absent(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn manifest(&self, batch: &Batch<'_>, tree: Digest) -> Result<Manifest> {
        let manifest = self.layers(tree, &|bytes| batch.put(&bytes))?;
        if let Some(parent) = &self.parent {
            for (_, digest) in parent.manifest.blobs() {
                batch.rely_on(digest);
            }
            if !self.store.images().contains(&parent.id) {
                let message = format!("image {} was removed while its child was made", parent.id);
                return Err(Error::new(ErrorKind::Missing, message).with_hint("name another --parent"));
            }
        }
        Ok(manifest)
    }

    /// The manifest with its layers: the parent's, or `pf`'s empty forms, which `put` says the digests of.
    fn layers(&self, tree: Digest, put: &dyn Fn(Vec<u8>) -> Result<Digest>) -> Result<Manifest> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(parent) = &self.parent {
            let old = parent.manifest.clone();
            let world = WorldRefs { fs: tree, ..old.world };
            return Ok(Manifest { world, created_at: Utc::now(), parents: vec![parent.id], ..old });
        }
        Ok(Manifest {
            schema_version: SCHEMA_VERSION,
            media_type: MEDIA_TYPE.into(),
            agent: Agent { kind: AGENT.into(), version: env!("CARGO_PKG_VERSION").into(), fingerprint: name },
            model: ModelRefs {
                base: put(Base::Agent(AGENT.into()).to_bytes())?,
                diff: put(ModelDiff::empty(NOTE).to_bytes())?,
            },
            cache: CacheRefs { layout: LAYOUT.into(), manifest: put(PageManifest::empty(NOTE).to_bytes())? },
            world: WorldRefs {
                fs: tree,
                env: put(Env::V1(EnvV1::default()).to_bytes())?,
                procs: put(Procs::empty(std::env::consts::OS, NOTE).to_bytes())?,
            },
            effects: EffectsRefs { ledger: put(empty_ledger())? },
            trace: TraceRefs { messages: put(Vec::new())? },
            created_at: Utc::now(),
            parents: Vec::new(),
        })
    }
}

/// A path of the folder as text.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// A ledger in which nothing was done.
fn empty_ledger() -> Vec<u8> {
    Ledger { header: Header::default(), entries: Vec::new() }.to_bytes()
}

/// The tree's bytes.
fn text(root: &Meta, root_xattrs: &Xattrs, items: &[Item]) -> Result<Vec<u8>> {
    tree::build(root, root_xattrs, items.to_vec())
        .to_bytes()
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write the tree").with_source(e))
}
