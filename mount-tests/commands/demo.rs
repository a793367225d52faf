//! `pfimg demo` works, and leaves nothing behind unless told to.

use std::path::Path;

use super::support::{command, run};

/// What is mounted below `dir`, from the kernel.
fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

#[test]
fn the_demo_shows_its_promised_results_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(command(&["demo"]).env("TMPDIR", dir.path())).exits(0);
    for part in [
        "\n$ pfimg mount",
        "tags/after/effects:\n",
        "\"tool_id\":\"write_file\"",
        "\n> def greet(name=",
        "$ cp -r forks/try-1 forks/try-2\n",
        "Only in tags/moin/world/fs/src: moin.py\n",
        "\nthe same\n",
        "no damage",
        "$ pfimg umount",
    ] {
        assert!(output.stdout.contains(part), "{part:?}: {}", output.stdout);
    }
    assert_eq!((mounts_below(dir.path()).len(), std::fs::read_dir(dir.path()).unwrap().count()), (0, 0));
}

#[test]
fn the_demo_stays_mounted_with_keep_and_prints_how_to_end_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(command(&["demo", "--keep"]).env("TMPDIR", dir.path())).exits(0);
    let mounts = mounts_below(dir.path());
    let [mount] = mounts.as_slice() else { panic!("{mounts:?}: {}", output.stdout) };
    let greeting = std::fs::read_to_string(Path::new(mount).join("tags/after/world/fs/ABOUT"));
    let unmounted = run(&mut command(&["umount", mount]));
    assert!(greeting.unwrap().contains("Says hello"));
    assert!(output.stdout.contains(&format!("pfimg umount {mount} &&")), "{}", output.stdout);
    unmounted.exits(0);
    assert_eq!(mounts_below(dir.path()), Vec::<String>::new());
}

#[test]
fn a_demo_that_fails_says_why_and_leaves_no_mount_behind() {
    let dir = tempfile::tempdir().unwrap();
    let tools = tempfile::tempdir().unwrap();
    // A `diff` that fails, and nothing else in the way.
    std::fs::write(tools.path().join("diff"), "#!/bin/sh\nexit 2\n").unwrap();
    let mut mode = std::fs::metadata(tools.path().join("diff")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(tools.path().join("diff"), mode).unwrap();
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
    let output = run(command(&["demo"]).env("TMPDIR", dir.path()).env("PATH", path)).exits(8);
    assert!(output.stderr.contains("the demo failed: diff -r"), "{}", output.stderr);
    assert_eq!((mounts_below(dir.path()).len(), std::fs::read_dir(dir.path()).unwrap().count()), (0, 0));
}
