//! Lists a folder with everything below it, on all cores.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use super::Progress;
use super::ignore::Ignore;
use super::index::Stamp;
use crate::error::{Error, Result};
use crate::layers::world::Kind;
use crate::sync::{Condvar, Mutex};

/// What `stat` tells of a file, as far as a tree records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) stamp: Stamp,
    pub(super) links: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u64,
}

impl Meta {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let file_type = metadata.file_type();
        let kind = if file_type.is_dir() {
            Kind::Dir
        } else if file_type.is_symlink() {
            Kind::Symlink
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else if file_type.is_socket() {
            Kind::Socket
        } else if file_type.is_char_device() {
            Kind::Chardev
        } else if file_type.is_block_device() {
            Kind::Blockdev
        } else {
            Kind::File
        };
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            kind,
            mode: (metadata.mode() & 0o7777) as u16,
            stamp: Stamp {
                size: metadata.len(),
                mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
                ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
                ino: metadata.ino(),
                dev: metadata.dev(),
            },
            links: metadata.nlink(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: metadata.rdev(),
        }
    }
}

/// A file, folder, link or special below the folder.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Relative to the folder, `/` between components.
    pub(super) path: Vec<u8>,
    pub(super) meta: Meta,
}

/// What a folder holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// In no order.
    pub(super) found: Vec<Found>,
    /// Paths that a rule left out; what is below them was not looked at.
    pub(super) left_out: u64,
    /// Folders that were left out because they cannot be part of an image.
    pub(super) skipped: Vec<PathBuf>,
}

struct State {
    todo: Vec<Vec<u8>>,
    /// Threads that are in a folder, and may find more.
    busy: usize,
    failed: Option<Error>,
    listing: Listing,
}

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a Ignore,
    skip: &'a HashSet<(u64, u64)>,
    progress: &'a dyn Progress,
    state: Mutex<State>,
    wake: Condvar,
}

/// Lists everything below `root` that no rule leaves out. Folders in `skip`, by device and inode, are not entered.
pub(super) fn walk(
    root: &Path,
    ignore: &Ignore,
    skip: &HashSet<(u64, u64)>,
    jobs: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<Listing> {
    let state = State { todo: vec![Vec::new()], busy: 0, failed: None, listing: Listing::default() };
    let walk = Walk { root, ignore, skip, progress, state: Mutex::new(state), wake: Condvar::new() };
    thread::scope(|scope| {
        for number in 1..jobs.get() {
            let name = format!("pfimg-walk-{number}");
            let _ = thread::Builder::new().name(name).spawn_scoped(scope, || walk.work());
        }
        walk.work();
    });
    let State { failed, listing, .. } = walk.state.into_inner();
    failed.map_or(Ok(listing), Err)
}

impl Walk<'_> {
    fn work(&self) {
        let mut own = Listing::default();
        let mut state = self.state.lock();
        loop {
            if state.failed.is_some() {
                break;
            }
            if let Some(dir) = state.todo.pop() {
                state.busy += 1;
                drop(state);
                let listed = self.list(&dir, &mut own);
                state = self.state.lock();
                state.busy -= 1;
                match listed {
                    Ok(folders) => state.todo.extend(folders),
                    Err(error) => state.failed = Some(error),
                }
                self.wake.notify_all();
            } else if state.busy == 0 {
                break;
            } else {
                self.wake.wait(&mut state);
            }
        }
        state.listing.found.append(&mut own.found);
        state.listing.left_out += own.left_out;
        state.listing.skipped.append(&mut own.skipped);
    }

    /// Adds what is in a folder to `own` and returns the folders among it.
    fn list(&self, dir: &[u8], own: &mut Listing) -> Result<Vec<Vec<u8>>> {
        let full = at(self.root, dir);
        let failed = |e| Error::io(e, format!("cannot list {}", full.display())).with_hint(READABLE);
        let entries = match fs::read_dir(&full) {
            Ok(entries) => entries,
            // Removed since its parent was listed; the folder asked for must be there.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.is_empty() => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut folders = Vec::new();
        let before = own.found.len();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let path =
                if dir.is_empty() { name.as_bytes().to_vec() } else { [dir, b"/", name.as_bytes()].concat() };
            if self.ignore.covers(&path) {
                own.left_out += 1;
                continue;
            }
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(e, format!("cannot look at {}", entry.path().display()))),
            };
            let meta = Meta::of(&metadata);
            if meta.kind == Kind::Dir {
                if self.skip.contains(&(meta.stamp.dev, meta.stamp.ino)) {
                    own.skipped.push(entry.path());
                    continue;
                }
                folders.push(path.clone());
            }
            own.found.push(Found { path, meta });
        }
        self.progress.found((own.found.len() - before) as u64);
        Ok(folders)
    }
}

/// What helps where something cannot be read.
pub(super) const READABLE: &str = "run this as a user who may read it, or leave it out with --ignore";

/// A path relative to the folder as one that can be opened.
pub(super) fn at(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}
