//! The cost of other systems for a tree in which ten files changed: the installed pf, btrfs, and a plain
//! copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::figures::{Args, Figures, files, run};
use crate::result::Result;
use crate::scratch::Scratch;
use crate::sealing::{self, CHANGED, Mounted};
use crate::source::SourceTree;

/// Bytes of the disk image for btrfs, which is sparse at first.
const DISK: u64 = 4 << 30;

/// Where a program is in $PATH.
fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a program and returns its duration.
fn timed(program: &Path, args: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    let out = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    let time = start.elapsed();
    if out.status.success() {
        return Ok(time);
    }
    Err(format!("{} {args:?}: {}", program.display(), String::from_utf8_lossy(&out.stderr)).into())
}

fn change(folder: &Path, files: &[&str], run: usize) -> Result<()> {
    for n in 0..CHANGED {
        let file = files[(run * 977 + n * (files.len() / CHANGED + 1)) % files.len()];
        fs::write(folder.join(file), format!("changed by run {run} {n}\n").repeat(20))?;
    }
    Ok(())
}

pub(crate) fn rows(
    args: &Args,
    scratch: &Scratch,
    tree: &SourceTree,
    folder: &Path,
    figures: &mut Figures,
) -> Result<()> {
    let files = files(tree);
    let runs = args.runs.min(3);
    let (store, cache) = (scratch.path().join("beside"), scratch.path().join("beside-cache"));
    run("import", &store, &cache, &[folder])?;
    let mut mounted = Mounted::new(scratch, "beside", &store)?;
    let what = format!("{CHANGED} of {} files changed", args.files);
    let ours = sealing::ten_changed(&mut mounted, args.runs)?;
    let ours = figures.row(&format!("seal of this tree, {what}"), ours);
    let first = sealing::first_seals(&mounted, args.runs)?;
    figures.row(&format!("first seal of a fork of this tree, {what}"), first);
    mounted.end()?;
    if let Some(pf) = args.pf.clone().or_else(|| which("pf")) {
        // The store has every blob from the import.
        let store = store.display().to_string();
        let folder_arg = folder.display().to_string();
        let snapshot =
            ["--store", &store, "snapshot", "--fs-root", &folder_arg, "--allow-empty-engine-layers"];
        timed(&pf, &snapshot)?;
        let mut times = Vec::new();
        for run in 0..runs {
            scratch.go_on()?;
            change(folder, &files, run)?;
            times.push(timed(&pf, &snapshot)?);
        }
        let theirs = figures.row(&format!("pf snapshot, {what}"), times);
        figures.ratio("pf snapshot to the seal", theirs / ours);
    } else {
        println!("| pf snapshot: no pf in $PATH; --pf FILE names one | | | |");
    }
    let mut times = Vec::new();
    for run in 0..runs {
        scratch.go_on()?;
        change(folder, &files, 100 + run)?;
        let (from, to) = (folder.display().to_string(), scratch.path().join(format!("copy-{run}")));
        let script = format!("cp -a '{from}' '{0}' && sync -f '{0}'", to.display());
        times.push(timed(Path::new("/bin/sh"), &["-c", &script])?);
    }
    let copy = figures.row("cp -a of this tree, and sync", times);
    figures.ratio("cp -a to the seal", copy / ours);
    match (which("mkfs.btrfs"), which("btrfs")) {
        (Some(mkfs), Some(btrfs)) if rustix::process::geteuid().is_root() => {
            let times = snapshots(scratch, folder, &files, &mkfs, &btrfs, args.runs)?;
            let theirs = figures.row(&format!("btrfs subvolume snapshot, and sync, {what}"), times);
            figures.ratio("btrfs to the seal", theirs / ours);
        }
        _ => println!("| btrfs: takes root, mkfs.btrfs and btrfs | | | |"),
    }
    Ok(())
}

fn snapshots(
    scratch: &Scratch,
    folder: &Path,
    files: &[&str],
    mkfs: &Path,
    btrfs: &Path,
    runs: usize,
) -> Result<Vec<Duration>> {
    let disk = scratch.path().join("btrfs.img");
    fs::File::create(&disk)?.set_len(DISK)?;
    timed(mkfs, &["-q", &disk.display().to_string()])?;
    let mnt = scratch.fresh("btrfs")?;
    let (disk, at) = (disk.display().to_string(), mnt.display().to_string());
    timed(Path::new("mount"), &["-o", "loop", &disk, &at])?;
    let volume = format!("{at}/volume");
    timed(btrfs, &["subvolume", "create", &volume])?;
    timed(Path::new("cp"), &["-a", &format!("{}/.", folder.display()), &volume])?;
    timed(Path::new("sync"), &["-f", &at])?;
    let mut times = Vec::new();
    for run in 0..runs {
        change(Path::new(&volume), files, run)?;
        let (snapshot, to) = (btrfs.display(), format!("{at}/snapshot-{run}"));
        let script = format!("'{snapshot}' subvolume snapshot -r '{volume}' '{to}' && sync -f '{at}'");
        times.push(timed(Path::new("/bin/sh"), &["-c", &script])?);
    }
    timed(Path::new("umount"), &[&at])?;
    Ok(times)
}
