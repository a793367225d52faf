//! Events during a seal: discards, failing disks, power cuts, damage; and layers that are made and removed
//! around it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use pfimg::ErrorKind;
use pfimg::fork::{Fork, Ino, Io, NewFile, Options, RealIo, Registry, RenameMode};
use pfimg::layers::world::Kind;
use pfimg::store::{StoreIo, SystemIo};

use super::support::{Place, append, dir, read, world, write};

type Hook = Box<dyn FnOnce() + Send>;

/// Calls something at the next fdatasync, or makes calls fail.
#[derive(Default)]
struct Hooked {
    at_fdatasync: Mutex<Option<Hook>>,
    at_syncfs: Mutex<Option<Hook>>,
    fail_syncfs: AtomicBool,
    fail_sync_data: AtomicBool,
    fail_sync_dir: AtomicBool,
    renames: AtomicUsize,
}
impl StoreIo for Hooked {
    fn sync_fs(&self, dir: &Path) -> io::Result<()> {
        let hook = self.at_syncfs.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        if self.fail_syncfs.swap(false, Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        SystemIo.sync_fs(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.extension().is_some_and(|e| e == "zst") {
            self.renames.fetch_add(1, Ordering::SeqCst);
        }
        SystemIo.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.fail_sync_dir.swap(false, Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        SystemIo.sync_dir(dir)
    }
}
impl Io for Hooked {
    fn sync_data(&self, file: &File) -> io::Result<()> {
        let hook = self.at_fdatasync.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        if self.fail_sync_data.swap(false, Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        RealIo.sync_data(file)
    }
}

fn hooked(root: &Path) -> (Arc<Hooked>, Place, Arc<Registry>) {
    let io = Arc::new(Hooked::default());
    let place = Place::with_io(root, io.clone());
    let options = Options { io: io.clone(), ..Options::default() };
    let registry = Arc::new(Registry::open(root, place.reader.clone(), options).unwrap());
    (io, place, registry)
}

#[test]
fn a_layer_that_is_made_after_the_first_seal_of_an_empty_fork_is_one_after_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(&tmp.path().join("s"));
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    write(&fork, "world/fs/a", b"1");
    place.seal(&fork);
    append(&fork, "trace/messages.jsonl", b"{\"role\":\"user\",\"content\":\"hi\"}\n");
    write(&fork, "world/fs/b", b"acknowledged");
    fork.fsync().unwrap();
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(fork.damage(), None);
    assert_eq!(read(&fork, "world/fs/b").unwrap(), b"acknowledged");
    assert!(read(&fork, "trace/messages.jsonl").unwrap().starts_with(b"{\"role\""));
}

#[test]
fn layers_that_come_and_go_while_an_image_is_made_are_the_same_after_a_restart() {
    type Harm = fn(&Fork);
    let cases: [Harm; 5] = [
        |fork| append(fork, "trace/messages.jsonl", b"{\"role\":\"user\",\"content\":\"hi\"}\n"),
        |fork| _ = write(fork, "world/env.json", b"{\"PWD\":\"/\"}"),
        |fork| {
            write(fork, "world/env.json", b"{}");
            fork.unlink(dir(fork, "world"), b"env.json").unwrap();
        },
        |fork| {
            write(fork, "world/env.json", b"{}");
            fork.unlink(dir(fork, "world"), b"env.json").unwrap();
            write(fork, "world/env.json", b"{\"again\":1}");
            write(fork, "model/base", b"mine");
        },
        |fork| _ = write(fork, "manifest.json", b"{}"),
    ];
    for (case, harm) in cases.into_iter().enumerate() {
        for image in [false, true] {
            let tmp = tempfile::tempdir().unwrap();
            let root = tmp.path().join("s");
            let (io, place, registry) = hooked(&root);
            let fork = registry.create("f", image.then(|| place.fixture(1))).unwrap();
            if image {
                for (folder, name) in [("world", "env.json"), ("model", "base")] {
                    fork.unlink(dir(&fork, folder), name.as_bytes()).unwrap();
                }
                if case == 0 || case == 4 {
                    continue;
                }
            }
            write(&fork, "world/fs/a", b"1");
            let f = fork.clone();
            *io.at_syncfs.lock() = Some(Box::new(move || harm(&f)));
            place.sealer(None).seal(&fork, None).unwrap();
            write(&fork, "world/fs/b", b"acknowledged");
            fork.fsync().unwrap();
            let layers =
                ["trace/messages.jsonl", "world/env.json", "model/base", "world/procs.json", "world/fs/b"];
            let before = layers.map(|layer| read(&fork, layer));
            drop((fork, registry));
            let registry = place.registry();
            let fork = registry.get("f").unwrap();
            assert_eq!(fork.damage(), None, "case {case}, of an image: {image}");
            assert_eq!(layers.map(|layer| read(&fork, layer)), before, "case {case}, of an image: {image}");
            place.seal(&fork);
            drop((fork, registry));
            assert_eq!(place.registry().get("f").unwrap().damage(), None);
        }
    }
}

#[test]
fn a_checkpoint_brings_no_discarded_fork_back() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (io, place, registry) = hooked(&root);
    let base = place.fixture(1);
    let fork = registry.create("f", Some(base)).unwrap();
    write(&fork, "world/fs/secret", b"old fork");
    fork.fsync().unwrap();
    let (r, b) = (registry.clone(), base);
    *io.at_fdatasync.lock() = Some(Box::new(move || {
        r.discard("f").unwrap();
        let new = r.create("f", Some(b)).unwrap();
        write(&new, "world/fs/mine", b"new fork");
        new.fsync().unwrap();
    }));
    assert!(fork.checkpoint().is_err());
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(read(&fork, "world/fs/secret"), None, "a discarded fork is back");
    assert_eq!(read(&fork, "world/fs/mine").unwrap(), b"new fork");
}

#[test]
fn a_seal_brings_no_discarded_fork_back() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (io, place, registry) = hooked(&root);
    let base = place.fixture(1);
    let fork = registry.create("f", Some(base)).unwrap();
    write(&fork, "world/fs/.pfignore", b"*.log\n");
    write(&fork, "world/fs/kept.log", b"old fork");
    fork.fsync().unwrap();
    let (r, b) = (registry.clone(), base);
    *io.at_fdatasync.lock() = Some(Box::new(move || {
        r.discard("f").unwrap();
        let new = r.create("f", Some(b)).unwrap();
        write(&new, "world/fs/mine", b"new fork");
        new.fsync().unwrap();
    }));
    place.sealer(None).seal(&fork, None).unwrap_err();
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(read(&fork, "world/fs/kept.log"), None, "a discarded fork is back");
    assert_eq!(read(&fork, "world/fs/mine").unwrap(), b"new fork");
}

#[test]
fn failed_disk_writes_are_repeated_before_an_image_is_made() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (io, place, registry) = hooked(&root);
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", &[7; 5000]);
    let sealer = place.sealer(None);
    io.fail_syncfs.store(true, Ordering::SeqCst);
    io.renames.store(0, Ordering::SeqCst);
    sealer.seal(&fork, None).unwrap_err();
    let first = io.renames.swap(0, Ordering::SeqCst);
    let sealed = sealer.seal(&fork, None).unwrap();
    let second = io.renames.swap(0, Ordering::SeqCst);
    // The manifest's blob is new every time; content and tree are written again.
    assert_eq!((first, second), (3, 3));
    assert!(place.store.image(&sealed.image).is_ok());
    // And not once more.
    write(&fork, "world/fs/b", &[8; 5000]);
    sealer.seal(&fork, None).unwrap();
    assert_eq!(io.renames.load(Ordering::SeqCst), 3);
}

