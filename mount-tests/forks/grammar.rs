//! The grammar of names and arguments: what a fork, a tag and a seal may be called, and how commands take them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::cli::pfimg_on;
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, errno, names, wait_until};

/// Names that a command line could take for an option, a number, or a fork with its source.
const MISREAD: [&str; 4] = ["-a", "--force", "12", "0"];

fn link(id: &str) -> String {
    format!("../images/{id}")
}

#[test]
fn names_that_could_be_misread_are_refused_everywhere_and_those_that_are_there_stay_usable() {
    let (store, id) = small_store();
    let run = |args: &[&str]| pfimg_on(store.root(), args);
    // As an older version made them.
    run(&["fork", &id, "f"]).exits(0);
    fs::rename(store.root().join("forks/heads/f.json"), store.root().join("forks/heads/12.json")).unwrap();
    crate::common::forks::tag(&store, "34", &id);
    crate::common::forks::tag(&store, "a@b", &id);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "g", &id);
    for name in MISREAD {
        let at = |folder: &str| mount.join(folder).join(name);
        if name != "12" {
            assert_eq!(errno(fs::create_dir(at("forks"))), libc::EINVAL, "{name}");
            assert_eq!(errno(fs::rename(mount.join("forks/g"), at("forks"))), libc::EINVAL, "{name}");
        }
        let made = fs::create_dir(mount.join("forks").join(format!("{name}@{id}")));
        assert_eq!(errno(made), libc::EINVAL, "{name}");
        assert_eq!(errno(symlink(link(&id), at("tags"))), libc::EINVAL, "{name}");
        for args in [
            &["fork", &id, "--", name][..],
            &["mv", "g", "--", name],
            &["tag", &id, "--", name],
            &["cp", "34", "--", name],
        ] {
            let said = run(args).exits(2).stderr;
            assert!(said.contains("cannot be"), "{args:?}: {said}");
        }
        let tag = format!("--tag={name}");
        assert!(run(&["seal", "g", &tag]).exits(2).stderr.contains("cannot be"), "{name}");
    }
    assert_eq!(errno(symlink(link(&id), mount.join("tags/c@d"))), libc::EINVAL);
    assert_eq!(names(&mount.join("forks")).unwrap(), ["12", "g"]);
    assert_eq!(names(&mount.join("tags")).unwrap(), ["34", "a@b"]);
    // What is there can be read, written, sealed, copied, renamed and removed.
    fs::write(world(&mount, "12").join("new"), "new").unwrap();
    run(&["seal", "12"]).exits(0);
    assert!(run(&["diff", "12"]).exits(0).stdout.contains("A new"));
    run(&["show", "34"]).exits(0);
    run(&["show", "a@b"]).exits(0);
    assert!(fork(&mount, "copy", "12").join("new").exists());
    fs::rename(mount.join("tags/34"), mount.join("tags/renamed")).unwrap();
    run(&["untag", "a@b"]).exits(0);
    run(&["mv", "12", "twelve"]).exits(0);
    run(&["discard", "twelve"]).exits(0);
    mount.unmount();
}

#[test]
fn a_tag_and_a_fork_cannot_get_one_name_and_those_that_have_one_stay_usable() {
    let (store, id) = small_store();
    let run = |args: &[&str]| pfimg_on(store.root(), args);
    run(&["tag", &id, "t"]).exits(0);
    run(&["fork", &id, "f"]).exits(0);
    let taken = || {
        for args in [
            &["fork", &id, "t"][..],
            &["mv", "f", "t"],
            &["tag", &id, "f"],
            &["tag", &id, "f", "--force"],
            &["cp", "t", "f"],
            &["seal", "f", "--tag", "f"],
            &["fixture", "--tag", "f"],
            &["import", concat!(env!("CARGO_MANIFEST_DIR"), "/docs"), "--tag", "f"],
        ] {
            let images = names(&store.root().join("images")).unwrap();
            let said = run(args).exits(6).stderr;
            assert!(said.contains("\"t\"") || said.contains("\"f\""), "{args:?}: {said}");
            assert_eq!(names(&store.root().join("images")).unwrap(), images, "{args:?} left an image");
        }
    };
    taken();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    taken();
    for made in [
        fs::create_dir(mount.join("forks/t")),
        fs::create_dir(mount.join(format!("forks/t@{id}"))),
        fs::rename(mount.join("forks/f"), mount.join("forks/t")),
        symlink(link(&id), mount.join("tags/f")),
        fs::rename(mount.join("tags/t"), mount.join("tags/f")),
        fs::create_dir(mount.join("forks/f/.snap/f")),
    ] {
        assert_eq!(errno(made), libc::EEXIST);
    }
    assert_eq!(
        (names(&mount.join("forks")).unwrap(), names(&mount.join("tags")).unwrap()),
        (vec!["f".into()], vec!["t".into()])
    );
    // As an older version made it.
    crate::common::forks::tag(&store, "f", &id);
    fs::write(world(&mount, "f").join("new"), "new").unwrap();
    run(&["seal", "f", "--tag", "f", "--force"]).exits(0);
    let leads_to =
        |image: &str| fs::read_link(mount.join("tags/f")).is_ok_and(|to| to == Path::new(&link(image)));
    wait_until("the tag leads to the seal", || !leads_to(&id));
    run(&["tag", &id, "f", "--force"]).exits(0);
    wait_until("the tag leads to the image", || leads_to(&id));
    fs::rename(mount.join("tags/f"), mount.join("tags/other")).unwrap();
    run(&["mv", "f", "g"]).exits(0);
    mount.unmount();
}

