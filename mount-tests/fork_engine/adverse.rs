//! Forks when the things that they use are removed or changed: blobs of older images, open files, heads, numbers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use pfimg::ErrorKind;
use pfimg::digest::Digest;
use pfimg::fork::{CopySource, Fork, Ino, Io, NewFile, Options, Registry, RenameMode};
use pfimg::layers::world::{Entry, Kind};
use pfimg::store::{StoreIo, SystemIo};

use super::support::*;

fn file() -> NewFile<'static> {
    NewFile::new(Kind::File, 0o644, 1, 1)
}
fn dir_of() -> NewFile<'static> {
    NewFile::new(Kind::Dir, 0o755, 1, 1)
}

#[test]
fn removed_xattr_stays_removed_after_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let blob = images.put(b"hello");
    let mut entry = Entry::new("f", Kind::File, 0o644);
    (entry.blob, entry.size) = (Some(blob.digest), blob.size);
    entry.extra.insert("xattrs".into(), serde_json::json!({"user.a": "eA=="}));
    let image = images.add(BTreeMap::from([("f".to_owned(), entry)]), Vec::new());
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let f = ino(&fork, b"f");
    assert_eq!(fork.getxattr(f, b"user.a").unwrap(), b"x");
    fork.removexattr(f, b"user.a").unwrap();
    assert!(fork.checkpoint().unwrap());
    assert!(fork.listxattr(f).unwrap().is_empty());
    drop((fork, registry));
    let registry = open(dir.path(), &images);
    let fork = registry.get("f").unwrap();
    assert!(fork.listxattr(ino(&fork, b"f")).unwrap().is_empty(), "it is back");
}

#[test]
fn a_live_fork_needs_no_blob_that_its_image_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let log = fork.create(Ino::FS, b"log", &file()).unwrap().ino;
    let other = fork.create(Ino::FS, b"copy", &file()).unwrap().ino;
    let mut all = Vec::new();
    let mut last = Digest::of(b"");
    for i in 0..3u8 {
        let bytes = vec![b'a' + i; 1000];
        fork.write(log, all.len() as u64, &bytes, true).unwrap();
        all.extend(bytes);
        let frozen = fork.freeze().unwrap();
        let (image, layers, sealed) = images.seal(&frozen, &|l| l.to_vec());
        last = sealed[&b"world/fs/log"[..]].digest;
        fork.rebase(&frozen, image, &layers, &sealed).unwrap();
    }
    // The effect of `prune` and `gc`: the older versions of the file are no longer in any image.
    let old: Vec<Digest> = (1..3).map(|n| Digest::of(&all[..n * 1000])).collect();
    assert!(!old.contains(&last));
    images.blobs.lock().retain(|digest, _| !old.contains(digest));
    fork.copy_range(&CopySource::Fork(&fork, log), 0, other, 0, 3000, true).unwrap();
    let live = fork.read_vec(log, 0, 10_000);
    drop((fork, registry));
    let registry = open(dir.path(), &images);
    let fork = registry.get("f").unwrap();
    for path in [&b"log"[..], b"copy"] {
        assert_eq!(fork.read_vec(ino(&fork, path), 0, 10_000).unwrap(), all);
    }
    assert_eq!(live.unwrap(), all);
}

fn deleted_but_open(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for fd in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        if let Ok(to) = fs::read_link(fd.path()) {
            let to = to.to_string_lossy().into_owned();
            if to.starts_with(&*dir.to_string_lossy()) && to.ends_with("(deleted)") {
                found.push(to);
            }
        }
    }
    found
}

fn with_a_large_file() -> (tempfile::TempDir, Arc<Images>, Registry, Arc<Fork>) {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    let f = fork.create(Ino::FS, b"large", &file()).unwrap().ino;
    fork.write(f, 0, &vec![7; 8 << 20], true).unwrap();
    (dir, images, registry, fork)
}

