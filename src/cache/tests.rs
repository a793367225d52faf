//! Tests of the cache.

use super::*;
use std::sync::Barrier;

fn setup(heap_bytes: u64, disk_bytes: u64) -> (tempfile::TempDir, Arc<Store>, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::create(dir.path().join("store")).unwrap());
    let config = CacheConfig { heap_bytes, disk_bytes, dir: dir.path().join("cache") };
    let cache = Cache::new(Arc::clone(&store), &config);
    (dir, store, cache)
}

fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed * 2 + 1;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) as u8
        })
        .collect()
}

#[test]
fn small_and_large_blobs_come_back_whole_and_are_filled_once() {
    let (_dir, store, cache) = setup(64 << 20, 64 << 20);
    for len in [0usize, 10, (LARGE - 1) as usize, LARGE as usize, 3 << 20] {
        let bytes = payload(len as u64, len);
        let digest = store.blobs().put(&bytes).unwrap();
        let before = cache.stats().fills;
        for declared in [Some(len as u64), None, Some(len as u64)] {
            assert_eq!(&*cache.get(&digest, declared).unwrap(), bytes.as_slice());
        }
        assert_eq!(cache.stats().fills, before + 1, "{len}");
    }
}

#[test]
fn many_threads_that_ask_at_once_share_one_fill() {
    let (_dir, store, cache) = setup(8 << 20, 64 << 20);
    for len in [1000usize, 4 << 20] {
        let bytes = payload(9, len);
        let digest = store.blobs().put(&bytes).unwrap();
        let before = cache.stats().fills;
        let barrier = Barrier::new(16);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    barrier.wait();
                    assert_eq!(cache.get(&digest, Some(len as u64)).unwrap().len(), len);
                });
            }
        });
        assert_eq!(cache.stats().fills, before + 1);
    }
}

#[test]
fn the_budget_holds_and_what_is_being_read_stays_valid() {
    let (_dir, store, cache) = setup(1 << 20, 4 << 20);
    let small: Vec<_> = (0..64).map(|i| payload(i, 64 << 10)).collect();
    let large: Vec<_> = (0..6).map(|i| payload(100 + i, 2 << 20)).collect();
    let mut held = Vec::new();
    for bytes in small.iter().chain(&large) {
        let digest = store.blobs().put(bytes).unwrap();
        held.push((cache.get(&digest, Some(bytes.len() as u64)).unwrap(), bytes));
        let stats = cache.stats();
        assert!(stats.heap_bytes <= 1 << 20 && stats.mapped_bytes <= 4 << 20, "{stats:?}");
    }
    assert!(cache.stats().evictions > 50);
    for (payload, bytes) in held {
        assert_eq!(&*payload, bytes.as_slice());
    }
    assert!(walk_bytes(cache.dir()) <= 4 << 20, "evicted files are gone from the folder");
}

fn walk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            if entry.path().is_dir() { walk_bytes(&entry.path()) } else { entry.metadata().unwrap().len() }
        })
        .sum()
}

#[test]
fn a_blob_larger_than_the_budget_is_filled_once_while_it_is_the_last_used() {
    let (_dir, store, cache) = setup(1 << 20, 1 << 20);
    let bytes = payload(5, 5 << 20);
    let digest = store.blobs().put(&bytes).unwrap();
    for _ in 0..5 {
        assert_eq!(cache.get(&digest, Some(bytes.len() as u64)).unwrap().len(), bytes.len());
    }
    assert_eq!(cache.stats().fills, 1);
}

