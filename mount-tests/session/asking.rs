//! Ways to ask for a mount: stores, places, options, paths, users. Impossible requests are refused with clear messages.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::support::{mount_in_background, point, read, small_store};
use crate::common::cli::{Run, pfimg_on, tool};
use crate::common::fast::{FastStore, Spec};
use crate::common::mount::Background;
use crate::common::{Mount, Output, errno, is_root, names, pfimg, system, temp_dir};

#[test]
fn mounting_twice_at_one_place_is_refused_and_harms_nothing() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let args = [OsStr::new("mount"), store.root().as_os_str(), mount.path().as_os_str()];
    let (_dir, home) = temp_dir();
    let refused = Run::new(args).env("HOME", home).run();
    assert!(refused.code != 0 && !refused.stderr.trim().is_empty(), "{refused:?}");
    assert_eq!(system::types_at(mount.path()).len(), 1);
    assert_eq!(read(&mount, &id), b"content");
    mount.unmount();
}

#[test]
fn one_of_several_concurrent_mounts_at_one_place_is_made() {
    let (store, id) = small_store();
    let (_dir, point) = point();
    for round in 0..10 {
        let outcomes: Vec<Output> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let args = [OsStr::new("mount"), store.root().as_os_str(), point.as_os_str()];
                        Run::new(args).env("HOME", point.parent().unwrap()).run()
                    })
                })
                .collect();
            starting.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let _guard = Background { point: point.clone(), pid: None };
        let made = outcomes.iter().filter(|output| output.code == 0).count();
        assert_eq!((made, system::types_at(&point).len()), (1, 1), "round {round}: {outcomes:?}");
        for refused in outcomes.iter().filter(|output| output.code != 0) {
            assert!(refused.stderr.contains("mounted at"), "round {round}: {refused:?}");
        }
        assert_eq!(std::fs::read(point.join("images").join(&id).join("world/fs/file")).unwrap(), b"content");
        pfimg([OsStr::new("umount"), point.as_os_str()]).exits(0);
        assert!(system::types_at(&point).is_empty(), "round {round}");
    }
}

#[test]
fn a_mountpoint_above_files_of_the_daemon_is_refused_before_anything_is_mounted() {
    let (store, id) = small_store();
    let (_dir, home) = temp_dir();
    let above = store.root().parent().unwrap().to_owned();
    std::fs::create_dir_all(home.join("mnt/cache")).unwrap();
    let mnt = home.join("mnt");
    for (point, cache, says) in [
        (store.root(), home.join("cache"), "the store"),
        (&above, home.join("cache"), "the store"),
        (&mnt, mnt.join("cache"), "the cache directory"),
        (&mnt, mnt.join("not/yet/there"), "the cache directory"),
    ] {
        let (output, _guard) =
            mount_in_background(store.root(), point, &["--cache-dir", cache.to_str().unwrap()]);
        let output = output.exits(2);
        assert!(output.stderr.contains(says), "{}: {}", point.display(), output.stderr);
        assert!(system::types_at(point).is_empty(), "{} is a mount", point.display());
    }
    // A place below the store does no harm.
    let below = store.root().join("mnt");
    std::fs::create_dir(&below).unwrap();
    let mount = Mount::of(store.root()).at(&below).start();
    assert_eq!(read(&mount, &id), b"content");
    mount.unmount();
}

#[test]
fn a_folder_that_holds_something_shows_it_again_after_the_mount() {
    let (store, id) = small_store();
    let (_dir, point) = point();
    std::fs::write(point.join("mine"), b"was there").unwrap();
    let mount = Mount::of(store.root()).at(&point).args(["--nonempty"]).start();
    assert_eq!(read(&mount, &id), b"content");
    assert_eq!(errno(std::fs::metadata(point.join("mine"))), libc::ENOENT);
    mount.unmount();
    assert_eq!(std::fs::read(point.join("mine")).unwrap(), b"was there");
    assert_eq!(names(&point).unwrap(), ["mine"]);
}

#[test]
fn a_store_can_be_mounted_at_two_places_with_one_cache() {
    let (store, id) = small_store();
    let (_dir, dir) = temp_dir();
    let cache = dir.join("cache");
    let args = [Path::new("--cache-dir"), &cache];
    let one = Mount::of(store.root()).args(args).start();
    let two = Mount::of(store.root()).args(args).start();
    assert_eq!(read(&one, &id), b"content");
    one.unmount();
    assert_eq!(read(&two, &id), b"content");
    two.unmount();
}

