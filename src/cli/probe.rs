//! Sends the first requests to a new mount, from its own process, since the daemon must not wait for itself.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;

use crate::error::{Error, ErrorKind, Result};

/// The command's name. Unlike every word that a user may mistype, so that it is never suggested.
pub(crate) const COMMAND: &str = "__first-requests";

/// Look at a new mount.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    mountpoint: PathBuf,
}

/// Accesses the mount once. The kernel learns which requests it can omit (OPEN, OPENDIR, FLUSH, GETXATTR)
/// before a measurement, and the caller learns that the mount answers.
pub(crate) fn run(args: &ProbeArgs) -> Result<ExitCode> {
    let failed = |e| Error::io(e, format!("{} does not answer", args.mountpoint.display()));
    let status = args.mountpoint.join(".pfimg/status.json");
    let mut file = File::open(&status).map_err(failed)?;
    if file.read(&mut [0]).map_err(failed)? == 0 {
        return Err(Error::new(ErrorKind::Io(None), format!("{} is empty", status.display())));
    }
    drop(file);
    let _ = fs::read_dir(&args.mountpoint).map_err(failed)?.next();
    let _ = rustix::fs::getxattr(&args.mountpoint, "user.pfimg", &mut [0u8; 1]);
    Ok(ExitCode::SUCCESS)
}

/// Runs the probe in its own process.
pub(super) fn spawn(mountpoint: &Path) -> Result<()> {
    let failed = |e| Error::io(e, "cannot run pfimg to look at the mount");
    let output = Command::new(std::env::current_exe().map_err(failed)?)
        .arg(COMMAND)
        .arg(mountpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("pfimg: ").to_owned();
    // The text comes from `run`, in the process that looked.
    Err(Error::new(
        ErrorKind::Io(None),
        if said.is_empty() { "the new mount does not answer".into() } else { said },
    ))
}
