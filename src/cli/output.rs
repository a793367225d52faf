//! `pfimg output`: prints what the command of a run printed.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::StoreArg;
use super::envelope::print_json;
use super::run::copy_output;
use crate::error::Result;

/// Print the output of the last run in a fork.
///
/// Runs of several forks and runs with --json keep their output. Of more than 16 MiB pfimg keeps the first 4 and the last 12.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// The fork's name
    #[arg(value_name = "FORK")]
    name: String,
    /// Print more as the command prints it, until the run has ended
    #[arg(short, long)]
    follow: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "follow")]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &OutputArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let name = &args.name;
    if args.json {
        let mut bytes = Vec::new();
        let copied = copy_output(store.root(), name, false, &mut bytes, &mut |_| {})?;
        let text = String::from_utf8_lossy(&bytes);
        print_json(&json!({"fork": name, "text": text, "bytes": copied.bytes, "cut_bytes": copied.cut}))?;
    } else {
        let mut stdout = std::io::stdout().lock();
        copy_output(store.root(), name, args.follow, &mut stdout, &mut |what| {
            eprintln!("pfimg: {what}");
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
