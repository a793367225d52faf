//! Raises events for programs that watch folders, by calls on the mount itself; see `vfs/announcements.rs`.
//!
//! One thread makes these calls, and the daemon answers them without changing anything. Between two jobs the thread has no file
//! of the mount open, since that would prevent an unmount. No request waits for it, and it holds no lock.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use fuser::Notifier;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxFlags, makedev, mkdirat, mknodat, openat, statx, symlinkat,
    unlinkat,
};
use rustix::fs::{ResolveFlags, openat2, renameat};
use rustix::io::Errno;

use super::invalidate::invalidate;
use super::open_root::OpenRoot;
use crate::vfs::{Announcement, Invalidation, Kind, Moving, Replaced, Vfs, What};

/// Number of requests after which an event loop has read which inodes the kernel has forgotten. The kernel sends that after
/// eight other requests at the latest (`fuse_dev_do_read`). The rest gives the event loop time to process it.
const REQUESTS: u32 = 12;

/// Attempts for a name that other programs look up at the same time.
const TRIES: u32 = 4;

enum Job {
    /// Waits until the daemon knows which inodes the kernel has forgotten.
    Settle,
    Announce(Vec<Announcement>, Option<Arc<Replaced>>),
    /// Renames the folder of a fork.
    Move(Arc<Moving>),
}

/// Returns invalidations in place of names that could not be announced.
type Answer = Sender<Vec<Invalidation>>;

/// Raises events.
#[derive(Clone)]
pub(super) struct Announcer {
    jobs: Sender<(Job, Answer)>,
    thread: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
}

/// The thread, before the store is mounted.
pub(super) struct Prepared {
    start: Sender<(Weak<Vfs>, OpenRoot)>,
    announcer: Announcer,
}

impl Prepared {
    pub(super) fn announcer(&self) -> Announcer {
        self.announcer.clone()
    }

    /// Gives the thread the mount to work on.
    pub(super) fn start(self, vfs: &Arc<Vfs>, root: OpenRoot) {
        let _ = self.start.send((Arc::downgrade(vfs), root));
    }
}

impl Announcer {
    /// Starts the thread, which first calls `prepare_thread`. Must be called before the connection to the kernel is opened.
    pub(super) fn prepare(prepare_thread: fn()) -> io::Result<Prepared> {
        let (jobs, queue) = unbounded();
        let (start, started) = bounded::<(Weak<Vfs>, OpenRoot)>(1);
        let announcer = Self { jobs, thread: Arc::default(), over: Arc::default() };
        let (own, over) = (Arc::clone(&announcer.thread), Arc::clone(&announcer.over));
        thread::Builder::new().name("pfimg-announce".into()).spawn(move || {
            prepare_thread();
            own.store(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs(), Ordering::Relaxed);
            if let Ok((vfs, root)) = started.recv() {
                serve(&vfs, &root, &queue, &over);
            }
        })?;
        Ok(Prepared { start, announcer })
    }

    /// Whether a request comes from the thread.
    pub(super) fn is_its_own(&self, pid: u32) -> bool {
        pid != 0 && pid == self.thread.load(Ordering::Relaxed)
    }

    /// Ends all announcements, before the store is unmounted.
    pub(super) fn stop(&self) {
        self.over.store(true, Ordering::Release);
        // Waits for the announcement under way.
        self.run(Job::Settle);
    }

    fn run(&self, job: Job) -> Vec<Invalidation> {
        let (answer, answered) = bounded(1);
        let sent = self.jobs.send((job, answer));
        sent.ok().and_then(|()| answered.recv().ok()).unwrap_or_default()
    }

    /// Announces names. Must not be called while a request waits for it.
    pub(super) fn announce(&self, notifier: &Notifier, all: Vec<Announcement>) {
        if !all.is_empty() {
            invalidate(notifier, &self.run(Job::Announce(all, None)));
        }
    }

    /// Renames the folder of a fork, so that the kernel moves the name. Must not be called while a request waits for it.
    pub(super) fn move_fork(&self, moving: &Arc<Moving>) {
        self.run(Job::Move(Arc::clone(moving)));
    }

    /// Makes the kernel drop cached inodes and names, and waits until the daemon knows what it has forgotten. Must not be called
    /// while a request on them waits.
    pub(super) fn forget(&self, notifier: &Notifier, stale: &[Invalidation]) {
        invalidate(notifier, stale);
        self.run(Job::Settle);
    }

    /// Notifies the kernel, and programs that watch, of a removed fork. Must not be called while a request waits for it.
    pub(super) fn depart(&self, vfs: &Vfs, notifier: &Notifier, replaced: &Arc<Replaced>) {
        self.forget(notifier, &vfs.announcer().outdated(replaced));
        let (all, stale) = vfs.announcer().departures(replaced);
        invalidate(notifier, &self.run(Job::Announce(all, Some(Arc::clone(replaced)))));
        invalidate(notifier, &stale);
    }
}

