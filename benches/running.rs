//! What `pfimg run` adds to a command.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::figures::Figures;
use super::result::Result;
use super::scratch::{Scratch, pfimg};
use super::sealing;

/// Times each command is run, for one run of everything else.
const COMMANDS: usize = 10;

/// The least of all: a command that does nothing, and one that reads all files of a fork.
pub(crate) fn rows(runs: usize, files: usize, scratch: &Scratch, figures: &mut Figures) -> Result<()> {
    let store = scratch.path().join("run-store");
    sealing::fixture(&store, &["--world-files", &files.to_string(), "--world-file-bytes", "3000"])?;
    let mounted = sealing::Mounted::new(scratch, "run", &store)?;
    let world = mounted.world();
    for (what, command) in [("true", &["true"][..]), ("grep", &["grep", "-r", "no such text", "."][..])] {
        let (mut plain, mut confined) = (Vec::new(), Vec::new());
        // Each in turn, so that other load on the machine meets both; the first reads what the others find
        // cached.
        for round in 0..=runs * COMMANDS {
            scratch.go_on()?;
            let times = [time(&mut direct(command, &world))?, time(&mut within(command, &world, &store))?];
            if round > 0 {
                plain.push(times[0]);
                confined.push(times[1]);
            }
        }
        let plain = figures.row(&format!("{what}, in a fork of {files} files"), plain);
        let confined = figures.row(&format!("{what}, there by `pfimg run`"), confined);
        figures.ratio(&format!("{what}: by `pfimg run` to without"), confined / plain);
    }
    mounted.end()
}

fn direct(command: &[&str], world: &Path) -> Command {
    let mut direct = Command::new(command[0]);
    direct.args(&command[1..]).current_dir(world);
    direct
}

fn within(command: &[&str], world: &Path, store: &Path) -> Command {
    let mut within = pfimg("run");
    within.args(["f", "--"]).args(command).current_dir(world).env("PF_STORE", store);
    within
}

/// How long a command takes that finds nothing, or does nothing.
fn time(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.output()?;
    let time = start.elapsed();
    // grep says 1 where it found nothing, and 2 where it could not read.
    if output.status.code().is_none_or(|code| code > 1) || !output.stdout.is_empty() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(time)
}
