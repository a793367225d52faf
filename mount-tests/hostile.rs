//! Hostile stores: a mount refuses a bad image with a clear line or shows it safely. Memory stays bounded, and the rest of the store
//! stays usable.

use std::path::Path;

use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::{FastStore, Spec, dir_entry, expected_files, file_entry, link_entry};
use crate::common::{MIB, Mount, errno, hex_digest_of_file, in_time, names, wait_until};
use serde_json::{Value, json};

/// The cache budget of these mounts, and the daemon's further memory.
const BUDGET: u64 = 64 * MIB;
const FURTHER: u64 = 64 * MIB;

fn mount(store: &FastStore) -> Mount {
    Mount::of(store.root()).args(["--reveal-secrets", "--cache-size", "64MiB"]).start()
}

/// A sound image, to check that it stays usable.
fn sound_image(store: &mut FastStore) -> String {
    let entry = store.file("dir/sound.txt", b"sound");
    let fs = store.tree(&[dir_entry("dir"), entry]);
    store.image(&Spec { fs: Some(fs), fingerprint: "sound".into(), ..Spec::default() })
}

#[track_caller]
fn assert_sound(mount: &Mount, store: &FastStore, id: &str) {
    for (path, bytes) in expected_files(store, id) {
        assert!(std::fs::read(mount.image(id).join(&path)).unwrap() == bytes, "{path} of the sound image");
    }
}

#[track_caller]
fn assert_bounded(mount: &Mount, what: &str) {
    let peak = mount.peak_memory();
    println!("{what}: at most {} MiB", peak / MIB);
    assert!(peak <= BUDGET + FURTHER, "{what}: the daemon needed {} MiB", peak / MIB);
}

