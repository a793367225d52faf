//! Deals with daemons that do not answer, because they are stopped, frozen or too busy.
//!
//! A program that asks such a daemon waits in the kernel. Once the daemon has taken the request, not even a signal ends the
//! wait. So a separate process asks, and this one waits for it only for a short time. Some questions need no daemon, since the
//! kernel itself answers them: `/proc/self/mountinfo`, and statx(2) with `AT_STATX_DONT_SYNC`.

// No library has a safe function for fork(2). The child only makes system calls, with memory that was prepared before.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use crate::error::{Error, ErrorKind};
use crate::mount::mountinfo::Mounted;

/// How long to wait for a daemon's answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How long a killed process may take to end.
const ENDING: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A question to a filesystem.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// What bytes does this file have?
    Read(PathBuf),
    /// How much space is there? Every filesystem can answer this, and the kernel never caches the answer.
    Space(PathBuf),
}

/// The result of a question.
#[derive(Debug)]
pub(crate) enum Answer {
    /// An answer, with the bytes of the file if these were asked for.
    Is(Vec<u8>),
    Failed(io::Error),
    /// No answer in time.
    None,
}

/// Asks all questions at once, and waits at most [`PATIENCE`] for all answers together.
pub(crate) fn ask(questions: &[Question]) -> Vec<Answer> {
    let until = Instant::now() + PATIENCE;
    let asking: Vec<_> = questions.iter().map(Asking::start).collect();
    let finish =
        |asking: io::Result<Asking>| asking.map_or_else(Answer::Failed, |asking| asking.finish(until));
    asking.into_iter().map(finish).collect()
}

/// Asks one question.
pub(crate) fn ask_one(question: Question) -> Answer {
    ask(&[question]).pop().unwrap_or(Answer::None)
}

/// A process that asks.
struct Asking {
    child: Pid,
    heard: OwnedFd,
    bytes: Vec<u8>,
}

impl Asking {
    fn start(question: &Question) -> io::Result<Self> {
        let (Question::Read(path) | Question::Space(path)) = question;
        let path = CString::new(path.as_os_str().as_bytes())?;
        let is_read = matches!(question, Question::Read(_));
        let (heard, said) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut buffer = vec![0u8; 64 << 10];
        // SAFETY: the child calls only `answer`, which only makes system calls, allocates no memory and does not return.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above; path and buffer are this process's copies.
            unsafe { answer(&path, is_read, &mut buffer, said.as_raw_fd()) }
        }
        let child = if child < 0 { None } else { Pid::from_raw(child) };
        let child = child.ok_or_else(io::Error::last_os_error)?;
        Ok(Self { child, heard, bytes: buffer })
    }

    /// Ends the process, which keeps the mount busy until then. If the daemon has taken its request, it ends only with the
    /// daemon.
    fn give_up(&self) {
        let _ = kill_process(self.child, Signal::KILL);
        if let Ok(process) = pidfd_open(self.child, PidfdFlags::empty()) {
            let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&ENDING));
        }
        let _ = waitpid(Some(self.child), WaitOptions::NOHANG);
    }

    fn finish(mut self, until: Instant) -> Answer {
        let mut found = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.heard, PollFlags::IN)], Some(&left)) {
                Ok(0) => {
                    self.give_up();
                    return Answer::None;
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Answer::Failed(e.into()),
            }
            match rustix::io::read(&self.heard, &mut self.bytes) {
                Ok(0) => break,
                Ok(n) => found.extend_from_slice(&self.bytes[..n]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(e) => return Answer::Failed(e.into()),
            }
        }
        // The process has closed its end of the pipe, so it is about to end.
        match rustix::io::retry_on_intr(|| waitpid(Some(self.child), WaitOptions::empty())) {
            Ok(Some((_, status))) => match status.exit_status() {
                Some(0) => Answer::Is(found),
                Some(errno) => Answer::Failed(io::Error::from_raw_os_error(errno)),
                None => Answer::Failed(io::ErrorKind::Interrupted.into()),
            },
            Ok(None) => Answer::None,
            Err(e) => Answer::Failed(e.into()),
        }
    }
}

