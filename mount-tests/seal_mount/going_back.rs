//! Going back: paths of a fork, a whole fork to its beginning, and each of these undone, while programs use the fork.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::support::{manual, seal, verify};
use super::told::{MOUNTS, Shell, Watch, mounts};
use crate::common::cli::{Run, pfimg_on};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store, tag, world};
use crate::common::{Mount, names, tree};

fn run(store: &FastStore, args: &[&str]) -> crate::common::Output {
    pfimg_on(store.root(), args)
}

fn rows(store: &FastStore, fork: &str) -> Vec<serde_json::Value> {
    run(store, &["seals", fork, "--json"]).exits(0).json()["seals"].as_array().unwrap().clone()
}

/// The number and the reason of each state, without the row of what is unsealed.
fn reasons(store: &FastStore, fork: &str) -> Vec<String> {
    let mut rows = rows(store, fork);
    rows.pop();
    rows.iter().map(|row| format!("{} {}", row["number"], row["after"].as_str().unwrap())).collect()
}

fn contents(root: &Path) -> std::collections::BTreeMap<std::path::PathBuf, tree::Node> {
    tree::read_tree(root).unwrap()
}

#[track_caller]
fn assert_same(left: &Path, right: &Path) {
    assert_eq!(tree::differences(&contents(left), &contents(right)), [] as [&str; 0]);
}

/// A fork `f` with a folder of documents, sealed as number 1.
fn with_docs(mount: &Mount, store: &FastStore, id: &str) -> std::path::PathBuf {
    let world = fork(mount, "f", id);
    fs::create_dir_all(world.join("docs/deep")).unwrap();
    for (name, text) in [("docs/a", "a1"), ("docs/b", "b1"), ("docs/deep/c", "c1"), ("log", "")] {
        fs::write(world.join(name), text).unwrap();
    }
    fs::hard_link(world.join("docs/a"), world.join("docs/twin")).unwrap();
    symlink("a", world.join("docs/link")).unwrap();
    fs::set_permissions(world.join("docs/b"), fs::Permissions::from_mode(0o640)).unwrap();
    seal(store, &["f"]);
    world
}

fn spoil(world: &Path) {
    fs::write(world.join("docs/b"), "b2").unwrap();
    fs::remove_file(world.join("docs/twin")).unwrap();
    fs::remove_dir_all(world.join("docs/deep")).unwrap();
    fs::create_dir(world.join("docs/later")).unwrap();
    fs::write(world.join("docs/later/l"), "l").unwrap();
    fs::write(world.join("README"), "changed").unwrap();
}

