//! Commands ask the daemon over its socket: what arrives, who may ask, and what harms nothing.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::cli::{Output, Run, pfimg_on};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store};
use crate::common::mount::Mounting;
use crate::common::{Mount, PATIENCE, errno, in_time, is_root, names, system, temp_dir, wait_until};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

fn manual(store: &FastStore) -> Mounting {
    Mount::of(store.root()).args(["--seal", "manual"])
}

fn status(mount: &Mount) -> Value {
    serde_json::from_slice(&fs::read(mount.join(".pfimg/status.json")).unwrap()).unwrap()
}

fn socket(mount: &Mount) -> PathBuf {
    status(mount)["socket"].as_str().expect("a socket").into()
}

/// Sends bytes, and returns the lines that come back until the daemon closes the connection.
fn send(socket: &Path, bytes: &[u8]) -> Vec<Value> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The daemon may refuse before it has read everything.
    let _ = stream.write_all(bytes);
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        match line {
            Ok(line) => lines.push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))),
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => break,
            Err(error) => panic!("{error}"),
        }
    }
    lines
}

#[track_caller]
fn ask(socket: &Path, request: &Value) -> Value {
    let lines = send(socket, format!("{request}\n").as_bytes());
    let [reply] = &lines[..] else { panic!("{request}: {lines:?}") };
    assert_eq!(reply["pfimg"], 1, "{reply}");
    reply.clone()
}

/// The error in a command's JSON.
#[track_caller]
fn error(output: &Output) -> Value {
    let whole: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert!(whole["error"].is_object(), "{whole}");
    whole["error"].clone()
}

#[test]
fn a_daemon_tells_who_it_is_and_does_what_it_is_asked_for() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    let socket = socket(&mount);
    let hello = ask(&socket, &json!({"pfimg": 1, "do": "hello"}))["ok"].clone();
    assert_eq!(hello["pid"], mount.pid());
    assert_eq!(hello["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (hello["store"].as_str(), hello["mountpoint"].as_str()),
        (store.root().to_str(), mount.path().to_str())
    );

    let done = json!({"pfimg": 1, "ok": {}});
    assert_eq!(ask(&socket, &json!({"pfimg":1,"do":"fork","name":"a","source":id,"mode":0o755})), done);
    let files = mount.join("forks/a/world/fs");
    fs::write(files.join("new"), "new").unwrap();
    assert_eq!(ask(&socket, &json!({"pfimg":1,"do":"flush","fork":"a"}))["ok"]["unsealed"], true);
    let sealed = ask(&socket, &json!({"pfimg":1,"do":"seal","fork":"a","tag":"one","message":"mine"}));
    assert_eq!((&sealed["ok"]["new"], &sealed["ok"]["reports"]), (&json!(true), &json!([])));
    assert_eq!(ask(&socket, &json!({"pfimg":1,"do":"flush","fork":"a"}))["ok"]["unsealed"], false);
    // The reply comes once the kernel shows the new state.
    assert_eq!(fs::read(mount.join("tags/one/world/fs/new")).unwrap(), b"new");
    fs::write(files.join("new"), "newer").unwrap();
    let restored = ask(&socket, &json!({"pfimg":1,"do":"restore","fork":"a","seal":"one"}));
    assert_eq!(restored["ok"]["image"], sealed["ok"]["image"]);
    assert_eq!(fs::read(files.join("new")).unwrap(), b"new");
    assert_eq!(ask(&socket, &json!({"pfimg":1,"do":"rename","fork":"a","name":"b"})), done);
    assert_eq!(names(&mount.join("forks")).unwrap(), ["b"]);
    assert_eq!(names(&mount.join("work")).unwrap(), ["b"]);
    assert_eq!(ask(&socket, &json!({"pfimg":1,"do":"forks"}))["ok"]["forks"], json!(["b"]));
    assert_eq!(ask(&socket, &json!({"pfimg":1,"do":"discard","fork":"b","force":false})), done);
    assert_eq!(names(&mount.join("forks")).unwrap(), [""; 0]);
    assert!(!mount.join("forks/b").exists());
    assert_eq!(names(&mount.join("work")).unwrap(), [""; 0]);
    mount.unmount();
}