#[test]
fn a_directory_that_is_not_a_store_gives_a_clear_error() {
    let (_dir, dir) = temp_dir();
    let make = |name: &str| {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        dir.join(name)
    };
    let full = make("full of other things");
    std::fs::write(full.join("letter.txt"), b"dear").unwrap();
    let file = dir.join("file");
    std::fs::write(&file, b"no folder").unwrap();
    let empty = make("empty");
    for (what, store) in
        [("missing", dir.join("missing")), ("empty", empty), ("no store", full), ("a file", file)]
    {
        let point = make("mnt");
        let (output, _guard) = mount_in_background(&store, &point, &[]);
        let output = output.exits(5);
        assert!(output.stderr.contains(store.to_str().unwrap()), "{what}: {}", output.stderr);
        assert_eq!(output.stderr.trim().lines().count(), 1, "{what}: {}", output.stderr);
        assert!(system::types_at(&point).is_empty(), "{what}: mounted");
        for command in ["images", "verify"] {
            let output = pfimg_on(&store, [command]).exits(5);
            assert!(output.stderr.contains(store.to_str().unwrap()), "{what}: {command}: {}", output.stderr);
        }
    }
    assert!(!dir.join("missing").exists(), "a store was made");
    assert!(names(&dir.join("empty")).unwrap().is_empty(), "something was written into an empty folder");
}

#[test]
fn an_image_of_a_newer_schema_gives_a_clear_error() {
    let mut store = FastStore::new();
    let id = store.image(&Spec { schema: Some(2), ..Spec::default() });
    let output = pfimg_on(store.root(), ["show", &id]).exits(8);
    assert!(output.stderr.to_lowercase().contains("schema"), "{}", output.stderr);
    let mount = Mount::of(store.root()).start();
    assert_eq!(errno(std::fs::read(mount.image(&id).join("model/base"))), libc::EIO);
    assert!(!mount.log_lines(&[&id[..12], "schema"]).is_empty(), "{}", mount.log());
    mount.unmount();
}

#[test]
fn a_place_that_cannot_be_mounted_at_gives_a_clear_error() {
    let (store, _) = small_store();
    let (_dir, dir) = temp_dir();
    std::fs::write(dir.join("file"), b"x").unwrap();
    for name in ["missing", "file"] {
        let point = dir.join(name);
        let (output, _guard) = mount_in_background(store.root(), &point, &[]);
        assert!(output.code != 0 && output.stderr.contains(name), "{output:?}");
        assert!(system::types_at(&point).is_empty());
    }
}

#[test]
fn mount_options_are_those_of_mount_8_and_unknown_ones_are_refused() {
    let (store, id) = small_store();
    for bad in ["bogus", "noexec,bogus", "suid=1", "uid=0", "fd=3", "rootmode=40000"] {
        let (_dir, point) = point();
        let (output, _guard) = mount_in_background(store.root(), &point, &["-o", bad]);
        let output = output.exits(2);
        let name = bad.rsplit(',').next().unwrap().split('=').next().unwrap();
        assert!(output.stderr.contains(name), "{bad}: {}", output.stderr);
        assert!(system::types_at(&point).is_empty(), "{bad}: mounted");
    }
    let options_of = |args: &[&str]| {
        let mount = Mount::of(store.root()).args(args).start();
        assert_eq!(read(&mount, &id), b"content", "{args:?}");
        let line = system::mounts_at(mount.path()).pop().unwrap();
        mount.unmount();
        line.options
    };
    let has = |options: &[String], name: &str| options.iter().any(|o| o == name);
    let options = options_of(&[]);
    assert!(has(&options, "nosuid") && has(&options, "nodev"), "{options:?}");
    let options = options_of(&["-o", "noexec,noatime"]);
    assert!(has(&options, "noexec") && has(&options, "nosuid") && has(&options, "nodev"), "{options:?}");
    for args in [["-o", "ro"].as_slice(), &["--read-only"]] {
        let options = options_of(args);
        assert!(has(&options, "ro") && has(&options, "nosuid"), "{args:?}: {options:?}");
    }
    if is_root() {
        let options = options_of(&["-o", "suid,dev"]);
        assert!(!has(&options, "nosuid") && !has(&options, "nodev"), "{options:?}");
    } else {
        let (_dir, point) = point();
        let (output, _guard) = mount_in_background(store.root(), &point, &["-o", "suid"]);
        assert!(output.code != 0 && output.stderr.contains("suid"), "{output:?}");
    }
}