#[test]
fn paths_go_back_while_a_shell_a_watcher_and_a_writer_are_in_the_fork() {
    for args in MOUNTS {
        let (store, id) = small_store();
        let mount = mounts(&store, args);
        let world = with_docs(&mount, &store, &id);
        let docs = world.join("docs");
        run(&store, &["fork", "f@1", "then"]).exits(0);
        let then = crate::common::forks::world(&mount, "then");
        spoil(&world);
        let mut watch = Watch::of(&[
            ("world", &world),
            ("docs", &docs),
            ("later", &docs.join("later")),
            ("b", &docs.join("b")),
            ("a", &docs.join("a")),
            ("readme", &world.join("README")),
        ]);
        let mut shell = Shell::at(&docs);
        let mut lost = Shell::at(&docs.join("later"));
        assert_eq!(shell.say("cat b && ls"), "b2a b later link");
        let open = File::open(docs.join("b")).unwrap();
        // It writes outside of the paths all the time, and each of its lines stays.
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = {
            let (stop, written, log) = (Arc::clone(&stop), Arc::clone(&written), world.join("log"));
            std::thread::spawn(move || {
                let mut log = File::options().append(true).open(log).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    log.write_all(b"line\n").unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let said = run(&store, &["restore", "f@1", "--", "docs"]).exits(0);
        assert_eq!(
            said.stdout, "D docs/later/  (1 file)\nA docs/deep/  (1 file)\nA docs/twin\nM docs/b\n",
            "{args:?}: {said:?}"
        );
        let end = "pfimg: docs/ of f is as in seal 1; the state before this is seal 2. Undo: pfimg restore f --undo\n";
        assert!(said.stderr.ends_with(end), "{said:?}");
        assert_same(&docs, &then.join("docs"));
        assert_eq!(fs::read(world.join("README")).unwrap(), b"changed");
        watch.hears(&[
            "docs DELETE b",
            "docs CREATE b",
            "docs CREATE twin",
            "docs CREATE deep",
            "docs DELETE later",
            "later DELETE l",
            "b ATTRIB",
        ]);
        assert!(watch.of_watch("readme").is_empty(), "{args:?}");
        assert!(watch.of_watch("a").iter().all(|event| event == "ATTRIB"), "{args:?}: another link alone");
        let untouched = |event: &String| ["MODIFY log"].contains(&event.as_str());
        assert!(watch.of_watch("world").iter().all(untouched), "{args:?}: {:?}", watch.of_watch("world"));
        assert_eq!(shell.say("cat b && ls && cat deep/c"), "b1a b deep link twin c1", "{args:?}");
        assert_eq!(lost.say("cat l"), "failed", "{args:?}");
        drop(lost);
        watch.hears(&["later DELETE_SELF"]);
        // Who had the file open has the old one.
        let mut text = String::new();
        (&open).read_to_string(&mut text).unwrap();
        assert_eq!((&*text, open.metadata().unwrap().nlink()), ("b2", 0), "{args:?}");
        let twins = ["a", "twin"].map(|name| fs::metadata(docs.join(name)).unwrap());
        assert_eq!((twins[0].ino(), twins[0].nlink()), (twins[1].ino(), 2), "{args:?}");
        // The watch and the shell continue.
        assert_eq!(shell.say("echo new > fresh && cat fresh"), "new");
        watch.hears(&["docs CREATE fresh"]);
        // The undone state returns, and later changes are sealed before.
        run(&store, &["restore", "f", "--undo"]).exits(0);
        assert_eq!(shell.say("cat b && ls && ls later"), "b2a b later link l", "{args:?}");
        run(&store, &["restore", "f", "--undo"]).exits(0);
        assert_eq!(shell.say("cat b && cat fresh && ls"), "b1new a b deep fresh link twin", "{args:?}");
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        let lines = fs::read(world.join("log")).unwrap();
        assert_eq!(lines.len() as u64, 5 * written.load(Ordering::Relaxed), "{args:?}");
        drop((shell, open));
        mount.unmount();
        // The same is there after a remount.
        let mount = mounts(&store, args);
        let docs = crate::common::forks::world(&mount, "f").join("docs");
        assert_eq!(names(&docs).unwrap(), ["a", "b", "deep", "fresh", "link", "twin"]);
        assert_eq!(fs::metadata(docs.join("b")).unwrap().mode() & 0o777, 0o640);
        mount.unmount();
        verify(&store);
    }
}

#[test]
fn writes_to_a_path_during_its_restore_are_in_a_seal_or_stay() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = with_docs(&mount, &store, &id);
    const MOST: u32 = 2000;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, docs) = (Arc::clone(&stop), world.join("docs"));
        std::thread::spawn(move || {
            let mut made = 0u32;
            while !stop.load(Ordering::Relaxed) {
                if made < MOST {
                    fs::write(docs.join(format!("new{made}")), format!("{made}")).unwrap();
                    made += 1;
                }
            }
            made
        })
    };
    for _ in 0..5 {
        run(&store, &["restore", "f@1", "--", "docs"]).exits(0);
    }
    stop.store(true, Ordering::Relaxed);
    let made = writer.join().unwrap();
    seal(&store, &["f"]);
    // Each file that was ever made is in a seal, whole.
    let mut found = vec![false; made as usize];
    for row in rows(&store, "f") {
        let Some(image) = row["image"].as_str().and_then(|id| id.strip_prefix("sha256:")) else { continue };
        let Ok(entries) = fs::read_dir(mount.image(image).join("world/fs/docs")) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            assert!(!name.starts_with(".pfimg"), "{name}");
            let Some(number) = name.strip_prefix("new") else { continue };
            let text = fs::read_to_string(entry.path()).unwrap();
            // It may be sealed between its making and its first byte.
            found[number.parse::<usize>().unwrap()] |= text == number;
        }
    }
    assert!(made > 0 && found.iter().all(|found| *found), "of {made} files some are in no seal");
    mount.unmount();
}

