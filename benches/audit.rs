//! Measures the cost of the audit log: the same work on two mounts, one with `--audit on` and one with `--audit off`, in turn.
//!
//! ```text
//! cargo bench --bench audit -- [--runs 21] [--workload NAME] [--json FILE] [--workdir DIR]
//! ```
//! The work consists of small requests, so that a cost of each would show. Each round does the work on both mounts, in the order on,
//! off, then off, on. The bench reports the ratio of the medians, and the median of the rounds' ratios.

#![allow(missing_docs)]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Number of files that are created, looked at, read, renamed and removed, and of their folders.
const FILES: usize = 5_000;
const FOLDERS: usize = 50;

/// Measures what the audit log costs.
#[derive(Debug, Parser)]
struct Args {
    /// How often everything is measured
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(2..))]
    runs: u32,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    workload: String,
    /// Where to write every figure
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where stores are made, and deleted again
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    workdir: PathBuf,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("audit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pfimg(args: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_pfimg"))
        .args(args)
        // Ctrl-C must not end it halfway.
        .process_group(0)
        .output()?;
    if !output.status.success() {
        return Err(format!("pfimg {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A separate mounted store, with one image and a fork of it.
struct Mounted {
    audit: &'static str,
    dir: PathBuf,
    image: String,
    lives: bool,
    folders: usize,
}

impl Mounted {
    fn new(dir: &Path, audit: &'static str) -> Result<Self> {
        let dir = dir.join(audit);
        fs::create_dir_all(dir.join("mnt"))?;
        let store = dir.join("store").to_string_lossy().into_owned();
        let files = FILES.to_string();
        let image =
            pfimg(&["fixture", "--store", &store, "--world-files", &files, "--world-file-bytes", "512"])?;
        let image = image.trim_start_matches("sha256:").to_owned();
        let mut this = Self { audit, dir, image, lives: false, folders: 0 };
        this.mount()?;
        fs::create_dir(this.path("forks/bench@latest"))?;
        // Causes an event, so that a log exists from the start if one is written.
        let _ = fs::create_dir(this.path("images/x"));
        Ok(this)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join("mnt").join(path)
    }

    fn mount(&mut self) -> Result<()> {
        let dir = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let (store, mnt, cache, log) = (dir("store"), dir("mnt"), dir("cache"), dir("log"));
        pfimg(&[
            "mount",
            &store,
            &mnt,
            "--audit",
            self.audit,
            "--seal",
            "manual",
            "--cache-dir",
            &cache,
            "--log",
            &log,
        ])?;
        self.lives = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        self.lives = false;
        pfimg(&["umount", &self.dir.join("mnt").to_string_lossy()]).map(drop)
    }

    /// Makes an unused folder in the fork.
    fn fresh(&mut self) -> Result<PathBuf> {
        self.folders += 1;
        let folder = self.path("forks/bench/world/fs").join(format!("work-{}", self.folders));
        fs::create_dir(&folder)?;
        Ok(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.lives {
            let _ = self.unmount();
        }
    }
}

/// A piece of work: prepared first, then measured.
struct Workload {
    name: &'static str,
    /// Whether its requests are ordinary ones. Each request of other work causes an event.
    is_ordinary: bool,
    ready: fn(&mut Mounted) -> Result<PathBuf>,
    work: fn(&Mounted, &Path) -> Result<()>,
}

fn names(folder: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    (0..FILES).map(|n| folder.join(format!("d{:02}/f{n:04}", n % FOLDERS)))
}

fn create(_: &Mounted, folder: &Path) -> Result<()> {
    for n in 0..FOLDERS {
        fs::create_dir(folder.join(format!("d{n:02}")))?;
    }
    for name in names(folder) {
        fs::write(&name, [b'x'; 300])?;
    }
    Ok(())
}

fn created(mounted: &mut Mounted) -> Result<PathBuf> {
    let folder = mounted.fresh()?;
    create(mounted, &folder)?;
    Ok(folder)
}

fn append(_: &Mounted, folder: &Path) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(folder.join("appended"))?;
    for _ in 0..20_000 {
        file.write_all(&[b'x'; 100])?;
    }
    Ok(())
}

fn overwrite(_: &Mounted, folder: &Path) -> Result<()> {
    let file = File::create(folder.join("written"))?;
    for n in 0..10_000_u64 {
        file.write_all_at(&[n as u8; 4096], n * 7919 % 2048 * 4096)?;
    }
    Ok(())
}

fn remounted(mounted: &mut Mounted) -> Result<PathBuf> {
    mounted.unmount()?;
    mounted.mount()?;
    Ok(mounted.path("images").join(&mounted.image).join("world/fs/src"))
}

fn read_all(_: &Mounted, folder: &Path) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        count += usize::from(!fs::read(entry?.path())?.is_empty());
    }
    if count == FILES { Ok(()) } else { Err(format!("read {count} files").into()) }
}

fn refused(mounted: &Mounted, _: &Path) -> Result<()> {
    let folder = mounted.path("images/refused");
    match (0..FILES).find(|_| fs::create_dir(&folder).is_ok()) {
        None => Ok(()),
        Some(n) => Err(format!("folder {n} was made").into()),
    }
}

fn seal(mounted: &Mounted, folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for n in 0..20 {
        // New in each folder, so that each seal stores it.
        fs::write(folder.join("changed"), format!("{name} {n}"))?;
        fs::create_dir(mounted.path("forks/bench/.snap").join(format!("{name}-{n}")))?;
    }
    Ok(())
}

const WORKLOADS: &[Workload] = &[
    Workload { name: "create 5,000 files", is_ordinary: true, ready: Mounted::fresh, work: create },
    Workload {
        name: "read them",
        is_ordinary: true,
        ready: created,
        work: |_, folder| names(folder).try_for_each(|name| fs::read(name).map(drop).map_err(Into::into)),
    },
    Workload {
        name: "rename them",
        is_ordinary: true,
        ready: created,
        work: |_, folder| {
            names(folder)
                .try_for_each(|name| fs::rename(&name, name.with_extension("moved")).map_err(Into::into))
        },
    },
    Workload {
        name: "unlink them",
        is_ordinary: true,
        ready: created,
        work: |_, folder| names(folder).try_for_each(|name| fs::remove_file(name).map_err(Into::into)),
    },
    Workload { name: "20,000 appends of 100 bytes", is_ordinary: true, ready: Mounted::fresh, work: append },
    Workload { name: "10,000 writes of 4 KiB", is_ordinary: true, ready: Mounted::fresh, work: overwrite },
    Workload {
        name: "read 5,000 files of an image, new mount",
        is_ordinary: true,
        ready: remounted,
        work: read_all,
    },
    Workload { name: "5,000 refused requests", is_ordinary: false, ready: Mounted::fresh, work: refused },
    Workload { name: "20 seals", is_ordinary: false, ready: Mounted::fresh, work: seal },
];

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

fn measure(mounted: &mut Mounted, workload: &Workload) -> Result<f64> {
    let folder = (workload.ready)(mounted)?;
    let started = Instant::now();
    (workload.work)(mounted, &folder)?;
    Ok(started.elapsed().as_secs_f64())
}

fn run(args: &Args) -> Result<()> {
    fs::create_dir_all(&args.workdir)?;
    let dir = tempfile::Builder::new().prefix("audit-").tempdir_in(args.workdir.canonicalize()?)?;
    let mut mounts = [Mounted::new(dir.path(), "off")?, Mounted::new(dir.path(), "on")?];
    let mut rows = Vec::new();
    let mut sums = [0.0; 2];
    println!("| workload | off | on | medians | pairs |\n|---|---|---|---|---|");
    let percent = |ratio: f64| format!("{:+.1} %", (ratio - 1.0) * 100.0);
    for workload in WORKLOADS.iter().filter(|w| w.name.contains(&args.workload)) {
        let mut seconds = [Vec::new(), Vec::new()];
        for round in 0..=args.runs {
            for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let took = measure(&mut mounts[at], workload)?;
                // The first round only warms up.
                if round > 0 {
                    seconds[at].push(took);
                }
            }
        }
        let [off, on] = &seconds;
        let pairs = median(off.iter().zip(on).map(|(off, on)| on / off).collect());
        let medians = [median(off.clone()), median(on.clone())];
        if workload.is_ordinary {
            sums = [sums[0] + medians[0], sums[1] + medians[1]];
        }
        let (name, ratio) = (workload.name, medians[1] / medians[0]);
        let ms = medians.map(|seconds| seconds * 1e3);
        println!("| {name} | {:.1} ms | {:.1} ms | {} | {} |", ms[0], ms[1], percent(ratio), percent(pairs));
        rows.push(json!({"workload": name, "is_ordinary": workload.is_ordinary, "off_seconds": off, "on_seconds": on,
            "ratio_of_medians": ratio, "median_of_ratios": pairs}));
    }
    let all = if sums[0] > 0.0 { json!(sums[1] / sums[0]) } else { Value::Null };
    if let Some(ratio) = all.as_f64() {
        let ms = sums.map(|seconds| seconds * 1e3);
        println!("| all but the last two | {:.1} ms | {:.1} ms | {} | |", ms[0], ms[1], percent(ratio));
    }
    for mounted in &mut mounts {
        mounted.unmount()?;
    }
    let events = |mounted: &Mounted| {
        let log = fs::read_to_string(mounted.dir.join("store/audit/events.jsonl")).unwrap_or_default();
        log.lines().count()
    };
    println!("\nevents: {} with the audit off, {} with it on", events(&mounts[0]), events(&mounts[1]));
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", json!({"runs": args.runs, "rows": rows, "ordinary_ratio": all}));
        fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}
