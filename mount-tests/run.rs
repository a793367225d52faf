//! `pfimg run`: a command that can change nothing but a fork.

mod apply;
mod credentials;
mod diff;
mod driver;
mod escape;
mod everyday;
mod going_back;
mod home;
mod idle;
mod project;
mod readme;
mod several;
mod support;
mod terminal;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::common::cli::{Run, pfimg_on};
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, PFIMG, errno, names, wait_until};
use rustix::process::Signal;
use support::{Place, for_every_user, processes_with};

#[test]
fn a_command_writes_its_fork_and_nothing_else() {
    for_every_user(|place| {
        let (mine, new, removed) = (place.outside("mine"), place.outside("new"), place.outside("removed"));
        for path in [&mine, &removed] {
            fs::write(path, "before").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        }
        // No file of this name lies about.
        let own = place.outside.path().file_name().unwrap().to_str().unwrap();
        let script = format!(
            "echo written > file && cat file && cat README && pwd && echo $PWD $PFIMG_FORK
             for refused in 'echo x > {mine}' 'echo x > {new}' 'rm {removed}' 'chmod 600 {mine}' 'mkdir /x'
             do (eval \"$refused\") 2>/dev/null && echo \"allowed: $refused\"; done
             for dir in /tmp /var/tmp /dev/shm; do echo x > $dir/{own} && ls $dir | grep -x {own}; done"
        );
        let said = place.sh("a@before", &script);
        let shown = place.mount.join("forks/a/world/fs");
        let shown = shown.display();
        let expected = format!("written\nread me\n{shown}\n{shown} a\n{own}\n{own}\n{own}\n");
        assert_eq!(said.stdout, expected, "{said:?}");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "before");
        assert!(fs::exists(&removed).unwrap() && !fs::exists(&new).unwrap());
        for dir in ["/tmp", "/var/tmp", "/dev/shm"] {
            assert!(!fs::exists(format!("{dir}/{own}")).unwrap());
        }
        // The next command, and every reader of the fork, finds what it wrote.
        assert_eq!(place.sh("a", "cat file; ls /tmp").stdout.lines().next(), Some("written"));
        place.pfimg(&["seal", "a", "--tag", "after"]).run().exits(0);
        let diff = place.pfimg(&["diff", "before", "after"]).run().exits(0).stdout;
        assert_eq!(diff, "A file\n");
    });
}

#[test]
fn a_command_sees_no_image_no_other_fork_and_no_store() {
    for_every_user(|place| {
        place.sh("secret@before", "echo secret > secret").exits(0);
        let mount = place.mount.path().display();
        let store = place.store.root().display();
        let said =
            place.sh("a@before", &format!("ls {mount} {mount}/forks {mount}/work; ls -A {store}")).exits(0);
        let expected = format!("{mount}:\nforks\nwork\n\n{mount}/forks:\na\n\n{mount}/work:\na\n");
        assert_eq!(said.stdout, expected);
        // Not by a link in a tree that came from somewhere either.
        let lead = format!(
            "ln -s {mount}/forks/secret/world/fs/secret out; ln -s ../../../secret/world/fs/secret rel; cat out rel; \
             ln -s {} lead; echo x > lead; ls -A /proc/1/root{store}",
            place.outside("linked")
        );
        let said = place.sh("a", &lead);
        assert!(said.code != 0 || said.stdout.is_empty(), "{said:?}");
        assert!(!said.said().contains("secret\n") && !said.stdout.contains("blobs"), "{said:?}");
        assert!(!fs::exists(place.outside("linked")).unwrap());
        // Nor by another mount, of this store or another, or in a cache that is made during the run.
        if place.user.is_none() {
            let (second, other) =
                (Mount::of(place.store.root()).args(["--read-only"]).start(), small_store().0);
            let third = Mount::of(other.root()).start();
            let (cache, script) =
                (place.mount.path().parent().unwrap().join("cache"), "ls -A \"$@\" | grep -v :");
            fs::remove_dir_all(&cache).ok();
            let seen = [second.path(), third.path(), other.root(), &cache].map(|path| path.to_str().unwrap());
            let said = place.run(&[&["--read", "/tmp", "a", "sh", "-c", script, "sh"], &seen[..]].concat());
            assert_eq!(said.stdout.trim(), "", "{said:?}");
            assert!(cache.is_dir());
            second.unmount();
            third.unmount();
        }
        // Unless it was asked for.
        let image = place.image.clone();
        let shown = format!("{mount}/images/{image}");
        let said = place.run(&[
            "--read",
            &shown,
            "a",
            "sh",
            "-c",
            &format!("cat {shown}/world/fs/README; ls {mount}"),
        ]);
        assert_eq!(said.exits(0).stdout, "read me\nforks\nimages\nwork\n");
    });
}

