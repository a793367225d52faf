//! Working in a folder: what agents and people do all day, each time in a fresh folder.
//!
//! A step is a shell script. `$D` is its fresh folder on the system that is measured, `$IN` a folder on the local disk
//! with what the steps take as given.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Result;
use crate::measure::{Bench, Done, Row, Series, measure};
use crate::systems::{State, System};

/// Something that is done, and what has to be there for it.
struct Step {
    name: &'static str,
    /// Programs it needs.
    needs: &'static [&'static str],
    /// Not measured.
    before: &'static str,
    work: &'static str,
}

/// 5,000 small files in 50 folders, by one process, so that no other is measured.
const SMALL_FILES: &str = r#"
import os, sys
what, root = sys.argv[1:]
names = [f"{root}/d{n % 50:02}/f{n:04}" for n in range(5000)]
if what == "create":
    for n in range(50): os.mkdir(f"{root}/d{n:02}")
    for name in names:
        with open(name, "wb") as file: file.write(name.encode() * 8)
elif what == "stat":
    for name in names: os.stat(name)
elif what == "read":
    for name in names:
        with open(name, "rb") as file: file.read()
elif what == "rename":
    for name in names: os.rename(name, name + "-moved")
elif what == "unlink":
    for name in names: os.unlink(name)
"#;

const DATA: &str = r#"
import os, random, sqlite3, sys, mmap
what, root = sys.argv[1:]
path, rng, MIB = root + "/file", random.Random(1), 1 << 20
block = rng.randbytes(MIB)
if what == "write":
    with open(path, "wb", buffering=0) as file:
        for _ in range(1024): file.write(block)
elif what == "read":
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB): pass
elif what == "random-read":
    with open(path, "rb", buffering=0) as file:
        for _ in range(20000): os.pread(file.fileno(), 4096, rng.randrange(262144) * 4096)
elif what == "random-write":
    with open(path, "r+b", buffering=0) as file:
        for _ in range(20000): os.pwrite(file.fileno(), block[:4096], rng.randrange(262144) * 4096)
elif what == "mapped":
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as m:
        for _ in range(20000):
            at = rng.randrange(262144) * 4096
            m[at] = (m[at] + 1) % 256
elif what == "append":
    with open(path, "ab", buffering=0) as file:
        for _ in range(50000): file.write(block[:100])
elif what == "sqlite":
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma synchronous=off"); db.execute("create table t(a)")
    for n in range(5000): db.execute("insert into t values(?)", (n,))
"#;

/// What the steps take: scripts, a repository with 20,000 files and a second branch, an archive, two programs to build.
const INPUTS: &str = r#"
set -eu; cd "$IN"; export HOME="$IN" GIT_CONFIG_GLOBAL="$IN/gitconfig"
git config --global user.name bench; git config --global user.email bench@localhost; git config --global gc.auto 0
git init -q -b main seed; cp -r "$TREE/." seed/; cd seed; git add -A; git commit -qm one; git checkout -qb other
find . -name .git -prune -o -type f -size -20k -print | head -n 500 | while read -r f; do echo changed >> "$f"; done
git commit -qam two; git checkout -q main; cd ..; git clone -q --bare seed bare.git; rm -rf seed
mkdir t; git -C bare.git archive main | tar x -C t; (cd t; find . -type f | sort | head -n 6000 | tar cf ../archive.tar -T -); rm -rf t
mkdir c; for i in $(seq 200); do printf '#include <stdio.h>\n#include <string.h>\nint f%d(int x){char b[64];snprintf(b,64,"%%d",x);return strlen(b)+%d;}\n' $i $i > c/f$i.c; done
printf 'int main(void){return 0;}\n' > c/main.c
printf 'O=$(patsubst %%.c,%%.o,$(wildcard *.c))\nprog: $(O)\n\tcc -o $@ $(O)\n%%.o: %%.c\n\tcc -O1 -c -o $@ $<\n' > c/Makefile
mkdir -p crate/src; printf '[package]\nname="bench"\nversion="0.1.0"\nedition="2021"\n[workspace]\n' > crate/Cargo.toml
for i in $(seq 40); do printf 'use std::collections::BTreeMap;\npub fn f%d(n: u32) -> BTreeMap<u32, String> { (0..n).map(|i| (i * %d, format!("{i:?}"))).collect() }\n' $i $i > crate/src/m$i.rs; echo "mod m$i;" >> crate/src/main.rs; done
echo 'fn main() { println!("{}", m1::f1(3).len() + m2::f2(4).len()); }' >> crate/src/main.rs; sed -i '1i #![allow(dead_code)]' crate/src/main.rs
mkdir -p package/lib; for i in $(seq 500); do echo "exports.n = $i" > package/lib/m$i.js; done
echo '{"name":"package","version":"1.0.0"}' > package/package.json
if command -v npm >/dev/null; then (cd package; npm pack --silent >/dev/null; mv package-1.0.0.tgz ..); fi
"#;

