//! A store that changes while it is mounted: images that other programs take or drop show within a second.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::fast::{FastStore, Spec};
use crate::common::{Mount, errno, hex_digest_of_file, names, temp_dir, wait_at_most, wait_until};
use pf_core::digest::Digest256;
use pf_core::fixture::{
    FixtureCacheCapture, FixtureEffectsCapture, FixtureModelCapture, FixtureSpec, FixtureTraceCapture,
    FixtureWorldCapture,
};
use pf_core::manifest::AgentInfo;
use pf_core::snapshot::Snapshotter;
use pf_core::store::PfStore;

/// What the mount promises.
const PROMISED: Duration = Duration::from_secs(1);
/// How long a test waits before it calls a change lost.
const LOST: Duration = Duration::from_secs(20);

/// Takes a small image with the real snapshot code.
fn snapshot(store: &PfStore, seed: u64, parents: Vec<Digest256>) -> String {
    let spec = FixtureSpec {
        cache_pages: 1,
        page_bytes: 64,
        world_files: 3,
        world_file_bytes: 100,
        model_diff_bytes: 64,
        effects_entries: 2,
        trace_messages: 2,
        seed,
    };
    let agent = AgentInfo { kind: "live".into(), version: "1".into(), fingerprint: "f".into() };
    let snapshotter = Snapshotter::new(
        agent,
        Arc::new(FixtureModelCapture(spec.clone())),
        Arc::new(FixtureCacheCapture(spec.clone())),
        Arc::new(FixtureWorldCapture(spec.clone())),
        Arc::new(FixtureEffectsCapture(spec.clone())),
        Arc::new(FixtureTraceCapture(spec)),
    );
    snapshotter.snapshot(store, parents).unwrap().hex().to_owned()
}

/// Panics unless the middle one of `delays` is within the promise. One late answer on a busy machine is not a broken
/// promise, half of them are.
fn assert_prompt(what: &str, mut delays: Vec<Duration>) {
    delays.sort();
    println!("{what}: {delays:?}");
    let median = delays[delays.len() / 2];
    assert!(median <= PROMISED, "{what} takes {median:?}: {delays:?}");
}

#[test]
fn an_image_that_the_real_snapshot_code_takes_appears_within_a_second_and_latest_moves() {
    let (_dir, root) = temp_dir();
    let store = PfStore::open(root.join("store")).unwrap();
    let first = snapshot(&store, 1, vec![]);
    let mount = Mount::of(store.root()).start();
    assert_eq!(names(&mount.join("images")).unwrap(), [first.as_str()]);
    assert_eq!(std::fs::read_link(mount.join("latest")).unwrap(), Path::new("images").join(&first));
    let mut delays = Vec::new();
    let mut parent = first;
    for seed in 2..7 {
        // A name that the kernel has learnt not to be there must not stay away either: ask for it all the time.
        let id = std::thread::scope(|scope| {
            let taking = scope.spawn(|| {
                snapshot(&store, seed, vec![Digest256::parse(&format!("sha256:{parent}")).unwrap()])
            });
            while !taking.is_finished() {
                let _ = names(&mount.join("images"));
                let _ = std::fs::read_link(mount.join("latest"));
            }
            taking.join().unwrap()
        });
        let taken = Instant::now();
        let link = Path::new("images").join(&id);
        let seen = wait_at_most(LOST, || {
            names(&mount.join("images")).is_ok_and(|names| names.contains(&id))
                && std::fs::read_link(mount.join("latest")).is_ok_and(|target| target == link)
                && names(&mount.join("agents/live"))
                    .is_ok_and(|names| names.iter().any(|n| n.ends_with(&id[..12])))
        });
        assert!(seen.is_some(), "image {id} does not appear");
        delays.push(taken.elapsed());
        assert_eq!(hex_digest_of_file(&mount.join("latest/manifest.json")).unwrap(), id);
        assert_eq!(names(&mount.join("latest/parents")).unwrap(), [parent]);
        parent = id;
    }
    assert_prompt("a new image appears", delays);
    mount.unmount();
}

