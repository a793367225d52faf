//! `pfimg status`: what is mounted, by whom, and what it did so far.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::holder::{elsewhere, explain_nothing_mounted};
use super::text::{count, plain, print, print_json};
use super::units::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::{Mounted, mounts};
use crate::vfs::MountInfo;

/// So many crash packs are named.
const PACKS: usize = 3;

/// Show mounted stores.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Where a store is mounted [default: every mount]
    #[arg(value_name = "MNT")]
    mountpoint: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `.pfimg/status.json` of a mount.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    #[serde(flatten)]
    pub(crate) info: MountInfo,
    images: u64,
    /// Whether the forks are written through this mount; else another one may.
    pub(crate) writes_forks: bool,
    /// The crash packs of the store; nothing from a daemon of an older version.
    #[serde(default)]
    crash_packs: CrashPacks,
    counters: Map<String, Value>,
    /// Whether it shows in another mount namespace, and not here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    elsewhere: bool,
}

/// Crash packs of a store: how many, and the names of the newest.
#[derive(Debug, Default, Serialize, Deserialize)]
struct CrashPacks {
    count: u64,
    newest: Vec<String>,
}

pub(crate) fn read_status(mountpoint: &Path) -> Result<Status> {
    let path = mountpoint.join(".pfimg/status.json");
    let text = fs::read(&path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTCONN) => Error::io(e, format!("the daemon of {} has ended", mountpoint.display()))
            .with_hint("the next `pfimg mount` there clears it, or `pfimg umount` does"),
        Some(libc::ENOENT | libc::ENOTDIR) => {
            Error::new(ErrorKind::NotFound, format!("no store is mounted at {}", mountpoint.display()))
        }
        _ => Error::io(e, format!("cannot ask the mount at {}", mountpoint.display())),
    })?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::new(ErrorKind::Damaged, format!("cannot read {}: {e}", path.display())))
}

pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode> {
    let mountpoints: Vec<PathBuf> = match &args.mountpoint {
        Some(mountpoint) => vec![mountpoint.clone()],
        None => mounts()?.into_iter().filter(Mounted::is_ours).map(|m| m.path).collect(),
    };
    let (mut found, mut dead) = (Vec::new(), 0);
    for mountpoint in &mountpoints {
        match read_status(mountpoint) {
            Ok(status) => found.push(status),
            // Somebody else's is none of ours.
            Err(error) if args.mountpoint.is_none() && error.kind() == ErrorKind::PermissionDenied => {}
            // One dead mount must not hide the others.
            Err(error) if args.mountpoint.is_none() => {
                dead += 1;
                eprintln!("pfimg: {error}");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(explain_nothing_mounted(error, mountpoint));
            }
            Err(error) => return Err(error),
        }
    }
    let mut unknown = 0;
    if args.mountpoint.is_none() {
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
    }
    if args.json {
        match (&args.mountpoint, found.as_slice()) {
            (Some(_), [status]) => print_json(status)?,
            (_, found) => print_json(&found)?,
        }
    } else if found.is_empty() && dead + unknown == 0 && args.mountpoint.is_none() {
        print("no store is mounted\n")?;
    } else {
        print(&found.iter().map(lines).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is said of a mount.
fn lines(status: &Status) -> String {
    let Status { info, images, writes_forks, crash_packs, counters, elsewhere } = status;
    let number = |key: &str| counters.get(key).and_then(Value::as_u64).unwrap_or(0);
    let requests: u64 = counters
        .get("requests")
        .and_then(Value::as_object)
        .map_or(0, |r| r.values().filter_map(Value::as_u64).sum());
    let mut out = String::new();
    let path = |path: &Path| plain(&path.to_string_lossy(), usize::MAX);
    let _ = writeln!(out, "{}", path(&info.mountpoint));
    let _ = writeln!(out, "  store     {} ({})", path(&info.store), count(*images, "image"));
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
    let (missing, damaged) = (number("missing"), number("damaged"));
    if missing + damaged > 0 {
        let _ = writeln!(
            out,
            "  damage    {missing} reads of missing blobs, {damaged} of damaged ones; `pfimg verify` tells which"
        );
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
        let _ = writeln!(out, "  forks     can only be read here");
    }
    out
}
