//! Recovery: a fork that is read back from disk, by whatever program, is judged before anything is made of it.

use std::sync::Arc;

use crate::audit::{Log, Verdict};
use crate::crashpack::Crashpack;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{Fork, Registry};
use crate::oracle::{Transfer, TransferKind, TransferOracle, TransferState};
use crate::store::{Digest, Store};

/// Reads a fork back for somebody who is about to change it. What is wrong with it is the error, with its crash pack.
pub fn read_back(store: &Store, registry: &Registry, name: &str, log: &Log) -> Result<Arc<Fork>> {
    let fork = registry.get(name).map_err(|error| {
        // One that is not there, or was discarded meanwhile, is no damage.
        let verdict =
            registry.contains(name).then(|| judge_unreadable(store, registry, name, &error, log)).flatten();
        match verdict {
            Some(verdict) => verdict.explain(error),
            None => error,
        }
    })?;
    let verdict = judge(store, name, &fork, log);
    if let Some(damage) = fork.damage() {
        let error = Error::new(ErrorKind::Damaged, format!("fork {name:?} is damaged: {damage}"))
            .with_hint("it can still be read as far as it is sound");
        return Err(verdict.explain(error));
    }
    verdict.error().map_or(Ok(fork), |error| Err(error.context(format_args!("fork {name:?}"))))
}

/// Judges a fork that was read back. One that is damaged can be read as far as it is sound: it is for the caller to
/// refuse to write to it.
pub fn judge(store: &Store, name: &str, fork: &Fork, log: &Log) -> Verdict {
    let mut state = state(store, fork.base().as_ref());
    state.journal_gaps = fork.journal_gaps();
    let mut pack = Crashpack::new();
    if let Some(damage) = fork.damage() {
        pack = pack.with_trace("journal", damage);
    }
    judged(name, state, pack, log)
}

/// Judges a fork that cannot be read back at all; nothing where that is not for what is on disk.
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
    let mut state = state(store, registry.info(name).ok().and_then(|info| info.base).as_ref());
    state.path_outcomes_consistent = false;
    Some(judged(name, state, Crashpack::new().with_trace("path", error.to_string()), log))
}

fn judged(name: &str, state: TransferState, pack: Crashpack, log: &Log) -> Verdict {
    let transfer = Transfer { kind: TransferKind::Recovery, subject: name.to_owned(), state };
    log.judge_with(&TransferOracle::new(transfer.kind.name()), &transfer, pack)
}

/// What there is to see of the image a fork rests on.
fn state(store: &Store, base: Option<&Digest>) -> TransferState {
    let Some(base) = base else { return TransferState::default() };
    let manifest_hash = match store.images().bytes(store.blobs(), base) {
        Ok((bytes, _)) => Digest::of(&bytes).to_string(),
        Err(error) => error.to_string(),
    };
    TransferState { manifest_hash, expected_manifest_hash: base.to_string(), ..TransferState::default() }
}
