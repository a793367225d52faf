//! Namespaces, users and capabilities of a run.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Gid, Pid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::{sys, view};
use crate::error::{Error, ErrorKind, Result};

/// What root may do in a run: as much of it as has to do with files and users, and nothing that makes or changes mounts.
///
/// Without `SETFCAP` the kernel lets no root make a namespace of users in which it is root.
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

/// Says what to do where namespaces are not to be had.
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
        error.with_hint("it takes Linux 5.12 or later, with user namespaces")
    } else {
        error
    }
}

/// Leaves the namespaces of the caller; the processes that are started from here on are in a process namespace of their own.
pub(super) fn leave(network: bool) -> Result<()> {
    let mut flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC;
    if !network {
        flags |= UnshareFlags::NEWNET;
    }
    sys::unshare(flags).map_err(|e| explain(e, "cannot make namespaces to run the command in"))
}

/// Maps users of a new namespace onto themselves: all of them if this process may, which is root; else itself alone.
///
/// A namespace in which a user is mapped can only be told so from outside.
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
    // Who could change groups could drop one that keeps it out of something.
    fs::write(at("setgroups"), "deny").map_err(failed("cannot map users"))?;
    fs::write(at("uid_map"), format!("{uid} {uid} 1\n")).map_err(failed("cannot map users"))?;
    fs::write(at("gid_map"), format!("{gid} {gid} 1\n")).map_err(failed("cannot map groups"))
}

/// The groups of this process that [`map_users`] maps for root alone: all but its own one, and the kernel's substitute for what is not
/// mapped, as which they are shown. To be called before it leaves its namespaces.
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

/// Where the kernel limits the namespaces that can be made in the namespace of users of this process.
const LIMITS: &str = "/proc/sys/user";

/// The number of control group namespaces that can be made there.
pub(super) struct Limit(Option<OwnedFd>);

/// Takes hold of that limit, which a finished view write-protects.
///
/// A mount cannot be write-protected while a file in it is open for writing: this is another mount.
pub(super) fn control_group_limit() -> Limit {
    Limit(view::tree(Path::new(LIMITS), true).ok())
}

impl Limit {
    /// Sets it to zero. A process with such a namespace may mount the machine's groups, writable as far as they belong to the same user, and
    /// there end the processes in a group. Where /proc/sys was write-protected before (in containers that are let make namespaces) the
    /// limit cannot be set.
    pub(super) fn set(&self) {
        let Some(limits) = &self.0 else { return };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(file) = openat(limits, "max_cgroup_namespaces", flags, Mode::empty()) {
            let _ = rustix::io::write(&file, b"0");
        }
    }
}

/// What this namespace has, mapped onto itself.
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

/// Has the next program that is executed keep what it takes to finish the view and to give the rest up; other users than root
/// lose all of it otherwise.
pub(super) fn keep_capabilities() -> Result<()> {
    let failed = |e: rustix::io::Errno| Error::io(e.into(), "cannot hand on capabilities");
    let kept = [CapabilitySet::SYS_ADMIN, CapabilitySet::SETPCAP];
    let mut sets = rustix::thread::capabilities(None).map_err(failed)?;
    sets.inheritable = kept[0] | kept[1];
    rustix::thread::set_capabilities(None, sets).map_err(failed)?;
    for capability in kept {
        rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(failed)?;
    }
    Ok(())
}

/// Gives up what the command must not have, for this process and all that it starts: set-user-id bits and file capabilities
/// bring none of it back.
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
            // This kernel knows no more.
            Err(rustix::io::Errno::INVAL) if number > 0 => break,
            other => other.map_err(failed)?,
        }
    }
    // Not every kernel has it; then there is nothing in it.
    let _ = rustix::thread::clear_ambient_capability_set();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed)?;
    let left = rustix::thread::capabilities(None).map_err(failed)?;
    if left.permitted != kept {
        return Err(Error::new(ErrorKind::PermissionDenied, "capabilities are left that were given up"));
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
