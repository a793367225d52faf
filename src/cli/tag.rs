//! `pfimg tag`: gives an image a name.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::audit;
use super::envelope::print_json;
use super::store_arg::StoreArg;
use crate::audit::note;
use crate::daemon::forks;
use crate::error::Result;
use crate::store::tags::check_new_tag;

/// Give an image a name.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// An image: its tag, at least 4 digits of its id, or latest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The new tag
    #[arg(value_name = "NAME")]
    name: String,
    /// Move the tag if it exists
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &TagArgs) -> Result<ExitCode> {
    check_new_tag(&args.name)?;
    let store = store.open()?;
    let image = forks::image(&store, &args.image)?;
    store.tags().set(&args.name, &image, args.force)?;
    audit::tell(&store, "tag", [note::tags_changed(&[&args.name], &[], Some(&image))]);
    if args.json {
        print_json(&json!({"tag": args.name, "image": image}))?;
    }
    Ok(ExitCode::SUCCESS)
}
