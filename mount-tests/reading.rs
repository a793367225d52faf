//! Reading: what the mount shows is what the real `pf` wrote, in every image, byte for byte.

mod identity;
mod support;
mod times;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::cli::{Run, pfimg_on, tool};
use crate::common::failing::Program;
use crate::common::fast::{FastStore, Spec, dir_entry, expected_files, link_entry};
use crate::common::real::AGENTS;
use crate::common::{
    MIB, Mount, Rng, errno, hex_digest, hex_digest_of_file, names, real, system, temp_dir, tree,
};
use serde_json::Value;
use support::{GENERATED, IMAGES};

#[test]
fn the_world_of_every_generated_image_equals_what_the_real_restore_makes() {
    let generated = &*GENERATED;
    // A budget smaller than the content, so that the cache has to let go of things on the way.
    let mount = Mount::of(generated.store.root()).args(["--cache-size", "4MiB"]).start();
    assert_eq!(names(&mount.join("images")).unwrap().len(), IMAGES as usize);
    let mut seen = tree::Seen::default();
    for image in &generated.images {
        let again = "cargo test --test mount reading::".to_owned();
        let _program = Program { what: "a generated image", seed: image.seed, again };
        let shown = tree::read_tree(&mount.image(&image.id).join("world/fs"))
            .unwrap_or_else(|e| panic!("seed {}: image {}: {e}", image.seed, image.id));
        let restored = real::restored(&generated.store, image);
        let differences = tree::differences(&restored, &shown);
        assert!(differences.is_empty(), "seed {}: image {}: {differences:#?}", image.seed, image.id);
        seen.count(&shown);
    }
    println!("{seen:?}");
    seen.assert_everything();
    mount.unmount();
}

#[test]
fn every_raw_layer_file_of_every_generated_image_hashes_to_its_digest() {
    let generated = &*GENERATED;
    let mount = Mount::of(generated.store.root()).args(["--reveal-secrets"]).start();
    for image in &generated.images {
        let again = "cargo test --test mount reading::".to_owned();
        let _program = Program { what: "the layers of a generated image", seed: image.seed, again };
        let about = format!("seed {}, image {}", image.seed, image.id);
        let folder = mount.image(&image.id);
        assert_eq!(
            hex_digest_of_file(&folder.join("manifest.json")).unwrap(),
            image.id,
            "{about}: manifest.json"
        );
        let layers = real::raw_layers(&generated.store, &image.manifest);
        for (path, digest) in &layers {
            let bytes = std::fs::read(folder.join(path)).unwrap_or_else(|e| panic!("{about}: {path:?}: {e}"));
            assert_eq!(hex_digest(&bytes), digest.hex(), "{about}: {path:?}");
            assert_eq!(
                folder.join(path).metadata().unwrap().len(),
                bytes.len() as u64,
                "{about}: size of {path:?}"
            );
        }
        let pages = layers.iter().filter(|(path, _)| path.starts_with("cache/pages")).count();
        assert_eq!(names(&folder.join("cache/pages")).unwrap().len(), pages, "{about}: pages");
    }
    mount.unmount();
}

#[test]
fn the_secret_of_every_generated_ledger_is_redacted_and_nothing_else_is() {
    let generated = &*GENERATED;
    let mount = Mount::of(generated.store.root()).start();
    for image in &generated.images {
        let path = mount.image(&image.id).join("effects/ledger.jsonl");
        let shown = std::fs::read_to_string(&path).unwrap();
        let whole = generated.store.blobs().get(&image.manifest.effects.ledger).unwrap();
        let whole = String::from_utf8(whole).unwrap();
        assert!(whole.contains(&image.secret), "the store itself has the secret");
        assert!(!shown.contains(&image.secret), "seed {}: the secret is shown", image.seed);
        assert_eq!(path.metadata().unwrap().len(), shown.len() as u64, "seed {}: size", image.seed);
        let (shown_header, shown_entries) = shown.split_once('\n').unwrap();
        let (whole_header, whole_entries) = whole.split_once('\n').unwrap();
        assert_eq!(shown_entries, whole_entries, "seed {}: the entries", image.seed);
        let mut shown_header: Value = serde_json::from_str(shown_header).unwrap();
        let mut whole_header: Value = serde_json::from_str(whole_header).unwrap();
        assert_ne!(shown_header["session_secret_hex"], whole_header["session_secret_hex"]);
        shown_header["session_secret_hex"] = Value::Null;
        whole_header["session_secret_hex"] = Value::Null;
        assert_eq!(shown_header, whole_header, "seed {}: the rest of the header", image.seed);
    }
    mount.unmount();
}

