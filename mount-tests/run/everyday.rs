//! Everyday programs in a run: ssh, chgrp, programs with sandboxes, scripts, and paths in variables.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::support::{Place, for_every_user};
use crate::common::cli::Run;
use crate::common::forks::{fork, world};
use crate::common::{Output, is_root};

/// A user with a name, who is not the kernel's substitute for unmapped owners.
const NAMED: u32 = 1;

/// As an ordinary user.
fn ordinary() -> Place {
    if is_root() { Place::of(Some(NAMED), |mount| mount) } else { Place::new() }
}

fn make(path: &str, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A folder that commands do not see, wherever the tests keep their temporary files.
fn hidden_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn ssh_and_git_over_ssh_accept_the_systems_settings() {
    let place = ordinary();
    place.sh("a@before", "true").exits(0);
    let (config, ssh) = (place.outside("config"), place.outside("ssh"));
    make(&config, "Include /etc/ssh/ssh_config\n", 0o644);
    // As soon as a proxy closes its output ssh ends it: this one does so at its end.
    let wrapper = format!("#!/bin/sh\nexec ssh -F {config} -o ProxyCommand='touch reached' \"$@\"\n");
    make(&ssh, &wrapper, 0o755);
    std::os::unix::fs::chown(&config, place.user, place.user).unwrap();
    let said = place.run(&["a", "ssh", "-F", &config, "-G", "host.invalid"]);
    assert!(said.stdout.contains("hostname host.invalid"), "{said:?}");
    let said = place.run(&[
        "a",
        "env",
        "SHELL=/bin/sh",
        &format!("GIT_SSH={ssh}"),
        "git",
        "ls-remote",
        "ssh://host.invalid/x",
    ]);
    assert!(!said.stderr.contains("Bad owner"), "{said:?}");
    assert_eq!(place.sh("a", "ls reached").stdout, "reached\n", "{said:?}");
    // They are copies, and no more writable than before.
    let uid = rustix::process::geteuid().as_raw();
    let uid = place.user.unwrap_or(uid);
    let write = "chmod 666 /etc/ssh/ssh_config || echo x >> /etc/ssh/ssh_config";
    assert!(place.sh("a", write).code != 0);
    let said = place.run(&["a", "stat", "-c", "%u %a", "/etc/ssh/ssh_config"]).exits(0);
    assert_eq!(said.stdout, format!("{uid} 644\n"));
    let own = place.run(&["a", "cat", "/etc/ssh/ssh_config"]).exits(0).stdout;
    assert_eq!(own, fs::read_to_string("/etc/ssh/ssh_config").unwrap());
}

#[test]
fn a_group_that_cannot_be_given_is_refused_as_elsewhere() {
    if !is_root() {
        // Only root can choose its groups.
        return;
    }
    let place = ordinary();
    place.sh("a@before", "touch file").exits(0);
    let chgrp = |group: &str, more: &[&str]| {
        let ids = [format!("--reuid={NAMED}"), format!("--regid={NAMED}"), format!("--groups={NAMED},2,3")];
        let mut args: Vec<&str> = ids.iter().map(String::as_str).collect();
        args.extend([place.program.to_str().unwrap(), "run", "a"]);
        args.extend(more);
        args.extend(["chgrp", group, "file"]);
        Run::program(Path::new("setpriv"), args).env("PF_STORE", place.store.root()).run()
    };
    for group in ["2", "3", "65534"] {
        let said = chgrp(group, &[]).exits(1);
        assert!(said.stderr.contains("Operation not permitted"), "{group}: {said:?}");
    }
    chgrp("1", &[]).exits(0);
    // In a namespace of the command's own its number is the one that counts.
    chgrp("0", &["unshare", "--user", "--map-root-user"]).exits(0);
}

#[test]
fn programs_make_sandboxes_of_their_own() {
    for_every_user(|place| {
        place.sh("a@before", "true").exits(0);
        let work = world(&place.mount, "a");
        let work = work.to_str().unwrap();
        let unshare = |args: &str| format!("unshare --user --map-root-user {args}");
        for command in [
            unshare("true"),
            "unshare --user --map-current-user true".to_owned(),
            unshare("--mount mount -t tmpfs none /mnt"),
            unshare("--pid --fork true"),
            unshare("--net --ipc --uts --time true"),
            "bwrap --unshare-user --ro-bind / / --dev /dev true".to_owned(),
            "bwrap --unshare-user --unshare-pid --unshare-net --unshare-ipc --unshare-uts --ro-bind / / --dev /dev true".to_owned(),
            format!("bwrap --unshare-user --ro-bind / / --dev /dev --bind {work} {work} sh -c 'echo inner > by-inner'"),
        ] {
            let said = place.sh("a", &command);
            assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{command}");
        }
        assert_eq!(place.sh("a", "cat by-inner").exits(0).stdout, "inner\n");
        let proc = "bwrap --unshare-user --unshare-pid --ro-bind / / --dev /dev --proc /proc sh -c 'echo /proc/[0-9]*'";
        let said = place.sh("a", proc);
        if rustix::process::geteuid().is_root() && place.user.is_none() {
            // Its /proc would be one whose settings of the machine root can write.
            assert!(said.code != 0 && said.stderr.contains("Operation not permitted"), "{said:?}");
        } else {
            assert!(said.code == 0 && said.stdout.split_whitespace().count() <= 3, "{said:?}");
        }
    });
}

/// What a process in a namespace of control groups can do to one outside.
#[test]
fn a_namespace_of_control_groups_shows_no_group_that_can_be_changed_but_the_runs_own() {
    for_every_user(|place| {
        place.sh("a@before", "true").exits(0);
        // Uses every writable control group in either version.
        let script = "for type in cgroup2 cgroup; do mount -t $type none /mnt 2>/dev/null && find /mnt \
             \\( -name cgroup.kill -o -name cgroup.freeze \\) -exec sh -c 'echo 1 > {}' \\; 2>/dev/null; umount /mnt 2>/dev/null; done; true";
        let mut bystander = place.pfimg_bystander();
        let said = place.run(&[
            "a",
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--cgroup",
            "sh",
            "-c",
            script,
        ]);
        // The command may be refused at the first call, or may have ended itself.
        assert!([0, 1, 137].contains(&said.code), "{said:?}");
        assert!(bystander.try_wait().unwrap().is_none(), "{said:?}");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        let said = place.run(&[
            "a",
            "bwrap",
            "--unshare-user",
            "--unshare-all",
            "--ro-bind",
            "/",
            "/",
            "--dev",
            "/dev",
            "true",
        ]);
        assert!(said.code == 0 || said.stderr.contains("ENOSPC"), "{said:?}");
    });
}

#[test]
fn a_script_without_an_interpreter_is_the_shells_and_a_lost_one_is_named() {
    let place = Place::new();
    let dir = fork(&place.mount, "a", &place.image);
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for (name, text) in [
        ("plain", "echo ran \"$0\" \"$1\"\n"),
        ("crlf", "#!/bin/sh\r\necho ran\r\n"),
        ("lost", "#!/no/such/sh -e\necho ran\n"),
        ("chain", &format!("#!{}\n", at("lost"))),
        ("folder", "#!/usr\n"),
        ("binary", "\x7fnot\0an\x01elf\n"),
        ("nothing", ""),
    ] {
        make(&at(name), text, 0o755);
    }
    assert_eq!(place.run(&["a", "./plain", "one"]).exits(0).stdout, "ran ./plain one\n");
    let by_path = format!("PATH={}:$PATH exec \"$0\" run a plain two", dir.display());
    let run = Run::program(Path::new("sh"), ["-c", &by_path, place.program.to_str().unwrap()]);
    let said = run.env("PF_STORE", place.store.root()).run().exits(0);
    assert_eq!(said.stdout, format!("ran {} two\n", at("plain")));
    place.run(&["a", "./nothing"]).exits(0);
    for (name, code, words) in [
        ("./crlf", 127, &["interpreter /bin/sh\\r", "CR LF", "sed -i"][..]),
        ("./lost", 127, &["./lost", "#!", "interpreter /no/such/sh:"]),
        ("./chain", 127, &["/lost names the interpreter /no/such/sh"]),
        ("./folder", 126, &["/usr", "not a file"]),
        ("./binary", 126, &["neither a script nor a program"]),
        ("./none", 127, &["./none", "No such file"]),
    ] {
        let said = place.run(&["a", name]).exits(code);
        assert!(words.iter().all(|word| said.stderr.contains(word)), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    }
}

#[test]
fn variables_name_things_that_exist_inside() {
    for_every_user(|place| {
        place.sh("a@before", "true").exits(0);
        let hidden = hidden_folder();
        let dir = hidden.path();
        let socket = dir.join("socket");
        let _listening = UnixListener::bind(&socket).unwrap();
        let address = format!("unix:path={},guid=1", socket.display());
        let uid = place.user.unwrap_or(rustix::process::geteuid().as_raw());
        let shows = |name: &str, value: &str| {
            let script = format!("echo \"${{{name}-unset}}\"");
            let run = place.pfimg(&["run", "a", "sh", "-c", &script]).env(name, value);
            run.run().exits(0).stdout.trim_end().to_owned()
        };
        for name in ["SOME_SOCKET", "VSCODE_IPC_HOOK_CLI", "DBUS_SESSION_BUS_ADDRESS"] {
            assert_eq!(shows(name, socket.to_str().unwrap()), "unset", "{name}");
            assert_eq!(shows(name, &address), "unset", "{name}");
        }
        for (name, value, shown) in [
            ("DBUS_SESSION_BUS_ADDRESS", "unix:abstract=/tmp/x", "unset"),
            ("TMUX", &format!("{},1,0", socket.display()), "unset"),
            ("TMP", "/no/such", "/tmp"),
            ("TEMP", "/usr", "/tmp"),
            ("TMP", "/var/tmp", "/var/tmp"),
            ("TMPDIR", "/no/such", "/tmp"),
            ("SSH_TTY", "/dev/pts/no-such", "unset"),
            ("OUT", "/tmp/result", "/tmp/result"),
        ] {
            assert_eq!(shows(name, value), shown, "{name}={value}");
        }
        // A private folder for sockets, in which programs can be run, wherever the caller's is.
        let use_it = "d=$XDG_RUNTIME_DIR; stat -c '%a %u' $d; mkdir $d/tool && printf '#!/bin/sh\\necho ran\\n' > $d/tool/x && chmod 700 $d/tool/x && $d/tool/x";
        for value in ["/run/user/4711", "/tmp/runtime-4711", "relative", ""] {
            let run = place.pfimg(&["run", "a", "sh", "-c", use_it]).env("XDG_RUNTIME_DIR", value);
            assert_eq!(run.run().exits(0).stdout, format!("700 {uid}\nran\n"), "{value}");
        }
        assert_eq!(place.sh("a", use_it).exits(0).stdout, format!("700 {uid}\nran\n"));
        assert!(!fs::exists(format!("/run/user/{uid}/tool")).unwrap());
        // The caller's own keeps its path, and is empty.
        let own = dir.join("own");
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(own.join("secret"), "").unwrap();
        std::os::unix::fs::chown(&own, place.user, place.user).unwrap();
        let run = place.pfimg(&["run", "a", "sh", "-c", "echo $XDG_RUNTIME_DIR; ls $XDG_RUNTIME_DIR"]);
        let said = run.env("XDG_RUNTIME_DIR", &own).run().exits(0);
        assert_eq!(said.stdout, format!("{}\n", own.display()));
        // A home folder among temporary files is there, and empty.
        let home = dir.join("home");
        fs::create_dir(&home).unwrap();
        let run = place.pfimg(&["run", "a", "sh", "-c", "cd && pwd && : > file && ls"]).env("HOME", &home);
        assert_eq!(run.run().exits(0).stdout, format!("{}\nfile\n", home.display()));
        assert!(!home.join("file").exists());
    });
}

#[test]
fn a_socket_that_is_handed_over_can_be_reached() {
    for_every_user(|place| {
        place.sh("a@before", "true").exits(0);
        let hidden = hidden_folder();
        let dir = hidden.path();
        let socket = dir.join("agent");
        let listening = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        let answering = std::thread::spawn(move || {
            use std::io::Write as _;
            listening.accept().unwrap().0.write_all(b"key").unwrap();
        });
        let reach = "import os, socket
s = socket.socket(socket.AF_UNIX); s.connect(os.environ['SSH_AUTH_SOCK']); print(s.recv(9).decode())
try: os.chmod(os.environ['SSH_AUTH_SOCK'], 0o600); print('changed')
except OSError: print(sorted(os.listdir(os.path.dirname(os.environ['SSH_AUTH_SOCK']))))";
        let run = place.pfimg(&["run", "--env", "SSH_AUTH_SOCK", "a", "python3", "-c", reach]);
        let said = run.env("SSH_AUTH_SOCK", &socket).run().exits(0);
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("key\n['agent']\n", ""));
        answering.join().unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o777);
        let run = place.pfimg(&["run", "-q", "a", "sh", "-c", "echo \"<$SSH_AUTH_SOCK>\""]);
        assert_eq!(run.env("SSH_AUTH_SOCK", &socket).run().exits(0).stdout, "<>\n");
    });
}

