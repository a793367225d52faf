//! Forks, branches, seals, restores and discards, compared with copying the tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::measure::{Bench, Done, Row, Run, Series, measure};
use crate::mounted::{Pfimg, Place};
use crate::overlays::{self, Overlay};
use crate::result::Result;
use crate::scratch::pfimg;
use crate::systems::{Native, State, System, TREE};

/// Files that are changed before a branch or a seal.
const CHANGED: usize = 10;

const COPY: &str = "compared with one `cp -a` of the tree, the same in each of these rows";

/// Rows, by name.
struct Rows(Vec<Row>);

impl Rows {
    /// Adds a measurement; the base comes first.
    fn push(&mut self, name: &str, system: &'static str, run: Run, of: &dyn System) {
        let at = self.0.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let notes = Vec::new();
            let row =
                Row { group: "forks", name: name.into(), state: State::Once, series: Vec::new(), notes };
            self.0.push(row);
            self.0.len() - 1
        });
        let all = &mut self.0[at].series;
        let at = all.iter().position(|series| series.system == system).unwrap_or_else(|| {
            all.push(Series::new(system));
            all.len() - 1
        });
        all[at].push(run, of);
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Done> {
    let started = Instant::now();
    work()?;
    Ok(Done { time: started.elapsed(), check: 0 })
}

fn command(program: &str, args: &[&Path]) -> Result<()> {
    let mut command = Command::new(program);
    let status = command.args(args).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// Some files of a tree: the same in each copy of it.
fn some_files(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![tree.to_owned()];
    while let (Some(folder), true) = (folders.pop(), files.len() < CHANGED) {
        let mut entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_type()?.is_file() {
                files.push(entry.path().strip_prefix(tree)?.to_owned());
            }
        }
    }
    files.truncate(CHANGED);
    Ok(files)
}

fn change(tree: &Path, files: &[PathBuf], what: usize) -> Result<()> {
    for (n, file) in files.iter().enumerate() {
        fs::write(tree.join(file), format!("changed {what} {n}\n").repeat(100))?;
    }
    Ok(())
}

/// Forks that were measured, and wait to be discarded.
pub(crate) struct Forking {
    rows: Rows,
    copies: Vec<PathBuf>,
    mounts: Vec<Pfimg>,
}

impl Forking {
    /// Measures all but the discards, in forks of `store`'s latest image and natively with the tree in `native`.
    pub(crate) fn measure(bench: &Bench<'_>, store: &Path, native: &Native) -> Result<Self> {
        let dir = bench.scratch.fresh("forking")?;
        let tree = native.root.join(TREE);
        let files = some_files(&tree)?;
        let mut this = Self { rows: Rows(Vec::new()), copies: Vec::new(), mounts: Vec::new() };
        for writes in ["through", "back"] {
            let folder = bench.scratch.fresh(&format!("forking-{writes}"))?;
            this.mounts.push(Pfimg::new(Place::Fork(writes), store, &folder)?);
        }
        let (rows, mut patience) = (&mut this.rows, bench.patience);
        for round in 0..bench.runs {
            bench.say(format!("forks {}/{}", round + 1, bench.runs));
            bench.wait_for_quiet(&mut patience)?;
            rustix::fs::sync();
            let copy = dir.join(format!("copy-{round}"));
            let copied = measure(native, || timed(|| command("cp", &["-a".as_ref(), &tree, &copy])))?;
            for name in ["fork", "fork, read, write", "branch", "branch by cp -r", "seal", "restore"] {
                rows.push(name, "native", copied.clone(), native);
            }
            this.copies.push(copy);
            for kind in [overlays::Kind::Kernel, overlays::Kind::Fuse] {
                overlay(bench, rows, &files, native, kind, round)?;
            }
            rustix::fs::sync();
            for mount in &this.mounts {
                bench.scratch.go_on()?;
                forks(rows, &files, mount, round)?;
            }
        }
        bench.tell("forks");
        Ok(this)
    }

