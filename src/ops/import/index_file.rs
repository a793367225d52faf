//! The files that hold the indices of imports.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::index::Index;
use crate::cache;
use crate::digest::Digest;
use crate::store::Store;

/// Returns the image that the last import of a directory into a store made, from its index in `index_dir`.
pub(super) fn last_image(store: &Store, dir: &Path, index_dir: &Path) -> Option<Digest> {
    let bytes = fs::read(index_dir.join(index_name(store, dir))).ok()?;
    Index::parse(&bytes)?.image
}

/// Returns the name of the index of one store and one directory.
pub(super) fn index_name(store: &Store, dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let names = [store.root().as_os_str().as_bytes(), dir.as_os_str().as_bytes()].join(&0);
    format!("{}.idx", &Digest::of(&names).hex()[..32])
}

/// Writes an index in one step.
pub(super) fn keep_index(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    cache::folder::make_inside(dir.parent().unwrap_or(dir), dir)?;
    let mut temp = tempfile::NamedTempFile::new_in(dir)?;
    temp.write_all(bytes)?;
    temp.persist(path)?;
    Ok(())
}
