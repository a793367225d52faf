//! The model layer: a base that is any bytes, and a diff in the envelope `model.diff.v1`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::FormatError;
use super::json;

const FORMAT: &str = "model.diff.v1";

/// The base of the diff. Any bytes are allowed; the `pf` command writes `base:<agent>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// `base:` and the kind of the agent: there is no model, only a name.
    Agent(String),
    /// Any other bytes: a fingerprint, or weights.
    Opaque(Vec<u8>),
}

impl Base {
    /// Reads the blob of `model.base`. Any content is a base, so this cannot fail.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let agent = bytes.strip_prefix(b"base:").and_then(|kind| std::str::from_utf8(kind).ok());
        Ok(match agent {
            Some(kind) if !kind.is_empty() && !kind.contains(char::is_control) => {
                Self::Agent(kind.to_owned())
            }
            _ => Self::Opaque(bytes.to_vec()),
        })
    }

    /// Writes the blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Agent(kind) => format!("base:{kind}").into_bytes(),
            Self::Opaque(bytes) => bytes.clone(),
        }
    }
}

/// A change of weights. The weights stay text: they may be gigabytes, and as values would take sixteen times
/// that.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDiff {
    kind: String,
    diff: String,
    /// A note for people.
    pub note: Option<String>,
    /// Keys this program does not know.
    pub extra: Map<String, Value>,
}

#[derive(Deserialize)]
struct Envelope {
    layout: String,
    diff: Tag,
    note: Option<String>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Deserialize)]
struct Tag {
    kind: String,
}

impl ModelDiff {
    /// Makes the diff of an image without an adapter: low-rank adapters, an empty list.
    pub fn empty(note: impl Into<String>) -> Self {
        Self {
            kind: "lora".to_owned(),
            diff: r#"{"adapters":[],"kind":"lora"}"#.to_owned(),
            note: Some(note.into()),
            extra: Map::new(),
        }
    }

    /// Parses the blob of `model.diff`. Any `kind` of diff is accepted; another layout is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let text = std::str::from_utf8(bytes).map_err(|_| FormatError::new(FORMAT, "", "not UTF-8"))?;
        // The parser does not limit the depth of values that are skipped and not built.
        if json::is_too_deep(bytes) {
            return Err(FormatError::new(FORMAT, "", "nested too deeply"));
        }
        let Envelope { layout, diff: Tag { kind }, note, extra } = json::large_document(FORMAT, bytes)?;
        if layout != FORMAT {
            return Err(FormatError::new(FORMAT, "layout", "another layout"));
        }
        // The key may be written with escapes, so it is compared as a value.
        let is_diff = |key: &str| serde_json::from_str::<String>(key).is_ok_and(|key| key == "diff");
        let diff = json::members(bytes)
            .find(|member| member.depth == 1 && text.get(member.key.clone()).is_some_and(is_diff))
            .and_then(|member| text.get(member.value))
            .filter(|diff| diff.starts_with('{'))
            .ok_or_else(|| FormatError::new(FORMAT, "diff", "not an object"))?;
        Ok(Self { kind, diff: diff.to_owned(), note, extra })
    }

    /// Writes the blob, keys in the order of the `pf` command.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.diff.len() + 128);
        out.extend_from_slice(b"{\"diff\":");
        out.extend_from_slice(self.diff.as_bytes());
        out.extend_from_slice(b",\"layout\":\"model.diff.v1\"");
        if let Some(note) = &self.note {
            out.extend_from_slice(b",\"note\":");
            out.extend_from_slice(&json::to_bytes(note));
        }
        for (key, value) in &self.extra {
            out.push(b',');
            out.extend_from_slice(&json::to_bytes(key));
            out.push(b':');
            out.extend_from_slice(&json::to_bytes(value));
        }
        out.push(b'}');
        out
    }

    /// The kind of diff: `lora`, `ia3`, `full`, `in-place-ttt`, or one this program does not know.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The diff itself with its `kind`: its exact JSON text.
    pub fn diff_json(&self) -> &str {
        &self.diff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_name_or_opaque_bytes() {
        let cases: [(&[u8], Option<&str>); 6] = [
            (b"base:claude-code", Some("claude-code")),
            (b"base-model-fingerprint:llama", None),
            (b"base:", None),
            (b"base:\xff", None),
            (b"base:a\nb", None),
            (b"", None),
        ];
        for (bytes, agent) in cases {
            let base = Base::parse(bytes).unwrap();
            assert_eq!(base.to_bytes(), bytes);
            match (base, agent) {
                (Base::Agent(kind), Some(agent)) => assert_eq!(kind, agent),
                (Base::Opaque(_), None) => {}
                (base, _) => panic!("{base:?} for {bytes:?}"),
            }
        }
    }

    #[test]
    fn every_kind_of_diff_keeps_its_text_to_the_last_digit() {
        let cases = [
            (r#"{"diff":{"adapters":[],"kind":"lora"},"layout":"model.diff.v1","note":"n"}"#, "lora"),
            (
                r#"{"diff":{"kind":"full","params":{"p":[0.10000000149011612,1e-40]}},"layout":"model.diff.v1"}"#,
                "full",
            ),
            (r#"{"diff":{"kind":"in-place-ttt", "steps":[]},"layout":"model.diff.v1"}"#, "in-place-ttt"),
            (r#"{"diff":{"kind":"new"},"layout":"model.diff.v1","note":"a\"b","x":[1],"y":0.1}"#, "new"),
        ];
        for (text, kind) in cases {
            let diff = ModelDiff::parse(text.as_bytes()).unwrap();
            assert_eq!(diff.kind(), kind);
            assert_eq!(String::from_utf8(diff.to_bytes()).unwrap(), text);
        }
    }

    #[test]
    fn keys_in_another_order_with_blanks_and_escapes_are_understood() {
        let text =
            "{ \"x\":{\"diff\":1}, \"layout\":\"model.diff.v1\",\n \"d\\u0069ff\" : { \"kind\":\"ia3\" } }";
        let diff = ModelDiff::parse(text.as_bytes()).unwrap();
        assert_eq!((diff.kind(), diff.diff_json()), ("ia3", "{ \"kind\":\"ia3\" }"));
        assert_eq!(ModelDiff::parse(&diff.to_bytes()).unwrap(), diff);
    }

    #[test]
    fn an_invalid_diff_is_refused() {
        let deep = format!(
            r#"{{"diff":{{"kind":"x","y":{}{}}},"layout":"model.diff.v1"}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        for text in [
            "",
            "{}",
            r#"{"layout":"model.diff.v1"}"#,
            r#"{"diff":["lora"],"layout":"model.diff.v1"}"#,
            r#"{"diff":{},"layout":"model.diff.v1"}"#,
            r#"{"diff":{"kind":"lora"},"layout":"model.diff.v9"}"#,
            r#"{"diff":{"kind":"lora"},"diff":{"kind":"full"},"layout":"model.diff.v1"}"#,
            &deep,
        ] {
            assert!(ModelDiff::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(ModelDiff::parse(b"{\"diff\":{\"kind\":\"\xff\"},\"layout\":\"model.diff.v1\"}").is_err());
    }

    #[test]
    fn the_empty_form_equals_that_of_a_generic_snapshot() {
        let text = String::from_utf8(ModelDiff::empty("n").to_bytes()).unwrap();
        assert_eq!(text, r#"{"diff":{"adapters":[],"kind":"lora"},"layout":"model.diff.v1","note":"n"}"#);
        assert_eq!(ModelDiff::parse(text.as_bytes()).unwrap(), ModelDiff::empty("n"));
    }
}
