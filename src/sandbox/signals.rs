//! Signals and ended children of a process of a run, as things to wait for beside others.

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

/// Signals that are taken, SIGCHLD among them.
pub(super) struct Taken(SignalDelivery<UnixStream, SignalOnly>);

impl Taken {
    /// Takes signals, and those that were blocked. To be made before a child is started, so that none is missed.
    ///
    /// What the caller has this process ignore, as nohup(1) does, goes on to be ignored, by the command as well.
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

    /// Waits for a signal, for something in the channel if there is one, or for the time to pass. Whether there is something in
    /// the channel, or nobody at its other end.
    pub(super) fn wait(&mut self, channel: Option<&Channel>, at_most: Option<&Timespec>) -> Result<bool> {
        let signals = self.0.get_read().as_fd();
        let mut fds = vec![PollFd::from_borrowed_fd(signals, PollFlags::IN)];
        fds.extend(channel.map(|channel| PollFd::new(channel, PollFlags::IN)));
        match poll(&mut fds, at_most) {
            // A signal, whose handler has written to the pipe.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io(e.into(), "cannot wait for signals")),
        }
        Ok(fds.get(1).is_some_and(|fd| !fd.revents().is_empty()))
    }

    /// The signals that came, but for SIGCHLD.
    pub(super) fn pending(&mut self) -> Vec<i32> {
        self.0.pending().filter(|signal| *signal != SIGCHLD).collect()
    }
}

/// The signals that this process ignores, a bit each (`proc_pid_status(5)`).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// What became of a child.
pub(super) enum Became {
    /// It ended: its exit code, or 128 and the number of the signal that ended it.
    Ended(u8),
    /// A signal stopped it.
    Stopped(i32),
}

/// What became of `child` since this was asked last. Whatever else became a child of this process and has ended is seen off.
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

/// Waits for whatever else is a child of this process, but no longer than this.
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
            // There is none left.
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
