//! Forks after the daemon was killed at any moment, and on a full disk.
//!
//! `PFIMG_ROUNDS` sets how often the daemon is killed, `PFIMG_SEED` with which seed the writers start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::cli::tool;
use crate::common::failing::Program;
use crate::common::forks::{close, fork, map_shared, open_rw, small_store, world};
use crate::common::{Mount, Rng, is_root, system, temp_dir, wait_at_most, wait_until};

/// Threads that write at once, each in a separate fork.
const WRITERS: usize = 4;
/// The longest duration of a round.
const LONGEST_ROUND: Duration = Duration::from_secs(20);
/// Branches that each of them keeps.
const BRANCHES: usize = 3;

/// The expected content of a fork's files: all acknowledged writes.
type Files = BTreeMap<String, Vec<u8>>;

/// An operation: applied to the disk and, once acknowledged, to the model.
#[derive(Clone, Debug)]
enum Step {
    Create(String),
    Write(String, u64, Vec<u8>),
    Append(String, Vec<u8>),
    Cut(String, u64),
    Rename(String, String),
    Unlink(String),
}

impl Step {
    fn random(rng: &mut Rng, files: &Files) -> Self {
        let names: Vec<_> = files.keys().collect();
        if names.len() < 5 || (names.len() < 60 && rng.chance(15)) {
            return Self::Create(format!("own-{}", rng.next()));
        }
        let name = (*rng.pick(&names)).clone();
        let len = files[&name].len() as u64;
        let bound = if rng.chance(15) { 90_000 } else { 400 };
        let count = 1 + rng.below(bound) as usize;
        match rng.below(100) {
            0..45 => Self::Write(name, rng.below(len + 2000), rng.bytes(count)),
            45..70 if len < 1 << 20 => Self::Append(name, rng.bytes(count)),
            70..80 => Self::Cut(name, rng.below(len + 1000)),
            80..92 => Self::Rename(name, format!("own-{}", rng.below(30))),
            _ => Self::Unlink(name),
        }
    }

    /// What it does, without the bytes.
    fn brief(&self) -> String {
        match self {
            Self::Write(name, at, bytes) => format!("write {name} at {at} + {}", bytes.len()),
            Self::Append(name, bytes) => format!("append {name} + {}", bytes.len()),
            other => format!("{other:?}"),
        }
    }

    fn on_disk(&self, root: &Path) -> io::Result<()> {
        match self {
            Self::Create(name) => File::create_new(root.join(name)).map(drop),
            Self::Write(name, at, bytes) => {
                let file = open_rw(&root.join(name))?;
                file.write_all_at(bytes, *at)?;
                close(file)
            }
            Self::Append(name, bytes) => {
                let mut file = OpenOptions::new().append(true).open(root.join(name))?;
                file.write_all(bytes)?;
                close(file)
            }
            Self::Cut(name, len) => open_rw(&root.join(name))?.set_len(*len),
            Self::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
            Self::Unlink(name) => fs::remove_file(root.join(name)),
        }
    }

    fn in_model(&self, files: &mut Files) {
        match self {
            Self::Create(name) => drop(files.insert(name.clone(), Vec::new())),
            Self::Write(name, at, bytes) => {
                let file = files.get_mut(name).unwrap();
                let (at, end) = (*at as usize, *at as usize + bytes.len());
                file.resize(file.len().max(end), 0);
                file[at..end].copy_from_slice(bytes);
            }
            Self::Append(name, bytes) => files.get_mut(name).unwrap().extend_from_slice(bytes),
            Self::Cut(name, len) => files.get_mut(name).unwrap().resize(*len as usize, 0),
            Self::Rename(from, to) => {
                let file = files.remove(from).unwrap();
                files.insert(to.clone(), file);
            }
            Self::Unlink(name) => drop(files.remove(name)),
        }
    }
}

/// One writer: its fork, the branches it took, and what was under way when the daemon died.
#[derive(Default)]
struct Writer {
    files: Files,
    branches: BTreeMap<String, Files>,
    taken: u64,
    pending: Option<Step>,
    pending_branch: Option<String>,
    /// What it did, in short, since the daemon was started.
    log: Vec<String>,
}

fn base_files() -> Files {
    [("README", b"read me\n".to_vec()), ("big", crate::common::forks::big())]
        .map(|(n, b)| (n.to_owned(), b))
        .into()
}

