//! Runs pfimg's own commands, such as git, in a fork: programs that a repository names can change only the
//! fork.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::RunArgs;
use super::conf::Conf;
use super::sandboxed::{self, Given, Job};
use crate::cli::place;
use crate::error::Result;
use crate::fork::beside;
use crate::store::Store;

/// Runs a command in a fork's project directory, and returns its exit code. On the machine, the command can
/// write only the directory `out`. It has no network, and none of the caller's credentials.
pub(crate) fn run(store: &Arc<Store>, fork: &str, command: &[OsString], out: &Path) -> Result<u8> {
    let place::Served { mountpoint, cache_dir, client } = place::mounted(store)?;
    let project = beside::project(store.root(), fork)?.filter(|root| root.is_dir());
    let args = RunArgs { no_network: true, quiet: true, write: vec![out.to_owned()], ..RunArgs::default() };
    let job = Job {
        store,
        mountpoint: &mountpoint,
        socket: client.socket(),
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