#[test]
fn a_fork_goes_back_to_its_beginning_whatever_it_was_made_of_and_each_restore_is_undone() {
    for mounted in [true, false] {
        let (store, id) = small_store();
        tag(&store, "t", &id);
        let run = |args: &[&str]| run(&store, args);
        run(&["fork", "t", "source"]).exits(0);
        let mount = manual(&store);
        fs::write(world(&mount, "source").join("sealed"), "sealed").unwrap();
        seal(&store, &["source"]);
        fs::create_dir(mount.join("forks/empty")).unwrap();
        fs::create_dir_all(world(&mount, "empty")).unwrap();
        for (name, source) in [("image", &*id), ("tag", "t"), ("fork", "source"), ("seal", "source@1")] {
            run(&["fork", source, name]).exits(0);
        }
        let all = ["image", "tag", "fork", "seal", "empty"];
        let mut begun = Vec::new();
        for name in all {
            let world = world(&mount, name);
            begun.push(if name == "empty" { Vec::new() } else { names(&world).unwrap() });
            fs::write(world.join("mistake"), name).unwrap();
            if name != "empty" {
                fs::remove_file(world.join("README")).unwrap();
            }
        }
        let mut shells: Vec<_> = all.iter().map(|name| Shell::at(&world(&mount, name))).collect();
        let held = if mounted {
            Some(mount)
        } else {
            shells.clear();
            mount.unmount();
            None
        };
        for (at, name) in all.iter().enumerate() {
            // One that began empty has not even the folder of its files.
            let of = |mount: &Mount| match names(&world(mount, name)) {
                Err(error) if *name == "empty" => {
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
                    Vec::new()
                }
                names => names.unwrap(),
            };
            let look = || {
                if let Some(mount) = &held {
                    return of(mount);
                }
                let mount = manual(&store);
                let found = of(&mount);
                mount.unmount();
                found
            };
            let back = run(&["restore", &format!("{name}@0")]).exits(0);
            assert!(back.stderr.contains(&format!("{name} is as in seal 0")), "{back:?}");
            assert_eq!(look(), begun[at], "{name} {mounted}");
            if let (Some(shell), false) = (shells.get_mut(at), *name == "empty") {
                assert_eq!(shell.say("ls"), begun[at].join(" "), "{name}");
            }
            run(&["restore", name, "--undo"]).exits(0);
            assert!(look().contains(&"mistake".to_owned()), "{name} {mounted}");
            run(&["restore", name, "--undo"]).exits(0);
            assert_eq!(look(), begun[at], "{name} {mounted}");
            let reasons = reasons(&store, name);
            // What is empty again has no image before it is sealed.
            let expected: &[&str] = if *name == "empty" {
                &["1 before restore of 0", "2 restored 0", "3 before undo", "4 restored 1", "5 restored 3"]
            } else {
                &["1 before restore of 0", "2 restored 0", "3 restored 1", "4 restored 0"]
            };
            assert_eq!(reasons[1..], *expected, "{name} {mounted}");
        }
        let refused = run(&["show", "empty@0"]).exits(5).stderr;
        assert!(refused.contains("began empty") && refused.contains("pfimg restore empty@0"), "{refused}");
        drop(shells);
        if let Some(mount) = held {
            mount.unmount();
        }
        verify(&store);
    }
}

