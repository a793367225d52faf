//! Forks: how they are made, what they show and refuse, and that they last.

mod back;
mod beside;
mod cleaning;
mod copied;
mod corners;
mod diff;
mod grammar;
mod lists;
mod no_links;
mod posix;
mod rights;
mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::expected_files;
use crate::common::forks::{big, fork, open_rw, punch, small_store, tag, world, write_mapped};
use crate::common::{Mount, errno, is_root, names, tree, wait_until};
use support::MODES;

/// Everything below a folder.
fn contents(root: &Path) -> std::collections::BTreeMap<PathBuf, tree::Node> {
    tree::read_tree(root).unwrap()
}

#[track_caller]
fn assert_same(left: &Path, right: &Path) {
    assert_eq!(tree::differences(&contents(left), &contents(right)), [] as [&str; 0]);
}

#[test]
fn a_fork_is_made_of_an_image_a_tag_a_prefix_the_latest_another_fork_or_nothing() {
    let (store, id) = small_store();
    tag(&store, "before", &id);
    let mount = Mount::of(store.root()).start();
    let sources = [id.clone(), format!("sha256:{id}"), "before".into(), id[..10].into(), "latest".into()];
    for (n, source) in sources.iter().enumerate() {
        let world = fork(&mount, &format!("f{n}"), source);
        assert_same(&mount.image(&id).join("world/fs"), &world);
        assert_eq!(names(&mount.join("forks")).unwrap().len(), n + 1, "it has one name");
    }
    fs::write(world(&mount, "f0").join("new"), b"new").unwrap();
    let branch = fork(&mount, "branch", "f0");
    assert_same(&world(&mount, "f0"), &branch);
    assert_eq!(fs::read(branch.join("new")).unwrap(), b"new");

    fs::create_dir(mount.join("forks/blank")).unwrap();
    assert!(names(&world(&mount, "blank")).unwrap_or_default().is_empty());
    fs::create_dir_all(world(&mount, "blank")).unwrap();
    fs::write(world(&mount, "blank").join("x"), b"x").unwrap();

    let all = ["blank", "branch", "f0", "f1", "f2", "f3", "f4"];
    assert_eq!(names(&mount.join("forks")).unwrap(), all);
    assert_eq!(names(&mount.join("work")).unwrap(), all);
    for name in all {
        let link = mount.join("work").join(name);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(&format!("../forks/{name}/world/fs")));
        assert!(link.is_dir(), "{name}");
    }
    mount.unmount();
}

#[test]
fn a_forks_layers_show_what_the_image_shows() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--reveal-secrets"]).start();
    fork(&mount, "try", &id);
    for (path, bytes) in expected_files(&store, &id) {
        let file = mount.join("forks/try").join(&path);
        assert_eq!(fs::read(&file).unwrap(), bytes, "{path}");
        assert_eq!(fs::metadata(&file).unwrap().len(), bytes.len() as u64, "{path}");
    }
    assert_eq!(
        fs::read(mount.join("forks/try/manifest.json")).unwrap(),
        fs::read(store.marker_path(&id)).unwrap()
    );
    mount.unmount();
    // Without --reveal-secrets the secret is shown nowhere.
    let mount = Mount::of(store.root()).start();
    let ledger = "effects/ledger.jsonl";
    let shown = fs::read(mount.join("forks/try").join(ledger)).unwrap();
    assert_eq!(shown, fs::read(mount.image(&id).join(ledger)).unwrap());
    assert_ne!(shown, expected_files(&store, &id)[ledger]);
    mount.unmount();
}

