//! The first process of a run's process namespace.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{
    DumpableBehavior, Pid, Signal, kill_process, kill_process_group, set_dumpable_behavior,
};
use rustix::termios::tcsetpgrp;

use super::channel::{Channel, Message};
use super::process::{CANNOT_RUN, NO_COMMAND, NOT_EXECUTABLE, call_this, end_with_parent, pid_of, tell};
use super::signals::{Became, Taken, look_at, see_off};
use super::{mounts, namespaces, program, sys};
use crate::error::{Error, Result};

/// How long processes that the command left behind may continue: in a shell's `> >(tee log)`, `tee` is still writing.
const GRACE: Duration = Duration::from_millis(200);

/// Acts as init: runs the command, reaps orphans, and returns the command's exit code. When this process ends, the kernel ends
/// all processes that the command left behind.
///
/// `channel` is the number that the starter named.
pub fn first_process(command: &[OsString], channel: i32) -> Result<u8> {
    let mut starter = Channel::of(sys::take(channel)?);
    end_with_parent()?;
    call_this(c"pfimg-init");
    // This program's file was opened outside of the view. A process that could reach it through /proc could change its mode.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| Error::io(e.into(), "cannot protect the first process from being inspected"))?;
    show_processes()?;
    sys::leave_session_keyring();
    namespaces::drop_capabilities()?;
    let mut signals = Taken::new(&[])?;
    let Some((name, args)) = command.split_first() else { return Ok(CANNOT_RUN) };
    let child = match program::spawn(name, args) {
        Ok(child) => pid_of(&child),
        Err(error) => {
            tell(&program::explain(name, &error));
            return Ok(if error.kind() == io::ErrorKind::NotFound { NO_COMMAND } else { NOT_EXECUTABLE });
        }
    };
    if !starter.say(Message::Started) {
        return Ok(CANNOT_RUN);
    }
    loop {
        match look_at(child)? {
            Some(Became::Ended(code)) => {
                see_off(&mut signals, GRACE)?;
                return Ok(code);
            }
            Some(Became::Stopped(signal)) => {
                starter.say(Message::Stopped(signal as u8));
            }
            None => {
                // The starter has ended, or the builder was killed and this process is about to be.
                if signals.wait(Some(&starter), None)? && !obey(&mut starter, child) {
                    return Ok(CANNOT_RUN);
                }
                signals.pending();
            }
        }
    }
}

/// Obeys a message of the starter. Returns false if the starter has ended.
fn obey(starter: &mut Channel, child: Pid) -> bool {
    match starter.hear() {
        Some(Message::Signal(number)) => {
            let Some(signal) = Signal::from_named_raw(i32::from(number)) else { return true };
            // A terminal sends these signals to all processes of a group.
            let _ = if matches!(
                signal,
                Signal::INT | Signal::QUIT | Signal::HUP | Signal::TSTP | Signal::WINCH
            ) {
                kill_process_group(child, signal)
            } else {
                kill_process(child, signal)
            };
        }
        Some(message @ (Message::Continue | Message::Foreground)) => {
            let given = message == Message::Continue
                || File::open("/dev/tty").is_ok_and(|terminal| {
                    sys::ignoring(libc::SIGTTOU, || tcsetpgrp(&terminal, child)).is_ok()
                });
            if given {
                let _ = kill_process_group(child, Signal::CONT);
            } else {
                // If continued without the terminal, the command would only stop again.
                starter.say(Message::Stopped(libc::SIGSTOP as u8));
            }
        }
        Some(_) => {}
        None => return false,
    }
    true
}

/// Makes /proc show only the processes of the run.
fn show_processes() -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(error) = mount("proc", "/proc", "proc", flags, None) {
        // In containers that hide parts of /proc the kernel allows no new one. The old one is read-only, and the command can
        // neither signal nor inspect the processes that it shows.
        if matches!(error, rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) {
            return Ok(());
        }
        return Err(Error::io(error.into(), "cannot mount /proc"));
    }
    if rustix::process::geteuid().is_root() {
        write_protect_machine()?;
    }
    Ok(())
}

/// Write-protects those files in /proc that belong to the whole machine. Root may write them, and stays root in a run.
fn write_protect_machine() -> Result<()> {
    let failed = |path: &Path| {
        let what = format!("cannot write-protect {}", path.display());
        move |e: io::Error| Error::io(e, what)
    };
    let proc = Path::new("/proc");
    for entry in fs::read_dir(proc).map_err(failed(proc))?.flatten() {
        let path = entry.path();
        let is_process = entry.file_name().as_bytes().iter().all(u8::is_ascii_digit);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let is_written = metadata.is_dir() || (metadata.is_file() && metadata.mode() & 0o222 != 0);
        if is_process || !is_written {
            continue;
        }
        mount_bind(&path, &path).map_err(|e| failed(&path)(e.into()))?;
        mounts::write_protect(&path).map_err(failed(&path))?;
    }
    Ok(())
}
