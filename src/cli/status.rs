//! `pfimg status`: what is mounted, by whom, and what it did so far.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::units::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::{Mounted, mounts};
use crate::vfs::MountInfo;

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
    counters: Map<String, Value>,
}

pub(crate) fn read_status(mountpoint: &Path) -> Result<Status> {
    let path = mountpoint.join(".pfimg/status.json");
    let text = fs::read(&path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTCONN) => Error::io(e, format!("the daemon of {} has ended", mountpoint.display()))
            .with_hint("the next `pfimg mount` there clears it, or `pfimg umount` does"),
        _ => Error::io(e, format!("no store is mounted at {}", mountpoint.display())),
    })?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::new(ErrorKind::Damaged, format!("cannot read {}: {e}", path.display())))
}

pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode> {
    let mountpoints: Vec<PathBuf> = match &args.mountpoint {
        Some(mountpoint) => vec![mountpoint.clone()],
        None => mounts()?.into_iter().filter(Mounted::is_ours).map(|m| m.path).collect(),
    };
    let mut found = Vec::new();
    for mountpoint in &mountpoints {
        match read_status(mountpoint) {
            Ok(status) => found.push(status),
            // One dead mount must not hide the others.
            Err(error) if args.mountpoint.is_none() => eprintln!("pfimg: {error}"),
            Err(error) => return Err(error),
        }
    }
    if args.json {
        let json = match (&args.mountpoint, found.pop()) {
            (Some(_), Some(status)) => serde_json::to_string_pretty(&status),
            (_, last) => {
                found.extend(last);
                serde_json::to_string_pretty(&found)
            }
        };
        println!("{}", json.map_err(|e| Error::new(ErrorKind::Io(None), e.to_string()))?);
    } else if found.is_empty() && args.mountpoint.is_none() {
        println!("no store is mounted");
    } else {
        for status in &found {
            print(status);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(status: &Status) {
    let Status { info, images, counters } = status;
    let number = |key: &str| counters.get(key).and_then(Value::as_u64).unwrap_or(0);
    let requests: u64 = counters
        .get("requests")
        .and_then(Value::as_object)
        .map_or(0, |r| r.values().filter_map(Value::as_u64).sum());
    println!("{}", info.mountpoint.display());
    println!("  store     {} ({images} images)", info.store.display());
    println!(
        "  daemon    pid {}, version {}, since {}",
        info.pid,
        info.version,
        info.started_at.format("%F %T UTC")
    );
    if let Some(log) = &info.log {
        println!("  log       {}", log.display());
    }
    println!("  requests  {requests}, {} inodes known to the kernel", number("inodes"));
    println!(
        "  cache     {} in memory, {} in {}, {} blobs filled",
        format_bytes(number("cache_heap_bytes") + number("tree_bytes")),
        format_bytes(number("cache_mapped_bytes")),
        info.cache_dir.display(),
        number("blob_fills"),
    );
    let (missing, damaged) = (number("missing"), number("damaged"));
    if missing + damaged > 0 {
        println!(
            "  damage    {missing} reads of missing blobs, {damaged} of damaged ones; `pfimg verify` tells which"
        );
    }
}
