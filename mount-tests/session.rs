//! Sessions: how mounts begin and end, also when they end badly.

mod asking;
mod limits;
mod meant;
mod outside;
mod silent;
mod support;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::common::cli::pfimg_on;
use crate::common::fast::Spec;
use crate::common::mount::Background;
use crate::common::{Mount, errno, is_root, names, pfimg, system, temp_dir, wait_until};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use support::{listing, mount_in_background, point, read, small_store};

#[test]
fn a_killed_daemon_leaves_a_mount_that_the_next_one_clears_fifty_times() {
    let (store, id) = small_store();
    let (_dir, point) = point();
    let _guard = Background { point: point.clone(), pid: None };
    for round in 0..50 {
        let mut mount = Mount::of(store.root()).at(&point).start();
        assert_eq!(read(&mount, &id), b"content", "round {round}");
        assert_eq!(system::types_at(&point).len(), 1, "round {round}: the stale mount is still below");
        mount.kill();
        // A file that is never cached: the kernel continues to show what it knows.
        assert_eq!(
            errno(std::fs::metadata(mount.join(".pfimg/status.json"))),
            libc::ENOTCONN,
            "round {round}"
        );
        // The guard would clean up: this round leaves that to the next one.
        mount.abandon();
    }
    let last = Mount::of(store.root()).at(&point).start();
    assert_eq!(read(&last, &id), b"content");
    last.unmount();
    assert!(system::types_at(&point).is_empty());
    assert!(names(&point).unwrap().is_empty());
}

#[test]
fn a_daemon_killed_at_any_moment_of_its_start_is_gone_and_can_be_cleared() {
    system::require_fuse();
    let (store, id) = small_store();
    let (_dir, point) = point();
    let _guard = Background { point: point.clone(), pid: None };
    let home = point.parent().unwrap();
    for round in 0..60u32 {
        let mut child = crate::common::cli::clean_command(Path::new(crate::common::PFIMG))
            .args([
                OsStr::new("mount"),
                OsStr::new("--foreground"),
                store.root().as_os_str(),
                point.as_os_str(),
            ])
            .env("HOME", home)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // From the moment it is mounted on, a little later each time.
        wait_until("the mount is there or refused", || {
            !system::mounts_at(&point).is_empty() || child.try_wait().unwrap().is_some()
        });
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_micros(100) * (round % 30) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        // A daemon that is killed while it waits for its own mount waits for ever: no signal ends it.
        let ended = crate::common::wait_at_most(std::time::Duration::from_secs(20), || {
            child.try_wait().unwrap().is_some()
        });
        if ended.is_none() {
            system::break_connection(&point);
            wait_until("the daemon ends", || child.try_wait().unwrap().is_some());
            panic!("round {round}: a killed daemon waits for its own mount and cannot end");
        }
    }
    let mount = Mount::of(store.root()).at(&point).start();
    assert_eq!(read(&mount, &id), b"content");
    mount.unmount();
}

#[test]
fn umount_clears_the_mount_of_a_killed_daemon() {
    let (store, _) = small_store();
    let mut mount = Mount::of(store.root()).start();
    mount.kill();
    pfimg([OsStr::new("umount"), mount.path().as_os_str()]).exits(0);
    assert!(system::types_at(mount.path()).is_empty());
}

#[test]
fn sigterm_and_sigint_end_the_mount_cleanly() {
    let (store, id) = small_store();
    for signal in [Signal::TERM, Signal::INT] {
        let mut mount = Mount::of(store.root()).start();
        assert_eq!(read(&mount, &id), b"content");
        mount.signal(signal);
        let status = mount.wait();
        assert!(status.success(), "{signal:?}: {status}\n{}", mount.log());
        assert!(system::types_at(mount.path()).is_empty(), "{signal:?}: still mounted");
        assert!(!mount.log().contains("panicked"), "{}", mount.log());
    }
}

