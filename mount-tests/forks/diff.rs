//! `pfimg diff`: the differences between forks and images.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::XattrFlags;
use serde_json::{Value, json};

use crate::common::cli::{Run, pfimg_on, tool};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store, tag, world, write_mapped};
use crate::common::{Mount, PFIMG, Rng, errno, is_root};

/// The lines of `pfimg diff`.
#[track_caller]
fn diff(store: &FastStore, args: &[&str]) -> Vec<String> {
    let out = pfimg_on(store.root(), ["diff"].iter().chain(args)).exits(0);
    out.stdout.lines().map(str::to_owned).collect()
}

/// The lines of `pfimg diff --layers`.
#[track_caller]
fn layers(store: &FastStore, args: &[&str]) -> Vec<String> {
    diff(store, &[&["--layers"], args].concat())
}

/// The output of GNU diff for two folders, as lines of `pfimg diff`.
fn told_by_gnu(before: &Path, after: &Path) -> BTreeSet<String> {
    let args = ["-rq", "--no-dereference"].map(Path::new);
    let out = tool("diff", args.iter().copied().chain([before, after]));
    assert!(matches!(out.code, 0 | 1), "{out:?}");
    let mut lines = BTreeSet::new();
    let after_fs = |path: &str| {
        let below = path.strip_prefix(after.to_str().unwrap()).unwrap();
        below.trim_start_matches('/').to_owned()
    };
    for line in out.stdout.lines() {
        if let Some(only) = line.strip_prefix("Only in ") {
            let (folder, name) = only.split_once(": ").unwrap();
            let (letter, top) =
                if folder.starts_with(after.to_str().unwrap()) { ('A', after) } else { ('D', before) };
            let below = folder.strip_prefix(top.to_str().unwrap()).unwrap();
            lines.insert(format!("{letter} {}", format!("{below}/{name}").trim_start_matches('/')));
        } else if let Some(both) = line.strip_suffix(" differ") {
            lines.insert(format!("M {}", after_fs(both.rsplit_once(" and ").unwrap().1)));
        } else {
            // File A is a directory while file B is a regular file
            let (_, other) = line.split_once(" while file ").unwrap();
            lines.insert(format!("T {}", after_fs(other.split_once(" is a").unwrap().0)));
        }
    }
    lines
}

/// Without the slash and the number that folders have, and without what GNU diff does not look at.
fn in_world(store: &FastStore, before: &str, after: &str) -> BTreeSet<String> {
    let lines = diff(store, &[before, after]).into_iter();
    let lines = lines.filter(|line| !line.starts_with("P "));
    lines.map(|line| line.split("  (").next().unwrap().trim_end_matches('/').to_owned()).collect()
}

