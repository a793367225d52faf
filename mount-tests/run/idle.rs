//! The mount that runs make for themselves ends when no program uses it, and not before.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use super::home::{Home, IDLE, for_every_user};
use crate::common::cli::clean_command;
use crate::common::{names, system, wait_at_most, wait_until};

/// Longer than an idle mount stays.
const LONG: Duration = Duration::from_millis(1500);

#[test]
fn the_mount_of_a_run_seals_and_ends_when_it_is_idle() {
    for_every_user(|user| {
        let home = Home::with_idle(user, IDLE);
        home.sh("a", "echo a > a").exits(0);
        let daemon = home.daemon();
        wait_until("the mount ends", || home.mountpoints().is_empty() && !system::is_running(daemon));
        let listed = home.pfimg(&["forks", "--json"]).run().exits(0).stdout;
        assert!(!listed.contains("\"last_seal\": null") && listed.contains("last_seal"), "{listed}");
        // The next run makes a new one, and finds everything.
        assert_eq!(home.sh("a", "cat a").exits(0).stdout, "a\n");
        assert_ne!(home.daemon(), daemon);
        // A mountpoint that another user could have made is refused.
        wait_until("the mount ends", || home.mountpoints().is_empty());
        let folder = home.path("runtime/pfimg");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let said = home.sh("a", "true").exits(125);
        assert!(said.stderr.contains("not a directory of this user alone"), "{said:?}");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        home.sh("a", "true").exits(0);
    });
}

#[test]
fn it_stays_as_long_as_a_run_or_a_shell_is_in_it() {
    for_every_user(|user| {
        let home = Home::with_idle(user, IDLE);
        let mut run = home.spawn(&[
            "a",
            "--",
            "sh",
            "-c",
            ": > ready; while [ ! -e go ]; do sleep 0.01; done; echo b > b",
        ]);
        wait_until("it runs", || !home.mountpoints().is_empty() && home.read("a", "ready").is_some());
        let daemon = home.daemon();
        assert_eq!(wait_at_most(LONG, || home.mountpoints().is_empty()), None);
        // A shell that stands in the fork, from before the run's end.
        let files = home.mountpoint().join("forks/a/world/fs");
        let mut shell = clean_command(Path::new("sh"));
        if let Some(user) = user {
            use std::os::unix::process::CommandExt as _;
            shell.uid(user).gid(user);
        }
        let script = "cd \"$1\" && : > go && read -r line && cat b";
        let mut shell = shell
            .args(["-c", script, "sh"])
            .arg(&files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(run.code(), Some(0));
        assert_eq!(wait_at_most(LONG, || home.mountpoints().is_empty()), None);
        assert!(system::is_running(daemon));
        drop(shell.stdin.take());
        let output = shell.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        wait_until("the mount ends", || home.mountpoints().is_empty() && !system::is_running(daemon));
    });
}

#[test]
fn a_run_with_another_runtime_folder_keeps_the_mount_that_is_there() {
    let home = Home::with_idle(None, IDLE);
    home.sh("a", "true").exits(0);
    let other = home.path("other");
    fs::create_dir(&other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o700)).unwrap();
    let script = format!("sleep {}; cat untracked", LONG.as_secs_f64());
    let run = home.pfimg(&["run", "a", "--", "sh", "-c", &script]).env("XDG_RUNTIME_DIR", &other);
    let daemon = home.daemon();
    assert_eq!(run.run().exits(0).stdout, "untracked\n");
    assert_eq!(home.daemon(), daemon);
    assert!(names(&other).unwrap().is_empty());
}

