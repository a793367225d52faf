//! No request waits for the disk on an event loop. A test holds the daemon where it reaches the disk, with as many requests as there
//! are event loops. The daemon must still answer other requests.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, mknodat, openat, statx};

use crate::common::cli::tool;
use crate::common::disk::SmallDisk;
use crate::common::fast::Spec;
use crate::common::forks::{fork, map_shared, small_store, tag, world};
use crate::common::mount::Mounting;
use crate::common::{Mount, errno, is_root, temp_dir, wait_at_most, wait_until};

/// A `stat` that takes longer waits for something.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A seal of a small fork takes less time if it does not wait.
const ENOUGH_TO_SEAL: Duration = Duration::from_millis(500);

/// The places at which a daemon is held; see `sync::wait::disk`.
struct Holds {
    folder: PathBuf,
    _dir: tempfile::TempDir,
}

impl Holds {
    fn new() -> Self {
        let (dir, folder) = temp_dir();
        Self { folder, _dir: dir }
    }

    fn mount(&self, store: &Path) -> Mounting {
        let folder = self.folder.to_str().unwrap();
        Mount::of(store).args(["--seal", "manual"]).env("PFIMG_TEST_HOLDS", folder)
    }

    /// Holds the daemon where it does this from now on.
    fn hold(&self, what: &str) {
        mknodat(CWD, self.folder.join(what), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }

    /// How often it was held there.
    fn held(&self, what: &str) -> usize {
        let prefix = format!("{what}-");
        let names = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(&prefix)).count()
    }

    /// Lets it continue.
    fn release(&self, what: &str) {
        let path = self.folder.join(what);
        let open = openat(CWD, &path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        fs::remove_file(&path).unwrap();
        drop(open);
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        // A test that fails leaves no daemon behind that cannot end.
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.rsplit_once('-').is_none_or(|(_, n)| n.parse::<u64>().is_err()) {
                self.release(&name);
            }
        }
    }
}

/// Files in the mount whose attributes are asked for while other requests wait.
struct Elsewhere(Vec<(String, OwnedFd)>);

impl Elsewhere {
    /// The mountpoint, and the files at these paths in it.
    fn of(mount: &Mount, paths: &[&str]) -> Self {
        let open = |path: &&str| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            ((*path).to_owned(), openat(CWD, mount.join(path), flags, Mode::empty()).unwrap())
        };
        Self([""].iter().chain(paths).map(open).collect())
    }

    /// Asks the daemon for all attributes, more often than there are event loops.
    #[track_caller]
    fn is_answered(&self, held: &str) {
        for (path, file) in self.0.iter().cycle().take(4 * self.0.len()) {
            let file = file.try_clone().unwrap();
            let (sender, answered) = mpsc::channel();
            std::thread::spawn(move || {
                let asked = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
                let _ = sender.send(statx(&file, "", asked, StatxFlags::BASIC_STATS).map(|_| ()));
            });
            let outcome = answered.recv_timeout(AT_ONCE);
            assert_eq!(outcome, Ok(Ok(())), "a stat of {path:?} waits while another request is held: {held}");
        }
    }
}

type Request = Box<dyn FnOnce() -> io::Result<()> + Send>;

fn request(call: impl FnOnce() -> io::Result<()> + Send + 'static) -> Request {
    Box::new(call)
}

/// Makes requests that are held at their places, asks elsewhere, and lets them continue.
#[track_caller]
fn while_held(holds: &Holds, elsewhere: &Elsewhere, requests: Vec<(&str, Request)>) {
    let mut places: Vec<&str> = requests.iter().map(|(place, _)| *place).collect();
    places.sort_unstable();
    let wanted = |place: &str| places.iter().filter(|other| **other == place).count();
    let before: Vec<usize> = places.iter().map(|place| holds.held(place)).collect();
    let mut all: Vec<&str> = places.clone();
    all.dedup();
    for place in &all {
        holds.hold(place);
    }
    let running: Vec<(&str, JoinHandle<io::Result<()>>)> =
        requests.into_iter().map(|(place, request)| (place, std::thread::spawn(request))).collect();
    for (place, before) in places.iter().zip(before) {
        wait_until(&format!("{place} is reached"), || holds.held(place) >= before + wanted(place));
    }
    elsewhere.is_answered(&all.join(" and "));
    for place in &all {
        holds.release(place);
    }
    for (place, running) in running {
        running.join().unwrap().unwrap_or_else(|error| panic!("held at {place}: {error}"));
    }
}

