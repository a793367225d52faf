//! Ledgers as files show them: without their session secret.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::digest::Digest;
use crate::layers::effects;
use crate::sync::{Mutex, RwLock};

/// Number of ledgers whose shown bytes are kept in memory. Those of others are made again when needed.
const KEPT: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// What is known of the ledger of a fork's base image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BaseLedger {
    /// It was not read yet.
    Unread,
    /// It holds no secret.
    Plain,
    /// It holds a secret. This is its length in bytes without it.
    Redacted(u64),
}

/// How files show a ledger.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    /// Its length in bytes.
    pub(super) length: u64,
    /// Its bytes, unless they are those of the blob.
    pub(super) redacted: Option<Arc<[u8]>>,
}

/// The ledgers of images.
pub(super) struct Ledgers {
    /// Those of forks' base images.
    of_bases: RwLock<HashMap<Digest, BaseLedger>>,
    shown: Mutex<LruCache<Digest, Shown>>,
}

impl Ledgers {
    pub(super) fn new() -> Self {
        Self { of_bases: RwLock::default(), shown: Mutex::new(LruCache::new(KEPT)) }
    }

    /// Notes that a blob is the ledger of a fork's base image.
    pub(super) fn add_base(&self, ledger: Digest) {
        self.of_bases.write().entry(ledger).or_insert(BaseLedger::Unread);
    }

    /// Returns the ledger in a blob, if the blob is the ledger of a fork's base image.
    pub(super) fn of_base(&self, digest: &Digest) -> Option<BaseLedger> {
        self.of_bases.read().get(digest).copied()
    }

    /// How files show a ledger, if that is in memory.
    pub(super) fn known(&self, digest: &Digest) -> Option<Shown> {
        self.shown.lock().get(digest).cloned()
    }

    /// Removes the secret from a ledger's bytes, which `read` returns.
    pub(super) fn redact<B: std::ops::Deref<Target = [u8]>, E>(
        &self,
        digest: &Digest,
        read: impl FnOnce() -> Result<B, E>,
    ) -> Result<Shown, E> {
        let known = self.known(digest);
        let is_new = known.is_none();
        let shown = if let Some(known) = known {
            known
        } else {
            let ledger = read()?;
            let bytes = effects::redact(&ledger);
            let redacted = (*bytes != *ledger).then(|| Arc::from(&*bytes));
            Shown { length: bytes.len() as u64, redacted }
        };
        // Also if it is known: a program may have read the image's ledger before a fork was based on the image.
        if let Some(base) = self.of_bases.write().get_mut(digest) {
            *base = match shown.redacted {
                Some(_) => BaseLedger::Redacted(shown.length),
                None => BaseLedger::Plain,
            };
        }
        if is_new {
            self.shown.lock().put(*digest, shown.clone());
        }
        Ok(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_was_read_before_a_fork_was_based_on_its_image_is_shown_without_its_secret() {
        let ledgers = Ledgers::new();
        let secret = "5".repeat(64);
        let header = format!("{{\"kind\":\"effects.ledger.v1\",\"session_secret_hex\":\"{secret}\"}}\n");
        let digest = Digest::of(header.as_bytes());
        let of_image = ledgers.redact(&digest, || Ok::<_, ()>(header.clone().into_bytes())).unwrap();
        assert!(of_image.redacted.is_some() && of_image.length < header.len() as u64);
        ledgers.add_base(digest);
        let of_fork = ledgers.redact(&digest, || Err::<Vec<u8>, _>("it is read again")).unwrap();
        assert_eq!(of_fork.length, of_image.length);
        assert_eq!(ledgers.of_base(&digest), Some(BaseLedger::Redacted(of_image.length)));
    }

    #[test]
    fn a_ledger_without_a_secret_is_its_own_blob_and_is_read_once() {
        let ledgers = Ledgers::new();
        let bytes = b"{\"kind\":\"x\"}\n";
        let digest = Digest::of(bytes);
        ledgers.add_base(digest);
        assert_eq!(ledgers.of_base(&digest), Some(BaseLedger::Unread));
        let shown = ledgers.redact(&digest, || Ok::<_, ()>(bytes.to_vec())).unwrap();
        assert_eq!((shown.length, shown.redacted), (bytes.len() as u64, None));
        assert_eq!(ledgers.of_base(&digest), Some(BaseLedger::Plain));
        let again = ledgers.redact(&digest, || Err::<Vec<u8>, _>("it is read again"));
        assert_eq!(again.unwrap().length, bytes.len() as u64);
        // Ledgers of images that no fork is based on take only the bounded memory.
        let other = Digest::of(b"other");
        ledgers.redact(&other, || Ok::<_, ()>(bytes.to_vec())).unwrap();
        assert_eq!(ledgers.of_base(&other), None);
        for n in 0..KEPT.get() {
            ledgers.redact(&Digest::of(&n.to_le_bytes()), || Ok::<_, ()>(bytes.to_vec())).unwrap();
        }
        assert!(ledgers.known(&other).is_none());
    }
}
