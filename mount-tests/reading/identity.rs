//! Which paths are the same file: inode numbers and link counts, in listings and lookups.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::support::GENERATED;
use crate::common::cli::{Run, pfimg_on, tool};
use crate::common::fast::{FastStore, Spec, dir_entry, file_entry, link_entry};
use crate::common::{Mount, system, temp_dir, wait_until};
use serde_json::{Value, json};

/// Everything below a folder, without following links, as paths from there; the folder itself is not among it.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Inode numbers of everything except folders, each with the paths that have it.
fn files(root: &Path) -> BTreeMap<u64, BTreeSet<PathBuf>> {
    let mut files: BTreeMap<u64, BTreeSet<PathBuf>> = BTreeMap::new();
    for path in walk(root) {
        let meta = root.join(&path).symlink_metadata().unwrap();
        if !meta.is_dir() {
            files.entry(meta.ino()).or_default().insert(path);
        }
    }
    files
}

/// The names of each file below a folder, with its link count.
fn groups(root: &Path) -> BTreeSet<(u64, BTreeSet<PathBuf>)> {
    let group = |paths: BTreeSet<PathBuf>| {
        let meta = root.join(paths.first().unwrap()).symlink_metadata().unwrap();
        (meta.nlink(), paths)
    };
    files(root).into_values().map(group).collect()
}

fn ino(path: &Path) -> u64 {
    path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display())).ino()
}

/// An image of these entries.
fn image(store: &mut FastStore, entries: &[Value], fingerprint: &str) -> String {
    let fs = Some(store.tree(entries));
    store.image(&Spec { fs, fingerprint: fingerprint.into(), ..Spec::default() })
}

/// Two images of one line that differ in one file, and the paths of their files.
fn line(store: &mut FastStore) -> [String; 2] {
    let same = store.file("dir/same", b"old");
    let link = link_entry("link", "dir/same");
    let before = [dir_entry("dir"), same.clone(), link.clone(), store.file("other", b"1")];
    let after = [dir_entry("dir"), same, link, store.file("other", b"2")];
    let first = image(store, &before, "1");
    let fs = Some(store.tree(&after));
    let parents = vec![format!("sha256:{first}")];
    let second = store.image(&Spec { fs, parents, fingerprint: "2".into(), ..Spec::default() });
    [first, second]
}

#[test]
fn two_paths_of_one_image_are_two_inodes_however_equal_they_are() {
    let mut store = FastStore::new();
    let page = store.blob(b"page");
    let pages = json!({"layout": "paged-batchinvariant-v1", "page_size_bytes": 4, "pages": [
        {"ix": 0, "k": page, "v": page}, {"ix": 1, "k": page, "v": page},
    ]});
    let entries = [
        store.file("a", b"twice"),
        store.file("pkg/b", b"twice"),
        store.file("pkg/__init__.py", b""),
        store.file("pkg/sub/__init__.py", b""),
        link_entry("l1", "a"),
        link_entry("l2", "a"),
    ];
    let (fs, trace, cache) =
        (Some(store.tree(&entries)), Some(store.blob(b"")), Some(store.blob_json(&pages)));
    let id = store.image(&Spec { fs, cache, trace, ..Spec::default() });
    let mount = Mount::of(store.root()).start();
    let found = files(&mount.image(&id));
    assert!(found.values().all(|paths| paths.len() == 1), "{found:#?}");
    // In the world, pages, layers' files and the manifest.
    assert_eq!(found.len(), 6 + 4 + 7 + 1, "{found:#?}");
    let world = mount.image(&id).join("world/fs");
    let said = tool("find", [world.as_os_str(), "-samefile".as_ref(), world.join("a").as_os_str()]).exits(0);
    assert_eq!(said.stdout.trim_end(), world.join("a").display().to_string());
    mount.unmount();
    // As well in what the real crates wrote.
    let mount = Mount::of(GENERATED.store.root()).start();
    for generated in GENERATED.images.iter().take(20) {
        let found = files(&mount.image(&generated.id));
        let shared: Vec<_> = found.values().filter(|paths| paths.len() > 1).collect();
        assert!(shared.is_empty(), "seed {}: {shared:?}", generated.seed);
    }
    mount.unmount();
}

