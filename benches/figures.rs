//! What the groups of rows of `keeping` share: the arguments, the figures, and running pfimg.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::result::Result;
use crate::scratch::pfimg;
use crate::source::{Kind, SourceTree};

/// A group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Seals.
    Seal,
    /// Import and export.
    Import,
    /// A large file with a small change.
    Big,
    /// The same work in other systems.
    Peers,
    /// Commands in a fork.
    Run,
    /// What a user waits for in a project.
    Project,
}

/// Measures seals, import and export against the real pf, btrfs and a plain copy.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Files in the tree
    #[arg(long, default_value_t = 20_000)]
    pub(crate) files: usize,
    /// How many of them the real pf captures; 0 for none
    #[arg(long, default_value_t = 400)]
    pub(crate) sample: usize,
    /// How often everything else is measured
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// MiB of the file in which 4 KiB change
    #[arg(long, default_value_t = 1024)]
    pub(crate) big_mib: u64,
    /// Measure these only
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Group>,
    /// The installed pf, for `pf snapshot`; else the one in $PATH, if there is one
    #[arg(long, value_name = "FILE")]
    pub(crate) pf: Option<PathBuf>,
    /// Write all figures, in seconds, to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where trees and stores are made, and deleted again; never below a folder named target, which pf leaves out
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub(crate) workdir: PathBuf,
    /// Given by cargo
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The figures, printed as they are measured.
#[derive(Default)]
pub(crate) struct Figures(pub(crate) Vec<Value>);

impl Figures {
    /// Adds a row, and returns its median in seconds.
    pub(crate) fn row(&mut self, name: &str, mut times: Vec<Duration>) -> f64 {
        times.sort_unstable();
        let (median, least, most) = (times[times.len() / 2], times[0], times[times.len() - 1]);
        println!("| {name} | {median:.1?} | {least:.1?}–{most:.1?} | {} |", load());
        self.0.push(json!({
            "name": name, "median": median.as_secs_f64(), "least": least.as_secs_f64(), "most": most.as_secs_f64(),
            "runs": times.len(), "load": load(),
        }));
        median.as_secs_f64()
    }

    /// Adds a ratio of two times.
    pub(crate) fn ratio(&mut self, name: &str, ratio: f64) {
        println!("| {name} | {ratio:.1} × | | |");
        self.0.push(json!({"name": name, "ratio": ratio}));
    }
}

/// Runs a command of pfimg on a store, and returns its time and what it reports.
pub(crate) fn run(command: &str, store: &Path, cache: &Path, args: &[&Path]) -> Result<(Duration, Value)> {
    let mut pfimg = pfimg(command);
    pfimg.arg("--json").args(args).env("PF_STORE", store).env("XDG_CACHE_HOME", cache);
    let start = Instant::now();
    let output = pfimg.output()?;
    let time = start.elapsed();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let whole: Value = serde_json::from_slice(&output.stdout)?;
    Ok((time, whole["result"].clone()))
}

/// The paths of the files of a tree.
pub(crate) fn files(tree: &SourceTree) -> Vec<&str> {
    tree.items.iter().filter(|i| matches!(i.kind, Kind::File { .. })).map(|i| i.path.as_str()).collect()
}