#[test]
fn paths_go_back_on_disk_as_they_do_in_a_mount() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = with_docs(&mount, &store, &id);
    spoil(&world);
    let name = std::ffi::OsStr::from_bytes(b"docs/\xff odd\n name");
    fs::write(world.join(name), "odd").unwrap();
    run(&store, &["fork", "f@1", "then"]).exits(0);
    mount.unmount();
    let restore = |args: &[&std::ffi::OsStr]| {
        let first = [std::ffi::OsStr::new("restore"), "f@1".as_ref(), "--".as_ref()];
        Run::new(first.iter().chain(args)).env("PF_STORE", store.root()).run()
    };
    // Each way to write a path, a path of any bytes among them.
    let said = restore(&[name, "docs/b".as_ref(), "./docs/later/..//later".as_ref()]).exits(0);
    assert_eq!(said.stdout, "D docs/later/  (1 file)\nD docs/\\xff odd\\n name\nM docs/b\n", "{said:?}");
    let said = restore(&["docs/deep/c".as_ref()]).exits(0);
    assert!(
        said.stderr.contains("docs/deep/c of f is as in seal 1; the state before this is seal"),
        "{said:?}"
    );
    restore(&["docs".as_ref()]).exits(0);
    let again = restore(&["docs".as_ref()]).exits(0);
    assert!(again.stdout.is_empty() && again.stderr.contains("nothing was changed"), "{again:?}");
    let json = run(&store, &["restore", "f@0", "--json", "--", "docs", "README"]).exits(0).json();
    assert_eq!((&json["seal"], &json["paths"]), (&0.into(), &serde_json::json!(["docs/", "README"])));
    let entries = json["entries"].as_array().unwrap();
    assert!(
        entries.contains(&serde_json::json!({"status": "M", "path": "README", "directory": false})),
        "{json}"
    );
    assert!(
        entries.contains(&serde_json::json!({"status": "D", "path": "docs", "directory": true})),
        "{json}"
    );
    run(&store, &["restore", "f", "--undo"]).exits(0);
    let mount = manual(&store);
    let (f, then) = (crate::common::forks::world(&mount, "f"), crate::common::forks::world(&mount, "then"));
    assert_same(&f.join("docs"), &then.join("docs"));
    // Errors name the fork, the seal, the path, and what to type.
    for (args, code, words) in [
        (&["f@1", "--", "nowhere"][..], 5, &["nowhere", "\"f\"", "seal 1", "pfimg seals f"][..]),
        (&["f@1", "--", "../x"], 2, &["../x", "\"f\""]),
        (&["f@1", "--", "/etc/passwd"], 2, &["/etc/passwd"]),
        (&["f@99", "--", "docs"], 5, &["\"99\"", "pfimg seals f"]),
        (&["f@"], 2, &["pfimg seals f"]),
        (&["then", "--undo"], 5, &["never restored", "pfimg seals then"]),
        (&["f@1", "--undo"], 2, &["pfimg restore f --undo"]),
        (&["none@1", "--", "x"], 5, &["none"]),
    ] {
        let said = run(&store, &[&["restore"], args].concat()).exits(code).stderr;
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    }
    // Inside the fork a path begins at the current directory; many paths are one request.
    fs::remove_file(f.join("docs/a")).unwrap();
    fs::remove_file(f.join("docs/b")).unwrap();
    let mut args: Vec<String> = ["restore", "f@1", "--", "a", "b"].map(str::to_owned).to_vec();
    args.extend(std::iter::repeat_n("a".to_owned(), 400));
    Run::new(&args).env("PF_STORE", store.root()).dir(&f.join("docs")).run().exits(0);
    assert_eq!(fs::read(f.join("docs/a")).unwrap(), b"a1");
    assert_eq!(fs::read(f.join("docs/b")).unwrap(), b"b1");
    mount.unmount();
}

#[test]
fn a_restore_of_paths_is_seen_by_no_other_fork() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = with_docs(&mount, &store, &id);
    spoil(&world);
    // A child with unsealed changes of its parent, and a sibling.
    for name in ["child", "sibling"] {
        fork(&mount, name, "f");
        fs::write(self::world(&mount, name).join("docs/b"), name).unwrap();
    }
    let before: Vec<_> =
        ["child", "sibling", "f"].iter().map(|name| contents(&self::world(&mount, name))).collect();
    run(&store, &["restore", "child@0", "--", "docs"]).exits(0);
    let now = |name: &str| contents(&self::world(&mount, name));
    assert_eq!(now("sibling"), before[1]);
    assert_eq!(now("f"), before[2]);
    assert_ne!(now("child"), before[0]);
    let child = now("child");
    run(&store, &["restore", "f@1", "--", "."]).exits(0);
    assert_eq!((now("sibling"), now("child")), (before[1].clone(), child.clone()));
    // Nor does writing to a restored file, whose bytes it shares, change any of them.
    let file = File::options().write(true).open(world.join("docs/b")).unwrap();
    file.write_all_at(b"XX", 0).unwrap();
    drop(file);
    assert_eq!((now("sibling"), now("child")), (before[1].clone(), child));
    run(&store, &["restore", "f@1", "--", "docs/b"]).exits(0);
    assert_eq!(fs::read(world.join("docs/b")).unwrap(), b"b1");
    mount.unmount();
    verify(&store);
}

