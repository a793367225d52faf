//! Keeps requests on one core, on machines that have two.
//!
//! Where a request's caller and the daemon run on different cores, each request wakes a core that went to sleep,
//! twice. In a virtual machine that is most of what a request costs: 45 µs against 17 µs if both take turns on one
//! core (measured: stat of a missing name, two cores, Linux 6.18). The scheduler looks for an idle core for whoever
//! wakes up, so it spreads the two whenever it can. While requests come in a row, the event loops stay on one core, and a
//! thread here keeps the other one busy, so that it is not idle and the caller comes to the first.
//!
//! Two event loops would take turns there as well; so one of them rests meanwhile. Where several programs make requests at
//! the same time they have the cores busy themselves, and the two loops serve them better.
//!
//! It is busy with nothing, and must cost nobody anything: it stops as soon as requests pause, and for a while when
//! somebody else wants its core. With more cores it would need a thread for each of them but one, which is too much to ask;
//! with one there is nothing to spread to.

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

/// Requests are looked at so many at a time.
const ROW: u64 = 16;

/// So many requests within this time are a row.
const ROW_WITHIN: Duration = Duration::from_millis(4);

/// Of so many requests one may come from another caller than the one before: a program that starts another does that.
const SEVERAL: u64 = 4;

/// A pause in the row that ends the company.
const PAUSE: Duration = Duration::from_micros(300);

/// And at its beginning: who makes the requests may wait for just this core.
const FIRST: Duration = Duration::from_micros(60);

/// A look at the clock that took this long was interrupted by somebody who wants the core.
const INTERRUPTED: Duration = Duration::from_micros(30);

/// How much of its time is looked at at once.
const WINDOW: Duration = Duration::from_millis(2);

/// How long it keeps away once the core was wanted, at first and at most.
const AWAY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

/// The thread that keeps requests company.
pub(super) struct Company {
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
    /// When the last look at the requests was, in nanoseconds since the start.
    looked: AtomicU64,
    /// The core that a request of the row was answered on.
    core: AtomicUsize,
    /// Who made the last request, and how often it was another one than before.
    caller: AtomicU32,
    callers: AtomicU64,
    /// Whether it is there, or keeps away.
    busy: AtomicBool,
    /// The event loop that answers requests as long as there is company; 0 if there is none.
    serving: AtomicUsize,
    /// Whether it is asked to go.
    dismissed: AtomicBool,
    /// The event loops that rest as long as there is company.
    resting: Mutex<Vec<ThreadId>>,
    /// Held while `serving` is set to 0.
    ending: Mutex<()>,
    ended: Condvar,
}

thread_local! {
    /// This event loop's number, from 1 on; 0 until it is known.
    static LOOP: Cell<usize> = const { Cell::new(0) };
}

/// A request that is being answered. Dropped once it is.
pub(super) struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let serving = self.0.serving.load(Ordering::Relaxed);
        if serving != 0 && serving != LOOP.get() {
            self.0.rest();
        }
    }
}

/// The cores this process may use, if they are two.
fn two_cores() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let two = [cores.next()?, cores.next()?];
    cores.next().is_none().then_some(two)
}

impl Company {
    /// Starts it where it makes sense.
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
            dismissed: AtomicBool::new(false),
            resting: Mutex::default(),
            ending: Mutex::new(()),
            ended: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("pfimg-company".into()).spawn(move || own.run())?;
        Ok(Self { shared, thread: thread.thread().clone(), started: Instant::now() })
    }

    /// Counts a request of a thread of some program that an event loop has taken, and calls for company if it is one of
    /// a row.
    pub(super) fn request(&self, caller: u32) -> Turn<'_> {
        let shared = &*self.shared;
        if LOOP.get() == 0 {
            let mut loops = shared.loops.lock();
            loops.push(gettid());
            LOOP.set(loops.len());
        }
        // Not all at once: a count that is a little off does no harm.
        if shared.caller.load(Ordering::Relaxed) != caller {
            shared.caller.store(caller, Ordering::Relaxed);
            shared.callers.fetch_add(1, Ordering::Relaxed);
        }
        let count = shared.requests.fetch_add(1, Ordering::Relaxed);
        if count != 0 && count.is_multiple_of(ROW) && !shared.busy.load(Ordering::Relaxed) {
            self.look();
        }
        Turn(shared)
    }

    /// Ends it: there is work for both cores. Who is woken while one is kept busy may wait for milliseconds for the other.
    pub(super) fn dismiss(&self) {
        self.shared.dismissed.store(true, Ordering::Relaxed);
    }

    /// Tells which event loops rest at the moment: each has answered the request that it took last.
    pub(super) fn resting(&self) -> impl Fn() -> Vec<ThreadId> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.resting.lock().clone()
    }

    /// Calls for company if the last requests came in a row, and from one caller.
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

