//! The ledger and the trace of a fork, whose names can be taken away and nothing else.

use std::fs;
use std::io::Write as _;

use super::support::{seal, snaps};
use crate::common::cli::{pfimg_on, tool};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store};
use crate::common::{Mount, errno, names, wait_until};

const MESSAGE: &[u8] = b"{\"role\":\"user\",\"content\":\"harm\"}\n";

fn append(path: &std::path::Path, bytes: &[u8]) {
    fs::OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}

/// No image has lost what its parent had recorded.
fn all_continue(store: &FastStore) {
    let found = pfimg_on(store.root(), ["verify", "--json"]).exits(0).json();
    assert!(!found.to_string().contains("-not-continued"), "{found:#}");
}

#[test]
fn the_next_seal_has_all_records_after_any_change_to_their_names() {
    for writes in ["through", "back"] {
        let (store, id) = small_store();
        let start = || Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        let mut mount = start();
        let before = fs::read(mount.image(&id).join("trace/messages.jsonl")).unwrap();
        let wanted = [&before[..], MESSAGE].concat();
        for name in ["sealed", "killed", "copied", "moved", "made"] {
            fork(&mount, name, &id);
            append(&mount.join("forks").join(name).join("trace/messages.jsonl"), MESSAGE);
            // What makes a fork durable makes what was recorded durable.
            let trace = fs::File::open(mount.join("forks").join(name).join("trace/messages.jsonl")).unwrap();
            trace.sync_all().unwrap();
        }
        fs::create_dir(mount.join("forks/branch@copied")).unwrap();
        tool(
            "cp",
            ["-r".as_ref(), mount.join("forks/copied").as_os_str(), mount.join("forks/copy").as_os_str()],
        )
        .exits(0);
        for name in ["sealed", "killed", "copied", "copy", "branch", "moved", "made"] {
            let at = mount.join("forks").join(name);
            tool("rm", ["-rf".as_ref(), at.join("effects").as_os_str(), at.join("trace").as_os_str()])
                .exits(0);
            assert!(!at.join("effects").exists() && !at.join("trace/messages.jsonl").exists());
            assert!(!names(&at).unwrap().iter().any(|name| name == "effects" || name == "trace"));
        }
        fs::rename(mount.join("forks/moved"), mount.join("forks/again")).unwrap();
        // A record that is made again has its old content.
        let made = mount.join("forks/made/trace");
        fs::create_dir(&made).unwrap();
        assert_eq!(names(&made).unwrap(), [""; 0]);
        // A kernel that keeps writes for a while tells of it when they are to be durable.
        let forged = fs::File::create(made.join("messages.jsonl"))
            .and_then(|mut file| file.write_all(b"forged\n").and_then(|()| file.sync_all()));
        assert_eq!(errno(forged), libc::EPERM, "{writes}");
        let has_what_it_had = || fs::read(made.join("messages.jsonl")).unwrap() == wanted;
        wait_until("the kernel drops what was refused", has_what_it_had);
        assert_eq!(
            errno(fs::rename(mount.join("forks/made/model/base"), made.join("messages.jsonl"))),
            libc::EPERM
        );
        append(&made.join("messages.jsonl"), b"{\"kind\":\"later\"}\n");
        assert!(fs::read(made.join("messages.jsonl")).unwrap().starts_with(&wanted));
        seal(&store, &["sealed", "--tag", &format!("sealed-{writes}")]);
        assert_eq!(fs::read(mount.join("forks/sealed/trace/messages.jsonl")).unwrap(), wanted, "{writes}");
        mount.kill();
        let mount = start();
        for name in ["killed", "copied", "copy", "branch", "again", "made"] {
            seal(&store, &[name, "--tag", &format!("{name}-{writes}")]);
        }
        for name in ["sealed", "killed", "copied", "copy", "branch", "again", "made"] {
            let sealed = mount.join(format!("tags/{name}-{writes}"));
            let trace = fs::read(sealed.join("trace/messages.jsonl")).unwrap();
            assert!(trace.starts_with(&wanted), "{writes}: {name}");
            assert_eq!(trace.len() - wanted.len(), if name == "made" { 17 } else { 0 }, "{writes}: {name}");
            let ledger = fs::read(sealed.join("effects/ledger.jsonl")).unwrap();
            assert_eq!(ledger, fs::read(mount.image(&id).join("effects/ledger.jsonl")).unwrap());
        }
        all_continue(&store);
        tool("rm", ["-rf".as_ref(), mount.join("forks/made").as_os_str()]).exits(0);
        assert!(!names(&mount.join("forks")).unwrap().contains(&"made".to_owned()));
        mount.unmount();
    }
}

#[test]
fn a_folder_of_a_record_that_is_made_again_is_used_while_a_program_stands_in_the_old_one() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let at = mount.join("forks/f/trace");
    let before = fs::read(at.join("messages.jsonl")).unwrap();
    let stands = fs::File::open(&at).unwrap();
    for round in 0..3 {
        fs::remove_file(at.join("messages.jsonl")).unwrap();
        fs::remove_dir(&at).unwrap();
        if round < 2 {
            fs::create_dir(&at).unwrap();
            append(&at.join("messages.jsonl"), b"");
        } else {
            seal(&store, &["f"]);
        }
        assert_eq!(fs::read(at.join("messages.jsonl")).unwrap(), before, "{round}");
    }
    drop(stands);
    mount.unmount();
}

#[test]
fn records_from_before_a_mounted_restore_stay_in_a_listed_seal() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let first = seal(&store, &["f", "--tag", "first"]);
    append(&mount.join("forks/f/trace/messages.jsonl"), MESSAGE);
    tool("rm", ["-rf".as_ref(), mount.join("forks/f/trace").as_os_str()]).exits(0);
    pfimg_on(store.root(), ["restore", "f", "first"]).exits(0);
    let listed = snaps(&mount, "f");
    assert_eq!((listed.len(), &*listed[0]), (2, "first"), "{listed:?}");
    let undone = mount.join("forks/f/.snap").join(&listed[1]).join("trace/messages.jsonl");
    assert!(fs::read(undone).unwrap().ends_with(MESSAGE));
    assert!(!fs::read(mount.join("forks/f/trace/messages.jsonl")).unwrap().ends_with(MESSAGE));
    append(&mount.join("forks/f/trace/messages.jsonl"), b"{\"kind\":\"after\"}\n");
    let last = seal(&store, &["f"]);
    let manifest = fs::read_to_string(mount.image(&last).join("manifest.json")).unwrap();
    assert!(manifest.contains(&first), "{manifest}");
    all_continue(&store);
    mount.unmount();
}
