//! Adds hints to errors that a container or a service manager causes.

use std::io;
use std::path::Path;

use rustix::thread::CapabilitySet;

use crate::error::{Error, ErrorKind};

/// The hint for root where the kernel does not let it mount.
const NO_CAPABILITY: &str = "run with CAP_SYS_ADMIN; in a container, pass --cap-add SYS_ADMIN";
const CONFINED: &str =
    "let the system's confinement allow mounts; in a container, pass --security-opt apparmor=unconfined";

/// Adds a hint to the error of a mount(2) that root may not make.
pub(crate) fn root_refused(error: Error) -> Error {
    let has = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    error.with_hint(if has { CONFINED } else { NO_CAPABILITY })
}

/// Whether `no_new_privs` is set: programs that this process starts get no further rights.
pub(crate) fn has_no_new_privs() -> bool {
    rustix::thread::no_new_privs().unwrap_or(false)
}

/// Adds a hint to an error of fusermount3 if this process keeps it from becoming root.
pub(crate) fn helper_refused(error: Error, helper: &str) -> Error {
    if rustix::process::geteuid().is_root() || !has_no_new_privs() {
        return error;
    }
    error.with_hint(format!(
        "run this without no_new_privs, with which {helper} cannot become root: a sandbox sets it, and NoNewPrivileges=yes \
         of systemd"
    ))
}

/// Makes the error for a program that cannot be started. A program without input or output needs /dev/null.
pub(crate) fn not_started(error: io::Error, doing: String) -> Error {
    let is_missing = error.kind() == io::ErrorKind::NotFound && !Path::new("/dev/null").exists();
    let error = Error::io(error, doing);
    if is_missing {
        error.with_hint("run `mknod -m 666 /dev/null c 1 3`: /dev/null is missing")
    } else {
        error
    }
}

/// Makes the error for a helper program that cannot be started.
pub(crate) fn helper_not_started(error: io::Error, helper: &str) -> Error {
    if error.kind() == io::ErrorKind::NotFound && Path::new("/dev/null").exists() {
        return Error::new(
            ErrorKind::NotFound,
            format!("{helper} is not installed, and only root can mount without it"),
        )
        .with_hint("install it: apt install fuse3 (the package is called fuse3 on most systems)");
    }
    not_started(error, format!("cannot run {helper}"))
}
