//! Serves a mounted store from mount to unmount.
//!
//! The mount ends when the kernel says that it has ended, even if another program unmounted it. A request to stop unmounts it
//! first. A second request shortens the end: it then waits neither for programs that have files open nor for seals. Durability
//! does not depend on the end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::server::Server;
use super::tasks::Tasks;
use crate::audit::{Log, note};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::fuse::Session;
use crate::mount::abort;
use crate::mount::attach::{OwnMount, Unmounted};
use crate::vfs::Vfs;

/// How long programs may continue to use a mount after the first request to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How long to wait for news that a mount which does not answer has ended.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// How long the threads of a mount that has ended may take to let go of the store, and how often to check.
const LETTING_GO: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(1);

/// What the thread that serves a mount waits for.
pub(super) enum Event {
    /// The connection to the kernel has ended.
    Session(io::Result<()>),
    /// The mount has to end.
    Stop(Stop),
    /// The kernel has handed in its cached writes.
    Pushed,
}

/// A request to end a mount.
pub(super) enum Stop {
    /// By a signal: its number and its name.
    Signal { number: i32, name: String },
    /// By the program that made the mount.
    Asked,
    /// At once: neither programs nor seals are waited for.
    AtOnce,
}

/// Ends a mount from any thread. Clones end the same mount.
///
/// The first request unmounts the store. The mount then waits at most 10 s for programs that have files open, and seals forks
/// as its policy says. A second request skips both waits: unsealed changes stay in the forks, where the next mount finds them.
#[derive(Clone, Debug)]
pub struct Stopper {
    events: Sender<Event>,
    vfs: Weak<Vfs>,
    /// Whether a request has come, or the mount has ended.
    asked: Arc<AtomicBool>,
}

impl Stopper {
    pub(super) fn new(events: Sender<Event>, vfs: &Arc<Vfs>) -> Self {
        Self { events, vfs: Arc::downgrade(vfs), asked: Arc::default() }
    }

    /// Asks for the end of the mount, and returns at once. Does nothing if the mount has ended.
    pub fn stop(&self) {
        self.send(Stop::Asked);
    }

    /// Does the same for a signal that this process got, which the logs then name.
    #[doc(hidden)]
    pub fn stop_for_signal(&self, number: i32, name: &str) {
        self.send(Stop::Signal { number, name: name.to_owned() });
    }

    /// Where news of the mount go.
    pub(super) fn events(&self) -> Sender<Event> {
        self.events.clone()
    }

    /// Asks for the end without waiting for programs or seals.
    pub(super) fn stop_at_once(&self) {
        self.asked.store(true, Ordering::Release);
        self.send(Stop::AtOnce);
    }

    fn send(&self, stop: Stop) {
        // The first request only unmounts. A later one, or one after the mount has ended, stops seals.
        if self.asked.swap(true, Ordering::AcqRel)
            && let Some(vfs) = self.vfs.upgrade()
        {
            vfs.stop_sealing();
        }
        let _ = self.events.send(Event::Stop(stop));
    }
}

/// A mount that is being served.
pub(super) struct Serving {
    pub(super) vfs: Arc<Vfs>,
    pub(super) cache: Arc<Cache>,
    pub(super) log: Log,
    pub(super) guard: UnmountOnDrop,
    pub(super) session: Session,
    pub(super) tasks: Tasks,
    pub(super) server: Option<Server>,
    pub(super) stopper: Stopper,
    pub(super) events: Receiver<Event>,
}

