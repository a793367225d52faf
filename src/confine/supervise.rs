//! Waiting for a process while handing on what it is to be told.

use std::fs;
use std::io::{self, stdin};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpgrp, kill_process, wait};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::sys;
use crate::error::{Error, Result};

/// Waits for a child of this process.
///
/// SIGINT and SIGQUIT are taken and not handed on: the terminal sends them to the command as well, which decides what comes
/// of it. SIGTERM and SIGHUP are sent to one process, and handed on.
pub(super) struct Supervisor(Signals);

impl Supervisor {
    /// To be made before the child is started, so that no signal is missed.
    ///
    /// What the caller has this process ignore, as nohup(1) does, the command ignores as well.
    pub(super) fn new() -> Result<Self> {
        let ignored = ignored();
        let mut signals = vec![SIGINT, SIGQUIT, SIGTERM, SIGHUP];
        signals.retain(|signal| ignored & 1 << (signal - 1) == 0);
        signals.push(SIGCHLD);
        sys::unblock(&signals);
        Ok(Self(Signals::new(signals).map_err(|e| Error::io(e, "cannot handle signals"))?))
    }

    /// Waits until `child` has ended, and for whatever else becomes a child of this process meanwhile. Gives its exit code,
    /// or 128 and the number of the signal that ended it.
    pub(super) fn wait(mut self, child: Pid) -> Result<u8> {
        let failed = |e: rustix::io::Errno| Error::io(io::Error::from(e), "cannot wait for a process");
        loop {
            while let Some((pid, status)) = wait(WaitOptions::NOHANG).map_err(failed)? {
                if pid == child
                    && let Some(code) = code_of(status)
                {
                    return Ok(code);
                }
            }
            for signal in self.0.wait() {
                let signal = match signal {
                    SIGTERM => Signal::TERM,
                    SIGHUP => Signal::HUP,
                    _ => continue,
                };
                // It may have ended just now.
                let _ = kill_process(child, signal);
            }
        }
    }
}

/// The signals that this process ignores, a bit each (`proc_pid_status(5)`).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The terminal whose foreground this process is in, if there is one.
///
/// A shell that ends gives a terminal back to whom it had it from, which it cannot name if that is outside of its namespace.
pub(super) struct Terminal(bool);

impl Terminal {
    pub(super) fn held() -> Self {
        Self(tcgetpgrp(stdin()).is_ok_and(|foreground| foreground == getpgrp()))
    }

    pub(super) fn take_back(&self) {
        if self.0 {
            // Who is in the background already would be stopped for it.
            sys::ignore(libc::SIGTTOU);
            let _ = tcsetpgrp(stdin(), getpgrp());
        }
    }
}

fn code_of(status: WaitStatus) -> Option<u8> {
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?))?;
    u8::try_from(code).ok()
}