#[test]
fn a_command_sees_its_own_processes_only_and_none_outlives_it() {
    for_every_user(|place| {
        let daemon = place.mount.pid();
        let script = format!(
            "cat /proc/[0-9]*/comm | grep pfimg
             kill -9 {daemon}; kill -9 1; kill -9 -1; ls /dev | tr '\\n' ' '
             grep -E 'NoNewPrivs|CapEff' /proc/self/status | tr '\\n' ' '"
        );
        let said = place.sh("a@before", &script);
        assert!(
            said.stdout.starts_with(
                "pfimg-init\nfd full null ptmx pts random shm stderr stdin stdout tty urandom zero "
            ),
            "{said:?}"
        );
        assert!(said.stdout.contains("NoNewPrivs:\t1"), "{said:?}");
        // CAP_SYS_ADMIN is bit 21, CAP_MKNOD 27, CAP_SYS_PTRACE 19, CAP_DAC_READ_SEARCH 2.
        let mask =
            said.stdout.split("CapEff:\t").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        let mask = u64::from_str_radix(&mask, 16).unwrap();
        assert_eq!(mask & (1 << 21 | 1 << 27 | 1 << 19 | 1 << 2), 0, "{mask:x}");
        assert!(place.user.is_none() || mask == 0, "{mask:x}");
        assert_eq!(place.sh("a", "cat README").exits(0).stdout, "read me\n");
    });
    // Processes that the command left behind end with it, and all of them with the program that the caller started.
    let place = Place::new();
    let mark = "PFIMG_TEST_LEFT_BEHIND";
    let left = |name: &str| processes_with(&format!("{mark}={name}"));
    place
        .sh("a@before", &format!("{mark}=one sleep 1000 & {mark}=two setsid sleep 1000 & sleep 0.1"))
        .exits(0);
    wait_until("they are gone", || left("one").is_empty() && left("two").is_empty());
    let mut run = place.spawn("a", &format!("{mark}=three sleep 1000 & {mark}=four exec sleep 1000"));
    wait_until("both run", || !left("three").is_empty() && !left("four").is_empty());
    run.signal(Signal::KILL);
    run.code();
    wait_until("both are gone", || left("three").is_empty() && left("four").is_empty());
}

#[test]
fn a_command_takes_nothing_away_that_was_recorded_not_even_by_putting_its_fork_back() {
    for_every_user(|place| {
        let message = "{\"role\":\"user\",\"content\":\"harm\"}";
        let at = place.mount.join("forks/a");
        let record = format!("cd {} && echo '{message}' >> trace/messages.jsonl", at.display());
        place.sh("a@before", &record).exits(0);
        let harm = format!(
            "cd {} && rm -rf effects trace && mkdir trace && ! echo forged > trace/messages.jsonl",
            at.display()
        );
        place.sh("a", &harm).exits(0);
        place.pfimg(&["seal", "a", "--tag", "first"]).run().exits(0);
        let images = place.mount.join("images").display().to_string();
        let snap = at.join(".snap").display().to_string();
        let look =
            |args: &[&str]| place.run(&[&["--read", &images, "a"], args].concat()).exits(0).stdout.clone();
        let trace = |seal: &str| look(&["cat", &format!("{snap}/{seal}/trace/messages.jsonl")]);
        assert!(trace("first").ends_with(&format!("{message}\n")));
        // A seal of the command, then more that a restore drops.
        let undo = format!("{record} && rm trace/messages.jsonl && mkdir .snap/.restore-7=first");
        place.sh("a", &undo);
        let listed = look(&["ls", &snap]);
        let undone: Vec<&str> = listed.lines().filter(|name| *name != "first").collect();
        let [undone] = undone[..] else { panic!("{listed}") };
        assert_eq!(trace(undone), trace("first") + message + "\n");
        let found = place.pfimg(&["verify", "--json"]).run().exits(0).json();
        assert!(!found.to_string().contains("-not-continued"), "{found:#}");
    });
}

