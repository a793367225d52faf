//! Requests of commands: the names of folders made in `.snap/`, and requests that are longer than a name.

use std::num::NonZeroUsize;

use data_encoding::BASE64URL_NOPAD;
use lru::LruCache;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::back::{Asked, Request};
use crate::ops::seal::Tag;
use crate::sync::Mutex;

/// Requests that are put together at the same time.
const REQUESTS: usize = 16;

/// Longest request in bytes.
const MAX_REQUEST: usize = 4 << 20;

/// A request by the name of a folder made in `.snap/`.
pub(super) enum Ask<'a> {
    Seal { number: Option<&'a str>, tag: Option<Tag<'a>> },
    Restore { number: &'a str, seal: &'a str },
    Push { number: &'a str },
    Part { number: &'a str, at: &'a str, text: &'a str },
    Do { number: &'a str },
}

impl<'a> Ask<'a> {
    /// Parses a name.
    pub(super) fn parse(name: &'a str) -> Self {
        if let Some(rest) = name.strip_prefix(".seal-") {
            let (number, tag) = match rest.find(['=', '!']) {
                Some(at) => (&rest[..at], Some(Tag { name: &rest[at + 1..], force: &rest[at..=at] == "!" })),
                None => (rest, None),
            };
            return Self::Seal { number: Some(number), tag };
        }
        if let Some((number, seal)) = name.strip_prefix(".restore-").and_then(|rest| rest.split_once('=')) {
            return Self::Restore { number, seal };
        }
        if let Some(number) = name.strip_prefix(".push-") {
            return Self::Push { number };
        }
        if let Some((part, text)) = name.strip_prefix(".ask-").and_then(|rest| rest.split_once('='))
            && let Some((number, at)) = part.split_once('-')
        {
            return Self::Part { number, at, text };
        }
        if let Some(number) = name.strip_prefix(".do-") {
            return Self::Do { number };
        }
        Self::Seal { number: None, tag: Some(Tag { name, force: false }) }
    }
}

/// Requests that are being put together, by their numbers.
pub(super) struct Requests(Mutex<LruCache<String, (usize, Vec<u8>)>>);

impl Default for Requests {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(REQUESTS).unwrap_or(NonZeroUsize::MIN))))
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("the request is invalid: {what}"))
}

impl Requests {
    /// Adds a part to a request.
    pub(super) fn add(&self, number: &str, at: &str, text: &str) -> Result<()> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| invalid("a part is not base64"))?;
        let mut all = self.0.lock();
        let (parts, request) = all.get_or_insert_mut(number.to_owned(), Default::default);
        if at.parse() != Ok(*parts) {
            return Err(invalid("a part is missing"));
        }
        if request.len() + bytes.len() > MAX_REQUEST {
            return Err(invalid("it is too long"));
        }
        *parts += 1;
        request.extend(bytes);
        Ok(())
    }

    fn read(bytes: &[u8]) -> Result<Request> {
        serde_json::from_slice(bytes)
            .map_err(|e| invalid("its JSON does not have the expected form").with_source(e))
    }

    /// Takes a request out.
    pub(super) fn take(&self, number: &str) -> Result<Request> {
        let (_, bytes) = self.0.lock().pop(number).ok_or_else(|| invalid("no part"))?;
        Self::read(&bytes)
    }

    /// Whether a request restores a whole fork, as far as can be told before its line is read.
    pub(super) fn restores_all(&self, number: &str) -> bool {
        let mut all = self.0.lock();
        let request = all.get(number).and_then(|(_, bytes)| Self::read(bytes).ok());
        matches!(request, Some(Request::Restore(Asked { paths: None, undo: false, .. })))
    }
}
