//! A mount that ends when the test does, however the test ends.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cli::{Run, clean_command};
use super::digests::bare;
use super::machine::{PFIMG, temp_dir};
use super::system;
use super::wait::{PATIENCE, wait_at_most, wait_until};

/// How to mount.
pub struct Mounting {
    store: PathBuf,
    at: Option<PathBuf>,
    args: Vec<OsString>,
    user: Option<u32>,
    program: PathBuf,
    under: Vec<String>,
    links: Option<i32>,
    env: Vec<(String, String)>,
}

impl Mounting {
    /// Starts the daemon by another program that becomes it, such as `prlimit --nofile=20`.
    #[must_use]
    pub fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Has every hard link of the daemon fail with this error. For root.
    #[must_use]
    pub fn without_links(mut self, error: i32) -> Self {
        self.links = Some(error);
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Mounts at an existing folder instead of a new one.
    #[must_use]
    pub fn at(mut self, path: &Path) -> Self {
        self.at = Some(path.to_owned());
        self
    }

    /// Mounts as this user and group instead of the caller.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// Gives the daemon a variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Uses another copy of the program, for instance one that another user can reach.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.program);
        self
    }

    /// Starts the daemon and waits until the mount answers.
    #[track_caller]
    pub fn start(self) -> Mount {
        system::require_fuse();
        let (dir, home) = temp_dir();
        let point = self.at.clone().unwrap_or_else(|| home.join("mnt"));
        if self.at.is_none() {
            std::fs::create_dir(&point).expect("a folder to mount at");
        }
        if let Some(user) = self.user {
            for path in [&home, &point] {
                std::os::unix::fs::chown(path, Some(user), Some(user))
                    .expect("to give the folders to the user");
            }
        }
        let log = home.join("log");
        let log_file = File::create(&log).expect("a log file");
        let mut command = match self.under.split_first() {
            Some((program, args)) => {
                let mut command = clean_command(Path::new(program));
                command.args(args).arg(&self.program);
                command
            }
            None => clean_command(&self.program),
        };
        command
            .arg("mount")
            .arg("--foreground")
            .args(&self.args)
            .arg(&self.store)
            .arg(&point)
            .env("HOME", &home)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().expect("a second handle"))
            .stderr(log_file);
        if !self.args.iter().any(|a| a == "--cache-dir") {
            command.arg("--cache-dir").arg(home.join("cache"));
        }
        if let Some(user) = self.user {
            use std::os::unix::process::CommandExt as _;
            command.uid(user).gid(user);
        }
        if let Some(error) = self.links {
            system::without_links(&mut command, error);
        }
        let child = command.spawn().expect("to start the daemon");
        let started = Instant::now();
        let mut mount = Mount {
            point,
            log,
            child,
            status: None,
            started,
            answered: Duration::ZERO,
            abandoned: false,
            _dir: dir,
        };
        // The guard exists already: whatever happens from here on, nothing stays mounted.
        mount.wait_for_answer(self.user.is_some());
        mount
    }
}

/// A running daemon and its mount.
pub struct Mount {
    point: PathBuf,
    log: PathBuf,
    child: Child,
    status: Option<ExitStatus>,
    started: Instant,
    answered: Duration,
    /// Whether this guard must not unmount the mountpoint.
    abandoned: bool,
    _dir: tempfile::TempDir,
}

impl Mount {
    /// Sets up a mount of `store`.
    pub fn of(store: &Path) -> Mounting {
        Mounting {
            store: store.to_owned(),
            at: None,
            args: Vec::new(),
            user: None,
            program: PathBuf::from(PFIMG),
            under: Vec::new(),
            links: None,
            env: Vec::new(),
        }
    }

    fn wait_for_answer(&mut self, is_foreign: bool) {
        let answers = |mount: &mut Self| {
            if mount.exit_status().is_some() {
                return true;
            }
            if !system::types_at(&mount.point).iter().any(|t| t.starts_with("fuse")) {
                return false;
            }
            // Another user's mount is closed to all other users, root too: then mountinfo must do.
            is_foreign || std::fs::metadata(mount.point.join(".pfimg/status.json")).is_ok()
        };
        let answered = wait_at_most(PATIENCE, || answers(self));
        assert!(self.status.is_none(), "the mount ended at once ({:?}):\n{}", self.status, self.log());
        assert!(answered.is_some(), "the mount does not answer:\n{}", self.log());
        self.answered = self.started.elapsed();
    }

