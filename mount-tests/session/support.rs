//! What the tests of sessions share.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::common::cli::Run;
use crate::common::fast::{FastStore, Spec};
use crate::common::mount::Background;
use crate::common::{Mount, Output, system, temp_dir};

/// A store with one image that has a file; its id.
pub(super) fn small_store() -> (FastStore, String) {
    let mut store = FastStore::new();
    let entry = store.file("file", b"content");
    let fs = store.tree(&[entry]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    (store, id)
}

/// A folder to mount at.
pub(super) fn point() -> (tempfile::TempDir, PathBuf) {
    let (dir, path) = temp_dir();
    std::fs::create_dir(path.join("mnt")).unwrap();
    (dir, path.join("mnt"))
}

pub(super) fn read(mount: &Mount, id: &str) -> Vec<u8> {
    std::fs::read(mount.image(id).join("world/fs/file")).unwrap()
}

/// Starts a mount in the background as a user would.
pub(super) fn mount_in_background(store: &Path, point: &Path, args: &[&str]) -> (Output, Background) {
    system::require_fuse();
    let home = point.parent().unwrap();
    let mut all: Vec<&OsStr> = vec!["mount".as_ref(), store.as_ref(), point.as_ref()];
    all.extend(args.iter().map(OsStr::new));
    let mut background = Background { point: point.to_owned(), pid: None };
    let output = Run::new(all).env("HOME", home).run();
    let status = std::fs::read(point.join(".pfimg/status.json")).unwrap_or_default();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap_or_default();
    background.pid = status["pid"].as_u64().map(|pid| pid as u32);
    (output, background)
}

/// Everything below a folder: kind, length, mode and time of change of each path.
pub(super) fn listing(root: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64, i64, i64)> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let times =
            (meta.mode(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        all.insert(path, times);
    }
    all
}