#[test]
fn names_of_forks_are_checked_and_the_log_says_what_is_wrong() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    fork(&mount, "taken", &id);
    let long = "n".repeat(201);
    for (name, expected, words) in [
        (".hidden", libc::EINVAL, "starts with a dot"),
        (&*format!(".hidden@{id}"), libc::EINVAL, "starts with a dot"),
        ("@latest", libc::EINVAL, "empty"),
        (&*long, libc::ENAMETOOLONG, "longer than 200"),
        ("tab\there", libc::EINVAL, "control character"),
        ("taken", libc::EEXIST, ""),
        ("taken@latest", libc::EEXIST, "there is a fork \"taken\" already"),
        ("new@nowhere", libc::ENOENT, "nowhere"),
        ("new@0123456789", libc::ENOENT, "0123456789"),
        ("new@", libc::ENOENT, "new"),
    ] {
        let got = errno(fs::create_dir(mount.join("forks").join(name)));
        assert_eq!(got, expected, "mkdir forks/{name}\n{}", mount.log());
        if !words.is_empty() {
            wait_until("the log says why", || !mount.log_lines(&[words]).is_empty());
        }
    }
    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"not-utf8-\xff");
    assert_eq!(errno(fs::create_dir(mount.join("forks").join(odd))), libc::EINVAL);
    assert_eq!(errno(fs::write(mount.join("forks/file"), b"")), libc::EPERM);
    assert_eq!(errno(symlink("x", mount.join("forks/link"))), libc::EPERM);
    assert_eq!(names(&mount.join("forks")).unwrap(), ["taken"], "refused names leave nothing behind");
    fork(&mount, &"m".repeat(200), &id);
    mount.unmount();
}

#[test]
fn a_forks_top_takes_layer_names_only() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    fork(&mount, "try", &id);
    let top = mount.join("forks/try");
    assert_eq!(errno(fs::write(top.join("notes"), b"")), libc::EPERM);
    assert_eq!(errno(fs::create_dir(top.join("folder"))), libc::EPERM);
    assert_eq!(errno(symlink("x", top.join("link"))), libc::EPERM);
    assert_eq!(errno(fs::write(top.join("world/notes"), b"")), libc::EPERM);
    // EXDEV sends mv to copying, which is refused as above.
    for result in [
        fs::rename(top.join("world/fs/README"), top.join("README")),
        fs::hard_link(top.join("world/fs/README"), top.join("README")),
    ] {
        assert!([libc::EPERM, libc::EXDEV].contains(&errno(result)));
    }
    assert_eq!(
        crate::common::names(&top).unwrap(),
        ["cache", "effects", "manifest.json", "model", "trace", "world"]
    );
    wait_until("the log says why", || {
        !mount.log_lines(&["refused", "notes", "only the names of layers"]).is_empty()
    });
    // The other layers are writable files.
    for path in [
        "model/base",
        "model/diff.json",
        "cache/manifest.json",
        "cache/pages/00000000.k",
        "world/env.json",
        "world/procs.json",
    ] {
        fs::write(top.join(path), path).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(fs::read(top.join(path)).unwrap(), path.as_bytes());
    }
    fs::write(top.join("cache/pages/00000009.k"), b"k").unwrap();
    assert_eq!(errno(fs::write(top.join("cache/pages/9.k"), b"k")), libc::EPERM);
    // A fork's manifest names its lineage.
    let forged = open_rw(&top.join("manifest.json")).and_then(|f| f.write_at(b"x", 0));
    assert!(refusals(libc::EPERM).contains(&errno(forged)));
    assert_eq!(fs::read(top.join("manifest.json")).unwrap(), fs::read(store.marker_path(&id)).unwrap());
    mount.unmount();
}

/// How a change is refused: to anyone but root, the kernel may name the file's mode before it asks.
fn refusals(expected: i32) -> Vec<i32> {
    if is_root() { vec![expected] } else { vec![expected, libc::EACCES] }
}

/// Whether the kernel accepts a change in its pages before it asks. A refused change is then dropped a moment later.
fn cached(what: &str, writes: &str) -> bool {
    what == "mapping" || writes == "back"
}

