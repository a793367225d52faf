//! The few system calls that no library offers as safe functions.

// No library has safe functions for mount_setattr(2) and the ioctls of network interfaces. Each takes memory of known length.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::thread::UnshareFlags;

use crate::error::{Error, Result};

/// Takes ownership of the descriptor that this process got from its parent under this number. Programs that it executes do not
/// get it.
pub(super) fn take(number: RawFd) -> Result<OwnedFd> {
    let failed = |e| Error::io(e, format!("descriptor {number} is not one of the starter's"));
    if number < 3 {
        return Err(failed(io::Error::from_raw_os_error(libc::EBADF)));
    }
    keep_from_programs(number).map_err(failed)?;
    // SAFETY: the descriptor is open, since the call above did not fail with EBADF. This process has not opened any descriptor
    // yet. The starter made this one for it, and no other code here uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes the kernel close a descriptor of this process when a program is executed.
pub(super) fn keep_from_programs(number: RawFd) -> io::Result<()> {
    // SAFETY: a plain call on a number. It changes what the next program gets, but nothing in this process.
    let answer = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `number` another descriptor of the same file, which executed programs get.
pub(super) fn put_in_place(file: &File, number: RawFd) -> io::Result<()> {
    // SAFETY: a plain call on numbers. This process got the descriptor that is replaced from its caller, for programs that it
    // executes: no code here owns it.
    if unsafe { libc::dup2(file.as_raw_fd(), number) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Unblocks signals that the parent of this process had blocked.
pub(super) fn unblock(signals: &[libc::c_int]) {
    // SAFETY: all zeros are a valid value of this plain structure, and it outlives the calls that get pointers to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Ignores a signal while `work` runs.
pub(super) fn ignoring<T>(signal: libc::c_int, work: impl FnOnce() -> T) -> T {
    // SAFETY: no handler is called for an ignored signal, and the earlier one is restored.
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
    // SAFETY: from here on only the kernel's default handler is called.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Replaces the caller's keys in the kernel (keyrings(7)) by an empty session. A system that forbids this also forbids using
/// keys.
pub(super) fn leave_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: no name is given, so the call reads no memory.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Leaves namespaces and enters new ones.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: the call is unsafe only with FILES.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Sets and clears attributes of the mount at `path`, and with `recursively` those of all mounts below it. A relative path
/// starts at `dir`; an empty one means `dir` itself.
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
    // SAFETY: the path ends with NUL, and `attr` has the length that the call gets; both outlive the call.
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

/// Installs a filter of system calls, for this process and all that it starts. The process must have `CAP_SYS_ADMIN`.
pub(super) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // Without this flag, kernels before 5.16 would slow down filtered processes to protect secrets in a filter. This one has
    // none.
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
