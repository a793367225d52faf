//! A run in a project: at the project's own path, and without preparation.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::home::{Home, for_every_user};
use crate::common::cli::Run;
use crate::common::mount::Background;
use crate::common::{is_root, wait_until};

#[test]
fn a_fork_is_at_its_projects_own_path_and_the_project_stays_as_it_is() {
    for_every_user(|user| {
        let home = Home::new(user);
        let (before, project) = (home.state(), home.project.display().to_string());
        let log = home.git(&["log", "--oneline"]);
        let script = "pwd; echo $PWD; cat ignored untracked src/price.py; git status --short; git fsck --no-progress
            echo 3 > src/price.py; echo new > new; rm -r docs; git add -A; git commit -qm second; git log --format=%s
            git config core.fsmonitor \"touch $0\"; echo \"touch $0\" > .git/hooks/post-checkout; chmod +x .git/hooks/*";
        // A program that git starts in the fork does not run outside of it.
        let planted = home.path("runtime/planted");
        let said = home.run(&["try", "--", "sh", "-c", script, planted.to_str().unwrap()]).exits(0);
        let expected = format!(
            "{project}\n{project}\nignored\nuntracked\nprice = 2\n M src/price.py\n?? untracked\nsecond\nfirst\n"
        );
        assert_eq!(said.stdout, expected, "{said:?}");
        assert_eq!(home.state(), before);
        assert_eq!(home.git(&["log", "--oneline"]), log);
        assert_eq!(home.git(&["branch", "--list", "--all"]), "* main\n");
        // What was deleted comes first, whole folders once.
        let lines: Vec<_> = said.stderr.lines().collect();
        assert!(lines[0].starts_with("pfimg: imported ~/shop: "), "{said:?}");
        assert!(lines[0].ends_with(" s (.git included)"), "{said:?}");
        assert!(lines[1].starts_with("  try  exit 0  "), "{said:?}");
        assert!(lines[1].ends_with("  -2 +1 ~1   deleted: docs/   1 commit"), "{said:?}");
        assert!(lines[2].starts_with("next:  pfimg diff try -p      pfimg "), "{said:?}");
        assert_eq!(lines.len(), 3, "{said:?}");
        assert_eq!(home.read("try", "src/price.py").unwrap(), "3\n");
        assert!(!planted.exists());
        // The same fork again, from a folder in the project.
        fs::write(home.path("shop/src/price.py"), "price = 4\n").unwrap();
        let here = |dir: &str, fork: &str| {
            home.pfimg(&["run", fork, "--", "pwd"]).dir(&home.project.join(dir)).run().exits(0)
        };
        let said = here("src/deep", "try");
        assert_eq!(said.stdout, format!("{project}/src/deep\n"), "{said:?}");
        assert!(!said.stderr.contains("imported") && said.stderr.contains("no changes"), "{said:?}");
        assert_eq!(home.read("try", "src/price.py").unwrap(), "3\n");
        // The caller's folder is missing in the fork.
        let said = here("docs", "try");
        assert_eq!(said.stdout, format!("{project}\n"));
        assert!(
            said.stderr.contains(&format!("{project}/docs is not a directory of fork \"try\"")),
            "{said:?}"
        );
        // In the project the older form does so too; elsewhere the command starts in the fork's folder.
        let said = home.pfimg(&["run", "try", "pwd"]).dir(&home.path("shop/src")).run().exits(0);
        assert_eq!(said.stdout, format!("{project}/src\n"));
        let said = home.pfimg(&["run", "try", "pwd"]).dir(&home.path("")).run().exits(0);
        assert_eq!(said.stdout, format!("{}/forks/try/world/fs\n", home.mountpoint().display()));
        assert_eq!(said.stderr, "");
        // From elsewhere the command starts in the project.
        let said = home.pfimg(&["run", "try", "--", "pwd"]).dir(&home.path("")).run().exits(0);
        assert_eq!(said.stdout, format!("{project}\n"));
    });
}