/// The plain files at the top of a fork.
fn files_of(root: &Path) -> Files {
    let entries = fs::read_dir(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let entries = entries.map(Result::unwrap).filter(|entry| entry.file_type().unwrap().is_file());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// Says where two states differ, in short.
fn difference(is: &Files, should: &Files) -> Option<String> {
    let names: BTreeSet<_> = is.keys().chain(should.keys()).collect();
    names.into_iter().find(|name| is.get(*name) != should.get(*name)).map(|name| {
        let (is, should) = (is.get(name), should.get(name));
        let at = is.zip(should).and_then(|(a, b)| a.iter().zip(b).position(|(a, b)| a != b));
        let wrong = is.zip(should).map_or(0, |(a, b)| a.iter().zip(b).filter(|(a, b)| a != b).count());
        format!(
            "{name}: {:?} bytes, should be {:?}; first at {at:?}, {wrong} bytes",
            is.map(Vec::len),
            should.map(Vec::len)
        )
    })
}

/// Writes until the daemon is gone.
fn write_until_the_end(mount: &Path, n: usize, seed: u64, writer: &mut Writer, acknowledged: &AtomicU64) {
    let mut rng = Rng::new(seed);
    let root = mount.join(format!("forks/w{n}/world/fs"));
    loop {
        if rng.chance(1) && writer.branches.len() < BRANCHES {
            let name = format!("w{n}-{}", writer.taken);
            writer.taken += 1;
            if fs::create_dir(mount.join(format!("forks/{name}@w{n}"))).is_err() {
                writer.pending_branch = Some(name);
                return;
            }
            writer.branches.insert(name, writer.files.clone());
        } else if rng.below(300) == 0 && !writer.branches.is_empty() {
            let name = writer.branches.keys().next().unwrap().clone();
            writer.branches.remove(&name);
            if tool("rm", ["-rf".as_ref(), mount.join("forks").join(&name).as_os_str()]).code != 0 {
                writer.pending_branch = Some(name);
                return;
            }
        } else {
            let step = Step::random(&mut rng, &writer.files);
            writer.log.push(step.brief());
            if let Err(error) = step.on_disk(&root) {
                let gone = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO];
                assert!(error.raw_os_error().is_some_and(|e| gone.contains(&e)), "{step:?}: {error}");
                writer.pending = Some(step);
                return;
            }
            step.in_model(&mut writer.files);
        }
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

/// Accepts the result of a write that was not acknowledged: each byte of its range is the old one or the new
/// one, and all others are unchanged.
fn torn(files: &mut Files, is: &Files, step: &Step, name: &str, at: u64, len: usize) {
    let mut done = files.clone();
    step.in_model(&mut done);
    let (Some(is), old, new) = (is.get(name), &files[name], &done[name]) else { return };
    let range = at as usize..at as usize + len;
    let fits = |(i, byte): (usize, &u8)| {
        let before = old.get(i).copied().unwrap_or(0);
        *byte == before || (range.contains(&i) && *byte == new[i])
    };
    if (old.len()..=new.len()).contains(&is.len()) && is.iter().enumerate().all(fits) {
        files.insert(name.to_owned(), is.clone());
    }
}

/// Compares the files with the acknowledged writes. An operation that was under way may have happened or not.
fn check(mount: &Mount, n: usize, writer: &mut Writer, late: bool, context: &str) {
    let is = files_of(&world(mount, &format!("w{n}")));
    if let Some(step) = writer.pending.take() {
        match &step {
            // The kernel had cached the write, and sends it page by page.
            Step::Write(name, ..) | Step::Append(name, _) if late => {
                writer.files.insert(name.clone(), is[name].clone());
            }
            Step::Write(name, at, bytes) => torn(&mut writer.files, &is, &step, name, *at, bytes.len()),
            Step::Append(name, bytes) => {
                let end = writer.files[name].len() as u64;
                torn(&mut writer.files, &is, &step, name, end, bytes.len());
            }
            _ => {
                let mut done = writer.files.clone();
                step.in_model(&mut done);
                if difference(&is, &done).is_none() {
                    writer.files = done;
                }
            }
        }
    }
    if let Some(difference) = difference(&is, &writer.files) {
        let name = difference.split(':').next().unwrap_or_default();
        let steps: Vec<_> = writer.log.iter().filter(|step| step.contains(name)).collect();
        panic!(
            "{context}, fork w{n}: {difference}\nits steps, the last one {:?}: {steps:#?}",
            writer.log.last()
        );
    }
    writer.log.clear();
    for (name, files) in &writer.branches {
        if let Some(difference) = difference(&files_of(&world(mount, name)), files) {
            panic!("{context}, fork {name}: {difference}");
        }
    }
    if let Some(name) = writer.pending_branch.take()
        && mount.join("forks").join(&name).exists()
    {
        tool("rm", ["-rf".as_ref(), mount.join("forks").join(&name).as_os_str()]).exits(0);
    }
}

fn kill_under_load(writes: &str, rounds: u64, seed: u64) {
    let (store, id) = small_store();
    let mut mount = Mount::of(store.root()).args(["--writes", writes]).start();
    let mut writers: Vec<Writer> = Vec::new();
    for n in 0..WRITERS {
        fork(&mount, &format!("w{n}"), &id);
        writers.push(Writer { files: base_files(), ..Writer::default() });
    }
    let mut total = 0;
    for round in 0..rounds {
        let seed = seed + round * 100;
        let context = format!("--writes {writes}, round {round}, PFIMG_SEED={seed}");
        let again = format!("PFIMG_SEED={seed} PFIMG_ROUNDS=1 cargo test --test long fork_crash::");
        let _program = Program { what: "a daemon killed under load", seed, again };
        let acknowledged = AtomicU64::new(0);
        let killing_at = Rng::new(seed).below(1200);
        let point = mount.path().to_owned();
        std::thread::scope(|scope| {
            for (n, writer) in writers.iter_mut().enumerate() {
                let (point, acknowledged) = (&point, &acknowledged);
                scope.spawn(move || write_until_the_end(point, n, seed + n as u64 + 1, writer, acknowledged));
            }
            // A slow machine is killed earlier.
            wait_at_most(LONGEST_ROUND, || acknowledged.load(Ordering::Relaxed) >= killing_at);
            mount.kill();
        });
        let acknowledged = acknowledged.load(Ordering::Relaxed);
        println!("{context}: killed after {acknowledged} operations");
        total += acknowledged;
        drop(mount);
        mount = Mount::of(store.root()).args(["--writes", writes]).start();
        for (n, writer) in writers.iter_mut().enumerate() {
            check(&mount, n, writer, writes == "back", &context);
        }
        let mut should: Vec<_> = (0..WRITERS).map(|n| format!("w{n}")).collect();
        should.extend(writers.iter().flat_map(|w| w.branches.keys().cloned()));
        should.sort();
        assert_eq!(crate::common::names(&mount.join("forks")).unwrap(), should, "{context}");
    }
    assert!(total > rounds, "nothing was written");
    mount.unmount();
}

fn rounds_and_seed() -> (u64, u64) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    (number("PFIMG_ROUNDS", 10), number("PFIMG_SEED", number("PFIMG_SEED_RANDOM", 1)))
}

#[test]
fn acknowledged_writes_survive_the_death_of_the_daemon() {
    let (rounds, seed) = rounds_and_seed();
    kill_under_load("through", rounds, seed);
}

#[test]
fn closed_files_survive_the_death_of_the_daemon_with_late_writes() {
    let (rounds, seed) = rounds_and_seed();
    kill_under_load("back", rounds, seed);
}

/// Bytes of all journals of a store's forks.
fn journals(store: &Path) -> u64 {
    let generations = fs::read_dir(store.join("forks/gen")).unwrap();
    // A generation that is removed in between has no journal.
    generations.map(|g| fs::metadata(g.unwrap().path().join("journal")).map_or(0, |meta| meta.len())).sum()
}

#[test]
fn a_journal_with_mostly_outdated_records_is_rewritten_to_keep_recovery_short() {
    let (store, id) = small_store();
    let mut mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let root = fork(&mount, "try", &id);
    let mut files = base_files();
    let mut rng = Rng::new(5);
    for n in 0..800 {
        let (name, bytes) = (format!("own-{}", n % 20), rng.bytes(50_000));
        let _ = fs::remove_file(root.join(&name));
        fs::write(root.join(&name), &bytes).unwrap();
        files.insert(name, bytes);
    }
    wait_until("the journal is rewritten", || journals(store.root()) < 4 << 20);
    fs::write(root.join("own-0"), b"since").unwrap();
    files.insert("own-0".to_owned(), b"since".to_vec());
    assert_eq!(difference(&files_of(&root), &files), None);
    mount.kill();
    drop(mount);
    mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    assert_eq!(difference(&files_of(&world(&mount, "try")), &files), None);
    assert!(journals(store.root()) < 4 << 20);
    mount.unmount();
}

#[test]
fn writes_through_a_mapping_survive_the_daemon_after_their_file_is_closed() {
    let (store, id) = small_store();
    for writes in ["through", "back"] {
        let mut mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let root = fork(&mount, writes, &id);
        // The kernel keeps different flags for an existing file and for one that it created.
        let maps = [("big", crate::common::forks::BIG), ("new", 10_000)].map(|(name, len)| {
            let path = root.join(name);
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
            file.set_len(len as u64).unwrap();
            let mut map = map_shared(&file).unwrap();
            map[5000..5025].copy_from_slice(b"written through a mapping");
            close(file).unwrap();
            map
        });
        mount.kill();
        // The files were mapped until now, so only the close can have sent the bytes.
        drop(maps);
        drop(mount);
        let mount = Mount::of(store.root()).start();
        for name in ["big", "new"] {
            let bytes = fs::read(world(&mount, writes).join(name)).unwrap();
            assert_eq!(&bytes[5000..5025], b"written through a mapping", "--writes {writes}: {name}");
        }
        mount.unmount();
    }
}

#[test]
fn closing_a_file_after_the_daemons_death_reports_an_error() {
    let (store, id) = small_store();
    let mut mount = Mount::of(store.root()).args(["--writes", "back"]).start();
    let root = fork(&mount, "try", &id);
    // Opens an existing file and creates a new one: the kernel keeps different flags for them.
    let name = |kind: &str| root.join(kind);
    let mut files = [open_rw(&name("README")).unwrap(), File::create_new(name("new")).unwrap()];
    for file in &mut files {
        file.write_all(b"held by the kernel").unwrap();
    }
    mount.kill();
    wait_until("the connection breaks", || {
        // A name that no program asked for: for any other name the kernel may know enough not to ask.
        let never = mount.path().join("forks/never-asked-for");
        fs::symlink_metadata(never).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    for file in files {
        assert!(close(file).is_err(), "close(2) says that all is well, and what was written is lost");
    }
}

/// A separate small filesystem, unmounted when dropped.
struct Small(PathBuf, #[allow(dead_code)] tempfile::TempDir);

impl Small {
    fn of_mebibytes(size: u64) -> Self {
        let (dir, home) = temp_dir();
        let at = home.join("small");
        fs::create_dir(&at).unwrap();
        let options = format!("size={size}m");
        tool(
            "mount",
            [
                "-t".as_ref(),
                "tmpfs".as_ref(),
                "-o".as_ref(),
                options.as_ref(),
                "tmpfs".as_ref(),
                at.as_os_str(),
            ],
        )
        .exits(0);
        Self(at, dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        system::detach_all(&self.0);
    }
}

#[test]
fn a_full_disk_is_an_error_to_the_writer_and_loses_no_acknowledged_write() {
    if !is_root() {
        eprintln!("mounting a small filesystem takes root");
        return;
    }
    let (seedling, id) = small_store();
    for writes in ["through", "back"] {
        let small = Small::of_mebibytes(24);
        let store = small.0.join("store");
        tool("cp", ["-r".as_ref(), seedling.root().as_os_str(), store.as_os_str()]).exits(0);
        // No automatic seals: their writes do not belong to the writer.
        let args = ["--writes", writes, "--seal", "manual"];
        let mut mount = Mount::of(&store).args(args).start();
        fork(&mount, "try", &id);
        let mut files = base_files();
        // Files that a refused late write left in a state without a promise.
        let mut uncertain = BTreeSet::new();
        for left in 0..6u64 {
            // A ballast leaves `left` MiB, and a little more each time.
            let free = rustix::fs::statvfs(&small.0).unwrap();
            let free = free.f_bavail * free.f_frsize;
            let room = left * crate::common::MIB + left * 777;
            let ballast = small.0.join("ballast");
            // Another program may have taken some of it in between: then it fills the rest.
            if let Err(error) = fs::write(&ballast, vec![1; free.saturating_sub(room) as usize]) {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
            }
            let root = world(&mount, "try");
            let mut rng = Rng::new(left);
            let mut refused = 0;
            let mut acknowledged = 0;
            while refused < 20 {
                let step = Step::random(&mut rng, &files);
                match one_step(&step, &root, writes) {
                    Ok(()) => {
                        step.in_model(&mut files);
                        uncertain.retain(|name| !files.contains_key(name));
                        acknowledged += 1;
                    }
                    Err(error) => {
                        let full = [libc::ENOSPC, libc::EIO];
                        assert!(error.raw_os_error().is_some_and(|e| full.contains(&e)), "{step:?}: {error}");
                        if writes == "through" {
                            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{step:?}");
                        }
                        refused += 1;
                        if let Step::Write(name, ..) | Step::Append(name, _) = &step {
                            if writes == "back" {
                                files.remove(name);
                                uncertain.insert(name.clone());
                                // The kernel reports the error once more to the next caller of fsync, which is this one.
                                let _ = open_rw(&root.join(name)).and_then(|file| file.sync_all());
                            } else {
                                // The write may have happened in part, so its result is read.
                                files.insert(name.clone(), fs::read(root.join(name)).unwrap());
                            }
                        }
                    }
                }
                assert!(acknowledged < 100_000, "the disk never fills");
            }
            println!("--writes {writes}, {left} MiB left: {acknowledged} steps acknowledged, then refused");
            let certain = |root: &Path| {
                let mut is = files_of(root);
                is.retain(|name, _| !uncertain.contains(name));
                is
            };
            assert_eq!(
                difference(&certain(&root), &files),
                None,
                "--writes {writes}, {left} MiB left, while full"
            );
            if left % 2 == 0 {
                mount.kill();
                drop(mount);
                mount = Mount::of(&store).args(args).start();
                let is = certain(&world(&mount, "try"));
                assert_eq!(
                    difference(&is, &files),
                    None,
                    "--writes {writes}, {left} MiB left, remounted full"
                );
            }
            fs::remove_file(&ballast).unwrap();
            let root = world(&mount, "try");
            for name in std::mem::take(&mut uncertain) {
                fs::remove_file(root.join(&name)).unwrap();
            }
            if writes == "back" {
                // The kernel writes the time of a rename later; if there was no room for it, the next fsync
                // reports that.
                for name in files.keys() {
                    let _ = open_rw(&root.join(name)).and_then(|file| file.sync_all());
                }
            }
            for _ in 0..20 {
                let step = Step::random(&mut rng, &files);
                one_step(&step, &root, writes).unwrap_or_else(|e| panic!("space is back: {step:?}: {e}"));
                step.in_model(&mut files);
            }
            assert_eq!(difference(&files_of(&root), &files), None, "space is back");
            for name in files.keys().skip(5).cloned().collect::<Vec<_>>() {
                fs::remove_file(root.join(&name)).unwrap();
                files.remove(&name);
            }
            for file in &mut files {
                open_rw(&root.join(file.0)).unwrap().set_len(10).unwrap();
                file.1.resize(10, 0);
            }
        }
        mount.unmount();
    }
}

/// A step that is known to be done when it returns.
fn one_step(step: &Step, root: &Path, writes: &str) -> io::Result<()> {
    step.on_disk(root)?;
    if let (Step::Write(name, ..) | Step::Append(name, _), "back") = (step, writes) {
        // This reports data that the kernel could not write.
        open_rw(&root.join(name))?.sync_all()?;
    }
    Ok(())
}

#[test]
fn the_remains_of_a_refused_late_write_are_shown_after_the_file_is_closed() {
    if !is_root() {
        eprintln!("mounting a small filesystem takes root");
        return;
    }
    let (seedling, id) = small_store();
    let small = Small::of_mebibytes(24);
    let store = small.0.join("store");
    tool("cp", ["-r".as_ref(), seedling.root().as_os_str(), store.as_os_str()]).exits(0);
    let args = ["--writes", "back", "--seal", "manual"];
    let mount = Mount::of(&store).args(args).start();
    let files = fork(&mount, "try", &id);
    let path = files.join("large");
    let free = rustix::fs::statvfs(&small.0).map(|free| free.f_bavail * free.f_frsize).unwrap();
    fs::write(small.0.join("ballast"), vec![1; (free - 3 * crate::common::MIB) as usize]).unwrap();
    let refused = fs::File::create(&path).and_then(|mut file| {
        file.write_all(&vec![7; 8 << 20])?;
        file.sync_all()
    });
    assert!(refused.is_err(), "it cannot have had room");
    let shown = || fs::metadata(&path).map(|meta| meta.len()).unwrap();
    // Before memory gets short, when the kernel drops unused pages and asks again.
    let looks = (0..100).take_while(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        shown() == 8 << 20
    });
    assert!(looks.count() < 100, "the kernel does not take the length over");
    let (len, content) = (shown(), fs::read(&path).unwrap());
    assert_eq!(len, content.len() as u64);
    mount.unmount();
    let mount = Mount::of(&store).args(args).start();
    assert!(fs::read(world(&mount, "try").join("large")).unwrap() == content, "it differs after a remount");
    mount.unmount();
}