#[test]
fn a_name_that_was_missing_is_found_once_the_image_exists() {
    let mut store = FastStore::new();
    store.image(&Spec { fingerprint: "there".into(), ..Spec::default() });
    let mount = Mount::of(store.root()).start();
    let mut delays = Vec::new();
    for n in 0..5 {
        let spec = Spec { fingerprint: format!("later {n}"), ..Spec::default() };
        let manifest = serde_json::to_vec(&store.manifest(&spec)).unwrap();
        let id = crate::common::hex_digest(&manifest);
        for name in [id.clone(), id[..10].to_owned(), format!("sha256:{id}")] {
            assert_eq!(errno(mount.join("images").join(name).symlink_metadata()), libc::ENOENT);
        }
        store.image_of(&manifest);
        let seen = wait_at_most(LOST, || {
            [id.clone(), id[..10].to_owned(), format!("sha256:{id}")]
                .iter()
                .all(|name| mount.join("images").join(name).join("model/base").is_file())
        });
        delays.push(seen.unwrap_or_else(|| panic!("image {id} stays missing")));
    }
    assert_prompt("a missing name is found", delays);
    mount.unmount();
}

#[test]
fn an_image_whose_marker_is_removed_vanishes_from_listings_and_known_paths() {
    let mut store = FastStore::new();
    let ids: Vec<String> = (0..6)
        .map(|n| {
            let entry = store.file("dir/file", format!("content {n}").as_bytes());
            let fs = store.tree(&[entry]);
            let created_at = Some(format!("2026-11-20T09:20:5{n}Z"));
            store.image(&Spec { fs: Some(fs), fingerprint: n.to_string(), created_at, ..Spec::default() })
        })
        .collect();
    let mount = Mount::of(store.root()).start();
    let file = |id: &str| mount.image(id).join("world/fs/dir/file");
    let mut delays = Vec::new();
    for (n, id) in ids.iter().enumerate().skip(1).rev() {
        // The kernel knows everything about it at this point.
        assert!(names(&mount.join("images")).unwrap().contains(id));
        assert_eq!(std::fs::read(file(id)).unwrap(), format!("content {n}").as_bytes());
        assert_eq!(names(file(id).parent().unwrap()).unwrap(), ["file"]);
        assert_eq!(std::fs::read_link(mount.join("latest")).unwrap(), Path::new("images").join(id));
        let short = mount.join("images").join(&id[..12]);
        assert_eq!(std::fs::read_link(&short).unwrap(), Path::new(id));
        std::fs::remove_file(store.marker_path(id)).unwrap();
        let gone = wait_at_most(LOST, || {
            names(&mount.join("images")).is_ok_and(|names| !names.contains(id))
                && [file(id), mount.image(id), short.clone()].iter().all(|path| {
                    path.symlink_metadata().is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT))
                })
                && std::fs::read_link(mount.join("latest"))
                    .is_ok_and(|target| target == Path::new("images").join(&ids[n - 1]))
                && names(&mount.join("agents/test")).is_ok_and(|names| names.len() == n)
        });
        delays.push(gone.unwrap_or_else(|| panic!("image {id} does not vanish")));
        assert_eq!(std::fs::read(file(&ids[0])).unwrap(), b"content 0", "the others stay");
    }
    assert_prompt("a removed image vanishes", delays);
    mount.unmount();
}

#[test]
fn an_image_that_comes_back_is_there_again() {
    let mut store = FastStore::new();
    store.image(&Spec { fingerprint: "stays".into(), ..Spec::default() });
    let id = store.image(&Spec { fingerprint: "comes and goes".into(), ..Spec::default() });
    let marker = std::fs::read(store.marker_path(&id)).unwrap();
    let mount = Mount::of(store.root()).start();
    let manifest = mount.image(&id).join("manifest.json");
    let known = [mount.image(&id), mount.image(&id).join("model/base"), manifest.clone()];
    for _ in 0..5 {
        wait_until("the image is there", || std::fs::read(&manifest).is_ok_and(|bytes| bytes == marker));
        assert!(known.iter().all(|path| path.exists()));
        // At once, before anything else can have noticed that it was there.
        std::fs::remove_file(store.marker_path(&id)).unwrap();
        wait_until("the image is gone", || known.iter().all(|path| path.symlink_metadata().is_err()));
        std::fs::write(store.marker_path(&id), &marker).unwrap();
    }
    mount.unmount();
}

