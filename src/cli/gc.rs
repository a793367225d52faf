//! `pfimg gc`: deletes blobs that nothing refers to.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::envelope::print_json;
use super::progress::Bar;
use super::store_arg::StoreArg;
use super::text::{count, plain, print};
use crate::error::{Exit, Result};
use crate::ops::gc::{Options, Progress, Report, collect};
use crate::util::parallel::default_jobs;
use crate::util::units::{format_bytes, parse_duration};

/// Delete data that no image, tag or fork needs. The store keeps data in blobs: files that have the hash of their
/// content as name.
#[derive(Debug, Args)]
#[command(after_help = "\
gc can run while other programs use the store. They may have stored data that no image refers to yet, so gc keeps data \
younger than --grace. With `--grace 0s` it deletes all unneeded data at once: use this only while no other program writes \
the store. If gc cannot read something that may refer to data, it deletes nothing and exits with 4.")]
pub(crate) struct GcArgs {
    /// Delete nothing; print what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Keep data younger than AGE (30s, 10m, 2h, 7d). AGE must be longer than any import or `pf snapshot`
    /// that runs at the same time
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = parse_duration)]
    grace: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &GcArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let options = Options { grace: args.grace, dry_run: args.dry_run, jobs: default_jobs() };
    let bar = Bar::new();
    let report = collect(&store, &options, &bar);
    bar.finish();
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&format!("{}\n", summary(&report)))?;
        for line in report.problems.iter().chain(&report.notes) {
            eprintln!("pfimg: {}", plain(line, usize::MAX));
        }
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

fn summary(report: &Report) -> String {
    if !report.problems.is_empty() {
        let number = count(report.problems.len() as u64, "problem");
        return format!("nothing deleted because of {number}");
    }
    let word = if report.dry_run { "would delete" } else { "deleted" };
    let temps = match report.temp_files {
        0 => String::new(),
        files => format!(" and {}", count(files, "temporary file")),
    };
    let young = match report.young {
        0 => String::new(),
        blobs => {
            format!("; {} ({}) younger than --grace", count(blobs, "blob"), format_bytes(report.young_bytes))
        }
    };
    format!(
        "{word} {}{temps}, {}; kept {} of {}{young}",
        count(report.deleted, "blob"),
        format_bytes(report.freed_bytes),
        count(report.kept, "blob"),
        count(report.images, "image"),
    )
}

impl Progress for Bar {
    fn layers(&self, more: u64) {
        if more > 0 {
            self.start(more, "{bar:30} {pos}/{len} layers read");
        }
    }

    fn layer_done(&self) {
        self.inc(1);
    }

    fn deleting(&self, total: u64) {
        self.start(total, "{bar:30} {pos}/{len} blobs deleted{left}");
    }

    fn deleted(&self) {
        self.inc(1);
    }
}
