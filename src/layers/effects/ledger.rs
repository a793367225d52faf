//! Ledgers and merges: their forms, their bytes.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::layers::error::FormatError;
use crate::layers::json;

pub(super) const LEDGER: &str = "effects.ledger.v1";
const MERGED: &str = "effects.merged.v1";

/// The header's key for the secret; with it a reader can forge the ledger.
pub(super) const SECRET_KEY: &str = "session_secret_hex";

/// The text shown in place of a secret.
pub const REDACTED: &str = "<redacted>";

/// The effects of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Effects {
    /// Zero bytes, or blank lines only.
    Empty,
    /// A ledger.
    Ledger(Ledger),
    /// Pointers to the two ledgers of a merge.
    Merged(Merged),
}

/// A ledger: a header line, then one line an effect, in causal order.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    /// The first line.
    pub header: Header,
    /// The other lines.
    pub entries: Vec<Entry>,
}

/// The first line of a ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// How many entries the writer counted; 0 if it did not say, as in `pf`.
    pub entries: u64,
    /// The secret of the chain, if the writer embedded it. Absent when the operator keeps it.
    pub session_secret_hex: Option<Secret>,
    /// `tamper-detection` if the secret is embedded.
    pub verification_mode: Option<String>,
    /// Keys this program does not know.
    pub extra: Map<String, Value>,
}

/// The key of a ledger's chain in hex, as `$PF_SESSION_SECRET` and the header have it. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// One line of a ledger with the bytes it was read from.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(super) line: usize,
    pub(super) raw: Vec<u8>,
    pub(super) record: Record,
}

/// One effect, fields in the order in which `pf` writes and signs them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When the tool was called.
    #[serde(rename = "ts")]
    pub timestamp: DateTime<Utc>,
    /// The tool.
    pub tool_id: String,
    /// Digest of the arguments. Text, since `pf` signs it in the case in which it was written.
    pub args_hash: String,
    /// The key by which repeated calls are recognised.
    pub idempotency_key: String,
    /// Digest of the result; text as `args_hash` is.
    pub result_hash: String,
    /// The effect of repeating the call.
    pub side_effect_class: SideEffectClass,
    /// Hex HMAC of the chain up to here; empty, or absent when read, if the entry is not chained.
    #[serde(default)]
    pub session_hmac: String,
    /// Keys this program does not know. They are not signed: `pf` drops them before it hashes.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The effect of repeating a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SideEffectClass {
    /// Nothing.
    Pure,
    /// Nothing, with the same idempotency key.
    Idempotent,
    /// A second effect.
    Irreversible,
    /// A read from the network, which may have changed.
    NetworkOnly,
}

/// The effects of a merge: `pf` makes no new chain; it points to both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merged {
    kind: String,
    /// Ledger of the image that was merged into.
    pub parent_a: Digest,
    /// Ledger of the image that was merged.
    pub parent_b: Digest,
    /// Ledger of their common ancestor.
    pub ancestor: Digest,
    /// The classes that may be called again with a new key.
    pub replay_with_new_key: Vec<SideEffectClass>,
    /// Counts.
    pub summary: MergedSummary,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Counts of a merge's entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergedSummary {
    /// Entries of `parent_a`.
    pub a_entries: u64,
    /// Entries of `parent_b`.
    pub b_entries: u64,
    /// Irreversible entries of `parent_b`, whose results are facts from now on.
    pub b_irreversible_cached: u64,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Effects {
    /// Parses the blob of `effects.ledger`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let Some((index, first)) = lines(bytes).next() else { return Ok(Self::Empty) };
        let kind = json::small_object(first)
            .ok()
            .and_then(|header| header.get("kind").and_then(Value::as_str).map(str::to_owned));
        match kind.as_deref() {
            Some(LEDGER) => Ledger::parse(bytes).map(Self::Ledger),
            // A merge is one object, which may span several lines.
            Some(MERGED) | None => {
                let merged: Merged = json::document(MERGED, bytes).map_err(|error| match kind {
                    Some(_) => error,
                    None => FormatError::new(LEDGER, at_line(index), "neither a header nor a merge"),
                })?;
                match merged.kind.as_str() {
                    MERGED => Ok(Self::Merged(merged)),
                    _ => Err(FormatError::new(MERGED, "kind", "another kind of effects")),
                }
            }
            Some(_) => Err(FormatError::new(LEDGER, at_line(index), "another kind of effects")),
        }
    }

    /// The ledgers that a blob of `effects.ledger` refers to: those of a merge, or the ledger that it
    /// continues. Its other lines need not be entries: a seal keeps lines that are not.
    pub fn references(bytes: &[u8]) -> Result<Vec<Digest>, FormatError> {
        #[derive(Deserialize)]
        struct Continues {
            continues: Option<Digest>,
        }
        match Self::parse(bytes) {
            Ok(Self::Merged(merged)) => Ok(vec![merged.parent_a, merged.parent_b, merged.ancestor]),
            Err(error) if bytes.windows(MERGED.len()).any(|word| word == MERGED.as_bytes()) => Err(error),
            Ok(Self::Empty | Self::Ledger(_)) | Err(_) => {
                let header = lines(bytes).next().and_then(|(_, line)| serde_json::from_slice(line).ok());
                Ok(header.and_then(|header: Continues| header.continues).into_iter().collect())
            }
        }
    }

    /// Writes the blob. Entries come out byte for byte.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Empty => Vec::new(),
            Self::Ledger(ledger) => ledger.to_bytes(),
            Self::Merged(merged) => json::to_bytes(merged),
        }
    }
}

