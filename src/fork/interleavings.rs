//! Tests forks under a scheduler that searches interleavings, see [`crate::sync`].
//!
//! Each test asserts what must hold after every order of its threads' steps. A plain `cargo test` tries some hundred orders;
//! `scripts/interleavings.sh` tries many more.

mod support;

use std::sync::Arc;

use super::{Fork, Registry};
use crate::error::ErrorKind;
use crate::sync::search;
use support::{World, empty, ended, read, write};

/// Content that is too long for the journal, so that it lies in a data file.
fn large(byte: u8) -> Vec<u8> {
    vec![byte; super::INLINE as usize + 4096]
}

/// Makes a fork as soon as its name is free.
fn made_anew(registry: &Registry, name: &str) -> Option<Arc<Fork>> {
    (0..20).find_map(|_| {
        crate::sync::step();
        registry.create(name, Some(empty())).ok()
    })
}

/// Runs a discard, `second`, and a thread that makes a fork of the freed name, all at once.
fn taken_away_twice(second: fn(&Registry) -> Option<Arc<Fork>>) {
    let world = World::new();
    let first = world.fork("N", "of N");
    drop(world.registry.branch(&first, "X").unwrap());
    let threads = [
        world.run(|registry| registry.discard("N").ok().and(None)),
        world.run(second),
        world.run(|registry| made_anew(registry, "N")),
    ];
    let made = ended(threads).into_iter().flatten().chain([first]).collect();
    let world = world.judge(made);
    assert_eq!(world.read("X", "of N").as_deref(), Some(&b"of N"[..]), "an untouched branch lost a file");
}

#[test]
fn no_fork_is_lost_and_no_branch_is_damaged_when_two_threads_discard_a_fork_and_a_third_makes_it_again() {
    search(|| taken_away_twice(|registry| registry.discard("N").ok().and(None)));
}

#[test]
fn no_fork_is_lost_and_no_branch_is_damaged_when_a_fork_is_discarded_and_renamed_and_made_again() {
    search(|| taken_away_twice(|registry| registry.rename("N", "M").ok().and(None)));
}

#[test]
fn a_fork_that_is_discarded_while_another_thread_reads_it_back_takes_no_write() {
    search(|| {
        let world = World::new();
        drop(world.fork("N", "of N"));
        let world = world.reopen();
        let threads = [
            world.run(|registry| registry.discard("N").ok().and(None)),
            world.run(|registry| registry.get("N").ok()),
            world.run(|registry| registry.get("N").ok()),
        ];
        let got: Vec<_> = ended(threads).into_iter().flatten().collect();
        for fork in &got {
            assert!(write(fork, "late", b"late").is_err(), "a discarded fork takes a write");
        }
        assert!(world.judge(got).registry.names().is_empty());
    });
}

#[test]
fn a_fork_that_is_restored_while_it_is_discarded_and_made_again_is_one_of_the_two_and_whole() {
    search(|| {
        let world = World::new();
        let first = world.fork("N", "of N");
        let frozen = first.freeze().unwrap();
        let (image, sealed) = world.images.seal(&frozen).unwrap();
        first.rebase(&frozen, image, &[], &sealed).unwrap();
        drop(frozen);
        drop(world.registry.branch(&first, "X").unwrap());
        let fork = Arc::clone(&first);
        let threads = [
            world.run(move |registry| registry.restore("N", &fork, image, &|_| Ok(())).ok()),
            world.run(|registry| registry.discard("N").ok().and(None)),
            world.run(|registry| made_anew(registry, "N")),
        ];
        let made = ended(threads).into_iter().flatten().chain([first]).collect();
        let world = world.judge(made);
        assert_eq!(world.read("X", "of N").as_deref(), Some(&b"of N"[..]));
    });
}

#[test]
fn a_branch_made_while_its_source_is_discarded_holds_all_of_it_or_is_not_made() {
    search(|| {
        let world = World::new();
        let source = world.fork("N", "of N");
        write(&source, "large", &large(1)).unwrap();
        let fork = Arc::clone(&source);
        let branch = world.run(move |registry| registry.branch(&fork, "B").ok());
        let fork = Arc::clone(&source);
        let tidied = world.run(move |_| fork.checkpoint().ok().and(None));
        let discarded = world.run(|registry| registry.discard("N").ok().and(None));
        let made: Vec<_> = ended([branch, tidied, discarded]).into_iter().flatten().chain([source]).collect();
        let is_there = made.len() > 1;
        let world = world.judge(made);
        assert_eq!(world.registry.contains("B"), is_there);
        if is_there {
            assert_eq!(world.read("B", "of N").as_deref(), Some(&b"of N"[..]));
            assert!(world.read("B", "large") == Some(large(1)), "the branch has another content");
        }
    });
}