#[test]
fn an_outside_umount_ends_the_daemon() {
    let (store, id) = small_store();
    for lazily in [false, true] {
        let mut mount = Mount::of(store.root()).start();
        assert_eq!(read(&mount, &id), b"content");
        unmount_from_outside(mount.path(), lazily);
        let status = mount.wait();
        assert!(status.success(), "{status}\n{}", mount.log());
        assert!(system::types_at(mount.path()).is_empty());
    }
}

/// Unmounts as any administrator would, without pfimg.
fn unmount_from_outside(point: &Path, lazily: bool) {
    // The daemon itself looks at its mount once when it starts, which may make it busy for a moment.
    wait_until("the mount can be unmounted", || {
        if is_root() {
            let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
            rustix::mount::unmount(point, flags).is_ok()
        } else {
            let args = [OsStr::new(if lazily { "-uz" } else { "-u" }), point.as_os_str()];
            crate::common::cli::tool("fusermount3", args).code == 0
        }
    });
}

#[test]
fn a_new_mount_survives_the_end_of_the_one_before_it() {
    let (store, id) = small_store();
    let (_dir, point) = point();
    let mut before = Mount::of(store.root()).at(&point).start();
    let _guard = Background { point: point.clone(), pid: None };
    for round in 0..15 {
        // The old daemon learns that its mount is gone only when another one exists: at the same path, of the
        // same type, and often with the same device number, since the kernel gives out the lowest free one.
        // fusermount3 asks the mount before it unmounts it, so an ordinary user cannot have the daemon held
        // up during that. Stopped while it looks at its mount through a child, it would keep that child
        // waiting and the mount busy.
        wait_until("the daemon has looked at its mount", || !before.log_lines(&["mounted at"]).is_empty());
        if is_root() {
            before.signal(Signal::STOP);
        }
        unmount_from_outside(&point, false);
        let after = Mount::of(store.root()).at(&point).start();
        if is_root() && round % 2 == 0 {
            before.signal(Signal::TERM);
        }
        if is_root() {
            before.signal(Signal::CONT);
        }
        assert!(before.wait().success(), "round {round}: {}", before.log());
        // Its guard would take away what is mounted there now.
        std::mem::replace(&mut before, after).abandon();
        assert_eq!(system::types_at(&point).len(), 1, "round {round}: the new mount is gone");
        assert_eq!(read(&before, &id), b"content", "round {round}");
    }
    before.unmount();
}

#[test]
fn a_busy_mount_is_detached_lazily_with_a_message() {
    let (store, id) = small_store();
    let says_so = |text: &str| {
        let text = text.to_lowercase();
        ["busy", "in use", "lazily", "detached"].iter().any(|word| text.contains(word))
    };
    // By the command.
    let mut mount = Mount::of(store.root()).start();
    let held = std::fs::File::open(mount.image(&id).join("world/fs/file")).unwrap();
    let output = pfimg([OsStr::new("umount"), mount.path().as_os_str()]).exits(0);
    assert!(says_so(&output.said()), "umount says: {}", output.said());
    assert!(system::types_at(mount.path()).is_empty(), "still mounted");
    drop(held);
    assert!(mount.wait().success(), "{}", mount.log());
    // By a signal.
    let mut mount = Mount::of(store.root()).start();
    let held = std::fs::File::open(mount.image(&id).join("world/fs/file")).unwrap();
    mount.signal(Signal::TERM);
    wait_until("the mount is gone", || system::types_at(mount.path()).is_empty());
    wait_until("the log says so", || says_so(&mount.log()));
    drop(held);
    assert!(mount.wait().success(), "{}", mount.log());
}

