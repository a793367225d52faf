//! `pfimg export`, judged by the real pf crates and by what was imported.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::json;

use super::support::{House, everything, exact, id};
use crate::common::cli::pfimg_on;
use crate::common::fast::{FastStore, Spec, dir_entry, expected_files, file_entry, link_entry};
use crate::common::forks::small_store;
use crate::common::{Rng, real, temp_dir, tree};

#[test]
fn an_imported_directory_is_exported_exactly() {
    let house = House::new();
    let dir = house.dir.join("all");
    everything(&dir);
    let image = id(&house.import(&dir, &[]));
    let into = house.dir.join("back");
    let report = house.pfimg(["export", &image, into.to_str().unwrap(), "--json"]).exits(0).json();
    let (source, back) = (exact(&dir), exact(&into));
    for (path, node) in &source {
        assert_eq!(back.get(path), Some(node), "{}", String::from_utf8_lossy(path));
    }
    assert_eq!(back.len(), source.len());
    assert_eq!(report["notes"], json!([]));
    let holes = fs::metadata(into.join("holes")).unwrap();
    assert!(holes.blocks() * 512 < holes.len() / 2, "{} blocks", holes.blocks());
    // And the same once more, which is the same image.
    assert_eq!(house.pf_tree(&id(&house.import(&into, &[]))).entries, house.pf_tree(&image).entries);
}

#[test]
fn an_image_from_pf_is_exported_as_pf_restores_it() {
    let (_guard, dir) = temp_dir();
    let store = real::RealStore::generate(&dir.join("store"), 40, 24);
    for image in &store.images {
        let into = dir.join(&image.id);
        pfimg_on(&dir.join("store"), ["export", &image.id, into.to_str().unwrap()]).exits(0);
        let (ours, theirs) = (tree::read_tree(&into).unwrap(), real::restored(&store.store, image));
        assert_eq!(tree::differences(&ours, &theirs), [""; 0], "seed {}", image.seed);
    }
}

#[test]
fn every_layer_is_exported_as_a_mount_shows_it() {
    let (store, image) = small_store();
    let (_guard, dir) = temp_dir();
    let expected = expected_files(&store, &image);
    for (name, more) in [("hidden", None), ("revealed", Some("--reveal-secrets"))] {
        let into = dir.join(name);
        let args = ["export", &image, into.to_str().unwrap(), "--all"].into_iter().chain(more);
        pfimg_on(store.root(), args).exits(0);
        let files = tree::read_tree(&into).unwrap();
        let count = files.values().filter(|node| matches!(node, tree::Node::File { .. })).count();
        assert_eq!(count, expected.len());
        for (path, bytes) in &expected {
            let there = fs::read(into.join(path)).unwrap();
            if path == "effects/ledger.jsonl" && more.is_none() {
                let text = String::from_utf8(there).unwrap();
                assert!(text.contains("<redacted>") && text.lines().count() == 3, "{text}");
            } else {
                assert!(there == *bytes, "{path}");
            }
        }
    }
}

#[test]
fn a_folder_that_holds_something_is_refused_and_left_alone() {
    let (store, image) = small_store();
    let (_guard, dir) = temp_dir();
    fs::write(dir.join("letter"), "dear").unwrap();
    let refused = pfimg_on(store.root(), ["export", &image, dir.to_str().unwrap()]).exits(7);
    assert!(refused.stderr.contains("is not empty"), "{}", refused.stderr);
    let refused = pfimg_on(store.root(), ["export", &image, dir.join("letter").to_str().unwrap()]);
    assert_ne!(refused.code, 0);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(fs::read(dir.join("letter")).unwrap(), b"dear");
}

