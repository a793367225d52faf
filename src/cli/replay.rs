//! `pfimg replay`: judges a crash pack again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::envelope::print_json;
use super::store_arg::StoreArg;
use super::text::{count, plain, print};
use crate::audit::file::crash_dir;
use crate::crashpack::evidence::EvidenceLedger;
use crate::crashpack::replay::replay;
use crate::crashpack::{FILES, TraceEvent, seed_variable};
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::oracle::TransferOracleResult;

/// Repeat a failed check from its record (a crash pack). When pfimg finds that one of its promises does not hold,
/// it writes a crash pack: a directory with the evidence. Exits with 1 if the check fails again, and with 4 if the
/// pack was changed.
#[derive(Debug, Args)]
#[command(after_help = "\
If the environment contains a seed of the pack, as PFIMG_SEED_<NAME>, the two must be equal.")]
pub(crate) struct ReplayArgs {
    /// The pack's directory, or its name from `pfimg audit --packs`
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// Fail unless the part NAME of the check (an oracle) took part
    #[arg(long = "oracle", value_name = "NAME")]
    oracles: Vec<String>,
    /// Write a pack that fails in the same way, with as few steps as possible, to a new directory
    #[arg(long, value_name = "DIR")]
    minimize: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    reproduced: bool,
    results: &'a [TransferOracleResult],
    ledger: &'a EvidenceLedger,
    /// The steps and the judged objects, in order.
    trace: &'a [TraceEvent],
}

/// Returns the directory of a pack. A word without a separator that is not a directory here names a pack of the
/// store.
fn folder(store: &StoreArg, pack: &Path) -> Result<PathBuf> {
    let is_name =
        pack.components().count() == 1 && matches!(pack.components().next(), Some(Component::Normal(_)));
    if !is_name || pack.symlink_metadata().is_ok() {
        return Ok(pack.to_owned());
    }
    let kept = crash_dir(store.open()?.root()).join(pack);
    if kept.symlink_metadata().is_ok() {
        return Ok(kept);
    }
    Err(Error::new(ErrorKind::NotFound, format!("there is no crash pack {:?}", pack.display().to_string()))
        .with_hint("list the packs of the store with `pfimg audit --packs`, or name a directory"))
}

/// Fails if an environment variable gives another seed than the pack.
fn check_seeds(seeds: &BTreeMap<String, u64>) -> Result<()> {
    for (name, seed) in seeds {
        let variable = seed_variable(name);
        let Some(said) = std::env::var_os(&variable) else { continue };
        if said.to_string_lossy() != seed.to_string() {
            let message =
                format!("${variable} is {:?}, and the pack has seed {seed}", said.to_string_lossy());
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_hint(format!("unset {variable}, or set it to {seed}")));
        }
    }
    Ok(())
}

pub(crate) fn run(store: &StoreArg, args: &ReplayArgs) -> Result<ExitCode> {
    let found = replay(&folder(store, &args.pack)?, &args.oracles)?;
    check_seeds(&found.ledger.seeds)?;
    let reproduced = found.reproduces();
    if let Some(dir) = &args.minimize {
        if dir.symlink_metadata().is_ok() {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("{} already exists", dir.display()))
                .with_hint("name a directory that does not exist yet"));
        }
        let least = found.pack.minimized();
        least.write_to(dir)?;
        let (before, after) = (found.pack.steps(), least.steps());
        eprintln!("pfimg: {} has {after} of {}", dir.display(), count(before as u64, "step"));
    }
    if args.json {
        print_json(&Report {
            reproduced,
            results: &found.results,
            ledger: &found.ledger,
            trace: found.pack.trace(),
        })?;
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
        for event in found.pack.trace().iter().filter(|event| event.judged.is_none()) {
            let (kind, message) = (plain(&event.kind, 80), plain(&event.message, 500));
            let _ = writeln!(out, "step {}: {kind}: {message}", event.seq);
        }
        for path in found.ledger.artifact_paths.iter().skip(FILES.len()) {
            let _ = writeln!(out, "concerns {}", plain(path, 500));
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
    Ok(if reproduced { Exit::Differs.into() } else { ExitCode::SUCCESS })
}