    /// Measures the discards. This comes last, since creating files within a minute of deleting many takes longer.
    pub(crate) fn discard(mut self, bench: &Bench<'_>, native: &Native) -> Result<Vec<Row>> {
        let rows = &mut self.rows;
        for (round, copy) in self.copies.iter().enumerate() {
            bench.scratch.go_on()?;
            let removed = measure(native, || timed(|| command("rm", &["-rf".as_ref(), copy])))?;
            for name in ["discard by rm -rf", "discard"] {
                rows.push(name, "native", removed.clone(), native);
            }
            for mount in &self.mounts {
                let fork = mount.mountpoint().join(format!("forks/copied-{round}"));
                let run = measure(mount, || timed(|| command("rm", &["-rf".as_ref(), &fork])))?;
                rows.push("discard by rm -rf", mount.name(), run, mount);
                let name = format!("f-{round}");
                let run = measure(mount, || timed(|| asked(mount, "discard", &["--force", &name])))?;
                rows.push("discard", mount.name(), run, mount);
                if mount.mountpoint().join("forks").join(&name).exists() || fork.exists() {
                    return Err(format!("{name} is still there").into());
                }
            }
        }
        self.mounts.iter_mut().try_for_each(System::stop)?;
        for row in &mut rows.0 {
            let of_copy = row.name.starts_with("discard");
            row.notes.push(if of_copy { "compared with rm -rf of a copy" } else { COPY }.into());
        }
        Ok(self.rows.0)
    }
}

fn asked(mount: &Pfimg, what: &str, args: &[&str]) -> Result<()> {
    let mut command = pfimg(what);
    let output = command.arg("--store").arg(mount.store()).args(args).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("pfimg {what} {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// Mounts an overlay, which other systems use in place of a fork.
fn overlay(
    bench: &Bench<'_>,
    rows: &mut Rows,
    files: &[PathBuf],
    native: &Native,
    kind: overlays::Kind,
    round: usize,
) -> Result<()> {
    let dir = bench.scratch.fresh(&format!("forking-{kind:?}-{round}"))?;
    let mut overlay = None;
    let run = measure(native, || {
        timed(|| {
            overlay = Overlay::new(kind, &native.root, &dir)?;
            if let Some(overlay) = &overlay {
                read_and_write(&overlay.root().join(TREE), files)?;
            }
            Ok(())
        })
    })?;
    if let Some(mut overlay) = overlay {
        rows.push("fork, read, write", overlay.name(), run, &overlay);
        overlay.stop()?;
    }
    Ok(())
}

fn read_and_write(tree: &Path, files: &[PathBuf]) -> Result<()> {
    fs::read(tree.join(&files[0]))?;
    fs::write(tree.join(&files[1]), "changed")?;
    Ok(())
}

/// Measures the operations on a fork, except discards.
fn forks(rows: &mut Rows, files: &[PathBuf], mount: &Pfimg, round: usize) -> Result<()> {
    let forks = mount.mountpoint().join("forks");
    let tree = |name: &str| forks.join(name).join("world/fs").join(TREE);
    let (one, two, other) = (format!("f-{round}"), format!("branch-{round}"), format!("copied-{round}"));
    let make = |name: &str, source: &str| Ok(fs::create_dir(forks.join(format!("{name}@{source}")))?);
    let run = measure(mount, || timed(|| make(&format!("plain-{round}"), "latest")))?;
    rows.push("fork", mount.name(), run, mount);
    let run = measure(mount, || {
        timed(|| {
            make(&one, "latest")?;
            read_and_write(&tree(&one), files)
        })
    })?;
    rows.push("fork, read, write", mount.name(), run, mount);
    change(&tree(&one), files, round)?;
    let run = measure(mount, || timed(|| make(&two, &one)))?;
    rows.push("branch", mount.name(), run, mount);
    let changed = |name: &str| -> Result<()> {
        let (want, is) =
            (format!("changed {round} 3\n").repeat(100), fs::read_to_string(tree(name).join(&files[3]))?);
        if want == is { Ok(()) } else { Err(format!("{name} does not hold what was written").into()) }
    };
    changed(&two)?;
    let copy = || timed(|| command("cp", &["-r".as_ref(), &forks.join(&one), &forks.join(&other)]));
    let run = measure(mount, copy)?;
    rows.push("branch by cp -r", mount.name(), run, mount);
    changed(&other)?;
    // The branch began a seal of `one` after its answer, which must not count as part of this seal.
    let (before, after) = (format!("before-{round}"), format!("after-{round}"));
    let sealed = |name: &str| forks.join(&one).join(".snap").join(name);
    fs::create_dir(sealed(&before))?;
    change(&tree(&one), files, round + 1000)?;
    let run = measure(mount, || timed(|| Ok(fs::create_dir(sealed(&after))?)))?;
    rows.push("seal", mount.name(), run, mount);
    let run = measure(mount, || timed(|| asked(mount, "restore", &[&one, &before])))?;
    rows.push("restore", mount.name(), run, mount);
    // The kernel may still show cached data.
    let started = Instant::now();
    while let Err(error) = changed(&one) {
        if started.elapsed() > Duration::from_secs(5) {
            return Err(error);
        }
        std::thread::yield_now();
    }
    Ok(())
}
