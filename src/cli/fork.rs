//! `pfimg fork`: makes a fork.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::place::{self, Place};
use super::{StoreArg, audit};
use crate::audit::note;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::refuse_fork_name;
use crate::recovery;

/// Make a fork: a folder an agent can write into.
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// What to fork: an image (tag, prefix, sha256:…, latest) or another fork
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The fork's name
    #[arg(value_name = "NAME")]
    name: String,
}

pub(crate) fn run(store: &StoreArg, args: &ForkArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let ForkArgs { source, name } = args;
    if let Some(why) = refuse_fork_name(name) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a fork's name: {why}")));
    }
    match place::find(&store)? {
        Place::Mount(mountpoint) => {
            let forks = mountpoint.join("forks");
            if forks.join(name).exists() {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("there is a fork {name:?} already"),
                ));
            }
            if !forks.join(source).exists() {
                // Told better here than by an errno.
                store.resolve(source)?;
            }
            std::fs::create_dir(forks.join(format!("{name}@{source}"))).map_err(|e| {
                place::explain(e, format!("cannot make fork {name:?} of {source:?}"), &mountpoint)
            })?;
            println!("{}", mountpoint.join("work").join(name).display());
        }
        Place::Disk(registry) => {
            let made = if registry.contains(source) {
                let parent = recovery::read_back(&store, &registry, source, &audit::told(&store, "fork"))?;
                registry.branch(&parent, name)?
            } else {
                registry.create(name, Some(store.resolve(source)?))?
            };
            registry.sync()?;
            audit::tell(&store, "fork", [note::fork_made(name, made.base().as_ref())]);
        }
    }
    Ok(ExitCode::SUCCESS)
}
