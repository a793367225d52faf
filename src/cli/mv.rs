//! `pfimg mv`: renames a fork.

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::envelope::print_json;
use super::place::{self, Place};
use super::store_arg::StoreArg;
use super::{audit, runs};
use crate::audit::note;
use crate::daemon::calls;
use crate::error::Result;

/// Rename a fork.
#[derive(Debug, Args)]
pub(crate) struct MvArgs {
    /// The fork's name
    #[arg(value_name = "NAME")]
    name: String,
    /// The new name
    #[arg(value_name = "NEW")]
    new_name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &MvArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let MvArgs { name, new_name, .. } = args;
    match place::find(&store)? {
        Place::Mount(served) => calls::rename(&served.client, name, new_name)?,
        Place::Disk(registry) => {
            let renamed = registry.rename(name, new_name)?;
            registry.sync()?;
            audit::tell(&store, "mv", note::fork_renamed(name, new_name, renamed.base.as_ref()));
        }
    }
    // A fork without a run has no record.
    let _ = fs::rename(runs::path(store.root(), name), runs::path(store.root(), new_name));
    if args.json {
        print_json(&json!({"fork": new_name, "was": name}))?;
    }
    Ok(ExitCode::SUCCESS)
}
