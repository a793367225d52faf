//! Folders that are mistaken for each other: mountpoints that hold files, mountpoints named as stores, stores
//! and projects named as mountpoints, and mounts that are not visible from here.

use std::ffi::OsStr;
use std::path::Path;

use rustix::process::Signal;

use super::support::{mount_in_background, read, small_store};
use crate::common::cli::{Run, pfimg_on};
use crate::common::mount::Background;
use crate::common::{Mount, Output, is_root, names, system, temp_dir, wait_until};

/// `pfimg ARGS…` with a separate home.
#[track_caller]
fn run<A: AsRef<OsStr>>(home: &Path, args: impl IntoIterator<Item = A>) -> Output {
    Run::new(args).env("HOME", home).run()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_directory_with_files_is_refused_with_the_probable_intention() {
    let (store, id) = small_store();
    let (_dir, home) = temp_dir();
    let make = |name: &str, file: &str| {
        std::fs::create_dir(home.join(name)).unwrap();
        std::fs::write(home.join(name).join(file), b"mine").unwrap();
        home.join(name)
    };
    let (project, hidden) = (make("project", "main.c"), make("hidden", ".keep"));
    std::os::unix::fs::symlink("project", home.join("link")).unwrap();
    let (other, _) = small_store();
    for (point, says) in [
        (project.as_path(), format!("`pfimg import {}`", text(&project))),
        (&home.join("link"), format!("`pfimg import {}`", text(&project))),
        (&hidden, "--nonempty".into()),
        (other.root(), format!("`pfimg mount {} MNT`", text(other.root()))),
    ] {
        let (output, _guard) = (
            run(&home, ["mount", text(store.root()), text(point)]),
            Background { point: point.to_owned(), pid: None },
        );
        assert_eq!(output.code, 7, "{}: {output:?}", point.display());
        for says in [says.as_str(), "is not empty", "--nonempty"] {
            assert!(output.stderr.contains(says), "{}: {says}: {}", point.display(), output.stderr);
        }
        assert!(system::types_at(point).is_empty(), "{} is a mount", point.display());
    }
    let refused = run(&home, ["mount", text(store.root()), text(&home)]).exits(2).stderr;
    assert!(refused.contains("such as ~/pf"), "{refused}");
    for args in [["--nonempty"].as_slice(), &["-o", "nonempty"]] {
        let mount = Mount::of(store.root()).at(&project).args(args).start();
        assert_eq!(read(&mount, &id), b"content");
        mount.unmount();
        assert_eq!(std::fs::read(project.join("main.c")).unwrap(), b"mine");
    }
    // A dead mount does not count as content of the folder.
    let empty = home.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut killed = Mount::of(store.root()).at(&empty).start();
    killed.kill();
    killed.abandon();
    let mount = Mount::of(store.root()).at(&empty).start();
    assert_eq!(read(&mount, &id), b"content");
    mount.unmount();
}

#[test]
fn a_mountpoint_that_is_missing_names_the_command_that_makes_it() {
    let (store, _) = small_store();
    let (_dir, home) = temp_dir();
    std::os::unix::fs::symlink("not/there", home.join("link")).unwrap();
    for (point, made) in [("nowhere/m", "nowhere/m"), ("link", "not/there")] {
        let output = run(&home, ["mount", text(store.root()), text(&home.join(point))]).exits(5);
        let says = format!("`mkdir -p {}`", text(&home.join(made)));
        assert!(output.stderr.contains(&says), "{point}: {}", output.stderr);
    }
    // Ending a mount needs no folder.
    let output = run(&home, ["umount", text(&home.join("nowhere"))]);
    assert!(output.code != 0 && !output.stderr.contains("mkdir"), "{output:?}");
}

#[test]
fn a_store_or_project_as_mountpoint_gives_another_error_than_a_missing_store() {
    let (store, _) = small_store();
    let (_dir, home) = temp_dir();
    let (project, empty) = (home.join("project"), home.join("empty"));
    std::fs::create_dir(&project).unwrap();
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(project.join("main.c"), b"mine").unwrap();
    let says = |args: &[&Path]| {
        let args = [OsStr::new("mount")].into_iter().chain(args.iter().map(|path| path.as_os_str()));
        run(&home, args).exits(5).stderr
    };
    let alone = says(&[&project]);
    assert!(alone.contains("there is no store at") && alone.contains("`pfimg import"), "{alone}");
    let alone = says(&[store.root()]);
    assert!(alone.contains(&format!("`pfimg mount {} MNT`", text(store.root()))), "{alone}");
    let swapped = says(&[&empty, store.root()]);
    let right = format!("`pfimg mount {} {}`", text(store.root()), text(&empty));
    assert!(swapped.contains(&right), "{swapped}");
    let none = says(&[&empty]);
    assert!(none.contains("`pfimg import DIR` to make a store"), "{none}");
    assert!(!home.join(".processfork").exists());
}

#[test]
fn a_mountpoint_given_as_the_store_means_the_store_that_is_mounted_there() {
    let (store, id) = crate::common::forks::small_store();
    crate::common::forks::tag(&store, "name", &id);
    let mut mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let world = crate::common::forks::fork(&mount, "f", "name");
    std::fs::write(world.join("new"), b"new").unwrap();
    let (_dir, home) = temp_dir();
    let point = mount.path().to_owned();
    let ask = |named: &Path, args: &[&str], by_option: bool| {
        let run = Run::new(args.iter().copied().chain(if by_option {
            vec!["--store", text(named)]
        } else {
            vec![]
        }));
        let run = if by_option { run } else { run.env("PF_STORE", named) };
        let output = run.env("HOME", &home).run();
        // Ages grow.
        let lines = output.stdout.lines().filter(|line| !line.contains("_seconds"));
        (output.code, lines.collect::<Vec<_>>().join("\n"), output.stderr)
    };
    for args in [
        ["images", "--json"].as_slice(),
        &["tags", "--json"],
        &["forks", "--json"],
        &["show", "name"],
        &["diff", "f"],
        &["log"],
        &["verify"],
    ] {
        let want = ask(store.root(), args, true);
        for named in [point.clone(), point.join("."), point.join("images/..")] {
            for by_option in [true, false] {
                assert_eq!(ask(&named, args, by_option), want, "{args:?} {}", named.display());
            }
        }
    }
    // Commands that write do so in the store, not in the mount.
    let before = names(&point).unwrap();
    std::fs::write(home.join("file"), b"imported").unwrap();
    let on = |args: &[&str]| ask(&point, args, true).0;
    assert_eq!(on(&["import", text(&home), "--tag", "in", "--cache-dir", text(&home.join("cache"))]), 0);
    assert_eq!(on(&["seal", "f", "--tag", "sealed"]), 0);
    let tags = pfimg_on(store.root(), ["tags"]).exits(0).stdout;
    assert!(tags.contains("in") && tags.contains("sealed"), "{tags}");
    assert_eq!(names(&point).unwrap(), before);
    let second = home.join("second");
    std::fs::create_dir(&second).unwrap();
    let (output, guard) = mount_in_background(&point, &second, &["--read-only"]);
    output.exits(0);
    assert!(second.join("tags/in").exists());
    run(&home, ["umount", text(&second)]).exits(0);
    drop(guard);
    // A daemon that has ended need not be asked.
    mount.kill();
    assert_eq!(on(&["show", "sealed"]), 0);
}

#[test]
fn a_path_in_a_mount_that_is_not_a_store_is_refused_and_stays_unchanged() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let world = crate::common::forks::fork(&mount, "f", &id);
    let (_dir, home) = temp_dir();
    std::fs::write(home.join("file"), b"file").unwrap();
    let import = |store: &Path| run(&home, ["import", "--store", text(store), text(&home)]);
    for inside in ["forks/new", "images", "forks", "tags/x/y", ".pfimg"] {
        let refused = import(&mount.join(inside)).exits(2).stderr;
        assert!(refused.contains(text(store.root())), "{inside}: {refused}");
    }
    assert_eq!(names(&mount.join("forks")).unwrap(), ["f"]);
    // A fork's files are a folder as any other.
    import(&world.join("store")).exits(0);
    let images = run(&home, ["images", "--json", "--store", text(&mount.join("work/f/store"))]).exits(0);
    assert_eq!(images.json()["images"].as_array().unwrap().len(), 1);
    mount.unmount();
}

