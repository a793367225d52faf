//! What a fork promises beyond holding files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pfimg::fork::{CopySource, Ino, NewFile, Protection, RenameMode, Sealed, SetAttr};
use pfimg::layers::world::{Entry, Kind};

use super::support::*;

fn file() -> NewFile<'static> {
    NewFile::new(Kind::File, 0o644, 1, 1)
}

#[test]
fn sealed_lines_of_the_ledger_are_fixed_and_appended_ones_survive_its_rewriting() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let ledger = fork.resolve(b"effects/ledger.jsonl").unwrap();
    let text = |fork: &pfimg::fork::Fork| {
        let ledger = fork.resolve(b"effects/ledger.jsonl").unwrap();
        String::from_utf8(fork.read_vec(ledger, 0, 10_000).unwrap()).unwrap()
    };
    let refused = |result: pfimg::Result<()>, what: &str| {
        assert_eq!(result.expect_err(what).errno(), libc::EPERM, "{what}");
    };
    let head = text(&fork).len() as u64;
    let cut = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    let refuse_all = |sealed_len: u64| {
        refused(fork.write(ledger, sealed_len - 1, b"xy", true).map(|_| ()), "write");
        refused(fork.write(ledger, 0, b"x", true).map(|_| ()), "write at the start");
        refused(fork.setattr(ledger, &cut(sealed_len - 1)).map(|_| ()), "cut");
        refused(fork.setattr(ledger, &cut(0)).map(|_| ()), "cut to nothing");
        refused(fork.fallocate(ledger, 0, 5, pfimg::fork::Allocate::PunchHole, true), "punch");
        refused(fork.unlink(Ino::EFFECTS, b"ledger.jsonl").map(|_| ()), "unlink");
        refused(fork.link(ledger, Ino::FS, b"way-round").map(|_| ()), "link");
    };
    refuse_all(head);
    fork.create(Ino::FS, b"mine", &file()).unwrap();
    let over = fork.rename(Ino::FS, b"mine", Ino::EFFECTS, b"ledger.jsonl", RenameMode::Replace);
    assert!(over.is_err());
    fork.write(ledger, head, b"one\n", true).unwrap();
    refused(fork.write(ledger, head, b"ONE\n", true).map(|_| ()), "write over what was appended");
    refused(fork.setattr(ledger, &cut(head)).map(|_| ()), "cut what was appended");
    let frozen = fork.freeze().unwrap();
    refuse_all(head + 4);
    fork.write(ledger, head + 4, b"two\n", true).unwrap();
    // Sealing chains the lines: they get longer.
    let (image, layers, sealed) = images.seal(&frozen, &|bytes| {
        String::from_utf8(bytes.to_vec()).unwrap().replace('\n', " hmac\n").into_bytes()
    });
    let changed = fork.rebase(&frozen, image, &layers, &sealed).unwrap();
    assert!(changed.contains(&ledger));
    let expected = "{\"head\":1} hmac\none hmac\ntwo\n";
    assert_eq!(text(&fork), expected);
    let sealed_len = (expected.len() - 4) as u64;
    assert_eq!(fork.guard(ledger).unwrap(), (Protection::Append(Some(sealed_len)), sealed_len));
    refuse_all(sealed_len);
    fork.write(ledger, expected.len() as u64, b"three\n", true).unwrap();
    drop((fork, registry, frozen));
    let registry = open(dir.path(), &images);
    assert_eq!(text(&registry.get("f").unwrap()), format!("{expected}three\n"));
}