#[test]
fn tools_that_are_given_several_files_make_independent_copies() {
    let mut store = FastStore::new();
    let content = vec![b'q'; 300_000];
    let mut entries = Vec::new();
    for dir in ["x", "y"] {
        entries.push(dir_entry(dir));
        entries.push(store.file(&format!("{dir}/data"), &content));
        entries.push(store.file(&format!("{dir}/__init__.py"), b""));
        entries.push(link_entry(&format!("{dir}/link"), "data"));
    }
    let id = image(&mut store, &entries, "");
    let mount = Mount::of(store.root()).start();
    let world = mount.image(&id).join("world/fs");
    let (_dir, out) = temp_dir();
    let copy = |how: &str| {
        let out = out.join(how);
        std::fs::create_dir(&out).unwrap();
        let at = out.to_str().unwrap();
        let script = match how {
            "tar" => format!("tar -cf - x y | tar -C {at} -xf -"),
            "whole" => format!("tar -cf - . | tar -C {at} -xf -"),
            "cp" => format!("cp -a x y {at}"),
            _ => format!("cp -aL x y {at}"),
        };
        Run::program(Path::new("sh"), ["-c", &script]).dir(&world).run().exits(0);
        out
    };
    for how in ["tar", "whole", "cp", "followed"] {
        let out = copy(how);
        for (links, paths) in groups(&out) {
            // A link that is followed is the file that it leads to, on a disk as well; that one is in the same folder.
            let folders: BTreeSet<_> = paths.iter().map(|path| path.parent()).collect();
            assert!(folders.len() == 1 && (links == 1 || how == "followed"), "{how}: {links} {paths:?}");
        }
        std::fs::write(out.join("x/data"), "changed").unwrap();
        assert_eq!(std::fs::read(out.join("y/data")).unwrap(), content, "{how}");
    }
    let said = Run::program(Path::new("du"), ["-cb", "x/data", "y/data"]).dir(&world).run().exits(0);
    assert!(said.stdout.contains("600000\ttotal"), "{}", said.stdout);
    mount.unmount();
}

#[test]
fn recorded_hard_links_are_one_inode_with_their_link_count_and_tools_keep_them() {
    let (_dir, dir) = temp_dir();
    let (disk, root) = (dir.join("disk"), dir.join("store"));
    std::fs::create_dir_all(disk.join("sub")).unwrap();
    std::fs::write(disk.join("a"), "one\n").unwrap();
    std::fs::hard_link(disk.join("a"), disk.join("sub/b")).unwrap();
    std::fs::hard_link(disk.join("a"), disk.join("c")).unwrap();
    tool("cp", ["-p".as_ref(), disk.join("a").as_os_str(), disk.join("equal").as_os_str()]).exits(0);
    std::os::unix::fs::symlink("x", disk.join("s1")).unwrap();
    std::fs::hard_link(disk.join("s1"), disk.join("s2")).unwrap();
    tool("mkfifo", [disk.join("p1")]).exits(0);
    std::fs::hard_link(disk.join("p1"), disk.join("p2")).unwrap();
    let said = Run::new(["import".as_ref(), disk.as_os_str()]).env("PF_STORE", &root).run().exits(0);
    let id = said.stdout.trim().to_owned();
    let mount = Mount::of(&root).start();
    let world = mount.image(&id).join("world/fs");
    let wanted = groups(&disk);
    assert_eq!(wanted.len(), 4);
    assert_eq!(groups(&world), wanted, "in the image");
    mkdir(&mount.join(format!("forks/f@{id}")));
    assert_eq!(groups(&mount.join("forks/f/world/fs")), wanted, "in a fork of it");
    let out = dir.join("export");
    pfimg_on(&root, ["export".as_ref(), id.as_ref(), out.as_os_str()]).exits(0);
    assert_eq!(groups(&out), wanted, "in an export of it");
    // Each tool is judged by what it makes of the disk: tar keeps no links of fifos.
    let mut tools = vec![("tar", "tar -cf - . | tar -C \"$0\" -xf -"), ("cp", "cp -a . \"$0\"")];
    if system::which("rsync").is_some() {
        tools.push(("rsync", "rsync -aH ./ \"$0\""));
    }
    for (how, script) in tools {
        let copies = [("disk", &disk), ("image", &world)].map(|(what, from)| {
            let to = dir.join(format!("{how}-{what}"));
            std::fs::create_dir(&to).unwrap();
            let args = ["-c".as_ref(), script.as_ref(), to.as_os_str()];
            Run::program(Path::new("sh"), args).dir(from).run().exits(0);
            groups(&to)
        });
        assert_eq!(copies[0], copies[1], "{how}");
    }
    mount.unmount();
}