#[test]
fn writes_during_the_seal_before_a_restore_are_not_lost() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (io, place, registry) = hooked(&root);
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", b"1");
    let sealer = place.sealer(None);
    let first = sealer.seal(&fork, None).unwrap().image;
    write(&fork, "world/fs/a", b"2");
    let f = fork.clone();
    *io.at_syncfs.lock() = Some(Box::new(move || {
        write(&f, "world/fs/late", b"acknowledged");
        f.fsync().unwrap();
    }));
    sealer.seal_everything(&fork).unwrap();
    assert!(fork.is_changed());
    let refused = sealer.restore(&registry, "f", &fork, &first).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(read(&fork, "world/fs/late").unwrap(), b"acknowledged");
    let sealed = sealer.seal_everything(&fork).unwrap();
    let restored = sealer.restore(&registry, "f", &fork, &first).unwrap();
    assert_eq!(read(&restored, "world/fs/late"), None);
    let again = registry.create("look", Some(sealed.image)).unwrap();
    assert_eq!(read(&again, "world/fs/late").unwrap(), b"acknowledged");
    // A caller that still has the old one open gets an error, and loses no data.
    let ino = fork.resolve(b"world/fs").unwrap();
    let new = NewFile { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, rdev: 0, target: b"", umask: None };
    assert!(fork.create(ino, b"later", &new).is_err());
}