#[test]
fn ranges_of_a_blob_that_cannot_be_kept_are_read_frame_by_frame_and_nothing_is_written() {
    let (_dir, store, cache) = setup(1 << 20, 4 << 20);
    let bytes = payload(5, (9 << 20) + 77);
    let size = bytes.len() as u64;
    let digest = store.blobs().put(&bytes).unwrap();
    let small = payload(6, 2 << 20);
    let small_digest = store.blobs().put(&small).unwrap();
    for (offset, length) in
        [(0, 10), ((1 << 20) - 5, 4096), (size - 3, 100), (size + 5, 10), (3 << 20, 3 << 20)]
    {
        let (payload, range) = cache.range(&digest, size, offset, length).unwrap();
        let start = offset.min(size) as usize;
        assert!(payload[range] == bytes[start..(start + length).min(bytes.len())], "{offset} {length}");
        assert_eq!(cache.stats().mapped_bytes, 0);
    }
    // A small stretch can be kept.
    let (payload, range) = cache.range(&small_digest, 2 << 20, 100, 50).unwrap();
    assert_eq!(payload[range], small[100..150]);
    assert_eq!(cache.stats().mapped_bytes, 2 << 20);
    assert_eq!(cache.range(&digest, size + 1, 0, 10).unwrap_err().code(), "blob-size-mismatch");
}

#[test]
fn damage_before_or_behind_the_range_is_found_before_a_byte_is_served() {
    let (_dir, store, cache) = setup(1 << 20, 4 << 20);
    let bytes = payload(7, 6 << 20);
    let digest = store.blobs().put(&bytes).unwrap();
    let path = store.blobs().path(&digest);
    let mut file = std::fs::read(&path).unwrap();
    let at = file.len() - 100_000;
    file[at] ^= 1;
    std::fs::write(&path, file).unwrap();
    assert!(cache.range(&digest, bytes.len() as u64, 0, 10).is_err());
}

#[test]
fn a_false_size_fails_only_for_its_own_request() {
    let (_dir, store, cache) = setup(1 << 20, 8 << 20);
    for len in [1000usize, 2 << 20] {
        let bytes = payload(1, len);
        let digest = store.blobs().put(&bytes).unwrap();
        for lie in [1, len as u64 - 1, len as u64 + 1, 100 << 20] {
            assert_eq!(cache.get(&digest, Some(lie)).unwrap_err().code(), "blob-size-mismatch");
        }
        assert_eq!(&*cache.get(&digest, Some(len as u64)).unwrap(), bytes.as_slice());
        assert_eq!(cache.get(&digest, Some(1)).unwrap_err().code(), "blob-size-mismatch");
    }
}

#[test]
fn files_of_an_earlier_run_are_used_after_they_were_verified_again() {
    let (dir, store, cache) = setup(1 << 20, 64 << 20);
    let (good, bad) = (payload(1, 2 << 20), payload(2, 2 << 20));
    let (good_digest, bad_digest) = (store.blobs().put(&good).unwrap(), store.blobs().put(&bad).unwrap());
    cache.get(&good_digest, None).unwrap();
    cache.get(&bad_digest, None).unwrap();
    let file = |digest: &Digest| {
        let hex = digest.hex();
        dir.path().join("cache").join(&hex[..2]).join(hex)
    };
    drop(cache);
    // Damage one in place, as a bad disk would.
    let damaged = file(&bad_digest);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[77] ^= 1;
    std::fs::remove_file(&damaged).unwrap();
    std::fs::write(&damaged, bytes).unwrap();
    // Without the blob in the store, only the verified file can serve it.
    std::fs::remove_file(store.blobs().path(&good_digest)).unwrap();
    let config = CacheConfig { heap_bytes: 1 << 20, disk_bytes: 64 << 20, dir: dir.path().join("cache") };
    let cache = Cache::new(Arc::clone(&store), &config);
    cache.scan_existing();
    assert_eq!(cache.stats().mapped_bytes, 4 << 20);
    assert_eq!(&*cache.get(&good_digest, Some(2 << 20)).unwrap(), good.as_slice());
    assert_eq!(&*cache.get(&bad_digest, Some(2 << 20)).unwrap(), bad.as_slice());
    assert_eq!(std::fs::read(file(&bad_digest)).unwrap(), bad, "the damaged file was replaced");
}

