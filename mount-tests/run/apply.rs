//! `pfimg apply`: the results of runs come back into their project.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use super::home::{Home, for_every_user};
use crate::common::cli::{Output, Run};

const PRICE: &str = "import x\n\ndef total(items):\n    s = 0\n    tax = 0.19\n    for price, count in items:\n        s += price\n    return s\n";

/// A project as in a first session: committed, with a text that both sides will change.
fn shop(user: Option<u32>) -> Home {
    let home = Home::new(user);
    write(&home, "src/price.py", PRICE);
    write(&home, "package.json", "{}\n");
    home.git(&["add", "-A"]);
    home.git(&["commit", "-qm", "second"]);
    home
}

/// Writes as the project's user.
fn write(home: &Home, path: &str, text: &str) {
    sh(home, &format!("cat > '{path}' <<'END'\n{text}END"));
}

fn read(home: &Home, path: &str) -> String {
    fs::read_to_string(home.project.join(path)).unwrap()
}

/// Does something in the project itself.
fn sh(home: &Home, script: &str) -> String {
    let run = Run::program(Path::new("sh"), ["-ec", script]).dir(&home.project).user(home.user);
    run.env("HOME", home.path("")).run().exits(0).stdout
}

fn apply(home: &Home, args: &[&str]) -> Output {
    home.pfimg(&[&["apply"], args].concat()).run()
}

/// All files of the project but git's, with their permissions.
fn files(home: &Home) -> String {
    sh(
        home,
        "find . -path ./.git -prune -o -type f -printf '%p %m ' -exec sha256sum {} ';' -o -printf '%p %m %l\\n' | sort",
    )
}

/// Undo lines and times differ from run to run.
fn without_time(text: &str) -> String {
    text.lines()
        .map(|line| {
            let parts = line.split(", ").filter(|part| !part.ends_with(" s") && !part.contains(" s;"));
            let time =
                line.split(", ").find(|part| part.contains(" s;")).and_then(|part| part.split_once("; "));
            let rest = time.map_or_else(String::new, |(_, rest)| format!("; {rest}"));
            parts.collect::<Vec<_>>().join(", ") + &rest + "\n"
        })
        .collect()
}

