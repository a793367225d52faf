//! Journals and heads that are cut, flipped, full, or held by another program.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use pfimg::ErrorKind;
use pfimg::fork::{Io, NewFile, Options, Registry};
use pfimg::layers::world::Kind;

use super::model::Model;
use super::programs::Family;
use super::support::*;

/// The journal that a fork writes.
fn journal(store: &Path, name: &str) -> PathBuf {
    let head = fs::read(store.join(format!("forks/heads/{name}.json"))).unwrap();
    let head: serde_json::Value = serde_json::from_slice(&head).unwrap();
    let id = head["generations"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    store.join("forks/gen").join(id).join("journal")
}

fn copy(store: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(store, dir.path());
    dir
}

#[test]
fn an_operation_that_was_cut_anywhere_has_not_happened() {
    programs("cuts", 3, |seed| {
        let mut family = Family::new(seed, true);
        for round in 0..60 {
            let name = family.any();
            if round % 12 == 5 {
                family.branch(&name);
            }
            let before = family.models[&name].clone();
            let path = journal(family.dir.path(), &name);
            let from = fs::metadata(&path).unwrap().len();
            let own_data = fs::read_dir(path.parent().unwrap().join("data")).unwrap().count();
            family.step(&name);
            let to = fs::metadata(&path).unwrap().len();
            // Bytes in place may be there although the write they belong to was never acknowledged.
            if to == from || own_data > 0 {
                continue;
            }
            for cut in [from, from + 1, from + 16, u64::midpoint(from, to), to - 1, to] {
                let cut = cut.min(to);
                let copy = copy(family.dir.path());
                let torn = copy.path().join(path.strip_prefix(family.dir.path()).unwrap());
                fs::File::options().write(true).open(&torn).unwrap().set_len(cut).unwrap();
                let registry = open(copy.path(), &family.images);
                let fork = registry.get(&name).unwrap();
                assert_eq!(fork.damage(), None);
                let expected = if cut == to { &family.models[&name] } else { &before };
                same(&fork, expected, &format!("{name} cut at {cut} of {from}..{to}"));
                // It can be written on, and read back again.
                let root = fork.resolve(b"world/fs").unwrap();
                fork.create(root, b"after the cut", &NewFile::new(Kind::File, 0o600, 1, 1)).unwrap();
                drop((fork, registry));
                let registry = open(copy.path(), &family.images);
                assert!(registry.get(&name).unwrap().resolve(b"world/fs/after the cut").is_some());
            }
        }
    });
}

#[test]
fn a_flipped_bit_is_found_and_never_shows_invented_content() {
    programs("flips", 2, |seed| {
        let mut family = Family::new(seed, false);
        let mut history: Vec<Model> = vec![family.models["f0"].clone()];
        while history.len() < 40 {
            family.step("f0");
            history.push(family.models["f0"].clone());
        }
        let name = "f0".to_owned();
        family.registry = None;
        let path = journal(family.dir.path(), &name);
        let good = fs::read(&path).unwrap();
        for _ in 0..60 {
            let bit = family.rng.below(good.len() * 8);
            let copy = copy(family.dir.path());
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let flipped = copy.path().join(path.strip_prefix(family.dir.path()).unwrap());
            fs::write(&flipped, &bad).unwrap();
            let registry = open(copy.path(), &family.images);
            let fork = registry.get(&name).unwrap();
            let reports = registry.take_reports();
            assert!(!reports.is_empty(), "bit {bit} of byte {} was not noticed", bit / 8);
            // Bytes in place in a data file may be newer than the journal's sound part.
            let in_place = fs::read_dir(flipped.parent().unwrap().join("data")).unwrap().count() > 0;
            let was = |model: &Model| difference(&fork, model).is_none();
            assert!(in_place || history.iter().any(was), "bit {bit}: the fork is what it never was");
            if fork.damage().is_some() {
                let root = fork.resolve(b"world/fs").unwrap();
                let refused = fork.create(root, b"new", &NewFile::new(Kind::File, 0o600, 1, 1)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Damaged);
                assert_eq!(fs::read(&flipped).unwrap(), bad, "a damaged journal was changed");
            } else {
                // Only what looks like an unfinished end is cut, and it is kept.
                assert!(reports[0].contains("cut"), "{reports:?}");
                assert_eq!(fs::read_dir(copy.path().join("forks/damaged")).unwrap().count(), 1);
            }
        }
    });
}

/// Fails, or stops half-way, when told to.
#[derive(Default)]
struct Faulty {
    /// Writes until one fails; negative: never.
    writes: AtomicI64,
    short: AtomicBool,
    truncate: AtomicBool,
    /// Up to where space was promised, by inode.
    reserved: Mutex<HashMap<u64, u64>>,
}

impl pfimg::store::StoreIo for Faulty {}

impl Io for Faulty {
    fn write_at(&self, file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let end = offset + bytes.len() as u64;
        if self.reserved.lock().get(&file.metadata()?.ino()).is_some_and(|reserved| end <= *reserved) {
            return file.write_at(bytes, offset);
        }
        if self.writes.fetch_sub(1, Ordering::Relaxed) == 0 {
            if self.short.load(Ordering::Relaxed) && bytes.len() > 1 {
                // The rest does not fit either.
                self.writes.store(0, Ordering::Relaxed);
                return file.write_at(&bytes[..bytes.len() / 2], offset);
            }
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        file.write_at(bytes, offset)
    }

    fn reserve(&self, file: &fs::File, offset: u64, len: u64) -> io::Result<()> {
        if self.writes.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.reserved.lock().insert(file.metadata()?.ino(), offset + len);
        Ok(())
    }

    fn truncate(&self, file: &fs::File, len: u64) -> io::Result<()> {
        if self.truncate.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        file.set_len(len)
    }
}

fn faulty(dir: &Path, images: &Arc<Images>) -> (Registry, Arc<Faulty>) {
    let io = Arc::new(Faulty::default());
    io.writes.store(-1, Ordering::Relaxed);
    let options = Options { io: io.clone(), ..Options::default() };
    (Registry::open(dir, images.clone(), options).unwrap(), io)
}

#[test]
fn a_full_disk_leaves_the_fork_as_it_was() {
    programs("full", 4, |seed| {
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::default());
        let (image, mut model) = images.sample();
        let (registry, io) = faulty(dir.path(), &images);
        let fork = registry.create("f", Some(image)).unwrap();
        let mut rng = Rng(seed);
        let root = fork.resolve(b"world/fs").unwrap();
        for round in 0..60 {
            let path = *rng.pick(&[&b"big"[..], b"a/y", b"empty", b"d/f"]);
            let id = model.resolve(path).unwrap();
            let size = model.nodes[&id].content.len();
            let (at, len) = (rng.below(size + 1), if rng.chance(2) { 100 } else { 150_000 });
            let bytes = rng.bytes(len);
            if rng.chance(2) {
                io.short.store(rng.chance(2), Ordering::Relaxed);
                io.writes.store(rng.below(3) as i64, Ordering::Relaxed);
            }
            match rng.below(3) {
                0 => {
                    let name = format!("n{round}");
                    match fork.create(root, name.as_bytes(), &NewFile::new(Kind::File, 0o644, 0, 0)) {
                        Ok(_) => {
                            model.create(name.as_bytes(), Kind::File, 0o644, b"").unwrap();
                        }
                        Err(e) => assert_eq!(e.errno(), libc::ENOSPC),
                    }
                }
                _ => match fork.write(ino(&fork, path), at as u64, &bytes, true) {
                    Ok(written) => model.write(id, at, &bytes[..written]),
                    Err(e) => assert_eq!(e.errno(), libc::ENOSPC),
                },
            }
            io.writes.store(-1, Ordering::Relaxed);
            same(&fork, &model, &format!("round {round}"));
        }
        drop((fork, registry));
        same(&open(dir.path(), &images).get("f").unwrap(), &model, "after reopening");
    });
}

#[test]
fn a_journal_beyond_repair_makes_the_fork_read_only_and_keeps_acknowledged_writes() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, mut model) = images.sample();
    let (registry, io) = faulty(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let root = fork.resolve(b"world/fs").unwrap();
    let new = NewFile::new(Kind::File, 0o644, 0, 0);
    fork.create(root, b"one", &new).unwrap();
    model.create(b"one", Kind::File, 0o644, b"").unwrap();
    io.short.store(true, Ordering::Relaxed);
    io.truncate.store(true, Ordering::Relaxed);
    io.writes.store(0, Ordering::Relaxed);
    assert_eq!(fork.create(root, b"two", &new).unwrap_err().errno(), libc::ENOSPC);
    io.writes.store(-1, Ordering::Relaxed);
    let refused = fork.create(root, b"three", &new).unwrap_err();
    assert_eq!(refused.errno(), libc::EROFS, "{refused}");
    same(&fork, &model, "read-only");
    drop((fork, registry));
    let registry = open(dir.path(), &images);
    let fork = registry.get("f").unwrap();
    same(&fork, &model, "after reopening");
    fork.create(root, b"three", &new).unwrap();
}