#[test]
fn agents_latest_and_parents_of_the_generated_images_lead_where_the_manifests_say() {
    let generated = &*GENERATED;
    let mount = Mount::of(generated.store.root()).start();
    assert_eq!(link_id(&mount.join("latest")), generated.latest().id);
    let mut by_agent: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for image in &generated.images {
        by_agent.entry(&image.manifest.agent.kind).or_default().push(&image.id);
        let parents: Vec<String> = image.manifest.parents.iter().map(|p| p.hex().to_owned()).collect();
        let folder = mount.image(&image.id).join("parents");
        let mut sorted = parents.clone();
        sorted.sort();
        assert_eq!(names(&folder).unwrap(), sorted, "parents of {}", image.id);
        for parent in parents {
            assert_eq!(std::fs::read_link(folder.join(&parent)).unwrap(), Path::new("../..").join(&parent));
            assert_eq!(hex_digest_of_file(&folder.join(&parent).join("manifest.json")).unwrap(), parent);
        }
    }
    assert_eq!(names(&mount.join("agents")).unwrap(), AGENTS);
    for (kind, mut ids) in by_agent {
        let folder = mount.join("agents").join(kind);
        let mut shown = Vec::new();
        for name in names(&folder).unwrap() {
            let id = link_id(&folder.join(&name));
            assert_eq!(name.rsplit('-').next().unwrap(), &id[..12], "{name}");
            shown.push(id);
        }
        shown.sort();
        ids.sort_unstable();
        assert_eq!(shown, ids, "images of {kind}");
    }
    mount.unmount();
}

/// The id of the image that a link leads to; panics unless the image is there.
fn link_id(link: &Path) -> String {
    let target = std::fs::read_link(link).unwrap_or_else(|e| panic!("{}: {e}", link.display()));
    let id = target.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(hex_digest_of_file(&link.join("manifest.json")).unwrap(), id, "{}", link.display());
    id
}

#[test]
fn a_unique_prefix_and_a_digest_lead_to_an_image_and_are_not_listed() {
    let mut store = FastStore::new();
    let template = store.manifest(&Spec { fingerprint: "@".into(), ..Spec::default() }).to_string();
    let mut seen = std::collections::HashMap::new();
    // Two images whose ids start with the same four digits.
    let (one, two) = (0..)
        .find_map(|n: u32| {
            let manifest = template.replace('@', &n.to_string());
            let prefix = hex_digest(manifest.as_bytes())[..4].to_owned();
            seen.insert(prefix, manifest.clone()).map(|earlier| (earlier, manifest))
        })
        .unwrap();
    let (one, two) = (store.image_of(one.as_bytes()), store.image_of(two.as_bytes()));
    let third = store.image(&Spec { fingerprint: "third".into(), ..Spec::default() });
    let common = (0..64).take_while(|n| one[..*n] == two[..*n]).count() - 1;
    let mount = Mount::of(store.root()).start();
    let images = mount.join("images");
    for (name, id) in [
        (&one[..=common], &one),
        (&two[..=common], &two),
        (&one[..63], &one),
        (&third[..4], &third),
        (&format!("sha256:{third}"), &third),
        (&format!("sha256:{one}"), &one),
    ] {
        assert_eq!(std::fs::read_link(images.join(name)).unwrap(), Path::new(id), "{name}");
        assert_eq!(hex_digest_of_file(&images.join(name).join("manifest.json")).unwrap(), *id, "{name}");
    }
    let nines = "9".repeat(64);
    for name in
        [&one[..4], &third[..3], "zzzz", "sha256:", &format!("sha256:{nines}"), &nines, &format!("{one}0")]
    {
        assert!(images.join(name).symlink_metadata().is_err(), "{name} is there");
    }
    let mut listed = vec![one, two, third];
    listed.sort();
    assert_eq!(names(&images).unwrap(), listed);
    mount.unmount();
}