#[test]
fn a_session_of_four_attempts_brings_the_winner_back_as_the_readme_shows_it() {
    for_every_user(|user| {
        let home = shop(user);
        let agent = "case $PFIMG_FORK in
            try-2) rm docs/one.md; echo '# fixed total' > CHANGES.md; sed -i 's/s += price/s += price * count/' src/price.py
                git add -A; git commit -qm 'fix total';;
            try-4) sed -i s/0.19/0.25/ src/price.py; echo '{\"x\": 1}' > package.json; echo new > new;;
            esac";
        home.run(&["try-{1..4}", "--", "sh", "-c", agent]).exits(0);
        write(&home, "src/price.py", &PRICE.replace("0.19", "0.21"));
        let before = files(&home);
        let expected = "D docs/one.md\nA CHANGES.md\nG src/price.py               merged with your change\n";
        let said = apply(&home, &["try-2", "--dry-run"]).exits(0);
        assert_eq!((said.stdout.as_str(), files(&home)), (expected, before.clone()), "{said:?}");
        assert_eq!(home.git(&["branch", "--list", "pfimg/*"]), "");
        let said = apply(&home, &["try-2"]).exits(0);
        assert_eq!(said.stdout, expected, "{said:?}");
        assert_eq!(
            without_time(&said.stderr),
            "pfimg: applied try-2 to ~/shop: 1 deleted, 1 added, 1 merged; 1 commit is branch pfimg/try-2\n\
             undo:  pfimg apply --undo\n"
        );
        let merged = PRICE.replace("0.19", "0.21").replace("s += price", "s += price * count");
        assert_eq!(read(&home, "src/price.py"), merged);
        assert_eq!(home.git(&["log", "--format=%s", "main..pfimg/try-2"]), "fix total\n");
        assert_eq!(home.git(&["rev-parse", "--abbrev-ref", "HEAD"]), "main\n");
        // Again: nothing.
        let said = apply(&home, &["try-2"]).exits(0);
        assert_eq!(said.stdout, "", "{said:?}");
        assert!(said.stderr.contains("nothing to apply"), "{said:?}");
        // A conflict, and nothing is written.
        sh(&home, "rm package.json");
        let held = files(&home);
        let said = apply(&home, &["try-4"]).exits(3);
        assert_eq!(
            (said.stdout.as_str(), said.stderr.as_str()),
            (
                "C src/price.py               line 5 changed on both sides\n\
                 C package.json               you deleted it, the fork changed it\n",
                "pfimg: conflicts in 2 of 3 paths, nothing was written\n       \
                 resolve with --ours, --theirs or --skip; add --merge for markers in src/price.py\n       \
                 compare: pfimg diff try-4 . -p -- package.json\n"
            )
        );
        let said = apply(&home, &["try-4", "--", "src"]).exits(3);
        assert!(said.stderr.contains("resolve with --merge (markers), --ours"), "{said:?}");
        // Markers are no answer to a deletion, and the hint says so.
        let said = apply(&home, &["try-4", "--merge"]).exits(3);
        assert_eq!(said.stdout, "C package.json               you deleted it, the fork changed it\n");
        assert!(said.stderr.contains("add --ours, --theirs or --skip for these paths: --merge"), "{said:?}");
        assert_eq!(files(&home), held);
        let said = apply(&home, &["try-4", "--json"]).exits(3);
        let said: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(said["error"]["kind"], "conflict", "{said}");
        assert_eq!(said["error"]["conflicts"][1]["path"], "package.json", "{said}");
        assert_eq!(files(&home), held);
        // Markers decide lines alone.
        apply(&home, &["try-4", "--merge"]).exits(3);
        let said = apply(&home, &["try-4", "--merge", "--skip"]).exits(0);
        assert!(said.stdout.contains("C src/price.py               markers in lines 5-9\n"), "{said:?}");
        assert!(
            read(&home, "src/price.py")
                .contains("<<<<<<< yours\n    tax = 0.21\n=======\n    tax = 0.25\n>>>>>>> try-4\n")
        );
        apply(&home, &["--undo"]).exits(0);
        assert_eq!(files(&home), held);
        // All of it undone, files and branch.
        write(&home, "package.json", "{}\n");
        let said = apply(&home, &["--undo"]).exits(0).stderr;
        let done = "pfimg: undid applying try-2 to ~/shop: 1 path removed, 2 paths restored, branch pfimg/try-2 removed\n";
        assert_eq!(said, done);
        assert_eq!((files(&home), home.git(&["branch", "--list", "pfimg/*"])), (before, String::new()));
        home.pfimg(&["verify"]).run().exits(0);
        home.pfimg(&["discard", "try-1", "try-3", "--seals"]).run().exits(0);
    });
}

