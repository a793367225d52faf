//! Session events in files of other programs: an agent kernel's log, an image's trace. Pure.

use std::fmt;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::event::SessionEvent;
use super::schema;

/// How many faulty events are named; the rest is counted.
pub const NAMED: usize = 20;

/// How often a line that is not JSON is tried as the first of several: each try may read the whole rest.
const TRIES: usize = 64;

/// Whether events of a known kind need the fields of their kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do; a missing or wrong field is a fault.
    Strict,
    /// They do not; a missing field is 0 or empty.
    Lenient,
}

/// An event without a field that its kind needs, or a line that begins as JSON and is not valid JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Faulty {
    /// Its line, from 1.
    pub line: u64,
    /// Its kind; empty if it could not be read.
    pub kind: String,
    /// The fault.
    pub fault: String,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_kind = if self.kind.is_empty() { "" } else { ": " };
        write!(f, "line {}: {}{of_kind}{}", self.line, self.kind, self.fault)
    }
}

/// Faulty events: the first ones by name, all by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Their number.
    pub count: u64,
    /// The first ones, at most [`NAMED`].
    pub first: Vec<Faulty>,
}

impl Faults {
    /// Adds one.
    pub fn add(&mut self, line: u64, kind: &str, fault: String) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(Faulty { line, kind: kind.to_owned(), fault });
        }
    }
}

/// The content of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The session events, in order.
    pub events: Vec<SessionEvent>,
    /// Other lines: messages of a trace, lines that are not JSON.
    pub others: u64,
    /// Events that do not match their kind; they are not among the others.
    pub faults: Faults,
}

/// Why a file cannot be read as session events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Text in an encoding that is not UTF-8.
    #[error("the file is {0}, not UTF-8")]
    Encoding(&'static str),
    /// An array without an end, or not JSON.
    #[error("the array of events is not JSON: {0}")]
    Array(String),
}

/// The bytes after a byte order mark; an error for other encodings.
fn decoded(bytes: &[u8]) -> Result<&[u8], Unreadable> {
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return Ok(rest);
    }
    let encoding = match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        // With a mark, or with the first letter of JSON and a zero.
        [0xff, 0xfe, ..]
        | [0xfe, 0xff, ..]
        | [b'{' | b'[' | b' ' | b'\r' | b'\n', 0, ..]
        | [0, b'{' | b'[' | b' ' | b'\r' | b'\n', ..] => "UTF-16",
        _ => return Ok(bytes),
    };
    Err(Unreadable::Encoding(encoding))
}

/// Reads a file.
struct Reader {
    mode: Mode,
    parsed: Parsed,
}

impl Reader {
    fn take(&mut self, line: u64, value: Value) {
        let says_kind = |value: &Value| value.get("kind").is_some_and(Value::is_string);
        let event = match value {
            Value::Object(event) if event.get("kind").is_some_and(Value::is_string) => Some(event),
            // A line of a store's log holds its event.
            Value::Object(mut record) if record.get("event").is_some_and(says_kind) => {
                match record.remove("event") {
                    Some(Value::Object(event)) => Some(event),
                    _ => None,
                }
            }
            _ => None,
        };
        match event {
            Some(event) => self.event(line, event),
            None => self.parsed.others += 1,
        }
    }

    fn event(&mut self, line: u64, event: Map<String, Value>) {
        let fault = if self.mode == Mode::Strict { schema::fault(&event) } else { None };
        if let Some(fault) = fault {
            let kind = event.get("kind").and_then(Value::as_str).unwrap_or_default();
            self.parsed.faults.add(line, kind, fault);
            return;
        }
        match serde_json::from_value(Value::Object(event)) {
            Ok(event) => self.parsed.events.push(event),
            Err(_) => self.parsed.others += 1,
        }
    }

    /// Handles text that is not JSON: output of a program, or an event that was cut.
    fn take_no_json(&mut self, line: u64, text: &[u8], error: &serde_json::Error) {
        if self.mode == Mode::Strict && begins_as_json(text) {
            self.parsed.faults.add(line, "", format!("it begins as JSON but is not valid JSON ({error})"));
        } else {
            self.parsed.others += 1;
        }
    }

