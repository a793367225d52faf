//! What programs expect of any disk, on files that a fork has of its base and on its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FlockOperation, RenameFlags, XattrFlags};

use crate::common::forks::{
    BIG, big, fallocate, fork, open_rw, punch, seek_data, seek_hole, small_store, world, write_mapped,
};
use crate::common::{Mount, errno, is_root, wait_until};

const MODES: [&str; 2] = ["through", "back"];

#[test]
fn st_ino_is_stable_across_copy_up_and_unique_in_a_fork() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "try", &id);
    let before = fs::metadata(w.join("big")).unwrap().ino();
    open_rw(&w.join("big")).unwrap().write_all_at(b"x", 1).unwrap();
    fs::rename(w.join("big"), w.join("src/other")).unwrap();
    assert_eq!(fs::metadata(w.join("src/other")).unwrap().ino(), before);
    let mut seen = BTreeSet::new();
    let mut todo = vec![mount.join("forks/try")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            use std::os::unix::fs::DirEntryExt as _;
            assert_eq!(entry.ino(), meta.ino(), "{:?}", entry.path());
            assert!(seen.insert(meta.ino()), "{:?} has the number of another", entry.path());
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    assert!(seen.len() > 15);
    mount.unmount();
}

#[test]
fn writes_beyond_the_end_cuts_and_holes_read_as_zeros() {
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let w = fork(&mount, &format!("holes-{writes}"), &id);
        let file = open_rw(&w.join("big")).unwrap();
        let mut model = big();
        // Cut, then grown again: what was behind the cut must not come back.
        file.set_len(1000).unwrap();
        file.set_len(BIG as u64).unwrap();
        model[1000..].fill(0);
        assert!(fs::read(w.join("big")).unwrap() == model, "{writes}: cut and grown");
        file.write_all_at(b"behind", BIG as u64 + 5000).unwrap();
        model.resize(BIG + 5000, 0);
        model.extend_from_slice(b"behind");
        assert!(fs::read(w.join("big")).unwrap() == model, "{writes}: behind the end");
        drop(file);
        let file = open_rw(&w.join("README")).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100_000);
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 500_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100_000);
        punch(&file, 2, 3).unwrap();
        fallocate(&file, FallocateFlags::ZERO_RANGE, 6, 1).unwrap();
        let mut expected = b"re\0\0\0m\0\n".to_vec();
        expected.resize(100_000, 0);
        assert_eq!(fs::read(w.join("README")).unwrap(), expected, "{writes}");
        drop(file);
        mount.unmount();
    }
}

#[test]
fn seek_data_and_seek_hole_find_what_was_written_where_that_is_asked_for() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--holes"]).start();
    let w = fork(&mount, "try", &id);
    let file = File::options().read(true).write(true).create_new(true).open(w.join("sparse")).unwrap();
    file.set_len(8 << 20).unwrap();
    assert_eq!(errno(seek_data(&file, 0)), libc::ENXIO);
    file.write_all_at(&[1; 4096], 4 << 20).unwrap();
    assert_eq!(seek_data(&file, 0).unwrap(), 4 << 20);
    assert_eq!(seek_hole(&file, 4 << 20).unwrap(), (4 << 20) + 4096);
    assert_eq!(errno(seek_data(&file, (4 << 20) + 4096)), libc::ENXIO);
    assert_eq!(errno(seek_hole(&file, 8 << 20)), libc::ENXIO);
    drop(file);
    // A file of the base is all data until a hole is punched.
    let file = open_rw(&w.join("big")).unwrap();
    assert_eq!(seek_hole(&file, 0).unwrap(), BIG as u64);
    punch(&file, 65_536, 131_072).unwrap();
    assert_eq!((seek_hole(&file, 0).unwrap(), seek_data(&file, 65_536).unwrap()), (65_536, 196_608));
    drop(file);
    mount.unmount();
}

#[test]
fn the_kernel_answers_lseek_itself_with_all_data() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "try", &id);
    let file = File::options().read(true).write(true).create_new(true).open(w.join("sparse")).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[1; 4096], 4 << 20).unwrap();
    let big = open_rw(&w.join("big")).unwrap();
    for (file, size) in [(&file, 8 << 20), (&big, BIG as u64)] {
        for at in [0, 4096, size - 1] {
            assert_eq!((seek_data(file, at).unwrap(), seek_hole(file, at).unwrap()), (at, size));
        }
        assert_eq!((errno(seek_data(file, size)), errno(seek_hole(file, size))), (libc::ENXIO, libc::ENXIO));
    }
    // The first was answered that there is no such thing.
    assert!((mount.requests("lseek") - 1.0).abs() < f64::EPSILON);
    drop((file, big));
    mount.unmount();
}

