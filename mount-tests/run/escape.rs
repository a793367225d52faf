//! Ways out of the sandbox that a command, its caller or a bad moment might open.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use super::support::{Place, Running, clean_signals, for_every_user, processes_with};
use crate::common::cli::{Run, clean_command};
use crate::common::forks::{fork, world};
use crate::common::{Rng, is_root, wait_until};

#[test]
fn open_files_of_the_caller_and_processes_of_the_run_give_no_way_out() {
    for_every_user(|place| {
        let mine = place.outside("mine");
        // The user's own, so that it could be written.
        let write = |path: &str, text: &str| {
            fs::write(path, text).unwrap();
            std::os::unix::fs::chown(path, place.user, place.user).unwrap();
        };
        write(&mine, "before");
        let mode = || fs::metadata(&place.program).unwrap().permissions().mode();
        let before = mode();
        place.sh("a@before", "true").exits(0);
        let all = place.outside.path().display();
        let script = "for fd in 7 0; do cat /proc/self/fd/$fd/mine; (echo x > /proc/self/fd/$fd/mine); done
            for process in 1 self; do chmod 777 /proc/$process/exe; cat /proc/$process/fd/7/mine; done
            for fd in 8 9; do (echo x > /proc/self/fd/$fd); chmod 777 /proc/self/fd/$fd; done
            cat <&8; cat <&9; echo more >&6";
        let log = place.outside("log");
        let run = |redirections: &str, script: &str| {
            let program = place.program.display();
            let outer =
                format!("exec {redirections}; read -r line <&9; exec {program} run a sh -c '{script}'");
            let run = Run::program(Path::new("/bin/sh"), ["-c", &outer]).env("PF_STORE", place.store.root());
            run.user(place.user).run()
        };
        let lines = place.outside("lines");
        write(&lines, "one\ntwo\n");
        let said = run(&format!("6> {log} 7< {all} 8< {mine} 9< {lines} < {all}"), script).exits(0);
        // A file that is open for reading is read on from its position, and one that is open for writing can be written.
        assert_eq!(said.stdout, "beforetwo\n");
        assert_eq!(fs::read_to_string(&log).unwrap(), "more\n");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "before");
        assert_eq!(fs::read_to_string(&lines).unwrap(), "one\ntwo\n");
        assert_eq!(mode(), before);
        let script = "cat; (echo x > /proc/self/fd/0); echo x > /dev/stdin";
        assert_eq!(run(&format!("9< {lines} < {mine}"), script).stdout, "before");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "before");
        // A file without a name belongs to no other program; a file with another name left cannot be found.
        assert_eq!(run(&format!("9< {lines} 0<> {mine}; rm {mine}"), "cat").exits(0).stdout, "before");
        write(&mine, "before");
        let moved = format!("9< {lines} < {mine}; mv {mine} {mine}.moved");
        assert_eq!(run(&moved, script).stdout, "before");
        assert_eq!(fs::read_to_string(format!("{mine}.moved")).unwrap(), "before");
        write(&mine, "before");
        let said = run(&format!("9< {lines} < {mine}; ln {mine} {mine}.other; rm {mine}"), "cat").exits(125);
        assert!(said.stderr.contains("cat FILE | pfimg run"), "{said:?}");
    });
}

/// Ends a run at every stage of its start, by every process that can.
#[test]
fn a_run_that_is_ended_while_it_starts_leaves_nothing_and_hears_of_it() {
    let place = Place::new();
    place.sh("a@before", "true").exits(0);
    let mark = "PFIMG_TEST_ENDED_EARLY";
    let mut random = Rng::new(0x0e4d);
    for round in 0..60 {
        let name = format!("{mark}={round}");
        let mut command = clean_signals(&place.program);
        command
            .args(["run", "a", "sleep", "1000"])
            .env("PF_STORE", place.store.root())
            .env(mark, round.to_string());
        let mut run = Running(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        std::thread::sleep(std::time::Duration::from_micros(random.below(15_000)));
        match round % 3 {
            0 => run.signal(Signal::KILL),
            1 => run.signal(Signal::TERM),
            _ => {
                let children =
                    fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.0.id())).unwrap();
                // Not the process that asks the daemon: without it the run continues.
                let is_builder = |pid: &&str| {
                    fs::read_to_string(format!("/proc/{pid}/cmdline"))
                        .is_ok_and(|line| line.contains("--stage"))
                };
                let builder = children
                    .split_whitespace()
                    .find(is_builder)
                    .and_then(|pid| Pid::from_raw(pid.parse().ok()?));
                match builder {
                    // It may have ended just now.
                    Some(builder) => drop(kill_process(builder, Signal::KILL)),
                    None => run.signal(Signal::KILL),
                }
            }
        }
        let code = run.code();
        assert!(code != Some(0), "round {round}: {code:?}");
        wait_until("nothing is left", || processes_with(&name).is_empty());
    }
}

#[test]
fn signals_that_the_caller_ignores_or_blocks_work_inside() {
    let place = Place::new();
    place.sh("a@before", "true").exits(0);
    let program = place.program.display();
    let blocked = format!(
        "import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])
os.execv('{program}', ['pfimg', 'run', 'a', 'true'])"
    );
    let python = Run::program(Path::new("/usr/bin/env"), ["python3", "-c", &blocked]);
    python.env("PF_STORE", place.store.root()).run().exits(0);
    // As nohup(1) has it.
    let ready = world(&place.mount, "a").join("ready");
    let script = "trap '' HUP; exec \"$@\" run a sh -c 'trap \"exit 5\" USR1; : > ready; while :; do sleep 0.01; done'";
    let mut command = clean_command(Path::new("/bin/sh"));
    command.args(["-c", script, "sh"]).arg(&place.program).env("PF_STORE", place.store.root());
    let mut run = Running(command.stdin(Stdio::null()).spawn().unwrap());
    wait_until("it runs", || ready.exists());
    run.signal(Signal::HUP);
    // When this signal has arrived, the effects of the earlier ones have been seen.
    run.signal(Signal::USR1);
    assert_eq!(run.code(), Some(5));
}

