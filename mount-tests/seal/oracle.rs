//! What the transfer oracle finds when something goes wrong, and that it finds nothing else.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use pfimg::audit::Log;
use pfimg::digest::Digest;
use pfimg::error::ErrorKind;
use pfimg::fork::{BaseReader, BaseTimes, Fork, LayerBase, Registry, SetAttr};
use pfimg::ops::export::{self, export};
use pfimg::ops::import::{self, import};
use pfimg::ops::seal::Sealer;
use pfimg::store::{StoreIo, SystemIo};
use serde_json::Value;

use super::support::{Pf, Place, read, world, write};

const NOTHING: u8 = 0;
const MARKER: u8 = 1;
const TEMP_FILE: u8 = 2;
const TREE: u8 = 3;
const FULL: u8 = 4;

/// The operating system, but for one fault.
#[derive(Default)]
struct Faulty(AtomicU8);

impl StoreIo for Faulty {
    fn write(&self, path: &Path, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let in_images = path.parent().is_some_and(|dir| dir.ends_with("images"));
        match self.0.load(Ordering::SeqCst) {
            FULL => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            MARKER if in_images => SystemIo.write(path, file, &[bytes, b" "].concat()),
            TREE if !in_images => {
                let text = zstd::decode_all(bytes).unwrap();
                let Some(at) = text.windows(13).position(|w| w == b"{\"path\":\"lost") else {
                    return SystemIo.write(path, file, bytes);
                };
                let end = at + text[at..].iter().position(|b| *b == b'}').unwrap() + 1;
                let without = [&text[..at], text[end..].strip_prefix(b",").unwrap_or(&text[end..])].concat();
                SystemIo.write(path, file, &zstd::bulk::compress(&without, 3).unwrap())
            }
            _ => SystemIo.write(path, file, bytes),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        // The name is there, and the temporary file as well.
        if self.0.load(Ordering::SeqCst) == TEMP_FILE {
            match SystemIo.link(from, to) {
                // Two threads store the same bytes.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        } else {
            SystemIo.rename(from, to)
        }
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    root: PathBuf,
    io: Arc<Faulty>,
    place: Place,
    registry: Registry,
    fork: Arc<Fork>,
    log: Log,
}

/// A changed fork of an image.
fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let io = Arc::new(Faulty::default());
    let place = Place::with_io(&root, io.clone());
    let registry = place.registry();
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    for n in 0..5 {
        write(&fork, &format!("world/fs/new{n}"), b"new");
    }
    write(&fork, "world/fs/lost", b"a file");
    let log = Log::start(&root, "test").unwrap();
    Scene { _dir: dir, root, io, place, registry, fork, log }
}

/// The events of one kind.
fn events(root: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(root.join("audit/events.jsonl")).unwrap_or_default();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone());
    events.filter(|event| event["kind"] == kind).collect()
}

/// Checks that there is one violation, which its crash pack reproduces in another folder, and only while the
/// pack is unchanged.
fn judge_pack(root: &Path, log: &Log, transfer: &str, violation: &str) {
    log.flush();
    let blocked = events(root, "milestone_blocked");
    assert_eq!((blocked.len(), &blocked[0]["phase_id"]), (1, &Value::from(transfer)));
    let pack = root.join("audit/crash").join(blocked[0]["crashpack"].as_str().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(pack).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, elsewhere.path().join(path.file_name().unwrap())).unwrap();
    }
    if violation == "path_consistency" {
        let log = fs::read_to_string(elsewhere.path().join("pathlog")).unwrap();
        assert!(log.contains("] path "), "{log:?}");
    }
    let replay = || {
        let pfimg = env!("CARGO_BIN_EXE_pfimg");
        Command::new(pfimg).arg("replay").arg(elsewhere.path()).arg("--json").output().unwrap()
    };
    let said = replay();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let json: Value = serde_json::from_slice(&said.stdout).unwrap();
    let found = json["result"]["results"][0]["violations"].as_array().unwrap();
    assert_eq!((found.len(), &found[0]["violation_type"]), (1, &Value::from(violation)));
    let script = || {
        let pfimg = env!("CARGO_BIN_EXE_pfimg");
        Command::new(elsewhere.path().join("replay_command.sh")).env("PFIMG", pfimg).output().unwrap()
    };
    assert_eq!(script().status.code(), Some(1), "{:?}", script());
    // A byte of any of its files. (Which byte of them all is tried in `crashpack::replay`.)
    for name in pfimg::crashpack::FILES {
        let path = elsewhere.path().join(name);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        match changed.len() / 2 {
            0 => changed.push(b'x'),
            middle => changed[middle] ^= 1,
        }
        fs::write(&path, changed).unwrap();
        // Not in a separate program: each new program holds the locks of the other tests' stores for a
        // moment.
        let refused = pfimg::crashpack::replay::replay(elsewhere.path(), &[]).unwrap_err();
        assert_eq!(refused.exit_code(), 4, "a pack whose {name} was changed: {refused}");
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(replay().status.code(), Some(1), "the pack as it was");
}

/// A seal fails with that violation, and leaves the fork as it was and no image.
fn caught(scene: &Scene, violation: &str) {
    let Scene { root, place, fork, log, .. } = scene;
    let base = fork.base();
    let images = place.store.images().ids(&mut |_| ()).unwrap();
    let error = place.sealer(None).with_log(log.clone()).seal(fork, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(fork.is_changed() && fork.base() == base);
    assert_eq!(place.store.images().ids(&mut |_| ()).unwrap(), images);
    judge_pack(root, log, "seal", violation);
    assert_eq!(events(root, "checkpoint_taken").len(), 0);
}

/// Without the fault the same fork is sealed.
fn passes(scene: &Scene) {
    let Scene { root, place, fork, log, .. } = scene;
    let sealed = place.sealer(None).with_log(log.clone()).seal(fork, None).unwrap();
    assert!(sealed.new);
    Pf::open(place).judge(&sealed.image);
    assert_eq!(read(fork, "world/fs/lost").unwrap(), b"a file");
    log.flush();
    assert_eq!(events(root, "milestone_blocked").len(), 1);
    assert_eq!(events(root, "checkpoint_taken")[0]["image"], sealed.image.to_string());
    assert_eq!(events(root, "agent_process_changed")[0]["state"], "joined");
}

#[test]
fn a_manifest_that_changed_after_it_was_hashed_is_caught() {
    let scene = scene();
    scene.io.0.store(MARKER, Ordering::SeqCst);
    caught(&scene, "manifest_integrity");
    scene.io.0.store(NOTHING, Ordering::SeqCst);
    passes(&scene);
}

#[test]
fn a_record_that_was_taken_out_of_a_journal_is_caught() {
    let scene = scene();
    let journals = fs::read_dir(scene.root.join("forks/gen")).unwrap();
    let journal = journals
        .map(|entry| entry.unwrap().path().join("journal"))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let whole = fs::read(&journal).unwrap();
    let mut starts = vec![32];
    while let Some(len) = whole.get(starts[starts.len() - 1] + 4..starts[starts.len() - 1] + 8) {
        let len = u32::from_le_bytes(len.try_into().unwrap()) as usize;
        starts.push(starts[starts.len() - 1] + 17 + len);
    }
    for index in [2, starts.len() - 2] {
        let without = [&whole[..starts[index]], &whole[starts[index + 1]..]].concat();
        fs::write(&journal, without).unwrap();
        let error = scene.place.sealer(None).seal(&scene.fork, None).unwrap_err();
        assert!(error.to_string().contains("1 gaps"), "{error}");
    }
    caught(&scene, "journal_consistency");
    fs::write(&journal, whole).unwrap();
    passes(&scene);
}

#[test]
fn a_seal_with_a_write_in_flight_is_caught() {
    let scene = scene();
    let ino = scene.fork.resolve(b"world/fs/lost").unwrap();
    let write_of_two_parts = scene.fork.operation();
    scene.fork.write(ino, 0, b"a f", false).unwrap();
    caught(&scene, "quiescence");
    scene.fork.write(ino, 3, b"ile", false).unwrap();
    drop(write_of_two_parts);
    passes(&scene);
}

#[test]
fn a_temporary_file_that_was_left_behind_is_caught() {
    let scene = scene();
    scene.io.0.store(TEMP_FILE, Ordering::SeqCst);
    caught(&scene, "obligation_leak");
    scene.io.0.store(NOTHING, Ordering::SeqCst);
    passes(&scene);
}

#[test]
fn a_path_that_is_missing_from_the_tree_is_caught() {
    let scene = scene();
    scene.io.0.store(TREE, Ordering::SeqCst);
    caught(&scene, "path_consistency");
    // The blob has the right name and wrong content: it would be mistaken for the tree.
    let blobs = scene.root.join("blobs/sha256");
    for path in fs::read_dir(blobs).unwrap().flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap()) {
        let path = path.unwrap().path();
        let text = zstd::decode_all(&fs::read(&path).unwrap()[..]).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned();
        if !Digest::of(&text).hex().ends_with(&name) {
            fs::remove_file(path).unwrap();
        }
    }
    scene.io.0.store(NOTHING, Ordering::SeqCst);
    passes(&scene);
}

#[test]
fn a_temporary_file_is_caught_also_if_the_change_was_reverted() {
    let scene = scene();
    let Scene { root, io, place, fork, log, .. } = &scene;
    let sealed = place.seal(fork).image;
    let ino = fork.resolve(b"world/fs/lost").unwrap();
    let before = fork.getattr(ino).unwrap();
    for mode in [0o600, before.mode] {
        fork.setattr(ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
    }
    // The image's tree has to be stored again, all else is as it was.
    let tree = place.store.image(&sealed).unwrap().manifest.world.fs;
    let hex = tree.hex();
    let blobs = fs::read_dir(root.join("blobs/sha256")).unwrap();
    let blobs = blobs.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
    let blob = blobs.map(|entry| entry.unwrap().path()).find(|path| path.to_str().unwrap().contains(&hex));
    let blob = blob.unwrap();
    let sealer = place.sealer(None).with_log(log.clone());
    // Once, so that its text is known without the blob.
    assert_eq!(sealer.seal(fork, None).unwrap().image, sealed);
    for mode in [0o600, before.mode] {
        fork.setattr(ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
    }
    fs::remove_file(&blob).unwrap();
    io.0.store(TEMP_FILE, Ordering::SeqCst);
    assert_eq!(sealer.seal(fork, None).unwrap_err().kind(), ErrorKind::Damaged);
    judge_pack(root, log, "seal", "obligation_leak");
    io.0.store(NOTHING, Ordering::SeqCst);
    let again = sealer.seal(fork, None).unwrap();
    assert_eq!((again.image, again.new), (sealed, false));
}

#[test]
fn a_full_disk_is_reported_as_an_exceeded_budget() {
    let scene = scene();
    let Scene { root, io, place, fork, log, .. } = &scene;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"content").unwrap();
    io.0.store(FULL, Ordering::SeqCst);
    let sealer = place.sealer(None).with_log(log.clone());
    assert_eq!(sealer.seal(fork, None).unwrap_err().kind(), ErrorKind::NoSpace);
    let imported = import(&place.store, &import_of(folder.path(), log), &());
    assert_eq!(imported.unwrap_err().kind(), ErrorKind::NoSpace);
    log.flush();
    let told = events(root, "budget_exceeded");
    let told: Vec<_> = told.iter().map(|event| (&event["budget"], &event["tool"])).collect();
    let disk = Value::from("disk");
    assert_eq!(told, [(&disk, &Value::from("seal")), (&disk, &Value::from("import"))]);
    io.0.store(NOTHING, Ordering::SeqCst);
    assert!(sealer.seal(fork, None).unwrap().new);
}

#[test]
fn five_hundred_seals_without_a_fault_pass() {
    let Scene { _dir, root, place, registry, log, .. } = scene();
    let base = place.fixture(2);
    let sealer = place.sealer(None).with_log(log.clone());
    for f in 0..10 {
        let fork = registry.create(&format!("f{f}"), Some(base)).unwrap();
        for n in 0..50_usize {
            write(&fork, &format!("world/fs/dir{}/file{}", n % 3, n % 7), format!("{f} {n}").as_bytes());
            match n % 5 {
                0 => drop(write(&fork, "world/fs/large", &vec![n as u8; 100_000])),
                1 => {
                    let folder = fork.resolve(b"world/fs/dir0").unwrap();
                    let _ = fork.unlink(folder, format!("file{}", n % 7).as_bytes());
                }
                2 => drop(write(&fork, "model/diff.json", format!("{{\"n\":{n}}}").as_bytes())),
                3 => drop(fork.checkpoint().unwrap()),
                _ => {}
            }
            write(&fork, "world/fs/last", format!("{f} {n}").as_bytes());
            assert!(sealer.seal(&fork, None).unwrap().new, "fork {f}, seal {n}");
        }
    }
    log.flush();
    assert!(!root.join("audit/crash").exists());
    assert_eq!(events(&root, "checkpoint_taken").len(), 500);
    assert_eq!(events(&root, "milestone_blocked").len(), 0);
}

fn import_of(folder: &Path, log: &Log) -> import::Options {
    import::Options::new(folder, log.clone())
}

#[test]
fn a_temporary_file_that_an_import_leaves_is_caught() {
    let Scene { _dir, root, io, place, log, .. } = scene();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"content").unwrap();
    let options = import_of(folder.path(), &log);
    let images = place.store.images().ids(&mut |_| ()).unwrap();
    io.0.store(TEMP_FILE, Ordering::SeqCst);
    assert_eq!(import(&place.store, &options, &()).unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(place.store.images().ids(&mut |_| ()).unwrap(), images);
    judge_pack(&root, &log, "import", "obligation_leak");
    io.0.store(NOTHING, Ordering::SeqCst);
    assert!(import(&place.store, &options, &()).unwrap().new);
}

/// Takes away what was exported first.
struct Thief(PathBuf);

impl export::Progress for Thief {
    fn written(&self, _bytes: u64) {
        let first = fs::read_dir(&self.0).unwrap().flatten().find(|entry| entry.path().is_file());
        if let Some(entry) = first {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_path_that_is_missing_from_an_export_is_caught() {
    let scene = scene();
    let Scene { root, place, fork, log, .. } = &scene;
    let image = place.seal(fork).image;
    let out = tempfile::tempdir().unwrap();
    let to = |name: &str| export::Options {
        dir: out.path().join(name),
        all: false,
        reveal_secrets: false,
        cache_dir: None,
        jobs: NonZeroUsize::MIN,
        log: log.clone(),
    };
    let stolen = to("stolen");
    let error = export(&place.store, &image, &stolen, &Thief(stolen.dir.clone())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    // The error names the path and the pack.
    let crash = root.join("audit/crash");
    let said = error.to_string();
    assert!(said.contains("otherwise in the directory") && said.contains(crash.to_str().unwrap()), "{said}");
    judge_pack(root, log, "export", "path_consistency");
    export(&place.store, &image, &to("whole"), &()).unwrap();
}

/// Says of an image that it has one more layer, if told to.
struct Lying(Arc<dyn BaseReader>, AtomicBool);

impl BaseReader for Lying {
    fn size(&self, digest: &Digest) -> pfimg::Result<u64> {
        self.0.size(digest)
    }

    fn read(&self, digest: &Digest, size: u64, offset: u64, buf: &mut [u8]) -> pfimg::Result<usize> {
        self.0.read(digest, size, offset, buf)
    }

    fn tree(&self, image: &Digest) -> pfimg::Result<Arc<pfimg::tree::Tree>> {
        self.0.tree(image)
    }

    fn times(&self, image: &Digest) -> pfimg::Result<BaseTimes> {
        self.0.times(image)
    }

    fn layers(&self, image: &Digest) -> pfimg::Result<Vec<LayerBase>> {
        let mut layers = self.0.layers(image)?;
        if self.1.load(Ordering::SeqCst) {
            layers.push(LayerBase { path: "model/more".into(), ..layers[0].clone() });
        }
        Ok(layers)
    }
}

#[test]
fn a_fork_is_judged_before_a_restore_and_stays_unchanged_after_a_violation() {
    let scene = scene();
    let Scene { root, place, registry, fork, log, .. } = &scene;
    let reader = Arc::new(Lying(place.reader.clone(), AtomicBool::new(false)));
    let sealer = Sealer::new(place.store.clone(), reader.clone(), None).with_log(log.clone());
    let first = sealer.seal(fork, None).unwrap().image;
    write(fork, "world/fs/lost", b"more");
    let second = sealer.seal(fork, None).unwrap().image;
    let before = world(fork);
    // The fork that would be lacks a layer of its image.
    reader.1.store(true, Ordering::SeqCst);
    let error = sealer.restore(registry, "f", fork, &first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("cannot restore fork \"f\""), "{error}");
    judge_pack(root, log, "restore", "path_consistency");
    assert_eq!(events(root, "rollbacked").len(), 0);
    assert_eq!((fork.base(), fork.is_changed()), (Some(second), false));
    assert_eq!(registry.get("f").unwrap().uid(), fork.uid());
    assert_eq!(world(fork), before);
    write(fork, "world/fs/goes", b"on");
    assert_eq!(fork.seals().unwrap().len(), 2);
    reader.1.store(false, Ordering::SeqCst);
    let third = sealer.seal(fork, None).unwrap().image;
    let restored = sealer.restore(registry, "f", fork, &first).unwrap();
    log.flush();
    assert_eq!(events(root, "rollbacked")[0]["image"], first.to_string());
    assert_eq!(read(&restored, "world/fs/lost").as_deref(), Some(&b"a file"[..]));
    assert!(restored.seals().unwrap().iter().any(|seal| seal.image == third));
    let Scene { place, registry, fork, .. } = scene;
    drop((fork, restored, registry));
    let again = place.registry().get("f").unwrap();
    assert_eq!((again.base(), read(&again, "world/fs/goes")), (Some(first), None));
}