#[test]
fn shared_and_private_mappings_of_base_files_work() {
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let name = format!("map-{writes}");
        let w = fork(&mount, &name, &id);
        write_mapped(&w.join("big"), 123_456, b"mapped").unwrap();
        let mut model = big();
        model[123_456..123_462].copy_from_slice(b"mapped");
        assert!(fs::read(w.join("big")).unwrap() == model, "{writes}");
        private_writes(&w.join("big"));
        assert!(fs::read(w.join("big")).unwrap() == model, "{writes}: a private mapping is private");
        mount.unmount();
        let mount = Mount::of(store.root()).start();
        assert!(fs::read(world(&mount, &name).join("big")).unwrap() == model, "{writes}: remounted");
        mount.unmount();
    }
}

#[allow(unsafe_code, reason = "there is no other way to map a file")]
fn private_writes(path: &Path) {
    let file = File::open(path).unwrap();
    // SAFETY: the file is the test's own and is not cut while it is mapped.
    let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&file).unwrap() };
    map[..7].copy_from_slice(b"private");
    assert_eq!(&map[..7], b"private");
}

#[test]
fn names_of_any_bytes_are_kept_up_to_255_of_them() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "try", &id);
    let mut wanted = BTreeSet::new();
    for byte in (1..=255u8).filter(|b| *b != b'/') {
        let name = vec![byte; if byte == b'.' { 3 } else { 1 + usize::from(byte) % 9 }];
        wanted.insert(name);
    }
    wanted.insert(vec![0xfe; 255]);
    fs::create_dir(w.join("odd")).unwrap();
    for name in &wanted {
        fs::write(w.join("odd").join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let long = std::ffi::OsString::from_vec(vec![b'n'; 256]);
    assert_eq!(errno(fs::write(w.join("odd").join(long), b"")), libc::ENAMETOOLONG);
    mount.unmount();
    let mount = Mount::of(store.root()).start();
    let odd = world(&mount, "try").join("odd");
    let found: BTreeSet<_> = fs::read_dir(&odd).unwrap().map(|e| e.unwrap().file_name().into_vec()).collect();
    assert_eq!(found, wanted);
    for name in &wanted {
        assert_eq!(&fs::read(odd.join(std::ffi::OsStr::from_bytes(name))).unwrap(), name);
    }
    mount.unmount();
}

#[test]
fn times_have_64_bits_of_seconds_and_all_nanoseconds() {
    let (store, id) = small_store();
    let times = [
        UNIX_EPOCH + Duration::new(1 << 33, 999_999_999),
        UNIX_EPOCH + Duration::new(4_294_967_296, 1),
        UNIX_EPOCH - Duration::new(1, 250_000_000),
        UNIX_EPOCH - Duration::new(3_000_000_000, 0),
        UNIX_EPOCH,
    ];
    let check = |mount: &Mount| {
        for (n, time) in times.iter().enumerate() {
            let path = world(mount, "try").join(format!("t{n}"));
            assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), *time, "{n}");
            assert_eq!(fs::metadata(&path).unwrap().accessed().unwrap(), *time, "{n}");
        }
    };
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "try", &id);
    for (n, time) in times.iter().enumerate() {
        let file = File::create(w.join(format!("t{n}"))).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(*time).set_accessed(*time)).unwrap();
    }
    check(&mount);
    mount.unmount();
    let mount = Mount::of(store.root()).start();
    check(&mount);
    // A change of content or of a folder moves the times on.
    let w = world(&mount, "try");
    let (file, dir) = (fs::metadata(w.join("t4")).unwrap(), fs::metadata(&w).unwrap());
    fs::write(w.join("t4"), b"now").unwrap();
    wait_until("the clock moves", || SystemTime::now() > dir.modified().unwrap());
    fs::write(w.join("t5"), b"now").unwrap();
    assert!(fs::metadata(w.join("t4")).unwrap().modified().unwrap() > file.modified().unwrap());
    assert!(fs::metadata(&w).unwrap().modified().unwrap() > dir.modified().unwrap());
    mount.unmount();
}

