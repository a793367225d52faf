//! Corners of POSIX by which programs notice that a filesystem is not a disk. If possible, the tests compare with a plain folder.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{Access, CWD, FallocateFlags, RenameFlags, renameat_with};

use super::support::MODES;
use crate::common::cli::{pfimg_on, tool};
use crate::common::disk::SmallDisk;
use crate::common::forks::{fallocate, fork, map_shared, open_rw, small_store, world};
use crate::common::{Mount, errno, is_root, names, wait_until};

/// Changes files of another user in every way, by a process in the groups of its second argument, and prints the resulting modes. A
/// second file of each mode is changed through a mapping, which clears no bit.
const CHANGE: &str = r#"
import ctypes, mmap, os, sys
folder, groups = sys.argv[1], [int(gid) for gid in sys.argv[2:]]
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
def allocate(mode, offset, length):
    def act(file):
        if libc.fallocate(file, mode, offset, length): raise OSError(ctypes.get_errno(), "fallocate")
    return act
def direct(file):
    page = mmap.mmap(-1, 4096)
    page.write(b"d" * 4096)
    os.pwritev(os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_DIRECT), [page], 0)
def mapped(file):
    with mmap.mmap(file, 4096) as pages: pages[5:6] = b"m"
acts = {
    "write": lambda file: os.pwrite(file, b"w", 0), "direct": direct, "mapped": mapped,
    "append": lambda file: os.write(os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_APPEND), b"a"),
    "cut": lambda file: os.ftruncate(file, 100), "longer": lambda file: os.ftruncate(file, 10000),
    "allocate": allocate(0, 0, 65536), "allocate inside": allocate(0, 0, 4096),
    "allocate behind": allocate(1, 0, 65536), "punch": allocate(3, 0, 4096), "zero": allocate(16, 0, 4096),
    "copy": lambda file: os.copy_file_range(os.open(folder + "/source", os.O_RDONLY), file, 100, 0, 0),
}
open(folder + "/source", "wb").write(b"s" * 8192)
for mode in (0o4777, 0o2777, 0o6777, 0o2767, 0o6767):
    for name, act in acts.items():
        path = f"{folder}/{mode:o} {name}"
        open(path, "wb").write(b"b" * 8192)
        os.chown(path, 5, 7)
        os.chmod(path, mode)
        child = os.fork()
        if child == 0:
            os.setgroups(groups); os.setgid(65534); os.setuid(65534)
            try: act(os.open(path, os.O_RDWR))
            except OSError as error: os._exit(error.errno)
            os._exit(0)
        failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{mode:o} {name}: {os.stat(path).st_mode & 0o7777:o}" + (f" errno {failed}" if failed else ""))
"#;

/// A mount for all users, and a folder of a fork that all of them may change.
fn open_to_all(store: &Path, writes: &str, id: &str) -> (Mount, std::path::PathBuf) {
    let args = ["--allow-other", "-o", "suid,dev", "--seal", "manual", "--writes", writes];
    let mount = Mount::of(store).args(args).start();
    let w = fork(&mount, &format!("f-{writes}"), id);
    for dir in w.ancestors().take(3) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Only this test uses the folder of the mountpoint.
    fs::set_permissions(mount.path().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let folder = w.join("all");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    (mount, folder)
}

/// A plain folder that all users may change.
fn plain_for_all() -> tempfile::TempDir {
    let plain = tempfile::tempdir().unwrap();
    fs::set_permissions(plain.path(), fs::Permissions::from_mode(0o777)).unwrap();
    plain
}

#[test]
fn set_id_bits_fall_as_on_a_disk_whatever_changes_the_content() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let plain = plain_for_all();
    for groups in [&[][..], &["7"], &["8", "7"]] {
        let change = |folder: &Path| {
            let args = ["-c", CHANGE, folder.to_str().unwrap()].into_iter().chain(groups.iter().copied());
            tool("python3", args).exits(0).stdout
        };
        let told = change(plain.path());
        assert!(told.lines().count() == 60 && !told.contains("errno"), "{told}");
        for writes in MODES {
            let (mount, folder) = open_to_all(store.root(), writes, &id);
            assert_eq!(change(&folder), told, "{writes}, groups {groups:?}");
            mount.unmount();
            pfimg_on(store.root(), ["discard", "--force", &format!("f-{writes}")]).exits(0);
        }
    }
}

