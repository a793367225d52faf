//! A command of pfimg's own in a fork, such as git: what a repository names to be run is kept to the fork.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::RunArgs;
use super::conf::Conf;
use super::sandboxed::{self, Given, Job};
use crate::cli::place;
use crate::error::Result;
use crate::fork::beside;
use crate::store::Store;

/// Runs a command in a fork, where the fork's project is, and gives its exit code. Of the machine it can write the folder `out` alone. It
/// has no network, and none of the caller's credentials.
pub(crate) fn run(store: &Arc<Store>, fork: &str, command: &[OsString], out: &Path) -> Result<u8> {
    let place::Served { mountpoint, cache_dir } = place::mounted(store)?;
    let project = beside::project(store.root(), fork)?.filter(|root| root.is_dir());
    let args = RunArgs { no_network: true, quiet: true, write: vec![out.to_owned()], ..RunArgs::default() };
    let job = Job {
        store,
        mountpoint: &mountpoint,
        cache_dir: &cache_dir,
        fork,
        at: project.as_deref(),
        project: project.as_deref(),
        start: &PathBuf::new(),
        command,
    };
    let given = Given::of(std::iter::empty());
    Ok(sandboxed::run(&job, &args, &Conf::default(), given)?.pass_on())
}
