//! Seals through a mount: by `mkdir`, by command, automatically, and while other programs write.

mod adverse;
mod going_back;
mod kept;
mod records;
mod support;
mod times;
mod told;
mod under_load;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::common::cli::{pfimg_on, tool};
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, is_root, names, wait_until};
use support::{all_of, manual, seal, snaps, verify, world_of};

#[test]
fn sealed_changes_take_no_space_in_their_fork() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    let generations = || names(&store.root().join("forks/gen")).unwrap();
    let mut before = generations();
    for seal in ["one", "two"] {
        fs::write(world.join("large"), seal.repeat(100_000)).unwrap();
        fs::create_dir(mount.join("forks/f/.snap").join(seal)).unwrap();
        // Behind the answer.
        wait_until("what was sealed is removed", || generations().len() == 1 && generations() != before);
        before = generations();
        assert_eq!(fs::read(world.join("large")).unwrap(), seal.repeat(100_000).as_bytes());
    }
    mount.unmount();
}

#[test]
fn a_folder_made_in_snap_is_a_seal_of_that_name() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    fs::write(world.join("new"), "new").unwrap();
    let snap = mount.join("forks/f/.snap");
    assert_eq!(snaps(&mount, "f"), [""; 0]);
    fs::create_dir(snap.join("green")).unwrap();
    let link = fs::read_link(snap.join("green")).unwrap();
    assert!(link.starts_with("../../../images"), "{link:?}");
    assert_eq!(fs::read(snap.join("green/world/fs/new")).unwrap(), b"new");
    assert_eq!(fs::read(mount.join("tags/green/world/fs/new")).unwrap(), b"new");
    let again = fs::create_dir(snap.join("green")).unwrap_err();
    assert_eq!(again.raw_os_error(), Some(libc::EEXIST), "{again}");
    // Free for a name that the fork's list does not show, too.
    crate::common::forks::tag(&store, "taken", &id);
    assert_eq!(fs::create_dir(snap.join("taken")).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    fs::write(world.join("new"), "newer").unwrap();
    fs::create_dir(snap.join("blue")).unwrap();
    assert_eq!(snaps(&mount, "f"), ["green", "blue"], "newest last");
    assert_eq!(fs::read(snap.join("green/world/fs/new")).unwrap(), b"new");
    assert_eq!(fs::read(snap.join("blue/world/fs/new")).unwrap(), b"newer");
    // Nothing changed: another name for the same image.
    fs::create_dir(snap.join("azure")).unwrap();
    assert_eq!(
        fs::read_link(mount.join("tags/azure")).unwrap(),
        fs::read_link(mount.join("tags/blue")).unwrap()
    );
    assert_eq!(snaps(&mount, "f"), ["green", "azure", "blue"], "each of its names");
    assert!(
        !fs::read_dir(mount.join("forks/f")).unwrap().any(|e| e.unwrap().file_name() == ".snap"),
        "unlisted"
    );
    verify(&store);
    mount.unmount();
}

#[test]
fn a_fork_can_be_restored_to_a_seal_of_its_unchanged_beginning() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    let snap = mount.join("forks/f/.snap");
    fs::create_dir(snap.join("start")).unwrap();
    assert_eq!(snaps(&mount, "f"), ["start"]);
    assert!(fs::read_link(snap.join("start")).unwrap().ends_with(&id));
    fs::write(world.join("new"), "new").unwrap();
    let sealed = seal(&store, &["f"]);
    assert_ne!(sealed, id);
    pfimg_on(store.root(), ["restore", "f", "start"]).exits(0);
    assert!(!world_of(&mount, "f").join("new").exists());
    pfimg_on(store.root(), ["restore", "f", &sealed[..12]]).exits(0);
    assert_eq!(fs::read(world_of(&mount, "f").join("new")).unwrap(), b"new");
    // The image existed before the fork, so pruning the fork's seals must not remove it.
    pfimg_on(store.root(), ["untag", "start"]).exits(0);
    pfimg_on(store.root(), ["prune", "--keep-last", "1"]).exits(0);
    assert!(mount.image(&id).exists());
    assert_eq!(snaps(&mount, "f").len(), 2);
    verify(&store);
    mount.unmount();
    pfimg_on(store.root(), ["restore", "f", &id]).exits(0);
}