#[test]
fn a_tree_that_was_damaged_on_the_disk_makes_no_other_one_wrong() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(&tmp.path().join("s"));
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    for n in 0..1500 {
        write(&fork, &format!("world/fs/d/{n:05}"), format!("{n}").as_bytes());
    }
    let sealer = place.sealer(None);
    let first = sealer.seal(&fork, None).unwrap().image;
    let tree = place.store.image(&first).unwrap().manifest.world.fs;
    let path = place.store.blobs().path(&tree);
    let mut bytes = fs::read(&path).unwrap();
    // One bit somewhere in the middle of the first frame.
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(place.store.blobs().read_metadata(&tree).is_err());
    write(&fork, "world/fs/z", b"new");
    let second = sealer.seal(&fork, None);
    let second = second.unwrap();
    let tree = place.store.image(&second.image).unwrap().manifest.world.fs;
    let whole = place.store.blobs().read_metadata(&tree);
    assert!(whole.is_ok(), "a new image's tree: {}", whole.unwrap_err());
}

#[test]
fn a_power_cut_after_two_freezes_loses_nothing_that_was_synced() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (_io, place, registry) = hooked(&root);
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", b"fsynced");
    fork.fsync().unwrap();
    registry.branch(&fork, "g").unwrap();
    write(&fork, "world/fs/b", b"not fsynced");
    registry.branch(&fork, "h").unwrap();
    drop((fork, registry));
    let head: serde_json::Value =
        serde_json::from_slice(&fs::read(root.join("forks/heads/f.json")).unwrap()).unwrap();
    let ids: Vec<_> =
        head["generations"].as_array().unwrap().iter().map(|g| g.as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 3);
    // Names are durable at this point (the next head was fsynced after they were made), content is not.
    for id in &ids[1..] {
        File::options()
            .write(true)
            .open(root.join("forks/gen").join(id).join("journal"))
            .unwrap()
            .set_len(0)
            .unwrap();
    }
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(read(&fork, "world/fs/a").unwrap(), b"fsynced");
    assert_eq!(fork.damage(), None);
}

#[test]
fn a_discard_whose_sync_fails_is_a_discard() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (io, place, registry) = hooked(&root);
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", b"1");
    fork.fsync().unwrap();
    io.fail_sync_dir.store(true, Ordering::SeqCst);
    registry.discard("f").unwrap();
    assert!(!registry.contains("f"));
    let folder = fork.resolve(b"world/fs").unwrap();
    let new = NewFile { kind: Kind::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: b"", umask: None };
    assert!(fork.create(folder, b"b", &new).is_err(), "it would be gone with the fork");
    drop((fork, registry));
    assert!(!place.registry().contains("f"));
}

#[test]
fn a_fork_that_is_discarded_while_it_is_sealed_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (io, place, registry) = hooked(&root);
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", b"1");
    let r = registry.clone();
    *io.at_syncfs.lock() = Some(Box::new(move || drop(r.discard("f").unwrap())));
    let before = place.store.images().ids(&mut |_| ()).unwrap().len();
    place.sealer(None).seal(&fork, None).unwrap_err();
    let left: Vec<_> = fs::read_dir(root.join("forks/seals")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let after = place.store.images().ids(&mut |_| ()).unwrap().len();
    assert_eq!(after, before);
}

