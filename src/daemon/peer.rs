//! Decides which processes may ask a daemon for something.

use std::fs;
use std::os::fd::BorrowedFd;

use crate::error::{Error, ErrorKind, Result};
use crate::util::descriptors::peer;

/// Fails unless the process at the other end belongs to the user of this process, or to root, and is not confined.
///
/// No user but these can enter the directory of the socket, and no command of `pfimg run` sees it. This is checked in case one
/// of them reaches the socket in another way.
pub(super) fn judge(client: BorrowedFd<'_>) -> Result<()> {
    let peer = peer(client).map_err(|e| Error::io(e, "cannot tell which process sends a command"))?;
    if peer.uid != 0 && peer.uid != rustix::process::geteuid().as_raw() {
        return Err(Error::new(ErrorKind::PermissionDenied, "another user mounted the store")
            .with_hint("run the command as the user who mounted the store"));
    }
    let depth_of = |process: &str| depth(&fs::read_to_string(format!("/proc/{process}/status")).ok()?);
    let is_below = match (depth_of("self"), depth_of(&peer.pid.to_string())) {
        (Some(own), Some(its)) => its > own,
        // The process may have ended.
        _ => false,
    };
    if peer.pid == 0 || is_below {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            "a process in another process namespace cannot ask the daemon",
        )
        .with_hint("run pfimg outside; in a run, `mkdir $PFIMG_SNAP/NAME` seals the fork"));
    }
    Ok(())
}

/// The number of process namespaces that a process is in, from `/proc/PID/status`. A command of `pfimg run` is in one that its
/// daemon is not in.
fn depth(status: &str) -> Option<usize> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(numbers.split_whitespace().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_a_namespace_below_is_deeper() {
        let status = "Name:\tsh\nTgid:\t12\nNSpid:\t12\t1\nUid:\t0\n";
        assert_eq!(depth(status), Some(2));
        assert_eq!(depth("Name:\tNSpid\n"), None);
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert!(depth(&own).is_some());
    }
}