#[test]
fn a_fork_that_is_copied_together_is_sealed_when_it_is_done_and_not_before() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let world = fork(&mount, "a", &id);
    for n in 0..3000 {
        fs::write(world.join(format!("f{n}")), "x").unwrap();
    }
    let sealed = seal(&store, &["a"]);
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--seal", "interval:1ms"]).start();
    tool("cp", ["-r".as_ref(), mount.join("forks/a").as_os_str(), mount.join("forks/b").as_os_str()])
        .exits(0);
    wait_until("the copy is sealed", || snaps(&mount, "b").len() == 1);
    let snap = mount.join("forks/b/.snap").join(snaps(&mount, "b").remove(0));
    assert_eq!(names(&snap.join("parents")).unwrap(), [sealed], "its lineage is in the copied manifest");
    assert_eq!(names(&snap.join("world/fs")).unwrap().len(), names(&world_of(&mount, "a")).unwrap().len());
    mount.unmount();
}

#[test]
fn a_manifest_that_is_open_while_a_seal_replaces_it_is_read_to_its_end() {
    let (store, id) = small_store();
    for (writes, name) in [("through", "f"), ("back", "g")] {
        let mount = Mount::of(store.root()).args(["--seal", "manual", "--writes", writes]).start();
        let world = fork(&mount, name, &id);
        let open = |path: &str| {
            let path = mount.join("forks").join(name).join(path);
            // Known to the kernel and open, but nothing of it was read yet.
            (fs::metadata(&path).unwrap(), fs::File::open(&path).unwrap(), path)
        };
        let files = ["manifest.json", "cache/manifest.json"].map(open);
        fs::write(world.join("new"), "new").unwrap();
        let pages = mount.join("forks").join(name).join("cache/pages");
        let page = fs::read_dir(&pages).unwrap().next().unwrap().unwrap().path();
        let len = fs::metadata(&page).unwrap().len() as usize;
        fs::write(&page, vec![7; len]).unwrap();
        let sealed = seal(&store, &[name]);
        let old = mount.image(&id);
        for ((before, mut file, path), layer) in
            files.into_iter().zip(["manifest.json", "cache/manifest.json"])
        {
            wait_until("the new one is shown", || {
                fs::read(&path).unwrap() == fs::read(mount.image(&sealed).join(layer)).unwrap()
            });
            let after = file.metadata().unwrap();
            assert_eq!((after.ino(), after.len(), after.nlink()), (before.ino(), before.len(), 0));
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, fs::read(old.join(layer)).unwrap(), "--writes {writes}: {layer}");
            assert_ne!(fs::metadata(&path).unwrap().ino(), before.ino());
        }
        mount.unmount();
    }
}