fn looks_up(path: PathBuf) -> Request {
    request(move || fs::symlink_metadata(path).map(|_| ()))
}

fn lists(path: PathBuf) -> Request {
    request(move || fs::read_dir(path)?.try_for_each(|entry| entry.map(|_| ())))
}

fn reads(path: PathBuf) -> Request {
    request(move || fs::read(path).map(|_| ()))
}

fn asks_for_space(path: PathBuf) -> Request {
    request(move || Ok(rustix::fs::statvfs(&path).map(|_| ())?))
}

#[test]
fn a_stat_is_answered_while_forks_are_read_back() {
    let (store, id) = small_store();
    let holds = Holds::new();
    let mount = holds.mount(store.root()).start();
    for name in ["a", "b", "other"] {
        fs::write(fork(&mount, name, &id).join("file"), name).unwrap();
    }
    mount.unmount();
    let mount = holds.mount(store.root()).start();
    let elsewhere = Elsewhere::of(&mount, &["forks/other/world/fs/file"]);
    let forks = ["a", "b"].map(|name| ("load", looks_up(mount.join("forks").join(name))));
    while_held(&holds, &elsewhere, forks.into());
    drop(elsewhere);
    assert_eq!(fs::read(world(&mount, "a").join("file")).unwrap(), b"a");
    mount.unmount();
}

#[test]
fn a_stat_is_answered_while_manifests_tags_and_prefixes_are_read() {
    let (mut store, id) = small_store();
    let other = store.image(&Spec { fingerprint: "other".into(), ..Spec::default() });
    tag(&store, "one", &id);
    tag(&store, "two", &other);
    // A mount reads each manifest once to know the newest image and the agents.
    let first: [fn(&Mount) -> Request; 2] =
        [|mount| lists(mount.join("agents")), |mount| looks_up(mount.join("agents/test"))];
    for first in first {
        let holds = Holds::new();
        let mount = holds.mount(store.root()).start();
        let elsewhere = Elsewhere::of(&mount, &[&format!("images/{id}/world/fs/README")]);
        let image = looks_up(mount.join(format!("images/{other}")));
        while_held(&holds, &elsewhere, vec![("manifest", first(&mount)), ("manifest", image)]);
        drop(elsewhere);
        mount.unmount();
    }
    let holds = Holds::new();
    let mount = holds.mount(store.root()).start();
    let elsewhere = Elsewhere::of(&mount, &[&format!("images/{id}/world/fs/README")]);
    let latest = mount.join("latest");
    let reads_latest = request(move || fs::read_link(latest).map(|_| ()));
    let pairs = [
        [("manifest", reads_latest), ("manifest", looks_up(mount.join(format!("images/{other}"))))],
        [("tag", looks_up(mount.join("tags/one"))), ("tag", looks_up(mount.join("tags/two")))],
        [
            ("markers", looks_up(mount.join("images").join(&id[..12]))),
            ("markers", looks_up(mount.join("images").join(&other[..12]))),
        ],
        [("tags", lists(mount.join("tags"))), ("markers", looks_up(mount.join("images").join(&id[..10])))],
    ];
    for pair in pairs {
        while_held(&holds, &elsewhere, pair.into());
    }
    drop(elsewhere);
    mount.unmount();
}

#[test]
fn a_stat_is_answered_while_forks_and_tags_come_and_go() {
    let (mut store, id) = small_store();
    let other = store.image(&Spec { fingerprint: "other".into(), ..Spec::default() });
    for name in ["one", "two", "three", "four", "five", "six", "seven"] {
        tag(&store, name, &id);
    }
    let holds = Holds::new();
    let mount = holds.mount(store.root()).start();
    for name in ["full", "named", "other"] {
        fs::write(fork(&mount, name, &id).join("file"), name).unwrap();
    }
    let at = |path: &str| mount.join(path);
    fs::create_dir(at("forks/empty")).unwrap();
    let elsewhere = Elsewhere::of(&mount, &["forks/other/world/fs/file"]);
    let (empty, tagged) = (at("forks/empty"), at("tags/five"));
    let written = File::open(at("forks/other/world/fs/file")).unwrap();
    let moves = |from: &str, to: &str| {
        let (from, to) = (at(from), at(to));
        request(move || fs::rename(from, to))
    };
    let made = at(&format!("forks/made@{other}"));
    // A folder takes one change at a time: what holds the second event loop is elsewhere.
    let pairs = [
        [("sync-dir", request(move || fs::remove_dir(empty))), ("tag", looks_up(at("tags/one")))],
        [("sync-dir", moves("forks/full", ".pfimg/discarded-0")), ("tag", looks_up(at("tags/two")))],
        [("rename", moves("forks/named", "forks/renamed")), ("tag", looks_up(at("tags/three")))],
        [("manifest", request(move || fs::create_dir(made))), ("tag", looks_up(at("tags/four")))],
        [
            ("tag", request(move || fs::remove_file(tagged))),
            ("markers", looks_up(at("images").join(&id[..12]))),
        ],
        [("sync-data", request(move || written.sync_all())), ("tag", looks_up(at("tags/six")))],
        [("tags", lists(at("forks/other/.snap"))), ("tag", looks_up(at("tags/seven")))],
    ];
    for pair in pairs {
        while_held(&holds, &elsewhere, pair.into());
    }
    drop(elsewhere);
    assert_eq!(crate::common::names(&at("forks")).unwrap(), ["made", "other", "renamed"]);
    mount.unmount();
}