#[test]
fn latest_is_the_newest_in_time_and_not_in_text() {
    let mut store = FastStore::new();
    let mut image = |time: &str, parents: Vec<String>| {
        store.image(&Spec {
            created_at: Some(time.into()),
            fingerprint: time.into(),
            parents,
            ..Spec::default()
        })
    };
    let absent = format!("sha256:{}", "ab".repeat(32));
    image("2026-11-20T23:00:00+14:00", vec![]);
    let newest = image("2026-11-20T09:20:56.312327059Z", vec![absent.clone()]);
    image("2026-11-20T09:20:56.312327058Z", vec![]);
    image("2026-11-20T09:20:56Z", vec![]);
    let mount = Mount::of(store.root()).start();
    assert_eq!(std::fs::read_link(mount.join("latest")).unwrap(), Path::new("images").join(&newest));
    // A parent that the store no longer has is still listed.
    let parents = mount.join("latest/parents");
    assert_eq!(names(&parents).unwrap(), [crate::common::bare(&absent)]);
    assert_eq!(errno(parents.join(crate::common::bare(&absent)).metadata()), libc::ENOENT);
    mount.unmount();
}

#[test]
fn an_image_is_named_by_tag_prefix_digest_and_latest_in_mount_and_command_alike() {
    let store = FastStore::new();
    let made =
        pfimg_on(store.root(), ["fixture", "--tag", "before", "--cache-pages", "2", "--world-files", "3"]);
    let id = crate::common::bare(made.exits(0).stdout.trim()).to_owned();
    assert_eq!(id.len(), 64, "fixture prints the id: {id}");
    let mount = Mount::of(store.root()).start();
    assert_eq!(names(&mount.join("tags")).unwrap(), ["before"]);
    assert_eq!(std::fs::read_link(mount.join("tags/before")).unwrap(), Path::new("../images").join(&id));
    assert_eq!(link_id(&mount.join("tags/before")), id);
    assert_eq!(names(&mount.join("tags/before/world/fs/src")).unwrap().len(), 3);
    for name in ["before", &id[..8], &id, &format!("sha256:{id}"), "latest"] {
        let shown = pfimg_on(store.root(), ["show", name]).exits(0).stdout;
        assert!(shown.contains(&id[..12]), "show {name}: {shown}");
        let by_option =
            crate::common::pfimg(["show", "--store", store.root().to_str().unwrap(), name]).exits(0);
        assert_eq!(by_option.stdout, shown, "--store and $PF_STORE");
    }
    for name in ["no-such-tag", &id[..3], "ffffffffffff", "sha256:12", "../x", ""] {
        let refused = pfimg_on(store.root(), ["show", name]).exits(5);
        assert!(!refused.stderr.trim().is_empty(), "show {name} says nothing");
    }
    let listed = pfimg_on(store.root(), ["images", "--json"]).exits(0).json();
    assert!(listed.to_string().contains(&id), "{listed}");
    assert!(pfimg_on(store.root(), ["images"]).exits(0).stdout.contains(&id[..12]));
    mount.unmount();
}

#[test]
fn the_layers_of_a_fixture_equal_those_of_the_real_one() {
    use pf_core::fixture::{
        FixtureCacheCapture, FixtureEffectsCapture, FixtureModelCapture, FixtureSpec, FixtureTraceCapture,
        FixtureWorldCapture,
    };
    let (_dir, dir) = temp_dir();
    let ours = FastStore::new();
    for (n, knobs) in
        [[3usize, 100, 4, 33, 1001, 5, 6, 0], [1, 16384, 1, 4096, 64, 16, 16, 77]].iter().enumerate()
    {
        let spec = FixtureSpec {
            cache_pages: knobs[0],
            page_bytes: knobs[1],
            world_files: knobs[2],
            world_file_bytes: knobs[3],
            model_diff_bytes: knobs[4],
            effects_entries: knobs[5],
            trace_messages: knobs[6],
            seed: knobs[7] as u64,
        };
        let store = pf_core::store::PfStore::open(dir.join(n.to_string())).unwrap();
        let agent =
            pf_core::manifest::AgentInfo { kind: "t".into(), version: "0".into(), fingerprint: "f".into() };
        let snapshotter = pf_core::snapshot::Snapshotter::new(
            agent,
            std::sync::Arc::new(FixtureModelCapture(spec.clone())),
            std::sync::Arc::new(FixtureCacheCapture(spec.clone())),
            std::sync::Arc::new(FixtureWorldCapture(spec.clone())),
            std::sync::Arc::new(FixtureEffectsCapture(spec.clone())),
            std::sync::Arc::new(FixtureTraceCapture(spec)),
        );
        let id = snapshotter.snapshot(&store, vec![]).unwrap();
        let real: Value = serde_json::to_value(store.get_manifest(&id).unwrap()).unwrap();
        let options = [
            "--cache-pages",
            "--page-bytes",
            "--world-files",
            "--world-file-bytes",
            "--model-diff-bytes",
            "--effects-entries",
            "--trace-messages",
            "--seed",
        ];
        let mut args = vec!["fixture".to_owned()];
        args.extend(
            options.iter().zip(knobs).flat_map(|(option, value)| [(*option).to_owned(), value.to_string()]),
        );
        let made = pfimg_on(ours.root(), &args).exits(0);
        let marker = std::fs::read(ours.marker_path(made.stdout.trim())).unwrap();
        let manifest: Value = serde_json::from_slice(&marker).unwrap();
        for layer in ["model", "cache", "world", "effects", "trace"] {
            assert_eq!(manifest[layer], real[layer], "{layer} for {args:?}");
        }
    }
}

