//! Which files an import includes, and what it reports: mounts, other filesystems, pfimg's own folders, deep paths.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use serde_json::Value;

use super::support::{House, id};
use crate::common::cli::Run;
use crate::common::{Mount, Rng, is_root, wait_until};

/// The paths in an image.
fn paths(house: &House, report: &Value) -> Vec<String> {
    house.pf_tree(&id(report)).entries.into_iter().map(|entry| entry.path).collect()
}

/// A list of texts in what `--json` says.
fn list<'a>(report: &'a Value, name: &str) -> Vec<&'a str> {
    report[name].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn a_mount_in_an_imported_folder_is_an_empty_folder_whatever_becomes_of_it() {
    let house = House::new();
    let home = house.dir.join("home");
    for name in ["work", "pf"] {
        fs::create_dir_all(home.join(name)).unwrap();
    }
    fs::write(home.join("work/file"), Rng::new(1).bytes(100_000)).unwrap();
    let plain = house.import(&home, &["--tag", "plain"]);
    let blobs = || walk(&house.store().join("blobs"));
    let few = blobs().len();
    let mount = |args: &[&str]| Mount::of(&house.store()).at(&home.join("pf")).args(args).start();
    let first = mount(&["--seal", "manual"]);
    let mounted = house.import(&home, &[]);
    assert_eq!(paths(&house, &mounted), paths(&house, &plain));
    assert_eq!(list(&mounted, "not_entered"), ["pf"]);
    let says = list(&mounted, "reports").join("\n");
    assert!(
        says.contains("home/pf is imported as an empty directory") && says.contains("store is mounted"),
        "{says}"
    );
    let unchanged = |when: &str| {
        let again = house.import(&home, &["--jobs", "1"]);
        assert_eq!((again["new"].as_bool(), id(&again)), (Some(false), id(&mounted)), "{when}");
    };
    unchanged("the same mount");
    // One that does not answer is not waited for.
    first.signal(Signal::STOP);
    unchanged("a stopped daemon");
    first.signal(Signal::CONT);
    first.unmount();
    let mut second = mount(&["--read-only"]);
    unchanged("another mount");
    second.kill();
    unchanged("a daemon that was killed");
    second.abandon();
    // Its tree and its manifest, and nothing of the store.
    assert!(blobs().len() <= few + 2, "{} blobs, {few} before", blobs().len());
    Run::new([OsStr::new("umount"), home.join("pf").as_os_str()]).run().exits(0);
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
fn only_the_files_of_one_fork_are_imported_from_a_mount() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/file"), "file").unwrap();
    house.import(&dir, &["--tag", "base"]);
    let mount = Mount::of(&house.store()).args(["--seal", "manual"]).start();
    fs::create_dir(mount.join("forks/f@base")).unwrap();
    for inside in ["", "images", "forks", "agents/pfimg", "tags", "work"] {
        let refused = house.pfimg(["import", mount.join(inside).to_str().unwrap()]).exits(2).stderr;
        assert!(refused.contains("shows the images and forks of"), "{inside}: {refused}");
    }
    let report = house.import(&mount.join("work/f/sub"), &[]);
    assert_eq!(paths(&house, &report), ["file"]);
    mount.unmount();
}

