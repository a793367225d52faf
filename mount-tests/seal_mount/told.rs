//! The events and files of programs that watch a mount, or stand in a fork, when forks, images and tags are
//! made, removed and restored.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, openat};

use super::support::seal;
use crate::common::cli::pfimg_on;
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store, tag, world};
use crate::common::{Mount, errno, names, wait_until};

/// How long an event may take before it counts as lost.
const LOST: Duration = Duration::from_secs(20);

/// An inotify instance, and what each watch is called.
pub(super) struct Watch {
    fd: OwnedFd,
    called: BTreeMap<i32, &'static str>,
    heard: Vec<String>,
}

impl Watch {
    pub(super) fn of(watched: &[(&'static str, &Path)]) -> Self {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let mut this = Self { fd: inotify::init(flags).unwrap(), called: BTreeMap::new(), heard: Vec::new() };
        for (name, path) in watched {
            let wanted = WatchFlags::ALL_EVENTS - WatchFlags::ACCESS - WatchFlags::OPEN - WatchFlags::CLOSE;
            let number = inotify::add_watch(&this.fd, *path, wanted).unwrap();
            this.called.insert(number, name);
        }
        this
    }

    /// Reads the waiting events, as `watch EVENT name`.
    fn read(&mut self) {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buf);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let told = event.events() - ReadFlags::ISDIR;
            let told = match told {
                ReadFlags::CREATE => "CREATE",
                ReadFlags::DELETE => "DELETE",
                ReadFlags::DELETE_SELF => "DELETE_SELF",
                ReadFlags::IGNORED => "IGNORED",
                ReadFlags::ATTRIB => "ATTRIB",
                ReadFlags::MOVED_FROM => "MOVED_FROM",
                ReadFlags::MOVED_TO => "MOVED_TO",
                ReadFlags::MODIFY => "MODIFY",
                ReadFlags::MOVE_SELF => "MOVE_SELF",
                other => panic!("{other:?}"),
            };
            self.heard.push(format!("{} {told} {name}", self.called[&event.wd()]).trim().to_owned());
        }
    }

    /// Waits until all of this was heard.
    #[track_caller]
    pub(super) fn hears(&mut self, wanted: &[&str]) {
        let until = Instant::now() + LOST;
        loop {
            self.read();
            let missing: Vec<_> =
                wanted.iter().filter(|event| !self.heard.iter().any(|h| h == *event)).collect();
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "missing {missing:?} in {:?}", self.heard);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that was heard so far of one watch.
    pub(super) fn of_watch(&mut self, watch: &str) -> Vec<String> {
        self.read();
        let prefix = format!("{watch} ");
        self.heard.iter().filter_map(|event| event.strip_prefix(&prefix)).map(str::to_owned).collect()
    }
}

/// A shell that stands in a folder, and answers to commands.
pub(super) struct Shell(Child, BufReader<std::process::ChildStdout>);

impl Shell {
    pub(super) fn at(folder: &Path) -> Self {
        let mut shell = Command::new("sh");
        shell.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = shell.spawn().unwrap();
        let out = BufReader::new(shell.stdout.take().unwrap());
        let mut this = Self(shell, out);
        assert_eq!(this.say("echo there"), "there");
        this
    }