impl Ledger {
    /// Parses a ledger. The count in the header is not checked here, [`Ledger::verify`] does.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut lines = lines(bytes);
        let (index, first) = lines.next().ok_or_else(|| FormatError::new(LEDGER, "", "no header line"))?;
        let header = Header::parse(first, index)?;
        let entries = lines
            .map(|(index, line)| Entry::parse(line, index + 1))
            .collect::<Result<Vec<_>, FormatError>>()?;
        Ok(Self { header, entries })
    }

    /// Writes the ledger: the header with its keys sorted, as `pf` does, and the entries' exact lines.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.header.to_bytes();
        out.push(b'\n');
        for entry in &self.entries {
            out.extend_from_slice(&entry.raw);
            out.push(b'\n');
        }
        out
    }
}

impl Header {
    fn parse(line: &[u8], index: usize) -> Result<Self, FormatError> {
        // Values are taken out one by one: a parser's message about the secret might quote it.
        let wrong = |reason: &'static str| FormatError::new(LEDGER, at_line(index), reason);
        let mut extra: Map<String, Value> =
            json::small_object(line).map_err(|_| wrong("the header is not a JSON object"))?;
        if extra.remove("kind").as_ref().and_then(Value::as_str) != Some(LEDGER) {
            return Err(wrong("another kind of effects"));
        }
        let entries = match extra.remove("entries") {
            None => 0,
            Some(count) => count.as_u64().ok_or_else(|| wrong("entries is not a count"))?,
        };
        let mut text = |key: &str, reason: &'static str| match extra.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(reason)),
        };
        let session_secret_hex = text(SECRET_KEY, "session_secret_hex is not text")?.map(Secret);
        let verification_mode = text("verification_mode", "verification_mode is not text")?;
        Ok(Self { entries, session_secret_hex, verification_mode, extra })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut object = self.extra.clone();
        object.insert("kind".to_owned(), LEDGER.into());
        object.insert("entries".to_owned(), self.entries.into());
        let texts = [
            (SECRET_KEY, self.session_secret_hex.as_ref().map(|secret| secret.0.as_str())),
            ("verification_mode", self.verification_mode.as_deref()),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                object.insert(key.to_owned(), text.into());
            }
        }
        json::to_bytes(&object)
    }
}

impl Secret {
    /// Wraps hex digits, from `$PF_SESSION_SECRET` or fresh ones. They are checked when they are used.
    pub fn new(hex: impl Into<String>) -> Self {
        Self(hex.into())
    }

    /// Whether this is the placeholder of a redacted secret: a ledger that was read through a mount has it.
    pub fn is_redacted(&self) -> bool {
        self.0 == REDACTED
    }

    /// Identifies a secret without revealing it: the first 16 hex digits of the SHA-256 of a label and the
    /// key.
    pub fn fingerprint(&self) -> String {
        let key = self.key().unwrap_or_default();
        Digest::of(&[b"pfimg session secret\0", &key[..]].concat()).hex()[..16].to_owned()
    }

    /// The key, if this is hex; blanks around it are ignored, as with `pf`.
    pub(super) fn key(&self) -> Option<Vec<u8>> {
        data_encoding::HEXLOWER_PERMISSIVE.decode(self.0.trim().as_bytes()).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(<redacted>)")
    }
}

impl Entry {
    /// Makes an entry whose line is what `pf` would write for `record`, with the unknown keys after it.
    pub fn new(record: Record) -> Self {
        Self { line: 0, raw: json::to_bytes(&record), record }
    }

