//! The trace layer: JSON objects, one a line.
//!
//! `pf` writes messages (`{"content":…,"role":…}`, `pf_merge::trace` reads them). Other programs write
//! session events into the same file; pfimg keeps them unchanged. A line that is neither is reported with its
//! number; the other lines are still read.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::FormatError;
use super::json;

const FORMAT: &str = "trace.jsonl";

/// A whole trace: its exact bytes, and the record of each line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    bytes: Vec<u8>,
    lines: Vec<Line>,
    /// How many line ends the bytes have.
    ends: usize,
}

/// One line that is not blank.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    span: Range<usize>,
    /// Its record, or why it has none.
    pub record: Result<Record, FormatError>,
}

/// The kinds of a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A message of a chat.
    Message(Message),
    /// An event: an object with a `kind`, `event` or `type`.
    Event(Map<String, Value>),
    /// Any other object.
    Other(Map<String, Value>),
}

/// A message, keys in `pf`'s order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The text.
    pub content: String,
    /// The speaker: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Trace {
    /// Parses the blob of `trace.messages`. Lines that are not records are in the result, so this cannot
    /// fail.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut trace = Self { bytes: bytes.to_vec(), lines: Vec::new(), ends: 0 };
        let mut start = 0;
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if !line.trim_ascii().is_empty() {
                let span = start..start + line.len();
                trace.lines.push(Line { number: index + 1, span, record: Record::parse(line, index + 1) });
            }
            start += line.len() + 1;
            trace.ends = index;
        }
        Ok(trace)
    }

    /// Writes the blob: the parsed bytes, and the pushed messages.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// The lines that are not blank, in order.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The bytes of a line of this trace, without its end.
    pub fn text(&self, line: &Line) -> &[u8] {
        self.bytes.get(line.span.clone()).unwrap_or_default()
    }

    /// The messages, in order.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.lines.iter().filter_map(|line| match &line.record {
            Ok(Record::Message(message)) => Some(message),
            _ => None,
        })
    }

    /// Adds a message as the last line.
    pub fn push(&mut self, message: Message) {
        if self.bytes.last().is_some_and(|byte| *byte != b'\n') {
            self.bytes.push(b'\n');
            self.ends += 1;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&json::to_bytes(&message));
        let span = start..self.bytes.len();
        self.bytes.push(b'\n');
        self.ends += 1;
        self.lines.push(Line { number: self.ends, span, record: Ok(Record::Message(message)) });
    }
}

impl Record {
    /// Parses one line; `number` is its line number, for the error.
    pub fn parse(line: &[u8], number: usize) -> Result<Self, FormatError> {
        let mut object: Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| FormatError::new(FORMAT, format!("line {number}"), json::reason(&error)))?;
        let is_text = |key: &str| object.get(key).is_some_and(Value::is_string);
        if is_text("role")
            && is_text("content")
            && let (Some(Value::String(role)), Some(Value::String(content))) =
                (object.remove("role"), object.remove("content"))
        {
            return Ok(Self::Message(Message { content, role, extra: object }));
        }
        let is_event = ["kind", "event", "type"].iter().any(|key| object.contains_key(*key));
        Ok(if is_event { Self::Event(object) } else { Self::Other(object) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = concat!(
        "{\"content\":\"hello\",\"role\":\"user\"}\n",
        "\n",
        "{\"kind\":\"page_in\",\"seq\":1}\r\n",
        "{broken\n",
        "{\"type\":\"x\",\"role\":1}\n",
        "[1]\n",
        "{\"role\":\"tool\",\"content\":[{\"text\":\"parts\"}]}\n",
        "{\"role\":\"tool\",\"content\":\"c\",\"id\":0.1}",
    );

    #[test]
    fn a_bad_line_is_reported_with_its_number_and_the_others_are_read() {
        let trace = Trace::parse(MIXED.as_bytes()).unwrap();
        let kinds: Vec<(usize, &str)> = trace
            .lines()
            .iter()
            .map(|line| {
                let kind = match &line.record {
                    Ok(Record::Message(_)) => "message",
                    Ok(Record::Event(_)) => "event",
                    Ok(Record::Other(_)) => "other",
                    Err(error) => {
                        assert_eq!(error.at, format!("line {}", line.number));
                        "bad"
                    }
                };
                (line.number, kind)
            })
            .collect();
        let expected = [
            (1, "message"),
            (3, "event"),
            (4, "bad"),
            (5, "event"),
            (6, "bad"),
            (7, "other"),
            (8, "message"),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(trace.text(&trace.lines()[2]), b"{broken");
        assert_eq!(trace.messages().map(|message| message.extra.len()).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn the_bytes_come_out_as_they_went_in() {
        for text in ["", "\n", " \n\n", "{}", MIXED] {
            let trace = Trace::parse(text.as_bytes()).unwrap();
            assert_eq!(trace.to_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn a_pushed_message_is_a_line_of_its_own_in_the_order_of_keys_that_pf_has() {
        for before in ["", "{}\n", "{}", "\n{broken"] {
            let mut trace = Trace::parse(before.as_bytes()).unwrap();
            let message = Message { content: "a\nb".into(), role: "user".into(), extra: Map::new() };
            trace.push(message);
            let bytes = trace.to_bytes();
            assert!(bytes.ends_with(b"{\"content\":\"a\\nb\",\"role\":\"user\"}\n"), "{before:?}");
            assert_eq!(Trace::parse(&bytes).unwrap(), trace, "{before:?}");
        }
    }

    #[test]
    fn deep_nesting_is_a_bad_line() {
        let line = format!("{{\"kind\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
        let trace = Trace::parse(line.as_bytes()).unwrap();
        assert!(trace.lines()[0].record.is_err());
    }
}
