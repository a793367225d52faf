//! `pfimg output`: prints the kept output of a run.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::envelope::print_json;
use super::run::copy_output;
use super::store_arg::StoreArg;
use crate::error::Result;

/// Print the output of the last run in a fork.
///
/// pfimg keeps the output of runs side by side and of runs with --json; a run in one fork prints to the
/// terminal. Of more than 16 MiB, pfimg keeps the first 4 MiB and the last 12 MiB.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// The fork's name
    #[arg(value_name = "FORK")]
    name: String,
    /// Wait for more output until the run ends
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