#[test]
fn the_ledger_and_the_trace_can_only_be_appended_to_whatever_the_write_pattern() {
    let (store, id) = small_store();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let name = format!("try-{writes}");
        fork(&mount, &name, &id);
        for path in ["effects/ledger.jsonl", "trace/messages.jsonl"] {
            let file = mount.join("forks").join(&name).join(path);
            let before = fs::read(&file).unwrap();
            let len = before.len() as u64;
            let refused = |what: &str, result: std::io::Result<()>| {
                let said = result.expect_err(what);
                let moved = what.starts_with("rename") || what == "second name";
                let known = [libc::EPERM, if moved { libc::EXDEV } else { libc::EPERM }];
                assert!(
                    said.raw_os_error().is_some_and(|e| known.contains(&e)),
                    "{writes}: {path}: {what}: {said}"
                );
                if cached(what, writes) {
                    wait_until("the kernel drops what was refused", || fs::read(&file).unwrap() == before);
                }
                assert!(fs::read(&file).unwrap() == before, "{writes}: {path} after {what}");
            };
            refused(
                "write",
                open_rw(&file).and_then(|mut f| f.write_all(b"forged").and_then(|()| f.sync_all())),
            );
            refused(
                "pwrite",
                open_rw(&file).and_then(|f| f.write_all_at(b"x", len - 1).and_then(|()| f.sync_all())),
            );
            refused("cut", open_rw(&file).and_then(|f| f.set_len(len - 1)));
            refused("cut to nothing", open_rw(&file).and_then(|f| f.set_len(0)));
            refused("O_TRUNC", fs::write(&file, b"x"));
            refused("mapping", write_mapped(&file, 0, b"forged"));
            refused("punch", open_rw(&file).and_then(|f| punch(&f, 0, len)));
            refused(
                "zero",
                open_rw(&file).and_then(|f| {
                    crate::common::forks::fallocate(&f, rustix::fs::FallocateFlags::ZERO_RANGE, 0, 4)
                }),
            );
            refused("rename away", fs::rename(&file, world(&mount, &name).join("ledger")));
            let temp = world(&mount, &name).join("temp");
            fs::write(&temp, b"forged").unwrap();
            refused("rename over", fs::rename(&temp, &file));
            refused("copy over", fs::copy(&temp, &file).map(drop));
            refused("second name", fs::hard_link(&file, world(&mount, &name).join("second")));

            fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"more\":1}\n").unwrap();
            let after = [&before[..], b"{\"more\":1}\n"].concat();
            assert_eq!(fs::read(&file).unwrap(), after);
            // What was appended since is not sealed yet, and stays as well.
            let cut = open_rw(&file).unwrap().set_len(len).unwrap_err();
            assert_eq!(cut.raw_os_error(), Some(libc::EPERM), "{writes}: {path}: {cut}");
            assert_eq!(fs::read(&file).unwrap(), after, "{writes}: {path}");
        }
        mount.unmount();
    }
}

