//! Import: a folder becomes an image.
//!
//! The folder is listed, and what is in it hashed, compressed and stored, on all cores; a file that an index of the last
//! import knows by its times, size and inode is not read again. Git repositories that rest on another folder become whole
//! ones. The layers that a folder does not have are the parent's, or `pf`'s empty forms. Nothing changed: the image that is
//! there already, and no new one.

mod commit;
mod contents;
mod git;
pub(in crate::ops) mod index;
mod large;
mod limits;
mod look;
mod parent;
pub mod project;
mod rules;
mod settle;
mod source;
mod ties;
pub(in crate::ops) mod tree;
pub(in crate::ops) mod walk;
mod witness;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::Utc;
use serde::Serialize;

pub use crate::ops::import::git::{Mended, MendedKind};
pub use crate::ops::import::index::{Index, Record, Stamp};
pub use crate::ops::import::large::{LARGE, Large};
pub use crate::ops::import::parent::Parent;
pub use crate::ops::import::rules::{LeftOutBy, rules};
pub use crate::ops::import::ties::{Tie, TieKind};

use crate::audit::{Log, note};
use crate::cache;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::cache::{LAYOUT, PageManifest};
use crate::layers::effects::{Header, Ledger};
use crate::layers::env::{Env, EnvV1};
use crate::layers::ignore::Ignore;
use crate::layers::model::{Base, ModelDiff};
use crate::layers::procs::Procs;
use crate::layers::world::Kind;
use crate::layers::xattrs::Xattrs;
use crate::mount::reach::Top;
use crate::ops::import::git::Standing;
use crate::ops::import::source::Source;
use crate::ops::import::tree::{Body, Item};
use crate::ops::import::walk::{Found, Limits, Listing, Meta};
use crate::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use crate::store::{Batch, Image, Manifest, MarkerError, Store};
use crate::sync::Mutex;

/// What layers say that nobody filled.
const NOTE: &str = "imported from a folder";

/// What an agent is called that is none.
const AGENT: &str = "pfimg";

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

impl Options {
    /// Everything of a folder, with nothing kept for the next import.
    pub fn new(dir: impl Into<PathBuf>, log: Log) -> Self {
        Self {
            dir: dir.into(),
            parent: Parent::Last,
            ignore: Ignore::default(),
            one_file_system: false,
            own: Vec::new(),
            index_dir: None,
            reread: false,
            jobs: NonZeroUsize::MIN,
            log,
        }
    }
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
    /// The same by where the rule comes from.
    pub left_out_by: LeftOutBy,
    /// The first of the paths left out, in order.
    pub left_out_paths: Vec<String>,
    /// Large folders that look as if they can be made again.
    pub large: Vec<Large>,
    /// Git repositories that the image holds whole, and the folder does not.
    pub mended: Vec<Mended>,
    /// Folders that were not entered: mounts of this program, its own folders, and other filesystems if they were not wanted.
    pub not_entered: Vec<String>,
    /// What names the place that it was imported from: the first of each kind, in order.
    pub ties: Vec<Tie>,
    /// How much of that there is in all.
    pub ties_total: u64,
    /// What somebody should know of, in words.
    pub reports: Vec<String>,
}

