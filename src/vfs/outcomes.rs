//! The outcomes of requests of commands, which read them in `.pfimg/`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use serde_json::{Value, json};

use super::requests::Ask;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// Number of outcomes that are remembered.
const REMEMBERED: usize = 256;

/// The outcome of a request of a command.
struct Answer {
    text: Arc<[u8]>,
    /// Whether the kernel already shows the new state. The outcome is hidden until then, so that a caller who has it does not
    /// see the old state.
    shows: bool,
}

/// The last outcomes, by the numbers of their requests.
pub(super) struct Outcomes(Mutex<LruCache<String, Answer>>);

impl Outcomes {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN))))
    }

    /// Remembers an outcome.
    pub(super) fn put(&self, number: &str, outcome: Result<Value, &Error>) {
        let shows = outcome.is_err();
        let text = outcome.unwrap_or_else(|error| {
            let (kind, hint) = (error.kind().name(), error.hint());
            json!({"error": error.message(), "kind": kind, "hint": hint, "exit_code": error.exit_code()})
        });
        let answer = Answer { text: text.to_string().into_bytes().into(), shows };
        self.0.lock().put(number.to_owned(), answer);
    }

    /// Returns an outcome, once the kernel shows the new state.
    pub(super) fn get(&self, number: &str) -> Option<Arc<[u8]>> {
        let mut outcomes = self.0.lock();
        outcomes.get(number).filter(|answer| answer.shows).map(|answer| Arc::clone(&answer.text))
    }

    /// Notes that the kernel knows what the folder of this name in a `.snap/` changed.
    pub(super) fn show(&self, name: &[u8]) {
        let (Ask::Seal { number: Some(number), .. }
        | Ask::Restore { number, .. }
        | Ask::Push { number }
        | Ask::Do { number }) = Ask::parse(std::str::from_utf8(name).unwrap_or_default())
        else {
            return;
        };
        if let Some(answer) = self.0.lock().get_mut(number) {
            answer.shows = true;
        }
    }

    /// Notes that the kernel knows that the fork moved to this name in `.pfimg/` is discarded.
    pub(super) fn show_discarded(&self, name: &[u8]) {
        let number = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix("discarded-"));
        if let Some(number) = number {
            let text = json!({"discarded": true}).to_string().into_bytes().into();
            self.0.lock().put(number.to_owned(), Answer { text, shows: true });
        }
    }
}
