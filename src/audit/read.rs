//! Session events in files of others: an agent kernel's log, an image's trace. Pure.

use serde_json::Value;

use super::event::SessionEvent;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The session events, in order.
    pub events: Vec<SessionEvent>,
    /// Other things: messages of a trace, lines that are no JSON.
    pub others: u64,
}

impl Parsed {
    fn take(&mut self, value: Value) {
        let says_kind = |value: &Value| value.get("kind").is_some_and(Value::is_string);
        let event = match value {
            value if says_kind(&value) => Some(value),
            // A line of a store's own log holds its event.
            Value::Object(mut record) if record.get("event").is_some_and(says_kind) => record.remove("event"),
            _ => None,
        };
        match event.and_then(|event| serde_json::from_value(event).ok()) {
            Some(event) => self.events.push(event),
            None => self.others += 1,
        }
    }
}

/// Reads session events: an array of them, or one a line, as they are or as a store's log has them.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    if bytes.trim_ascii_start().first() == Some(&b'[')
        && let Ok(values) = serde_json::from_slice::<Vec<Value>>(bytes)
    {
        for value in values {
            parsed.take(value);
        }
        return parsed;
    }
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        match serde_json::from_slice(line) {
            Ok(value) => parsed.take(value),
            Err(_) => parsed.others += 1,
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::chain::{self, Head, Writer};
    use crate::audit::note;

    #[test]
    fn arrays_lines_and_records_hold_the_same_events_and_other_lines_are_counted() {
        let lines = concat!(
            "{\"kind\":\"tool_gated\",\"turn\":1,\"category\":\"syscall\"}\n",
            "\n",
            "{\"role\":\"user\",\"content\":\"hi\"}\n",
            "no JSON\n",
            "{\"kind\":\"invented_tomorrow\"}"
        );
        let of_lines = parse(lines.as_bytes());
        assert_eq!((of_lines.events.len(), of_lines.others), (2, 2));
        let array = br#" [{"kind":"tool_gated","turn":1,"category":"syscall"},{"kind":"invented_tomorrow"}]"#;
        assert_eq!(parse(array), Parsed { events: of_lines.events, others: 0 });
        let mut head = Head::START;
        let line =
            chain::encode(&mut head, chrono::Utc::now(), &Writer::this("x"), note::resumed("/m")).unwrap();
        assert_eq!(parse(&line).events[0].kind(), "resumed");
        for nothing in [&b""[..], b"[", b"\xff\n\x00", b"null", b"[1, {}]"] {
            assert_eq!(parse(nothing).events, []);
        }
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
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
            let _ = parse(&changed);
            prop_assume!(changed != line);
            prop_assert!(chain::verify(Head::START, &changed).is_err() || changed.is_empty());
        }
    }
}