#[test]
fn a_second_opener_reads_and_does_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, model) = images.sample();
    let first = open(dir.path(), &images);
    let written = first.create("f", Some(image)).unwrap();
    let second = open(dir.path(), &images);
    assert!(first.is_writable() && !second.is_writable());
    let fork = second.get("f").unwrap();
    same(&fork, &model, "read by the second");
    let new = NewFile::new(Kind::File, 0o644, 0, 0);
    let root = fork.resolve(b"world/fs").unwrap();
    assert_eq!(fork.create(root, b"x", &new).unwrap_err().errno(), libc::EROFS);
    assert_eq!(second.create("g", Some(image)).unwrap_err().errno(), libc::EROFS);
    assert_eq!(second.discard("f").unwrap_err().errno(), libc::EROFS);
    written.create(root, b"x", &new).unwrap();
    drop((first, written));
    assert!(open(dir.path(), &images).is_writable());
}

#[test]
fn a_damaged_head_is_kept_with_all_it_may_name() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, model) = images.sample();
    let registry = open(dir.path(), &images);
    registry.create("good", Some(image)).unwrap();
    registry.create("bad", Some(image)).unwrap();
    drop(registry);
    let head = dir.path().join("forks/heads/bad.json");
    let journal = journal(dir.path(), "bad");
    fs::write(&head, b"{\"uid\":").unwrap();
    let registry = open(dir.path(), &images);
    assert!(registry.take_reports().iter().any(|report| report.contains("bad")));
    assert!(registry.info("bad").unwrap().damage.is_some());
    assert_eq!(registry.get("bad").unwrap_err().kind(), ErrorKind::Damaged);
    same(&registry.get("good").unwrap(), &model, "beside a damaged fork");
    assert!(journal.exists() && head.exists());
    registry.discard("bad").unwrap();
    drop(registry);
    let registry = open(dir.path(), &images);
    assert_eq!(registry.names(), ["good"]);
    assert!(journal.exists(), "a discarded damaged head still names it");
}