#[test]
fn another_filesystem_at_the_same_path_is_never_unmounted() {
    if !is_root() {
        // An ordinary user can mount nothing else over it, but can ask for what is not pfimg's.
        let refused = pfimg(["umount", "/proc"]);
        assert!(refused.code != 0 && !refused.stderr.is_empty(), "{refused:?}");
        assert!(!system::types_at(Path::new("/proc")).is_empty());
        return;
    }
    let (store, _) = small_store();
    let cover = |path: &Path| {
        rustix::mount::mount("none", path, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
        std::fs::write(path.join("foreign"), b"x").unwrap();
    };
    let is_covered = |path: &Path| path.join("foreign").is_file();
    // Over a mount of pfimg: neither a signal nor the command may remove the one on top.
    let mut mount = Mount::of(store.root()).start();
    cover(mount.path());
    let refused = pfimg([OsStr::new("umount"), mount.path().as_os_str()]);
    assert!(is_covered(mount.path()), "umount took the tmpfs: {refused:?}");
    mount.signal(Signal::TERM);
    mount.wait();
    assert!(is_covered(mount.path()), "SIGTERM took the tmpfs:\n{}", mount.log());
    rustix::mount::unmount(mount.path(), UnmountFlags::DETACH).unwrap();
    drop(mount);
    // In place of the daemon's mount, after an outside unmount that it has not noticed yet. Often the new one
    // gets the device number of the old, since the kernel gives out the lowest free one.
    let (_dir, point) = point();
    let _guard = Background { point: point.clone(), pid: None };
    for round in 0..15 {
        let mut mount = Mount::of(store.root()).at(&point).start();
        mount.signal(Signal::STOP);
        unmount_from_outside(&point, true);
        cover(&point);
        mount.signal(Signal::TERM);
        mount.signal(Signal::CONT);
        mount.wait();
        assert!(is_covered(&point), "round {round}: the tmpfs is gone:\n{}", mount.log());
        rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
    }
    cover(&point);
    // Where pfimg never was.
    let refused = pfimg([OsStr::new("umount"), point.as_os_str()]);
    assert!(refused.code != 0 && !refused.stderr.trim().is_empty(), "{refused:?}");
    assert!(is_covered(&point));
    rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
    let refused = pfimg([OsStr::new("umount"), point.as_os_str()]);
    assert!(refused.code != 0 && !refused.stderr.trim().is_empty(), "nothing mounted: {refused:?}");
}

#[test]
fn mount_returns_when_the_mount_answers_and_umount_ends_it() {
    let (store, id) = small_store();
    let (_dir, point) = point();
    let (output, background) = mount_in_background(store.root(), &point, &[]);
    output.exits(0);
    // No waiting here: the mount must answer already.
    let path = point.join("images").join(&id).join("world/fs/file");
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    let status = pfimg([OsStr::new("status"), point.as_os_str(), OsStr::new("--json")]).exits(0).json();
    let pid = status["pid"].as_u64().unwrap() as u32;
    assert_eq!(Some(pid), background.pid, "{status}");
    assert!(system::is_running(pid));
    assert_eq!(Path::new(status["store"].as_str().unwrap()), store.root());
    assert_eq!(Path::new(status["mountpoint"].as_str().unwrap()), point);
    assert!(status["counters"].is_object(), "{status}");
    assert!(pfimg([OsStr::new("status"), point.as_os_str()]).exits(0).stdout.contains(&pid.to_string()));
    let log: serde_json::Value =
        serde_json::from_slice(&std::fs::read(point.join(".pfimg/status.json")).unwrap()).unwrap();
    let log = PathBuf::from(log["log"].as_str().unwrap_or_else(|| panic!("no log in {log}")));
    assert!(log.is_file(), "no log at {}", log.display());
    pfimg([OsStr::new("umount"), point.as_os_str()]).exits(0);
    wait_until("the daemon ends", || !system::is_running(pid));
    assert!(system::types_at(&point).is_empty());
}

/// Looks at everything a mount shows, and at what it does not have.
fn look_at_everything(mount: &Mount, id: &str) {
    assert_eq!(read(mount, id), b"content");
    for path in ["model/base", "effects/ledger.jsonl", "world/env.json", "cache/manifest.json"] {
        std::fs::read(mount.image(id).join(path)).unwrap();
    }
    for folder in ["images", "tags", "agents", "agents/test", ".pfimg"] {
        names(&mount.join(folder)).unwrap();
    }
    for missing in ["images/ffffffff", "tags/none", "nothing"] {
        assert_eq!(errno(mount.join(missing).symlink_metadata()), libc::ENOENT, "{missing}");
    }
    let documents = names(&mount.join(".pfimg")).unwrap();
    assert!(documents.contains(&"status.json".to_owned()), "{documents:?}");
    for document in documents {
        // The log can be empty.
        std::fs::read(mount.join(".pfimg").join(document)).unwrap();
    }
    pfimg([OsStr::new("status"), mount.path().as_os_str()]).exits(0);
}

#[test]
fn a_read_only_mount_and_the_commands_that_look_write_nothing_into_the_store() {
    let (mut store, id) = small_store();
    // A blob that is gone along with its folder: nothing may make that again.
    let digest = store.blob(b"soon gone");
    let fs = store.tree(&[crate::common::fast::file_entry("gone", &digest, 9)]);
    let torn = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let shard = store.blob_path(&digest).parent().unwrap().to_owned();
    std::fs::remove_file(store.blob_path(&digest)).unwrap();
    let _ = std::fs::remove_dir(shard);
    let before = listing(store.root());
    let mount = Mount::of(store.root()).args(["--read-only"]).start();
    look_at_everything(&mount, &id);
    assert_eq!(errno(std::fs::read(mount.image(&torn).join("world/fs/gone"))), libc::EIO);
    assert_eq!(errno(std::fs::create_dir(mount.join("images/new"))), libc::EROFS);
    mount.unmount();
    pfimg_on(store.root(), ["images"]).exits(0);
    pfimg_on(store.root(), ["show", &id]).exits(0);
    pfimg_on(store.root(), ["verify"]).exits(4);
    assert_eq!(listing(store.root()), before);
}

#[test]
fn a_store_on_a_read_only_filesystem_is_readable() {
    let (store, id) = small_store();
    let _guard = ReadOnly::make(store.root());
    let refused = std::fs::write(store.root().join("probe"), b"x");
    assert!(refused.is_err(), "the store is not read-only");
    let mount = Mount::of(store.root()).args(["--read-only"]).start();
    look_at_everything(&mount, &id);
    mount.unmount();
    // Without being told, too: the mount has nothing to write there.
    let mount = Mount::of(store.root()).start();
    look_at_everything(&mount, &id);
    mount.unmount();
    pfimg_on(store.root(), ["verify"]).exits(0);
    assert!(pfimg_on(store.root(), ["fixture"]).code != 0, "a fixture was written to a read-only store");
}

/// Makes a folder read-only until dropped: as root by a mount, else by taking away the right to write.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn make(path: &Path) -> Self {
        let guard = Self(path.to_owned());
        if is_root() {
            rustix::mount::mount_bind(path, path).unwrap();
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            rustix::mount::mount_remount(path, flags, "").unwrap();
        } else {
            set_writable(path, false);
        }
        guard
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        if is_root() {
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        } else {
            set_writable(&self.0, true);
        }
    }
}

