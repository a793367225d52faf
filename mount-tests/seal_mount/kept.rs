//! What programs wrote and the kernel still keeps is in every snapshot. The daemons here delay each write, which only debug builds
//! can be asked for.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use memmap2::MmapMut;
use rustix::fs::{Mode, mkdirat};
use rustix::process::Signal;

use super::support::{seal, verify};
use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{fork, map_shared, small_store, world};
use crate::common::{Mount, errno, in_time, is_root, names, system, wait_until};

const MODES: [&str; 2] = ["through", "back"];

/// Asks a debug build for faults.
const FAULTS: &str = "PFIMG_TEST_WRITES";

/// A mount that answers each WRITE after 200 ms.
fn slow(store: &FastStore, writes: &str, policy: &str) -> Mount {
    Mount::of(store.root()).args(["--seal", policy, "--writes", writes]).env(FAULTS, "delay=200").start()
}

/// A file that a program holds open and mapped, and never syncs or closes.
struct Held {
    file: File,
    map: MmapMut,
}

impl Held {
    fn new(path: &Path) -> Self {
        let mut file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        file.write_all(&[b'.'; 8192]).unwrap();
        file.sync_all().unwrap();
        Self { map: map_shared(&file).unwrap(), file }
    }

    /// Writes through the mapping. Reads show it at once.
    fn write(&mut self, text: &str) {
        self.map[4096..4096 + text.len()].copy_from_slice(text.as_bytes());
        assert_eq!(self.shown(text.len()), text);
    }

    fn shown(&self, len: usize) -> String {
        let mut shown = vec![0; len];
        self.file.read_exact_at(&mut shown, 4096).unwrap();
        String::from_utf8(shown).unwrap()
    }
}

