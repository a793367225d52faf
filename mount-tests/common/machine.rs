//! The program under test, the user, and folders.

use std::path::{Path, PathBuf};

/// The program under test.
pub const PFIMG: &str = env!("CARGO_BIN_EXE_pfimg");

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Whether these tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A temporary folder with its real path. Deleted when dropped.
///
/// Never below `target/`: the real capture leaves out every path that has a folder of that name in it.
pub fn temp_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("pfimg-test-").tempdir().expect("a temporary folder");
    let path = dir.path().canonicalize().expect("the path of a folder just made");
    (dir, path)
}

/// The error number of a file operation that must have failed.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(value) => panic!("expected an error, got {value:?}"),
        Err(error) => error.raw_os_error().unwrap_or_else(|| panic!("no errno in {error:?}")),
    }
}

/// The names in a folder, sorted.
pub fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
