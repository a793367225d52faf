//! Whole workloads on a native folder, on pfimg and on other filesystems, in turn, in one run.
//!
//! ```text
//! cargo bench --bench workloads -- [--quick] [--only reading] [--files 20000] [--runs 3] [--json FILE] [--plot FILE.svg]
//! cargo bench --bench workloads -- --only scale
//! cargo bench --bench workloads -- --only waits
//! ```
//! Work that is measured is a function (`reading`) or a script (`steps`), a filesystem to compare one implementation of
//! `systems::System`. A slow row never fails the run; a wrong one (other output than on the native folder) does.

#![allow(missing_docs)]

mod clients;
mod forking;
mod image;
mod measure;
mod mounted;
mod mounting;
mod overlays;
mod plot;
mod reading;
mod report;
mod result;
mod scale;
mod scratch;
mod source;
mod steps;
mod systems;
mod text;
mod waits;
mod working;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use forking::Forking;
use measure::{Bench, Row};
use mounted::{Pfimg, Place};
use overlays::Overlay;
use result::Result;
use scratch::{Scratch, pfimg};
use source::{Random, SourceTree};
use systems::{BIG, Native, System, TREE};

/// Files that differ between the two images that are compared.
const CHANGED_FILES: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// A tree of files and a large file, read in many ways.
    Reading,
    /// Two images of it, compared.
    Diff,
    /// Builds, clones, installs, databases.
    Working,
    /// Forks, branches, seals, restores and discards.
    Forks,
    /// Several clients at once.
    Clients,
    /// A store of many images, mounted.
    Mounting,
    /// Large folders, trees, stores and families. Takes long, and so only if asked for.
    Scale,
    /// A `stat` while other requests wait for the disk. Fills gigabytes of it, and so only if asked for.
    Waits,
}

/// Measures pfimg against a native folder.
#[derive(Debug, Parser)]
struct Args {
    /// Measure these groups only [default: all but scale and waits]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Within them, workloads whose name contains this
    #[arg(long, default_value = "")]
    workload: String,
    /// Everything smaller and once, for a first impression
    #[arg(long)]
    quick: bool,
    /// Files in the tree [default: 20000, or 4000 if quick]
    #[arg(long)]
    files: Option<usize>,
    /// Images in the store that is mounted
    #[arg(long, default_value_t = 10_000)]
    images: usize,
    /// How often everything is measured [default: 3, or 1 if quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// The largest tree of `scale`, in files; other things grow with it
    #[arg(long, default_value_t = 1_000_000)]
    most: usize,
    /// Makes another tree
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write every figure
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to draw the ratios
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Where trees and stores are made, and deleted again
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    workdir: PathBuf,
    /// The program to measure, for instance of another commit [default: this one]
    #[arg(long, value_name = "FILE")]
    pfimg: Option<PathBuf>,
    /// Seconds to wait, before each workload, for others to leave the machine alone [default: 60, or 5 if quick]
    #[arg(long)]
    patience: Option<u64>,
    /// Leave the trees and stores (not the mounts) for a closer look
    #[arg(long)]
    keep: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn wants(&self, group: Group) -> bool {
        if self.only.is_empty() {
            !matches!(group, Group::Scale | Group::Waits)
        } else {
            self.only.contains(&group)
        }
    }

    fn files(&self) -> usize {
        self.files.unwrap_or(if self.quick { 4000 } else { 20_000 })
    }
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
    if let Some(program) = &args.pfimg {
        let program = program.canonicalize().map_err(|e| format!("{}: {e}", program.display()))?;
        scratch::PFIMG.set(program).map_err(|_| "--pfimg came too late")?;
    }
    let started = Instant::now();
    let scratch = Scratch::new(&args.workdir, args.keep)?;
    let runs = args.runs.unwrap_or(if args.quick { 1 } else { 3 });
    let patience = Duration::from_secs(args.patience.unwrap_or(if args.quick { 5 } else { 60 }));
    let bench = Bench::new(&scratch, runs as usize, patience);
    bench.say("waiting a minute since files were deleted here");
    scratch.let_rest()?;
    let mut about =
        json!({"machine": report::machine(), "runs": runs, "seed": args.seed, "quick": args.quick});
    let trees = [Group::Reading, Group::Diff, Group::Working, Group::Forks, Group::Clients];
    let rows = if trees.into_iter().any(|group| args.wants(group)) {
        tree(args, &bench, &mut about)?
    } else {
        Vec::new()
    };
    let mounts = args.wants(Group::Mounting).then(|| mounting::measure(&bench, args.images)).transpose()?;
    let growths = if args.wants(Group::Scale) { scale::measure_all(&bench, args.most)? } else { Vec::new() };
    let amounts = if args.quick { waits::QUICK } else { waits::FULL };
    let waits = args.wants(Group::Waits).then(|| waits::measure_all(&bench, amounts)).transpose()?;
    bench.progress.finish_and_clear();
    about["seconds"] = json!(started.elapsed().as_secs());
    println!("{about:#}\n");
    if !rows.is_empty() {
        println!("{}", report::workloads(&rows));
    }
    if let Some(mounts) = &mounts {
        println!("{}", report::mounting(mounts));
    }
    for growth in &growths {
        println!("{}", growth.table());
    }
    if let Some(waits) = &waits {
        println!("{}", waits.table());
    }
    let save = |path: &Option<PathBuf>, text: &dyn Fn() -> String| match path {
        Some(path) => fs::write(path, text()).map_err(|e| format!("cannot write {}: {e}", path.display())),
        None => Ok(()),
    };
    save(&args.json, &|| {
        format!("{:#}\n", report::json(&rows, mounts.as_ref(), &growths, waits.as_ref(), &about))
    })?;
    let machine = format!("{} runs, {} files", runs, text::thousands(args.files() as u64));
    save(&args.plot, &|| plot::svg(&rows, &machine))?;
    Ok(())
}

