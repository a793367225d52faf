//! Scale: large stores, large images and large blobs within a bounded memory. Times are printed, never judged.

use std::path::Path;
use std::time::Instant;

use crate::common::cli::tool;
use crate::common::fast::{FastStore, Spec, dir_entry, file_entry};
use crate::common::forks::fork;
use crate::common::{MIB, Mount, Rng, names, temp_dir, tree};
use serde_json::Value;

/// The daemon's memory apart from the cache.
const CONSTANT: u64 = 64 * MIB;

/// A store whose one image has `count` small files in a few hundred folders; the entries of its tree.
fn many_files(store: &mut FastStore, count: usize) -> Vec<Value> {
    (0..count)
        .map(|n| {
            let content = format!("// file {n}\n").repeat(1 + n % 60);
            store.file(&format!("pkg-{:03}/src/mod_{:02}/file_{n:05}.rs", n % 200, n % 7), content.as_bytes())
        })
        .collect()
}

#[test]
fn a_store_of_ten_thousand_images_mounts_in_little_memory_and_lists_them_all() {
    const COUNT: usize = 10_000;
    let mut store = FastStore::new();
    let template = store.manifest(&Spec { fingerprint: "@".into(), ..Spec::default() }).to_string();
    let mut ids: Vec<String> =
        (0..COUNT).map(|n| store.image_of(template.replace('@', &n.to_string()).as_bytes())).collect();
    ids.sort();
    let mount = Mount::of(store.root()).start();
    println!("mounting {COUNT} images: {:?}", mount.time_to_answer());
    let peak = mount.peak_memory();
    println!("mounted: {} MiB", peak / MIB);
    assert!(peak < CONSTANT, "mounting took {} MiB", peak / MIB);
    let start = Instant::now();
    assert!(names(&mount.join("images")).unwrap() == ids, "not every image is listed");
    println!("listing them: {:?}", start.elapsed());
    // One of them is as good as another.
    for id in ids.iter().step_by(1000) {
        assert_eq!(crate::common::hex_digest_of_file(&mount.image(id).join("manifest.json")).unwrap(), *id);
    }
    let start = Instant::now();
    assert!(mount.join("latest/model/base").is_file());
    assert_eq!(names(&mount.join("agents/test")).unwrap().len(), COUNT);
    println!("latest and agents: {:?}", start.elapsed());
    let peak = mount.peak_memory();
    println!("after looking at all of them: {} MiB", peak / MIB);
    assert!(peak < CONSTANT, "looking at the images took {} MiB", peak / MIB);
    mount.unmount();
}

#[test]
fn walking_an_image_of_twenty_thousand_files_stays_within_the_cache_and_a_constant() {
    const COUNT: usize = 20_000;
    const BUDGET: u64 = 16 * MIB;
    let mut store = FastStore::new();
    let entries = many_files(&mut store, COUNT);
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mount = Mount::of(store.root()).args(["--cache-size", "16MiB"]).start();
    let start = Instant::now();
    let listed =
        tool("find", [mount.image(&id).join("world/fs").as_os_str(), "-type".as_ref(), "f".as_ref()]);
    assert_eq!(listed.exits(0).stdout.lines().count(), COUNT);
    println!("find: {:?}", start.elapsed());
    let start = Instant::now();
    let nodes = tree::read_tree(&mount.image(&id).join("world/fs")).unwrap();
    println!("reading every file: {:?}", start.elapsed());
    for entry in &entries {
        let path = Path::new(entry["path"].as_str().unwrap());
        let Some(tree::Node::File { len, sha256, .. }) = nodes.get(path) else {
            panic!("{path:?} is missing")
        };
        assert_eq!(*len, entry["size"].as_u64().unwrap(), "{path:?}");
        assert_eq!(sha256, crate::common::bare(entry["blob"].as_str().unwrap()), "{path:?}");
    }
    let peak = mount.peak_memory();
    println!("at most {} MiB with a cache of {} MiB", peak / MIB, BUDGET / MIB);
    assert!(peak < CONSTANT + BUDGET, "the walk took {} MiB", peak / MIB);
    mount.unmount();
}