#[test]
fn the_exit_code_is_the_commands_and_signals_reach_it() {
    let place = Place::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)] {
        place.sh("a", script).exits(125);
        place.sh("a@before", script).exits(code);
        pfimg_on(place.store.root(), ["discard", "--force", "a"]).exits(0);
    }
    fork(&place.mount, "a", &place.image);
    // A folder of the search path that is closed would make it another error.
    let run = place.pfimg(&["run", "a", "no-such-command"]).env("PATH", "/usr/bin:/bin").run();
    assert!(run.exits(127).stderr.contains("no-such-command"));
    assert!(place.run(&["a", "./README"]).exits(126).stderr.contains("README"));
    // Options behind the command are its own.
    assert_eq!(place.run(&["a", "echo", "--write", "-n", "--"]).exits(0).stdout, "--write -n --\n");
    assert_eq!(place.run(&["a", "--", "sh", "-c", "echo $1", "sh", "--help"]).exits(0).stdout, "--help\n");
    for (signal, code) in [(Signal::TERM, 9), (Signal::HUP, 8)] {
        let script = "trap 'exit 9' TERM; trap 'exit 8' HUP; : > ready; while :; do sleep 0.01; done";
        let mut run = place.spawn("a", script);
        wait_until("it runs", || world(&place.mount, "a").join("ready").exists());
        run.signal(signal);
        assert_eq!(run.code(), Some(code));
        fs::remove_file(world(&place.mount, "a").join("ready")).unwrap();
    }
}

#[test]
fn more_can_be_written_shown_and_hidden() {
    for_every_user(|place| {
        let (shared, private) = (place.outside("shared"), place.outside("private"));
        for dir in [&shared, &private] {
            fs::create_dir(dir).unwrap();
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
            fs::write(format!("{dir}/file"), "content").unwrap();
        }
        let all = place.outside.path().to_str().unwrap();
        let file = format!("{private}/file");
        place
            .run(&["--write", &shared, "a@before", "sh", "-c", &format!("echo new > {shared}/new")])
            .exits(0);
        assert_eq!(fs::read_to_string(format!("{shared}/new")).unwrap(), "new\n");
        // A folder, a file, and all but one folder.
        let list = format!("ls -A {private}; cat {shared}/file; echo x > {private}/x");
        let said = place.run(&["--hide", &private, "a", "sh", "-c", &list]);
        assert!(said.code != 0 && said.stdout == "content", "{said:?}");
        assert_eq!(place.run(&["--hide", &file, "a", "cat", &file]).exits(0).stdout, "");
        let said = place.run(&[
            "--hide",
            all,
            "--read",
            &shared,
            "a",
            "sh",
            "-c",
            &format!("ls {all} {shared}; rm {shared}/new"),
        ]);
        assert!(
            said.code != 0 && said.stdout == format!("{all}:\nshared\n\n{shared}:\nfile\nnew\n"),
            "{said:?}"
        );
        let said = place.run(&["--hide", all, "--write", &shared, "a", "rm", &format!("{shared}/new")]);
        said.exits(0);
        assert!(fs::exists(&file).unwrap() && !fs::exists(format!("{shared}/new")).unwrap());
        let both = place.run(&["--read", &shared, "--write", &shared, "a", "true"]).exits(125);
        assert!(both.stderr.contains("name it in one option only"), "{both:?}");
        // Showing a folder does not show the hidden files in it.
        let root = place.store.root().parent().unwrap().to_str().unwrap();
        let store = place.store.root().display();
        assert_eq!(
            place.run(&["--write", root, "a", "sh", "-c", &format!("ls -A {store}")]).exits(0).stdout,
            ""
        );
        for (option, path, word) in [
            ("--write", "/", "root directory"),
            ("--read", "/no/such", "/no/such"),
            ("--write", "/proc/sys", "/proc"),
            ("--hide", "/", "root directory"),
        ] {
            let said = place.run(&[option, path, "a", "true"]).exits(125);
            assert!(said.stderr.contains(word), "{said:?}");
        }
    });
}

#[test]
fn a_command_without_network_has_its_own_loopback_only() {
    let place = Place::new();
    let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = outside.local_addr().unwrap().port();
    let script = format!(
        "import socket
own = socket.socket(); own.bind(('127.0.0.1', 0)); own.listen(); socket.create_connection(own.getsockname())
try: socket.create_connection(('127.0.0.1', {port})); print('reached')
except OSError: print('alone')"
    );
    assert_eq!(place.run(&["--no-network", "a@before", "python3", "-c", &script]).exits(0).stdout, "alone\n");
    assert_eq!(place.run(&["a", "python3", "-c", &script]).exits(0).stdout, "reached\n");
}

