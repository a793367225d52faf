//! Imports of folders whose git files another user or an agent wrote, and imports of repositories in which git is working.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::adverse::import_while;
use super::git::{commit, copied, git, mended, repository};
use super::support::{House, exact};
use super::ties::ties;
use crate::common::Mount;

#[test]
fn links_of_a_hostile_folder_bring_in_no_other_files() {
    let house = House::new();
    let dir = |name: &str| house.dir.join(name);
    let (keys, bad) = (dir("keys"), dir("bad"));
    for name in ["objects", "refs", "info"] {
        fs::create_dir_all(keys.join(name)).unwrap();
        fs::write(keys.join(name).join("id_rsa"), "secret").unwrap();
    }
    fs::write(keys.join("config"), "secret").unwrap();
    repository(&bad, &[]);
    for name in ["info", "refs/x", "logs/refs"] {
        let _ = fs::remove_dir_all(bad.join(".git").join(name));
        symlink(keys.join("info"), bad.join(".git").join(name)).unwrap();
    }
    fs::create_dir_all(bad.join("sub")).unwrap();
    symlink(&keys, bad.join("sub/.git")).unwrap();
    fs::create_dir_all(bad.join("file")).unwrap();
    fs::write(bad.join("file/.git"), format!("gitdir: {}\n", keys.display())).unwrap();
    let alternates = bad.join(".git/objects/info/alternates");
    fs::create_dir_all(alternates.parent().unwrap()).unwrap();
    fs::write(&alternates, format!("{}\n", keys.join("objects").display())).unwrap();
    let (report, copy) = copied(&house, &bad, &[]);
    for path in exact(&copy).keys() {
        let file = copy.join(std::str::from_utf8(path).unwrap());
        if fs::symlink_metadata(&file).unwrap().is_file() {
            assert_ne!(fs::read(&file).unwrap(), b"secret", "{}", file.display());
        }
    }
    let left_out: Vec<_> =
        ties(&report).into_iter().filter(|tie| tie[0] == "git_left_out").map(|tie| tie[1].clone()).collect();
    assert_eq!(left_out, ["file/.git", "sub/.git"]);
}

#[test]
fn from_a_fork_nothing_outside_of_it_is_taken_in() {
    let house = House::new();
    let (main, project) = (house.dir.join("main"), house.dir.join("project"));
    repository(&main, &[]);
    repository(&project, &[]);
    house.import(&project, &["--tag", "project"]);
    let mount = Mount::of(&house.store()).args(["--seal", "manual"]).start();
    fs::create_dir(mount.join("forks/f@project")).unwrap();
    let fork = mount.join("forks/f/world/fs");
    fs::create_dir(fork.join("sub")).unwrap();
    fs::write(fork.join("sub/.git"), format!("gitdir: {}\n", main.join(".git").display())).unwrap();
    let objects = main.join(".git/objects");
    fs::create_dir_all(fork.join(".git/objects/info")).unwrap();
    fs::write(fork.join(".git/objects/info/alternates"), format!("{}\n", objects.display())).unwrap();
    fs::remove_dir_all(fork.join(".git/info")).unwrap();
    symlink(main.join(".git/info"), fork.join(".git/info")).unwrap();
    git(&fork, &["worktree", "add", "-q", "inner", "-b", "inner"]);
    let (report, copy) = copied(&house, &fork, &[]);
    assert_eq!(mended(&report), [("worktree", "inner/.git"), ("worktrees", ".git/worktrees")]);
    let kinds: Vec<_> = ties(&report).into_iter().map(|[kind, path, _]| format!("{kind} {path}")).collect();
    assert_eq!(
        kinds,
        [
            "git_left_out sub/.git",
            "git_alternates .git/objects/info/alternates",
            "git_alternates inner/.git/objects/info/alternates"
        ]
    );
    assert_eq!(git(&copy.join("inner"), &["status", "--porcelain"]), "");
    mount.unmount();
}

#[test]
fn git_that_works_while_its_repository_is_imported_leaves_a_sound_one_in_the_image() {
    type Work = fn(&Path);
    let works: [(&str, Work); 4] = [
        ("a commit", |dir| commit(dir, "a", "during")),
        ("a gc", |dir| drop(git(dir, &["gc", "-q", "--prune=now"]))),
        ("a gc after a commit", |dir| {
            commit(dir, "a", "during");
            git(dir, &["gc", "-q", "--prune=now"]);
        }),
        ("another branch", |dir| drop(git(dir, &["checkout", "-q", "-b", "new"]))),
    ];
    for (what, work) in works {
        for worktree in [false, true] {
            let house = House::new();
            let (main, tree) = (house.dir.join("main"), house.dir.join("tree"));
            repository(&main, &[]);
            git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
            let dir = if worktree { tree } else { main };
            // Only once: the files that are read afterwards would trigger it again.
            let done = AtomicBool::new(false);
            let image = import_while(&house, &dir, || {
                if !done.swap(true, Ordering::SeqCst) {
                    work(&dir);
                }
            });
            let out = house.dir.join("out");
            house.pfimg(["export", &image, out.to_str().unwrap()]).exits(0);
            git(&out, &["fsck", "--strict"]);
            for asked in [
                &["for-each-ref"][..],
                &["rev-parse", "HEAD"],
                &["rev-parse", "--symbolic-full-name", "HEAD"],
            ] {
                assert_eq!(git(&out, asked), git(&dir, asked), "{what}, a worktree: {worktree}");
            }
        }
    }
}

#[test]
fn the_folder_of_a_worktrees_state_gives_no_access_to_the_original() {
    let house = House::new();
    let (main, tree) = (house.dir.join("main"), house.dir.join("tree"));
    repository(&main, &[]);
    git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
    commit(&tree, "a", "2");
    fs::remove_file(tree.join(".git")).unwrap();
    fs::rename(main.join(".git/worktrees/tree"), tree.join(".git")).unwrap();
    fs::write(tree.join(".git/commondir"), format!("{}\n", main.join(".git").display())).unwrap();
    let was = git(&tree, &["status", "--porcelain", "--branch"]);
    let original = exact(&main);
    let (report, copy) = copied(&house, &tree, &[]);
    assert_eq!(mended(&report), [("worktree", ".git")]);
    assert_eq!(git(&copy, &["status", "--porcelain", "--branch"]), was);
    assert!(!copy.join(".git/commondir").exists());
    commit(&copy, "a", "in the copy");
    git(&copy, &["fsck", "--strict"]);
    assert_eq!(exact(&main), original);
}
