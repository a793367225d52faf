//! Lines in which a change shows: each holds its number, the hash of the line before, and its own hash.
//!
//! ```text
//! {"seq":7,"prev":"<hash of line 6>","time":"…","pid":41,"by":"mount","event":{…},"hash":"<hex64>"}\n
//! ```
//! `hash` is the SHA-256 of the line's bytes in front of `,"hash"`, as 64 lowercase hex digits; the first line's `prev`
//! is 64 zeros. Bytes are checked, not values, so a line is either unchanged or not. The chain shows a change to a
//! reader who knows its head. It is not a signature, and lines cut off its end do not show without the head.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::event::SessionEvent;
use crate::digest::Digest;

/// The bytes between a line's hashed bytes and its hash.
const HASH_KEY: &[u8] = br#","hash":""#;
/// The end of a line.
const END: &[u8] = b"\"}";
/// Bytes of a line behind the hashed ones, without the line's end.
const TRAILER: usize = HASH_KEY.len() + 64 + END.len();

/// The end of a chain, which the next line follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the last line; 0 before the first.
    pub seq: u64,
    /// The hash of the last line; zeros before the first.
    pub hash: Digest,
}

impl Head {
    /// The head of a chain without a line.
    pub const START: Self = Self { seq: 0, hash: Digest::from_bytes([0; 32]) };

    /// The head after a line that is not a record: the next line follows the hash of its exact bytes.
    #[must_use]
    pub fn behind_damage(self, line: &[u8]) -> Self {
        let hash = recorded_hash(line).map_or_else(|| Digest::of(line), |(_, hash)| hash);
        Self { seq: self.seq.saturating_add(1), hash }
    }
}

/// The writer of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The process.
    pub pid: u32,
    /// The command it runs, for instance `mount`.
    pub by: String,
}

impl Writer {
    /// This process, running `command`.
    pub fn this(command: &str) -> Self {
        Self { pid: std::process::id(), by: command.to_owned() }
    }
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number in the chain, from 1.
    pub seq: u64,
    /// The hash of the line before, 64 lowercase hex digits.
    pub prev: String,
    /// The time of writing, UTC in RFC 3339 with microseconds. Clocks may go back, numbers do not.
    pub time: String,
    /// The process that wrote it.
    #[serde(flatten)]
    pub writer: Writer,
    /// The event.
    pub event: SessionEvent,
}

/// Writes the next line, with its end, and moves the head. If the event has a turn, it becomes the line's
/// number.
pub fn encode(
    head: &mut Head,
    time: DateTime<Utc>,
    writer: &Writer,
    mut event: SessionEvent,
) -> Result<Vec<u8>, serde_json::Error> {
    let seq = head.seq.saturating_add(1);
    if let Some(noted) = event.noted_mut() {
        noted.turn = u32::try_from(seq).unwrap_or(u32::MAX);
    }
    let record = Record {
        seq,
        prev: head.hash.hex(),
        time: time.to_rfc3339_opts(SecondsFormat::Micros, true),
        writer: writer.clone(),
        event,
    };
    let mut line = serde_json::to_vec(&record)?;
    line.pop();
    let hash = Digest::of(&line);
    line.extend_from_slice(HASH_KEY);
    line.extend_from_slice(hash.hex().as_bytes());
    line.extend_from_slice(END);
    line.push(b'\n');
    *head = Head { seq, hash };
    Ok(line)
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not a record: wrong form, not JSON, or without a required key.
    Malformed(String),
    /// Its bytes do not match its hash.
    Changed,
    /// It does not follow the line before: a line was removed, inserted, or changed there.
    Unlinked,
    /// Its number is not the next one.
    OutOfSequence {
        /// The number that comes next.
        expected: u64,
        /// Its number.
        found: u64,
    },
    /// It has no end: it was cut, or not fully written.
    Torn,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "it is not a record ({why})"),
            Self::Changed => f.write_str("its bytes do not match its hash"),
            Self::Unlinked => f.write_str("it does not follow the line before"),
            Self::OutOfSequence { expected, found } => {
                write!(f, "it has number {found} instead of {expected}")
            }
            Self::Torn => f.write_str("it is incomplete"),
        }
    }
}

/// The first break of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.fault)
    }
}

/// The hashed bytes of a line and the hash that it states; nothing if its end is not that of a record.
fn recorded_hash(line: &[u8]) -> Option<(&[u8], Digest)> {
    let (body, trailer) = line.split_at_checked(line.len().checked_sub(TRAILER)?)?;
    let hex = trailer.strip_prefix(HASH_KEY)?.strip_suffix(END)?;
    Some((body, Digest::from_hex(std::str::from_utf8(hex).ok()?).ok()?))
}

/// Reads one line, without its end: checks that it is unchanged, not that it is in its place.
pub fn decode(line: &[u8]) -> Result<(Record, Digest), Fault> {
    let malformed = |why: &str| Fault::Malformed(why.to_owned());
    let (body, hash) = recorded_hash(line).ok_or_else(|| malformed("it does not end with a hash"))?;
    if Digest::of(body) != hash {
        return Err(Fault::Changed);
    }
    let record: Record = serde_json::from_slice(line).map_err(|e| Fault::Malformed(e.to_string()))?;
    Ok((record, hash))
}

/// Checks a chain line by line.
#[derive(Clone, Copy, Debug)]
pub struct Checker {
    head: Head,
    line: u64,
}