#[test]
fn a_fork_that_cannot_be_run_in_is_reported() {
    let place = Place::new();
    for (fork, words) in [
        ("none", ["no fork", "pfimg forks"]),
        ("../forks", ["no fork", "pfimg forks"]),
        ("a@nothing", ["nothing", ""]),
        ("a/b@before", ["a/b", "cannot be"]),
        ("latest@before", ["latest", "cannot be"]),
    ] {
        let said = place.run(&[fork, "true"]).exits(125);
        assert!(words.iter().all(|word| said.stderr.contains(word)), "{said:?}");
    }
    assert!(names(&place.mount.join("forks")).unwrap().is_empty());
    place.run(&["a@before", "true"]).exits(0);
    assert!(place.run(&["a@before", "true"]).exits(125).stderr.contains("already"));
    place.run(&["a"]).exits(2);
    // One that began empty has no files yet.
    fs::create_dir(place.mount.join("forks/empty")).unwrap();
    assert_eq!(place.sh("empty", "ls -A; echo x > x; cat x").exits(0).stdout, "x\n");
    let (store, root) = (place.store, place.mount);
    root.unmount();
    let said = pfimg_on(store.root(), ["run", "none", "true"]).exits(125);
    assert!(said.stderr.contains("no fork"), "{said:?}");
}

#[test]
fn a_command_starts_where_its_caller_stands_and_seals_its_own_fork() {
    let place = Place::new();
    let src = fork(&place.mount, "a", &place.image).join("src");
    let here = |dir: &Path| {
        let run = place.pfimg(&["run", "a", "sh", "-c", "pwd; pwd -P; ls"]).dir(dir).run().exits(0);
        run.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let at = |path: &str| place.mount.join(path).display().to_string();
    let in_src =
        vec![at("forks/a/world/fs/src"), at("forks/a/world/fs/src"), "lib.rs".into(), "main.rs".into()];
    assert_eq!(here(&src), in_src);
    assert_eq!(here(&place.mount.join("work/a/src")), in_src);
    assert_eq!(here(&place.mount.join("forks"))[0], at("forks/a/world/fs"));
    place.sh("a", "echo 1 > file && mkdir ../../.snap/green && echo 2 > file").exits(0);
    assert_eq!(fs::read(place.mount.join("tags/green/world/fs/file")).unwrap(), b"1\n");
    assert_eq!(fs::read(world(&place.mount, "a").join("file")).unwrap(), b"2\n");
    let script = "mkdir $PFIMG_SNAP/red; echo $PFIMG_SNAP; \"$0\" forks";
    // The program may lie in a folder that is hidden from commands.
    let said = place.run(&["--read", PFIMG, "a", "sh", "-c", script, PFIMG]).exits(5);
    assert!(said.stderr.contains("mkdir") && said.stderr.contains("/.snap/NAME"), "{said:?}");
    assert_eq!(said.stdout, format!("{}\n", at("forks/a/.snap")));
    assert!(fs::exists(place.mount.join("tags/red")).unwrap());
    // The command does not get the secret that chains ledgers.
    let run = place.pfimg(&["run", "a", "sh", "-c", "echo \"<$PF_SESSION_SECRET>\""]);
    assert_eq!(run.env("PF_SESSION_SECRET", "00".repeat(32)).run().exits(0).stdout, "<>\n");
}

#[test]
fn many_commands_run_at_once_each_in_its_own_fork() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let place = &place;
            scope.spawn(move || {
                let script = format!(
                    "git init -q . && git config user.email a@b && git config user.name a && git add -A && git commit -qm {n} \
                     && for i in $(seq 50); do echo {n} >> count; done && echo {n} > /tmp/mine && sleep 0.1 && cat /tmp/mine \
                     && sqlite3 db 'create table t(n); insert into t values({n}); select n from t' && git fsck --no-progress"
                );
                let said = place.sh(&format!("f{n}@before"), &script).exits(0);
                assert_eq!(said.stdout, format!("{n}\n{n}\n"));
            });
        }
    });
    for n in 0..8 {
        let count = fs::read_to_string(world(&place.mount, &format!("f{n}")).join("count")).unwrap();
        assert_eq!(count, format!("{n}\n").repeat(50));
    }
    pfimg_on(place.store.root(), ["verify"]).exits(0);
}

