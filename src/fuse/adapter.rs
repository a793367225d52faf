//! What serves a connection, and what its requests have in common: counting, waiting on a worker, telling the kernel.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};

use fuser::{FopenFlags, INodeNo, Notifier, ReplyEntry, Request};

use super::company::{Company, Turn};
use super::guarded;
use super::reply::answer_entry;
use super::session::SessionConfig;
use super::watch::tell;
use super::workers::Workers;
use crate::error::ErrorKind;
use crate::fork::NewFile;
use crate::vfs::{AfterSeal, Op, Outcome, Patience, Stale, Step, Vfs};

/// Serves one connection.
pub(super) struct Adapter {
    pub(super) vfs: Arc<Vfs>,
    pub(super) workers: Workers,
    /// One thread of its own, which no request ever waits for: the kernel holds a notification up until requests on
    /// the same file or folder are answered, and some of those are answered by workers.
    notices: Workers,
    /// Seals take long, and must not keep everybody else waiting for a worker.
    sealers: Workers,
    notifier: Arc<OnceLock<Notifier>>,
    pub(super) writeback: bool,
    pub(super) holes: bool,
    company: Option<Company>,
}

impl Adapter {
    pub(super) fn new(
        vfs: Arc<Vfs>,
        notifier: Arc<OnceLock<Notifier>>,
        config: &SessionConfig,
    ) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let workers = Workers::start("pfimg-worker", cores)?;
        let company = if config.spin { Company::start()? } else { None };
        let notices = Workers::start("pfimg-notify", 1)?;
        let sealers = Workers::start("pfimg-sealer", cores)?;
        let SessionConfig { writeback, holes, .. } = *config;
        Ok(Self { vfs, workers, notices, sealers, notifier, writeback, holes, company })
    }

    /// How the kernel is to treat a file that it opens. It is asked for no NOFLUSH: what was written through a mapping has to come
    /// when the file is closed.
    pub(super) fn opened(&self, ino: u64) -> FopenFlags {
        // A kernel that writes back believes no length but its own: of a file that a seal made longer it would show too little, and
        // append in the middle.
        if self.writeback && self.vfs.is_resized_by_seals(ino) {
            FopenFlags::FOPEN_DIRECT_IO
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        }
    }

    /// Counts a request. What it returns lives until the request was answered or handed to a worker.
    pub(super) fn turn(&self, op: Op, req: &Request) -> Option<Turn<'_>> {
        self.vfs.metrics().count(op);
        self.company.as_ref().map(|company| company.request(req.pid()))
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
                self.workers.run(move || match call(&vfs, Patience::Blocking) {
                    Ok(Step::Done(done)) => answer(reply, Ok(done)),
                    Ok(Step::Blocks) => answer(reply, Err(ErrorKind::Io(None))),
                    Err(kind) => answer(reply, Err(kind)),
                });
            }
        });
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
        let (name, new) = (name.as_bytes().to_vec(), NewFile { target: &[], ..new.clone() });
        self.workers.run(move || {
            guarded(op, || answer_entry(reply, vfs.create(Vfs::FORKS, &name, &new)));
            notices.run(move || {
                notifier
                    .get()
                    .inspect(|notifier| tell(notifier, &[Stale::Inode(Vfs::FORKS), Stale::Inode(Vfs::WORK)]));
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
        let notices = self.notices.clone();
        let name = name.as_bytes().to_vec();
        self.sealers.run(move || {
            let (made, AfterSeal { stale, frozen }) = vfs.make_in_snap(parent.0, &name);
            answer_entry(reply, made);
            // Not from here: the next mkdir in that folder holds it until a worker answers.
            notices.run(move || {
                notifier.get().inspect(|notifier| tell(notifier, &stale));
                vfs.shows(&name);
            });
            drop(frozen);
        });
    }

    /// `work/` lists what `forks/` lists, which the kernel cannot know.
    pub(super) fn forks_changed(&self, parent: INodeNo) {
        if parent.0 == Vfs::FORKS {
            self.notify(|notifier| tell(notifier, &[Stale::Inode(Vfs::FORKS), Stale::Inode(Vfs::WORK)]));
        }
    }
}
