//! The files of the checkout.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the checkout.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a directory with an extension, as paths from the top of the checkout.
pub fn files(dir: &str, extension: &str) -> BTreeSet<PathBuf> {
    let (mut found, mut todo) = (BTreeSet::new(), vec![top().join(dir)]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|end| end == extension) {
                found.insert(path.strip_prefix(top()).unwrap().to_owned());
            }
        }
    }
    found
}
