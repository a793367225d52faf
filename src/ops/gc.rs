//! Collects garbage: deletes blobs without references.
//!
//! gc keeps blobs that images, tags, forks, their unsealed changes and pins refer to, and young blobs: a
//! program may have stored one and not yet its reference. The order makes gc safe while other programs write:
//! first it lists the blobs, then it reads the references; right before it deletes blobs, with
//! [`Store::lock_commits`] held, it reads the references again. If any possible reference cannot be read, it
//! deletes nothing.

mod report;
mod roots;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Removed, Store};
use roots::Marker;

pub use report::{Options, Progress, Report};

/// The default age below which blobs are kept: `pf snapshot` may take that long from the first blob of an
/// image to its marker.
pub const DEFAULT_GRACE: Duration = Duration::from_hours(1);

/// A mount shows an image this long after its marker is removed; references that a fork takes from it until
/// then must be seen.
const CATALOG_DELAY: Duration = Duration::from_millis(2500);

/// Blobs deleted at a time, while commits of images wait.
const SLICE: usize = 512;

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
                // Another program deleted it.
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

/// Deletes a few doomed blobs, unless there is a new reference to them. Returns whether to continue.
fn delete(
    store: &Store,
    options: &Options,
    doomed: &[(Digest, u64)],
    marker: &mut Marker<'_>,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<bool> {
    // From here on no image is made, so no new image can rely on a doomed blob.
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

/// Two collectors would each mistake the other's files for leftovers.
fn only_one(store: &Store) -> Result<std::fs::File> {
    store.try_lock("gc.lock")?.ok_or_else(|| {
        Error::new(ErrorKind::Busy, format!("another gc is running on {}", store.root().display()))
            .with_hint("wait for it to end")
    })
}

/// Whether a file among the blobs was left by a killed program.
fn is_stale_temp(path: &PathBuf, grace: Duration) -> bool {
    // `<hex64>.tmp.<pid>.<number>` or `stream.tmp.…`, in a shard that is not a link.
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