/// Imports a folder into a store.
fn import(store: &Path, folder: &Path) -> Result<()> {
    let output = pfimg("import").arg("--store").args([store, folder]).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("cannot import: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// Half of it compresses.
fn write_big(path: &Path, mib: usize, scratch: &Scratch) -> Result<()> {
    let mut random = Random::new(7);
    let mut bytes = Vec::new();
    for _ in 0..mib {
        scratch.go_on()?;
        bytes.extend((0..1 << 16).flat_map(|_| random.next().to_le_bytes()));
        bytes.resize(bytes.len() + (1 << 19), random.next() as u8);
    }
    fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    fs::write(path, bytes)?;
    Ok(())
}

/// Measures what is done with a tree of files.
fn tree(args: &Args, bench: &Bench<'_>, about: &mut Value) -> Result<Vec<Row>> {
    let scratch = bench.scratch;
    bench.say("writing the tree natively");
    let native = Native { root: scratch.fresh("native")?, work: scratch.fresh("native-work")? };
    let source = SourceTree::new(args.files(), args.seed);
    fs::create_dir(native.root.join(TREE))?;
    source.write(&native.root.join(TREE), scratch)?;
    let big = if args.quick { 32 } else { 256 };
    write_big(&native.root.join(BIG), big, scratch)?;
    about["tree"] = json!({
        "files": args.files(), "folders": source.folders(), "bytes": source.bytes(), "big_file_mib": big,
    });
    bench.say("importing it");
    let store = scratch.path().join("store");
    let started = Instant::now();
    import(&store, &native.root)?;
    about["import_seconds"] = json!(started.elapsed().as_secs_f64());
    let mut rows = Vec::new();
    if args.wants(Group::Diff) && "diff -r".contains(&args.workload) {
        rows.extend(diff(bench, &store, &source)?);
    }
    let forks = (args.wants(Group::Forks) && "forks".contains(&args.workload))
        .then(|| Forking::measure(bench, &store, &native))
        .transpose()?;
    let mut systems = systems(bench, &store, native.clone())?;
    if args.wants(Group::Reading) {
        for workload in reading::WORKLOADS.iter().filter(|w| w.name.contains(&args.workload)) {
            if let Some(why) = reading::lacks(workload) {
                bench.tell(&format!("{} is left out: {why}", workload.name));
                continue;
            }
            rows.push(bench.compare("reading", &mut systems, workload)?);
        }
    }
    let mut image = systems.remove(1);
    image.stop()?;
    if args.wants(Group::Clients) && "clients".contains(&args.workload) {
        let time = Duration::from_millis(if args.quick { 300 } else { 1000 });
        rows.extend(clients::measure_all(bench, &mut systems, time)?);
    }
    if args.wants(Group::Working) {
        let tree = scratch.path().join("native").join(TREE);
        let amounts = if args.quick { working::QUICK } else { working::FULL };
        rows.extend(working::measure_all(bench, &mut systems, &tree, amounts, &args.workload)?);
    }
    for system in &mut systems {
        system.stop()?;
    }
    if let Some(forks) = forks {
        rows.extend(forks.discard(bench, &native)?);
    }
    let order = ["reading", "diff", "working", "forks", "clients"];
    rows.sort_by_key(|row| order.iter().position(|group| *group == row.group));
    Ok(rows)
}

/// Everything that is compared, mounted; the native folder first, the image next.
fn systems<'a>(bench: &Bench<'_>, store: &Path, native: Native) -> Result<Vec<Box<dyn System + 'a>>> {
    let lower = native.root.clone();
    let mut systems: Vec<Box<dyn System + 'a>> = vec![Box::new(native)];
    for (name, place) in
        [("image", Place::Image), ("through", Place::Fork("through")), ("back", Place::Fork("back"))]
    {
        bench.say(format!("mounting: {name}"));
        systems.push(Box::new(Pfimg::new(place, store, &bench.scratch.fresh(name)?)?));
    }
    for (name, kind) in [("overlayfs", overlays::Kind::Kernel), ("fuse-overlayfs", overlays::Kind::Fuse)] {
        match Overlay::new(kind, &lower, &bench.scratch.fresh(name)?)? {
            Some(overlay) => systems.push(Box::new(overlay)),
            None => bench.tell(&format!("{name} is left out: it cannot be mounted here")),
        }
    }
    Ok(systems)
}

/// Compares the tree's image with that of a fork in which some files were worked on.
fn diff(bench: &Bench<'_>, store: &Path, source: &SourceTree) -> Result<Vec<Row>> {
    let dir = bench.scratch.fresh("diff")?;
    let mut image = Pfimg::new(Place::Image, store, &dir)?;
    let forks = image.mountpoint().join("forks");
    fs::create_dir(forks.join("changed@latest"))?;
    for path in source.some_files(CHANGED_FILES) {
        let file = forks.join("changed/world/fs").join(TREE).join(path);
        let mut content = fs::read(&file)?;
        content.reverse();
        content.push(b'!');
        fs::write(&file, content)?;
    }
    let one = fs::read_link(image.mountpoint().join("latest"))?;
    fs::create_dir(forks.join("changed/.snap/two"))?;
    let two = fs::read_link(forks.join("changed/.snap/two"))?;
    let name = two.file_name().ok_or("a seal without a name")?;
    let within = |image: &Path| image.join("world/fs").join(TREE);
    let rows = reading::diff(bench, &mut image, &within(&one), &within(&Path::new("images").join(name)))?;
    image.stop()?;
    Ok(rows)
}