#[test]
fn extended_attributes_last_where_they_are_asked_for() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--xattrs"]).start();
    let file = fork(&mount, "try", &id).join("README");
    let set = |value: &[u8], flags| rustix::fs::setxattr(&file, "user.color", value, flags);
    let get = |path: &Path| {
        let mut buffer = vec![0u8; 70_000];
        rustix::fs::getxattr(path, "user.color", &mut buffer[..]).map(|n| buffer[..n].to_vec())
    };
    assert_eq!(set(b"x", XattrFlags::REPLACE), Err(rustix::io::Errno::NODATA));
    set(b"red", XattrFlags::CREATE).unwrap();
    assert_eq!(set(b"x", XattrFlags::CREATE), Err(rustix::io::Errno::EXIST));
    assert_eq!(get(&file).unwrap(), b"red");
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--xattrs"]).start();
    let file = world(&mount, "try").join("README");
    assert_eq!(get(&file).unwrap(), b"red");
    let mut names = vec![0u8; 1000];
    let n = rustix::fs::listxattr(&file, &mut names[..]).unwrap();
    assert_eq!(&names[..n], b"user.color\0");
    rustix::fs::removexattr(&file, "user.color").unwrap();
    assert_eq!(get(&file), Err(rustix::io::Errno::NODATA));
    mount.unmount();
    let mount = Mount::of(store.root()).start();
    assert_eq!(get(&world(&mount, "try").join("README")), Err(rustix::io::Errno::OPNOTSUPP));
    mount.unmount();
}

#[test]
fn an_attribute_that_has_a_kind_and_no_name_is_refused_as_on_a_disk() {
    use rustix::io::Errno;
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--xattrs"]).start();
    let in_fork = fork(&mount, "try", &id).join("README");
    let of = |path: &Path, name: &str| rustix::fs::getxattr(path, name, &mut [0u8; 64][..]);
    let set = |name: &str| rustix::fs::setxattr(&in_fork, name, b"1", XattrFlags::empty());
    assert_eq!(of(&in_fork, "user."), Err(Errno::INVAL));
    assert_eq!(of(&mount.image(&id).join("world/fs/README"), "user."), Err(Errno::INVAL));
    assert_eq!([set("user."), rustix::fs::removexattr(&in_fork, "user.")], [Err(Errno::INVAL); 2]);
    assert_eq!(rustix::fs::listxattr(&in_fork, &mut [0u8; 64][..]), Ok(0));
    set("user. ").unwrap();
    assert_eq!(of(&in_fork, "user. "), Ok(1));
    mount.unmount();
}

#[test]
fn unnamed_temporary_files_are_refused_so_that_programs_use_named_ones() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "try", &id);
    let opened = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&w);
    assert_eq!(errno(opened), libc::EOPNOTSUPP);
    mount.unmount();
}

