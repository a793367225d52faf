//! What serves a connection, and what its requests have in common: counting, waiting on a worker, telling the kernel.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use fuser::{FopenFlags, INodeNo, Notifier, ReplyEmpty, ReplyEntry, Request};

use super::announce::Announcer;
use super::guarded;
use super::reply::{answer_empty, answer_entry, permissions};
use super::session::SessionConfig;
use super::watch::tell;
use crate::error::ErrorKind;
use crate::fuse::pool::Workers;
use crate::fuse::spin::{Company, Turn};
use crate::vfs::{AfterSeal, Op, Outcome, Patience, Stale, Step, Vfs};
use crate::vfs::{Kind, NewFile};

/// What looks different once a fork has come or gone.
const LISTINGS_OF_FORKS: [Stale; 2] = [Stale::Inode(Vfs::FORKS), Stale::Inode(Vfs::WORK)];

/// A request that a worker has not answered yet.
struct Unanswered(Arc<AtomicU64>);

impl Unanswered {
    fn one(all: &Arc<AtomicU64>) -> Self {
        all.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(all))
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves one connection.
pub(super) struct Adapter {
    pub(super) vfs: Arc<Vfs>,
    pub(super) workers: Workers,
    /// One thread of its own, which no request ever waits for: the kernel holds a notification up until requests on
    /// the same file or folder are answered, and some of those are answered by workers.
    notices: Workers,
    /// Seals take long, and must not keep everybody else waiting for a worker.
    sealers: Workers,
    /// Branches wait for what programs wrote to reach the daemon.
    branchers: Workers,
    notifier: Arc<OnceLock<Notifier>>,
    pub(super) writeback: bool,
    pub(super) holes: bool,
    company: Option<Company>,
    /// Requests that workers have not answered yet, of those that may be in the kernel's background queue.
    pub(super) unanswered: Arc<AtomicU64>,
    /// The thread whose requests are the daemon's own.
    own_thread: Arc<AtomicU32>,
    announcer: Announcer,
}

impl Adapter {
    pub(super) fn new(
        vfs: Arc<Vfs>,
        notifier: Arc<OnceLock<Notifier>>,
        config: &SessionConfig,
        own_thread: Arc<AtomicU32>,
        announcer: Announcer,
    ) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let workers = Workers::start("pfimg-worker", cores)?;
        let company = if config.spin { Company::start()? } else { None };
        let notices = Workers::start("pfimg-notify", 1)?;
        let sealers = Workers::start("pfimg-sealer", cores)?;
        let branchers = Workers::start("pfimg-branch", cores)?;
        let SessionConfig { writeback, holes, .. } = *config;
        Ok(Self {
            vfs,
            workers,
            notices,
            sealers,
            branchers,
            notifier,
            writeback,
            holes,
            company,
            unanswered: Arc::default(),
            own_thread,
            announcer,
        })
    }

    /// Tells which event loops rest at the moment and hold no request.
    pub(super) fn resting(&self) -> impl Fn() -> Vec<ThreadId> + Send + use<> {
        let resting = self.company.as_ref().map(Company::resting);
        move || resting.as_ref().map_or_else(Vec::new, |resting| resting())
    }

    /// How the kernel is to treat a file that it opens. It is asked for no NOFLUSH: what was written through a mapping has to come
    /// when the file is closed.
    pub(super) fn opened(&self, ino: u64, writes: bool) -> FopenFlags {
        // A kernel that writes back believes no length but its own: of a file that a seal made longer it would show too little, and
        // append in the middle. It also drops no set-group-id bit without group execution, and of a late write nobody knows any more
        // who wrote it.
        let by_name = |ino| writes && self.vfs.goes_by_the_writers_group(ino);
        if self.writeback && (self.vfs.is_resized_by_seals(ino) || by_name(ino)) {
            FopenFlags::FOPEN_DIRECT_IO
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        }
    }