#[test]
fn a_program_that_another_user_wrote_to_runs_without_its_owners_rights() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let plain = plain_for_all();
    // Without a look at the file between the write and the start, so the kernel itself must know the new mode.
    let script = "import os, sys\npath = sys.argv[1]\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
                  file = os.open(path, os.O_RDWR)\nos.pwrite(file, os.pread(file, 4, 0), 0)\nos.close(file)\n\
                  os.execv(path, ['id'])\n";
    let run = |folder: &Path| {
        let program = folder.join("id");
        crate::common::cli::copy_program("/usr/bin/id", &program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o6777)).unwrap();
        tool("python3", ["-c".as_ref(), script.as_ref(), program.as_os_str()]).exits(0).stdout
    };
    let expected = run(plain.path());
    assert!(!expected.contains("euid"), "{expected}");
    for writes in MODES {
        let (mount, folder) = open_to_all(store.root(), writes, &id);
        assert_eq!(run(&folder), expected, "{writes}");
        // A write by root without the capability to keep the bits clears them too.
        let program = folder.join("root's");
        fs::write(&program, "program").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        let script = "printf x >> \"$0\"";
        let args = ["--bounding-set=-fsetid", "--inh-caps=-all", "sh", "-c", script];
        tool("setpriv", args.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()])).exits(0);
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o755, "{writes}");
        mount.unmount();
    }
}

#[test]
fn a_listing_ends_although_its_reader_renames_or_makes_what_it_lists() {
    const FILES: usize = 3000;
    let (mut store, _) = small_store();
    let entries: Vec<_> = (0..FILES).map(|n| store.file(&format!("f{n:05}"), b"")).collect();
    let fs_tree = store.tree(&entries);
    let id = store.image(&crate::common::fast::Spec { fs: Some(fs_tree), ..Default::default() });
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let of_image = fork(&mount, "of-image", &id);
    let own = of_image.join("own");
    fs::create_dir(&own).unwrap();
    let plain = tempfile::tempdir().unwrap();
    for folder in [own.as_path(), plain.path()] {
        for n in 0..FILES {
            File::create(folder.join(format!("f{n:05}"))).unwrap();
        }
    }
    // Returns the number of entries. As on a disk, there may be more entries than names.
    let list = |folder: &Path, each: &dyn Fn(&Path, usize)| {
        let mut seen = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                continue;
            }
            seen += 1;
            assert!(seen <= 4 * FILES, "{} is listed without an end", folder.display());
            each(&path, seen);
        }
        seen
    };
    let rename = |path: &Path, seen: usize| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        fs::rename(path, path.with_file_name(format!("{stem}.{seen}"))).unwrap();
    };
    let make = |path: &Path, seen: usize| {
        File::create(path.with_file_name(format!("made-{seen}"))).unwrap();
    };
    for (folder, at_most) in [(plain.path(), 4 * FILES), (&of_image, 2 * FILES), (&own, FILES)] {
        let seen = list(folder, &rename);
        assert!((FILES..=at_most).contains(&seen), "{}: {seen}", folder.display());
        let left = names(folder).unwrap().into_iter().filter(|name| name.contains('.')).count();
        assert_eq!(left, FILES, "{}", folder.display());
    }
    for folder in [&of_image, &own] {
        assert_eq!(list(folder, &make), FILES, "{}", folder.display());
        // The next listing has all of them.
        assert_eq!(list(folder, &|_, _| ()), 2 * FILES, "{}", folder.display());
    }
    mount.unmount();
}

#[test]
fn a_rename_keeps_an_entry_in_a_listing_that_has_not_come_to_it() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let folder = fork(&mount, "f", &id).join("own");
    fs::create_dir(&folder).unwrap();
    for n in 0..3000 {
        File::create(folder.join(format!("a-name-of-some-length-{n:05}"))).unwrap();
    }
    let mut listing = fs::read_dir(&folder).unwrap();
    let first = listing.next().unwrap().unwrap().file_name();
    fs::rename(folder.join("a-name-of-some-length-02999"), folder.join("last")).unwrap();
    let mut rest: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(rest.pop().unwrap(), "last");
    assert!(rest.len() == 2998 && !rest.contains(&first));
    mount.unmount();
}