#[test]
fn renames_replace_exchange_and_refuse_as_asked() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "try", &id);
    let rename = |from: &str, to: &str, flags| {
        let at = rustix::fs::CWD;
        rustix::fs::renameat_with(at, w.join(from), at, w.join(to), flags)
    };
    assert_eq!(rename("README", "big", RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
    rename("src", "bin", RenameFlags::EXCHANGE).unwrap();
    assert!(w.join("bin/main.rs").exists() && w.join("src/tool").exists());
    assert_eq!(errno(fs::rename(w.join("bin"), w.join("src"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(w.join("bin"), w.join("bin/below"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(w.join("README"), w.join("bin"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(w.join("bin"), w.join("README"))), libc::ENOTDIR);
    fs::rename(w.join("bin"), w.join("empty")).unwrap();
    fs::rename(w.join("big"), w.join("README")).unwrap();
    assert!(fs::read(w.join("README")).unwrap() == big());
    let other = fork(&mount, "other", &id);
    assert_eq!(errno(fs::rename(w.join("README"), other.join("x"))), libc::EXDEV);
    assert_eq!(errno(fs::hard_link(w.join("README"), other.join("x"))), libc::EXDEV);
    mount.unmount();
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let w = fork(&mount, &format!("gone-{writes}"), &id);
        let mut base = open_rw(&w.join("big")).unwrap();
        let mut own = File::options().read(true).write(true).create_new(true).open(w.join("own")).unwrap();
        own.write_all(&vec![5; 200_000]).unwrap();
        fs::remove_file(w.join("big")).unwrap();
        fs::rename(w.join("README"), w.join("own")).unwrap();
        assert_eq!(base.metadata().unwrap().nlink(), 0);
        base.write_all_at(b"still", 100).unwrap();
        own.write_all(b"here").unwrap();
        let mut bytes = Vec::new();
        base.read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() == BIG && bytes[100..105] == *b"still", "{writes}");
        own.seek(SeekFrom::Start(199_999)).unwrap();
        bytes.clear();
        own.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"\x05here", "{writes}");
        assert_eq!(fs::read(w.join("own")).unwrap(), b"read me\n");
        assert_eq!(errno(fs::metadata(w.join("big"))), libc::ENOENT);
        drop((base, own));
        mount.unmount();
    }
}

#[test]
fn locks_hold_between_processes() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let path = fork(&mount, "try", &id).join("README");
    let script = "import fcntl,sys\nf=open(sys.argv[1],'r+b')\n(fcntl.flock if sys.argv[2]=='flock' else fcntl.lockf)\
                  (f,fcntl.LOCK_EX)\nprint('held',flush=True)\nsys.stdin.read()\n";
    for kind in ["flock", "posix"] {
        let mut other = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .arg(kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut answer = [0; 5];
        other.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        let file = open_rw(&path).unwrap();
        let lock = || match kind {
            "flock" => rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive),
            _ => rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
        };
        assert_eq!(lock(), Err(rustix::io::Errno::AGAIN), "{kind}");
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
        wait_until("the lock is free once its holder has ended", || lock().is_ok());
    }
    mount.unmount();
}

#[test]
fn a_listing_is_complete_while_entries_come_and_go() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let dir = fork(&mount, "try", &id).join("many");
    fs::create_dir(&dir).unwrap();
    for n in 0..10_000 {
        File::create(dir.join(format!("stays-{n:05}"))).unwrap();
    }
    for n in 0..2000 {
        File::create(dir.join(format!("goes-{n}"))).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                File::create(dir.join(format!("comes-{n}"))).unwrap();
                let _ = fs::remove_file(dir.join(format!("goes-{}", n % 2000)));
                let _ = fs::rename(dir.join(format!("comes-{n}")), dir.join(format!("went-{}", n % 500)));
            }
        });
        for walk in 0..5 {
            let mut stays = 0;
            let mut seen = BTreeSet::new();
            for entry in fs::read_dir(&dir).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                stays += usize::from(name.starts_with("stays-"));
                if name.starts_with("stays-") {
                    assert!(seen.insert(name.clone()), "walk {walk}: {name} twice");
                }
            }
            assert_eq!(stays, 10_000, "walk {walk}");
        }
        done.store(true, Ordering::Relaxed);
    });
    mount.unmount();
}

#[test]
fn statfs_tells_of_the_disk_below() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "try", &id);
    let (shown, below) = (rustix::fs::statvfs(&w).unwrap(), rustix::fs::statvfs(store.root()).unwrap());
    assert_eq!((shown.f_blocks, shown.f_frsize, shown.f_namemax), (below.f_blocks, below.f_frsize, 255));
    let near = shown.f_bavail.abs_diff(below.f_bavail) * shown.f_frsize;
    assert!(near < 4 << 30, "{near} bytes apart");
    mount.unmount();
}

#[test]
fn set_user_id_bits_fall_when_another_user_writes() {
    use std::os::unix::fs::PermissionsExt as _;
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--allow-other", "--writes", writes]).start();
        let path = fork(&mount, &format!("suid-{writes}"), &id).join("README");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        for dir in path.ancestors().skip(1).take(3) {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let status = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "echo more >> \"$0\""])
            .arg(path.strip_prefix(mount.path()).unwrap())
            .current_dir(mount.path())
            .status()
            .expect("setpriv");
        assert!(status.success(), "{writes}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "{writes}");
        mount.unmount();
    }
}

/// What `test FLAG FILE` says, and whether FILE can be run.
fn may(flag: &str, file: &Path) -> (bool, bool) {
    let said = Command::new("test").arg(flag).arg(file).status().expect("test");
    (said.success(), Command::new(file).status().is_ok_and(|status| status.success()))
}

