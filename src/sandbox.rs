//! Runs a command in a sandbox, where it can change only a fork.
//!
//! The command sees the machine read-only. It may write to its fork, to temporary files that are removed when it ends, and to
//! paths that the caller names. The store, other forks, images, and the machine's processes and devices are hidden. The sandbox
//! consists of namespaces, which an ordinary user may create (Linux 5.12 and later). Root installs and starts nothing.
//!
//! Four processes start each other:
//!
//! - The *starter* is the process that the caller knows. It maps users into the new namespace, which is only possible from
//!   outside, and forwards signals.
//! - The *builder* enters new namespaces and makes the view.
//! - *Init* is the first process in the new process namespace. When it ends, the kernel ends all processes that the command
//!   left behind.
//! - The *command*.
//!
//! Each of them ends when the one before it is killed. The first three share a channel. The starter and the builder use it
//! first; then the starter and init report events to each other.

mod channel;
mod descriptors;
mod filter;
mod groups;
mod init;
mod namespaces;
mod program;
pub mod secrets;
mod signals;
mod ssh;
mod starter;
mod sys;
mod variables;
mod view;

use std::ffi::{CStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::{fmt, io};

use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use crate::sandbox::channel::{Channel, Message};
pub use crate::sandbox::groups::{ControlGroup, Hierarchy, control_groups};
pub use crate::sandbox::init::first_process;
use crate::sandbox::signals::{Became, Taken, look_at};
pub use crate::sandbox::starter::{Environment, Outcome, start};
use crate::sandbox::variables::Variables;

use crate::error::{Error, Result};
use crate::util::limits;

/// The exit code when pfimg could not run the command, as in env(1), timeout(1) and containers.
pub const CANNOT_RUN: u8 = 125;
/// The exit code when the command was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The exit code when the command was not found.
pub const NO_COMMAND: u8 = 127;

/// The view of a command: what it sees, and what it may write.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Where the store is mounted. Everything in it except the fork is hidden.
    pub mountpoint: PathBuf,
    /// The fork's name.
    pub fork: String,
    /// A further place where the fork's `world/fs` is shown, over the folder there: the path of its project.
    pub at: Option<PathBuf>,
    /// The folder below the fork's `world/fs` in which the command starts. If it does not exist, the command starts in the
    /// nearest existing folder above it.
    pub start: PathBuf,
    /// Further files, folders and devices that the command may write.
    pub write: Vec<PathBuf>,
    /// Paths in hidden folders that the command may read.
    pub read: Vec<PathBuf>,
    /// Further paths to hide. A hidden folder or file looks empty.
    pub hide: Vec<PathBuf>,
    /// Files and folders with credentials. They are hidden unless `write` or `read` names them.
    pub keys: Vec<PathBuf>,
    /// Variables with credentials that the command gets. If one names a socket, the command can reach it.
    pub variables: Vec<OsString>,
}

/// Acts as the builder: makes the view, runs init in it, and returns the command's exit code.
///
/// Calls `view` in the new mount namespace, where no other program adds mounts. `init` are the arguments with which this program
/// acts as init. `channel` is the number that the starter named. Must be called before this process opens a file or starts a
/// thread.
pub fn build(
    network: bool,
    view: impl FnOnce() -> Result<View>,
    init: &[OsString],
    channel: i32,
) -> Result<u8> {
    let mut starter = Channel::of(sys::take(channel)?);
    call_this(c"pfimg-run");
    // Done first, since in the new namespace owners and groups cannot be distinguished.
    let is_root = rustix::process::geteuid().is_root();
    let settings = if is_root { Vec::new() } else { ssh::settings_of_root(std::env::home_dir().as_deref()) };
    let groups = namespaces::other_groups();
    namespaces::leave(network)?;
    end_with_parent()?;
    // A starter that failed has printed the reason. If it was killed, this process ends quietly.
    if !starter.say(Message::Left) || starter.hear() != Some(Message::Mapped) {
        return Ok(CANNOT_RUN);
    }
    let mut signals = Taken::new(&[])?;
    let limit = namespaces::control_group_limit();
    descriptors::close_ways_out()?;
    let view = view()?;
    let variables = Variables::look(&view.variables);
    let runtime = variables::runtime_dir(view.read.iter().chain(&view.write));
    let sockets = variables.handed_sockets();
    view::make(&view, &view::Found { runtime: runtime.clone(), sockets, settings })?;
    filter::refuse_groups(&groups);
    match starter.hear() {
        Some(Message::Grouped(true)) => {}
        Some(_) => limit.set(),
        None => return Ok(CANNOT_RUN),
    }
    if !network {
        sys::loopback_up().map_err(|e| Error::io(e, "cannot bring up the loopback interface"))?;
    }
    namespaces::keep_capabilities()?;
    let start = view.start_folder();
    starter.hand_on()?;
    let mut command = this_program();
    for (name, value) in variables.changes(&runtime) {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .args(init)
        .current_dir(&start)
        .env("PWD", &start)
        .env("PFIMG_FORK", &view.fork)
        .env("PFIMG_SNAP", view.fork_folder().join(".snap"));
    let init = limits::with_original(|| command.spawn()).map_err(|e| cannot_start(e, &view))?;
    // With this copy closed, init sees the end of its channel when the starter ends.
    drop(starter);
    let init = pid_of(&init);
    loop {
        if let Some(Became::Ended(code)) = look_at(init)? {
            return Ok(code);
        }
        signals.wait(None, None)?;
        signals.pending();
    }
}

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

fn cannot_start(error: io::Error, view: &View) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let error = Error::io(error, format!("cannot start a process in {}", view.files().display()));
    if missing && !view.hide.is_empty() {
        return error.with_hint("check --hide: it must not hide what every program needs, such as /usr");
    }
    error
}

impl View {
    /// The fork's folder in the mount.
    fn fork_folder(&self) -> PathBuf {
        self.mountpoint.join("forks").join(&self.fork)
    }

    /// The folder of the fork's files in the mount.
    pub fn work(&self) -> PathBuf {
        self.fork_folder().join("world/fs")
    }

    /// The folder in which the command finds the fork's files.
    fn files(&self) -> PathBuf {
        self.at.clone().unwrap_or_else(|| self.work())
    }

    /// Returns the folder in which the command starts. Must be called in the finished view.
    fn start_folder(&self) -> PathBuf {
        let files = self.files();
        // Joining an empty path would leave a slash at the end.
        let wanted = self.start.components().fold(files.clone(), |path, name| path.join(name));
        let start = wanted.ancestors().take_while(|path| **path != files).find(|path| path.is_dir());
        let start = start.map_or(files, Path::to_owned);
        if start != wanted {
            let (wanted, start) = (wanted.display(), start.display());
            tell(&format_args!(
                "{wanted} is not a directory of fork {:?}: the command starts in {start}",
                self.fork
            ));
        }
        start
    }

    /// The shorter path of the fork's files in the mount.
    fn shown_work(&self) -> PathBuf {
        self.mountpoint.join("work").join(&self.fork)
    }
}

/// Gives this process a name for process lists, which would show `exe`.
fn call_this(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// A command that runs this program, even if its file was replaced or removed.
fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    command
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Makes the kernel kill this process when its parent ends.
fn end_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::io(e.into(), "cannot ask the kernel to end this process with its parent"))
}
