//! The generated images, which the tests of reading share.

use std::path::Path;
use std::sync::LazyLock;

use crate::common::names;
use crate::common::real::RealStore;

/// How many images the tests of reading generate with the real crates.
pub(super) const IMAGES: u64 = 200;

/// Where their seeds start. Another number gives another store.
pub(super) const FIRST_SEED: u64 = 1000;

/// The generated images, made once for all tests of reading.
pub(super) static GENERATED: LazyLock<RealStore> = LazyLock::new(|| {
    // A static is never dropped, so this store lives in the build's own folder, and the next run removes it.
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated-stores");
    for old in names(&parent).unwrap_or_default() {
        if !Path::new("/proc").join(&old).exists() {
            let _ = std::fs::remove_dir_all(parent.join(old));
        }
    }
    let root = parent.join(std::process::id().to_string());
    let _ = std::fs::remove_dir_all(&root);
    let start = std::time::Instant::now();
    let store = RealStore::generate(&root, FIRST_SEED, IMAGES);
    println!("{} images generated in {:?}", store.images.len(), start.elapsed());
    store
});
