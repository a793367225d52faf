//! `pfimg import`, judged by the real pf crates.

use std::fs;
use std::path::Path;

use pf_world::WalkFsCapture;
use serde_json::Value;

use super::support::{House, cid, everything, exact, id};
use crate::common::{Rng, bare, is_root, tree};

/// Makes a file look old, since young files are always read again.
fn age(path: &Path) {
    let old = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
    fs::File::open(path).unwrap().set_modified(old).unwrap();
}

#[test]
fn an_import_equals_what_the_real_pf_captures_and_restores() {
    let house = House::new();
    for seed in 0..24 {
        let again = "cargo test --test cli maintenance::".to_owned();
        let _program = crate::common::failing::Program { what: "an imported tree", seed, again };
        let dir = house.dir.join(format!("tree-{seed}"));
        tree::generate(seed, &dir);
        let image = id(&house.import(&dir, &["--pf-ignores"]));
        let ours = house.pf_tree(&image);
        // The large files of two of them take the real capture long, and show nothing new.
        if seed % 100 != 7 && seed % 100 != 8 {
            let theirs = WalkFsCapture::new(&dir).capture(&house.pf().blobs_arc()).unwrap();
            let theirs: pf_world::FsTree =
                serde_json::from_slice(&house.pf().blobs().get(&theirs).unwrap()).unwrap();
            assert_eq!(ours.entries, theirs.entries, "seed {seed}");
        }
        let (restored, source) = (house.pf_restored(&image), tree::read_tree(&dir).unwrap());
        assert_eq!(tree::differences(&restored, &source), [""; 0], "seed {seed}");
    }
    house.pfimg(["verify"]).exits(0);
}

#[test]
fn times_owners_links_names_and_specials_are_recorded_and_pf_still_reads_the_tree() {
    let house = House::new();
    let dir = house.dir.join("all");
    everything(&dir);
    let image = id(&house.import(&dir, &[]));
    let tree = house.tree_json(&image);
    let entry = |path: &str| {
        let all = tree["entries"].as_array().unwrap().iter().chain(tree["specials"].as_array().unwrap());
        all.clone().find(|entry| entry["path"] == path).unwrap_or_else(|| panic!("no {path}")).clone()
    };
    let source = exact(&dir);
    assert_eq!(tree["root"]["mode"], "0750");
    assert_eq!(entry("plain")["hardlink"], entry("d/same")["hardlink"]);
    assert!(entry("plain")["hardlink"].is_u64() && entry("big")["hardlink"].is_null());
    assert_eq!(entry("pipe")["kind"], "fifo");
    assert!(entry("plain")["mtime_ns"].as_i64().unwrap() > 1_000_000_000_000_000_000);
    if is_root() {
        assert_eq!(
            (entry("plain")["uid"].as_u64(), entry("null")["rdev"].as_u64()),
            (Some(1234), Some(0x103))
        );
    }
    let names: Vec<_> =
        tree["entries"].as_array().unwrap().iter().filter(|e| e["name_b64"].is_string()).collect();
    assert_eq!(names.len(), 1, "of the two cafés one is not UTF-8");
    assert_eq!(house.pf_tree(&image).entries.len(), source.len() - 1 - if is_root() { 2 } else { 1 });
}

#[test]
fn imports_of_a_directory_form_a_line_unless_an_option_says_otherwise() {
    let house = House::new();
    let dir = house.dir.join("line");
    std::fs::create_dir(&dir).unwrap();
    let import = |text: &str, more: &[&str]| {
        std::fs::write(dir.join("file"), text).unwrap();
        id(&house.import(&dir, more))
    };
    let parents = |image: &str| {
        let marker =
            std::fs::read(house.store().join("images").join(format!("{}.json", bare(image)))).unwrap();
        let manifest: Value = serde_json::from_slice(&marker).unwrap();
        let parents = manifest["parents"].as_array().unwrap().clone();
        parents.iter().map(|id| bare(id.as_str().unwrap()).to_owned()).collect::<Vec<_>>()
    };
    let first = import("1", &[]);
    let second = import("22", &[]);
    assert_eq!((parents(&first), parents(&second)), (vec![], vec![bare(&first).to_owned()]));
    // Unchanged, it is the last one.
    assert_eq!(id(&house.import(&dir, &[])), second);
    let third = import("333", &["--parent", &first]);
    assert_eq!(parents(&third), [bare(&first)]);
    let fourth = import("4444", &[]);
    assert_eq!(parents(&fourth), [bare(&third)]);
    let alone = import("55555", &["--no-parent"]);
    assert_eq!(parents(&alone), [""; 0]);
    // One whose last import is gone begins a line.
    std::fs::remove_file(house.store().join("images").join(format!("{}.json", bare(&alone)))).unwrap();
    let next = import("666666", &[]);
    assert_eq!(parents(&next), [""; 0]);
    house.pfimg(["verify"]).exits(0);
}