    fn array(&mut self, bytes: &[u8], values: &[&RawValue]) {
        let (mut line, mut seen) = (1, 0);
        for raw in values {
            let at = (raw.get().as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize);
            line += newlines(&bytes[seen..at]);
            seen = at;
            match serde_json::from_str(raw.get()) {
                Ok(value) => self.take(line, value),
                Err(error) => self.take_no_json(line, raw.get().as_bytes(), &error),
            }
        }
    }

    fn lines(&mut self, bytes: &[u8]) {
        let (mut at, mut line, mut tries) = (0, 1, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let text = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let mut len = text.len();
            if !text.trim_ascii().is_empty() {
                match serde_json::from_slice(text) {
                    Ok(value) => self.take(line, value),
                    Err(error) => {
                        let several = if tries < TRIES { over_several_lines(rest) } else { None };
                        if let Some((value, whole)) = several {
                            self.take(line, value);
                            len = whole;
                        } else {
                            tries += usize::from(begins_as_json(text));
                            self.take_no_json(line, text, &error);
                        }
                    }
                }
            }
            line += newlines(&rest[..len]) + 1;
            at += len + 1;
        }
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').count() as u64 - 1
}

fn begins_as_json(text: &[u8]) -> bool {
    matches!(text.trim_ascii_start().first(), Some(b'{' | b'['))
}

/// A value that begins on the first line and ends on a later one, and the number of bytes to the end of that
/// line.
fn over_several_lines(rest: &[u8]) -> Option<(Value, usize)> {
    if !begins_as_json(rest) {
        return None;
    }
    let mut stream = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
    let value = stream.next()?.ok()?;
    let end = stream.byte_offset();
    let behind = rest[end..].split(|byte| *byte == b'\n').next().unwrap_or_default();
    behind.trim_ascii().is_empty().then_some((value, end + behind.len()))
}

/// Reads session events: an array of them, or one after the other, bare or in lines of a store's log.
pub fn parse(bytes: &[u8], mode: Mode) -> Result<Parsed, Unreadable> {
    let bytes = decoded(bytes)?;
    let mut reader = Reader { mode, parsed: Parsed::default() };
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        match serde_json::from_slice::<Vec<&RawValue>>(bytes) {
            Ok(values) => {
                reader.array(bytes, &values);
                return Ok(reader.parsed);
            }
            // Not one array, but lines whose first one is an array.
            Err(_) if mode == Mode::Lenient || first_line_is_json(bytes) => {}
            Err(error) => return Err(Unreadable::Array(error.to_string())),
        }
    }
    reader.lines(bytes);
    Ok(reader.parsed)
}