/// Writes in sequence, each acknowledged before the next: a small file, a large one, then both again.
fn written(fork: &Fork) {
    write(fork, "small", b"1").unwrap();
    write(fork, "large", &large(1)).unwrap();
    write(fork, "small", b"2").unwrap();
    write(fork, "large", &large(2)).unwrap();
}

fn is_all_written(world: &World, name: &str) {
    assert_eq!(world.read(name, "of N").as_deref(), Some(&b"of N"[..]));
    assert_eq!(world.read(name, "small").as_deref(), Some(&b"2"[..]));
    assert!(world.read(name, "large") == Some(large(2)), "the large file has another content");
}

/// Asserts that a fork is a prefix of [`written`]: a later write is there only if all earlier ones are.
fn is_a_moment(fork: &Fork) {
    let small = read(fork, "small").unwrap_or_default();
    let large_ = read(fork, "large").unwrap_or_default();
    let (ones, twos) = (large_.contains(&1), large_.contains(&2));
    assert!(!ones && !twos || !small.is_empty(), "the large file is there before the small one");
    assert!(!twos || small == b"2", "the large file was written over before the small one");
}

/// Asserts that fork N has all writes, and that its branch B has a prefix of them.
fn is_kept_and_branched(world: World, given: Vec<Option<Arc<Fork>>>, fork: Arc<Fork>) {
    let made: Vec<_> = given.into_iter().flatten().chain([fork]).collect();
    is_a_moment(&made[0]);
    let world = world.judge(made);
    is_all_written(&world, "N");
    is_a_moment(&world.registry.get("B").unwrap());
}

fn sealed(world: &World, fork: Arc<Fork>) -> impl FnOnce(&Registry) -> Option<Arc<Fork>> + Send + 'static {
    let images = Arc::clone(&world.images);
    move |_| {
        let frozen = fork.freeze().unwrap();
        let (image, sealed) = images.seal(&frozen).unwrap();
        // Another seal may have been faster. Then this one only makes an image.
        match fork.rebase(&frozen, image, &[], &sealed) {
            Err(error) if error.kind() != ErrorKind::InvalidInput => panic!("{error}"),
            _ => None,
        }
    }
}

fn checkpointed(fork: Arc<Fork>) -> impl FnOnce(&Registry) -> Option<Arc<Fork>> + Send + 'static {
    move |_| {
        fork.checkpoint().unwrap();
        None
    }
}

#[test]
fn a_seal_during_writes_a_second_seal_and_a_branch_loses_and_mixes_nothing() {
    search(|| {
        let world = World::new();
        let fork = world.fork("N", "of N");
        let (writer, source) = (Arc::clone(&fork), Arc::clone(&fork));
        let threads = [
            world.run(move |_| {
                written(&writer);
                None
            }),
            world.run(sealed(&world, Arc::clone(&fork))),
            world.run(sealed(&world, Arc::clone(&fork))),
            world.run(move |registry| Some(registry.branch(&source, "B").unwrap())),
        ];
        is_kept_and_branched(world, ended(threads), fork);
    });
}

#[test]
fn a_checkpoint_during_writes_a_seal_and_a_branch_loses_and_mixes_nothing() {
    search(|| {
        let world = World::new();
        let fork = world.fork("N", "of N");
        let (writer, source, tidied) = (Arc::clone(&fork), Arc::clone(&fork), Arc::clone(&fork));
        let threads = [
            world.run(move |_| {
                written(&writer);
                None
            }),
            world.run(checkpointed(Arc::clone(&fork))),
            world.run(sealed(&world, Arc::clone(&fork))),
            world.run(move |_| {
                tidied.reap().unwrap();
                tidied.checkpoint().unwrap();
                None
            }),
            world.run(move |registry| Some(registry.branch(&source, "B").unwrap())),
        ];
        is_kept_and_branched(world, ended(threads), fork);
    });
}