#[test]
fn a_store_without_images_shows_the_first_one_when_it_comes() {
    let (_dir, root) = temp_dir();
    let store = PfStore::open(root.join("store")).unwrap();
    let mount = Mount::of(store.root()).start();
    assert!(names(&mount.join("images")).unwrap().is_empty());
    assert_eq!(errno(mount.join("latest").symlink_metadata()), libc::ENOENT);
    let id = snapshot(&store, 1, vec![]);
    wait_until("the first image appears", || {
        names(&mount.join("images")).is_ok_and(|names| names == [id.clone()])
            && hex_digest_of_file(&mount.join("latest/manifest.json")).is_ok_and(|hash| hash == id)
    });
    mount.unmount();
}

#[test]
fn files_that_are_not_markers_are_not_images() {
    let mut store = FastStore::new();
    let id = store.image(&Spec::default());
    let mount = Mount::of(store.root()).start();
    let images = store.root().join("images");
    for name in
        ["README", "x.json", &format!("{}.json.tmp", "a".repeat(64)), &format!("{}.json", "A".repeat(64))]
    {
        std::fs::write(images.join(name), b"{}").unwrap();
    }
    std::fs::create_dir(images.join("folder")).unwrap();
    let late = store.image(&Spec { fingerprint: "late".into(), ..Spec::default() });
    let mut both = vec![id, late];
    both.sort();
    // The late one shows that the mount has looked at the folder after all of these were made.
    wait_until("the late image appears", || names(&mount.join("images")).is_ok_and(|names| names == both));
    mount.unmount();
}

/// Sets the flag when dropped.
struct EndOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn readers_of_one_image_never_notice_that_others_come_and_go() {
    let mut store = FastStore::new();
    let contents: Vec<Vec<u8>> =
        (0..20).map(|n| crate::common::Rng::new(n).bytes(3000 + 9000 * n as usize)).collect();
    let entries: Vec<_> =
        contents.iter().enumerate().map(|(n, content)| store.file(&format!("dir/{n:02}"), content)).collect();
    let fs = store.tree(&entries);
    let stays = store.image(&Spec { fs: Some(fs.clone()), fingerprint: "stays".into(), ..Spec::default() });
    // A cache that cannot hold everything, so that there is always something to fill and something to drop.
    let mount = Mount::of(store.root()).args(["--cache-size", "400KiB"]).start();
    let done = std::sync::atomic::AtomicBool::new(false);
    let world = mount.image(&stays).join("world/fs/dir");
    std::thread::scope(|scope| {
        // The readers end whatever happens here.
        let end = EndOnDrop(&done);
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (world, contents, done) = (&world, &contents, &done);
                scope.spawn(move || {
                    let mut rng = crate::common::Rng::new(reader);
                    let mut reads = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let n = rng.below(20) as usize;
                        let bytes = std::fs::read(world.join(format!("{n:02}"))).unwrap();
                        assert!(bytes == contents[n], "file {n} has wrong bytes");
                        assert_eq!(names(world).unwrap().len(), 20);
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        // They share the tree and with it the inodes of its files.
        for n in 0..30 {
            let spec = Spec { fs: Some(fs.clone()), fingerprint: n.to_string(), ..Spec::default() };
            let id = store.image(&spec);
            let path = mount.image(&id).join("world/fs/dir/07");
            wait_until("the new image can be read", || std::fs::read(&path).is_ok_and(|b| b == contents[7]));
            wait_until("it is listed", || {
                names(&mount.join("images")).is_ok_and(|names| names.contains(&id))
            });
            std::fs::remove_file(store.marker_path(&id)).unwrap();
            wait_until("it is gone", || {
                path.symlink_metadata().is_err()
                    && names(&mount.join("images")).is_ok_and(|names| !names.contains(&id))
            });
        }
        drop(end);
        let reads: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(reads > 100, "only {reads} reads");
    });
    mount.unmount();
}
