//! `pfimg prune`: removes old seals of forks.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::audit;
use super::envelope::print_json;
use super::images::short;
use super::store_arg::StoreArg;
use super::text::{count, plain, print, table};
use crate::audit::note;
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::prune::{Options, Policy, Reason, Report, prune};
use crate::store::Store;

/// The most images in one line of the log.
pub(crate) const IN_A_LINE: usize = 100;

/// Remove old seals of forks, except those that --keep rules select.
#[derive(Debug, Args)]
#[command(after_help = "\
The rules select from the seals of all forks, also of discarded ones, and from images that applies keep. Always kept: \
tagged images, images that forks are based on, and images that `pfimg apply --undo` needs. `pfimg gc` deletes the data of removed images, but keeps data written in the last hour. `pfimg gc --grace 0s` deletes \
that too: use it only while no other program writes the store. \
`pfimg run` tags the image of a project with the name of its directory, and `mkdir $PFIMG_SNAP/NAME` in a run makes the tag \
NAME: `pfimg untag NAME` removes a tag.\n\
\n\
To remove everything that is neither tagged nor in use, also old imports of projects:\n  \
pfimg prune --all --keep-tagged --forget-applies && pfimg gc")]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct PruneArgs {
    /// Select only from the seals of these forks, which may be discarded [default: every fork]
    #[arg(value_name = "FORK")]
    forks: Vec<String>,
    /// Keep the newest N of each fork
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest of each of the last N hours with seals
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep the newest of each of the last N days (UTC) with seals
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep tagged images. Without another rule, pfimg removes all seals that have no tag and are not in use
    #[arg(long)]
    keep_tagged: bool,
    /// Select also from other images, such as imports, grouped by the agent that made them
    #[arg(long, conflicts_with = "forks")]
    all: bool,
    /// Forget finished applies and select from their images too. These applies can then not be undone
    #[arg(long, conflicts_with = "forks")]
    forget_applies: bool,
    /// Remove nothing; print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &PruneArgs) -> Result<ExitCode> {
    let counts = [args.keep_last, args.keep_hourly, args.keep_daily];
    if counts.iter().all(Option::is_none) && !args.keep_tagged {
        return Err(Error::new(ErrorKind::InvalidInput, "no --keep rule is given").with_hint(
            "`pfimg prune --keep-tagged` removes all seals that nothing needs; --keep-last, --keep-hourly and --keep-daily keep some; --dry-run only lists them",
        ));
    }
    let [last, hourly, daily] = counts.map(Option::unwrap_or_default);
    let store = Arc::new(store.open()?);
    let options = Options {
        policy: Policy { last, hourly, daily },
        forks: args.forks.clone(),
        all: args.all,
        forget_applies: args.forget_applies,
        dry_run: args.dry_run,
    };
    let report = prune(&store, &options, &lineage(&store)?)?;
    if report.removed > 0 && !report.dry_run {
        let removed = report.images.iter().filter(|image| image.kept.is_empty());
        let removed: Vec<Digest> = removed.map(|image| image.image).collect();
        audit::tell(&store, "prune", removed.chunks(IN_A_LINE).map(note::images_removed));
    }
    if args.json {
        print_json(&report)?;
    } else {
        print(&render(&report))?;
        eprintln!("pfimg: {}", summary(&report));
        for note in &report.notes {
            eprintln!("pfimg: {}", plain(note, usize::MAX));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns images that forks descend from, which their heads need not name: a copied fork holds a manifest.
pub(crate) fn lineage(store: &Arc<Store>) -> Result<Vec<Digest>> {
    let registry = forks::registry(store, true)?;
    Ok(registry.names().iter().filter_map(|name| registry.stats(name).ok()?.base).collect())
}

fn render(report: &Report) -> String {
    let cells: Vec<[String; 4]> = report
        .images
        .iter()
        .map(|image| {
            let reasons: Vec<&str> = image.kept.iter().copied().map(Reason::word).collect();
            [
                plain(&image.group, 40),
                short(&image.image),
                image.created_at.format("%F %T").to_string(),
                if reasons.is_empty() { "remove".into() } else { format!("keep: {}", reasons.join(", ")) },
            ]
        })
        .collect();
    if cells.is_empty() { String::new() } else { table(["FORK", "IMAGE", "CREATED (UTC)", ""], &cells) }
}

fn summary(report: &Report) -> String {
    let word = if report.dry_run { "would remove" } else { "removed" };
    let kept = report.images.len() as u64 - report.removed;
    format!("{word} {}, kept {kept}", count(report.removed, "image"))
}