#[test]
fn a_fork_takes_layers_names_only_and_its_manifest_cannot_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let errno = |result: pfimg::Result<pfimg::fork::Attr>| result.unwrap_err().errno();
    assert_eq!(errno(fork.create(Ino::TOP, b"notes", &file())), libc::EPERM);
    assert_eq!(errno(fork.create(Ino::MODEL, b"weights", &file())), libc::EPERM);
    let manifest = fork.resolve(b"manifest.json").unwrap();
    assert_eq!(fork.write(manifest, 0, b"x", true).unwrap_err().errno(), libc::EPERM);
    assert_eq!(fork.unlink(Ino::TOP, b"manifest.json").unwrap_err().errno(), libc::EPERM);
    assert_eq!(fork.rmdir(Ino::WORLD, b"fs").unwrap_err().errno(), libc::EPERM);
    fork.unlink(Ino::MODEL, b"base").unwrap();
    let base = fork.create(Ino::MODEL, b"base", &file()).unwrap();
    fork.write(base.ino, 0, b"new", true).unwrap();
    fork.create(Ino::PAGES, b"00000001.v", &file()).unwrap();
    assert_eq!(
        fork.rename(Ino::MODEL, b"base", Ino::FS, b"base", RenameMode::Replace).unwrap_err().errno(),
        libc::EXDEV
    );
    // An empty fork is built up folder by folder.
    let empty = registry.create("empty", None).unwrap();
    assert_eq!(walk(&empty, Ino::TOP), BTreeMap::new());
    let dir_of = NewFile::new(Kind::Dir, 0o755, 1, 1);
    assert_eq!(empty.create(Ino::TOP, b"world", &dir_of).unwrap().ino, Ino::WORLD);
    assert_eq!(empty.create(Ino::WORLD, b"fs", &dir_of).unwrap().ino, Ino::FS);
    empty.create(Ino::FS, b"anything", &file()).unwrap();
}

#[test]
fn an_unlinked_file_stays_usable_until_it_is_forgotten_and_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let made = fork.create(Ino::FS, b"open", &file()).unwrap().ino;
    let bytes = Rng(1).bytes(2 << 20);
    fork.write(made, 0, &bytes, true).unwrap();
    assert_eq!(fork.unlink(Ino::FS, b"open").unwrap(), made);
    fork.write(made, 10, b"still", true).unwrap();
    assert_eq!(fork.read_vec(made, 10, 5).unwrap(), b"still");
    assert_eq!(fork.getattr(made).unwrap().nlink, 0);
    let again = fork.create(Ino::FS, b"open", &file()).unwrap().ino;
    assert_ne!(again, made, "a number was given twice");
    assert!(registry.stats("f").unwrap().own_bytes > 2 << 20);
    fork.forget(made);
    assert_eq!(fork.getattr(made).unwrap_err().errno(), libc::ESTALE);
    assert!(fork.reap().unwrap());
    assert!(registry.stats("f").unwrap().own_bytes < 100_000);
}

#[test]
fn a_discarded_fork_frees_the_space_that_no_other_fork_needs() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, mut model) = images.sample();
    let registry = open(dir.path(), &images);
    let parent = registry.create("parent", Some(image)).unwrap();
    let big = ino(&parent, b"big");
    let bytes = Rng(3).bytes(1 << 20);
    parent.write(big, 5, &bytes, true).unwrap();
    let id = model.resolve(b"big").unwrap();
    model.write(id, 5, &bytes);
    let child = registry.branch(&parent, "child").unwrap();
    let other = registry.create("other", Some(image)).unwrap();
    let copied = other.create(Ino::FS, b"copied", &file()).unwrap().ino;
    let before = registry.stats("other").unwrap().all_bytes;
    let len = other.copy_range(&CopySource::Fork(&child, big), 0, copied, 0, u64::MAX >> 1, true).unwrap();
    assert_eq!(len, BIG as u64);
    assert_eq!(images.reads.load(std::sync::atomic::Ordering::Relaxed), 0, "content was read to be shared");
    let journal = registry.stats("other").unwrap().journal_bytes;
    assert!(journal < 1000, "{journal} bytes for a copy by reference, {before} before");
    drop(parent);
    registry.discard("parent").unwrap();
    same(&child, &model, "its parent was discarded");
    drop(child);
    registry.discard("child").unwrap();
    assert_eq!(other.read_vec(copied, 0, usize::MAX).unwrap(), model.nodes[&id].content);
    drop(other);
    registry.discard("other").unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("forks/gen")).unwrap().count(), 0);
    assert!(registry.names().is_empty());
}

