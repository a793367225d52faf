//! Real tools at work in a fork, as on any disk.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::common::cli::{Output, Run};
use crate::common::fast::FastStore;
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, system, temp_dir, tree};

/// Runs a shell script in a folder. Panics with its output if it fails.
#[track_caller]
fn sh(dir: &Path, script: &str) -> Output {
    for program in script
        .split_whitespace()
        .filter(|word| ["git", "sqlite3", "rsync", "make", "python3", "node", "npm"].contains(word))
    {
        assert!(
            system::which(program).is_some(),
            "{program} is not installed: `.ci/run` installs what the tests use"
        );
    }
    let home = dir.join(".home");
    let script = format!("set -eu; export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null; {script}");
    let output = Run::program(Path::new("bash"), ["-c", &script]).dir(dir).env("HOME", home).run();
    assert_eq!(output.code, 0, "{script}\n--- stdout\n{}\n--- stderr\n{}", output.stdout, output.stderr);
    output
}

fn mounted() -> (FastStore, Mount, PathBuf) {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).start();
    let world = fork(&mount, "try", &id);
    (store, mount, world)
}

/// The same fork under a new mount.
fn remounted(store: &FastStore, mount: Mount) -> (Mount, PathBuf) {
    mount.unmount();
    let mount = Mount::of(store.root()).start();
    let world = world(&mount, "try");
    (mount, world)
}