#[test]
fn two_runs_side_by_side_see_nothing_of_each_other() {
    for_every_user(|user| {
        let home = Home::new(user);
        let before = home.state();
        let script = "git checkout -qb $PFIMG_FORK; echo $PFIMG_FORK > mine; echo $PFIMG_FORK > src/price.py
            git add -A; git commit -qm $PFIMG_FORK; mkdir $PFIMG_SNAP/mark-$PFIMG_FORK
            for n in $(seq 50); do cat mine src/price.py; git log -1 --format=%s; done | sort -u; git branch | tr -d '* '";
        std::thread::scope(|scope| {
            for fork in ["one", "two"] {
                let home = &home;
                scope.spawn(move || {
                    let said = home.sh(fork, script).exits(0);
                    let expected = if fork == "one" { "one\nmain\none\n" } else { "two\nmain\ntwo\n" };
                    assert_eq!(said.stdout, expected, "{said:?}");
                });
            }
        });
        assert_eq!(home.state(), before);
        assert_eq!(home.git(&["branch", "--list"]), "* main\n");
        home.pfimg(&["verify"]).run().exits(0);
    });
}

#[test]
fn nothing_is_needed_before_a_run() {
    for_every_user(|user| {
        let home = Home::new(user);
        assert!(!home.store().exists() && home.mountpoints().is_empty());
        let said = home.run(&["--", "true"]).exits(0);
        assert!(said.stderr.contains("  shop-1  exit 0") && said.stderr.contains("no changes"), "{said:?}");
        assert_eq!((said.stdout.as_str(), home.forks()), ("", vec!["shop-1".to_owned()]));
        // The next one imports nothing, and has the first number that is free.
        let said = home.run(&["--", "true"]).exits(0);
        assert!(said.stderr.contains("  shop-2  exit 0") && !said.stderr.contains("imported"), "{said:?}");
        home.pfimg(&["discard", "shop-1"]).run().exits(0);
        fs::write(home.path("shop/more"), "more\n").unwrap();
        let said = home.run(&["--", "cat", "more"]).exits(0);
        assert!(said.stderr.contains("imported") && said.stderr.contains("  shop-1  exit 0"), "{said:?}");
        assert_eq!(said.stdout, "more\n");
        // The exit code is the command's, and --quiet prints nothing.
        let said = home.run(&["-q", "other", "--", "sh", "-c", "exit 7"]).exits(7);
        assert_eq!(said.stderr, "");
        // A home folder and the root folder are not projects.
        for dir in [home.path(""), "/".into()] {
            let said = home.pfimg(&["run", "--", "true"]).dir(&dir).run().exits(125);
            assert!(said.stderr.contains("not a project"), "{said:?}");
        }
        let said = home.pfimg(&["run", "--from", "shop/docs", "--", "ls"]).dir(&home.path("")).run().exits(0);
        assert!(said.stdout == "one.md\ntwo.md\n" && said.stderr.contains("  docs-1  exit 0"), "{said:?}");
        // The records next to forks are closed to other users.
        for path in [".runs", ".runs/shop-2.json", "projects"] {
            let metadata = fs::metadata(home.store().join("forks").join(path)).unwrap();
            assert_eq!(metadata.mode() & 0o077, 0, "{path}");
        }
        // The store holds nothing that gc or verify would trip over.
        home.pfimg(&["verify"]).run().exits(0);
        home.pfimg(&["gc"]).run().exits(0);
        assert_eq!(home.sh("shop-2", "cat untracked").exits(0).stdout, "untracked\n");
    });
}

#[test]
fn a_run_that_cannot_start_its_command_reports_the_discarded_fork_and_a_hidden_program() {
    for_every_user(|user| {
        let home = Home::new(user);
        let said = home.run(&["try", "--", "/no/such/command"]).exits(127);
        assert!(said.stderr.contains("discarded fork \"try\": its command could not be started"), "{said:?}");
        assert!(home.forks().is_empty() && !said.stderr.contains("hidden"), "{said:?}");
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, "#!/bin/sh\necho here\n").unwrap();
        for path in [dir.path(), &agent] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let agent = agent.to_str().unwrap();
        let said = home.run(&["try", "--", agent]).exits(127);
        assert!(said.stderr.contains(&format!("{agent} is hidden in the run")), "{said:?}");
        let said = home.run(&["--read", agent, "try", "--", agent]).exits(0);
        assert_eq!(said.stdout, "here\n");
    });
}