#[test]
fn without_fusermount3_the_error_names_the_package() {
    if is_root() {
        // Root needs no helper: an empty search path must not matter.
        let (store, id) = small_store();
        let (_dir, point) = point();
        let home = point.parent().unwrap().to_owned();
        let mut background = Background { point: point.clone(), pid: None };
        let args = [OsStr::new("mount"), store.root().as_os_str(), point.as_os_str()];
        Run::new(args).env("HOME", &home).env("PATH", &home).run().exits(0);
        let status: serde_json::Value =
            serde_json::from_slice(&std::fs::read(point.join(".pfimg/status.json")).unwrap()).unwrap();
        background.pid = status["pid"].as_u64().map(|pid| pid as u32);
        assert!(point.join("images").join(id).is_dir());
        pfimg([OsStr::new("umount"), point.as_os_str()]).exits(0);
        return;
    }
    let (store, _) = small_store();
    let (_dir, point) = point();
    let _guard = Background { point: point.clone(), pid: None };
    let args = [OsStr::new("mount"), store.root().as_os_str(), point.as_os_str()];
    let output =
        Run::new(args).env("PATH", point.parent().unwrap()).env("HOME", point.parent().unwrap()).run();
    assert!(output.code != 0 && output.stderr.contains("fuse3"), "{output:?}");
}

#[test]
fn a_mount_does_without_a_log_where_the_home_cannot_be_written() {
    let (store, id) = small_store();
    for options in [&[][..], &["--log", "/proc/none/log"]] {
        let (_dir, point) = point();
        let mut background = Background { point: point.clone(), pid: None };
        let mut args = vec![OsStr::new("mount"), store.root().as_os_str(), point.as_os_str()];
        args.extend(options.iter().map(OsStr::new));
        let said = Run::new(args).env("HOME", "/proc/none").run();
        if options.is_empty() {
            let said = said.exits(0);
            assert!(said.stderr.contains("/proc/none") && said.stderr.contains("--log"), "{said:?}");
            let status = std::fs::read(point.join(".pfimg/status.json")).unwrap();
            let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
            background.pid = status["pid"].as_u64().map(|pid| pid as u32);
            assert!(point.join("images").join(&id).is_dir());
            pfimg([OsStr::new("umount"), point.as_os_str()]).exits(0);
        } else {
            // A log that the caller asked for must exist.
            assert!(said.code != 0 && said.stderr.contains("/proc/none/log"), "{said:?}");
        }
    }
}

#[test]
fn a_user_without_a_name_gets_a_remedy_that_works() {
    const NAMELESS: u32 = 54321;
    let listed = std::fs::read_to_string("/etc/passwd").unwrap();
    if !is_root() || listed.contains(&format!(":{NAMELESS}:")) {
        // Only root can become such a user.
        return;
    }
    let (store, _) = small_store();
    let (dir, home) = temp_dir();
    let program = home.join("pfimg");
    crate::common::cli::copy_program(crate::common::PFIMG, &program);
    std::fs::create_dir(home.join("mnt")).unwrap();
    for path in [dir.path(), store.root(), store.root().parent().unwrap()] {
        tool("chown", [OsStr::new("-R"), OsStr::new("54321:54321"), path.as_os_str()]).exits(0);
        tool("chmod", [OsStr::new("go+rx"), path.as_os_str()]).exits(0);
    }
    let script = "\"$0\" mount \"$1\" \"$2\" && ls \"$2\" && \"$0\" umount \"$2\"";
    let words = [OsStr::new("sh"), OsStr::new("-c"), OsStr::new(script), program.as_os_str()];
    let mount = |before: &[&str]| {
        let before = before.iter().map(OsStr::new);
        let after = words.into_iter().chain([store.root().as_os_str()]);
        let point = home.join("mnt");
        let args: Vec<_> = before.chain(after).chain([point.as_os_str()]).map(OsStr::to_owned).collect();
        Run::program(Path::new("env"), args).env("HOME", &home).user(Some(NAMELESS)).run()
    };
    let said = mount(&[]);
    assert!(said.code != 0, "{said:?}");
    for word in ["username", "/etc/passwd", "unshare --user --map-root-user --mount"] {
        assert!(said.stderr.contains(word), "{word}: {said:?}");
    }
    let said = mount(&["unshare", "--user", "--map-root-user", "--mount"]).exits(0);
    assert!(said.stdout.contains("images"), "{said:?}");
}

