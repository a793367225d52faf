//! Seals as their caller sees them: `mkdir forks/F/.snap/NAME`, until it returns.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pf_core::store::PfStore;

use crate::figures::Figures;
use crate::result::Result;
use crate::scratch::{Scratch, pfimg};

/// Files that change before each seal.
pub(crate) const CHANGED: usize = 10;

/// Seals of each kind for one run of everything else.
const SEALS: usize = 3;

/// A store that is mounted, with a fork of its latest image.
pub(crate) struct Mounted {
    mnt: PathBuf,
    /// The image that was the latest then.
    image: Option<PathBuf>,
    seals: usize,
}

impl Mounted {
    /// Mounts a store; `name` is not taken yet.
    pub(crate) fn new(scratch: &Scratch, name: &str, store: &Path) -> Result<Self> {
        let mnt = scratch.fresh(&format!("mnt-{name}"))?;
        let mut mount = pfimg("mount");
        mount.args(["--seal", "manual"]).arg("--cache-dir").arg(scratch.fresh(&format!("mnt-cache-{name}"))?);
        let out = mount.arg(store).arg(&mnt).output()?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
        }
        let image = fs::canonicalize(mnt.join("latest")).ok();
        let this = Self { mnt, image, seals: 0 };
        if this.mnt.join("latest").exists() {
            fs::create_dir(this.mnt.join("forks/f@latest"))?;
        }
        Ok(this)
    }

    /// The fork's files.
    pub(crate) fn world(&self) -> PathBuf {
        self.mnt.join("forks/f/world/fs")
    }

    /// Seals the fork. The first seal takes longer, since it reads the tree.
    pub(crate) fn seal(&mut self) -> Result<Duration> {
        self.seals += 1;
        seal(&self.mnt, "f", self.seals)
    }

    pub(crate) fn end(self) -> Result<()> {
        let out = pfimg("umount").arg(&self.mnt).output()?;
        if out.status.success() { Ok(()) } else { Err("cannot unmount".into()) }
    }
}

fn seal(mnt: &Path, fork: &str, number: usize) -> Result<Duration> {
    let snap = mnt.join(format!("forks/{fork}/.snap/{fork}-{number}"));
    let start = Instant::now();
    fs::create_dir(&snap)?;
    let time = start.elapsed();
    // The link that shows it.
    fs::read_link(&snap)?;
    Ok(time)
}

/// Files below a folder, sorted.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Seals after ten files changed, wherever in the tree.
pub(crate) fn ten_changed(mounted: &mut Mounted, runs: usize) -> Result<Vec<Duration>> {
    let files = files_below(&mounted.world())?;
    let mut times = Vec::new();
    for run in 0..=runs * SEALS {
        for n in 0..CHANGED {
            let file = &files[(run * 977 + n * (files.len() / CHANGED + 1)) % files.len()];
            fs::write(file, format!("changed {run} {n}\n").repeat(20))?;
        }
        let time = mounted.seal()?;
        if run > 0 {
            times.push(time);
        }
    }
    Ok(times)
}

/// The first seal of forks of one image, each after ten files changed.
pub(crate) fn first_seals(mounted: &Mounted, runs: usize) -> Result<Vec<Duration>> {
    let image = mounted.image.as_ref().and_then(|image| image.file_name()).ok_or("no image to fork")?;
    let mut times = Vec::new();
    for run in 0..=runs * SEALS {
        let fork = format!("first-{run}");
        fs::create_dir(mounted.mnt.join(format!("forks/{fork}@{}", image.display())))?;
        let files = files_below(&mounted.mnt.join(format!("forks/{fork}/world/fs")))?;
        for n in 0..CHANGED {
            let file = &files[(run * 977 + n * (files.len() / CHANGED + 1)) % files.len()];
            fs::write(file, format!("first {run} {n}\n").repeat(20))?;
        }
        let time = seal(&mounted.mnt, &fork, 1)?;
        if run > 0 {
            times.push(time);
        }
    }
    Ok(times)
}

pub(crate) fn fixture(store: &Path, args: &[&str]) -> Result<()> {
    let out = pfimg("fixture").args(args).env("PF_STORE", store).output()?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned().into()) }
}

pub(crate) fn rows(runs: usize, scratch: &Scratch, figures: &mut Figures) -> Result<()> {
    let mut medians = Vec::new();
    for files in [1_000, 20_000, 100_000] {
        scratch.go_on()?;
        let store = scratch.path().join(format!("sealed-{files}"));
        fixture(&store, &["--world-files", &files.to_string(), "--world-file-bytes", "300"])?;
        let mut mounted = Mounted::new(scratch, &files.to_string(), &store)?;
        let times = ten_changed(&mut mounted, runs)?;
        medians.push(figures.row(&format!("seal, {CHANGED} of {files} files changed"), times));
        mounted.end()?;
    }
    figures.ratio("seal: of 100,000 files to of 1,000", medians[2] / medians[0]);
    seed(runs, scratch, figures)
}

/// The seeds of two images must differ above these bits. A page or file is made from the seed xor its number, so seeds that differ
/// only below them give the same pages and files in another order.
const NUMBERS: u32 = 16;