const GIT: &[&str] = &["git"];
const PYTHON: &[&str] = &["python3"];

const STEPS: &[Step] = &[
    Step { name: "create 5,000 files", needs: PYTHON, before: "", work: "python3 $IN/small.py create $D" },
    Step {
        name: "stat them",
        needs: PYTHON,
        before: "python3 $IN/small.py create $D",
        work: "python3 $IN/small.py stat $D",
    },
    Step {
        name: "read them",
        needs: PYTHON,
        before: "python3 $IN/small.py create $D",
        work: "python3 $IN/small.py read $D",
    },
    Step {
        name: "rename them",
        needs: PYTHON,
        before: "python3 $IN/small.py create $D",
        work: "python3 $IN/small.py rename $D",
    },
    Step {
        name: "unlink them",
        needs: PYTHON,
        before: "python3 $IN/small.py create $D",
        work: "python3 $IN/small.py unlink $D",
    },
    Step { name: "git clone", needs: GIT, before: "", work: "git clone -q $IN/bare.git $D/repo" },
    Step {
        name: "git checkout of 500 files",
        needs: GIT,
        before: "git clone -q $IN/bare.git $D/repo; git -C $D/repo status >/dev/null",
        work: "git -C $D/repo checkout -q other",
    },
    Step {
        name: "git status",
        needs: GIT,
        before: "git clone -q $IN/bare.git $D/repo; git -C $D/repo status >/dev/null; git -C $D/repo status >/dev/null",
        work: "git -C $D/repo status >/dev/null",
    },
    Step { name: "untar 6,000 files", needs: &["tar"], before: "", work: "tar xf $IN/archive.tar -C $D" },
    Step {
        name: "rm -rf of 6,000 files",
        needs: &["tar"],
        before: "tar xf $IN/archive.tar -C $D",
        work: "rm -rf $D/*",
    },
    Step {
        name: "make -j2 of 200 C files",
        needs: &["make", "cc"],
        before: "cp -r $IN/c $D",
        work: "make -s -j2 -C $D/c",
    },
    Step {
        name: "make again after one change",
        needs: &["make", "cc"],
        before: "cp -r $IN/c $D; make -s -j2 -C $D/c; sleep 1; echo '//' >> $D/c/f7.c",
        work: "make -s -j2 -C $D/c",
    },
    Step {
        name: "cargo build",
        needs: &["cargo"],
        before: "cp -r $IN/crate $D",
        work: "cd $D/crate; cargo build -q --offline",
    },
    Step {
        name: "cargo build again after one change",
        needs: &["cargo"],
        before: "cp -r $IN/crate $D; cd $D/crate; cargo build -q --offline; sleep 1; echo '//' >> src/m7.rs",
        work: "cd $D/crate; cargo build -q --offline",
    },
    Step { name: "python3 -m venv with pip", needs: PYTHON, before: "", work: "python3 -m venv $D/venv" },
    Step {
        name: "python imports, ten times",
        needs: PYTHON,
        before: "python3 -m venv $D/venv; $D/venv/bin/python -c 'import pip._internal.cli.main'",
        work: "for i in 1 2 3 4 5 6 7 8 9 10; do $D/venv/bin/python -c 'import pip._internal.cli.main, pip._vendor.rich'; done",
    },
    Step {
        name: "npm install",
        needs: &["npm"],
        before: "mkdir $D/app; echo '{\"name\":\"app\",\"version\":\"1.0.0\"}' > $D/app/package.json",
        work: "cd $D/app; npm install --offline --no-audit --no-fund --silent $IN/package-1.0.0.tgz",
    },
    Step { name: "sqlite, 5,000 commits", needs: PYTHON, before: "", work: "python3 $IN/data.py sqlite $D" },
    Step {
        name: "50,000 appends of 100 bytes",
        needs: PYTHON,
        before: "",
        work: "python3 $IN/data.py append $D",
    },
    Step { name: "1 GiB written in turn", needs: PYTHON, before: "", work: "python3 $IN/data.py write $D" },
    Step {
        name: "1 GiB read in turn, warm",
        needs: PYTHON,
        before: "python3 $IN/data.py write $D; cat $D/file >/dev/null",
        work: "python3 $IN/data.py read $D",
    },
    Step {
        name: "20,000 reads of 4 KiB, warm",
        needs: PYTHON,
        before: "python3 $IN/data.py write $D; cat $D/file >/dev/null",
        work: "python3 $IN/data.py random-read $D",
    },
    Step {
        name: "20,000 writes of 4 KiB",
        needs: PYTHON,
        before: "python3 $IN/data.py write $D",
        work: "python3 $IN/data.py random-write $D",
    },
    Step {
        name: "20,000 changes through a mapping",
        needs: PYTHON,
        before: "python3 $IN/data.py write $D",
        work: "python3 $IN/data.py mapped $D",
    },
];