fn mkdir(path: &Path) {
    std::fs::create_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[test]
fn entries_of_one_hardlink_number_that_differ_are_not_one_file() {
    let mut store = FastStore::new();
    let with = |mut entry: Value, key: &str, value: Value| {
        (entry["hardlink"], entry["uid"]) = (json!(7), json!(5));
        entry[key] = value;
        entry
    };
    let digest = store.blob(b"one");
    let one = |path: &str| file_entry(path, &digest, 3);
    let two = store.file("other content", b"two");
    let entries = [
        with(one("a"), "uid", json!(5)),
        with(one("b"), "uid", json!(5)),
        with(one("another owner"), "uid", json!(6)),
        with(one("another mode"), "mode", json!("0600")),
        with(one("another time"), "mtime_ns", json!(1)),
        with(one("other attributes"), "xattrs", json!({"user.k": "dg=="})),
        with(two, "uid", json!(5)),
        with(link_entry("link", "a"), "uid", json!(5)),
        with(link_entry("same link", "a"), "uid", json!(5)),
    ];
    let id = image(&mut store, &entries, "");
    let mount = Mount::of(store.root()).start();
    let world = mount.image(&id).join("world/fs");
    let pair = |a: &str, b: &str| (2, BTreeSet::from([a.into(), b.into()]));
    let groups = groups(&world);
    assert_eq!(groups.len(), 7, "{groups:#?}");
    assert!(groups.contains(&pair("a", "b")) && groups.contains(&pair("link", "same link")), "{groups:#?}");
    assert!(groups.iter().all(|(links, paths)| *links == paths.len() as u64), "{groups:#?}");
    for (path, content) in [("a", "one"), ("another mode", "one"), ("other content", "two")] {
        assert_eq!(std::fs::read_to_string(world.join(path)).unwrap(), content, "{path}");
    }
    let modes = ["a", "another mode"].map(|path| world.join(path).metadata().unwrap().mode() & 0o777);
    assert_eq!(modes, [0o644, 0o600]);
    mount.unmount();
}

#[test]
fn an_unchanged_file_in_a_line_of_images_is_one_inode_with_a_fixed_number() {
    let mut store = FastStore::new();
    let [first, second] = line(&mut store);
    let mount = Mount::of(store.root()).start();
    let at = |mount: &Mount, id: &str, path: &str| ino(&mount.image(id).join(path));
    let shared = ["world/fs/dir/same", "world/fs/link", "trace/messages.jsonl", "effects/ledger.jsonl"];
    for path in shared {
        assert_eq!(at(&mount, &first, path), at(&mount, &second, path), "{path}");
    }
    // A changed file has a new inode, and so have folders and manifests.
    for path in ["world/fs/other", "world/fs/dir", "world/fs", "manifest.json", "world", ""] {
        assert_ne!(at(&mount, &first, path), at(&mount, &second, path), "{path}");
    }
    let meta = mount.image(&first).join("world/fs/dir/same").metadata().unwrap();
    assert_eq!((meta.nlink(), meta.blocks()), (1, 1), "links and blocks");
    let before = shared.map(|path| at(&mount, &first, path));
    mount.unmount();
    let mount = Mount::of(store.root()).start();
    assert_eq!(shared.map(|path| at(&mount, &second, path)), before, "after a remount");
    mount.unmount();
}

#[test]
fn a_changed_mode_owner_time_or_link_count_makes_a_new_inode() {
    let mut store = FastStore::new();
    let digest = store.blob(b"content");
    let mut entries = vec![file_entry("f", &digest, 7)];
    let mut images = vec![image(&mut store, &entries, "")];
    for (key, value) in
        [("mode", json!("0755")), ("uid", json!(12)), ("gid", json!(13)), ("mtime_ns", json!(14))]
    {
        entries[0][key] = value;
        images.push(image(&mut store, &entries, key));
    }
    entries[0]["hardlink"] = json!(1);
    let mut second = entries[0].clone();
    second["path"] = json!("g");
    images.push(image(&mut store, &[entries[0].clone(), second], "two names"));
    let mount = Mount::of(store.root()).start();
    let numbers: BTreeSet<u64> = images.iter().map(|id| ino(&mount.image(id).join("world/fs/f"))).collect();
    assert_eq!(numbers.len(), images.len());
    mount.unmount();
}

#[test]
fn with_inodes_distinct_no_inode_is_in_two_images_and_a_copy_of_both_links_nothing() {
    let mut store = FastStore::new();
    let ids = line(&mut store);
    let copy = |mount: &Mount, dir: &Path| {
        let script = format!("tar -cf - {} {} | tar -C \"$0\" -xf -", ids[0], ids[1]);
        let args = ["-c".as_ref(), script.as_ref(), dir.as_os_str()];
        Run::program(Path::new("sh"), args).dir(&mount.join("images")).run().exits(0);
        dir.join(&ids[0]).join("world/fs/dir/same").metadata().unwrap().nlink()
    };
    let numbers = |mount: &Mount, id: &str| -> BTreeSet<u64> {
        let top = mount.image(id);
        walk(&top).iter().map(|path| ino(&top.join(path))).collect()
    };
    // Shared is what an archive of several images makes of it, unless asked otherwise.
    let mount = Mount::of(store.root()).start();
    let (_shared, dir) = temp_dir();
    assert_eq!(copy(&mount, &dir), 2);
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--inodes", "distinct"]).start();
    let (_distinct, dir) = temp_dir();
    assert_eq!(copy(&mount, &dir), 1);
    let [first, second] = [&ids[0], &ids[1]].map(|id| numbers(&mount, id));
    assert!(first.is_disjoint(&second));
    let status: Value =
        serde_json::from_slice(&std::fs::read(mount.join(".pfimg/status.json")).unwrap()).unwrap();
    assert_eq!(status["inodes"], "distinct");
    let before = ino(&mount.image(&ids[0]).join("world/fs/dir/same"));
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--inodes", "distinct"]).start();
    assert_eq!(ino(&mount.image(&ids[0]).join("world/fs/dir/same")), before, "after a remount");
    mount.unmount();
}

#[test]
fn with_inodes_32_numbers_and_places_in_folders_are_small_and_no_two_files_share_one() {
    let mut store = FastStore::new();
    let mut entries: Vec<Value> = (0..7).map(|dir| dir_entry(&format!("d{dir}"))).collect();
    for n in 0..500 {
        entries.push(store.file(&format!("d{}/f{n}", n % 7), n.to_string().as_bytes()));
    }
    let ids = ["1", "2"].map(|which| image(&mut store, &entries, which));
    let mount = Mount::of(store.root()).args(["--inodes", "32", "--seal", "manual"]).start();
    mkdir(&mount.join(format!("forks/f@{}", ids[0])));
    std::fs::write(mount.join("forks/f/world/fs/new"), "new").unwrap();
    for path in ["", "images", "forks", "tags", "agents", ".pfimg", "forks/f/world/fs"] {
        for entry in raw_listing(&mount.join(path)) {
            assert!(entry.ino < 1 << 32 && entry.place < 1 << 31, "{path}: {entry:?}");
        }
    }
    let all = walk(mount.path());
    let worlds = [&ids[0], &ids[1]].map(|id| files(&mount.image(id).join("world/fs")));
    assert!(all.iter().all(|path| ino(&mount.join(path)) < 1 << 32));
    assert_eq!(worlds[0], worlds[1], "the same files in both images");
    assert_eq!(worlds[0].len(), 500);
    let fork = files(&mount.join("forks/f/world/fs"));
    assert_eq!(fork.len(), 501);
    assert!(fork.keys().all(|number| !worlds[0].contains_key(number)));
    let status: Value =
        serde_json::from_slice(&std::fs::read(mount.join(".pfimg/status.json")).unwrap()).unwrap();
    assert_eq!(status["inodes"], "32");
    mount.unmount();
    // The error for a wrong word lists the right ones.
    let said = pfimg_on(store.root(), ["mount", "--inodes", "64", "/nowhere"]).exits(2);
    assert!(said.stderr.contains("shared, distinct, 32"), "{}", said.stderr);
}

/// An entry of a folder as the kernel tells it, `.` and `..` as well.
#[derive(Debug)]
struct Listed {
    name: String,
    ino: u64,
    place: u64,
}

fn raw_listing(dir: &Path) -> Vec<Listed> {
    use rustix::fs::{Mode, OFlags, RawDir, open};
    let folder = open(dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    let mut buffer = Vec::with_capacity(1 << 16);
    let mut raw = RawDir::new(folder, buffer.spare_capacity_mut());
    let mut listed = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        listed.push(Listed { name, ino: entry.ino(), place: entry.next_entry_cookie() });
    }
    listed
}

#[test]
fn folders_count_their_folders_and_listings_tell_the_numbers_of_lookups() {
    let mut store = FastStore::new();
    let entries = [
        dir_entry("a"),
        dir_entry("a/b"),
        dir_entry("a/b/c"),
        dir_entry("d"),
        store.file("a/1", b"1"),
        link_entry("a/l", "1"),
    ];
    let pages = store.pages(1, 2);
    let fs = Some(store.tree(&entries));
    let first = store.image(&Spec { fs: fs.clone(), cache: Some(pages), ..Spec::default() });
    let parents = vec![format!("sha256:{first}")];
    let second = store.image(&Spec { fs, parents, fingerprint: "2".into(), ..Spec::default() });
    for args in [&["--seal", "manual"][..], &["--seal", "manual", "--inodes", "32"]] {
        let mount = Mount::of(store.root()).args(args).start();
        mkdir(&mount.join(format!("forks/f{}@{second}", args.len())));
        mkdir(&mount.join(format!("forks/f{}/world/fs/new", args.len())));
        let link = mount.join(format!("tags/t{}", args.len()));
        std::os::unix::fs::symlink(format!("../images/{first}"), link).unwrap();
        let folders = walk(mount.path()).into_iter().filter(|path| {
            let meta = mount.join(path).symlink_metadata().unwrap();
            meta.is_dir()
        });
        let folders: Vec<PathBuf> = [PathBuf::new()].into_iter().chain(folders).collect();
        assert!(folders.len() > 30, "{folders:?}");
        for folder in &folders {
            let at = mount.join(folder);
            let mut inside = 0;
            for entry in std::fs::read_dir(&at).unwrap() {
                let entry = entry.unwrap();
                let meta = entry.path().symlink_metadata().unwrap();
                assert_eq!(entry.ino(), meta.ino(), "{args:?} {}", entry.path().display());
                inside += u64::from(meta.is_dir());
            }
            let links = at.metadata().unwrap().nlink();
            assert!([1, 2 + inside].contains(&links), "{}: {links} links, {inside} folders", at.display());
            for Listed { name, ino: listed, .. } in raw_listing(&at) {
                let is_top = name == ".." && folder.as_os_str().is_empty();
                if name.starts_with('.') && !is_top {
                    assert_eq!(listed, ino(&at.join(&name)), "{args:?} {}/{name}", at.display());
                }
            }
        }
        // Programs use a folder's link count to walk the folders in it.
        assert_eq!(mount.image(&second).metadata().unwrap().nlink(), 8);
        assert_eq!(mount.image(&second).join("world/fs").metadata().unwrap().nlink(), 4);
        mount.unmount();
    }
}

#[test]
fn latest_keeps_its_number_as_long_as_no_image_comes_or_goes() {
    let mut store = FastStore::new();
    let root = store.root().to_owned();
    let mut make = |second: &str| {
        let created_at = Some(format!("2026-01-02T03:04:{second}Z"));
        store.image(&Spec { created_at, fingerprint: second.into(), ..Spec::default() })
    };
    let first = make("01");
    let mount = Mount::of(&root).start();
    let listed = || {
        let entry = std::fs::read_dir(mount.path()).unwrap().map(Result::unwrap);
        entry.into_iter().find(|entry| entry.file_name() == "latest").unwrap().ino()
    };
    let latest = mount.join("latest");
    let number = listed();
    for _ in 0..3 {
        assert_eq!((ino(&latest), listed()), (number, number));
        assert_eq!(std::fs::read_link(&latest).unwrap(), Path::new("images").join(&first));
    }
    let second = make("02");
    wait_until("latest to follow", || {
        std::fs::read_link(&latest).is_ok_and(|target| target.ends_with(&second))
    });
    assert_ne!(ino(&latest), number);
    mount.unmount();
}

#[test]
fn with_xattrs_images_show_attributes_and_access_lists_and_they_tell_files_apart() {
    use rustix::fs::{lgetxattr, llistxattr};
    let mut store = FastStore::new();
    let encode = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let list = [(1, 6, none), (2, 6, 1234), (4, 4, none), (0x10, 6, none), (0x20, 4, none)];
    let list: Vec<u8> = list.into_iter().flat_map(|(tag, bits, id)| entry(tag, bits, id)).collect();
    let list = [&[2, 0, 0, 0][..], &list].concat();
    let mut with = store.file("f", b"content");
    with["mode"] = json!("0664");
    let mut without = with.clone();
    with["xattrs"] = json!({"system.posix_acl_access": encode(&list), "user.key": encode(b"value")});
    let mut dir = dir_entry("dir");
    dir["xattrs"] = json!({"user.of": encode(b"a folder")});
    without["path"] = json!("g");
    let first = image(&mut store, &[with.clone(), dir.clone(), without], "1");
    with["xattrs"]["user.key"] = json!(encode(b"other value"));
    let second = image(&mut store, &[with, dir], "2");
    let mount = Mount::of(store.root()).args(["--xattrs"]).start();
    let read = |id: &str, path: &str, name: &str| {
        let mut value = vec![0; 256];
        lgetxattr(mount.image(id).join(path), name, &mut value).map(|length| value[..length].to_vec())
    };
    assert_eq!(read(&first, "world/fs/f", "user.key").unwrap(), b"value");
    assert_eq!(read(&second, "world/fs/f", "user.key").unwrap(), b"other value");
    assert_eq!(read(&first, "world/fs/f", "system.posix_acl_access").unwrap(), list);
    assert_eq!(read(&first, "world/fs/dir", "user.of").unwrap(), b"a folder");
    for (path, name) in [("world/fs/g", "user.key"), ("world/fs/f", "user.none"), ("model/base", "user.key")]
    {
        assert_eq!(read(&first, path, name), Err(rustix::io::Errno::NODATA), "{path} {name}");
    }
    let mut names = vec![0; 256];
    let length = llistxattr(mount.image(&first).join("world/fs/f"), &mut names).unwrap();
    assert_eq!(&names[..length], b"system.posix_acl_access\0user.key\0");
    let both = |mount: &Mount| [&first, &second].map(|id| ino(&mount.image(id).join("world/fs/f")));
    let [a, b] = both(&mount);
    assert_ne!(a, b, "one file has one set of attributes");
    mount.unmount();
    // Where none is shown, none tells files apart.
    let mount = Mount::of(store.root()).start();
    let [a, b] = both(&mount);
    assert_eq!(a, b);
    mount.unmount();
}
