//! What happens around a mount: containers without what it needs, bind mounts, mount(8), and a store that is moved.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::support::{point, read, small_store};
use crate::common::cli::{Run, pfimg_on, tool};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, map_shared, open_rw, world};
use crate::common::mount::Background;
use crate::common::{Mount, Output, errno, is_root, names, pfimg, system, temp_dir, wait_until};

/// Runs `pfimg` behind another command, as this user.
fn behind(before: &[&str], program: &Path, args: &[&OsStr], home: &Path, user: Option<u32>) -> Output {
    let (first, rest) = before.split_first().unwrap();
    let rest = rest.iter().map(OsStr::new).chain([program.as_os_str()]).chain(args.iter().copied());
    Run::program(Path::new(first), rest).env("HOME", home).user(user).run()
}

/// A user who is not root, and a copy of the program, a store and a folder that this user may use.
fn ordinary() -> (Option<u32>, tempfile::TempDir, PathBuf, FastStore) {
    let (store, _) = small_store();
    let (dir, home) = temp_dir();
    let program = home.join("pfimg");
    crate::common::cli::copy_program(crate::common::PFIMG, &program);
    std::fs::create_dir(home.join("mnt")).unwrap();
    let user = is_root().then_some(65534);
    if let Some(user) = user {
        for path in [dir.path(), store.root().parent().unwrap()] {
            let owner = format!("{user}:{user}");
            tool("chown", [OsStr::new("-R"), OsStr::new(&owner), path.as_os_str()]).exits(0);
        }
    }
    (user, dir, home, store)
}

#[test]
fn no_new_privileges_are_named_in_the_errors_of_mount_and_umount() {
    let (user, _dir, home, store) = ordinary();
    let (program, point) = (home.join("pfimg"), home.join("mnt"));
    let mut background = Background { point: point.clone(), pid: None };
    let bound = ["setpriv", "--no-new-privs"];
    let mount = [OsStr::new("mount"), store.root().as_os_str(), point.as_os_str()];
    let said = behind(&bound, &program, &mount, &home, user);
    assert!(said.code == 7 && said.stderr.contains("without no_new_privs"), "{said:?}");
    behind(&["env"], &program, &mount, &home, user).exits(0);
    let status = behind(&["cat"], &point.join(".pfimg/status.json"), &[], &home, user).exits(0).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let pid = status["pid"].as_u64().unwrap() as u32;
    background.pid = Some(pid);
    let umount = [OsStr::new("umount"), point.as_os_str()];
    let said = behind(&bound, &program, &umount, &home, user);
    assert!(said.code == 7 && said.stderr.contains("without no_new_privs"), "{said:?}");
    assert!(said.stderr.contains(&format!("`kill {pid}`")), "{said:?}");
    // The daemon can unmount, unlike the command.
    behind(&bound, Path::new("kill"), &[OsStr::new(&pid.to_string())], &home, user).exits(0);
    wait_until("the mount is gone", || system::types_at(&point).is_empty());
}

#[test]
fn root_in_a_container_gets_errors_about_the_capability_and_dev_null() {
    if !is_root() {
        // Only root can take these away from root.
        return;
    }
    let (store, _) = small_store();
    let (_dir, point) = point();
    let home = point.parent().unwrap().to_owned();
    let args = [OsStr::new("mount"), store.root().as_os_str(), point.as_os_str()];
    let program = Path::new(crate::common::PFIMG);
    let without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    let said = behind(&without, program, &args, &home, None);
    assert!(said.code == 7 && said.stderr.contains("--cap-add SYS_ADMIN"), "{said:?}");
    // A /dev with what the program needs, and without /dev/null.
    let devices = "mount -t tmpfs none /dev && mknod -m 666 /dev/fuse c 10 229 && mknod /dev/urandom c 1 9 && exec \"$@\"";
    let without = ["unshare", "-m", "--propagation", "private", "sh", "-c", devices, "sh"];
    let said = behind(&without, program, &args, &home, None);
    assert!(said.code != 0 && said.stderr.contains("mknod -m 666 /dev/null"), "{said:?}");
    assert!(system::types_at(&point).is_empty());
}

