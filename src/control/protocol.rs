//! The protocol between commands and the daemon of a mount. Each line is one JSON object, and each carries the version.
//!
//! ```text
//! {"pfimg":1,"do":"seal","fork":"try","tag":"good","force":false}
//! {"pfimg":1,"ok":{"image":"sha256:…","new":true,"reports":[]}}
//! {"pfimg":1,"error":{"kind":"not-found","message":"…","path":null,"name":"try","hint":"…"}}
//! ```
//! This file only turns bytes into values and back. `client` and `daemon/server.rs` own the socket.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::util::bytes::Bytes;

/// The version of the protocol. It changes if one side would misread the other.
pub const VERSION: u64 = 1;

/// The longest line of a request in bytes, without its end.
pub const MAX_REQUEST: usize = 4 << 20;

/// The longest line of a reply in bytes. A restore lists each path that it changed.
pub const MAX_REPLY: usize = 256 << 20;

/// The words for requests, in the order of [`Request`].
const WORDS: [&str; 8] = ["hello", "forks", "fork", "rename", "discard", "flush", "seal", "restore"];

/// What a command asks a daemon for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Which daemon is it? The reply is a [`Hello`].
    Hello {},
    /// The names of the forks. The reply is [`Forks`].
    Forks {},
    /// Makes a fork of a fork or an image. The reply is [`Nothing`].
    Fork {
        /// The name of the new fork.
        name: String,
        /// The name of a fork, `FORK@SEAL`, a tag, an id or the beginning of one, or `latest`.
        source: String,
        /// The mode of the fork's directory.
        mode: u16,
    },
    /// Renames a fork. The reply is [`Nothing`].
    Rename {
        /// The fork's name.
        fork: String,
        /// The new name.
        name: String,
    },
    /// Discards a fork. The reply is [`Nothing`].
    Discard {
        /// The fork's name.
        fork: String,
        /// Whether unsealed work is discarded too.
        force: bool,
    },
    /// Makes the kernel hand in data that programs wrote to a fork. The reply is [`Flushed`].
    Flush {
        /// The fork's name.
        fork: String,
    },
    /// Makes an image of a fork. The reply is [`Sealed`].
    Seal {
        /// The fork's name.
        fork: String,
        /// The tag of the image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        /// Whether the tag may be taken from another image.
        #[serde(default)]
        force: bool,
        /// Why, in words; nothing if the user asked for the seal.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        after: String,
        /// The user's description of the seal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Restores a fork, or paths of it. The reply is `ops::back::Outcome`.
    Restore {
        /// The fork's name.
        fork: String,
        /// The seal: a number, a tag or an id; nothing for the last one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seal: Option<String>,
        /// Whether the last restore is undone.
        #[serde(default)]
        undo: bool,
        /// The paths from the top of the files; nothing for all of the fork.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        paths: Option<Vec<Bytes>>,
    },
}

/// Describes a daemon. Bytes of a path that are not UTF-8 are shown as U+FFFD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the daemon's program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The store.
    pub store: String,
    /// Where the store is mounted.
    pub mountpoint: String,
    /// The file of the log; nothing if it goes to the terminal.
    pub log: Option<String>,
}

/// The names of the forks, sorted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forks {
    /// The names.
    pub forks: Vec<String>,
}

/// The request was done, and there is no more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

/// The kernel has handed in what programs wrote to a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Whether the fork has unsealed changes, or is damaged.
    pub unsealed: bool,
}

/// The result of a seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The image that holds the state of the fork.
    pub image: Digest,
    /// Whether the image is new.
    pub new: bool,
    /// Remarks for the user.
    pub reports: Vec<String>,
}

/// An error on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    kind: String,
    message: String,
    /// The path that the error is about, if it is UTF-8.
    #[serde(default)]
    path: Option<String>,
    /// The same path, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_bytes: Option<Bytes>,
    /// The name that was not found.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        let text = error.path().and_then(Path::to_str);
        let bytes = error.path().filter(|_| text.is_none());
        Self {
            kind: error.kind().name().to_owned(),
            message: error.message(),
            path: text.map(str::to_owned),
            path_bytes: bytes.map(|path| Bytes(path.as_os_str().as_bytes().to_vec())),
            name: error.missing_name().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        let Failed { kind, message, path, path_bytes, name, hint } = failed;
        // A newer daemon may know more kinds.
        let kind = ErrorKind::named(&kind).unwrap_or(ErrorKind::Io(None));
        // The text comes from `Vfs`, in the daemon.
        let mut error = Self::new(kind, message);
        if let Some(hint) = hint {
            error = error.with_hint(hint);
        }
        let bytes = path_bytes.map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes.0)));
        if let Some(path) = path.map(PathBuf::from).or(bytes) {
            error = error.with_path(path);
        } else if let Some(name) = name {
            error = error.with_name(&name);
        }
        error
    }
}

/// A line: the version, and what it carries.
#[derive(Serialize)]
struct Line<T> {
    pfimg: u64,
    #[serde(flatten)]
    content: T,
}

/// The content of a reply.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content<'a, T> {
    Ok(&'a T),
    Error(Failed),
}

