//! Git repositories that depend on another folder are complete in the image. Real git checks an export of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::{Exact, House, exact, id};
use super::ties::{says, ties};
use crate::common::Mount;
use crate::common::cli::tool;

/// `git -C DIR ARGS…` with no settings but these. Returns what it prints.
#[track_caller]
pub(super) fn git(dir: &Path, args: &[&str]) -> String {
    let settings = ["-c", "protocol.file.allow=always", "-c", "user.name=n", "-c", "user.email=e@x"];
    let all = ["-C", dir.to_str().unwrap()].into_iter().chain(settings).chain(args.iter().copied());
    tool("git", all).exits(0).stdout
}

/// Makes a repository with a commit of two files.
#[track_caller]
pub(super) fn repository(dir: &Path, args: &[&str]) {
    fs::create_dir_all(dir).unwrap();
    git(dir, &[&["init", "-q", "-b", "main"], args].concat());
    commit(dir, "a", "1");
    commit(dir, "d/b", "1");
}

/// Writes a file and commits it.
#[track_caller]
pub(super) fn commit(dir: &Path, file: &str, text: &str) {
    fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
    fs::write(dir.join(file), text).unwrap();
    git(dir, &["add", "--", file]);
    git(dir, &["commit", "-q", "-m", &format!("{file} is {text}")]);
}

/// What git says of a work tree.
#[track_caller]
fn state(dir: &Path) -> Vec<String> {
    let asked: [&[&str]; 8] = [
        &["status", "--porcelain=v2", "--branch"],
        &["diff"],
        &["diff", "--cached"],
        &["stash", "list", "--format=%H %gs"],
        &["for-each-ref"],
        &["log", "--all", "--format=%H %s"],
        &["reflog"],
        &["rev-parse", "--symbolic-full-name", "HEAD"],
    ];
    asked.iter().map(|args| git(dir, args)).collect()
}

/// A folder with everything in it, for a look whether anything changed.
fn before(dir: &Path) -> (PathBuf, std::collections::BTreeMap<Vec<u8>, Exact>) {
    (dir.to_owned(), exact(dir))
}

#[track_caller]
fn is_as(before: &(PathBuf, std::collections::BTreeMap<Vec<u8>, Exact>)) {
    let (dir, before) = before;
    let now = exact(dir);
    let changed: Vec<_> = now
        .iter()
        .filter(|(path, node)| before.get(*path) != Some(node))
        .map(|(path, _)| path)
        .chain(before.keys().filter(|path| !now.contains_key(*path)))
        .map(|path| String::from_utf8_lossy(path))
        .collect();
    assert_eq!(changed, [""; 0], "{} changed", dir.display());
}

/// What an import of a folder says, and an export of the image.
#[track_caller]
pub(super) fn copied(house: &House, dir: &Path, args: &[&str]) -> (Value, PathBuf) {
    let report = house.import(dir, args);
    let out = house.dir.join(format!("out-{}", fs::read_dir(&house.dir).unwrap().count()));
    house.pfimg(["export", &id(&report), out.to_str().unwrap()]).exits(0);
    (report, out)
}

/// How an import made repositories whole: kinds and paths.
pub(super) fn mended(report: &Value) -> Vec<(&str, &str)> {
    let all = report["mended"].as_array().unwrap().iter();
    all.map(|mended| (mended["kind"].as_str().unwrap(), mended["path"].as_str().unwrap())).collect()
}

/// Fails unless a repository is sound, stands for itself and takes a commit.
#[track_caller]
fn is_whole(copy: &Path, original: &Path) {
    git(copy, &["fsck", "--strict", "--no-dangling"]);
    let here = copy.to_str().unwrap();
    assert_eq!(git(copy, &["worktree", "list"]).lines().count(), 1);
    assert!(git(copy, &["worktree", "list"]).starts_with(here));
    assert_eq!(
        git(copy, &["rev-parse", "--path-format=absolute", "--git-common-dir"]).trim(),
        format!("{here}/.git")
    );
    for (path, node) in exact(&copy.join(".git")) {
        let file = copy.join(".git").join(std::str::from_utf8(&path).unwrap());
        // A log may say where a clone is from.
        if fs::symlink_metadata(&file).unwrap().is_file() && !path.starts_with(b"logs/") {
            let text = fs::read(&file).unwrap();
            let name = original.to_str().unwrap().as_bytes();
            assert!(
                !text.windows(name.len()).any(|part| part == name),
                "{} names the original: {node:?}",
                file.display()
            );
        }
    }
    commit(copy, "new", "in the copy");
    git(copy, &["gc", "-q", "--prune=now"]);
    git(copy, &["fsck", "--strict"]);
}

