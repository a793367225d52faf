//! Reading a tree: what people, compilers and agents do most.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};

use crate::measure::{Bench, Done, Job, Row, Series, Workload, measure};
use crate::mounted::Pfimg;
use crate::result::Result;
use crate::scratch::pfimg;
use crate::source::{NEEDLE, Random};
use crate::systems::{BIG, State, System, TREE};

/// Reads of 4 KiB in a large file.
const RANDOM_READS: usize = 4000;

const fn plain(name: &'static str, state: State, run: fn(&Job<'_>) -> Result<Done>) -> Workload {
    Workload { name, state, prepare: nothing, run }
}

const fn in_git(name: &'static str, state: State, run: fn(&Job<'_>) -> Result<Done>) -> Workload {
    Workload { name, state, prepare: git_repository, run }
}

/// What is measured on every system.
pub(crate) const WORKLOADS: &[Workload] = &[
    plain("find -ls", State::Warm, find),
    plain("ls -lR", State::Warm, ls),
    plain("grep -r", State::Warm, grep),
    plain("tar", State::Warm, tar),
    plain("du -s", State::Warm, du),
    plain("stat of each", State::Warm, stat),
    plain("open and read each", State::Warm, read),
    in_git("git status", State::Warm, git_status),
    in_git("git grep", State::Warm, git_grep),
    plain("find -ls", State::Cold, find),
    plain("ls -lR", State::Cold, ls),
    plain("grep -r", State::Cold, grep),
    plain("tar", State::Cold, tar),
    in_git("git status", State::Cold, git_status),
    in_git("git grep", State::Cold, git_grep),
    plain("find -ls", State::Second, find),
    plain("grep -r", State::Second, grep),
    plain("tar", State::Second, tar),
    plain("tar", State::Unmounted, tar),
    plain("big file in turn", State::Cold, big_in_turn),
    plain("big file in turn", State::Second, big_in_turn),
    plain("big file in turn", State::Warm, big_in_turn),
    plain("big file, 4 KiB here and there", State::Cold, big_at_random),
    plain("big file, 4 KiB here and there", State::Warm, big_at_random),
    plain("big file, mapped", State::Warm, big_mapped),
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

fn tree(job: &Job<'_>) -> PathBuf {
    job.system.root().join(TREE)
}

fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Runs a command that prints; counts the lines.
fn printing(command: Command, ok: &[i32]) -> Result<Done> {
    let (time, text) = output(command, ok)?;
    Ok(Done { time, check: text.split(|byte| *byte == b'\n').count() as u64 - 1 })
}

/// Runs a command that prints the same lines everywhere, in any order.
fn printing_the_same(command: Command) -> Result<Done> {
    let (time, text) = output(command, &[0])?;
    let lines = text.split(|byte| *byte == b'\n');
    let check = lines.fold(0u64, |sum, line| sum.wrapping_add(u64::from(crc32c::crc32c(line))));
    Ok(Done { time, check })
}

/// What a command prints. It goes to memory: grep stops early if it sees /dev/null.
fn output(mut command: Command, ok: &[i32]) -> Result<(Duration, Vec<u8>)> {
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
    Ok((time, text))
}

fn find(job: &Job<'_>) -> Result<Done> {
    let mut find = command("find", &tree(job));
    find.args([".", "-ls"]);
    printing(find, &[0])
}

fn ls(job: &Job<'_>) -> Result<Done> {
    let mut ls = command("ls", &tree(job));
    ls.arg("-lR");
    printing(ls, &[0])
}

fn grep(job: &Job<'_>) -> Result<Done> {
    let mut grep = command("grep", &tree(job));
    grep.args(["-r", NEEDLE, "."]);
    printing_the_same(grep)
}

fn du(job: &Job<'_>) -> Result<Done> {
    let mut du = command("du", &tree(job));
    du.args(["-s", "."]);
    printing(du, &[0])
}

fn tar(job: &Job<'_>) -> Result<Done> {
    // Through a pipe: tar reads nothing at all if it sees /dev/null.
    let started = Instant::now();
    let mut tar = command("tar", &tree(job)).args(["cf", "-", "."]).stdout(Stdio::piped()).spawn()?;
    let pipe = tar.stdout.take().ok_or("tar has no output")?;
    let wc = command("wc", &tree(job)).arg("-c").stdin(pipe).output()?;
    let status = tar.wait()?;
    let time = started.elapsed();
    if !(status.success() && wc.status.success()) {
        return Err(format!("tar: {status}").into());
    }
    Ok(Done { time, check: u64::from(crc32c::crc32c(&wc.stdout)) })
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
        for entry in std::fs::read_dir(tree(job).join(&folder))? {
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
    Ok(rustix::fs::open(tree(job), flags, Mode::empty())?)
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
    let mut git = command("git", &tree(job));
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
    printing_the_same(git(job, &["grep", NEEDLE]))
}

fn big_in_turn(job: &Job<'_>) -> Result<Done> {
    let file = File::open(job.system.root().join(BIG))?;
    let mut buffer = vec![0; 1 << 20];
    let started = Instant::now();
    let mut check = 0;
    loop {
        let read = rustix::io::read(&file, &mut *buffer)?;
        if read == 0 {
            return Ok(Done { time: started.elapsed(), check });
        }
        check = fold(check, &buffer[..read]);
    }
}

/// Something that depends on a few bytes of every page and takes no time.
fn fold(check: u64, bytes: &[u8]) -> u64 {
    bytes.iter().step_by(4096).fold(check, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

fn big_at_random(job: &Job<'_>) -> Result<Done> {
    let file = File::open(job.system.root().join(BIG))?;
    let pages = file.metadata()?.len() / 4096;
    let (mut random, mut buffer, mut check) = (Random::new(3), [0; 4096], 0);
    let started = Instant::now();
    for _ in 0..RANDOM_READS {
        file.read_exact_at(&mut buffer, random.next() % pages * 4096)?;
        check = fold(check, &buffer);
    }
    Ok(Done { time: started.elapsed(), check })
}

/// By a separate program, since mapping takes `unsafe` here.
fn big_mapped(job: &Job<'_>) -> Result<Done> {
    let script = "import mmap, sys\n\
        with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n  \
        print(sum(m[::4096]))";
    let mut python = command("python3", job.system.root());
    python.args(["-c", script, BIG]);
    printing_the_same(python)
}

/// The image's id in a path below `images/`.
fn id_of(path: &Path) -> &OsStr {
    path.iter().nth(1).unwrap_or_default()
}

/// Compares `diff -r` of two images, mounted again each time, with `find` over the two.
pub(crate) fn diff(bench: &Bench<'_>, image: &mut Pfimg, one: &Path, two: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for state in [State::Unmounted, State::Warm] {
        let names = ["find of both", "image", "pfimg diff", "pfimg diff -p", "pfimg --version"];
        let mut series = names.map(Series::new);
        let mut patience = bench.patience;
        for round in 1..=bench.runs {
            bench.say(format!("diff -r, {}: {round}/{}", state.label(), bench.runs));
            bench.wait_for_quiet(&mut patience)?;
            for series in &mut series {
                bench.scratch.go_on()?;
                image.reset(state)?;
                let run = |system: &Pfimg| {
                    if let Some(words) = series.system.strip_prefix("pfimg ") {
                        let mut words = words.split(' ');
                        let mut command = pfimg(words.next().unwrap_or_default());
                        command.env("PF_STORE", system.store()).args(words);
                        // What a process takes to start, which both comparisons contain.
                        if series.system != "pfimg --version" {
                            command.args([one, two].map(id_of));
                        }
                        return printing(command, &[0]);
                    }
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
        rows.push(Row {
            group: "diff",
            name: "diff -r".into(),
            state,
            series: series.into(),
            notes: Vec::new(),
        });
    }
    Ok(rows)
}
