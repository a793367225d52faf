//! Support for the mount tests: a mount that always ends, the command, and stores.
//!
//! Only the crash packs of failing tests and the tests of the library (`library.rs`) use the product's code. All other mounts are
//! the real binary on the real `/dev/fuse`. Without `/dev/fuse` the tests fail and say so.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "every test target uses its own part of this")]

pub mod cli;
pub mod failing;
pub mod fast;
pub mod forks;
pub mod mount;
pub mod real;
pub mod system;
pub mod tree;

pub use cli::{Output, pfimg};
pub use mount::Mount;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::Digest as _;

/// The program under test.
pub const PFIMG: &str = env!("CARGO_BIN_EXE_pfimg");

/// How long a condition may take to come true. It is long, since it only limits how long a broken build hangs.
pub const PATIENCE: Duration = Duration::from_mins(1);

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

/// Waits until `condition` holds; panics with `what` if it does not in time.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) -> Duration {
    wait_at_most(PATIENCE, condition).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// Waits until `condition` holds and says how long that took, or `None` if it did not within `limit`.
pub fn wait_at_most(limit: Duration, mut condition: impl FnMut() -> bool) -> Option<Duration> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return None;
        }
        // No test relies on this delay: it only keeps the polling from using a whole core.
        std::thread::sleep(Duration::from_millis(3));
    }
    Some(start.elapsed())
}

/// Runs `work` in a thread and panics if it is not done within [`PATIENCE`]: what hangs is a failure, not a hang.
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("hangs: {what}"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the worker ended without an answer"),
        },
    }
}

/// The sha256 of `bytes` as 64 hex digits.
pub fn hex_digest(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// `bytes` in lowercase hex.
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// The sha256 of a file's content, read piece by piece.
pub fn hex_digest_of_file(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// The 64 hex digits of a digest that is written `sha256:…`.
pub fn bare(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
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

/// Splitmix64: reproducible numbers from a seed that a failing test can print.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x5eed_5eed_5eed_5eed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// `len` bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        bytes
    }
}
