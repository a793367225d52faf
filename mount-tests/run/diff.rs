//! `pfimg diff` after a run in a project: as git shows it, against the project, and from inside of either.

use std::fs;
use std::path::Path;

use rustix::fs::Mode;

use super::home::Home;
use crate::common::Output;
use crate::common::cli::Run;

/// What the agent does.
const AGENT: &str = "rm docs/one.md; echo '# fixed total' > CHANGES.md
    printf 'price = 3\\nsum = 1\\n' > src/price.py; git add -A; git commit -qm second";

const PATCH: &str = "\
diff --git a/CHANGES.md b/CHANGES.md
new file mode 100644
--- /dev/null
+++ b/CHANGES.md
@@ -0,0 +1 @@
+# fixed total
diff --git a/docs/one.md b/docs/one.md
deleted file mode 100644
--- a/docs/one.md
+++ /dev/null
@@ -1 +0,0 @@
-one
diff --git a/src/price.py b/src/price.py
--- a/src/price.py
+++ b/src/price.py
@@ -1 +1,2 @@
-price = 2
+price = 3
+sum = 1
";

const STAT: &str = " CHANGES.md   | 1 +
 docs/one.md  | 1 -
 src/price.py | 3 ++-
 3 files changed, 3 insertions(+), 2 deletions(-)
";

const NAMES: &str = "A CHANGES.md\nD docs/one.md\nM src/price.py\n";

/// A home whose project a run has worked on.
fn worked_on() -> Home {
    let home = Home::new(None);
    home.sh("try-2", AGENT).exits(0);
    home
}

#[track_caller]
fn diff(home: &Home, dir: &Path, args: &[&str]) -> Output {
    home.pfimg(&[&["diff"], args].concat()).dir(dir).run().exits(0)
}

#[test]
fn a_result_is_shown_as_git_shows_it_with_the_commits_that_were_made() {
    let home = worked_on();
    let here = |args: &[&str]| diff(&home, &home.project, args);
    let id = home.pfimg(&["show", "shop", "--json"]).run().exits(0).json()["id"].as_str().unwrap().to_owned();
    let sides = format!("pfimg: shop ({}) → try-2:", &id["sha256:".len()..][..12]);
    let files = home.mountpoint().join("forks/try-2/world/fs");
    let commit = Run::program(Path::new("git"), ["-c", "safe.directory=*", "rev-parse", "HEAD"]).dir(&files);
    let commit = commit.run().exits(0).stdout.trim().to_owned();
    let commits = format!("       {}  second\n", &commit[..7]);
    for (args, stdout, last) in [
        (&["try-2", "-p"][..], PATCH, "3 files, +3 -2, 1 commit"),
        (&["try-2", "--stat"], STAT, "3 files, +3 -2, 1 commit"),
        (&["try-2"], NAMES, "3 paths: 1 added, 1 deleted, 1 changed, 1 commit"),
        (&["try-2", "--stat", "-p"], &format!("{STAT}\n{PATCH}"), "3 files, +3 -2, 1 commit"),
    ] {
        let said = here(args);
        assert_eq!(
            (said.stdout.as_str(), said.stderr),
            (stdout, format!("{sides} {last}\n{commits}")),
            "{args:?}"
        );
    }
    assert_eq!(here(&["try-2", "--name-only"]).stdout, "CHANGES.md\ndocs/one.md\nsrc/price.py\n");
    // The image keeps the name of the project, though the project has changed.
    fs::write(home.project.join("later"), "later\n").unwrap();
    home.run(&["-q", "other", "--", "true"]).exits(0);
    assert_eq!(here(&["try-2", "-p"]).stderr, format!("{sides} 3 files, +3 -2, 1 commit\n{commits}"));
    // Paths are limits, and relative to where the user stands.
    assert_eq!(here(&["try-2", "--", "src"]).stdout, "M src/price.py\n");
    assert_eq!(here(&["try-2", "--", "*.md"]).stdout, "A CHANGES.md\nD docs/one.md\n");
    let src = home.project.join("src");
    assert_eq!(diff(&home, &src, &["try-2", "--", "price.py", "../docs"]).stdout, &NAMES[13..]);
    let absolute = src.join("price.py");
    assert_eq!(here(&["try-2", "--", absolute.to_str().unwrap()]).stdout, "M src/price.py\n");
    let none = here(&["try-2", "--", "nowhere"]);
    assert_eq!(none.stdout, "");
    assert!(
        none.stderr.contains("neither side has nowhere") && none.stderr.contains("no difference"),
        "{none:?}"
    );
    home.pfimg(&["diff", "try-2", "--", "../elsewhere"]).run().exits(2);
    // Git's own folder only if it is asked for.
    assert!(here(&["try-2", "--", ".git/logs"]).stdout.contains("M .git/logs/HEAD\n"));
    assert!(here(&["try-2", "--layers"]).stdout.contains("A world/fs/.git/objects/"));
    let code = |args: &[&str]| home.pfimg(&[&["diff", "--exit-code"], args].concat()).run().code;
    assert_eq!((code(&["try-2"]), code(&["try-2", "-p"]), code(&["try-2", "--", "lib"])), (1, 1, 0));

    let told = here(&["try-2", "--json", "-p"]).json();
    assert_eq!(told["patch"], PATCH);
    assert_eq!(
        (&told["commits"], &told["stat"]["files"], &told["stat"]["added_lines"]),
        (&1.into(), &3.into(), &3.into())
    );
    assert_eq!(told["commit_list"], serde_json::json!([{"id": commit, "subject": "second"}]));
    let entry = &told["entries"][2];
    assert_eq!((&entry["status"], &entry["path"]), (&"M".into(), &"src/price.py".into()));
    assert_eq!((&entry["before"]["size"], &entry["after"]["size"]), (&10.into(), &18.into()));
    assert_eq!(told["stat"]["rows"][2]["deleted_lines"], 1);

    // Colours, where they are asked for.
    let coloured = here(&["try-2", "-p", "--color"]).stdout;
    assert!(coloured.starts_with("\x1b[1mdiff --git a/CHANGES.md b/CHANGES.md\x1b[m\n"), "{coloured}");
    assert!(coloured.contains("\n\x1b[31m-price = 2\x1b[m\n\x1b[32m+price = 3\x1b[m\n"), "{coloured}");
}

