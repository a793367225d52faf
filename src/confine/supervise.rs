//! Waiting for a process while handing on what it is to be told.

use std::io;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};

/// Waits for a child of this process.
///
/// SIGINT and SIGQUIT are taken and not handed on: the terminal sends them to the command as well, which decides what comes
/// of it. SIGTERM and SIGHUP are sent to one process, and handed on.
pub(super) struct Supervisor(Signals);

impl Supervisor {
    /// To be made before the child is started, so that no signal is missed.
    pub(super) fn new() -> Result<Self> {
        let signals = Signals::new([SIGCHLD, SIGINT, SIGQUIT, SIGTERM, SIGHUP])
            .map_err(|e| Error::io(e, "cannot handle signals"))?;
        Ok(Self(signals))
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

fn code_of(status: WaitStatus) -> Option<u8> {
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?))?;
    u8::try_from(code).ok()
}
