//! Shows a ledger without the secret, since a reader who has the secret can forge the ledger.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::{Map, Value};

use super::ledger::{REDACTED, SECRET_KEY};
use crate::layers::json;

/// Replaces the values of `session_secret_hex` with `<redacted>` and leaves every other byte unchanged.
///
/// The key is found with any spacing or escapes, as often as it occurs, and at any depth. Every line is
/// checked, since two ledgers joined to one have two headers. If a line has the key and is not one JSON
/// object, the end of the value is unknown: from the key on the rest of the blob is left out.
pub fn redact(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let mut done = 0;
    let mut start = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let end = start + line.len();
        if may_name_secret(line) {
            if serde_json::from_slice::<Map<String, Value>>(line).is_ok() {
                for span in secret_spans(line) {
                    out.extend_from_slice(&bytes[done..start + span.start]);
                    out.push(b'"');
                    out.extend_from_slice(REDACTED.as_bytes());
                    out.push(b'"');
                    done = start + span.end;
                }
            } else if let Some(key_end) = loose_key_end(line) {
                out.extend_from_slice(&bytes[done..start + key_end]);
                out.extend_from_slice(REDACTED.as_bytes());
                return Cow::Owned(out);
            }
        }
        start = end;
    }
    if done == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend_from_slice(&bytes[done..]);
    Cow::Owned(out)
}

/// Whether the key may occur in the line: literally, or with an escape.
fn may_name_secret(line: &[u8]) -> bool {
    line.windows(2).any(|pair| pair == b"\\u")
        || line.windows(SECRET_KEY.len()).any(|text| text == SECRET_KEY.as_bytes())
}

/// The values to be replaced in a line that is one JSON object, in order and without overlap.
fn secret_spans(line: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut behind = 0;
    json::members(line).filter_map(move |member| {
        let key = serde_json::from_slice::<String>(&line[member.key]).ok()?;
        // A member within a replaced value is replaced with it.
        if key != SECRET_KEY || member.value.start < behind {
            return None;
        }
        behind = member.value.end;
        Some(member.value)
    })
}

/// The position after the first occurrence of the key in text that is not JSON, with `\uXXXX` decoded.
fn loose_key_end(text: &[u8]) -> Option<usize> {
    (0..text.len()).find_map(|start| {
        let mut at = start;
        for expected in SECRET_KEY.bytes() {
            at += match text.get(at..)? {
                [byte, ..] if *byte == expected => 1,
                [b'\\', b'u', hex @ ..] if escaped(hex) == Some(u32::from(expected)) => 6,
                _ => return None,
            };
        }
        Some(at)
    })
}

fn escaped(hex: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(hex.get(..4)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        String::from_utf8(redact(text.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn only_the_value_is_replaced() {
        let cases = [
            (
                "{\"entries\":1,\"kind\":\"effects.ledger.v1\",\"session_secret_hex\":\"5ec\",\"v\":1}\n{\"tool_id\":\"5ec\"}\n",
                "{\"entries\":1,\"kind\":\"effects.ledger.v1\",\"session_secret_hex\":\"<redacted>\",\"v\":1}\n{\"tool_id\":\"5ec\"}\n",
            ),
            (
                "{ \"session_secret_hex\" :\t\"5ec\" }\r\n\n x",
                "{ \"session_secret_hex\" :\t\"<redacted>\" }\r\n\n x",
            ),
            (r#"{"session_\u0073ecret_hex":"5ec"}"#, r#"{"session_\u0073ecret_hex":"<redacted>"}"#),
            (
                r#"{"session_secret_hex":"5\"ec","a":"\u0041","session_secret_hex":"5ec\\"}"#,
                r#"{"session_secret_hex":"<redacted>","a":"\u0041","session_secret_hex":"<redacted>"}"#,
            ),
            (
                r#"{"a":[{"session_secret_hex":"5ec"}],"session_secret_hex":{"x":["5ec"],"session_secret_hex":"5ec"}}"#,
                r#"{"a":[{"session_secret_hex":"<redacted>"}],"session_secret_hex":"<redacted>"}"#,
            ),
            (r#"{"session_secret_hex":5123,"b":[]}"#, r#"{"session_secret_hex":"<redacted>","b":[]}"#),
            ("{}\n{\"session_secret_hex\":\"5ec\"}", "{}\n{\"session_secret_hex\":\"<redacted>\"}"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text), expected);
            assert_eq!(shown(expected), expected, "twice is as once");
        }
    }

    #[test]
    fn without_a_secret_no_byte_is_touched_or_copied() {
        for text in [
            "",
            "\n",
            "{\"kind\":\"effects.ledger.v1\",\"entries\":0}\n",
            "{\"tool_id\":\"session_secret_hex\",\"x\":[\"session_secret_hex\"]}",
            "{\"broken\\u0073",
            "\\u",
        ] {
            assert!(
                matches!(redact(text.as_bytes()), Cow::Borrowed(same) if same == text.as_bytes()),
                "{text}"
            );
        }
    }

    #[test]
    fn everything_after_the_key_is_hidden_if_the_end_of_the_value_is_unclear() {
        for text in [
            "{\"session_secret_hex\":\"5ec",
            "{\"session_secret_hex\":\"5\n5ec\"}\n",
            "{\n \"session_secret_hex\":\n  [\"x\",\n \"5ec\"]\n}",
            "\"session_secret_hex\"\n:\"5ec\"",
            "[{\"session_secret_hex\":\"5ec\"}]",
            "{\"session_secret\\u005Fhex\":\"5ec\"",
            "\u{feff}{\"session_secret_hex\":\"5ec\"}",
            "{\"session_secret_hex\":\"5ec\"}}",
            "{\"session_secret_hex\":\"5ec\"}\r{\"session_secret_hex\":\"5ec\"}",
        ] {
            let shown = shown(text);
            assert!(!shown.contains("5ec") && shown.ends_with(REDACTED), "{text} -> {shown}");
        }
        let mut latin = b"{\"x\":\"\xff\",\"session_secret_hex\":\"5ec\"}".to_vec();
        assert!(!redact(&latin).windows(3).any(|text| text == b"5ec"));
        latin.insert(0, b'\n');
        assert!(!redact(&latin).windows(3).any(|text| text == b"5ec"));
        let deep = format!("{{\"x\":{}{},\"session_secret_hex\":\"5ec\"}}", "[".repeat(200), "]".repeat(200));
        assert!(!shown(&deep).contains("5ec"));
    }
}
