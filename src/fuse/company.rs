//! Keeps requests on one core, on machines that have two.
//!
//! Where a request's caller and the daemon run on different cores, each request wakes a core that went to sleep,
//! twice. In a virtual machine that is most of what a request costs: 50 µs against 20 µs if both take turns on one
//! core (measured: two cores, Linux 6.18). The scheduler looks for an idle core for whoever wakes up, so it spreads the two
//! whenever it can. While requests come in a row, a thread here keeps the other core busy, so that there is none.
//!
//! It is busy with nothing, and must cost nobody anything: it stops as soon as requests pause, and for a while when
//! somebody else wants its core. With more cores it would need a thread for each of them but one, which is too much to ask;
//! with one there is nothing to spread to.

use std::hint::spin_loop;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Requests are looked at so many at a time.
const ROW: u64 = 16;

/// So many requests within this time are a row.
const ROW_WITHIN: Duration = Duration::from_millis(4);

/// A pause in the row that ends the company.
const PAUSE: Duration = Duration::from_micros(300);

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
    requests: AtomicU64,
    /// When the last look at the requests was, in nanoseconds.
    looked: AtomicU64,
    /// Whether it is there, or keeps away.
    busy: AtomicBool,
}

impl Company {
    /// Starts it where it makes sense.
    pub(super) fn start() -> io::Result<Option<Self>> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        if cores == 2 { Self::start_thread().map(Some) } else { Ok(None) }
    }

    fn start_thread() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            requests: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("pfimg-company".into()).spawn(move || own.run())?.thread().clone();
        Ok(Self { shared, thread, started: Instant::now() })
    }

    /// Counts a request, and calls for company if it is one of a row.
    pub(super) fn request(&self) {
        let count = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        if count == 0 || !count.is_multiple_of(ROW) || self.shared.busy.load(Ordering::Relaxed) {
            return;
        }
        let now = self.started.elapsed().as_nanos() as u64;
        let before = self.shared.looked.swap(now, Ordering::Relaxed);
        if Duration::from_nanos(now.saturating_sub(before)) < ROW_WITHIN {
            self.thread.unpark();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut away = AWAY.0;
        loop {
            thread::park();
            self.busy.store(true, Ordering::Relaxed);
            if self.keep_busy() {
                thread::sleep(away);
                away = (away * 2).min(AWAY.1);
            } else {
                away = AWAY.0;
            }
            self.busy.store(false, Ordering::Relaxed);
        }
    }

    /// Keeps a core busy until requests pause. Returns whether somebody else wanted it.
    fn keep_busy(&self) -> bool {
        let mut now = Instant::now();
        let (mut window, mut lost) = (now, Duration::ZERO);
        let (mut seen, mut last) = (self.requests.load(Ordering::Relaxed), now);
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
                if lost > (now - window) / 3 {
                    return true;
                }
                (window, lost) = (now, Duration::ZERO);
            }
            let requests = self.requests.load(Ordering::Relaxed);
            if requests != seen {
                (seen, last) = (requests, now);
            } else if now - last > PAUSE {
                return false;
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
        let company = Company::start_thread().unwrap();
        for _ in 0..3 {
            wait(&company, true, || company.request());
            wait(&company, false, thread::yield_now);
        }
    }

    #[test]
    fn requests_now_and_then_get_none() {
        let company = Company::start_thread().unwrap();
        for _ in 0..ROW * 3 {
            company.request();
            assert!(!company.shared.busy.load(Ordering::Relaxed));
            thread::sleep(ROW_WITHIN / 8);
        }
    }
}