#[test]
fn nothing_under_images_can_be_changed_and_the_answer_is_erofs() {
    let mut store = FastStore::new();
    let entries = [
        dir_entry("dir"),
        dir_entry("empty"),
        store.file("dir/file", b"content"),
        store.file("second", b"second"),
        link_entry("link", "second"),
    ];
    let fs = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mount = Mount::of(store.root()).args(["--xattrs", "--reveal-secrets"]).start();
    let image = mount.image(&id);
    let world = image.join("world/fs");
    let expect = |what: &str, path: &Path, result: std::io::Result<()>| {
        let got = errno(result);
        // An ordinary user may be turned away by the mode before the filesystem is asked.
        let accepted = got == libc::EROFS || (!crate::common::is_root() && got == libc::EACCES);
        assert!(accepted, "{what} {}: errno {got}", path.display());
    };
    for dir in [&world, &world.join("dir"), &image, &image.join("effects"), &mount.join("images")] {
        let new = dir.join("new");
        expect("create", &new, std::fs::File::create_new(&new).map(drop));
        expect("mkdir", &new, std::fs::create_dir(&new));
        expect("symlink", &new, symlink("x", &new));
        let fifo = rustix::fs::FileType::Fifo;
        let made = rustix::fs::mknodat(rustix::fs::CWD, &new, fifo, 0o600.into(), 0);
        expect("mknod", &new, made.map_err(Into::into));
        assert_eq!(errno(new.symlink_metadata()), libc::ENOENT);
    }
    let file = world.join("dir/file");
    let manifest = image.join("manifest.json");
    for path in [&file, &manifest, &image.join("effects/ledger.jsonl"), &image.join("model/base")] {
        let before = std::fs::read(path).unwrap();
        expect("unlink", path, std::fs::remove_file(path));
        expect(
            "write",
            path,
            std::fs::File::options().write(true).open(path).and_then(|f| f.write_all_at(b"x", 0)),
        );
        let append = std::fs::File::options().append(true).open(path);
        expect("append", path, append.and_then(|mut f| std::io::Write::write_all(&mut f, b"x")));
        expect("open to truncate", path, std::fs::File::create(path).map(drop));
        let truncate = std::fs::File::options().write(true).open(path).and_then(|f| f.set_len(3));
        expect("truncate", path, truncate);
        expect("chmod", path, std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)));
        expect("rename", path, std::fs::rename(path, world.join("renamed")));
        expect("rename onto", path, std::fs::rename(world.join("second"), path));
        expect("link", path, std::fs::hard_link(path, world.join("linked")));
        let xattr = rustix::fs::setxattr(path, "user.x", b"1", rustix::fs::XattrFlags::empty());
        expect("setxattr", path, xattr.map_err(Into::into));
        let times = std::fs::FileTimes::new().set_modified(std::time::SystemTime::now());
        expect("utimens", path, std::fs::File::open(path).and_then(|f| f.set_times(times)));
        assert_eq!(std::fs::read(path).unwrap(), before, "{} has changed", path.display());
    }
    expect("unlink of a link", &world, std::fs::remove_file(world.join("link")));
    expect("rmdir", &world, std::fs::remove_dir(world.join("empty")));
    expect("rmdir of an image", &image, std::fs::remove_dir(&image));
    expect("rename of an image", &image, std::fs::rename(&image, mount.join("images").join("f".repeat(64))));
    assert!(world.join("empty").is_dir() && image.is_dir());
    mount.unmount();
}

