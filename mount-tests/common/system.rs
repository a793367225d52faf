//! What the kernel says about mounts and processes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use super::machine::is_root;

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug)]
pub struct MountLine {
    pub mountpoint: PathBuf,
    /// The options of the mount, for instance `rw`, `nosuid`, `nodev`.
    pub options: Vec<String>,
    pub fstype: String,
    pub source: String,
}

/// Everything mounted at `path` itself, the lowest first.
pub fn mounts_at(path: &Path) -> Vec<MountLine> {
    let text = std::fs::read("/proc/self/mountinfo").expect("mountinfo");
    text.split(|b| *b == b'\n').filter_map(parse).filter(|m| m.mountpoint == path).collect()
}

/// The types of the filesystems mounted at `path`, the lowest first.
pub fn types_at(path: &Path) -> Vec<String> {
    mounts_at(path).into_iter().map(|m| m.fstype).collect()
}

fn parse(line: &[u8]) -> Option<MountLine> {
    // Fields are bytes: a path need not be text.
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let behind = fields.iter().position(|field| *field == b"-")?;
    let text = |at: usize| Some(String::from_utf8_lossy(fields.get(at)?).into_owned());
    Some(MountLine {
        mountpoint: unescape(fields.get(4)?).into(),
        options: text(5)?.split(',').map(str::to_owned).collect(),
        fstype: text(behind + 1)?,
        source: text(behind + 2)?,
    })
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(bytes: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| bytes.get(at + 1..at + 4)).flatten();
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(value) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(value);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    OsString::from_vec(out)
}

/// Breaks the connection of the FUSE mount at `path`, so that programs that wait for its daemon get an error
/// instead. Needed where a daemon was killed while it waited for itself: it cannot end before. Only root can.
pub fn break_connection(path: &Path) {
    let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::FORCE);
}

/// Detaches everything that is still mounted at `path`. For the end of a test only.
pub fn detach_all(path: &Path) {
    for _ in 0..mounts_at(path).len() {
        if rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).is_err() {
            let _ = std::process::Command::new("fusermount3").arg("-u").arg("-z").arg(path).output();
        }
    }
}

/// Sends `signal` to the process `pid` if it still runs the program under test.
pub fn signal_pfimg(pid: u32, signal: Signal) {
    // The number may belong to another program now: that one must not be ended.
    let is_ours = std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(b"pfimg"));
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| is_ours) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Whether process `pid` still exists and has not ended.
pub fn is_running(pid: u32) -> bool {
    status_field(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The most memory process `pid` ever had resident, in bytes.
pub fn peak_memory(pid: u32) -> u64 {
    let text = status_field(pid, "VmHWM").unwrap_or_else(|| panic!("process {pid} shows no VmHWM"));
    let kib: u64 = text.trim_end_matches("kB").trim().parse().expect("a number of kB");
    kib * 1024
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Panics with what to do about it unless FUSE can be used.
pub fn require_fuse() {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        panic!(
            "/dev/fuse cannot be opened ({error}): these tests mount for real. Run them as root, or where ordinary \
             users may open /dev/fuse (`chmod 666 /dev/fuse`, as every distribution has it), in a container with \
             `--device /dev/fuse --cap-add SYS_ADMIN`."
        );
    }
}

/// Where `program` is in `$PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// Whether a path holds a byte that would break a line of a table.
pub fn is_plain(path: &Path) -> bool {
    path.as_os_str().as_bytes().iter().all(|b| !b.is_ascii_control())
}

/// Makes every hard link of a command fail with this error, as on a filesystem without hard links. A set-user-id program gets no
/// rights there unless root starts it, so an ordinary user cannot mount.
#[allow(
    unsafe_code,
    reason = "there is no other way to prepare a process that is about to be another program"
)]
pub fn without_links(command: &mut std::process::Command, error: i32) {
    use std::os::unix::process::CommandExt as _;

    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, is, ret) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    #[cfg(target_arch = "x86_64")]
    let link = libc::SYS_link as u32;
    #[cfg(not(target_arch = "x86_64"))]
    let link = libc::SYS_linkat as u32;
    // The number of the call is the first word of what the filter sees.
    let filter = [
        statement(load, 0, 0, 0),
        statement(is, link, 2, 0),
        statement(is, libc::SYS_linkat as u32, 1, 0),
        statement(ret, libc::SECCOMP_RET_ALLOW, 0, 0),
        statement(ret, libc::SECCOMP_RET_ERRNO | error as u32, 0, 0),
    ];
    let is_root = is_root();
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: both calls read nothing but their arguments and the filter, which lives as long as this closure.
        let failed = unsafe {
            (!is_root && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: two system calls; nothing is allocated and no lock is taken between fork and exec.
    unsafe { command.pre_exec(install) };
}
