//! Serves a connection: counts requests, hands waiting ones to workers, and notifies the kernel of changes.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use fuser::{INodeNo, Notifier, ReplyEmpty, ReplyEntry, Request};

use super::announce::Announcer;
use super::commands::Commands;
use super::convert::permissions;
use super::features::Features;
use super::guard::guarded;
use super::pool::Workers;
use super::reply::{answer_empty, answer_entry};
use super::spin::{CoreSpinner, RequestGuard};
use super::tell::{forks_changed, sealed};
use crate::sync::wait;
use crate::vfs::{Attempt, Kind, NewFile, Op, Outcome, Stop, Vfs};

/// Number of requests that can wait for the disk at once on a machine with few cores.
const LEAST_WORKERS: usize = 4;

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
    /// One thread that no request ever waits for. The kernel delays a notification until requests on the same file or folder
    /// are answered, and workers answer some of those.
    notices: Workers,
    /// Threads for seals, which take long, so that other requests need not wait for a worker.
    sealers: Workers,
    /// Threads for branches, which wait until cached writes have reached the daemon.
    branchers: Workers,
    notifier: Arc<OnceLock<Notifier>>,
    pub(super) writeback: bool,
    pub(super) holes: bool,
    spinner: Option<Arc<CoreSpinner>>,
    /// Number of requests that workers have not answered yet and that may be in the kernel's background queue.
    pub(super) unanswered: Arc<AtomicU64>,
    /// The daemon's thread that makes requests itself.
    own_thread: Arc<AtomicU32>,
    announcer: Announcer,
}

