//! `pfimg replay`: judges a crash pack again.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::text::{count, plain, print, print_json};
use crate::crashpack::evidence::EvidenceLedger;
use crate::crashpack::replay::replay;
use crate::error::Result;
use crate::oracle::TransferOracleResult;

/// The exit code where a violation is found again.
const REPRODUCED: u8 = 3;

/// Judge a crash pack again, from its own files alone. Exits with 3 if a violation is found again, and with 4 if the pack
/// was changed.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The pack's folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// An oracle that must be among those that judged
    #[arg(long = "oracle", value_name = "NAME")]
    oracles: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    reproduced: bool,
    results: Vec<TransferOracleResult>,
    ledger: EvidenceLedger,
}

pub(crate) fn run(args: &ReplayArgs) -> Result<ExitCode> {
    let found = replay(&args.pack, &args.oracles)?;
    let reproduced = found.reproduces();
    if args.json {
        print_json(&Report { reproduced, results: found.results, ledger: found.ledger })?;
    } else {
        let mut out = String::new();
        if found.results.is_empty() {
            out.push_str("no oracle judged here\n");
        }
        for (name, seed) in &found.ledger.seeds {
            let _ = writeln!(out, "seed {}: {seed}", plain(name, 80));
        }
        for (key, value) in &found.ledger.metadata {
            let _ = writeln!(out, "{}: {}", plain(key, 80), plain(value, 500));
        }
        for result in &found.results {
            let name = plain(&result.oracle_name, 80);
            if result.passed {
                let _ = writeln!(out, "{name}: passed");
            } else {
                let violations = count(result.violations.len() as u64, "violation");
                let _ = writeln!(out, "{name}: {violations} reproduced");
            }
            for violation in &result.violations {
                let _ = writeln!(
                    out,
                    "  {} ({}): {}",
                    plain(&violation.violation_type, 80),
                    violation.severity.label(),
                    plain(&violation.description, 500),
                );
            }
        }
        print(&out)?;
    }
    Ok(if reproduced { ExitCode::from(REPRODUCED) } else { ExitCode::SUCCESS })
}