/// Keys of the caller's session, by keyctl(2), which few systems have a program for.
#[test]
fn keys_in_the_kernel_are_not_shared() {
    let place = Place::new();
    place.sh("a@before", "true").exits(0);
    let look = "import ctypes
c = ctypes.CDLL(None)
found = c.syscall(250, 10, -3, b'user', b'pfimg-test', 0)
print('found' if found > 0 else 'none')";
    let outer = format!(
        "import ctypes, os, sys
c = ctypes.CDLL(None)
c.syscall(250, 1, b'pfimg-test')
c.syscall(248, b'user', b'pfimg-test', b'secret', 6, -3)
{look}
sys.stdout.flush()
os.execv('{}', ['pfimg', 'run', 'a', 'python3', '-c', sys.argv[1]])",
        place.program.display()
    );
    let python = Run::program(Path::new("/usr/bin/env"), ["python3", "-c", &outer, look]);
    let said = python.env("PF_STORE", place.store.root()).run().exits(0);
    assert!(["found\nnone\n", "none\nnone\n"].contains(&said.stdout.as_str()), "{said:?}");
}

#[test]
fn mounts_in_a_fork_and_other_mounts_of_the_store_are_closed_to_the_command() {
    let place = Place::new();
    let inner = fork(&place.mount, "a", &place.image).join("inner");
    fs::create_dir(&inner).unwrap();
    let file = place.outside("file");
    fs::write(&file, "before").unwrap();
    if !is_root() {
        // Only root can mount there.
        return;
    }
    let again = place.outside.path().join("again");
    fs::create_dir(&again).unwrap();
    rustix::mount::mount_bind(place.outside.path(), &inner).unwrap();
    rustix::mount::mount_bind(place.store.root(), &again).unwrap();
    let said = place
        .sh("a", &format!("cat inner/file; echo x > inner/file; echo y > mine; ls -A {}", again.display()));
    for point in [&inner, &again] {
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    assert_eq!(said.stdout, "before", "{said:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "before");
    assert_eq!(fs::read_to_string(world(&place.mount, "a").join("mine")).unwrap(), "y\n");
}

#[test]
fn a_command_cannot_undo_its_confinement() {
    for_every_user(|place| {
        let mine = place.outside("mine");
        fs::write(&mine, "before").unwrap();
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o666)).unwrap();
        let (mount, store) = (place.mount.path().display(), place.store.root().display());
        let undo = format!(
            "umount {mount}; umount -l {mount}/forks/a; umount -l {store}; umount -l /tmp; umount -l /proc
             mount -o remount,rw /; mount -o remount,rw,bind /; mount --bind / /tmp; mount -t proc proc /tmp
             chmod 600 /dev/null /dev/zero; for dir in /tmp/c /dev/shm/c; do mkdir -p $dir; mount -t cgroup2 none $dir && echo cgroup; done
             echo x > {mine}; ls -A {store}; echo core > /proc/sys/kernel/core_pattern
             mount -t proc proc /mnt; echo core > /mnt/sys/kernel/core_pattern; mount -t sysfs sysfs /mnt; chmod 600 /mnt/fs/cgroup"
        );
        let before = fs::read("/proc/sys/kernel/core_pattern").unwrap();
        let modes = || {
            let all = ["/dev/null", "/dev/zero", "/sys/fs/cgroup"]
                .map(|path| fs::metadata(path).map(|m| m.mode()).ok());
            all.to_vec()
        };
        let modes_before = modes();
        // Directly, and in new namespaces, in which it is root.
        let said = place.sh(
            "a@before",
            &format!(
                "({undo}) 2>/dev/null; for kinds in m mpf mpfn; do unshare -Ur$kinds sh -c '{undo}' 2>/dev/null; done; cat README"
            ),
        );
        assert_eq!(said.stdout, "read me\n", "{said:?}");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "before");
        assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), before);
        assert_eq!(modes(), modes_before);
        assert!(place.mount.join("images").exists() || place.user.is_some());
    });
}

/// Root's command has SETFCAP, since the kernel requires it for making namespaces of users.
#[test]
fn a_command_of_roots_gives_no_file_of_its_fork_capabilities() {
    if !is_root() {
        return;
    }
    let place = Place::of(None, |mount| mount.args(["--xattrs"]));
    let give = "import os, struct, sys
open('program', 'a').close()
try: os.setxattr('program', 'security.capability', struct.pack('<5I', 0x02000001, 1 << 7, 0, 0, 0)); print('given')
except OSError as e: print(e.strerror)";
    let said = place.run(&["a@before", "python3", "-c", give]).exits(0);
    assert_eq!(said.stdout, "Operation not permitted\n");
    // Nor in a namespace in which it is root.
    let said = place.run(&["a", "unshare", "--user", "--map-root-user", "python3", "-c", give]).exits(0);
    assert_eq!(said.stdout, "Operation not permitted\n");
    // Outside root may.
    let dir = world(&place.mount, "a");
    let said = Run::program(Path::new("python3"), ["-c", give]).dir(&dir).run().exits(0);
    assert_eq!(said.stdout, "given\n");
}