impl Checker {
    /// Checks the lines after `head`.
    pub fn behind(head: Head) -> Self {
        Self { head, line: 0 }
    }

    /// The end of the chain so far.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Checks the next line, given without its end.
    pub fn line(&mut self, line: &[u8]) -> Result<Record, Break> {
        self.line += 1;
        let at = |fault| Break { line: self.line, fault };
        let (record, hash) = decode(line).map_err(at)?;
        let expected = self.head.seq.saturating_add(1);
        if record.seq != expected {
            return Err(at(Fault::OutOfSequence { expected, found: record.seq }));
        }
        if record.prev != self.head.hash.hex() {
            return Err(at(Fault::Unlinked));
        }
        self.head = Head { seq: record.seq, hash };
        Ok(record)
    }
}

/// Checks a whole file of lines after `head`. Returns the head at its end.
pub fn verify(head: Head, bytes: &[u8]) -> Result<Head, Break> {
    let mut checker = Checker::behind(head);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else {
            return Err(Break { line: checker.line + 1, fault: Fault::Torn });
        };
        checker.line(line)?;
    }
    Ok(checker.head())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn log(lines: u32) -> Vec<u8> {
        let mut head = Head::START;
        let writer = Writer { pid: 7, by: "test".into() };
        let time = DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap();
        (0..lines)
            .flat_map(|n| {
                let event = json!({"kind": "page_in", "category": "mm", "entry_count": n, "text": "ä\n\"}"});
                encode(&mut head, time, &writer, serde_json::from_value(event).unwrap()).unwrap()
            })
            .collect()
    }

    fn line_at(log: &[u8], at: usize) -> u64 {
        log[..at].split(|byte| *byte == b'\n').count() as u64
    }

    #[test]
    fn a_log_is_read_back_with_its_numbers_and_turns() {
        let log = log(3);
        let mut checker = Checker::behind(Head::START);
        for (index, line) in log.split_inclusive(|b| *b == b'\n').enumerate() {
            let record = checker.line(line.strip_suffix(b"\n").unwrap()).unwrap();
            assert_eq!(record.seq, index as u64 + 1);
            assert_eq!(record.time, "2023-11-14T22:13:20.123456Z");
            assert_eq!(record.event.noted().unwrap().turn as usize, index + 1);
        }
        assert_eq!(verify(Head::START, &log), Ok(checker.head()));
        assert_eq!(checker.head().seq, 3);
    }

    #[test]
    fn any_byte_flipped_is_found_on_its_line() {
        let log = log(4);
        for at in 0..log.len() {
            for bit in [0, 3, 5, 7] {
                let mut changed = log.clone();
                changed[at] ^= 1 << bit;
                let broken = verify(Head::START, &changed).unwrap_err();
                assert_eq!(broken.line, line_at(&log, at), "byte {at}, bit {bit}: {broken}");
            }
        }
    }

    #[test]
    fn a_line_that_is_taken_out_put_in_or_moved_is_found() {
        let log = log(4);
        let lines: Vec<&[u8]> = log.split_inclusive(|b| *b == b'\n').collect();
        for (order, broken) in [
            (vec![0, 2, 3], 2),
            (vec![1, 2, 3], 1),
            (vec![0, 0, 1], 2),
            (vec![0, 2, 1, 3], 2),
            (vec![0, 1, 2, 3, 3], 5),
        ] {
            let changed: Vec<u8> = order.iter().flat_map(|n| lines[*n]).copied().collect();
            assert_eq!(verify(Head::START, &changed).unwrap_err().line, broken, "{order:?}");
        }
    }

    #[test]
    fn a_forged_line_with_a_hash_of_its_own_does_not_fit_between_its_neighbours() {
        let log = log(3);
        let lines: Vec<&[u8]> = log.split_inclusive(|b| *b == b'\n').collect();
        let mut head = verify(Head::START, lines[0]).unwrap();
        let event = serde_json::from_value(json!({"kind": "tool_gated"})).unwrap();
        let forged = encode(&mut head, DateTime::UNIX_EPOCH, &Writer::this("x"), event).unwrap();
        let changed = [lines[0], &forged, lines[2]].concat();
        assert_eq!(verify(Head::START, &changed), Err(Break { line: 3, fault: Fault::Unlinked }));
    }

    #[test]
    fn a_log_that_ends_within_a_line_is_torn_there() {
        let log = log(2);
        for end in 1..log.len() {
            let outcome = verify(Head::START, &log[..end]);
            if log[end - 1] == b'\n' {
                assert!(outcome.is_ok());
            } else {
                assert_eq!(outcome, Err(Break { line: line_at(&log, end - 1), fault: Fault::Torn }), "{end}");
            }
        }
    }

    #[test]
    fn lines_after_damage_are_chained_to_the_damaged_bytes() {
        let head = Head { seq: 4, ..Head::START };
        let behind = head.behind_damage(b"garbage");
        assert_eq!(behind, Head { seq: 5, hash: Digest::of(b"garbage") });
        // A line whose bytes were changed still states the hash that the next one follows.
        let log = log(1);
        let mut line = log.strip_suffix(b"\n").unwrap().to_vec();
        line[10] ^= 1;
        assert_eq!(Head::START.behind_damage(&line), verify(Head::START, &log).unwrap());
    }
}
