//! Exports an image to a folder, with modes, times, owners, links, attributes and specials, as far as it has
//! them.
//!
//! The tree was checked when it was read: no name leads outside, and none occurs twice. Every file is made
//! relative to an opened folder, and no link is ever followed. A file whose blob is missing or damaged is
//! left out and named; everything else is exported.

mod content;
mod dest;
mod witness;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::audit::Log;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::images::times::Times;
use crate::layers::cache::PageManifest;
use crate::layers::effects;
use crate::layers::world::Kind;
use crate::mount::reach::Top;
use crate::ops::export::content::Failed;
use crate::ops::export::dest::{Attrs, Dest};
use crate::store::{Image, LayerFile, Sharing, Store, plain_folder_mode};
use crate::sync::Mutex;
use crate::tree::{IMPLIED_DIR_MODE, NodeId, NodeTimes, Tree};
use crate::util::meter::Meter;
use crate::util::parallel::try_each;

/// Files and bytes that a thread takes at once.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 8 << 20;

/// The options of an export.
#[derive(Clone, Debug)]
pub struct Options {
    /// The target; made if it does not exist, else it must be empty.
    pub dir: PathBuf,
    /// Whether to export every layer, laid out as under a mount, and not only the files of `world/fs`.
    pub all: bool,
    /// Whether a ledger's session secret is written too.
    pub reveal_secrets: bool,
    /// A cache whose files may hold exported content.
    pub cache_dir: Option<PathBuf>,
    /// How many threads work.
    pub jobs: NonZeroUsize,
    /// The log that gets violations.
    pub log: Log,
}

/// The result of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files.
    pub files: u64,
    /// Folders, except the target.
    pub folders: u64,
    /// Symbolic links and specials.
    pub others: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Files that were not exported because their blob is missing or damaged, in words.
    pub damaged: Vec<String>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// Receives the progress of an export.