#[test]
fn sixteen_readers_of_a_blob_see_the_same_bytes_and_cost_one_fill() {
    let mut store = FastStore::new();
    let content = Rng::new(16).bytes(8 * MIB as usize + 5);
    let entry = store.file("large", &content);
    let fs = store.tree(&[entry]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let mount = Mount::of(store.root()).start();
    let path = mount.image(&id).join("world/fs/large");
    assert_eq!(path.metadata().unwrap().len(), content.len() as u64);
    let before = mount.metric("pfimg_blob_fills_total");
    std::thread::scope(|scope| {
        for reader in 0..16u64 {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                let file = std::fs::File::open(path).unwrap();
                let mut rng = Rng::new(reader);
                for _ in 0..50 {
                    let offset = rng.below(content.len() as u64 + 10);
                    let mut buffer = vec![0; 1 + rng.below(200_000) as usize];
                    let got = file.read_at(&mut buffer, offset).unwrap();
                    let expected = content.get(offset as usize..).unwrap_or_default();
                    let expected = &expected[..expected.len().min(buffer.len())];
                    assert!(
                        got == expected.len() && buffer[..got] == *expected,
                        "reader {reader} at {offset}"
                    );
                }
            });
        }
    });
    let fills = mount.metric("pfimg_blob_fills_total") - before;
    assert!((fills - 1.0).abs() < 0.5, "{fills} fills");
    mount.unmount();
}

