//! Calls on descriptors.

// No library has a safe function for this use of close_range(2), and that for `SO_PEERCRED` cannot express the number 0.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Gives the calling thread a separate table of descriptors, in which only the three standard ones are open.
pub(crate) fn own_descriptors() -> io::Result<()> {
    // SAFETY: the call reads no memory. Other threads keep their table. This thread must not own a descriptor beyond the standard
    // ones yet, and gets none from them later: callers start a new thread for this.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The process at the other end of a socket, when it connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its number; 0 if it is not in the process namespace of this process or one below.
    pub(crate) pid: i32,
    /// Its user.
    pub(crate) uid: u32,
}

/// Returns the process at the other end of a Unix socket.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `found`, which any bytes are a value of.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(Peer { pid: found.pid, uid: found.uid }) }
}