#[test]
fn the_command_seals_with_and_without_a_mount_and_prints_the_result() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    fs::write(world.join("new"), "1").unwrap();
    let first = seal(&store, &["f", "--tag", "one"]);
    assert_eq!(seal(&store, &["f"]), first, "nothing changed");
    assert_eq!(fs::read(mount.image(&first).join("world/fs/new")).unwrap(), b"1");
    let manifest = fs::read(mount.join("forks/f/manifest.json")).unwrap();
    assert_eq!(crate::common::hex_digest(&manifest), first, "the fork shows what it rests on");
    let taken = pfimg_on(store.root(), ["seal", "f", "--tag", "one"]).exits(6);
    assert!(taken.stderr.contains("there is a tag \"one\" already"), "{}", taken.stderr);
    fs::write(world.join("new"), "2").unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(mount.join("forks/f/trace/messages.jsonl"))
        .unwrap()
        .write_all(b"no json\n")
        .unwrap();
    let out = pfimg_on(store.root(), ["seal", "f", "--tag", "one", "--force", "--json"]).exits(0);
    let json = out.json();
    assert_eq!((&json["new"], &json["tag"], &json["fork"]), (&true.into(), &"one".into(), &"f".into()));
    assert!(json["reports"][0].as_str().unwrap().contains("trace/messages.jsonl"), "{json}");
    assert!(out.stderr.contains("trace/messages.jsonl"), "{}", out.stderr);
    let second = json["image"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    assert!(fs::read_link(mount.join("tags/one")).unwrap().ends_with(&second));
    pfimg_on(store.root(), ["seal", "nobody"]).exits(5);
    fs::write(world.join("new"), "3").unwrap();
    mount.unmount();
    // On disk.
    let third = seal(&store, &["f"]);
    let mount = manual(&store);
    assert_eq!(fs::read(mount.image(&third).join("world/fs/new")).unwrap(), b"3");
    assert_eq!(snaps(&mount, "f").len(), 3);
    assert!(mount.image(&third).join("parents").join(&second).exists());
    mount.unmount();
}

#[test]
fn an_idle_fork_is_sealed_automatically_and_every_fork_at_unmount() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "idle:300ms"]).start();
    let world = fork(&mount, "rests", &id);
    fs::write(world.join("new"), "1").unwrap();
    wait_until("an idle fork is sealed", || snaps(&mount, "rests").len() == 1);
    let name = snaps(&mount, "rests").remove(0);
    assert_eq!(fs::read(mount.join("forks/rests/.snap").join(name).join("world/fs/new")).unwrap(), b"1");
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--seal", "interval:1h"]).start();
    fs::write(world_of(&mount, "rests").join("new"), "2").unwrap();
    fork(&mount, "other", &id);
    mount.unmount();
    let mount = manual(&store);
    assert_eq!(snaps(&mount, "rests").len(), 2, "sealed at unmount");
    assert_eq!(snaps(&mount, "other").len(), 0, "nothing was changed there");
    fs::write(world_of(&mount, "rests").join("new"), "3").unwrap();
    mount.unmount();
    let mount = manual(&store);
    assert_eq!(snaps(&mount, "rests").len(), 2, "by hand only");
    assert_eq!(fs::read(world_of(&mount, "rests").join("new")).unwrap(), b"3");
    mount.unmount();
}

#[test]
fn a_failed_seal_leaves_the_fork_unchanged_is_reported_once_and_retried() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "idle:100ms"]).start();
    let world = fork(&mount, "f", &id);
    // Half a page can be in no image.
    let pages = mount.join("forks/f/cache/pages");
    fs::write(pages.join("00000100.k"), vec![0; 2048]).unwrap();
    fs::write(world.join("new"), "kept").unwrap();
    wait_until("the failure is reported", || !mount.log_lines(&["00000100.k has no 00000100.v"]).is_empty());
    let error = fs::create_dir(mount.join("forks/f/.snap/name")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    let said = pfimg_on(store.root(), ["seal", "f"]).exits(2);
    assert!(said.stderr.contains("00000100.k has no 00000100.v"), "{}", said.stderr);
    assert_eq!(snaps(&mount, "f"), [""; 0]);
    assert_eq!(fs::read(world.join("new")).unwrap(), b"kept");
    fs::write(pages.join("00000100.v"), vec![0; 2048]).unwrap();
    wait_until("it is tried again", || snaps(&mount, "f").len() == 1);
    assert_eq!(mount.log_lines(&["the fork stays unsealed, and pfimg tries again"]).len(), 1);
    verify(&store);
    mount.unmount();
}

