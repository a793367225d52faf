//! `pfimg untag`: takes a name away.

use std::process::ExitCode;

use clap::Args;

use super::StoreArg;
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
        store.tags().remove(name).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                error.with_hint("`pfimg tags` lists them")
            } else {
                error
            }
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