#[test]
fn a_stat_is_answered_while_blobs_are_read_and_the_log_is_written() {
    let (store, id) = small_store();
    let holds = Holds::new();
    let mount = holds.mount(store.root()).start();
    let files = fork(&mount, "f", &id);
    let image = mount.image(&id).join("world/fs");
    let elsewhere = Elsewhere::of(&mount, &["forks/f/world/fs/src", &format!("images/{id}/world/fs/link")]);
    let pairs = [
        [("blob", reads(image.join("README"))), ("blob", reads(files.join("src/lib.rs")))],
        [
            ("blob", reads(mount.image(&id).join("model/diff.json"))),
            ("blob", reads(files.join("../../trace/messages.jsonl"))),
        ],
        [
            ("audit", reads(mount.join(".pfimg/audit.json"))),
            ("audit", reads(mount.join(".pfimg/events.jsonl"))),
        ],
        [("statfs", asks_for_space(mount.path().to_owned())), ("blob", reads(image.join("big")))],
    ];
    for pair in pairs {
        while_held(&holds, &elsewhere, pair.into());
    }
    drop(elsewhere);
    mount.unmount();
}

#[test]
fn a_stat_is_answered_while_a_write_makes_room_on_a_full_disk() {
    if !is_root() {
        eprintln!("mounting a small filesystem takes root");
        return;
    }
    const SIZE: usize = 4 << 20;
    let (seedling, id) = small_store();
    tag(&seedling, "one", &id);
    let small = SmallDisk::of_mebibytes(32);
    let store = small.path().join("store");
    tool("cp", ["-r".as_ref(), seedling.root().as_os_str(), store.as_os_str()]).exits(0);
    let holds = Holds::new();
    let mount = holds.mount(&store).start();
    let files = fork(&mount, "f", &id);
    fs::write(files.join("gone"), vec![7; SIZE]).unwrap();
    let grown = File::create(files.join("grown")).unwrap();
    let elsewhere = Elsewhere::of(&mount, &["forks/f/world/fs/README"]);
    let ballast = fs::write(small.path().join("ballast"), vec![1; 32 << 20]);
    assert_eq!(errno(ballast), libc::ENOSPC);
    fs::remove_file(files.join("gone")).unwrap();
    // The daemon may learn a moment later that no program uses the removed file.
    let write = request(move || {
        loop {
            match grown.write_all_at(&vec![1; SIZE / 2], 0) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
                written => return written,
            }
        }
    });
    let pair = [("sync-data", write), ("tag", looks_up(mount.join("tags/one")))];
    while_held(&holds, &elsewhere, pair.into());
    drop(elsewhere);
    assert_eq!(fs::metadata(files.join("grown")).unwrap().len(), SIZE as u64 / 2);
    mount.unmount();
}