#[test]
fn links_modes_folders_and_ignored_files_come_back_and_no_link_leads_out_of_the_directory() {
    for_every_user(|user| {
        let home = shop(user);
        sh(
            &home,
            "mkdir -p gone/inner outside-of-it; echo a > gone/inner/a; rm -f ignored; echo i > ignored; ln -s src link; chmod 755 package.json",
        );
        let script = "rm -r gone; mkdir empty; chmod 644 package.json; echo more >> ignored; ln -sfn docs link; rm docs/two.md
            mkdir docs/two.md; echo x > docs/two.md/x; echo one > h1; ln h1 h2; mkfifo pipe; chmod 700 src/deep; echo y > src/deep/y";
        home.sh("try", script).exits(0);
        sh(&home, "echo mine > gone/mine");
        let said = apply(&home, &["try"]).exits(0);
        let files = |path: &str| home.project.join(path);
        assert!(
            files("empty").is_dir() && !files("gone/inner").exists() && files("gone/mine").is_file(),
            "{said:?}"
        );
        assert!(said.stderr.contains("gone: stays with what the fork does not know"), "{said:?}");
        assert!(said.stderr.contains("pipe: a fifo in the fork: it is not brought over"), "{said:?}");
        assert_eq!(fs::metadata(files("package.json")).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(files("src/deep")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_link(files("link")).unwrap(), Path::new("docs"));
        assert_eq!(
            (read(&home, "ignored"), read(&home, "docs/two.md/x")),
            ("i\nmore\n".into(), "x\n".into())
        );
        let ino = |path: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(files(path)).unwrap());
        assert_eq!(ino("h1"), ino("h2"));
        assert_eq!(apply(&home, &["try"]).exits(0).stdout, "");
        // A folder that is a link here leads nowhere.
        let outside = home.path("runtime/outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("deep"), "outside\n").unwrap();
        home.sh("try", "rm -r src/deep; echo z > src/z; echo changed > docs/one.md").exits(0);
        sh(&home, "mv src real-src; mv docs real-docs");
        symlink(&outside, files("src")).unwrap();
        symlink(files("real-docs"), files("docs")).unwrap();
        let said = apply(&home, &["try"]).exits(3);
        assert!(said.stdout.contains("C src/z") && said.stdout.contains("C docs/one.md"), "{said:?}");
        apply(&home, &["try", "--theirs", "--", "src"]).exits(0);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!((read(&home, "src/z"), read(&home, "real-docs/one.md")), ("z\n".into(), "one\n".into()));
    });
}

#[test]
fn programs_that_a_forks_repository_names_run_nowhere_outside() {
    for_every_user(|user| {
        let home = shop(user);
        let planted = home.path("runtime/planted");
        let script = "plant=\"touch $0\"
            git config core.fsmonitor \"$plant\"; git config uploadpack.packObjectsHook \"$plant\"; git config core.pager \"$plant\"
            git config filter.x.clean \"$plant\"; git config filter.x.smudge \"$plant\"; git config diff.external \"$plant\"
            git config core.sshCommand \"$plant\"; git config gpg.program \"$plant\"; git config alias.bundle \"!$plant\"
            echo '* filter=x' > .gitattributes; echo '* filter=x diff=x' > .git/info/attributes
            for hook in post-checkout pre-commit reference-transaction post-merge fsmonitor-watchman; do
                printf '#!/bin/sh\\n%s\\n' \"$plant\" > .git/hooks/$hook; chmod +x .git/hooks/$hook
            done
            echo x > made; git -c core.hooksPath=/dev/null -c core.fsmonitor=false add made .gitattributes
            git -c core.hooksPath=/dev/null -c core.fsmonitor=false commit -qm made; true";
        home.run(&["try", "--", "sh", "-c", script, planted.to_str().unwrap()]).exits(0);
        let config = read(&home, ".git/config");
        let said = apply(&home, &["try"]).exits(0);
        for named in [".git/config", ".git/info/attributes", ".git/hooks/pre-commit"] {
            assert!(said.stderr.contains(named), "{named}: {said:?}");
        }
        assert!(said.stderr.contains("1 commit is branch pfimg/try"), "{said:?}");
        assert_eq!(home.git(&["log", "-1", "--format=%s", "pfimg/try"]), "made\n");
        home.git(&["status", "--short"]);
        home.git(&["fsck", "--no-progress"]);
        assert_eq!(read(&home, ".git/config"), config);
        assert!(!home.project.join(".git/hooks/pre-commit").exists() && !planted.exists());
        // A branch with commits of the user is not overwritten.
        home.git(&["checkout", "-qf", "pfimg/try"]);
        home.git(&["commit", "-q", "--allow-empty", "-m", "mine"]);
        home.git(&["checkout", "-qf", "main"]);
        home.sh(
            "try",
            "git -c core.hooksPath=/dev/null -c core.fsmonitor=false commit -q --allow-empty -m more",
        )
        .exits(0);
        let said = apply(&home, &["try", "--skip", "--json"]).exits(0).json();
        assert_eq!(said["decided"][0]["path"], "pfimg/try", "{said}");
        assert_eq!(home.git(&["log", "-1", "--format=%s", "pfimg/try"]), "mine\n");
        let said = apply(&home, &["try"]).exits(3);
        assert!(said.stdout.contains("C pfimg/try"), "{said:?}");
        assert!(!planted.exists());
    });
}

#[test]
fn an_apply_goes_to_the_forks_own_project_or_to_the_directory_that_is_named() {
    let home = shop(None);
    home.sh("try", "echo new > new").exits(0);
    let other = home.path("other");
    fs::create_dir(&other).unwrap();
    let from_other = |args: &[&str]| home.pfimg(&[&["apply"], args].concat()).dir(&other).run();
    let said = from_other(&["try"]).exits(2);
    assert!(said.stderr.contains("is a copy of") && said.stderr.contains("apply try DIR"), "{said:?}");
    from_other(&["try", "."]).exits(0);
    assert_eq!(fs::read_to_string(other.join("new")).unwrap(), "new\n");
    from_other(&["--undo"]).exits(0);
    assert!(!other.join("new").exists());
    // A seal, by its number, and an image by its tag.
    home.pfimg(&["seal", "try", "--tag", "good"]).run().exits(0);
    home.sh("try", "rm -r docs").exits(0);
    for name in ["try@1", "good"] {
        let said = apply(&home, &[name, "--dry-run", "--json"]).exits(0).json();
        let changes = said["changes"].as_array().unwrap();
        assert_eq!((changes.len(), &changes[0]["path"]), (1, &"new".into()), "{name}: {said}");
    }
    // Neither into a fork nor into the store.
    let fork = home.mountpoint().join("forks/try/world/fs");
    for dir in [fork, home.store()] {
        let said = apply(&home, &["try", dir.to_str().unwrap()]).exits(2);
        assert!(said.stderr.contains("cannot apply to"), "{said:?}");
    }
    assert_eq!(apply(&home, &["nothing"]).exits(5).stdout, "");
    // The image that the fork was made of is the base, and no later one takes its place.
    let origin = home.pfimg(&["show", "try@0", "--json"]).run().exits(0).json()["id"].clone();
    let origin = origin.as_str().unwrap().trim_start_matches("sha256:").to_owned();
    fs::remove_file(home.store().join("images").join(format!("{origin}.json"))).unwrap();
    let said = apply(&home, &["try"]).exits(5);
    assert!(said.stderr.contains(&origin) && said.stderr.contains("was removed from the store"), "{said:?}");
}

#[test]
fn an_apply_commits_its_paths_and_nothing_else_and_runs_no_hook() {
    let home = shop(None);
    sh(&home, "mkdir .hooks");
    write(&home, ".hooks/pre-commit", "touch \"${PLANTED:-/dev/null}\"\n");
    write(&home, "staged", "1\n");
    home.git(&["config", "core.hooksPath", ".hooks"]);
    sh(
        &home,
        "chmod +x .hooks/pre-commit; git add -A; git commit -qm hooks; echo 2 > staged; git add staged",
    );
    let planted = home.path("runtime/planted");
    let agent = "rm docs/one.md; echo new > new; echo other > ignored; mkdir empty; echo loose > loose
        printf '#!/bin/sh\\ntouch \"$PLANTED\"\\n' > .hooks/post-commit; chmod +x .hooks/post-commit";
    home.run(&["try", "--", "sh", "-c", agent]).exits(0);
    let said =
        home.pfimg(&["apply", "try", "--commit", "from the agent"]).env("PLANTED", &planted).run().exits(0);
    let expected = "A\t.hooks/post-commit\nD\tdocs/one.md\nA\tloose\nA\tnew\n";
    let shown = home.git(&["show", "--format=%s", "--name-status", "HEAD"]);
    assert_eq!(shown, format!("from the agent\n\n{expected}"), "{said:?}");
    let id = home.git(&["rev-parse", "--short=12", "HEAD"]);
    assert!(
        said.stderr.contains(&format!("committed 4 paths as {}; git ignores 1 other path", id.trim())),
        "{said:?}"
    );
    assert_eq!(home.git(&["diff", "--cached", "--name-only"]), "staged\n");
    assert!(!planted.exists() && read(&home, "ignored") == "other\n");
    // Without a change there is no commit, and without a repository nothing is applied.
    apply(&home, &["try", "--commit", "again"]).exits(0);
    assert_eq!(home.git(&["log", "-1", "--format=%s"]), "from the agent\n");
    sh(&home, "mkdir ../plain");
    let plain = home.path("plain");
    let refused = apply(&home, &["try", plain.to_str().unwrap(), "--commit", "x"]).exits(2).stderr;
    assert!(refused.contains("is not the top of a git repository"), "{refused}");
    // If git refuses the commit, the output names the reason, and the files stay.
    sh(
        &home,
        "git reset -q --hard HEAD~1; git config user.useConfigOnly true; git config --unset user.email",
    );
    let said = apply(&home, &["try", "--commit", "x", "--json"]).exits(1).json();
    assert!(said["commit"].is_null() && said["commit_error"].is_string(), "{said}");
    assert_eq!(read(&home, "new"), "new\n");
}

#[test]
fn an_apply_names_what_it_leaves_out_and_its_undo_the_commit_that_stays() {
    let home = shop(None);
    let said = apply(&home, &["--undo"]);
    assert!(said.code != 0 && said.stderr.contains("applies are recorded in the store"), "{said:?}");
    assert!(!said.stderr.contains("pfimg import"), "{said:?}");
    let agent = "rm docs/one.md; echo x > new; git add -A; git commit -qm made";
    home.run(&["try", "--", "sh", "-c", agent]).exits(0);
    write(&home, "docs/one.md", "mine\n");
    // A path that an option decides is listed once.
    let said = apply(&home, &["try", "--theirs", "--", "docs"]).exits(0);
    let line = "D docs/one.md                you changed it, the fork deleted it: taken from the fork\n";
    assert_eq!(said.stdout, line, "{said:?}");
    assert!(said.stderr.contains("only the named paths are applied"), "{said:?}");
    assert_eq!(home.git(&["branch", "--list", "pfimg/*"]), "");
    let said = apply(&home, &["--undo"]).exits(0);
    assert!(!said.stderr.contains("stays"), "{said:?}");
    let said = apply(&home, &["try", "--theirs", "--commit", "all"]).exits(0);
    assert!(said.stderr.contains("--undo keeps this commit"), "{said:?}");
    let id = home.git(&["rev-parse", "--short=12", "HEAD"]);
    let said = apply(&home, &["--undo"]).exits(0);
    assert!(said.stderr.contains(&format!("the commit {} stays", id.trim())), "{said:?}");
    assert_eq!(
        (read(&home, "docs/one.md"), home.git(&["log", "-1", "--format=%s"])),
        ("mine\n".into(), "all\n".into())
    );
}

#[test]
fn an_apply_that_is_killed_is_finished_or_taken_back_and_until_then_nothing_else_is_applied() {
    let home = shop(None);
    let agent = "rm docs/one.md; echo new > new; sed -i 's/s += price/s += price * count/' src/price.py";
    home.run(&["a", "--", "sh", "-c", agent]).exits(0);
    home.run(&["b", "--", "sh", "-c", "echo other > other"]).exits(0);
    let before = files(&home);
    apply(&home, &["a"]).exits(0);
    let after = files(&home);
    apply(&home, &["--undo"]).exits(0);
    assert_eq!(files(&home), before);
    // At temporary files, in the middle of the changes, and at their end.
    for (call, end) in [3, 8, 12].into_iter().flat_map(|call| [(call, "--continue"), (call, "--undo")]) {
        let said = home.pfimg(&["apply", "a"]).env("PFIMG_TEST_DIES", call.to_string()).run();
        assert_eq!(said.code, -1, "killed at call {call}: {said:?}");
        for fork in ["a", "b"] {
            let refused = apply(&home, &[fork]).exits(7).stderr;
            assert!(refused.contains("apply --continue") && refused.contains("apply --undo"), "{refused}");
        }
        apply(&home, &[end]).exits(0);
        assert_eq!(files(&home), if end == "--undo" { &*before } else { &*after }, "{call} {end}");
        if end == "--continue" {
            apply(&home, &["--undo"]).exits(0);
            assert_eq!(files(&home), before);
        }
    }
}