/// Why company ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Not a single request came.
    Alone,
    /// No request came for a while.
    Paused,
    /// Somebody else wants the core, or several make requests.
    Wanted,
}

impl Shared {
    fn run(&self) {
        let mut away = AWAY.0;
        loop {
            thread::park();
            self.busy.store(true, Ordering::Relaxed);
            let [one, two] = self.cores;
            let (core, other) =
                if self.core.load(Ordering::Relaxed) == one { (one, two) } else { (two, one) };
            let mut ended = self.keep_busy(core, other);
            if ended == Ended::Alone {
                // Who makes the requests waits for just the core that was kept busy.
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

    /// Lets an event loop rest as long as there is company for another one.
    fn rest(&self) {
        let own = thread::current().id();
        let mut ending = self.ending.lock();
        self.resting.lock().push(own);
        while self.serving.load(Ordering::Relaxed) != 0 {
            self.ended.wait(&mut ending);
        }
        self.resting.lock().retain(|resting| *resting != own);
    }

    /// Has the event loops on one core, and keeps the other one busy.
    fn keep_busy(&self, loops_on: usize, busy: usize) -> Ended {
        let place = |thread, cores: &[usize]| {
            let mut set = CpuSet::new();
            for core in cores {
                set.set(*core);
            }
            // What may not be placed stays where it is.
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

    /// Keeps this thread's core busy until requests pause or somebody else wants it.
    fn spin(&self) -> Ended {
        let mut now = Instant::now();
        let begun = now;
        let (mut window, mut lost) = (now, Duration::ZERO);
        let (mut seen, mut last) = (self.requests.load(Ordering::Relaxed), now);
        let mut counted = seen;
        self.dismissed.store(false, Ordering::Relaxed);
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
            if self.dismissed.load(Ordering::Relaxed) {
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

    fn wait(company: &Company, busy: bool, meanwhile: impl Fn()) {
        let until = Instant::now() + Duration::from_secs(20);
        while company.shared.busy.load(Ordering::Relaxed) != busy {
            assert!(Instant::now() < until, "busy is not {busy}");
            meanwhile();
        }
    }

    #[test]
    fn a_row_of_requests_gets_company_and_a_pause_ends_it() {
        let company = Company::on(two_cores().unwrap_or([0, 0])).unwrap();
        for _ in 0..3 {
            wait(&company, true, || drop(company.request(1)));
            wait(&company, false, thread::yield_now);
        }
    }

    #[test]
    fn company_goes_when_it_is_dismissed() {
        let company = Company::on(two_cores().unwrap_or([0, 0])).unwrap();
        wait(&company, true, || drop(company.request(1)));
        // Requests go on.
        wait(&company, false, || {
            company.dismiss();
            company.shared.requests.fetch_add(1, Ordering::Relaxed);
        });
    }

    #[test]
    fn requests_now_and_then_get_none() {
        let company = Company::on(two_cores().unwrap_or([0, 0])).unwrap();
        for _ in 0..ROW * 3 {
            company.request(1);
            assert!(!company.shared.busy.load(Ordering::Relaxed));
            thread::sleep(ROW_WITHIN / 8);
        }
    }
}