#[test]
fn a_worktree_is_a_whole_repository_in_an_image_with_all_of_its_state() {
    let house = House::new();
    let (main, tree) = (house.dir.join("main"), house.dir.join("tree"));
    repository(&main, &[]);
    git(&main, &["tag", "-a", "v1", "-m", "first"]);
    git(&main, &["branch", "other"]);
    git(&main, &["pack-refs", "--all"]);
    git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
    git(&main, &["worktree", "add", "-q", "--detach", house.dir.join("third").to_str().unwrap()]);
    commit(&tree, "c", "1");
    fs::write(tree.join("c"), "stashed").unwrap();
    git(&tree, &["stash", "push", "-q", "-m", "later"]);
    fs::write(tree.join("a"), "staged").unwrap();
    git(&tree, &["add", "a"]);
    fs::write(tree.join("d/b"), "changed").unwrap();
    fs::write(tree.join("untracked"), "").unwrap();
    git(&tree, &["status"]);
    let (was, originals) = (state(&tree), [before(&main), before(&tree)]);
    let (report, copy) = copied(&house, &tree, &[]);
    assert_eq!(mended(&report), [("worktree", ".git")]);
    assert_eq!(ties(&report), [[""; 3]; 0]);
    assert!(says(&report, &[".git is a whole repository", main.join(".git").to_str().unwrap()]), "{report}");
    originals.iter().for_each(is_as);
    assert_eq!(state(&copy), was);
    git(&copy, &["commit", "-q", "-m", "what was staged"]);
    git(&copy, &["checkout", "-q", "d/b"]);
    git(&copy, &["stash", "pop", "-q"]);
    git(&copy, &["commit", "-q", "-am", "what was stashed"]);
    git(&copy, &["checkout", "-q", "main"]);
    is_whole(&copy, &main);
    originals.iter().for_each(is_as);
    // Nothing changed, and the whole repository is known without a look at its objects.
    crate::common::wait_until("the files are older than the index", || {
        let again = house.import(&tree, &[]);
        assert_eq!((again["new"].as_bool(), id(&again)), (Some(false), id(&report)));
        again["files_read"] == 0
    });
    // What another worktree commits is in the next image.
    commit(&main, "a", "2");
    assert_eq!(house.import(&tree, &[])["new"], true);
}

#[test]
fn a_commit_in_a_fork_of_a_worktree_stays_in_the_fork() {
    let house = House::new();
    let (main, tree) = (house.dir.join("main"), house.dir.join("tree"));
    repository(&main, &[]);
    git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
    house.import(&tree, &["--tag", "tree"]);
    let originals = [before(&main), before(&tree)];
    let mount = Mount::of(&house.store()).args(["--seal", "manual"]).start();
    fs::create_dir(mount.join("forks/f@tree")).unwrap();
    let fork = mount.join("forks/f/world/fs");
    assert_eq!(git(&fork, &["status", "--porcelain"]), "");
    commit(&fork, "a", "in the fork");
    git(&fork, &["branch", "new"]);
    git(&fork, &["fsck"]);
    assert_eq!(git(&fork, &["log", "-1", "--format=%s %D"]).trim(), "a is in the fork HEAD -> side, new");
    originals.iter().for_each(is_as);
    mount.unmount();
}