#[test]
fn comparing_two_images_of_twenty_thousand_files_reads_only_the_differences() {
    const COUNT: usize = 20_000;
    const DIFFERENT: usize = 10;
    let mut store = FastStore::new();
    let entries = many_files(&mut store, COUNT);
    let mut changed = entries.clone();
    for n in 0..DIFFERENT {
        let entry = &mut changed[n * 1777];
        let path = entry["path"].as_str().unwrap().to_owned();
        // As long as before: a comparison of the sizes is not enough.
        let content = "x".repeat(entry["size"].as_u64().unwrap() as usize);
        *entry = store.file(&path, content.as_bytes());
    }
    let before = store.tree(&entries);
    let after = store.tree(&changed);
    let before = store.image(&Spec { fs: Some(before), fingerprint: "before".into(), ..Spec::default() });
    // The child of the other: along a line, what did not change is one file. Its id ends no line.
    let (parents, created_at) = (vec![format!("sha256:{before}")], Some("2026-11-21T00:00:00Z".into()));
    let fingerprint = "after".into();
    let after = store.image(&Spec { fs: Some(after), fingerprint, parents, created_at, ..Spec::default() });
    assert!(u8::from_str_radix(&after[..2], 16).unwrap() >= 4, "choose another fingerprint");
    let mount = Mount::of(store.root()).start();
    let worlds = [&before, &after].map(|id| mount.image(id).join("world/fs"));
    let start = Instant::now();
    for world in &worlds {
        tool("find", [world.as_os_str(), "-ls".as_ref()]).exits(0);
    }
    println!("find over both: {:?}", start.elapsed());
    // What reading the metrics themselves costs, in requests.
    let idle = mount.requests("read");
    let own = mount.requests("read") - idle;
    let (reads, fills) = (mount.requests("read"), mount.metric("pfimg_blob_fills_total"));
    let start = Instant::now();
    let output = tool("diff", ["-rq".as_ref(), worlds[0].as_os_str(), worlds[1].as_os_str()]).exits(1);
    println!("diff -r: {:?}", start.elapsed());
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), DIFFERENT, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains(" differ")), "{lines:#?}");
    let fills = mount.metric("pfimg_blob_fills_total") - fills;
    let reads = mount.requests("read") - reads;
    println!("{reads} reads ({own} for each look at the metrics), {fills} fills");
    let wanted = 2.0 * DIFFERENT as f64;
    assert!(fills >= 1.0 && fills <= wanted, "{fills} blobs were read for {DIFFERENT} files that differ");
    // A file of less than a page is one read; the two looks at the metrics count as well.
    assert!(reads <= wanted + 3.0 * own, "{reads} reads for {DIFFERENT} files that differ");
    mount.unmount();
}

#[test]
fn a_blob_of_a_gibibyte_is_read_within_a_budget_of_64_mib_and_a_constant() {
    const PIECES: u64 = 1024;
    const BUDGET: u64 = 64 * MIB;
    // Pieces that compress and are all different, so that a piece in the wrong place shows.
    let piece = |n: u64| {
        let mut bytes = Vec::with_capacity(MIB as usize);
        while bytes.len() < MIB as usize {
            bytes.extend_from_slice(&[n.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat());
            bytes.resize(bytes.len() + 112, n as u8);
        }
        bytes
    };
    let mut store = FastStore::new();
    let digest = store.large_blob(PIECES, piece);
    let fs = store.tree(&[file_entry("huge", &digest, PIECES * MIB)]);
    let id = store.image(&Spec { fs: Some(fs), base: Some(digest.clone()), ..Spec::default() });
    let mount = Mount::of(store.root()).args(["--cache-size", "64MiB"]).start();
    for path in ["world/fs/huge", "model/base"] {
        let start = Instant::now();
        let file = std::fs::File::open(mount.image(&id).join(path)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), PIECES * MIB, "{path}");
        let mut buffer = vec![0; MIB as usize];
        for n in 0..PIECES {
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer, n * MIB).unwrap();
            assert!(buffer == piece(n), "piece {n} of {path} is wrong");
        }
        println!("{path}: {:?}", start.elapsed());
        // And here and there, which no readahead helps with.
        let mut rng = Rng::new(1);
        for _ in 0..30 {
            let n = rng.below(PIECES);
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer[..1000], n * MIB).unwrap();
            assert!(buffer[..1000] == piece(n)[..1000], "piece {n} of {path} is wrong");
        }
        let peak = mount.peak_memory();
        println!("at most {} MiB with a cache of {} MiB", peak / MIB, BUDGET / MIB);
        assert!(peak <= BUDGET + CONSTANT, "{path}: the daemon needed {} MiB", peak / MIB);
    }
    mount.unmount();
}

