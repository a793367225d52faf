//! Damage to any file of a store: a mount never serves a wrong byte, sound files stay readable, and the log and `verify` name the
//! damaged ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::common::cli::pfimg_on;
use crate::common::fast::{FastStore, Spec, dir_entry, expected_files, file_entry};
use crate::common::{Mount, Rng, bare, names};
use serde_json::Value;

/// A kind of damage to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    BitFlip,
    Truncation,
    Missing,
    /// Sound bytes of another file, with another length.
    WrongSize,
}

const ALL: [Damage; 4] = [Damage::BitFlip, Damage::Truncation, Damage::Missing, Damage::WrongSize];

/// A store with an image to damage and one that shares nothing with it.
struct Pair {
    store: FastStore,
    victim: String,
    bystander: String,
}

impl Pair {
    fn new() -> Self {
        let mut store = FastStore::new();
        let mut image = |n: u64| {
            let mut rng = Rng::new(n);
            let entries = [
                dir_entry("dir"),
                store.file("dir/victim.bin", &rng.bytes(20_000)),
                store.file("dir/sibling.txt", format!("sibling of {n}").as_bytes()),
                store.file("top", &rng.bytes(300)),
            ];
            let spec = Spec {
                fs: Some(store.tree(&entries)),
                cache: Some(store.pages(n, 2)),
                ledger: Some(store.ledger(n, 3)),
                base: Some(store.blob(format!("base:{n}").as_bytes())),
                trace: Some(store.blob(format!("{{\"content\":\"{n}\",\"role\":\"user\"}}\n").as_bytes())),
                agent: Some(format!("agent-{n}")),
                ..Spec::default()
            };
            store.image(&spec)
        };
        let (victim, bystander) = (image(1), image(2));
        Self { store, victim, bystander }
    }

    /// The digest that the victim's manifest has at a JSON pointer.
    fn layer(&self, pointer: &str) -> String {
        let marker = std::fs::read(self.store.marker_path(&self.victim)).unwrap();
        let manifest: Value = serde_json::from_slice(&marker).unwrap();
        manifest.pointer(pointer).unwrap().as_str().unwrap().to_owned()
    }

    /// The digest of a file in the victim's tree.
    fn file(&self, path: &str) -> String {
        let tree: Value =
            serde_json::from_slice(&self.store.read_blob(&self.layer("/world/fs")).unwrap()).unwrap();
        let entry = tree["entries"].as_array().unwrap().iter().find(|e| e["path"] == path).unwrap();
        entry["blob"].as_str().unwrap().to_owned()
    }
}

/// Does `damage` to `path`. `other` is the content of a file of the wrong size.
fn harm(path: &Path, damage: Damage, other: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    match damage {
        Damage::Missing => return std::fs::remove_file(path).unwrap(),
        Damage::BitFlip => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        Damage::Truncation => bytes.truncate(bytes.len() / 2),
        Damage::WrongSize => other.clone_into(&mut bytes),
    }
    std::fs::write(path, bytes).unwrap();
}

fn harm_blob(store: &FastStore, digest: &str, damage: Damage) {
    let other = zstd::bulk::compress(b"{\"quite\":\"another\",\"content\":1}", 3).unwrap();
    harm(&store.blob_path(digest), damage, &other);
    assert!(store.read_blob(digest).is_none(), "{damage:?} did no damage");
}

/// Reads every file of an image: each is right, or answers EIO. Returns those that answered EIO.
#[track_caller]
fn read_all(mount: &Mount, id: &str, expected: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    for (path, bytes) in expected {
        match std::fs::read(mount.image(id).join(path)) {
            Ok(got) => assert!(got == *bytes, "{path} of {id} has wrong bytes"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{path} of {id}: {e}");
                failed.insert(path.clone());
            }
        }
    }
    failed
}

/// The findings of `pfimg verify`, checked for their form in both outputs: (code, subject and detail).
fn verify(store: &Path, exit: i32) -> Vec<(String, String)> {
    let json = pfimg_on(store, ["verify", "--json"]).exits(exit).json();
    let text = pfimg_on(store, ["verify"]).exits(exit).said();
    let findings: Vec<(String, String)> = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            let part = |name: &str| f[name].as_str().unwrap_or_else(|| panic!("no {name} in {f}")).to_owned();
            (part("code"), format!("{} {}", part("subject"), part("detail")))
        })
        .collect();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("verify: ")).collect();
    for (code, _) in &findings {
        let is_stable = code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        assert!(is_stable && !code.is_empty(), "{code} is not a code");
        let line = lines.iter().find(|line| line.starts_with(&format!("{code}: ")));
        assert!(line.is_some_and(|line| line.splitn(3, ": ").count() == 3), "no line for {code} in {text}");
    }
    findings
}

