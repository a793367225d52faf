//! Support for interleaving tests: images in memory, file calls that let other threads run, and checks of forks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use shuttle::thread::{self, JoinHandle};

use super::super::{
    Attr, BaseReader, BlobRef, Fork, Frozen, Ino, Io, LayerBase, NewFile, Options, Registry, Sealed,
};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::{Entry, FsTree, Kind};
use crate::store::{Sharing, StoreIo, SystemIo};
use crate::sync::{Mutex, step};
use crate::tree::Tree;

/// File calls that let another thread run first. An fsync does nothing, since no schedule cuts the power.
pub(super) struct Steps;

impl StoreIo for Steps {
    fn create_dir_below(&self, root: &Path, dir: &Path, sharing: Sharing) -> io::Result<()> {
        step();
        SystemIo.create_dir_below(root, dir, sharing)
    }
    fn create(&self, path: &Path, sharing: Sharing) -> io::Result<File> {
        step();
        SystemIo.create(path, sharing)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        step();
        SystemIo.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        step();
        SystemIo.link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        step();
        SystemIo.remove(path)
    }
    fn sync_file(&self, _: &Path, _: &File) -> io::Result<()> {
        step();
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        step();
        Ok(())
    }
}

impl Io for Steps {
    fn sync_data(&self, _: &File) -> io::Result<()> {
        step();
        Ok(())
    }
}

/// A store of images in memory.
#[derive(Default)]
pub(super) struct Images {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    entries: Mutex<BTreeMap<Digest, BTreeMap<String, Entry<'static>>>>,
}

impl Images {
    fn blob<T>(&self, digest: &Digest, use_it: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let blobs = self.blobs.lock();
        blobs
            .get(digest)
            .map(|blob| use_it(blob))
            .ok_or_else(|| Error::new(ErrorKind::Missing, format!("no blob {digest}")))
    }

    fn put(&self, bytes: Vec<u8>) -> BlobRef {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.blobs.lock().insert(digest, bytes);
        BlobRef { digest, size }
    }

    /// An image of these files of `world/fs`.
    pub(super) fn add(&self, entries: BTreeMap<String, Entry<'static>>) -> Digest {
        let id = Digest::of(format!("{entries:?}").as_bytes());
        self.entries.lock().insert(id, entries);
        id
    }

    /// Makes an image of a frozen fork as a sealer does, of plain files in `world/fs`.
    pub(super) fn seal(&self, frozen: &Frozen) -> Result<(Digest, Sealed)> {
        let changes = frozen.changes()?;
        let before = frozen.image().and_then(|id| self.entries.lock().get(&id).cloned());
        let (mut entries, mut sealed) = (before.unwrap_or_default(), Sealed::new());
        for path in &changes.removed {
            entries.remove(in_world(path));
        }
        for (path, put) in &changes.put {
            let Some(content) = put.inode.content() else { continue };
            let mut bytes = vec![0; content.size as usize];
            let read = frozen.read(content, 0, &mut bytes)?;
            assert_eq!(read, bytes.len());
            let blob = self.put(bytes);
            sealed.insert(path.clone(), blob);
            let mut entry = Entry::new(in_world(path).to_owned(), Kind::File, put.inode.mode);
            (entry.blob, entry.size) = (Some(blob.digest), blob.size);
            entries.insert(in_world(path).to_owned(), entry);
        }
        Ok((self.add(entries), sealed))
    }
}

/// The image without any file.
pub(super) fn empty() -> Digest {
    Digest::of(b"{}")
}

fn in_world(path: &[u8]) -> &str {
    std::str::from_utf8(path).unwrap().strip_prefix("world/fs/").unwrap()
}

impl BaseReader for Images {
    fn size(&self, digest: &Digest) -> Result<u64> {
        self.blob(digest, |blob| blob.len() as u64)
    }

    fn read(&self, digest: &Digest, _: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.blob(digest, |blob| {
            let rest = &blob[(offset as usize).min(blob.len())..];
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        })
    }

    fn tree(&self, image: &Digest) -> Result<Arc<Tree>> {
        let entries = self.entries.lock().get(image).cloned();
        let entries = entries.ok_or_else(|| Error::new(ErrorKind::NotFound, "no image"))?;
        let tree = FsTree { entries: entries.into_values().collect(), ..FsTree::default() };
        Ok(Arc::new(Tree::parse(&tree.to_bytes().unwrap()).unwrap()))
    }