/// Mounts a store with one image for each tree and expects `world/fs` of each to be refused.
fn refused_trees(cases: impl Fn(&mut FastStore) -> Vec<(&'static str, String)>) {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let images: Vec<(&str, String)> = cases(&mut store)
        .into_iter()
        .map(|(what, fs)| {
            (what, store.image(&Spec { fs: Some(fs), fingerprint: what.into(), ..Spec::default() }))
        })
        .collect();
    let mount = mount(&store);
    for (what, id) in &images {
        let world = mount.image(id).join("world/fs");
        assert_eq!(errno(names(&world)), libc::EIO, "{what}: listing");
        for name in ["x", "a", "sound", ".."] {
            // Looking for a name inside must not find anything either; `..` is the kernel's own.
            let found = world.join(name).join("x").symlink_metadata();
            assert!(found.is_err(), "{what}: {name}/x is there");
        }
        let lines = mount.log_lines(&[&id[..12], "world/fs"]);
        assert_eq!(lines.len(), 1, "{what}: one line in the log:\n{}", mount.log());
        println!("{what}: {}", lines[0]);
        assert_eq!(
            std::fs::read(mount.image(id).join("model/base")).unwrap(),
            b"base:test",
            "{what}: other layers"
        );
        assert_eq!(hex_digest_of_file(&mount.image(id).join("manifest.json")).unwrap(), *id, "{what}");
        assert_sound(&mount, &store, &sound);
    }
    assert_bounded(&mount, "hostile trees");
    let findings = pfimg_on(store.root(), ["verify", "--json"]).exits(4).json()["findings"].to_string();
    for (what, id) in &images {
        assert!(findings.contains(&id[..12]), "{what}: verify does not name {id}: {findings}");
    }
    assert!(!findings.contains(&sound[..12]), "verify blames the sound image: {findings}");
    mount.unmount();
}

#[test]
fn a_tree_with_a_path_that_leads_elsewhere_is_refused() {
    let paths = [
        ("a parent folder", ".."),
        ("a path above the root", "../x"),
        ("a parent folder inside", "a/../x"),
        ("a parent folder at the end", "a/.."),
        ("an absolute path", "/etc/passwd"),
        ("the root itself", "/"),
        ("an empty path", ""),
        ("an empty component", "a//x"),
        ("a slash at the end", "a/"),
        ("the folder itself", "."),
        ("a dot inside", "a/./x"),
        ("a NUL", "a\0x"),
        ("a NUL alone", "\0"),
    ];
    refused_trees(|store| {
        paths
            .iter()
            .map(|(what, path)| {
                let good = store.file("good", b"good");
                let bad = store.file(path, b"bad");
                (*what, store.tree_as_is(&[good, bad]))
            })
            .collect()
    });
}

#[test]
fn a_tree_with_a_name_that_is_too_long_is_refused() {
    refused_trees(|store| {
        let long = "n".repeat(256);
        let many_bytes = "ü".repeat(128);
        let cases = [
            ("256 bytes", long.clone()),
            ("256 bytes in 128 letters", many_bytes),
            ("a long folder", format!("{long}/x")),
            ("a long name inside", format!("a/{long}")),
            ("a megabyte", "m".repeat(1 << 20)),
        ];
        cases
            .into_iter()
            .map(|(what, path)| {
                (what, {
                    let e = store.file(&path, b"x");
                    store.tree(&[e])
                })
            })
            .collect()
    });
}

#[test]
fn a_tree_whose_entries_contradict_each_other_is_refused() {
    refused_trees(|store| {
        let file = |store: &mut FastStore, path| store.file(path, b"x");
        let (a, a_x, b) = (file(store, "a"), file(store, "a/x"), file(store, "b"));
        let other_a = store.file("a", b"another");
        vec![
            ("a file that is also a folder", store.tree_as_is(&[a.clone(), a_x.clone()])),
            ("the same, the folder first", store.tree_as_is(&[a_x.clone(), a.clone()])),
            (
                "a link that is also a folder",
                store.tree_as_is(&[link_entry("a", "b"), a_x.clone(), b.clone()]),
            ),
            ("a folder entry that is also a file", store.tree_as_is(&[dir_entry("a"), a.clone()])),
            ("the same file twice", store.tree_as_is(&[a.clone(), a.clone()])),
            ("two contents for one name", store.tree_as_is(&[a.clone(), other_a])),
            ("two entries far apart", store.tree_as_is(&[a.clone(), b, link_entry("a", "b")])),
        ]
    });
}

#[test]
fn a_tree_nested_ten_thousand_deep_is_refused() {
    refused_trees(|store| {
        let deep = "a/".repeat(10_000) + "x";
        let file = store.file(&deep, b"deep");
        let folders: Vec<Value> = (1..200).map(|n| dir_entry(&vec!["d"; n * 50].join("/"))).collect();
        let brackets = "[".repeat(10_000) + &"]".repeat(10_000);
        let nested = format!(r#"{{"kind":"fs.tree.v1","entries":[],"more":{brackets}}}"#);
        vec![
            ("one file ten thousand folders down", store.tree(&[file])),
            ("folders in folders", store.tree(&folders)),
            ("brackets in brackets", store.blob(nested.as_bytes())),
        ]
    });
}

#[test]
fn a_tree_that_is_not_one_is_refused() {
    refused_trees(|store| {
        let blob = store.blob(b"x");
        let entry = |change: Value| {
            let mut entry = json!({"path": "a", "mode": "0644", "size": 1, "kind": "file", "blob": blob});
            for (key, value) in change.as_object().unwrap() {
                entry[key] = value.clone();
            }
            entry
        };
        let wrong = [
            ("an unknown kind", json!({"kind": "fifo"})),
            ("a mode that is not a number", json!({"mode": "rwxr-xr-x"})),
            ("a negative size", json!({"size": -1})),
            ("a size that is text", json!({"size": "1"})),
            ("a digest that is a path", json!({"blob": "sha256:../../../../etc/passwd"})),
            ("no digest", json!({"blob": null})),
            ("a path that is a number", json!({"path": 7})),
            ("a link to nothing", json!({"kind": "symlink", "link_target": ""})),
            ("a link with NUL", json!({"kind": "symlink", "link_target": "a\0b"})),
            ("a link too long to follow", json!({"kind": "symlink", "link_target": "l".repeat(5000)})),
        ];
        let mut cases: Vec<(&str, String)> =
            wrong.into_iter().map(|(what, change)| (what, store.tree(&[entry(change)]))).collect();
        cases.push(("no JSON", store.blob(b"\x00\xff not JSON")));
        cases.push(("nothing", store.blob(b"")));
        cases.push(("another format", store.blob(br#"{"kind":"fs.tree.v9","entries":[]}"#)));
        cases.push(("no entries", store.blob(br#"{"kind":"fs.tree.v1"}"#)));
        cases.push(("an array", store.blob(b"[]")));
        cases
    });
}

#[test]
fn a_file_with_a_false_size_fails_and_no_other_file() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let mut rng = crate::common::Rng::new(1);
    let content = rng.bytes(100_000);
    let lies = [("shorter", 99_999), ("longer", 100_001), ("empty", 0), ("much longer", 1 << 40), ("one", 1)];
    // Each has a separate blob, so that each is a separate finding.
    let mut entries: Vec<Value> =
        lies.iter().map(|(name, size)| file_entry(name, &store.blob(&rng.bytes(100_000)), *size)).collect();
    entries.push(store.file("honest", &content));
    entries.push(file_entry("endless", &store.blob(b"endless"), u64::MAX));
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mount = mount(&store);
    let world = mount.image(&id).join("world/fs");
    let readable = |name: &str| {
        let path = world.join(name);
        // Not to the end of a file that claims to be endless: a part will do.
        in_time("a read of a file that lies", move || {
            let file = std::fs::File::open(path)?;
            let mut part = vec![0; 4096];
            std::os::unix::fs::FileExt::read_at(&file, &mut part, 0).map(|n| part[..n].to_vec())
        })
    };
    // Either the whole tree is refused or each of the lies; the honest file must not show wrong bytes.
    match readable("honest") {
        Ok(bytes) => assert!(bytes == content[..4096]),
        Err(e) => panic!("the honest file: {e}"),
    }
    for (name, size) in lies {
        if size == 0 {
            // The kernel answers reads beyond the end by itself: no byte, so no wrong byte.
            assert_eq!(readable(name).unwrap_or_default(), b"", "{name}");
            continue;
        }
        assert_eq!(errno(readable(name)), libc::EIO, "{name}");
        assert!(
            !mount.log_lines(&[&id[..12], name]).is_empty(),
            "{name} is not in the log:\n{}",
            mount.log()
        );
    }
    assert!(readable("endless").is_err(), "a file of 2^64 - 1 bytes was read");
    assert_sound(&mount, &store, &sound);
    assert_bounded(&mount, "size lies");
    let findings = pfimg_on(store.root(), ["verify", "--json"]).exits(4).json()["findings"].to_string();
    for (name, _) in lies {
        assert!(findings.contains(name), "verify does not name {name}: {findings}");
    }
    mount.unmount();
}

/// Stores `mib` MiB of the byte `fill` as a blob of a few kilobytes.
fn bomb(store: &mut FastStore, mib: u64, fill: u8) -> String {
    let digest = store.large_blob(mib, |_| vec![fill; MIB as usize]);
    assert!(store.blob_path(&digest).metadata().unwrap().len() < MIB);
    digest
}

#[test]
fn a_bomb_of_a_gibibyte_behind_a_declared_kibibyte_costs_a_kibibyte() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let digest = bomb(&mut store, 1024, 0);
    // The same bytes under a wrong name, so that the digest does not help.
    let alias = format!("sha256:{}", "ab".repeat(32));
    std::fs::copy(store.blob_path(&digest), store.blob_path(&alias)).unwrap();
    let entries = [file_entry("bomb", &digest, 1024), file_entry("alias", &alias, 1024)];
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mount = mount(&store);
    for name in ["bomb", "alias"] {
        let path = mount.image(&id).join("world/fs").join(name);
        assert_eq!(path.metadata().unwrap().len(), 1024);
        assert_eq!(errno(std::fs::read(&path)), libc::EIO, "{name}");
        assert_eq!(mount.log_lines(&[&id[..12], name]).len(), 1, "{name}:\n{}", mount.log());
    }
    assert_bounded(&mount, "a bomb");
    assert_sound(&mount, &store, &sound);
    mount.unmount();
}

#[test]
fn layers_that_are_bombs_do_not_take_the_memory_of_the_machine() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let spaces = bomb(&mut store, 1024, b' ');
    let ids = [
        ("world/fs/x", store.image(&Spec { fs: Some(spaces.clone()), ..Spec::default() })),
        ("cache/pages/00000000.k", store.image(&Spec { cache: Some(spaces.clone()), ..Spec::default() })),
        ("effects/ledger.jsonl", store.image(&Spec { ledger: Some(spaces.clone()), ..Spec::default() })),
    ];
    let mount = mount(&store);
    for (path, id) in ids {
        let path = mount.image(&id).join(path);
        // A ledger of spaces may be shown as it is: it is what the digest says. The others cannot be.
        let outcome = in_time("a layer that is a bomb", move || {
            let file = std::fs::File::open(path)?;
            let mut part = [0; 4096];
            std::os::unix::fs::FileExt::read_at(&file, &mut part, 0)
        });
        println!("{outcome:?}");
        let peak = mount.peak_memory();
        assert!(peak < 512 * MIB, "the daemon needed {} MiB", peak / MIB);
    }
    assert_sound(&mount, &store, &sound);
    mount.unmount();
}

#[test]
fn a_blob_that_is_not_a_regular_file_fails_and_hangs_no_reader() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let shapes = ["fifo", "folder", "endless", "loop", "outside"];
    let entries: Vec<Value> =
        shapes.iter().map(|name| store.file(name, format!("{name}!").as_bytes())).collect();
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    for entry in &entries {
        let path = store.blob_path(entry["blob"].as_str().unwrap());
        std::fs::remove_file(&path).unwrap();
        match entry["path"].as_str().unwrap() {
            "fifo" => tool("mkfifo", [&path]).exits(0).code.clone_into(&mut 0),
            "folder" => std::fs::create_dir(&path).unwrap(),
            "endless" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
            "loop" => std::os::unix::fs::symlink(&path, &path).unwrap(),
            _ => std::os::unix::fs::symlink("/etc/hostname", &path).unwrap(),
        }
    }
    let mount = mount(&store);
    for name in shapes {
        let path = mount.image(&id).join("world/fs").join(name);
        let read = in_time("a blob that is not a file", move || std::fs::read(path));
        assert_eq!(errno(read), libc::EIO, "{name}");
    }
    assert_sound(&mount, &store, &sound);
    assert_bounded(&mount, "blobs that are not files");
    pfimg_on(store.root(), ["verify"]).exits(4);
    mount.unmount();
}

#[test]
fn a_marker_that_is_not_a_regular_file_hangs_no_reader() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let fifo = store.marker_path(&"1".repeat(64));
    tool("mkfifo", [&fifo]).exits(0);
    std::fs::create_dir(store.marker_path(&"2".repeat(64))).unwrap();
    std::os::unix::fs::symlink("/dev/zero", store.marker_path(&"3".repeat(64))).unwrap();
    let mount = mount(&store);
    for digit in ["1", "2", "3"] {
        let path = mount.image(&digit.repeat(64)).join("manifest.json");
        let read = in_time("a marker that is not a file", move || std::fs::read(path));
        assert!(read.is_err(), "{digit}: {read:?}");
    }
    assert_sound(&mount, &store, &sound);
    assert_eq!(std::fs::read_link(mount.join("latest")).unwrap(), Path::new("images").join(&sound));
    assert!(names(&mount.join("agents/test")).unwrap().iter().any(|n| n.ends_with(&sound[..12])));
    assert_bounded(&mount, "markers that are not files");
    pfimg_on(store.root(), ["verify"]).exits(4);
    pfimg_on(store.root(), ["images"]);
    mount.unmount();
}

#[test]
fn an_agent_whose_kind_cannot_be_a_name_stays_in_the_agents_folder() {
    let mut store = FastStore::new();
    let kinds = ["../../x", "..", ".", "", "/", "a/b", "a\0b", "\n", &"k".repeat(300), "ok"];
    let ids: Vec<String> = kinds
        .iter()
        .map(|kind| store.image(&Spec { agent: Some((*kind).into()), ..Spec::default() }))
        .collect();
    let mount = mount(&store);
    let listed = names(&mount.join("agents")).unwrap();
    println!("{listed:?}");
    assert!(listed.iter().any(|name| name == "ok"));
    for name in &listed {
        assert!(
            !["", ".", ".."].contains(&name.as_str()) && name.len() <= 255 && !name.contains(['/', '\0']),
            "{name:?}"
        );
        for entry in names(&mount.join("agents").join(name)).unwrap() {
            assert!(mount.join("agents").join(name).join(entry).join("manifest.json").is_file(), "{name}");
        }
    }
    for id in ids {
        assert_eq!(hex_digest_of_file(&mount.image(&id).join("manifest.json")).unwrap(), id);
    }
    mount.unmount();
}

#[test]
fn a_false_manifest_is_refused_and_hides_no_other_image() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let good = store.manifest(&Spec::default());
    let changed = |pointer: &str, value: Value| {
        let mut manifest = good.clone();
        *manifest.pointer_mut(pointer).unwrap() = value;
        serde_json::to_vec(&manifest).unwrap()
    };
    let cases = [
        ("a digest that is a path", changed("/model/base", json!("sha256:../../../etc/passwd"))),
        ("a digest of another kind", changed("/world/fs", json!("md5:d41d8cd98f00b204e9800998ecf8427e"))),
        ("a time that is none", changed("/created_at", json!("tomorrow"))),
        ("a parent that is a path", changed("/parents", json!(["../../../etc"]))),
        ("a schema from the future", changed("/schema_version", json!(2))),
        ("a layer missing", changed("/effects", json!({}))),
        ("brackets in brackets", ("[".repeat(50_000) + &"]".repeat(50_000)).into_bytes()),
        ("no JSON", b"\xff\xfe".to_vec()),
        ("nothing", Vec::new()),
    ];
    let ids: Vec<(&str, String)> = cases.iter().map(|(what, bytes)| (*what, store.image_of(bytes))).collect();
    let mount = mount(&store);
    for (what, id) in &ids {
        // The marker's bytes are what the id says, so they may be shown; no layer may.
        if let Ok(bytes) = std::fs::read(mount.image(id).join("manifest.json")) {
            assert_eq!(crate::common::hex_digest(&bytes), *id, "{what}");
        }
        for path in ["model/base", "world/fs/x", "effects/ledger.jsonl"] {
            let layer = std::fs::read(mount.image(id).join(path));
            assert_eq!(errno(layer), libc::EIO, "{what}: {path}");
        }
        assert!(!mount.log_lines(&[&id[..12]]).is_empty(), "{what}: not in the log:\n{}", mount.log());
    }
    assert_eq!(std::fs::read_link(mount.join("latest")).unwrap(), Path::new("images").join(&sound));
    assert_sound(&mount, &store, &sound);
    let verify = pfimg_on(store.root(), ["verify", "--json"]).exits(4).json()["findings"].to_string();
    for (what, id) in &ids {
        assert!(verify.contains(&id[..12]), "{what}: verify does not name it: {verify}");
    }
    for (_, id) in ids {
        let shown = pfimg_on(store.root(), ["show", &id]);
        assert!(shown.code == 4 || shown.code == 8, "{shown:?}");
    }
    mount.unmount();
}

#[test]
fn false_page_manifests_are_refused_or_shown_safely() {
    let mut store = FastStore::new();
    let page = store.blob(b"page");
    let manifest =
        |pages: Value| json!({"layout": "paged-batchinvariant-v1", "page_size_bytes": 4, "pages": pages});
    let cases = [
        (
            "an index twice",
            manifest(json!([{"ix": 1, "k": page, "v": page}, {"ix": 1, "k": page, "v": page}])),
        ),
        ("a digest that is a path", manifest(json!([{"ix": 1, "k": "sha256:../../x", "v": page}]))),
        ("a negative index", manifest(json!([{"ix": -1, "k": page, "v": page}]))),
        ("an index of twenty digits", manifest(json!([{"ix": u64::MAX, "k": page, "v": page}]))),
        ("pages that are a number", manifest(json!(7))),
        ("no JSON", json!("text")),
    ];
    let ids: Vec<(&str, String)> = cases
        .iter()
        .map(|(what, value)| {
            let cache = store.blob_json(value);
            (*what, store.image(&Spec { cache: Some(cache), ..Spec::default() }))
        })
        .collect();
    let mount = mount(&store);
    for (what, id) in ids {
        let listed = names(&mount.image(&id).join("cache/pages"));
        println!("{what}: {listed:?}");
        match listed {
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EIO), "{what}"),
            Ok(names) => {
                for name in names {
                    let bytes =
                        std::fs::read(mount.image(&id).join("cache/pages").join(&name)).unwrap_or_default();
                    assert!(bytes.is_empty() || bytes == b"page", "{what}: {name}");
                }
            }
        }
        assert_eq!(std::fs::read(mount.image(&id).join("model/base")).unwrap(), b"base:test", "{what}");
    }
    mount.unmount();
}

