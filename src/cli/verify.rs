//! `pfimg verify`: checks every byte of the store.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Args;

use super::envelope::print_json;
use super::progress::Bar;
use super::secret::operator_secret;
use super::store_arg::StoreArg;
use super::text::{count, print};
use crate::daemon::forks;
use crate::error::{Exit, Result};
use crate::ops::verify::{Options, Progress, Report, Severity, verify};
use crate::util::parallel::default_jobs;
use crate::util::units::format_bytes;

/// Check every byte of the store. Exits with 4 if anything is damaged.
#[derive(Debug, Args)]
#[command(after_help = "\
Prints one line per finding: `verify: CODE: SUBJECT: DETAIL`. docs/TROUBLESHOOTING.md explains each code.\n\
If a ledger (a record of tool calls) was signed with a secret that it does not contain, verify uses the secret in\n\
$PF_SESSION_SECRET (hex).")]
pub(crate) struct VerifyArgs {
    /// Check only these images and everything that they refer to [default: the whole store]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
}

pub(crate) fn run(store: &StoreArg, args: &VerifyArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let mut ids = Vec::new();
    for image in &args.images {
        let id = forks::image(&store, image)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let options = Options {
        images: (!args.images.is_empty()).then_some(ids),
        jobs: args.jobs.unwrap_or_else(default_jobs),
        secret: operator_secret()?,
    };
    let bar = Bar::new();
    let report = verify(&store, &options, &bar);
    bar.finish();
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        let mut lines = String::new();
        for finding in &report.findings {
            let _ = writeln!(lines, "{finding}");
        }
        print(&lines)?;
        eprintln!("pfimg: {}", summary(&report));
    }
    Ok(if report.count(Severity::Damage) == 0 { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

fn summary(report: &Report) -> String {
    let (damage, notes) = (report.count(Severity::Damage), report.count(Severity::Note));
    let verdict = match damage {
        0 => "no damage".to_owned(),
        damage => format!("{} of damage", count(damage as u64, "finding")),
    };
    let notes = if notes > 0 { format!(", {}", count(notes as u64, "note")) } else { String::new() };
    let unchained = match report.ledgers.unchained {
        0 => String::new(),
        ledgers => format!("; {} without a chain to verify", count(ledgers, "ledger")),
    };
    format!(
        "verified {}, {}, {}: {verdict}{notes}{unchained}",
        count(report.images, "image"),
        count(report.blobs, "blob"),
        format_bytes(report.bytes),
    )
}

impl Progress for Bar {
    fn images(&self, total: u64) {
        self.start(total, "{bar:30} {pos}/{len} images");
    }

    fn image_done(&self) {
        self.inc(1);
    }

    fn layers(&self, total: u64) {
        self.start(total, "{bar:30} {pos}/{len} layers");
    }

    fn layer_done(&self) {
        self.inc(1);
    }

    fn blobs(&self, _total: u64, bytes: u64) {
        self.start(bytes, "{bar:30} {bytes}/{total_bytes} on disk, {bytes_per_sec}, {eta} left");
    }

    fn blob_done(&self, bytes: u64) {
        self.inc(bytes);
    }
}
