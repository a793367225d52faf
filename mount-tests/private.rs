//! No user reads or changes files without the right to: modes of all new files, forks that are closed, other
//! users' images.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::common::cli::{Output, Run, pfimg_on};
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{fork, small_store, world};
use crate::common::mount::Background;
use crate::common::{Mount, is_root, temp_dir};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// All files and folders below a folder, with their modes; links have none of their own.
fn modes(dir: &Path) -> Vec<(PathBuf, u32)> {
    let Ok(metadata) = fs::metadata(dir) else { return Vec::new() };
    let mut found = vec![(dir.to_owned(), metadata.mode() & 0o7777)];
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        // The daemon may have removed a temporary file since it was listed.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            found.append(&mut modes(&path));
        } else if !metadata.is_symlink() {
            found.push((path, metadata.mode() & 0o7777));
        }
    }
    found
}

/// A copy of the program that any user can run, and a folder for what it makes.
struct Place {
    _dir: tempfile::TempDir,
    dir: PathBuf,
    program: PathBuf,
}

impl Place {
    fn new() -> Self {
        let (guard, dir) = temp_dir();
        set_mode(&dir, 0o755);
        let program = dir.join("pfimg");
        crate::common::cli::copy_program(crate::common::PFIMG, &program);
        set_mode(&program, 0o755);
        Self { _dir: guard, dir, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Runs the program with a umask, its home below this folder.
    #[track_caller]
    fn run(&self, umask: &str, store: &Path, args: &[&str]) -> Output {
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let all = ["-c", &script].into_iter().map(str::to_owned);
        let all = all.chain([self.program.display().to_string()]).chain(args.iter().map(ToString::to_string));
        let home = self.path(&format!("home{umask}"));
        Run::program(Path::new("/bin/sh"), all)
            .env("HOME", &home)
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_STATE_HOME", home.join("state"))
            .env("PF_STORE", store)
            .run()
    }
}

/// Another user finds nothing to read or list in a folder.
#[track_caller]
fn assert_closed(what: &str, dirs: &[&Path]) {
    for dir in dirs.iter().filter(|dir| dir.exists()) {
        let open = modes(dir).into_iter().filter(|(_, mode)| mode & 0o077 != 0);
        let open: Vec<_> = open.map(|(path, mode)| format!("{mode:o} {}", path.display())).collect();
        assert!(open.is_empty(), "{what}: {open:?}");
        if is_root() {
            let args = [dir.as_os_str(), "-readable".as_ref(), "-o".as_ref(), "-writable".as_ref()];
            let found = Run::program(Path::new("/usr/bin/find"), args).user(Some(NOBODY)).run().stdout;
            assert_eq!(found, "", "{what}");
        }
    }
}

#[test]
fn another_user_finds_no_readable_file_in_anything_that_a_command_makes() {
    let place = Place::new();
    for umask in ["000", "022", "077"] {
        let store = place.path(&format!("store{umask}"));
        let (project, point) = (place.path(&format!("project{umask}")), place.path(&format!("mnt{umask}")));
        fs::create_dir_all(&project).unwrap();
        fs::create_dir_all(&point).unwrap();
        fs::write(project.join("key"), "secret\n").unwrap();
        let home = place.path(&format!("home{umask}"));
        let run = |args: &[&str]| {
            let output = place.run(umask, &store, args).exits(0);
            let what = format!("umask {umask}, {}", args.join(" "));
            assert_closed(&what, &[&store, &home.join("cache"), &home.join("state")]);
            output
        };
        run(&["import", project.to_str().unwrap(), "--tag", "t"]);
        run(&["fixture", "--tag", "fixture", "--world-files", "4"]);
        run(&["tag", "t", "t2"]);
        run(&["cp", "t", "t3"]);
        run(&["fork", "t", "on-disk"]);
        run(&["seal", "on-disk", "--tag", "sealed"]);
        run(&["verify"]);
        let mut guard = Background { point: point.clone(), pid: None };
        run(&["mount", point.to_str().unwrap(), "--seal", "manual"]);
        let status = fs::read_to_string(point.join(".pfimg/status.json")).unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        guard.pid = status["pid"].as_u64().map(|pid| pid as u32);
        run(&["fork", "t", "f"]);
        fs::write(point.join("forks/f/world/fs/new"), "private").unwrap();
        fs::write(point.join("forks/f/world/fs/large"), vec![7; 3 << 20]).unwrap();
        run(&["seal", "f", "--tag", "one"]);
        assert_eq!(fs::read(point.join("tags/one/world/fs/large")).unwrap().len(), 3 << 20);
        fs::write(point.join("forks/f/world/fs/new"), "changed").unwrap();
        run(&["restore", "f", "one"]);
        run(&["diff", "f"]);
        run(&["mv", "f", "g"]);
        run(&["audit", "--verify"]);
        run(&["umount", point.to_str().unwrap()]);
        run(&["discard", "--force", "g"]);
        run(&["untag", "t3"]);
        run(&["prune", "--keep-last", "1"]);
        run(&["gc", "--grace", "0s"]);
        run(&["import", project.to_str().unwrap(), "--tag", "again"]);
    }
}

#[test]
fn new_files_in_a_store_for_a_group_belong_to_the_group_and_the_store_remembers_it() {
    let place = Place::new();
    let (store, project) = (place.path("store"), place.path("project"));
    fs::create_dir(&project).unwrap();
    fs::write(project.join("file"), "shared").unwrap();
    let project = project.to_str().unwrap();
    let made = place.run("077", &store, &["import", project, "--tag", "t", "--store-mode", "group"]).exits(0);
    assert!(!made.stderr.contains("can read"), "{}", made.stderr);
    place.run("022", &store, &["fork", "t", "f"]).exits(0);
    place.run("000", &store, &["tag", "t", "t2"]).exits(0);
    for (path, mode) in modes(&store) {
        assert_eq!(mode, if path.is_dir() { 0o2770 } else { 0o660 }, "{}", path.display());
    }
    let told = place.run("077", &store, &["import", project, "--store-mode", "private"]).exits(0).stderr;
    assert!(told.contains("is now ") && told.contains("chmod -R go="), "{told}");
    fs::write(Path::new(project).join("file"), "mine alone").unwrap();
    let before = modes(&store).len();
    place.run("000", &store, &["import", project]).exits(0);
    let closed = modes(&store).into_iter().filter(|(path, mode)| path.is_file() && *mode == 0o600).count();
    assert!(modes(&store).len() > before && closed >= 3, "{closed} files are closed");
}

#[test]
fn the_members_of_a_group_work_in_one_store_and_others_do_not() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(0), Some(60_000)).unwrap();
    set_mode(&shared, 0o2770);
    let store = shared.join("store");
    let project = place.path("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("file"), "everybody's").unwrap();
    set_mode(&project, 0o755);
    let run = |uid: u32, gid: u32, args: &[&str]| {
        let home = place.path(&format!("home{uid}"));
        fs::create_dir_all(&home).unwrap();
        chown(&home, Some(uid), Some(gid)).unwrap();
        let script = "umask 077; exec setpriv --reuid=\"$0\" --regid=\"$1\" --clear-groups \"${@:2}\"";
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let all = ["-c", script, &uid, &gid, place.program.to_str().unwrap()];
        let all = all.iter().chain(args).map(ToString::to_string);
        Run::program(Path::new("/bin/bash"), all).env("HOME", &home).env("PF_STORE", &store).run()
    };
    let import =
        |tag| ["import", project.to_str().unwrap(), "--tag", tag, "--force", "--store-mode", "group"];
    run(60_001, 60_000, &import("first")).exits(0);
    for (path, _) in modes(&store) {
        if path.extension().is_some_and(|extension| extension == "zst") {
            let old = std::time::SystemTime::now() - std::time::Duration::from_hours(2);
            fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
        }
    }
    run(60_002, 60_000, &import("second")).exits(0);
    run(60_002, 60_000, &["fork", "first", "f"]).exits(0);
    run(60_001, 60_000, &["mv", "f", "g"]).exits(0);
    run(60_002, 60_000, &["fork", "g", "h"]).exits(0);
    run(60_001, 60_000, &["discard", "--force", "h"]).exits(0);
    run(60_001, 60_000, &["audit", "--verify"]).exits(0);
    run(60_002, 60_000, &["gc", "--grace", "0s"]).exits(0);
    for (path, mode) in modes(&store) {
        assert_eq!(mode, if path.is_dir() { 0o2770 } else { 0o660 }, "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().gid(), 60_000, "{}", path.display());
    }
    assert_ne!(run(60_003, 60_003, &["images"]).code, 0);
}

#[test]
fn a_store_that_others_can_read_causes_one_line_of_warning() {
    let place = Place::new();
    let (store, _) = small_store();
    let project = place.path("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("file"), "1").unwrap();
    let lines = |mode| {
        set_mode(store.root(), mode);
        fs::write(project.join("file"), format!("{mode:o}")).unwrap();
        let said = place.run("022", store.root(), &["import", project.to_str().unwrap()]).exits(0).stderr;
        said.lines().filter(|line| line.contains("chmod -R go=")).map(str::to_owned).collect::<Vec<_>>()
    };
    let all: Vec<_> = ["blobs", "blobs/sha256", "images"].map(|name| store.root().join(name)).into();
    for dir in &all {
        set_mode(dir, 0o755);
    }
    let told = lines(0o755);
    assert!(told.len() == 1 && told[0].contains("other users can read the store"), "{told:?}");
    assert_eq!(mode(store.root()), 0o755, "it is left alone");
    assert!(lines(0o777)[0].contains("read and change"));
    assert_eq!(lines(0o700), [""; 0]);
    let open = |mode| {
        set_mode(store.root(), mode);
        let mut mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
        let told = mount.log_lines(&["other users can read the store"]).len();
        mount.signal(rustix::process::Signal::TERM);
        mount.wait();
        told
    };
    assert_eq!((open(0o755), open(0o700)), (1, 0));
}

#[test]
fn a_forks_folders_keep_mode_and_owner_through_seal_branch_restore_and_remount() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    fork(&mount, "f", &id);
    let given =
        [("", 0o700), ("world", 0o710), ("world/fs", 0o750), ("effects", 0o2701), ("cache/pages", 0o500)];
    let top = |mount: &Mount, name: &str| mount.join("forks").join(name);
    for (path, mode) in given {
        set_mode(top(&mount, "f").join(path), mode);
        if is_root() {
            chown(top(&mount, "f").join(path), Some(7), Some(8)).unwrap();
            set_mode(top(&mount, "f").join(path), mode);
        }
    }
    let check = |mount: &Mount, name: &str, when: &str| {
        for (path, wanted) in given {
            let found = top(mount, name).join(path);
            assert_eq!(mode(&found), wanted, "{when}: {name}/{path}");
            if is_root() {
                let metadata = fs::metadata(&found).unwrap();
                assert_eq!((metadata.uid(), metadata.gid()), (7, 8), "{when}: {name}/{path}");
            }
        }
        assert_eq!(mode(top(mount, name).join("trace")), 0o755, "{when}");
    };
    fs::write(world(&mount, "f").join("new"), "1").unwrap();
    pfimg_on(store.root(), ["seal", "f", "--tag", "one"]).exits(0);
    check(&mount, "f", "after a seal");
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    check(&mount, "f", "after a remount");
    fork(&mount, "b", "f");
    check(&mount, "b", "of a branch");
    fs::write(world(&mount, "b").join("new"), "2").unwrap();
    pfimg_on(store.root(), ["seal", "b"]).exits(0);
    fs::write(world(&mount, "f").join("new"), "3").unwrap();
    pfimg_on(store.root(), ["restore", "f", "one"]).exits(0);
    check(&mount, "f", "after a restore");
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    check(&mount, "f", "after a restore and a remount");
    check(&mount, "b", "of a branch after a seal and a remount");
    // Attributes that images do not keep do not count as changes to seal.
    set_mode(top(&mount, "b"), 0o755);
    let sealed = pfimg_on(store.root(), ["seal", "b", "--json"]).exits(0).json();
    assert_eq!(sealed["new"], false, "{sealed}");
    mount.unmount();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    assert_eq!((mode(top(&mount, "b")), mode(top(&mount, "f"))), (0o755, 0o700));
    mount.unmount();
}

#[test]
fn mkdir_of_a_fork_takes_the_umask_and_a_mode_and_a_branch_is_no_more_open_than_its_source() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "manual"]).start();
    let mkdir = |umask: &str, args: &str| {
        let script = format!("umask {umask}; cd \"$0\" && mkdir {args}");
        let forks = mount.join("forks").display().to_string();
        Run::program(Path::new("/bin/sh"), ["-c".to_owned(), script, forks]).run()
    };
    mkdir("077", &format!("closed@{id} empty")).exits(0);
    mkdir("002", &format!("open@{id}")).exits(0);
    mkdir("022", &format!("-m 700 given@{id}")).exits(0);
    mkdir("022", "-m 750 branch-of-open@open").exits(0);
    mkdir("022", "branch-of-closed@closed").exits(0);
    let of = |name: &str| mode(mount.join("forks").join(name));
    assert_eq!(["closed", "empty", "given", "branch-of-closed"].map(of), [0o700; 4]);
    assert_eq!(["open", "branch-of-open"].map(of), [0o775, 0o750]);
    assert_eq!(mkdir("022", &format!("given@{id}")).code, 1, "it is there");
    let listed = crate::common::names(&mount.join("forks")).unwrap();
    assert!(listed.iter().all(|name| !name.contains('@')), "{listed:?}");
    mount.unmount();
    let mount = Mount::of(store.root()).start();
    let of = |name: &str| mode(mount.join("forks").join(name));
    assert_eq!(["closed", "empty", "given", "branch-of-closed"].map(of), [0o700; 4]);
    mount.unmount();
}