/// Damages the blob that `target` names in every way, and checks the mount, the log and `verify`.
///
/// `failing` says which files must answer EIO; all others must be right.
fn damaged_blob(target: impl Fn(&Pair) -> String, path_in_log: &str, failing: impl Fn(&str) -> bool) {
    let mut codes = BTreeMap::new();
    for damage in ALL {
        let pair = Pair::new();
        let victim = expected_files(&pair.store, &pair.victim);
        let bystander = expected_files(&pair.store, &pair.bystander);
        let digest = target(&pair);
        harm_blob(&pair.store, &digest, damage);
        let mount = Mount::of(pair.store.root()).args(["--reveal-secrets"]).start();
        let expected: BTreeSet<String> = victim.keys().filter(|path| failing(path)).cloned().collect();
        // Twice: a read that failed must not succeed, or give wrong bytes, the second time.
        for round in 0..2 {
            assert_eq!(read_all(&mount, &pair.victim, &victim), expected, "{damage:?}, round {round}");
            assert_eq!(read_all(&mount, &pair.bystander, &bystander), BTreeSet::new(), "{damage:?}");
        }
        if !expected.is_empty() {
            let words = [&pair.victim[..12], path_in_log, &bare(&digest)[..12]];
            let lines = mount.log_lines(&words);
            assert_eq!(lines.len(), 1, "{damage:?}: one line with {words:?}:\n{}", mount.log());
            let kind = if damage == Damage::Missing { "missing" } else { "damaged" };
            let events = mount.metric(&format!("pfimg_events_total{{kind=\"{kind}\"}}"));
            assert!(events >= 1.0, "{damage:?}: {events} events of kind {kind}");
        }
        let findings = verify(pair.store.root(), 4);
        let hex = bare(&digest);
        let named: Vec<_> = findings.iter().filter(|(_, text)| text.contains(&hex[..12])).collect();
        assert!(!named.is_empty(), "{damage:?}: verify does not name {hex}: {findings:?}");
        assert!(
            findings.iter().all(|(_, text)| !text.contains(&pair.bystander)),
            "{damage:?}: verify blames the other image: {findings:?}"
        );
        codes.insert(damage, named[0].0.clone());
        mount.unmount();
    }
    println!("{path_in_log}: {codes:?}");
    for (damage, code) in codes {
        let of_blob = code.strip_prefix("manifest-").unwrap_or(&code);
        let expected: &[&str] = match damage {
            Damage::Missing => &["blob-missing"],
            // Found by the decoder or by the digest, whichever comes first; of a manifest it is one code.
            Damage::BitFlip | Damage::Truncation => {
                &["blob-undecodable", "blob-digest-mismatch", "blob-damaged"]
            }
            Damage::WrongSize => &["blob-digest-mismatch", "blob-size-mismatch", "blob-damaged"],
        };
        assert!(expected.contains(&of_blob), "{damage:?}: {code}");
    }
}

#[test]
fn a_damaged_file_blob_fails_that_file_alone() {
    damaged_blob(
        |pair| pair.file("dir/victim.bin"),
        "dir/victim.bin",
        |path| path == "world/fs/dir/victim.bin",
    );
}

#[test]
fn a_damaged_tree_fails_the_world_of_that_image_alone() {
    damaged_blob(|pair| pair.layer("/world/fs"), "world/fs", |path| path.starts_with("world/fs/"));
}

#[test]
fn a_damaged_page_manifest_fails_the_cache_of_that_image_alone() {
    damaged_blob(|pair| pair.layer("/cache/manifest"), "cache/", |path| path.starts_with("cache/"));
}

#[test]
fn a_damaged_ledger_fails_the_ledger_of_that_image_alone() {
    damaged_blob(
        |pair| pair.layer("/effects/ledger"),
        "effects/ledger.jsonl",
        |path| path == "effects/ledger.jsonl",
    );
}