impl Place {
    /// A process of the same user outside the runs.
    fn pfimg_bystander(&self) -> std::process::Child {
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new("sleep");
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.arg("1000").spawn().unwrap()
    }
}

#[test]
fn a_command_stands_in_the_real_folder_of_its_fork() {
    let place = Place::new();
    let said: Output = place.sh("a@before", "echo $PWD; pwd -P; find \"$PWD\" -name README | wc -l").exits(0);
    let real = world(&place.mount, "a");
    assert_eq!(said.stdout, format!("{0}\n{0}\n1\n", place.mount.join("forks/a/world/fs").display()));
    assert!(real.join("README").exists());
}

#[test]
fn a_process_left_by_the_command_may_finish_its_output() {
    let place = Place::new();
    place.sh("a@before", "true").exits(0);
    // On a busy machine the process may take longer than a run waits.
    let written = || {
        place.sh("a", "rm -f late; (sleep 0.02; echo late > late) &").exits(0);
        world(&place.mount, "a").join("late").exists()
    };
    assert!((0..5).any(|_| written()));
}

/// As in a session of systemd, where a user may change the group of a terminal and all its processes.
#[test]
fn a_run_whose_user_may_change_its_group_has_a_separate_group() {
    let unified =
        pfimg::mount::mountinfo::mounts().unwrap().into_iter().find(|mounted| mounted.fs_type == "cgroup2");
    let Some(unified) = unified.filter(|_| is_root()) else { return };
    let place = ordinary();
    place.sh("a@before", "true").exits(0);
    let group = unified.path.join(format!("pfimg-test-{}", std::process::id()));
    if fs::create_dir(&group).is_err() {
        // In a container that may not make groups.
        return;
    }
    let chown = |path: &Path| std::os::unix::fs::chown(path, place.user, place.user).unwrap();
    chown(&group);
    chown(&group.join("cgroup.procs"));
    let user = format!("setpriv --reuid={NAMED} --regid={NAMED} --clear-groups");
    let inner = "mount -t cgroup2 none /mnt && mkdir /mnt/inner && echo mounted; echo 1 > /mnt/cgroup.kill";
    let outer = format!(
        "echo $$ > {0}/cgroup.procs; {user} sleep 1000 > /dev/null 2>&1 & echo $!
         {user} {1} run -q a unshare --user --map-root-user --mount --cgroup sh -c '{inner}'; echo $?",
        group.display(),
        place.program.display()
    );
    let said = Run::program(Path::new("sh"), ["-c", &outer]).env("PF_STORE", place.store.root()).run();
    let lines: Vec<&str> = said.stdout.lines().collect();
    let bystander = rustix::process::Pid::from_raw(lines[0].parse().unwrap()).unwrap();
    let lives = rustix::process::kill_process(bystander, rustix::process::Signal::KILL).is_ok();
    let left = fs::read_dir(&group).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    crate::common::wait_until("the group is empty", || fs::remove_dir(&group).is_ok());
    assert!(lives && left == 0, "{said:?}");
    // Where a hierarchy of version 1 is not mounted, nothing can be said of it: then such namespaces are refused.
    assert!(lines[1..] == ["mounted", "137"] || said.stderr.contains("No space left"), "{said:?}");
}
