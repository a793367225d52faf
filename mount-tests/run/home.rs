//! A user with a home folder, a project in it, and nothing else: no store, and no mount.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::support::{NOBODY, clean_signals, visible_folder};
use crate::common::cli::{Output, Run};
use crate::common::{PFIMG, hex_digest_of_file, is_root, names, system, wait_at_most, wait_until};

/// How long the tests let an own mount stay.
pub(super) const IDLE: &str = "300ms";

pub(super) struct Home {
    dir: PathBuf,
    pub(super) program: PathBuf,
    pub(super) user: Option<u32>,
    pub(super) project: PathBuf,
    idle: &'static str,
    _guard: tempfile::TempDir,
}

impl Home {
    /// With a mount that stays for the test.
    pub(super) fn new(user: Option<u32>) -> Self {
        Self::with_idle(user, "10m")
    }

    pub(super) fn with_idle(user: Option<u32>, idle: &'static str) -> Self {
        system::require_fuse();
        let guard = tempfile::Builder::new().prefix("home-").tempdir_in(visible_folder()).unwrap();
        let dir = guard.path().canonicalize().unwrap();
        let program = dir.join("pfimg");
        crate::common::cli::copy_program(PFIMG, &program);
        let project = dir.join("shop");
        fs::create_dir_all(project.join("docs")).unwrap();
        fs::create_dir_all(project.join("src/deep")).unwrap();
        fs::create_dir(dir.join("runtime")).unwrap();
        for (path, text) in [
            ("docs/one.md", "one\n"),
            ("docs/two.md", "two\n"),
            ("src/price.py", "price = 1\n"),
            ("src/deep/x", "x\n"),
            (".gitignore", "ignored\n"),
        ] {
            fs::write(project.join(path), text).unwrap();
        }
        let this = Self { dir, program, user, project, idle, _guard: guard };
        for (path, mode) in [("", 0o755), ("pfimg", 0o755), ("runtime", 0o700)] {
            let path = this.dir.join(path);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(&path, user, user).unwrap();
        }
        let owner = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let owner = format!("{owner}:{owner}");
        if user.is_some() {
            Run::program(Path::new("chown"), ["-R", &owner, this.project.to_str().unwrap()]).run().exits(0);
        }
        this.git(&["init", "-q", "-b", "main"]);
        this.git(&["config", "user.name", "a"]);
        this.git(&["config", "user.email", "a@b"]);
        this.git(&["add", "-A"]);
        this.git(&["commit", "-qm", "first"]);
        fs::write(this.project.join("ignored"), "ignored\n").unwrap();
        fs::write(this.project.join("untracked"), "untracked\n").unwrap();
        fs::write(this.project.join("src/price.py"), "price = 2\n").unwrap();
        this
    }

    /// Has git do something in the project, outside of any run.
    #[track_caller]
    pub(super) fn git(&self, args: &[&str]) -> String {
        let run = Run::program(Path::new("git"), args).dir(&self.project).env("HOME", &self.dir);
        run.user(self.user).run().exits(0).stdout
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.path(".processfork")
    }

    pub(super) fn pfimg(&self, args: &[&str]) -> Run {
        let run = Run::program(&self.program, args).dir(&self.project).user(self.user);
        run.env("HOME", &self.dir).env("XDG_RUNTIME_DIR", self.path("runtime")).env("PFIMG_IDLE", self.idle)
    }

    #[track_caller]
    pub(super) fn run(&self, args: &[&str]) -> Output {
        self.pfimg(&[&["run"], args].concat()).run()
    }

    #[track_caller]
    pub(super) fn sh(&self, fork: &str, script: &str) -> Output {
        self.run(&[fork, "--", "sh", "-c", script])
    }

    /// Starts `pfimg run` while the test continues.
    pub(super) fn spawn(&self, args: &[&str]) -> Spawned {
        let mut command = clean_signals(&self.program);
        command.arg("run").args(args).current_dir(&self.project).stdin(Stdio::null()).stderr(Stdio::null());
        command.env("HOME", &self.dir).env("XDG_RUNTIME_DIR", self.path("runtime"));
        command.env("PFIMG_IDLE", self.idle);
        if let Some(user) = self.user {
            use std::os::unix::process::CommandExt as _;
            command.uid(user).gid(user);
        }
        Spawned(command.spawn().unwrap())
    }

    /// The mountpoints that runs have made.
    pub(super) fn mountpoints(&self) -> Vec<PathBuf> {
        let folder = self.path("runtime/pfimg");
        let all = names(&folder).unwrap_or_default().into_iter().map(|name| folder.join(name).join("mnt"));
        all.filter(|point| !system::types_at(point).is_empty()).collect()
    }

    pub(super) fn mountpoint(&self) -> PathBuf {
        let all = self.mountpoints();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }

    /// The daemon of the own mount.
    pub(super) fn daemon(&self) -> u32 {
        let said = self.pfimg(&["status", "--json", self.mountpoint().to_str().unwrap()]).run().exits(0);
        said.json()["pid"].as_u64().unwrap() as u32
    }

    /// A file of a fork, read as the user.
    pub(super) fn read(&self, fork: &str, path: &str) -> Option<String> {
        let path = self.mountpoint().join("forks").join(fork).join("world/fs").join(path);
        let said = Run::program(Path::new("cat"), [&path]).user(self.user).run();
        (said.code == 0).then_some(said.stdout)
    }

    pub(super) fn record(&self, fork: &str) -> Value {
        let path = self.store().join("forks/.runs").join(format!("{fork}.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The names of the forks on disk.
    pub(super) fn forks(&self) -> Vec<String> {
        let all = names(&self.store().join("forks/heads")).unwrap_or_default();
        all.iter().filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect()
    }

    /// Everything in the project: modes, times of change, and contents.
    pub(super) fn state(&self) -> BTreeMap<PathBuf, String> {
        let (mut state, mut todo) = (BTreeMap::new(), vec![self.project.clone()]);
        while let Some(path) = todo.pop() {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_file() { hex_digest_of_file(&path).unwrap() } else { String::new() };
            if metadata.is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            let (mode, owner) = (metadata.mode(), metadata.uid());
            let changed = (metadata.ctime(), metadata.ctime_nsec());
            state.insert(path, format!("{mode:o} {owner} {changed:?} {content}"));
        }
        state
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for point in self.mountpoints() {
            self.pfimg(&["umount", point.to_str().unwrap()]).run();
            system::detach_all(&point);
        }
    }
}

/// A run during the test. Ended when dropped.
pub(super) struct Spawned(pub(super) Child);

impl Spawned {
    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    #[track_caller]
    pub(super) fn code(&mut self) -> Option<i32> {
        wait_until("the run ends", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
            let limit = std::time::Duration::from_secs(15);
            if wait_at_most(limit, || self.0.try_wait().is_ok_and(|ended| ended.is_some())).is_none() {
                let _ = self.0.kill();
            }
        }
        let _ = self.0.wait();
    }
}

/// As the user of the tests and, if that is root, as another one as well.
pub(super) fn for_every_user(test: impl Fn(Option<u32>)) {
    test(None);
    if is_root() {
        test(Some(NOBODY));
    }
}