#[test]
fn data_files_of_a_removed_generation_are_closed() {
    let (dir, _images, registry, fork) = with_a_large_file();
    drop(fork);
    registry.discard("f").unwrap();
    assert_eq!(fs::read_dir(dir.path().join("forks/gen")).unwrap().count(), 0);
    let open = deleted_but_open(dir.path());
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn data_files_of_a_sealed_generation_are_closed() {
    let (dir, images, _registry, fork) = with_a_large_file();
    let frozen = fork.freeze().unwrap();
    let (image, layers, sealed) = images.seal(&frozen, &|l| l.to_vec());
    fork.rebase(&frozen, image, &layers, &sealed).unwrap();
    drop(frozen);
    let open = deleted_but_open(dir.path());
    assert!(open.is_empty(), "{open:?}");
}

/// Knows which heads are durable.
#[derive(Default)]
struct Watch {
    log: Mutex<Vec<String>>,
}
impl StoreIo for Watch {
    fn sync_file(&self, path: &Path, file: &File) -> io::Result<()> {
        self.log.lock().push(format!("sync_file {}", path.display()));
        file.sync_all()
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.log.lock().push(format!("sync_dir {}", dir.display()));
        File::open(dir)?.sync_all()
    }
    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.log.lock().push(format!("name {} {}", from.display(), to.display()));
        SystemIo.rename_noreplace(from, to)
    }
}
impl Io for Watch {}

#[test]
fn a_discard_keeps_the_files_that_a_branch_needs() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let watch = Arc::new(Watch::default());
    let options = Options { io: watch.clone(), ..Options::default() };
    let registry = Registry::open(dir.path(), images.clone(), options).unwrap();
    let fork = registry.create("a", Some(image)).unwrap();
    let f = fork.create(Ino::FS, b"work", &file()).unwrap().ino;
    fork.write(f, 0, b"precious", true).unwrap();
    fork.fsync().unwrap();
    watch.log.lock().clear();
    registry.branch(&fork, "b").unwrap();
    drop(fork);
    registry.discard("a").unwrap();
    drop(registry);
    let log = watch.log.lock().clone();
    let named = log.iter().find_map(|line| line.strip_prefix("name ")).unwrap();
    let temp = named.split(' ').next().unwrap();
    // A power cut. Of an unsynced file in a synced folder, ext4 keeps the name.
    let head = dir.path().join("forks/heads/b.json");
    let synced = [format!("sync_file {temp}"), format!("sync_file {}", head.display())];
    let was_synced = log.iter().any(|line| synced.contains(line));
    if !was_synced {
        fs::write(&head, b"").unwrap();
    }
    let registry = open(dir.path(), &images);
    assert!(registry.contains("b"));
}

#[test]
fn a_folder_of_the_frame_has_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", None).unwrap();
    fork.create(Ino::TOP, b"parents", &dir_of()).unwrap();
    let renamed = fork.rename(Ino::TOP, b"parents", Ino::TOP, b"world", RenameMode::Replace);
    if renamed.is_err() {
        return;
    }
    let world = fork.resolve(b"world").unwrap();
    let fs_ = fork.create(world, b"fs", &dir_of()).unwrap().ino;
    let f = fork.create(fs_, b"work", &file()).unwrap().ino;
    fork.write(f, 0, b"precious", true).unwrap();
    let frozen = fork.freeze().unwrap();
    let (image, layers, sealed) = images.seal(&frozen, &|l| l.to_vec());
    fork.rebase(&frozen, image, &layers, &sealed).unwrap();
    assert!(fork.resolve(b"world/fs/work").is_some(), "gone after a seal");
}

