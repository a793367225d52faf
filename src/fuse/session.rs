//! A mounted store from mount to unmount.
//!
//! The session ends when the kernel says that the mount is gone, whoever unmounted it. SIGTERM and SIGINT unmount it
//! first; nothing durable waits for the end.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::adapter::Adapter;
use super::mount::{OwnMount, Unmounted, absolute, mount, prepare};
use super::options::MountOptions;
use super::watch::Watcher;
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::Vfs;

/// Event loops. Two with a queue of their own each measured best on two cores.
const THREADS: usize = 2;

/// How long programs that use a mount may go on with it after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// Where and how to mount.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The mountpoint, a folder.
    pub mountpoint: PathBuf,
    /// Its options.
    pub options: MountOptions,
    /// Whether the kernel keeps what was written for a while before it tells (`FUSE_WRITEBACK_CACHE`).
    pub writeback: bool,
}

enum End {
    /// The kernel's connection is gone.
    Session(io::Result<()>),
    /// A signal came in.
    Signal(i32),
}

impl SessionConfig {
    /// Looks whether the mountpoint can be used, clearing a dead mount of ours, and makes its path absolute.
    pub fn prepare(&mut self) -> Result<()> {
        self.mountpoint = absolute(&self.mountpoint)?;
        prepare(&self.mountpoint)
    }
}

/// Mounts, calls `ready` once the mount answers, and serves until it is unmounted or a signal comes.
pub fn serve(vfs: Arc<Vfs>, config: &SessionConfig, ready: impl FnOnce()) -> Result<()> {
    let failed = |what: &'static str| move |e| Error::io(e, what);
    let (events, ended) = mpsc::channel();
    // Before the mount, so that no signal can end this process and leave a dead one.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed("cannot handle signals"))?;
    let signal_events = events.clone();
    thread::Builder::new()
        .name("pfimg-signals".into())
        .spawn(move || {
            for signal in &mut signals {
                let _ = signal_events.send(End::Signal(signal));
            }
        })
        .map_err(failed("cannot start a thread"))?;

    let notifiers = Arc::new(OnceLock::new());
    let adapter = Adapter::new(Arc::clone(&vfs), Arc::clone(&notifiers), config.writeback)
        .map_err(failed("cannot start a thread"))?;
    let (fd, own) = mount(&config.mountpoint, &config.options)?;
    let guard = UnmountOnDrop(&own);
    let mut fuser_config = Config::default();
    fuser_config.n_threads = Some(THREADS);
    // A second connection has to open the device again, which an ordinary user may not be allowed to.
    fuser_config.clone_fd = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let acl = if config.options.allow_other { SessionACL::All } else { SessionACL::Owner };
    fuser_config.acl = acl;
    let session = Session::from_fd(adapter, fd, acl, fuser_config)
        .map_err(failed("the kernel refuses the connection"))?;
    let notifier = session.notifier();
    let _ = notifiers.set(notifier.clone());
    thread::Builder::new()
        .name("pfimg-session".into())
        .spawn(move || {
            let _ = events.send(End::Session(session.run()));
        })
        .map_err(failed("cannot start a thread"))?;
    provoke(&own.path)?;
    let watcher = Watcher::start(vfs, notifier).map_err(failed("cannot start a thread"))?;
    tracing::info!("mounted at {}", own.path.display());
    ready();

    let outcome = wait(&own, &ended);
    drop(watcher);
    if matches!(outcome, Ok(Ended::Gone)) {
        // The kernel says that nothing of this mount is left: whatever is at its path now is somebody else's.
        std::mem::forget(guard);
    }
    outcome.map(|_| ())
}

/// How serving ended.
enum Ended {
    /// The mount is gone, and everything that was open.
    Gone,
    /// This process goes; somebody may still have something open.
    Detached,
}

fn wait(own: &OwnMount, ended: &mpsc::Receiver<End>) -> Result<Ended> {
    let shown = own.path.display();
    let signal = match ended.recv() {
        Ok(End::Signal(signal)) => signal,
        Ok(End::Session(result)) => return gone(result, own),
        Err(_) => return Ok(Ended::Detached),
    };
    tracing::info!("signal {signal}: unmounting {shown}");
    match own.unmount()? {
        Unmounted::Clean | Unmounted::Absent => {}
        Unmounted::Busy => tracing::warn!(
            "{shown} is in use: it was detached, and is served for {} s more to whoever has it open",
            GRACE.as_secs()
        ),
    }
    if let Ok(End::Session(result)) = ended.recv_timeout(GRACE) {
        return gone(result, own);
    }
    // A second signal, or the grace is over.
    tracing::warn!("{shown} is still in use; whoever has it open gets ENOTCONN from now on");
    Ok(Ended::Detached)
}

fn gone(result: io::Result<()>, own: &OwnMount) -> Result<Ended> {
    let shown = own.path.display();
    result.map_err(|e| Error::io(e, format!("the connection of {shown} broke")))?;
    tracing::info!("unmounted {shown}");
    Ok(Ended::Gone)
}

/// Leaves no mount behind, whatever happened between mounting and the end.
struct UnmountOnDrop<'a>(&'a OwnMount);

impl Drop for UnmountOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unmount() {
            tracing::error!("{error}");
        }
    }
}

/// Looks at the mount once, so that the kernel learns what it need not ask (OPEN, OPENDIR, FLUSH, GETXATTR) before
/// anybody measures it, and the caller knows that it answers.
fn provoke(mountpoint: &Path) -> Result<()> {
    let failed = |e| Error::io(e, format!("{} does not answer", mountpoint.display()));
    let status = mountpoint.join(".pfimg/status.json");
    let mut file = File::open(&status).map_err(failed)?;
    if file.read(&mut [0]).map_err(failed)? == 0 {
        return Err(Error::new(ErrorKind::Io(None), format!("{} is empty", status.display())));
    }
    drop(file);
    let _ = fs::read_dir(mountpoint).map_err(failed)?.next();
    let _ = rustix::fs::getxattr(mountpoint, "user.pfimg", &mut [0u8; 1]);
    Ok(())
}