#[test]
fn git_clones_commits_packs_checks_and_branches() {
    let (store, mount, world) = mounted();
    let (_dir, outside) = temp_dir();
    let git = "git -c user.name=a -c user.email=a@b -c commit.gpgsign=false";
    sh(&outside, &format!(
        "git init -q -b main repo; cd repo; for i in $(seq 300); do mkdir -p d$((i % 7)); echo line $i > d$((i % 7))/f$i; done
         git add -A; {git} commit -qm one; for i in $(seq 0 7 300); do echo more >> d0/f$i; done; git add -A; {git} commit -qm two"));
    sh(&world, &format!(
        "git clone -q --no-hardlinks {} clone; cd clone; test -z \"$(git status --porcelain)\"
         git checkout -q HEAD~1; git checkout -q main; git checkout -q -b topic
         echo x > d1/new; rm -r d2; git mv d3 moved; git add -A; {git} commit -qm three
         git checkout -q main; test -d d2; {git} merge -q --no-ff -m merged topic; test ! -d d2
         git worktree add -q ../tree topic; test -d ../tree/moved; git gc -q --prune=now; git fsck --full --strict
         test -z \"$(git status --porcelain)\"; git log --oneline | wc -l", outside.join("repo").display()));
    let (mount, world) = remounted(&store, mount);
    sh(
        &world,
        "cd clone; git fsck --full --strict; test -z \"$(git status --porcelain)\"; git worktree list; git diff --quiet HEAD",
    );
    mount.unmount();
}

#[test]
fn sqlite_keeps_its_promises_in_four_journal_modes() {
    let (store, mount, world) = mounted();
    for mode in ["delete", "truncate", "persist", "wal"] {
        sh(&world, &format!(
            "sqlite3 {mode}.db 'pragma journal_mode={mode}; create table t(a integer primary key, b text);' >/dev/null
             for i in $(seq 20); do sqlite3 {mode}.db \"insert into t(b) values(hex(randomblob(3000)));\"; done
             sqlite3 {mode}.db 'begin; delete from t where a % 3 = 0; update t set b = b || b; rollback;'
             sqlite3 {mode}.db 'begin; delete from t where a % 5 = 0; commit; vacuum;'
             test \"$(sqlite3 {mode}.db 'pragma integrity_check; select count(*) from t;' | tr '\\n' ' ')\" = 'ok 16 '"));
    }
    // Two at once: one waits for the other's lock.
    sh(&world, "for w in 1 2 3; do (for i in $(seq 10); do sqlite3 -cmd '.timeout 60000' wal.db 'insert into t(b) values(1);'; done) & done
                for job in $(jobs -p); do wait $job; done; test $(sqlite3 wal.db 'select count(*) from t') = 46");
    let (mount, world) = remounted(&store, mount);
    for mode in ["delete", "truncate", "persist", "wal"] {
        let said = sh(&world, &format!("sqlite3 {mode}.db 'pragma integrity_check'")).stdout;
        assert_eq!(said, "ok\n", "{mode}");
    }
    mount.unmount();
}

/// A folder with hard links, a sparse file, odd modes, links and times.
fn odd_folder(at: &Path) {
    fs::create_dir_all(at.join("dir/below")).unwrap();
    fs::write(at.join("dir/one"), b"one").unwrap();
    fs::hard_link(at.join("dir/one"), at.join("two")).unwrap();
    symlink("dir/one", at.join("soft")).unwrap();
    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    sparse.write_all_at(&[7; 5000], 9 << 20).unwrap();
    fs::write(at.join("dir/below/big"), vec![3; 400_000]).unwrap();
    fs::set_permissions(at.join("dir/below"), fs::Permissions::from_mode(0o2751)).unwrap();
    fs::set_permissions(at.join("two"), fs::Permissions::from_mode(0o4711)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
    for file in ["two", "sparse", "dir/below/big"] {
        fs::File::options().write(true).open(at.join(file)).unwrap().set_modified(old).unwrap();
    }
}

/// Panics unless both folders hold the same, with times to the nanosecond and hard links.
#[track_caller]
fn assert_equal(left: &Path, right: &Path) {
    let (l, r) = (tree::read_tree(left).unwrap(), tree::read_tree(right).unwrap());
    assert_eq!(tree::differences(&l, &r), [] as [&str; 0]);
    for path in l.keys() {
        let of = |root: &Path| fs::symlink_metadata(root.join(path)).unwrap();
        let (a, b) = (of(left), of(right));
        if !a.is_dir() && !a.is_symlink() {
            assert_eq!(
                (a.mtime(), a.mtime_nsec(), a.nlink()),
                (b.mtime(), b.mtime_nsec(), b.nlink()),
                "{path:?}"
            );
        }
    }
    assert_eq!(
        fs::metadata(right.join("two")).unwrap().ino(),
        fs::metadata(right.join("dir/one")).unwrap().ino()
    );
}

#[test]
fn tar_and_rsync_round_trips_keep_links_holes_and_times() {
    let (store, mount, world) = mounted();
    let (_dir, outside) = temp_dir();
    let source = outside.join("source");
    odd_folder(&source);
    sh(
        &world,
        &format!(
            "S={}; O={}; mkdir tar back; tar --format=posix -S -C $S -cf a.tar .; tar -S -xpf a.tar -C tar
         tar --format=posix -S -C tar -cf $O/b.tar .; tar -S -xpf $O/b.tar -C back
         rsync -aHS $S/ synced/; rsync -aHS synced/ $O/again/
         test -z \"$(rsync -aHSi --checksum $S/ synced/)\"",
            source.display(),
            outside.display()
        ),
    );
    for copy in [world.join("tar"), world.join("back"), world.join("synced"), outside.join("again")] {
        assert_equal(&source, &copy);
    }
    let (mount, world) = remounted(&store, mount);
    assert_equal(&source, &world.join("synced"));
    mount.unmount();
}

#[test]
fn make_rebuilds_nothing_after_a_remount_and_in_a_branch() {
    let (store, mount, world) = mounted();
    fs::create_dir(world.join("make")).unwrap();
    let makefile =
        "all: $(patsubst %.in,%.out,$(wildcard *.in))\n%.out: %.in\n\tcp $< $@\n\techo $@ >> built\n";
    fs::write(world.join("make/Makefile"), makefile).unwrap();
    sh(
        &world,
        "cd make; for i in $(seq 50); do echo $i > $i.in; done; make -s all; test $(wc -l < built) = 50",
    );
    fs::create_dir(mount.join("forks/branch@try")).unwrap();
    sh(
        &mount.join("work/branch/"),
        "cd make; make -q all; touch 7.in; make -s all; test $(wc -l < built) = 51",
    );
    let (mount, world) = remounted(&store, mount);
    sh(&world, "cd make; make -q all; touch 3.in; make -s all; test $(wc -l < built) = 51");
    mount.unmount();
}

#[test]
fn the_second_cargo_build_finds_everything_fresh_also_after_a_remount() {
    // At the same place both times: cargo takes another path for another package.
    let (_dir, home) = temp_dir();
    let point = home.join("mnt");
    fs::create_dir(&point).unwrap();
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).at(&point).start();
    let world = fork(&mount, "try", &id);
    fs::create_dir_all(world.join("crate/src")).unwrap();
    let manifest = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    fs::write(world.join("crate/Cargo.toml"), manifest).unwrap();
    fs::write(world.join("crate/src/main.rs"), "fn main() { println!(\"tiny\"); }\n").unwrap();
    let cargo = env!("CARGO");
    let build = |world: &Path| {
        // The caller's own toolchain, wherever its home is.
        let home = std::env::var("HOME").unwrap_or_default();
        let mut run = Run::program(Path::new(cargo), ["build", "--offline", "-v"]).dir(&world.join("crate"));
        for (name, below) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            run = run.env(name, std::env::var(name).unwrap_or(format!("{home}/{below}")));
        }
        run.env("CARGO_TARGET_DIR", world.join("crate/target")).run().exits(0).stderr
    };
    assert!(build(&world).contains("Compiling tiny"));
    assert!(build(&world).contains("Fresh tiny"));
    assert_eq!(sh(&world, "crate/target/debug/tiny").stdout, "tiny\n");
    mount.unmount();
    let mount = Mount::of(store.root()).at(&point).start();
    assert!(build(&world).contains("Fresh tiny"));
    mount.unmount();
}

/// Makes a wheel of a package `tiny` with a command, as pip takes it, without anything from outside.
const WHEEL: &str = r#"
import base64, hashlib, zipfile
info = "tiny-1.0.dist-info"
files = {"tiny/__init__.py": "ANSWER = 42\ndef main(): print(ANSWER)\n",
         info + "/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
         info + "/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
         info + "/entry_points.txt": "[console_scripts]\ntiny = tiny:main\n"}
for n in range(200):
    files["tiny/m%d.py" % n] = "N = %d\n" % n
digest = lambda text: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
record = ["%s,sha256=%s,%d" % (path, digest(text), len(text)) for path, text in files.items()]
files[info + "/RECORD"] = "\n".join(record + [info + "/RECORD,,", ""])
with zipfile.ZipFile("tiny-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    for path, text in files.items():
        wheel.writestr(path, text)
"#;

#[test]
fn a_python_environment_takes_a_package_by_pip_which_lasts_and_is_branched() {
    let (store, mount, world) = mounted();
    fs::write(world.join("wheel.py"), WHEEL).unwrap();
    sh(
        &world,
        "python3 wheel.py; python3 -m venv env; pip() { env/bin/python -m pip --isolated --no-input -q \"$@\"; }
         pip install --no-index --no-deps ./tiny-1.0-py3-none-any.whl; pip check
         test \"$(env/bin/tiny)\" = 42; env/bin/python -c 'import tiny.m199'",
    );
    // The scripts of an environment name the place it was made at: the branch is asked by its interpreter.
    let branch = fork(&mount, "branch", "try");
    let python = "env/bin/python -m pip --isolated --no-input -q";
    sh(
        &branch,
        &format!(
            "env/bin/python -c 'import tiny'; {python} uninstall -y tiny; ! env/bin/python -c 'import tiny'"
        ),
    );
    let (mount, world) = remounted(&store, mount);
    sh(
        &world,
        &format!(
            "{python} check; env/bin/python -m pip --isolated show -f tiny | grep m199.py
             env/bin/python -m compileall -q env/lib/python3*/site-packages/tiny
             test \"$(env/bin/python -c 'import tiny; tiny.main()')\" = 42"
        ),
    );
    mount.unmount();
}

#[test]
fn npm_installs_a_local_package_which_lasts_and_is_branched() {
    let (store, mount, world) = mounted();
    // Links in node_modules/.bin, a package of many small files, one with the execute bit.
    sh(
        &world,
        "mkdir -p package/lib app; cd package
        for i in $(seq 200); do echo \"exports.n = $i\" > lib/m$i.js; done
        printf '#!/usr/bin/env node\\nconsole.log(require(\"./\").sum)\\n' > cli.js
        echo 'exports.sum = 0; for (let i = 1; i <= 200; i++) exports.sum += require(`./lib/m${i}`).n' > index.js
        echo '{\"name\":\"package\",\"version\":\"1.0.0\",\"bin\":{\"sum\":\"cli.js\"}}' > package.json
        npm pack --silent; mv package-1.0.0.tgz ../app; cd ../app
        echo '{\"name\":\"app\",\"version\":\"1.0.0\"}' > package.json
        npm install --offline --no-audit --no-fund --silent ./package-1.0.0.tgz",
    );
    let works = |world: &Path| {
        let said = sh(&world.join("app"), "node_modules/.bin/sum; npm ls --offline").stdout;
        assert!(said.starts_with("20100\n") && said.contains("package@1.0.0"), "{said}");
    };
    works(&world);
    let branch = fork(&mount, "branch", "try");
    sh(&branch.join("app"), "npm uninstall --offline --no-audit --no-fund --silent package");
    assert!(!branch.join("app/node_modules/.bin/sum").exists());
    // A package that a branch uninstalled is still here, even after a remount.
    let (mount, world) = remounted(&store, mount);
    works(&world);
    mount.unmount();
}

#[test]
fn editors_save_by_rename_and_by_backup() {
    let (store, mount, world) = mounted();
    sh(&world, "chmod 640 README
        # vim: move the old one away, write a new file, take the mode over, drop the old one.
        mv README README~; echo saved > README; chmod --reference=README~ README; sync README; rm README~
        # Others: a temporary file next to it, renamed over it.
        for i in $(seq 50); do echo $i > .src.tmp; sync .src.tmp; mv .src.tmp src/main.rs; test $(cat src/main.rs) = $i; done
        sed -i s/50/51/ src/main.rs; ln src/lib.rs hard; cp --remove-destination README src/lib.rs");
    let (mount, world) = remounted(&store, mount);
    assert_eq!(fs::read(world.join("README")).unwrap(), b"saved\n");
    assert_eq!(fs::metadata(world.join("README")).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::read(world.join("src/main.rs")).unwrap(), b"51\n");
    assert_eq!(fs::read(world.join("hard")).unwrap(), b"//! Nothing.\n");
    mount.unmount();
}