#[test]
fn the_folder_may_be_deleted_at_any_time() {
    let (dir, store, cache) = setup(1 << 20, 64 << 20);
    let bytes = payload(1, 2 << 20);
    let digest = store.blobs().put(&bytes).unwrap();
    let held = cache.get(&digest, None).unwrap();
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    assert_eq!(&*held, bytes.as_slice());
    let other = payload(2, 2 << 20);
    let digest = store.blobs().put(&other).unwrap();
    assert_eq!(&*cache.get(&digest, None).unwrap(), other.as_slice());
}

#[test]
fn a_folder_that_was_there_keeps_its_mode_and_what_is_made_in_it_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, store, cache) = setup(1 << 20, 64 << 20);
    let folder = dir.path().join("cache");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let digest = store.blobs().put(&payload(1, 2 << 20)).unwrap();
    cache.get(&digest, None).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let hex = digest.hex();
    let shard = folder.join(&hex[..2]);
    assert_eq!([mode(&folder), mode(&shard), mode(&shard.join(&hex))], [0o1777, 0o700, 0o400]);
}

#[test]
fn a_file_of_another_user_or_of_another_kind_is_not_used() {
    let (dir, store, _) = setup(1 << 20, 64 << 20);
    let bytes = payload(1, 2 << 20);
    let digest = store.blobs().put(&bytes).unwrap();
    let hex = digest.hex();
    let shard = dir.path().join("cache").join(&hex[..2]);
    std::fs::create_dir_all(&shard).unwrap();
    let file = shard.join(&hex);
    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, &bytes).unwrap();
    let plant = |what: &str| match what {
        "a link" => std::os::unix::fs::symlink(&elsewhere, &file).unwrap(),
        "a fifo" => {
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, 0o600.into(), 0).unwrap();
        }
        _ => {
            std::fs::write(&file, &bytes).unwrap();
            std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
        }
    };
    let mut plants = vec!["a link", "a fifo"];
    if rustix::process::geteuid().is_root() {
        plants.push("somebody else's file");
    }
    for what in plants {
        let _ = std::fs::remove_file(&file);
        plant(what);
        let config = CacheConfig { heap_bytes: 1 << 20, disk_bytes: 64 << 20, dir: dir.path().join("cache") };
        let cache = Cache::new(Arc::clone(&store), &config);
        assert_eq!(&*cache.get(&digest, Some(2 << 20)).unwrap(), bytes.as_slice(), "{what}");
        assert_eq!(cache.mapped.get(&digest).unwrap().len(), 2 << 20, "{what}");
        assert_eq!(std::fs::read(&elsewhere).unwrap(), bytes, "{what}: what a link led to is untouched");
    }
}

#[test]
fn a_folder_that_cannot_be_made_costs_speed_and_not_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::create(dir.path().join("store")).unwrap());
    std::fs::write(dir.path().join("file"), "").unwrap();
    let config =
        CacheConfig { heap_bytes: 1 << 20, disk_bytes: 64 << 20, dir: dir.path().join("file/cache") };
    let cache = Cache::new(Arc::clone(&store), &config);
    let bytes = payload(1, 2 << 20);
    let digest = store.blobs().put(&bytes).unwrap();
    assert_eq!(&*cache.get(&digest, None).unwrap(), bytes.as_slice());
}

#[test]
fn damage_is_reported_each_time_and_mended_when_the_blob_is_back() {
    let (_dir, store, cache) = setup(1 << 20, 8 << 20);
    for len in [100usize, 2 << 20] {
        let bytes = payload(3, len);
        let digest = store.blobs().put(&bytes).unwrap();
        let path = store.blobs().path(&digest);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() - 3]).unwrap();
        for declared in [Some(len as u64), None] {
            assert!(cache.get(&digest, declared).is_err());
        }
        std::fs::write(&path, &good).unwrap();
        assert_eq!(&*cache.get(&digest, None).unwrap(), bytes.as_slice());
    }
}
