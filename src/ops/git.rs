//! Runs git in a directory's own repository. Git is never started in a fork's repository outside of the sandbox.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// Settings under which git runs no program that a repository names in its hooks and settings.
const SETTINGS: [&str; 2] = ["core.hooksPath=/dev/null", "core.fsmonitor=false"];

/// A command of git.
#[derive(Debug)]
pub struct Git<'a> {
    dir: &'a Path,
    command: Command,
}

/// The answer of git.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code; nothing if a signal ended it.
    pub code: Option<i32>,
    /// Its output.
    pub printed: Vec<u8>,
    /// Its messages.
    pub said: String,
}

impl<'a> Git<'a> {
    /// Begins a command in a directory. It asks for no password, and speaks English.
    pub fn new(dir: &'a Path) -> Self {
        let mut command = Command::new("git");
        // By these variables the caller's environment may name another repository.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"GIT_")) {
            command.env_remove(name);
        }
        command.envs([("GIT_TERMINAL_PROMPT", "0"), ("LC_ALL", "C")]);
        command.arg("-C").arg(dir);
        Self { dir, command }.settings(&SETTINGS)
    }

    /// Adds settings, each as `NAME=VALUE`.
    #[must_use]
    pub fn settings(mut self, settings: &[&str]) -> Self {
        for setting in settings {
            self.command.args(["-c", setting]);
        }
        self
    }

    /// Adds options that come before the verb.
    #[must_use]
    pub fn options(mut self, options: &[&OsStr]) -> Self {
        self.command.args(options);
        self
    }

    /// Sets a variable of git's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Lets git find only the directory's own repository, and none above it.
    #[must_use]
    pub fn only_here(self) -> Self {
        let above = self.dir.parent().unwrap_or(self.dir);
        self.env("GIT_CEILING_DIRECTORIES", above)
    }

    /// Runs git, and returns its output. Fails if git fails. The verb comes first in `args`.
    pub fn run(self, args: &[&str]) -> Result<Vec<u8>> {
        let dir = self.dir;
        let answer = self.ask(args, b"")?;
        if answer.code != Some(0) {
            let what = format!("git {} in {}: {}", args[0], dir.display(), answer.said.trim());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(answer.printed)
    }

    /// Runs git with an input, and returns its answer, whatever its exit code is.
    pub fn ask(mut self, args: &[&str], input: &[u8]) -> Result<Answer> {
        self.command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|e| {
            let is_missing = e.kind() == std::io::ErrorKind::NotFound;
            let error = Error::io(e, "cannot start git");
            if is_missing { error.with_hint("install git") } else { error }
        })?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // If git ends before it has read all input, its exit code tells the reason.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output()
        });
        let output = output.map_err(|e| Error::io(e, "cannot read git's output"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Answer { code: output.status.code(), printed: output.stdout, said })
    }
}
