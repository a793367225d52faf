//! Lists a directory with everything below it, on all cores.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, openat, statat};
use rustix::io::Errno;

use super::index::Stamp;
use super::progress::Progress;
use super::rules::LeftOutBy;
use super::source::{self, Source};
use crate::cache::folder as cache;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::ignore::{Ignore, Rule};
use crate::layers::world::{Kind, MAX_DEPTH};
use crate::mount::mountinfo::{self, Mounted};
use crate::mount::reach::Top;
use crate::sync::{Condvar, Mutex};

/// The most paths left out by rules that are named.
const NAMED: usize = 100;

/// Bytes of a directory's listing to read at once.
const LIST: usize = 32 << 10;

/// The type of a FUSE filesystem in `statfs`, from linux/magic.h.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;

/// Attributes of a file that a tree records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Meta {
    pub(in crate::ops) kind: Kind,
    pub(in crate::ops) mode: u16,
    pub(in crate::ops) stamp: Stamp,
    pub(in crate::ops) links: u64,
    pub(in crate::ops) uid: u32,
    pub(in crate::ops) gid: u32,
    pub(in crate::ops) rdev: u64,
}

impl Meta {
    // The fields' types differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    pub(in crate::ops) fn of(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Chardev,
            FileType::BlockDevice => Kind::Blockdev,
            _ => Kind::File,
        };
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            kind,
            mode: (stat.st_mode & 0o7777) as u16,
            stamp: Stamp {
                size: stat.st_size as u64,
                mtime_ns: nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
                ctime_ns: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
                ino: stat.st_ino as u64,
                dev: stat.st_dev as u64,
            },
            links: stat.st_nlink as u64,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u64,
        }
    }

    /// Returns attributes for a mountpoint that is not looked at, since the mount's daemon may not answer. They depend only on the
    /// directory that contains the mountpoint, so that mounting and unmounting do not cause a new image.
    fn of_mountpoint_in(folder: &Self) -> Self {
        Self {
            kind: Kind::Dir,
            mode: 0o755,
            stamp: Stamp { size: 0, ino: 0, ..folder.stamp },
            links: 2,
            rdev: 0,
            ..*folder
        }
    }
}

/// A file, directory, link or special below the directory.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Relative to the directory, `/` between components.
    pub(super) path: Vec<u8>,
    pub(super) meta: Meta,
    /// A mountpoint that is recorded as an empty directory, and not looked at.
    pub(super) closed: bool,
    /// The source of its bytes, if it is not the same path of the directory.
    pub(super) source: Option<Arc<Source>>,
}

impl Found {
    /// Returns the directory and the path below it to read from. Bytes that the import made have an empty path.
    pub(super) fn place<'a>(&'a self, top: &'a Top) -> (&'a Top, &'a [u8]) {
        source::place(self.source.as_deref(), top, &self.path)
    }

    /// Returns its path on the disk.
    pub(super) fn origin(&self, top: &Top) -> PathBuf {
        let (top, path) = self.place(top);
        top.shown(path)
    }

    /// Reads its bytes. Returns none if there are more than `most`, or it cannot be read.
    pub(super) fn text(&self, top: &Top, most: u64) -> Option<Vec<u8>> {
        if let Some(Source::Made(bytes)) = self.source.as_deref() {
            return Some(bytes.clone());
        }
        let (top, path) = self.place(top);
        source::read(top, path, most).ok().flatten()
    }

    /// Replaces its bytes.
    pub(super) fn make(&mut self, bytes: Vec<u8>) {
        self.meta.stamp.size = bytes.len() as u64;
        self.meta.links = 1;
        self.source = Some(Arc::new(Source::Made(bytes)));
    }
}

/// The limits of a listing: what an import leaves out.
pub(super) struct Limits<'a> {
    pub(super) ignore: &'a Ignore,
    /// The directory's place in the image, since rules concern the image's paths.
    pub(super) prefix: &'a [u8],
    /// Whether a path below the directory is wanted at all. Other paths are not counted as left out.
    pub(super) wanted: &'a (dyn Fn(&[u8]) -> bool + Sync),
    /// Directories of this program, by device and inode.
    pub(super) own: &'a HashSet<(u64, u64)>,
    /// Mounts below the directory, by path.
    pub(super) mounts: HashMap<Vec<u8>, Mounted>,
    /// Whether to skip other filesystems.
    pub(super) one_file_system: bool,
}

/// Why a directory was not entered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Closed {
    /// This store is mounted there.
    Store(PathBuf),
    /// Another filesystem is mounted there.
    Filesystem,
    /// It is a directory of this program.
    Own,
}