fn line(content: impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(&Line { pfimg: VERSION, content })
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write JSON").with_source(e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Returns a request as a line. Fails if it is too long.
pub fn request_line(request: &Request) -> Result<Vec<u8>> {
    let bytes = line(request)?;
    if bytes.len() > MAX_REQUEST {
        return Err(too_long());
    }
    Ok(bytes)
}

/// Returns a reply as a line.
pub fn reply_line<T: Serialize>(reply: Result<&T, &Error>) -> Vec<u8> {
    let made = match reply {
        Ok(reply) => line(Content::Ok(reply)),
        Err(error) => line(Content::<()>::Error(error.into())),
    };
    made.unwrap_or_else(|error| line(Content::<()>::Error((&error).into())).unwrap_or_default())
}

/// The error for a request that is longer than a daemon reads.
pub fn too_long() -> Error {
    Error::new(ErrorKind::InvalidInput, format!("the request is longer than {MAX_REQUEST} bytes"))
        .with_hint("ask for fewer paths at a time")
}

/// Finds the first line in bytes that have arrived, without its end. Nothing if it is not complete, and an error if it is too
/// long.
pub fn first_line(bytes: &[u8]) -> Result<Option<&[u8]>> {
    let end = bytes.iter().take(MAX_REQUEST + 1).position(|byte| *byte == b'\n');
    match end {
        Some(end) => Ok(Some(&bytes[..end])),
        None if bytes.len() > MAX_REQUEST => Err(too_long()),
        None => Ok(None),
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("the request is invalid: {what}"))
}

/// Parses a request.
pub fn request(line: &[u8]) -> Result<Request> {
    let mut object: Map<String, Value> =
        serde_json::from_slice(line).map_err(|e| invalid("it is not a JSON object").with_source(e))?;
    match object.remove("pfimg") {
        Some(Value::Number(number)) if number.as_u64() == Some(VERSION) => {}
        // Before anything else is read: another version may mean something else by it.
        Some(Value::Number(number)) => return Err(other_version(&number.to_string())),
        _ => return Err(invalid("it has no version")),
    }
    let word = object.get("do").and_then(Value::as_str).ok_or_else(|| invalid("it names nothing to do"))?;
    if !WORDS.contains(&word) {
        let what = format!("this daemon knows no request {word:?}");
        return Err(Error::new(ErrorKind::Unsupported, what)
            .with_name(word)
            .with_hint(format!("the daemon knows {}", WORDS.join(", "))));
    }
    serde_json::from_value(Value::Object(object))
        .map_err(|e| invalid("its fields do not have the expected form").with_source(e))
}

fn other_version(number: &str) -> Error {
    let what = format!(
        "the command speaks version {number} of the protocol, and the daemon (pfimg {}) version {VERSION}",
        env!("CARGO_PKG_VERSION")
    );
    Error::new(ErrorKind::Unsupported, what)
        .with_hint("unmount the store, and mount it again with the pfimg that you use")
}

/// Parses a reply: the value that it carries, or the error of the daemon.
pub fn reply<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Reply<T> {
        pfimg: u64,
        ok: Option<T>,
        error: Option<Failed>,
    }
    let unread = || Error::new(ErrorKind::Unsupported, "the daemon sent a reply of another form");
    let version = || {
        #[derive(Deserialize)]
        struct Version {
            pfimg: u64,
        }
        serde_json::from_slice::<Version>(line).ok().map(|line| line.pfimg)
    };
    match serde_json::from_slice(line) {
        Ok(Reply { pfimg: VERSION, error: Some(failed), .. }) => Err(failed.into()),
        Ok(Reply { pfimg: VERSION, ok: Some(done), .. }) => Ok(done),
        Ok(Reply { pfimg: VERSION, .. }) => Err(unread()),
        Ok(Reply { pfimg, .. }) => Err(other_reply(pfimg)),
        Err(error) => match version() {
            Some(number) if number != VERSION => Err(other_reply(number)),
            _ => Err(unread().with_source(error)),
        },
    }
}