#[test]
fn an_unchanged_directory_is_not_read_again_and_makes_no_new_image() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir_all(dir.join("d")).unwrap();
    for n in 0..300 {
        let path = dir.join(format!("d/{n}"));
        fs::write(&path, format!("file {n}")).unwrap();
        age(&path);
    }
    // Files that changed just now are read again, since their times would not show another change.
    let first = house.import(&dir, &[]);
    assert_eq!((&first["new"], first["files_read"].as_u64()), (&true.into(), Some(300)));
    crate::common::wait_until("the files are older than the next index", || {
        let again = house.import(&dir, &[]);
        assert_eq!((again["new"].as_bool(), id(&again)), (Some(false), id(&first)));
        again["files_read"] == 0
    });
    // The same size and the same time: its change time gives it away.
    fs::write(dir.join("d/7"), "FILE 7").unwrap();
    age(&dir.join("d/7"));
    let changed = house.import(&dir, &[]);
    assert_eq!((changed["new"].as_bool(), changed["files_read"].as_u64()), (Some(true), Some(1)));
    assert_ne!(id(&changed), id(&first));
    let all = house.import(&dir, &["--reread"]);
    assert_eq!((all["new"].as_bool(), all["files_read"].as_u64()), (Some(false), Some(300)));
    assert_eq!(id(&all), id(&changed));
    let (restored, source) = (house.pf_restored(&id(&changed)), tree::read_tree(&dir).unwrap());
    assert_eq!(tree::differences(&restored, &source), [""; 0]);
}

#[test]
fn blobs_in_the_index_that_the_store_lost_are_read_again() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    for name in ["a", "b"] {
        fs::write(dir.join(name), name).unwrap();
    }
    let image = id(&house.import(&dir, &[]));
    crate::common::wait_until("the files are older than the index", || {
        house.import(&dir, &[])["files_read"] == 0
    });
    // As `pf gc --retain-recent` does it.
    fs::remove_file(house.store().join(format!("images/{}.json", &image[7..]))).unwrap();
    let blob = house.pf_tree(&image).entries[0].blob.clone().unwrap();
    fs::remove_file(house.blob_path(blob.as_str())).unwrap();
    let again = house.import(&dir, &[]);
    assert_eq!((again["new"].as_bool(), again["files_read"].as_u64()), (Some(true), Some(1)));
    house.pfimg(["verify"]).exits(0);
    // An index that is not whole counts for nothing.
    let index = fs::read_dir(house.dir.join("cache/pfimg/imports")).unwrap().next().unwrap().unwrap().path();
    fs::write(&index, Rng::new(1).bytes(1000)).unwrap();
    assert_eq!(house.import(&dir, &[])["files_read"], 2);
}

#[test]
fn an_import_leaves_out_only_ignored_paths_and_with_pf_ignores_those_of_pf() {
    let house = House::new();
    let dir = house.dir.join("tree");
    for name in ["src", "target", "x/node_modules", ".git/objects", "dist", "x/logs"] {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("f"), name).unwrap();
    }
    fs::write(dir.join("m.pyc"), "").unwrap();
    fs::write(dir.join(".gitignore"), "target\n.env\n").unwrap();
    fs::write(dir.join(".env"), "key").unwrap();
    let whole = |report: &Value| {
        let (restored, source) = (house.pf_restored(&id(report)), tree::read_tree(&dir).unwrap());
        assert_eq!(tree::differences(&restored, &source), [""; 0]);
        assert_eq!((&report["left_out"], &report["left_out_by"]["ignore_file"]), (&0.into(), &0.into()));
    };
    whole(&house.import(&dir, &[]));
    fs::write(dir.join(".pfignore"), "/dist/\n!src\n").unwrap();
    let import = |args: &[&str]| {
        let report = house.import(&dir, args);
        let paths: Vec<_> = house.pf_tree(&id(&report)).entries.into_iter().map(|e| e.path).collect();
        assert!(report["reports"][0].as_str().unwrap().contains("\"!src\" is not followed"), "{report}");
        (report, paths)
    };
    let (report, paths) = import(&["--ignore", "x/logs", "--pf-ignores"]);
    assert_eq!(paths, [".env", ".git", ".gitignore", ".pfignore", "src", "src/f", "x"]);
    let by = |report: &Value| {
        ["pf_ignores", "ignore_file", "ignore"].map(|by| report["left_out_by"][by].as_u64().unwrap())
    };
    assert_eq!((report["left_out"].as_u64(), by(&report)), (Some(6), [4, 1, 1]));
    let (report, paths) = import(&["--ignore", "x/logs"]);
    assert_eq!((report["left_out"].as_u64(), by(&report)), (Some(2), [0, 1, 1]));
    for path in [".env", ".git/objects/f", "target/f", "x/node_modules/f", "m.pyc"] {
        assert!(paths.iter().any(|p| p == path), "{path}: {paths:?}");
    }
    assert!(!paths.iter().any(|p| p.starts_with("dist") || p.starts_with("x/logs")), "{paths:?}");
    // An older script's option does no more than the default.
    assert_eq!(import(&["--no-default-ignores", "--ignore", "x/logs"]).1, paths);
}