#[test]
fn a_layer_that_was_removed_comes_again_with_a_seal() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(&tmp.path().join("s"));
    let registry = place.registry();
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    fork.unlink(dir(&fork, "world"), b"env.json").unwrap();
    place.seal(&fork);
    // The image has one, as every image.
    assert!(read(&fork, "world/env.json").is_some());
    write(&fork, "world/env.json", b"{\"PWD\":\"/\"}");
    write(&fork, "world/fs/b", b"acknowledged");
    fork.fsync().unwrap();
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(fork.damage(), None);
    assert_eq!(read(&fork, "world/fs/b").unwrap(), b"acknowledged");
}

#[test]
fn the_folder_of_parents_stays_in_its_fork() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(&tmp.path().join("s"));
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    write(&fork, "world/fs/a", b"1");
    write(&fork, "parents/note", b"mine");
    place.seal(&fork);
    assert_eq!(read(&fork, "parents/note").unwrap(), b"mine");
    fork.unlink(dir(&fork, "parents"), b"note").unwrap();
    write(&fork, "world/fs/b", b"acknowledged");
    fork.fsync().unwrap();
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(fork.damage(), None);
    assert_eq!(read(&fork, "world/fs/b").unwrap(), b"acknowledged");
}

/// A fork that was frozen with something in it that was not synced, and the journal that has it.
fn frozen_and_not_synced(root: &Path) -> (Place, PathBuf) {
    let (_io, place, registry) = hooked(root);
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", b"fsynced");
    fork.fsync().unwrap();
    write(&fork, "world/fs/b", b"not fsynced");
    fork.freeze().unwrap();
    drop((fork, registry));
    let head: serde_json::Value =
        serde_json::from_slice(&fs::read(root.join("forks/heads/f.json")).unwrap()).unwrap();
    let id = head["generations"][0].as_str().unwrap().to_owned();
    (place, root.join("forks/gen").join(id).join("journal"))
}

#[test]
fn the_torn_end_of_a_frozen_generation_is_cut_for_good() {
    let tmp = tempfile::tempdir().unwrap();
    let (place, journal) = frozen_and_not_synced(&tmp.path().join("s"));
    let journal = File::options().write(true).open(journal).unwrap();
    // A power cut removes the end of unsynced data.
    journal.set_len(journal.metadata().unwrap().len() - 3).unwrap();
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(fork.damage(), None, "first");
    write(&fork, "world/fs/c", b"fsynced after the cut");
    fork.fsync().unwrap();
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(fork.damage(), None, "second");
    assert_eq!(read(&fork, "world/fs/c").unwrap(), b"fsynced after the cut");
}

#[test]
fn zeros_at_the_end_of_a_frozen_generation_stop_no_seal() {
    let tmp = tempfile::tempdir().unwrap();
    let (place, path) = frozen_and_not_synced(&tmp.path().join("s"));
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 40..].fill(0);
    fs::write(&path, bytes).unwrap();
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!(fork.damage(), None, "first");
    write(&fork, "world/fs/c", b"c");
    let sealed = place.sealer(None).seal(&fork, None);
    assert!(sealed.is_ok(), "{}", sealed.unwrap_err());
}