impl Report {
    /// What is known before the folder's files are looked at.
    fn of(listing: &Listing, found: &[Found]) -> Self {
        let (files, bytes) = totals(found.iter().map(|found| &found.meta));
        Self {
            image: Digest::of(b""),
            new: false,
            files,
            bytes,
            files_read: 0,
            bytes_read: 0,
            left_out: listing.left_out.count,
            left_out_by: listing.left_out.by,
            left_out_paths: listing.left_out.first.iter().map(|path| shown(path)).collect(),
            large: Vec::new(),
            mended: Vec::new(),
            not_entered: listing.closed.iter().map(|(path, _)| shown(path)).collect(),
            ties: Vec::new(),
            ties_total: 0,
            reports: Vec::new(),
        }
    }
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

impl Progress for () {}

/// Imports a folder; see the module.
pub fn import(store: &Store, options: &Options, progress: &dyn Progress) -> Result<Report> {
    import_as(store, options, &Special::default(), progress)
}

/// How an import differs from that of a folder as it is.
#[derive(Default)]
struct Special {
    /// Whether a folder that did not change needs no report of what it holds. That is the fastest way to notice it.
    brief: bool,
    /// Where the repository at the top stands.
    standing: Option<Standing>,
    /// The folder whose index tells what need not be read. That index is not replaced.
    known_as: Option<PathBuf>,
}

fn import_as(store: &Store, options: &Options, special: &Special, progress: &dyn Progress) -> Result<Report> {
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
    let known_as = special.known_as.as_deref().unwrap_or(&dir);
    let index_path = options.index_dir.as_ref().map(|at| at.join(index_name(store, known_as)));
    let index_bytes = index_path.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let mut index = Index::parse(&index_bytes).unwrap_or_default();
    if options.reread {
        index.records.clear();
    }
    let parent = options.parent.image(store, index.image)?;
    let mut importing = Importing {
        store,
        dir: &dir,
        top: &top,
        options,
        special,
        progress,
        index,
        parent,
        reports: Mutex::default(),
    };
    let (report, records) =
        importing.run(&Meta::of(&root)).inspect_err(|e| options.log.note_failed("import", e))?;
    if report.new {
        options.log.note(note::checkpoint_taken(&known_as.display().to_string(), &report.image));
    }
    if let (Some(path), Some(records), None) = (index_path, records, &special.known_as) {
        let records: Vec<_> = records.iter().map(|(path, record)| (path.as_slice(), *record)).collect();
        // An index that cannot be kept costs the next import time, and nothing else.
        if let Err(e) = keep_index(&path, &Index::write(started_ns, &report.image, &records)) {
            tracing::warn!("cannot keep {}: {e}; the next import reads everything again", path.display());
        }
    }
    Ok(report)
}

/// The image that the last import of a folder into a store made, as its index in `index_dir` says.
fn last_image(store: &Store, dir: &Path, index_dir: &Path) -> Option<Digest> {
    let bytes = fs::read(index_dir.join(index_name(store, dir))).ok()?;
    Index::parse(&bytes)?.image
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

/// What the image's paths looked like, for the next import.
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

struct Importing<'a> {
    store: &'a Store,
    dir: &'a Path,
    top: &'a Top,
    options: &'a Options,
    special: &'a Special,
    progress: &'a dyn Progress,
    index: Index<'a>,
    parent: Option<Image>,
    reports: Mutex<Vec<String>>,
}

impl Importing<'_> {
    /// Imports the folder. The index is as good as before where it returns no records.
    fn run(&mut self, root: &Meta) -> Result<(Report, Option<Records>)> {
        let own = self.own_folders();
        let limits = Limits {
            ignore: &self.options.ignore,
            prefix: b"",
            wanted: &|_| true,
            own: &own,
            mounts: walk::mounts_below(self.dir),
            one_file_system: self.options.one_file_system,
        };
        let mut listing = walk::walk(self.top, root, &limits, self.options.jobs, self.progress)?;
        let whole = self.mend(&mut listing, &limits, self.progress)?;
        self.report_closed(&listing.closed);
        let found = std::mem::take(&mut listing.found);
        let mut report = Report::of(&listing, &found);
        report.mended = whole.mended;
        if self.special.brief
            && let Some(image) = self.unchanged(root, &found)
        {
            report.image = image;
            return Ok((report, None));
        }
        report.large = large::find(&found, LARGE);
        let root_xattrs = look::read_xattrs(self.top, b"")?;
        let (mut items, pending) = self.look(&found)?;
        drop(found);
        let ties = ties::find(self.top, &self.options.dir, &items, whole.ties);
        ties.words().into_iter().for_each(|line| self.report(line));
        (report.ties_total, report.ties) = (ties.total(), ties.first);
        let left = self.store.blobs().files_left();
        let batch = self.store.begin();
        // What an image holds that is there still needs no look at every blob.
        let mut image = None;
        if pending.iter().all(|pending| pending.known.is_some()) {
            let tree = text(root, &root_xattrs, &items)?;
            image = self.same(Digest::of(&tree))?;
        }
        if image.is_none() {
            self.store_contents(&batch, &mut items, &pending, &mut report)?;
            self.settle(&batch, (&limits, root), &whole.repositories, &mut items, &mut report)?;
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
        (report.files, report.bytes) = totals(items.iter().map(|item| &item.meta));
        let of_root = Record { stamp: root.stamp, content: None, xattrs: !root_xattrs.is_empty() };
        let mut records: Records = vec![(Vec::new(), of_root)];
        records.extend(items.into_iter().map(|item| {
            let content = if let Body::Content(digest) = item.body { Some(digest) } else { None };
            (item.path, Record { stamp: item.meta.stamp, content, xattrs: !item.xattrs.is_empty() })
        }));
        self.report_mended(&report);
        report.reports = std::mem::take(&mut *self.reports.lock());
        let mut told = HashSet::new();
        report.reports.retain(|line| told.insert(line.clone()));
        let is_known = |(path, record): &(Vec<u8>, Record)| {
            self.index.unchanged(path, &record.stamp).is_some_and(|known| known == *record)
        };
        let same = self.index.image == Some(report.image)
            && self.index.records.len() == records.len()
            && records.iter().all(is_known);
        Ok((report, (!same).then_some(records)))
    }

    /// The image that the last import made, if everything is as the index has it and the image would be no other one.
    fn unchanged(&self, root: &Meta, found: &[Found]) -> Option<Digest> {
        let image =
            self.parent.as_ref().map(|parent| parent.id).filter(|id| self.index.image == Some(*id))?;
        let is_same = |found: &Found| {
            let record = self.index.unchanged(&found.path, &found.meta.stamp);
            record.is_some_and(|record| match found.source.as_deref() {
                Some(Source::Made(bytes)) => record.content == Some(Digest::of(bytes)),
                _ => true,
            })
        };
        let same = found.len() + 1 == self.index.records.len()
            && self.index.unchanged(b"", &root.stamp).is_some()
            && found.iter().all(is_same);
        same.then_some(image)
    }

    fn report(&self, what: String) {
        self.reports.lock().push(what);
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
        let agent =
            Agent { kind: AGENT.into(), version: env!("CARGO_PKG_VERSION").into(), fingerprint: name };
        with_empty_layers(agent, tree, Vec::new(), put)
    }
}

/// A manifest of a tree whose other layers are `pf`'s empty forms, which `put` says the digests of.
pub(in crate::ops) fn with_empty_layers(
    agent: Agent,
    tree: Digest,
    parents: Vec<Digest>,
    put: &dyn Fn(Vec<u8>) -> Result<Digest>,
) -> Result<Manifest> {
    Ok(Manifest {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent,
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
        parents,
    })
}

/// How many files there are, and the bytes in them.
fn totals<'a>(all: impl Iterator<Item = &'a Meta>) -> (u64, u64) {
    let files = all.filter(|meta| meta.kind == Kind::File);
    files.fold((0, 0), |(files, bytes), meta| (files + 1, bytes + meta.stamp.size))
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