#[test]
fn a_submodule_alone_is_a_whole_repository_and_one_in_its_superproject_stays_its_submodule() {
    let house = House::new();
    let dir = |name: &str| house.dir.join(name);
    let (inner, lib, main) = (dir("inner"), dir("lib"), dir("main"));
    for (repo, sub) in [(&inner, None), (&lib, Some(&inner)), (&main, Some(&lib))] {
        repository(repo, &[]);
        if let Some(sub) = sub {
            git(repo, &["submodule", "--quiet", "add", sub.to_str().unwrap(), "sub"]);
            git(repo, &["commit", "-q", "-m", "sub"]);
        }
    }
    git(&main, &["submodule", "--quiet", "update", "--init", "--recursive"]);
    fs::write(main.join("sub/a"), "changed").unwrap();
    let (was, of_sub) = (state(&main), state(&main.join("sub")));
    let originals = [before(&main)];
    // The superproject as a whole needs nothing.
    let (report, copy) = copied(&house, &main, &[]);
    assert_eq!((mended(&report), ties(&report)), (vec![], vec![]));
    assert_eq!((state(&copy), state(&copy.join("sub"))), (was, of_sub.clone()));
    commit(&copy.join("sub/sub"), "a", "in the copy");
    git(&copy, &["submodule", "status", "--recursive"]);
    originals.iter().for_each(is_as);
    // In a submodule alone, its submodule has a separate place as well.
    let (report, copy) = copied(&house, &main.join("sub"), &[]);
    assert_eq!(
        mended(&report),
        [
            ("git_file", ".git"),
            ("git_file", "sub/.git"),
            ("core_worktree", ".git/config"),
            ("core_worktree", "sub/.git/config")
        ]
    );
    assert_eq!(ties(&report), [[""; 3]; 0]);
    assert_eq!(state(&copy), of_sub);
    assert!(!copy.join(".git/modules/sub").exists() && copy.join("sub/.git").is_dir());
    commit(&copy.join("sub"), "a", "in the copy");
    git(&copy, &["add", "-A"]);
    git(&copy, &["submodule", "--quiet", "update"]);
    is_whole(&copy, &main);
    is_whole(&copy.join("sub"), &main);
    originals.iter().for_each(is_as);
    // So is that of a worktree.
    git(&main, &["worktree", "add", "-q", dir("tree").to_str().unwrap(), "-b", "side"]);
    git(&dir("tree"), &["submodule", "--quiet", "update", "--init", "--recursive"]);
    let originals = [before(&main), before(&dir("tree"))];
    let was = git(&dir("tree"), &["submodule", "status", "--recursive"]);
    let (report, copy) = copied(&house, &dir("tree"), &[]);
    assert_eq!(mended(&report).iter().filter(|(kind, _)| *kind == "git_file").count(), 2, "{report}");
    assert_eq!(git(&copy, &["submodule", "status", "--recursive"]), was);
    for part in ["sub/sub", "sub", ""] {
        is_whole(&copy.join(part).components().collect::<PathBuf>(), &main);
    }
    originals.iter().for_each(is_as);
}

#[test]
fn worktrees_of_an_imported_repository_are_not_listed_and_those_inside_it_are_whole() {
    let house = House::new();
    let main = house.dir.join("main");
    repository(&main, &[]);
    let inside = main.join(".agents/x");
    git(&main, &["worktree", "add", "-q", house.dir.join("outside").to_str().unwrap(), "-b", "outside"]);
    git(&main, &["worktree", "add", "-q", inside.to_str().unwrap(), "-b", "inside"]);
    commit(&inside, "a", "inside");
    let was = [state(&main), state(&inside)];
    let originals = [before(&main)];
    let (report, copy) = copied(&house, &main, &[]);
    assert_eq!(mended(&report), [("worktree", ".agents/x/.git"), ("worktrees", ".git/worktrees")]);
    assert!(!copy.join(".git/worktrees").exists());
    assert_eq!([state(&copy), state(&copy.join(".agents/x"))], was);
    is_whole(&copy.join(".agents/x"), &main);
    is_whole(&copy, &main);
    // Branches of other worktrees are free there.
    git(&copy, &["checkout", "-q", "outside"]);
    originals.iter().for_each(is_as);
}

