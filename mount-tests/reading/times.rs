//! Times of files without a recorded time: when their content appeared at their path, along the line of images.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::cli::tool;
use crate::common::fast::{FastStore, Spec, dir_entry, link_entry};
use crate::common::{Mount, names, temp_dir};

/// Whether an image ends every line, by its id.
fn is_fixed_point(id: &str) -> bool {
    u8::from_str_radix(&id[..2], 16).unwrap() < 4
}

/// An image as pf makes it, of a moment of one's choice, that ends no line by its id.
fn image(store: &mut FastStore, created_at: &str, parents: &[&str], spec: &Spec) -> String {
    let parents: Vec<String> = parents.iter().map(|id| format!("sha256:{id}")).collect();
    for n in 0.. {
        let fingerprint = format!("{}{n}", spec.fingerprint);
        let created_at = Some(created_at.to_owned());
        let id = store.image(&Spec { created_at, fingerprint, parents: parents.clone(), ..spec.clone() });
        if !is_fixed_point(&id) {
            return id;
        }
        fs::remove_file(store.marker_path(&id)).unwrap();
    }
    unreachable!()
}

fn world(store: &mut FastStore, files: &[(&str, &str)]) -> Spec {
    let mut entries: Vec<Value> =
        files.iter().map(|(path, text)| store.file(path, text.as_bytes())).collect();
    entries.push(link_entry("link", "a"));
    Spec { fs: Some(store.tree(&entries)), ..Spec::default() }
}

/// The day that a path shows, of January 2026.
fn day(path: &Path) -> i64 {
    let seconds = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mtime();
    // 2025-12-31.
    (seconds - 1_767_139_200) / 86_400
}

#[test]
fn a_file_without_a_recorded_time_shows_when_its_content_appeared_at_its_path() {
    let mut store = FastStore::new();
    let first = world(&mut store, &[("a", "1"), ("sub/deep/b", "1"), ("still/c", "1"), ("gone", "1")]);
    let a = image(&mut store, "2026-01-01T00:00:00.5Z", &[], &first);
    let second = world(&mut store, &[("a", "1"), ("sub/deep/b", "2"), ("still/c", "1"), ("gone", "1")]);
    let trace = Some(store.blob(b"{\"content\":\"x\",\"role\":\"user\"}\n"));
    let b = image(&mut store, "2026-01-02T00:00:00Z", &[&a], &Spec { trace: trace.clone(), ..second });
    // A file goes, and the mode of another one changes.
    let mut entries = vec![
        store.file("a", b"1"),
        store.file("sub/deep/b", b"2"),
        store.file("still/c", b"1"),
        link_entry("link", "a"),
    ];
    entries[0]["mode"] = json!("0700");
    let third = Spec { fs: Some(store.tree(&entries)), trace: trace.clone(), ..Spec::default() };
    let c = image(&mut store, "2026-01-03T00:00:00Z", &[&b], &third);
    let fourth = world(&mut store, &[("a", "1"), ("sub/deep/b", "1"), ("still/c", "1")]);
    let d = image(&mut store, "2026-01-04T00:00:00Z", &[&c], &Spec { trace, ..fourth });
    let mount = Mount::of(store.root()).start();
    let at = |id: &str, path: &str| day(&mount.image(id).join(path));
    for (id, path, want, what) in [
        (&a, "world/fs/a", 1, "in the first image"),
        (&b, "world/fs/a", 1, "unchanged"),
        (&b, "world/fs/link", 1, "an unchanged link"),
        (&b, "world/fs/sub/deep/b", 2, "changed"),
        (&c, "world/fs/sub/deep/b", 2, "unchanged since it was changed"),
        (&d, "world/fs/sub/deep/b", 4, "changed back"),
        (&c, "world/fs/a", 1, "of another mode"),
        (&b, "world/fs/sub", 2, "the newest change below"),
        (&d, "world/fs/still", 1, "nothing changed below"),
        (&c, "world/fs", 3, "from which a file went"),
        (&b, "manifest.json", 2, "its image's time"),
        (&c, "manifest.json", 3, "its image's time"),
        (&b, "trace/messages.jsonl", 2, "new in the second image"),
        (&d, "trace/messages.jsonl", 2, "the same since the second image"),
        (&d, "model/base", 1, "the same since the first image"),
        (&b, "", 2, "the image's own folder"),
        (&b, "parents", 2, "a folder of the image"),
    ] {
        assert_eq!(at(id, path), want, "{path}, {what}");
    }
    let exact = fs::metadata(mount.image(&a).join("world/fs/a")).unwrap();
    assert_eq!((exact.mtime_nsec(), exact.ctime_nsec()), (500_000_000, 500_000_000));
    // What did not change is one inode along the line, so that one page cache serves it and diff -r reads what differs.
    let inode = |id: &str, path: &str| fs::metadata(mount.image(id).join(path)).unwrap().ino();
    for path in ["world/fs/still/c", "model/base"] {
        assert_eq!(inode(&a, path), inode(&d, path), "{path}");
    }
    // A fork shows its image's times.
    fs::create_dir(mount.join(format!("forks/f@{c}"))).unwrap();
    let forked = |path: &str| day(&mount.join("forks/f").join(path));
    for path in [
        "world/fs/a",
        "world/fs/sub/deep/b",
        "world/fs/sub",
        "world/fs",
        "model/base",
        "trace/messages.jsonl",
    ] {
        assert_eq!(forked(path), at(&c, path), "{path} in a fork");
    }
    mount.unmount();
}

