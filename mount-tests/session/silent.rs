//! Daemons that do not answer: no command waits longer than two seconds for one, and each names it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use rustix::process::Signal;

use super::support::{point, read, small_store};
use crate::common::cli::{Run, clean_command, pfimg_on};
use crate::common::forks::fork;
use crate::common::mount::Background;
use crate::common::{Mount, Output, PFIMG, is_root, system, temp_dir, wait_at_most, wait_until};

/// How long a command may take that waits two seconds for a daemon, on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// A daemon that is stopped until this is dropped.
struct Stopped(Mount);

impl Stopped {
    fn stop(mount: Mount) -> Self {
        // The kernel shows that the daemon has looked at its own mount once it says so; a child of it must not hang.
        wait_until("the daemon has looked at its mount", || !mount.log_lines(&["mounted at"]).is_empty());
        mount.signal(Signal::STOP);
        wait_until("the daemon is stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", mount.pid())).unwrap();
            stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
        });
        Self(mount)
    }

    /// Whether a text says everything that a user needs to know about the daemon.
    fn is_named(&self, text: &str) -> bool {
        let pid = self.0.pid();
        let says = [
            self.0.path().to_str().unwrap().to_owned(),
            format!("process {pid}"),
            "is stopped".into(),
            format!("kill -CONT {pid}"),
        ];
        says.iter().all(|says| text.contains(says))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.0.exit_status().is_none() {
            self.0.signal(Signal::CONT);
        }
    }
}

/// Runs a command that a stopped daemon must not hinder.
#[track_caller]
fn in_bounds(store: &Path, args: &[&str]) -> Output {
    let asked = Instant::now();
    let output = pfimg_on(store, args);
    assert!(asked.elapsed() < BOUND, "{args:?}: {:?}", asked.elapsed());
    output
}

/// A command that is killed when this is dropped.
struct Running(Child);

impl Running {
    fn start(store: &Path, args: &[&str]) -> Self {
        let mut command = clean_command(Path::new("env"));
        command.arg("--default-signal").arg(PFIMG).args(args).env("PF_STORE", store);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// The signal that it ended by, if it ended.
    fn ends_by(&mut self) -> Option<i32> {
        let ended = wait_at_most(BOUND, || self.0.try_wait().unwrap().is_some());
        ended.and_then(|_| self.0.wait().unwrap().signal())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_daemon_of_another_store_holds_up_no_command_and_is_named() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let (other, _) = small_store();
    let stopped = Stopped::stop(Mount::of(other.root()).start());
    let (_dir, third) = point();
    let third = third.to_str().unwrap();
    let _guard = Background { point: third.into(), pid: None };
    let all = in_bounds(store.root(), &["status"]).exits(0);
    assert!(stopped.is_named(&all.stderr), "{all:?}");
    // The mounts of one's own store come first.
    let first = all.stdout.lines().next();
    assert_eq!(first, Some(mount.path().to_str().unwrap()), "{all:?}");
    let listed = in_bounds(store.root(), &["status", "--json"]).exits(0).json()["mounts"].clone();
    let silent = listed.as_array().unwrap().iter().find(|entry| entry["pid"] == stopped.0.pid()).unwrap();
    assert_eq!(silent["mountpoint"], stopped.0.path().to_str().unwrap());
    assert!(silent["error"].as_str().unwrap().contains("is stopped"), "{silent}");
    let one = in_bounds(store.root(), &["status", stopped.0.path().to_str().unwrap()]).exits(7);
    assert!(stopped.is_named(&one.stderr), "{one:?}");
    for command in [
        &["status", mount.path().to_str().unwrap()][..],
        &["forks"],
        &["images"],
        &["diff", "f"],
        &["fork", "latest", "g"],
        &["seal", "f"],
        &["run", "f", "--", "true"],
        &["mount", "--read-only", third],
        &["umount", third],
    ] {
        let output = in_bounds(store.root(), command).exits(0);
        assert!(!output.stderr.contains("does not answer"), "{command:?}: {output:?}");
    }
    drop(stopped);
    mount.unmount();
}

#[test]
fn commands_that_need_a_stopped_daemon_fail_with_a_remedy_and_others_work() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let stopped = Stopped::stop(mount);
    let point = stopped.0.path().to_str().unwrap();
    let (_dir, home) = temp_dir();
    let export = home.join("export");
    let need: [(&[&str], i32); 9] = [
        (&["status", point], 7),
        (&["diff", "f"], 7),
        (&["fork", "latest", "g"], 7),
        (&["seal", "f"], 7),
        (&["restore", "f@latest"], 7),
        (&["discard", "f"], 7),
        (&["mv", "f", "h"], 7),
        (&["run", "f", "--", "true"], 125),
        (&["mount", point], 7),
    ];
    std::thread::scope(|scope| {
        for (command, code) in need {
            let (stopped, store) = (&stopped, store.root());
            scope.spawn(move || {
                let output = in_bounds(store, command).exits(code);
                assert!(stopped.is_named(&output.stderr), "{command:?}: {output:?}");
            });
        }
    });
    for command in [
        &["forks"][..],
        &["images"],
        &["log"],
        &["tags"],
        &["show", "latest"],
        &["diff", "latest"],
        &["tag", "latest", "name"],
        &["untag", "name"],
        &["verify"],
        &["audit"],
        &["gc", "--dry-run"],
        &["export", "latest", export.to_str().unwrap()],
        &["images", "--store", point],
    ] {
        let output = in_bounds(store.root(), command).exits(0);
        assert!(!output.stderr.contains("does not answer"), "{command:?}: {output:?}");
    }
    drop(stopped);
}

#[test]
fn a_stopped_mount_that_only_reads_is_not_asked() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let stopped = Stopped::stop(Mount::of(store.root()).args(["--read-only"]).start());
    for command in [&["forks"][..], &["fork", "latest", "g"], &["diff", "f"], &["seal", "f"]] {
        let output = in_bounds(store.root(), command).exits(0);
        assert!(!output.stderr.contains("does not answer"), "{command:?}: {output:?}");
    }
    drop(stopped);
    mount.unmount();
}