#[test]
fn relative_and_unusual_paths_are_taken_literally() {
    let (store, id) = small_store();
    let (_dir, home) = temp_dir();
    // Everything that mountinfo has to escape, and what a shell would trip over.
    let odd = "a b\tc\nd\\e#f'g\"h é🦀";
    std::os::unix::fs::symlink(store.root(), home.join("store link")).unwrap();
    std::fs::create_dir(home.join(odd)).unwrap();
    std::os::unix::fs::symlink(odd, home.join("mnt link")).unwrap();
    let point = home.join(odd);
    let run = |args: &[&str]| Run::new(args).dir(&home).env("HOME", &home).run();
    for (mnt, umount) in
        [(odd, "mnt link"), ("mnt link/", odd), (&format!("./{odd}/"), "mnt link/../mnt link/")]
    {
        let mut background = Background { point: point.clone(), pid: None };
        run(&["mount", "store link", mnt, "--cache-dir", "cache of mine"]).exits(0);
        let status = run(&["status", umount, "--json"]).exits(0).json();
        background.pid = status["pid"].as_u64().map(|pid| pid as u32);
        assert_eq!(Path::new(status["mountpoint"].as_str().unwrap()), point, "{mnt:?}");
        assert_eq!(Path::new(status["store"].as_str().unwrap()), store.root(), "{mnt:?}");
        assert_eq!(std::fs::read(point.join("images").join(&id).join("world/fs/file")).unwrap(), b"content");
        run(&["umount", umount]).exits(0);
        assert!(system::types_at(&point).is_empty(), "{umount:?}");
    }
}

#[test]
fn a_store_of_any_name_is_mounted_and_found_by_the_commands() {
    let (store, id) = small_store();
    let (_dir, home) = temp_dir();
    for name in ["with space", "comma,ro,x=y", "back\\slash", "new\nline", "tab\t", "-o", "é🦀", "sha256:ab"]
    {
        let root = home.join(name);
        crate::common::cli::tool("cp", [OsStr::new("-r"), store.root().as_os_str(), root.as_os_str()])
            .exits(0);
        let mount = Mount::of(&root).start();
        assert_eq!(read(&mount, &id), b"content", "{name:?}");
        let line = system::mounts_at(mount.path()).pop().unwrap();
        assert!(!line.options.iter().any(|option| option == "ro"), "{name:?}: {line:?}");
        // Only through the mount: it writes the forks, and is found by its store's name.
        pfimg_on(&root, ["fork", "latest", "try"]).exits(0);
        assert_eq!(std::fs::read(mount.join("work/try/file")).unwrap(), b"content", "{name:?}");
        mount.unmount();
    }
}

#[test]
fn other_users_get_in_only_with_allow_other_and_never_past_the_modes() {
    if !is_root() {
        // An ordinary user needs a line in /etc/fuse.conf for it, and the error says so.
        let (store, _) = small_store();
        let (_dir, point) = point();
        let (output, _guard) = mount_in_background(store.root(), &point, &["--allow-other"]);
        assert!(output.code == 0 || output.stderr.contains("user_allow_other"), "{output:?}");
        return;
    }
    let mut store = FastStore::new();
    let mut private = store.file("private", b"for the owner");
    private["mode"] = "0600".into();
    let mut closed = store.file("closed/inside", b"for the owner");
    closed["mode"] = "0644".into();
    let mut folder = crate::common::fast::dir_entry("closed");
    folder["mode"] = "0700".into();
    let public = store.file("public", b"for all users");
    let fs = store.tree(&[private, folder, closed, public]);
    let id = store.image(&Spec { fs: Some(fs), ..Spec::default() });
    let (_dir, dir) = temp_dir();
    let point = dir.join("mnt");
    std::fs::create_dir(&point).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let read = |path: &str| {
        let path = point.join("images").join(&id).join(path);
        Run::program(Path::new("/bin/cat"), [path]).user(Some(65534)).run()
    };
    let alone = Mount::of(store.root()).at(&point).start();
    assert!(read("world/fs/public").code != 0, "another user got in");
    alone.unmount();
    let shared = Mount::of(store.root()).at(&point).args(["--allow-other"]).start();
    assert_eq!(read("world/fs/public").exits(0).stdout, "for all users");
    assert!(read("manifest.json").code == 0);
    for path in ["world/fs/private", "world/fs/closed/inside"] {
        let refused = read(path);
        assert!(refused.code != 0 && refused.stderr.contains("Permission denied"), "{path}: {refused:?}");
    }
    shared.unmount();
}