fn set_writable(root: &Path, writable: bool) {
    for (path, (mode, ..)) in listing(root) {
        let mode = if writable { mode | 0o200 } else { mode & !0o222 };
        let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777));
    }
}

#[test]
fn a_second_mount_says_that_the_forks_are_written_elsewhere() {
    let (store, id) = crate::common::forks::small_store();
    // A store that others can read is reported as well.
    std::fs::set_permissions(store.root(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let first = Mount::of(store.root()).args(["--seal", "manual"]).start();
    crate::common::forks::fork(&first, "f", &id);
    let (_dir, dir) = temp_dir();
    let point = dir.join("mnt");
    std::fs::create_dir(&point).unwrap();
    let (output, guard) = mount_in_background(store.root(), &point, &[]);
    assert!(output.stderr.contains("another program writes this store's forks"), "{output:?}");
    pfimg(["umount".as_ref(), point.as_os_str()]).exits(0);
    drop(guard);
    // A caller that asked for it need not be told.
    let (output, guard) = mount_in_background(store.root(), &point, &["--read-only"]);
    assert_eq!(output.stderr, "");
    pfimg(["umount".as_ref(), point.as_os_str()]).exits(0);
    drop(guard);
    first.unmount();
    let (output, _guard) = mount_in_background(store.root(), &point, &[]);
    assert_eq!(output.stderr, "");
    pfimg(["umount".as_ref(), point.as_os_str()]).exits(0);
}