#[test]
fn fallocate_takes_no_more_than_the_disk_has() {
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        let w = fork(&mount, &format!("f-{writes}"), &id);
        let free = || {
            let disk = rustix::fs::statvfs(store.root()).unwrap();
            disk.f_bavail * disk.f_frsize
        };
        let (path, before) = (w.join("large"), free());
        for flags in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
            let file = File::create(&path).unwrap();
            let refused = fallocate(&file, flags, 0, before + (1 << 40));
            assert_eq!(errno(refused), libc::ENOSPC, "{writes} {flags:?}");
            assert_eq!(file.metadata().unwrap().len(), 0, "{writes} {flags:?}");
        }
        // Other programs use the disk as well.
        assert!(free() > before / 2, "it filled the disk before it found out");
        mount.unmount();
    }
}

#[test]
fn space_from_fallocate_can_be_written_after_the_disk_is_full() {
    const SIZE: usize = 8 << 20;
    if !is_root() {
        eprintln!("mounting a small filesystem takes root");
        return;
    }
    let (seedling, id) = small_store();
    for writes in MODES {
        let small = SmallDisk::of_mebibytes(32);
        let store = small.path().join("store");
        tool("cp", ["-r".as_ref(), seedling.root().as_os_str(), store.as_os_str()]).exits(0);
        let mount = Mount::of(&store).args(["--writes", writes, "--seal", "manual"]).start();
        let w = fork(&mount, "f", &id);
        let (grown, kept) = (w.join("grown"), w.join("kept"));
        fallocate(&File::create(&grown).unwrap(), FallocateFlags::empty(), 0, SIZE as u64).unwrap();
        fallocate(&File::create(&kept).unwrap(), FallocateFlags::KEEP_SIZE, 0, SIZE as u64).unwrap();
        let sizes = [&grown, &kept].map(|path| fs::metadata(path).unwrap().len());
        assert_eq!(sizes, [SIZE as u64, 0], "{writes}");
        assert!(fs::read(&grown).unwrap().iter().all(|byte| *byte == 0));
        let free = || rustix::fs::statvfs(small.path()).unwrap().f_bavail;
        let ballast = fs::write(small.path().join("ballast"), vec![1; 32 << 20]);
        assert_eq!((errno(ballast), free()), (libc::ENOSPC, 0), "{writes}");
        for (path, step) in [(&grown, 4096), (&kept, 1 << 20)] {
            let file = open_rw(path).unwrap();
            for at in (0..SIZE).step_by(step) {
                file.write_all_at(&vec![7; step], at as u64).unwrap_or_else(|e| panic!("{writes} {at}: {e}"));
            }
            crate::common::forks::close(file).unwrap();
            assert!(fs::read(path).unwrap() == vec![7; SIZE], "{writes}");
        }
        let more = File::create(w.join("more")).unwrap();
        let written = more.write_all_at(&vec![1; 1 << 20], 0);
        let closed = crate::common::forks::close(more);
        assert_eq!(errno(written.and(closed)), libc::ENOSPC, "{writes}");
        fs::remove_file(small.path().join("ballast")).unwrap();
        mount.unmount();
    }
}

#[test]
fn fallocate_counts_as_a_change_where_it_does_on_a_disk() {
    let (store, id) = small_store();
    let plain = tempfile::tempdir().unwrap();
    let change = |folder: &Path, flags, offset, len| {
        let path = folder.join("changed");
        fs::write(&path, [7; 8192]).unwrap();
        let file = open_rw(&path).unwrap();
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        file.set_times(fs::FileTimes::new().set_modified(long_ago)).unwrap();
        fallocate(&file, flags, offset, len).unwrap();
        let meta = file.metadata().unwrap();
        (meta.mtime() == 1000, meta.len())
    };
    let (keep, punch, zero) =
        (FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        let w = fork(&mount, &format!("f-{writes}"), &id);
        for flags in [FallocateFlags::empty(), keep, punch | keep, zero, zero | keep] {
            for (offset, len) in [(0, 100), (4096, 8192), (20_000, 4096)] {
                let want = change(plain.path(), flags, offset, len);
                assert_eq!(change(&w, flags, offset, len), want, "{writes} {flags:?} {offset} {len}");
            }
        }
        mount.unmount();
    }
}

