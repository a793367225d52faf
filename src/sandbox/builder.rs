//! The builder, which enters new namespaces and makes the view.

use std::ffi::OsString;
use std::io;

use super::channel::{Channel, Message};
use super::process::{CANNOT_RUN, call_this, end_with_parent, pid_of, this_program};
use super::signals::{Became, Taken, look_at};
use super::variables::{self, Variables};
use super::view::{self, View};
use super::{descriptors, filter, namespaces, ssh, sys};
use crate::error::{Error, Result};
use crate::util::limits;

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

fn cannot_start(error: io::Error, view: &View) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let error = Error::io(error, format!("cannot start a process in {}", view.files().display()));
    if missing && !view.hide.is_empty() {
        return error.with_hint("check --hide: it must not hide what every program needs, such as /usr");
    }
    error
}