#[test]
fn nothing_that_pf_made_shows_1970_anywhere() {
    let mount = Mount::of(super::support::GENERATED.store.root()).start();
    fs::create_dir(mount.join("forks/empty")).unwrap();
    // All of twenty images, and everything that is not in one.
    let images: Vec<String> = names(&mount.join("images")).unwrap().into_iter().take(20).collect();
    fs::create_dir(mount.join(format!("forks/f@{}", images[0]))).unwrap();
    let find = |args: Vec<std::ffi::OsString>| {
        let young = ["!", "-newermt", "1980-01-01"].map(std::ffi::OsString::from);
        let found = tool("find", args.into_iter().chain(young)).exits(0).stdout;
        assert_eq!(found, "");
    };
    find(images.iter().map(|id| mount.image(id).into_os_string()).collect());
    let outside = ["agents", "tags", "forks", "work", "latest", ".pfimg"].map(|name| mount.join(name));
    find(outside.iter().map(|path| path.clone().into_os_string()).collect());
    find(vec![mount.path().as_os_str().to_owned(), "-maxdepth".into(), "2".into()]);
    for fork in ["empty", "f"] {
        fs::rename(mount.join("forks").join(fork), mount.join(".pfimg").join(fork)).unwrap();
    }
    mount.unmount();
}