#[test]
fn umount_of_a_bind_mount_says_where_the_mount_still_shows() {
    if !is_root() {
        // An ordinary user makes no bind mounts.
        return;
    }
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let (_dir, bind) = point();
    rustix::mount::mount_bind(mount.path(), &bind).unwrap();
    let said = pfimg([OsStr::new("umount"), bind.as_os_str()]).exits(0);
    let other = format!("the same mount shows at {},", mount.path().display());
    assert!(said.stderr.contains(&other), "{said:?}");
    assert!(system::types_at(&bind).is_empty());
    assert_eq!(read(&mount, &id), b"content", "the mount continues");
    mount.unmount();
}

#[test]
fn a_mount_can_be_made_read_only_by_pfimg_and_by_mount_8() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["-o", "noexec"]).start();
    let file = fork(&mount, "f", &id).join("file");
    let top = mount.path().to_owned();
    let remount =
        |options: &str| pfimg(["mount", "-o", options].map(OsStr::new).into_iter().chain([top.as_os_str()]));
    if !is_root() {
        let said = remount("remount,ro");
        assert!(said.code == 7 && said.stderr.contains("--read-only"), "{said:?}");
        mount.unmount();
        return;
    }
    // Another process writes. A child that another test starts at that moment would inherit a descriptor of this process that is open
    // for writing, and the kernel would refuse to make the mount read-only.
    let write = || tool("sh", [OsStr::new("-c"), OsStr::new("echo 1 > \"$0\""), file.as_os_str()]).exits(0);
    write();
    remount("remount,ro").exits(0);
    assert_eq!(errno(std::fs::write(&file, "2")), libc::EROFS);
    let listed = system::mounts_at(mount.path()).pop().unwrap().options;
    assert!(
        ["ro", "noexec", "nosuid"].iter().all(|option| listed.iter().any(|has| has == option)),
        "{listed:?}"
    );
    remount("remount,rw").exits(0);
    write();
    // mount(8) runs pfimg through mount.fuse, which looks for pfimg in the system's path. Here only a namespace has it there.
    let script = "mount -t tmpfs none /usr/local/bin && cp \"$0\" /usr/local/bin/pfimg && mount -o \"$1\" \"$2\" \
         && grep \" $2 \" /proc/self/mountinfo";
    let by_mount_8 = |options: &str, is: &str| {
        let before = ["-m", "--propagation", "private", "sh", "-c", script, crate::common::PFIMG, options];
        let listed =
            tool("unshare", before.map(OsStr::new).into_iter().chain([top.as_os_str()])).exits(0).stdout;
        let kept = [is, "noexec", "nosuid", "nodev"];
        assert!(
            kept.iter().all(|option| listed.split([' ', ',', '\n']).any(|has| has == *option)),
            "{listed}"
        );
    };
    by_mount_8("remount,ro", "ro");
    assert_eq!(errno(std::fs::write(&file, "4")), libc::EROFS);
    by_mount_8("remount,rw", "rw");
    std::fs::write(&file, "5").unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"5");
    mount.unmount();
}

#[test]
fn mount_8_mounts_a_store_by_its_type_and_umount_ends_it() {
    if !is_root() {
        // mount(8) asks for root.
        return;
    }
    let (store, id) = small_store();
    let (_dir, point) = point();
    let script = "mount -t tmpfs none /usr/local/bin && cp \"$0\" /usr/local/bin/pfimg \
         && mount -t fuse.pfimg -o ro,nosuid,nodev \"$1\" \"$2\" && grep \" $2 \" /proc/self/mountinfo \
         && cat \"$2/images/$3/world/fs/file\"; umount \"$2\"";
    let before = ["-m", "--propagation", "private", "sh", "-c", script, crate::common::PFIMG];
    let words = before.map(OsStr::new).into_iter();
    let words = words.chain([store.root().as_os_str(), point.as_os_str(), OsStr::new(&id)]);
    let home = point.parent().unwrap();
    let said = Run::program(Path::new("unshare"), words).env("HOME", home).run().exits(0);
    for word in ["fuse.pfimg", " ro,nosuid,nodev,", "content"] {
        assert!(said.stdout.contains(word), "{word}: {said:?}");
    }
}

