//! `pfimg cp`: copies a tag without copying content.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::audit;
use super::envelope::print_json;
use super::store_arg::StoreArg;
use crate::audit::note;
use crate::digest::Digest;
use crate::error::Result;
use crate::store::copy_tag::check_names;

/// Give an image a second tag. Copies no content.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// An image: its tag, the first digits of its id, or latest
    #[arg(value_name = "SRC")]
    source: String,
    /// The new tag
    #[arg(value_name = "DST")]
    destination: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Copy {
    tag: String,
    image: Digest,
    /// Blobs that the manifest names; the copy shares them.
    linked_blobs: usize,
    copied_bytes: u64,
}

pub(crate) fn run(store: &StoreArg, args: &CpArgs) -> Result<ExitCode> {
    check_names(&args.source, &args.destination)?;
    let store = store.open()?;
    let (image, plan) = store.copy_tag(&args.source, &args.destination)?;
    audit::tell(&store, "cp", [note::tags_changed(&[&args.destination], &[], Some(&image))]);
    if args.json {
        let linked_blobs = plan.hard_links();
        print_json(&Copy { tag: plan.dst.tag, image, linked_blobs, copied_bytes: 0 })?;
    }
    Ok(ExitCode::SUCCESS)
}