    /// What a command prints; `failed` behind it if it failed.
    pub(super) fn say(&mut self, command: &str) -> String {
        let input = self.0.stdin.as_mut().unwrap();
        writeln!(input, "{{ {command}; }} 2>/dev/null || echo failed; echo; echo .").unwrap();
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "the shell has ended");
            match line.trim() {
                "." => return said.join(" "),
                "" => {}
                words => said.push(words.to_owned()),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The ways of mounting that number or write otherwise.
pub(super) const MOUNTS: [&[&str]; 3] = [&[], &["--writes", "back"], &["--inodes", "32"]];

pub(super) fn mounts(store: &FastStore, args: &[&str]) -> Mount {
    Mount::of(store.root()).args(["--seal", "manual"]).args(args).start()
}

/// A fork `f` with a seal `one`, and changed since.
fn changed_fork(mount: &Mount, store: &FastStore, id: &str) -> std::path::PathBuf {
    let world = fork(mount, "f", id);
    fs::create_dir_all(world.join("sub/deep")).unwrap();
    fs::create_dir(world.join("gone")).unwrap();
    for (name, text) in [("note", "one"), ("same", "same"), ("sub/note", "one"), ("sub/deep/d", "d")] {
        fs::write(world.join(name), text).unwrap();
    }
    seal(store, &["f", "--tag", "one"]);
    change(&world);
    world
}

fn change(world: &Path) {
    fs::write(world.join("note"), "two").unwrap();
    fs::write(world.join("sub/note"), "two").unwrap();
    fs::remove_dir(world.join("gone")).unwrap();
    fs::create_dir(world.join("later")).unwrap();
    fs::write(world.join("later/l"), "l").unwrap();
    fs::rename(world.join("sub/deep/d"), world.join("sub/deep/moved")).unwrap();
    symlink("x", world.join("link2")).unwrap();
}

#[test]
fn watchers_of_a_restored_fork_get_its_changes_and_continue_to_watch() {
    for args in MOUNTS {
        let (store, id) = small_store();
        let mount = mounts(&store, args);
        let world = changed_fork(&mount, &store, &id);
        let (sub, deep, later) = (world.join("sub"), world.join("sub/deep"), world.join("later"));
        let note = world.join("note");
        let mut watch = Watch::of(&[
            ("world", &world),
            ("sub", &sub),
            ("deep", &deep),
            ("later", &later),
            ("note", &note),
            ("same", &world.join("same")),
            ("alone", &world.join("sub/note")),
        ]);
        pfimg_on(store.root(), ["restore", "f", "one"]).exits(0);
        watch.hears(&[
            "world DELETE note",
            "world CREATE note",
            "world CREATE gone",
            "world DELETE later",
            "world DELETE link2",
            "sub DELETE note",
            "sub CREATE note",
            "deep DELETE moved",
            "deep CREATE d",
            "note ATTRIB",
            "note DELETE_SELF",
            "alone DELETE_SELF",
            "later DELETE_SELF",
            "later IGNORED",
        ]);
        let touched = watch.of_watch("world");
        let spared = |name: &str| !touched.iter().any(|event| event.ends_with(name));
        assert!(spared("README") && spared(" same") && spared(" sub"), "{args:?}: {touched:?}");
        assert!(watch.of_watch("same").is_empty(), "{args:?}: {:?}", watch.heard);
        // The watches of folders that stay continue.
        fs::write(sub.join("more"), "more").unwrap();
        fs::write(deep.join("more"), "more").unwrap();
        watch.hears(&["sub CREATE more", "deep CREATE more"]);
        // A second time.
        pfimg_on(store.root(), ["restore", "f", "one"]).exits(0);
        watch.hears(&["sub DELETE more", "deep DELETE more"]);
        assert_eq!(fs::read(&note).unwrap(), b"one");
        mount.unmount();
    }
}

#[test]
fn watchers_of_a_fork_that_is_discarded_hear_of_it_wherever_they_watch() {
    for args in MOUNTS {
        let (store, id) = small_store();
        let mount = mounts(&store, args);
        let world = changed_fork(&mount, &store, &id);
        let (forks, work) = (mount.join("forks"), mount.join("work"));
        let top = forks.join("f");
        let mut watch = Watch::of(&[
            ("forks", &forks),
            ("work", &work),
            ("top", &top),
            ("world", &world),
            ("deep", &world.join("sub/deep")),
            ("alone", &world.join("sub/note")),
        ]);
        pfimg_on(store.root(), ["discard", "--force", "f"]).exits(0);
        watch.hears(&[
            "forks MOVED_FROM f",
            "work DELETE f",
            "top DELETE_SELF",
            "world DELETE_SELF",
            "deep DELETE_SELF",
            "alone DELETE_SELF",
        ]);
        assert!(names(&forks).unwrap().is_empty());
        mount.unmount();
    }
}

#[test]
fn a_shell_in_a_restored_fork_sees_the_restored_files() {
    for args in MOUNTS {
        let (store, id) = small_store();
        let mount = mounts(&store, args);
        let world = changed_fork(&mount, &store, &id);
        let sub = world.join("sub");
        let places = [&world, &sub, &world.join("sub/deep"), &world.join("later")];
        let mut shells = places.map(|place| Shell::at(place));
        let [top, in_sub, deep, later] = &mut shells;
        assert_eq!(
            (top.say("cat note"), in_sub.say("cat note"), later.say("cat l")),
            ("two".into(), "two".into(), "l".into())
        );
        for round in 0..3 {
            pfimg_on(store.root(), ["restore", "f", "one"]).exits(0);
            let there = |shell: &mut Shell| shell.say("/bin/pwd");
            assert_eq!(top.say("cat note && echo && cat sub/note"), "one one", "{args:?} {round}");
            assert_eq!(top.say("ls -d later gone link2"), "gone failed");
            assert_eq!((there(top), there(in_sub)), (world.display().to_string(), sub.display().to_string()));
            assert_eq!(in_sub.say("cat note && echo && cat ../note"), "one one", "{args:?} {round}");
            assert_eq!(in_sub.say("ls .."), names(&world).unwrap().join(" "));
            assert_eq!(deep.say("ls"), "d");
            // The content of this folder exists nowhere.
            assert_eq!(
                (later.say("cat l"), later.say("ls").contains('l')),
                ("failed".into(), false),
                "{args:?}"
            );
            assert_eq!(there(later), "failed");
            assert_eq!(in_sub.say("echo mine > mine && cat mine"), "mine");
            assert_eq!(fs::read(sub.join("mine")).unwrap(), b"mine\n");
            if round == 0 {
                fs::remove_file(sub.join("mine")).unwrap();
                change(&world);
                assert_eq!(top.say("cat note && echo && cat later/l"), "two l");
                assert_eq!(later.say("cat l"), "failed", "{args:?}: another folder at its path");
            }
        }
        drop(shells);
        mount.unmount();
    }
}

#[test]
fn a_shell_in_a_fork_that_is_discarded_finds_nothing() {
    for args in MOUNTS {
        let (store, id) = small_store();
        let mount = mounts(&store, args);
        for how in ["discard", "mv"] {
            let world = changed_fork(&mount, &store, &id);
            let mut shells = [Shell::at(&world), Shell::at(&world.join("sub/deep"))];
            let file = File::open(world.join("note")).unwrap();
            if how == "discard" {
                pfimg_on(store.root(), ["discard", "--force", "f"]).exits(0);
            } else {
                fs::rename(mount.join("forks/f"), mount.join(".pfimg/any")).unwrap();
            }
            for shell in &mut shells {
                wait_until("nothing is found", || shell.say("/bin/pwd") == "failed");
                assert_eq!(shell.say("cat note"), "failed", "{args:?} {how}");
                assert!(["", "failed"].contains(&&*shell.say("ls")), "{args:?} {how}");
            }
            let mut text = String::new();
            (&file).read_to_string(&mut text).unwrap();
            assert_eq!((&*text, file.metadata().unwrap().nlink()), ("two", 0), "{args:?} {how}");
            drop(shells);
            pfimg_on(store.root(), ["untag", "one"]).exits(0);
        }
        mount.unmount();
    }
}

#[test]
fn open_files_of_a_restored_fork_are_removed_or_unchanged() {
    for args in MOUNTS {
        let (store, id) = small_store();
        let mount = mounts(&store, args);
        let world = changed_fork(&mount, &store, &id);
        let both = |path: &str| File::options().read(true).write(true).open(world.join(path)).unwrap();
        let (changed, same) = (both("note"), both("same"));
        let mut open = Vec::new();
        for round in 0..20u32 {
            let text = format!("round {round}");
            fs::write(world.join("note"), &text).unwrap();
            open.push((
                text,
                File::open(world.join("note")).unwrap(),
                world.join("note").metadata().unwrap().ino(),
            ));
            pfimg_on(store.root(), ["restore", "f", "one"]).exits(0);
            assert_eq!(fs::read(world.join("note")).unwrap(), b"one");
        }
        // Each is a different file, with its old content, as a file that was removed.
        for (text, file, ino) in &open {
            let mut held = String::new();
            (&*file).read_to_string(&mut held).unwrap();
            let now = file.metadata().unwrap();
            assert_eq!((&held, now.nlink(), now.ino()), (text, 0, *ino), "{args:?}");
        }
        let mut numbers: Vec<_> = open.iter().map(|(.., ino)| *ino).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), open.len(), "{args:?}");
        let written = changed.write_all_at(b"lost", 0).and_then(|()| changed.sync_all());
        assert_eq!(errno(written), libc::ESTALE, "{args:?}");
        // What did not change is the same file.
        assert_eq!(same.metadata().unwrap().ino(), world.join("same").metadata().unwrap().ino());
        same.write_all_at(b"SAME", 0).unwrap();
        same.sync_all().unwrap();
        assert_eq!(fs::read(world.join("same")).unwrap(), b"SAME", "{args:?}");
        drop((open, changed, same));
        mount.unmount();
    }
}

#[test]
fn inode_numbers_stay_over_a_restore_and_a_remount() {
    let (store, id) = small_store();
    let mount = mounts(&store, &[]);
    let world_then = changed_fork(&mount, &store, &id);
    let kept = ["", "README", "same", "src", "src/main.rs", "sub", "sub/deep"];
    let number = |world: &Path, path: &str| world.join(path).metadata().unwrap().ino();
    let before: Vec<_> = kept.iter().map(|path| number(&world_then, path)).collect();
    pfimg_on(store.root(), ["restore", "f", "one"]).exits(0);
    let after: Vec<_> = kept.iter().map(|path| number(&world_then, path)).collect();
    assert_eq!(before, after);
    mount.unmount();
    let mount = mounts(&store, &[]);
    let later: Vec<_> = kept.iter().map(|path| number(&world(&mount, "f"), path)).collect();
    assert_eq!(before, later);
    // A branch has its own.
    let branch = fork(&mount, "g", "f");
    assert!(kept.iter().zip(&before).all(|(path, ino)| number(&branch, path) != *ino));
    mount.unmount();
}

#[test]
fn a_restore_during_a_walk_shows_old_files_before_it_and_never_after_it() {
    let (store, id) = small_store();
    let mount = mounts(&store, &[]);
    let world = changed_fork(&mount, &store, &id);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    for path in ["note", "sub/note"] {
                        match fs::read_to_string(world.join(path)) {
                            Ok(text) => assert!(["one", "two"].contains(&&*text), "{text:?}"),
                            Err(e) => assert!(
                                [libc::ENOENT, libc::ESTALE].contains(&e.raw_os_error().unwrap()),
                                "{e}"
                            ),
                        }
                    }
                    let _ = (names(&world), names(&world.join("sub/deep")));
                }
            });
        }
        for _ in 0..25 {
            for path in ["note", "sub/note"] {
                // Whole, so that no reader comes between a truncation and a write.
                fs::write(world.join("next"), "two").unwrap();
                fs::rename(world.join("next"), world.join(path)).unwrap();
            }
            let folder = File::open(world.join("sub")).unwrap();
            pfimg_on(store.root(), ["restore", "f", "one"]).exits(0);
            for path in ["note", "sub/note"] {
                assert_eq!(fs::read_to_string(world.join(path)).unwrap(), "one");
            }
            let mut text = String::new();
            let mut note = File::from(openat(&folder, "note", OFlags::RDONLY, Mode::empty()).unwrap());
            note.read_to_string(&mut text).unwrap();
            assert_eq!(text, "one");
        }
        end.store(true, Ordering::Relaxed);
    });
    mount.unmount();
    pfimg_on(store.root(), ["verify"]).exits(0);
}

