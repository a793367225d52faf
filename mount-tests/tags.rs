//! Tags: names given to images, by the command and by the tools that work on symlinks, and what a copy costs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::small_store;
use crate::common::{Mount, errno, names, tree, wait_until};

/// What `du -b` says of a folder.
fn du(path: &Path) -> u64 {
    let said = tool("du", [Path::new("-sb"), path]).exits(0).stdout;
    said.split_whitespace().next().unwrap().parse().unwrap()
}

/// Where the tag leads in the mount.
fn target(mount: &Mount, tag: &str) -> PathBuf {
    fs::read_link(mount.join("tags").join(tag)).unwrap()
}

fn to_image(id: &str) -> PathBuf {
    Path::new("../images").join(id)
}

/// A store with two images, and their ids.
fn two_images() -> (FastStore, String, String) {
    let (mut store, first) = small_store();
    let file = store.file("only", b"in the second\n");
    let fs = store.tree(&[file]);
    let second = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    (store, first, second)
}

#[test]
fn a_copy_of_an_image_of_twenty_thousand_files_costs_no_more_than_four_kibibytes() {
    let mut store = FastStore::new();
    let entries: Vec<_> =
        (0..20_000).map(|n| store.file(&format!("f{n:05}"), format!("content {n}\n").as_bytes())).collect();
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    // The first image of a store makes room for tags and the log; before that they cost a folder each, once.
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let import = [Path::new("import"), folder.path(), Path::new("--cache-dir"), cache.path()];
    pfimg_on(store.root(), import).exits(0);
    let copy = |source: &str, tag: &str| {
        let before = du(store.root());
        let said = pfimg_on(store.root(), ["cp", source, tag, "--json"]).exits(0).json();
        let grown = du(store.root()) - before;
        assert!(grown > 0 && grown <= 4096, "{grown} bytes");
        said
    };
    copy(&id, "a");
    let said = copy("a", "b");
    assert_eq!(
        (said["image"].as_str().unwrap(), said["copied_bytes"].as_u64()),
        (&*format!("sha256:{id}"), Some(0))
    );

    let mount = Mount::of(store.root()).start();
    let inodes = |tag: &str| -> Vec<u64> {
        let world = mount.join("tags").join(tag).join("world/fs");
        let mut paths: Vec<_> = fs::read_dir(&world).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::metadata(path).unwrap().ino()).collect()
    };
    let of_a = inodes("a");
    assert_eq!(of_a.len(), 20_000);
    assert!(of_a == inodes("b"), "inodes differ");
    assert_eq!(
        fs::metadata(mount.join("tags/a/manifest.json")).unwrap().ino(),
        fs::metadata(mount.join("tags/b/manifest.json")).unwrap().ino()
    );
    mount.unmount();
}

#[test]
fn removing_either_of_two_tags_of_an_image_leaves_the_other_whole() {
    let (store, id) = small_store();
    pfimg_on(store.root(), ["tag", &id, "a"]).exits(0);
    pfimg_on(store.root(), ["cp", "a", "b"]).exits(0);
    let mount = Mount::of(store.root()).start();
    let whole = tree::read_tree(&mount.image(&id)).unwrap();
    for (gone, kept) in [("a", "b"), ("b", "a")] {
        fs::remove_file(mount.join("tags").join(gone)).unwrap();
        assert_eq!(names(&mount.join("tags")).unwrap(), [kept]);
        let left = tree::read_tree(&mount.join("tags").join(kept).canonicalize().unwrap()).unwrap();
        assert_eq!(tree::differences(&whole, &left), [] as [&str; 0]);
        pfimg_on(store.root(), ["cp", kept, gone]).exits(0);
    }
    mount.unmount();
}

#[test]
fn the_command_makes_lists_moves_and_removes_tags_and_reports_mistakes() {
    let (store, first, second) = two_images();
    let run = |args: &[&str]| pfimg_on(store.root(), args);
    run(&["tag", &first[..8], "a"]).exits(0);
    run(&["cp", &format!("sha256:{second}"), "b"]).exits(0);
    let listed = run(&["tags", "--json"]).exits(0).json()["tags"].clone();
    let expected = serde_json::json!([
        {"name": "a", "image": format!("sha256:{first}"), "problem": null},
        {"name": "b", "image": format!("sha256:{second}"), "problem": null}]);
    assert_eq!(listed, expected);
    assert!(run(&["tags"]).exits(0).stdout.contains(&first[..12]));

    for (args, code, says) in [
        (&["tag", &first, "b"][..], 6, "already"),
        (&["cp", "a", "b"], 6, "already"),
        (&["cp", "a", "a"], 6, "already"),
        (&["cp", "nothing", "c"], 5, "nothing"),
        (&["cp", "a", "x/y"], 2, "path separator"),
        (&["cp", "a", ""], 2, "empty"),
        (&["cp", "", "c"], 2, "empty"),
        (&["tag", "a", "latest"], 2, "reserved"),
        (&["tag", "a", "12"], 2, "all digits"),
        (&["tag", "a", "a@b"], 2, "@"),
        (&["tag", "a", "--", "-b"], 2, "dash"),
        (&["tag", "nothing", "c"], 5, "nothing"),
        (&["untag", "nothing"], 5, "no tag"),
        (&["untag", "../a"], 2, "starts with a dot"),
    ] {
        let said = run(args).exits(code).stderr;
        assert!(said.contains(says), "{args:?}: {said}");
    }
    run(&["tag", &first, "b", "--force"]).exits(0);
    run(&["untag", "a"]).exits(0);
    let listed = run(&["tags", "--json"]).exits(0).json()["tags"].clone();
    assert_eq!(
        listed,
        serde_json::json!([{"name": "b", "image": format!("sha256:{first}"), "problem": null}])
    );
    // One that leads nowhere is listed as that.
    fs::remove_file(store.marker_path(&first)).unwrap();
    assert!(run(&["tags"]).exits(4).stdout.contains("not in the store"));
}