#[test]
fn forks_written_by_another_program_are_reported_and_taken_over_when_it_ends() {
    let home = Home::new(None);
    home.sh("a", "echo a > a").exits(0);
    home.pfimg(&["umount", home.mountpoint().to_str().unwrap()]).run().exits(0);
    let lock = fs::File::options().write(true).open(home.store().join("forks/.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for _ in 0..2 {
        let said = home.sh("a", "true").exits(125);
        assert!(said.stderr.contains("writes the forks of"), "{said:?}");
    }
    drop(lock);
    assert_eq!(home.sh("a", "cat a").exits(0).stdout, "a\n");
}

#[test]
fn a_run_that_is_killed_keeps_no_mount() {
    let home = Home::with_idle(None, IDLE);
    let mut run = home.spawn(&["a", "--", "sh", "-c", "echo a > a; sleep 1000"]);
    wait_until("it runs", || {
        !home.mountpoints().is_empty() && home.read("a", "a").is_some_and(|a| a == "a\n")
    });
    let daemon = home.daemon();
    run.signal(Signal::KILL);
    run.code();
    wait_until("the mount ends", || home.mountpoints().is_empty() && !system::is_running(daemon));
    assert_eq!(home.sh("a", "cat a").exits(0).stdout, "a\n");
}

#[test]
fn a_daemon_that_is_killed_costs_no_file_and_the_next_run_mounts_again() {
    let home = Home::new(None);
    let before = home.state();
    let mut run =
        home.spawn(&["a", "--", "sh", "-c", "echo a > a; while echo x >> log; do sleep 0.01; done; exit 3"]);
    wait_until("it runs", || {
        !home.mountpoints().is_empty() && home.read("a", "a").is_some_and(|a| a == "a\n")
    });
    let daemon = home.daemon();
    let status = home.pfimg(&["status", "--json"]).run().exits(0).json();
    let own = home.store().to_string_lossy().into_owned();
    let logs = |status: &serde_json::Value| -> Vec<String> {
        let all = status["mounts"].as_array().unwrap().iter().filter(|mount| mount["store"] == own.as_str());
        all.map(|mount| mount["log"].as_str().unwrap().to_owned()).collect()
    };
    let log = logs(&status);
    assert_eq!(log.len(), 1, "{status}");
    system::signal_pfimg(daemon, Signal::KILL);
    assert_eq!(run.code(), Some(3));
    // The log is still named: by the status of the dead mount, and by errors of commands that need it.
    let said = home.pfimg(&["status", "--json"]).run().exits(0);
    assert!(logs(&said.json()) == log && said.stderr.contains(&log[0]), "{said:?}");
    let text = fs::read_to_string(&log[0]).unwrap();
    assert!(text.contains("mounted"), "{text}");
    assert_eq!(home.sh("a", "cat a untracked").exits(0).stdout, "a\nuntracked\n");
    assert_ne!(home.daemon(), daemon);
    assert_eq!(home.state(), before);
    home.pfimg(&["verify"]).run().exits(0);
}

#[test]
fn a_daemon_seals_before_it_ends_on_request() {
    let home = Home::new(None);
    home.sh("a", "echo a > a").exits(0);
    let daemon = home.daemon();
    system::signal_pfimg(daemon, Signal::TERM);
    wait_until("the daemon ends", || !system::is_running(daemon));
    assert!(home.mountpoints().is_empty());
    assert_eq!(names(&home.store().join("forks/seals")).unwrap().len(), 1);
}

#[test]
fn many_runs_at_once_share_one_mount_also_while_it_ends() {
    let home = Home::with_idle(None, "1ms");
    home.sh("seed", "true").exits(0);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let home = &home;
            scope.spawn(move || {
                for round in 0..4 {
                    let said = home.sh(&format!("f{n}"), &format!("echo {round} >> log; cat log"));
                    let expected: String =
                        (0..=round).flat_map(|n| [n.to_string(), "\n".to_owned()]).collect();
                    assert_eq!(said.exits(0).stdout, expected);
                }
            });
        }
    });
    home.pfimg(&["verify"]).run().exits(0);
}

#[test]
fn a_folder_in_tmp_takes_the_place_of_a_runtime_folder() {
    let home = Home::with_idle(None, IDLE);
    // A runtime folder that other users can enter is not used.
    fs::set_permissions(home.path("runtime"), fs::Permissions::from_mode(0o755)).unwrap();
    home.sh("a", "echo a > a").exits(0);
    let own =
        fs::canonicalize("/tmp").unwrap().join(format!("pfimg-run-{}", rustix::process::geteuid().as_raw()));
    let store = home.store().canonicalize().unwrap();
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = text.lines().find(|line| line.contains(&format!(" fuse.pfimg {} ", store.display()))).unwrap();
    assert!(line.contains(&format!(" {}/", own.display())), "{line}");
    let point = Path::new(line.split(' ').nth(4).unwrap());
    let status = fs::read_to_string(point.join(".pfimg/status.json")).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let daemon = status["pid"].as_u64().unwrap() as u32;
    wait_until("the mount ends", || system::types_at(point).is_empty() && !system::is_running(daemon));
    fs::remove_dir_all(point.parent().unwrap()).unwrap();
}