/// What is below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            [vec![path.clone()], below(&path)].concat()
        })
        .collect()
}

#[test]
fn a_store_moved_while_mounted_is_noticed_and_never_made_again() {
    for writes in ["through", "back"] {
        let (store, id) = crate::common::forks::small_store();
        let old = store.root().to_owned();
        let new = old.with_file_name("moved");
        let mount = Mount::of(&old).args(["--writes", writes, "--seal", "idle:1ms"]).start();
        let files = fork(&mount, "f", &id);
        std::fs::write(files.join("before"), "before").unwrap();
        std::fs::write(files.join("mapped"), "before").unwrap();
        let mut map = map_shared(&open_rw(&files.join("mapped")).unwrap()).unwrap();
        map[..6].copy_from_slice(b"mapped");
        std::fs::rename(&old, &new).unwrap();
        // At once, before the daemon has noticed the move. Every acknowledged write is kept.
        let kept: Vec<String> = (0..50)
            .map(|n| format!("kept-{n}"))
            .filter(|name| {
                let file = std::fs::File::create_new(files.join(name));
                file.and_then(|mut file| {
                    std::io::Write::write_all(&mut file, &vec![7; 100_000])?;
                    file.sync_all()
                })
                .is_ok()
            })
            .collect();
        wait_until("the daemon notices", || !mount.log_lines(&["was moved to"]).is_empty());
        // Earlier writes are kept, or the program gets an error that they may not be.
        let synced = map.flush();
        let is_kept = synced.is_ok();
        assert!(is_kept || errno(synced) == libc::ESTALE, "{writes}");
        drop(map);
        assert_eq!(errno(std::fs::write(files.join("after"), "x")), libc::ESTALE, "{writes}");
        assert_eq!(errno(std::fs::create_dir(mount.join(format!("forks/g@{id}")))), libc::ESTALE);
        assert_eq!(errno(std::fs::create_dir(mount.join("forks/f/.snap/s"))), libc::ESTALE);
        assert_eq!(errno(names(&mount.join("images"))), libc::ESTALE, "an empty listing would be wrong");
        assert!(std::fs::read_dir(mount.path()).is_ok());
        let shown = pfimg([OsStr::new("status"), mount.path().as_os_str()]).exits(0).stdout;
        assert!(shown.contains(&format!("the store lies at {} now", new.display())), "{shown}");
        assert_eq!(below(&old), [] as [PathBuf; 0], "{writes}");
        assert!(!old.exists(), "{writes}");
        // Moved back, the store works again.
        std::fs::rename(&new, &old).unwrap();
        wait_until("the forks can be written again", || std::fs::write(files.join("after"), "after").is_ok());
        assert!(names(&mount.join("images")).unwrap().contains(&id));
        std::fs::rename(&old, &new).unwrap();
        wait_until("the daemon notices", || mount.log_lines(&["was moved to"]).len() >= 2);
        mount.unmount();
        assert!(!old.exists(), "{writes}: nothing is made at the end either");
        let mount = Mount::of(&new).start();
        let files = world(&mount, "f");
        for name in ["before", "after"] {
            assert_eq!(std::fs::read_to_string(files.join(name)).unwrap(), name, "{writes}");
        }
        let mapped = std::fs::read_to_string(files.join("mapped")).unwrap();
        assert!(mapped == "mapped" || (!is_kept && mapped == "before"), "{writes}: {mapped}");
        for name in &kept {
            assert!(std::fs::read(files.join(name)).unwrap() == vec![7; 100_000], "{writes}: {name}");
        }
        pfimg_on(&new, ["verify"]).exits(0);
        mount.unmount();
        std::fs::rename(&new, &old).unwrap();
    }
}