    /// The mountpoint.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// A path under the mountpoint.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.point.join(path)
    }

    /// The folder of image `id`.
    pub fn image(&self, id: &str) -> PathBuf {
        self.point.join("images").join(bare(id))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The time from the start of the program to its first answer.
    pub fn time_to_answer(&self) -> Duration {
        self.answered
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The lines logged so far that hold all of `words`.
    pub fn log_lines(&self, words: &[&str]) -> Vec<String> {
        let log = self.log();
        log.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned).collect()
    }

    /// The most memory the daemon ever had resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        system::peak_memory(self.pid())
    }

    /// The counters of `.pfimg/metrics`, by name with labels.
    #[track_caller]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let text = std::fs::read_to_string(self.join(".pfimg/metrics")).expect("to read .pfimg/metrics");
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        lines
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no metric: {line:?}"));
                (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no value: {line:?}")))
            })
            .collect()
    }

    /// One counter of `.pfimg/metrics`.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        *metrics.get(name).unwrap_or_else(|| panic!("no metric {name} in {:?}", metrics.keys()))
    }

    /// How often the kernel asked for `op`, for instance `read`.
    #[track_caller]
    pub fn requests(&self, op: &str) -> f64 {
        self.metric(&format!("pfimg_fuse_requests_total{{op=\"{op}\"}}"))
    }

    /// `Some` once the daemon has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child to wait for");
        }
        self.status
    }

    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("to signal the daemon");
    }

    /// Waits until the daemon has ended by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let ended = wait_at_most(PATIENCE, || self.exit_status().is_some());
        assert!(ended.is_some(), "the daemon does not end:\n{}", self.log());
        self.status.expect("an exit status")
    }

    /// Kills the daemon without a chance to clean up, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.exit_status().is_none() {
            self.child.kill().expect("to kill the daemon");
            wait_until("a killed daemon ends", || self.exit_status().is_some());
        }
    }

    /// Releases the mountpoint, which was given by the caller, after the daemon has ended: the caller clears
    /// it.
    pub fn abandon(mut self) {
        assert!(self.exit_status().is_some(), "the daemon still runs");
        self.abandoned = true;
    }

    /// Ends the mount by `pfimg umount` and panics unless everything went cleanly.
    #[track_caller]
    pub fn unmount(mut self) {
        Run::new([OsStr::new("umount"), self.point.as_os_str()]).run().exits(0);
        let status = self.wait();
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        assert_eq!(system::types_at(&self.point), [] as [&str; 0], "still mounted");
        let log = self.log();
        assert!(!log.contains("panicked"), "the daemon panicked:\n{log}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        let failing = std::thread::panicking();
        if failing {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            let mut stderr = std::io::stderr().lock();
            let _ = writeln!(stderr, "--- the daemon's log (its end)");
            for line in tail.iter().rev() {
                let _ = writeln!(stderr, "{line}");
            }
        }
        if self.exit_status().is_none() {
            system::signal_pfimg(self.pid(), Signal::TERM);
            let limit = Duration::from_secs(10);
            if wait_at_most(limit, || self.exit_status().is_some()).is_none() {
                let _ = self.child.kill();
                if wait_at_most(limit, || self.exit_status().is_some()).is_none() {
                    system::break_connection(&self.point);
                    wait_at_most(limit, || self.exit_status().is_some());
                }
            }
        }
        system::detach_all(&self.point);
        if !failing {
            assert_eq!(system::types_at(&self.point), [] as [&str; 0], "a mount was left behind");
        }
    }
}

/// A daemon that was started in the background: ended with the test like a [`Mount`].
pub struct Background {
    pub point: PathBuf,
    pub pid: Option<u32>,
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            system::signal_pfimg(pid, Signal::TERM);
            if wait_at_most(Duration::from_secs(10), || !system::is_running(pid)).is_none() {
                system::signal_pfimg(pid, Signal::KILL);
            }
        }
        system::detach_all(&self.point);
    }
}