#[test]
fn the_error_of_a_run_whose_daemon_is_killed_names_its_log() {
    let home = Home::new(None);
    home.sh("a", "true").exits(0);
    let log = home.pfimg(&["status", "--json"]).run().exits(0).json()["mounts"][0]["log"].clone();
    let run =
        home.pfimg(&["run", "a", "--", "sh", "-c", "echo a > a; while echo x >> log; do sleep 0.01; done"]);
    let said = std::thread::scope(|scope| {
        let run = scope.spawn(|| run.run());
        wait_until("it runs", || home.read("a", "a").is_some());
        system::signal_pfimg(home.daemon(), Signal::KILL);
        run.join().unwrap()
    });
    let words = format!("has ended; its log is {}. Run the command again", log.as_str().unwrap());
    // The run notices it at the mount, or at the daemon's socket.
    let refused = "cannot ask the daemon of the mount at";
    assert!(
        said.stderr.contains("cannot tell what changed in fork \"a\"")
            && (said.stderr.contains(&words) || said.stderr.contains(refused)),
        "{said:?}"
    );
    // A half-finished run is not offered for an apply.
    assert!(said.stderr.contains("interrupted: the daemon of the store ended"), "{said:?}");
    assert!(
        said.stderr.contains("again:  pfimg run a -- sh -c 'echo a > a; while echo x >> log"),
        "{said:?}"
    );
    assert!(!said.stderr.contains("next:"), "{said:?}");
    // Both ways to clear the mount name it, or need no name.
    let point = home.mountpoint();
    let status = home.pfimg(&["status"]).run().exits(0);
    assert!(status.stderr.contains(&format!("`pfimg umount {}`", point.display())), "{status:?}");
    let ended = home.pfimg(&["umount", "--all"]).run().exits(0);
    assert!(home.mountpoints().is_empty(), "{ended:?}");
}

#[test]
fn the_time_without_use_counts_from_the_last_command() {
    let home = Home::with_idle(None, "2s");
    home.sh("a", "true").exits(0);
    let daemon = home.daemon();
    // Longer than the mount stays after its first use.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(600));
        home.sh("a", "true").exits(0);
        assert_eq!(home.daemon(), daemon);
    }
    wait_until("the mount ends", || home.mountpoints().is_empty() && !system::is_running(daemon));
}

#[test]
fn umount_all_ends_the_mounts_of_the_own_store_and_no_other() {
    let (home, other) = (Home::new(None), Home::new(None));
    home.sh("a", "echo a > a").exits(0);
    other.sh("b", "true").exits(0);
    let theirs = other.mountpoint();
    let point = home.mountpoint();
    let said = home.pfimg(&["umount", "--all"]).run().exits(0);
    assert_eq!(said.stderr, format!("pfimg: {} is unmounted\n", point.display()));
    assert!(home.mountpoints().is_empty());
    assert_eq!(other.mountpoint(), theirs);
    let said = home.pfimg(&["umount", "--all"]).run().exits(0);
    assert!(said.stderr.contains("you have no mount of"), "{said:?}");
    assert_eq!(home.sh("a", "cat a").exits(0).stdout, "a\n");
    let point = home.mountpoint();
    let said = home.pfimg(&["umount", "--all", "--json"]).run().exits(0).json();
    assert_eq!(said["unmounted"][0]["mountpoint"], point.to_str().unwrap(), "{said}");
    assert_eq!(
        (&said["unmounted"][0]["state"], &said["failed"]),
        (&"unmounted".into(), &serde_json::json!([]))
    );
    home.pfimg(&["umount"]).run().exits(2);
}
