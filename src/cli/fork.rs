//! `pfimg fork`: makes a fork.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::audit;
use super::envelope::print_json;
use super::place::{self, Place};
use super::store_arg::StoreArg;
use super::text::print;
use crate::audit::note;
use crate::daemon::{calls, forks};
use crate::error::Result;
use crate::ops::recover;
use crate::store::plain_folder_mode;

/// Make a fork: a writable copy of an image or of another fork. Prints the path of its files, if the store is
/// mounted.
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// Another fork, a seal of it (FORK@SEAL), or an image: its tag, the first digits of its id, or latest
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The fork's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &ForkArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let ForkArgs { source, name, .. } = args;
    forks::check_fork_name(name)?;
    let work = match place::find(&store)? {
        Place::Mount(served) => {
            calls::fork(&served.client, source, name)?;
            Some(calls::files_of(&served.mountpoint, name))
        }
        Place::Disk(registry) => {
            let made = if registry.contains(source) {
                let parent = recover::read_back(&store, &registry, source, &audit::told(&store, "fork"))?;
                registry.branch_as(&parent, name, plain_folder_mode())?
            } else {
                registry.create_as(name, Some(forks::image(&store, source)?), plain_folder_mode())?
            };
            registry.sync()?;
            audit::tell(&store, "fork", [note::fork_made(name, made.base().as_ref())]);
            None
        }
    };
    let work = work.as_deref().map(Path::to_string_lossy);
    if args.json {
        print_json(&json!({"fork": name, "work": work}))?;
    } else if let Some(work) = work {
        print(&format!("{work}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