#[test]
fn an_entry_that_is_there_throughout_is_listed_once_whatever_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let mut entries = BTreeMap::new();
    for i in 0..100 {
        let path = format!("base{i:02}");
        entries.insert(path.clone(), Entry::new(path, Kind::Dir, 0o755));
    }
    let image = images.add(entries, Vec::new());
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    for i in 0..50 {
        fork.create(Ino::FS, format!("own{i:02}").as_bytes(), &file()).unwrap();
    }
    for seed in 0..30 {
        let mut rng = Rng(seed);
        let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let mut got = 0;
            fork.readdir(Ino::FS, cookie, &mut |entry| {
                *seen.entry(entry.name.to_vec()).or_default() += 1;
                cookie = entry.cookie;
                got += 1;
                got < 7
            })
            .unwrap();
            if got < 7 {
                break;
            }
            // Some come, some go, some are replaced, some change places.
            let name = |rng: &mut Rng| format!("own{:02}", rng.below(25)).into_bytes();
            let (a, b) = (name(&mut rng), format!("base{:02}", rng.below(50)).into_bytes());
            let _ = fork.unlink(Ino::FS, &a);
            let _ = fork.create(Ino::FS, &a, &file());
            let _ = fork.rmdir(Ino::FS, &b);
            let dir_of = NewFile::new(Kind::Dir, 0o755, 1, 1);
            let _ = fork.create(Ino::FS, &b, &dir_of);
            let stays = (b"base80".to_vec(), b"own40".to_vec());
            fork.rename(Ino::FS, &stays.0, Ino::FS, &stays.1, RenameMode::Exchange).unwrap();
        }
        for i in 0..50 {
            for name in [format!("base{:02}", 50 + i), format!("own{:02}", 25 + i / 2)] {
                assert_eq!(seen.get(name.as_bytes()), Some(&1), "{name}, seed {seed}");
            }
        }
    }
}

#[test]
fn a_write_into_a_large_base_file_copies_what_it_touches_and_reads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let big = ino(&fork, b"big");
    fork.write(big, 1 << 20, b"x", true).unwrap();
    assert_eq!(images.reads.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(registry.stats("f").unwrap().all_bytes < 64 << 10);
}

#[test]
fn a_seal_that_misses_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let made = fork.create(Ino::FS, b"kept", &file()).unwrap().ino;
    fork.write(made, 0, b"content", true).unwrap();
    let frozen = fork.freeze().unwrap();
    let (image, layers, _) = images.seal(&frozen, &|bytes| bytes.to_vec());
    assert!(fork.rebase(&frozen, image, &layers, &Sealed::new()).is_err());
    assert_eq!(fork.read_vec(made, 0, 7).unwrap(), b"content");
}

#[test]
fn forking_takes_the_same_time_whatever_the_size() {
    for files in [1_000, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::default());
        let blob = images.put(b"x");
        let entries = (0..files).map(|i| {
            let path = format!("d{}/f{i}", i / 100);
            let mut entry = Entry::new(path.clone(), Kind::File, 0o644);
            (entry.blob, entry.size) = (Some(blob.digest), 1);
            (path, entry)
        });
        let image = images.add(entries.collect(), Vec::new());
        let registry = open(dir.path(), &images);
        let first = registry.create("first", Some(image)).unwrap();
        let mut times: Vec<Duration> = Vec::new();
        for i in 0..20 {
            let made = first.create(Ino::FS, format!("n{i}").as_bytes(), &file()).unwrap().ino;
            first.write(made, 0, b"new", true).unwrap();
            let start = Instant::now();
            let branch = registry.branch(&first, &format!("b{i}")).unwrap();
            times.push(start.elapsed());
            // Nothing below the root was looked at.
            assert_eq!(branch.remembered().0, 0);
            assert!(registry.stats(&format!("b{i}")).unwrap().changed <= 100);
        }
        times.sort();
        let start = Instant::now();
        registry.create("another", Some(image)).unwrap();
        println!(
            "{files} files: branch of a changed fork {:?} (median), fork of an image {:?}",
            times[10],
            start.elapsed()
        );
    }
}

#[test]
fn thousands_of_scattered_small_writes_stay_right_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, mut model) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let (big, id) = (ino(&fork, b"big"), model.resolve(b"big").unwrap());
    let mut rng = Rng(11);
    for i in 0..5000 {
        let (at, len) = (rng.below(BIG + 100), 1 + rng.below(200));
        let bytes = rng.bytes(len);
        assert_eq!(fork.write(big, at as u64, &bytes, true).unwrap(), len);
        model.write(id, at, &bytes);
        if i == 2500 {
            registry.branch(&fork, "child").unwrap();
        }
    }
    same(&fork, &model, "scattered writes");
    fork.fsync().unwrap();
    fork.checkpoint().unwrap();
    same(&fork, &model, "after a checkpoint");
    drop((fork, registry));
    same(&open(dir.path(), &images).get("f").unwrap(), &model, "after reopening");
}

