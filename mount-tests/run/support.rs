//! A mounted store for the tests of runs, and its users.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::cli::{Run, clean_command};
use crate::common::fast::FastStore;
use crate::common::forks::{small_store, tag};
use crate::common::mount::Mounting;
use crate::common::{Mount, Output, PFIMG, is_root, names, temp_dir, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// A user without rights.
pub(super) const NOBODY: u32 = 65534;

/// A mounted store, and who uses it.
pub(super) struct Place {
    pub(super) mount: Mount,
    pub(super) store: FastStore,
    pub(super) image: String,
    pub(super) program: PathBuf,
    pub(super) user: Option<u32>,
    /// A folder that the user may write, outside of what is temporary to a command.
    pub(super) outside: tempfile::TempDir,
    pub(super) _programs: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        Self::of(None, |mount| mount)
    }

    /// For another user, with a copy of the program that they can reach.
    pub(super) fn of(user: Option<u32>, set_up: impl FnOnce(Mounting) -> Mounting) -> Self {
        Self::sealing("manual", user, set_up)
    }

    /// With a mount that seals by itself.
    pub(super) fn sealing(when: &str, user: Option<u32>, set_up: impl FnOnce(Mounting) -> Mounting) -> Self {
        let (store, image) = small_store();
        tag(&store, "before", &image);
        let (programs, dir) = temp_dir();
        let program = match user {
            Some(_) => dir.join("pfimg"),
            None => PathBuf::from(PFIMG),
        };
        let outside = tempfile::Builder::new().prefix("outside-").tempdir_in(visible_folder()).unwrap();
        if let Some(user) = user {
            crate::common::cli::copy_program(PFIMG, &program);
            let every = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            [dir.as_path(), &program].into_iter().for_each(every);
            Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(store.root()).status().unwrap();
            every(store.root().parent().unwrap());
            std::os::unix::fs::chown(outside.path(), Some(user), Some(user)).unwrap();
        }
        let mut mounting = set_up(Mount::of(store.root()).args(["--seal", when])).program(&program);
        if let Some(user) = user {
            mounting = mounting.user(user);
        }
        Self { mount: mounting.start(), store, image, program, user, outside, _programs: programs }
    }

    pub(super) fn pfimg(&self, args: &[&str]) -> Run {
        Run::program(&self.program, args).env("PF_STORE", self.store.root()).user(self.user)
    }

    /// Runs a shell script in a fork.
    #[track_caller]
    pub(super) fn sh(&self, fork: &str, script: &str) -> Output {
        self.run(&[fork, "sh", "-c", script])
    }

    #[track_caller]
    pub(super) fn run(&self, args: &[&str]) -> Output {
        self.pfimg(&[&["run"], args].concat()).run()
    }

    /// Starts a command that runs next to the test.
    pub(super) fn spawn(&self, fork: &str, script: &str) -> Running {
        let mut command = clean_signals(&self.program);
        command.args(["run", fork, "sh", "-c", script]).env("PF_STORE", self.store.root());
        Running(command.stdin(Stdio::null()).spawn().unwrap())
    }

    pub(super) fn outside(&self, name: &str) -> String {
        self.outside.path().join(name).to_str().unwrap().to_owned()
    }
}

/// A command with no signal ignored, whatever is where the tests run (under nohup, or in the background of a script).
pub(super) fn clean_signals(program: &Path) -> Command {
    let mut command = clean_command(Path::new("env"));
    command.arg("--default-signal").arg(program);
    command
}

/// Killed when dropped.
pub(super) struct Running(pub(super) Child);

impl Running {
    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub(super) fn code(&mut self) -> Option<i32> {
        wait_until("the run ends", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a folder that commands see unchanged, and that any user can reach. The home folder and the checkout may lie in a folder
/// that commands see a private copy of.
pub(super) fn visible_folder() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let usual = [Some("/var/lib".into()), std::env::home_dir(), Some(target), Some("/run/lock".into())];
    let own = ["/tmp", "/var/tmp", "/dev/shm"];
    let is_shown = |folder: &PathBuf| {
        let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
        !own.iter().any(|own| real.starts_with(own)) && tempfile::tempfile_in(folder).is_ok()
    };
    let found = usual.into_iter().flatten().find(is_shown);
    found.unwrap_or_else(|| panic!("these tests need a folder to write in that is not below {own:?}"))
}

/// As the user who runs the tests and, if that is root, as an ordinary user as well.
pub(super) fn for_every_user(test: impl Fn(Place)) {
    test(Place::new());
    if is_root() {
        test(Place::of(Some(NOBODY), |mount| mount));
    }
}

/// The processes with a variable of this value.
pub(super) fn processes_with(variable: &str) -> Vec<String> {
    let has = |pid: &String| {
        let path = format!("/proc/{pid}/environ");
        fs::read(path).is_ok_and(|text| text.split(|b| *b == 0).any(|one| one == variable.as_bytes()))
    };
    names(Path::new("/proc")).unwrap().into_iter().filter(has).collect()
}