#[test]
fn images_stay_as_they_are_in_a_mount_that_can_be_written() {
    let (store, id) = small_store();
    for writes in ["through", "back"] {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let top = mount.image(&id);
        let before = contents(&top);
        for path in [
            "manifest.json",
            "world/fs/README",
            "world/fs/big",
            "effects/ledger.jsonl",
            "cache/pages/00000000.k",
        ] {
            let file = top.join(path);
            let bytes = fs::read(&file).unwrap();
            let refused = |what: &str, result: std::io::Result<()>| {
                let said = result.expect_err(what);
                if cached(what, writes) {
                    wait_until("the kernel drops what was refused", || fs::read(&file).unwrap() == bytes);
                }
                assert!(fs::read(&file).unwrap() == bytes, "{writes}: {path} right after {what}");
                let known = said.raw_os_error().is_some_and(|e| refusals(libc::EROFS).contains(&e));
                assert!(known, "{writes}: {path}: {what}: {said}");
            };
            let write = |at: u64, what: &[u8]| {
                open_rw(&file).and_then(|f| f.write_all_at(what, at).and_then(|()| f.sync_all()))
            };
            refused("write", write(0, b"forged"));
            refused("long write", write(0, &vec![7; bytes.len().max(4096)]));
            refused("write behind the end", write(bytes.len() as u64 + 10, b"x"));
            refused("cut", open_rw(&file).and_then(|f| f.set_len(0)));
            refused("O_TRUNC", fs::write(&file, b"x"));
            refused("mapping", write_mapped(&file, 0, b"FORGED"));
            refused("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o777)));
            refused("unlink", fs::remove_file(&file));
            refused("rename", fs::rename(&file, top.join("world/fs/other")));
        }
        for (what, result) in [
            ("create", fs::write(top.join("world/fs/new"), b"")),
            ("mkdir", fs::create_dir(top.join("world/fs/new"))),
            ("symlink", symlink("x", top.join("world/fs/new"))),
            ("rmdir", fs::remove_dir(top.join("world/fs/empty"))),
            ("mkdir in images", fs::create_dir(mount.join("images/new"))),
            ("mkdir at the top", fs::create_dir(mount.join("new"))),
            ("unlink in work", fs::remove_file(mount.join("latest"))),
        ] {
            assert!(refusals(libc::EROFS).contains(&errno(result)), "{writes}: {what}");
        }
        assert_eq!(tree::differences(&before, &contents(&top)), [] as [&str; 0]);
        mount.unmount();
    }
}

#[test]
fn forks_are_renamed_discarded_and_only_empty_ones_removed_by_rmdir() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    fs::write(fork(&mount, "a", &id).join("mine"), b"a").unwrap();
    fork(&mount, "b", &id);
    assert_eq!(errno(fs::remove_dir(mount.join("forks/a"))), libc::ENOTEMPTY);
    fs::rename(mount.join("forks/a"), mount.join("forks/c")).unwrap();
    assert_eq!(names(&mount.join("forks")).unwrap(), ["b", "c"]);
    assert_eq!(names(&mount.join("work")).unwrap(), ["b", "c"]);
    assert_eq!(fs::read(mount.join("work/c/mine")).unwrap(), b"a");
    assert_eq!(errno(fs::metadata(mount.join("work/a"))), libc::ENOENT);
    assert_eq!(errno(fs::rename(mount.join("forks/c"), mount.join("forks/.c"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(mount.join("forks/c"), mount.join("forks/c@b"))), libc::EINVAL);
    assert!(fs::rename(mount.join("forks/c"), mount.join("forks/b")).is_err(), "a fork replaced another");
    assert_eq!(fs::read(mount.join("work/c/mine")).unwrap(), b"a");

    tool("rm", ["-rf".as_ref(), mount.join("forks/c").as_os_str()]).exits(0);
    assert_eq!(names(&mount.join("forks")).unwrap(), ["b"]);
    assert_eq!(errno(fs::metadata(mount.join("forks/c"))), libc::ENOENT);
    // A name that was used is free again, and nothing of the old fork shines through.
    let again = fork(&mount, "c", &id);
    assert_same(&mount.image(&id).join("world/fs"), &again);

    fs::create_dir(mount.join("forks/blank")).unwrap();
    fs::remove_dir(mount.join("forks/blank")).unwrap();
    assert_eq!(names(&mount.join("forks")).unwrap(), ["b", "c"]);
    mount.unmount();
}

#[test]
fn a_copy_of_a_fork_or_of_an_image_is_a_fork() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let a = fork(&mount, "a", &id);
    fs::write(a.join("README"), b"changed").unwrap();
    open_rw(&a.join("big")).unwrap().write_all_at(b"changed", 100_000).unwrap();
    fs::hard_link(a.join("README"), a.join("hard")).unwrap();
    for (from, to) in [(mount.join("forks/a"), "b"), (mount.image(&id), "c")] {
        let to = mount.join("forks").join(to);
        tool("cp", ["-r".as_ref(), from.as_os_str(), to.as_os_str()]).exits(0);
        tool("diff", ["-r".as_ref(), from.as_os_str(), to.as_os_str()]).exits(0);
        fs::write(to.join("world/fs/README"), b"its own").unwrap();
        open_rw(&to.join("world/fs/big")).unwrap().write_all_at(b"its own", 0).unwrap();
    }
    assert_eq!(fs::read(a.join("README")).unwrap(), b"changed");
    assert_eq!(fs::read(a.join("big")).unwrap()[..10], big()[..10]);
    assert_eq!(fs::read(mount.image(&id).join("world/fs/README")).unwrap(), b"read me\n");
    // The lineage comes along in the manifest.
    let manifest = fs::read(store.marker_path(&id)).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(
            fs::read(mount.join("forks").join(name).join("manifest.json")).unwrap(),
            manifest,
            "{name}"
        );
    }
    let rows = pfimg_on(store.root(), ["forks", "--long", "--json"]).exits(0).json()["forks"].clone();
    for row in rows.as_array().unwrap() {
        assert_eq!(row["base"].as_str().unwrap().trim_start_matches("sha256:"), id, "{row}");
    }
    mount.unmount();
}

