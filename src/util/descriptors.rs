//! Tables of descriptors.

// No library has a safe function for this use of close_range(2).
#![allow(unsafe_code)]

use std::io;

/// Gives the calling thread a separate table of descriptors, in which only the three standard ones are open.
pub(crate) fn own_descriptors() -> io::Result<()> {
    // SAFETY: the call reads no memory. Other threads keep their table. This thread must not own a descriptor beyond the standard
    // ones yet, and gets none from them later: callers start a new thread for this.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