#[test]
fn a_fork_is_restored_to_one_of_its_seals_and_nothing_is_lost() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    fs::write(world.join("new"), "1").unwrap();
    let first = seal(&store, &["f", "--tag", "one"]);
    fs::write(world.join("new"), "2").unwrap();
    fs::remove_file(world.join("README")).unwrap();
    let wrong = pfimg_on(store.root(), ["restore", "f@nothing"]).exits(5);
    assert!(wrong.stderr.contains("is not a seal of fork"), "{}", wrong.stderr);
    let out = pfimg_on(store.root(), ["restore", "f", "one", "--json"]).exits(0).json();
    assert_eq!(
        (out["image"].as_str().unwrap(), &out["sealed_before"]),
        (&*format!("sha256:{first}"), &true.into())
    );
    assert_eq!(fs::read(world.join("new")).unwrap(), b"1");
    assert_eq!(fs::read(world.join("README")).unwrap(), b"read me\n");
    assert_eq!(fs::read(mount.join("work/f/new")).unwrap(), b"1");
    let list = snaps(&mount, "f");
    assert_eq!(list.len(), 2, "what was not sealed was, and can be had back: {list:?}");
    fs::write(world.join("new"), "3").unwrap();
    mount.unmount();
    pfimg_on(store.root(), ["restore", "f", &first[..12]]).exits(0);
    let mount = manual(&store);
    assert_eq!(fs::read(world_of(&mount, "f").join("new")).unwrap(), b"1");
    assert_eq!(snaps(&mount, "f").len(), 3);
    mount.unmount();
}

#[test]
fn a_restored_fork_is_read_and_written_in_its_new_state() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    for round in 0..30 {
        let (sealed, later) = (format!("sealed {round}"), format!("{round}: written since"));
        fs::write(world.join("new"), &sealed).unwrap();
        let image = seal(&store, &["f"]);
        fs::write(world.join("new"), later).unwrap();
        fs::write(world.join(format!("only-{round}")), "x").unwrap();
        pfimg_on(store.root(), ["restore", "f", &image]).exits(0);
        // At once: programs must neither see nor write what the kernel still had cached of the old fork.
        assert_eq!(fs::read_to_string(mount.join("work/f/new")).unwrap(), sealed, "round {round}");
        assert!(!world.join(format!("only-{round}")).exists(), "round {round}");
        fs::write(mount.join("work/f/after"), round.to_string()).unwrap();
        assert_eq!(fs::read_to_string(world.join("after")).unwrap(), round.to_string());
    }
    mount.unmount();
    let mount = manual(&store);
    assert_eq!(fs::read_to_string(world_of(&mount, "f").join("after")).unwrap(), "29");
    mount.unmount();
}

#[test]
fn the_sealed_ledger_is_shown_without_its_secret_and_continues() {
    let (store, id) = small_store();
    let mount = manual(&store);
    fork(&mount, "f", &id);
    let ledger = mount.join("forks/f/effects/ledger.jsonl");
    let digest = format!("sha256:{}", "ab".repeat(32));
    let mut before = fs::read_to_string(&ledger).unwrap();
    assert!(before.contains("<redacted>"));
    for number in 0..3 {
        let line = format!(
            "{{\"ts\":\"2026-05-05T14:11:00Z\",\"tool_id\":\"t\",\"args_hash\":\"{digest}\",\"idempotency_key\":\"{number}\",\
             \"result_hash\":\"{digest}\",\"side_effect_class\":\"pure\"}}\n"
        );
        fs::OpenOptions::new().append(true).open(&ledger).unwrap().write_all(line.as_bytes()).unwrap();
        seal(&store, &["f"]);
        wait_until("the kernel shows what was sealed", || {
            fs::read_to_string(&ledger).unwrap().matches("session_hmac\":\"\"").count() == 0
                && fs::read_to_string(&ledger)
                    .unwrap()
                    .lines()
                    .all(|l| l.contains("session_hmac") || l.contains("kind"))
        });
        let now = fs::read_to_string(&ledger).unwrap();
        assert_eq!(now.lines().count(), before.lines().count() + 1, "{now}");
        assert!(now.contains("<redacted>"), "{now}");
        before = now;
    }
    assert!(fs::OpenOptions::new().write(true).open(&ledger).unwrap().write_at(b"x", 0).is_err());
    // pf's way of verifying is the command's.
    verify(&store);
    mount.unmount();
}