#[test]
fn the_mount_of_a_stopped_daemon_is_unmounted_with_a_message() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let stopped = Stopped::stop(mount);
    let point = stopped.0.path().to_str().unwrap();
    let output = in_bounds(store.root(), &["umount", point]).exits(0);
    let hint = format!("kill -CONT {}", stopped.0.pid());
    assert!(output.stderr.contains("stopped") && output.stderr.contains(&hint), "{output:?}");
    assert!(system::types_at(stopped.0.path()).is_empty());
    stopped.0.signal(Signal::CONT);
    let pid = stopped.0.pid();
    wait_until("the daemon ends", || !system::is_running(pid));
}

/// The kernel gives the number of a device out again as soon as its mount is gone.
#[test]
fn the_daemon_of_an_unmounted_store_asks_no_other_mount_that_has_its_number() {
    let (store, id) = crate::common::forks::small_store();
    let (other, other_id) = small_store();
    for round in 0..5 {
        // By the time it continues a seal is due.
        let mount = Mount::of(store.root()).args(["--seal", "idle:300ms"]).start();
        let forked = fork(&mount, &format!("f{round}"), &id);
        std::fs::write(forked.join("new"), b"new").unwrap();
        let mut stopped = Stopped::stop(mount);
        let written = Instant::now();
        system::detach_all(stopped.0.path());
        // One of them has the number, unless another program was faster.
        let others: Vec<_> = (0..2).map(|_| Mount::of(other.root()).args(["--read-only"]).start()).collect();
        wait_until("a seal is due", || written.elapsed() > Duration::from_millis(300));
        stopped.0.signal(Signal::CONT);
        assert!(stopped.0.wait().success(), "round {round}: {}", stopped.0.log());
        for mount in others {
            assert_eq!(read(&mount, &other_id), b"content");
            mount.unmount();
        }
    }
}

/// Signals a run whose builder waits for a mount that does not answer.
#[test]
fn a_signal_ends_commands_that_wait_at_any_stage() {
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let (other, other_id) = small_store();
    let stopped = Stopped::stop(Mount::of(other.root()).start());
    let inside = stopped.0.image(&other_id);
    let inside = inside.to_str().unwrap();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut run = Running::start(store.root(), &["run", "--read", inside, "f", "--", "true"]);
        // Until there is a builder, the kernel's default does it.
        let children = format!("/proc/{0}/task/{0}/children", run.0.id());
        wait_until("the builder is there", || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            text.split_whitespace().any(|pid| {
                std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(b"pfimg-run"))
            })
        });
        let pid = rustix::process::Pid::from_child(&run.0);
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(run.ends_by(), Some(signal.as_raw()), "{signal:?}");
    }
    drop(stopped);
    mount.unmount();
}

/// A daemon that has taken a request, as the kernel knows; processes that wait for the answer ignore every
/// signal.
struct Taker {
    point: PathBuf,
    device: File,
}