    /// Counts a request. What it returns lives until the request was answered or handed to a worker.
    pub(super) fn turn(&self, op: Op, req: &Request) -> Option<Turn<'_>> {
        self.vfs.metrics().count(op);
        let own = req.pid() != 0 && req.pid() == self.own_thread.load(Ordering::Relaxed);
        let own = own || self.announces(req);
        self.company.as_ref().filter(|_| !own).map(|company| company.request(req.pid()))
    }

    /// Whether a request comes from the thread that announces what came and went without the kernel.
    pub(super) fn announces(&self, req: &Request) -> bool {
        self.announcer.is_its_own(req.pid())
    }

    /// Answers that thread, on a worker.
    pub(super) fn announced<R: Send + 'static, T: 'static>(
        &self,
        (op, req): (Op, &Request),
        reply: R,
        call: impl FnOnce(&Vfs) -> Outcome<T> + Send + 'static,
        answer: impl FnOnce(R, Outcome<T>) + Send + 'static,
    ) {
        let _turn = self.turn(op, req);
        let vfs = Arc::clone(&self.vfs);
        self.workers.run(move || guarded(op, || answer(reply, call(&vfs))));
    }

    /// Answers that thread, which removes a name that is gone.
    pub(super) fn removed(&self, op: Op, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let call = move |vfs: &Vfs| vfs.remove_announced(parent.0, &name);
        self.announced((op, req), reply, call, answer_empty);
    }

    /// Does now what can be done now, and leaves to a worker what has to wait.
    pub(super) fn patiently<R: Send + 'static, T: 'static>(
        &self,
        op: Op,
        req: &Request,
        reply: R,
        call: impl Fn(&Vfs, Patience) -> Outcome<Step<T>> + Send + 'static,
        answer: impl FnOnce(R, Outcome<T>) + Send + 'static,
    ) {
        let _turn = self.turn(op, req);
        guarded(op, || match call(&self.vfs, Patience::Brief) {
            Ok(Step::Done(done)) => answer(reply, Ok(done)),
            Err(kind) => answer(reply, Err(kind)),
            Ok(Step::Blocks) => {
                let vfs = Arc::clone(&self.vfs);
                let unanswered = Unanswered::one(&self.unanswered);
                self.workers.run(move || {
                    let _until_answered = unanswered;
                    match call(&vfs, Patience::Blocking) {
                        Ok(Step::Done(done)) => answer(reply, Ok(done)),
                        Ok(Step::Blocks) => answer(reply, Err(ErrorKind::Io(None))),
                        Err(kind) => answer(reply, Err(kind)),
                    }
                });
            }
        });
    }

    /// A file that a request makes.
    pub(super) fn new_file(&self, req: &Request, kind: Kind, mode: u32, umask: u32) -> NewFile<'static> {
        let umask = self.vfs.xattrs().then(|| permissions(umask));
        NewFile { umask, ..NewFile::new(kind, permissions(mode), req.uid(), req.gid()) }
    }

    /// Tells the kernel something from another thread, where no request waits for it.
    pub(super) fn notify(&self, tell: impl FnOnce(&Notifier) + Send + 'static) {
        let notifier = Arc::clone(&self.notifier);
        self.notices.run(move || {
            if let Some(notifier) = notifier.get() {
                tell(notifier);
            }
        });
    }

    pub(super) fn make(
        &self,
        op: Op,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: &NewFile<'_>,
        reply: ReplyEntry,
    ) {
        if self.announces(req) {
            let name = name.as_bytes().to_vec();
            let call = move |vfs: &Vfs| vfs.make_announced(parent.0, &name);
            return self.announced((op, req), reply, call, answer_entry);
        }
        let _turn = self.turn(op, req);
        if parent.0 == Vfs::FORKS {
            return self.make_fork(op, name, new, reply);
        }
        guarded(op, || answer_entry(reply, self.vfs.create(parent.0, name.as_bytes(), new)));
    }

    /// Makes a fork, on a worker: its image has to be read, and those behind it for the times that it does not record.
    fn make_fork(&self, op: Op, name: &OsStr, new: &NewFile<'_>, reply: ReplyEntry) {
        let (vfs, notifier, notices) =
            (Arc::clone(&self.vfs), Arc::clone(&self.notifier), self.notices.clone());
        let (told, announcer) = (Arc::clone(&self.vfs), self.announcer.clone());
        let (name, new) = (name.as_bytes().to_vec(), NewFile { target: &[], ..new.clone() });
        self.workers.run(move || {
            guarded(op, || answer_entry(reply, vfs.create(Vfs::FORKS, &name, &new)));
            notices.run(move || {
                notifier.get().inspect(|notifier| forks_changed(&told, notifier, &announcer));
            });
        });
    }

    /// Answers a listing, on a worker where it has to wait.
    pub(super) fn list(
        &self,
        op: Op,
        req: &Request,
        ino: INodeNo,
        answer: impl FnOnce(&Vfs) + Send + 'static,
    ) {
        let _turn = self.turn(op, req);
        if self.vfs.is_listed_by_a_worker(ino.0) {
            let vfs = Arc::clone(&self.vfs);
            self.workers.run(move || answer(&vfs));
        } else {
            guarded(op, || answer(&self.vfs));
        }
    }

    /// Seals a fork, on a worker: it takes as long as the disk does, and all cores.
    pub(super) fn seal(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = self.turn(Op::Mkdir, req);
        if let Some(company) = &self.company {
            company.dismiss();
        }
        let (vfs, notifier) = (Arc::clone(&self.vfs), Arc::clone(&self.notifier));
        let (notices, announcer) = (self.notices.clone(), self.announcer.clone());
        let name = name.as_bytes().to_vec();
        self.sealers.run(move || {
            let dropped = vfs.before_restore(parent.0, &name);
            if let Some(notifier) = notifier.get().filter(|_| !dropped.is_empty()) {
                announcer.forget(notifier, &dropped);
            }
            let (made, AfterSeal { stale, replaced, frozen }) = vfs.make_in_snap(parent.0, &name);
            answer_entry(reply, made);
            // Not from here: the next mkdir in that folder holds it until a worker answers.
            notices.run(move || {
                if let Some(notifier) = notifier.get() {
                    tell(notifier, &stale);
                    if let Some(replaced) = &replaced {
                        announcer.depart(&vfs, notifier, replaced);
                    }
                }
                vfs.shows(&name);
            });
            drop(frozen);
        });
    }

    /// Branches a fork, on a worker: what programs wrote to the fork has to reach the daemon first.
    pub(super) fn branch(&self, req: &Request, name: &OsStr, new: &NewFile<'_>, reply: ReplyEntry) {
        let _turn = self.turn(Op::Mkdir, req);
        let (vfs, notifier, notices) =
            (Arc::clone(&self.vfs), Arc::clone(&self.notifier), self.notices.clone());
        let name = name.as_bytes().to_vec();
        let (told, announcer) = (Arc::clone(&self.vfs), self.announcer.clone());
        let new = NewFile { target: &[], ..new.clone() };
        self.branchers.run(move || {
            answer_entry(reply, vfs.create(Vfs::FORKS, &name, &new));
            notices.run(move || {
                notifier.get().inspect(|notifier| forks_changed(&told, notifier, &announcer));
            });
        });
    }

    /// `work/` lists what `forks/` lists, which the kernel cannot know.
    pub(super) fn forks_changed(&self, parent: INodeNo) {
        if parent.0 == Vfs::FORKS {
            let (vfs, announcer) = (Arc::clone(&self.vfs), self.announcer.clone());
            self.notify(move |notifier| forks_changed(&vfs, notifier, &announcer));
        }
    }

    /// Tells of a fork that was moved into `.pfimg/` and so discarded, and of the name that the kernel has just given it.
    pub(super) fn fork_discarded(&self, name: &OsStr) {
        let (vfs, announcer, name) = (Arc::clone(&self.vfs), self.announcer.clone(), name.to_owned());
        self.notify(move |notifier| {
            forks_changed(&vfs, notifier, &announcer);
            let _ = notifier.inval_entry(INodeNo(Vfs::CONTROL), &name);
            vfs.shows_discarded(name.as_bytes());
        });
    }
}

/// Tells the kernel what looks different once forks have come or gone, and programs that watch.
fn forks_changed(vfs: &Vfs, notifier: &Notifier, announcer: &Announcer) {
    tell(notifier, &LISTINGS_OF_FORKS);
    for departed in vfs.take_departed() {
        announcer.depart(vfs, notifier, &departed);
    }
    announcer.announce(notifier, vfs.take_announcements());
}