#[test]
fn the_folders_around_the_files_keep_what_they_have_through_checkpoints_seals_and_branches() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let given = [(Ino::TOP, 0o700), (Ino::EFFECTS, 0o711), (Ino::PAGES, 0o2750)];
    let check = |fork: &pfimg::fork::Fork, when: &str| {
        for (ino, mode) in given {
            let attr = fork.getattr(ino).unwrap();
            assert_eq!((attr.mode, attr.uid, attr.gid), (mode, 5, 6), "{when}: {ino:?}");
        }
        assert_eq!(fork.getattr(Ino::TRACE).unwrap().mode, 0o755, "{when}");
    };
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    for (ino, mode) in given {
        let set = SetAttr { mode: Some(mode), uid: Some(5), gid: Some(6), ..SetAttr::default() };
        fork.setattr(ino, &set).unwrap();
    }
    assert!(!fork.is_changed(), "an image would show nothing of it");
    fork.create(Ino::FS, b"one", &file()).unwrap();
    assert!(fork.checkpoint().unwrap());
    check(&fork, "after a checkpoint");
    drop((fork, registry));
    let registry = open(dir.path(), &images);
    let fork = registry.get("f").unwrap();
    check(&fork, "read back after a checkpoint");
    let frozen = fork.freeze().unwrap();
    let (id, layers, sealed) = images.seal(&frozen, &|ledger| ledger.to_vec());
    fork.rebase(&frozen, id, &layers, &sealed).unwrap();
    check(&fork, "after a seal");
    let closed = registry.branch_as(&fork, "closed", 0o755).unwrap();
    check(&closed, "of a branch");
    drop((fork, closed, frozen, registry));
    let registry = open(dir.path(), &images);
    for name in ["f", "closed"] {
        let fork = registry.get(name).unwrap();
        check(&fork, "read back after a seal");
        fork.create(Ino::FS, b"two", &file()).unwrap();
        assert!(fork.checkpoint().unwrap());
    }
    let branch = registry.branch_as(&registry.get("f").unwrap(), "open", 0o550).unwrap();
    assert_eq!(branch.getattr(Ino::TOP).unwrap().mode, 0o500, "a branch is never more open than its source");
    drop((branch, registry));
    let registry = open(dir.path(), &images);
    check(&registry.get("f").unwrap(), "read back after both");
    check(&registry.get("closed").unwrap(), "read back after both");
    assert_eq!(registry.get("open").unwrap().getattr(Ino::TOP).unwrap().mode, 0o500);
}

#[test]
fn forks_written_by_many_threads_at_once_hold_what_each_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    registry.create("shared", Some(image)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let registry = &registry;
            scope.spawn(move || {
                let mut rng = Rng(thread);
                let shared = registry.get("shared").unwrap();
                let own = registry.create(&format!("own{thread}"), Some(image)).unwrap();
                for i in 0..60 {
                    for fork in [&shared, &own] {
                        let name = format!("t{thread}-{i}");
                        let made = fork.create(Ino::FS, name.as_bytes(), &file()).unwrap().ino;
                        let bytes = rng.bytes(100 + i * 3000);
                        assert_eq!(fork.write(made, 0, &bytes, true).unwrap(), bytes.len());
                        assert_eq!(fork.read_vec(made, 0, usize::MAX).unwrap(), bytes);
                    }
                    if i % 20 == 7 {
                        let name = format!("branch{thread}-{i}");
                        let branch = registry.branch(&shared, &name).unwrap();
                        assert!(branch.resolve(format!("world/fs/t{thread}-{i}").as_bytes()).is_some());
                        shared.fsync().unwrap();
                        shared.checkpoint().unwrap();
                        drop(branch);
                        registry.discard(&name).unwrap();
                    }
                }
            });
        }
    });
    let before = walk(&registry.get("shared").unwrap(), Ino::FS);
    drop(registry);
    let registry = open(dir.path(), &images);
    let after = walk(&registry.get("shared").unwrap(), Ino::FS);
    assert_eq!(before, after);
    for thread in 0..8 {
        let fork = registry.get(&format!("own{thread}")).unwrap();
        let mut rng = Rng(thread);
        for i in 0..60 {
            rng.bytes(100 + i * 3000);
            let bytes = rng.bytes(100 + i * 3000);
            assert_eq!(
                fork.read_vec(ino(&fork, format!("t{thread}-{i}").as_bytes()), 0, usize::MAX).unwrap(),
                bytes
            );
        }
    }
}
