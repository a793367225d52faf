//! JSON code that the codecs share: errors with a position, and where members begin and end in the text.
//!
//! The spans let a codec keep or replace one value and leave every other byte unchanged. Finding them takes
//! no recursion and no memory, whatever the text.

use std::fmt;
use std::ops::Range;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::FormatError;

/// The deepest nesting accepted, in open brackets: the limit of `serde_json` where it builds values.
const MAX_DEPTH: usize = 127;

/// The most characters of a parser's message that are copied: it may quote the input, which may be long.
const MAX_REASON: usize = 200;

/// Returns the message without the line: for one line of JSONL that would always be the first.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let mut reason: String = text.chars().take(MAX_REASON).collect();
    if error.column() > 0 {
        reason = format!("{reason}, column {}", error.column());
    }
    reason
}

/// The number of values kept from unknown keys, in one object. Each takes more memory than text: without a
/// limit a small blob could take gigabytes.
const MAX_UNKNOWN: usize = 1 << 16;

/// Commas in a document whose values are kept, which take more memory than text. There is a value before
/// each.
const MAX_COMMAS: usize = 1 << 22;

/// Builds a value of an unknown key, unless it has too many parts.
pub(super) struct Unknown<'b>(&'b mut usize);

impl<'b> Unknown<'b> {
    /// The number of values at the start.
    pub(super) const ALL: usize = MAX_UNKNOWN;

    pub(super) fn of(left: &'b mut usize) -> Self {
        Self(left)
    }

    fn one<E: de::Error>(&mut self) -> Result<(), E> {
        *self.0 = self.0.checked_sub(1).ok_or_else(|| E::custom("it has too many unknown values"))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Unknown<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(mut self, deserializer: D) -> Result<Value, D::Error> {
        self.one()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unknown<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Unknown(self.0))? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            object.insert(key, map.next_value_seed(Unknown(self.0))?);
        }
        Ok(Value::Object(object))
    }
}

/// Parses an object with unknown keys, unless it has too many values.
pub(super) fn small_object(bytes: &[u8]) -> serde_json::Result<Map<String, Value>> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Unknown(&mut { MAX_UNKNOWN }).deserialize(&mut deserializer)?;
    deserializer.end()?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(de::Error::custom("not an object")),
    }
}

/// Parses a whole blob as one JSON value.
pub(super) fn document<T: DeserializeOwned>(format: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    if bytes.split(|byte| *byte == b',').count() > MAX_COMMAS {
        return Err(FormatError::new(format, "", "it has more values than any such document"));
    }
    large_document(format, bytes)
}

/// Does the same for a blob that may have any number of values; `T` keeps few of them.
pub(super) fn large_document<T: DeserializeOwned>(
    format: &'static str,
    bytes: &[u8],
) -> Result<T, FormatError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let at = if error.line() > 0 { format!("line {}", error.line()) } else { String::new() };
        FormatError::new(format, at, reason(&error))
    })
}