/// `fork`, `forks`, `mv`, `discard` on a store that is mounted or not.
fn the_commands(store: &Path, id: &str, world: impl Fn(&str) -> Option<Vec<String>>) {
    let run = |args: &[&str]| pfimg_on(store, args);
    run(&["fork", id, "a"]).exits(0);
    run(&["fork", "a", "b"]).exits(0);
    for (args, word) in [
        (&["fork", id, "a"][..], "already"),
        (&["fork", "nowhere", "x"], "nowhere"),
        (&["fork", id, ".x"], "dot"),
        (&["fork", id, "x@y"], "@"),
        (&["mv", "a", "b"], "already"),
        (&["mv", "nowhere", "x"], "nowhere"),
        (&["discard", "nowhere"], "nowhere"),
    ] {
        let said = run(args);
        assert!(said.code != 0 && said.said().contains(word), "{args:?}: {said:?}");
    }
    run(&["mv", "b", "c"]).exits(0);
    let rows = run(&["forks", "--long", "--json"]).exits(0).json()["forks"].clone();
    let shown: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(shown, ["a", "c"]);
    for row in rows.as_array().unwrap() {
        assert_eq!(row["base"].as_str().unwrap().trim_start_matches("sha256:"), id);
        assert_eq!(row["changed"], 0, "{row}");
        assert!(row["own_bytes"].as_u64().unwrap() < 1 << 16, "{row}");
    }
    let table = run(&["forks"]).exits(0).stdout;
    assert!(table.contains("FORK") && table.lines().count() == 3, "{table}");
    if let Some(listed) = world("c") {
        assert!(listed.contains(&"README".to_owned()), "{listed:?}");
    }
    run(&["discard", "a", "c"]).exits(0);
    assert_eq!(run(&["forks", "--json"]).exits(0).json()["forks"], serde_json::json!([]));
}

#[test]
fn the_commands_work_on_a_mounted_store_and_on_an_unmounted_one_alike() {
    let (store, id) = small_store();
    the_commands(store.root(), &id, |_| None);
    let mount = Mount::of(store.root()).start();
    the_commands(store.root(), &id, |name| Some(names(&world(&mount, name)).unwrap()));
    assert_eq!(names(&mount.join("forks")).unwrap(), [] as [&str; 0]);
    mount.unmount();
    the_commands(store.root(), &id, |_| None);
}