fn other_reply(number: u64) -> Error {
    let what = format!(
        "the daemon speaks version {number} of the protocol, and this command (pfimg {}) version {VERSION}",
        env!("CARGO_PKG_VERSION")
    );
    Error::new(ErrorKind::Unsupported, what)
        .with_hint("unmount the store, and mount it again with this pfimg")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Posix;

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![Just("a\n\"b\\\u{fffd}".to_owned()), any::<String>()]
    }

    fn requests() -> impl Strategy<Value = Request> {
        let paths = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes), 0..4);
        prop_oneof![
            Just(Request::Hello {}),
            Just(Request::Forks {}),
            (text(), text(), any::<u16>()).prop_map(|(name, source, mode)| Request::Fork {
                name,
                source,
                mode
            }),
            (text(), text()).prop_map(|(fork, name)| Request::Rename { fork, name }),
            (text(), any::<bool>()).prop_map(|(fork, force)| Request::Discard { fork, force }),
            text().prop_map(|fork| Request::Flush { fork }),
            (text(), prop::option::of(text()), any::<bool>(), text(), prop::option::of(text())).prop_map(
                |(fork, tag, force, after, message)| Request::Seal { fork, tag, force, after, message }
            ),
            (text(), prop::option::of(text()), any::<bool>(), prop::option::of(paths))
                .prop_map(|(fork, seal, undo, paths)| Request::Restore { fork, seal, undo, paths }),
        ]
    }

    proptest! {
        #[test]
        fn a_request_is_one_line_and_comes_out_as_it_went_in(asked in requests()) {
            let line = request_line(&asked).unwrap();
            let inner = first_line(&line).unwrap().unwrap();
            prop_assert_eq!(inner.len() + 1, line.len());
            prop_assert_eq!(request(inner).unwrap(), asked);
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (request(&bytes), reply::<Sealed>(&bytes), first_line(&bytes));
        }

        #[test]
        fn a_line_that_is_changed_anywhere_is_a_request_or_an_error(asked in requests(), at: usize, byte: u8) {
            let mut line = request_line(&asked).unwrap();
            let at = at % line.len();
            line[at] = byte;
            if let Ok(again) = request(&line) {
                prop_assert_eq!(request(&request_line(&again).unwrap()).unwrap(), again);
            }
        }

        #[test]
        fn an_error_arrives_with_its_kind_message_path_name_and_hint(
            message in text(), hint in prop::option::of(text()), path in prop::collection::vec(1..=255u8, 1..20), which in 0..3,
        ) {
            let mut sent = Error::new(ErrorKind::Posix(Posix::NotEmpty), message);
            if which == 1 {
                sent = sent.with_path(OsStr::from_bytes(&path));
            } else if which == 2 {
                sent = sent.with_name("try");
            }
            if let Some(hint) = hint {
                sent = sent.with_hint(hint);
            }
            let line = reply_line::<Nothing>(Err(&sent));
            prop_assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            let got = reply::<Nothing>(&line).unwrap_err();
            prop_assert_eq!((got.kind(), got.message(), got.hint()), (sent.kind(), sent.message(), sent.hint()));
            prop_assert_eq!((got.path(), got.missing_name()), (sent.path(), sent.missing_name()));
        }
    }

    fn refused(line: &str) -> Error {
        request(line.as_bytes()).unwrap_err()
    }

    #[test]
    fn the_words_are_those_of_the_requests() {
        for word in WORDS {
            let error =
                serde_json::from_value::<Request>(serde_json::json!({"do": word, "no": 1})).unwrap_err();
            assert!(error.to_string().contains("no"), "{word}: {error}");
            assert!(!error.to_string().contains("variant"), "{word}: {error}");
        }
    }

    #[test]
    fn another_version_is_refused_with_both_numbers_before_anything_else_is_read() {
        let error = refused(r#"{"pfimg":7,"do":{"all":"new"}}"#);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("version 7") && error.message().contains("version 1"), "{error}");
        let error = reply::<Nothing>(br#"{"pfimg":9,"done":{}}"#).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("version 9") && error.message().contains("version 1"), "{error}");
    }

    #[test]
    fn an_unknown_request_is_refused_by_its_name_and_an_unknown_field_too() {
        let error = refused(r#"{"pfimg":1,"do":"format-disk"}"#);
        assert_eq!((error.kind(), error.missing_name()), (ErrorKind::Unsupported, Some("format-disk")));
        for line in [
            "",
            "null",
            "[]",
            "{",
            "{}",
            r#"{"do":"hello"}"#,
            r#"{"pfimg":"1","do":"hello"}"#,
            r#"{"pfimg":1}"#,
            r#"{"pfimg":1,"do":1}"#,
            r#"{"pfimg":1,"do":"hello","more":1}"#,
            r#"{"pfimg":1,"do":"seal"}"#,
            r#"{"pfimg":1,"do":"seal","fork":"a","dry":true}"#,
            r#"{"pfimg":1,"do":"discard","fork":"a"}"#,
            r#"{"pfimg":1,"do":"hello"} {}"#,
        ] {
            assert_eq!(refused(line).kind(), ErrorKind::InvalidInput, "{line}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_and_an_unfinished_one_is_waited_for() {
        assert!(first_line(b"{\"pfimg\"").unwrap().is_none());
        assert_eq!(first_line(b"a\nb\n").unwrap(), Some(&b"a"[..]));
        let long = vec![b' '; MAX_REQUEST + 1];
        assert_eq!(first_line(&long).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(first_line(&long[1..]).unwrap().is_none());
        let message = Some("a".repeat(MAX_REQUEST));
        let (fork, tag, force, after) = ("a".to_owned(), None, false, String::new());
        let asked = Request::Seal { fork, tag, force, after, message };
        assert_eq!(request_line(&asked).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_kind_that_this_version_does_not_know_is_still_an_error() {
        let error = reply::<Nothing>(br#"{"pfimg":1,"error":{"kind":"new","message":"x"}}"#).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Io(None), "x".to_owned()));
        let error = reply::<Sealed>(br#"{"pfimg":1,"ok":{}}"#).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