#[test]
fn the_table_of_seals_and_the_log_say_why_each_was_made() {
    let (store, id) = small_store();
    tag(&store, "project", &id);
    let mount = manual(&store);
    let world = fork(&mount, "f", "project");
    fs::create_dir(world.join("docs")).unwrap();
    for n in 0..3 {
        fs::write(world.join(format!("docs/{n}")), "x").unwrap();
    }
    run(&store, &["seal", "f", "-m", "documents\u{1b}[31m, all"]).exits(0);
    fs::remove_dir_all(world.join("docs")).unwrap();
    fs::write(world.join("README"), "changed").unwrap();
    run(&store, &["seal", "f", "--tag", "two"]).exits(0);
    // Nothing changed, but there is a message.
    run(&store, &["seal", "f", "--message", "said later"]).exits(0);
    fs::write(world.join("README"), "again").unwrap();
    let text = run(&store, &["seals", "f"]).exits(0).stdout;
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            // Without the time.
            [&words[..1], &words[2..]].concat().join(" ")
        })
        .collect();
    assert_eq!(
        lines,
        [
            "NO AFTER CHANGES".to_owned(),
            format!("0 made of project ({})", &id[..7]),
            "1 documents\\u{1b}[31m, all +3 docs/".to_owned(),
            "2 said later -3 ~1".to_owned(),
            "* now ~1".to_owned(),
        ],
        "{text}"
    );
    let rows = rows(&store, "f");
    assert_eq!(rows[2]["changes"], serde_json::json!({"added": 0, "changed": 1, "deleted": 3}));
    assert_eq!((&rows[2]["message"], &rows[3]["number"]), (&"said later".into(), &serde_json::Value::Null));
    let log = run(&store, &["log", "f"]).exits(0).stdout;
    assert!(log.contains("f@2 (said later)") && log.contains("two"), "{log}");
    run(&store, &["restore", "f@0"]).exits(0);
    let log = run(&store, &["log", "f", "--json"]).exits(0).json();
    let all = log["images"].as_array().unwrap();
    let zero = all.iter().find(|image| image["id"] == format!("sha256:{id}")).unwrap();
    assert_eq!(zero["seals"], serde_json::json!(["f@0", "f@4"]));
    assert_eq!(zero["reasons"], serde_json::json!(["", "restored 0"]));
    assert_eq!(reasons(&store, "f")[3..], ["3 before restore of 0", "4 restored 0"]);
    mount.unmount();
    run(&store, &["seals", "none"]).exits(5);
}

#[test]
fn the_beginning_of_a_living_fork_is_kept_by_everything_that_removes_images() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let source = fork(&mount, "source", &id);
    let mut sealed = Vec::new();
    for text in ["one", "two", "three"] {
        fs::write(source.join("new"), text).unwrap();
        sealed.push(seal(&store, &["source"]));
    }
    run(&store, &["tag", "source@1", "one"]).exits(0);
    run(&store, &["fork", "one", "f"]).exits(0);
    let files = world(&mount, "f");
    for text in ["a", "b"] {
        fs::write(files.join("new"), text).unwrap();
        seal(&store, &["f"]);
    }
    run(&store, &["untag", "one"]).exits(0);
    mount.unmount();
    run(&store, &["prune", "--keep-last", "1"]).exits(0);
    run(&store, &["discard", "--seals", "--force", "source"]).exits(0);
    run(&store, &["prune", "--all", "--keep-last", "1"]).exits(0);
    run(&store, &["gc"]).exits(0);
    let there = |id: &str| store.root().join("images").join(format!("{id}.json")).exists();
    assert!(!there(&sealed[1]), "nothing was removed");
    // Number 1 of it is gone, which tells what it was made of.
    assert_eq!(rows(&store, "f")[1]["in_store"], false);
    let mount = manual(&store);
    run(&store, &["restore", "f@0"]).exits(0);
    assert_eq!(fs::read(world(&mount, "f").join("new")).unwrap(), b"one");
    let refused = run(&store, &["restore", "f@1"]).exits(5).stderr;
    assert!(refused.contains("no longer in the store") && refused.contains("pfimg seals f"), "{refused}");
    mount.unmount();
    verify(&store);
}

#[test]
fn files_named_by_pfignore_stay_when_paths_are_restored() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    fs::write(world.join(".pfignore"), "cache\n").unwrap();
    fs::create_dir_all(world.join("docs/cache")).unwrap();
    fs::write(world.join("docs/a"), "a").unwrap();
    fs::write(world.join("docs/cache/big"), "big").unwrap();
    seal(&store, &["f"]);
    fs::remove_file(world.join("docs/a")).unwrap();
    let said = run(&store, &["restore", "f@1", "--", "docs"]).exits(0);
    assert_eq!(said.stdout, "A docs/a\n", "{said:?}");
    assert!(said.stderr.contains("docs/cache/big stays"), "{said:?}");
    assert_eq!(fs::read(world.join("docs/cache/big")).unwrap(), b"big");
    // It is in no seal, neither before nor after.
    let last = seal(&store, &["f"]);
    assert_eq!(names(&mount.image(&last).join("world/fs/docs")).unwrap(), ["a"]);
    assert_eq!(rows(&store, "f").last().unwrap()["changes"]["added"], 0);
    mount.unmount();
}
