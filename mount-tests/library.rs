//! The library: mounts in this process, forks without a mount, and the examples.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pfimg::{Builder, ErrorKind, Forks, How, MountedStore, SealPolicy, Store};

use super::common::{PATIENCE, in_time, system, temp_dir, wait_until};

#[path = "../docs/examples/fork.rs"]
mod fork;
#[path = "../docs/examples/mount.rs"]
mod mount;
#[path = "../docs/examples/read.rs"]
mod read;

/// A store with one image, `first`, and a place to mount it.
struct Given {
    _dir: tempfile::TempDir,
    store: PathBuf,
    cache: PathBuf,
    point: PathBuf,
}

impl Given {
    fn new() -> Self {
        let (dir, top) = temp_dir();
        let (store, cache, point) = (top.join("store"), top.join("cache"), top.join("mnt"));
        fs::create_dir(&point).unwrap();
        let forks = Forks::open(Store::create(&store).unwrap(), &cache).unwrap();
        let fork = forks.create("made").unwrap();
        fork.write_file("world/fs/src/main.rs", b"fn main() {}\n").unwrap();
        fork.write_file("world/fs/README", b"read me\n").unwrap();
        let sealed = forks.seal("made", Some("first")).unwrap();
        assert!(sealed.new, "{sealed:?}");
        forks.discard("made").unwrap();
        Self { _dir: dir, store, cache, point }
    }

    fn store(&self) -> Store {
        Store::open(&self.store).unwrap()
    }

    fn builder(&self) -> Builder {
        system::require_fuse();
        MountedStore::builder(self.store(), &self.point).cache_dir(&self.cache).seal(SealPolicy::Manual)
    }

    /// The forks on disk; fails while a mount writes them.
    fn forks(&self) -> pfimg::Result<Forks> {
        Forks::open(self.store(), &self.cache)
    }

    /// The forks on disk after a mount has ended. A program that another test starts has the mount's lock until it runs.
    fn free_forks(&self) -> Forks {
        let mut forks = self.forks();
        wait_until("the forks are free", || {
            if forks.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy) {
                forks = self.forks();
            }
            !forks.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy)
        });
        forks.unwrap()
    }

    fn is_mounted(&self) -> bool {
        is_mounted(&self.point)
    }
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}

fn paths(differences: &[pfimg::Difference]) -> Vec<String> {
    differences.iter().map(|one| String::from_utf8_lossy(&one.path).into_owned()).collect()
}

#[test]
fn a_mounted_store_forks_seals_restores_compares_and_discards() {
    let given = Given::new();
    let mounted = given.builder().mount().unwrap();
    assert_eq!(mounted.mountpoint(), given.point);
    let files = mounted.fork("a", "first").unwrap();
    assert_eq!(fs::read(files.join("README")).unwrap(), b"read me\n");
    fs::write(files.join("README"), "changed\n").unwrap();
    let branch = mounted.fork("b", "a").unwrap();
    assert_eq!(fs::read(branch.join("README")).unwrap(), b"changed\n");
    fs::write(branch.join("new"), "new\n").unwrap();
    assert_eq!(mounted.forks().unwrap(), ["a", "b"]);

    let sealed = mounted.seal("a", Some("second")).unwrap();
    assert!(sealed.new);
    assert!(!mounted.seal("a", None).unwrap().new);
    assert_eq!(given.store().resolve("second").unwrap(), sealed.image);
    assert_eq!(paths(&mounted.diff("first", "second").unwrap()), ["world/fs/README"]);
    let differences = mounted.diff("a", "b").unwrap();
    assert_eq!(paths(&differences), ["world/fs/new"]);
    assert_eq!(differences[0].how, How::Added);

    fs::write(files.join("README"), "changed again\n").unwrap();
    let restored = mounted.restore("a", "second").unwrap();
    assert_eq!(restored.image, Some(sealed.image));
    assert_eq!(fs::read(files.join("README")).unwrap(), b"changed\n");

    assert_eq!(mounted.discard("b", false).unwrap_err().kind(), ErrorKind::Busy);
    mounted.discard("b", true).unwrap();
    assert_eq!(mounted.forks().unwrap(), ["a"]);
    mounted.unmount().unwrap();
    assert!(!given.is_mounted());
    assert_eq!(given.free_forks().names(), ["a"]);
}