#[test]
fn a_bare_repository_with_worktrees_inside_or_outside_is_imported_in_parts_and_whole() {
    let house = House::new();
    repository(&house.dir.join("origin"), &[]);
    let (bare, hidden) = (house.dir.join("bare"), house.dir.join("hidden"));
    for (repo, within) in [(&bare, ""), (&hidden, ".bare")] {
        fs::create_dir(repo).unwrap();
        git(&house.dir, &["clone", "-q", "--bare", "origin", repo.join(within).to_str().unwrap()]);
        git(
            repo,
            &[
                "--git-dir",
                repo.join(within).to_str().unwrap(),
                "worktree",
                "add",
                "-q",
                repo.join("one").to_str().unwrap(),
                "-b",
                "one",
            ],
        );
        git(
            repo,
            &[
                "--git-dir",
                repo.join(within).to_str().unwrap(),
                "worktree",
                "add",
                "-q",
                repo.join("two").to_str().unwrap(),
                "-b",
                "two",
            ],
        );
    }
    fs::write(hidden.join(".git"), "gitdir: ./.bare\n").unwrap();
    fs::write(bare.join("notes"), "no part of git").unwrap();
    let was = [&bare, &hidden].map(|repo| state(&repo.join("one")));
    let originals = [before(&bare), before(&hidden)];
    for (repo, was) in [&bare, &hidden].into_iter().zip(was) {
        let (report, copy) = copied(&house, &repo.join("one"), &[]);
        assert_eq!(mended(&report), [("worktree", ".git")]);
        assert_eq!(says(&report, &["without notes of"]), repo == &bare, "{report}");
        assert_eq!(state(&copy), was);
        assert!(!copy.join(".git/two").exists() && !copy.join(".git/notes").exists());
        is_whole(&copy, repo);
        let (_, copy) = copied(&house, repo, &[]);
        assert_eq!(state(&copy.join("one")), was);
        is_whole(&copy.join("one"), repo);
        is_whole(&copy.join("two"), repo);
        assert_eq!(git(&copy, &["worktree", "list"]).lines().count(), 1);
        assert_eq!(git(&copy, &["rev-parse", "--is-bare-repository"]).trim(), "true");
        git(&copy, &["fsck"]);
    }
    originals.iter().for_each(is_as);
}

#[test]
fn borrowed_objects_come_along_in_a_chain_and_loose_or_packed() {
    let house = House::new();
    let dir = |name: &str| house.dir.join(name);
    let text = |name: &str| dir(name).to_str().unwrap().to_owned();
    repository(&dir("lib"), &[]);
    git(&dir("lib"), &["repack", "-adq", "--write-midx", "--write-bitmap-index"]);
    git(&dir("lib"), &["commit-graph", "write", "--split"]);
    git(&house.dir, &["clone", "-q", "--shared", &text("lib"), &text("first")]);
    commit(&dir("first"), "a", "first");
    git(&house.dir, &["clone", "-q", "--shared", &text("first"), &text("second")]);
    commit(&dir("second"), "a", "second");
    git(&dir("second"), &["commit-graph", "write", "--split", "--reachable"]);
    let was = state(&dir("second"));
    let originals = ["lib", "first", "second"].map(|name| before(&dir(name)));
    let (report, copy) = copied(&house, &dir("second"), &[]);
    assert_eq!(mended(&report), [("alternates", ".git/objects"); 2]);
    assert_eq!(ties(&report), [[""; 3]; 0]);
    assert!(!copy.join(".git/objects/info/alternates").exists());
    assert_eq!(state(&copy), was);
    git(&copy, &["commit-graph", "verify"]);
    git(&copy, &["remote", "remove", "origin"]);
    is_whole(&copy, &dir("lib"));
    originals.iter().for_each(is_as);
    // A worktree of such a repository.
    git(&dir("first"), &["worktree", "add", "-q", &text("tree"), "-b", "side"]);
    let (report, copy) = copied(&house, &dir("tree"), &[]);
    assert_eq!(mended(&report), [("worktree", ".git"), ("alternates", ".git/objects")]);
    git(&copy, &["remote", "remove", "origin"]);
    is_whole(&copy, &dir("lib"));
    // Within the folder a relative path is right in the image, too, and an absolute one leads back.
    fs::create_dir(dir("both")).unwrap();
    fs::rename(dir("lib"), dir("both/lib")).unwrap();
    git(&house.dir, &["clone", "-q", "--shared", &text("both/lib"), &text("both/near")]);
    let alternates = dir("both/near/.git/objects/info/alternates");
    let (report, _) = copied(&house, &dir("both"), &[]);
    assert_eq!(mended(&report), [("alternates", "near/.git/objects")]);
    // A push from there would reach the original.
    let remote = format!("remote.origin.url to {}", text("both/lib"));
    assert_eq!(ties(&report), [["git_config".to_owned(), "near/.git/config".to_owned(), remote]]);
    fs::write(&alternates, "../../../lib/.git/objects\n/no/such/folder\n").unwrap();
    let (report, copy) = copied(&house, &dir("both"), &[]);
    assert_eq!(mended(&report), [("", ""); 0]);
    assert_eq!(ties(&report)[0], ["git_alternates", "near/.git/objects/info/alternates", "/no/such/folder"]);
    assert!(says(&report, &["/no/such/folder", "cannot be taken in"]), "{report}");
    assert_eq!(
        fs::read_to_string(copy.join("near/.git/objects/info/alternates")).unwrap(),
        "../../../lib/.git/objects\n"
    );
    git(&copy.join("near"), &["fsck"]);
}

