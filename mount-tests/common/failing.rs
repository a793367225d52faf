//! What a random test leaves behind when it fails: its seed on stderr, and a crash pack that says how to run it again.

use std::path::{Path, PathBuf};

use pfimg::crashpack::Crashpack;

/// A random program that is running. Dropped by a panic, it keeps a crash pack in `target/tmp/crashpacks`.
#[must_use]
pub struct Program {
    /// What it does, in a word or two.
    pub what: &'static str,
    pub seed: u64,
    /// The command that runs it again, and it alone.
    pub again: String,
}

/// Where the packs are kept.
pub fn packs() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("crashpacks")
}

impl Drop for Program {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("{}: failed with seed {}; again: {}", self.what, self.seed, self.again);
        let pack = Crashpack::new()
            .with_trace("complete", format!("a random program failed: {}", self.what))
            .with_seed("random", self.seed)
            .with_metadata("again", &self.again);
        match pack.keep_in(&packs()) {
            Ok(dir) => eprintln!("its crash pack is {}", dir.display()),
            Err(error) => eprintln!("{error}"),
        }
    }
}