#[test]
fn a_fork_is_read_during_a_restore_and_takes_no_write() {
    let (store, id) = small_store();
    let holds = Holds::new();
    let mount = holds.mount(store.root()).start();
    let file = fork(&mount, "f", &id).join("file");
    for text in ["one", "two"] {
        fs::write(&file, text).unwrap();
        fs::create_dir(mount.join("forks/f/.snap").join(text)).unwrap();
    }
    let elsewhere = Elsewhere::of(&mount, &["forks/f/world/fs/file"]);
    let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    let restore = mount.join(format!("forks/f/.snap/.restore-{:032x}=one", 1));
    holds.hold("switch-head");
    let restored = std::thread::spawn(move || fs::create_dir(restore));
    wait_until("the head is switched", || holds.held("switch-head") > 0);
    elsewhere.is_answered("a restore");
    // The restore would lose the write.
    assert_eq!(errno(open.write_all_at(b"new", 0)), libc::ESTALE);
    holds.release("switch-head");
    restored.join().unwrap().unwrap();
    drop((open, elsewhere));
    assert_eq!(fs::read(&file).unwrap(), b"one");
    fs::write(&file, "three").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"three");
    mount.unmount();
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds leave writes on request")]
fn a_seal_holds_a_cached_write_that_a_worker_still_has_to_do() {
    // With `back` the kernel never waits in syncfs(2) until a write is answered.
    for writes in ["through", "back"] {
        let (store, id) = small_store();
        let holds = Holds::new();
        let mounting = holds.mount(store.root()).args(["--writes", writes]);
        let mount = mounting.env("PFIMG_TEST_WRITES", "leave").start();
        let path = fork(&mount, "f", &id).join("file");
        fs::write(&path, "....").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        let mut map = map_shared(&file).unwrap();
        holds.hold("write");
        map.copy_from_slice(b"left");
        let snap = mount.join("forks/f/.snap/one");
        let seal = std::thread::spawn(move || fs::create_dir(snap));
        wait_until("a worker has the write", || holds.held("write") > 0);
        let ended = wait_at_most(ENOUGH_TO_SEAL, || seal.is_finished());
        holds.release("write");
        seal.join().unwrap().unwrap();
        assert_eq!(ended, None, "{writes}: the seal was taken without the write");
        assert_eq!(fs::read(mount.join("tags/one/world/fs/file")).unwrap(), b"left", "{writes}");
        drop((map, file));
        mount.unmount();
    }
}

/// Counts the lookups that the kernel makes during `calls` calls of `call`.
fn lookups(mount: &Mount, calls: usize, call: impl Fn()) -> f64 {
    call();
    // Reading the counters looks their document up: once the first time, and twice from then on.
    let [_, before, again] = [(); 3].map(|()| mount.requests("lookup"));
    (0..calls).for_each(|_| call());
    mount.requests("lookup") - again - (again - before)
}

#[test]
fn links_to_images_and_forks_are_looked_up_once_for_as_long_as_they_are_believed() {
    const CALLS: usize = 1000;
    const ROUNDS: usize = 10;
    let (store, id) = small_store();
    tag(&store, "t", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let prefix = format!("images/{}/world/fs/README", &id[..12]);
    for (path, lifetime) in [
        ("latest/world/fs/README", 500),
        ("tags/t/world/fs/README", 500),
        (prefix.as_str(), 500),
        ("work/f/README", 1000),
    ] {
        let path = mount.join(path);
        let mut rounds = (0..ROUNDS).map(|_| {
            let start = Instant::now();
            let made = lookups(&mount, CALLS, || assert!(fs::metadata(&path).is_ok()));
            // A link and the image's folder behind it, again after that time: on a slow machine the calls take longer.
            let times = start.elapsed().as_millis() / lifetime;
            (made, 2.0 * times as f64)
        });
        // The time may end during a round, but not during each.
        let mut last = (0.0, 0.0);
        let kept = rounds.any(|round @ (made, expired)| {
            last = round;
            made <= expired
        });
        assert!(kept, "{}: {} lookups in the last of {ROUNDS} rounds", path.display(), last.0);
    }
    mount.unmount();
}

#[test]
fn a_name_that_never_can_be_there_is_looked_up_once() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    for path in [
        ".git",
        "Cargo.toml",
        "node_modules",
        "forks/.git",
        "work/.ignore",
        "tags/.git",
        "images/.git",
        "agents/.git",
        "forks/f/.git",
        "forks/f/Cargo.toml",
        "forks/f/world/.gitignore",
        "forks/f/world/package.json",
    ] {
        let at = mount.join(path);
        let made = lookups(&mount, 100, || {
            assert_eq!(errno(fs::symlink_metadata(&at)), libc::ENOENT, "{path}");
        });
        // The daemon itself looks up what it announces.
        assert!(made < 10.0, "{path}: {made} lookups");
    }
    // What can be there is asked for.
    fs::create_dir(mount.join("forks/f/parents")).unwrap();
    fs::create_dir(mount.join("forks/Cargo.toml")).unwrap();
    assert!(mount.join("work/Cargo.toml").is_symlink());
    mount.unmount();
}
