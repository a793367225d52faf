//! Forks under a kernel that caches writes (`--writes back`), which uses only its own lengths and times of files.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::FallocateFlags;

use super::support::MODES;
use crate::common::cli::{Run, pfimg_on, tool};
use crate::common::forks::{fallocate, fork, open_rw, small_store, world};
use crate::common::mount::Background;
use crate::common::{Mount, errno, names, wait_until};

fn back(store: &Path) -> Mount {
    Mount::of(store).args(["--seal", "manual", "--writes", "back"]).start()
}

fn times(folder: &Path) -> Vec<(String, i64, i64)> {
    let names = names(folder).unwrap();
    let time = |name: &String| fs::symlink_metadata(folder.join(name)).map(|m| (m.mtime(), m.mtime_nsec()));
    names.iter().map(|name| time(name).map(|(s, ns)| (name.clone(), s, ns)).unwrap()).collect()
}

#[test]
fn layers_that_were_listed_before_they_were_looked_at_have_their_content() {
    let (store, id) = small_store();
    let files = [
        "model/base",
        "model/diff.json",
        "cache/manifest.json",
        "world/env.json",
        "world/procs.json",
        "effects/ledger.jsonl",
        "trace/messages.jsonl",
    ];
    let reference = Mount::of(store.root()).start();
    let whole = files.map(|file| fs::read(reference.image(&id).join(file)).unwrap());
    reference.unmount();
    let mount = back(store.root());
    let image = mount.image(&id);
    for folder in ["", "model", "cache", "world", "effects", "trace"] {
        // As ls -l: with attributes.
        for name in names(&image.join(folder)).unwrap() {
            fs::symlink_metadata(image.join(folder).join(name)).unwrap();
        }
    }
    tool("cp", ["-r".as_ref(), image.as_os_str(), mount.join("forks/copy").as_os_str()]).exits(0);
    for (file, whole) in files.iter().zip(&whole) {
        assert_eq!(fs::metadata(image.join(file)).unwrap().len(), whole.len() as u64, "{file}");
        assert_eq!(&fs::read(image.join(file)).unwrap(), whole, "{file}");
        assert_eq!(&fs::read(mount.join("forks/copy").join(file)).unwrap(), whole, "copy of {file}");
    }
    mount.unmount();
}

#[test]
fn a_missing_file_is_listed_and_reading_it_is_an_error() {
    for writes in MODES {
        let (mut store, _) = small_store();
        let gone = store.blob(b"a ledger that will be missing");
        let spec = crate::common::fast::Spec { ledger: Some(gone.clone()), ..Default::default() };
        let id = store.image(&spec);
        fs::remove_file(store.blob_path(&gone)).unwrap();
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let effects = mount.image(&id).join("effects");
        for _ in 0..2 {
            assert_eq!(names(&effects).unwrap(), ["ledger.jsonl"], "{writes}");
            assert_eq!(errno(fs::read(effects.join("ledger.jsonl"))), libc::EIO, "{writes}");
        }
        mount.unmount();
    }
}

#[test]
fn a_file_that_cannot_be_written_cannot_be_opened_for_writing() {
    let (store, id) = small_store();
    let mount = back(store.root());
    let files = fork(&mount, "f", &id);
    fs::write(files.join("file"), "hello\n").unwrap();
    let manifest = mount.join("forks/f/manifest.json");
    let before = fs::read(&manifest).unwrap();
    let append = |path: &Path| File::options().append(true).open(path);
    // For root, permissions do not matter.
    assert!([libc::EPERM, libc::EACCES].contains(&errno(append(&manifest))));
    assert_eq!(fs::read(&manifest).unwrap(), before);
    let second = back(store.root());
    assert_eq!(errno(append(&world(&second, "f").join("file"))), libc::EROFS);
    assert_eq!(fs::read(world(&second, "f").join("file")).unwrap(), b"hello\n");
    second.unmount();

    // A program whose working folder is in a restored fork writes to the restored files, and loses no byte.
    pfimg_on(store.root(), ["seal", "f", "--tag", "there"]).exits(0);
    fs::write(files.join("later"), "later\n").unwrap();
    let script = "pfimg restore f there >/dev/null || exit 9; echo more >> file";
    let script = format!("pfimg() {{ \"$PFIMG\" \"$@\"; }}\n{script}");
    let run = Run::program(Path::new("bash"), ["-c", &script]).dir(&files).env("PF_STORE", store.root());
    let out = run.env("PFIMG", crate::common::PFIMG).run();
    assert_eq!(out.code, 0, "{out:?}");
    assert_eq!(fs::read(files.join("file")).unwrap(), b"hello\nmore\n");
    assert!(!files.join("later").exists());
    mount.unmount();
}

