//! Reading a tree: what people, compilers and agents do most.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};

use crate::Result;
use crate::measure::{Bench, Done, Job, Row, Series, Workload, measure};
use crate::source::NEEDLE;
use crate::systems::{PfimgImage, State, System};

/// What is measured on the native folder and on an image.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload { name: "find -ls", state: State::Warm, prepare: nothing, run: find },
    Workload { name: "ls -lR", state: State::Warm, prepare: nothing, run: ls },
    Workload { name: "grep -r", state: State::Warm, prepare: nothing, run: grep },
    Workload { name: "tar", state: State::Warm, prepare: nothing, run: tar },
    Workload { name: "du -s", state: State::Warm, prepare: nothing, run: du },
    Workload { name: "stat of each", state: State::Warm, prepare: nothing, run: stat },
    Workload { name: "open and read each", state: State::Warm, prepare: nothing, run: read },
    Workload { name: "git status", state: State::Warm, prepare: git_repository, run: git_status },
    Workload { name: "git grep", state: State::Warm, prepare: git_repository, run: git_grep },
    Workload { name: "find -ls", state: State::Cold, prepare: nothing, run: find },
    Workload { name: "tar", state: State::Unmounted, prepare: nothing, run: tar },
    Workload { name: "tar", state: State::Cold, prepare: nothing, run: tar },
    Workload { name: "tar", state: State::Second, prepare: nothing, run: tar },
];

/// Needed by some workloads and not there everywhere.
pub(crate) fn lacks(workload: &Workload) -> Option<&'static str> {
    let has_git = || Command::new("git").arg("--version").stdout(Stdio::null()).status().is_ok();
    (workload.name.starts_with("git") && !has_git()).then_some("git is not installed")
}

#[allow(clippy::unnecessary_wraps)]
fn nothing(_: &Job<'_>) -> Result<()> {
    Ok(())
}

fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Runs a command that prints; counts the lines. They go to memory: grep stops early if it sees /dev/null.
fn printing(mut command: Command, ok: &[i32]) -> Result<Done> {
    let mut output = File::from(rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)?);
    command.stdout(output.try_clone()?);
    let started = Instant::now();
    let status = command.status()?;
    let time = started.elapsed();
    if !status.code().is_some_and(|code| ok.contains(&code)) {
        return Err(format!("{command:?}: {status}").into());
    }
    output.rewind()?;
    let mut text = Vec::new();
    output.read_to_end(&mut text)?;
    let check = text.split(|byte| *byte == b'\n').count() as u64 - 1;
    Ok(Done { time, check })
}

fn find(job: &Job<'_>) -> Result<Done> {
    let mut find = command("find", job.system.tree());
    find.args([".", "-ls"]);
    printing(find, &[0])
}

fn ls(job: &Job<'_>) -> Result<Done> {
    let mut ls = command("ls", job.system.tree());
    ls.arg("-lR");
    printing(ls, &[0])
}

fn grep(job: &Job<'_>) -> Result<Done> {
    let mut grep = command("grep", job.system.tree());
    grep.args(["-r", NEEDLE, "."]);
    printing(grep, &[0])
}

fn du(job: &Job<'_>) -> Result<Done> {
    let mut du = command("du", job.system.tree());
    du.args(["-s", "."]);
    printing(du, &[0])
}

fn tar(job: &Job<'_>) -> Result<Done> {
    // Through a pipe: tar reads nothing at all if it sees /dev/null.
    let started = Instant::now();
    let mut tar = command("tar", job.system.tree()).args(["cf", "-", "."]).stdout(Stdio::piped()).spawn()?;
    let pipe = tar.stdout.take().ok_or("tar has no output")?;
    let cat = command("cat", job.system.tree()).stdin(pipe).stdout(Stdio::null()).status()?;
    let status = tar.wait()?;
    let time = started.elapsed();
    if !(status.success() && cat.success()) {
        return Err(format!("tar: {status}").into());
    }
    Ok(Done { time, check: 0 })
}

