//! One fill per blob, however many threads ask.

use std::collections::HashMap;
use std::sync::Arc;

use super::payload::Payload;
use super::unfilled::Unfilled;
use crate::digest::Digest;
use crate::store::BlobError;
use crate::sync::{Condvar, Mutex};

/// The key of a fill: the same blob with another declared size is a different request.
type Key = (Digest, Option<u64>);

type Outcome = Result<Payload, Unfilled>;

#[derive(Debug, Default)]
struct Turn {
    outcome: Mutex<Option<Outcome>>,
    done: Condvar,
}

/// The fills under way.
#[derive(Debug, Default)]
pub(super) struct Fills {
    running: Mutex<HashMap<Key, Arc<Turn>>>,
}

/// Takes the fill off the list and wakes the waiters, also when the fill panics.
struct Finish<'a> {
    fills: &'a Fills,
    key: Key,
    turn: Arc<Turn>,
    outcome: Option<Outcome>,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.fills.running.lock().remove(&self.key);
        let outcome = self.outcome.take().unwrap_or_else(|| {
            let reason = "the thread that was reading it failed".into();
            Err(BlobError::Undecodable { digest: self.key.0, reason }.into())
        });
        *self.turn.outcome.lock() = Some(outcome);
        self.turn.done.notify_all();
    }
}

impl Fills {
    /// Runs `fill`, or waits for another thread that does so for the same key and takes its result.
    pub(super) fn once(&self, key: Key, fill: impl FnOnce() -> Outcome) -> Outcome {
        let turn = {
            let mut running = self.running.lock();
            if let Some(turn) = running.get(&key) {
                let turn = Arc::clone(turn);
                drop(running);
                let mut outcome = turn.outcome.lock();
                loop {
                    if let Some(outcome) = &*outcome {
                        return outcome.clone();
                    }
                    turn.done.wait(&mut outcome);
                }
            }
            let turn = Arc::new(Turn::default());
            running.insert(key, Arc::clone(&turn));
            turn
        };
        let mut finish = Finish { fills: self, key, turn, outcome: None };
        let outcome = fill();
        finish.outcome = Some(outcome.clone());
        outcome
    }
}
