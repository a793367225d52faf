//! Namespaces, users and capabilities of a run.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Gid, Pid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::{mounts, sys};
use crate::error::{Error, ErrorKind, Result};

/// The capabilities of root in a run: those that concern files and users, and none that makes or changes mounts.
///
/// `SETFCAP` is included because without it the kernel does not let root make a namespace of users in which it is root.
const ROOTS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

/// Adds a hint to an error of namespaces.
pub(super) fn explain(error: io::Error, doing: &'static str) -> Error {
    let forbidden =
        matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSPC | libc::EUSERS));
    let unknown = matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL));
    let error = Error::io(error, doing);
    if forbidden {
        error.with_hint(
            "this system does not let its users make namespaces. Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; \
             elsewhere: sysctl user.max_user_namespaces=10000; in a container: start it with --security-opt seccomp=unconfined",
        )
    } else if unknown {
        error.with_hint("use Linux 5.12 or later, with user namespaces")
    } else {
        error
    }
}

/// Leaves the caller's namespaces. Processes that are started later are in a new process namespace.
pub(super) fn leave(network: bool) -> Result<()> {
    let mut flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC;
    if !network {
        flags |= UnshareFlags::NEWNET;
    }
    sys::unshare(flags).map_err(|e| explain(e, "cannot make namespaces to run the command in"))
}

/// Maps users of a new namespace to themselves: all users if this process runs as root, otherwise only its own user.
///
/// A process outside of the namespace has to do this.
pub(super) fn map_users(process: Pid) -> Result<()> {
    let at = |file: &str| format!("/proc/{}/{file}", process.as_raw_nonzero());
    let failed = |what: &'static str| move |e| explain(e, what);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if uid == 0
        && let (Ok(users), Ok(groups)) =
            (fs::read_to_string("/proc/self/uid_map"), fs::read_to_string("/proc/self/gid_map"))
        && fs::write(at("uid_map"), onto_themselves(&users)).is_ok()
    {
        return fs::write(at("gid_map"), onto_themselves(&groups)).map_err(failed("cannot map groups"));
    }
    // A process that can change its groups could leave one that denies it access to a file.
    fs::write(at("setgroups"), "deny").map_err(failed("cannot map users"))?;
    fs::write(at("uid_map"), format!("{uid} {uid} 1\n")).map_err(failed("cannot map users"))?;
    fs::write(at("gid_map"), format!("{gid} {gid} 1\n")).map_err(failed("cannot map groups"))
}

/// Returns the groups of this process that [`map_users`] maps only for root: all except its own. Also returns the kernel's
/// substitute for unmapped groups, as which the others are shown. Must be called before the process leaves its namespaces.
pub(super) fn other_groups() -> Vec<u32> {
    if rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let own = rustix::process::getegid().as_raw();
    let mut groups: Vec<u32> =
        rustix::process::getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
    groups.retain(|group| *group != own);
    if !groups.is_empty() {
        let substitute = fs::read_to_string("/proc/sys/kernel/overflowgid");
        groups.extend(
            substitute.ok().and_then(|text| text.trim().parse::<u32>().ok()).filter(|group| *group != own),
        );
    }
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The folder with the kernel's limits on namespaces that can be made in this process's namespace of users.
const LIMITS: &str = "/proc/sys/user";

/// The limit on control group namespaces.
pub(super) struct Limit(Option<OwnedFd>);

/// Opens that limit, which a finished view write-protects.
///
/// Uses a separate mount, since a mount cannot be write-protected while a file in it is open for writing.
pub(super) fn control_group_limit() -> Limit {
    Limit(mounts::tree(Path::new(LIMITS), true).ok())
}

impl Limit {
    /// Sets the limit to zero. With such a namespace a process could mount the machine's groups, write to those that belong to
    /// the same user, and end the processes in them. If /proc/sys is already write-protected, as in containers that may make
    /// namespaces, the limit cannot be set.
    pub(super) fn set(&self) {
        let Some(limits) = &self.0 else { return };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(file) = openat(limits, "max_cgroup_namespaces", flags, Mode::empty()) {
            let _ = rustix::io::write(&file, b"0");
        }
    }
}

/// Returns a map of this namespace's users or groups to themselves.
fn onto_themselves(map: &str) -> String {
    let mut out = String::new();
    for line in map.lines() {
        let mut numbers = line.split_whitespace();
        if let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) {
            let _ = writeln!(out, "{first} {first} {count}");
        }
    }
    out
}

/// Makes the next executed program keep the capabilities that it needs to finish the view and to give up the rest. Otherwise
/// users other than root would lose all of them.
pub(super) fn keep_capabilities() -> Result<()> {
    let failed = |e: rustix::io::Errno| Error::io(e.into(), "cannot keep capabilities for the next process");
    let kept = [CapabilitySet::SYS_ADMIN, CapabilitySet::SETPCAP];
    let mut sets = rustix::thread::capabilities(None).map_err(failed)?;
    sets.inheritable = kept[0] | kept[1];
    rustix::thread::set_capabilities(None, sets).map_err(failed)?;
    for capability in kept {
        rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(failed)?;
    }
    Ok(())
}

/// Gives up capabilities that the command must not have, for this process and all that it starts. Neither set-user-id bits nor
/// file capabilities can regain them.
pub(super) fn drop_capabilities() -> Result<()> {
    let failed = |e: rustix::io::Errno| Error::io(e.into(), "cannot give up capabilities");
    rustix::thread::set_no_new_privs(true).map_err(failed)?;
    let kept = if rustix::process::geteuid().is_root() { ROOTS } else { CapabilitySet::empty() };
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // This kernel has no higher numbers.
            Err(rustix::io::Errno::INVAL) if number > 0 => break,
            other => other.map_err(failed)?,
        }
    }
    // Ignores a kernel without an ambient set.
    let _ = rustix::thread::clear_ambient_capability_set();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed)?;
    let left = rustix::thread::capabilities(None).map_err(failed)?;
    if left.permitted != kept {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            "the kernel kept capabilities that were given up",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_users_is_mapped_onto_itself() {
        assert_eq!(onto_themselves("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(onto_themselves("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
        assert_eq!(onto_themselves("\nno map\n"), "");
    }
}