impl Serving {
    /// Serves until the mount has ended, and seals forks. Returns once no thread of the mount uses the store any longer.
    pub(super) fn run(self) -> Result<()> {
        let Self { vfs, cache, log, mut guard, session, tasks, server, stopper, events } = self;
        let outcome = match &guard.0 {
            Some(own) => {
                let push = |answer: &Sender<Event>| {
                    session.kernel().stop_announcing();
                    let answer = answer.clone();
                    session.push(move || drop(answer.send(Event::Pushed)));
                };
                wait(own, &events, &log, || push(&stopper.events))
            }
            None => Ok(Ended::Gone),
        };
        stopper.asked.store(true, Ordering::Release);
        if events.try_iter().any(|event| matches!(event, Event::Stop(_))) {
            vfs.stop_sealing();
        }
        drop(tasks);
        // From here on the kernel hands in no cached writes.
        vfs.push_by(None);
        let shown = guard.0.as_ref().map(|own| own.path.to_string_lossy().into_owned()).unwrap_or_default();
        match &outcome {
            // The kernel says that this mount has ended completely, so a mount at its path belongs to another program.
            Ok(Ended::Gone) => guard.0 = None,
            Ok(Ended::Detached) => {
                if let Some(own) = &guard.0 {
                    end_connection(own, &events);
                }
            }
            Err(_) => {}
        }
        drop(guard);
        drop(session);
        // Waits for seals that commands asked for. A second request to stop ends these, too.
        drop(server);
        vfs.seal_all();
        vfs.tell_of_cache();
        cache.settle(true);
        let reason =
            outcome.as_ref().map_or_else(|error| format!("failed: {error}"), |_| "unmounted".to_owned());
        log.note_quietly(note::suspended(&reason, &shown));
        log.flush();
        let left = Arc::downgrade(&vfs);
        drop((vfs, cache, log));
        let asked = Instant::now();
        while left.strong_count() > 0 && asked.elapsed() < LETTING_GO {
            thread::sleep(LOOK);
        }
        outcome.map(|_| ())
    }
}

/// Ends the connection of a mount that was detached while programs have files open, so that the event loops end. Where the
/// kernel has no way to do that, they end when the programs close the files.
fn end_connection(own: &OwnMount, events: &Receiver<Event>) {
    if let Err(error) = abort::connection(own.device()) {
        tracing::info!("files of {} stay open and are served further: {error}", own.path.display());
        return;
    }
    session_end(events, SETTLE);
}

/// Waits for the session to end, and ignores requests to stop.
pub(super) fn session_end(events: &Receiver<Event>, at_most: Duration) -> Option<io::Result<()>> {
    let until = Instant::now() + at_most;
    loop {
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Session(result)) => return Some(result),
            Ok(Event::Stop(_) | Event::Pushed) => {}
            Err(_) => return None,
        }
    }
}

/// Waits for the session to end while programs may still use it. A request to stop ends the wait.
fn end_or_stop(events: &Receiver<Event>) -> Option<io::Result<()>> {
    let until = Instant::now() + GRACE;
    loop {
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Session(result)) => return Some(result),
            Ok(Event::Stop(_)) => return session_end(events, SETTLE),
            Ok(Event::Pushed) => {}
            Err(_) => return None,
        }
    }
}

/// How serving ended.
enum Ended {
    /// The mount has ended, and no program has its files open.
    Gone,
    /// Programs may still have files open.
    Detached,
}

fn wait(own: &OwnMount, events: &Receiver<Event>, log: &Log, push: impl FnOnce()) -> Result<Ended> {
    let shown = own.path.display();
    let stop = match events.recv() {
        Ok(Event::Stop(stop)) => stop,
        Ok(Event::Session(result)) => return gone(result, own),
        Ok(Event::Pushed) | Err(_) => return Ok(Ended::Detached),
    };
    let mut hurried = false;
    match stop {
        Stop::Signal { number, name } => {
            if number == libc::SIGXCPU {
                tracing::warn!("the daemon has used up its CPU time (ulimit -t): unmounting {shown}");
            } else {
                tracing::info!("signal {number}: unmounting {shown}");
            }
            log.note_quietly(note::signal(&name, "unmount"));
        }
        Stop::Asked => tracing::info!("unmounting {shown}"),
        Stop::AtOnce => hurried = true,
    }
    // Before the mount is detached: later the daemon cannot collect writes through mappings that programs keep.
    push();
    match events.recv_timeout(if hurried { SETTLE } else { GRACE }) {
        Ok(Event::Session(result)) => return gone(result, own),
        Ok(Event::Stop(_)) => hurried = true,
        Ok(Event::Pushed) | Err(_) => {}
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
        Unmounted::Shows(_) | Unmounted::Busy if hurried => {}
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
    // After a second request this waits for no program, but the end may already be on its way.
    let result = if hurried { session_end(events, SETTLE) } else { end_or_stop(events) };
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
pub(super) struct UnmountOnDrop(pub(super) Option<OwnMount>);

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(OwnMount::unmount) {
            tracing::error!("{error}");
        }
    }
}
