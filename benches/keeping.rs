//! The cost of sealing and maintenance: seals, import, import again, export, compared with the real `pf`, btrfs and a
//! plain copy; the time that `pfimg run` adds to a command; and what a user waits for in a project.
//!
//! ```text
//! cargo bench --bench keeping -- [--files 20000] [--sample 400] [--runs 5] [--big-mib 1024] [--only seal] [--pf FILE]
//!     [--json FILE] [--workdir DIR]
//! ```
//! The real capture (`pf_world::WalkFsCapture`, which `pf snapshot` calls) takes minutes for a whole tree. So it gets every n-th
//! file, and its time is scaled. `pf snapshot` itself gets a store that already has every blob. Each row is the median of its
//! runs, with the least and the most.

#![allow(missing_docs)]

mod beside;
mod figures;
mod project;
mod result;
mod running;
#[allow(dead_code)]
mod scratch;
mod sealing;
#[allow(dead_code)]
mod source;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser as _;
use pf_core::store::PfStore;
use pf_world::WalkFsCapture;
use serde_json::json;

use figures::{Args, Figures, Group, files, run};
use result::Result;
use scratch::Scratch;
use source::SourceTree;

fn main() -> Result<()> {
    let args = Args::parse();
    let scratch = Scratch::new(&args.workdir, false)?;
    let wants = |group: Group| args.only.is_empty() || args.only.contains(&group);
    let mut figures = Figures::default();
    println!("| row | median | range | load |\n|---|---|---|---|");
    if wants(Group::Seal) {
        sealing::rows(args.runs, &scratch, &mut figures)?;
    }
    if wants(Group::Import) || wants(Group::Peers) {
        let tree = SourceTree::new(args.files, 1);
        let folder = scratch.fresh("tree")?;
        tree.write(&folder, &scratch)?;
        figures.0.push(json!({"name": "tree", "files": args.files, "bytes": tree.bytes()}));
        let first = if wants(Group::Import) {
            Some(import(&args, &scratch, &tree, &folder, &mut figures)?)
        } else {
            None
        };
        if wants(Group::Peers) {
            beside::rows(&args, &scratch, &tree, &folder, &mut figures)?;
        }
        if let Some(first) = first {
            capture(&args, &scratch, &tree, &folder, first, &mut figures)?;
        }
    }
    if wants(Group::Run) {
        running::rows(args.runs, args.files, &scratch, &mut figures)?;
    }
    if wants(Group::Project) {
        project::rows(args.runs, args.files, &scratch, &mut figures)?;
    }
    if wants(Group::Big) {
        big(&args, &scratch, &mut figures)?;
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&figures.0)?)?;
    }
    Ok(())
}

/// Measures import and export. Returns the time of the first import in seconds.
fn import(
    args: &Args,
    scratch: &Scratch,
    tree: &SourceTree,
    folder: &Path,
    figures: &mut Figures,
) -> Result<f64> {
    // Files that are younger than this would be read again.
    std::thread::sleep(Duration::from_secs(3));
    let path = |name: &str, n: usize| scratch.path().join(format!("{name}-{n}"));
    let what = format!("{} files, {} MB", args.files, tree.bytes() / 1_000_000);
    let mut first = Vec::new();
    for n in 0..args.runs {
        scratch.go_on()?;
        first.push(run("import", &path("store", n), &path("cache", n), &[folder])?.0);
    }
    let first = figures.row(&format!("import of {what}"), first);
    let (store, cache) = (path("store", 0), path("cache", 0));
    let mut again = Vec::new();
    for _ in 0..args.runs {
        let (time, report) = run("import", &store, &cache, &[folder])?;
        if report["new"] != false || report["files_read"] != 0 {
            return Err(format!("an unchanged folder was read again: {report}").into());
        }
        again.push(time);
    }
    figures.row("import again, nothing changed", again);
    let files = files(tree);
    let mut changed = Vec::new();
    for n in 0..args.runs {
        for number in 0..10 {
            fs::write(folder.join(files[number * files.len() / 10]), format!("changed {n} {number}"))?;
        }
        changed.push(run("import", &store, &cache, &[folder])?.0);
    }
    figures.row("import again, 10 files changed", changed);
    let mut exported = Vec::new();
    for n in 0..args.runs {
        scratch.go_on()?;
        exported.push(run("export", &store, &cache, &[Path::new("latest"), &path("out", n)])?.0);
    }
    figures.row("export", exported);
    Ok(first)
}

/// Measures the real capture of some files. Compares it with the import of all files, which took `first` seconds.
fn capture(
    args: &Args,
    scratch: &Scratch,
    tree: &SourceTree,
    folder: &Path,
    first: f64,
    figures: &mut Figures,
) -> Result<()> {
    let files = files(tree);
    let Some(step) = files.len().checked_div(args.sample) else { return Ok(()) };
    let sample = scratch.fresh("sample")?;
    let taken: Vec<_> = files.iter().step_by(step.max(1)).collect();
    for (number, path) in taken.iter().enumerate() {
        fs::copy(folder.join(path), sample.join(number.to_string()))?;
    }
    let pf = PfStore::open(scratch.path().join("pf"))?;
    let start = Instant::now();
    WalkFsCapture::new(&sample).capture(&pf.blobs_arc())?;
    let time = figures.row(&format!("the real capture, {} of the files", taken.len()), vec![start.elapsed()]);
    let whole = time * files.len() as f64 / taken.len() as f64;
    figures.ratio("the real capture scaled to all files, to the import", whole / first);
    Ok(())
}

/// Measures a large file in which 4 KiB change.
fn big(args: &Args, scratch: &Scratch, figures: &mut Figures) -> Result<()> {
    if args.big_mib == 0 {
        return Ok(());
    }
    let folder = scratch.fresh("big")?;
    let file = fs::File::create_new(folder.join("big"))?;
    let mut random = source::Random::new(7);
    let tree = SourceTree::new(1, 7);
    for mib in 0..args.big_mib {
        scratch.go_on()?;
        // Half of it is text.
        let mut bytes = Vec::new();
        tree.content(random.next() | 1, 1 << 20, &mut bytes);
        for chunk in bytes[..1 << 19].chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        file.write_all_at(&bytes, mib << 20)?;
    }
    let (store, cache) = (scratch.path().join("big-store"), scratch.path().join("big-cache"));
    let (time, _) = run("import", &store, &cache, &[&folder])?;
    figures.row(&format!("import of one file of {} MiB", args.big_mib), vec![time]);
    let mut changed = Vec::new();
    for n in 0..args.runs.min(3) as u64 {
        file.write_all_at(&[n as u8; 4096], (args.big_mib << 19) + 4096 * n)?;
        changed.push(run("import", &store, &cache, &[&folder])?.0);
    }
    figures.row("import again after 4 KiB of it changed", changed);
    let mut mounted = sealing::Mounted::new(scratch, "big", &store)?;
    let file = fs::File::options().write(true).open(mounted.world().join("big"))?;
    let mut sealed = Vec::new();
    for n in 0..args.runs.min(3) as u64 {
        // Other bytes at other places than those that were imported.
        file.write_all_at(&[0x80 + n as u8; 4096], (args.big_mib << 18) + 8192 * n)?;
        sealed.push(mounted.seal()?);
    }
    drop(file);
    figures.row("seal after 4 KiB of it changed", sealed);
    mounted.end()?;
    Ok(())
}
