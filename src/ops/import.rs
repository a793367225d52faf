//! Imports a folder as an image.
//!
//! The import lists the folder, then hashes, compresses and stores its files on all cores. It does not read a file again if the
//! index of the last import knows its times, size and inode. A git repository that depends on another folder becomes a complete
//! one in the image. Layers that a folder does not have come from the parent, or are `pf`'s empty forms. If nothing changed, the
//! result is the existing image.

mod commit;
mod contents;
pub mod folder;
mod git;
pub(in crate::ops) mod index;
mod large;
mod limits;
mod look;
mod parent;
pub mod project;
mod recheck;
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
pub use crate::ops::import::index::{InOrder, Index, Record, Stamp};
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

/// The note in empty layers. It is a part of images, so it must not change.
const NOTE: &str = "imported from a folder";

/// The agent of an image that no agent made.
const AGENT: &str = "pfimg";

/// The options of an import.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder to import.
    pub dir: PathBuf,
    /// The parent of the new image, which gets the parent's layers except the files.
    pub parent: Parent,
    /// The rules for paths to leave out.
    pub ignore: Ignore,
    /// Whether to skip other filesystems: their mountpoints become empty folders.
    pub one_file_system: bool,
    /// Folders of this program, such as caches and logs, which images never contain.
    pub own: Vec<PathBuf>,
    /// The folder of the indices of earlier imports. Without one, every file is read.
    pub index_dir: Option<PathBuf>,
    /// Whether to read every file, even if the index knows it.
    pub reread: bool,
    /// The number of threads.
    pub jobs: NonZeroUsize,
    /// The log that gets violations.
    pub log: Log,
}

impl Options {
    /// Options to import all of a folder, without an index.
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

/// The result of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The image that holds the folder.
    pub image: Digest,
    /// Whether the image is new. If not, an earlier one has the same content.
    pub new: bool,
    /// Number of files.
    pub files: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Number of files that were read.
    pub files_read: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Number of paths that a rule left out.
    pub left_out: u64,
    /// Number of paths left out, by the source of the rule.
    pub left_out_by: LeftOutBy,
    /// The first of the paths left out, in order.
    pub left_out_paths: Vec<String>,
    /// Large folders that tools can probably make again.
    pub large: Vec<Large>,
    /// Git repositories that are complete only in the image.
    pub mended: Vec<Mended>,
    /// Folders that were not entered: mounts of this program, its own folders, and with `one_file_system` other filesystems.
    pub not_entered: Vec<String>,
    /// Files that refer to the imported folder by its path: the first of each kind, in order.
    pub ties: Vec<Tie>,
    /// Total number of such files.
    pub ties_total: u64,
    /// Messages for the user.
    pub reports: Vec<String>,
}

impl Report {
    /// The report of an import that made no image, since no file changed.
    fn unchanged(image: Digest, (files, bytes): recheck::Totals) -> Self {
        Self { image, files, bytes, ..Self::of(&Listing::default(), &[]) }
    }

    /// The parts of a report that are known before files are read.
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

/// Receives the progress of an import.
pub trait Progress: Sync {
    /// The number of files, folders and links found since the last call.
    fn found(&self, more: u64) {
        let _ = more;
    }

