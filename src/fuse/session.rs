//! Serves a mounted store from mount to unmount.
//!
//! The session ends when the kernel says that the mount has ended, even if another program unmounted it. A signal (SIGTERM,
//! SIGINT, SIGHUP, SIGXCPU) unmounts it first. A second signal shortens the end: the session then waits neither for programs
//! that have files open nor for seals. Durability does not depend on the end.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXCPU};
use signal_hook::iterator::Signals;

use super::adapter::Adapter;
use super::announce::Announcer;
use super::barrier::Barrier;
use super::features::Features;
use super::own::Place;
use super::watch::Watcher;
use crate::audit::{Log, note};
use crate::error::{Error, Result};
use crate::mount::attach::{OwnMount, Unmounted, absolute, mount, prepare};
use crate::mount::options::MountOptions;
use crate::vfs::{Pusher, Vfs};

/// Number of event loops. Two, each with its own queue, measured best on two cores.
const THREADS: usize = 2;

/// How long programs may continue to use a mount after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// How long to wait for news that a mount which does not answer has ended.
const SETTLE: Duration = Duration::from_secs(1);

/// Where and how to mount.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The mountpoint, a folder.
    pub mountpoint: PathBuf,
    /// The store's folder, which `df` and `/proc/self/mountinfo` show as the source.
    pub source: PathBuf,
    /// Mount options.
    pub options: MountOptions,
    /// Whether the kernel caches writes (`FUSE_WRITEBACK_CACHE`).
    pub writeback: bool,
    /// Whether a second core may be kept busy while requests come in a row.
    pub spin: bool,
    /// Whether lseek(2) finds holes in files, which costs a request each time. Otherwise it takes all of a file for data.
    pub holes: bool,
}

enum End {
    /// The connection to the kernel has ended.
    Session(io::Result<()>),
    /// A signal came in.
    Signal(i32),
    /// The kernel has handed in its cached writes.
    Pushed,
}

impl SessionConfig {
    /// Checks that the mountpoint can be used, and makes its path absolute. Unmounts a dead mount of pfimg there.
    pub fn prepare(&mut self) -> Result<()> {
        self.mountpoint = absolute(&self.mountpoint)?;
        prepare(&self.mountpoint)
    }
}

/// Mounts the store, calls `ready` once it serves requests, and serves until the store is unmounted or a signal comes.
///
/// `ready` must not look at the mount from this process. A process that is killed while it waits for itself holds its own
/// connection open for ever.
pub fn serve(vfs: Arc<Vfs>, config: &SessionConfig, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let failed = |what: &'static str| move |e| Error::io(e, what);
    let (events, ended) = mpsc::channel();
    // Before mounting, so that no signal can end this process and leave a dead mount.
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXCPU]).map_err(failed("cannot handle signals"))?;
    let (signal_events, over) = (events.clone(), Arc::new(AtomicBool::new(false)));
    let (sealing, ending) = (Arc::clone(&vfs), Arc::clone(&over));
    thread::Builder::new()
        .name("pfimg-signals".into())
        .spawn(move || {
            for signal in &mut signals {
                // The first signal to a mount only unmounts it. A later one, or one after the mount has ended, stops seals.
                if ending.swap(true, Ordering::AcqRel) {
                    sealing.stop_sealing();
                }
                let _ = signal_events.send(End::Signal(signal));
            }
        })
        .map_err(failed("cannot start a thread"))?;

    let notifiers = Arc::new(OnceLock::new());
    // Before the connection is opened, so that the thread does not hold it.
    let barrier = Barrier::prepare().map_err(failed("cannot start a thread"))?;
    let announcer = Announcer::prepare().map_err(failed("cannot start a thread"))?;
    let announces = announcer.announcer();
    let SessionConfig { writeback, spin, holes, .. } = *config;
    let features = Features { writeback, spin, holes };
    let adapter =
        Adapter::new(Arc::clone(&vfs), Arc::clone(&notifiers), features, barrier.thread(), announces.clone())
            .map_err(failed("cannot start a thread"))?;
    // The watcher reports changes from here on.
    let watched = vfs.watch();
    let (fd, own) = mount(&config.mountpoint, &config.source, &config.options)?;
    let guard = UnmountOnDrop(&own);
    let place =
        Place { path: own.path.clone(), device: own.device().to_owned(), source: config.source.clone() };
    announcer.start(Arc::clone(&vfs), place.clone());
    let unanswered = Arc::clone(&adapter.unanswered);
    let barrier = barrier.start(Arc::clone(&vfs), place, THREADS, unanswered, adapter.resting());
    let barrier = Arc::new(barrier);
    if !config.options.read_only {
        vfs.push_by(Some(barrier.clone()));
    }
    let mut fuser_config = Config::default();
    fuser_config.n_threads = Some(THREADS);
    // A second connection has to open the device again, for which an ordinary user may lack permission.
    fuser_config.clone_fd = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let acl = if config.options.allow_other { SessionACL::All } else { SessionACL::Owner };
    fuser_config.acl = acl;
    let session = Session::from_fd(adapter, fd, acl, fuser_config)
        .map_err(failed("the kernel refuses the connection"))?;
    let pushed = events.clone();
    let notifier = session.notifier();
    let _ = notifiers.set(notifier.clone());
    thread::Builder::new()
        .name("pfimg-session".into())
        .spawn(move || {
            let _ = events.send(End::Session(session.run()));
        })
        .map_err(failed("cannot start a thread"))?;
    let (log, left) = (vfs.log().clone(), Arc::clone(&vfs));
    let watcher =
        Watcher::start(vfs, watched, notifier, announces.clone()).map_err(failed("cannot start a thread"))?;
    let outcome = match ready() {
        Ok(()) => {
            tracing::info!("mounted at {}", own.path.display());
            let push = || {
                announces.stop();
                push(&barrier, pushed);
            };
            wait(&own, &ended, &log, push)
        }
        // Another program may have unmounted the store before `ready` looked.
        Err(error) => match session_end(&ended, SETTLE) {
            Some(result) => gone(result, &own),
            None => Err(error),
        },
    };
    over.store(true, Ordering::Release);
    if ended.try_iter().any(|event| matches!(event, End::Signal(_))) {
        left.stop_sealing();
    }
    drop(watcher);
    // From here on the kernel hands in no cached writes.
    left.push_by(None);
    if matches!(outcome, Ok(Ended::Gone)) {
        // The kernel says that this mount has ended completely, so a mount at its path belongs to another program.
        std::mem::forget(guard);
    }
    outcome.map(|_| ())
}