#[test]
fn invalid_tags_hide_no_image_and_name_no_image() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    pfimg_on(store.root(), ["fixture", "--tag", "good", "--cache-pages", "1"]).exits(0);
    let tags = store.root().join("refs/tags");
    std::fs::write(tags.join("empty"), b"").unwrap();
    std::fs::write(tags.join("path"), b"../../../../etc/passwd").unwrap();
    std::fs::write(tags.join("noise"), crate::common::Rng::new(4).bytes(100_000)).unwrap();
    std::fs::write(tags.join("dangling"), format!("sha256:{}\n", "ab".repeat(32))).unwrap();
    std::fs::create_dir_all(tags.join("folder")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", tags.join("endless")).unwrap();
    tool("mkfifo", [tags.join("fifo")]).exits(0);
    let mount = mount(&store);
    let folder = mount.join("tags");
    let listed = in_time("a listing of the tags", move || names(&folder)).unwrap();
    assert!(listed.iter().any(|name| name == "good"), "{listed:?}");
    for name in listed {
        let target = std::fs::read_link(mount.join("tags").join(&name)).unwrap();
        let id = target
            .to_str()
            .and_then(|t| t.strip_prefix("../images/"))
            .unwrap_or_else(|| panic!("{target:?}"));
        assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{name} leads to {target:?}");
    }
    assert_sound(&mount, &store, &sound);
    wait_until("the store can still be verified", || pfimg_on(store.root(), ["verify"]).code == 4);
    mount.unmount();
}

#[test]
fn no_command_waits_for_a_log_that_is_not_a_file() {
    let mut store = FastStore::new();
    let sound = sound_image(&mut store);
    let audit = store.root().join("audit");
    std::fs::create_dir_all(&audit).unwrap();
    for name in ["events.jsonl", "events-000000000001.jsonl", ".lock"] {
        let fifo = audit.join(name);
        // The round before has made a lock.
        let _ = std::fs::remove_file(&fifo);
        tool("mkfifo", [&fifo]).exits(0);
        let root = store.root().to_owned();
        let said = in_time("pfimg audit", move || pfimg_on(&root, ["audit"]));
        assert!(said.code != 0 && said.stderr.contains("audit"), "{name}: {said:?}");
        let mount = mount(&store);
        assert_sound(&mount, &store, &sound);
        let told = mount.join(".pfimg/events.jsonl");
        in_time("a look at the log", move || drop(std::fs::read(told)));
        mount.unmount();
        std::fs::remove_file(&fifo).unwrap();
    }
}