/// The paths that rules left out.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// Number of these paths. Paths below them were not looked at.
    pub(super) count: u64,
    /// Number of paths by source of the rules.
    pub(super) by: LeftOutBy,
    /// The first of these paths, in order.
    pub(super) first: BTreeSet<Vec<u8>>,
}

impl LeftOut {
    fn add(&mut self, path: Vec<u8>, rule: Rule) {
        self.count += 1;
        self.by.add(rule);
        self.first.insert(path);
        if self.first.len() > NAMED {
            self.first.pop_last();
        }
    }

    pub(super) fn append(&mut self, other: &mut Self) {
        self.count += other.count;
        self.by.append(other.by);
        self.first.append(&mut other.first);
        while self.first.len() > NAMED {
            self.first.pop_last();
        }
    }
}

/// A listing of everything below a directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The files, in no order.
    pub(super) found: Vec<Found>,
    pub(super) left_out: LeftOut,
    /// Directories that were not entered, in order.
    pub(super) closed: BTreeSet<(Vec<u8>, Closed)>,
    /// Directories that are caches of this program, as found when they were entered.
    caches: HashSet<Vec<u8>>,
}

/// A directory to list, and its device.
struct Todo {
    path: Vec<u8>,
    dev: u64,
}

struct State {
    todo: Vec<Todo>,
    /// Number of threads that are listing a directory and may find more.
    busy: usize,
    failed: Option<Error>,
    listing: Listing,
}

struct Walk<'a> {
    top: &'a Top,
    root: &'a Meta,
    limits: &'a Limits<'a>,
    progress: &'a dyn Progress,
    state: Mutex<State>,
    wake: Condvar,
}

