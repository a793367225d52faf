//! `pfimg umount`: ends a mount and waits for its daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde_json::json;

use super::envelope::{Failure, print_json};
use super::holder::explain_nothing_mounted;
use super::statuses::read_status;
use super::store_arg::StoreArg;
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::mount::attach::{Unmounted, unmount};
use crate::mount::hints;
use crate::mount::mountinfo::{mounted_at, mounts};
use crate::mount::silent::Daemon;

/// How long to wait for the daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmount a store and end its daemon. Forks and their changes stay in the store.
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// The mountpoint, from `pfimg status`
    #[arg(value_name = "MNT", required_unless_present = "all")]
    mountpoint: Option<PathBuf>,
    /// Unmount every mount that you made of this store, also those that `pfimg run` made
    #[arg(long, conflicts_with = "mountpoint")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An ended mount, for programs.
#[derive(Debug, Serialize)]
struct Ended {
    mountpoint: String,
    state: &'static str,
    /// The daemon, if it still runs.
    daemon: Option<u32>,
}

/// A mount that stays, and why.
#[derive(Debug, Serialize)]
struct Stays {
    mountpoint: String,
    error: Failure,
}

pub(crate) fn run(store: &StoreArg, args: &UmountArgs) -> Result<ExitCode> {
    match &args.mountpoint {
        Some(mountpoint) => {
            let ended = end(mountpoint)?;
            if args.json {
                print_json(&ended)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        None => end_all(store, args.json),
    }
}

/// Ends the mounts that this user made of a store. A mount that cannot be ended does not keep the others.
fn end_all(store: &StoreArg, json: bool) -> Result<ExitCode> {
    let store = store.path()?;
    // The directory of the store may be gone, and its mount still there.
    let store = fs::canonicalize(&store).unwrap_or(store);
    let user = rustix::process::geteuid().as_raw();
    let mut found: Vec<PathBuf> = Vec::new();
    for mounted in mounts()? {
        let is_own = mounted.is_ours() && mounted.source == store && mounted.user() == Some(user);
        // Another root is a fork that a run shows.
        if is_own && mounted.root == Path::new("/") && !found.contains(&mounted.path) {
            found.push(mounted.path);
        }
    }
    let (mut ended, mut failed): (Vec<Ended>, Vec<(&Path, Error)>) = (Vec::new(), Vec::new());
    for mountpoint in &found {
        match end(mountpoint) {
            Ok(one) => {
                if !json && one.state == state(&Unmounted::Clean) && one.daemon.is_none() {
                    eprintln!("pfimg: {} is unmounted", mountpoint.display());
                }
                ended.push(one);
            }
            Err(error) => failed.push((mountpoint, error)),
        }
    }
    for (_, error) in &failed {
        eprintln!("pfimg: {error}");
    }
    if found.is_empty() && !json {
        eprintln!("pfimg: you have no mount of {}", store.display());
    }
    if json {
        let stays = |(mountpoint, error): &(&Path, Error)| Stays {
            mountpoint: mountpoint.to_string_lossy().into_owned(),
            error: error.into(),
        };
        let failed: Vec<Stays> = failed.iter().map(stays).collect();
        print_json(&json!({"unmounted": ended, "failed": failed}))?;
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { Exit::Differs.into() })
}

/// Ends one mount, and tells about a daemon that stays.
fn end(mountpoint: &Path) -> Result<Ended> {
    // The status comes first, while the mount answers; a dead mount has no daemon to wait for.
    let pid = match read_status(mountpoint) {
        Ok(status) => Some(status.info.pid),
        Err(error) if error.kind() == ErrorKind::NoAnswer => {
            let mounted = fs::canonicalize(mountpoint).ok().and_then(|path| mounted_at(&path).ok()?);
            mounted.and_then(|mounted| Daemon::serving(&mounted)).map(|daemon| daemon.pid)
        }
        Err(_) => None,
    };
    let daemon = pid
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let shown = mountpoint.display();
    let left = unmount(mountpoint).map_err(|error| match pid {
        // The daemon may have capabilities that this process cannot get.
        Some(pid) if hints::has_no_new_privs() && error.kind() != ErrorKind::NotFound => error.with_hint(
            format!("run `kill {pid}`, which unmounts too, or run this without no_new_privs: fusermount3 has to become root"),
        ),
        _ => explain_nothing_mounted(error, mountpoint),
    })?;
    if left == Unmounted::Held
        && let Some(daemon) = &daemon
    {
        // On failure the daemon has already ended.
        let _ = pidfd_send_signal(daemon, Signal::TERM);
    }
    let stopped = pid.filter(|pid| Daemon::of(*pid).is_some_and(|daemon| daemon.is_stopped));
    let state = state(&left);
    let mut still = pid.filter(|_| daemon.is_some());
    match (left, stopped) {
        (Unmounted::Absent, _) => eprintln!("pfimg: {shown} was unmounted already"),
        (Unmounted::Shows(other), _) => {
            let other = other.display();
            eprintln!(
                "pfimg: {shown} is unmounted; the same mount shows at {other}, and its daemon serves it there (run `pfimg umount \
                 {other}` to end both)"
            );
        }
        (_, Some(pid)) => eprintln!(
            "pfimg: {shown} is unmounted; its daemon is stopped. Run `kill -CONT {pid}` to let it seal forks and end"
        ),
        (Unmounted::Clean | Unmounted::Held, None) => {
            if let Some(daemon) = daemon {
                let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
                let ended = poll(&mut [PollFd::new(&daemon, PollFlags::IN)], Some(&patience)) != Ok(0);
                if ended {
                    still = None;
                } else if let Some(pid) = pid {
                    eprintln!(
                        "pfimg: {shown} is unmounted; its daemon still seals forks. `kill {pid}` ends it: unsealed \
                         changes stay in the forks"
                    );
                }
            }
        }
        (Unmounted::Busy, None) => {
            eprintln!(
                "pfimg: {shown} is in use: it was detached. Its daemon ends when programs have closed its files, and a command of \
                 `pfimg run` there has ended"
            );
        }
    }
    Ok(Ended { mountpoint: mountpoint.to_string_lossy().into_owned(), state, daemon: still })
}

/// Returns the result of the unmount, for programs.
fn state(left: &Unmounted) -> &'static str {
    match left {
        Unmounted::Clean | Unmounted::Held => "unmounted",
        Unmounted::Absent => "was-unmounted",
        Unmounted::Shows(_) => "shows-elsewhere",
        Unmounted::Busy => "detached",
    }
}