#[test]
fn a_damaged_page_fails_that_page_alone() {
    let page = |pair: &Pair| {
        let manifest = pair.store.read_blob(&pair.layer("/cache/manifest")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["pages"][1]["v"].as_str().unwrap().to_owned()
    };
    damaged_blob(page, "cache/pages/00000001.v", |path| path == "cache/pages/00000001.v");
}

#[test]
fn a_damaged_manifest_blob_is_named_by_verify_while_the_marker_keeps_the_image_readable() {
    damaged_blob(|pair| format!("sha256:{}", pair.victim), "manifest.json", |_| false);
}

#[test]
fn a_damaged_marker_gives_right_bytes_or_eio_and_is_named() {
    let mut codes = BTreeMap::new();
    for damage in [Damage::BitFlip, Damage::Truncation, Damage::WrongSize] {
        let pair = Pair::new();
        let victim = expected_files(&pair.store, &pair.victim);
        let bystander = expected_files(&pair.store, &pair.bystander);
        // The marker of another image, which is sound: none of it may be shown for this image.
        let other = std::fs::read(pair.store.marker_path(&pair.bystander)).unwrap();
        harm(&pair.store.marker_path(&pair.victim), damage, &other);
        let mount = Mount::of(pair.store.root()).args(["--reveal-secrets"]).start();
        assert!(
            names(&mount.join("images")).unwrap().contains(&pair.victim),
            "{damage:?}: the image is hidden"
        );
        let failed = read_all(&mount, &pair.victim, &victim);
        assert!(failed.is_empty() || failed.len() == victim.len(), "{damage:?}: half an image: {failed:?}");
        assert_eq!(read_all(&mount, &pair.bystander, &bystander), BTreeSet::new(), "{damage:?}");
        assert!(
            !mount.log_lines(&[&pair.victim[..12]]).is_empty(),
            "{damage:?}: not in the log:\n{}",
            mount.log()
        );
        let findings = verify(pair.store.root(), 4);
        let named = findings.iter().find(|(_, text)| text.contains(&pair.victim[..12]));
        let named =
            named.unwrap_or_else(|| panic!("{damage:?}: verify does not name the marker: {findings:?}"));
        codes.insert(damage, named.0.clone());
        mount.unmount();
    }
    println!("marker: {codes:?}");
    assert!(codes.values().all(|code| code == "marker-digest-mismatch"), "{codes:?}");
}

#[test]
fn an_image_without_a_marker_is_not_there_and_a_tag_to_it_is_named_by_verify() {
    let pair = Pair::new();
    let made = pfimg_on(pair.store.root(), ["fixture", "--tag", "precious", "--cache-pages", "1"]).exits(0);
    let id = bare(made.stdout.trim()).to_owned();
    assert!(verify(pair.store.root(), 0).is_empty(), "a sound store");
    std::fs::remove_file(pair.store.marker_path(&id)).unwrap();
    let mount = Mount::of(pair.store.root()).args(["--reveal-secrets"]).start();
    assert_eq!(crate::common::errno(mount.image(&id).symlink_metadata()), libc::ENOENT);
    let mut others = vec![pair.victim.clone(), pair.bystander.clone()];
    others.sort();
    assert_eq!(names(&mount.join("images")).unwrap(), others);
    for id in &others {
        assert_eq!(read_all(&mount, id, &expected_files(&pair.store, id)), BTreeSet::new());
    }
    let findings = verify(pair.store.root(), 4);
    let named = |(code, text): &(String, String)| code == "tag-dangling" && text.contains("precious");
    assert!(findings.iter().any(named), "{findings:?}");
    mount.unmount();
}

#[test]
fn a_sound_store_has_no_findings() {
    let pair = Pair::new();
    assert!(verify(pair.store.root(), 0).is_empty());
}

#[test]
fn a_ledger_whose_chain_is_broken_is_shown_as_it_is_and_named_by_verify() {
    let mut store = FastStore::new();
    let sound = crate::common::real::ledger(1, &crate::common::fast::secret(1), 4).unwrap();
    let text = String::from_utf8(sound).unwrap();
    // The bytes match their digest, so they are served. Their content was tampered with before they were stored.
    let forged = store.blob(text.replace("tool_2", "tool_9").as_bytes());
    let id = store.image(&Spec { ledger: Some(forged), ..Spec::default() });
    let mount = Mount::of(store.root()).args(["--reveal-secrets"]).start();
    assert!(read_all(&mount, &id, &expected_files(&store, &id)).is_empty());
    let findings = verify(store.root(), 4);
    assert!(
        findings.iter().any(|(code, text)| code.contains("ledger") && text.contains(&id[..12])),
        "{findings:?}"
    );
    mount.unmount();
}

#[test]
fn no_flipped_bit_anywhere_in_a_blob_ever_becomes_a_wrong_byte() {
    let mut store = FastStore::new();
    let mut rng = Rng::new(77);
    let mut entries = Vec::new();
    let mut expected = Vec::new();
    let mut digests = Vec::new();
    for n in 0..300 {
        let mut content = format!("file {n}: a text, a text, a text, and noise: ").repeat(8).into_bytes();
        let noise = 40 + n % 50;
        content.extend(rng.bytes(noise));
        let path = format!("f{n:03}");
        let digest = store.blob(&content);
        entries.push(file_entry(&path, &digest, content.len() as u64));
        expected.push((path, content));
        digests.push(digest);
    }
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mut sound = 0;
    for (n, digest) in digests.iter().enumerate() {
        let path = store.blob_path(digest);
        let mut bytes = std::fs::read(&path).unwrap();
        // Every bit of the first bytes in turn, then bits spread over the rest.
        let bit = if n < 120 { n } else { 120 + rng.below(bytes.len() as u64 * 8 - 120) as usize };
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, bytes).unwrap();
        // A few bits mean nothing to zstd: then the content is still what it should be.
        sound += usize::from(store.read_blob(digest).is_some());
    }
    let mount = Mount::of(store.root()).start();
    let mut read = 0;
    for (path, content) in expected {
        match std::fs::read(mount.image(&id).join("world/fs").join(&path)) {
            Ok(bytes) => {
                assert!(bytes == content, "{path} has wrong bytes");
                read += 1;
            }
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EIO), "{path}"),
        }
    }
    assert!(read <= sound, "{read} files were read but only {sound} are sound");
    mount.unmount();
}