pub trait Progress: Sync {
    /// The number of bytes to write.
    fn to_write(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The number of bytes written since the last call.
    fn written(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Whether to continue. Called before each file.
    fn goes_on(&self) -> bool {
        true
    }
}

/// Reports to no receiver.
impl Progress for () {}

/// Exports an image; see the module. If it fails the folder holds a part of it.
pub fn export(store: &Store, image: &Digest, options: &Options, progress: &dyn Progress) -> Result<Report> {
    let pin = store.pin(&[*image]);
    let image = store.image(image)?;
    let digest = image.manifest.world.fs;
    let about = |what: String| Error::new(ErrorKind::Damaged, format!("image {}: {what}", image.id));
    let tree = store
        .blobs()
        .read_metadata(&digest)
        .map_err(|e| Error::from(e).context(format_args!("image {}", image.id)))?;
    let tree = Arc::new(Tree::parse(&tree).map_err(|e| about(e.to_string()))?);
    let times = shown_times(store, &image, &tree, options)?;
    let made = make_empty(&options.dir)?;
    let files = if options.all { options.dir.join(LayerFile::WorldFs.path()) } else { options.dir.clone() };
    let exported = (|| {
        let mut report = Report::default();
        if options.all {
            layers(store, &image, options, &mut report)?;
        }
        let failed = |e| Error::io(e, format!("cannot open {}", files.display()));
        let exporting = Exporting {
            store,
            tree: &tree,
            times: &times,
            dir: &files,
            dest: Dest::open(&files).map_err(failed)?,
            top: Top::open(&files).map_err(failed)?,
            cache_dir: options.cache_dir.as_deref(),
            made: made && !options.all,
            progress,
            report: Mutex::new(report),
            left_out: Mutex::default(),
        };
        exporting.run(options.jobs)?;
        let differing = witness::differing_paths(&tree, &exporting.top, &exporting.left_out.lock());
        witness::judge(store, &image, pin, &files, differing, &options.log)?;
        Ok(exporting.report.into_inner())
    })();
    exported
        .map(|mut report| {
            report.damaged.sort_unstable();
            report.notes.sort_unstable();
            report
        })
        .map_err(|e: Error| {
            e.context(format_args!("{} holds only a part of image {}", options.dir.display(), image.id))
        })
}

/// The times that a mount shows for nodes without a recorded time.
fn shown_times(store: &Store, image: &Image, tree: &Arc<Tree>, options: &Options) -> Result<Arc<NodeTimes>> {
    if !tree.lacks_times() {
        return Ok(Arc::new(NodeTimes::all(0)));
    }
    let read = |digest: &Digest| {
        let bytes = store.blobs().read_metadata(digest).ok()?;
        Tree::parse(&bytes).ok().map(Arc::new)
    };
    let times = Times::new(Arc::new(Store::open(store.root())?), options.cache_dir.clone());
    Ok(times.nodes(&image.id, tree, &read)?)
}

/// Makes a folder that is closed to others, unless it exists and is empty. Returns whether it was made.
fn make_empty(dir: &Path) -> Result<bool> {
    let failed = |e| Error::io(e, format!("cannot export to {}", dir.display()));
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Ok(false);
            }
            let message = format!("{} is not empty", dir.display());
            Err(Error::new(ErrorKind::Posix(Posix::NotEmpty), message)
                .with_hint("name a directory that is empty, or not there yet"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // The folders above it get the usual mode.
            dir.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
            Sharing::Private.create_dir_all(dir).map_err(failed)?;
            Ok(true)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Writes every layer except the files, under the names that a mount shows.
fn layers(store: &Store, image: &Image, options: &Options, report: &mut Report) -> Result<()> {
    let mut put = |path: &str, bytes: &[u8]| {
        let at = options.dir.join(path);
        let made = at
            .parent()
            .map_or(Ok(()), |above| Sharing::Private.create_dir_all(above))
            .and_then(|()| Sharing::Private.create_new(&at).and_then(|mut file| file.write_all(bytes)));
        made.map_err(|e| Error::io(e, format!("cannot write {}", at.display())))?;
        (report.files, report.bytes) = (report.files + 1, report.bytes + bytes.len() as u64);
        Ok::<(), Error>(())
    };
    let mut damaged = Vec::new();
    put("manifest.json", &image.bytes)?;
    let mut blobs: Vec<(String, Digest, bool)> = Vec::new();
    for (file, digest) in image.manifest.blobs() {
        if file != LayerFile::WorldFs {
            blobs.push((file.path().to_owned(), digest, file == LayerFile::EffectsLedger));
        }
    }
    let pages = store.blobs().read_metadata(&image.manifest.cache.manifest).ok();
    for page in pages.and_then(|bytes| PageManifest::parse(&bytes).ok()).into_iter().flat_map(|m| m.pages) {
        blobs.push((format!("cache/pages/{:08}.k", page.ix), page.k, false));
        blobs.push((format!("cache/pages/{:08}.v", page.ix), page.v, false));
    }
    for (path, digest, is_ledger) in blobs {
        if is_ledger && !options.reveal_secrets {
            match store.blobs().read_metadata(&digest) {
                Ok(bytes) => put(&path, &effects::redact(&bytes))?,
                Err(error) => damaged.push(format!("{path}: {error}")),
            }
            continue;
        }
        let at = options.dir.join(&path);
        put(&path, b"")?;
        let failed = |e| Error::io(e, format!("cannot write {}", at.display()));
        let mut file = File::options().write(true).open(&at).map_err(failed)?;
        match content::write_layer(store.blobs(), &digest, &mut file) {
            Ok(_) => {}
            Err(Failed::File(e)) => return Err(failed(e)),
            Err(Failed::Blob(error)) => {
                fs::remove_file(&at).map_err(failed)?;
                damaged.push(format!("{path}: {error}"));
            }
        }
    }
    report.damaged.append(&mut damaged);
    let files = options.dir.join(LayerFile::WorldFs.path());
    let failed = |e| Error::io(e, format!("cannot create {}", files.display()));
    files.parent().map_or(Ok(()), |above| Sharing::Private.create_dir_all(above)).map_err(failed)?;
    fs::create_dir(&files).map_err(failed)
}

struct Exporting<'a> {
    store: &'a Store,
    tree: &'a Tree,
    times: &'a NodeTimes,
    dir: &'a Path,
    dest: Dest,
    /// The same folder, for the final check.
    top: Top,
    cache_dir: Option<&'a Path>,
    /// Whether the folder was made for this export, closed to others until it is whole.
    made: bool,
    progress: &'a dyn Progress,
    report: Mutex<Report>,
    /// The nodes that the report names as left out.
    left_out: Mutex<HashSet<NodeId>>,
}

/// Children of one folder that one thread takes at once.
struct Work {
    folder: NodeId,
    children: Range<u32>,
}

impl Exporting<'_> {
    fn run(&self, jobs: NonZeroUsize) -> Result<()> {
        let folders: Vec<NodeId> = self.tree.nodes().filter(|id| self.tree.kind(*id) == Kind::Dir).collect();
        for id in folders.iter().filter(|id| **id != NodeId::ROOT) {
            let parent = self.tree.path(self.tree.parent(*id));
            self.dest
                .folder(&parent)
                .and_then(|parent| Dest::make_folder(parent.as_fd(), self.tree.name(*id)))
                .map_err(|e| self.failed(*id, e))?;
        }
        let links = self.links();
        let bytes = self.tree.nodes().filter(|id| !links.contains_key(id)).map(|id| self.bytes(id)).sum();
        self.progress.to_write(bytes);
        let work: Vec<Work> = folders.iter().flat_map(|id| self.work(*id)).collect();
        try_each(jobs, &work, &|work| self.fill(work, &links))?;
        for (id, first) in &links {
            self.link(*first, *id)?;
        }
        // A folder comes after its content, which would change its time, or need permissions that the folder
        // loses.
        for id in folders.iter().rev() {
            let mut attrs = Attrs::of(self.tree, *id, self.times);
            let recorded =
                *id != NodeId::ROOT || self.tree.mtime_ns(*id).is_some() || attrs.mode != IMPLIED_DIR_MODE;
            if !recorded {
                // The mode that mkdir(2) gives.
                attrs.mode = plain_folder_mode();
            }
            if recorded || self.made {
                let refused = self
                    .dest
                    .folder(&self.tree.path(*id))
                    .and_then(|folder| self.dest.finish(folder, attrs))
                    .map_err(|e| self.failed(*id, e))?;
                self.note_refused(*id, &refused);
            }
        }
        self.report.lock().folders = folders.len() as u64 - 1;
        Ok(())
    }

    fn failed(&self, id: NodeId, error: io::Error) -> Error {
        Error::io(error, format!("cannot export {}", self.shown(id)))
    }

    fn shown(&self, id: NodeId) -> String {
        self.dir.join(String::from_utf8_lossy(&self.tree.path(id)).as_ref()).display().to_string()
    }

    fn bytes(&self, id: NodeId) -> u64 {
        if self.tree.kind(id) == Kind::File { self.tree.size(id) } else { 0 }
    }

    /// Second names of files, each with the first. Entries that claim to be one file and differ become two.
    fn links(&self) -> HashMap<NodeId, NodeId> {
        let names = self.tree.hardlinks().map(|(id, _)| (id, self.tree.file(id).0));
        names.filter(|(id, first)| id != first).collect()
    }

    fn work(&self, folder: NodeId) -> Vec<Work> {
        let mut work = Vec::new();
        let children = self.tree.children(folder);
        let (mut start, mut bytes) = (children.start, 0);
        for child in children.clone() {
            bytes += self.bytes(NodeId(child));
            let end = child + 1;
            if (end - start) as usize >= BATCH_FILES || bytes >= BATCH_BYTES || end == children.end {
                work.push(Work { folder, children: start..end });
                (start, bytes) = (end, 0);
            }
        }
        work
    }

    fn fill(&self, work: &Work, links: &HashMap<NodeId, NodeId>) -> Result<()> {
        let tree = self.tree;
        let folder = self.dest.folder(&tree.path(work.folder)).map_err(|e| self.failed(work.folder, e))?;
        let folder = folder.as_fd();
        let (mut files, mut others, mut bytes) = (0, 0, 0);
        for id in work.children.clone().map(NodeId).filter(|id| !links.contains_key(id)) {
            let (name, attrs) = (tree.name(id), Attrs::of(tree, id, self.times));
            match tree.kind(id) {
                Kind::Dir => {}
                Kind::File => {
                    if !self.file(folder, id)? {
                        continue;
                    }
                    files += 1;
                    bytes += tree.size(id);
                }
                Kind::Symlink => {
                    let target = tree.target(id).unwrap_or_default();
                    self.dest.make_link(folder, name, target, attrs).map_err(|e| self.failed(id, e))?;
                    others += 1;
                }
                kind => {
                    let made = self.dest.make_special(folder, name, kind, tree.rdev(id), attrs);
                    if made.map_err(|e| self.failed(id, e))? {
                        others += 1;
                    } else {
                        self.left_out.lock().insert(id);
                        self.note(format!("{} is left out: only root makes devices", self.shown(id)));
                    }
                }
            }
        }
        let mut report = self.report.lock();
        report.files += files;
        report.others += others;
        report.bytes += bytes;
        Ok(())
    }

    /// Exports a file; false if its blob is missing or damaged, which is then in the report.
    fn file(&self, folder: std::os::fd::BorrowedFd<'_>, id: NodeId) -> Result<bool> {
        let tree = self.tree;
        let Some(digest) = tree.blob(id) else { return Ok(false) };
        if !self.progress.goes_on() {
            return Err(Error::new(ErrorKind::Busy, "the export was interrupted")
                .with_hint("remove the directory, and export again"));
        }
        let mut file = Dest::make_file(folder, tree.name(id)).map_err(|e| self.failed(id, e))?;
        let size = tree.size(id);
        let report = |bytes| self.progress.written(bytes);
        let mut meter = Meter::new(size, &report);
        match content::write(self.store.blobs(), self.cache_dir, digest, size, &mut file, &mut meter) {
            Ok(()) => {}
            Err(Failed::File(e)) => return Err(self.failed(id, e)),
            Err(Failed::Blob(error)) => {
                let gone = rustix::fs::unlinkat(folder, tree.name(id), rustix::fs::AtFlags::empty());
                gone.map_err(|e| self.failed(id, e.into()))?;
                self.left_out.lock().insert(id);
                self.report.lock().damaged.push(format!("{}: {error}", self.shown(id)));
                return Ok(false);
            }
        }
        let refused =
            self.dest.finish(&file, Attrs::of(tree, id, self.times)).map_err(|e| self.failed(id, e))?;
        self.note_refused(id, &refused);
        meter.finish();
        Ok(true)
    }

    fn link(&self, first: NodeId, id: NodeId) -> Result<()> {
        let folder = |id| self.dest.folder(&self.tree.path(self.tree.parent(id)));
        let made = folder(first).and_then(|from| {
            let to = folder(id)?;
            Dest::link((from.as_fd(), self.tree.name(first)), (to.as_fd(), self.tree.name(id)))
        });
        match made {
            Ok(()) => {
                let mut report = self.report.lock();
                if self.tree.kind(id) == Kind::File {
                    report.files += 1;
                } else {
                    report.others += 1;
                }
                Ok(())
            }
            // The first name is damaged, or only root may make it: it was reported.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.left_out.lock().insert(id);
                self.report.lock().notes.push(format!(
                    "{} is left out with {}",
                    self.shown(id),
                    self.shown(first)
                ));
                Ok(())
            }
            // The filesystem has no hard links, or the file has too many. An immutable file accepts none
            // either.
            Err(e) if Dest::cannot_link(&e) => {
                let alone = Work { folder: self.tree.parent(id), children: id.0..id.0 + 1 };
                self.fill(&alone, &HashMap::new())?;
                let (shown, first) = (self.shown(id), self.shown(first));
                self.note(format!("{shown} is a copy of {first}: it cannot be a hard link ({e})"));
                Ok(())
            }
            Err(e) => Err(self.failed(id, e)),
        }
    }

    fn note(&self, what: String) {
        self.report.lock().notes.push(what);
    }

    fn note_refused(&self, id: NodeId, refused: &[Vec<u8>]) {
        for name in refused {
            self.note(format!(
                "{}: attribute {} cannot be set here",
                self.shown(id),
                String::from_utf8_lossy(name)
            ));
        }
    }
}
