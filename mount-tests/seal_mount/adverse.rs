//! Activity during seals, and files that disappear.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::Signal;

use super::support::{manual, seal, snaps, verify};
use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, errno, names, wait_until};

/// A line that a seal chains on.
fn line(n: u32) -> String {
    let digest = format!("sha256:{}", "ab".repeat(32));
    format!(
        "{{\"ts\":\"2026-05-05T14:11:00Z\",\"tool_id\":\"t\",\"args_hash\":\"{digest}\",\"idempotency_key\":\"k{n}\",\
         \"result_hash\":\"{digest}\",\"side_effect_class\":\"pure\"}}\n"
    )
}

fn numbers(ledger: &Path) -> Vec<u32> {
    let text = fs::read_to_string(ledger).unwrap();
    let found = text.lines().filter_map(|line| line.split_once("\"idempotency_key\":\"k"));
    found.filter_map(|(_, rest)| rest.split('"').next()?.parse().ok()).collect()
}

/// With the kernel keeping writes for a while or not, in a fork of an image or one that began empty.
#[test]
fn a_program_continues_to_append_after_a_seal_has_rewritten_the_ledger() {
    for (writes, empty) in [("through", false), ("back", false), ("through", true), ("back", true)] {
        goes_on_appending(writes, empty);
    }
}

fn goes_on_appending(writes: &str, empty: bool) {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
    if empty {
        fs::create_dir_all(mount.join("forks/f/effects")).unwrap();
    } else {
        fork(&mount, "f", &id);
    }
    let path = mount.join("forks/f/effects/ledger.jsonl");
    let open = || fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let mut kept = open();
    for n in 0..12 {
        // By a shell, and by a program that keeps it open; neither checks its length in between.
        if n % 3 == 0 { open().write_all(line(n).as_bytes()) } else { kept.write_all(line(n).as_bytes()) }
            .unwrap_or_else(|e| panic!("line {n}: {e}"));
        if n % 2 == 0 {
            fs::create_dir(mount.join(format!("forks/f/.snap/s{n}"))).unwrap();
            // A program that copies it checks its length.
            let text = fs::read(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), text.len() as u64, "{n} {writes}");
            let copy = mount.join(format!("forks/c{n}"));
            tool("cp", ["-r".as_ref(), mount.join("forks/f").as_os_str(), copy.as_os_str()]).exits(0);
            assert!(fs::read(copy.join("effects/ledger.jsonl")).unwrap() == text, "{n} {writes}");
            let (seen, held) = (fs::metadata(&path).unwrap(), open().metadata().unwrap());
            assert_eq!((seen.ino(), seen.len()), (held.ino(), held.len()), "{n} {writes}");
        }
    }
    drop(kept);
    seal(&store, &["f", "--tag", "last"]);
    let wanted: Vec<u32> = (0..12).collect();
    assert_eq!(numbers(&path), wanted, "writes {writes}, empty {empty}");
    assert_eq!(numbers(&mount.join("tags/last/effects/ledger.jsonl")), wanted);
    verify(&store);
    mount.unmount();
}

#[test]
fn a_copy_of_a_forks_ledger_equals_the_shown_one_and_has_no_secret() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let files = fork(&mount, "f", &id);
    let ledger = mount.join("forks/f/effects/ledger.jsonl");
    fs::OpenOptions::new().append(true).open(&ledger).unwrap().write_all(line(1).as_bytes()).unwrap();
    let sealed = seal(&store, &["f"]);
    let shown = fs::read_to_string(&ledger).unwrap();
    assert!(shown.contains("<redacted>"), "{shown}");
    tool("cp", [ledger.as_os_str(), files.join("copy").as_os_str()]).exits(0);
    tool("cp", ["-r".as_ref(), mount.join("forks/f").as_os_str(), mount.join("forks/g").as_os_str()])
        .exits(0);
    mount.unmount();
    // Another mount looks at the copy first.
    let mount = manual(&store);
    let copies = ["forks/g/effects/ledger.jsonl", "work/g/copy", "work/f/copy"];
    for copy in copies {
        assert_eq!(fs::read_to_string(mount.join(copy)).unwrap(), shown, "{copy}");
    }
    seal(&store, &["g", "--tag", "of-g"]);
    assert_eq!(fs::read_to_string(mount.join("tags/of-g/world/fs/copy")).unwrap(), shown);
    assert_eq!(names(&mount.join("tags/of-g/parents")).unwrap(), [sealed]);
    verify(&store);
    mount.unmount();
}

#[test]
fn seals_list_the_tags_that_their_images_have_now() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let files = fork(&mount, "f", &id);
    fs::write(files.join("new"), "1").unwrap();
    fs::create_dir(mount.join("forks/f/.snap/one")).unwrap();
    assert_eq!(snaps(&mount, "f"), ["one"]);
    pfimg_on(store.root(), ["tag", "one", "two"]).exits(0);
    wait_until("both are listed", || snaps(&mount, "f") == ["one", "two"]);
    pfimg_on(store.root(), ["untag", "one"]).exits(0);
    wait_until("one is listed", || snaps(&mount, "f") == ["two"]);
    mount.unmount();
}