#[test]
fn a_tree_of_every_kind_comes_back_from_a_seal_exactly() {
    let (store, _) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual", "--xattrs"]).start();
    fs::create_dir(mount.join("forks/f")).unwrap();
    for folder in ["world", "world/fs"] {
        fs::create_dir(mount.join("forks/f").join(folder)).unwrap();
    }
    let world = world(&mount, "f");
    fs::write(world.join("main.c"), "int main(void) { return 0; }\n").unwrap();
    fs::write(world.join("Makefile"), "all: out\nout: main.c\n\tcp main.c out\n").unwrap();
    tool("make", ["-C".as_ref(), world.as_os_str()]).exits(0);
    fs::hard_link(world.join("main.c"), world.join("twin.c")).unwrap();
    let odd = std::ffi::OsString::from_vec(b"caf\xe9".to_vec());
    fs::create_dir(world.join(&odd)).unwrap();
    fs::write(world.join(&odd).join("inside"), "x").unwrap();
    symlink("caf\u{fffd}/../main.c", world.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o620),
        0,
    )
    .unwrap();
    fs::set_permissions(world.join("out"), fs::Permissions::from_mode(0o4711)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(world.join("out"), Some(1234), Some(4321)).unwrap();
    }
    tool("touch", ["-d".as_ref(), "2001-02-03 04:05:06.789".as_ref(), world.join(&odd).as_os_str()]).exits(0);
    fs::set_permissions(&world, fs::Permissions::from_mode(0o750)).unwrap();
    let before = all_of(&world);
    let id = seal(&store, &["f"]);
    assert_eq!(all_of(&world), before, "the fork looks as before");
    assert_eq!(
        all_of(&mount.image(&id).join("world/fs")).keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    let branch = fork(&mount, "again", &id);
    assert_eq!(all_of(&branch), before);
    assert_eq!(
        fs::metadata(branch.join("main.c")).unwrap().ino(),
        fs::metadata(branch.join("twin.c")).unwrap().ino()
    );
    tool("make", ["-q".as_ref(), "-C".as_ref(), branch.as_os_str()]).exits(0);
    mount.unmount();
    // An empty root with a recorded mode.
    let mount = manual(&store);
    for folder in ["forks/e", "forks/e/world", "forks/e/world/fs"] {
        fs::create_dir(mount.join(folder)).unwrap();
    }
    fs::set_permissions(mount.join("forks/e/world/fs"), fs::Permissions::from_mode(0o750)).unwrap();
    let id = seal(&store, &["e"]);
    let mode = fs::metadata(mount.image(&id).join("world/fs")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o750);
    verify(&store);
    mount.unmount();
}