#[test]
fn errors_have_kinds() {
    let given = Given::new();
    let kind = |result: pfimg::Result<PathBuf>| result.unwrap_err().kind();
    let mounted = given.builder().mount().unwrap();
    mounted.fork("a", "first").unwrap();
    assert_eq!(kind(mounted.fork("b", "none")), ErrorKind::NotFound);
    assert_eq!(kind(mounted.fork("a", "first")), ErrorKind::AlreadyExists);
    assert_eq!(kind(mounted.fork("../b", "first")), ErrorKind::InvalidInput);
    assert_eq!(mounted.seal("none", None).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mounted.seal("a", Some("first")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(mounted.seal("a", Some("a/b")).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(mounted.restore("a", "9").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mounted.diff("a", "none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mounted.discard("none", true).unwrap_err().kind(), ErrorKind::NotFound);
    // Another program holds the forks, and the mountpoint.
    assert_eq!(given.forks().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(given.builder().mount().unwrap_err().kind(), ErrorKind::Busy);
    mounted.unmount().unwrap();

    let full = MountedStore::builder(given.store(), given.point.parent().unwrap()).cache_dir(&given.cache);
    assert_eq!(full.clone().mount().unwrap_err().kind(), ErrorKind::InvalidInput, "it covers the store");
    let missing = MountedStore::builder(given.store(), given.point.join("none")).cache_dir(&given.cache);
    assert_eq!(missing.mount().unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(given.point.join("file"), "").unwrap();
    let error = given.builder().mount().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Posix(pfimg::error::Posix::NotEmpty));
    let both = given.builder().nonempty(true).holes(true).writeback(true);
    assert_eq!(both.mount().unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(!given.is_mounted());
}

#[test]
fn two_mounts_in_one_process_serve_two_stores() {
    let (one, two) = (Given::new(), Given::new());
    let mounts = [one.builder().mount().unwrap(), two.builder().mount().unwrap()];
    for (at, mounted) in mounts.iter().enumerate() {
        let files = mounted.fork("a", "first").unwrap();
        fs::write(files.join("which"), at.to_string()).unwrap();
    }
    let [first, second] = mounts;
    // The end of one leaves the other alone.
    drop(first);
    assert!(!one.is_mounted() && two.is_mounted());
    assert_eq!(fs::read(second.files("a").join("which")).unwrap(), b"1");
    assert!(second.seal("a", None).unwrap().new);
    second.unmount().unwrap();
    assert_eq!(one.free_forks().get("a").unwrap().read_file("world/fs/which").unwrap(), b"0");
}

#[test]
fn a_second_mount_of_a_store_in_the_same_process_reads_its_forks() {
    let given = Given::new();
    let first = given.builder().mount().unwrap();
    let (_dir, other) = temp_dir();
    let second = MountedStore::builder(given.store(), &other).cache_dir(&given.cache).mount().unwrap();
    let files = first.fork("a", "first").unwrap();
    fs::write(files.join("new"), "new").unwrap();
    wait_until("the second mount shows the write", || {
        fs::read(second.files("a").join("new")).is_ok_and(|bytes| bytes == b"new")
    });
    assert_eq!(second.fork("b", "first").unwrap_err().kind(), ErrorKind::ReadOnly);
    second.unmount().unwrap();
    first.unmount().unwrap();
}

#[test]
fn an_unmount_seals_and_a_drop_does_not() {
    for (sealed, policy) in [(true, SealPolicy::Idle(Duration::from_hours(1))), (false, SealPolicy::Manual)] {
        let given = Given::new();
        let mounted = given.builder().seal(policy).mount().unwrap();
        fs::write(mounted.fork("a", "first").unwrap().join("new"), "new").unwrap();
        mounted.unmount().unwrap();
        let forks = given.free_forks();
        assert_eq!(!forks.get("a").unwrap().is_changed(), sealed);
    }
    let given = Given::new();
    let mounted = given.builder().seal(SealPolicy::Idle(Duration::from_hours(1))).mount().unwrap();
    fs::write(mounted.fork("a", "first").unwrap().join("new"), "new").unwrap();
    drop(mounted);
    assert!(!given.is_mounted());
    let fork = given.free_forks().get("a").unwrap();
    assert!(fork.is_changed());
    assert_eq!(fork.read_file("world/fs/new").unwrap(), b"new");
}

#[test]
fn a_dropped_handle_leaves_no_mount_although_a_file_is_open() {
    let given = Given::new();
    let mounted = given.builder().mount().unwrap();
    let open = fs::File::open(mounted.fork("a", "first").unwrap().join("README")).unwrap();
    let begun = Instant::now();
    drop(mounted);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(!given.is_mounted());
    // The connection was ended: nothing serves the file, and nothing holds the forks.
    let read = move || open.read_at(&mut [0], 0).unwrap_err();
    let error = in_time("a read of a file of a mount that has ended", read);
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    given.free_forks();
    given.builder().mount().unwrap().unmount().unwrap();
}

#[test]
fn an_unmount_waits_for_a_program_that_has_a_file_open() {
    let given = Given::new();
    let mounted = given.builder().mount().unwrap();
    let files = mounted.fork("a", "first").unwrap();
    let open = fs::File::options().write(true).open(files.join("README")).unwrap();
    let unmounting = std::thread::spawn(move || mounted.unmount());
    wait_until("the mount leaves its path", || !given.is_mounted());
    open.write_all_at(b"late", 0).unwrap();
    drop(open);
    unmounting.join().unwrap().unwrap();
    let forks = given.free_forks();
    assert_eq!(forks.get("a").unwrap().read_file("world/fs/README").unwrap(), b"late me\n");
}

#[test]
fn a_panic_leaves_no_mount() {
    let given = Given::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mounted = given.builder().mount().unwrap();
        assert!(!is_mounted(mounted.mountpoint()), "this panic is meant");
    }));
    assert!(panicked.is_err());
    assert!(!given.is_mounted());
    given.free_forks();
}

#[test]
fn a_stopper_and_another_program_end_a_mount() {
    let given = Given::new();
    let mounted = given.builder().mount().unwrap();
    let stopper = mounted.stopper();
    let waiting = std::thread::spawn(move || mounted.wait());
    stopper.stop();
    in_time("a stopped mount", move || waiting.join().unwrap()).unwrap();
    assert!(!given.is_mounted());
    // After the end it does nothing.
    stopper.stop();

    let mounted = given.builder().mount().unwrap();
    super::common::pfimg(["umount", given.point.to_str().unwrap()]).exits(0);
    in_time("a mount that another program ended", move || mounted.wait()).unwrap();
}

/// The variable that a test sets for its second process: the place to mount.
const POINT: &str = "PFIMG_TEST_POINT";

/// The place to mount in a second process of a test. In the first process there is none.
fn point_of_second_process() -> Option<PathBuf> {
    std::env::var_os(POINT).map(PathBuf::from)
}

/// Runs one test in a second process.
fn second_process(test: &str, point: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", test]).env(POINT, point);
    command
}

#[test]
fn after_an_unmount_no_thread_and_no_descriptor_is_left() {
    // Other tests open files in the first process.
    if let Some(point) = point_of_second_process() {
        return mount_again_and_again(&point);
    }
    let given = Given::new();
    let test = "library::after_an_unmount_no_thread_and_no_descriptor_is_left";
    let output = second_process(test, &given.point).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn mount_again_and_again(point: &Path) {
    let store = point.with_file_name("store");
    let threads = || -> Vec<String> {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        let names = names.map(|name| name.trim().to_owned());
        names.filter(|name| name.starts_with("pfimg-") || name.starts_with("fuser")).collect()
    };
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = None;
    for round in 0..3 {
        let builder = MountedStore::builder(Store::open(&store).unwrap(), point)
            .cache_dir(point.with_file_name("cache"));
        let mounted = builder.mount().unwrap();
        assert!(!threads().is_empty(), "the threads of a mount have other names");
        let name = format!("f{round}");
        fs::write(mounted.fork(&name, "first").unwrap().join("new"), "new").unwrap();
        mounted.seal(&name, None).unwrap();
        if round == 1 {
            drop(mounted);
        } else {
            mounted.unmount().unwrap();
        }
        wait_until("no thread of the mount is left", || threads().is_empty());
        let now = descriptors();
        assert_eq!(*before.get_or_insert(now), now, "round {round}");
    }
}

#[test]
fn a_killed_process_ends_and_the_next_mount_takes_its_place() {
    if let Some(point) = point_of_second_process() {
        return mount_until_killed(&point);
    }
    let given = Given::new();
    let test = "library::a_killed_process_ends_and_the_next_mount_takes_its_place";
    let mut serving = second_process(test, &given.point).stdout(Stdio::piped()).spawn().unwrap();
    wait_until("the other process has mounted", || given.point.join("latest").exists());
    serving.kill().unwrap();
    let status = in_time("a killed process", move || serving.wait().unwrap());
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert!(given.is_mounted(), "a dead mount is left");
    given.builder().mount().unwrap().unmount().unwrap();
    assert!(!given.is_mounted());
}

fn mount_until_killed(point: &Path) {
    let store = Store::open(point.with_file_name("store")).unwrap();
    let mounted =
        MountedStore::builder(store, point).cache_dir(point.with_file_name("cache")).mount().unwrap();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        // These are the library's own calls, which must not keep a killed process.
        let _ = mounted.forks();
    }
}

#[test]
fn a_mount_starts_no_program_and_takes_no_signal() {
    let given = Given::new();
    let caught = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("SigCgt")).unwrap().to_owned()
    };
    let before = caught();
    let mounted = given.builder().mount().unwrap();
    assert_eq!(caught(), before);
    // Programs that this process starts get no connection.
    let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("/dev/fuse"));
    mounted.unmount().unwrap();
}

#[test]
fn forks_on_disk_are_those_that_a_mount_shows() {
    let given = Given::new();
    let forks = given.free_forks();
    let fork = forks.fork("a", "first").unwrap();
    fork.write_file("world/fs/src/lib.rs", b"//! Text.\n").unwrap();
    fork.write_file("world/fs/README", b"short\n").unwrap();
    fork.fsync().unwrap();
    let branch = forks.fork("b", "a").unwrap();
    branch.write_file("world/fs/README", b"other\n").unwrap();
    assert_eq!(paths(&forks.diff("a", "b").unwrap()), ["world/fs/README"]);
    assert_eq!(fork.read_file("world/fs/README").unwrap(), b"short\n");
    assert_eq!(fork.read_file("world/fs").unwrap_err().errno(), libc::EISDIR);
    assert_eq!(fork.write_file("world/fs/README/x", b"").unwrap_err().errno(), libc::ENOTDIR);
    assert_eq!(fork.write_file("world/fs/src", b"").unwrap_err().errno(), libc::EISDIR);
    assert_eq!(fork.read_file("world/fs/none").unwrap_err().kind(), ErrorKind::NotFound);
    let sealed = forks.seal("a", Some("second")).unwrap();
    fork.write_file("world/fs/README", b"unsealed\n").unwrap();
    forks.restore("a", "second").unwrap();
    let restored = forks.get("a").unwrap();
    assert_eq!(restored.read_file("world/fs/README").unwrap(), b"short\n");
    assert_eq!(forks.get("none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(forks.fork("a", "first").unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(forks.seal("b", Some("second")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    drop((fork, branch, restored, forks));

    let mounted = given.builder().mount().unwrap();
    assert_eq!(fs::read(mounted.files("a").join("README")).unwrap(), b"short\n");
    assert_eq!(fs::read(mounted.files("b").join("README")).unwrap(), b"other\n");
    let image = mounted.mountpoint().join("images").join(sealed.image.hex()).join("world/fs/src/lib.rs");
    assert_eq!(fs::read(image).unwrap(), b"//! Text.\n");
    mounted.unmount().unwrap();
}

#[test]
fn the_examples_do_what_they_say() {
    let given = Given::new();
    let bytes = read::read(&given.store, "first", "world/fs/README").unwrap();
    assert_eq!(bytes.as_deref(), Some(&b"read me\n"[..]));
    assert_eq!(read::read(&given.store, "first", "world/fs/none").unwrap(), None);

    let image = fork::fork(&given.store, "first").unwrap();
    let notes = read::read(&given.store, &image.hex(), "world/fs/notes/today.txt").unwrap().unwrap();
    assert!(notes.starts_with(b"a fork"));

    system::require_fuse();
    let differences = mount::compare(&given.store, "first", &given.point).unwrap();
    assert_eq!(paths(&differences), ["world/fs/answer.txt"]);
    assert!(!given.is_mounted());
}