/// Does jobs. The thread cannot close the daemon's files, since it has a separate table of descriptors. So it lets go of the
/// mount and of forks before it answers: until then the thread that asked holds them, too.
fn serve(vfs: &Weak<Vfs>, root: &OpenRoot, queue: &Receiver<(Job, Answer)>, over: &AtomicBool) {
    for (job, answer) in queue {
        let instead = match job {
            Job::Settle if over.load(Ordering::Acquire) => Vec::new(),
            Job::Settle => {
                settle(root);
                Vec::new()
            }
            Job::Announce(all, _) if over.load(Ordering::Acquire) => {
                all.into_iter().filter_map(|one| one.instead).collect()
            }
            Job::Announce(all, replaced) => match vfs.upgrade() {
                Some(vfs) => announce(&vfs, root, all, replaced.as_ref()),
                None => Vec::new(),
            },
            Job::Move(moving) => {
                if let Some(vfs) = vfs.upgrade().filter(|_| !over.load(Ordering::Acquire)) {
                    vfs.announcer().begin_move(Some(&moving));
                    let moved = rename(root, &moving);
                    vfs.announcer().begin_move(None);
                    if let Err(error) = moved {
                        tracing::debug!("the kernel does not rename {}: {error}", moving.paths().0);
                    }
                }
                Vec::new()
            }
        };
        let _ = answer.send(instead);
    }
}

/// Renames the folder of a fork.
fn rename(root: &OpenRoot, moving: &Moving) -> Result<(), Errno> {
    let root = root().map_err(|_| Errno::NOENT)?;
    let (from, to) = moving.paths();
    let open = |path: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Another filesystem may be mounted over a folder of this one.
        openat2(&root, path, flags, Mode::empty(), ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS)
    };
    let parts = |path: &str| path.split_once('/').map(|(folder, name)| (folder.to_owned(), name.to_owned()));
    let ((from, name), (to, new_name)) = parts(&from).zip(parts(&to)).ok_or(Errno::INVAL)?;
    renameat(open(&from)?, name, open(&to)?, new_name)
}

/// Asks for attributes a few times, so that the event loops read which inodes the kernel has forgotten.
fn settle(root: &OpenRoot) {
    let Ok(root) = root() else { return };
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    for _ in 0..REQUESTS {
        if statx(&root, "", flags, StatxFlags::BASIC_STATS).is_err() {
            return;
        }
    }
}

/// Announces names. Returns the invalidations to use for those that could not be announced.
fn announce(
    vfs: &Vfs,
    root: &OpenRoot,
    all: Vec<Announcement>,
    replaced: Option<&Arc<Replaced>>,
) -> Vec<Invalidation> {
    let root = root();
    let mut instead = Vec::new();
    let mut folder: Option<(Vec<u8>, OwnedFd)> = None;
    for one in all {
        let done = root.as_ref().map_err(|_| Errno::NOENT).and_then(|root| {
            vfs.announcer().announce(Some(&one), replaced);
            if folder.as_ref().is_none_or(|(path, _)| *path != one.folder) {
                folder = Some((one.folder.clone(), open(root, &one.folder)?));
            }
            let Some((_, at)) = &folder else { return Err(Errno::NOENT) };
            call(at, &one)
        });
        match done {
            // Other programs already use the name; an invalidation would take it from them.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                tracing::debug!("cannot announce {:?}: {error}", String::from_utf8_lossy(&one.name));
                instead.extend(one.instead);
            }
        }
    }
    vfs.announcer().announce(None, None);
    instead
}

/// Opens a folder of the mount, following no links.
fn open(root: &impl std::os::fd::AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(root, ".", flags, Mode::empty())?;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        at = openat(&at, OsStr::from_bytes(name), flags, Mode::empty())?;
    }
    Ok(at)
}

fn call(at: &OwnedFd, one: &Announcement) -> Result<(), Errno> {
    let name = OsStr::from_bytes(&one.name);
    let mut tries = 1..TRIES;
    loop {
        let called = match one.what {
            What::Gone(Kind::Dir) => unlinkat(at, name, AtFlags::REMOVEDIR),
            What::Gone(_) => unlinkat(at, name, AtFlags::empty()),
            What::Made(Kind::Dir) => mkdirat(at, name, Mode::from_raw_mode(0o755)),
            What::Made(Kind::Symlink) => symlinkat(".", at, name),
            What::Made(kind) => mknodat(at, name, file_type(kind), Mode::from_raw_mode(0o644), makedev(0, 0)),
        };
        match called {
            // Another program looked the name up at the same moment.
            Err(Errno::EXIST) if matches!(one.what, What::Made(_)) && tries.next().is_some() => {}
            called => return called,
        }
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::Chardev => FileType::CharacterDevice,
        Kind::Blockdev => FileType::BlockDevice,
        Kind::File | Kind::Dir | Kind::Symlink => FileType::RegularFile,
    }
}