#[test]
fn make_and_cargo_find_everything_fresh_in_a_fork_of_a_sealed_tree_and_git_sees_no_change() {
    // At the same place both times: cargo takes another path for another package.
    let (_dir, home) = crate::common::temp_dir();
    let point = home.join("mnt");
    fs::create_dir(&point).unwrap();
    let (store, id) = small_store();
    let mounted = || Mount::of(store.root()).args(["--seal", "manual"]).at(&point).start();
    let mount = mounted();
    let world = fork(&mount, "f", &id);
    let script = "set -e; mkdir -p c crate/src; export HOME=$PWD GIT_CONFIG_GLOBAL=$PWD/gitconfig
        printf 'all: a.out\\n%%.out: %%.in\\n\\tcp $< $@\\n' > c/Makefile; echo a > c/a.in; make -s -C c
        printf '[package]\\nname=\"tiny\"\\nversion=\"0.1.0\"\\nedition=\"2021\"\\n[workspace]\\n' > crate/Cargo.toml
        echo 'fn main() {}' > crate/src/main.rs
        git config --global user.name t; git config --global user.email t@localhost
        git init -q; mv c/a.in c/b; cp -p c/b c/a.in; chmod 755 src/main.rs; chmod 644 src/main.rs
        git add c src; git commit -qm one; git status --porcelain c src";
    let sh = |script: &str| {
        let world = world.display();
        tool("sh", ["-c", &format!("cd {world}; {script}")]).exits(0)
    };
    assert_eq!(sh(script).stdout, "");
    let build = || {
        // The caller's own toolchain, wherever its home is.
        let home = std::env::var("HOME").unwrap_or_default();
        let cargo = Path::new(env!("CARGO"));
        let mut run =
            crate::common::cli::Run::program(cargo, ["build", "--offline", "-v"]).dir(&world.join("crate"));
        for (name, below) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            run = run.env(name, std::env::var(name).unwrap_or(format!("{home}/{below}")));
        }
        run.env("CARGO_TARGET_DIR", world.join("crate/target")).run().exits(0).stderr
    };
    assert!(build().contains("Compiling tiny"));
    sh("make -q -C c");
    fs::create_dir(mount.join("forks/f/.snap/built")).unwrap();
    mount.unmount();
    pfimg_on(store.root(), ["discard", "f"]).exits(0);
    let mount = mounted();
    assert_eq!(fork(&mount, "f", "built"), world);
    sh("make -q -C c");
    let built = build();
    assert!(built.contains("Fresh tiny") && !built.contains("Compiling"), "{built}");
    assert_eq!(sh("git status --porcelain c src; git diff --stat").stdout, "");
    mount.unmount();
}

#[test]
fn files_named_by_pfignore_stay_in_the_fork_and_only_the_seal_before_a_restore_has_them() {
    let (store, id) = small_store();
    let mut mount = manual(&store);
    let world = fork(&mount, "f", &id);
    fs::write(world.join(".pfignore"), "*.log\nbuild/\n").unwrap();
    fs::create_dir(world.join("build")).unwrap();
    fs::write(world.join("build/out"), vec![7; 300_000]).unwrap();
    fs::write(world.join("run.log"), "one\n").unwrap();
    let before = all_of(&world);
    fs::create_dir(mount.join("forks/f/.snap/one")).unwrap();
    let sealed = mount.join("tags/one/world/fs");
    assert!(sealed.join(".pfignore").exists() && !sealed.join("build").exists());
    assert!(!sealed.join("run.log").exists());
    assert_eq!(all_of(&world), before);
    let mut log = fs::OpenOptions::new().append(true).open(world.join("run.log")).unwrap();
    log.write_all(b"two\n").unwrap();
    drop(log);
    fs::create_dir(mount.join("forks/f/.snap/two")).unwrap();
    let link = |name: &str| fs::read_link(mount.join("tags").join(name)).unwrap();
    assert_eq!(link("two"), link("one"), "nothing to seal");
    let before = all_of(&world);
    mount.kill();
    drop(mount);
    let mount = manual(&store);
    assert_eq!(all_of(&world_of(&mount, "f")), before, "nothing is lost when the daemon dies");
    let branch = fork(&mount, "branch", "f");
    assert_eq!(fs::read_to_string(branch.join("run.log")).unwrap(), "one\ntwo\n");
    // Before the restore all of the fork is sealed.
    let out = pfimg_on(store.root(), ["restore", "f", "one", "--json"]).exits(0).json();
    assert_eq!(out["sealed_before"], true);
    let world = world_of(&mount, "f");
    wait_until("the kernel shows the restored files", || !world.join("run.log").exists());
    let last = snaps(&mount, "f").pop().unwrap();
    let kept = mount.join("forks/f/.snap").join(last).join("world/fs/run.log");
    assert_eq!(fs::read_to_string(kept).unwrap(), "one\ntwo\n");
    verify(&store);
    mount.unmount();
}
