//! Runs `pfimg` to its end.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::machine::PFIMG;
use super::system;
use super::wait::{PATIENCE, in_time, wait_at_most};

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Everything it said.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Panics unless the exit code is `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// The result in the command's JSON; checks the envelope.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let whole: serde_json::Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.stdout));
        assert_eq!(whole["pfimg"], 1, "no envelope: {whole}");
        whole.get("result").unwrap_or_else(|| panic!("no result: {whole}")).clone()
    }
}

/// One run of `pfimg`, to be set up.
pub struct Run {
    command: Command,
    shown: String,
}

/// `pfimg ARGS…`, run to its end.
#[track_caller]
pub fn pfimg<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Output {
    Run::new(args).run()
}

/// `pfimg --store STORE` given by the environment, run to its end.
#[track_caller]
pub fn pfimg_on<A: AsRef<OsStr>>(store: &Path, args: impl IntoIterator<Item = A>) -> Output {
    Run::new(args).env("PF_STORE", store).run()
}

impl Run {
    pub fn new<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::program(Path::new(PFIMG), args)
    }

    /// Another copy of the program.
    pub fn program<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>) -> Self {
        let args: Vec<OsString> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let shown = args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut command = clean_command(program);
        command.args(args);
        Self { command, shown }
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs in this folder.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Has every hard link fail with this error.
    #[must_use]
    pub fn without_links(mut self, error: i32) -> Self {
        system::without_links(&mut self.command, error);
        self
    }

    /// Runs as this user and group, with no other groups.
    #[must_use]
    pub fn user(mut self, id: Option<u32>) -> Self {
        if let Some(id) = id {
            use std::os::unix::process::CommandExt as _;
            self.command.uid(id).gid(id);
        }
        self
    }

    /// Runs it, reads what it says to the end, and panics if it does not end in time.
    ///
    /// A program that leaves a daemon behind must have let go of its output by then.
    #[track_caller]
    pub fn run(mut self) -> Output {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = self.command.spawn();
        let mut child = spawned.unwrap_or_else(|e| panic!("cannot start pfimg {}: {e}", self.shown));
        let mut stdout = child.stdout.take().expect("a pipe");
        let mut stderr = child.stderr.take().expect("a pipe");
        let stdout = std::thread::spawn(move || drain(&mut stdout));
        let stderr = std::thread::spawn(move || drain(&mut stderr));
        let ended = wait_at_most(PATIENCE * 3, || child.try_wait().expect("a child to wait for").is_some());
        if ended.is_none() {
            let _ = child.kill();
            // A program with the rights of another user cannot be killed: nor can it be waited for.
            let killed = wait_at_most(PATIENCE, || child.try_wait().is_ok_and(|status| status.is_some()));
            assert!(killed.is_some(), "pfimg {} does not end and cannot be killed", self.shown);
        }
        let code = child.wait().expect("a child to wait for").code().unwrap_or(-1);
        let shown = self.shown;
        let (stdout, stderr) = in_time(&format!("the output of pfimg {shown} stays open"), move || {
            (stdout.join().expect("a reader"), stderr.join().expect("a reader"))
        });
        assert!(ended.is_some(), "pfimg {shown} does not end\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        Output { code, stdout, stderr }
    }
}

/// Copies a program that a test is going to start.
///
/// `cp` does it in its own process. A child that another thread starts at that moment inherits a descriptor that is
/// open for writing, and the kernel refuses to start a program that is open for writing (ETXTBSY).
#[track_caller]
pub fn copy_program(from: &str, to: &Path) {
    tool("cp", [OsStr::new(from), to.as_os_str()]).exits(0);
}

fn drain(pipe: &mut impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command that sees nothing of the caller's own stores, caches and settings.
pub fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in
        ["PF_STORE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "RUST_LOG"]
    {
        command.env_remove(name);
    }
    // `pfimg run` has a word for each of these.
    for (name, _) in std::env::vars_os().filter(|(name, _)| pfimg::sandbox::secrets::is_credential(name)) {
        command.env_remove(name);
    }
    command.env("HOME", no_home()).env("NO_COLOR", "1");
    command
}

/// A home folder that does not exist: a command that must not write there cannot.
fn no_home() -> PathBuf {
    std::env::temp_dir().join("pfimg-test-no-home")
}

/// Runs any other program to its end and gives what it wrote; panics if it cannot be started.
#[track_caller]
pub fn tool<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Output {
    let mut run = Run::program(Path::new(program), args);
    run.shown = format!("({program}) {}", run.shown);
    run.run()
}