#[test]
fn all_of_several_tags_are_removed_or_none_and_a_repeated_name_counts_once() {
    let (store, first, second) = two_images();
    let run = |args: &[&str]| pfimg_on(store.root(), args);
    let left = || {
        let rows = run(&["tags", "--json"]).exits(0).json()["tags"].clone();
        rows.as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    run(&["tag", &first, "a"]).exits(0);
    run(&["tag", &second, "b"]).exits(0);
    for (names, code) in [(["a", "nope", "b"], 5), (["nope", "a", "b"], 5), (["a", "b", "../a"], 2)] {
        let said = run(&[&["untag"], &names[..]].concat()).exits(code).stderr;
        assert!(said.contains("nope") || said.contains("../a"), "{said}");
        assert_eq!(left(), ["a", "b"], "{names:?}");
    }
    run(&["untag", "a", "a"]).exits(0);
    assert_eq!(left(), ["b"]);
}

#[test]
fn a_table_stands_straight_whatever_letters_its_cells_hold() {
    let (store, first, _) = two_images();
    for tag in ["日本語", "plain", "émoji👍"] {
        pfimg_on(store.root(), ["tag", &first, tag]).exits(0);
    }
    let table = pfimg_on(store.root(), ["tags"]).exits(0).stdout;
    let columns = table.lines().skip(1).map(|line| {
        let name = line.split(' ').next().unwrap();
        // In cells: three wide letters, six, and five letters with a wide one.
        let cells = match name {
            "日本語" => 6,
            "plain" => 5,
            _ => 7,
        };
        cells + line[name.len()..].len() - line[name.len()..].trim_start().len()
    });
    let columns: Vec<usize> = columns.collect();
    assert_eq!((columns.len(), columns.iter().all(|at| *at == columns[0])), (3, true), "{table}");
}

#[test]
fn the_tools_for_symlinks_copy_move_make_and_remove_tags() {
    let (store, first, second) = two_images();
    let mount = Mount::of(store.root()).start();
    let tags = mount.join("tags");
    let run = |program: &str, args: &[&str]| {
        let args: Vec<PathBuf> = args
            .iter()
            .map(|arg| if arg.starts_with(['-', '.']) { PathBuf::from(arg) } else { tags.join(arg) })
            .collect();
        tool(program, args)
    };
    run("ln", &["-s", &format!("../images/{first}"), "a"]).exits(0);
    run("ln", &["-s", &format!("../images/{}", &second[..10]), "s"]).exits(0);
    assert_eq!((target(&mount, "a"), target(&mount, "s")), (to_image(&first), to_image(&second)));
    run("cp", &["-P", "a", "b"]).exits(0);
    run("cp", &["-r", "b", "c"]).exits(0);
    assert_eq!(names(&tags).unwrap(), ["a", "b", "c", "s"]);
    assert_eq!(fs::read(tags.join("c/manifest.json")).unwrap(), fs::read(store.marker_path(&first)).unwrap());
    // To another name, over a tag of the same image, and over one of another.
    run("mv", &["c", "d"]).exits(0);
    run("mv", &["-T", "d", "b"]).exits(0);
    assert_eq!(names(&tags).unwrap(), ["a", "b", "s"]);
    run("mv", &["-T", "s", "b"]).exits(0);
    assert_eq!(target(&mount, "b"), to_image(&second));
    run("ln", &["-sfn", &format!("../images/{first}"), "b"]).exits(0);
    assert_eq!(target(&mount, "b"), to_image(&first));
    run("rm", &["a"]).exits(0);
    assert_eq!(names(&tags).unwrap(), ["b"]);
    // All of it is in the store.
    let listed = pfimg_on(store.root(), ["tags", "--json"]).exits(0).json()["tags"].clone();
    assert_eq!(
        listed,
        serde_json::json!([{"name": "b", "image": format!("sha256:{first}"), "problem": null}])
    );
    assert_eq!(names(&store.root().join("refs/tags")).unwrap(), ["b"], "nothing temporary stays");
    mount.unmount();
}

#[test]
fn an_invalid_image_name_is_refused_under_tags_and_leaves_nothing() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let at = |name: &str| mount.join("tags").join(name);
    let link = |target: &str, name: &str| errno(symlink(target, at(name)));
    symlink(mount.image(&id), at("absolute")).unwrap();
    symlink("absolute", at("of-a-tag")).unwrap();
    symlink("../latest", at("of-the-latest")).unwrap();
    for name in ["absolute", "of-a-tag", "of-the-latest"] {
        assert_eq!(target(&mount, name), to_image(&id), "{name}");
    }
    assert_eq!(link(&format!("../images/{}", "0".repeat(64)), "x"), libc::ENOENT);
    assert_eq!(link("../forks/y", "x"), libc::EPERM);
    assert_eq!(link("/etc/passwd", "x"), libc::EPERM);
    assert_eq!(link(&format!("../images/{id}/world"), "x"), libc::EPERM);
    assert_eq!(link(&format!("../images/{id}"), ".hidden"), libc::EINVAL);
    assert_eq!(link(&format!("../images/{id}"), "latest"), libc::EINVAL);
    assert_eq!(link(&format!("../images/{id}"), "absolute"), libc::EEXIST);
    assert_eq!(errno(fs::write(at("x"), b"x")), libc::EPERM);
    assert_eq!(errno(fs::create_dir(at("x"))), libc::EPERM);
    assert_eq!(errno(fs::remove_file(at("x"))), libc::ENOENT);
    assert_eq!(errno(fs::rename(at("absolute"), mount.join("forks/x"))), libc::EROFS);
    assert_eq!(errno(fs::rename(at("absolute"), at("latest"))), libc::EINVAL);
    assert_eq!(names(&mount.join("tags")).unwrap(), ["absolute", "of-a-tag", "of-the-latest"]);
    mount.unmount();

    let mount = Mount::of(store.root()).args(["--read-only"]).start();
    assert_eq!(errno(symlink(format!("../images/{id}"), mount.join("tags/y"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mount.join("tags/absolute"))), libc::EROFS);
    mount.unmount();
}

#[test]
fn tags_that_the_command_changes_show_in_a_mount_and_those_of_one_mount_in_another() {
    let (store, first, second) = two_images();
    let (one, two) = (Mount::of(store.root()).start(), Mount::of(store.root()).start());
    assert_eq!(names(&one.join("tags")).unwrap_or_default(), [] as [&str; 0]);
    assert!(!one.join("tags/t").exists());
    pfimg_on(store.root(), ["tag", &first, "t"]).exits(0);
    for mount in [&one, &two] {
        assert_eq!(target(mount, "t"), to_image(&first), "the kernel asks for a name each time");
        wait_until("the tag is listed", || names(&mount.join("tags")).unwrap() == ["t"]);
    }
    pfimg_on(store.root(), ["tag", &second, "t", "--force"]).exits(0);
    // The kernel believes a link for half a second, unless the mount has told it before.
    for mount in [&one, &two] {
        wait_until("the tag leads elsewhere", || target(mount, "t") == to_image(&second));
    }
    symlink("t", one.join("tags/u")).unwrap();
    fs::rename(one.join("tags/t"), one.join("tags/v")).unwrap();
    assert_eq!(target(&two, "v"), to_image(&second));
    wait_until("the other mount lists them", || names(&two.join("tags")).unwrap() == ["u", "v"]);
    wait_until("the old name is gone", || fs::read_link(two.join("tags/t")).is_err());
    one.unmount();
    two.unmount();
}

#[test]
fn names_are_judged_before_a_store_is_opened_or_made() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let folder = folder.to_str().unwrap();
    for (args, named) in [
        (&["cp", "a", "../y"][..], "../y"),
        (&["cp", "../x", "../y"], "../x"),
        (&["cp", "", "x"], ""),
        (&["tag", "latest", "../y"], "../y"),
        (&["fixture", "--tag", "../y"], "../y"),
        (&["import", folder, "--tag", "../y"], "../y"),
        (&["seal", "f", "--tag", "../y"], "../y"),
    ] {
        let said = pfimg_on(&nowhere, args).exits(2).stderr;
        assert!(said.contains(&format!("{named:?} cannot be a tag")), "{args:?}: {said}");
        assert!(!nowhere.exists(), "{args:?} made a store");
    }
}

#[test]
fn an_image_has_at_most_two_parents_and_verify_notes_a_third() {
    let (store, first) = small_store();
    let image = |args: &[&str]| {
        let args = ["fixture", "--world-files", "1", "--cache-pages", "0", "--seed"].iter().chain(args);
        pfimg_on(store.root(), args)
    };
    let second = image(&["1"]).exits(0).stdout.trim().to_owned();
    image(&["2", "--parent", &first, "--parent", &second]).exits(0);
    pfimg_on(store.root(), ["verify"]).exits(0);
    let said = image(&["3", "--parent", &first, "--parent", &second, "--parent", "latest"]).exits(2).stderr;
    assert!(said.contains("at most two parents"), "{said}");
    let mut store = store;
    let parents = [&first; 3].map(|parent| format!("sha256:{parent}")).to_vec();
    let third = store.image(&Spec { parents, ..Spec::default() });
    let said = pfimg_on(store.root(), ["verify"]).exits(0).stdout;
    assert!(said.contains("verify: parents-too-many: ") && said.contains(&third), "{said}");
}