#[test]
fn a_time_that_is_recorded_is_shown_whatever_it_is() {
    let mut store = FastStore::new();
    let mut file = store.file("epoch", b"x");
    file["mtime_ns"] = json!(0);
    let mut folder = dir_entry("d");
    folder["mtime_ns"] = json!(-1_500_000_000);
    let fs_of = store.tree(&[file, folder]);
    let id = image(&mut store, "2026-01-02T00:00:00Z", &[], &Spec { fs: Some(fs_of), ..Spec::default() });
    let mount = Mount::of(store.root()).start();
    let at = |path: &str| {
        let meta = fs::metadata(mount.image(&id).join("world/fs").join(path)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    assert_eq!((at("epoch"), at("d")), ((0, 0), (-2, 500_000_000)));
    mount.unmount();
}

#[test]
fn tools_that_go_by_size_and_time_take_over_what_changed_from_image_to_image() {
    let makefile = "all: a.o b.o\n%.o: %.src\n\tcp $< $@\n\t@echo built $@\n";
    let mut store = FastStore::new();
    let mut line: Vec<String> = Vec::new();
    // The file changes without a new size, and changes back.
    for (at, text) in [(1, "a 1\n"), (2, "a 2\n"), (3, "a 1\n")] {
        let files = [("Makefile", makefile), ("a.src", text), ("b.src", "b 1\n"), ("mod.py", "V = 1\n")];
        let mut spec = world(&mut store, &files);
        if at == 2 {
            spec = world(&mut store, &[files[0], files[1], files[2], ("mod.py", "V = 2\n")]);
        }
        let parents: Vec<&str> = line.last().map(String::as_str).into_iter().collect();
        let id = image(&mut store, &format!("2026-01-0{at}T00:00:00Z"), &parents, &spec);
        line.push(id);
    }
    let mount = Mount::of(store.root()).start();
    let (_dir, dir) = temp_dir();
    let worlds: Vec<_> = line.iter().map(|id| mount.image(id).join("world/fs")).collect();
    let inside = |path: &Path| format!("{}/", path.display());
    let (rsynced, copied) = (dir.join("rsync"), dir.join("cp"));
    fs::create_dir(&copied).unwrap();
    for (at, world) in worlds.iter().enumerate() {
        tool("rsync", ["-a".to_owned(), inside(world), inside(&rsynced)]).exits(0);
        tool("cp", ["-a".to_owned(), "-u".to_owned(), format!("{}/.", world.display()), inside(&copied)])
            .exits(0);
        let want = if at == 1 { "a 2\n" } else { "a 1\n" };
        for made in [&rsynced, &copied] {
            assert_eq!(
                fs::read_to_string(made.join("a.src")).unwrap(),
                want,
                "image {at}, {}",
                made.display()
            );
        }
    }
    // make builds what changed, and nothing else; python takes no old byte code for new.
    let work = dir.join("work");
    fs::create_dir(&work).unwrap();
    for (at, built) in [(0, "built a.o\nbuilt b.o\n"), (1, "built a.o\n"), (2, "built a.o\n")] {
        tool("cp", ["-a".to_owned(), format!("{}/.", worlds[at].display()), inside(&work)]).exits(0);
        let ran = tool("make", ["-s".as_ref(), "-C".as_ref(), work.as_os_str()]).exits(0);
        assert_eq!(ran.stdout, built, "image {at}");
        for object in ["a.o", "b.o"] {
            let noon = format!("2026-01-0{}T12:00:00Z", at + 1);
            tool("touch", ["-d".as_ref(), noon.as_ref(), work.join(object).as_os_str()]).exits(0);
        }
        let script = "import sys; sys.path.insert(0, sys.argv[1]); import mod; print(mod.V)";
        let ran = tool("python3", ["-c".as_ref(), script.as_ref(), work.as_os_str()]).exits(0);
        assert_eq!(ran.stdout, if at == 1 { "2\n" } else { "1\n" }, "image {at}");
    }
    mount.unmount();
}

#[test]
fn odd_moments_and_parents_that_are_gone_harm_nothing() {
    let mut store = FastStore::new();
    let made = |store: &mut FastStore, new: &str, created_at: &str, parents: &[&str]| {
        let spec = world(store, &[("old", "1"), ("new", new)]);
        image(store, created_at, parents, &spec)
    };
    let root = made(&mut store, "1", "2026-01-01T00:00:00Z", &[]);
    let offset = made(&mut store, "2", "2026-01-03T01:00:00+02:00", &[&root]);
    let back = made(&mut store, "3", "2025-12-31T00:00:00Z", &[&offset]);
    let far = made(&mut store, "4", "2400-01-01T00:00:00Z", &[&back]);
    let early = made(&mut store, "5", "1901-01-01T00:00:00Z", &[&back]);
    let orphan = made(&mut store, "6", "2026-01-05T00:00:00Z", &[&"ff".repeat(32)]);
    let side = made(&mut store, "7", "2026-01-06T00:00:00Z", &[&root]);
    let merge = made(&mut store, "7", "2026-01-08T00:00:00Z", &[&offset, &side]);
    let mount = Mount::of(store.root()).start();
    let at = |id: &str, path: &str| day(&mount.image(id).join("world/fs").join(path));
    assert_eq!(at(&offset, "new"), 2, "an offset is read as such");
    assert_eq!((at(&back, "new"), at(&back, "old")), (0, 1), "older than its parent");
    let seconds = |id: &str| fs::metadata(mount.image(id).join("world/fs/new")).unwrap().mtime();
    assert_eq!(seconds(&far), i64::MAX / 1_000_000_000, "cut to the last moment that 64 bits hold");
    assert_eq!(seconds(&early), -2_177_452_800, "before 1970");
    assert_eq!(at(&orphan, "old"), 5, "a parent that is not there ends the line");
    assert_eq!((at(&merge, "old"), at(&merge, "new")), (1, 8), "the first parent counts");
    mount.unmount();
}

#[test]
fn neighbours_agree_however_long_the_line_is_and_with_and_without_what_was_remembered() {
    const LINE: usize = 200;
    let mut store = FastStore::new();
    let mut files: Vec<(String, String)> = (0..50).map(|n| (format!("sub/f{n}"), n.to_string())).collect();
    files.push(("new".into(), String::new()));
    let mut line: Vec<String> = Vec::new();
    for n in 0..LINE {
        files[50].1 = n.to_string();
        let borrowed: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let parents = line.last().map(|id| format!("sha256:{id}")).into_iter().collect();
        let created_at = Some(format!("2026-01-{:02}T{:02}:00:00Z", 1 + n / 24, n % 24));
        // Whether an image is a fixed point is left to chance.
        let spec = Spec { created_at, parents, ..world(&mut store, &borrowed) };
        line.push(store.image(&spec));
    }
    let (_cache, cache) = temp_dir();
    let args = |dir: &Path| ["--cache-dir".into(), dir.as_os_str().to_owned()];
    let seen = |mount: &Mount, at: usize| {
        let meta = fs::metadata(mount.image(&line[at]).join("world/fs/sub/f7")).unwrap();
        (meta.ino(), meta.mtime(), meta.mtime_nsec())
    };
    let mount = Mount::of(store.root()).args(args(&cache)).start();
    let last = seen(&mount, LINE - 1);
    let behind = (0..LINE).rev().take_while(|at| !is_fixed_point(&line[*at])).count().min(LINE - 1);
    let read = mount.metric("pfimg_times_trees_total");
    assert!(read <= behind as f64, "{read} trees were read of a line of {behind}");
    for at in 0..LINE - 1 {
        let same = seen(&mount, at) == seen(&mount, at + 1);
        // At a fixed point, all files without a recorded time have the image's time.
        assert_eq!(same, !is_fixed_point(&line[at + 1]), "image {at} and its child");
    }
    mount.unmount();
    // Remembered, damaged, not there, not to be written: the answers are the same.
    let kept = cache.join("times");
    assert!(fs::read_dir(&kept).unwrap().count() > 0);
    for (what, trees) in [("remembered", Some(0.0)), ("damaged", None), ("gone", None)] {
        match what {
            "damaged" => {
                for file in fs::read_dir(&kept).unwrap() {
                    fs::write(file.unwrap().path(), b"pfimgtim and nothing that makes sense").unwrap();
                }
            }
            "gone" => fs::remove_dir_all(&kept).unwrap(),
            _ => {}
        }
        let mount = Mount::of(store.root()).args(args(&cache)).start();
        assert_eq!(seen(&mount, LINE - 1), last, "{what}");
        if let Some(trees) = trees {
            assert_eq!(mount.metric("pfimg_times_trees_total") as u64, trees as u64, "{what}");
        }
        mount.unmount();
    }
}