#[test]
fn modes_and_owners_are_checked_where_they_say_something() {
    use std::os::unix::fs::PermissionsExt as _;
    let (store, id) = small_store();
    for options in ["default_permissions", "async"] {
        let mount = Mount::of(store.root()).args(["-o", options, "--seal", "manual"]).start();
        let w = fork(&mount, &format!("try-{options}"), &id);
        let program = w.join("program");
        fs::write(&program, b"#!/bin/sh\n").unwrap();
        for (mode, runs) in [(0o644, false), (0o755, true), (0o600, false), (0o100, true)] {
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
            // Who reads a script needs to read it; root always may.
            let whole = runs && (is_root() || mode & 0o400 != 0);
            assert_eq!(may("-x", &program), (runs, whole), "{options}: {mode:o}");
            assert!(may("-e", &program).0 && may("-x", &w).0, "{options}: {mode:o}");
        }
        assert!(!may("-x", &w.join("missing")).0);
        assert!(!may("-x", &mount.image(&id).join("world/fs/README")).0);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o400)).unwrap();
        let written = fs::OpenOptions::new().append(true).open(&program).map(drop);
        if is_root() {
            assert!(may("-w", &program).0 && written.is_ok());
        } else {
            assert!(!may("-w", &program).0);
            assert_eq!(errno(written), libc::EACCES);
        }
        mount.unmount();
    }
}

#[test]
fn root_alone_needs_no_checks_and_so_no_attributes_of_a_folder_that_changed() {
    use std::os::unix::fs::PermissionsExt as _;
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    for (options, checks) in
        [(&["--seal", "manual"][..], false), (&["--seal", "manual", "--allow-other"], true)]
    {
        let mount = Mount::of(store.root()).args(options).start();
        let w = fork(&mount, &format!("try-{checks}"), &id);
        let before = mount.requests("getattr");
        for n in 0..200 {
            File::create(w.join(format!("new-{n}"))).unwrap();
        }
        let asked = mount.requests("getattr") - before;
        assert!(if checks { asked > 150.0 } else { asked < 50.0 }, "{asked} times for 200 files");
        mount.unmount();
    }
    // A user with the name of root and without its capabilities has root's access, unless checks are
    // requested.
    for (options, checked) in [("async", false), ("default_permissions", true)] {
        let mount = Mount::of(store.root()).args(["-o", options, "--seal", "manual"]).start();
        let path = fork(&mount, options, &id).join("README");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        let may = |does: &str| {
            Command::new("setpriv")
                .args(["--bounding-set=-all", "--inh-caps=-all", "sh", "-c", does])
                .arg(&path)
                .stderr(Stdio::null())
                .status()
                .expect("setpriv")
                .success()
        };
        assert!(may("read line < \"$0\""), "{options}");
        assert_eq!(may("echo more >> \"$0\""), !checked, "{options}");
        mount.unmount();
    }
}

#[test]
fn a_name_that_is_not_there_is_asked_for_once_and_found_as_soon_as_it_is() {
    let (store, id) = small_store();
    for writes in ["through", "back"] {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let w = fork(&mount, &format!("try-{writes}"), &id);
        let missing = |name: &str| fs::symlink_metadata(w.join(name)).is_err();
        assert!(missing("src/new") && missing("moved") && missing("linked") && missing("soft"));
        let lookups = mount.requests("lookup");
        for _ in 0..100 {
            assert!(missing("src/new") && missing("moved"));
        }
        // Reading the counters takes lookups itself.
        assert!(mount.requests("lookup") - lookups < 20.0, "a missing name is asked for again and again");
        fs::write(w.join("src/new"), b"new").unwrap();
        assert_eq!(fs::read(w.join("src/new")).unwrap(), b"new");
        fs::rename(w.join("src/new"), w.join("moved")).unwrap();
        assert_eq!(fs::read(w.join("moved")).unwrap(), b"new");
        assert!(missing("src/new"));
        fs::hard_link(w.join("moved"), w.join("linked")).unwrap();
        symlink("moved", w.join("soft")).unwrap();
        assert_eq!(fs::read(w.join("linked")).unwrap(), b"new");
        assert_eq!(fs::read(w.join("soft")).unwrap(), b"new");
        fs::remove_file(w.join("moved")).unwrap();
        assert!(missing("moved") && !missing("linked"));
        // A copy of the fork, and the fork after a restore to its beginning, have separate names.
        assert!(missing("copied"));
        let copy = fork(&mount, &format!("copy-{writes}"), &format!("try-{writes}"));
        fs::write(copy.join("copied"), b"").unwrap();
        assert!(copy.join("copied").exists() && missing("copied"));
        mount.unmount();
    }
}