#[test]
fn a_fork_is_made_of_the_named_source() {
    let home = Home::new(None);
    home.sh("one", "echo one > mine").exits(0);
    home.pfimg(&["seal", "one", "--tag", "green"]).run().exits(0);
    let said = home.run(&["two", "--from", "one", "--", "sh", "-c", "pwd; cat mine"]).exits(0);
    assert_eq!(said.stdout, format!("{}\none\n", home.project.display()));
    assert_eq!(home.run(&["three@green", "--", "cat", "mine"]).exits(0).stdout, "one\n");
    assert_eq!(home.run(&["--from", "green", "--", "cat", "mine"]).exits(0).stdout, "one\n");
    assert!(home.forks().contains(&"green-1".to_owned()), "{:?}", home.forks());
    home.run(&["three@green", "--", "true"]).exits(125);
    home.run(&["four", "--from", "none", "--", "true"]).exits(125);
    home.run(&["latest", "--", "true"]).exits(125);
    // A commit: tracked files are as they were in it, ignored ones as they are.
    fs::write(home.path("shop/src/price.py"), "price = 9\n").unwrap();
    home.git(&["commit", "-qam", "second"]);
    let script =
        "cat src/price.py ignored; ls untracked; git log --format=%s; git status --short; rm docs/one.md";
    let said = home.run(&["old", "--from-commit", "HEAD~", "--", "sh", "-c", script]).exits(0);
    assert_eq!(said.stdout, "price = 1\nignored\nfirst\n", "{said:?}");
    assert!(said.stderr.contains("-1   deleted: docs/one.md"), "{said:?}");
    let said = home.run(&["odd", "--from-commit", "nonsense", "--", "true"]).exits(125);
    assert!(said.stderr.contains("cannot check out \"nonsense\""), "{said:?}");
    home.run(&["odd", "--from-commit=--orphan", "--", "true"]).exits(125);
    assert!(!home.forks().contains(&"odd".to_owned()), "{:?}", home.forks());
    // A word that is not a fork, and reads like a command, is not guessed.
    let said = home.run(&["new", "git", "checkout", "--", "docs"]).exits(2);
    assert!(said.stderr.contains("\"git\" is a program"), "{said:?}");
    home.run(&["one", "git", "checkout", "-q", "--", "docs"]).exits(0);
    home.run(&["one"]).exits(2);
    home.run(&["one", "--"]).exits(2);
    assert!(!home.forks().iter().any(|fork| fork == "new" || fork == "git"), "{:?}", home.forks());
}

#[test]
fn a_fork_keeps_its_project_through_renames_and_restores_until_it_is_discarded() {
    let home = Home::new(None);
    let projects = home.store().join("forks/projects");
    let is_at_home = |fork: &str| {
        let said = home.pfimg(&["run", fork, "--", "pwd"]).dir(&home.path("")).run().exits(0);
        assert_eq!(said.stdout, format!("{}\n", home.project.display()), "{said:?}");
    };
    home.sh("a", "echo a > a").exits(0);
    home.pfimg(&["seal", "a", "--tag", "sealed"]).run().exits(0);
    home.pfimg(&["mv", "a", "b"]).run().exits(0);
    is_at_home("b");
    assert_eq!(home.record("b")["command"][0], "pwd");
    home.sh("b", "rm a").exits(0);
    home.pfimg(&["restore", "b", "sealed"]).run().exits(0);
    is_at_home("b");
    assert_eq!(fs::read_dir(&projects).unwrap().count(), 1);
    // Without a mount as well.
    home.pfimg(&["umount", home.mountpoint().to_str().unwrap()]).run().exits(0);
    home.pfimg(&["mv", "b", "c"]).run().exits(0);
    assert!(!home.store().join("forks/.runs/b.json").exists());
    is_at_home("c");
    home.pfimg(&["umount", home.mountpoint().to_str().unwrap()]).run().exits(0);
    home.pfimg(&["discard", "c"]).run().exits(0);
    assert_eq!(fs::read_dir(&projects).unwrap().count(), 0);
    assert_eq!(fs::read_dir(home.store().join("forks/.runs")).unwrap().count(), 0);
    // The other fork of the name belongs to another project.
    let said = home.pfimg(&["run", "--from", "docs", "c", "--", "pwd"]).run();
    assert_eq!(said.code, 125, "a name without a slash does not mean a folder: {said:?}");
    let said = home.pfimg(&["run", "--from", "./docs", "c", "--", "pwd"]).run().exits(0);
    assert_eq!(said.stdout, format!("{}/docs\n", home.project.display()));
}