#[test]
fn forgetting_does_not_fail_a_seal() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let blob = images.put(b"x");
    let mut entries = BTreeMap::new();
    entries.insert("d".to_owned(), Entry::new("d", Kind::Dir, 0o755));
    for i in 0..5000 {
        let path = format!("d/f{i}");
        let mut entry = Entry::new(path.clone(), Kind::File, 0o644);
        (entry.blob, entry.size) = (Some(blob.digest), 1);
        entries.insert(path, entry);
    }
    let image = images.add(entries, Vec::new());
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", Some(image)).unwrap();
    fork.rename(Ino::FS, b"d", Ino::FS, b"e", RenameMode::Replace).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        scope.spawn(|| {
            // ls -l, and the kernel drops its caches.
            let e = ino(&fork, b"e");
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let mut all = Vec::new();
                fork.readdir(e, 0, &mut |entry| {
                    all.push(entry.ino);
                    true
                })
                .unwrap();
                for ino in all {
                    fork.forget(ino);
                }
            }
        });
        let mut failed = Vec::new();
        for _ in 0..20 {
            let frozen = fork.freeze().unwrap();
            match frozen.changes() {
                Err(e) => failed.push(e.to_string()),
                Ok(changes) => {
                    // e, what is in it, and world/fs.
                    let n = (changes.removed.len(), changes.put.len());
                    if n != (1, 5002) {
                        failed.push(format!("SILENT: {n:?}"));
                    }
                }
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        failed
    });
    assert!(failed.is_empty(), "{} of 20: {failed:?}", failed.len());
}

/// A filesystem without hard links, and without a rename that replaces nothing.
#[derive(Default)]
struct Plain {
    links: AtomicUsize,
}
impl StoreIo for Plain {
    fn rename_noreplace(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }
    fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
        self.links.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}
impl Io for Plain {}

#[test]
fn forks_on_a_filesystem_without_hard_links_are_branched_sealed_rewritten_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    let plain = Arc::new(Plain::default());
    let options = Options { io: plain.clone(), ..Options::default() };
    let registry = Registry::open(dir.path(), images.clone(), options).unwrap();
    let fork = registry.create("a", Some(image)).unwrap();
    assert_eq!(registry.create("a", Some(image)).unwrap_err().kind(), ErrorKind::AlreadyExists);
    // Pieces of one data file, with others between them.
    let bytes = Rng(3).bytes(BIG);
    let f = fork.create(Ino::FS, b"large", &file()).unwrap().ino;
    fork.write(f, 0, &bytes, true).unwrap();
    fork.write(f, 500_000, b"small", true).unwrap();
    let mut expected = bytes;
    expected[500_000..500_005].copy_from_slice(b"small");
    let branch = registry.branch(&fork, "b").unwrap();
    registry.rename("b", "c").unwrap();
    assert_eq!(registry.rename("c", "a").unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(fork.checkpoint().unwrap() && branch.checkpoint().unwrap());
    let copy = branch.create(Ino::FS, b"copy", &file()).unwrap().ino;
    let mut done = 0;
    while done < BIG as u64 {
        let left = BIG as u64 - done;
        done += branch.copy_range(&CopySource::Fork(&branch, f), done, copy, done, left, true).unwrap();
    }
    assert_eq!(plain.links.load(Ordering::Relaxed), 2, "one link, one probe, and it is known");
    drop((fork, branch, registry));
    let registry = open(dir.path(), &images);
    assert_eq!(registry.names(), ["a", "c"]);
    for (name, path) in [("a", &b"large"[..]), ("c", b"large"), ("c", b"copy")] {
        let fork = registry.get(name).unwrap();
        assert_eq!(fork.damage(), None);
        assert!(fork.read_vec(ino(&fork, path), 0, BIG).unwrap() == expected, "{name}");
    }
}

#[test]
fn the_name_of_a_fork_whose_making_was_cut_off_is_set_aside_and_free() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let (image, _) = images.sample();
    drop(open(dir.path(), &images));
    // A crash leaves this if an empty file takes the name first.
    fs::write(dir.path().join("forks/heads/a.json"), b"").unwrap();
    let registry = open(dir.path(), &images);
    assert!(!registry.contains("a"));
    registry.create("a", Some(image)).unwrap();
}