#[test]
fn settings_that_name_another_work_tree_are_mended_or_named() {
    let house = House::new();
    let dir = |name: &str| house.dir.join(name);
    let (own, home, away) = (dir("own"), dir("home"), dir("away"));
    for repo in [&own, &home, &away] {
        repository(repo, &["--object-format=sha256"]);
    }
    git(&own, &["config", "core.worktree", own.to_str().unwrap()]);
    let (report, copy) = copied(&house, &own, &[]);
    assert_eq!((mended(&report), ties(&report)), (vec![("core_worktree", ".git/config")], vec![]));
    is_whole(&copy, &own);
    // A repository for the files above it.
    fs::rename(home.join(".git"), home.join("d/settings.git")).unwrap();
    let at = home.join("d/settings.git");
    let set =
        |value: &str| git(&home, &["--git-dir", at.to_str().unwrap(), "config", "core.worktree", value]);
    set(home.to_str().unwrap());
    let (report, copy) = copied(&house, &home, &[]);
    assert_eq!(mended(&report), [("core_worktree", "d/settings.git/config")]);
    let there = ["--git-dir", "d/settings.git"];
    let git_there = |args: &[&str]| git(&copy, &[&there, args].concat());
    assert_eq!(git_there(&["rev-parse", "--show-toplevel"]).trim(), copy.to_str().unwrap());
    assert_eq!(git_there(&["status", "--porcelain", "-uno"]), "");
    set("../..");
    let (report, copy) = copied(&house, &home, &[]);
    assert_eq!(mended(&report), [("", ""); 0]);
    assert_eq!(git(&copy, &["--git-dir", "d/settings.git", "status", "--porcelain", "-uno"]), "");
    // A work tree that is not in the image would be written to.
    git(&away, &["config", "core.worktree", own.to_str().unwrap()]);
    git(&away, &["config", "core.hooksPath", away.join("hooks").to_str().unwrap()]);
    let (report, copy) = copied(&house, &away, &[]);
    let hooks = format!("core.hookspath to {}", away.join("hooks").display());
    assert_eq!(
        ties(&report),
        [
            ["git_worktree".to_owned(), ".git/config".into(), own.to_str().unwrap().into()],
            ["git_config".into(), ".git/config".into(), hooks],
        ]
    );
    assert!(says(&report, &["core.worktree", "unset"]), "{report}");
    assert_eq!(git(&copy, &["rev-parse", "--show-toplevel"]).trim(), copy.to_str().unwrap());
    fs::write(away.join(".git/config"), "[core\n").unwrap();
    let report = house.import(&away, &[]);
    assert_eq!(ties(&report)[0][..2], ["git_unread", ".git/config"]);
}

