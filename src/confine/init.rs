//! The first process of a run's process namespace.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::{fs, io};

use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::net::RecvFlags;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::supervise::Supervisor;
use super::{
    CANNOT_RUN, NO_COMMAND, NOT_EXECUTABLE, call_this, end_with_parent, namespaces, pid_of, sys, view,
};
use crate::error::{Error, Result};

/// Init: runs the command, and waits for what becomes a child of it meanwhile. When this process ends, the kernel ends all that
/// the command left behind.
///
/// `builder` is what the builder named.
pub fn first_process(command: &[OsString], builder: i32) -> Result<u8> {
    let mut builder = File::from(sys::take(builder)?);
    end_with_parent()?;
    // One that had ended before is noticed by its end of the channel.
    if rustix::net::recv(&builder, &mut [0_u8; 1], RecvFlags::DONTWAIT).is_ok() {
        return Ok(CANNOT_RUN);
    }
    call_this(c"pfimg-init");
    // Its program was opened outside the view: who could look at that by /proc could change its mode.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| Error::io(e.into(), "cannot be kept from being looked into"))?;
    show_processes()?;
    sys::leave_session_keyring();
    namespaces::drop_capabilities()?;
    let supervisor = Supervisor::new()?;
    // Nobody to tell is nobody to hear signals from.
    let _ = builder.write_all(&[0]);
    let Some((program, args)) = command.split_first() else { return Ok(CANNOT_RUN) };
    match Command::new(program).args(args).spawn() {
        Ok(child) => supervisor.wait(pid_of(&child)),
        Err(error) => {
            eprintln!("pfimg: cannot run {}: {error}", program.display());
            Ok(if error.kind() == io::ErrorKind::NotFound { NO_COMMAND } else { NOT_EXECUTABLE })
        }
    }
}

/// Has /proc show the processes of the run, and no others.
fn show_processes() -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(error) = mount("proc", "/proc", "proc", flags, None) {
        // In containers that hide parts of /proc the kernel shows no other one. The old one is read-only; what it shows cannot
        // be sent signals or looked into from here.
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

/// Write-protects what belongs to the whole machine in /proc: its root may write it, who is root in a run as well.
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
        view::write_protect(&path).map_err(failed(&path))?;
    }
    Ok(())
}
