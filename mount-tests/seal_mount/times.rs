//! Derived times become no facts by a seal, and no time that a fork shows changes by one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::Value;

use super::support::{manual, seal, verify};
use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{fork, open_rw, world as fork_world};
use crate::common::{bare, temp_dir};

const FILES: [&str; 9] =
    ["kept", "moved", "linked", "moded", "copied", "sub/x", "sub/y", "folder/in/it", "written"];

/// Two images as pf makes them, the second the child of the first; returns its id.
fn two_images(store: &mut FastStore) -> String {
    let mut made = |x: &str, created_at: &str, parents: Vec<String>| {
        let entries: Vec<Value> = FILES
            .iter()
            .map(|path| store.file(path, if *path == "sub/x" { x } else { path }.as_bytes()))
            .collect();
        let (fs, created_at) = (Some(store.tree(&entries)), Some(created_at.to_owned()));
        let mut spec = Spec { fs, created_at, parents, ..Spec::default() };
        // An image whose id begins with six zero bits would end the line.
        loop {
            let id = store.image(&spec);
            if id.as_bytes()[0] != b'0' {
                return id;
            }
            spec.fingerprint.push('x');
        }
    };
    let first = made("first", "2026-01-01T00:00:00Z", Vec::new());
    made("later", "2026-01-02T00:00:00Z", vec![format!("sha256:{first}")])
}

fn times(root: &Path) -> BTreeMap<String, (i64, i64)> {
    let mut times = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        times.insert(name, (meta.mtime(), meta.mtime_nsec()));
    }
    times
}

/// Paths of an image's tree that have a time recorded.
fn recorded(store: &FastStore, id: &str) -> Vec<String> {
    let manifest: Value = serde_json::from_slice(&fs::read(store.marker_path(id)).unwrap()).unwrap();
    let tree = store.read_blob(bare(manifest["world"]["fs"].as_str().unwrap())).unwrap();
    let tree: Value = serde_json::from_slice(&tree).unwrap();
    let mut paths = Vec::new();
    for entry in tree["entries"].as_array().unwrap() {
        if let Some(time) = entry.get("mtime_ns") {
            assert_ne!(time, 0, "{entry}");
            paths.push(entry["path"].as_str().unwrap().to_owned());
        }
    }
    paths
}

#[test]
fn a_seal_records_no_time_of_untouched_files_and_changes_no_shown_time() {
    let mut store = FastStore::new();
    let base = two_images(&mut store);
    let mount = manual(&store);
    let world = fork(&mount, "f", &base);
    let was = times(&mount.image(&base).join("world/fs"));
    assert_eq!(times(&world), was, "a fork shows its image's times");
    fs::rename(world.join("moved"), world.join("moved2")).unwrap();
    fs::hard_link(world.join("linked"), world.join("linked2")).unwrap();
    fs::set_permissions(world.join("moded"), fs::Permissions::from_mode(0o600)).unwrap();
    tool("cp", ["-p".as_ref(), world.join("copied").as_os_str(), world.join("copied2").as_os_str()]).exits(0);
    fs::rename(world.join("folder"), world.join("folder2")).unwrap();
    // In place: the folder's own time stays, on a disk as well.
    open_rw(&world.join("sub/y")).unwrap().write_all_at(b"!", 0).unwrap();
    let shown = times(&world);
    for (path, origin) in [
        ("kept", "kept"),
        ("moved2", "moved"),
        ("linked", "linked"),
        ("linked2", "linked"),
        ("moded", "moded"),
        ("copied2", "copied"),
        ("sub/x", "sub/x"),
        ("sub", "sub"),
        ("folder2", "folder"),
        ("folder2/in", "folder/in"),
        ("folder2/in/it", "folder/in/it"),
    ] {
        assert_eq!(shown[path], was[origin], "{path}");
    }
    let first = seal(&store, &["f"]);
    assert_eq!(times(&world), shown, "after the seal");
    assert_eq!(times(&mount.image(&first).join("world/fs")), shown, "in the image");
    let paths = recorded(&store, &first);
    for path in ["kept", "moded", "copied", "sub/x", "written"] {
        assert!(!paths.contains(&path.to_owned()), "{path} among {paths:?}");
    }
    let inode = |id: &str| fs::metadata(mount.image(id).join("world/fs/kept")).unwrap().ino();
    assert_eq!(inode(&base), inode(&first), "untouched files stay one inode along the line");
    // Changed back and changed again, over several seals.
    fs::rename(world.join("folder2"), world.join("folder")).unwrap();
    fs::rename(world.join("moved2"), world.join("moved")).unwrap();
    let shown = times(&world);
    seal(&store, &["f"]);
    for path in ["moved", "folder/in/it"] {
        fs::set_permissions(world.join(path), fs::Permissions::from_mode(0o640)).unwrap();
    }
    let last = seal(&store, &["f"]);
    assert_eq!(times(&world), shown, "after two more seals");
    assert_eq!(times(&mount.image(&last).join("world/fs")), shown, "in the last image");
    mount.unmount();
    let mount = manual(&store);
    assert_eq!(times(&fork_world(&mount, "f")), shown, "after another mount");
    let branch = fork(&mount, "branch", "f");
    assert_eq!(times(&branch), shown, "in a branch");
    mount.unmount();
    // Without a mount.
    let (_dir, dir) = temp_dir();
    let out = dir.join("out");
    pfimg_on(store.root(), ["export".as_ref(), last.as_ref(), out.as_os_str()]).exits(0);
    let mut exported = times(&out);
    let mut shown = shown;
    for times in [&mut exported, &mut shown] {
        times.remove("");
    }
    assert_eq!(exported, shown, "in an export");
    verify(&store);
}

#[test]
fn a_seal_without_a_mount_records_the_times_that_a_mount_shows() {
    let mut store = FastStore::new();
    let base = two_images(&mut store);
    let mount = manual(&store);
    let world = fork(&mount, "f", &base);
    fs::rename(world.join("moved"), world.join("moved2")).unwrap();
    fs::write(world.join("sub/new"), "new").unwrap();
    let shown = times(&world);
    mount.unmount();
    let sealed = seal(&store, &["f"]);
    pfimg_on(store.root(), ["diff", "f", &sealed]).exits(0);
    let mount = manual(&store);
    assert_eq!(times(&mount.image(&sealed).join("world/fs")), shown);
    assert_eq!(times(&fork_world(&mount, "f")), shown);
    mount.unmount();
}

#[test]
fn no_seal_of_a_short_line_ends_it() {
    let mut store = FastStore::new();
    let base = two_images(&mut store);
    let mount = manual(&store);
    let world = fork(&mount, "f", &base);
    let was = fs::metadata(mount.image(&base).join("world/fs/kept")).unwrap();
    // One in 64 ids begins with six zero bits.
    for n in 0..60 {
        fs::write(world.join("written"), n.to_string()).unwrap();
        let id = seal(&store, &["f"]);
        assert!(u8::from_str_radix(&id[..2], 16).unwrap() >= 4, "{id}");
        let is = fs::metadata(mount.image(&id).join("world/fs/kept")).unwrap();
        assert_eq!((is.ino(), is.mtime()), (was.ino(), was.mtime()), "seal {n}");
    }
    mount.unmount();
}