#[test]
fn a_file_handle_is_refused_before_it_could_lead_nowhere() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "f", &id);
    let script = "import ctypes, errno, os, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        for path in sys.argv[1:]:\n\
        \x20   handle = (ctypes.c_uint * 40)(128)\n\
        \x20   done = libc.name_to_handle_at(-100, os.fsencode(path), handle, ctypes.byref(ctypes.c_int()), 0)\n\
        \x20   print(done, ctypes.get_errno() == errno.EOPNOTSUPP)\n";
    let args = ["python3", "-c", script];
    let image = mount.image(&id);
    let paths = [w.join("README"), w, image.join("world/fs/README"), image, mount.path().to_owned()];
    let args = args[1..].iter().map(std::ffi::OsStr::new).chain(paths.iter().map(|path| path.as_os_str()));
    assert_eq!(tool("python3", args).exits(0).stdout, "-1 True\n".repeat(5));
    mount.unmount();
}

#[test]
fn every_folder_has_a_size_that_stays() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let w = fork(&mount, "f", &id);
    let image = mount.image(&id);
    let inside = [
        "",
        "images",
        "tags",
        "agents",
        "forks",
        "work",
        ".pfimg",
        "forks/f",
        "forks/f/model",
        "forks/f/.snap",
    ];
    let folders = inside.iter().map(|path| mount.join(path));
    let folders: Vec<_> =
        folders.chain([w.join("src"), w.clone(), image.join("world/fs/src"), image]).collect();
    let sizes = || folders.iter().map(|folder| fs::metadata(folder).unwrap().len()).collect::<Vec<_>>();
    assert_eq!(sizes(), vec![4096; folders.len()]);
    for n in 0..500 {
        File::create(w.join("src").join(format!("{n}"))).unwrap();
    }
    assert_eq!(sizes(), vec![4096; folders.len()]);
    assert_eq!(fs::metadata(w.join("src")).unwrap().blocks(), 8);
    mount.unmount();
}

#[test]
fn access_2_reports_files_that_can_never_be_written() {
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        let w = fork(&mount, &format!("f-{writes}"), &id);
        let image = mount.image(&id);
        let may = |path: &Path| rustix::fs::access(path, Access::WRITE_OK);
        let fixed = ["world/fs/README", "world/fs/src", "world/fs", "manifest.json", "model/base", ""];
        for path in
            fixed.map(|path| image.join(path)).iter().chain(&["", "images", "work"].map(|p| mount.join(p)))
        {
            // For an ordinary user the kernel checks modes itself, and asks the daemon nothing.
            if is_root() {
                assert_eq!(may(path), Err(rustix::io::Errno::ROFS), "{writes} {}", path.display());
            }
        }
        for path in [&w, &w.join("README"), &w.join("src"), &mount.join("forks"), &mount.join("tags")] {
            assert_eq!(may(path), Ok(()), "{writes} {}", path.display());
        }
        let open = File::options().append(true).open(image.join("world/fs/README"));
        match writes {
            "back" => assert_eq!(errno(open), libc::EROFS),
            // The kernel opens the file without asking, so the first write gives the error.
            _ => assert_eq!(errno(open.unwrap().write_at(b"x", 0)), libc::EROFS),
        }
        assert_eq!(errno(File::create(image.join("world/fs/README"))), libc::EROFS, "{writes}");
        mount.unmount();
    }
}