#[test]
fn the_first_fork_is_listed_by_a_mount_that_looked_before() {
    let (store, id) = small_store();
    let [one, two] = [(), ()].map(|()| manual(&store));
    for folder in ["forks", "work"] {
        assert_eq!(names(&two.join(folder)).unwrap(), [""; 0]);
    }
    fork(&one, "f", &id);
    for folder in ["forks", "work"] {
        wait_until("it is listed", || names(&two.join(folder)).unwrap() == ["f"]);
    }
    one.unmount();
    two.unmount();
}

fn blob_of(store: &FastStore, id: &str, pointer: &str) -> std::path::PathBuf {
    let marker: serde_json::Value =
        serde_json::from_slice(&fs::read(store.marker_path(id)).unwrap()).unwrap();
    store.blob_path(marker.pointer(pointer).unwrap().as_str().unwrap())
}

#[test]
fn a_fork_whose_image_or_layer_is_missing_is_listed_and_takes_nothing_else_along() {
    let (store, id) = small_store();
    let mount = manual(&store);
    fs::write(fork(&mount, "f", &id).join("mine"), "1").unwrap();
    mount.unmount();
    let env = blob_of(&store, &id, "/world/env");
    let aside = env.with_extension("aside");
    fs::rename(&env, &aside).unwrap();
    let mount = manual(&store);
    assert_eq!(names(&mount.join("forks/f/world")).unwrap(), ["env.json", "fs", "procs.json"]);
    assert_eq!(errno(fs::read(mount.join("forks/f/world/env.json"))), libc::EIO);
    assert_eq!(fs::read(world(&mount, "f").join("mine")).unwrap(), b"1");
    mount.unmount();
    fs::rename(&aside, &env).unwrap();
    let marker = store.marker_path(&id);
    let aside = marker.with_extension("aside");
    fs::rename(&marker, &aside).unwrap();
    let mount = manual(&store);
    assert_eq!(names(&mount.join("forks")).unwrap(), ["f"]);
    assert_eq!(errno(fs::metadata(mount.join("forks/f"))), libc::EIO);
    fs::rename(&aside, &marker).unwrap();
    assert_eq!(fs::read(world(&mount, "f").join("mine")).unwrap(), b"1");
    mount.unmount();
}

#[test]
fn a_fork_that_takes_hours_to_seal_keeps_no_other_waiting_and_no_daemon_from_its_end() {
    let (store, id) = small_store();
    let mut mount = Mount::of(store.root()).args(["--seal", "idle:200ms"]).start();
    let long = fork(&mount, "long", &id);
    let short = fork(&mount, "short", &id);
    let sealed = |mount: &Mount, name: &str| snaps(mount, name).len();
    fs::File::create(long.join("sparse")).unwrap().set_len(15 << 40).unwrap();
    let seals = |task: fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "pfimg-auto-seal\n")
    };
    let is_sealing =
        |mount: &Mount| fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap().flatten().any(seals);
    wait_until("its seal is under way", || is_sealing(&mount));
    for round in 0..3 {
        fs::write(short.join("file"), format!("{round}")).unwrap();
        wait_until("the other fork is sealed", || sealed(&mount, "short") > round);
    }
    // A file that no image can hold is reported at once.
    let huge = fork(&mount, "huge", &id);
    fs::File::create(huge.join("sparse")).unwrap().set_len(1 << 50).unwrap();
    let said = pfimg_on(store.root(), ["seal", "huge"]).exits(2).stderr;
    assert!(said.contains("sparse") && said.contains("16 TiB"), "{said}");
    // A discarded fork is not sealed on.
    pfimg_on(store.root(), ["discard", "--force", "huge"]).exits(0);
    // The first signal unmounts, the second ends what is left to do: while it is unmounted or later.
    mount.signal(Signal::TERM);
    wait_until("it is being unmounted", || mount.log().contains("signal 15: unmounting"));
    mount.signal(Signal::TERM);
    mount.wait();
    drop(mount);
    let mut mount = Mount::of(store.root()).args(["--seal", "idle:200ms"]).start();
    // A fork is sealed after the first look at it.
    fs::metadata(world(&mount, "long")).unwrap();
    wait_until("its seal is under way again", || is_sealing(&mount));
    mount.signal(Signal::TERM);
    wait_until("it is unmounted", || !mount.join("forks").exists());
    mount.signal(Signal::TERM);
    mount.wait();
    assert_eq!(mount.log().matches("sealing was stopped").count(), 1, "{}", mount.log());
    drop(mount);
    let mount = manual(&store);
    assert_eq!(fs::metadata(world(&mount, "long").join("sparse")).unwrap().len(), 15 << 40);
    assert_eq!(fs::read(world(&mount, "short").join("file")).unwrap(), b"2");
    assert_eq!(sealed(&mount, "long"), 0);
    fs::write(world(&mount, "long").join("later"), b"later").unwrap();
    mount.unmount();
    verify(&store);
}
