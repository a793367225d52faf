//! What forks cost: in bytes and requests, which are judged, and in time, which is printed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::{FastStore, Spec, dir_entry, file_entry};
use crate::common::forks::{disk_usage, fork, open_rw, world};
use crate::common::{MIB, Mount, Rng, in_time, wait_until};

/// The files below a folder: their paths in it, numbers and lengths.
fn files_below(root: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let (path, meta) = entry.map(|e| (e.path(), e.metadata().unwrap())).unwrap();
            if meta.is_dir() {
                todo.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), (meta.ino(), meta.len()));
            }
        }
    }
    found
}

/// The bytes of all files of a store, each once however many names it has, the forks' journals not counted.
fn bytes_but_for_journals(store: &Path) -> u64 {
    let files = files_below(store).into_iter().filter(|(path, _)| !path.ends_with("journal"));
    files.map(|(_, file)| file).collect::<BTreeMap<_, _>>().values().sum()
}

/// A store with an image of `count` files in folders of a hundred, which share 50 contents; and its id.
fn store_of(count: usize) -> (FastStore, String) {
    let mut store = FastStore::new();
    let mut rng = Rng::new(count as u64);
    let contents: Vec<_> = (0..50).map(|n| rng.bytes(2000 + n * 10)).collect();
    let blobs: Vec<_> = contents.iter().map(|bytes| (store.blob(bytes), bytes.len() as u64)).collect();
    let mut entries = Vec::new();
    for n in 0..count {
        if n % 100 == 0 {
            entries.push(dir_entry(&format!("d{:04}", n / 100)));
        }
        let (blob, size) = &blobs[n % blobs.len()];
        entries.push(file_entry(&format!("d{:04}/f{n:06}", n / 100), blob, *size));
    }
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    (store, id)
}

fn own_bytes(store: &Path, name: &str) -> u64 {
    let rows = pfimg_on(store, ["forks", "--long", "--json"]).exits(0).json()["forks"].clone();
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    row["own_bytes"].as_u64().unwrap()
}

#[test]
fn a_copy_of_a_fork_of_20000_files_copies_no_content_and_reads_none() {
    const FILES: u64 = 20_000;
    let (store, id) = store_of(FILES as usize);
    // A seal in the middle would write blobs, which are not the copy's.
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let a = fork(&mount, "a", &id);
    fs::write(a.join("d0000/f000000"), b"changed").unwrap();
    fs::write(a.join("d0000/large"), vec![1; 300_000]).unwrap();
    let blobs = disk_usage(&store.root().join("blobs"));
    let forks = disk_usage(&store.root().join("forks"));
    let others = bytes_but_for_journals(store.root());
    let reads = mount.requests("read");
    let start = Instant::now();
    let (from, to) = (mount.join("forks/a"), mount.join("forks/b"));
    let copy = move || tool("cp", ["-r".as_ref(), from.as_os_str(), to.as_os_str()]).exits(0);
    in_time("cp -r of a fork", copy);
    let grown = disk_usage(&store.root().join("forks")) - forks;
    println!("cp -r of {FILES} files: {:?}, forks/ grew by {grown} bytes", start.elapsed());
    println!("{} bytes an entry, {} reads", grown / FILES, mount.requests("read") - reads);
    assert_eq!(disk_usage(&store.root().join("blobs")), blobs, "a fork wrote blobs");
    assert!(grown < 4096 + FILES * 256, "forks/ grew by {grown} bytes");
    let others = bytes_but_for_journals(store.root()) - others;
    assert!(others < 4096, "{others} bytes apart from the journal's entries");
    // One of them is that of the counters themselves.
    assert!(mount.requests("read") - reads < 4.0, "content was read");
    assert_eq!(fs::read(world(&mount, "b").join("d0000/f000000")).unwrap(), b"changed");
    assert_eq!(fs::read(world(&mount, "b").join("d0000/large")).unwrap(), vec![1; 300_000]);
    mount.unmount();
}

/// The promises of a copy by manifest: the same list of blobs, no copied byte, each blob at its old inode,
/// and one new small file that names them, which exists only when everything does. A missing source, and a
/// taken or invalid name, are errors.
#[test]
fn a_branch_keeps_the_four_properties_of_a_copy_by_manifest() {
    let (store, id) = store_of(20_000);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let forks = |name: &str| mount.join("forks").join(name);
    fs::create_dir(forks(&format!("a@{id}"))).unwrap();
    fs::read(forks("a/manifest.json")).unwrap();
    let blobs = files_below(&store.root().join("blobs"));
    let before = files_below(store.root());
    fs::create_dir(forks("b@a")).unwrap();
    let after = files_below(store.root());
    // The list of blobs, in its order.
    assert_eq!(fs::read(forks("b/manifest.json")).unwrap(), fs::read(forks("a/manifest.json")).unwrap());
    let rest = |files: &BTreeMap<PathBuf, (u64, u64)>| -> u64 { files.values().map(|(_, len)| len).sum() };
    assert!(rest(&after) > rest(&before) && rest(&after) - rest(&before) <= 4096);
    // Numbers and lengths of all blobs, and no other ones.
    assert_eq!(files_below(&store.root().join("blobs")), blobs);
    let heads = |files: &BTreeMap<PathBuf, (u64, u64)>| {
        files.keys().filter(|path| path.starts_with("forks/heads")).count()
    };
    assert_eq!(heads(&after), heads(&before) + 1, "one file names what it is made of");
    let refused = |name: &str| fs::create_dir(forks(name)).unwrap_err().raw_os_error().unwrap();
    assert_eq!(refused("c@missing"), libc::ENOENT);
    assert_eq!(refused("b@a"), libc::EEXIST);
    assert_eq!(refused("a@a"), libc::EEXIST);
    assert_eq!(refused("@a"), libc::EINVAL);
    assert_eq!(heads(&files_below(store.root())), heads(&after), "a refused one left something");
    // Neither depends on the other.
    pfimg_on(store.root(), ["discard", "--force", "a"]).exits(0);
    pfimg_on(store.root(), ["gc", "--grace", "0s"]).exits(0);
    assert_eq!(files_below(&store.root().join("blobs")), blobs);
    let (mut count, mut todo) = (0, vec![world(&mount, "b")]);
    while let Some(dir) = todo.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
            } else if fs::read(&path).unwrap().len() >= 2000 {
                count += 1;
            }
        }
    }
    assert_eq!(count, 20_000);
    mount.unmount();
}