#[test]
fn a_rename_can_leave_a_whiteout_which_lasts() {
    let (store, id) = small_store();
    let is_whiteout = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        meta.file_type().is_char_device() && meta.rdev() == 0
    };
    for writes in MODES {
        let name = format!("f-{writes}");
        let start =
            || Mount::of(store.root()).args(["--seal", "manual", "--xattrs", "--writes", writes]).start();
        let mount = start();
        let w = fork(&mount, &name, &id);
        let rename = |from: &str, to: &str, flags| {
            renameat_with(CWD, w.join(from), CWD, w.join(to), flags).map_err(std::io::Error::from)
        };
        fs::write(w.join("own"), "own").unwrap();
        fs::write(w.join("replaced"), "old").unwrap();
        rename("own", "moved", RenameFlags::WHITEOUT).unwrap();
        rename("README", "replaced", RenameFlags::WHITEOUT).unwrap();
        rename("src", "bin/src", RenameFlags::WHITEOUT | RenameFlags::NOREPLACE).unwrap();
        let taken = rename("moved", "replaced", RenameFlags::WHITEOUT | RenameFlags::NOREPLACE);
        assert_eq!(errno(taken), libc::EEXIST, "{writes}");
        let judge = |w: &Path, what: &str| {
            for old in ["own", "README", "src"] {
                assert!(is_whiteout(&w.join(old)), "{writes}, {what}: {old}");
                assert_eq!(
                    names(w).unwrap().iter().filter(|name| *name == old).count(),
                    1,
                    "{writes}, {what}"
                );
            }
            assert_eq!(fs::read(w.join("moved")).unwrap(), b"own", "{writes}, {what}");
            assert_eq!(fs::read(w.join("replaced")).unwrap(), b"read me\n", "{writes}, {what}");
            assert_eq!(names(&w.join("bin/src")).unwrap(), ["lib.rs", "main.rs"], "{writes}, {what}");
        };
        judge(&w, "renamed");
        let links = |path: &Path| fs::metadata(path).unwrap().nlink();
        let expected = 2 + fs::read_dir(&w).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
        assert_eq!(links(&w), expected as u64, "{writes}");
        // The daemon is killed, so that only the journal has the whiteout.
        let mut mount = mount;
        mount.kill();
        drop(mount);
        let mount = start();
        judge(&world(&mount, &name), "read back");
        let tag = format!("sealed-{writes}");
        pfimg_on(store.root(), ["seal", &name, "--tag", &tag]).exits(0);
        judge(&mount.join("tags").join(&tag).join("world/fs"), "sealed");
        judge(&fork(&mount, &format!("again-{writes}"), &tag), "forked");
        assert_eq!(pfimg_on(store.root(), ["diff", "--layers", &name, &tag]).exits(0).stdout, "", "{writes}");
        let changed = pfimg_on(store.root(), ["diff", &id, &tag]).exits(0).stdout;
        assert!(changed.lines().any(|line| line.starts_with('T') && line.ends_with("README")), "{changed}");
        mount.unmount();
        let out = tempfile::tempdir().unwrap();
        let (exported, imported) = (out.path().join("out"), format!("imported-{writes}"));
        pfimg_on(store.root(), ["export".as_ref(), tag.as_ref(), exported.as_os_str()]).exits(0);
        judge(&exported, "exported");
        pfimg_on(
            store.root(),
            ["import".as_ref(), exported.as_os_str(), "--tag".as_ref(), imported.as_ref()],
        )
        .exits(0);
        let mount = start();
        judge(&mount.join("tags").join(&imported).join("world/fs"), "imported");
        mount.unmount();
    }
}

#[test]
fn a_fork_is_the_upper_folder_of_an_overlay() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--xattrs", "--seal", "manual", "-o", "suid,dev"]).start();
    let w = fork(&mount, "f", &id);
    for folder in ["upper", "work", "merged"] {
        fs::create_dir(w.join(folder)).unwrap();
    }
    let at = |folder: &str| w.join(folder).display().to_string();
    let lower = mount.image(&id).join("world/fs").display().to_string();
    let options = format!("lowerdir={lower},upperdir={},workdir={}", at("upper"), at("work"));
    let mounted = tool("mount", ["-t", "overlay", "none", "-o", &options, &at("merged")]);
    if mounted.stderr.contains("unknown filesystem") {
        eprintln!("this kernel has no overlays");
    } else {
        mounted.exits(0);
        let merged = w.join("merged");
        fs::remove_file(merged.join("README")).unwrap();
        fs::write(merged.join("src/lib.rs"), "changed").unwrap();
        fs::rename(merged.join("src/lib.rs"), merged.join("src/moved.rs")).unwrap();
        fs::remove_dir_all(merged.join("bin")).unwrap();
        fs::create_dir(merged.join("bin")).unwrap();
        assert_eq!(names(&merged.join("src")).unwrap(), ["main.rs", "moved.rs"]);
        assert!(names(&merged.join("bin")).unwrap().is_empty() && !merged.join("README").exists());
        // A program that another test starts has this test's descriptors until it runs.
        wait_until("the overlay is unmounted", || tool("umount", [merged.as_os_str()]).code == 0);
        assert_eq!(fs::read(w.join("upper/src/moved.rs")).unwrap(), b"changed");
        assert!(fs::symlink_metadata(w.join("upper/README")).unwrap().file_type().is_char_device());
    }
    mount.unmount();
}

