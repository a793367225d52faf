//! Real threads that take a fork's name away and make the fork again. `PFIMG_ROUNDS` sets how often. The unit
//! tests in `src/fork/interleavings.rs` search for the moments; this one waits for them.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use pfimg::fork::{Fork, Ino, Io, NewFile, Options, Registry};
use pfimg::layers::world::Kind;
use pfimg::store::StoreIo;

use super::support::*;

/// Before a discard looked at its fork again, about one round in five lost a fork.
const ROUNDS: usize = 50;

/// Makes nothing durable: the threads are to meet each other, not to wait for the disk.
struct Unsynced;
impl StoreIo for Unsynced {
    fn sync_file(&self, _: &Path, _: &File) -> io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}
impl Io for Unsynced {
    fn sync_data(&self, _: &File) -> io::Result<()> {
        Ok(())
    }
}

type Made = Option<Arc<Fork>>;

fn takes_writes(fork: &Fork) -> bool {
    let name = format!("f{}", fork.version().1);
    fork.create(Ino::FS, name.as_bytes(), &NewFile::new(Kind::File, 0o644, 0, 0)).is_ok()
}

fn start(
    registry: &Arc<Registry>,
    barrier: &Arc<Barrier>,
    thread: impl FnOnce(&Registry) -> Made + Send + 'static,
) -> JoinHandle<Made> {
    let (registry, barrier) = (Arc::clone(registry), Arc::clone(barrier));
    thread::spawn(move || {
        barrier.wait();
        thread(&registry)
    })
}

/// Asserts what must hold for forks that take writes, and for listed forks.
fn judge(dir: &Path, registry: &Registry, made: impl Iterator<Item = Arc<Fork>>, round: usize) {
    let head =
        |name: &str| fs::read_to_string(dir.join(format!("forks/heads/{name}.json"))).unwrap_or_default();
    for fork in made.filter(|fork| takes_writes(fork)) {
        let name = fork.name();
        assert!(head(&name).contains(fork.uid()), "round {round}: {name} takes writes and has no head");
        assert!(registry.contains(&name), "round {round}: {name} takes writes and is not listed");
    }
    for name in registry.names() {
        assert!(!head(&name).is_empty(), "round {round}: {name} is listed and has no head");
        assert_eq!(registry.get(&name).unwrap().name(), name, "round {round}");
    }
}

#[test]
fn threads_that_remove_and_reuse_a_name_lose_no_fork_and_damage_no_branch() {
    let rounds = std::env::var("PFIMG_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    for renames in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::default());
        let (image, _) = images.sample();
        let options = Options { io: Arc::new(Unsynced), ..Options::default() };
        let registry = Arc::new(Registry::open(dir.path(), images.clone(), options).unwrap());
        for round in 0..rounds {
            let first = registry.create("n", Some(image)).unwrap();
            assert!(takes_writes(&first));
            // No thread touches the branch: it rests on what the fork rests on.
            drop(registry.branch(&first, &format!("x{round}")).unwrap());
            let barrier = Arc::new(Barrier::new(3));
            let threads = [
                start(&registry, &barrier, |registry| registry.discard("n").ok().and(None)),
                start(&registry, &barrier, move |registry| {
                    if renames { registry.rename("n", "m") } else { registry.discard("n") }.ok().and(None)
                }),
                start(&registry, &barrier, move |registry| {
                    (0..100_000).find_map(|_| registry.create("n", Some(image)).ok())
                }),
            ];
            let made: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
            judge(dir.path(), &registry, made.into_iter().chain([first]), round);
            for name in ["n", "m"] {
                let _ = registry.discard(name);
            }
        }
        drop(registry);
        let registry = open(dir.path(), &images);
        assert_eq!(registry.names().len(), rounds);
        for name in registry.names() {
            let fork = registry.get(&name).unwrap();
            assert_eq!(fork.damage(), None, "{name}, which no thread touched");
            assert!(walk(&fork, Ino::FS).keys().any(|path| path.starts_with(b"f")), "{name} lost its file");
        }
    }
}