#[test]
fn another_store_at_the_place_of_a_mounted_one_is_not_written() {
    let (store, id) = crate::common::forks::small_store();
    let (other, _) = crate::common::forks::small_store();
    let (old, away) = (store.root().to_owned(), store.root().with_file_name("away"));
    let mount = Mount::of(&old).start();
    let files = fork(&mount, "f", &id);
    std::fs::rename(&old, &away).unwrap();
    std::fs::rename(other.root(), &old).unwrap();
    let before = below(&old);
    wait_until("the daemon notices", || !mount.log_lines(&["was moved to"]).is_empty());
    assert_eq!(errno(std::fs::write(files.join("new"), vec![1; 200_000])), libc::ESTALE);
    assert_eq!(errno(std::fs::create_dir(mount.join(format!("forks/g@{id}")))), libc::ESTALE);
    assert_eq!(
        errno(std::os::unix::fs::symlink(format!("../images/{id}"), mount.join("tags/t"))),
        libc::ESTALE
    );
    assert_eq!(below(&old), before);
    std::fs::rename(&old, other.root()).unwrap();
    std::fs::rename(&away, &old).unwrap();
    mount.unmount();
}

#[test]
fn refused_changes_in_work_and_next_to_a_forks_files_are_explained_in_log_and_status() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).start();
    fork(&mount, "f", &id);
    for (what, result, hint) in [
        ("mkdir in work", std::fs::create_dir(mount.join("work/new")), "mkdir forks/NAME"),
        ("rm in work", std::fs::remove_file(mount.join("work/f")), "pfimg discard NAME"),
        ("mv in work", std::fs::rename(mount.join("work/f"), mount.join("work/g")), "mkdir forks/NAME"),
        ("a file at a fork's top", std::fs::write(mount.join("forks/f/notes"), "x"), "forks/f/world/fs"),
        ("a folder at a fork's top", std::fs::create_dir(mount.join("forks/f/src")), "forks/f/world/fs"),
    ] {
        assert_eq!(errno(result), libc::EPERM, "{what}");
        assert!(!mount.log_lines(&["refused: ", hint]).is_empty(), "{what}");
    }
    // A version of the document that no program has read yet is shown for a moment.
    wait_until("status shows what was refused last", || {
        let shown = pfimg([OsStr::new("status"), mount.path().as_os_str()]).exits(0).stdout;
        shown
            .lines()
            .any(|line| line.trim_start().starts_with("refused") && line.contains("src in forks/f: "))
    });
    assert_eq!(errno(std::fs::create_dir(mount.join("images/new"))), libc::EROFS);
    mount.unmount();
}

#[test]
fn a_store_named_with_a_tilde_is_in_the_home_folder() {
    let (_store, _) = small_store();
    let (_dir, home) = temp_dir();
    let here = temp_dir();
    let run = |args: &[&str], store: Option<&str>| {
        let run = Run::new(args.iter().map(OsStr::new)).env("HOME", &home).dir(&here.1);
        if let Some(store) = store { run.env("PF_STORE", store).run() } else { run.run() }
    };
    run(&["fixture"], Some("~/one")).exits(0);
    assert!(home.join("one/images").is_dir());
    run(&["--store=~/one", "images"], None).exits(0);
    assert_eq!(names(&here.1).unwrap(), [""; 0], "no folder named ~ is made");
    let said = run(&["images"], Some("~no-user-of-this-name/one")).exits(2);
    assert!(said.stderr.contains("full path"), "{said:?}");
    std::fs::create_dir_all(here.1.join("~/one")).unwrap();
    let said = run(&["images"], Some("~/one")).exits(2);
    assert!(said.stderr.contains("full path"), "{said:?}");
}
