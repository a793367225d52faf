//! Keeps requests on one core, on machines that have two.
//!
//! If a request's caller and the daemon run on different cores, each request wakes a sleeping core twice. In a virtual machine
//! this is most of a request's time: 45 µs, against 17 µs if both take turns on one core (measured: stat of a missing name, two
//! cores, Linux 6.18). The scheduler gives a thread that wakes up an idle core, so it spreads the two whenever it can. While
//! requests come in a row, this module therefore keeps the event loops on one core. A thread, the *spinner*, keeps the other
//! core busy, so that the scheduler puts the caller on the first.
//!
//! Two event loops would take turns on that core too, so one of them rests. If several programs make requests at the same time,
//! they keep the cores busy themselves, and two event loops serve them better.
//!
//! The spinner only spins, so it must not slow down other programs. It stops as soon as requests pause. It also stays away for
//! a while when another program needs its core. With more than two cores it would need a thread for each core but one, which
//! would be too expensive. With one core there is nothing to do.

use std::cell::Cell;
use std::hint::spin_loop;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::sync::{Condvar, Mutex};

/// Number of requests after which spinning is considered.
const ROW: u64 = 16;

/// [`ROW`] requests within this time are a row.
const ROW_WITHIN: Duration = Duration::from_millis(4);

/// One of this many requests may come from another caller than the one before it: a program may start another.
const SEVERAL: u64 = 4;

/// A pause between requests that ends the spinning.
const PAUSE: Duration = Duration::from_micros(300);

/// The same before the first request. It is shorter, since the caller may be waiting for the very core that is kept busy.
const FIRST: Duration = Duration::from_micros(60);

/// If reading the clock took this long, another program has interrupted the thread.
const INTERRUPTED: Duration = Duration::from_micros(30);

/// The time over which interruptions are added up.
const WINDOW: Duration = Duration::from_millis(2);

/// How long the spinner stays away after another program needed the core: at first, and at most.
const AWAY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

/// The thread that keeps the second core busy while requests come in a row.
pub(super) struct CoreSpinner {
    shared: Arc<Shared>,
    thread: Thread,
    started: Instant,
}

struct Shared {
    /// The two cores, by their numbers.
    cores: [usize; 2],
    /// The event loops' threads.
    loops: Mutex<Vec<Pid>>,
    requests: AtomicU64,
    /// When requests were last looked at, in nanoseconds since the start.
    looked: AtomicU64,
    /// The core on which a request of the row was answered.
    core: AtomicUsize,
    /// The thread that made the last request, and how often that changed.
    caller: AtomicU32,
    callers: AtomicU64,
    /// Whether the spinner is at work or stays away.
    busy: AtomicBool,
    /// The event loop that answers requests during spinning; 0 otherwise.
    serving: AtomicUsize,
    /// Whether the spinner is asked to stop.
    stopped: AtomicBool,
    /// Whether the mount has ended, and the thread has to end.
    over: AtomicBool,
    /// The event loops that rest during spinning.
    resting: Mutex<Vec<ThreadId>>,
    /// Held while `serving` is set to 0.
    ending: Mutex<()>,
    ended: Condvar,
}

thread_local! {
    /// This event loop's number, from 1 on; 0 until it is known.
    static LOOP: Cell<usize> = const { Cell::new(0) };
}

/// A request that is being answered. It is dropped after the answer.
pub(super) struct RequestGuard<'a>(&'a Shared);

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        let serving = self.0.serving.load(Ordering::Relaxed);
        if serving != 0 && serving != LOOP.get() {
            self.0.rest();
        }
    }
}

impl Drop for CoreSpinner {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

/// Returns the cores that this process may use, if they are two.
fn two_cores() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let two = [cores.next()?, cores.next()?];
    cores.next().is_none().then_some(two)
}

impl CoreSpinner {
    /// Starts the thread on a machine with two cores. Returns none on others.
    pub(super) fn start() -> io::Result<Option<Self>> {
        two_cores().map(Self::on).transpose()
    }

    fn on(cores: [usize; 2]) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            cores,
            loops: Mutex::default(),
            requests: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            core: AtomicUsize::new(cores[0]),
            caller: AtomicU32::new(0),
            callers: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            serving: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            over: AtomicBool::new(false),
            resting: Mutex::default(),
            ending: Mutex::new(()),
            ended: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("pfimg-spin".into()).spawn(move || own.run())?;
        Ok(Self { shared, thread: thread.thread().clone(), started: Instant::now() })
    }

    /// Counts a request that an event loop has taken, of the program's thread `caller`. Starts the spinner if the request is
    /// one of a row.
    pub(super) fn request(&self, caller: u32) -> RequestGuard<'_> {
        let shared = &*self.shared;
        if LOOP.get() == 0 {
            let mut loops = shared.loops.lock();
            loops.push(gettid());
            LOOP.set(loops.len());
        }
        // These steps are not atomic together: a small error in the count does no harm.
        if shared.caller.load(Ordering::Relaxed) != caller {
            shared.caller.store(caller, Ordering::Relaxed);
            shared.callers.fetch_add(1, Ordering::Relaxed);
        }
        let count = shared.requests.fetch_add(1, Ordering::Relaxed);
        if count != 0 && count.is_multiple_of(ROW) && !shared.busy.load(Ordering::Relaxed) {
            self.look();
        }
        RequestGuard(shared)
    }

    /// Stops the spinner, because both cores have work. A thread that wakes up while one core is kept busy may wait for the other
    /// for milliseconds.
    pub(super) fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }

    /// Returns a function that lists the resting event loops. Each of them has answered the last request that it took.
    pub(super) fn resting(&self) -> impl Fn() -> Vec<ThreadId> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.resting.lock().clone()
    }

    /// Starts the spinner if the last requests came in a row, and from one caller.
    fn look(&self) {
        let shared = &*self.shared;
        let now = self.started.elapsed().as_nanos() as u64;
        let before = shared.looked.swap(now, Ordering::Relaxed);
        let callers = shared.callers.swap(0, Ordering::Relaxed);
        if Duration::from_nanos(now.saturating_sub(before)) < ROW_WITHIN && callers <= ROW / SEVERAL {
            shared.core.store(sched_getcpu(), Ordering::Relaxed);
            shared.serving.store(LOOP.get(), Ordering::Relaxed);
            self.thread.unpark();
        }
    }
}