#[test]
fn damage_that_comes_while_mounted_never_shows_wrong_bytes() {
    let pair = Pair::new();
    let victim = expected_files(&pair.store, &pair.victim);
    let mount = Mount::of(pair.store.root()).args(["--reveal-secrets", "--cache-size", "1MiB"]).start();
    assert!(read_all(&mount, &pair.victim, &victim).is_empty());
    for path in all_files(&pair.store.root().join("blobs")) {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    // Files that were read before may come from memory. Others must fail. No file may be wrong.
    read_all(&mount, &pair.victim, &victim);
    let bystander = expected_marker_only(&pair);
    let failed = read_all(&mount, &pair.bystander, &bystander);
    assert!(failed.is_empty(), "a marker is not a blob: {failed:?}");
    assert_eq!(
        crate::common::errno(std::fs::read(mount.image(&pair.bystander).join("model/base"))),
        libc::EIO
    );
    mount.unmount();
}

fn expected_marker_only(pair: &Pair) -> BTreeMap<String, Vec<u8>> {
    let marker = std::fs::read(pair.store.marker_path(&pair.bystander)).unwrap();
    BTreeMap::from([("manifest.json".to_owned(), marker)])
}

/// Every regular file below `dir`.
fn all_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files
}

/// A store with one image that holds a large file, and the file's content.
fn store_with_a_large_file() -> (FastStore, String, Vec<u8>) {
    let mut store = FastStore::new();
    let content = Rng::new(5).bytes(12 << 20);
    let entry = store.file("large", &content);
    let fs = store.tree(&[entry]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    (store, id, content)
}

#[test]
fn a_cache_folder_that_was_tampered_with_never_gives_a_wrong_byte() {
    let (store, id, content) = store_with_a_large_file();
    let (_dir, dir) = crate::common::temp_dir();
    let cache = dir.join("cache");
    let mount = || Mount::of(store.root()).args([Path::new("--cache-dir"), &cache]).start();
    let first = mount();
    assert!(std::fs::read(first.image(&id).join("world/fs/large")).unwrap() == content);
    first.unmount();
    let kept: Vec<PathBuf> =
        all_files(&cache).into_iter().filter(|p| p.metadata().unwrap().len() > 1 << 20).collect();
    assert!(!kept.is_empty(), "nothing large was kept in {}: {:?}", cache.display(), all_files(&cache));
    for path in kept {
        // As root would, or a disk: the mode of the file does not protect it.
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
        file.write_all(&bytes).unwrap();
        file.persist(&path).unwrap();
    }
    let second = mount();
    assert!(std::fs::read(second.image(&id).join("world/fs/large")).unwrap() == content, "wrong bytes");
    second.unmount();
}

#[test]
fn a_cache_folder_may_be_deleted_while_mounted() {
    let (store, id, content) = store_with_a_large_file();
    let (_dir, dir) = crate::common::temp_dir();
    let cache = dir.join("cache");
    let args = [Path::new("--cache-dir"), &cache, Path::new("--cache-size"), Path::new("16MiB")];
    let mount = Mount::of(store.root()).args(args).start();
    let path = mount.image(&id).join("world/fs/large");
    let file = std::fs::File::open(&path).unwrap();
    let mut part = vec![0; 100_000];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, 1_000_000).unwrap();
    assert!(part == content[1_000_000..1_100_000]);
    let _ = std::fs::remove_dir_all(&cache);
    assert!(std::fs::read(&path).unwrap() == content, "wrong bytes");
    assert_eq!(std::fs::read(mount.image(&id).join("model/base")).unwrap(), b"base:test");
    drop(file);
    mount.unmount();
}