#[test]
fn the_other_layers_are_the_parents_or_pfs_empty_forms() {
    let house = House::new();
    house.pfimg(["fixture", "--tag", "base"]).exits(0);
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a"), "a").unwrap();
    let child = house.import(&dir, &["--parent", "base", "--tag", "child"]);
    let pf = house.pf();
    let parent =
        pf.get_manifest(&cid(house.pfimg(["show", "base", "--json"]).json()["id"].as_str().unwrap()));
    let (parent, manifest) = (parent.unwrap(), pf.get_manifest(&cid(&id(&child))).unwrap());
    assert_eq!(manifest.parents.len(), 1);
    assert_eq!(
        (manifest.effects.ledger, manifest.model.diff, manifest.cache.manifest, manifest.trace.messages),
        (parent.effects.ledger, parent.model.diff, parent.cache.manifest, parent.trace.messages)
    );
    // The same files as the parent has: the parent.
    assert_eq!(id(&house.import(&dir, &["--parent", "child"])), id(&child));
    let alone = house.import(&dir, &["--no-parent"]);
    let manifest = pf.get_manifest(&cid(&id(&alone))).unwrap();
    assert_eq!(pf.blobs().get(&manifest.model.base).unwrap(), b"base:pfimg");
    assert!(manifest.parents.is_empty());
    assert_eq!(pf.blobs().get(&manifest.trace.messages).unwrap(), b"");
    let ledger = pf.blobs().get(&manifest.effects.ledger).unwrap();
    assert_eq!(ledger, b"{\"entries\":0,\"kind\":\"effects.ledger.v1\"}\n");
    // The tag's image has the same files, and the folder's next import into the tag comes from it.
    house.pfimg(["import", dir.to_str().unwrap(), "--tag", "child"]).exits(0);
    fs::write(dir.join("a"), "another").unwrap();
    house.pfimg(["import", dir.to_str().unwrap(), "--tag", "child"]).exits(6);
    house.pfimg(["verify"]).exits(0);
}

#[test]
fn the_image_does_not_contain_a_store_inside_the_folder() {
    let house = House::new();
    fs::write(house.dir.join("a"), "a").unwrap();
    let report = house.import(&house.dir, &[]);
    let again = house.import(&house.dir, &[]);
    assert_eq!(
        house.pf_tree(&id(&again)).entries.iter().filter(|entry| entry.path.contains("store")).count(),
        0
    );
    assert!(report["reports"].to_string().contains("it is the store"), "{report}");
}

#[test]
fn an_impossible_import_leaves_no_image_and_names_the_path() {
    let house = House::new();
    let gone = house.pfimg(["import", "/no/such/folder"]).exits(5);
    assert!(gone.stderr.contains("/no/such/folder"), "{}", gone.stderr);
    assert!(!house.store().exists());
    fs::write(house.dir.join("file"), "").unwrap();
    house.pfimg(["import", house.dir.join("file").to_str().unwrap()]).exits(2);
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    house.pfimg(["import", dir.to_str().unwrap(), "--ignore", "["]).exits(2);
    house.pfimg(["import", dir.to_str().unwrap(), "--tag", "../x"]).exits(2);
    assert!(!house.store().exists(), "the names are judged before there is a store");
    let sound = id(&house.import(&dir, &[]));
    let itself = house.pfimg(["import", house.store().to_str().unwrap()]).exits(2);
    assert!(itself.stderr.contains("is in the store"), "{}", itself.stderr);
    assert_eq!(house.images(), [crate::common::bare(&sound)]);
}

#[test]
fn a_tag_that_already_names_the_image_is_accepted_and_one_that_names_another_is_an_error() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "one").unwrap();
    let import = || house.pfimg(["import", dir.to_str().unwrap(), "--tag", "t"]);
    let first = import().exits(0).stdout;
    assert_eq!(import().exits(0).stdout, first);
    fs::write(dir.join("file"), "another").unwrap();
    let said = import().exits(6).stderr;
    assert!(said.contains("not tagged") && said.contains("--force"), "{said}");
    assert_eq!(house.pfimg(["tags", "--json"]).exits(0).json()["tags"][0]["image"], first.trim());
}
