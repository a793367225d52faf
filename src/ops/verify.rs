//! Checks a store to the last byte: markers, manifests, layers, and every blob against its digest.
//!
//! Two rounds, each on several threads. The first parses manifests and layers and notes which blobs they
//! refer to, in about 100 bytes a blob. The second streams every blob through the hash and keeps none of it.
//! Nothing is written. Other programs may write to the store at the same time: an image that vanishes is not
//! a finding.

mod descent;
mod finding;
mod layers;
mod places;
mod report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use finding::{Code, Finding, Severity};
pub use report::{Ledgers, Options, Progress, Report};

use crate::audit;
use crate::crashpack;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::verify::finding::reason;
use crate::ops::verify::layers::{Checker, Place, Problem, Ref, State};
use crate::store::tags::refuse_tag_name;
use crate::store::{BlobError, Size, Store};
use crate::util::parallel::parallel_for_each;

/// Checks a store. Fails only if the store cannot be listed; every fault in the store is in the report.
pub fn verify(store: &Store, options: &Options, progress: &dyn Progress) -> Result<Report> {
    let whole = options.images.is_none();
    let mut odd = Vec::new();
    let ids = match &options.images {
        Some(ids) => ids.clone(),
        None => store.images().ids(&mut |path| odd.push(path))?,
    };
    let images = u32::try_from(ids.len()).map_err(|_| {
        Error::new(ErrorKind::Unsupported, "the store has more images than verify can number (4294967295)")
    })?;
    progress.images(u64::from(images));
    let checker = Checker::new(store, &ids, options);
    let numbers: Vec<u32> = (0..images).collect();
    parallel_for_each(options.jobs, &numbers, &|image| {
        checker.image(*image);
        progress.image_done();
    });
    let layers = checker.layers();
    progress.layers(layers.len() as u64);
    parallel_for_each(options.jobs, &layers, &|(image, file, digest)| {
        checker.layer(*image, *file, digest);
        progress.layer_done();
    });
    let descents = std::mem::take(&mut checker.state.lock().descents);
    parallel_for_each(options.jobs, &descents, &|(image, parent)| checker.descent(*image, parent));
    let mut state = checker.state.into_inner();
    state.findings.extend(odd.iter().map(|path| odd_marker(store, path)));

    let work = blobs_to_read(store, whole, &mut state)?;
    progress.blobs(work.len() as u64, work.iter().map(|(_, size)| size).sum());
    let (blobs, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let problems = crate::sync::Mutex::new(Vec::new());
    parallel_for_each(options.jobs, &work, &|(digest, compressed)| {
        let (length, found) = blob(store, &ids, &state, digest);
        if let Some(length) = length {
            blobs.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(length, Ordering::Relaxed);
        }
        if !found.is_empty() {
            problems.lock().extend(found);
        }
        progress.blob_done(*compressed);
    });
    state.problems.extend(problems.into_inner());

    if whole {
        tags(store, &mut state)?;
        state.findings.extend(crash_packs(store)?);
    }
    let mut findings = places::locate(store, &ids, &mut state);
    findings.append(&mut state.findings);
    findings.sort_unstable();
    Ok(Report {
        images: u64::from(images),
        blobs: blobs.into_inner(),
        bytes: bytes.into_inner(),
        ledgers: state.ledgers,
        findings,
    })
}

/// Lists earlier violations of oracles. The packs stay until they are removed, also when the store is whole
/// again.
fn crash_packs(store: &Store) -> Result<Vec<Finding>> {
    let packs = crashpack::kept(&audit::file::crash_dir(store.root()))?;
    let finding = |pack: &crashpack::Kept| {
        let subject = format!("audit/crash/{}", pack.name);
        match crashpack::replay::replay(&pack.path, &[]) {
            Ok(replayed) => Finding::new(Code::CrashPack, subject, replayed.found()),
            Err(error) => Finding::new(Code::CrashPackChanged, subject, error),
        }
    };
    Ok(packs.iter().map(finding).collect())
}

/// Every blob to read with its compressed size in bytes, the largest first, so that no large one is last.
fn blobs_to_read(store: &Store, whole: bool, state: &mut State) -> Result<Vec<(Digest, u64)>> {
    let mut work = Vec::new();
    if whole {
        let mut odd = Vec::new();
        store.blobs().for_each(&mut |digest, size| work.push((digest, size)), &mut |path| odd.push(path))?;
        state.findings.extend(odd.iter().map(|path| odd_file(store, path)));
    }
    work.sort_unstable();
    let listed = work.len();
    for digest in state.refs.keys() {
        if work[..listed].binary_search_by_key(digest, |(listed, _)| *listed).is_err() {
            work.push((*digest, store.blobs().compressed_size(digest).unwrap_or(0)));
        }
    }
    work.sort_unstable_by_key(|(digest, size)| (std::cmp::Reverse(*size), *digest));
    Ok(work)
}

/// Reads a blob; returns its length in bytes if it is whole, and the faults of the blob or of references to
/// it.
fn blob(store: &Store, ids: &[Digest], state: &State, digest: &Digest) -> (Option<u64>, Vec<Problem>) {
    let at = state.refs.get(digest).copied();
    let problem = |code, at: Option<Ref>, detail: String| Problem { code, blob: *digest, at, detail };
    let declared: Vec<Ref> = at
        .into_iter()
        .chain(state.other_sizes.get(digest).into_iter().flat_map(|others| others.values().copied()))
        .collect();
    // Decoding stops at the largest declared size: a bomb costs no more than it claims.
    let limit =
        declared.iter().map(|at| at.size).max().filter(|_| declared.iter().all(|at| at.size.is_some()));
    let limit = limit.flatten().unwrap_or(u64::MAX);
    let wrong_size = |at: &Ref, found: String| {
        let code = match at.place {
            Place::Page(..) => Code::PageSizeMismatch,
            _ => Code::BlobSizeMismatch,
        };
        let declared = at.size.unwrap_or_default();
        problem(code, Some(*at), format!("{declared} bytes declared, {found} found"))
    };
    match store.blobs().stream(digest, Size::AtMost(limit), &mut io::sink()) {
        Ok(length) => {
            let mut found: Vec<_> = declared
                .iter()
                .filter(|at| at.size.is_some_and(|size| size != length))
                .map(|at| wrong_size(at, length.to_string()))
                .collect();
            // Whole now, but it was not when it should have been parsed: its content was not checked.
            if let Some(error) = state.unread.get(digest) {
                let code = match error {
                    BlobError::TooLarge { .. } => Code::BlobTooLarge,
                    _ => Code::BlobUnreadable,
                };
                found.push(problem(code, at, reason(error)));
            }
            (Some(length), found)
        }
        Err(BlobError::TooLarge { .. }) => {
            (None, declared.iter().map(|at| wrong_size(at, format!("more than {limit}"))).collect())
        }
        Err(error) => {
            let missing = matches!(error, BlobError::Missing(_));
            let code = match (at.map(|at| at.place), &error) {
                (Some(Place::CriuDump), BlobError::Missing(_)) => Code::CriuDumpMissing,
                (Some(Place::MergedLedger), BlobError::Missing(_)) => Code::MergedLedgerMissing,
                (Some(Place::Manifest), BlobError::Missing(_)) => Code::ManifestBlobMissing,
                (Some(Place::Manifest), _) => Code::ManifestBlobDamaged,
                (_, BlobError::Missing(_)) => Code::BlobMissing,
                (_, BlobError::Mismatch { .. }) => Code::BlobDigestMismatch,
                (_, BlobError::Undecodable { .. }) => Code::BlobUndecodable,
                (_, BlobError::WrongSize { .. } | BlobError::TooLarge { .. }) => Code::BlobSizeMismatch,
                (_, BlobError::Io { .. }) => Code::BlobUnreadable,
            };
            // Removed with its image during the check: another program's garbage collection.
            let vanished = missing && at.is_none_or(|at| !store.images().contains(&ids[at.image as usize]));
            let found = if vanished { Vec::new() } else { vec![problem(code, at, reason(&error))] };
            (None, found)
        }
    }
}

fn tags(store: &Store, state: &mut State) -> Result<()> {
    let tags = store.tags();
    for name in tags.names()? {
        let subject = format!("refs/tags/{name}");
        match tags.get(&name) {
            Ok(id) if store.images().contains(&id) => {}
            Ok(id) => {
                let detail = format!("names {id}, which is not in the store");
                state.findings.push(Finding::new(Code::TagDangling, subject, detail));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => {
                state.findings.push(Finding::new(Code::TagMalformed, subject, "does not hold a digest"));
            }
        }
    }
    for entry in fs::read_dir(tags.dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_none_or(|name| refuse_tag_name(name).is_some()) {
            state.findings.push(odd_file(store, &entry.path()));
        }
    }
    Ok(())
}

fn relative(store: &Store, path: &Path) -> PathBuf {
    path.strip_prefix(store.root()).unwrap_or(path).to_owned()
}

fn odd_marker(store: &Store, path: &Path) -> Finding {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with('.') && name.ends_with(".json") {
        let detail = "not named by a digest, so no program finds the image";
        Finding::new(Code::MarkerUnknownName, relative(store, path).display(), detail)
    } else {
        odd_file(store, path)
    }
}

fn odd_file(store: &Store, path: &Path) -> Finding {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let detail = if name.starts_with(".tmp-") || name.contains(".tmp.") {
        "a temporary file: its writer is at work, or was killed"
    } else {
        "not part of a store"
    };
    Finding::new(Code::OddFile, relative(store, path).display(), detail)
}