/// Why the spinning ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// No request came at all.
    Alone,
    /// No request came for a while.
    Paused,
    /// Another program needs the core, or several programs make requests.
    Wanted,
}

impl Shared {
    fn run(&self) {
        let mut away = AWAY.0;
        loop {
            thread::park();
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            self.busy.store(true, Ordering::Relaxed);
            let [one, two] = self.cores;
            let (core, other) =
                if self.core.load(Ordering::Relaxed) == one { (one, two) } else { (two, one) };
            let mut ended = self.keep_busy(core, other);
            if ended == Ended::Alone {
                // The caller is waiting for the very core that was kept busy.
                ended = self.keep_busy(other, core);
            }
            self.serving.store(0, Ordering::Relaxed);
            drop(self.ending.lock());
            self.ended.notify_all();
            if ended == Ended::Wanted {
                thread::sleep(away);
                away = (away * 2).min(AWAY.1);
            } else {
                away = AWAY.0;
            }
            self.busy.store(false, Ordering::Relaxed);
        }
    }

    /// Makes an event loop rest while another one serves.
    fn rest(&self) {
        let own = thread::current().id();
        let mut ending = self.ending.lock();
        self.resting.lock().push(own);
        while self.serving.load(Ordering::Relaxed) != 0 {
            self.ended.wait(&mut ending);
        }
        self.resting.lock().retain(|resting| *resting != own);
    }

    /// Puts the event loops on one core, and keeps the other core busy.
    fn keep_busy(&self, loops_on: usize, busy: usize) -> Ended {
        let place = |thread, cores: &[usize]| {
            let mut set = CpuSet::new();
            for core in cores {
                set.set(*core);
            }
            // A thread that cannot be moved stays where it is.
            let _ = sched_setaffinity(thread, &set);
        };
        let loops = self.loops.lock().clone();
        place(None, &[busy]);
        for each in &loops {
            place(Some(*each), &[loops_on]);
        }
        let ended = self.spin();
        for each in &loops {
            place(Some(*each), &self.cores);
        }
        ended
    }

    /// Keeps this thread's core busy until requests pause or another program needs it.
    fn spin(&self) -> Ended {
        let mut now = Instant::now();
        let begun = now;
        let (mut window, mut lost) = (now, Duration::ZERO);
        let (mut seen, mut last) = (self.requests.load(Ordering::Relaxed), now);
        let mut counted = seen;
        self.stopped.store(false, Ordering::Relaxed);
        loop {
            for _ in 0..50 {
                spin_loop();
            }
            let before = now;
            now = Instant::now();
            let took = now - before;
            if took > INTERRUPTED {
                lost += took;
            }
            if now - window > WINDOW {
                let (served, callers) = (seen - counted, self.callers.swap(0, Ordering::Relaxed));
                if lost > (now - window) / 3 || callers > served / SEVERAL + 1 {
                    return Ended::Wanted;
                }
                (window, lost, counted) = (now, Duration::ZERO, seen);
            }
            if self.stopped.load(Ordering::Relaxed) {
                return Ended::Paused;
            }
            let requests = self.requests.load(Ordering::Relaxed);
            if requests != seen {
                (seen, last) = (requests, now);
            } else if last == begun && now - last > FIRST {
                return Ended::Alone;
            } else if now - last > PAUSE {
                return Ended::Paused;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(spinner: &CoreSpinner, busy: bool, each_time: impl Fn()) {
        let until = Instant::now() + Duration::from_secs(20);
        while spinner.shared.busy.load(Ordering::Relaxed) != busy {
            assert!(Instant::now() < until, "busy is not {busy}");
            each_time();
        }
    }

    #[test]
    fn a_row_of_requests_starts_the_spinner_and_a_pause_stops_it() {
        let spinner = CoreSpinner::on(two_cores().unwrap_or([0, 0])).unwrap();
        for _ in 0..3 {
            wait(&spinner, true, || drop(spinner.request(1)));
            wait(&spinner, false, thread::yield_now);
        }
    }

    #[test]
    fn the_spinner_stops_when_it_is_told_to() {
        let spinner = CoreSpinner::on(two_cores().unwrap_or([0, 0])).unwrap();
        wait(&spinner, true, || drop(spinner.request(1)));
        // Requests continue.
        wait(&spinner, false, || {
            spinner.stop();
            spinner.shared.requests.fetch_add(1, Ordering::Relaxed);
        });
    }

    #[test]
    fn single_requests_start_no_spinner() {
        let spinner = CoreSpinner::on(two_cores().unwrap_or([0, 0])).unwrap();
        for _ in 0..ROW * 3 {
            spinner.request(1);
            assert!(!spinner.shared.busy.load(Ordering::Relaxed));
            thread::sleep(ROW_WITHIN / 8);
        }
    }
}
