//! Reads of the directory what a plan asks for.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;

use rustix::fs::{FileType, Stat, fstat};
use sha2::{Digest as _, Sha256};

use super::entry::{Entry, GIT};
use super::held::{Held, Here, Node};
use super::within::Below;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;
use crate::util::parallel::try_each;

/// Bytes that are read and hashed at once.
const BUFFER: usize = 128 << 10;

/// How often a file is hashed again that changes while it is read.
const ATTEMPTS: usize = 3;

/// Reads what the directory holds at the paths of a tree. `deep` also reads folders that the fork does not have as folders, as far as
/// they go.
pub(super) fn read(top: &Below, root: &Node, deep: bool, jobs: NonZeroUsize) -> Result<Here> {
    let mut reading = Reading { top, deep, here: Here::default(), files: Vec::new() };
    for (name, node) in &root.below {
        reading.node(name, node)?;
    }
    let Reading { mut here, files, .. } = reading;
    let hashed = Mutex::new(Vec::with_capacity(files.len()));
    try_each(jobs, &files, &|path| {
        let entry = hash(top, path)?;
        hashed.lock().push((path.clone(), entry));
        Ok(())
    })?;
    here.held.extend(hashed.into_inner());
    Ok(here)
}

struct Reading<'a> {
    top: &'a Below,
    deep: bool,
    here: Here,
    /// Files, which are hashed at the end.
    files: Vec<Vec<u8>>,
}

impl Reading<'_> {
    fn failed(&self, path: &[u8], error: io::Error) -> Error {
        Error::io(error, format!("cannot read {}", self.top.shown(path).display()))
    }

    fn node(&mut self, path: &[u8], node: &Node) -> Result<()> {
        if !self.one(path)? {
            return Ok(());
        }
        // A folder here.
        if !node.fork.as_ref().is_some_and(Held::is_dir) {
            let names = self.top.names(path).map_err(|e| self.failed(path, e))?;
            if self.deep {
                for name in names.iter().filter(|name| !node.below.contains_key(*name)) {
                    self.everything(&join(path, name), name)?;
                }
            }
            self.here.names.insert(path.to_owned(), names);
        }
        for (name, child) in &node.below {
            self.node(&join(path, name), child)?;
        }
        Ok(())
    }

    /// Reads a path and all below it, but no repository.
    fn everything(&mut self, path: &[u8], name: &[u8]) -> Result<()> {
        if name == GIT || !self.one(path)? {
            return Ok(());
        }
        let names = self.top.names(path).map_err(|e| self.failed(path, e))?;
        for name in &names {
            self.everything(&join(path, name), name)?;
        }
        self.here.names.insert(path.to_owned(), names);
        Ok(())
    }

    /// Reads what is at a path. Returns whether it is a folder.
    fn one(&mut self, path: &[u8]) -> Result<bool> {
        let (opened, stat) = match self.top.look(path) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::EXDEV) => {
                self.here.held.insert(path.to_owned(), Held::Other("a mount point"));
                return Ok(false);
            }
            Err(e) => return Err(self.failed(path, e)),
        };
        let held = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                self.files.push(path.to_owned());
                return Ok(false);
            }
            FileType::Directory => Held::Entry(Entry::Dir { mode: mode(&stat) }),
            FileType::Symlink => {
                let target = Below::target(&opened).map_err(|e| self.failed(path, e))?;
                Held::Entry(Entry::Link { target })
            }
            FileType::Fifo => Held::Other("a fifo"),
            FileType::Socket => Held::Other("a socket"),
            _ => Held::Other("a device"),
        };
        let is_dir = held.is_dir();
        self.here.held.insert(path.to_owned(), held);
        Ok(is_dir)
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    [path, b"/", name].concat()
}

fn mode(stat: &Stat) -> u16 {
    (stat.st_mode & 0o7777) as u16
}

/// The number by which the names of one file know each other.
fn links(stat: &Stat) -> Option<u64> {
    (stat.st_nlink > 1).then_some(stat.st_ino)
}

/// Hashes a file, as it is at one moment.
fn hash(top: &Below, path: &[u8]) -> Result<Held> {
    let failed = |e: io::Error| Error::io(e, format!("cannot read {}", top.shown(path).display()));
    for _ in 0..ATTEMPTS {
        let mut file = top.file(path).map_err(failed)?;
        let before = regular(top, path, &file)?;
        let (content, size) = digest(&mut file).map_err(failed)?;
        if is_unchanged(&before, &fstat(&file).map_err(|e| failed(e.into()))?) {
            return Ok(Held::Entry(Entry::File {
                mode: mode(&before),
                content,
                size,
                links: links(&before),
            }));
        }
    }
    Err(changing(top, path))
}

/// Reads a whole file that has been hashed. Fails if its bytes have changed.
pub(super) fn bytes(top: &Below, path: &[u8], expected: &Digest, size: u64) -> Result<Vec<u8>> {
    let failed = |e: io::Error| Error::io(e, format!("cannot read {}", top.shown(path).display()));
    let file = top.file(path).map_err(failed)?;
    regular(top, path, &file)?;
    let mut bytes = Vec::new();
    file.take(size + 1).read_to_end(&mut bytes).map_err(failed)?;
    if Digest::of(&bytes) == *expected { Ok(bytes) } else { Err(changing(top, path)) }
}

fn regular(top: &Below, path: &[u8], file: &File) -> Result<Stat> {
    let stat =
        fstat(file).map_err(|e| Error::io(e.into(), format!("cannot read {}", top.shown(path).display())))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        Ok(stat)
    } else {
        Err(changing(top, path))
    }
}

fn changing(top: &Below, path: &[u8]) -> Error {
    let shown = top.shown(path);
    Error::new(ErrorKind::Busy, format!("{} changes while it is read", shown.display()))
        .with_path(shown)
        .with_hint("wait until no program writes it, and apply again")
}

fn is_unchanged(before: &Stat, after: &Stat) -> bool {
    (before.st_size, before.st_mtime, before.st_mtime_nsec, before.st_ctime, before.st_ctime_nsec)
        == (after.st_size, after.st_mtime, after.st_mtime_nsec, after.st_ctime, after.st_ctime_nsec)
}

fn digest(file: &mut File) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((Digest::from_bytes(hasher.finalize().into()), size))
}
