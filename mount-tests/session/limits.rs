//! Limits of the shell that mounts, and full folders: a message names them, and no mount is left without a daemon.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::support::{point, read, small_store};
use crate::common::cli::{Run, tool};
use crate::common::fast::{FastStore, Spec, file_entry};
use crate::common::forks::{fork, world};
use crate::common::mount::Background;
use crate::common::{
    MIB, Mount, Output, PFIMG, Rng, errno, is_root, names, pfimg, system, temp_dir, wait_until,
};

/// Runs `pfimg mount` in the background under limits, in the words of prlimit(1).
fn mount_under(limits: &[&str], store: &Path, point: &Path) -> (Output, Background) {
    let home = point.parent().unwrap().join("home");
    let words = ["mount", "--cache-dir", home.to_str().unwrap()];
    let args = limits.iter().copied().chain([PFIMG]).chain(words).map(OsStr::new);
    let args = args.chain([store.as_os_str(), point.as_os_str()]);
    let output = Run::program(Path::new("prlimit"), args).env("HOME", &home).run();
    (output, Background { point: point.to_owned(), pid: pid_at(point) })
}

fn pid_at(point: &Path) -> Option<u32> {
    let text = std::fs::read(point.join(".pfimg/status.json")).ok()?;
    let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
    u32::try_from(status["pid"].as_u64()?).ok()
}

#[test]
fn under_any_limit_of_a_shell_a_mount_works_or_the_error_names_the_limit() {
    let (store, id) = small_store();
    for (limit, says) in [
        ("--nofile=4:4", "ulimit -n"),
        ("--nofile=20:20", "ulimit -n"),
        ("--nofile=64:64", "ulimit -n"),
        ("--as=60000000:60000000", "ulimit -v"),
        ("--as=200000000:200000000", "ulimit -v"),
        ("--as=268435456:268435456", "ulimit -v"),
        ("--as=600000000:600000000", "ulimit -v"),
        ("--as=1000000000:1000000000", "ulimit -v"),
        ("--data=50000000:50000000", "ulimit -d"),
        ("--data=200000000:200000000", "ulimit -d"),
        ("--fsize=0:0", "ulimit -f"),
        ("--fsize=1024:1024", "ulimit -f"),
        ("--cpu=3:3", "ulimit -t"),
        ("--cpu=600:600", "ulimit -t"),
        ("--stack=65536:65536", "ulimit -s"),
        ("--nproc=1:1", "ulimit -u"),
    ] {
        let (_dir, point) = point();
        let (output, _guard) = mount_under(&[limit], store.root(), &point);
        // The kernel does not count the processes of root.
        let counts = !limit.starts_with("--nproc") || !is_root();
        assert!(!counts || output.stderr.contains(says), "{limit}: {output:?}");
        if output.code == 0 {
            let file = std::fs::read(point.join("images").join(&id).join("world/fs/file"));
            assert_eq!(file.unwrap(), b"content", "{limit}");
            pfimg([OsStr::new("umount"), point.as_os_str()]).exits(0);
        } else {
            assert!(output.stderr.contains("prlimit --pid $$"), "{limit}: {output:?}");
        }
        assert!(system::types_at(&point).is_empty(), "{limit}: a mount is left: {output:?}");
    }
}

#[test]
fn soft_limits_are_raised_for_the_daemon_and_are_the_callers_for_what_runs_in_a_fork() {
    let (store, image) = crate::common::forks::small_store();
    let (_dir, point) = point();
    let soft = ["--nofile=20:", "--fsize=1048576:", "--as=400000000:", "--stack=65536:"];
    let (output, guard) = mount_under(&soft, store.root(), &point);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!output.stderr.contains("limits of this shell"), "{output:?}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", guard.pid.unwrap())).unwrap();
    for name in ["Max open files", "Max file size", "Max address space"] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let values: Vec<_> = line.split_whitespace().take(2).collect();
        assert_eq!(values[0], values[1], "{name}: {limits}");
    }
    let forked = point.join("forks/f");
    std::fs::create_dir(format!("{}@{image}", forked.display())).unwrap();
    let program = "ulimit -S -n; ulimit -S -s";
    let args = ["--nofile=30:", "--stack=2097152:", PFIMG, "run", "f", "--", "sh", "-c", program];
    let output = Run::program(Path::new("prlimit"), args).env("PF_STORE", store.root()).run().exits(0);
    assert_eq!(output.stdout, "30\n2048\n", "{output:?}");
    pfimg([OsStr::new("umount"), point.as_os_str()]).exits(0);
}