#[test]
fn the_cache_and_the_logs_of_pfimg_are_in_no_image() {
    let house = House::new();
    let home = house.dir.join("home");
    fs::create_dir_all(home.join("work")).unwrap();
    fs::write(home.join("work/big"), Rng::new(2).bytes(3_000_000)).unwrap();
    fs::create_dir_all(home.join("pf")).unwrap();
    let run = |args: &[&OsStr]| {
        let run = Run::new(args).env("HOME", &home).env("PF_STORE", home.join(".processfork"));
        run.env("XDG_CACHE_HOME", home.join(".cache"))
            .env("XDG_STATE_HOME", home.join(".state"))
            .run()
            .exits(0)
    };
    let import = || run(&["import".as_ref(), home.as_os_str(), "--json".as_ref()]).json();
    let use_it = |args: &[&str]| {
        let point = home.join("pf");
        let mut all: Vec<&OsStr> = vec!["mount".as_ref()];
        all.extend(args.iter().map(OsStr::new));
        all.push(point.as_os_str());
        let guard = crate::common::mount::Background { point: point.clone(), pid: None };
        run(&all);
        fs::read(point.join("latest/world/fs/work/big")).unwrap();
        run(&["umount".as_ref(), point.as_os_str()]);
        drop(guard);
    };
    import();
    use_it(&[]);
    // A cache folder that the user chose has the mark too.
    let other = home.join("cache of mine");
    use_it(&["--cache-dir", other.to_str().unwrap()]);
    for cache in [&home.join(".cache/pfimg"), &other] {
        let mark = fs::read_to_string(cache.join("CACHEDIR.TAG")).unwrap();
        assert!(mark.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"), "{mark}");
    }
    let first = import();
    use_it(&[]);
    use_it(&["--cache-dir", other.to_str().unwrap()]);
    let second = import();
    assert_eq!((second["new"].as_bool(), id(&second)), (Some(false), id(&first)));
    assert_eq!(
        list(&first, "not_entered"),
        [".cache/pfimg", ".processfork", ".state/pfimg", "cache of mine"]
    );
    assert_eq!(first["files"], 1);
    // The mark of another program's cache is a file as any other.
    fs::create_dir(home.join("work/target")).unwrap();
    fs::write(
        home.join("work/target/CACHEDIR.TAG"),
        "Signature: 8a477f597d28d172789f06886806bc55\n# cargo\n",
    )
    .unwrap();
    assert_eq!(import()["files"], 2);
}

/// A filesystem that is mounted until this is dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn other_filesystems_are_entered_unless_they_are_not_wanted() {
    if !is_root() {
        // Only root mounts a filesystem to be seen by others.
        return;
    }
    let house = House::new();
    let dir = house.dir.join("dir");
    for name in ["own", "disk", "bound", "../else"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::write(dir.join("own/a"), "1").unwrap();
    fs::write(house.dir.join("else/e"), "e").unwrap();
    let disk = dir.join("disk");
    rustix::mount::mount("none", &disk, "tmpfs", MountFlags::empty(), None).unwrap();
    let _disk = Mounted(disk.clone());
    rustix::mount::mount_bind(house.dir.join("else"), dir.join("bound")).unwrap();
    let _bound = Mounted(dir.join("bound"));
    fs::write(disk.join("b"), "2").unwrap();
    let all = house.import(&dir, &[]);
    assert_eq!(paths(&house, &all), ["bound", "bound/e", "disk", "disk/b", "own", "own/a"]);
    assert!(list(&all, "not_entered").is_empty());
    // As with tar: by device, so that what is bound from the same filesystem is entered.
    let one = house.import(&dir, &["--one-file-system"]);
    assert_eq!(paths(&house, &one), ["bound", "bound/e", "disk", "own", "own/a"]);
    assert_eq!(list(&one, "not_entered"), ["disk"]);
    assert!(list(&one, "reports")[0].contains("another filesystem is mounted there"), "{one}");
    assert_eq!(paths(&house, &house.import(&disk, &["--one-file-system"])), ["b"]);
}

#[test]
fn a_path_longer_than_the_kernel_takes_is_exported_and_imported() {
    let house = House::new();
    let dir = house.dir.join("deep");
    fs::create_dir(&dir).unwrap();
    let name = "n".repeat(200);
    let mut folder = rustix::fs::open(&dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..30 {
        rustix::fs::mkdirat(&folder, &*name, Mode::RWXU).unwrap();
        folder = rustix::fs::openat(&folder, &*name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(&folder, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    rustix::io::write(&file, b"at the bottom").unwrap();
    let has_attributes =
        rustix::fs::fsetxattr(&file, c"user.note", b"deep", rustix::fs::XattrFlags::empty()).is_ok();
    rustix::fs::symlinkat("file", &folder, "link").unwrap();
    let first = house.import(&dir, &["--tag", "deep"]);
    assert_eq!(first["files"], 1);
    let tree = house.tree_json(&id(&first));
    let entry = tree["entries"].as_array().unwrap().iter().find(|entry| entry["kind"] == "file").unwrap();
    assert!(entry["path"].as_str().unwrap().len() > 6000);
    assert_eq!(entry.to_string().contains("user.note"), has_attributes, "{entry}");
    let out = house.dir.join("out");
    house.pfimg(["export", "deep", out.to_str().unwrap()]).exits(0);
    let again = house.import(&out, &[]);
    assert_eq!(house.tree_json(&id(&again)), tree, "the same files, times and attributes");
    // Known by the index as any other.
    wait_until("the files are older than the index", || house.import(&dir, &[])["files_read"] == 0);
}

#[test]
fn paths_left_out_are_named_or_counted_with_their_rules() {
    let house = House::new();
    let dir = house.dir.join("d");
    let make = |name: &str| {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("f"), name).unwrap();
    };
    for name in ["target", "__pycache__", "mine"] {
        make(name);
    }
    let import = |args: &[&str]| {
        let all = ["import", dir.to_str().unwrap()];
        house.pfimg(all.iter().chain(args)).stderr
    };
    let said = import(&[]);
    assert!(!said.contains("left out"), "{said}");
    let said = import(&["--pf-ignores"]);
    assert!(said.contains("left out: __pycache__, target (2 by --pf-ignores)\n"), "{said}");
    fs::write(dir.join(".pfignore"), "target\n").unwrap();
    let said = import(&["--ignore", "mine"]);
    assert!(said.contains("left out: mine, target (1 by .pfignore, 1 by --ignore)\n"), "{said}");
    for n in 0..300 {
        make(&format!("d{n}/target"));
    }
    let said = import(&[]);
    assert!(said.contains("301 paths left out") && said.contains(" and 298 more"), "{said}");
    assert!(said.lines().count() < 10, "{said}");
    let report = house.import(&dir, &[]);
    assert_eq!(
        (report["left_out_by"]["ignore_file"].as_u64(), list(&report, "left_out_paths").len()),
        (Some(301), 100)
    );
    // The hint concerns the problem with the tag.
    let tagged = |text: &str, args: &[&str]| {
        fs::write(dir.join("keep"), text).unwrap();
        import(args)
    };
    tagged("1", &["--tag", "t"]);
    assert!(tagged("2", &["--tag", "t"]).contains("--force"));
    assert!(!tagged("3", &["--tag", "bad/../name", "--force"]).contains("--force takes"));
}
