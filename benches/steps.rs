//! What is done in the folders of `working`: shell scripts.
//!
//! `$D` is a fresh folder on the system that is measured, `$IN` a folder on the local disk with what `given/inputs.sh`
//! made, `$N` and the other numbers are those of [`Amounts`](crate::working::Amounts).

/// Things done one after the other in one folder.
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// Programs it needs.
    pub(crate) needs: &'static [&'static str],
    /// Done first in the fresh folder. Not measured.
    pub(crate) before: &'static str,
    pub(crate) steps: &'static [Step],
    /// A separate row, measured after all others, since files created within a minute of deleting many take
    /// longer, natively too.
    pub(crate) deletes: Option<Step>,
    /// Its folders are deleted at once: they hold a few large files.
    pub(crate) large: bool,
}

/// One row of the table.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// Done first. Not measured.
    pub(crate) before: &'static str,
    pub(crate) work: &'static str,
    pub(crate) before_it: Runs,
    /// Prints what must be the same on every system. Not measured, and done in the first round only.
    pub(crate) check: &'static str,
}

/// Whether the same work was done before it is measured; then it leaves everything as it was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    None,
    /// Once, unmeasured: a kernel has read everything, and asks of FUSE once more what it dropped when it did.
    Once,
    /// At least twice.
    Warm,
}

const fn step(name: &'static str, work: &'static str, check: &'static str) -> Step {
    Step { name, before: "", work, before_it: Runs::None, check }
}

const fn warm(name: &'static str, work: &'static str) -> Step {
    Step { name, before: "", work, before_it: Runs::Warm, check: "" }
}

const fn second(name: &'static str, work: &'static str) -> Step {
    Step { name, before: "", work, before_it: Runs::Once, check: "" }
}

const fn after(name: &'static str, before: &'static str, work: &'static str, check: &'static str) -> Step {
    Step { name, before, work, before_it: Runs::None, check }
}

const PYTHON: &[&str] = &["python3"];

/// Names, kinds, modes and sizes below `$D`.
const LISTING: &str = "cd $D; find . ! -type d -printf '%P %y %m %s\\n' | sort; find . -type d | sort";