/// Measures the seal of a whole fixture image that was written into an empty fork, so that everything in it is new. Compares it with
/// writing the same bytes to a native folder, and with writing only the blobs, which every program with this format must write.
fn seed(runs: usize, scratch: &Scratch, figures: &mut Figures) -> Result<()> {
    let store = scratch.path().join("seeds");
    fixture(&store, &["--seed", "0"])?;
    let target = Mounted::new(scratch, "seeds", &store)?;
    let (native, shards) = (scratch.fresh("seed-native")?, scratch.fresh("seed-blobs")?);
    for shard in 0..=u8::MAX {
        fs::create_dir(shards.join(format!("{shard:02x}")))?;
    }
    let (mut ours, mut warm, mut both) = (vec![], vec![], vec![]);
    let (mut plain, mut floor, mut theirs) = (vec![], vec![], vec![]);
    let mut bytes = 0;
    for run in 0..=runs * SEALS {
        scratch.go_on()?;
        let source = scratch.path().join(format!("seed-{run}"));
        fixture(&source, &["--seed", &((run + 1) << NUMBERS).to_string()])?;
        let mounted = Mounted::new(scratch, &format!("seed-{run}"), &source)?;
        let image = fs::canonicalize(mounted.mnt.join("latest"))?;
        let mut contents = Vec::new();
        for file in files_below(&image)? {
            let path = file.strip_prefix(&image)?;
            if path == Path::new("manifest.json") {
                continue;
            }
            contents.push((path.to_owned(), fs::read(&file)?));
        }
        mounted.end()?;
        // A seal waits for writes to its fork, so the bench first syncs its other writes.
        rustix::fs::sync();
        let put = filled(&target.mnt, &format!("seed{run}"), &contents)?;
        bytes = contents.iter().map(|(_, content)| content.len()).sum();
        let before = blobs_of(&store)?;
        let time = seal(&target.mnt, &format!("seed{run}"), 1)?;
        let made: Vec<_> = blobs_of(&store)?.difference(&before).cloned().collect();
        // Each file but the ledger, whose lines are chained, is a blob.
        if made.len() + 1 < contents.len() {
            return Err(format!("of {} files only {} were new", contents.len(), made.len()).into());
        }
        // Once more, as pf's own bench makes the same snapshot again and again.
        rustix::fs::sync();
        filled(&target.mnt, &format!("again{run}"), &contents)?;
        let second = seal(&target.mnt, &format!("again{run}"), 1)?;
        rustix::fs::sync();
        let copied = written(&native, contents.iter().map(|(_, bytes)| &bytes[..]))?;
        rustix::fs::sync();
        let stored = named(&shards, &made)?;
        if run == 0 {
            continue;
        }
        ours.push(time);
        warm.push(second);
        both.push(put + time);
        plain.push(copied);
        floor.push(stored);
        if theirs.len() < 3 {
            // The same bytes by the real store.
            let pf = PfStore::open(scratch.path().join(format!("seed-pf-{run}")))?;
            let start = Instant::now();
            for (_, content) in &contents {
                pf.blobs().put(content)?;
            }
            theirs.push(start.elapsed());
        }
    }
    target.end()?;
    let ours = figures.row(&format!("seal of a fixture image, all {bytes} bytes new"), ours);
    figures.row("of the same files again, whose blobs are there", warm);
    let both = figures.row("its files written into the fork, and the seal", both);
    let plain = figures.row("its files written into a native folder, and synced", plain);
    figures.ratio("written and sealed to native", both / plain);
    let floor = figures.row("its blobs written, renamed and synced, compressed before", floor);
    figures.ratio("the seal to its blobs", ours / floor);
    figures.row("the same bytes put into the real pf's store, which syncs each blob", theirs);
    Ok(())
}

/// Makes an empty fork and writes files into it.
fn filled(mnt: &Path, name: &str, contents: &[(PathBuf, Vec<u8>)]) -> Result<Duration> {
    let fork = mnt.join("forks").join(name);
    fs::create_dir(&fork)?;
    let start = Instant::now();
    for (path, content) in contents {
        fs::create_dir_all(fork.join(path).parent().unwrap_or(&fork))?;
        fs::write(fork.join(path), content)?;
    }
    Ok(start.elapsed())
}

/// A store's blobs.
fn blobs_of(store: &Path) -> Result<BTreeSet<PathBuf>> {
    Ok(files_below(&store.join("blobs"))?.into_iter().collect())
}

/// Writes each as a file of a new folder, and syncs them.
fn written<'a>(parent: &Path, files: impl Iterator<Item = &'a [u8]>) -> Result<Duration> {
    let folder = tempfile::Builder::new().disable_cleanup(true).tempdir_in(parent)?;
    let start = Instant::now();
    for (n, content) in files.enumerate() {
        fs::write(folder.path().join(n.to_string()), content)?;
    }
    rustix::fs::syncfs(fs::File::open(parent)?)?;
    Ok(start.elapsed())
}

/// Makes blobs once more, as a store does: in the folder of its first two digits, under another name first.
fn named(shards: &Path, blobs: &[PathBuf]) -> Result<Duration> {
    let mut contents = Vec::new();
    for blob in blobs {
        let name = blob.file_name().and_then(|name| name.to_str()).ok_or("a blob without a name")?;
        contents.push((shards.join(&name[..2]).join(name), fs::read(blob)?));
    }
    let start = Instant::now();
    for (path, content) in &contents {
        let temp = path.with_extension("tmp");
        fs::write(&temp, content)?;
        fs::rename(&temp, path)?;
    }
    rustix::fs::syncfs(fs::File::open(shards)?)?;
    Ok(start.elapsed())
}
