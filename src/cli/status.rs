//! `pfimg status`: lists the mounts, their daemons, and figures about them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::envelope::print_json;
use super::holder::{elsewhere, explain_nothing_mounted};
use super::statuses::{Status, read_status, read_statuses};
use super::store_arg::StoreArg;
use super::text::{count, plain, print};
use crate::control::Refusal;
use crate::daemon::dirs::log_of;
use crate::error::{ErrorKind, Result};
use crate::mount::mountinfo::{Mounted, mounts};
use crate::mount::silent::Daemon;
use crate::util::units::format_bytes;

/// The most crash packs that are named.
const PACKS: usize = 3;

/// Show which stores are mounted where.
///
/// Lists the mounts of this store first, then those of this user, then others. Names daemons that do not answer
/// within two seconds.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Mountpoint of a store [default: every mount]
    #[arg(value_name = "MNT")]
    mountpoint: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A mount without a status: its daemon has ended, or does not answer.
#[derive(Debug, Serialize)]
struct Silent {
    #[serde(serialize_with = "lossy")]
    mountpoint: PathBuf,
    #[serde(serialize_with = "lossy")]
    store: PathBuf,
    /// The daemon, if only one process can be it.
    pid: Option<u32>,
    /// The log of the daemon, if it logs to the default file.
    #[serde(serialize_with = "lossy_option")]
    log: Option<PathBuf>,
    /// Why there is no status.
    error: String,
}

fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[allow(clippy::ref_option)]
fn lossy_option<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

/// What `--json` lists.
#[derive(Serialize)]
#[serde(untagged)]
enum Listed<'a> {
    Status(&'a Status),
    Silent(&'a Silent),
}

pub(crate) fn run(store: &StoreArg, args: &StatusArgs) -> Result<ExitCode> {
    if let Some(mountpoint) = &args.mountpoint {
        let status = read_status(mountpoint).map_err(|error| match error.kind() {
            ErrorKind::NotFound => explain_nothing_mounted(error, mountpoint),
            _ => error,
        })?;
        if args.json {
            print_json(&status)?;
        } else {
            print(&lines(&status))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut mounted: Vec<Mounted> = mounts()?.into_iter().filter(Mounted::is_ours).collect();
    let (own_store, own_user) = (own_store(store), rustix::process::geteuid().as_raw());
    let is_own = |mounted: &Mounted| mounted.user().is_none_or(|user| user == own_user);
    // First the mounts of the store that other commands use, then the user's others; each in the order of
    // mounting.
    mounted.sort_by_key(|mounted| (own_store.as_ref() != Some(&mounted.source), !is_own(mounted)));
    let folders: Vec<_> = mounted.iter().map(|mounted| mounted.path.clone()).collect();
    let (mut found, mut silent, mut foreign) = (Vec::new(), Vec::new(), 0);
    for (mounted, status) in mounted.iter().zip(read_statuses(&folders)) {
        match status {
            Ok(status) => found.push(status),
            // Only the user who mounted it can look at it.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            // One dead mount must not hide the others.
            Err(error) if is_own(mounted) || error.kind() == ErrorKind::NoAnswer => {
                eprintln!("pfimg: {error}");
                let pid = Daemon::serving(mounted).map(|daemon| daemon.pid);
                let (mountpoint, store) = (mounted.path.clone(), mounted.source.clone());
                let log = log_of(&mountpoint);
                silent.push(Silent { mountpoint, store, pid, log, error: error.to_string() });
            }
            Err(_) => foreign += 1,
        }
    }
    if foreign > 0 {
        eprintln!("pfimg: {} of other users: the daemons have ended", count(foreign, "mount"));
    }
    let mut unknown = 0;
    for there in elsewhere()? {
        match (there.status, there.pid) {
            (Some(status), _) => found.push(Status { elsewhere: true, ..status }),
            (None, Some(pid)) => {
                unknown += 1;
                let (mountpoint, store) = (there.mountpoint.display(), there.store.display());
                eprintln!(
                    "pfimg: process {pid} serves {store} at {mountpoint} in another mount namespace (run `kill {pid}` to end it)"
                );
            }
            (None, None) => {}
        }
    }
    if args.json {
        let listed = found.iter().map(Listed::Status).chain(silent.iter().map(Listed::Silent));
        print_json(&json!({"mounts": listed.collect::<Vec<_>>()}))?;
    } else if found.is_empty() && silent.is_empty() && foreign + unknown == 0 {
        print("no store is mounted\n")?;
    } else {
        print(&found.iter().map(lines).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the store that other commands with this environment use, if there is one.
fn own_store(store: &StoreArg) -> Option<PathBuf> {
    fs::canonicalize(store.path().ok()?).ok()
}

/// Describes a mount.
fn lines(status: &Status) -> String {
    let Status {
        info,
        images,
        writes_forks,
        crash_packs,
        counters,
        cache_problem,
        moved_to,
        refused,
        elsewhere,
    } = status;
    let number = |key: &str| counters.get(key).and_then(Value::as_u64).unwrap_or(0);
    let requests: u64 = counters
        .get("requests")
        .and_then(Value::as_object)
        .map_or(0, |r| r.values().filter_map(Value::as_u64).sum());
    let mut out = String::new();
    let path = |path: &Path| plain(&path.to_string_lossy(), usize::MAX);
    let _ = writeln!(out, "{}", path(&info.mountpoint));
    let _ = writeln!(out, "  store     {} ({})", path(&info.store), count(*images, "image"));
    if let Some(moved_to) = moved_to {
        let moved_to = plain(moved_to, usize::MAX);
        let _ = writeln!(
            out,
            "  moved     the store lies at {moved_to} now: move it back, or unmount it and mount it there"
        );
    }
    let _ = writeln!(
        out,
        "  daemon    pid {}, version {}, since {}",
        info.pid,
        info.version,
        info.started_at.format("%F %T UTC")
    );
    if *elsewhere {
        let _ = writeln!(out, "  where     in another mount namespace; run `kill {}` to end it", info.pid);
    }
    if let Some(log) = &info.log {
        let _ = writeln!(out, "  log       {}", path(log));
    }
    let _ = writeln!(out, "  requests  {requests}, {} inodes known to the kernel", number("inodes"));
    let _ = writeln!(
        out,
        "  cache     {} in memory, {} in {}, {} blobs filled",
        format_bytes(number("cache_heap_bytes") + number("tree_bytes")),
        format_bytes(number("cache_mapped_bytes")),
        path(&info.cache_dir),
        number("blob_fills"),
    );
    if let Some(problem) = cache_problem {
        let _ = writeln!(out, "  cache     keeps nothing there: {}", plain(problem, usize::MAX));
    }
    let (missing, damaged) = (number("missing"), number("damaged"));
    if missing + damaged > 0 {
        let _ = writeln!(
            out,
            "  damage    {missing} reads of missing blobs, {damaged} of damaged ones; `pfimg verify` lists them"
        );
    }
    if let Some(Refusal { what, at }) = refused {
        let _ = writeln!(out, "  refused   {} ({})", plain(what, usize::MAX), at.format("%F %T UTC"));
    }
    if crash_packs.count > 0 {
        let newest: Vec<String> = crash_packs.newest.iter().take(PACKS).map(|name| plain(name, 80)).collect();
        let more = crash_packs.count - newest.len() as u64;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let packs = count(crash_packs.count, "crash pack");
        let _ = writeln!(
            out,
            "  oracles   {packs}: {}{more}; `pfimg audit --packs` lists them",
            newest.join(", ")
        );
    }
    if !writes_forks {
        let _ = writeln!(out, "  forks     are read-only here");
    }
    out
}