#[test]
fn a_hostile_image_writes_nothing_outside_the_folder() {
    let mut store = FastStore::new();
    let (_guard, dir) = temp_dir();
    fs::create_dir(dir.join("outside")).unwrap();
    let outside = dir.join("outside").display().to_string();
    let blob = store.blob(b"evil");
    let evil = |path: &str| file_entry(path, &blob, 4);
    let raw = |path: &str, name: &[u8]| {
        let mut entry = file_entry(path, &blob, 4);
        entry["name_b64"] = data_encoding::BASE64.encode(name).into();
        entry
    };
    let mut linked = [link_entry("l", &outside), evil("plain")];
    for entry in &mut linked {
        entry["hardlink"] = 1.into();
    }
    let cases: Vec<(&str, Vec<serde_json::Value>, i32)> = vec![
        ("dots", vec![evil("../outside/x")], 4),
        ("absolute", vec![evil(&format!("{outside}/x"))], 4),
        ("raw dots", vec![raw("a/b", b"..")], 4),
        ("raw slash", vec![raw("b", b"../outside/x")], 4),
        ("through a link", vec![link_entry("l", &outside), evil("l/x")], 4),
        ("twice", vec![link_entry("l", &outside), evil("l")], 4),
        // Harmless, since no program follows it.
        ("link out", vec![link_entry("l", &outside), evil("x")], 0),
        ("one file, two contents", linked.to_vec(), 0),
        ("folder over a link", vec![link_entry("l", &outside), dir_entry("l")], 4),
    ];
    for (number, (what, entries, code)) in cases.into_iter().enumerate() {
        let fs_digest = store.tree_as_is(&entries);
        let image = store.image(&Spec { fs: Some(fs_digest), fingerprint: what.into(), ..Spec::default() });
        let into = dir.join(format!("into-{number}"));
        let said = pfimg_on(store.root(), ["export", &image, into.to_str().unwrap()]);
        assert_eq!(said.code, code, "{what}: {}", said.stderr);
        assert_eq!(fs::read_dir(dir.join("outside")).unwrap().count(), 0, "{what}");
        if code != 0 {
            assert!(said.stderr.contains(&image), "{what}: {}", said.stderr);
        }
    }
}

#[test]
fn a_damaged_blob_is_left_out_and_named_and_the_rest_is_exported() {
    let mut store = FastStore::new();
    let large = Rng::new(9).bytes(3 << 20);
    let entries = [
        store.file("good", b"good"),
        store.file("bad", b"bad"),
        store.file("gone", b"gone"),
        store.file("large", &large),
    ];
    let fs_digest = store.tree(&entries);
    let image = store.image(&Spec { fs: Some(fs_digest), ..Spec::default() });
    let path = |n: usize| store.blob_path(entries[n]["blob"].as_str().unwrap());
    fs::write(path(1), fs::read(path(0)).unwrap()).unwrap();
    fs::remove_file(path(2)).unwrap();
    let mut bytes = fs::read(path(3)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path(3), bytes).unwrap();
    let (_guard, dir) = temp_dir();
    let into = dir.join("into");
    let said = pfimg_on(store.root(), ["export", &image, into.to_str().unwrap()]).exits(4);
    for name in ["bad", "gone", "large"] {
        assert!(said.stderr.contains(&format!("into/{name}: blob")), "{}", said.stderr);
    }
    assert_eq!(crate::common::names(&into).unwrap(), ["good"]);
}

#[test]
fn a_place_that_cannot_be_written_is_named_and_what_is_there_is_called_a_part() {
    let (store, image) = small_store();
    let (_guard, dir) = temp_dir();
    let into = dir.join("into");
    // A limit on the size of files that the largest does not fit in.
    let script = format!(
        "trap '' XFSZ; ulimit -f 100; exec {} --store {} export {image} {}",
        crate::common::PFIMG,
        store.root().display(),
        into.display()
    );
    let said = crate::common::cli::tool("bash", ["-c", &script]).exits(8);
    assert!(
        said.stderr.contains("holds only a part of image") && said.stderr.contains("big"),
        "{}",
        said.stderr
    );
    assert!(Path::new(&into).exists());
}

/// Ends an export after some files.
struct Impatient(std::sync::atomic::AtomicI64);

impl pfimg::ops::export::Progress for Impatient {
    fn goes_on(&self) -> bool {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) > 0
    }
}

#[test]
fn an_export_that_is_interrupted_says_that_the_folder_holds_a_part() {
    let (store, image) = small_store();
    let (_guard, dir) = temp_dir();
    let into = dir.join("out");
    let options = pfimg::ops::export::Options {
        dir: into.clone(),
        all: false,
        reveal_secrets: false,
        cache_dir: None,
        jobs: std::num::NonZeroUsize::MIN,
        log: pfimg::audit::Log::off(),
    };
    let opened = pfimg::store::Store::open(store.root()).unwrap();
    let id = opened.resolve(&image).unwrap();
    let error = pfimg::ops::export::export(&opened, &id, &options, &Impatient(2.into())).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("holds only a part") && said.contains("interrupted"), "{said}");
    let files = |path: &Path| tree::read_tree(path).unwrap();
    let count = files(&into).values().filter(|node| matches!(node, tree::Node::File { .. })).count();
    assert_eq!(count, 2);
}
