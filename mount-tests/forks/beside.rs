//! Forks of a store that is mounted twice, and commands next to a mount.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::common::cli::{Run, pfimg, pfimg_on};
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, errno, names, wait_until};

#[test]
fn a_second_mount_shows_what_the_first_one_makes_of_the_forks_and_writes_them_once_it_is_gone() {
    let (store, id) = small_store();
    let first = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fs::write(fork(&first, "try", &id).join("mine"), "1").unwrap();
    let second = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let reading = Mount::of(store.root()).args(["--read-only"]).start();
    for mount in [&second, &reading] {
        assert_eq!(fs::read(world(mount, "try").join("mine")).unwrap(), b"1");
        assert!(!world(mount, "try").join("new").exists());
    }
    let text = "long ".repeat(100_000);
    fs::write(world(&first, "try").join("mine"), "2").unwrap();
    fs::write(world(&first, "try").join("new"), &text).unwrap();
    fork(&first, "other", &id);
    for mount in [&second, &reading] {
        let shows =
            |path: &str, content: &[u8]| fs::read(world(mount, "try").join(path)).is_ok_and(|c| c == content);
        wait_until("another mount shows it", || shows("mine", b"2") && shows("new", text.as_bytes()));
        wait_until("it lists the new fork", || names(&mount.join("forks")).unwrap() == ["other", "try"]);
        assert!(world(mount, "other").join("src").exists() || names(&world(mount, "other")).is_ok());
    }
    // A seal gives the fork another base, and removes the files it was read from.
    fs::create_dir(first.join("forks/try/.snap/sealed")).unwrap();
    fs::write(world(&first, "try").join("mine"), "3").unwrap();
    pfimg_on(store.root(), ["discard", "--force", "other"]).exits(0);
    for mount in [&second, &reading] {
        wait_until("it shows changes after a seal", || {
            fs::read(world(mount, "try").join("mine")).is_ok_and(|content| content == b"3")
        });
        assert_eq!(fs::read(world(mount, "try").join("new")).unwrap(), text.as_bytes());
        wait_until("the discarded one is gone", || names(&mount.join("forks")).unwrap() == ["try"]);
        assert_eq!(errno(fs::write(world(mount, "try").join("mine"), "4")), libc::EROFS);
    }
    first.unmount();
    wait_until("the second one writes", || fs::write(world(&second, "try").join("mine"), "4").is_ok());
    assert_eq!(fs::read(world(&second, "try").join("mine")).unwrap(), b"4");
    fs::create_dir(second.join("forks/try/.snap/by-the-second")).unwrap();
    assert_eq!(errno(fs::write(world(&reading, "try").join("mine"), "5")), libc::EROFS);
    wait_until("the third one shows it", || {
        fs::read(world(&reading, "try").join("mine")).is_ok_and(|content| content == b"4")
    });
    reading.unmount();
    second.unmount();
    pfimg_on(store.root(), ["verify"]).exits(0);
}

#[test]
fn commands_go_to_the_mount_that_writes_the_forks() {
    let (store, id) = small_store();
    let mounts = [1, 2, 3].map(|_| Mount::of(store.root()).args(["--seal", "manual"]).start());
    // The mount that first opens the forks writes them.
    let writes = &mounts[2];
    fs::write(fork(writes, "try", &id).join("mine"), "1").unwrap();
    for mount in &mounts[..2] {
        assert!(names(&mount.join("forks")).is_ok());
    }
    let status = pfimg(["status".as_ref(), writes.path(), "--json".as_ref()]).exits(0).json();
    assert_eq!(status["writes_forks"], true);
    // A status that no program has read stays valid for a moment.
    for mount in &mounts[..2] {
        wait_until("the others say that they do not write", || {
            pfimg(["status".as_ref(), mount.path()]).exits(0).stdout.contains("are read-only here")
        });
    }
    pfimg_on(store.root(), ["seal", "try", "--tag", "one"]).exits(0);
    let made = pfimg_on(store.root(), ["fork", "one", "more", "--json"]).exits(0).json();
    assert_eq!(Path::new(made["work"].as_str().unwrap()), writes.join("forks/more/world/fs"));
    pfimg_on(store.root(), ["mv", "more", "less"]).exits(0);
    pfimg_on(store.root(), ["discard", "less"]).exits(0);
    assert_eq!(names(&writes.join("forks")).unwrap(), ["try"]);
    mounts.into_iter().for_each(Mount::unmount);
}