#[test]
fn a_folder_of_thirty_thousand_names_lists_each_exactly_once() {
    const COUNT: usize = 30_000;
    let mut store = FastStore::new();
    let blob = store.blob(b"x");
    // Long and short names in turn, so that the pieces of the listing end anywhere.
    let mut expected: Vec<String> =
        (0..COUNT).map(|n| format!("{n:05}{}", "é".repeat(n * 7 % 120))).collect();
    let entries: Vec<Value> =
        expected.iter().map(|name| file_entry(&format!("all/{name}"), &blob, 1)).collect();
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mount = Mount::of(store.root()).start();
    expected.sort();
    let folder = mount.image(&id).join("world/fs/all");
    // Cold, and again from what the kernel keeps; and at the same time through another mount of the folder's parent.
    for round in 0..2 {
        assert!(names(&folder).unwrap() == expected, "round {round}");
    }
    let second = Mount::of(store.root()).start();
    let folder = second.image(&id).join("world/fs/all");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(names(&folder).unwrap() == expected, "listed by four at once"));
        }
    });
    second.unmount();
    mount.unmount();
}

#[test]
fn reading_changing_files_repeatedly_costs_no_memory() {
    let mut store = FastStore::new();
    store.image(&Spec::default());
    let mount = Mount::of(store.root()).start();
    let look = || {
        for _ in 0..2000 {
            assert!(mount.join("latest/model/base").is_file());
            assert!(!std::fs::read(mount.join(".pfimg/status.json")).unwrap().is_empty());
            mount.metrics();
        }
    };
    look();
    let (peak, inodes) = (mount.peak_memory(), mount.metric("pfimg_inodes"));
    look();
    let (peak_after, inodes_after) = (mount.peak_memory(), mount.metric("pfimg_inodes"));
    println!("{inodes} inodes and {} KiB, then {inodes_after} and {} KiB", peak / 1024, peak_after / 1024);
    assert!(inodes_after < inodes + 500.0, "{inodes} inodes became {inodes_after}");
    assert!(peak_after < peak + 4 * MIB, "{peak} bytes became {peak_after}");
    mount.unmount();
}

#[test]
fn files_that_are_read_in_turn_are_filled_ahead_each_once_and_a_single_one_alone() {
    let mut store = FastStore::new();
    let mut rng = Rng::new(5);
    let mut entries = Vec::new();
    let mut contents = Vec::new();
    for folder in 0..20 {
        entries.push(dir_entry(&format!("d{folder:02}")));
        for file in 0..20 {
            let bytes = rng.bytes(100 + file * 50);
            entries.push(store.file(&format!("d{folder:02}/f{file:02}"), &bytes));
            contents.push((format!("d{folder:02}/f{file:02}"), bytes));
        }
    }
    let tree = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(tree), ..Spec::default() });
    for in_fork in [false, true] {
        let mount = Mount::of(store.root()).start();
        let root = if in_fork { fork(&mount, "try", &id) } else { mount.image(&id).join("world/fs") };
        let fills = || mount.metric("pfimg_blob_fills_total");
        let before = fills();
        for n in [7, 211, 93] {
            assert_eq!(std::fs::read(root.join(&contents[n].0)).unwrap(), contents[n].1);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(fills() - before <= 3.0, "single files: {} blobs were filled", fills() - before);
        for (path, bytes) in &contents {
            assert_eq!(std::fs::read(root.join(path)).unwrap(), *bytes, "{path}");
        }
        assert!(fills() - before <= 400.0, "{} blobs were filled for 400 files", fills() - before);
        let ahead = mount.metric("pfimg_blobs_asked_ahead_total");
        assert!(ahead > 300.0, "{ahead} of 400 were filled ahead");
        mount.unmount();
    }
}

#[test]
fn read_blobs_are_in_packs_for_the_next_mount_and_a_damaged_pack_is_harmless() {
    let mut store = FastStore::new();
    let mut rng = Rng::new(6);
    let contents: Vec<_> = (0..300).map(|n| (format!("f{n:03}"), rng.bytes(1 + n * 90))).collect();
    let entries: Vec<_> = contents.iter().map(|(path, bytes)| store.file(path, bytes)).collect();
    let tree = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(tree), ..Spec::default() });
    let (_guard, dir) = temp_dir();
    let cache = dir.join("cache");
    let read_all = || {
        let mount = Mount::of(store.root()).args(["--cache-dir".as_ref(), cache.as_os_str()]).start();
        for (path, bytes) in &contents {
            let shown = std::fs::read(mount.image(&id).join("world/fs").join(path)).unwrap();
            assert_eq!(shown, *bytes, "{path}");
        }
        let from_packs = mount.metric("pfimg_blobs_from_packs_total");
        mount.unmount();
        from_packs
    };
    assert!(read_all() < 1.0);
    assert!(read_all() >= 295.0, "what was read before was not in a pack");
    let pack = std::fs::read_dir(cache.join("packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 1000].fill(0xa5);
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    assert!(read_all() < 295.0, "a damaged pack was used to its end");
    assert!(read_all() >= 50.0, "the pack was not made again");
}
