//! Serves one connection to the kernel, from its beginning to its end.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;

use fuser::{Config, Notifier, SessionACL};

use super::adapter::Adapter;
use super::announce::{self, Announcer};
use super::barrier::{self, Barrier};
use super::commands::Commands;
use super::features::Features;
use super::kernel::Kernel;
use super::open_root::OpenRoot;
use crate::error::{Error, Result};
use crate::vfs::{Pusher, Vfs};

/// Number of event loops. Two, each with its own queue, measured best on two cores.
const THREADS: usize = 2;

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a separate option")]
pub struct SessionConfig {
    /// Whether other users may use the mount.
    pub allow_other: bool,
    /// Whether the kernel takes no writes.
    pub read_only: bool,
    /// Whether the kernel caches writes (`FUSE_WRITEBACK_CACHE`).
    pub writeback: bool,
    /// Whether a second core may be kept busy while requests come in a row.
    pub spin: bool,
    /// Whether lseek(2) finds holes in files, which costs a request each time. Otherwise it takes all of a file for data.
    pub holes: bool,
}

/// All that has to exist before the connection is opened.
pub struct Prepared {
    vfs: Arc<Vfs>,
    config: SessionConfig,
    adapter: Adapter,
    notifiers: Arc<OnceLock<Notifier>>,
    barrier: barrier::Prepared,
    announcer: announce::Prepared,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("config", &self.config).finish_non_exhaustive()
    }
}

fn no_thread(error: io::Error) -> Error {
    Error::io(error, "cannot start a thread")
}

impl Prepared {
    /// Starts the threads. Those that make calls on the mount first call `prepare_thread`, so that they do not hold the
    /// connection: it has to give them a separate table of descriptors.
    pub fn new(vfs: Arc<Vfs>, config: SessionConfig, prepare_thread: fn()) -> Result<Self> {
        let notifiers = Arc::new(OnceLock::new());
        let barrier = Barrier::prepare(prepare_thread).map_err(no_thread)?;
        let announcer = Announcer::prepare(prepare_thread).map_err(no_thread)?;
        let (thread, announces) = (barrier.thread(), announcer.announcer());
        let SessionConfig { writeback, spin, holes, .. } = config;
        let features = Features { writeback, spin, holes };
        let adapter = Adapter::new(Arc::clone(&vfs), Arc::clone(&notifiers), features, thread, announces)
            .map_err(no_thread)?;
        Ok(Self { vfs, config, adapter, notifiers, barrier, announcer })
    }

    /// Begins to answer the kernel's requests. Calls `ended` when the kernel says that the mount has ended, even if another
    /// program unmounted it.
    pub fn serve(
        self,
        fd: OwnedFd,
        root: OpenRoot,
        ended: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> Result<Session> {
        let Self { vfs, config, adapter, notifiers, barrier, announcer } = self;
        let announces = announcer.announcer();
        announcer.start(&vfs, Arc::clone(&root));
        let (unanswered, commands) = (Arc::clone(&adapter.unanswered), adapter.commands());
        let barrier =
            barrier.start(Arc::clone(vfs.cached_writes()), root, THREADS, unanswered, adapter.resting());
        let barrier = Arc::new(barrier);
        if !config.read_only {
            vfs.push_by(Some(barrier.clone()));
        }
        let mut fuser_config = Config::default();
        fuser_config.n_threads = Some(THREADS);
        // A second connection has to open the device again, for which an ordinary user may lack permission.
        fuser_config.clone_fd = File::options().read(true).write(true).open("/dev/fuse").is_ok();
        let acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
        fuser_config.acl = acl;
        let session = fuser::Session::from_fd(adapter, fd, acl, fuser_config)
            .map_err(|e| Error::io(e, "the kernel refuses the connection"))?;
        let notifier = session.notifier();
        let _ = notifiers.set(notifier.clone());
        thread::Builder::new()
            .name("pfimg-session".into())
            .spawn(move || {
                let served = catch_unwind(AssertUnwindSafe(|| session.run()));
                ended(served.unwrap_or_else(|_| Err(io::Error::other("an error in pfimg ended it"))));
            })
            .map_err(no_thread)?;
        Ok(Session { kernel: Kernel::new(notifier, announces), barrier, commands })
    }
}

/// A connection that is being served. Dropping it does not end the connection: an unmount does.
pub struct Session {
    kernel: Kernel,
    barrier: Arc<Barrier>,
    commands: Commands,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// The way to notify the kernel of changes.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The way for commands to reach the threads of this connection.
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Makes the kernel hand in cached writes, on a thread that calls `done` at its end.
    pub fn push(&self, done: impl FnOnce() + Send + 'static) {
        let barrier = Arc::clone(&self.barrier);
        let pushing = thread::Builder::new().name("pfimg-push".into()).spawn(move || {
            if let Err(error) = barrier.push(&|| false) {
                tracing::warn!("{error}");
            }
            done();
        });
        if let Err(error) = pushing {
            tracing::warn!("cannot start a thread to collect cached writes: {error}");
        }
    }
}
