//! A disk that fails at a chosen call, or stops after it, and knows what a power cut would leave.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use pfimg::fork::{Io, RealIo};
use pfimg::store::{Sharing, StoreIo, SystemIo};

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The call fails, and later ones succeed.
    Fails,
    /// The call is the last one that succeeds.
    Last,
}

/// What a power cut leaves of unsynced data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Everything: only the program ended.
    All,
    /// Names of files, but not their content.
    Names,
    /// Only the content of files whose names were durable.
    Nothing,
}

#[derive(Default)]
struct Known {
    /// Bytes of each file that are durable, by its number.
    synced: BTreeMap<u64, Vec<u8>>,
    /// Files and folders whose names are durable.
    names: BTreeSet<PathBuf>,
    /// The file of each durable name.
    stands_for: BTreeMap<PathBuf, u64>,
    /// Removed files that still have a durable name, and whose number another file has now.
    outlived: u64,
}

impl Known {
    /// A new file has a number that may have been another one's. Where that one was replaced, and a power cut would bring it
    /// back, it is still known: under a number that no file gets.
    fn number_is_taken(&mut self, ino: u64) {
        let Some(bytes) = self.synced.remove(&ino) else { return };
        let other = u64::MAX - self.outlived;
        self.outlived += 1;
        self.synced.insert(other, bytes);
        self.stands_for.values_mut().filter(|stands| **stands == ino).for_each(|stands| *stands = other);
    }
}

pub struct Disk {
    root: PathBuf,
    calls: AtomicUsize,
    /// `usize::MAX`: never.
    chosen: AtomicUsize,
    fate: Mutex<Fate>,
    known: Mutex<Known>,
    pub log: Mutex<Vec<String>>,
}

impl Disk {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            calls: AtomicUsize::new(0),
            chosen: AtomicUsize::new(usize::MAX),
            fate: Mutex::new(Fate::Fails),
            known: Mutex::default(),
            log: Mutex::default(),
        }
    }

    /// Counts from here on; everything there is counts as durable.
    pub fn arm(&self, call: usize, fate: Fate) {
        self.all_durable();
        self.calls.store(0, Ordering::Relaxed);
        *self.fate.lock() = fate;
        self.chosen.store(call, Ordering::Relaxed);
    }

    pub fn disarm(&self) {
        self.chosen.store(usize::MAX, Ordering::Relaxed);
    }

    /// Calls made since it was armed.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn call<T>(&self, what: &str, path: &Path, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let chosen = self.chosen.load(Ordering::Relaxed);
        let fate = *self.fate.lock();
        let fails = (fate == Fate::Fails && number == chosen)
            || (fate == Fate::Last && chosen != usize::MAX && number > chosen);
        self.log.lock().push(format!(
            "{number} {what} {}{}",
            path.display(),
            if fails { " FAILS" } else { "" }
        ));
        if fails { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { call() }
    }

    fn each(path: &Path, found: &mut dyn FnMut(&Path, &fs::Metadata)) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            found(&path, &metadata);
            if metadata.is_dir() {
                Self::each(&path, found);
            }
        }
    }

    fn all_durable(&self) {
        let mut known = Known::default();
        Self::each(&self.root, &mut |path, metadata| {
            known.names.insert(path.to_owned());
            if metadata.is_file() {
                known.stands_for.insert(path.to_owned(), metadata.ino());
                known.synced.insert(metadata.ino(), fs::read(path).unwrap());
            }
        });
        *self.known.lock() = known;
    }

    fn file_durable(&self, file: &File, path: Option<&Path>) {
        let ino = file.metadata().unwrap().ino();
        let path = path.map_or_else(
            || {
                let mut found = None;
                Self::each(&self.root, &mut |path, metadata| {
                    if metadata.ino() == ino {
                        found = Some(path.to_owned());
                    }
                });
                found
            },
            |path| Some(path.to_owned()),
        );
        if let Some(path) = path {
            self.known.lock().synced.insert(ino, fs::read(path).unwrap());
        }
    }

    fn dir_durable(&self, dir: &Path) {
        let mut known = self.known.lock();
        known.names.retain(|name| name.parent() != Some(dir) || name.exists());
        known.stands_for.retain(|name, _| name.parent() != Some(dir) || name.exists());
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            known.names.insert(entry.path());
            let metadata = entry.metadata().unwrap();
            if metadata.is_file() {
                known.stands_for.insert(entry.path(), metadata.ino());
            }
        }
    }

    /// Makes a copy of the store as it would be found.
    pub fn after_the_end(&self, left: Left, into: &Path) {
        let known = self.known.lock();
        let at = |path: &Path| into.join(path.strip_prefix(&self.root).unwrap());
        fs::create_dir_all(into).unwrap();
        match left {
            Left::All | Left::Names => Self::each(&self.root, &mut |path, metadata| {
                if metadata.is_dir() {
                    fs::create_dir_all(at(path)).unwrap();
                } else if left == Left::All {
                    fs::copy(path, at(path)).unwrap();
                } else {
                    let bytes = known.synced.get(&metadata.ino()).cloned().unwrap_or_default();
                    fs::write(at(path), bytes).unwrap();
                }
            }),
            Left::Nothing => {
                for name in &known.names {
                    match known.stands_for.get(name) {
                        Some(ino) => {
                            // A folder whose own name is not durable is not there.
                            if at(name).parent().unwrap().is_dir() {
                                fs::write(at(name), known.synced.get(ino).cloned().unwrap_or_default())
                                    .unwrap();
                            }
                        }
                        None => drop(fs::create_dir(at(name))),
                    }
                }
            }
        }
    }
}

impl StoreIo for Disk {
    fn create_dir_below(&self, root: &Path, dir: &Path, sharing: Sharing) -> io::Result<()> {
        self.call("mkdir", dir, || SystemIo.create_dir_below(root, dir, sharing))
    }

    fn create(&self, path: &Path, sharing: Sharing) -> io::Result<File> {
        self.call("create", path, || {
            let file = SystemIo.create(path, sharing)?;
            self.known.lock().number_is_taken(file.metadata()?.ino());
            Ok(file)
        })
    }

    fn write(&self, path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        self.call("write", path, || SystemIo.write(path, file, bytes))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename", to, || SystemIo.rename(from, to))
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename", to, || SystemIo.rename_noreplace(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("link", to, || SystemIo.link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call("remove", path, || SystemIo.remove(path))
    }

    fn refresh(&self, path: &Path) -> io::Result<()> {
        self.call("refresh", path, || SystemIo.refresh(path))
    }

    fn sync_file(&self, path: &Path, file: &File) -> io::Result<()> {
        self.call("fsync", path, || {
            self.file_durable(file, Some(path));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call("fsync", dir, || {
            self.dir_durable(dir);
            Ok(())
        })
    }

    fn sync_fs(&self, dir: &Path) -> io::Result<()> {
        self.call("syncfs", dir, || {
            self.all_durable();
            Ok(())
        })
    }
}

impl Io for Disk {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.call("write", Path::new("(a fork's file)"), || RealIo.write_at(file, bytes, offset))
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        self.call("truncate", Path::new("(a fork's file)"), || RealIo.truncate(file, len))
    }

    fn reserve(&self, _: &File, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.call("fdatasync", Path::new("(a fork's file)"), || {
            self.file_durable(file, None);
            Ok(())
        })
    }
}