#[test]
fn bytes_behind_the_end_of_a_file_do_not_become_its_content_once_its_pages_are_written() {
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        let w = fork(&mount, &format!("f-{writes}"), &id);
        fs::write(w.join("source"), [b's'; 100]).unwrap();
        type Grow<'a> = &'a dyn Fn(&File);
        let ways: [(&str, Grow<'_>); 6] = [
            ("cut", &|file| file.set_len(8000).unwrap()),
            ("write", &|file| file.write_all_at(b"w", 5000).unwrap()),
            ("write in the page", &|file| file.write_all_at(b"w", 1000).unwrap()),
            ("allocate", &|file| fallocate(file, FallocateFlags::empty(), 0, 8000).unwrap()),
            ("zero", &|file| fallocate(file, FallocateFlags::ZERO_RANGE, 4096, 4000).unwrap()),
            ("copy", &|file| {
                let source = File::open(w.join("source")).unwrap();
                rustix::fs::copy_file_range(&source, None, file, Some(&mut 5000), 100).unwrap();
            }),
        ];
        for (name, grow) in ways {
            for cut in [false, true] {
                let path = w.join(name);
                fs::write(&path, vec![b'a'; 4096]).unwrap();
                let file = open_rw(&path).unwrap();
                let mut map = map_shared(&file).unwrap();
                file.set_len(100).unwrap();
                map[50..60].fill(b'm');
                map[200..300].fill(b'X');
                // Only a shorter file, or msync(2), takes from the page what is behind the end (a rule of the kernel's).
                if cut {
                    file.set_len(80).unwrap();
                } else {
                    map.flush().unwrap();
                }
                grow(&file);
                let bytes = fs::read(&path).unwrap();
                assert!(!bytes.contains(&b'X') && bytes[50..60] == [b'm'; 10], "{writes} {name} {cut}");
                drop((map, file));
                // The daemon has the same bytes: a copy does not use the kernel's pages.
                let copy = w.join("a copy");
                let _ = fs::remove_file(&copy);
                fs::copy(&path, &copy).unwrap();
                assert!(fs::read(&copy).unwrap() == bytes, "{writes} {name} {cut}");
            }
        }
        mount.unmount();
    }
}

#[test]
fn too_long_names_get_their_own_error_everywhere() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let long = |length| "n".repeat(length);
    let forks = mount.join("forks");
    for length in [201, 255, 256, 1000] {
        let made = fs::create_dir(forks.join(format!("{}@{id}", long(length))));
        assert_eq!(errno(made), libc::ENAMETOOLONG, "{length}");
        assert_eq!(errno(fs::create_dir(forks.join(long(length)))), libc::ENAMETOOLONG, "{length}");
        assert_eq!(
            errno(fs::rename(forks.join("f"), forks.join(long(length)))),
            libc::ENAMETOOLONG,
            "{length}"
        );
    }
    fs::create_dir(forks.join(long(200))).unwrap();
    for folder in ["images", "tags", "work", "forks", "forks/f/world/fs", "latest", "latest/world/fs/src"] {
        let looked = fs::symlink_metadata(mount.join(folder).join(long(256)));
        assert_eq!(errno(looked), libc::ENAMETOOLONG, "{folder}");
    }
    wait_until("the fork is listed", || names(&forks).unwrap().len() == 2);
    mount.unmount();
}
