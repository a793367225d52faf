//! The world layer's environment: `env.v1`, as `pf_world::env` writes it, and the bare object of pf-core's fixture.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::FormatError;
use super::json;

const FORMAT: &str = "env.v1";

/// The environment an agent ran in.
#[derive(Clone, Debug, PartialEq)]
pub enum Env {
    /// `{"kind":"env.v1","cwd":…,"vars":…}`.
    V1(EnvV1),
    /// An object without `kind`: pf-core's fixture writes `{"PWD":"/sandbox","seed":0}`.
    Bare(Map<String, Value>),
}

/// An environment of the first version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EnvV1 {
    /// The working directory at capture time; empty if it was unknown.
    pub cwd: String,
    /// The variables; the value of a redacted one is `<redacted>`.
    pub vars: BTreeMap<String, String>,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

#[derive(Serialize)]
struct Tagged<'a> {
    kind: &'static str,
    #[serde(flatten)]
    env: &'a EnvV1,
}

impl Env {
    /// Parses the blob of `world.env`. A `kind` other than `env.v1` is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut object = json::object(FORMAT, bytes)?;
        match object.remove("kind") {
            None => Ok(Self::Bare(object)),
            Some(Value::String(kind)) if kind == FORMAT => serde_json::from_value(Value::Object(object))
                .map(Self::V1)
                .map_err(|error| FormatError::new(FORMAT, "", json::reason(&error))),
            Some(_) => Err(FormatError::new(FORMAT, "kind", "another kind of environment")),
        }
    }

    /// Writes the blob: the bytes that `pf` wrote come out unchanged.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::V1(env) => json::to_bytes(&Tagged { kind: FORMAT, env }),
            Self::Bare(object) => json::to_bytes(object),
        }
    }

    /// The working directory, if it is recorded.
    pub fn cwd(&self) -> Option<&str> {
        match self {
            Self::V1(env) => Some(env.cwd.as_str()),
            Self::Bare(object) => object.get("PWD").and_then(Value::as_str),
        }
        .filter(|cwd| !cwd.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_come_out_as_they_went_in() {
        let cases = [
            (r#"{"kind":"env.v1","cwd":"/w","vars":{"A":"1","TOKEN":"<redacted>"}}"#, Some("/w")),
            (r#"{"kind":"env.v1","cwd":"","vars":{},"host":{"load":0.1,"os":"linux"}}"#, None),
            (r#"{"PWD":"/sandbox","seed":0}"#, Some("/sandbox")),
            ("{}", None),
        ];
        for (text, cwd) in cases {
            let env = Env::parse(text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(env.to_bytes()).unwrap(), text);
            assert_eq!(env.cwd(), cwd, "{text}");
        }
    }

    #[test]
    fn an_invalid_environment_is_refused() {
        let cases = [
            ("", ""),
            ("[]", ""),
            ("{", "line 1"),
            (r#"{"kind":"env.v2","cwd":"/","vars":{}}"#, "kind"),
            (r#"{"kind":1}"#, "kind"),
            (r#"{"kind":"env.v1","vars":{}}"#, ""),
            (r#"{"kind":"env.v1","cwd":"/","vars":{"A":1}}"#, ""),
        ];
        for (text, at) in cases {
            let error = Env::parse(text.as_bytes()).unwrap_err();
            assert!(error.at.starts_with(at) && !error.reason.is_empty(), "{text}: {error}");
        }
    }

    #[test]
    fn numbers_under_unknown_keys_keep_their_last_bit() {
        let text = r#"{"x":2.2250738585072011e-308,"y":8.512881156139577e-305,"z":-0.0}"#;
        let env = Env::parse(text.as_bytes()).unwrap();
        assert_eq!(Env::parse(&env.to_bytes()).unwrap(), env);
    }
}
