//! `pfimg untag`: removes tags.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::audit;
use super::envelope::print_json;
use super::store_arg::StoreArg;
use crate::audit::note;
use crate::error::{ErrorKind, Result};

/// Remove tags; their images stay.
#[derive(Debug, Args)]
pub(crate) struct UntagArgs {
    /// Tags to remove; if one of them does not exist, pfimg removes none
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &UntagArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let names: BTreeSet<&str> = args.names.iter().map(String::as_str).collect();
    // A mistyped name must not remove the tags before it.
    for name in &names {
        match store.tags().get(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(error.with_hint("list the tags with `pfimg tags`; no tag was removed"));
            }
            // A tag that cannot be read can still be removed.
            Err(error) if error.kind() != ErrorKind::Damaged => return Err(error),
            _ => {}
        }
    }
    let mut removed = Vec::new();
    for name in names {
        let image = store.tags().remove(name)?;
        removed.push(json!({"tag": name, "image": image}));
        audit::tell(&store, "untag", [note::tags_changed(&[], &[name], image.as_ref())]);
    }
    if args.json {
        print_json(&json!({"removed": removed}))?;
    }
    Ok(ExitCode::SUCCESS)
}