#[test]
fn the_changes_of_a_fork_are_listed_with_letters_and_as_json() {
    let (store, id) = small_store();
    tag(&store, "base", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let files = fork(&mount, "f", "base");
    assert_eq!(diff(&store, &["f"]), [""; 0]);
    fs::write(files.join("README"), "changed\n").unwrap();
    // The same bytes once more, and another time.
    fs::write(files.join("src/lib.rs"), "//! Nothing.\n").unwrap();
    fs::remove_dir(files.join("empty")).unwrap();
    fs::write(files.join("empty"), "a file").unwrap();
    fs::set_permissions(files.join("bin/tool"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir_all(files.join("new/in")).unwrap();
    fs::write(files.join("new/in/file"), "x").unwrap();
    fs::rename(files.join("src/main.rs"), files.join("src/other.rs")).unwrap();
    fs::remove_file(files.join("link")).unwrap();
    symlink("elsewhere", files.join("link")).unwrap();
    write_mapped(&files.join("big"), 7, b"mapped").unwrap();
    fs::write(mount.join("forks/f/model/diff.json"), "{}").unwrap();
    let expected = [
        "M model/diff.json",
        "M world/fs/README",
        "M world/fs/big",
        "P world/fs/bin/tool  mode 0755 → 0700",
        "T world/fs/empty",
        "M world/fs/link",
        "A world/fs/new/  (2 in it)",
        "D world/fs/src/main.rs",
        "A world/fs/src/other.rs",
    ];
    assert_eq!(layers(&store, &["f"]), expected);
    assert_eq!(layers(&store, &["base", "f"]), expected);
    // By default the files alone are compared.
    let plain: Vec<_> = expected[1..].iter().map(|line| line.replace("world/fs/", "")).collect();
    assert_eq!(diff(&store, &["f"]), plain);
    let all = layers(&store, &["-r", "f"]);
    assert_eq!(all[6..9], ["A world/fs/new/", "A world/fs/new/in/", "A world/fs/new/in/file"]);
    let rows = pfimg_on(store.root(), ["forks", "--long", "--json"]).exits(0).json()["forks"].clone();
    // Files written with the same length are not compared.
    assert_eq!(rows[0]["changed"], all.len() + 1, "{rows}");
    let back = layers(&store, &["f", "base"]);
    assert!(back.contains(&"D world/fs/new/  (2 in it)".to_owned()), "{back:?}");
    let told = pfimg_on(store.root(), ["diff", "--layers", "f", "--json"]).exits(0).json();
    assert_eq!(
        (&told["from"], &told["to"]),
        (&json!({"image": format!("sha256:{id}")}), &json!({"fork": "f"}))
    );
    let change = |path: &str| -> Value {
        let all = told["entries"].as_array().unwrap();
        all.iter().find(|change| change["path"] == path).unwrap().clone()
    };
    let side = |kind: &str, mode: &str, size: Option<u64>, below: Option<u64>| {
        let mut side = json!({"kind": kind, "mode": mode, "size": size, "below": below});
        (side["uid"], side["gid"]) = (Value::Null, Value::Null);
        side
    };
    assert_eq!(
        change("world/fs/README"),
        json!({"status": "M", "path": "world/fs/README", "changed": ["content"], "attributes": [],
               "before": side("file", "0644", Some(8), None), "after": side("file", "0644", Some(8), None)})
    );
    let made = &change("world/fs/new")["after"];
    assert_eq!((&made["kind"], &made["mode"], &made["below"]), (&json!("dir"), &json!("0755"), &json!(2)));
    assert_eq!(change("world/fs/bin/tool")["changed"], json!(["mode"]));
    assert_eq!(change("world/fs/empty")["before"]["kind"], "dir");

    // The seal is an image with the same differences from its parent. The fork has no difference from the seal, but still all
    // differences from the image that it was made from.
    fs::create_dir(mount.join("forks/f/.snap/sealed")).unwrap();
    assert_eq!(layers(&store, &["sealed"])[1..], expected[1..]);
    assert_eq!(layers(&store, &["sealed", "f"]), [""; 0]);
    fs::remove_file(files.join("src/other.rs")).unwrap();
    fs::create_dir(mount.join("forks/f/.snap/again")).unwrap();
    assert_eq!(layers(&store, &["again"]), ["D world/fs/src/other.rs"]);
    assert_eq!(layers(&store, &["f"])[1..], expected[1..8]);
    let rows = pfimg_on(store.root(), ["forks", "--long", "--json"]).exits(0).json()["forks"].clone();
    assert_eq!((&rows[0]["base"], &rows[0]["changed"]), (&json!(format!("sha256:{id}")), &json!(10)));
    pfimg_on(store.root(), ["restore", "f", "sealed"]).exits(0);
    assert_eq!(layers(&store, &["f"])[1..], expected[1..]);
    let said = pfimg_on(store.root(), ["diff", "nobody"]).exits(5);
    assert!(said.stderr.contains("no fork") && said.stderr.contains("nobody"), "{said:?}");
    mount.unmount();
    // Without a mount as well.
    assert_eq!(layers(&store, &["base", "f"])[1..], expected[1..]);
    // If its source image is gone, from the next image that exists: the first seal, to which it was restored.
    fs::remove_file(store.marker_path(&id)).unwrap();
    assert_eq!(layers(&store, &["f"]), [""; 0]);
}

#[test]
fn changed_attributes_are_named_and_attributes_of_overlays_do_not_count() {
    let (store, id) = small_store();
    tag(&store, "base", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual", "--xattrs"]).start();
    let files = fork(&mount, "f", "base");
    let set = |path: &str, name: &str| {
        let value = format!("{path} {name}");
        rustix::fs::setxattr(files.join(path), name, value.as_bytes(), XattrFlags::empty()).unwrap();
    };
    for name in ["user.overlay.origin", "user.overlay.impure", "user.overlay.nlink"] {
        set("README", name);
        set("src", name);
    }
    assert_eq!(diff(&store, &["f"]), [""; 0]);
    set("README", "user.note");
    set("README", "user.overlay.opaque");
    fs::set_permissions(files.join("src/lib.rs"), fs::Permissions::from_mode(0o755)).unwrap();
    let expected = ["P README  user.note, user.overlay.opaque", "P src/lib.rs  mode 0644 → 0755"];
    assert_eq!(diff(&store, &["f"]), expected);
    let told = pfimg_on(store.root(), ["diff", "f", "--json"]).exits(0).json();
    assert_eq!(told["entries"][0]["attributes"], json!(["user.note", "user.overlay.opaque"]));
    assert_eq!(told["entries"][1]["changed"], json!(["mode"]));
    let said = pfimg_on(store.root(), ["diff", "f", "-p"]).exits(0);
    assert_eq!(said.stdout, "diff --git a/src/lib.rs b/src/lib.rs\nold mode 100644\nnew mode 100755\n");
    assert!(said.stderr.contains("1 file (1 path not in the patch"), "{said:?}");
    mount.unmount();
}

#[test]
fn an_ambiguous_name_is_reported_and_a_path_resolves_it() {
    let (store, id) = small_store();
    tag(&store, "base", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let files = fork(&mount, "try", "base");
    fs::write(files.join("README"), "first\n").unwrap();
    let sealed = pfimg_on(store.root(), ["seal", "try"]).exits(0).stdout;
    // As an older version made it.
    tag(&store, "try", sealed.trim().trim_start_matches("sha256:"));
    fs::write(files.join("later"), "x").unwrap();
    let out = pfimg_on(store.root(), ["diff", "base", "try"]).exits(0);
    assert_eq!(out.stdout, "M README\nA later\n");
    assert!(
        out.stderr.contains("Name the image as tags/try") && out.stderr.contains("→ try: 2 paths"),
        "{out:?}"
    );
    assert_eq!(diff(&store, &["tags/base", "tags/try"]), ["M README"]);
    let (tag, fork) = (mount.join("tags/try"), mount.join("work/try/"));
    assert_eq!(diff(&store, &[tag.to_str().unwrap(), fork.to_str().unwrap()]), ["A later"]);
    assert_eq!(diff(&store, &[&format!("images/{id}"), "forks/try"]).len(), 2);
    // If a fork's name is given as an image, the error says what to do.
    fork_alone(&mount);
    for args in [&["show", "alone"][..], &["tag", "alone", "x"], &["export", "alone", "nowhere"]] {
        let said = pfimg_on(store.root(), args).exits(5).stderr;
        assert!(said.contains("pfimg seal alone"), "{args:?}: {said}");
    }
    // No fork can take the place of the newest image.
    for made in ["latest", "latest@base"] {
        assert_eq!(errno(fs::create_dir(mount.join("forks").join(made))), libc::EINVAL, "{made}");
    }
    assert!(pfimg_on(store.root(), ["fork", "base", "latest"]).exits(2).stderr.contains("reserved"));
    assert_eq!(errno(fs::rename(mount.join("forks/try"), mount.join("forks/latest"))), libc::EINVAL);
    for (args, code) in [(["base", "try"], 1), (["base", "tags/base"], 0), (["base", "nobody"], 5)] {
        pfimg_on(store.root(), ["diff", "--exit-code"].iter().chain(&args)).exits(code);
    }
    mount.unmount();
}

fn fork_alone(mount: &Mount) {
    fork(mount, "alone", "base");
}

#[test]
fn a_user_who_may_read_only_images_can_compare_them() {
    if !is_root() {
        eprintln!("another user takes root");
        return;
    }
    let (store, id) = small_store();
    tag(&store, "base", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fs::write(fork(&mount, "f", "base").join("new"), "x").unwrap();
    fs::create_dir(mount.join("forks/f/.snap/sealed")).unwrap();
    mount.unmount();
    tool("chmod", ["-R".as_ref(), "go+rX".as_ref(), store.root().as_os_str()]).exits(0);
    fs::set_permissions(store.root().join("forks/format.json"), fs::Permissions::from_mode(0o600)).unwrap();
    // The build's folder may be closed to others.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("pfimg");
    crate::common::cli::copy_program(PFIMG, &program);
    let as_other = |args: &[&str]| {
        let run = Run::program(&program, ["diff"].iter().chain(args)).env("PF_STORE", store.root());
        run.env("HOME", "/nonexistent").user(Some(65_534)).run()
    };
    assert_eq!(as_other(&["base", "sealed"]).exits(0).stdout, "A new\n");
    assert_eq!(as_other(&["sealed"]).exits(0).stdout, "A new\n");
    assert_ne!(as_other(&["f"]).code, 0);
}

#[test]
fn forks_and_images_differ_as_in_gnu_diff() {
    let (store, id) = small_store();
    tag(&store, "base", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f0", "base");
    let mut rng = Rng::new(0xd1ff);
    let names = [
        "README",
        "big",
        "bin",
        "empty",
        "link",
        "src",
        "new",
        "src/main.rs",
        "src/new",
        "bin/tool",
        "new/x",
    ];
    for round in 1..25_u64 {
        let (from, to) = (format!("f{}", rng.below(round)), format!("f{round}"));
        if rng.below(3) == 0 {
            let forks = mount.join("forks");
            tool("cp", ["-r".into(), forks.join(&from), forks.join(&to)]).exits(0);
        } else {
            fork(&mount, &to, &from);
        }
        let files = world(&mount, &to);
        for _ in 0..4 {
            let path = files.join(rng.pick(&names));
            let other = files.join(rng.pick(&names));
            // A step that fails is skipped.
            let _ = match rng.below(8) {
                0 => fs::remove_file(&path),
                1 => fs::remove_dir_all(&path),
                2 => fs::create_dir(&path),
                3 => fs::rename(&path, &other),
                4 => symlink("here", &path),
                5 => fs::copy(&path, &other).map(drop),
                _ => {
                    let len = rng.below(3000) as usize;
                    fs::write(&path, rng.bytes(len))
                }
            };
        }
        if rng.below(3) == 0 {
            fs::create_dir(mount.join("forks").join(&to).join(format!(".snap/s{round}"))).unwrap();
        }
        let of_image = |name: &str| mount.join("tags").join(name).join("world/fs");
        for other in [from, format!("f{}", rng.below(round))] {
            assert_eq!(
                in_world(&store, &other, &to),
                told_by_gnu(&world(&mount, &other), &files),
                "{other} to {to}"
            );
        }
        assert_eq!(in_world(&store, "base", &to), told_by_gnu(&of_image("base"), &files), "base to {to}");
    }
    mount.unmount();
}

#[test]
fn a_diff_during_seals_shows_one_moment_and_never_fails() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let files = fork(&mount, "f", &id);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..60 {
                fs::write(files.join("README"), format!("{n} ").repeat(5000)).unwrap();
                fs::create_dir(mount.join(format!("forks/f/.snap/s{n}"))).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut looked = 0;
        while !done.load(Ordering::Relaxed) || looked == 0 {
            let found = diff(&store, &[&id, "f"]);
            assert!(found.is_empty() || found == ["M README"], "{found:?}");
            looked += 1;
        }
    });
    mount.unmount();
}

#[test]
fn the_log_shows_the_parents_of_images_and_the_forks_that_rest_on_them() {
    let (store, id) = small_store();
    tag(&store, "base", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let seal = |name: &str| {
        fs::write(world(&mount, &name[..1]).join("file"), name).unwrap();
        pfimg_on(store.root(), ["seal", &name[..1], "--tag", name]).exits(0).stdout.trim().to_owned()
    };
    fork(&mount, "a", "base");
    fork(&mount, "b", "base");
    let ids = ["a1", "b1", "a2"].map(seal);
    let log = |args: &[&str]| {
        let out = pfimg_on(store.root(), ["log"].iter().chain(args)).exits(0).stdout;
        let short = |line: &str| {
            let tags = line.rsplit_once('[').map_or("", |(_, names)| names.trim_end_matches(']'));
            let drawn = line.split(|c: char| c.is_ascii_hexdigit()).next().unwrap();
            format!("{drawn}{tags}")
        };
        out.lines().map(short).collect::<Vec<_>>()
    };
    assert_eq!(log(&[]), ["latest, a2, fork a", "b1, fork b", "a1", "base"]);
    assert_eq!(log(&["b"]), ["b1, b@1, fork b", "base, b@0"]);
    assert_eq!(log(&["a2", "-n", "2"]), ["latest, a2, fork a", "a1"]);
    let drawn = ["*  latest, a2, fork a", "| *  b1, fork b", "* |  a1", "|/", "*  base"];
    assert_eq!(log(&["--graph"]), drawn);
    let told = pfimg_on(store.root(), ["log", "--json", "a1"]).exits(0).json()["images"].clone();
    assert_eq!((&told[0]["id"], &told[0]["parents"]), (&json!(ids[0]), &json!([format!("sha256:{id}")])));
    assert_eq!((&told[1]["tags"], told.as_array().unwrap().len()), (&json!(["base"]), 2));
    assert!(pfimg_on(store.root(), ["log", "nobody"]).exits(5).stderr.contains("nobody"));
    mount.unmount();
}