    /// The number of bytes to read.
    fn to_read(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The number of bytes read since the last call.
    fn read(&self, bytes: u64) {
        let _ = bytes;
    }
}

impl Progress for () {}

/// Imports a folder; see the module.
pub fn import(store: &Store, options: &Options, progress: &dyn Progress) -> Result<Report> {
    import_as(store, options, &Special::default(), progress)
}

/// Settings of an import of a project or a commit.
#[derive(Default)]
struct Special {
    /// Whether it is for a run. The report of an unchanged folder may then lack everything but the image and the totals, which is
    /// the fastest way to find that nothing changed.
    for_run: bool,
    /// The state of the repository at the top of the image.
    standing: Option<Standing>,
    /// The folder whose index says which files need not be read. The import does not replace that index.
    known_as: Option<PathBuf>,
}

fn import_as(store: &Store, options: &Options, special: &Special, progress: &dyn Progress) -> Result<Report> {
    let started_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let failed = |e| Error::io(e, format!("cannot import {}", options.dir.display()));
    let dir = fs::canonicalize(&options.dir).map_err(failed)?;
    if !fs::metadata(&dir).map_err(failed)?.is_dir() {
        let message = format!("{} is not a directory", dir.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    limits::refuse_mount(&dir)?;
    let top = Top::open(&dir).map_err(failed)?;
    let root = top.stat(b"").map_err(failed)?;
    if fs::canonicalize(store.root()).is_ok_and(|store| dir.starts_with(store)) {
        let message = format!("{} is in the store into which it would be imported", dir.display());
        return Err(
            Error::new(ErrorKind::InvalidInput, message).with_hint("name a directory outside of the store")
        );
    }
    let known_as = special.known_as.as_deref().unwrap_or(&dir);
    let index_path = options.index_dir.as_ref().map(|at| at.join(index_name(store, known_as)));
    let index_bytes = index_path.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let mut index = InOrder::parse(&index_bytes).unwrap_or_default();
    if options.reread {
        index.records.clear();
    }
    let parent = options.parent.image(store, index.image)?;
    let own = [options.own.as_slice(), &[store.root().to_owned()]].concat();
    let limits = recheck::limits(&dir, &options.ignore, options.one_file_system, &own);
    let root = Meta::of(&root);
    if special.for_run
        && let Some(image) = parent.as_ref().map(|parent| parent.id).filter(|id| index.image == Some(*id))
        && index.limits == Some(limits)
        && let Some(totals) = recheck::unchanged(&index, &top, &root, options.jobs, progress)
    {
        return Ok(Report::unchanged(image, totals));
    }
    let mut importing = Importing {
        store,
        dir: &dir,
        top: &top,
        options,
        special,
        progress,
        index: index.by_path(),
        parent,
        reports: Mutex::default(),
    };
    let (report, records) =
        importing.run(&root, limits).inspect_err(|e| options.log.note_failed("import", e))?;
    if report.new {
        options.log.note(note::checkpoint_taken(&known_as.display().to_string(), &report.image));
    }
    if let (Some(path), Some(records), None) = (index_path, records, &special.known_as) {
        let Records { limits, all } = records;
        let all: Vec<_> = all.iter().map(|(path, record)| (path.as_slice(), *record)).collect();
        // Without an index the next import only takes longer.
        if let Err(e) = keep_index(&path, &Index::write(started_ns, &report.image, limits, &all)) {
            tracing::warn!("cannot write {}: {e}; the next import reads all files again", path.display());
        }
    }
    Ok(report)
}

/// Returns the image that the last import of a folder into a store made, from its index in `index_dir`.
fn last_image(store: &Store, dir: &Path, index_dir: &Path) -> Option<Digest> {
    let bytes = fs::read(index_dir.join(index_name(store, dir))).ok()?;
    Index::parse(&bytes)?.image
}

/// Returns the name of the index of one store and one folder.
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

/// The records of all paths of an image, for the next import.
struct Records {
    /// As in [`Index`].
    limits: Option<Digest>,
    all: Vec<(Vec<u8>, Record)>,
}

/// A file whose content is not yet stored: its place among the items, and its content by the index.
struct Pending {
    item: usize,
    known: Option<Digest>,
}

/// What is known of a file after it was looked at.
enum Known {
    /// Everything: it is not a regular file.
    All,
    /// The content of a regular file, by the index.
    Content(Digest),
    /// Nothing about the content of a regular file.
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
    /// Imports the folder. `identity` identifies the limits. Returns no records if the index is still up to date.
    fn run(&mut self, root: &Meta, identity: Digest) -> Result<(Report, Option<Records>)> {
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
        // Other files can change the image of a repository that depends on them.
        let depends_on_records_alone = self.special.standing.is_none()
            && limits.mounts.is_empty()
            && (listing.closed.is_empty() && whole.mended.is_empty() && whole.ties.is_empty())
            && found.iter().all(|found| found.source.is_none());
        let identity = depends_on_records_alone.then_some(identity);
        report.mended = whole.mended;
        if self.special.for_run
            && self.index.limits == identity
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
        // A run shows its fork at the project's own path. The text comes from `words`.
        ties.words(self.special.for_run).into_iter().for_each(|line| self.report(line));
        (report.ties_total, report.ties) = (ties.total(), ties.first);
        let left = self.store.blobs().files_left();
        let batch = self.store.begin();
        // If an existing image has this content, its blobs need not be checked one by one.
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
        let mut records = vec![(Vec::new(), of_root)];
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
        let same = (self.index.image, self.index.limits) == (Some(report.image), identity)
            && self.index.records.len() == records.len()
            && records.iter().all(is_known);
        Ok((report, (!same).then_some(Records { limits: identity, all: records })))
    }

    /// Returns the image of the last import, if all paths match the index, and a new image would be the same.
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

    /// Returns an existing image with exactly the content to import: the parent, or the image of the last import.
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

    /// Makes the manifest. Its other layers are the parent's, or `pf`'s empty forms, whose digests `put` returns.
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

/// Counts files and their bytes.
fn totals<'a>(all: impl Iterator<Item = &'a Meta>) -> (u64, u64) {
    let files = all.filter(|meta| meta.kind == Kind::File);
    files.fold((0, 0), |(files, bytes), meta| (files + 1, bytes + meta.stamp.size))
}

/// Returns a path of the folder as text.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Returns an empty ledger.
fn empty_ledger() -> Vec<u8> {
    Ledger { header: Header::default(), entries: Vec::new() }.to_bytes()
}

/// Returns the bytes of the tree.
fn text(root: &Meta, root_xattrs: &Xattrs, items: &[Item]) -> Result<Vec<u8>> {
    tree::build(root, root_xattrs, items.to_vec())
        .to_bytes()
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write the tree").with_source(e))
}