#[test]
fn a_branch_costs_the_same_however_large_its_source_is() {
    let mut costs = Vec::new();
    for count in [1000, 20_000, 100_000] {
        let (store, id) = store_of(count);
        let mount = Mount::of(store.root()).start();
        let a = fork(&mount, "a", &id);
        fs::write(a.join("d0000/f000000"), b"changed").unwrap();
        let forks = disk_usage(&store.root().join("forks"));
        let mut times = Vec::new();
        for n in 0..20 {
            let start = Instant::now();
            fs::create_dir(mount.join(format!("forks/b{n}@a"))).unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        let grown = (disk_usage(&store.root().join("forks")) - forks) / 20;
        println!(
            "mkdir B@A, {count} files: median {:?}, worst {:?}, {grown} bytes on disk",
            times[10], times[19]
        );
        assert_eq!(fs::read(world(&mount, "b19").join("d0000/f000000")).unwrap(), b"changed");
        costs.push(grown);
        mount.unmount();
    }
    assert!(costs[2] <= costs[0] + 4096, "the source's size shows: {costs:?}");
}

#[test]
fn a_byte_written_into_a_gibibyte_copies_pages_and_not_the_file() {
    const SIZE: u64 = 1 << 30;
    let mut store = FastStore::new();
    let piece = Rng::new(1).bytes(1 << 20);
    let blob = store.large_blob(SIZE / MIB, |n| {
        let mut piece = piece.clone();
        piece[..8].copy_from_slice(&n.to_le_bytes());
        piece
    });
    let fs = store.tree(&[file_entry("huge", &blob, SIZE)]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mount = Mount::of(store.root()).start();
    let huge = fork(&mount, "try", &id).join("huge");
    let mut first = [0; 8];
    fs::File::open(&huge).unwrap().read_exact(&mut first).unwrap();
    let before = disk_usage(&store.root().join("forks"));
    let file = open_rw(&huge).unwrap();
    let start = Instant::now();
    file.write_all_at(b"x", SIZE / 2).unwrap();
    let took = start.elapsed();
    let grown = disk_usage(&store.root().join("forks")) - before;
    println!("the first byte into a gibibyte: {took:?}, {grown} bytes on disk");
    assert!(grown < MIB && own_bytes(store.root(), "try") < MIB, "{grown} bytes");
    let mut around = [0; 3];
    file.read_exact_at(&mut around, SIZE / 2 - 1).unwrap();
    let at = |offset: u64| piece[(offset % MIB) as usize];
    assert_eq!(around, [at(SIZE / 2 - 1), b'x', (SIZE / 2 / MIB).to_le_bytes()[1]]);
    drop(file);
    mount.unmount();
}

#[test]
fn ten_forks_with_one_percent_changed_cost_what_was_changed_and_discarding_gives_it_back() {
    const FILES: usize = 5000;
    let (store, id) = store_of(FILES);
    let mount = Mount::of(store.root()).start();
    fs::create_dir(mount.join(format!("forks/keep@{id}"))).unwrap();
    let before = disk_usage(&store.root().join("forks"));
    let mut rng = Rng::new(3);
    for n in 0..10 {
        let w = fork(&mount, &format!("f{n}"), &id);
        let mut changed = 0;
        for n in (0..FILES).step_by(100) {
            let bytes = rng.bytes(8000);
            fs::write(w.join(format!("d{:04}/f{n:06}", n / 100)), &bytes).unwrap();
            changed += bytes.len() as u64;
        }
        let own = own_bytes(store.root(), &format!("f{n}"));
        println!("fork {n}: {changed} bytes changed, {own} bytes used");
        assert!(own <= changed + changed / 10, "fork {n}: {own} bytes for {changed}");
    }
    let full = disk_usage(&store.root().join("forks"));
    for n in 0..10 {
        pfimg_on(store.root(), ["discard", "--force", &format!("f{n}")]).exits(0);
    }
    wait_until("discarding gives the space back", || {
        disk_usage(&store.root().join("forks")) <= before + 65_536
    });
    println!(
        "ten forks: {} bytes on disk, after discarding {}",
        full - before,
        disk_usage(&store.root().join("forks")) as i64 - before as i64
    );
    mount.unmount();
}
