//! The world layer's processes, as `pf snapshot` records them.
//!
//! `pf_world::procs` writes `procs.unsupported.v1` and `procs.criu.v1`, the `pf` command also
//! `procs.respawn.v1`, and pf-core's fixture an object without `kind`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::FormatError;
use super::json;
use crate::digest::Digest;

const FORMAT: &str = "procs";

/// The processes of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Procs {
    /// One of the known kinds.
    Known(Known),
    /// `{"unsupported_on":…}` without a `kind`, as pf-core's fixture writes it.
    Bare(Unsupported),
    /// Any other object, kept unchanged.
    Other(Map<String, Value>),
}

/// The kinds that `pf` 1.0.15 writes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind")]
pub enum Known {
    /// Nothing was captured.
    #[serde(rename = "procs.unsupported.v1")]
    Unsupported(Unsupported),
    /// A dump by CRIU.
    #[serde(rename = "procs.criu.v1")]
    Criu(Criu),
    /// The data needed to start the process again.
    #[serde(rename = "procs.respawn.v1")]
    Respawn(Box<Respawn>),
}

/// Why there are no processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unsupported {
    /// The operating system of the capture, in the words of `std::env::consts::OS`, or `linux-no-criu`.
    pub unsupported_on: String,
    /// A note for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A dump by CRIU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Criu {
    /// The blob with the dump, a tar of CRIU's images.
    pub criu_dump: Digest,
    /// The processes that were dumped.
    pub pids: Vec<i32>,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The data needed to start a process again. Fields are empty if the capturing system did not have them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Respawn {
    /// The version of this record, 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<u64>,
    /// The process that was captured.
    pub pid: i32,
    /// Its parent.
    pub parent_pid: Option<i32>,
    /// The program's path.
    #[serde(default)]
    pub exe: String,
    /// The arguments, the program's name first.
    #[serde(default)]
    pub argv: Vec<String>,
    /// The working directory.
    #[serde(default)]
    pub cwd: String,
    /// The environment as `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// The files that the process had open.
    #[serde(default)]
    pub fd_paths: Vec<String>,
    /// Operating system, architecture, time, and keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Procs {
    /// Makes the layer of an image without captured processes, on the operating system `os`.
    pub fn empty(os: impl Into<String>, note: impl Into<String>) -> Self {
        Self::Known(Known::Unsupported(Unsupported {
            unsupported_on: os.into(),
            note: Some(note.into()),
            extra: Map::new(),
        }))
    }

    /// Parses the blob of `world.procs`. An unknown kind is kept; a known one must be well-formed.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        fn body<T: serde::de::DeserializeOwned>(
            format: &'static str,
            mut object: Map<String, Value>,
        ) -> Result<T, FormatError> {
            object.remove("kind");
            serde_json::from_value(Value::Object(object))
                .map_err(|error| FormatError::new(format, "", json::reason(&error)))
        }
        let object = json::object(FORMAT, bytes)?;
        let kind = object.get("kind").map(|kind| kind.as_str().unwrap_or_default());
        Ok(match kind {
            Some("procs.unsupported.v1") => {
                Self::Known(Known::Unsupported(body("procs.unsupported.v1", object)?))
            }
            Some("procs.criu.v1") => Self::Known(Known::Criu(body("procs.criu.v1", object)?)),
            Some("procs.respawn.v1") => {
                Self::Known(Known::Respawn(Box::new(body("procs.respawn.v1", object)?)))
            }
            None if object.get("unsupported_on").is_some_and(Value::is_string) => {
                Self::Bare(body(FORMAT, object)?)
            }
            _ => Self::Other(object),
        })
    }

    /// Writes the blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Known(known) => json::to_bytes(known),
            Self::Bare(unsupported) => json::to_bytes(unsupported),
            Self::Other(object) => json::to_bytes(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    type Is = fn(&Procs) -> bool;

    #[test]
    fn every_kind_is_recognised_and_comes_out_with_all_its_keys() {
        let respawn = r#"{"kind":"procs.respawn.v1","schema":1,"pid":7,"parent_pid":null,"exe":"/bin/sh",
            "argv":["sh","-c","x"],"cwd":"/","env":["A=1"],"fd_paths":["/dev/null"],"captured_on":"linux",
            "captured_arch":"x86_64","captured_at":"2026-11-20T09:20:56+00:00","note":"n"}"#;
        let criu = format!(r#"{{"kind":"procs.criu.v1","criu_dump":"{DIGEST}","pids":[1,2],"more":[1.5]}}"#);
        let cases: [(&str, Is); 6] = [
            (
                r#"{"kind":"procs.unsupported.v1","unsupported_on":"linux","note":"n"}"#,
                |p| matches!(p, Procs::Known(Known::Unsupported(u)) if u.unsupported_on == "linux"),
            ),
            (&criu, |p| matches!(p, Procs::Known(Known::Criu(c)) if c.pids == [1, 2] && c.extra.len() == 1)),
            (
                respawn,
                |p| matches!(p, Procs::Known(Known::Respawn(r)) if r.argv.len() == 3 && r.extra.len() == 4),
            ),
            (r#"{"unsupported_on":"linux"}"#, |p| matches!(p, Procs::Bare(u) if u.unsupported_on == "linux")),
            (r#"{"kind":"procs.future.v9","pid":"x"}"#, |p| matches!(p, Procs::Other(o) if o.len() == 2)),
            ("{}", |p| matches!(p, Procs::Other(o) if o.is_empty())),
        ];
        for (text, is) in cases {
            let procs = Procs::parse(text.as_bytes()).unwrap();
            assert!(is(&procs), "{procs:?}");
            let bytes = procs.to_bytes();
            assert_eq!(Procs::parse(&bytes).unwrap(), procs);
            let (before, after): (Value, Value) =
                (serde_json::from_str(text).unwrap(), serde_json::from_slice(&bytes).unwrap());
            assert_eq!(before, after, "{text}");
        }
    }

    #[test]
    fn a_known_kind_that_is_malformed_is_refused() {
        for text in [
            "",
            "3",
            r#"{"kind":"procs.unsupported.v1"}"#,
            r#"{"kind":"procs.criu.v1","criu_dump":"../x","pids":[]}"#,
            r#"{"kind":"procs.respawn.v1","pid":"7"}"#,
        ] {
            assert!(Procs::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_empty_form_equals_that_of_a_generic_snapshot() {
        let bytes = Procs::empty("linux", "nobody filled it").to_bytes();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"procs.unsupported.v1","unsupported_on":"linux","note":"nobody filled it"}"#
        );
    }
}
