//! What the processes of a run have in common: exit codes, names and messages.

use std::ffi::CStr;
use std::fmt;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use super::sys;
use crate::error::{Error, Result};

/// The exit code when pfimg could not run the command, as in env(1), timeout(1) and containers.
pub const CANNOT_RUN: u8 = 125;
/// The exit code when the command was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The exit code when the command was not found.
pub const NO_COMMAND: u8 = 127;

/// Ends this process by a signal, as if it had no handler for it.
pub(crate) fn end_by(signal: i32) {
    sys::die_of(signal);
}

/// Prints a message of this program to stderr. Ignores SIGTTOU while it does: a terminal may stop processes in the background,
/// such as the builder and init, when they write to it.
pub fn tell(what: &dyn fmt::Display) {
    sys::ignoring(libc::SIGTTOU, || eprintln!("pfimg: {what}"));
}

/// Prints a message to stderr without the name of this program.
pub(crate) fn say(what: &dyn fmt::Display) {
    sys::ignoring(libc::SIGTTOU, || eprintln!("{what}"));
}

/// Gives this process a name for process lists, which would show `exe`.
pub(super) fn call_this(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// A command that runs this program, even if its file was replaced or removed.
pub(super) fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    command
}

/// The number of a process that this one started.
pub(super) fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Makes the kernel kill this process when its parent ends.
pub(super) fn end_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::io(e.into(), "cannot ask the kernel to end this process with its parent"))
}