/// An image of files that user 1234 owns; one of them no other user may read.
fn image_of_another_user(store: &mut FastStore) -> String {
    let mut entries = Vec::new();
    for (path, mode) in [("secret", "0600"), ("kept", "0644"), ("given", "0644"), ("tool", "4755")] {
        let mut entry = store.file(path, path.as_bytes());
        (entry["mode"], entry["uid"], entry["gid"]) = (mode.into(), 1234.into(), 1235.into());
        entries.push(entry);
    }
    let fs = store.tree(&entries);
    store.image(&Spec { fs: Some(fs), ..Spec::default() })
}

#[test]
fn another_users_image_is_read_and_changed_like_an_own_one_and_its_seal_keeps_the_owners() {
    let mut store = FastStore::new();
    let id = image_of_another_user(&mut store);
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owner = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.gid())
    };
    let mount = Mount::of(store.root()).args(["--seal", "manual", "--owner", "keep"]).start();
    assert_eq!(owner(&mount.image(&id).join("world/fs/secret")), (1234, 1235));
    mount.unmount();
    let options = ["--seal", "manual", "--owner", "me", "-o", "default_permissions"];
    let mount = Mount::of(store.root()).args(options).start();
    assert_eq!(owner(&mount.image(&id).join("world/fs/secret")), me);
    let at = fork(&mount, "f", &id);
    assert_eq!(owner(&at.join("secret")), me);
    assert_eq!(fs::read(at.join("secret")).unwrap(), b"secret");
    fs::write(at.join("secret"), "changed").unwrap();
    fs::write(at.join("new"), "new").unwrap();
    set_mode(at.join("given"), 0o640);
    chown(at.join("given"), Some(me.0), None).unwrap();
    fs::rename(at.join("kept"), at.join("moved")).unwrap();
    set_mode(at.join("tool"), 0o4711);
    if is_root() {
        chown(at.join("new"), Some(77), Some(78)).unwrap();
        assert_eq!(owner(&at.join("new")), (77, 78), "the new owner is shown");
    }
    pfimg_on(store.root(), ["seal", "f", "--tag", "one"]).exits(0);
    assert_eq!(owner(&at.join("secret")), me);
    mount.unmount();
    let recorded = Mount::of(store.root()).args(["--seal", "manual", "--owner", "keep"]).start();
    let at = world(&recorded, "f");
    assert_eq!(owner(&at.join("secret")), (1234, 1235), "a change of content is none of the owner");
    assert_eq!(owner(&at.join("moved")), (1234, 1235));
    assert_eq!(owner(&at.join("given")), (me.0, 1235));
    assert_eq!(owner(&at.join("tool")), me, "it runs as the one who made it run so");
    assert_eq!(owner(&at.join("new")), if is_root() { (77, 78) } else { me });
    recorded.unmount();
    let differences = pfimg_on(store.root(), ["diff", &id, "one"]).exits(0).stdout;
    let wanted = ["P given", "D kept", "A moved", "A new", "M secret"];
    for line in wanted {
        assert!(differences.contains(line), "{line} is missing: {differences}");
    }
    assert_eq!(differences.matches("P ").count(), 2, "{differences}");
    let refused = pfimg_on(store.root(), ["mount", "/nowhere", "--owner", "me", "-o", "suid"]);
    assert!(refused.code == 2 && refused.stderr.contains("set-user-id"), "{refused:?}");
}

#[test]
fn an_export_has_the_recorded_mode_or_that_of_the_umask_and_its_layers_are_closed() {
    let place = Place::new();
    let (store, id) = small_store();
    let project = place.path("project");
    fs::create_dir(&project).unwrap();
    set_mode(&project, 0o750);
    let store = store.root();
    place.run("022", store, &["import", project.to_str().unwrap(), "--tag", "t"]).exits(0);
    let export = |umask: &str, image: &str, to: &str, more: &[&str]| {
        let to = place.path(to);
        let args = [&["export", image, to.to_str().unwrap()], more].concat();
        place.run(umask, store, &args).exits(0);
        to
    };
    assert_eq!(mode(export("000", "t", "recorded", &[])), 0o750);
    assert_eq!(mode(export("027", &id, "plain", &[])), 0o750);
    let all = export("000", "t", "all", &["--all"]);
    assert_eq!(mode(&all), 0o700);
    assert_eq!((mode(all.join("effects")), mode(all.join("effects/ledger.jsonl"))), (0o700, 0o600));
    assert_eq!(mode(all.join("world/fs")), 0o750);
}
