//! The few calls that no library has safely.

// mount_setattr(2) and the ioctls of network interfaces are in no safe wrapper; each takes memory of known length.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::thread::UnshareFlags;

use crate::error::{Error, Result};

/// The descriptor of this number, which a process got from the one that started it, and does not hand on again.
pub(super) fn take(number: RawFd) -> Result<OwnedFd> {
    let failed = |e| Error::io(e, format!("descriptor {number} is not one of the starter's"));
    if number < 3 {
        return Err(failed(io::Error::from_raw_os_error(libc::EBADF)));
    }
    keep_from_programs(number).map_err(failed)?;
    // SAFETY: it is open, or that had been EBADF. Nothing in this process has opened a descriptor yet: it was made by the starter
    // for this process, and nobody else here knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has a descriptor of this process closed when a program is executed.
pub(super) fn keep_from_programs(number: RawFd) -> io::Result<()> {
    // SAFETY: a plain call on a number. It changes what the next program gets, and nothing in this process.
    let answer = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `number` another descriptor of the same file, which is handed on to programs.
pub(super) fn put_in_place(file: &File, number: RawFd) -> io::Result<()> {
    // SAFETY: a plain call on numbers. The one that is replaced was handed to this process by its caller, for programs it executes:
    // nothing here owns it.
    if unsafe { libc::dup2(file.as_raw_fd(), number) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes signals that whoever started this process had blocked.
pub(super) fn unblock(signals: &[libc::c_int]) {
    // SAFETY: all zeros are a valid value of this plain structure, and the calls get pointers to it that outlive them.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Ignores a signal while something is done.
pub(super) fn ignoring<T>(signal: libc::c_int, work: impl FnOnce() -> T) -> T {
    // SAFETY: no handler is called for what is ignored, and the one that was there before is put back.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    let done = work();
    if before != libc::SIG_ERR {
        // SAFETY: as above.
        unsafe { libc::signal(signal, before) };
    }
    done
}

/// Ends this process by a signal, as if it had no handler for it.
pub(super) fn die_of(signal: libc::c_int) {
    // SAFETY: no handler is called from here on, but the kernel's own.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Leaves the caller's keys in the kernel (keyrings(7)) for a session that has none. Where a system forbids that, it forbids
/// using keys too.
pub(super) fn leave_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: no name is given, so that no memory is looked at.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Gives the calling thread a table of descriptors of its own, in which the three standard ones alone are open.
pub(crate) fn own_descriptors() -> io::Result<()> {
    // SAFETY: no memory is looked at. The other threads keep their table; this one must not own a descriptor beyond the standard
    // ones yet, and gets none from them later: its callers start it for that.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves namespaces, for new ones.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: unsafe with FILES alone.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Sets and clears attributes of the mount at `path`, below `dir` if it is relative or that itself if it is empty; and of all
/// that is mounted below it, if told so.
pub(super) fn change_mount(
    dir: BorrowedFd<'_>,
    path: &CStr,
    (set, clear): (u64, u64),
    recursively: bool,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    if recursively {
        flags |= libc::AT_RECURSIVE;
    }
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: the path ends with NUL, and `attr` is of the length that is told; both outlive the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Installs a filter of system calls, for this process and all that it starts. To be called where it has `CAP_SYS_ADMIN`.
pub(super) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // Kernels before 5.16 would slow down all that is filtered, against an attack on what the filter itself keeps secret: nothing.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the kernel reads `len` instructions, which outlive the call, and checks them.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings up the loopback interface, which is down in a new network namespace.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all zeros are a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