#[test]
fn no_other_path_leads_to_the_project_and_a_fork_is_shown_elsewhere_on_request() {
    let home = Home::new(None);
    let (project, elsewhere) = (home.project.display().to_string(), home.path("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    let shown = elsewhere.display().to_string();
    let script = format!("pwd; ls; ls -A {project}; echo x > x");
    let said = home.run(&["a", "--at", &shown, "--", "sh", "-c", &script]).exits(0);
    assert_eq!(said.stdout, format!("{shown}\ndocs\nignored\nsrc\nuntracked\n"), "{said:?}");
    assert_eq!(home.read("a", "x").unwrap(), "x\n");
    let said = home.run(&["a", "--at", "/tmp/new/deep", "--", "sh", "-c", "pwd; cat x"]).exits(0);
    assert_eq!(said.stdout, "/tmp/new/deep\nx\n");
    for at in ["/tmp", "/", "/proc/x", home.mountpoint().join("forks/a").to_str().unwrap()] {
        home.run(&["a", "--at", at, "--", "true"]).exits(125);
    }
    // Links lead to the fork, and another mount of the project nowhere.
    std::os::unix::fs::symlink(&home.project, home.path("link")).unwrap();
    let said = home.sh("a", &format!("cat {}/x", home.path("link").display())).exits(0);
    assert_eq!(said.stdout, "x\n");
    // A path that is hidden in the project is hidden in the fork, and a writable path is the machine's.
    let (docs, src) = (home.path("shop/docs"), home.path("shop/src"));
    let options = ["--hide", docs.to_str().unwrap(), "--write", src.to_str().unwrap()];
    let said =
        home.run(&[&options[..], &["a", "--", "sh", "-c", "ls docs; echo by-run > src/by-run"]].concat());
    assert_eq!(said.exits(0).stdout, "");
    assert_eq!(fs::read_to_string(src.join("by-run")).unwrap(), "by-run\n");
    assert_eq!(home.read("a", "docs/one.md").unwrap(), "one\n");
    let said = home.run(&["--write", &project, "a", "--", "true"]).exits(125);
    assert!(said.stderr.contains("is where the fork is shown"), "{said:?}");
    if is_root() {
        let script =
            format!("mount --bind {project} {shown} && exec \"$0\" run a -- sh -c 'ls -A {shown}; cat x'");
        let args =
            ["--mount", "--propagation", "private", "sh", "-c", &script, home.program.to_str().unwrap()];
        let run = Run::program(Path::new("unshare"), args).dir(&home.project).env("HOME", home.path(""));
        let said = run.env("XDG_RUNTIME_DIR", home.path("runtime")).run().exits(0);
        assert_eq!(said.stdout, "x\n", "{said:?}");
    }
}

#[test]
fn a_run_continues_in_a_fork_that_is_restored_at_its_projects_path() {
    let home = Home::new(None);
    home.sh("a", "true").exits(0);
    home.pfimg(&["seal", "a", "--tag", "one"]).run().exits(0);
    let script = ": > ready; while [ -e ready ]; do sleep 0.01; done; echo on > went; git status --short went; cat untracked went";
    let mut run = home.spawn(&["a", "--", "sh", "-c", script]);
    wait_until("it runs", || home.read("a", "ready").is_some());
    home.pfimg(&["restore", "a", "one"]).run().exits(0);
    assert_eq!(run.code(), Some(0));
    assert_eq!(home.read("a", "went").unwrap(), "on\n");
    assert_eq!(home.record("a")["added"], 1);
}

#[test]
fn a_mount_of_the_users_own_is_used() {
    let home = Home::new(None);
    home.sh("a", "true").exits(0);
    // An unused mount of runs ends for it.
    let own = home.mountpoint();
    let point = home.path("pf");
    fs::create_dir(&point).unwrap();
    let _guard = Background { point: point.clone(), pid: None };
    let said = home.pfimg(&["mount", point.to_str().unwrap()]).run().exits(0);
    assert_eq!(said.stderr, "");
    assert!(home.mountpoints().is_empty(), "{}", own.display());
    let said = home.run(&["b", "--", "sh", "-c", "pwd; echo b > b"]).exits(0);
    assert_eq!(said.stdout, format!("{}\n", home.project.display()));
    assert_eq!(fs::read_to_string(point.join("forks/b/world/fs/b")).unwrap(), "b\n");
    assert!(home.mountpoints().is_empty());
    home.pfimg(&["umount", point.to_str().unwrap()]).run().exits(0);
}