#[test]
fn times_are_the_same_after_a_remount() {
    let (store, id) = small_store();
    let mount = back(store.root());
    let files = fork(&mount, "f", &id);
    fs::create_dir(files.join("in")).unwrap();
    let at = |name: &str| files.join("in").join(name);
    fs::write(files.join("source"), "source").unwrap();
    for n in 0..20 {
        let file = |what: &str| at(&format!("{what}{n}"));
        // Over an existing file, as cp does.
        fs::write(file("cp"), "old").unwrap();
        fs::copy(files.join("source"), file("cp")).unwrap();
        let cut = File::create(file("fallocate")).unwrap();
        fallocate(&cut, FallocateFlags::empty(), 0, 10_000).unwrap();
        fs::write(file("truncate"), "same length").unwrap();
        let past =
            fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000));
        open_rw(&file("truncate")).unwrap().set_times(past).unwrap();
        tool("truncate", ["-s".as_ref(), "11".as_ref(), file("truncate").as_os_str()]).exits(0);
        // Created first, so it must not be newer than the files that are written later.
        File::create(file("empty")).unwrap();
        fs::write(file("written"), "x").unwrap();
        let time = |what| fs::metadata(file(what)).map(|m| (m.mtime(), m.mtime_nsec())).unwrap();
        assert!(time("empty") <= time("written"), "{n}");
    }
    let before = times(&files.join("in"));
    mount.unmount();
    let mount = back(store.root());
    assert_eq!(times(&world(&mount, "f").join("in")), before);
    mount.unmount();
}

#[test]
fn holes_are_reported_only_after_all_writes_are_known() {
    let (store, _) = small_store();
    let dir = tempfile::tempdir().unwrap();
    let _guard = Background { point: dir.path().to_owned(), pid: None };
    let args = ["mount", "--holes", "--writes", "back"].map(std::ffi::OsStr::new);
    let said = Run::new(args.into_iter().chain([store.root().as_os_str(), dir.path().as_os_str()])).run();
    assert!(said.code == 2 && said.stderr.contains("--holes"), "{said:?}");
    // Without `--holes`, a copy of a file that is still being written is whole.
    let mount = back(store.root());
    fs::create_dir_all(world(&mount, "f")).unwrap();
    let path = world(&mount, "f").join("open");
    let mut open = File::create(&path).unwrap();
    let content = vec![7; 300_000];
    open.write_all(&content).unwrap();
    for args in [&["--sparse=auto"][..], &["-a"], &["--sparse=always"]] {
        let copy = dir.path().join("copy");
        let paths = [path.as_os_str(), copy.as_os_str()];
        tool("cp", args.iter().map(std::ffi::OsStr::new).chain(paths)).exits(0);
        assert!(fs::read(&copy).unwrap() == content, "{args:?}");
    }
    drop(open);
    mount.unmount();
}

#[test]
fn a_copy_with_permissions_has_them_where_attributes_are_on() {
    for writes in MODES {
        let (store, id) = small_store();
        let mount = Mount::of(store.root()).args(["--xattrs", "--writes", writes]).start();
        let files = fork(&mount, "f", &id);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tool"), "tool").unwrap();
        fs::set_permissions(dir.path().join("tool"), fs::Permissions::from_mode(0o754)).unwrap();
        for option in ["-a", "-p"] {
            let target = files.join(option);
            tool("cp", [option.as_ref(), dir.path().join("tool").as_os_str(), target.as_os_str()]).exits(0);
            assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o754, "{option} {writes}");
        }
        mount.unmount();
    }
}

#[test]
fn a_layer_that_a_seal_brings_back_is_listed_also_where_there_is_no_new_image() {
    for writes in MODES {
        let (store, id) = small_store();
        let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        fork(&mount, "f", &id);
        let folder = mount.join("forks/f/world");
        let mut sealed = Vec::new();
        for round in 0..4 {
            fs::remove_file(folder.join("procs.json")).unwrap();
            assert_eq!(names(&folder).unwrap(), ["env.json", "fs"], "{writes} {round}");
            sealed.push(pfimg_on(store.root(), ["seal", "f"]).exits(0).stdout);
            assert_eq!(names(&folder).unwrap(), ["env.json", "fs", "procs.json"], "{writes} {round}");
        }
        assert_eq!(sealed[2], sealed[3], "nothing changed");
        mount.unmount();
    }
}

#[test]
fn a_sealed_part_that_was_written_over_is_shown_as_it_is_and_grows_on() {
    let (store, id) = small_store();
    let mount = back(store.root());
    fork(&mount, "f", &id);
    let trace = mount.join("forks/f/trace/messages.jsonl");
    let line = "{\"role\":\"user\",\"content\":\"hello\"}\n";
    let append = || File::options().append(true).open(&trace).unwrap().write_all(line.as_bytes()).unwrap();
    append();
    fs::create_dir(mount.join("forks/f/.snap/s")).unwrap();
    let before = fs::read(&trace).unwrap();
    let refused =
        open_rw(&trace).and_then(|file| file.write_all_at(b"xxxx", 0).and_then(|()| file.sync_all()));
    assert!(refused.is_err());
    wait_until("it is shown as it is", || fs::read(&trace).is_ok_and(|text| text == before));
    append();
    assert_eq!(fs::read(&trace).unwrap(), [&before, line.as_bytes()].concat());
    mount.unmount();
}
