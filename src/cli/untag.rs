//! `pfimg untag`: takes a name away.

use std::process::ExitCode;

use clap::Args;

use super::{StoreArg, audit};
use crate::audit::note;
use crate::error::{ErrorKind, Result};

/// Take tags away; their images stay.
#[derive(Debug, Args)]
pub(crate) struct UntagArgs {
    /// The tags
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(crate) fn run(store: &StoreArg, args: &UntagArgs) -> Result<ExitCode> {
    let store = store.open()?;
    for name in &args.names {
        let image = store.tags().remove(name).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                error.with_hint("`pfimg tags` lists them")
            } else {
                error
            }
        })?;
        audit::tell(&store, "untag", [note::tags_changed(&[], &[name], image.as_ref())]);
    }
    Ok(ExitCode::SUCCESS)
}