fn first_line_is_json(bytes: &[u8]) -> bool {
    let line = bytes.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::chain::{self, Head, Writer};
    use crate::audit::note;

    fn strict(bytes: &[u8]) -> Parsed {
        parse(bytes, Mode::Strict).unwrap()
    }

    const GATED: &str =
        r#"{"kind":"tool_gated","turn":1,"category":"syscall","call_id":"c","tool":"t","reason":"r"}"#;

    #[test]
    fn arrays_lines_and_records_hold_the_same_events_and_other_lines_are_counted() {
        let chat = r#"{"role":"user","content":"hi"}"#;
        let lines = format!("{GATED}\n\n{chat}\nno JSON\n{{\"kind\":\"invented_tomorrow\"}}");
        let of_lines = strict(lines.as_bytes());
        assert_eq!((of_lines.events.len(), of_lines.others, of_lines.faults.count), (2, 2, 0));
        let array = format!(" [{GATED},{{\"kind\":\"invented_tomorrow\"}}]");
        let events = of_lines.events;
        assert_eq!(strict(array.as_bytes()), Parsed { events, ..Parsed::default() });
        let mut head = Head::START;
        let line =
            chain::encode(&mut head, chrono::Utc::now(), &Writer::this("x"), note::resumed("/m")).unwrap();
        assert_eq!(strict(&line).events[0].kind(), "resumed");
        for nothing in [&b""[..], b"\xff\n\x00", b"null", b"[1, {}]", b"[]", b"[1]\n[2]"] {
            assert_eq!(strict(nothing).events, []);
        }
    }

    #[test]
    fn an_event_that_lacks_what_its_kind_needs_is_a_fault_of_its_line_and_only_then() {
        let lines = format!("{GATED}\n{{\"kind\":\"page_in\",\"turn\":1}}\n{{\"kind\":\"susp");
        let parsed = strict(lines.as_bytes());
        let told: Vec<String> = parsed.faults.first.iter().map(ToString::to_string).collect();
        assert_eq!((parsed.events.len(), parsed.others, parsed.faults.count), (1, 0, 2));
        assert_eq!(told[0], "line 2: page_in: \"entry_count\" is missing");
        assert!(told[1].starts_with("line 3: it begins as JSON but is not valid JSON"), "{told:?}");
        let lenient = parse(lines.as_bytes(), Mode::Lenient).unwrap();
        assert_eq!((lenient.events.len(), lenient.others, lenient.faults.count), (2, 1, 0));
        let array = format!("[\n{GATED},\n\n  {{\"kind\":\"suspended\"}}, {{\"kind\":\"resumed\"}}\n]");
        let lines: Vec<u64> = strict(array.as_bytes()).faults.first.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [4, 4]);
        let many = "{\"kind\":\"resumed\"}\n".repeat(50);
        let faults = strict(many.as_bytes()).faults;
        assert_eq!((faults.count, faults.first.len(), faults.first[19].line), (50, 20, 20));
    }

    #[test]
    fn every_usual_form_of_an_event_is_one_event_or_is_refused_by_name() {
        let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(GATED).unwrap()).unwrap();
        for form in [
            GATED.to_owned(),
            format!("\u{feff}{GATED}\n"),
            format!("\u{feff}[{GATED}]"),
            format!("{GATED}\r\n"),
            format!("\n{pretty}\n"),
            format!("[\n{pretty}\n]"),
        ] {
            let parsed = strict(form.as_bytes());
            assert_eq!((parsed.events.len(), parsed.others, parsed.faults.count), (1, 0, 0), "{form:?}");
        }
        let three = format!("{GATED}\n{pretty}\n{GATED}\n{{\"kind\":\"resumed\"}}");
        let parsed = strict(three.as_bytes());
        assert_eq!(
            (parsed.events.len(), parsed.faults.first[0].line),
            (3, 2 + newlines(pretty.as_bytes()) + 2)
        );
        for (little, mark) in [(true, true), (true, false), (false, true), (false, false)] {
            let text = if mark { format!("\u{feff}{GATED}") } else { GATED.to_owned() };
            let unit = |unit: u16| if little { unit.to_le_bytes() } else { unit.to_be_bytes() };
            let bytes: Vec<u8> = text.encode_utf16().flat_map(unit).collect();
            assert_eq!(parse(&bytes, Mode::Strict), Err(Unreadable::Encoding("UTF-16")));
        }
        assert_eq!(parse(b"\xff\xfe\0\0{\0\0\0", Mode::Strict), Err(Unreadable::Encoding("UTF-32")));
        for cut in [format!("[{GATED},{{\"kind\":"), "[".to_owned(), format!("[{GATED}] x")] {
            assert!(matches!(parse(cut.as_bytes(), Mode::Strict), Err(Unreadable::Array(_))), "{cut}");
            assert_eq!(parse(cut.as_bytes(), Mode::Lenient).unwrap().events, []);
        }
    }

    #[test]
    fn a_file_of_lines_that_never_end_is_read_in_time() {
        let started = std::time::Instant::now();
        let parsed = strict(&b"{\"a\":[\n".repeat(100_000));
        assert_eq!((parsed.events.len(), parsed.faults.count), (0, 100_000));
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Mode::Strict);
            let _ = parse(&bytes, Mode::Lenient);
            let _ = chain::decode(&bytes);
            prop_assert!(bytes.is_empty() || chain::verify(Head::START, &bytes).is_err());
        }

        #[test]
        fn a_line_of_which_a_piece_was_replaced_is_never_taken_for_a_record(
            at in any::<prop::sample::Index>(),
            len in 0..20_usize,
            piece in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut head = Head::START;
            let line = chain::encode(&mut head, chrono::Utc::now(), &Writer::this("x"), note::resumed("/m")).unwrap();
            let start = at.index(line.len());
            let mut changed = line.clone();
            changed.splice(start..(start + len).min(line.len()), piece);
            let _ = parse(&changed, Mode::Strict);
            prop_assume!(changed != line);
            prop_assert!(chain::verify(Head::START, &changed).is_err() || changed.is_empty());
        }
    }
}
