//! `pfimg discard`: throws a fork away.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::place::{self, Place};
use super::{StoreArg, audit};
use crate::audit::note;
use crate::error::Result;
use crate::mount::mountinfo::runs_in;

/// Throw a fork away, with everything in it that was not sealed.
#[derive(Debug, Args)]
pub(crate) struct DiscardArgs {
    /// The forks' names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(crate) fn run(store: &StoreArg, args: &DiscardArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let place = place::find(&store)?;
    // A name that is wrong must not cost the forks before it.
    for name in &args.names {
        match &place {
            Place::Mount(mountpoint) => drop(place::fork_folder(mountpoint, name)?),
            Place::Disk(registry) => drop(registry.info(name)?),
        }
    }
    for name in &args.names {
        match &place {
            Place::Mount(mountpoint) => {
                let runs = runs_in(mountpoint, name);
                place::discard_under(mountpoint, name)?;
                if runs {
                    place::warn_of_run(name);
                }
            }
            Place::Disk(registry) => {
                let gone = registry.discard(name)?;
                audit::tell(&store, "discard", [note::fork_discarded(name, gone.base.as_ref())]);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
