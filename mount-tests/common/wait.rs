//! Waiting for conditions, with a limit.

use std::time::{Duration, Instant};

/// How long a condition may take to come true. It is long, since it only limits how long a broken build hangs.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `condition` holds; panics with `what` if it does not in time.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) -> Duration {
    wait_at_most(PATIENCE, condition).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// Waits until `condition` holds and says how long that took, or `None` if it did not within `limit`.
pub fn wait_at_most(limit: Duration, mut condition: impl FnMut() -> bool) -> Option<Duration> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return None;
        }
        // No test relies on this delay: it only keeps the polling from using a whole core.
        std::thread::sleep(Duration::from_millis(3));
    }
    Some(start.elapsed())
}

/// Runs `work` in a thread and panics if it is not done within [`PATIENCE`]: what hangs is a failure, not a hang.
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("hangs: {what}"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the worker ended without an answer"),
        },
    }
}