impl Adapter {
    pub(super) fn new(
        vfs: Arc<Vfs>,
        notifier: Arc<OnceLock<Notifier>>,
        features: Features,
        own_thread: Arc<AtomicU32>,
        announcer: Announcer,
    ) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        // More threads than cores may help, since workers mostly wait for the disk.
        let workers = Workers::start("pfimg-worker", cores.max(LEAST_WORKERS))?;
        let spinner = if features.spin { CoreSpinner::start()?.map(Arc::new) } else { None };
        let notices = Workers::start("pfimg-notify", 1)?;
        let sealers = Workers::start("pfimg-sealer", cores)?;
        let branchers = Workers::start("pfimg-branch", cores)?;
        let Features { writeback, holes, .. } = features;
        Ok(Self {
            vfs,
            workers,
            notices,
            sealers,
            branchers,
            notifier,
            writeback,
            holes,
            spinner,
            unanswered: Arc::default(),
            own_thread,
            announcer,
        })
    }

    /// Returns a function that lists the event loops which rest now and hold no request.
    pub(super) fn resting(&self) -> impl Fn() -> Vec<ThreadId> + Send + use<> {
        let resting = self.spinner.as_ref().map(|spinner| spinner.resting());
        move || resting.as_ref().map_or_else(Vec::new, |resting| resting())
    }

    /// Counts a request of the calling event loop. The caller keeps the result until the request is answered or handed to a
    /// worker.
    pub(super) fn begin(&self, op: Op, req: &Request) -> Option<RequestGuard<'_>> {
        wait::never();
        self.vfs.metrics().count(op);
        let own = req.pid() != 0 && req.pid() == self.own_thread.load(Ordering::Relaxed);
        let own = own || self.announces(req);
        self.spinner.as_ref().filter(|_| !own).map(|spinner| spinner.request(req.pid()))
    }

    /// Whether a request comes from the thread that announces changes.
    pub(super) fn announces(&self, req: &Request) -> bool {
        self.announcer.is_its_own(req.pid())
    }

    /// Answers a request of the thread that announces changes, on a worker.
    pub(super) fn announced<R: Send + 'static, T: 'static>(
        &self,
        (op, req): (Op, &Request),
        reply: R,
        call: impl FnOnce(&Vfs) -> Attempt<T> + Send + 'static,
        answer: impl FnOnce(R, Outcome<T>) + Send + 'static,
    ) {
        let _request = self.begin(op, req);
        let vfs = Arc::clone(&self.vfs);
        self.workers.run(move || guarded(op, || answer(reply, call(&vfs).map_err(Stop::kind))));
    }

    /// Answers the removal of a name by the thread that announces changes.
    pub(super) fn removed(&self, op: Op, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let call = move |vfs: &Vfs| vfs.announcer().remove(parent.0, &name).map_err(Stop::from);
        self.announced((op, req), reply, call, answer_empty);
    }

    /// Answers a request. If `call` has to wait for the disk, a worker makes the call again.
    pub(super) fn attempt<R: Send + 'static, T: 'static>(
        &self,
        op: Op,
        req: &Request,
        reply: R,
        call: impl Fn(&Vfs) -> Attempt<T> + Send + 'static,
        answer: impl FnOnce(R, Outcome<T>) + Send + 'static,
    ) {
        let _request = self.begin(op, req);
        guarded(op, || {
            let attempt = call(&self.vfs);
            self.finish(op, reply, attempt, || call, answer);
        });
    }

    /// Answers a request with the result of an attempt. If the attempt has to wait, a worker calls what `again` makes.
    pub(super) fn finish<R, T, L>(
        &self,
        op: Op,
        reply: R,
        attempt: Attempt<T>,
        again: impl FnOnce() -> L,
        answer: impl FnOnce(R, Outcome<T>) + Send + 'static,
    ) where
        R: Send + 'static,
        L: FnOnce(&Vfs) -> Attempt<T> + Send + 'static,
    {
        match attempt {
            Ok(done) => answer(reply, Ok(done)),
            Err(Stop::Failed(kind)) => answer(reply, Err(kind)),
            Err(Stop::Waits) => {
                let (vfs, again) = (Arc::clone(&self.vfs), again());
                let unanswered = Unanswered::one(&self.unanswered);
                self.workers.run(move || {
                    let _until_answered = unanswered;
                    guarded(op, || answer(reply, again(&vfs).map_err(Stop::kind)));
                });
            }
        }
    }

    /// The attributes of a file that a request creates.
    pub(super) fn new_file(&self, req: &Request, kind: Kind, mode: u32, umask: u32) -> NewFile<'static> {
        let umask = self.vfs.xattrs().then(|| permissions(umask));
        NewFile { umask, ..NewFile::new(kind, permissions(mode), req.uid(), req.gid()) }
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
        let _request = self.begin(op, req);
        if parent.0 == Vfs::FORKS {
            return self.make_fork(op, name, new, reply);
        }
        guarded(op, || {
            let attempt = self.vfs.create(parent.0, name.as_bytes(), new);
            let again = || {
                let (name, target) = (name.as_bytes().to_vec(), new.target.to_vec());
                let new = NewFile { target: &[], ..new.clone() };
                move |vfs: &Vfs| vfs.create(parent.0, &name, &NewFile { target: &target, ..new })
            };
            self.finish(op, reply, attempt, again, answer_entry);
        });
    }

    /// Makes a fork, on a worker: it has to read the image, and earlier ones for times that the image does not record.
    fn make_fork(&self, op: Op, name: &OsStr, new: &NewFile<'_>, reply: ReplyEntry) {
        let (vfs, notifier, notices) =
            (Arc::clone(&self.vfs), Arc::clone(&self.notifier), self.notices.clone());
        let (told, announcer) = (Arc::clone(&self.vfs), self.announcer.clone());
        let (name, new) = (name.as_bytes().to_vec(), NewFile { target: &[], ..new.clone() });
        self.workers.run(move || {
            guarded(op, || answer_entry(reply, vfs.create(Vfs::FORKS, &name, &new).map_err(Stop::kind)));
            notices.run(move || {
                notifier.get().inspect(|notifier| drop(forks_changed(&told, notifier, &announcer)));
            });
        });
    }

    /// Answers a listing. If it has to wait before its first entry, a worker answers it.
    pub(super) fn list<R: Send + 'static>(
        &self,
        op: Op,
        req: &Request,
        mut reply: R,
        fill: impl Fn(&Vfs, &mut R) -> Attempt<()> + Send + 'static,
        answer: impl FnOnce(R, Outcome<()>) + Send + 'static,
    ) {
        let _request = self.begin(op, req);
        guarded(op, || match fill(&self.vfs, &mut reply) {
            Err(Stop::Waits) => {
                let vfs = Arc::clone(&self.vfs);
                self.workers.run(move || {
                    guarded(op, || {
                        let filled = fill(&vfs, &mut reply).map_err(Stop::kind);
                        answer(reply, filled);
                    });
                });
            }
            filled => answer(reply, filled.map_err(Stop::kind)),
        });
    }

    /// Seals a fork, on a separate thread: it waits for the disk and uses all cores.
    pub(super) fn seal(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _request = self.begin(Op::Mkdir, req);
        if let Some(spinner) = &self.spinner {
            spinner.stop();
        }
        let (vfs, notifier) = (Arc::clone(&self.vfs), Arc::clone(&self.notifier));
        let (notices, announcer) = (self.notices.clone(), self.announcer.clone());
        let name = name.as_bytes().to_vec();
        self.sealers.run(move || {
            let dropped = vfs.before_restore(parent.0, &name);
            if let Some(notifier) = notifier.get().filter(|_| !dropped.is_empty()) {
                announcer.forget(notifier, &dropped);
            }
            let (made, mut after) = vfs.make_in_snap(parent.0, &name);
            answer_entry(reply, made.map_err(Stop::kind));
            let frozen = after.frozen.take();
            // On the notifier's thread: the next mkdir in that folder delays the notification until a worker answers.
            notices.run(move || {
                if let Some(notifier) = notifier.get() {
                    sealed(&vfs, notifier, &announcer, &after);
                }
            });
            drop(frozen);
        });
    }

    /// Branches a fork, on a separate thread: cached writes to the fork have to reach the daemon first.
    pub(super) fn branch(&self, req: &Request, name: &OsStr, new: &NewFile<'_>, reply: ReplyEntry) {
        let _request = self.begin(Op::Mkdir, req);
        let (vfs, notifier, notices) =
            (Arc::clone(&self.vfs), Arc::clone(&self.notifier), self.notices.clone());
        let name = name.as_bytes().to_vec();
        let (told, announcer) = (Arc::clone(&self.vfs), self.announcer.clone());
        let new = NewFile { target: &[], ..new.clone() };
        self.branchers.run(move || {
            answer_entry(reply, vfs.create(Vfs::FORKS, &name, &new).map_err(Stop::kind));
            notices.run(move || {
                notifier.get().inspect(|notifier| drop(forks_changed(&told, notifier, &announcer)));
            });
        });
    }

    /// Returns the way for commands to reach this mount's threads.
    pub(super) fn commands(&self) -> Commands {
        Commands {
            vfs: Arc::downgrade(&self.vfs),
            notifier: Arc::clone(&self.notifier),
            notices: self.notices.clone(),
            sealers: self.sealers.clone(),
            branchers: self.branchers.clone(),
            announcer: self.announcer.clone(),
            spinner: self.spinner.as_ref().map(Arc::downgrade),
        }
    }

    /// Returns the handle by which any thread notifies the kernel of changes.
    pub(super) fn teller(&self) -> Teller {
        Teller {
            vfs: Arc::clone(&self.vfs),
            notifier: Arc::clone(&self.notifier),
            notices: self.notices.clone(),
            announcer: self.announcer.clone(),
        }
    }
}