#[test]
fn watchers_of_the_mounts_own_folders_hear_of_images_tags_and_forks() {
    let (mut store, id) = small_store();
    let mount = mounts(&store, &[]);
    let (root, images, tags) = (mount.path().to_owned(), mount.join("images"), mount.join("tags"));
    let (forks, work) = (mount.join("forks"), mount.join("work"));
    let mut watch = Watch::of(&[
        ("root", &root),
        ("images", &images),
        ("tags", &tags),
        ("forks", &forks),
        ("work", &work),
    ]);
    let other = store.image(&crate::common::fast::Spec {
        created_at: Some("2031-01-01T00:00:00Z".into()),
        ..Default::default()
    });
    watch.hears(&[&format!("images CREATE {other}"), "root DELETE latest", "root CREATE latest"]);
    assert!(fs::read_link(mount.join("latest")).is_ok());
    tag(&store, "other-program", &id);
    watch.hears(&["tags CREATE other-program"]);
    pfimg_on(store.root(), ["tag", &id, "t1"]).exits(0);
    watch.hears(&["tags CREATE t1"]);
    pfimg_on(store.root(), ["tag", "--force", &other, "t1"]).exits(0);
    watch.hears(&["tags DELETE t1"]);
    pfimg_on(store.root(), ["untag", "t1"]).exits(0);
    assert_eq!(fs::read_link(tags.join("other-program")).unwrap(), Path::new("../images").join(&id));
    // The kernel raises this event itself, and it comes once.
    symlink(format!("../images/{id}"), tags.join("t2")).unwrap();
    pfimg_on(store.root(), ["fork", &id, "f"]).exits(0);
    watch.hears(&["tags CREATE t2", "forks CREATE f", "work CREATE f"]);
    fs::write(world(&mount, "f").join("new"), "new").unwrap();
    let sealed = seal(&store, &["f", "--tag", "s"]);
    watch.hears(&[&format!("images CREATE {sealed}"), "tags CREATE s"]);
    pfimg_on(store.root(), ["mv", "f", "g"]).exits(0);
    watch.hears(&["forks MOVED_FROM f", "forks MOVED_TO g", "work DELETE f", "work CREATE g"]);
    fs::remove_file(store.marker_path(&other)).unwrap();
    wait_until("the image is gone", || !images.join(&other).exists());
    let told = watch.of_watch("tags").iter().filter(|event| *event == "CREATE t2").count();
    assert_eq!(told, 1);
    assert_eq!(names(&forks).unwrap(), ["g"]);
    mount.unmount();
}

#[test]
fn a_program_that_is_in_a_new_image_before_watchers_hear_of_it_stays_there() {
    let (mut store, _) = small_store();
    let mount = mounts(&store, &[]);
    let root = mount.path().to_owned();
    for year in 2031..2036 {
        let mut watch = Watch::of(&[("root", &root)]);
        let spec = crate::common::fast::Spec {
            created_at: Some(format!("{year}-01-01T00:00:00Z")),
            ..Default::default()
        };
        let image = mount.image(&store.image(&spec));
        let inside = File::open(&image).unwrap();
        // The image is announced before `latest` is.
        watch.hears(&["root CREATE latest"]);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inside));
        assert_eq!(fs::read_link(path).unwrap(), image);
    }
    mount.unmount();
}