#[test]
fn worktree_settings_sparse_files_and_half_done_merges_come_along() {
    let house = House::new();
    let (main, tree) = (house.dir.join("main"), house.dir.join("tree"));
    repository(&main, &[]);
    commit(&main, "e/f", "1");
    git(&main, &["sparse-checkout", "set", "e"]);
    git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
    git(&tree, &["sparse-checkout", "set", "d"]);
    git(&tree, &["config", "--worktree", "alias.mine", "status"]);
    commit(&tree, "a", "side");
    commit(&main, "a", "main");
    fs::write(main.join(".git/MERGE_MSG"), "of main\n").unwrap();
    tool("git", ["-C", tree.to_str().unwrap(), "-c", "user.name=n", "-c", "user.email=e@x", "merge", "main"])
        .exits(1);
    let was = state(&tree);
    let (_, copy) = copied(&house, &tree, &[]);
    assert_eq!(state(&copy), was);
    assert!(
        git(&copy, &["status"]).contains("you have unmerged paths")
            || git(&copy, &["status"]).contains("Unmerged paths")
    );
    assert_eq!(git(&copy, &["config", "alias.mine"]).trim(), "status");
    assert_eq!(git(&copy, &["sparse-checkout", "list"]).trim(), "d");
    assert!(!copy.join("e").exists() && copy.join("d/b").exists());
    git(&copy, &["checkout", "-q", "--theirs", "a"]);
    git(&copy, &["add", "a"]);
    git(&copy, &["commit", "-q", "--no-edit"]);
    assert_eq!(git(&copy, &["log", "-1", "--format=%s"]).trim(), "Merge branch 'main' into side");
    is_whole(&copy, &main);
}