pub(crate) const CHAINS: &[Chain] = &[
    Chain {
        name: "git",
        needs: &["git"],
        before: "",
        steps: &[
            step(
                "git clone",
                "git clone -q $IN/bare.git $D/repo",
                "cd $D/repo; git ls-tree -r HEAD; git status --porcelain",
            ),
            second("git grep after it, the second time", "git -C $D/repo grep -c needle_in_the_haystack"),
            warm("git grep after it", "git -C $D/repo grep -c needle_in_the_haystack"),
            second("git status after it, the second time", "git -C $D/repo status --porcelain"),
            warm("git status after it", "git -C $D/repo status --porcelain"),
            step(
                "git checkout of 500 files",
                "git -C $D/repo checkout -q other",
                "cd $D/repo; git rev-parse HEAD; git status --porcelain; git diff-files --name-only",
            ),
        ],
        deletes: None,
        large: false,
    },
    Chain {
        name: "make",
        needs: &["make", "cc"],
        before: "cp -r $IN/c $D",
        steps: &[
            step("make -j2 of $SOURCES C files", "make -s -j2 -C $D/c", "$D/c/prog; ls $D/c"),
            after(
                "make again after one change",
                "echo '//' >> $D/c/f7.c",
                "make -s -j2 -C $D/c",
                "$D/c/prog",
            ),
            warm("make with nothing to do", "make -s -j2 -C $D/c"),
        ],
        deletes: None,
        large: false,
    },
    Chain {
        name: "cargo",
        needs: &["cargo"],
        before: "cp -r $IN/rust $D",
        steps: &[
            step("cargo build", "cd $D/rust; cargo build -q --offline", "$D/rust/target/debug/app"),
            after(
                "cargo build again after one change",
                "echo '//' >> $D/rust/c2/src/m7.rs",
                "cd $D/rust; cargo build -q --offline",
                "$D/rust/target/debug/app",
            ),
        ],
        deletes: None,
        large: false,
    },
    Chain {
        name: "python",
        needs: PYTHON,
        before: "cp -r $IN/stdlib $D/stdlib",
        steps: &[
            step(
                "python3 -m venv with pip",
                "python3 -m venv $D/venv",
                "$D/venv/bin/pip --version | cut -d' ' -f1,2",
            ),
            step(
                "pip install of $WHEEL modules",
                "$D/venv/bin/pip install -q --no-index --disable-pip-version-check $IN/benchwheel-1.0-py3-none-any.whl",
                "$D/venv/bin/pip list --disable-pip-version-check; cd $D/venv/lib/python3*/site-packages/benchwheel; find . | sort",
            ),
            warm(
                "python imports, $IMPORTS times",
                "export PYTHONPATH=$D/stdlib; for i in $(seq $IMPORTS); do $D/venv/bin/python -c 'import asyncio, \
                 email.message, http.server, xml.dom.minidom, unittest.mock, json, logging.config, sqlite3, decimal, \
                 argparse, multiprocessing, ctypes, concurrent.futures, urllib.request, tarfile, zipfile, pydoc, \
                 pip._internal.cli.main, pip._vendor.rich, benchwheel.p00.m0001'; done",
            ),
        ],
        deletes: None,
        large: false,
    },
    Chain {
        name: "npm",
        needs: &["npm"],
        before: "mkdir $D/app; echo '{\"name\":\"app\",\"version\":\"1.0.0\"}' > $D/app/package.json",
        steps: &[step(
            "npm install of $PACKAGES packages",
            "cd $D/app; npm install --offline --no-audit --no-fund --silent $IN/npm/*.tgz",
            "cd $D/app/node_modules; find . -path ./.package-lock.json -prune -o -printf '%P %y %m %l\\n' | sort",
        )],
        deletes: None,
        large: false,
    },
    Chain {
        name: "tar",
        needs: &["tar"],
        before: "",
        steps: &[step("untar $ARCHIVED files", "tar xf $IN/archive.tar -C $D", LISTING)],
        deletes: Some(step("rm -rf of them", "rm -rf $D/*", "ls -A $D")),
        large: false,
    },
    Chain {
        name: "small",
        needs: PYTHON,
        before: "",
        steps: &[
            step("create $SMALL files", "python3 $IN/small.py create $D $SMALL", LISTING),
            warm("stat them", "python3 $IN/small.py stat $D $SMALL"),
            warm("stat of as many missing names", "python3 $IN/small.py missing $D $SMALL"),
            second("open and read them, the second time", "python3 $IN/small.py read $D $SMALL"),
            warm("open and read them", "python3 $IN/small.py read $D $SMALL"),
            warm("list them ten times", "python3 $IN/small.py list $D $SMALL"),
            step("rename them", "python3 $IN/small.py rename $D $SMALL", LISTING),
        ],
        deletes: Some(step("unlink them", "python3 $IN/small.py unlink $D $SMALL", LISTING)),
        large: false,
    },
    Chain {
        name: "appends",
        needs: PYTHON,
        before: "",
        steps: &[step(
            "$APPENDS appends of 100 bytes",
            "python3 $IN/data.py append $D $APPENDS",
            "sha256sum < $D/file",
        )],
        deletes: None,
        large: false,
    },
    Chain {
        name: "large",
        needs: PYTHON,
        before: "",
        steps: &[
            step("$MIB MiB written in turn", "python3 $IN/data.py write $D $MIB", "sha256sum < $D/file"),
            warm("the same read in turn", "python3 $IN/data.py read $D 0"),
            warm("$SPOTS reads of 4 KiB in it", "python3 $IN/data.py random-read $D $SPOTS"),
            warm("all of it read through a mapping", "python3 $IN/data.py mapped-read $D 0"),
            step(
                "$SPOTS writes of 4 KiB in it",
                "python3 $IN/data.py random-write $D $SPOTS",
                "sha256sum < $D/file",
            ),
            step(
                "$SPOTS changes through a mapping",
                "python3 $IN/data.py mapped-write $D $SPOTS",
                "sha256sum < $D/file",
            ),
        ],
        deletes: None,
        large: true,
    },
    // Last, since each commit deletes a file.
    Chain {
        name: "sqlite",
        needs: PYTHON,
        before: "mkdir $D/wal $D/off $D/full",
        steps: &[
            step(
                "sqlite with a log, $COMMITS commits, not synced",
                "python3 $IN/data.py sqlite $D/wal $COMMITS off wal",
                "ls $D/wal",
            ),
            step(
                "sqlite, $COMMITS commits, not synced",
                "python3 $IN/data.py sqlite $D/off $COMMITS off delete",
                "ls $D/off",
            ),
            step(
                "sqlite, $SYNCED commits, synced",
                "python3 $IN/data.py sqlite $D/full $SYNCED full delete",
                "ls $D/full",
            ),
        ],
        deletes: None,
        large: false,
    },
];