#[test]
fn a_file_larger_than_the_daemons_limit_is_refused_and_the_mount_continues() {
    let (store, image) = crate::common::forks::small_store();
    let args = ["--seal", "manual"];
    let mount = Mount::of(store.root()).args(args).under(&["prlimit", "--fsize=2000000:2000000"]).start();
    fork(&mount, "f", &image);
    let large = world(&mount, "f").join("large");
    let failed = std::fs::write(&large, Rng::new(1).bytes(8 << 20));
    assert_eq!(errno(failed), libc::EFBIG);
    std::fs::write(world(&mount, "f").join("small"), b"small").unwrap();
    assert_eq!(std::fs::read(world(&mount, "f").join("small")).unwrap(), b"small");
    mount.unmount();
}

#[test]
fn a_daemon_whose_time_is_nearly_used_up_unmounts() {
    let (store, id) = small_store();
    let mut mount = Mount::of(store.root()).start();
    assert_eq!(read(&mount, &id), b"content");
    // As the kernel does it at the soft limit.
    mount.signal(Signal::XCPU);
    assert!(mount.wait().success(), "{}", mount.log());
    assert!(mount.log().contains("ulimit -t"), "{}", mount.log());
    assert!(system::types_at(mount.path()).is_empty());
}

#[test]
fn a_log_that_takes_no_more_ends_no_mount() {
    let (store, id) = small_store();
    let (_dir, point) = point();
    let home = point.parent().unwrap().to_owned();
    let args = ["mount", "--log", "/dev/full", "--cache-dir"].map(OsStr::new).into_iter();
    let args = args.chain([home.as_os_str(), store.root().as_os_str(), point.as_os_str()]);
    Run::new(args).env("HOME", &home).run().exits(0);
    let _guard = Background { point: point.clone(), pid: pid_at(&point) };
    assert_eq!(std::fs::read(point.join("images").join(&id).join("world/fs/file")).unwrap(), b"content");
    // The daemon reports damage, which the log cannot take.
    std::fs::remove_file(store.marker_path(&id)).unwrap();
    wait_until("the image is gone", || names(&point.join("images")).unwrap().is_empty());
    pfimg([OsStr::new("umount"), point.as_os_str()]).exits(0);
}

#[test]
fn a_daemon_that_ends_in_the_middle_of_its_start_leaves_no_mount() {
    let (store, _) = small_store();
    let mut failed = 0;
    for round in 0..20 {
        let (_dir, point) = point();
        let home = point.parent().unwrap();
        let _guard = Background { point: point.clone(), pid: None };
        let mut starter = crate::common::cli::clean_command(Path::new(PFIMG));
        starter.arg("mount").arg(store.root()).arg(&point).env("HOME", home);
        let mut starter = starter.stderr(std::process::Stdio::piped()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", starter.id());
        wait_until("it is mounted, or that has failed", || {
            !system::types_at(&point).is_empty() || starter.try_wait().unwrap().is_some()
        });
        let daemon = std::fs::read_to_string(children).ok();
        let daemon = daemon.and_then(|text| text.split_whitespace().next()?.parse().ok());
        if let Some(daemon) = daemon {
            system::signal_pfimg(daemon, Signal::KILL);
        }
        let output = starter.wait_with_output().unwrap();
        if !output.status.success() {
            failed += 1;
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(system::types_at(&point).is_empty(), "round {round}: a mount is left: {said}");
        }
    }
    assert!(failed > 0, "no daemon was killed early enough");
}

/// A store with an image of large files that pf made, in one frame each, and small ones; what each holds.
fn large_store() -> (FastStore, String, BTreeMap<String, Vec<u8>>) {
    let mut store = FastStore::new();
    let mut rng = Rng::new(7);
    let mut files = BTreeMap::new();
    for n in 0..5 {
        files.insert(format!("large{n}"), rng.bytes((3 << 20) + 77 * n));
    }
    files.insert("larger".into(), rng.bytes((11 << 20) + 5));
    for n in 0..30 {
        files.insert(format!("small{n}"), rng.bytes(9000 + n));
    }
    let entries: Vec<_> = files.iter().map(|(name, bytes)| store.file(name, bytes)).collect();
    let fs = store.tree(&entries);
    // A layer without a declared size.
    let base = rng.bytes(5 << 20);
    let base_blob = store.blob(&base);
    let id = store.image(&Spec { fs: Some(fs), base: Some(base_blob), ..Spec::default() });
    files.insert("../../model/base".into(), base);
    (store, id, files)
}

/// Reads all files in an image and in a fork, whole and in parts, and judges what the mount says of its cache.
fn all_is_served(mount: &Mount, id: &str, name: &str, files: &BTreeMap<String, Vec<u8>>) {
    use std::os::unix::fs::FileExt as _;
    fork(mount, name, id);
    for fs in [mount.image(id).join("world/fs"), world(mount, name)] {
        for (name, bytes) in files {
            let file = std::fs::File::open(fs.join(name)).unwrap();
            let mut part = vec![0; 100_000.min(bytes.len())];
            for at in [bytes.len() - part.len(), 0, bytes.len() / 2 - part.len() / 2] {
                file.read_exact_at(&mut part, at as u64).unwrap();
                assert!(part == bytes[at..at + part.len()], "{name} at {at}");
            }
            assert!(std::fs::read(fs.join(name)).unwrap() == *bytes, "{name}");
        }
    }
    let said = mount.log_lines(&["WARN", "cannot keep decompressed blobs"]);
    assert_eq!(said.len(), 1, "{}", mount.log());
    assert!(!mount.log().contains("ERROR"), "{}", mount.log());
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(mount.join(".pfimg/status.json")).unwrap()).unwrap();
    let problem = status["cache_problem"].as_str().unwrap_or_else(|| panic!("{status}"));
    let shown = pfimg([OsStr::new("status"), mount.path().as_os_str()]).exits(0);
    assert!(shown.stdout.contains(problem), "{shown:?}");
}