#[test]
fn an_error_of_the_daemon_is_the_one_that_a_command_without_a_mount_gives() {
    let (store, id) = small_store();
    let given = |args: &[&str]| pfimg_on(store.root(), args);
    for name in ["a", "changed"] {
        given(&["fork", &id, name]).exits(0);
        given(&["seal", name, "--tag", &format!("of-{name}")]).exits(0);
    }
    let mount = manual(&store).start();
    fs::write(mount.join("forks/changed/world/fs/new"), "new").unwrap();
    mount.unmount();
    let calls: [&[&str]; 11] = [
        &["seal", "none", "--json"],
        &["seal", "a", "--tag", "of-changed", "--json"],
        &["restore", "a@9", "--json"],
        &["restore", "a@none", "--json"],
        &["restore", "a", "--undo", "--json"],
        &["restore", "none", "--json"],
        &["fork", "none", "b", "--json"],
        &["fork", &id, "a", "--json"],
        &["discard", "changed", "--json"],
        &["mv", "none", "b", "--json"],
        &["mv", "a", "changed", "--json"],
    ];
    let without: Vec<Output> = calls.iter().map(|args| given(args)).collect();
    let mount = manual(&store).start();
    for (args, without) in calls.iter().zip(without) {
        let with = given(args);
        assert_eq!(with.code, without.code, "{args:?}: {with:?} {without:?}");
        let (with, without) = (error(&with), error(&without));
        for key in ["kind", "path", "hint"] {
            assert_eq!(with[key], without[key], "{args:?}: {with} {without}");
        }
        assert!(!with["message"].as_str().unwrap().contains("os error"), "{with}");
    }
    mount.unmount();
}

#[test]
fn an_error_arrives_with_its_path() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    let world = fork(&mount, "f", &id);
    fs::write(world.join("new"), "new").unwrap();
    // The store leaves its place: the error names the path.
    let elsewhere = store.root().with_extension("moved");
    fs::rename(store.root(), &elsewhere).unwrap();
    let socket = socket(&mount);
    let reply = ask(&socket, &json!({"pfimg":1,"do":"seal","fork":"f"}));
    fs::rename(&elsewhere, store.root()).unwrap();
    assert_eq!(reply["error"]["path"].as_str(), store.root().to_str(), "{reply}");
    assert!(reply["error"]["hint"].is_string(), "{reply}");
    mount.unmount();
}

#[test]
fn a_seal_by_a_command_makes_no_directory_and_reads_no_answer_in_the_mount() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    fork(&mount, "f", &id);
    let requests = |op: &str| mount.requests(op) as u64;
    let before = (requests("mkdir"), requests("lookup"));
    // The fork is unchanged: to announce a new image, the daemon itself makes a directory.
    for _ in 0..3 {
        pfimg_on(store.root(), ["seal", "f"]).exits(0);
    }
    assert_eq!(requests("mkdir"), before.0);
    // Three commands look at status.json, and once at each folder on the way.
    let lookups = requests("lookup") - before.1;
    assert!(lookups < 40, "{lookups}");
    assert_eq!(
        names(&mount.join(".pfimg")).unwrap(),
        ["audit.json", "events.jsonl", "metrics", "status.json"]
    );
    assert_eq!(errno(fs::metadata(mount.join(".pfimg/done-1.json"))), libc::ENOENT);
    for name in [".seal-1", ".push-1", ".ask-1-0=aGk", ".do-1", ".seal-1=tag"] {
        assert_eq!(errno(fs::create_dir(mount.join("forks/f/.snap").join(name))), libc::EINVAL, "{name}");
    }
    mount.unmount();
}

#[test]
fn other_versions_garbage_long_lines_and_half_lines_are_refused_and_harm_nothing() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    let socket = socket(&mount);
    let refusal = |bytes: &[u8]| -> (String, String) {
        let lines = send(&socket, bytes);
        let [reply] = &lines[..] else { panic!("{lines:?}") };
        let part = |key: &str| reply["error"][key].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
        (part("kind"), part("message"))
    };
    let (kind, message) = refusal(b"{\"pfimg\":2,\"do\":\"hello\"}\n");
    assert_eq!(kind, "unsupported");
    assert!(message.contains("version 2") && message.contains("version 1"), "{message}");
    let (kind, message) = refusal(b"{\"pfimg\":1,\"do\":\"brew\"}\n");
    assert!(kind == "unsupported" && message.contains("\"brew\""), "{message}");
    for line in
        [&b"\n"[..], b"\xff\xfe\0\n", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"{\"pfimg\":1,\"do\":\"seal\"}\n"]
    {
        assert_eq!(refusal(line).0, "invalid-input", "{line:?}");
    }
    let long = [b"{\"pfimg\":1,\"do\":\"seal\",\"fork\":\"".to_vec(), vec![b'a'; 5 << 20]].concat();
    assert_eq!(refusal(&long).0, "invalid-input");
    let deep = [vec![b'['; 1 << 20], b"\n".to_vec()].concat();
    assert_eq!(refusal(&deep).0, "invalid-input");

    // A half line gets no reply, and one whose client is silent holds up no other.
    let mut half = UnixStream::connect(&socket).unwrap();
    half.write_all(b"{\"pfimg\":1,\"do\":\"disc").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    fork(&mount, "f", &id);
    pfimg_on(store.root(), ["seal", "f"]).exits(0);
    // The daemon lets silent clients go.
    let begun = Instant::now();
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(ask(&socket, &json!({"pfimg": 1, "do": "hello"}))["ok"].is_object());
    mount.unmount();
}

