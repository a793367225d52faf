//! Runs a command where it can change nothing but a fork.
//!
//! The command sees the machine it runs on, read-only. What it may write is its fork, temporary files that are gone when it
//! ends, and what the caller names. The store, other forks, images, and the processes and devices of the machine are hidden.
//! All of that is made of namespaces, which an ordinary user may have (Linux 5.12 and later); nothing is installed or started
//! by root.
//!
//! Four processes are in a row. The *starter* is the one that the caller knows: it maps users into the new namespace, which has
//! to be done from outside, and hands signals on. The *builder* has namespaces of its own and makes the view. *Init* is the
//! first process in the new process namespace: when it ends, the kernel ends all that the command left behind. The last one is
//! the command. Each ends when the one before it is killed. The first three share a channel: the starter and the builder make
//! themselves known to each other by it, then the starter and init tell each other what happens.

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
pub(crate) use crate::sandbox::sys::own_descriptors;
use crate::sandbox::variables::Variables;

use crate::error::{Error, Result};
use crate::util::limits;

/// The exit code when it is not the command that failed, but running it; that of env(1), timeout(1) and containers.
pub const CANNOT_RUN: u8 = 125;
/// The exit code when there is something of the command's name that cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The exit code when there is no such command.
pub const NO_COMMAND: u8 = 127;

/// What a command sees and may do.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Where the store is mounted. All of it but the fork is hidden.
    pub mountpoint: PathBuf,
    /// The fork's name.
    pub fork: String,
    /// Where the fork's `world/fs` shows besides, over what is there: at the path of its project.
    pub at: Option<PathBuf>,
    /// Where the command starts, below the fork's `world/fs`. Where that is not there, it starts in the nearest folder above.
    pub start: PathBuf,
    /// More that it may write: files, folders, devices.
    pub write: Vec<PathBuf>,
    /// What it may read although it lies in something hidden.
    pub read: Vec<PathBuf>,
    /// What is hidden besides: a folder is empty then, a file too.
    pub hide: Vec<PathBuf>,
    /// Files and folders with credentials, which are hidden unless they are named above.
    pub keys: Vec<PathBuf>,
    /// The variables with credentials that the command gets. A socket that one names can be reached.
    pub variables: Vec<OsString>,
}

/// The builder: makes the view, has init run in it, and gives the command's exit code.
///
/// `view` is asked for once no mount is added any more; `init` are the arguments with which this program is init; `channel` is the
/// number that the starter named. To be called before this process opens anything or starts a thread.
pub fn build(
    network: bool,
    view: impl FnOnce() -> Result<View>,
    init: &[OsString],
    channel: i32,
) -> Result<u8> {
    let mut starter = Channel::of(sys::take(channel)?);
    call_this(c"pfimg-run");
    // Owners and groups are told apart out here alone.
    let is_root = rustix::process::geteuid().is_root();
    let settings = if is_root { Vec::new() } else { ssh::settings_of_root(std::env::home_dir().as_deref()) };
    let groups = namespaces::other_groups();
    namespaces::leave(network)?;
    end_with_parent()?;
    // Where the starter has failed it has said why; where it is gone there is nobody to tell.
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
    // Init notices by its end of the channel that the starter is gone.
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

/// Says something on stderr. A terminal may stop who writes to it from the background, where the builder and init are.
pub fn tell(what: &dyn fmt::Display) {
    sys::ignoring(libc::SIGTTOU, || eprintln!("pfimg: {what}"));
}

/// Says something on stderr without naming this program.
pub(crate) fn say(what: &dyn fmt::Display) {
    sys::ignoring(libc::SIGTTOU, || eprintln!("{what}"));
}

fn cannot_start(error: io::Error, view: &View) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let error = Error::io(error, format!("cannot start a process in {}", view.files().display()));
    if missing && !view.hide.is_empty() {
        return error.with_hint("--hide hides what every program needs, such as /usr");
    }
    error
}

impl View {
    /// The folder of the mount that is shown.
    fn fork_folder(&self) -> PathBuf {
        self.mountpoint.join("forks").join(&self.fork)
    }

    /// Where its files are.
    pub fn work(&self) -> PathBuf {
        self.fork_folder().join("world/fs")
    }

    /// Where the command finds these files.
    fn files(&self) -> PathBuf {
        self.at.clone().unwrap_or_else(|| self.work())
    }

    /// Where the command starts. To be called in the finished view.
    fn start_folder(&self) -> PathBuf {
        let files = self.files();
        // Joining nothing would leave a slash at the end.
        let wanted = self.start.components().fold(files.clone(), |path, name| path.join(name));
        let start = wanted.ancestors().take_while(|path| **path != files).find(|path| path.is_dir());
        let start = start.map_or(files, Path::to_owned);
        if start != wanted {
            let (wanted, start) = (wanted.display(), start.display());
            tell(&format_args!(
                "{wanted} is no folder of fork {:?}: the command starts in {start}",
                self.fork
            ));
        }
        start
    }

    /// The shorter name of the files in the mount.
    fn shown_work(&self) -> PathBuf {
        self.mountpoint.join("work").join(&self.fork)
    }
}

/// Gives this process a name for process lists, which would call it `exe`.
fn call_this(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// This program, whatever became of its file.
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

/// Has the kernel kill this process when the one that started it ends.
fn end_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::io(e.into(), "cannot be ended with the process that started this one"))
}
