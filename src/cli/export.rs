//! `pfimg export`: writes an image into a directory.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::audit;
use super::envelope::print_json;
use super::progress::Bar;
use super::store_arg::StoreArg;
use super::text::{count, count_directories, plain};
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Error, Exit, Result};
use crate::ops::export::{Options, Progress, Report, export};
use crate::util::parallel::default_jobs;
use crate::util::units::format_bytes;

/// Write the files of an image into a directory.
#[derive(Debug, Args)]
#[command(after_help = "\
Only root restores owners. Export skips a file whose content is missing or damaged, names it, and exits with 4.\n\
Export writes nothing outside of the directory, whatever the image contains. It copies symbolic links unchanged.\n\
Seal a fork first: export writes images. `pfimg apply` copies the changes of a fork to its project.")]
pub(crate) struct ExportArgs {
    /// An image: its tag, the first digits of its id, or latest
    image: String,
    /// The directory, empty or missing
    dir: PathBuf,
    /// Write all parts of the image, laid out as under a mount
    #[arg(long)]
    all: bool,
    /// Write the secrets that sign ledgers (records of tool calls). With a secret, a reader can forge its
    /// ledger
    #[arg(long, requires = "all")]
    reveal_secrets: bool,
    /// Cache directory; exported files share its data, if the filesystem supports it [default: as for `pfimg
    /// mount`]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    image: Digest,
    dir: std::borrow::Cow<'a, str>,
    #[serde(flatten)]
    report: &'a Report,
}

pub(crate) fn run(store: &StoreArg, args: &ExportArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let image = forks::image(&store, &args.image)?;
    let options = Options {
        dir: args.dir.clone(),
        all: args.all,
        reveal_secrets: args.reveal_secrets,
        cache_dir: Some(args.cache_dir.clone().unwrap_or_else(super::mount::default_cache_dir)),
        jobs: args.jobs.unwrap_or_else(default_jobs),
        log: audit::told(&store, "export"),
    };
    let shown = Shower { bar: Bar::new(), interrupted: Arc::default() };
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The first signal ends the export between two files, with a summary; the second ends it at once.
        let doing = |e| Error::io(e, "cannot watch for signals");
        let interrupted = Arc::clone(&shown.interrupted);
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&interrupted)).map_err(doing)?;
        flag::register(signal, interrupted).map_err(doing)?;
    }
    let report = export(&store, &image, &options, &shown);
    shown.bar.finish();
    let report = report?;
    if args.json {
        print_json(&Shown { image, dir: args.dir.to_string_lossy(), report: &report })?;
    } else {
        for line in report.damaged.iter().chain(&report.notes) {
            eprintln!("pfimg: {}", plain(line, usize::MAX));
        }
        eprintln!("pfimg: {}", summary(&report));
    }
    Ok(if report.damaged.is_empty() { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

fn summary(report: &Report) -> String {
    let damaged = match report.damaged.len() as u64 {
        0 => String::new(),
        files => format!("; {} left out because of damage", count(files, "file")),
    };
    format!(
        "exported {} in {}, {}{damaged}",
        count(report.files, "file"),
        count_directories(report.folders),
        format_bytes(report.bytes)
    )
}

/// Shows the progress, and ends the export after a signal.
struct Shower {
    bar: Bar,
    interrupted: Arc<AtomicBool>,
}

impl Progress for Shower {
    fn to_write(&self, bytes: u64) {
        self.bar.start(bytes, "{bar:30} {bytes}/{total_bytes} written{speed}{left}");
    }

    fn written(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn goes_on(&self) -> bool {
        !self.interrupted.load(Ordering::Relaxed)
    }
}