/// Runs a script; what it says goes to the terminal, since only failures say anything.
fn shell(script: &str, inputs: &Path, folder: &Path, extra: &[(&str, &Path)]) -> Result<()> {
    let mut bash = Command::new("bash");
    bash.args(["-euc", script])
        .env("IN", inputs)
        .env("D", folder)
        .env("HOME", inputs)
        .env("GIT_CONFIG_GLOBAL", inputs.join("gitconfig"))
        .env("CARGO_HOME", std::env::var_os("CARGO_HOME").unwrap_or_else(|| home(".cargo")))
        .env("RUSTUP_HOME", std::env::var_os("RUSTUP_HOME").unwrap_or_else(|| home(".rustup")))
        .env("PYTHONDONTWRITEBYTECODE", "")
        .env_remove("CARGO_TARGET_DIR")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for (key, value) in extra {
        bash.env(key, value);
    }
    let status = bash.status()?;
    if status.success() { Ok(()) } else { Err(format!("{script}: {status}").into()) }
}

fn home(name: &str) -> std::ffi::OsString {
    std::env::home_dir().unwrap_or_default().join(name).into()
}

fn missing(step: &Step) -> Option<&'static str> {
    let there = |program: &str| {
        let which = Command::new("sh").args(["-c", "command -v \"$0\" >/dev/null", program]).status();
        which.is_ok_and(|status| status.success())
    };
    step.needs.iter().find(|program| !there(program)).copied()
}

/// Measures every step whose name contains `filter` on each system in turn. `tree` is a folder with many files.
pub(crate) fn steps(
    bench: &Bench<'_>,
    systems: &mut [Box<dyn System + '_>],
    tree: &Path,
    filter: &str,
) -> Result<Vec<Row>> {
    let inputs = bench.scratch.fresh("inputs")?;
    for (name, text) in [("small.py", SMALL_FILES), ("data.py", DATA)] {
        fs::write(inputs.join(name), text)?;
    }
    bench.say("preparing what the steps take");
    shell(INPUTS, &inputs, &inputs, &[("TREE", tree)])?;
    let mut rows = Vec::new();
    let mut folders = 0;
    for step in STEPS.iter().filter(|step| step.name.contains(filter)) {
        if let Some(program) = missing(step) {
            bench.progress.println(format!("{} is left out: {program} is not installed", step.name));
            continue;
        }
        let mut series: Vec<_> = systems.iter().map(|system| Series::new(system.name())).collect();
        let mut patience = bench.patience;
        for round in 1..=bench.runs {
            bench.wait_for_quiet(&mut patience)?;
            for (system, series) in systems.iter_mut().zip(&mut series) {
                bench.scratch.go_on()?;
                bench.say(format!("{}: {} {round}/{}", step.name, system.name(), bench.runs));
                folders += 1;
                let folder = system.tree().join(format!("work-{folders}"));
                fs::create_dir(&folder)?;
                if !step.before.is_empty() {
                    shell(step.before, &inputs, &folder, &[])?;
                }
                let run = measure(&**system, || {
                    let started = Instant::now();
                    shell(step.work, &inputs, &folder, &[])?;
                    Ok(Done { time: started.elapsed(), check: 0 })
                })?;
                series.push(run, &**system);
                // A file of a gigabyte is not needed any more. Small ones stay: deleting them would disturb what is
                // measured next.
                let _ = fs::remove_file(folder.join("file"));
            }
        }
        rows.push(Row { name: step.name.into(), state: State::Warm, series, notes: Vec::new() });
    }
    Ok(rows)
}
