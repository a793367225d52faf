//! Collecting garbage: blobs that nothing refers to are deleted.
//!
//! Kept is what images, tags, forks, their unsealed changes and pins refer to, and whatever is young: a program may have
//! stored it and not yet said what for. The order is what makes it safe beside programs that write: first the blobs are
//! listed, then what refers to them is read; and right before blobs are deleted, with [`Store::lock_commits`] held, what
//! refers to them is read again. As long as anything that may refer to blobs cannot be read, nothing is deleted.

mod roots;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::gc::roots::Marker;
use crate::store::{Removed, Store};

/// Blobs younger than this are kept unless told otherwise: `pf snapshot` may take that long from the first blob of an
/// image to its marker.
pub const DEFAULT_GRACE: Duration = Duration::from_hours(1);

/// A mount shows an image this long after its marker is gone, and what a fork takes from it until then must be seen.
const CATALOG_DELAY: Duration = Duration::from_millis(2500);

/// Blobs deleted in one go, while images wait that are about to be made.
const SLICE: usize = 512;

/// How to collect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blobs younger than this are kept.
    pub grace: Duration,
    /// Whether nothing is deleted and only said what would be.
    pub dry_run: bool,
    /// How many threads read.
    pub jobs: NonZeroUsize,
}

/// What collecting came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing was deleted and this says only what would be.
    pub dry_run: bool,
    /// Images that were kept, with all they refer to.
    pub images: u64,
    /// Blobs that something refers to.
    pub kept: u64,
    /// Blobs that nothing refers to, but which are too young to be sure.
    pub young: u64,
    /// Their bytes on disk.
    pub young_bytes: u64,
    /// Blobs that were deleted.
    pub deleted: u64,
    /// Temporary files of programs that were killed; deleted too.
    pub temp_files: u64,
    /// Bytes on disk that were freed.
    pub freed_bytes: u64,
    /// What cannot be read, in words. If there is any, nothing was deleted.
    pub problems: Vec<String>,
    /// What somebody should know of, in words.
    pub notes: Vec<String>,
}

/// Is told how far collecting is.
pub trait Progress: Sync {
    /// So many more layers are to be read.
    fn layers(&self, more: u64) {
        let _ = more;
    }

    /// One layer was read.
    fn layer_done(&self) {}

    /// So many blobs are to be deleted.
    fn deleting(&self, total: u64) {
        let _ = total;
    }

    /// One blob was deleted, or spared after all.
    fn deleted(&self) {}
}

/// Nobody is told.
impl Progress for () {}

/// Collects garbage; see the module. Problems are in the report, and then nothing was deleted.
pub fn collect(store: &Store, options: &Options, progress: &dyn Progress) -> Result<Report> {
    let _only_one = if options.dry_run { None } else { Some(only_one(store)?) };
    let mut listed = Vec::new();
    let mut temps = Vec::new();
    store.blobs().for_each(&mut |digest, _| listed.push(digest), &mut |path| temps.push(path))?;
    let began = Instant::now();
    let mut marker = Marker::new(store, options.jobs, progress);
    marker.mark()?;
    let mut report = Report { dry_run: options.dry_run, ..Report::default() };
    let mut doomed = Vec::new();
    for digest in listed {
        if marker.is_marked(&digest) {
            report.kept += 1;
        } else {
            match store.blobs().age(&digest) {
                Some((age, bytes)) if age < options.grace => {
                    report.young += 1;
                    report.young_bytes += bytes;
                }
                Some((_, bytes)) => doomed.push((digest, bytes)),
                // Somebody else deleted it.
                None => {}
            }
        }
    }
    temps.retain(|path| is_stale_temp(path, options.grace));
    if options.dry_run && marker.problems().is_empty() {
        report.deleted = doomed.len() as u64;
        report.freed_bytes = doomed.iter().map(|(_, bytes)| bytes).sum();
        report.temp_files = temps.len() as u64;
    } else if marker.problems().is_empty() {
        if !doomed.is_empty() && store.root().join("forks").exists() {
            thread::sleep(CATALOG_DELAY.saturating_sub(began.elapsed()));
        }
        if !doomed.is_empty() {
            // No power cut may bring an image or a fork back after its blobs are gone.
            store.sync()?;
        }
        progress.deleting(doomed.len() as u64);
        for slice in doomed.chunks(SLICE) {
            if !delete(store, options, slice, &mut marker, &mut report, progress)? {
                break;
            }
        }
        for temp in temps {
            if marker.problems().is_empty() && std::fs::remove_file(&temp).is_ok() {
                report.temp_files += 1;
            }
        }
    }
    report.images = marker.images();
    (report.problems, report.notes) = marker.into_words();
    Ok(report)
}

/// Deletes a few blobs, unless something refers to them since they were doomed. Returns whether to go on.
fn delete(
    store: &Store,
    options: &Options,
    doomed: &[(Digest, u64)],
    marker: &mut Marker<'_>,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<bool> {
    // From here on no image is made, so that none can come to rely on what is about to go.
    let _commits_wait = store.lock_commits()?;
    marker.mark()?;
    if !marker.problems().is_empty() {
        return Ok(false);
    }
    for (digest, bytes) in doomed {
        if marker.is_marked(digest) {
            report.kept += 1;
        } else {
            match store.blobs().remove_older(digest, options.grace)? {
                Removed::Yes => {
                    report.deleted += 1;
                    report.freed_bytes += bytes;
                }
                Removed::Young => {
                    report.young += 1;
                    report.young_bytes += bytes;
                }
                Removed::Gone => {}
            }
        }
        progress.deleted();
    }
    Ok(true)
}

/// Two collectors would take each other's files for leftovers.
fn only_one(store: &Store) -> Result<std::fs::File> {
    store.try_lock("gc.lock")?.ok_or_else(|| {
        Error::new(ErrorKind::Busy, format!("somebody else collects garbage in {}", store.root().display()))
            .with_hint("wait for it to end")
    })
}

/// Whether a file among the blobs was left by a program that was killed.
fn is_stale_temp(path: &PathBuf, grace: Duration) -> bool {
    // `<hex64>.tmp.<pid>.<number>` or `stream.tmp.…`, and in a shard, which is no link.
    let is_temp =
        path.file_name().and_then(|name| name.to_str()?.split_once(".tmp.")).is_some_and(|(what, _)| {
            what == "stream"
                || (matches!(what.len(), 1..=64) && what.bytes().all(|byte| byte.is_ascii_hexdigit()))
        });
    let age = || {
        let metadata = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        SystemTime::now().duration_since(metadata.modified().ok()?).ok()
    };
    is_temp && age().is_some_and(|age| age >= grace)
}