#[test]
fn a_daemon_in_another_mount_namespace_is_named_with_its_process_and_can_be_ended() {
    if !is_root() {
        // An ordinary user cannot keep a mount from this namespace without a namespace of users.
        return;
    }
    let (store, id) = crate::common::forks::small_store();
    let (_dir, home) = temp_dir();
    let (inner, outer) = (home.join("inner"), home.join("outer"));
    std::fs::create_dir(&inner).unwrap();
    std::fs::create_dir(&outer).unwrap();
    run(&home, ["fork", &id, "before", "--store", text(store.root())]).exits(0);
    let args =
        ["-m", "--propagation", "private", crate::common::PFIMG, "mount", text(store.root()), text(&inner)];
    let mounted = Run::program(Path::new("/usr/bin/unshare"), args).env("HOME", &home).run();
    // Ends the daemon even if the test fails.
    let mut guard = Background { point: inner.clone(), pid: None };
    mounted.exits(0);
    assert!(system::types_at(&inner).is_empty(), "it shows here");
    let all = run(&home, ["status", "--json"]).exits(0).json()["mounts"].clone();
    let status = all.as_array().unwrap().iter().find(|status| status["store"] == text(store.root())).unwrap();
    assert_eq!(
        (&status["elsewhere"], &status["mountpoint"]),
        (&true.into(), &text(&inner).into()),
        "{status}"
    );
    let pid = status["pid"].as_u64().unwrap() as u32;
    guard.pid = Some(pid);
    let names_it = |output: Output, code: i32| {
        let output = output.exits(code);
        assert!(output.said().contains(&format!("`kill {pid}`")), "{output:?}");
        assert!(output.said().contains("another mount namespace"), "{output:?}");
    };
    names_it(run(&home, ["fork", &id, "f", "--store", text(store.root())]), 7);
    names_it(run(&home, ["status"]), 0);
    names_it(run(&home, ["umount", text(&inner)]), 5);
    let (output, second) = mount_in_background(store.root(), &outer, &[]);
    names_it(output, 0);
    run(&home, ["umount", text(&outer)]).exits(0);
    drop(second);
    system::signal_pfimg(pid, Signal::TERM);
    wait_until("the forks can be written", || {
        run(&home, ["fork", &id, "f", "--store", text(store.root())]).code == 0
    });
}