/// Notifies the kernel of changes by requests that it cannot know. A separate thread does so, for which no request waits.
pub(super) struct Teller {
    pub(super) vfs: Arc<Vfs>,
    notifier: Arc<OnceLock<Notifier>>,
    notices: Workers,
    announcer: Announcer,
}

impl Teller {
    /// Runs a notification on that thread.
    pub(super) fn notify(&self, notify: impl FnOnce(&Notifier) + Send + 'static) {
        let notifier = Arc::clone(&self.notifier);
        self.notices.run(move || {
            if let Some(notifier) = notifier.get() {
                notify(notifier);
            }
        });
    }

    /// Notifies the kernel that forks changed: it cannot know that `work/` lists the same names as `forks/`.
    pub(super) fn forks_changed(&self) {
        let (vfs, announcer) = (Arc::clone(&self.vfs), self.announcer.clone());
        self.notify(move |notifier| drop(forks_changed(&vfs, notifier, &announcer)));
    }

    /// Notifies the kernel of a fork that was discarded by a move into `.pfimg/`, and of its name there.
    pub(super) fn fork_discarded(&self, name: Vec<u8>) {
        let (vfs, announcer) = (Arc::clone(&self.vfs), self.announcer.clone());
        self.notify(move |notifier| {
            let departed = forks_changed(&vfs, notifier, &announcer);
            let _ = notifier.inval_entry(INodeNo(Vfs::CONTROL), OsStr::from_bytes(&name));
            // Dropping the last reference to a fork removes its files.
            drop(departed);
        });
    }
}