#[test]
fn fifty_commands_at_once_all_get_their_replies() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    let socket = socket(&mount);
    let asked = |n: u32| {
        let (socket, id) = (socket.clone(), id.clone());
        std::thread::spawn(move || {
            let name = format!("f{n}");
            let fork = json!({"pfimg":1,"do":"fork","name":name,"source":id,"mode":0o755});
            assert!(ask(&socket, &fork)["ok"].is_object(), "{name}");
            let seal = json!({"pfimg":1,"do":"seal","fork":name,"tag":format!("t{n}")});
            assert!(ask(&socket, &seal)["ok"]["image"].is_string(), "{name}");
            if n.is_multiple_of(2) {
                let renamed = json!({"pfimg":1,"do":"rename","fork":name,"name":format!("g{n}")});
                assert!(ask(&socket, &renamed)["ok"].is_object(), "{name}");
            } else {
                let gone = json!({"pfimg":1,"do":"discard","fork":name,"force":true});
                assert!(ask(&socket, &gone)["ok"].is_object(), "{name}");
            }
            let none = json!({"pfimg":1,"do":"flush","fork":"none"});
            assert_eq!(ask(&socket, &none)["error"]["kind"], "not-found");
        })
    };
    let clients: Vec<_> = (0..50).map(asked).collect();
    in_time("fifty clients", move || clients.into_iter().for_each(|client| client.join().unwrap()));
    let mut left: Vec<String> = (0..50).step_by(2).map(|n| format!("g{n}")).collect();
    left.sort();
    assert_eq!(names(&mount.join("forks")).unwrap(), left);
    // More than the daemon serves at a time.
    let many: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    drop(many);
    assert!(ask(&socket, &json!({"pfimg": 1, "do": "hello"}))["ok"].is_object());
    mount.unmount();
}

#[test]
fn a_client_that_goes_away_does_not_stop_its_seal() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    let world = fork(&mount, "f", &id);
    fs::write(world.join("new"), vec![7; 1 << 20]).unwrap();
    let mut stream = UnixStream::connect(socket(&mount)).unwrap();
    stream.write_all(b"{\"pfimg\":1,\"do\":\"seal\",\"fork\":\"f\",\"tag\":\"done\"}\n").unwrap();
    drop(stream);
    wait_until("the seal is made", || mount.join("tags/done").exists());
    assert_eq!(fs::read(mount.join("tags/done/world/fs/new")).unwrap().len(), 1 << 20);
    pfimg_on(store.root(), ["verify"]).exits(0);
    mount.unmount();
}

#[test]
fn the_socket_is_closed_to_others_and_goes_with_its_mount() {
    let (store, _) = small_store();
    let mount = manual(&store).start();
    let first = socket(&mount);
    let metadata = fs::symlink_metadata(&first).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(first.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
    mount.unmount();
    assert!(!first.exists());
}

#[test]
fn the_socket_of_a_killed_daemon_is_removed_by_the_next_one() {
    let (store, id) = small_store();
    let mut killed = manual(&store).start();
    let stale = socket(&killed);
    let point = killed.path().to_owned();
    killed.kill();
    assert!(stale.exists());
    assert_eq!(errno(UnixStream::connect(&stale)), libc::ECONNREFUSED);
    system::detach_all(&point);
    let mount = manual(&store).start();
    assert!(!stale.exists());
    fork(&mount, "f", &id);
    pfimg_on(store.root(), ["seal", "f"]).exits(0);
    mount.unmount();
    drop(killed);
}

#[test]
fn a_mount_with_a_long_path_to_its_socket_is_reached() {
    let (store, id) = small_store();
    let (_dir, top) = temp_dir();
    let runtime = top.join("r".repeat(120));
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
    let mount = manual(&store).env("XDG_RUNTIME_DIR", runtime.to_str().unwrap()).start();
    assert!(socket(&mount).starts_with(&runtime));
    fork(&mount, "f", &id);
    pfimg_on(store.root(), ["seal", "f"]).exits(0);
    mount.unmount();
}

#[test]
fn a_mount_without_a_socket_serves_programs_and_says_what_is_missing() {
    let (store, id) = small_store();
    let (_dir, top) = temp_dir();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).unwrap();
    // Something else has the name of the directory.
    fs::write(top.join("pfimg"), "").unwrap();
    let mount = manual(&store).env("XDG_RUNTIME_DIR", top.to_str().unwrap()).start();
    assert_eq!(status(&mount)["socket"], Value::Null);
    assert!(!mount.log_lines(&["commands cannot reach this mount"]).is_empty(), "{}", mount.log());
    fork(&mount, "f", &id);
    fs::create_dir(mount.join("forks/f/.snap/sealed")).unwrap();
    let refused = pfimg_on(store.root(), ["seal", "f", "--json"]).exits(7);
    let error = error(&refused);
    assert_eq!((error["kind"].as_str(), error["path"].as_str()), (Some("no-answer"), mount.path().to_str()));
    mount.unmount();
}