/// Asks the filesystem, writes the bytes of the answer to `to`, and ends this process. Its exit code is the number of an error.
///
/// # Safety
/// Must run in a process that was just forked: it closes every descriptor and ends the process.
unsafe fn answer(path: &CString, is_read: bool, buffer: &mut [u8], to: RawFd) -> ! {
    // SAFETY: these are system calls, with pointers to memory that outlives them.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Closes the caller's descriptors, so that no program waits for this process to close a pipe or to release a lock.
        if to != 0 {
            libc::dup2(to, 0);
        }
        libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0);
        let fail = || -> ! { libc::_exit(*libc::__errno_location() & 0xff) };
        if !is_read {
            let mut space: libc::statfs = std::mem::zeroed();
            if libc::statfs(path.as_ptr(), &raw mut space) < 0 {
                fail();
            }
            libc::_exit(0);
        }
        let flags = libc::O_RDONLY | libc::O_NOCTTY | libc::O_CLOEXEC;
        let file = libc::open(path.as_ptr(), flags);
        if file < 0 {
            fail();
        }
        // The pipe was set not to wait for its reader; writes here have to wait.
        libc::fcntl(0, libc::F_SETFL, libc::O_WRONLY);
        loop {
            let length = libc::read(file, buffer.as_mut_ptr().cast(), buffer.len());
            if length < 0 {
                fail();
            }
            if length == 0 {
                libc::_exit(0);
            }
            let mut written = 0;
            while written < length {
                let at = buffer.as_ptr().add(written as usize).cast();
                let n = libc::write(0, at, (length - written) as usize);
                if n < 0 {
                    fail();
                }
                written += n;
            }
        }
    }
}

/// Whether an error says that the daemon has ended: before the question, during it, or before the kernel knew the daemon.
pub(crate) fn has_ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ECONNREFUSED))
}

/// Returns whether the daemon of a mount has ended and left the mount.
pub(crate) fn is_dead(mountpoint: &Path) -> bool {
    let answers = ask(&[Question::Read(mountpoint.join(".pfimg/status.json"))]);
    matches!(answers.first(), Some(Answer::Failed(error)) if has_ended(error))
}

/// Returns the type and mode bits of a file that the kernel knows, without asking a daemon. Returns none if it knows none, or if
/// this user may not look at the file.
pub(crate) fn mode_known(path: &Path) -> Option<u32> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::TYPE | StatxFlags::MODE).ok()?;
    Some(found.stx_mode.into())
}

/// A daemon, found without asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Daemon {
    pub(crate) pid: u32,
    pub(crate) user: u32,
    /// Whether a signal or a debugger has stopped it.
    pub(crate) is_stopped: bool,
}

impl Daemon {
    /// Returns the process `pid`, if it exists.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let user = fs::metadata(&process).ok()?.uid();
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // The name in parentheses may contain any characters.
        let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, user, is_stopped: matches!(state, 'T' | 't') })
    }

    /// Returns the daemon of a mount, if only one process can be it.
    pub(crate) fn serving(mounted: &Mounted) -> Option<Self> {
        let mut likely = Vec::new();
        for pid in fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
        {
            match serves(pid, mounted) {
                Some(true) => return Self::of(pid),
                None if is_daemon(pid) && names(pid, &mounted.path) => likely.push(pid),
                Some(false) | None => {}
            }
        }
        match likely.as_slice() {
            [pid] => Self::of(*pid),
            _ => None,
        }
    }
}

/// Whether a process serves a mount. Returns none if the kernel does not say: it is too old, or the process belongs to another
/// user.
pub(crate) fn serves(pid: u32, mounted: &Mounted) -> Option<bool> {
    let connections = connections(pid).filter(|connections| !connections.is_empty())?;
    let (_, number) = mounted.device.split_once(':')?;
    Some(connections.contains(&number.parse().ok()?))
}

fn arguments(pid: u32) -> Vec<Vec<u8>> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Whether a process is a daemon of this program.
fn is_daemon(pid: u32) -> bool {
    let arguments = arguments(pid);
    ["mount", "--foreground"].iter().all(|word| arguments.iter().any(|argument| argument == word.as_bytes()))
}

