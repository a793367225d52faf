//! `pfimg gc` and `pfimg prune`. The tests walk through the store themselves to check the results.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::common::cli::pfimg_on;
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{fork, small_store, tag};
use crate::common::{Mount, Rng, bare, real};

/// Every blob in the store, by its hex digits.
fn blobs(store: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for shard in fs::read_dir(store.join("blobs/sha256")).unwrap() {
        for entry in fs::read_dir(shard.unwrap().path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.extend(name.strip_suffix(".zst").map(str::to_owned));
        }
    }
    found
}

fn blob_path(store: &Path, hex: &str) -> PathBuf {
    store.join("blobs/sha256").join(&hex[..2]).join(format!("{hex}.zst"))
}

fn read_json(store: &Path, digest: &Value) -> Value {
    let path = blob_path(store, bare(digest.as_str().unwrap()));
    let bytes = zstd::decode_all(fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Every blob that the images refer to: manifests, layers, files, pages.
fn reachable(store: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in crate::common::names(&store.join("images")).unwrap() {
        let Some(id) = name.strip_suffix(".json") else { continue };
        found.insert(id.to_owned());
        let manifest: Value =
            serde_json::from_slice(&fs::read(store.join("images").join(&name)).unwrap()).unwrap();
        let layers =
            ["/model/base", "/model/diff", "/cache/manifest", "/world/fs", "/world/env", "/world/procs"];
        let layers = layers.into_iter().chain(["/effects/ledger", "/trace/messages"]);
        found.extend(layers.map(|at| bare(manifest.pointer(at).unwrap().as_str().unwrap()).to_owned()));
        for page in read_json(store, &manifest["cache"]["manifest"])["pages"].as_array().unwrap() {
            found.extend(["k", "v"].map(|half| bare(page[half].as_str().unwrap()).to_owned()));
        }
        for entry in read_json(store, &manifest["world"]["fs"])["entries"].as_array().unwrap() {
            found.extend(entry["blob"].as_str().map(|blob| bare(blob).to_owned()));
        }
    }
    found
}

/// Makes blobs look as if they had been there for a day.
fn age(store: &Path, which: impl IntoIterator<Item = String>) {
    let yesterday = SystemTime::now() - Duration::from_hours(24);
    for hex in which {
        let file = fs::File::options().write(true).open(blob_path(store, &hex)).unwrap();
        file.set_modified(yesterday).unwrap();
    }
}

fn age_all(store: &Path) {
    age(store, blobs(store));
}

fn remove_image(store: &Path, id: &str) {
    fs::remove_file(store.join("images").join(format!("{}.json", bare(id)))).unwrap();
}

/// An image of files that no other has.
fn unique_image(store: &mut FastStore, seed: u64, created_at: Option<&str>) -> String {
    let mut rng = Rng::new(seed);
    let entries: Vec<Value> = (0..10).map(|n| store.file(&format!("f{n}"), &rng.bytes(100 + n))).collect();
    let fs = store.tree(&entries);
    let cache = store.pages(seed, 2);
    let created_at = created_at.map(str::to_owned);
    let fingerprint = "unique".to_owned();
    store.image(&Spec { fs: Some(fs), cache: Some(cache), created_at, fingerprint, ..Spec::default() })
}

#[test]
fn exactly_what_images_refer_to_is_left() {
    let mut store = FastStore::new();
    let images: Vec<String> = (0..6).map(|seed| unique_image(&mut store, seed, None)).collect();
    let root = store.root().to_owned();
    age_all(&root);
    let before = blobs(&root);
    assert_eq!(before, reachable(&root));
    for id in &images[..3] {
        remove_image(&root, id);
    }
    let expected = reachable(&root);
    let tried = pfimg_on(&root, ["gc", "--dry-run", "--json"]).exits(0).json();
    assert_eq!(
        (blobs(&root), tried["deleted"].as_u64()),
        (before.clone(), Some((before.len() - expected.len()) as u64))
    );
    let done = pfimg_on(&root, ["gc", "--json"]).exits(0).json();
    assert_eq!(blobs(&root), expected);
    assert_eq!((&done["deleted"], &done["freed_bytes"]), (&tried["deleted"], &tried["freed_bytes"]));
    assert_eq!(done["images"], 3);
    pfimg_on(&root, ["verify"]).exits(0);
}

#[test]
fn young_blobs_are_kept_and_remains_of_killed_programs_are_deleted() {
    let mut store = FastStore::new();
    unique_image(&mut store, 1, None);
    let root = store.root().to_owned();
    let (young, old) = (store.blob(b"young"), store.blob(b"old"));
    age(&root, [bare(&old).to_owned()]);
    let temp = |name: &str| root.join("blobs/sha256/00").join(name);
    for name in ["00aa.tmp.7.1", "00aa.tmp.7.2", "letter"] {
        fs::write(temp(name), "").unwrap();
    }
    fs::File::options()
        .write(true)
        .open(temp("00aa.tmp.7.1"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    let report = pfimg_on(&root, ["gc", "--json"]).exits(0).json();
    assert_eq!(
        (report["deleted"].as_u64(), report["young"].as_u64(), report["temp_files"].as_u64()),
        (Some(1), Some(1), Some(1))
    );
    assert!(blobs(&root).contains(bare(&young)) && !blobs(&root).contains(bare(&old)));
    assert!(!temp("00aa.tmp.7.1").exists() && temp("00aa.tmp.7.2").exists() && temp("letter").exists());
    pfimg_on(&root, ["gc", "--grace", "0"]).exits(0);
    assert_eq!(blobs(&root), reachable(&root));
    assert!(temp("letter").exists(), "gc leaves other files alone");
}

/// Cuts a layer's blob in half.
fn cut_layer(store: &FastStore, id: &str, at: &str) {
    let marker: Value = serde_json::from_slice(&fs::read(store.marker_path(id)).unwrap()).unwrap();
    let path = store.blob_path(marker.pointer(at).unwrap().as_str().unwrap());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn nothing_is_deleted_if_something_cannot_be_read() {
    type Harm = fn(&mut FastStore, &str);
    let cases: [(&str, Harm); 8] = [
        ("world/fs", |store, id| cut_layer(store, id, "/world/fs")),
        ("cache/manifest.json", |store, id| cut_layer(store, id, "/cache/manifest")),
        ("effects/ledger.jsonl", |store, id| cut_layer(store, id, "/effects/ledger")),
        ("marker is damaged", |store, id| {
            fs::write(store.marker_path(id), "{}").unwrap();
            fs::remove_file(store.blob_path(id)).unwrap();
        }),
        ("schema version 2", |store, _| drop(store.image(&Spec { schema: Some(2), ..Spec::default() }))),
        ("its name is not a digest", |store, _| {
            fs::write(store.root().join("images/copy.json"), "{}").unwrap();
        }),
        ("tag", |store, _| {
            fs::create_dir_all(store.root().join("refs/tags")).unwrap();
            fs::write(store.root().join("refs/tags/bad"), "nothing").unwrap();
        }),
        ("fork \"bad\" is damaged", |store, _| {
            fs::create_dir_all(store.root().join("forks/heads")).unwrap();
            fs::write(store.root().join("forks/heads/bad.json"), "{").unwrap();
        }),
    ];
    for (word, harm) in cases {
        let mut store = FastStore::new();
        let image = unique_image(&mut store, 3, None);
        store.blob(b"garbage");
        age_all(store.root());
        harm(&mut store, &image);
        let before = blobs(store.root());
        let said = pfimg_on(store.root(), ["gc"]).exits(4);
        assert!(
            said.stderr.contains(word) && said.stdout.contains("nothing deleted"),
            "{word}: {}",
            said.said()
        );
        assert_eq!(blobs(store.root()), before, "{word}");
    }
}

#[test]
fn an_invalid_line_of_a_ledger_does_not_stop_the_collection() {
    let mut store = FastStore::new();
    let base = unique_image(&mut store, 1, None);
    store.blob(b"garbage");
    age_all(store.root());
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "try", &base);
    let ledger = mount.join("forks/try/effects/ledger.jsonl");
    fs::File::options().append(true).open(ledger).unwrap().write_all(b"no entry\n").unwrap();
    fs::create_dir(mount.join("forks/try/.snap/odd")).unwrap();
    mount.unmount();
    assert!(pfimg_on(store.root(), ["verify"]).exits(4).said().contains("ledger"));
    let report = pfimg_on(store.root(), ["gc", "--json"]).exits(0).json();
    assert_eq!(report["deleted"], 1, "{report}");
}

#[test]
fn blobs_of_unsealed_changes_in_a_fork_are_kept() {
    let mut store = FastStore::new();
    let base = unique_image(&mut store, 1, None);
    let other = unique_image(&mut store, 2, None);
    let root = store.root().to_owned();
    let mount = Mount::of(&root).start();
    let world = fork(&mount, "try", &base);
    // The blob is shared, not its bytes copied.
    let from = mount.image(&other).join("world/fs/f3");
    let content = fs::read(&from).unwrap();
    fs::copy(&from, world.join("taken")).unwrap();
    fs::write(world.join("own"), "own").unwrap();
    age_all(&root);
    remove_image(&root, &other);
    remove_image(&root, &base);
    let said = pfimg_on(&root, ["gc", "--json"]).exits(0).json();
    assert!(said["deleted"].as_u64() > Some(10), "{said}");
    let marker_blobs = blobs(&root);
    assert!(marker_blobs.contains(&crate::common::hex_digest(&content)));
    assert_eq!(fs::read(world.join("taken")).unwrap(), content);
    for n in 0..10 {
        assert_eq!(
            fs::read(world.join(format!("f{n}"))).unwrap().len(),
            100 + n,
            "the base is kept by its blobs"
        );
    }
    mount.unmount();
}

#[test]
fn while_forks_are_written_and_pf_snapshots_nothing_is_lost_and_all_garbage_goes() {
    let mut store = FastStore::new();
    let base = unique_image(&mut store, 1, None);
    let doomed: Vec<String> = (100..140).map(|seed| unique_image(&mut store, seed, None)).collect();
    let root = store.root().to_owned();
    let garbage: BTreeSet<String> = &blobs(&root)
        - &{
            let mut kept = FastStore::new();
            unique_image(&mut kept, 1, None);
            reachable(kept.root())
        };
    age_all(&root);
    let mount = Mount::of(&root).start();
    let worlds: Vec<PathBuf> = (0..4).map(|n| fork(&mount, &format!("f{n}"), &base)).collect();
    let stop = AtomicBool::new(false);
    let mut deleted = 0;
    let written = std::thread::scope(|scope| {
        let snapshots = scope.spawn(|| {
            let pf = pf_core::store::PfStore::open(&root).unwrap();
            let mut seed = 1000;
            while !stop.load(Ordering::Relaxed) {
                real::snapshot(&pf, seed, Vec::new());
                seed += 1;
            }
            seed - 1000
        });
        let writers: Vec<_> = worlds
            .iter()
            .enumerate()
            .map(|(n, world)| {
                let (stop, mount, doomed) = (&stop, &mount, &doomed);
                scope.spawn(move || {
                    let mut rng = Rng::new(n as u64);
                    let mut expected: Vec<(PathBuf, Vec<u8>)> = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let path = world.join(format!("w{}", expected.len()));
                        let source = rng.pick(doomed);
                        let from = mount.image(source).join(format!("world/fs/f{}", rng.below(10)));
                        // The image may be gone, or may be removed at the same time. Then nothing was promised.
                        match (fs::read(&from), rng.chance(50)) {
                            (Ok(content), true) if fs::copy(&from, &path).is_ok() => {
                                expected.push((path, content));
                            }
                            _ => {
                                let bytes = rng.bytes(1 + rng.clone().below(100_000) as usize);
                                fs::write(&path, &bytes).unwrap();
                                expected.push((path, bytes));
                            }
                        }
                        if expected.len() > 400 {
                            break;
                        }
                    }
                    expected
                })
            })
            .collect();
        for ids in doomed.chunks(8) {
            for id in ids {
                remove_image(&root, id);
            }
            let report = pfimg_on(&root, ["gc", "--json"]).exits(0).json();
            deleted += report["deleted"].as_u64().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(snapshots.join().unwrap() > 0, "the real pf took snapshots at the same time");
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(written.len() > 40 && deleted > 100, "{} files written, {deleted} blobs deleted", written.len());
    for (path, content) in &written {
        assert!(fs::read(path).unwrap() == *content, "{}", path.display());
    }
    mount.unmount();
    // Of the doomed blobs only those that forks took are left.
    let taken: BTreeSet<String> =
        written.iter().map(|(_, content)| crate::common::hex_digest(content)).collect();
    let left: BTreeSet<String> = garbage.intersection(&blobs(&root)).cloned().collect();
    let reachable = reachable(&root);
    let unaccounted: Vec<_> =
        left.iter().filter(|hex| !taken.contains(*hex) && !reachable.contains(*hex)).collect();
    assert_eq!(unaccounted, [""; 0], "blobs that nothing refers to");
    assert!(reachable.is_subset(&blobs(&root)), "a blob is lost that an image refers to");
    // Again from the disk alone.
    let mount = Mount::of(&root).start();
    for (path, content) in &written {
        let again = mount.path().join(
            path.strip_prefix(path.ancestors().find(|p| p.ends_with("forks")).unwrap().parent().unwrap())
                .unwrap(),
        );
        assert!(fs::read(&again).unwrap() == *content, "{}", again.display());
    }
    mount.unmount();
    pfimg_on(&root, ["verify"]).exits(0);
}

#[test]
fn a_fork_whose_base_was_taken_away_says_so_stops_the_collector_and_can_be_discarded_or_healed() {
    let mut store = FastStore::new();
    let base = unique_image(&mut store, 1, None);
    unique_image(&mut store, 2, None);
    let root = store.root().to_owned();
    pfimg_on(&root, ["fork", &base, "try"]).exits(0);
    let mount = Mount::of(&root).args(["--seal", "manual"]).start();
    fs::write(mount.join("forks/try/world/fs/own"), "own").unwrap();
    mount.unmount();
    // As `pf gc --retain-recent 1` does it: the marker goes, and every blob that no other image refers to.
    let saved = fs::read(store.marker_path(&base)).unwrap();
    remove_image(&root, &base);
    let kept = reachable(&root);
    let mut lost = Vec::new();
    for hex in blobs(&root).difference(&kept) {
        let path = blob_path(&root, hex);
        lost.push((path.clone(), fs::read(&path).unwrap()));
        fs::remove_file(path).unwrap();
    }
    assert!(lost.len() > 10);
    store.blob(b"garbage");
    age_all(&root);
    let before = blobs(&root);
    let listed = pfimg_on(&root, ["forks", "--json"]).exits(4).json()["forks"].clone();
    assert!(listed[0]["damage"].as_str().unwrap().contains(&base), "{listed}");
    let said = pfimg_on(&root, ["gc"]).exits(4);
    assert!(
        said.stderr.contains("fork \"try\" rests on image") && said.stderr.contains("bring it back"),
        "{}",
        said.stderr
    );
    assert_eq!(blobs(&root), before);
    // With the image back, the fork is whole.
    for (path, bytes) in &lost {
        fs::write(path, bytes).unwrap();
    }
    fs::write(store.marker_path(&base), saved).unwrap();
    let mount = Mount::of(&root).args(["--seal", "manual"]).start();
    assert_eq!(fs::read(mount.join("forks/try/world/fs/own")).unwrap(), b"own");
    assert_eq!(fs::read(mount.join("forks/try/world/fs/f0")).unwrap().len(), 100);
    mount.unmount();
    remove_image(&root, &base);
    for (path, _) in &lost {
        fs::remove_file(path).unwrap();
    }
    assert!(pfimg_on(&root, ["discard", "try"]).exits(4).stderr.contains("--force"));
    pfimg_on(&root, ["discard", "--force", "try"]).exits(0);
    age_all(&root);
    pfimg_on(&root, ["gc"]).exits(0);
    assert_eq!(blobs(&root), reachable(&root));
}

#[test]
fn a_tag_without_an_image_is_reported_and_a_tag_without_a_marker_keeps_the_blobs() {
    let mut store = FastStore::new();
    let (gone, there) = (unique_image(&mut store, 1, None), unique_image(&mut store, 2, None));
    let root = store.root().to_owned();
    tag(&store, "lost", &crate::common::hex_digest(b"no image"));
    tag(&store, "kept", &gone);
    let expected = reachable(&root);
    age_all(&root);
    remove_image(&root, &gone);
    let said = pfimg_on(&root, ["gc"]).exits(0);
    assert!(said.stderr.contains("tag \"lost\" names"), "{}", said.stderr);
    assert_eq!(blobs(&root), expected);
    fs::remove_file(root.join("refs/tags/kept")).unwrap();
    pfimg_on(&root, ["gc"]).exits(0);
    assert_eq!(blobs(&root), reachable(&root));
    assert!(blobs(&root).contains(&there));
}

#[test]
fn prune_and_gc_leave_exactly_what_is_kept() {
    let (mut store, base) = small_store();
    let root = store.root().to_owned();
    pfimg_on(&root, ["fork", &base, "try"]).exits(0);
    let head: Value = serde_json::from_slice(&fs::read(root.join("forks/heads/try.json")).unwrap()).unwrap();
    let mut seals = String::new();
    let mut images = Vec::new();
    for hour in 0..10 {
        let id = unique_image(
            &mut store,
            50 + hour,
            Some(&format!("2026-11-{:02}T{:02}:00:00Z", 10 + hour / 4, hour)),
        );
        seals.extend(["\nsha256:", &id, " 1\n"]);
        images.push(id);
    }
    // The fork's own base is among its seals, as it is after a seal.
    seals.extend(["\nsha256:", &base, " 99\n"]);
    fs::create_dir_all(root.join("forks/seals")).unwrap();
    fs::write(root.join("forks/seals").join(head["uid"].as_str().unwrap()), seals).unwrap();
    let alone = unique_image(&mut store, 70, None);
    tag(&store, "first", &images[0]);
    age_all(&root);
    pfimg_on(&root, ["prune"]).exits(2);
    pfimg_on(&root, ["prune", "nobody", "--keep-last", "1"]).exits(5);
    let count = || crate::common::names(&root.join("images")).unwrap().len();
    let tried =
        pfimg_on(&root, ["prune", "--keep-last", "3", "--keep-daily", "2", "--dry-run", "--json"]).exits(0);
    assert_eq!(count(), 12);
    let done = pfimg_on(&root, ["prune", "--keep-last", "3", "--keep-daily", "2", "--json"]).exits(0).json();
    assert_eq!(tried.json()["images"], done["images"]);
    // The base is the newest of all by its time, then two more, the newest of the day before, and what has a name.
    let left: BTreeSet<String> =
        crate::common::names(&root.join("images")).unwrap().iter().map(|n| n.replace(".json", "")).collect();
    let expected = [&base, &alone, &images[9], &images[8], &images[0]];
    assert_eq!(left, expected.into_iter().cloned().collect());
    assert_eq!(done["removed"], 7);
    pfimg_on(&root, ["gc"]).exits(0);
    assert_eq!(blobs(&root), reachable(&root));
    // For an automatic seal only a name counts; an image that is not a seal stays unless all images are
    // selected.
    pfimg_on(&root, ["prune", "--keep-tagged"]).exits(0);
    assert_eq!(count(), 3);
    pfimg_on(&root, ["prune", "--keep-tagged", "--all"]).exits(0);
    assert_eq!(count(), 2, "the fork's base and what has a name");
    pfimg_on(&root, ["gc"]).exits(0);
    assert_eq!(blobs(&root), reachable(&root));
}
