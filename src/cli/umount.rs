//! `pfimg umount`: ends a mount and waits for its daemon.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

use super::envelope::print_json;
use super::holder::explain_nothing_mounted;
use super::statuses::read_status;
use crate::error::{ErrorKind, Result};
use crate::mount::attach::{Unmounted, unmount};
use crate::mount::hints;
use crate::mount::mountinfo::mounted_at;
use crate::mount::silent::Daemon;

/// How long to wait for the daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmount a store and end its daemon. Forks and their changes stay in the store.
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// The mountpoint, from `pfimg status`
    #[arg(value_name = "MNT")]
    mountpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &UmountArgs) -> Result<ExitCode> {
    // The status comes first, while the mount answers; a dead mount has no daemon to wait for.
    let pid = match read_status(&args.mountpoint) {
        Ok(status) => Some(status.info.pid),
        Err(error) if error.kind() == ErrorKind::NoAnswer => {
            let mounted = fs::canonicalize(&args.mountpoint).ok().and_then(|path| mounted_at(&path).ok()?);
            mounted.and_then(|mounted| Daemon::serving(&mounted)).map(|daemon| daemon.pid)
        }
        Err(_) => None,
    };
    let daemon = pid
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let shown = args.mountpoint.display();
    let left = unmount(&args.mountpoint).map_err(|error| match pid {
        // The daemon may have capabilities that this process cannot get.
        Some(pid) if hints::has_no_new_privs() && error.kind() != ErrorKind::NotFound => error.with_hint(
            format!("run `kill {pid}`, which unmounts too, or run this without no_new_privs: fusermount3 has to become root"),
        ),
        _ => explain_nothing_mounted(error, &args.mountpoint),
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
    if args.json {
        let mountpoint = args.mountpoint.to_string_lossy();
        print_json(&json!({"mountpoint": mountpoint, "state": state, "daemon": still}))?;
    }
    Ok(ExitCode::SUCCESS)
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