    fn layers(&self, _: &Digest) -> Result<Vec<LayerBase>> {
        Ok(Vec::new())
    }
}

/// A store with forks, for one schedule.
pub(super) struct World {
    pub(super) images: Arc<Images>,
    pub(super) registry: Arc<Registry>,
    dir: tempfile::TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        // In memory if possible: each of thousands of schedules makes a store.
        let memory = Path::new("/dev/shm");
        let dir = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap();
        let images = Arc::new(Images::default());
        assert_eq!(images.add(BTreeMap::new()), empty());
        let registry = Arc::new(open(dir.path(), &images));
        Self { images, registry, dir }
    }

    /// Opens the store again, as another program would: no fork is in memory then.
    pub(super) fn reopen(mut self) -> Self {
        drop(Arc::into_inner(self.registry).expect("no thread uses the registry"));
        self.registry = Arc::new(open(self.dir.path(), &self.images));
        self
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        thread: impl FnOnce(&Registry) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let registry = Arc::clone(&self.registry);
        thread::spawn(move || thread(&registry))
    }

    /// A fork of an empty image, with one file.
    pub(super) fn fork(&self, name: &str, file: &str) -> Arc<Fork> {
        let fork = self.registry.create(name, Some(empty())).unwrap();
        write(&fork, file, file.as_bytes()).unwrap();
        fork
    }

    fn head(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("forks/heads/{name}.json"))).unwrap_or_default()
    }

    /// Asserts what must hold after every schedule: a fork that takes writes has a head and is listed, each name leads to its
    /// own fork, and all forks are sound when they are opened again. `made` are the forks that threads were given.
    pub(super) fn judge(self, made: Vec<Arc<Fork>>) -> Self {
        for fork in made {
            if write(&fork, "probe", b"probe").is_err() {
                continue;
            }
            let name = fork.name();
            assert!(self.head(&name).contains(fork.uid()), "fork {name:?} takes writes and has no head");
            let listed = self.registry.get(&name).expect("a fork that takes writes is listed");
            assert!(Arc::ptr_eq(&listed, &fork), "name {name:?} leads to another fork");
        }
        for name in self.registry.names() {
            assert!(!self.head(&name).is_empty(), "fork {name:?} is listed and has no head");
            assert_eq!(self.registry.get(&name).expect("a listed fork can be read").name(), name);
        }
        let listed = self.registry.names();
        let again = self.reopen();
        assert_eq!(again.registry.names(), listed, "another opener finds other forks");
        for name in listed {
            let fork = again.registry.get(&name).unwrap();
            assert_eq!(fork.damage(), None, "fork {name:?} is damaged when it is opened again");
        }
        again
    }

    /// Content of a file of a fork.
    pub(super) fn read(&self, fork: &str, file: &str) -> Option<Vec<u8>> {
        read(&self.registry.get(fork).unwrap(), file)
    }
}

fn open(dir: &Path, images: &Arc<Images>) -> Registry {
    let options = Options { io: Arc::new(Steps), ..Options::default() };
    Registry::open(dir, images.clone(), options).unwrap()
}

/// Waits for threads and returns their results.
pub(super) fn ended<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn file(fork: &Fork, name: &str) -> Result<Attr> {
    let new = NewFile::new(Kind::File, 0o644, 0, 0);
    fork.lookup(Ino::FS, name.as_bytes()).or_else(|_| fork.create(Ino::FS, name.as_bytes(), &new))
}

/// Writes this content to a file of a fork, from its beginning on.
pub(super) fn write(fork: &Fork, name: &str, bytes: &[u8]) -> Result<()> {
    let file = file(fork, name)?;
    let mut done = 0;
    while done < bytes.len() {
        done += fork.write(file.ino, done as u64, &bytes[done..], false)?;
    }
    Ok(())
}

pub(super) fn read(fork: &Fork, name: &str) -> Option<Vec<u8>> {
    let file = fork.lookup(Ino::FS, name.as_bytes()).ok()?;
    Some(fork.read_vec(file.ino, 0, usize::MAX).expect("a file of a sound fork can be read"))
}