#[test]
fn a_second_mount_of_a_store_shows_its_forks_read_only_and_says_so() {
    let (store, id) = small_store();
    let first = Mount::of(store.root()).start();
    fs::write(fork(&first, "try", &id).join("mine"), b"mine").unwrap();
    let second = Mount::of(store.root()).start();
    let seen = world(&second, "try");
    assert_eq!(fs::read(seen.join("mine")).unwrap(), b"mine");
    wait_until("the log says so", || !second.log_lines(&["another mount", "read-only"]).is_empty());
    assert_eq!(errno(fs::write(seen.join("mine"), b"theirs")), libc::EROFS);
    assert_eq!(errno(fs::write(seen.join("new"), b"theirs")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(seen.join("mine"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(second.join(format!("forks/more@{id}")))), libc::EROFS);
    assert_eq!(errno(fs::rename(second.join("forks/try"), second.join("forks/other"))), libc::EROFS);
    assert_eq!(fs::read(seen.join("mine")).unwrap(), b"mine");
    // The first one continues.
    fs::write(world(&first, "try").join("mine"), b"more").unwrap();
    assert_eq!(fs::read(world(&first, "try").join("mine")).unwrap(), b"more");
    second.unmount();
    first.unmount();
}

#[test]
fn a_read_only_mount_writes_nothing() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--read-only"]).start();
    assert_eq!(errno(fs::create_dir(mount.join(format!("forks/x@{id}")))), libc::EROFS);
    mount.unmount();
    assert!(!store.root().join("forks").exists(), "looking at a store must write nothing into it");
}

/// Everything that must last: path, inode number, times, mode and owner of every entry, and contents.
fn lasting(root: &Path) -> Vec<(PathBuf, [i64; 10], tree::Node)> {
    let row = |(path, node): (PathBuf, tree::Node)| {
        let m = fs::symlink_metadata(root.join(&path)).unwrap();
        let (ino, links, rdev) = (m.ino() as i64, m.nlink() as i64, m.rdev() as i64);
        let owner = [i64::from(m.uid()), i64::from(m.gid())];
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
        (
            path,
            [
                ino,
                links,
                rdev,
                i64::from(m.mode()),
                owner[0],
                owner[1],
                times[0],
                times[1],
                times[2],
                times[3],
            ],
            node,
        )
    };
    contents(root).into_iter().map(row).collect()
}

#[test]
fn after_a_remount_everything_is_there_to_the_nanosecond() {
    let (store, id) = small_store();
    for writes in ["through", "back"] {
        // What a seal keeps is shown with the seals.
        let args = ["--writes", writes, "--seal", "manual"];
        let mount = Mount::of(store.root()).args(args).start();
        let name = format!("last-{writes}");
        let w = fork(&mount, &name, &id);
        fs::write(w.join("new"), b"new").unwrap();
        fs::write(w.join("large"), vec![9; 1 << 20]).unwrap();
        open_rw(&w.join("big")).unwrap().write_all_at(b"changed", 70_000).unwrap();
        fs::hard_link(w.join("README"), w.join("hard")).unwrap();
        symlink("nowhere", w.join("soft")).unwrap();
        tool("mkfifo", [w.join("fifo")]).exits(0);
        let socket = std::os::unix::net::UnixListener::bind(w.join("s"));
        drop(socket);
        if is_root() {
            tool("mknod", [w.join("null").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]).exits(0);
            std::os::unix::fs::chown(w.join("new"), Some(1234), Some(2345)).unwrap();
        }
        fs::set_permissions(w.join("src"), fs::Permissions::from_mode(0o2750)).unwrap();
        fs::rename(w.join("src"), w.join("moved")).unwrap();
        fs::remove_file(w.join("moved/lib.rs")).unwrap();
        fs::remove_dir(w.join("empty")).unwrap();
        let sparse = fs::File::create(w.join("sparse")).unwrap();
        sparse.set_len(10 << 20).unwrap();
        sparse.write_all_at(b"middle", 5 << 20).unwrap();
        drop(sparse);
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        fs::File::options().write(true).open(w.join("README")).unwrap().set_modified(old).unwrap();
        let before = lasting(&mount.join("forks").join(&name));
        mount.unmount();
        for round in 0..2 {
            let mount = Mount::of(store.root()).args(args).start();
            let after = lasting(&mount.join("forks").join(&name));
            for (left, right) in before.iter().zip(&after) {
                assert_eq!(left, right, "{writes}, remount {round}");
            }
            assert_eq!(before.len(), after.len());
            mount.unmount();
        }
    }
}
