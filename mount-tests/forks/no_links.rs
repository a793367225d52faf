//! Stores on filesystems without hard links, as exfat is: link(2) fails there. The tests have it fail for the
//! program alone.

use std::fs;
use std::path::Path;

use crate::common::cli::{Output, Run, tool};
use crate::common::forks::{big, fork, world};
use crate::common::{Mount, is_root, names};

/// What filesystems without hard links say.
const REFUSALS: [i32; 3] = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS];

#[track_caller]
fn without_links(error: i32, store: &Path, args: &[&str]) -> Output {
    let args =
        args.iter().map(|arg| (*arg).to_owned()).chain(["--store".into(), store.display().to_string()]);
    Run::new(args).without_links(error).run().exits(0)
}

/// A folder to import: a small file and a large one.
fn folder(at: &Path) -> String {
    fs::create_dir_all(at).unwrap();
    fs::write(at.join("small"), "small\n").unwrap();
    fs::write(at.join("large"), big()).unwrap();
    at.display().to_string()
}

/// Writes into a fork what lies in a data file, and what a seal keeps out of its image.
fn write_into(world: &Path) {
    fs::write(world.join("own"), big()).unwrap();
    fs::write(world.join(".pfignore"), "kept\n").unwrap();
    fs::write(world.join("kept"), big()).unwrap();
}

#[track_caller]
fn holds_what_was_written(world: &Path) {
    assert!(fs::read(world.join("own")).unwrap() == big() && fs::read(world.join("kept")).unwrap() == big());
    assert!(fs::read(world.join("large")).unwrap() == big());
}

#[test]
fn every_command_works_on_a_filesystem_without_hard_links() {
    for error in REFUSALS {
        let dir = tempfile::tempdir().unwrap();
        let (store, out) = (dir.path().join("store"), dir.path().join("out"));
        let source = folder(&dir.path().join("source"));
        let cache = dir.path().join("cache").display().to_string();
        let run = |args: &[&str]| without_links(error, &store, args);
        run(&["import", &source, "--tag", "t", "--cache-dir", &cache]);
        let taken = Run::new(
            ["tag", "t", "t", "--store"].map(str::to_owned).into_iter().chain([store.display().to_string()]),
        );
        taken.without_links(error).run().exits(6);
        for args in [
            &["tag", "t", "u"][..],
            &["cp", "t", "v"],
            &["untag", "v"],
            &["fork", "t", "f"],
            &["fork", "f", "g"],
            &["mv", "g", "h"],
            &["seal", "f", "--tag", "sealed"],
            &["discard", "h"],
            &["export", "sealed", &out.display().to_string()],
            &["gc", "--grace", "0s"],
            &["verify"],
        ] {
            run(args);
        }
        assert!(fs::read(out.join("large")).unwrap() == big());
        assert_eq!(names(&store.join("refs/tags")).unwrap(), ["sealed", "t", "u"]);
        assert_eq!(names(&store.join("forks/heads")).unwrap(), ["f.json"]);
    }
}

#[test]
fn forks_with_large_files_are_branched_sealed_and_restored_without_hard_links() {
    if !is_root() {
        // fusermount3 has no rights in a process that may not get new ones.
        return;
    }
    for error in REFUSALS {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let source = folder(&dir.path().join("source"));
        let cache = dir.path().join("cache").display().to_string();
        without_links(error, &store, &["import", &source, "--tag", "t", "--cache-dir", &cache]);
        let mount = Mount::of(&store).args(["--seal", "manual"]).without_links(error).start();
        played(&mount);
        drop(mount);
        let mount = Mount::of(&store).args(["--seal", "manual"]).start();
        for name in ["f", "branch", "copy"] {
            holds_what_was_written(&world(&mount, name));
        }
    }
}

/// Forks one fork in every way, seals it with something kept out, and puts a branch back.
fn played(mount: &Mount) {
    let f = fork(mount, "f", "t");
    write_into(&f);
    let branch = fork(mount, "branch", "f");
    holds_what_was_written(&branch);
    tool("cp", [Path::new("-r"), &mount.join("forks/f"), &mount.join("forks/copy")]).exits(0);
    holds_what_was_written(&world(mount, "copy"));
    for _ in 0..2 {
        fs::create_dir(mount.join("forks/f/.snap/seal"))
            .or_else(|_| fs::create_dir(mount.join("forks/f/.snap/again")))
            .unwrap();
        holds_what_was_written(&f);
        assert!(!mount.join("tags/seal/world/fs/kept").exists());
        fs::write(f.join("kept"), big()).unwrap();
        fs::write(f.join("more"), "more").unwrap();
    }
    fs::write(f.join("more"), "less").unwrap();
    assert_eq!(fs::read(mount.join("tags/seal/world/fs/own")).unwrap().len(), big().len());
}
