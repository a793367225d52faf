//! Waits for signals, ended children and messages in a process of a run.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::channel::Channel;
use super::sys;
use crate::error::{Error, Result};

/// The signals that this process handles, including SIGCHLD.
pub(super) struct Taken(SignalDelivery<UnixStream, SignalOnly>);

impl Taken {
    /// Handles these signals, even if they were blocked. Must be called before a child is started, so that none is missed.
    ///
    /// A signal that the caller made this process ignore, as nohup(1) does, stays ignored, by the command too.
    pub(super) fn new(signals: &[i32]) -> Result<Self> {
        let ignored = ignored();
        let mut taken: Vec<i32> = signals.to_vec();
        taken.retain(|signal| ignored & 1 << (signal - 1) == 0);
        taken.push(SIGCHLD);
        let failed = |e| Error::io(e, "cannot handle signals");
        let (read, write) = UnixStream::pair().map_err(failed)?;
        let taken_here = SignalDelivery::with_pipe(read, write, SignalOnly, &taken).map_err(failed)?;
        sys::unblock(&taken);
        Ok(Self(taken_here))
    }

    /// Waits for a signal, for a message in the channel if there is one, or for `at_most`. Returns whether the channel has a
    /// message, or its other end is closed.
    pub(super) fn wait(&mut self, channel: Option<&Channel>, at_most: Option<&Timespec>) -> Result<bool> {
        let signals = self.0.get_read().as_fd();
        let mut fds = vec![PollFd::from_borrowed_fd(signals, PollFlags::IN)];
        fds.extend(channel.map(|channel| PollFd::new(channel, PollFlags::IN)));
        match poll(&mut fds, at_most) {
            // A signal came: its handler has written to the pipe.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io(e.into(), "cannot wait for signals")),
        }
        Ok(fds.get(1).is_some_and(|fd| !fd.revents().is_empty()))
    }

    /// Returns the signals that came, without SIGCHLD.
    pub(super) fn pending(&mut self) -> Vec<i32> {
        self.0.pending().filter(|signal| *signal != SIGCHLD).collect()
    }
}

/// Returns the signals that this process ignores, as one bit each (`proc_pid_status(5)`).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// A change of a child's state.
pub(super) enum Became {
    /// It ended: its exit code, or 128 and the number of the signal that ended it.
    Ended(u8),
    /// A signal stopped it.
    Stopped(i32),
}

/// Returns the change of state of `child` since the last call, if any. Reaps other children of this process that have ended.
pub(super) fn look_at(child: Pid) -> Result<Option<Became>> {
    let failed = |e: rustix::io::Errno| Error::io(io::Error::from(e), "cannot wait for a process");
    while let Some((pid, status)) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED).map_err(failed)? {
        if pid == child {
            let became = became(status);
            if became.is_some() {
                return Ok(became);
            }
        }
    }
    Ok(None)
}

/// Waits for all other children of this process, for `at_most` at most.
pub(super) fn see_off(signals: &mut Taken, at_most: Duration) -> Result<()> {
    let until = Instant::now() + at_most;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                let left = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
                signals.wait(None, Some(&left))?;
                signals.pending();
            }
            // No child is left.
            Err(_) => return Ok(()),
        }
    }
}

fn became(status: WaitStatus) -> Option<Became> {
    if let Some(signal) = status.stopping_signal() {
        return Some(Became::Stopped(signal));
    }
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?))?;
    u8::try_from(code).ok().map(Became::Ended)
}