/// What a file holds where [`Held`] writes.
fn at(file: &Path, len: usize) -> String {
    let bytes = fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    String::from_utf8_lossy(&bytes[4096..4096 + len]).into_owned()
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds delay writes")]
fn every_snapshot_holds_the_latest_writes_through_a_mapping() {
    for writes in MODES {
        let (store, id) = small_store();
        let mount = slow(&store, writes, "manual");
        let mut held = Held::new(&fork(&mount, "f", &id).join("db"));
        let image = |id: &str| at(&mount.image(id).join("world/fs/db"), 5);

        held.write("mkdir");
        fs::create_dir(mount.join("forks/f/.snap/by-mkdir")).unwrap();
        assert_eq!(at(&mount.join("tags/by-mkdir/world/fs/db"), 5), "mkdir", "{writes}");

        held.write("seal!");
        assert_eq!(image(&seal(&store, &["f"])), "seal!", "{writes}");

        held.write("brnch");
        let branch = fork(&mount, "branched", "f");
        assert_eq!(at(&branch.join("db"), 5), "brnch", "{writes}");

        held.write("fork!");
        pfimg_on(store.root(), ["fork", "f", "by-command"]).exits(0);
        assert_eq!(at(&world(&mount, "by-command").join("db"), 5), "fork!", "{writes}");

        let before = seal(&store, &["f"]);
        held.write("diff!");
        let found = pfimg_on(store.root(), ["diff", &before, "f"]).exits(0).stdout;
        assert_eq!(found, "M db\n", "{writes}");

        held.write("rest!");
        pfimg_on(store.root(), ["restore", "f", &before]).exits(0);
        let images = names(&mount.join("images")).unwrap();
        let mut dbs = images.iter().map(|id| mount.image(id).join("world/fs/db"));
        assert!(dbs.any(|db| db.exists() && at(&db, 5) == "rest!"), "{writes}: not sealed before");
        assert_eq!(at(&world(&mount, "f").join("db"), 5), "fork!", "{writes}");
        verify(&store);
        drop(held);
        mount.unmount();
    }
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds delay writes")]
fn automatic_seals_and_the_last_seal_hold_writes_through_a_mapping() {
    for writes in MODES {
        for policy in ["idle:3s", "interval:3s"] {
            let (store, id) = small_store();
            let mut mount = slow(&store, writes, policy);
            let mut held = Held::new(&fork(&mount, "f", &id).join("db"));
            // The daemon knows of the fork's change by write(2) alone.
            held.write("alone");
            let latest = mount.join("latest/world/fs/db");
            wait_until("the fork is sealed", || latest.exists());
            assert_eq!(at(&latest, 5), "alone", "{writes} {policy}");
            held.write("ended");
            // The program continues: the mount is detached and the mapping is never written back.
            mount.signal(Signal::TERM);
            wait_until("it is detached", || system::types_at(mount.path()).is_empty());
            mount.signal(Signal::TERM);
            mount.wait();
            drop(held);
            let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
            assert_eq!(at(&world(&mount, "f").join("db"), 5), "ended", "{writes} {policy}");
            mount.unmount();
        }
    }
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds delay writes")]
fn many_mapped_files_of_several_forks_are_all_in_their_seals() {
    const FILES: usize = 30;
    for writes in MODES {
        let (store, id) = small_store();
        let mount = Mount::of(store.root())
            .args(["--seal", "manual", "--writes", writes])
            .env(FAULTS, "delay=40")
            .start();
        let forks = ["a", "b"];
        let mut held = Vec::new();
        for name in forks {
            let world = fork(&mount, name, &id);
            held.extend((0..FILES).map(|n| Held::new(&world.join(format!("db{n}")))));
        }
        for (n, held) in held.iter_mut().enumerate() {
            held.write(&format!("{n:05}"));
        }
        // Both at once.
        std::thread::scope(|scope| {
            for name in forks {
                let snap = mount.join(format!("forks/{name}/.snap/{name}1"));
                scope.spawn(move || fs::create_dir(snap).unwrap());
            }
        });
        for (f, name) in forks.iter().enumerate() {
            for n in 0..FILES {
                let db = mount.join(format!("tags/{name}1/world/fs/db{n}"));
                assert_eq!(at(&db, 5), format!("{:05}", f * FILES + n), "{writes} {name} {n}");
            }
        }
        drop(held);
        mount.unmount();
    }
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds delay writes")]
fn a_seal_with_writes_back_holds_the_writes_to_an_open_file() {
    let (store, id) = small_store();
    let mount = slow(&store, "back", "manual");
    let world = fork(&mount, "f", &id);
    let mut file = File::create(world.join("log")).unwrap();
    let mut whole = Vec::new();
    for n in 0..20 {
        let line = format!("line {n}\n").repeat(1000);
        file.write_all(line.as_bytes()).unwrap();
        whole.extend_from_slice(line.as_bytes());
        if n % 7 == 0 {
            fs::create_dir(mount.join(format!("forks/f/.snap/s{n}"))).unwrap();
            assert_eq!(fs::read(mount.join(format!("tags/s{n}/world/fs/log"))).unwrap(), whole, "{n}");
        }
    }
    drop(file);
    mount.unmount();
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds fail writes")]
fn a_write_that_fails_when_it_is_handed_in_fails_the_snapshots_of_its_fork_alone() {
    for writes in MODES {
        let (store, id) = small_store();
        let mount = Mount::of(store.root())
            .args(["--seal", "manual", "--writes", writes])
            .env(FAULTS, "delay=700,fail=bad")
            .start();
        let good = fork(&mount, "good", &id);
        let bad = fork(&mount, "bad", &id);
        let mut sound = Held::new(&good.join("db"));
        // Its length alone is set, so that no write is needed before the one that fails.
        let file = File::options().create_new(true).read(true).write(true).open(bad.join("db")).unwrap();
        file.set_len(8192).unwrap();
        let mut failing = Held { map: map_shared(&file).unwrap(), file };
        let dropped = |failing: &Held| {
            wait_until("the kernel drops what failed", || failing.shown(5) == "\0\0\0\0\0");
        };
        let sealed = |name: &str| at(&mount.image(&seal(&store, &[name])).join("world/fs/db"), 5);

        sound.write("good0");
        failing.write("lost0");
        // At once: the kernel may write the page back by itself, and then it fails before.
        let sealed_bad = fs::create_dir(mount.join("forks/bad/.snap/never"));
        assert_eq!(errno(sealed_bad), libc::EIO, "{writes}");
        assert_eq!(mount.log_lines(&["fork \"bad\"", "world/fs/db"]).len(), 1, "{writes}");
        dropped(&failing);

        sound.write("good1");
        failing.write("lost1");
        assert_eq!(sealed("good"), "good1", "{writes}: the other fork's failure is its own");
        dropped(&failing);

        // What failed earlier is no longer shown, and fails nothing more.
        assert_eq!(sealed("bad"), "\0\0\0\0\0", "{writes}");
        drop((sound, failing));
        mount.unmount();
    }
}

/// Requests of any kind so far.
fn requests(mount: &Mount) -> f64 {
    let metrics = mount.metrics();
    metrics.iter().filter(|(name, _)| name.starts_with("pfimg_fuse_requests_total")).map(|(_, n)| n).sum()
}

#[test]
fn a_seal_with_nothing_to_hand_in_asks_for_no_file() {
    for writes in MODES {
        let mut counts = Vec::new();
        for files in [10, 2000] {
            let mut store = FastStore::new();
            let entries: Vec<_> = (0..files).map(|n| store.file(&format!("f{n:04}"), b"content\n")).collect();
            let tree = store.tree(&entries);
            let id = store.image(&Spec { fs: Some(tree), ..Spec::default() });
            let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
            let world = fork(&mount, "f", &id);
            let snap = |name: &str| fs::create_dir(mount.join("forks/f/.snap").join(name)).unwrap();
            snap("first");
            for n in 0..files {
                fs::read(world.join(format!("f{n:04}"))).unwrap();
            }
            fs::write(world.join("f0000"), "changed\n").unwrap();
            let before = requests(&mount);
            snap("second");
            counts.push(requests(&mount) - before);
            mount.unmount();
        }
        // The mkdir, the marker, what reading the counters takes, and the new image if it is announced by then.
        assert!(counts.iter().all(|count| *count < 60.0), "{writes}: {counts:?}");
    }
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds delay writes")]
fn a_daemon_that_is_killed_while_the_kernel_hands_in_ends_and_so_does_the_seal() {
    for writes in MODES {
        let (store, id) = small_store();
        let mut mount = Mount::of(store.root())
            .args(["--seal", "manual", "--writes", writes])
            .env(FAULTS, "delay=1000")
            .start();
        let mut held = Held::new(&fork(&mount, "f", &id).join("db"));
        held.write("begun");
        let before = mount.requests("write");
        let snap = mount.join("forks/f/.snap/never");
        let sealing = std::thread::spawn(move || fs::create_dir(snap));
        wait_until("a write is handed in", || mount.requests("write") > before);
        in_time("the killed daemon to end", move || {
            mount.kill();
            mount
        });
        assert!(in_time("the seal to end", move || sealing.join().unwrap()).is_err(), "{writes}");
        drop(held);
    }
}

#[test]
fn a_mount_that_was_detached_while_in_use_seals_its_forks_at_the_end_and_says_so() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let mut mount = Mount::of(store.root()).args(["--seal", "idle:10m"]).start();
    let mut held = Held::new(&fork(&mount, "f", &id).join("db"));
    let snap = File::open(mount.join("forks/f/.snap")).unwrap();
    tool("umount", ["-l".as_ref(), mount.path().as_os_str()]).exits(0);
    held.write("later");
    assert_eq!(mkdirat(&snap, "now", Mode::RWXU).unwrap_err().raw_os_error(), libc::EBUSY);
    assert_eq!(mount.log_lines(&["detached while in use"]).len(), 1);
    held.map.flush().unwrap();
    drop((snap, held));
    assert!(mount.wait().success());
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    assert_eq!(at(&mount.join("latest/world/fs/db"), 5), "later");
    mount.unmount();
}

#[test]
fn a_covered_mount_is_reached_where_else_it_is_mounted() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let (_dir, other) = crate::common::temp_dir();
    let mut held = Held::new(&fork(&mount, "f", &id).join("db"));
    tool("mount", ["--bind".as_ref(), mount.path().as_os_str(), other.as_os_str()]).exits(0);
    tool("mount", ["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), mount.path().as_os_str()]).exits(0);
    held.write("under");
    let made = fs::create_dir(other.join("forks/f/.snap/under"));
    let sealed = made.map(|()| at(&other.join("tags/under/world/fs/db"), 5));
    tool("umount", [mount.path()]).exits(0);
    drop(held);
    tool("umount", [&other]).exits(0);
    assert_eq!(sealed.unwrap(), "under");
    mount.unmount();
}

#[test]
fn a_comparison_through_another_mount_goes_to_the_daemon_that_writes() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let other = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let mut held = Held::new(&fork(&mount, "f", &id).join("db"));
    let before = seal(&store, &["f"]);
    held.write("other");
    let path = other.join("forks/f");
    let found = pfimg_on(store.root(), ["diff".as_ref(), before.as_ref(), path.as_os_str()]);
    assert_eq!(found.exits(0).stdout, "M db\n");
    assert_eq!(errno(fs::create_dir(other.join("forks/f/.snap/not-here"))), libc::EROFS);
    drop(held);
    other.unmount();
    mount.unmount();
}