#[test]
fn a_fork_is_compared_with_a_directory_as_an_import_would_take_it_in() {
    let home = worked_on();
    let here = |args: &[&str]| diff(&home, &home.project, args);
    let back = "D CHANGES.md\nA docs/one.md\nM src/price.py\n";
    assert_eq!(here(&["shop", "."]).stdout, "", "the project is as it was imported");
    assert_eq!(here(&["try-2", "."]).stdout, back);
    let said = here(&[".", "try-2"]);
    assert_eq!(
        (said.stdout.as_str(), said.stderr.as_str()),
        (NAMES, "pfimg: ~/shop → try-2: 3 paths: 1 added, 1 deleted, 1 changed\n")
    );
    assert_eq!(here(&[".", "try-2", "-p"]).stdout, PATCH);
    // From a folder in the project too, where paths are relative to it.
    let src = home.project.join("src");
    assert_eq!(diff(&home, &src, &[".", "try-2"]).stdout, NAMES);
    assert_eq!(diff(&home, &src, &[".", "try-2", "--", "."]).stdout, "M src/price.py\n");
    assert_eq!(diff(&home, &home.path(""), &["try-2", "./shop"]).stdout, back);

    // Whatever is there: a fifo is not opened, a link is not followed, and a changed file of one length and time is read.
    rustix::fs::mkfifoat(rustix::fs::CWD, home.project.join("pipe"), Mode::RUSR).unwrap();
    std::os::unix::fs::symlink("/etc", home.project.join("etc")).unwrap();
    let two = home.project.join("docs/two.md");
    let time = fs::metadata(&two).unwrap().modified().unwrap();
    fs::write(&two, "ten\n").unwrap();
    fs::File::options().write(true).open(&two).unwrap().set_modified(time).unwrap();
    assert_eq!(here(&["shop", "."]).stdout, "M docs/two.md\nA etc\nA pipe\n");
    assert_eq!(here(&["."]).stdout, "M docs/two.md\nA etc\nA pipe\n", "since its last import");
    let said = here(&["shop", ".", "-p"]);
    assert!(said.stdout.contains("+++ b/etc\n@@ -0,0 +1 @@\n+/etc\n\\ No newline"), "{said:?}");
    assert!(said.stderr.contains("(1 path not in the patch: `pfimg diff` lists all)"), "{said:?}");

    // What the rules of the directory leave out is compared on neither side.
    fs::write(home.project.join(".pfignore"), "build/\nCHANGES.md\n").unwrap();
    fs::create_dir(home.project.join("build")).unwrap();
    fs::write(home.project.join("build/x"), "x").unwrap();
    assert_eq!(here(&["shop", "."]).stdout, "A .pfignore\nM docs/two.md\nA etc\nA pipe\n");
    assert!(!here(&["try-2", "."]).stdout.contains("CHANGES.md"));
    home.pfimg(&["diff", "shop", ".", "--layers"]).run().exits(2);
    home.pfimg(&["diff", "shop", ".", "--", ".git/config"]).run().exits(2);
    home.pfimg(&["diff", "shop", "./none"]).run().exits(5);
    home.pfimg(&["diff", "shop", "./untracked"]).run().exits(2);
}