    /// Parses one line; `number` is its line number in its file, for messages.
    pub fn parse(line: &[u8], number: usize) -> Result<Self, FormatError> {
        let record = serde_json::from_slice(line)
            .map_err(|error| FormatError::new(LEDGER, format!("line {number}"), json::reason(&error)))?;
        Ok(Self { line: number, raw: line.to_vec(), record })
    }

    /// The parsed line.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The line's bytes, without its end.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The number of the line it was read from, from 1; 0 if it was not read.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Whether the entry has an HMAC, right or wrong.
    pub fn is_chained(&self) -> bool {
        !self.record.session_hmac.is_empty()
    }
}

/// Entries are equal if their bytes are, in any position.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

/// The lines that are not empty, each with its index from 0. A blank line is not empty; `pf` agrees.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty())
}

fn at_line(index: usize) -> String {
    format!("line {}", index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn entry(more: &str) -> String {
        format!(
            r#"{{"ts":"2026-05-05T14:11:00Z","tool_id":"t","args_hash":"{DIGEST}","idempotency_key":"k","result_hash":"{DIGEST}","side_effect_class":"network-only"{more}}}"#
        )
    }

    fn merged() -> String {
        format!(
            r#"{{"kind":"effects.merged.v1","parent_a":"{DIGEST}","parent_b":"{DIGEST}","ancestor":"{DIGEST}","replay_with_new_key":["idempotent"],"summary":{{"a_entries":1,"b_entries":2,"b_irreversible_cached":0}}}}"#
        )
    }

    #[test]
    fn every_shape_comes_out_as_it_went_in() {
        let ledger = format!(
            "{}\n{}\n{}\n",
            r#"{"entries":2,"kind":"effects.ledger.v1","later":0.1,"session_secret_hex":"ab","verification_mode":"tamper-detection"}"#,
            entry(r#", "session_hmac" : "","why":[1.50]"#),
            entry(""),
        );
        for text in
            [String::new(), ledger, merged(), "{\"entries\":0,\"kind\":\"effects.ledger.v1\"}\n".to_owned()]
        {
            let effects = Effects::parse(text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(effects.to_bytes()).unwrap(), text);
        }
    }

    #[test]
    fn blank_lines_count_as_lines_and_are_no_entries() {
        let text = format!("\n\n{{\"kind\":\"effects.ledger.v1\"}}\n\n{}", entry(""));
        let Effects::Ledger(ledger) = Effects::parse(text.as_bytes()).unwrap() else { panic!("no ledger") };
        assert_eq!((ledger.header.entries, ledger.entries.len(), ledger.entries[0].line()), (0, 1, 5));
        assert_eq!(Ledger::parse(&ledger.to_bytes()).unwrap(), ledger);
        assert_eq!(Effects::parse(b"\n\n").unwrap(), Effects::Empty);
    }

    #[test]
    fn a_merge_may_be_spread_over_lines() {
        let pretty =
            serde_json::to_string_pretty(&serde_json::from_str::<Value>(&merged()).unwrap()).unwrap();
        assert_eq!(Effects::parse(pretty.as_bytes()).unwrap(), Effects::parse(merged().as_bytes()).unwrap());
    }

    #[test]
    fn an_invalid_effects_layer_is_refused_with_its_line() {
        let header = r#"{"entries":1,"kind":"effects.ledger.v1"}"#;
        let cases = [
            (" ".to_owned(), "line 1"),
            ("[]".to_owned(), "line 1"),
            (r#"{"kind":"effects.ledger.v2"}"#.to_owned(), "line 1"),
            (r#"{"kind":"effects.ledger.v1","entries":-1}"#.to_owned(), "line 1"),
            (r#"{"kind":"effects.ledger.v1","session_secret_hex":77123}"#.to_owned(), "line 1"),
            (merged().replace("idempotent", "anything"), "line 1"),
            (format!("{header}\nx"), "line 2"),
            (format!("{header}\n{}\n{}", entry(""), entry("").replace("network-only", "none")), "line 3"),
            (format!("{header}\n\n{}", entry("").replace("14:11", "25:11")), "line 3"),
        ];
        for (text, at) in cases {
            let error = Effects::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.at, at, "{text}: {error}");
            assert!(!error.to_string().contains("77123"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let text = r#"{"kind":"effects.ledger.v1","session_secret_hex":"c0ffee"}"#;
        let ledger = Ledger::parse(text.as_bytes()).unwrap();
        assert!(!format!("{ledger:?}").contains("c0ffee"));
    }
}