#[test]
fn odd_frames_that_pf_accepts_are_read() {
    let mut store = FastStore::new();
    let content = Rng::new(3).bytes(100_000);
    let digest = format!("sha256:{}", hex_digest(&content));
    let skippable = |bytes: &[u8]| {
        [&0x184d_2a5e_u32.to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
    };
    let pack = |bytes: &[u8], level| zstd::bulk::compress(bytes, level).unwrap();
    let (left, right) = content.split_at(40_000);
    let forms: [(&str, Vec<u8>); 5] = [
        ("several frames", [pack(left, 3), pack(right, 19)].concat()),
        ("a skippable frame first", [skippable(b"hello"), pack(&content, 1)].concat()),
        ("a seek table at the end", [pack(left, 3), pack(right, 3), skippable(&[0; 17])].concat()),
        ("no content size", zstd::encode_all(&content[..], 19).unwrap()),
        ("an empty frame between", [pack(left, 3), pack(b"", 3), pack(right, 3)].concat()),
    ];
    for (what, packed) in forms {
        assert_eq!(zstd::decode_all(&packed[..]).unwrap(), content, "the reference reads {what}");
        std::fs::write(store.blob_path(&digest), packed).unwrap();
        let fs = store.tree(&[crate::common::fast::file_entry("f", &digest, content.len() as u64)]);
        let id = store.image(&Spec { fs: Some(fs), base: Some(digest.clone()), ..Spec::default() });
        let mount = Mount::of(store.root()).start();
        for path in ["world/fs/f", "model/base"] {
            assert!(std::fs::read(mount.image(&id).join(path)).unwrap() == content, "{path}: {what}");
        }
        mount.unmount();
    }
}

/// The user that the tests mount as when they run as root. It is in every `/etc/passwd`, which fusermount3 needs.
const NOBODY: u32 = 65534;

#[test]
fn an_ordinary_user_mounts_and_reads_through_fusermount3() {
    system::require_fuse();
    if !crate::common::is_root() {
        // Then every test of this file is one of an ordinary user already.
        assert!(system::which("fusermount3").is_some(), "fusermount3 is missing: install Debian's fuse3");
        return;
    }
    let mut store = FastStore::new();
    let entry = store.file("file", b"for all users");
    let fs = store.tree(&[entry]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let (_dir, dir) = temp_dir();
    let program = dir.join("pfimg");
    crate::common::cli::copy_program(crate::common::PFIMG, &program);
    for path in [dir.as_path(), store.root().parent().unwrap(), program.as_path()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    if system::which("fusermount3").is_none() {
        let point = dir.join("mnt");
        std::fs::create_dir(&point).unwrap();
        std::os::unix::fs::chown(&point, Some(NOBODY), Some(NOBODY)).unwrap();
        let args = [Path::new("mount"), store.root(), &point];
        let refused = Run::program(&program, args).env("HOME", "/nonexistent").user(Some(NOBODY)).run();
        assert!(refused.code != 0 && refused.stderr.contains("fuse3"), "{refused:?}");
        return;
    }
    let _device = DeviceForAll::open();
    let mut mount = Mount::of(store.root()).program(&program).user(NOBODY).start();
    let path = mount.image(&id).join("world/fs/file");
    let read = |path: &Path| Run::program(Path::new("/bin/cat"), [path]).user(Some(NOBODY)).run();
    assert_eq!(read(&path).exits(0).stdout, "for all users");
    assert_eq!(hex_digest(read(&mount.image(&id).join("manifest.json")).exits(0).stdout.as_bytes()), id);
    let line = system::mounts_at(mount.path()).pop().unwrap();
    for option in ["nosuid", "nodev"] {
        assert!(line.options.iter().any(|o| o == option), "{option} is missing: {line:?}");
    }
    Run::program(&program, [Path::new("umount"), mount.path()]).user(Some(NOBODY)).run().exits(0);
    assert!(mount.wait().success(), "{}", mount.log());
    assert!(system::types_at(mount.path()).is_empty());
}

/// Lets every user open `/dev/fuse`, as distributions do, until dropped.
struct DeviceForAll(Option<std::fs::Permissions>);

impl DeviceForAll {
    fn open() -> Self {
        let before = Path::new("/dev/fuse").metadata().unwrap().permissions();
        if before.mode() & 0o006 == 0o006 {
            return Self(None);
        }
        std::fs::set_permissions("/dev/fuse", std::fs::Permissions::from_mode(0o666)).unwrap_or_else(|e| {
            panic!(
                "ordinary users cannot open /dev/fuse and that cannot be changed ({e}): chmod 666 /dev/fuse"
            )
        });
        Self(Some(before))
    }
}

impl Drop for DeviceForAll {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            let _ = std::fs::set_permissions("/dev/fuse", before);
        }
    }
}

#[test]
fn common_tools_agree_with_the_content_of_the_store() {
    let mut store = FastStore::new();
    let entries =
        [store.file("one", b"1\n"), store.file("dir/two", b"2\n"), link_entry("dir/link", "../one")];
    let fs = store.tree(&entries);
    let cache = store.pages(9, 3);
    let id = store.image(&Spec { fs: Some(fs), cache: Some(cache), ..Spec::default() });
    let mount = Mount::of(store.root()).args(["--reveal-secrets"]).start();
    let image = mount.image(&id);
    for (path, bytes) in expected_files(&store, &id) {
        assert!(std::fs::read(image.join(&path)).unwrap() == bytes, "{path}");
    }
    let manifest = image.join("manifest.json");
    assert!(tool("sha256sum", [&manifest]).exits(0).stdout.starts_with(&id));
    assert_eq!(tool("cat", [image.join("world/fs/dir/link")]).exits(0).stdout, "1\n");
    let (_dir, copy) = temp_dir();
    tool("cp", [Path::new("-r"), &image.join("world/fs"), &copy.join("fs")]).exits(0);
    assert_eq!(
        tool("diff", [Path::new("-r"), &copy.join("fs"), &image.join("world/fs")]).exits(0).said(),
        ""
    );
    let listed = tool("ls", [image.as_path()]).exits(0).stdout;
    assert_eq!(listed, "cache\neffects\nmanifest.json\nmodel\nparents\ntrace\nworld\n");
    assert_eq!(names(&image.join("world")).unwrap(), ["env.json", "fs", "procs.json"]);
    let top = names(mount.path()).unwrap();
    assert!(!top.iter().any(|n| n == ".pfimg"), ".pfimg is listed: {top:?}");
    for name in ["agents", "images", "latest", "tags"] {
        assert!(top.iter().any(|n| n == name), "{name} is not listed: {top:?}");
    }
    for path in [".pfimg/status.json", ".pfimg/metrics"] {
        assert!(!std::fs::read(mount.join(path)).unwrap().is_empty(), "{path}");
        // It looks before it opens, and wants both to be one file. On a busy machine it may take its time in between.
        let there = copy.join(path.replace('/', "-"));
        let copied = || Command::new("cp").arg(mount.join(path)).arg(&there).status().unwrap().success();
        assert!((0..5).any(|_| copied()), "{path} was replaced during each copy");
        assert!(!std::fs::read(&there).unwrap().is_empty(), "{path}");
    }
    let before = mount.requests("lookup");
    assert!(mount.requests("lookup") > before, "an old version was read");
    mount.unmount();
}
