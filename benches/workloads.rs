//! Whole workloads on a native folder and on pfimg, in turn, in one run.
//!
//! ```text
//! cargo bench --bench workloads -- [--only reading] [--files 20000] [--runs 5] [--json FILE] [--workdir DIR]
//! ```
//! A workload is one function (see `reading`), a filesystem to compare with one implementation of
//! `systems::System`. A slow row never fails the run; a wrong one (other output than on the native folder) does.

#![allow(missing_docs)]

mod image;
mod measure;
mod mounting;
mod reading;
mod report;
mod scratch;
mod source;
mod systems;
mod working;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use pfimg::store::Store;
use serde_json::json;

use measure::{Bench, Row};
use scratch::Scratch;
use source::SourceTree;
use systems::{FuseOverlay, Native, PfimgFork, PfimgImage, System};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Files that differ between the two images that are compared.
const CHANGED_FILES: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// A tree of files, read in many ways.
    Reading,
    /// Two images of it, compared.
    Diff,
    /// Builds, clones, installs, databases: in a fork, in both write modes.
    Working,
    /// A store of many images, mounted.
    Mounting,
}

/// Measures pfimg against a native folder.
#[derive(Debug, Parser)]
struct Args {
    /// Measure these groups only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Within them, workloads whose name contains this
    #[arg(long, default_value = "")]
    workload: String,
    /// Files in the tree
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// Images in the store that is mounted
    #[arg(long, default_value_t = 10_000)]
    images: usize,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Makes another tree
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write every figure
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where trees and stores are made, and deleted again
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    workdir: PathBuf,
    /// The program to measure, for instance of another commit [default: this one]
    #[arg(long, value_name = "FILE")]
    pfimg: Option<PathBuf>,
    /// Seconds to wait, before each workload, for others to leave the machine alone
    #[arg(long, default_value_t = 180)]
    patience: u64,
    /// Leave the trees and stores (not the mounts) for a closer look
    #[arg(long)]
    keep: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workloads: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let wanted = |group| args.only.is_empty() || args.only.contains(&group);
    if let Some(program) = &args.pfimg {
        let program = program.canonicalize().map_err(|e| format!("{}: {e}", program.display()))?;
        scratch::PFIMG.set(program).map_err(|_| "--pfimg came too late")?;
    }
    let scratch = Scratch::new(&args.workdir, args.keep)?;
    let bench = Bench::new(&scratch, args.runs as usize, Duration::from_secs(args.patience));
    let mut about = json!({"machine": report::machine(), "runs": args.runs, "seed": args.seed});
    let mut rows = Vec::new();
    if wanted(Group::Reading) || wanted(Group::Diff) {
        rows = tree(args, &scratch, &bench, &wanted, &mut about)?;
    }
    if wanted(Group::Working) {
        rows.extend(working(args, &scratch, &bench)?);
    }
    let mounts = wanted(Group::Mounting).then(|| mounting::measure(&bench, args.images)).transpose()?;
    bench.progress.finish_and_clear();
    println!("{about:#}\n");
    if !rows.is_empty() {
        println!("{}", report::workloads(&rows));
    }
    if let Some(mounts) = &mounts {
        println!("{}", report::mounting(mounts));
    }
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report::json(&rows, mounts.as_ref(), &about));
        std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}

fn tree(
    args: &Args,
    scratch: &Scratch,
    bench: &Bench<'_>,
    wanted: &dyn Fn(Group) -> bool,
    about: &mut serde_json::Value,
) -> Result<Vec<Row>> {
    let source = SourceTree::new(args.files, args.seed);
    about["tree"] = json!({"files": args.files, "folders": source.folders(), "bytes": source.bytes()});
    let store_path = scratch.fresh("store")?;
    let store = Store::create(&store_path)?;
    bench.say("writing the tree as an image");
    let started = Instant::now();
    let one = image::write(&store, &source, scratch)?;
    let two = image::write(&store, &source.with_changes(CHANGED_FILES), scratch)?;
    about["images_written_seconds"] = json!(started.elapsed().as_secs_f64());
    let mut stored = 0;
    store.blobs().for_each(&mut |_, bytes| stored += bytes, &mut |_| ())?;
    about["stored_bytes"] = json!(stored);
    let within = |id: &pfimg::store::Digest| PathBuf::from(format!("images/{}/world/fs", id.hex()));
    let mut image =
        PfimgImage::new(store_path, within(&one), scratch.fresh("mnt")?, scratch.fresh("cache")?)?;
    let mut rows = Vec::new();
    if wanted(Group::Diff) && "diff -r".contains(&args.workload) {
        rows.extend(reading::diff(bench, &mut image, &within(&one), &within(&two))?);
    }
    if wanted(Group::Reading) {
        bench.say("writing the tree natively");
        let native = Native { tree: scratch.fresh("native")? };
        source.write(&native.tree, scratch)?;
        image.show(within(&one));
        let mut systems: Vec<Box<dyn System + '_>> = vec![Box::new(native), Box::new(image)];
        for workload in reading::WORKLOADS.iter().filter(|w| w.name.contains(&args.workload)) {
            if let Some(why) = reading::lacks(workload) {
                bench.progress.println(format!("{} is left out: {why}", workload.name));
                continue;
            }
            rows.push(bench.compare(&mut systems, workload)?);
        }
        for system in &mut systems {
            system.stop()?;
        }
    } else {
        image.stop()?;
    }
    Ok(rows)
}

/// Measures work in a native folder, in forks, and in fuse-overlayfs where it is installed.
fn working(args: &Args, scratch: &Scratch, bench: &Bench<'_>) -> Result<Vec<Row>> {
    let source = SourceTree::new(args.files, args.seed);
    let tree = scratch.fresh("working-tree")?;
    bench.say("writing the tree that git clones");
    source.write(&tree, scratch)?;
    let mut systems: Vec<Box<dyn System + '_>> =
        vec![Box::new(Native { tree: scratch.fresh("working-native")? })];
    for writes in ["through", "back"] {
        let store = scratch.fresh(&format!("working-{writes}"))?;
        image::write_many(&store, 1, scratch)?;
        let mountpoint = scratch.fresh(&format!("working-{writes}-mnt"))?;
        let cache = scratch.path().join(format!("working-{writes}-cache"));
        systems.push(Box::new(PfimgFork::new(&store, &mountpoint, &cache, writes)?));
    }
    if let Some(overlay) = FuseOverlay::new(&scratch.fresh("working-overlay")?)? {
        systems.push(Box::new(overlay));
    } else {
        bench.progress.println("fuse-overlayfs is left out: it is not installed");
    }
    let rows = working::steps(bench, &mut systems, &tree, &args.workload)?;
    for system in &mut systems {
        system.stop()?;
    }
    Ok(rows)
}
