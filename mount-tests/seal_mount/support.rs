//! What the tests of seals through a mount share.

use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::common::Mount;
use crate::common::cli::pfimg_on;
use crate::common::fast::FastStore;
use crate::common::forks::world;

pub(super) fn manual(store: &FastStore) -> Mount {
    Mount::of(store.root()).args(["--seal", "manual"]).start()
}

/// `pfimg seal`, which prints the image's id.
pub(super) fn seal(store: &FastStore, args: &[&str]) -> String {
    let out = pfimg_on(store.root(), ["seal"].iter().chain(args)).exits(0);
    out.stdout.trim().strip_prefix("sha256:").unwrap_or_else(|| panic!("{out:?}")).to_owned()
}

pub(super) fn verify(store: &FastStore) {
    pfimg_on(store.root(), ["verify"]).exits(0);
}

pub(super) fn snaps(mount: &Mount, name: &str) -> Vec<String> {
    let dir = mount.join("forks").join(name).join(".snap");
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

pub(super) fn world_of(mount: &Mount, name: &str) -> PathBuf {
    world(mount, name)
}

/// Kind and mode, owners, time, links, size and content of everything below a folder.
pub(super) fn all_of(root: &Path) -> std::collections::BTreeMap<Vec<u8>, String> {
    let mut all = std::collections::BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_vec()
        } else if meta.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let shown = format!(
            "{:o} {}:{} {}.{} links {} size {} {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink(),
            content.len(),
            content.escape_ascii()
        );
        all.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), shown);
    }
    all
}
