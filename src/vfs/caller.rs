//! The process that a request comes from, for the rules on set-user-id and set-group-id bits.

use std::fs;

use crate::fork::Caller;

/// The capability to keep these bits, by its number in linux/capability.h.
const CAP_FSETID: u32 = 4;

/// The target of `/proc/PID/ns/user` in the first user namespace (`PROC_USER_INIT_INO`). Capabilities of another namespace
/// keep no bits.
const FIRST_NAMESPACE: &str = "user:[4026531837]";

/// A process that waits for the answer to a request.
///
/// A request names one group and no capabilities. The other groups and the capabilities are in `/proc`, which is read only for
/// files with such bits. If they cannot be read, the process counts as having none, and a bit is cleared that might have
/// stayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its thread id in this program's namespace; 0 if it has none there.
    pub pid: u32,
    /// The group that its new files get.
    pub gid: u32,
}

/// Values of a line of `/proc/PID/status`.
fn values<'a>(status: &'a str, key: &str) -> impl Iterator<Item = &'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace()
}

/// Whether a process's status names the capability.
fn has_fsetid(status: &str) -> bool {
    let set = values(status, "CapEff").next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    set.is_some_and(|set| set & 1 << CAP_FSETID != 0)
}

/// Whether a process's status names a group among the further ones.
fn has_group(status: &str, gid: u32) -> bool {
    values(status, "Groups").any(|group| group.parse() == Ok(gid))
}

impl Process {
    fn status(self) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/status", self.pid)).ok().filter(|_| self.pid != 0)
    }
}

impl Caller for Process {
    fn keeps_bits(self) -> bool {
        let namespace = || fs::read_link(format!("/proc/{}/ns/user", self.pid));
        self.status().is_some_and(|status| has_fsetid(&status))
            && namespace().is_ok_and(|namespace| namespace.as_os_str() == FIRST_NAMESPACE)
    }

    fn is_in(self, gid: u32) -> bool {
        gid == self.gid || self.status().is_some_and(|status| has_group(&status, gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_the_capability_are_found_in_a_status() {
        let status = "Name:\tx\nGid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \nCapEff:\t0000000000000010\n";
        assert!(has_fsetid(status) && has_group(status, 4) && has_group(status, 1000));
        assert!(!has_group(status, 1) && !has_group(status, 100));
        for odd in ["", "Groups:", "CapEff:\tx", "CapEff:\t0000000000000008\nGroups:\t", "CapEff:"] {
            assert!(!has_fsetid(odd) && !has_group(odd, 0), "{odd}");
        }
    }

    #[test]
    fn this_process_has_what_the_system_says() {
        let this = Process { pid: std::process::id(), gid: u32::MAX };
        let groups = rustix::process::getgroups().unwrap();
        assert!(groups.iter().all(|group| this.is_in(group.as_raw())));
        assert!(!this.is_in(4_000_000_000));
        let unseen = Process { pid: 0, gid: 7 };
        assert!(unseen.is_in(7) && !unseen.is_in(8) && !unseen.keeps_bits());
    }
}