#[test]
fn a_seal_is_named_by_its_number_in_the_line_of_its_fork() {
    let (store, id) = small_store();
    let run = |args: &[&str]| pfimg_on(store.root(), args);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let files = fork(&mount, "f", &id);
    let is = |fork: &str| fs::read_to_string(world(&mount, fork).join("new")).unwrap_or_default();
    let mut sealed = vec![id.clone()];
    for text in ["one", "two"] {
        fs::write(files.join("new"), text).unwrap();
        sealed.push(run(&["seal", "f"]).exits(0).stdout.trim().trim_start_matches("sha256:").to_owned());
    }
    let numbers = || {
        let images = run(&["log", "f", "--json"]).exits(0).json()["images"].clone();
        let mut numbers: Vec<(String, String)> = Vec::new();
        for image in images.as_array().unwrap() {
            for seal in image["seals"].as_array().unwrap() {
                numbers.push((seal.as_str().unwrap().into(), image["id"].as_str().unwrap()[7..].into()));
            }
        }
        numbers.sort();
        numbers
    };
    let expected: Vec<_> = sealed.iter().enumerate().map(|(n, id)| (format!("f@{n}"), id.clone())).collect();
    assert_eq!(numbers(), expected);
    assert!(run(&["log", "f"]).exits(0).stdout.contains("f@1"));
    // Everywhere an image is named.
    assert_eq!(run(&["show", "f@1", "--json"]).exits(0).json()["id"], format!("sha256:{}", sealed[1]));
    assert_eq!(run(&["diff", "f@0", "f@1"]).exits(0).stdout, "A new\n");
    assert_eq!(run(&["diff", "f@1", "f"]).exits(0).stdout, "M new\n");
    run(&["fork", "f@1", "b"]).exits(0);
    fs::create_dir(mount.join("forks/c@f@2")).unwrap();
    fs::create_dir(mount.join(format!("forks/d@f@{}", &sealed[1][..8]))).unwrap();
    assert_eq!((is("b"), is("c"), is("d")), ("one".into(), "two".into(), "one".into()));
    for missing in ["f@3", "f@nothing", "none@1", "f@"] {
        assert_eq!(
            errno(fs::create_dir(mount.join(format!("forks/e@{missing}")))),
            libc::ENOENT,
            "{missing}"
        );
        run(&["show", missing]).exits(5);
        run(&["fork", missing, "e"]).exits(5);
    }
    // What is not sealed is sealed first, and gets the next number, as the restore does; the others keep theirs.
    fs::write(files.join("new"), "three").unwrap();
    run(&["restore", "f@1"]).exits(0);
    assert_eq!(is("f"), "one");
    run(&["restore", "f@3"]).exits(0);
    assert_eq!(is("f"), "three");
    run(&["restore", "f@0"]).exits(0);
    assert!(!files.join("new").exists(), "back to the beginning");
    run(&["restore", "f", "2"]).exits(0);
    assert_eq!(is("f"), "two");
    for (args, code) in [
        (&["restore", "f@"][..], 2),
        (&["restore", "@1"], 2),
        (&["restore", "f@77"], 5),
        (&["restore", "f@a/b"], 5),
        (&["restore", "none@1"], 5),
    ] {
        run(args).exits(code);
    }
    // Without a seal it is the last one.
    fs::write(files.join("new"), "four").unwrap();
    run(&["restore", "f"]).exits(0);
    assert_eq!(is("f"), "two");
    assert_eq!(numbers()[..3], expected[..]);
    assert!(numbers().len() > 3 && run(&["log", "f"]).exits(0).stdout.contains("f@3"), "{:?}", numbers());
    mount.unmount();
    // On disk as well.
    run(&["restore", "f@1"]).exits(0);
    run(&["fork", "f@2", "g"]).exits(0);
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let is = |fork: &str| fs::read_to_string(world(&mount, fork).join("new")).unwrap();
    assert_eq!((is("f"), is("g")), ("one".into(), "two".into()));
    mount.unmount();
}
