//! The process that a request comes from, as far as set-user-id and set-group-id bits go by it.

use std::fs;

use crate::fork::Caller;

/// The capability to keep these bits, by its number in linux/capability.h.
const CAP_FSETID: u32 = 4;

/// What `/proc/PID/ns/user` says in the first user namespace (`PROC_USER_INIT_INO`). Capabilities of another one keep no bits.
const FIRST_NAMESPACE: &str = "user:[4026531837]";

/// A process that waits for the answer to a request.
///
/// A request has no capabilities and one group. The others are in `/proc`, which is read for files with such bits alone. What cannot
/// be read there the process does not have: then a bit falls that would have stayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its thread, by the number that this program sees; 0 if it sees none.
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
        let nobody = Process { pid: 0, gid: 7 };
        assert!(nobody.is_in(7) && !nobody.is_in(8) && !nobody.keeps_bits());
    }
}
