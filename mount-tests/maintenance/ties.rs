//! An import reports files in a tree that name the place from which it was imported.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use super::support::House;

/// Imports everything of a folder.
#[track_caller]
fn import(house: &House, dir: &Path) -> Value {
    house.import(dir, &[])
}

/// The ties reported for a tree: kind, path and target of each.
pub(super) fn ties(report: &Value) -> Vec<[String; 3]> {
    let text = |tie: &Value, name: &str| tie[name].as_str().unwrap().to_owned();
    let ties = report["ties"].as_array().unwrap();
    ties.iter().map(|tie| ["kind", "path", "target"].map(|name| text(tie, name))).collect()
}

/// Whether a line of the report in words says all of these.
pub(super) fn says(report: &Value, words: &[&str]) -> bool {
    let lines = report["reports"].as_array().unwrap();
    lines.iter().any(|line| words.iter().all(|word| line.as_str().unwrap().contains(word)))
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