#[test]
fn worktrees_of_partial_and_shallow_clones_stay_partial_and_shallow() {
    let house = House::new();
    let origin = house.dir.join("origin");
    repository(&origin, &[]);
    commit(&origin, "a", "2");
    for setting in ["uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"] {
        git(&origin, &["config", setting, "true"]);
    }
    let url = format!("file://{}", origin.display());
    for (name, with) in
        [("partial", ["--filter=blob:none", "--no-checkout"]), ("shallow", ["--depth=1", "--no-tags"])]
    {
        let (clone, tree) = (house.dir.join(name), house.dir.join(format!("{name}-tree")));
        git(&house.dir, &["clone", "-q", with[0], with[1], &url, clone.to_str().unwrap()]);
        git(&clone, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
        let was = state(&tree);
        let missing = |dir: &Path| git(dir, &["rev-list", "--objects", "--all", "--missing=print"]);
        let (of_tree, originals) = (missing(&tree), [before(&clone), before(&tree)]);
        let (report, copy) = copied(&house, &tree, &[]);
        assert_eq!((mended(&report), ties(&report)), (vec![("worktree", ".git")], vec![]));
        assert_eq!((state(&copy), missing(&copy)), (was, of_tree));
        assert_eq!(git(&copy, &["rev-parse", "--is-shallow-repository"]).trim() == "true", name == "shallow");
        is_whole(&copy, &clone);
        originals.iter().for_each(is_as);
    }
}

#[test]
fn git_files_and_links_to_other_places_are_replaced_by_their_targets_or_named() {
    let house = House::new();
    let dir = |name: &str| house.dir.join(name);
    let (main, apart, linked, work) = (dir("main"), dir("apart"), dir("linked"), dir("work"));
    repository(&main, &[]);
    repository(&apart, &["--separate-git-dir", dir("apart.git").to_str().unwrap()]);
    repository(&linked, &[]);
    fs::rename(linked.join(".git"), dir("linked.git")).unwrap();
    symlink("../linked.git", linked.join(".git")).unwrap();
    // As git new-workdir makes one.
    fs::create_dir_all(main.join(".git/hooks")).unwrap();
    fs::create_dir_all(work.join(".git/logs")).unwrap();
    for name in ["config", "refs", "logs/refs", "objects", "info", "hooks", "packed-refs"] {
        symlink(main.join(".git").join(name), work.join(".git").join(name)).unwrap();
    }
    fs::copy(main.join(".git/HEAD"), work.join(".git/HEAD")).unwrap();
    git(&work, &["checkout", "-q", "-f"]);
    for (repo, from, kinds) in [
        (&apart, dir("apart.git"), vec![("git_file", ".git")]),
        (&linked, dir("linked.git"), vec![("git_file", ".git")]),
        (
            &work,
            main.join(".git"),
            ["config", "hooks", "info", "logs/refs", "objects", "refs"].map(|name| ("link", name)).to_vec(),
        ),
    ] {
        let was = state(repo);
        let originals = [before(repo), before(&from)];
        let (report, copy) = copied(&house, repo, &[]);
        let kinds: Vec<_> = kinds
            .iter()
            .map(|(kind, path)| {
                (*kind, if *kind == "link" { format!(".git/{path}") } else { (*path).into() })
            })
            .collect();
        let told: Vec<_> = mended(&report).into_iter().map(|(kind, path)| (kind, path.to_owned())).collect();
        assert_eq!(told, kinds, "{}", repo.display());
        assert_eq!(state(&copy), was);
        fs::remove_file(copy.join(".git/packed-refs")).ok();
        is_whole(&copy, &from);
        originals.iter().for_each(is_as);
    }
    // A link that leads nowhere stays, and a repository that cannot be added is left out: git in a fork must not write there.
    let dead = dir("dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join(".git"), "gitdir: /no/such/place\n").unwrap();
    let (report, copy) = copied(&house, &dead, &[]);
    assert_eq!(ties(&report), [["git_file", ".git", "/no/such/place"]]);
    assert!(copy.join(".git").is_file());
    fs::create_dir(dir("empty")).unwrap();
    fs::write(dead.join(".git"), "gitdir: ../empty\n").unwrap();
    let (report, copy) = copied(&house, &dead, &[]);
    assert_eq!(ties(&report), [["git_left_out", ".git", dir("empty").to_str().unwrap()]]);
    assert!(says(&report, &[".git is left out"]) && !copy.join(".git").exists(), "{report}");
}

#[test]
fn a_reftable_comes_along_with_its_repository_and_a_worktree_of_one_is_named() {
    let house = House::new();
    let (main, tree) = (house.dir.join("main"), house.dir.join("tree"));
    let with = ["init", "-q", "--ref-format=reftable", main.to_str().unwrap()];
    if tool("git", with).code != 0 {
        // Older than the format.
        return;
    }
    commit(&main, "a", "1");
    git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
    let was = state(&main);
    let originals = [before(&main), before(&tree)];
    let (report, copy) = copied(&house, &main, &[]);
    assert_eq!(mended(&report), [("worktrees", ".git/worktrees")]);
    assert_eq!(state(&copy), was);
    is_whole(&copy, &main);
    let (report, copy) = copied(&house, &tree, &[]);
    assert_eq!(ties(&report)[0][..2], ["git_left_out", ".git"]);
    assert!(!copy.join(".git").exists() && copy.join("a").exists());
    originals.iter().for_each(is_as);
}

#[test]
fn rules_apply_to_files_from_elsewhere_and_shared_files_are_not_linked() {
    let house = House::new();
    let (main, tree) = (house.dir.join("main"), house.dir.join("main/tree"));
    repository(&main, &[]);
    git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
    fs::write(main.join(".git/description"), "shared").unwrap();
    fs::hard_link(main.join(".git/description"), house.dir.join("description")).unwrap();
    let (_, copy) = copied(&house, &main, &[]);
    let of = |path: &str| fs::metadata(copy.join(path)).unwrap();
    assert_eq!((of(".git/description").nlink(), of("tree/.git/description").nlink()), (1, 1));
    let (report, copy) = copied(&house, &tree, &["--pf-ignores", "--ignore", ".git/logs"]);
    assert!(
        !copy.join(".git/objects").exists()
            && !copy.join(".git/logs").exists()
            && copy.join(".git/refs").exists()
    );
    assert_eq!(report["left_out_by"]["pf_ignores"], 1);
    assert_eq!(report["left_out_by"]["ignore"], 2, "the logs of the worktree, and those of all");
}
