//! What a user waits for in a project: runs, the list of forks, comparisons, an apply, and the way back.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::figures::Figures;
use super::result::Result;
use super::scratch::{Scratch, pfimg};
use super::source::SourceTree;

/// Times each short command runs, for one run of everything else.
const COMMANDS: usize = 4;

/// Forks in the list of forks.
const FORKS: usize = 100;

/// Files that a fork changes for the comparisons.
const CHANGED: usize = 10;

/// A user with a project and a store, and a mount that runs make.
struct User {
    home: PathBuf,
    project: PathBuf,
}

impl User {
    fn new(scratch: &Scratch, files: usize) -> Result<Self> {
        let home = scratch.fresh("home")?;
        let project = home.join("project");
        fs::create_dir(&project)?;
        fs::create_dir(home.join("runtime"))?;
        fs::set_permissions(home.join("runtime"), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        SourceTree::new(files, 1).write(&project, scratch)?;
        let this = Self { home, project };
        for args in
            [&["init", "-q", "-b", "main"][..], &["add", "-A"], &["commit", "-qm", "all"], &["gc", "-q"]]
        {
            // Otherwise git collects garbage in the background while commands are timed.
            let who = [
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@b",
                "-c",
                "gc.auto=0",
                "-c",
                "maintenance.auto=false",
            ];
            let mut git = Command::new("git");
            let status = git.args(who).args(args).current_dir(&this.project).status()?;
            if !status.success() {
                return Err(format!("git {args:?} failed").into());
            }
        }
        rustix::fs::sync();
        // Files that are younger than this are read again.
        std::thread::sleep(Duration::from_secs(3));
        Ok(this)
    }

    /// How long a command takes. Fails if it does.
    fn time<A: AsRef<OsStr>>(&self, command: &str, args: impl IntoIterator<Item = A>) -> Result<Duration> {
        let mut pfimg = pfimg(command);
        pfimg.args(args).current_dir(&self.project).env("HOME", &self.home).env_remove("PF_STORE");
        pfimg.env("XDG_RUNTIME_DIR", self.home.join("runtime")).env("PFIMG_IDLE", "1h");
        for variable in ["XDG_CACHE_HOME", "XDG_STATE_HOME"] {
            pfimg.env_remove(variable);
        }
        let start = Instant::now();
        let output = pfimg.output()?;
        let time = start.elapsed();
        if !output.status.success() {
            return Err(format!("{pfimg:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(time)
    }

    /// Ends the mount that runs use.
    fn unmount(&self) -> Result<()> {
        for entry in fs::read_dir(self.home.join("runtime/pfimg")).into_iter().flatten() {
            let point = entry?.path().join("mnt");
            if is_mounted(&point)? {
                self.time("umount", [&point])?;
            }
        }
        Ok(())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error}");
        }
    }
}

fn is_mounted(point: &Path) -> Result<bool> {
    let device =
        |path: &Path| fs::metadata(path).map(|metadata| std::os::unix::fs::MetadataExt::dev(&metadata));
    let above = point.parent().ok_or("a mountpoint has a parent")?;
    Ok(point.exists() && device(point)? != device(above)?)
}

/// Measures each of it, at least `runs` times.
pub(crate) fn rows(runs: usize, files: usize, scratch: &Scratch, figures: &mut Figures) -> Result<()> {
    let user = User::new(scratch, files)?;
    let made = Cell::new(0);
    let number = || {
        made.set(made.get() + 1);
        format!("f{}", made.get())
    };
    figures.row(
        &format!("first run in a project of {files} files"),
        vec![user.time("run", ["first", "--", "true"])?],
    );
    // What the import wrote is on the disk before the next command is timed.
    rustix::fs::sync();
    let many = runs * COMMANDS;
    let times =
        |figures: &mut Figures, name: &str, least: usize, one: &mut dyn FnMut() -> Result<Duration>| {
            let mut times = Vec::new();
            for _ in 0..least {
                scratch.go_on()?;
                times.push(one()?);
            }
            Ok::<f64, Box<dyn std::error::Error>>(figures.row(name, times))
        };
    let plain = times(figures, "`true`", many, &mut || {
        let start = Instant::now();
        Command::new("true").status()?;
        Ok(start.elapsed())
    })?;
    let run = |name: &str| user.time("run", [name, "--", "true"]);
    let there = times(figures, "`run FORK -- true`, mounted", many, &mut || run("first"))?;
    let new = times(figures, "`run NEW -- true`, mounted", many, &mut || run(&number()))?;
    let cold = times(figures, "`run NEW -- true`, not mounted", many, &mut || {
        user.unmount()?;
        run(&number())
    })?;
    for (name, time) in [("FORK, mounted", there), ("NEW, mounted", new), ("NEW, not mounted", cold)] {
        println!(
            "| `run {name} -- true` over `true` | {:.1?} | | |",
            Duration::from_secs_f64((time - plain).max(0.0))
        );
    }
    while made.get() < FORKS {
        user.time("fork", ["project", &number()])?;
    }
    times(figures, &format!("`forks`, {} forks", made.get()), many, &mut || user.time("forks", [""; 0]))?;
    let script = format!(
        "find . -path ./.git -prune -o -type f -print | head -n {CHANGED} | while read -r f; do echo changed >> \"$f\"; done"
    );
    user.time("run", ["ten", "--", "sh", "-c", &script])?;
    user.time("seal", ["ten", "--tag", "changed"])?;
    let what = format!("{CHANGED} changed files of {files}");
    times(figures, &format!("`diff IMAGE IMAGE`, {what}"), many, &mut || {
        user.time("diff", ["project", "changed"])
    })?;
    times(figures, &format!("`diff -p IMAGE IMAGE`, {what}"), many, &mut || {
        user.time("diff", ["project", "changed", "-p"])
    })?;
    times(figures, "`diff FORK -p`", many, &mut || user.time("diff", ["ten", "-p"]))?;
    times(figures, "`diff FORK .`", runs, &mut || user.time("diff", ["ten", "."]))?;
    let mut undone = Vec::new();
    times(figures, &format!("`apply FORK`, {CHANGED} files"), runs, &mut || {
        let time = user.time("apply", ["ten"])?;
        undone.push(user.time("apply", ["--undo"])?);
        Ok(time)
    })?;
    figures.row("`apply --undo`", undone);
    let mut undone = Vec::new();
    times(figures, "`restore FORK@0`", runs, &mut || {
        let time = user.time("restore", ["ten@0"])?;
        undone.push(user.time("restore", ["ten", "--undo"])?);
        Ok(time)
    })?;
    figures.row("`restore FORK --undo`", undone);
    times(figures, "`seals FORK`", many, &mut || user.time("seals", ["ten"]))?;
    user.unmount()
}
