//! A store and a directory for the tests of applies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::model::{Files, Node, changed, open_up, random, steps, write};
use crate::common::Rng;
use pfimg::Error;
use pfimg::digest::Digest;
use pfimg::ops::apply::{Applying, Hooks, Outcome, carry_out, finish, of_dir, undo};
use pfimg::store::Store;
use pfimg::store::applies::State;

/// A store and a directory, in memory where the machine has such a folder: thousands of cases are made durable.
pub struct Place {
    pub(super) temp: tempfile::TempDir,
    pub store: Store,
    pub dir: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        builder.prefix("pfimg-test-");
        let temp = builder.tempdir_in(memory).or_else(|_| builder.tempdir()).unwrap();
        Self::in_temp(temp)
    }

    pub fn in_temp(temp: tempfile::TempDir) -> Self {
        let root = temp.path().canonicalize().unwrap();
        let store = Store::create(root.join("store")).unwrap();
        let dir = root.join("dir");
        fs::create_dir(&dir).unwrap();
        Self { temp, store, dir }
    }

    /// Begins again with a directory.
    pub fn hold(&mut self, files: &Files) {
        open_up(&self.dir);
        fs::remove_dir_all(&self.dir).unwrap();
        fs::create_dir(&self.dir).unwrap();
        write(&self.dir, files);
        let _ = fs::remove_dir_all(self.store.root().join("refs/applies"));
    }

    pub fn apply(&self, before: &Files, after: &Files, hooks: &dyn Hooks) -> Result<Outcome, Error> {
        apply(&self.store, &self.dir, before, after, hooks)
    }

    pub fn undo(&self, force: bool) -> Result<Outcome, Error> {
        undo(&self.store, &self.dir, force, &())
    }

    pub fn finish(&self) -> Result<Outcome, Error> {
        finish(&self.store, &self.dir, &())
    }

    pub fn state(&self) -> Option<State> {
        of_dir(&self.store, &self.dir).unwrap().last().map(|(_, apply)| apply.state)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        open_up(&self.dir);
        assert!(self.temp.path().exists());
    }
}

/// Applies the difference of two directories to one that is on disk.
pub fn apply(
    store: &Store,
    dir: &Path,
    before: &Files,
    after: &Files,
    hooks: &dyn Hooks,
) -> Result<Outcome, Error> {
    let steps = steps(store, before, after);
    let image = Digest::of(b"the fork");
    carry_out(store, &Applying { dir, fork: "try-2", base: None, image, steps: &steps, branch: None }, hooks)
}

/// Counts calls.
#[derive(Default)]
pub struct Counting(pub AtomicUsize);

impl Hooks for Counting {
    fn call(&self, _: &'static str) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

pub fn first_seed() -> u64 {
    std::env::var("PFIMG_CARRY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}

/// A case by its seed: the directory before and after.
pub fn case(seed: u64) -> (Rng, Files, Files) {
    let mut rng = Rng::new(seed);
    let before = random(&mut rng);
    let after = changed(&mut rng, &before);
    (rng, before, after)
}

pub(super) fn file(content: &[u8]) -> Node {
    Node::File { mode: 0o644, content: content.to_vec(), first: None }
}

pub(super) fn files(all: &[(&str, &str)]) -> Files {
    all.iter().map(|(path, content)| (path.as_bytes().to_vec(), file(content.as_bytes()))).collect()
}