impl Taker {
    fn mount(point: &Path, store: &Path) -> Self {
        let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount(store, point, "fuse.pfimg", MountFlags::empty(), Some(data.as_c_str())).unwrap();
        let mut request = vec![0; 1 << 17];
        let _ = device.read(&mut request).unwrap();
        // fuse_out_header and fuse_init_out of linux/fuse.h: version 7.31, no features.
        let mut reply = vec![0u8; 80];
        reply[0..4].copy_from_slice(&80u32.to_ne_bytes());
        reply[8..16].copy_from_slice(&request[8..16]);
        reply[16..20].copy_from_slice(&7u32.to_ne_bytes());
        reply[20..24].copy_from_slice(&31u32.to_ne_bytes());
        reply[36..40].copy_from_slice(&4096u32.to_ne_bytes());
        device.write_all(&reply).unwrap();
        Self { point: point.to_owned(), device }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        system::break_connection(&self.point);
        system::detach_all(&self.point);
    }
}

#[test]
fn a_daemon_that_has_taken_a_request_and_does_not_answer_holds_up_no_command() {
    if !is_root() {
        // Other users cannot mount without a program that does it.
        return;
    }
    let (store, id) = crate::common::forks::small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let (other, _) = small_store();
    let (_dir, point) = point();
    let taker = Taker::mount(&point, other.root());
    let mut taking = taker.device.try_clone().unwrap();
    // Takes every request until the connection breaks.
    let takes = std::thread::spawn(move || {
        let mut request = vec![0; 1 << 17];
        let mut taken = 0;
        while taking.read(&mut request).is_ok() {
            taken += 1;
        }
        taken
    });
    let shown = point.to_str().unwrap();
    let output = in_bounds(store.root(), &["status"]).exits(0);
    assert!(output.stderr.contains(shown) && output.stderr.contains("does not answer"), "{output:?}");
    let output = in_bounds(store.root(), &["status", shown]).exits(7);
    assert!(output.stderr.contains("does not answer within 2 s"), "{output:?}");
    in_bounds(store.root(), &["run", "f", "--", "true"]).exits(0);
    let output = in_bounds(other.root(), &["mount", shown]).exits(7);
    assert!(output.stderr.contains("does not answer"), "{output:?}");
    let mut status = Running::start(store.root(), &["status"]);
    wait_until("it asks", || {
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", status.0.id()))
            .is_ok_and(|children| !children.trim().is_empty())
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&status.0), Signal::TERM).unwrap();
    assert_eq!(status.ends_by(), Some(Signal::TERM.as_raw()));
    drop(taker);
    assert!(takes.join().unwrap() >= 3);
    mount.unmount();
}

/// Mounts of other users, dead or alive, are not errors.
#[test]
fn mounts_of_another_user_come_last_and_are_no_error() {
    const NOBODY: u32 = 65534;
    if !is_root() {
        return;
    }
    let (dir, programs) = temp_dir();
    let program = programs.join("pfimg");
    crate::common::cli::copy_program(PFIMG, &program);
    std::fs::set_permissions(&programs, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (theirs, _) = small_store();
    let owner = format!("{NOBODY}:{NOBODY}");
    crate::common::cli::tool("chown", ["-R", &owner, theirs.root().to_str().unwrap()]).exits(0);
    let above = theirs.root().parent().unwrap();
    std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Its mount is made first, and can be looked at.
    let mut their_mount = Mount::of(theirs.root()).user(NOBODY).program(&program).start();
    let (own, _) = small_store();
    let mount = Mount::of(own.root()).start();
    for alive in [true, false] {
        if !alive {
            their_mount.kill();
        }
        let status = in_bounds(own.root(), &["status"]).exits(0);
        assert_eq!(status.stdout.lines().next(), Some(mount.path().to_str().unwrap()), "{alive}: {status:?}");
        assert!(!status.stderr.contains(their_mount.path().to_str().unwrap()), "{alive}: {status:?}");
    }
    // The mount's own user sees the daemon.
    let status = Run::program(&program, ["status"]).user(Some(NOBODY)).run().exits(0);
    assert!(status.stderr.contains(their_mount.path().to_str().unwrap()), "{status:?}");
    mount.unmount();
    drop(dir);
}

#[test]
fn ended_daemons_of_another_user_are_one_line_in_all() {
    const NOBODY: u32 = 65534;
    if !is_root() {
        return;
    }
    let (_programs, dir) = temp_dir();
    let program = dir.join("pfimg");
    crate::common::cli::copy_program(PFIMG, &program);
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (store, _) = small_store();
    let start = || Mount::of(store.root()).args(["--allow-other"]).start();
    let mut mounts = [start(), start()];
    for mount in &mut mounts {
        let above = mount.path().parent().unwrap();
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o755)).unwrap();
        mount.kill();
    }
    let status = Run::program(&program, ["status"]).user(Some(NOBODY)).run().exits(0);
    assert_eq!(status.stderr.matches("of other users").count(), 1, "{status:?}");
    for mount in &mounts {
        assert!(!status.stderr.contains(mount.path().to_str().unwrap()), "{status:?}");
    }
}
