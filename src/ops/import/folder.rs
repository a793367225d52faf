//! A directory as an import would take it in, to be compared with images and forks. It is listed and hashed, and nothing is stored.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::importing::{Importing, Pending, Special};
use super::index::{Index, Stamp};
use super::index_file::index_name;
use super::options::Options;
use super::parent::Parent;
use super::progress::Progress;
use super::tree::{Body, text};
use super::walk::{self, Limits, Meta, READABLE};
use super::{limits, look};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{BaseReader, LayerBase, View};
use crate::layers::world::Kind;
use crate::mount::reach::Top;
use crate::store::Store;
use crate::sync::Mutex;
use crate::tree::Tree;
use crate::util::meter::Meter;
use crate::util::parallel::try_each;
use sha2::Digest as _;

/// A file that changes while it is hashed is hashed this often.
const ATTEMPTS: usize = 4;

/// Bytes that are hashed at once.
const STEP: usize = 256 << 10;

/// A file that was hashed, as its place among the items; nothing if it was gone by then.
type Hashed = (usize, Option<(Meta, Digest)>);

/// Lists a directory as an import with these options would, and gives its files as those of a fork: below `world/fs`. A path that is not
/// `wanted` is not there. A file that changes before it is read is an error of the kind [`ErrorKind::Busy`].
pub fn view(
    store: &Store,
    options: &Options,
    wanted: &(dyn Fn(&[u8]) -> bool + Sync),
    progress: &dyn Progress,
) -> Result<View> {
    let failed = |e| Error::io(e, format!("cannot compare {}", options.dir.display()));
    let dir = fs::canonicalize(&options.dir).map_err(failed)?;
    limits::refuse_mount(&dir)?;
    let top = Top::open(&dir).map_err(failed)?;
    let root = Meta::of(&top.stat(b"").map_err(failed)?);
    let index_path = options.index_dir.as_ref().map(|at| at.join(index_name(store, &dir)));
    let index_bytes = index_path.and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let options = Options { parent: Parent::None, ..options.clone() };
    let importing = Importing {
        store,
        dir: &dir,
        top: &top,
        options: &options,
        special: &Special::default(),
        progress,
        index: Index::parse(&index_bytes).unwrap_or_default(),
        parent: None,
        reports: Mutex::default(),
    };
    let own = limits::own_folders(&importing);
    let limits = Limits {
        ignore: &options.ignore,
        prefix: b"",
        wanted,
        own: &own,
        mounts: walk::mounts_below(&dir),
        one_file_system: options.one_file_system,
    };
    let listing = walk::walk(&top, &root, &limits, options.jobs, progress)?;
    let (mut items, pending) = look::look(&importing, &listing.found)?;
    let unknown: Vec<&Pending> = pending.iter().filter(|pending| pending.known.is_none()).collect();
    progress.to_read(unknown.iter().map(|pending| items[pending.item].meta.stamp.size).sum());
    let hashed: Mutex<Vec<Hashed>> = Mutex::default();
    try_each(options.jobs, &unknown, &|pending| {
        let found = hash(&top, &items[pending.item].path, progress)?;
        hashed.lock().push((pending.item, found));
        Ok(())
    })?;
    let mut gone = Vec::new();
    for (item, found) in hashed.into_inner() {
        match found {
            Some((meta, digest)) => (items[item].meta, items[item].body) = (meta, Body::Content(digest)),
            None => gone.push(item),
        }
    }
    gone.sort_unstable();
    gone.iter().rev().for_each(|item| drop(items.remove(*item)));
    let tree = text(&root, &look::read_xattrs(&top, b"")?, &items)?;
    let files = items
        .into_iter()
        .filter_map(|item| match item.body {
            Body::Content(digest) => Some((digest, (item.path, item.meta.stamp))),
            _ => None,
        })
        .collect();
    let parsed = Tree::parse(&tree)
        .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("cannot compare {}: {e}", dir.display())))?;
    drop(importing);
    View::of_image(Arc::new(Reader { top, files, tree: Arc::new(parsed) }), Some(Digest::of(&tree)))
}

/// Hashes a file; nothing if it is gone.
fn hash(top: &Top, path: &[u8], progress: &dyn Progress) -> Result<Option<(Meta, Digest)>> {
    let failed = |e| Error::io(e, format!("cannot read {}", top.shown(path).display())).with_hint(READABLE);
    for _ in 0..ATTEMPTS {
        let mut file = match top.file(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let before = stat(&file).map_err(failed)?;
        if before.kind != Kind::File {
            break;
        }
        let report = |bytes| progress.read(bytes);
        let mut meter = Meter::new(before.stamp.size, &report);
        let mut reader = meter.metered(&mut file);
        let (mut hasher, mut buffer, mut length) = (sha2::Sha256::new(), vec![0; STEP], 0);
        loop {
            match reader.read(&mut buffer).map_err(failed)? {
                0 => break,
                read => {
                    hasher.update(&buffer[..read]);
                    length += read as u64;
                }
            }
        }
        meter.finish();
        if stat(&file).map_err(failed)?.stamp == before.stamp && length == before.stamp.size {
            return Ok(Some((before, Digest::from_bytes(hasher.finalize().into()))));
        }
    }
    Err(changed(top, path))
}

fn stat(file: &File) -> io::Result<Meta> {
    Ok(Meta::of(&rustix::fs::fstat(file)?))
}

fn changed(top: &Top, path: &[u8]) -> Error {
    let what = format!("{} changed while it was compared", top.shown(path).display());
    Error::new(ErrorKind::Busy, what).with_hint("try again when no program writes there")
}

/// The files of a directory, by what they held when it was listed.
struct Reader {
    top: Top,
    files: HashMap<Digest, (Vec<u8>, Stamp)>,
    tree: Arc<Tree>,
}

impl Reader {
    fn file(&self, digest: &Digest) -> Result<&(Vec<u8>, Stamp)> {
        let lost = || Error::new(ErrorKind::Missing, format!("no file of the directory holds {digest}"));
        self.files.get(digest).ok_or_else(lost)
    }
}

impl BaseReader for Reader {
    fn size(&self, digest: &Digest) -> Result<u64> {
        Ok(self.file(digest)?.1.size)
    }

    fn read(&self, digest: &Digest, _: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (path, stamp) = self.file(digest)?;
        let failed = |e| Error::io(e, format!("cannot read {}", self.top.shown(path).display()));
        let file = match self.top.file(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(changed(&self.top, path)),
            Err(e) => return Err(failed(e)),
        };
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64).map_err(failed)? {
                0 => break,
                read => done += read,
            }
        }
        // What was read is what was hashed only if the file is still the same one afterwards.
        if stat(&file).map_err(failed)?.stamp == *stamp { Ok(done) } else { Err(changed(&self.top, path)) }
    }

    fn tree(&self, _: &Digest) -> Result<Arc<Tree>> {
        Ok(Arc::clone(&self.tree))
    }

    fn layers(&self, _: &Digest) -> Result<Vec<LayerBase>> {
        Ok(Vec::new())
    }
}