#[test]
fn a_command_next_to_a_mount_refuses_a_path_as_the_name_of_a_fork() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let files = fork(&mount, "try", &id);
    fs::create_dir(files.join("sub")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let (outside, target) = (outside.to_str().unwrap(), elsewhere.path().join("moved"));
    let run = |args: &[&str], code| pfimg_on(store.root(), args).exits(code).stderr;
    for name in [outside, "try/world/fs/sub", "../tags", "try/../try", ".", ""] {
        for args in [&["mv", name, "other"][..], &["discard", name], &["seal", name], &["restore", name, &id]]
        {
            let said = run(args, 5);
            assert!(said.contains(&format!("there is no fork {name:?}")), "{args:?}: {said}");
        }
    }
    for new in [target.to_str().unwrap(), "try/world/fs/sub2", "../tags/x", ".hidden", "a@b", ""] {
        for args in [["mv", "try", new], ["fork", "try", new]] {
            assert!(run(&args, 2).contains("cannot be a fork's name"), "{args:?}");
        }
    }
    assert!(run(&["fork", "../forks/try", "new"], 5).contains("there is no image"));
    assert!(run(&["mv", "none", "other"], 5).contains("there is no fork \"none\""));
    assert!(Path::new(outside).exists() && files.join("sub").exists());
    assert_eq!(names(&mount.join("forks")).unwrap(), ["try"]);
    mount.unmount();
}

#[test]
fn a_secret_that_the_mount_does_not_seal_with_is_refused() {
    let (store, id) = small_store();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, secret: &str| {
        let path = dir.path().join(name);
        fs::write(&path, secret).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ours, other) = (file("ours", "00ff"), file("other", "11"));
    let seal = |secret: &str| pfimg_on(store.root(), ["seal", "try", "--session-secret-file", secret]);
    let mount = Mount::of(store.root()).args(["--seal", "manual", "--session-secret-file", &ours]).start();
    fork(&mount, "try", &id);
    assert!(seal(&other).exits(2).stderr.contains("another secret"));
    assert!(seal("/nonexistent").exits(5).stderr.contains("/nonexistent"));
    seal(&ours).exits(0);
    let restore = ["restore", "try", &id, "--session-secret-file"];
    pfimg_on(store.root(), restore.iter().chain(&[&*other])).exits(2);
    pfimg_on(store.root(), restore.iter().chain(&[&*ours])).exits(0);
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    assert!(seal(&ours).exits(2).stderr.contains("a fresh secret"));
    let named = Run::new(["seal", "try"]).env("PF_STORE", store.root()).env("PF_SESSION_SECRET", "00ff");
    named.run().exits(2);
    pfimg_on(store.root(), ["seal", "try"]).exits(0);
    mount.unmount();
}

#[test]
fn a_store_and_a_mountpoint_may_have_any_name() {
    let (store, id) = small_store();
    let dir = tempfile::tempdir().unwrap();
    let odd = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
    let root = odd(b"st\xffore \n1");
    fs::rename(store.root(), &root).unwrap();
    let at = odd(b"mo\xfeunt point");
    fs::create_dir(&at).unwrap();
    let mount = Mount::of(&root).args(["--seal", "manual"]).at(&at).start();
    fs::write(fork(&mount, "try", &id).join("mine"), "1").unwrap();
    let status = pfimg(["status".as_ref(), at.as_path(), "--json".as_ref()]).exits(0).json();
    assert_eq!(status["mountpoint"], at.to_string_lossy().as_ref());
    pfimg_on(&root, ["seal", "try", "--tag", "one"]).exits(0);
    let to = odd(b"ex\xffport");
    let export = Run::new(["export".as_ref(), "one".as_ref(), to.as_os_str(), "--json".as_ref()]);
    let report = export.env("PF_STORE", &root).run().exits(0).json();
    assert_eq!(report["dir"], to.to_string_lossy().as_ref());
    mount.unmount();
    fs::rename(&root, store.root()).unwrap();
}