/// Lists everything below a directory within the limits.
pub(super) fn walk(
    top: &Top,
    root: &Meta,
    limits: &Limits<'_>,
    jobs: NonZeroUsize,
    progress: &dyn Progress,
) -> Result<Listing> {
    let todo = vec![Todo { path: Vec::new(), dev: root.stamp.dev }];
    let state = State { todo, busy: 0, failed: None, listing: Listing::default() };
    let walk = Walk { top, root, limits, progress, state: Mutex::new(state), wake: Condvar::new() };
    thread::scope(|scope| {
        for number in 1..jobs.get() {
            let name = format!("pfimg-walk-{number}");
            let _ = thread::Builder::new().name(name).spawn_scoped(scope, || walk.work());
        }
        walk.work();
    });
    let State { failed, mut listing, .. } = walk.state.into_inner();
    if !listing.caches.is_empty() {
        let caches = std::mem::take(&mut listing.caches);
        listing.found.retain(|found| !caches.contains(&found.path));
        listing.closed.extend(caches.into_iter().map(|path| (path, Closed::Own)));
    }
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
        let listing = &mut state.listing;
        listing.found.append(&mut own.found);
        listing.left_out.append(&mut own.left_out);
        listing.closed.append(&mut own.closed);
        listing.caches.extend(own.caches);
    }

    /// Adds the files of a directory to `own`, and returns the directories among them.
    fn list(&self, dir: &Todo, own: &mut Listing) -> Result<Vec<Todo>> {
        let is_top = dir.path.is_empty();
        let failed = |e: io::Error| {
            Error::io(e, format!("cannot list {}", self.top.shown(&dir.path).display())).with_hint(READABLE)
        };
        let folder = match self.top.folder(&dir.path) {
            Ok(folder) => folder,
            // The directory was removed after its parent was listed. Only the imported directory itself must exist.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !is_top => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let depth = dir.path.split(|b| *b == b'/').filter(|name| !name.is_empty()).count();
        let mut folders = Vec::new();
        let before = own.found.len();
        let mut buffer = Vec::with_capacity(LIST);
        let mut entries = RawDir::new(&folder, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|e| failed(e.into()))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if !is_top && name == cache::MARK.as_bytes() && is_cache(folder.as_fd()) {
                own.found.truncate(before);
                own.caches.insert(dir.path.clone());
                return Ok(Vec::new());
            }
            let path = if is_top { name.to_vec() } else { [&dir.path, &b"/"[..], name].concat() };
            if !(self.limits.wanted)(&path) {
                continue;
            }
            let in_image = joined(self.limits.prefix, &path);
            if let Some(rule) = self.limits.ignore.covered_by(&in_image) {
                own.left_out.add(in_image.into_owned(), rule);
                continue;
            }
            if depth >= MAX_DEPTH {
                let path = self.top.shown(&dir.path);
                let what = format!(
                    "{} holds files more than {MAX_DEPTH} directories deep, too deep for an image",
                    path.display()
                );
                return Err(Error::new(ErrorKind::InvalidInput, what).with_hint("leave it out with --ignore"));
            }
            self.entry(&folder, (dir, &path, name), &mut folders, own).map_err(|e| {
                let error =
                    Error::io(e.into(), format!("cannot look at {}", self.top.shown(&path).display()));
                if self.limits.mounts.contains_key(&path) {
                    error.with_hint(
                        "leave it out with --ignore, or all that is mounted with --one-file-system",
                    )
                } else {
                    error
                }
            })?;
        }
        self.progress.found((own.found.len() - before) as u64);
        Ok(folders)
    }

    /// Looks at one name in a directory, and adds its file.
    fn entry(
        &self,
        folder: impl AsFd,
        (dir, path, name): (&Todo, &[u8], &[u8]),
        folders: &mut Vec<Todo>,
        own: &mut Listing,
    ) -> Result<(), Errno> {
        let folder = folder.as_fd();
        let mounted = self.limits.mounts.get(path);
        let closed = |own: &mut Listing, why: Closed| {
            let meta = Meta::of_mountpoint_in(&Meta::of(&rustix::fs::fstat(folder)?));
            own.found.push(Found { path: path.to_vec(), meta, closed: true, source: None });
            own.closed.insert((path.to_vec(), why));
            Ok(())
        };
        // Does not look at the mount, since its daemon may not answer.
        if let Some(mounted) = mounted.filter(|mounted| mounted.is_ours()) {
            return closed(own, Closed::Store(mounted.source.clone()));
        }
        let meta = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Meta::of(&stat),
            Err(Errno::NOENT) => return Ok(()),
            // The mount belongs to another user, or its server has ended.
            Err(Errno::ACCESS | Errno::NOTCONN | Errno::IO | Errno::STALE)
                if mounted.is_some() && self.limits.one_file_system =>
            {
                return closed(own, Closed::Filesystem);
            }
            Err(e) => return Err(e),
        };
        let found = Found { path: path.to_vec(), meta, closed: false, source: None };
        if meta.kind == Kind::Dir {
            if self.limits.own.contains(&(meta.stamp.dev, meta.stamp.ino)) {
                own.closed.insert((path.to_vec(), Closed::Own));
                return Ok(());
            }
            if self.limits.one_file_system && meta.stamp.dev != self.root.stamp.dev {
                own.found.push(found);
                own.closed.insert((path.to_vec(), Closed::Filesystem));
                return Ok(());
            }
            if meta.stamp.dev != dir.dev
                && let Some(store) = self.store_mounted_meanwhile(folder, path, name)
            {
                return closed(own, Closed::Store(store));
            }
            folders.push(Todo { path: path.to_vec(), dev: meta.stamp.dev });
        }
        own.found.push(found);
        Ok(())
    }

    /// Returns the store that was mounted at a path after the import began, if any. Called where another device begins.
    fn store_mounted_meanwhile(&self, folder: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Option<PathBuf> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(folder, name, flags, Mode::empty()).ok()?;
        if rustix::fs::fstatfs(&opened).ok()?.f_type as u64 != FUSE_SUPER_MAGIC {
            return None;
        }
        let (mounted, _) = mountinfo::holding(&self.top.shown(path)).ok()??;
        mounted.is_ours().then_some(mounted.source)
    }
}

/// Joins a path to a directory of an image.
pub(super) fn joined<'a>(folder: &[u8], path: &'a [u8]) -> Cow<'a, [u8]> {
    if folder.is_empty() {
        Cow::Borrowed(path)
    } else if path.is_empty() {
        Cow::Owned(folder.to_vec())
    } else {
        Cow::Owned([folder, b"/", path].concat())
    }
}

/// Whether a directory has the mark of a cache of this program.
fn is_cache(folder: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(mark) = openat(folder, cache::MARK, flags, Mode::empty()) else { return false };
    let mut begin = Vec::new();
    let read = std::fs::File::from(mark).take(cache::MARK_BYTES as u64).read_to_end(&mut begin);
    read.is_ok() && cache::is_ours(&begin)
}

/// Returns the mounts below a directory whose path has no links, by path relative to it.
pub(super) fn mounts_below(folder: &std::path::Path) -> HashMap<Vec<u8>, Mounted> {
    let mounts = mountinfo::below(folder).unwrap_or_default();
    let relative = |mounted: Mounted| {
        let path = mounted.path.strip_prefix(folder).ok()?.as_os_str().as_bytes().to_vec();
        Some((path, mounted))
    };
    mounts.into_iter().filter_map(relative).collect()
}

/// The hint for files that cannot be read.
pub(super) const READABLE: &str = "run this as a user who may read it, or leave it out with --ignore";
