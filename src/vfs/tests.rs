use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::audit::Log;
use crate::cache::{Cache, CacheConfig};
use crate::control::{MountInfo, Numbering};
use crate::digest::Digest;
use crate::ops::fixture::{self, FixtureSpec};
use crate::store::Store;
use crate::store::manifest::tests::sample;

/// A store with one image of one file, `src/file_0000.rs`.
fn vfs() -> (tempfile::TempDir, Vfs, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::create(dir.path().join("store")).unwrap());
    let spec = FixtureSpec { world_files: 1, cache_pages: 0, ..FixtureSpec::default() };
    let layers = fixture::build(&spec, &mut |bytes| store.blobs().put(bytes)).unwrap();
    let mut manifest = sample();
    manifest.world.fs = layers.world_fs;
    let id = store.put_manifest(&manifest).unwrap();
    let cache_dir = dir.path().join("cache");
    let limits = CacheConfig { heap_bytes: 1 << 20, disk_bytes: 1 << 20, dir: cache_dir.clone() };
    let cache = Arc::new(Cache::new(Arc::clone(&store), &limits));
    let config = VfsConfig {
        mine: false,
        uid: 0,
        gid: 0,
        reveal_secrets: false,
        xattrs: false,
        inodes: Numbering::Shared,
        seal: SealPolicy::Manual,
        session_secret: None,
        writeback: false,
        read_only: false,
        tree_bytes: 1 << 20,
    };
    let info = MountInfo {
        pid: 1,
        version: String::new(),
        store: store.root().to_owned(),
        mountpoint: PathBuf::new(),
        cache_dir,
        log: None,
        socket: None,
        protocol: crate::control::protocol::VERSION,
        started_at: chrono::Utc::now(),
        session_secret: None,
        inodes: Numbering::Shared,
    };
    (dir, Vfs::new(store, cache, config, info, Log::off()), id)
}

#[test]
fn a_name_that_is_not_in_a_tree_is_absent_for_ever_and_elsewhere_not_found_for_now() {
    let (_dir, vfs, id) = vfs();
    let find = |parent, name: &str| vfs.lookup(parent, name.as_bytes());
    let mut folder = 1;
    for name in ["images", &id.hex(), "world", "fs", "src"] {
        // A name that may be added at any time must be asked for each time. In `/` there are only the mount's own names.
        assert_eq!(find(folder, "nothing").is_ok(), name == "src" || folder == 1);
        folder = find(folder, name).unwrap().attr.ino;
    }
    assert_ne!(find(folder, "file_0000.rs").unwrap().attr.ino, 0);
    let absent = find(folder, ".gitignore").unwrap();
    assert_eq!((absent.attr.ino, absent.entry_ttl), (0, FOREVER));
}
