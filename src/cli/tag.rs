//! `pfimg tag`: gives an image a name.

use std::process::ExitCode;

use clap::Args;

use super::{StoreArg, audit, place};
use crate::audit::note;
use crate::error::{ErrorKind, Result};
use crate::store::tags::check_new_tag;

/// Give an image a name.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// The image: a tag, at least 4 digits of its id, sha256:…, or latest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The tag
    #[arg(value_name = "NAME")]
    name: String,
    /// Move a tag that is there already
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(store: &StoreArg, args: &TagArgs) -> Result<ExitCode> {
    check_new_tag(&args.name)?;
    let store = store.open()?;
    let image = place::image(&store, &args.image)?;
    store.tags().set(&args.name, &image, args.force).map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists { error.with_hint("--force moves it") } else { error }
    })?;
    audit::tell(&store, "tag", [note::tags_changed(&[&args.name], &[], Some(&image))]);
    Ok(ExitCode::SUCCESS)
}