/// Waits for the session to end, and ignores signals.
fn session_end(ended: &mpsc::Receiver<End>, at_most: Duration) -> Option<io::Result<()>> {
    let until = Instant::now() + at_most;
    loop {
        match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(End::Session(result)) => return Some(result),
            Ok(End::Signal(_) | End::Pushed) => {}
            Err(_) => return None,
        }
    }
}

/// Waits for the session to end while programs may still use it. A signal ends the wait.
fn end_or_signal(ended: &mpsc::Receiver<End>) -> Option<io::Result<()>> {
    let until = Instant::now() + GRACE;
    loop {
        match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(End::Session(result)) => return Some(result),
            Ok(End::Signal(_)) => return session_end(ended, SETTLE),
            Ok(End::Pushed) => {}
            Err(_) => return None,
        }
    }
}

/// How serving ended.
enum Ended {
    /// The mount has ended, and no program has its files open.
    Gone,
    /// This process ends while programs may still have files open.
    Detached,
}

/// Makes the kernel hand in cached writes, and sends an event when it has.
fn push(barrier: &Arc<Barrier>, events: mpsc::Sender<End>) {
    let barrier = Arc::clone(barrier);
    let pushing = thread::Builder::new().name("pfimg-push".into()).spawn(move || {
        if let Err(error) = barrier.push(&|| false) {
            tracing::warn!("{error}");
        }
        let _ = events.send(End::Pushed);
    });
    if let Err(error) = pushing {
        tracing::warn!("cannot start a thread to collect cached writes: {error}");
    }
}

fn wait(own: &OwnMount, ended: &mpsc::Receiver<End>, log: &Log, push: impl FnOnce()) -> Result<Ended> {
    let shown = own.path.display();
    let signal = match ended.recv() {
        Ok(End::Signal(signal)) => signal,
        Ok(End::Session(result)) => return gone(result, own),
        Ok(End::Pushed) | Err(_) => return Ok(Ended::Detached),
    };
    if signal == SIGXCPU {
        tracing::warn!("the daemon has used up its CPU time (ulimit -t): unmounting {shown}");
    } else {
        tracing::info!("signal {signal}: unmounting {shown}");
    }
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("unknown");
    log.note_quietly(note::signal(name, "unmount"));
    // Before the mount is detached: later the daemon cannot collect writes through mappings that programs keep.
    push();
    let mut hurried = false;
    match ended.recv_timeout(GRACE) {
        Ok(End::Session(result)) => return gone(result, own),
        Ok(End::Signal(_)) => hurried = true,
        Ok(End::Pushed) | Err(_) => {}
    }
    let left = match own.unmount()? {
        Unmounted::Absent => own.left(),
        left => left,
    };
    match left {
        Unmounted::Clean | Unmounted::Absent => {}
        // No program has to be waited for, and no event would report the end.
        Unmounted::Held => {
            tracing::info!("unmounted {shown}");
            return Ok(Ended::Detached);
        }
        Unmounted::Shows(other) => tracing::warn!(
            "{shown} is also mounted at {}, which is served for {} s more",
            other.display(),
            GRACE.as_secs()
        ),
        Unmounted::Busy => tracing::warn!(
            "{shown} is in use: it was detached, and is served for {} s more to programs that have it open",
            GRACE.as_secs()
        ),
    }
    // After a second signal this waits for no program, but the end may already be on its way.
    let result = if hurried { session_end(ended, SETTLE) } else { end_or_signal(ended) };
    if let Some(result) = result {
        return gone(result, own);
    }
    tracing::warn!("{shown} is still in use; programs that have it open get ENOTCONN from now on");
    Ok(Ended::Detached)
}

fn gone(result: io::Result<()>, own: &OwnMount) -> Result<Ended> {
    let shown = own.path.display();
    match result {
        Err(e) if !was_reading(&e) || own.is_mounted() => {
            Err(Error::io(e, format!("the connection of {shown} broke")))
        }
        _ => {
            tracing::info!("unmounted {shown}");
            Ok(Ended::Gone)
        }
    }
}

/// Whether the mount ended while a request was being read. The kernel then returns ECONNABORTED, even after an unmount
/// (`fuse_dev_do_read`), and otherwise ENODEV.
fn was_reading(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNABORTED)
}

/// Unmounts when it is dropped, so that no error leaves a mount behind.
struct UnmountOnDrop<'a>(&'a OwnMount);

impl Drop for UnmountOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unmount() {
            tracing::error!("{error}");
        }
    }
}