/// Seals a fork with a chain of folders, if it can be made. In any case the fork exists after a restart.
fn chain(depth: usize, name: usize) {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(tmp.path());
    let registry = place.registry();
    let fork = registry.create("try", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/precious", b"precious");
    let (mut at, mut made) = (Ino::FS, 0);
    let name = vec![b'd'; name];
    while made < depth {
        match fork.create(at, &name, &NewFile::new(Kind::Dir, 0o755, 1, 1)) {
            Ok(folder) => (at, made) = (folder.ino, made + 1),
            Err(e) => {
                assert_eq!(e.errno(), libc::ENAMETOOLONG, "{e}");
                break;
            }
        }
    }
    assert!(made >= depth.min(2047), "{made}");
    if let Err(e) = place.sealer(None).seal(&fork, None) {
        assert_eq!(e.kind(), ErrorKind::InvalidInput, "{e}");
    }
    drop((fork, registry));
    let place = Place::new(tmp.path());
    let registry = place.registry();
    let fork = registry.get("try").unwrap();
    assert_eq!(read(&fork, "world/fs/precious").unwrap(), b"precious");
    // A folder that was moved down, with all that is in it.
    let (one, two) = (dir(&fork, "world/fs"), write(&fork, "world/fs/sub/file", b"1"));
    assert!(fork.getattr(two).is_ok() && fork.getattr(one).is_ok());
}

#[test]
fn a_fork_deeper_than_a_tree_may_be_is_not_lost_with_a_seal() {
    chain(2100, 1);
}

#[test]
fn a_fork_whose_tree_is_larger_than_is_read_back_is_not_lost_with_a_seal() {
    chain(900, 250);
}

#[test]
fn a_folder_that_was_moved_too_deep_is_refused_by_a_seal_and_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(tmp.path());
    let registry = place.registry();
    let fork = registry.create("try", None).unwrap();
    write(&fork, "world/fs/a/b/c/file", b"1");
    let mut at = dir(&fork, "world/fs");
    while let Ok(folder) = fork.create(at, b"d", &NewFile::new(Kind::Dir, 0o755, 1, 1)) {
        at = folder.ino;
    }
    let world = dir(&fork, "world/fs");
    fork.rename(world, b"a", at, b"a", RenameMode::Replace).unwrap();
    let refused = place.sealer(None).seal(&fork, None).unwrap_err();
    assert!(refused.to_string().contains("directories deep"), "{refused}");
    fork.rename(at, b"a", world, b"a", RenameMode::Replace).unwrap();
    place.seal(&fork);
    drop((fork, registry));
    let registry = Place::new(tmp.path()).registry();
    assert_eq!(read(&registry.get("try").unwrap(), "world/fs/a/b/c/file").unwrap(), b"1");
}

#[test]
fn names_that_are_not_utf8_come_back_from_a_seal() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let registry = place.registry();
    let fork = registry.create("try", Some(place.fixture(1))).unwrap();
    let d = fork.create(Ino::FS, &[0xff; 255], &NewFile::new(Kind::Dir, 0o755, 1, 1)).unwrap().ino;
    fork.create(d, &[0xfe; 255], &NewFile::new(Kind::File, 0o755, 1, 1)).unwrap();
    let mut other = [0xff; 255];
    other[254] = 0xfe;
    let d = fork.create(Ino::FS, &other, &NewFile::new(Kind::Dir, 0o755, 1, 1)).unwrap().ino;
    fork.create(d, &[0xfe; 255], &NewFile::new(Kind::File, 0o755, 1, 1)).unwrap();
    let lossy = String::from_utf8_lossy(&[0xff; 80]).into_owned();
    fork.create(Ino::FS, lossy.as_bytes(), &NewFile::new(Kind::Dir, 0o755, 1, 1)).unwrap();
    fork.create(Ino::FS, &[0xff; 80], &NewFile::new(Kind::File, 0o755, 1, 1)).unwrap();
    let before = world(&fork);
    place.seal(&fork);
    drop((fork, registry));
    let place = Place::new(dir.path());
    let registry = place.registry();
    let fork = registry.get("try").unwrap();
    assert_eq!(world(&fork), before);
}

#[test]
fn an_fsync_that_failed_is_not_followed_by_one_that_says_all_is_well_until_a_seal_has_everything() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("s");
    let (io, place, registry) = hooked(&root);
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", &[7; 5000]);
    io.fail_sync_data.store(true, Ordering::SeqCst);
    assert!(fork.fsync().is_err());
    write(&fork, "world/fs/b", b"1");
    assert!(fork.fsync().is_err(), "the state of the disk is unknown");
    assert_eq!(read(&fork, "world/fs/a").unwrap(), [7; 5000]);
    place.sealer(None).seal(&fork, None).unwrap();
    write(&fork, "world/fs/c", b"2");
    fork.fsync().unwrap();
    drop((fork, registry));
    let registry = place.registry();
    let fork = registry.get("f").unwrap();
    assert_eq!((fork.damage(), read(&fork, "world/fs/b").unwrap()), (None, b"1".to_vec()));
}