#[test]
fn an_unmounted_store_is_served_until_the_command_in_it_ends() {
    let mut place = Place::new();
    let dir = world(&place.mount, "a");
    let mut run =
        place.spawn("a@before", ": > ready; while [ ! -e go ]; do sleep 0.01; done; echo done > file");
    wait_until("it runs", || dir.join("ready").exists());
    let go = fs::File::open(&dir).unwrap();
    let said = Run::new([std::ffi::OsStr::new("umount"), place.mount.path().as_os_str()]).run().exits(0);
    assert!(said.stderr.contains("in use"), "{said:?}");
    rustix::fs::openat(&go, "go", rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, 0o644.into())
        .unwrap();
    assert_eq!(run.code(), Some(0));
    drop(go);
    assert!(place.mount.wait().success());
    let place = Place { mount: Mount::of(place.store.root()).start(), ..place };
    assert_eq!(fs::read(world(&place.mount, "a").join("file")).unwrap(), b"done\n");

    // By the mount namespace of a command alone.
    let mut place = place;
    let mut run = place.spawn("a", "rm file; while :; do sleep 0.01; done");
    wait_until("it runs", || !world(&place.mount, "a").join("file").exists());
    let said = Run::new([std::ffi::OsStr::new("umount"), place.mount.path().as_os_str()]).run().exits(0);
    assert!(said.stderr.contains("in use") && said.stderr.contains("pfimg run"), "{said:?}");
    run.signal(Signal::TERM);
    assert_eq!(run.code(), Some(143));
    assert!(place.mount.wait().success());

    // A daemon that is killed is an error to the command, and keeps nothing mounted.
    let mut place = Place { mount: Mount::of(place.store.root()).start(), ..place };
    let mut run = place.spawn("a", ": > ready2; while cat README > /dev/null; do sleep 0.01; done; exit 3");
    wait_until("it runs", || world(&place.mount, "a").join("ready2").exists());
    place.mount.kill();
    assert_eq!(run.code(), Some(3));
    let _ = errno(fs::metadata(place.mount.join(".pfimg/status.json")));
}

#[test]
fn restoring_or_discarding_a_fork_warns_of_a_command_in_it() {
    let place = Place::new();
    place.sh("a@before", "true").exits(0);
    place.pfimg(&["seal", "a", "--tag", "one"]).run().exits(0);
    let ready = world(&place.mount, "a").join("ready");
    let spawned = |place: &Place| {
        let run = place.spawn("a", ": > ready; sleep 1000");
        wait_until("it runs", || ready.exists());
        run
    };
    let run =
        place.spawn("a", ": > ready; while [ -e ready ]; do sleep 0.01; done; echo on > went; sleep 1000");
    wait_until("it runs", || ready.exists());
    let said = place.pfimg(&["restore", "a", "one"]).run().exits(0);
    assert!(said.stderr.contains("pfimg run") && said.stderr.contains("\"a\""), "{said:?}");
    assert!(!ready.exists());
    // The command continues in the restored fork.
    let went = world(&place.mount, "a").join("went");
    wait_until("it sees that", || fs::read(&went).is_ok_and(|text| text == b"on\n"));
    drop(run);
    let _run = spawned(&place);
    let said = place.pfimg(&["discard", "--force", "a"]).run().exits(0);
    assert!(said.stderr.contains("pfimg run") && said.stderr.contains("\"a\""), "{said:?}");
}

/// A run has a copy of every mount of the machine, also of those that it hides.
#[test]
fn another_store_is_unmounted_while_a_command_runs() {
    let place = Place::new();
    let other = small_store().0;
    let mut second = Mount::of(other.root()).start();
    let _run = place.spawn("a@before", "sleep 1000");
    wait_until("it runs", || world(&place.mount, "a").exists() && !processes_with("PFIMG_FORK=a").is_empty());
    let said = Run::new([std::ffi::OsStr::new("umount"), second.path().as_os_str()]).run().exits(0);
    assert_eq!(said.stderr, "");
    assert!(second.wait().success());
    // By signal as well.
    let mut third = Mount::of(other.root()).start();
    let _run = place.spawn("a", "sleep 1000");
    wait_until("it runs", || processes_with("PFIMG_FORK=a").len() >= 6);
    third.signal(Signal::TERM);
    assert!(third.wait().success());
    assert!(!third.log().contains("in use"), "{}", third.log());
}

#[test]
fn a_link_to_a_folder_of_the_machine_is_read_and_not_written() {
    let place = Place::new();
    let outside = place.outside("folder");
    fs::create_dir(&outside).unwrap();
    fs::write(format!("{outside}/file"), "content").unwrap();
    symlink(&outside, fork(&place.mount, "a", &place.image).join("lead")).unwrap();
    let said = place.sh("a", "cat lead/file; echo x > lead/file; rm -rf lead/; ls lead");
    assert!(said.stdout.starts_with("content"), "{said:?}");
    assert_eq!(fs::read_to_string(format!("{outside}/file")).unwrap(), "content");
}
