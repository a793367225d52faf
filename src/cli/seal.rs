//! `pfimg seal`: makes an image of a fork.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::StoreArg;
use super::audit;
use super::envelope::print_json;
use super::place::{self, Place};
use super::secret::SecretArg;
use super::text::print;
use crate::error::Result;
use crate::ops::recover;
use crate::ops::seal::{Sealer, Tag};
use crate::store::tags::check_new_tag;

/// Save a fork as an image, as it stands. Prints the id of the image.
#[derive(Debug, Args)]
pub(crate) struct SealArgs {
    /// The fork's name
    #[arg(value_name = "FORK")]
    name: String,
    /// Give the image a name
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Take the name from the image that has it
    #[arg(long, alias = "force-tag", requires = "tag")]
    force: bool,
    #[command(flatten)]
    secret: SecretArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &SealArgs) -> Result<ExitCode> {
    let tag = args.tag.as_deref().map(|name| Tag { name, force: args.force });
    if let Some(tag) = &tag {
        check_new_tag(tag.name)?;
    }
    let store = Arc::new(store.open()?);
    let name = &args.name;
    let done = match place::find(&store)? {
        Place::Mount(mountpoint) => {
            place::check_secret(&mountpoint, &args.secret)?;
            let tag = tag
                .map_or_else(String::new, |tag| format!("{}{}", if tag.force { '!' } else { '=' }, tag.name));
            place::ask(&mountpoint, name, &format!("cannot seal fork {name:?}"), |number| {
                format!(".seal-{number}{tag}")
            })?
        }
        Place::Disk(registry) => {
            let log = audit::told(&store, "seal");
            let fork = recover::read_back(&store, &registry, name, &log)?;
            let reader = place::reader(&store);
            let sealer = Sealer::new(Arc::clone(&store), reader, args.secret.read()?);
            let sealed = sealer.with_log(log).seal(&fork, tag)?;
            registry.sync()?;
            place::Done { image: sealed.image, new: sealed.new, reports: sealed.reports }
        }
    };
    for report in &done.reports {
        eprintln!("pfimg: {report}");
    }
    if args.json {
        print_json(&json!({
            "fork": name, "image": done.image, "new": done.new, "tag": args.tag, "reports": done.reports,
        }))?;
    } else {
        print(&format!("{}\n", done.image))?;
    }
    Ok(ExitCode::SUCCESS)
}
