//! Times of files in a fork that was branched by copying its folder.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::common::cli::tool;
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{fork, world};
use crate::common::{Mount, bare};

const MAKEFILE: &str =
    "all: a.o b.o stamp\n%.o: %.c\n\t@cp $< $@; echo built $@\nstamp: a.c\n\t@: >$@; echo built $@\n";

fn manual(store: &Path) -> Mount {
    Mount::of(store).args(["--seal", "manual"]).start()
}

/// A store with an image in which two sources were built, and its id.
fn built() -> (FastStore, String) {
    let mut store = FastStore::new();
    let entries: Vec<_> = [("Makefile", MAKEFILE), ("a.c", "1"), ("b.c", "1"), ("empty", ""), ("d/x", "x")]
        .iter()
        .map(|(path, text)| store.file(path, text.as_bytes()))
        .collect();
    let fs = Some(store.tree(&entries));
    let id = store.image(&Spec { fs, created_at: Some("2026-01-02T00:00:00Z".into()), ..Spec::default() });
    (store, id)
}

fn make(folder: &Path) -> Vec<String> {
    let ran = tool("make", ["-s".as_ref(), "-C".as_ref(), folder.as_os_str()]).exits(0);
    let mut built: Vec<_> = ran.stdout.lines().map(str::to_owned).collect();
    built.sort();
    built
}

fn time(path: &Path) -> (i64, i64) {
    let meta = fs::metadata(path).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

fn copy(mount: &Mount, from: &Path, name: &str) -> std::path::PathBuf {
    tool("cp", ["-r".as_ref(), from.as_os_str(), mount.join("forks").join(name).as_os_str()]).exits(0);
    world(mount, name)
}

#[test]
fn a_branch_by_cp_has_its_files_times_so_that_make_builds_what_the_source_would() {
    let (store, id) = built();
    let mount = manual(store.root());
    let a = fork(&mount, "a", &id);
    assert_eq!(make(&a), ["built a.o", "built b.o", "built stamp"]);
    fs::hard_link(a.join("b.o"), a.join("linked")).unwrap();
    let fresh = copy(&mount, &mount.join("forks/a"), "fresh");
    assert_eq!(make(&fresh), [""; 0], "nothing is to be built");
    for file in ["a.c", "a.o", "stamp", "empty", "d/x", "linked"] {
        assert_eq!(time(&fresh.join(file)), time(&a.join(file)), "{file}");
    }
    // Copies stay two files, as on a disk.
    assert_eq!(
        (fs::metadata(a.join("b.o")).unwrap().nlink(), fs::metadata(fresh.join("b.o")).unwrap().nlink()),
        (2, 1)
    );
    // Sources that were edited but not built: the branch has to build them, including empty ones.
    let later = SystemTime::now() + Duration::from_secs(1);
    fs::write(a.join("a.c"), "2").unwrap();
    fs::File::options().write(true).open(a.join("a.c")).unwrap().set_modified(later).unwrap();
    let stale = copy(&mount, &mount.join("forks/a"), "stale");
    assert_eq!(make(&stale), ["built a.o", "built stamp"]);
    assert_eq!(fs::read_to_string(stale.join("a.o")).unwrap(), "2");
    // The same with a copy of an image.
    let of_image = copy(&mount, &mount.image(bare(&id)), "of-image");
    for file in ["a.c", "d/x", "empty"] {
        assert_eq!(time(&of_image.join(file)), time(&mount.image(&id).join("world/fs").join(file)), "{file}");
    }
    mount.unmount();
    let mount = manual(store.root());
    assert_eq!(time(&world(&mount, "of-image").join("a.c")), (1_767_312_000, 0), "after another mount");
    mount.unmount();
}

#[test]
fn a_copy_is_of_the_present_wherever_it_is_not_the_making_of_a_branch() {
    let (store, id) = built();
    let mount = manual(store.root());
    let (a, b) = (fork(&mount, "a", &id), fork(&mount, "b", &id));
    let old = time(&a.join("a.c"));
    let cp = |from: &Path, to: &Path| {
        tool("cp", [from.as_os_str(), to.as_os_str()]).exits(0);
        time(to)
    };
    assert_ne!(cp(&a.join("a.c"), &a.join("copy.c")), old, "within one fork");
    assert_ne!(cp(&a.join("a.c"), &b.join("a.c")), old, "into a fork that is made");
    // A branch in which something was done since it was copied is made, too.
    let made = copy(&mount, &mount.join("forks/a"), "made");
    assert_eq!(time(&made.join("b.c")), old);
    fs::write(made.join("work"), "work").unwrap();
    assert_ne!(cp(&a.join("a.c"), &made.join("a.c")), old, "into a branch that was worked in");
    // From another path, and from another fork than all the rest.
    fs::create_dir(mount.join("forks/new")).unwrap();
    fs::create_dir_all(mount.join("forks/new/world/fs")).unwrap();
    let new = world(&mount, "new");
    assert_ne!(cp(&a.join("a.c"), &new.join("other.c")), old, "to another path");
    assert_eq!(cp(&a.join("a.c"), &new.join("a.c")), old, "the same path");
    assert_ne!(cp(&b.join("b.c"), &new.join("b.c")), old, "from another fork than the rest");
    mount.unmount();
}