#[test]
fn blobs_too_large_for_the_cache_are_served_uncached_with_one_warning() {
    let (store, id, files) = large_store();
    for memory in ["1MiB", "64MiB"] {
        // No file may be larger, neither in the cache's folder nor elsewhere.
        let limit = ["prlimit", "--fsize=65536:65536"];
        let args = ["--cache-size", memory, "--seal", "manual"];
        let mount = Mount::of(store.root()).args(args).under(&limit).start();
        all_is_served(&mount, &id, memory, &files);
        assert!(mount.peak_memory() < 200 * MIB, "{}", mount.peak_memory());
        mount.unmount();
    }
}

#[test]
fn a_full_or_read_only_cache_loses_no_file_and_is_reported_once() {
    if !is_root() {
        // Only root can mount a small filesystem. The test above has the same effects.
        return;
    }
    let (store, id, files) = large_store();
    for (name, options) in [("full", "size=256k"), ("room-for-one", "size=4m"), ("read-only", "size=4m,ro")] {
        let (_dir, dir) = temp_dir();
        let cache = dir.join("cache");
        std::fs::create_dir(&cache).unwrap();
        tool("mount", ["-t", "tmpfs", "-o", options, "none", cache.to_str().unwrap()]).exits(0);
        let _unmount = Unmount(cache.clone());
        // Temporary files have no more room.
        let args = ["--cache-dir", cache.to_str().unwrap(), "--cache-size", "1MiB", "--seal", "manual"];
        let mount = Mount::of(store.root()).args(args).env("TMPDIR", cache.to_str().unwrap()).start();
        all_is_served(&mount, &id, name, &files);
        mount.unmount();
    }
}

/// Unmounts when dropped.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        system::detach_all(&self.0);
    }
}

#[test]
fn a_damaged_blob_is_an_error_also_where_nothing_is_kept() {
    let mut store = FastStore::new();
    let bytes = Rng::new(3).bytes(3 << 20);
    let digest = store.blob(&bytes);
    let fs = store.tree(&[file_entry("file", &digest, bytes.len() as u64)]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mut packed = std::fs::read(store.blob_path(&digest)).unwrap();
    let middle = packed.len() / 2;
    packed[middle] ^= 1;
    std::fs::write(store.blob_path(&digest), packed).unwrap();
    let limit = ["prlimit", "--fsize=65536:65536"];
    let mount = Mount::of(store.root()).args(["--cache-size", "1MiB"]).under(&limit).start();
    assert_eq!(errno(std::fs::read(mount.image(&id).join("world/fs/file"))), libc::EIO);
    mount.unmount();
}
