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
mod init;
mod namespaces;
mod signals;
mod starter;
mod sys;
mod view;

use std::ffi::{CStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::{fmt, io};

use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use channel::{Channel, Message};
pub use init::first_process;
use signals::{Became, Taken, look_at};
pub use starter::start;
pub(crate) use sys::own_descriptors;

use crate::error::{Error, Result};

/// What forges ledgers is none of the command's business.
const SECRET: &str = "PF_SESSION_SECRET";

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
    /// Where the command starts, below the fork's `world/fs`.
    pub start: PathBuf,
    /// More that it may write: files, folders, devices.
    pub write: Vec<PathBuf>,
    /// What it may read although it lies in something hidden.
    pub read: Vec<PathBuf>,
    /// What is hidden besides: a folder is empty then, a file too.
    pub hide: Vec<PathBuf>,
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
    namespaces::leave(network)?;
    end_with_parent()?;
    // Where the starter has failed it has said why; where it is gone there is nobody to tell.
    if !starter.say(Message::Left) || starter.hear() != Some(Message::Mapped) {
        return Ok(CANNOT_RUN);
    }
    let mut signals = Taken::new(&[])?;
    namespaces::have_no_control_groups();
    descriptors::close_ways_out()?;
    let view = view()?;
    view::make(&view)?;
    if !network {
        sys::loopback_up().map_err(|e| Error::io(e, "cannot bring up the loopback interface"))?;
    }
    namespaces::keep_capabilities()?;
    let (work, shown) = (view.work(), view.shown_work());
    // Joining nothing would leave a slash at the end.
    let below = |folder: &Path| view.start.components().fold(folder.to_owned(), |path, name| path.join(name));
    starter.hand_on()?;
    let init = this_program()
        .args(init)
        .current_dir(below(&work))
        .env("PWD", below(&shown))
        .env("PFIMG_FORK", &view.fork)
        .env("PFIMG_SNAP", view.fork_folder().join(".snap"))
        .env("TMPDIR", view::TMP)
        .env_remove(SECRET)
        .spawn()
        .map_err(|e| cannot_start(e, &view))?;
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

/// Says something on stderr. A terminal may stop who writes to it from the background, where the builder and init are.
pub fn tell(what: &dyn fmt::Display) {
    sys::ignoring(libc::SIGTTOU, || eprintln!("pfimg: {what}"));
}

fn cannot_start(error: io::Error, view: &View) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let error = Error::io(error, format!("cannot start a process in {}", view.work().display()));
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

    /// The shorter name of that.
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