/// Paths of the tree; the same on each system, so that they are found out once.
fn paths(job: &Job<'_>) -> Result<std::rc::Rc<Vec<PathBuf>>> {
    thread_local!(static PATHS: OnceCell<std::rc::Rc<Vec<PathBuf>>> = const { OnceCell::new() });
    if let Some(found) = PATHS.with(|paths| paths.get().cloned()) {
        return Ok(found);
    }
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(job.system.tree().join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(PATHS.with(|paths| paths.get_or_init(|| found.into()).clone()))
}

fn open_tree(job: &Job<'_>) -> Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(job.system.tree(), flags, Mode::empty())?)
}

fn stat(job: &Job<'_>) -> Result<Done> {
    let paths = paths(job)?;
    let tree = open_tree(job)?;
    let started = Instant::now();
    let mut check = 0;
    for path in &*paths {
        check += u64::from(rustix::fs::statat(&tree, path, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    }
    Ok(Done { time: started.elapsed(), check })
}

fn read(job: &Job<'_>) -> Result<Done> {
    let paths = paths(job)?;
    let tree = open_tree(job)?;
    let mut buffer = vec![0; 128 << 10];
    let started = Instant::now();
    let mut check = 0;
    for path in &*paths {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&tree, path, flags, Mode::empty()) {
            Ok(file) => loop {
                match rustix::io::read(&file, &mut *buffer) {
                    Ok(0) | Err(rustix::io::Errno::ISDIR) => break,
                    Ok(read) => check += read as u64,
                    Err(error) => return Err(error.into()),
                }
            },
            // A symlink.
            Err(rustix::io::Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Done { time: started.elapsed(), check })
}

fn git(job: &Job<'_>, args: &[&str]) -> Command {
    let repository = job.scratch.path().join("git").join(job.system.name().replace(' ', "-"));
    let mut git = command("git", job.system.tree());
    git.arg("--git-dir")
        .arg(repository)
        .args([
            "--work-tree",
            ".",
            "-c",
            "core.looseCompression=0",
            "-c",
            "gc.auto=0",
            "-c",
            "core.fsync=none",
        ])
        .args(args)
        // One set of objects for all: the repositories differ in what their index knows of the files.
        .env("GIT_OBJECT_DIRECTORY", job.scratch.path().join("git/objects"))
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "bench")
            .env(format!("GIT_{who}_EMAIL"), "bench@localhost")
            .env(format!("GIT_{who}_DATE"), "2026-01-01T00:00:00Z");
    }
    git
}

/// Commits the tree to a repository that lies on the local disk, for each system its own.
fn git_repository(job: &Job<'_>) -> Result<()> {
    let repository = job.scratch.path().join("git").join(job.system.name().replace(' ', "-"));
    if repository.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(job.scratch.path().join("git/objects"))?;
    for args in [&["init", "-q"][..], &["add", "-A"], &["commit", "-qm", "all"], &["status"]] {
        job.scratch.go_on()?;
        let status = git(job, args).stdout(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("git {args:?}: {status}").into());
        }
    }
    Ok(())
}

fn git_status(job: &Job<'_>) -> Result<Done> {
    let done = printing(git(job, &["status", "--porcelain"]), &[0])?;
    if done.check != 0 {
        return Err("git status sees changes in a tree that was just committed".into());
    }
    Ok(done)
}

fn git_grep(job: &Job<'_>) -> Result<Done> {
    printing(git(job, &["grep", NEEDLE]), &[0])
}

/// Compares `diff -r` of two images, mounted anew each time, with `find` over the two.
pub(crate) fn diff(bench: &Bench<'_>, image: &mut PfimgImage, one: &Path, two: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for state in [State::Unmounted, State::Warm] {
        let mut series = [Series::new("find of both"), Series::new("pfimg image")];
        let mut patience = bench.patience;
        for round in 1..=bench.runs {
            bench.say(format!("diff -r, {}: {round}/{}", state.label(), bench.runs));
            bench.wait_for_quiet(&mut patience)?;
            for series in &mut series {
                bench.scratch.go_on()?;
                image.reset(state)?;
                let run = |system: &PfimgImage| {
                    let (program, args, ok): (_, &[&str], _) = match series.system {
                        "find of both" => ("find", &[], 0),
                        _ => ("diff", &["-r"], 1),
                    };
                    let mut command = command(program, system.mountpoint());
                    command.args(args).args([one, two]);
                    if program == "find" {
                        command.arg("-ls");
                    }
                    printing(command, &[ok])
                };
                if state == State::Warm {
                    run(image)?;
                }
                let measured = measure(&*image, || run(image))?;
                series.push(measured, image);
            }
        }
        rows.push(Row { name: "diff -r".into(), state, series: series.into(), notes: Vec::new() });
    }
    Ok(rows)
}