#[test]
fn two_mounts_that_evict_each_others_cached_files_stay_right() {
    let mut store = FastStore::new();
    let contents: Vec<Vec<u8>> = (0..4).map(|n| Rng::new(n).bytes(6 << 20)).collect();
    let entries: Vec<_> =
        contents.iter().enumerate().map(|(n, content)| store.file(&n.to_string(), content)).collect();
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let (_dir, dir) = crate::common::temp_dir();
    let cache = dir.join("cache");
    // Room for two of the four.
    let mount = || {
        let args = ["--cache-size", "8MiB", "--cache-disk", "13MiB", "--cache-dir", cache.to_str().unwrap()];
        Mount::of(store.root()).args(args).start()
    };
    let mounts = [mount(), mount()];
    std::thread::scope(|scope| {
        for (seed, mount) in mounts.iter().enumerate() {
            let (contents, id) = (&contents, &id);
            scope.spawn(move || {
                let mut rng = Rng::new(seed as u64);
                for _ in 0..40 {
                    let n = rng.below(4) as usize;
                    let file =
                        std::fs::File::open(mount.image(id).join("world/fs").join(n.to_string())).unwrap();
                    let at = rng.below(5 << 20);
                    let mut part = vec![0; 300_000];
                    std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, at).unwrap();
                    assert!(part == contents[n][at as usize..at as usize + part.len()], "file {n} at {at}");
                }
            });
        }
    });
    for mount in mounts {
        mount.unmount();
    }
    let kept: u64 = all_files(&cache).iter().map(|path| path.metadata().unwrap().len()).sum();
    println!("{kept} bytes are kept");
    assert!(kept <= 2 * (13 << 20), "{kept} bytes are kept by two mounts that may keep 13 MiB each");
}

#[test]
fn a_daemon_that_is_killed_while_it_fills_its_cache_leaves_no_litter() {
    let mut store = FastStore::new();
    let digest = store.large_blob(768, |n| vec![n as u8; 1 << 20]);
    let fs = store.tree(&[file_entry("huge", &digest, 768 << 20)]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let (_dir, dir) = crate::common::temp_dir();
    let cache = dir.join("cache");
    let start = || Mount::of(store.root()).args([Path::new("--cache-dir"), &cache]).start();
    let mut mount = start();
    let path = mount.image(&id).join("world/fs/huge");
    let reader = std::thread::spawn(move || std::fs::read(path).map(|bytes| bytes.len()));
    let fds = PathBuf::from(format!("/proc/{}/fd", mount.pid()));
    let is_filling = || {
        let Ok(fds) = std::fs::read_dir(&fds) else { return false };
        fds.flatten().any(|fd| {
            let is_large = || std::fs::metadata(fd.path()).is_ok_and(|m| m.len() > 8 << 20);
            std::fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(&cache)) && is_large()
        })
    };
    crate::common::wait_until("the daemon fills its cache", is_filling);
    mount.kill();
    drop(mount);
    assert!(reader.join().unwrap().is_err(), "the fill was done before the daemon was killed");
    let mount = start();
    assert_eq!(std::fs::read(mount.image(&id).join("model/base")).unwrap(), b"base:test");
    let litter = || -> Vec<PathBuf> {
        let is_blob = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
        };
        all_files(&cache)
            .into_iter()
            .filter(|path| !is_blob(path) && path.metadata().is_ok_and(|m| m.len() > 1 << 20))
            .collect()
    };
    crate::common::wait_until("what the killed daemon left is cleared", || litter().is_empty());
    mount.unmount();
}
