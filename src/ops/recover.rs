//! Recovery: a fork that any program reads back from disk is judged before it is used.

use std::sync::Arc;

use crate::audit::{Log, Verdict};
use crate::crashpack::Steps;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{Fork, Registry};
use crate::ops::fixture;
use crate::ops::seal::{readable, see_manifest};
use crate::oracle::TransferKind;
use crate::store::Store;

/// Reads a fork back for a caller that will change it. A fault of the fork is the error, with its crash pack.
pub fn read_back(store: &Store, registry: &Registry, name: &str, log: &Log) -> Result<Arc<Fork>> {
    let fork = registry.get(name).map_err(|error| {
        // A fork that does not exist, or was discarded in between, is not damaged.
        let verdict =
            registry.contains(name).then(|| judge_unreadable(store, registry, name, &error, log)).flatten();
        match verdict {
            Some(verdict) => verdict.explain(missing(name, error)),
            None => error,
        }
    })?;
    let verdict = judge(store, name, &fork, log);
    if let Some(damage) = fork.damage() {
        let error = Error::new(ErrorKind::Damaged, format!("fork {name:?} is damaged: {damage}"))
            .with_hint("it is readable up to the damaged record");
        return Err(verdict.explain(error));
    }
    verdict.error().map_or(Ok(fork), |error| Err(error.context(format_args!("fork {name:?}"))))
}

/// Adapts the error for a fork that exists and cannot be read: a base that is not found is missing, which is
/// damage.
fn missing(name: &str, error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    Error::new(ErrorKind::Missing, format!("fork {name:?} cannot be read"))
        .with_source(error)
        .with_hint("restore its image from a copy of the store, or discard the fork")
}

/// Judges a fork that was read back. A damaged fork is readable up to the damaged record: the caller refuses
/// to write to it.
pub fn judge(store: &Store, name: &str, fork: &Fork, log: &Log) -> Verdict {
    let mut steps = begin(store, name, fork.base().as_ref());
    if let Some(damage) = fork.damage() {
        steps.wrong("journal", damage, None);
    }
    steps.saw_journal(fork.journal_gaps());
    log.judge_steps(TransferKind::Recovery, name, &steps)
}

/// Judges a fork that cannot be read back at all; nothing if the fault is not on disk.
pub fn judge_unreadable(
    store: &Store,
    registry: &Registry,
    name: &str,
    error: &Error,
    log: &Log,
) -> Option<Verdict> {
    if !matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Missing | ErrorKind::NotFound) {
        return None;
    }
    let mut steps = begin(store, name, registry.info(name).ok().and_then(|info| info.base).as_ref());
    steps.saw_paths("forks", [(name, error.to_string())]);
    Some(log.judge_steps(TransferKind::Recovery, name, &steps))
}

/// The first steps of every recovery: the fork's head, and its base image.
fn begin(store: &Store, name: &str, base: Option<&Digest>) -> Steps {
    let mut steps = Steps::new();
    let base_name = base.map_or_else(|| "no image".to_owned(), Digest::to_string);
    steps.did("checkpoint", format!("read the head of fork {name}, whose base is {base_name}"));
    steps.concerns(format!("forks/heads/{name}.json"));
    if let Some(base) = base {
        see_manifest(&mut steps, base, readable(store.images().bytes(store.blobs(), base)));
        if let Ok(image) = store.image(base) {
            steps.made_by(fixture::seed_of(&image.manifest.agent));
        }
    }
    steps
}