/// Returns the numbers of the FUSE connections that a process serves, if the kernel shows them (Linux 6.14 and later).
fn connections(pid: u32) -> Option<Vec<u64>> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    Some(texts.filter_map(|text| connection(&text)).collect())
}

/// `fuse_connection: 41` of `proc_pid_fdinfo(5)`: the minor number of the mount's device.
fn connection(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()
}

/// Whether a process was started with this mountpoint as an argument. A relative argument only has to fit, since the folder that
/// it starts from is unknown.
fn names(pid: u32, mountpoint: &Path) -> bool {
    arguments(pid).iter().any(|argument| {
        let argument = Path::new(std::ffi::OsStr::from_bytes(argument));
        let plain: PathBuf =
            argument.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
        !plain.as_os_str().is_empty() && mountpoint.ends_with(plain)
    })
}

/// Makes the error of a command that has to ask the daemon of a mount, which does not answer.
pub(crate) fn no_answer(mounted: &Mounted) -> Error {
    let (mountpoint, store) = (mounted.path.display(), mounted.source.display());
    let waited = PATIENCE.as_secs();
    let Some(daemon) = Daemon::serving(mounted) else {
        let what =
            format!("the daemon that serves {store} at {mountpoint} does not answer within {waited} s");
        return Error::new(ErrorKind::NoAnswer, what)
            .with_hint("run `pgrep -a pfimg` to find the process, and `kill -CONT PID` to continue it");
    };
    let Daemon { pid, user, is_stopped } = daemon;
    let is_own = user == rustix::process::geteuid().as_raw();
    let whose = if is_own { String::new() } else { format!(" of user {user}") };
    let end = format!("`kill -KILL {pid}` and `pfimg umount {mountpoint}` to end it");
    let (what, hint) = if is_stopped {
        let what = format!(
            "the daemon of {mountpoint} does not answer: process {pid}{whose}, which serves {store}, is stopped"
        );
        (what, format!("run `kill -CONT {pid}` to continue it, or {end}"))
    } else {
        let what = format!(
            "the daemon of {mountpoint}, process {pid}{whose}, which serves {store}, does not answer within {waited} s"
        );
        (what, format!("try again, or run {end}"))
    };
    Error::new(ErrorKind::NoAnswer, what).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_an_error_is_that_of_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let (file, gone) = (dir.path().join("file"), dir.path().join("gone"));
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        fs::write(&file, &bytes).unwrap();
        let questions = [Question::Read(file.clone()), Question::Read(gone), Question::Space(file)];
        let answers = ask(&questions);
        assert!(matches!(&answers[0], Answer::Is(found) if *found == bytes));
        assert!(matches!(&answers[1], Answer::Failed(e) if e.raw_os_error() == Some(libc::ENOENT)));
        assert!(matches!(&answers[2], Answer::Is(found) if found.is_empty()));
    }

    #[test]
    fn silent_mounts_are_waited_for_once_for_any_number_of_questions() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        // A writer has it open and writes nothing.
        let _writer = fs::File::options().read(true).write(true).open(&fifo).unwrap();
        let asked = Instant::now();
        let answers = ask(&vec![Question::Read(fifo); 3]);
        assert!(answers.iter().all(|answer| matches!(answer, Answer::None)), "{answers:?}");
        assert!((PATIENCE..PATIENCE * 2).contains(&asked.elapsed()));
    }

    #[test]
    fn a_connection_is_read_from_what_the_kernel_tells_of_a_descriptor() {
        assert_eq!(connection("pos:\t0\nflags:\t02\nfuse_connection:\t41\n"), Some(41));
        assert_eq!(connection("pos:\t0\n"), None);
    }

    #[test]
    fn the_mode_of_an_existing_path_is_known_and_of_a_missing_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mode_known(dir.path()).map(|mode| mode & libc::S_IFMT), Some(libc::S_IFDIR));
        assert_eq!(mode_known(&dir.path().join("gone")), None);
    }
}