#[test]
fn a_dot_inside_a_forks_files_means_that_fork() {
    let home = worked_on();
    home.run(&["-q", "try-1", "--", "sh", "-c", "echo 1 > one"]).exits(0);
    let files = home.mountpoint().join("forks/try-2/world/fs");
    assert_eq!(diff(&home, &files, &["."]).stdout, NAMES);
    assert_eq!(diff(&home, &files.join("src"), &["."]).stdout, NAMES);
    assert_eq!(diff(&home, &files.join("src"), &[".", "--", "price.py", "../docs"]).stdout, &NAMES[13..]);
    let absolute = files.join("docs");
    let said = diff(&home, &files.join("src"), &[".", "--", absolute.to_str().unwrap()]);
    assert_eq!(said.stdout, "D docs/one.md\n");
    let both = "A CHANGES.md\nD docs/one.md\nD one\nM src/price.py\n";
    assert_eq!(diff(&home, &files, &["try-1", "."]).stdout, both);
    assert_eq!(diff(&home, &files.join("src"), &["try-1", "try-2", "--", ".."]).stdout, both);
    let (one, two) = (home.mountpoint().join("work/try-1/"), home.mountpoint().join("forks/try-2/world/fs"));
    assert_eq!(diff(&home, &home.path(""), &[one.to_str().unwrap(), two.to_str().unwrap()]).stdout, both);
    // The mountpoint itself is neither a fork nor an image.
    home.pfimg(&["diff", "."]).dir(&home.mountpoint()).run().exits(2);
    home.pfimg(&["seal", "try-2"]).run().exits(0);
    assert_eq!(diff(&home, &home.project, &["try-2@0", "try-2@1"]).stdout, NAMES);
    assert_eq!(diff(&home, &home.project, &["try-2@1", "try-2"]).stdout, "");
}

#[test]
fn of_many_commits_the_newest_ten_are_listed() {
    let home = Home::new(None);
    let script =
        "for n in $(seq 12); do git commit -q --allow-empty -m \"step $n of $(printf '\\033[2J')\"; done";
    let said = home.sh("try", script).exits(0);
    assert!(said.stderr.contains("12 commits"), "{said:?}");
    let said = diff(&home, &home.project, &["try"]).stderr;
    let lines: Vec<&str> = said.lines().skip(1).collect();
    assert!(said.contains("no difference, 12 commits\n"), "{said:?}");
    assert_eq!(lines.len(), 11, "{said:?}");
    assert!(lines[0].ends_with("  step 12 of \\u{1b}[2J") && lines[9].contains("  step 3 of"), "{said:?}");
    assert_eq!(lines[10], "       and 2 commits before these");
    let told = diff(&home, &home.project, &["try", "--json"]).json();
    assert_eq!((&told["commits"], told["commit_list"].as_array().unwrap().len()), (&12.into(), 10), "{told}");
}
