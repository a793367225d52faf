//! What in an imported tree names the place that it came from is named by the import.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use super::support::House;
use crate::common::cli::tool;

/// `git -C DIR ARGS…` with no settings but these.
#[track_caller]
fn git(dir: &Path, args: &[&str]) {
    let settings = ["-c", "protocol.file.allow=always", "-c", "user.name=n", "-c", "user.email=e@x"];
    let all = ["-C", dir.to_str().unwrap()].into_iter().chain(settings).chain(args.iter().copied());
    tool("git", all).exits(0);
}

/// Imports everything of a folder.
#[track_caller]
fn import(house: &House, dir: &Path) -> Value {
    house.import(dir, &["--no-default-ignores"])
}

/// The ties reported for a tree: kind, path and target of each.
fn ties(report: &Value) -> Vec<[String; 3]> {
    let text = |tie: &Value, name: &str| tie[name].as_str().unwrap().to_owned();
    let ties = report["ties"].as_array().unwrap();
    ties.iter().map(|tie| ["kind", "path", "target"].map(|name| text(tie, name))).collect()
}

/// Whether a line of the report in words says all of these.
fn says(report: &Value, words: &[&str]) -> bool {
    let lines = report["reports"].as_array().unwrap();
    lines.iter().any(|line| words.iter().all(|word| line.as_str().unwrap().contains(word)))
}

#[test]
fn worktrees_submodules_and_borrowed_objects_of_git_are_named_and_whole_repositories_are_not() {
    let house = House::new();
    let dir = |name: &str| house.dir.join(name);
    let (lib, main, tree, shared) = (dir("lib"), dir("main"), dir("tree"), dir("shared"));
    let show = |path: &Path| path.to_str().unwrap().to_owned();
    for repository in [&lib, &main] {
        git(&house.dir, &["init", "-q", "-b", "main", &show(repository)]);
        fs::write(repository.join("file"), "1").unwrap();
        git(repository, &["add", "."]);
        git(repository, &["commit", "-q", "-m", "1"]);
    }
    git(&main, &["submodule", "--quiet", "add", &show(&lib), "sub"]);
    git(&main, &["commit", "-q", "-m", "2"]);
    git(&main, &["worktree", "add", "-q", &show(&tree), "-b", "side"]);
    git(&house.dir, &["clone", "-q", "--shared", &show(&lib), &show(&shared)]);
    for whole in [&lib, &main] {
        assert_eq!(ties(&import(&house, whole)), [[""; 3]; 0], "{}", whole.display());
    }
    let report = import(&house, &tree);
    let repository = show(&main.join(".git/worktrees/tree"));
    assert_eq!(ties(&report), [["git_file".into(), ".git".into(), repository.clone()]]);
    assert!(says(&report, &["points to", &repository, "git works on that repository"]), "{report}");
    let submodule = import(&house, &main.join("sub"));
    assert_eq!(ties(&submodule), [["git_file".into(), ".git".into(), show(&main.join(".git/modules/sub"))]]);
    fs::create_dir(dir("up")).unwrap();
    fs::rename(&tree, dir("up/wt")).unwrap();
    assert_eq!(ties(&import(&house, &dir("up"))), [["git_file".into(), "wt/.git".into(), repository]]);
    let report = import(&house, &shared);
    let objects = show(&lib.join(".git/objects"));
    assert_eq!(ties(&report), [["git_alternates".into(), ".git/objects/info/alternates".into(), objects]]);
    // What the rules leave out says nothing.
    assert_eq!(ties(&house.import(&shared, &[])), [[""; 3]; 0]);
    git(&lib, &["config", "core.worktree", &show(&lib)]);
    let report = import(&house, &lib);
    assert_eq!(ties(&report), [["git_worktree".into(), ".git/config".into(), show(&lib)]]);
    assert!(says(&report, &["core.worktree", &show(&lib)]), "{report}");
}

#[test]
fn absolute_links_into_the_folder_are_named_and_many_are_counted() {
    let house = House::new();
    let dir = house.dir.join("project");
    fs::create_dir_all(dir.join("releases/1")).unwrap();
    symlink("project", house.dir.join("alias")).unwrap();
    symlink(dir.join("releases/1"), dir.join("current")).unwrap();
    symlink(house.dir.join("alias/releases"), dir.join("by-alias")).unwrap();
    symlink(dir.join("not/there"), dir.join("dangling")).unwrap();
    symlink("releases/1", dir.join("relative")).unwrap();
    symlink("/usr/bin", dir.join("elsewhere")).unwrap();
    // A neighbour with a longer name.
    symlink(house.dir.join("project-2"), dir.join("neighbour")).unwrap();
    let names = |report: &Value| ties(report).into_iter().map(|[_, path, _]| path).collect::<Vec<_>>();
    let report = import(&house, &dir);
    assert_eq!(names(&report), ["current", "dangling"]);
    assert!(says(&report, &["current is a link to", "leads to the original"]), "{report}");
    assert_eq!(names(&import(&house, &house.dir.join("alias"))), ["by-alias", "current", "dangling"]);
    for n in 0..300 {
        symlink(&dir, dir.join(format!("l{n}"))).unwrap();
    }
    let report = import(&house, &dir);
    assert_eq!((report["ties_total"].as_u64(), names(&report).len()), (Some(302), 100));
    assert!(says(&report, &["297 more"]), "{report}");
    assert!(report["reports"].as_array().unwrap().len() < 10, "{report}");
}

#[test]
fn python_environments_and_build_folders_that_name_their_place_are_named() {
    let house = House::new();
    let dir = house.dir.join("p");
    let place = dir.to_str().unwrap();
    for (path, text) in [
        ("venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.2\n"),
        ("moves/pyvenv.cfg", "home = /usr/bin\nrelocatable = true\n"),
        ("moves/lib/site-packages/__editable__.p.pth", &format!("{place}/src\n")),
        ("moves/lib/site-packages/other.pth", "import something\n/usr/share/other\n"),
        ("build/CMakeCache.txt", &format!("# cache\nCMAKE_HOME_DIRECTORY:INTERNAL={place}\n")),
        ("foreign/CMakeCache.txt", "CMAKE_HOME_DIRECTORY:INTERNAL=/somewhere/else\n"),
    ] {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), text).unwrap();
    }
    let report = import(&house, &dir);
    let want = [
        ["venv", "venv", &format!("{place}/venv")],
        ["python_path", "moves/lib/site-packages/__editable__.p.pth", &format!("{place}/src")],
        ["cmake", "build/CMakeCache.txt", place],
    ];
    assert_eq!(ties(&report), want);
    assert!(says(&report, &["venv is a virtual environment with absolute paths"]), "{report}");
    assert_eq!(
        ties(&house.import(&dir, &["--ignore", "venv", "--ignore", "moves", "--ignore", "build"])),
        [[""; 3]; 0]
    );
    // The same in an import that knows every file.
    assert_eq!(ties(&import(&house, &dir)), want);
}