#[test]
fn another_user_is_refused_by_the_directory_and_by_the_daemon() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let (_dir, top) = temp_dir();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).unwrap();
    let mounting = manual(&store).args(["--allow-other"]).env("XDG_RUNTIME_DIR", top.to_str().unwrap());
    let mount = mounting.start();
    fork(&mount, "f", &id);
    let socket = socket(&mount);
    let open = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // The ways to the store and to the mount are open to all.
    let is_ours = |path: &&Path| path.starts_with(std::env::temp_dir()) && *path != std::env::temp_dir();
    let above = |path: &Path| path.ancestors().filter(is_ours).map(Path::to_owned).collect::<Vec<_>>();
    let (_programs, programs) = temp_dir();
    let program = programs.join("pfimg");
    crate::common::cli::copy_program(crate::common::PFIMG, &program);
    for path in
        above(mount.path().parent().unwrap()).iter().chain(&above(store.root())).chain(&above(&program))
    {
        open(path, 0o755);
    }
    std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(store.root()).status().unwrap();
    let seal = || {
        let args = ["seal", "f", "--json"];
        Run::program(&program, args).env("PF_STORE", store.root()).user(Some(NOBODY)).run().exits(7)
    };
    let refused = error(&seal());
    assert_eq!(
        (refused["kind"].as_str(), refused["path"].as_str()),
        (Some("permission-denied"), socket.to_str())
    );
    for folder in above(socket.parent().unwrap()) {
        open(&folder, 0o755);
    }
    open(&socket, 0o666);
    let refused = error(&seal());
    assert_eq!(refused["kind"], "permission-denied");
    assert!(refused["message"].as_str().unwrap().contains("another user"), "{refused}");
    // Root and the user themselves are served.
    pfimg_on(store.root(), ["seal", "f"]).exits(0);
    mount.unmount();
}

#[test]
fn a_process_in_a_namespace_of_processes_below_is_refused() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let mount = manual(&store).start();
    fork(&mount, "f", &id);
    let confined = ["--pid", "--fork", crate::common::PFIMG, "seal", "f", "--json"];
    let refused = Run::program(Path::new("unshare"), confined).env("PF_STORE", store.root()).run().exits(7);
    let refused = error(&refused);
    assert_eq!(refused["kind"], "permission-denied", "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("PFIMG_SNAP"), "{refused}");
    mount.unmount();
}

#[test]
fn a_command_of_a_run_sees_no_socket_also_if_it_may_write_tmp() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    fork(&mount, "f", &id);
    let socket = socket(&mount);
    let folder = socket.parent().unwrap().to_str().unwrap();
    for options in [&[][..], &["--write", "/tmp"]] {
        let look = ["--", "sh", "-c", "test -e \"$1\" || ls -A \"$2\" 2>/dev/null; true", "sh"];
        let args = ["run", "f"].iter().chain(options).chain(&look).copied();
        let args: Vec<&str> = args.chain([socket.to_str().unwrap(), folder]).collect();
        let seen = pfimg_on(store.root(), &args).exits(0);
        assert_eq!(seen.stdout, "", "{options:?}: {seen:?}");
        let exists = ["--", "test", "-e", socket.to_str().unwrap()];
        let args: Vec<&str> = ["run", "f"].iter().chain(options).chain(&exists).copied().collect();
        pfimg_on(store.root(), &args).exits(1);
    }
    mount.unmount();
}

#[test]
fn a_program_in_a_fork_stays_in_it_when_a_command_renames_it() {
    let (store, id) = small_store();
    let mount = manual(&store).start();
    let world = fork(&mount, "old", &id);
    let mut inside = std::process::Command::new("sh")
        .args(["-c", "read line; readlink /proc/$$/cwd; echo changed > note; cat note"])
        .current_dir(&world)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    pfimg_on(store.root(), ["mv", "old", "new"]).exits(0);
    inside.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut said = String::new();
    inside.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    inside.wait().unwrap();
    let moved = mount.join("forks/new/world/fs");
    assert_eq!(said, format!("{}\nchanged\n", moved.display()));
    assert_eq!(fs::read(moved.join("note")).unwrap(), b"changed\n");
    assert!(!mount.join("forks/old").exists());
    // The old name is free again.
    pfimg_on(store.root(), ["fork", &id, "old"]).exits(0);
    assert!(!mount.join("forks/old/world/fs/note").exists());
    mount.unmount();
}