/// Parses a whole blob as one JSON object; of a repeated key the last value counts.
pub(super) fn object(format: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, FormatError> {
    document(format, bytes)
}

/// Writes a value that only has string keys, so that writing cannot fail.
pub(super) fn to_bytes(value: &impl serde::Serialize) -> Vec<u8> {
    // Serialising to memory fails only for keys that are not strings, and no type here has such keys.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Whether brackets nest deeper than a value may.
pub(super) fn is_too_deep(text: &[u8]) -> bool {
    // Most text has too few brackets for that; counting them is quick.
    if text.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= MAX_DEPTH {
        return false;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
        at += 1;
    }
    false
}

/// One key with its value, as positions in the text of an object.
pub(super) struct Member {
    /// How many brackets are open around it: 1 for the members of the outermost object.
    pub(super) depth: usize,
    /// The key, with its quotes.
    pub(super) key: Range<usize>,
    /// The value, without the blanks around it.
    pub(super) value: Range<usize>,
}

/// Walks over the members of valid JSON text at every depth, in the order of their keys.
///
/// For other text the spans lie within the text and have no meaning.
pub(super) fn members(text: &[u8]) -> impl Iterator<Item = Member> + '_ {
    let (mut at, mut depth) = (0, 0_usize);
    std::iter::from_fn(move || {
        while let Some(byte) = text.get(at) {
            match byte {
                b'"' => {
                    let key = at..string_end(text, at);
                    at = key.end;
                    let colon = skip_blanks(text, at);
                    if text.get(colon) == Some(&b':') {
                        let start = skip_blanks(text, colon + 1);
                        // Continue at the value, not after it: it may have members itself.
                        at = start;
                        return Some(Member { depth, key, value: start..value_end(text, start) });
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            at += 1;
        }
        None
    })
}

fn skip_blanks(text: &[u8], from: usize) -> usize {
    let blanks = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    from + text.get(from..).unwrap_or_default().iter().take_while(blanks).count()
}

/// The position after the string whose opening quote is at `start`, or the end of the text.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// The position after the value that begins at `start`.
fn value_end(text: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => at = string_end(text, at),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                at += 1;
            }
            // A number or word at the outermost level ends where another token begins.
            b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_kept_unchanged_up_to_a_limit() {
        let text = br#"{"a":[1,-2,3.5,null,true,"x",{"b":[]}],"c":18446744073709551615}"#;
        assert_eq!(small_object(text).unwrap(), serde_json::from_slice(text).unwrap());
        assert!(small_object(b"[]").is_err() && small_object(b"{} x").is_err());
        let many = |count: usize| format!("{{\"x\":[0{}]}}", ",0".repeat(count - 1)).into_bytes();
        assert!(small_object(&many(MAX_UNKNOWN - 2)).is_ok());
        assert!(small_object(&many(MAX_UNKNOWN)).is_err());
        let heavy = many(MAX_COMMAS + 2);
        assert!(document::<Map<String, Value>>("any", &heavy).is_err());
    }

    fn spans(text: &str) -> Vec<(usize, &str, &str)> {
        members(text.as_bytes()).map(|m| (m.depth, &text[m.key], &text[m.value])).collect()
    }

    #[test]
    fn members_are_found_at_every_depth_with_the_span_of_their_value() {
        let cases = [
            (r#"{"a":1}"#, vec![(1, r#""a""#, "1")]),
            ("{ \"a\" :\t-1.5e3 ,\"b\":null}", vec![(1, r#""a""#, "-1.5e3"), (1, r#""b""#, "null")]),
            (r#"{"a":"x\"y:\\","b":"}"}"#, vec![(1, r#""a""#, r#""x\"y:\\""#), (1, r#""b""#, r#""}""#)]),
            (
                r#"{"a":{"b":[{"c":"]"}]},"d":[]}"#,
                vec![
                    (1, r#""a""#, r#"{"b":[{"c":"]"}]}"#),
                    (2, r#""b""#, r#"[{"c":"]"}]"#),
                    (4, r#""c""#, r#""]""#),
                    (1, r#""d""#, "[]"),
                ],
            ),
            (r#"["a","b"]"#, vec![]),
            ("", vec![]),
        ];
        for (text, expected) in cases {
            assert_eq!(spans(text), expected, "{text}");
        }
    }

    #[test]
    fn spans_of_invalid_json_stay_within_the_text() {
        for text in
            [r#"{"a"#, r#"{"a":"#, r#"{"a":"b"#, r#"{"a":"b\"#, r#"{"a":["#, r#"{"a":}]}"#, "\"\\", "]]}}:"]
        {
            for member in members(text.as_bytes()) {
                assert!(member.key.end <= text.len() && member.value.end <= text.len(), "{text}");
                assert!(member.value.start <= member.value.end, "{text}");
            }
        }
    }

    #[test]
    fn depth_is_counted_outside_of_strings_as_serde_json_does() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(!is_too_deep(&nested(MAX_DEPTH)) && is_too_deep(&nested(MAX_DEPTH + 1)));
        assert!(serde_json::from_slice::<Value>(&nested(MAX_DEPTH)).is_ok());
        assert!(serde_json::from_slice::<Value>(&nested(MAX_DEPTH + 1)).is_err());
        assert!(!is_too_deep(format!("\"{}\"", "[".repeat(500)).as_bytes()));
    }

    #[test]
    fn a_reason_has_the_column_and_no_line_and_a_bounded_length() {
        let error = serde_json::from_str::<Value>("{x").unwrap_err();
        assert_eq!(reason(&error), "key must be a string, column 2");
        let long = format!("\"{}\"", "y".repeat(10_000));
        let error = serde_json::from_str::<u8>(&long).unwrap_err();
        assert!(reason(&error).len() < 300);
    }
}
