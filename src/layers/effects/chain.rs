//! The chain of a ledger: each entry's HMAC covers the hash of the entry before and its own hash.
//!
//! `session_hmac` = hex(HMAC-SHA256(secret, previous ‖ this)), where both are the 64 hex *characters* of the
//! SHA-256 of an entry's compact JSON with `session_hmac` empty, and previous is empty for the first.
//! `pf_effects::ledger` does the same: each verifies what the other accepts.

use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;

use super::ledger::{Entry, LEDGER, Ledger, Record, Secret, SideEffectClass};
use crate::digest::Digest;
use crate::layers::error::FormatError;
use crate::layers::json;

/// The result of verifying a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Every entry's HMAC is right, and the header counts as many.
    Verified,
    /// The entries are chained, but neither the header nor the operator has the secret.
    NoSecret,
    /// No entry is chained, and no secret says that they should be: pf-core's fixture writes such ledgers.
    Unchained,
    /// An entry differs from the signed one.
    Broken {
        /// Its line, from 1; that of the header if the secret in it is not hex.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The chain holds for the existing entries, but entries were cut off or added.
    CountMismatch {
        /// How many the header counts.
        header: u64,
        /// How many entries exist.
        found: u64,
    },
}

/// The part of an entry that is signed: `pf`'s own fields, in its order.
#[derive(Serialize)]
struct Signed<'a> {
    ts: &'a chrono::DateTime<chrono::Utc>,
    tool_id: &'a str,
    args_hash: &'a str,
    idempotency_key: &'a str,
    result_hash: &'a str,
    side_effect_class: SideEffectClass,
    session_hmac: &'static str,
}

impl Ledger {
    /// Verifies the chain, with the operator's secret if there is one, else with the header's.
    ///
    /// The operator's secret comes first, as with `pf`: an attacker who rewrites a ledger can embed a new
    /// secret. A redacted secret (`<redacted>`) does not count. With a secret, an entry without HMAC is
    /// broken, since leaving it out would be the easiest forgery.
    pub fn verify(&self, operator: Option<&Secret>) -> Chain {
        let embedded = self.header.session_secret_hex.as_ref().filter(|secret| !secret.is_redacted());
        let outcome = match operator.or(embedded) {
            None if self.entries.is_empty() => Chain::Verified,
            None if self.entries.iter().all(|entry| !entry.is_chained()) => Chain::Unchained,
            None => match self.entries.iter().find(|entry| !entry.is_chained()) {
                Some(entry) => broken(entry, "it has no HMAC, but other entries have one"),
                None => Chain::NoSecret,
            },
            Some(secret) => match secret.key() {
                Some(key) => self.verify_with(&key),
                // An empty ledger needs no secret.
                None if self.entries.is_empty() => Chain::Verified,
                None => Chain::Broken { line: 1, reason: "the secret is not hex".to_owned() },
            },
        };
        let found = self.entries.len() as u64;
        match outcome {
            Chain::Broken { .. } => outcome,
            _ if self.header.entries != found => Chain::CountMismatch { header: self.header.entries, found },
            _ => outcome,
        }
    }

    fn verify_with(&self, key: &[u8]) -> Chain {
        let mut previous = String::new();
        for entry in &self.entries {
            let this = hash(&entry.record);
            if !entry.is_chained() {
                return broken(entry, "not chained");
            }
            let Some(tag) = decode(&entry.record.session_hmac) else {
                return broken(entry, "session_hmac is not hex");
            };
            if mac(key, &previous, &this).is_none_or(|mac| mac.verify_slice(&tag).is_err()) {
                return broken(entry, "session_hmac does not match");
            }
            previous = this;
        }
        Chain::Verified
    }

    /// Chains the unchained entries, checks the chained ones, and writes their number into the header.
    ///
    /// Returns how many were chained. Nothing is changed if any entry is wrong.
    pub fn chain(&mut self, secret: &Secret) -> Result<usize, FormatError> {
        let chained = chain(&mut self.entries, secret, None)?;
        self.header.entries = self.entries.len() as u64;
        Ok(chained)
    }
}

/// Chains `entries`, which follow `prev` (`None` at the start of a ledger).
///
/// Entries without HMAC get one, and a line as `pf` would write it (unknown keys after its keys). Entries
/// that have an HMAC must have the right one. Returns how many were chained; on an error nothing is changed.
/// The error names the line an entry was read from.
pub fn chain(entries: &mut [Entry], secret: &Secret, prev: Option<&Entry>) -> Result<usize, FormatError> {
    let key = secret.key().ok_or_else(|| FormatError::new(LEDGER, "secret", "not hex"))?;
    let mut previous = prev.map(|entry| hash(&entry.record)).unwrap_or_default();
    let mut fresh = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let wrong = |reason: &'static str| FormatError::new(LEDGER, format!("line {}", entry.line), reason);
        let this = hash(&entry.record);
        let mac = mac(&key, &previous, &this).ok_or_else(|| wrong("no HMAC with this secret"))?;
        if entry.is_chained() {
            let tag = decode(&entry.record.session_hmac).ok_or_else(|| wrong("session_hmac is not hex"))?;
            mac.verify_slice(&tag).map_err(|_| wrong("session_hmac does not match"))?;
        } else {
            // An entry signed elsewhere is taken unchanged; an entry signed here must have valid digests.
            if ![&entry.record.args_hash, &entry.record.result_hash].into_iter().all(|text| is_digest(text)) {
                return Err(wrong("args_hash and result_hash must be sha256: and 64 hex digits"));
            }
            fresh.push((index, data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes())));
        }
        previous = this;
    }
    let chained = fresh.len();
    for (index, tag) in fresh {
        if let Some(entry) = entries.get_mut(index) {
            entry.record.session_hmac = tag;
            entry.raw = json::to_bytes(&entry.record);
        }
    }
    Ok(chained)
}

fn broken(entry: &Entry, reason: &'static str) -> Chain {
    Chain::Broken { line: entry.line, reason: reason.to_owned() }
}

/// The hex digits that stand for an entry in the chain.
fn hash(record: &Record) -> String {
    let signed = Signed {
        ts: &record.timestamp,
        tool_id: &record.tool_id,
        args_hash: &record.args_hash,
        idempotency_key: &record.idempotency_key,
        result_hash: &record.result_hash,
        side_effect_class: record.side_effect_class,
        session_hmac: "",
    };
    Digest::of(&json::to_bytes(&signed)).hex()
}

fn mac(key: &[u8], previous: &str, this: &str) -> Option<Hmac<Sha256>> {
    // HMAC accepts keys of any length; the type allows an error.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(previous.as_bytes());
    mac.update(this.as_bytes());
    Some(mac)
}

fn decode(hex: &str) -> Option<Vec<u8>> {
    data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok()
}

/// `pf` takes digests in either case where it reads entries from a file.
fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::layers::effects::Header;

    const SECRET: &str = "00ff";

    fn unchained(tool: &str) -> Entry {
        let digest = Digest::of(b"x").to_string();
        Entry::new(Record {
            timestamp: "2026-05-05T14:11:00.5Z".parse().unwrap(),
            tool_id: tool.to_owned(),
            args_hash: digest.clone(),
            idempotency_key: "k".to_owned(),
            result_hash: digest,
            side_effect_class: SideEffectClass::Pure,
            session_hmac: String::new(),
            extra: Map::new(),
        })
    }

    fn ledger(tools: &[&str], embed: bool) -> Ledger {
        let header = Header { session_secret_hex: embed.then(|| Secret::new(SECRET)), ..Header::default() };
        let mut ledger = Ledger { header, entries: tools.iter().map(|tool| unchained(tool)).collect() };
        ledger.chain(&Secret::new(SECRET)).unwrap();
        // Through its bytes, for the line numbers.
        Ledger::parse(&ledger.to_bytes()).unwrap()
    }

    fn line_of(chain: &Chain) -> Option<usize> {
        match chain {
            Chain::Broken { line, .. } => Some(*line),
            _ => None,
        }
    }

    #[test]
    fn a_chain_has_the_hmac_that_the_formula_gives() {
        let ledger = ledger(&["a", "b"], true);
        let hashes: Vec<String> = ledger
            .entries
            .iter()
            .map(|entry| {
                let mut json: Value = serde_json::from_slice(entry.raw()).unwrap();
                let field = |key: &str| json[key].to_string();
                let text = format!(
                    r#"{{"ts":{},"tool_id":{},"args_hash":{},"idempotency_key":{},"result_hash":{},"side_effect_class":{},"session_hmac":""}}"#,
                    field("ts"),
                    field("tool_id"),
                    field("args_hash"),
                    field("idempotency_key"),
                    field("result_hash"),
                    field("side_effect_class"),
                );
                json["session_hmac"].take();
                Digest::of(text.as_bytes()).hex()
            })
            .collect();
        let mut mac = Hmac::<Sha256>::new_from_slice(&[0x00, 0xff]).unwrap();
        mac.update(hashes.concat().as_bytes());
        let expected = data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes());
        assert_eq!(ledger.entries[1].record().session_hmac, expected);
        assert_eq!(ledger.verify(None), Chain::Verified);
    }

    #[test]
    fn a_change_is_broken_at_its_line_and_a_cut_is_a_wrong_count() {
        let good = ledger(&["a", "b", "c"], true);
        let text = String::from_utf8(good.to_bytes()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let parse = |lines: &[&str]| Ledger::parse(lines.join("\n").as_bytes()).unwrap().verify(None);
        assert_eq!(
            line_of(&parse(&[lines[0], lines[1], &lines[2].replace("\"b\"", "\"x\""), lines[3]])),
            Some(3)
        );
        assert_eq!(line_of(&parse(&[lines[0], lines[1], lines[3], lines[2]])), Some(3));
        assert_eq!(line_of(&parse(&[lines[0], "", lines[2], lines[3]])), Some(3));
        assert_eq!(parse(&lines[..3]), Chain::CountMismatch { header: 3, found: 2 });
        assert_eq!(parse(&lines[..1]), Chain::CountMismatch { header: 3, found: 0 });
        assert_eq!(
            parse(&[lines[0], lines[1], lines[2], &lines[3].replace("\"ts\"", "\"note\":1,\"ts\"")]),
            { Chain::Verified }
        );
    }

    #[test]
    fn the_secret_decides_the_verdict_on_a_chain() {
        let embedded = ledger(&["a"], true);
        let kept = ledger(&["a"], false);
        let mut stripped = embedded.clone();
        stripped.entries = vec![Entry::parse(unchained("a").raw(), 2).unwrap()];
        let mut bare = stripped.clone();
        bare.header.session_secret_hex = None;
        let mut redacted = embedded.clone();
        redacted.header.session_secret_hex = Some(Secret::new("<redacted>"));
        let mut no_hex = embedded.clone();
        no_hex.header.session_secret_hex = Some(Secret::new("xyz"));
        let (right, wrong) = (Secret::new(" 00FF\n"), Secret::new("aa"));
        let broken = |line, reason: &str| Chain::Broken { line, reason: reason.to_owned() };
        let cases = [
            (&embedded, None, Chain::Verified),
            (&embedded, Some(&right), Chain::Verified),
            (&embedded, Some(&wrong), broken(2, "session_hmac does not match")),
            (&kept, None, Chain::NoSecret),
            (&kept, Some(&right), Chain::Verified),
            (&stripped, None, broken(2, "not chained")),
            (&bare, None, Chain::Unchained),
            (&bare, Some(&right), broken(2, "not chained")),
            (&redacted, None, Chain::NoSecret),
            (&redacted, Some(&right), Chain::Verified),
            (&no_hex, None, broken(1, "the secret is not hex")),
        ];
        for (index, (ledger, operator, expected)) in cases.into_iter().enumerate() {
            assert_eq!(ledger.verify(operator), expected, "case {index}");
        }
    }

    #[test]
    fn a_mixed_ledger_is_broken_where_it_is_not_chained_even_without_a_secret() {
        let mut mixed = ledger(&["a"], false);
        mixed.entries.push(Entry::parse(unchained("b").raw(), 3).unwrap());
        mixed.header.entries = 2;
        assert_eq!(line_of(&mixed.verify(None)), Some(3));
    }

    #[test]
    fn appended_entries_are_chained_behind_the_prefix_and_the_prefix_keeps_its_bytes() {
        let whole = ledger(&["a", "b", "c"], true);
        let mut grown = ledger(&["a"], true);
        let prefix = grown.entries[0].clone();
        let mut tail = vec![unchained("b"), unchained("c")];
        assert_eq!(chain(&mut tail, &Secret::new(SECRET), Some(&prefix)).unwrap(), 2);
        assert_eq!(tail, whole.entries[1..]);
        grown.entries.extend([unchained("b"), unchained("c")]);
        assert_eq!(grown.chain(&Secret::new(SECRET)).unwrap(), 2);
        assert_eq!(grown.to_bytes(), whole.to_bytes());
        assert_eq!(grown.chain(&Secret::new(SECRET)).unwrap(), 0);
    }

    #[test]
    fn a_chained_line_has_the_keys_of_pf_first_and_keeps_the_others() {
        let mut entry = unchained("a");
        entry.record.extra.insert("aa".to_owned(), Value::Bool(true));
        let mut entries = [entry];
        chain(&mut entries, &Secret::new(SECRET), None).unwrap();
        let text = std::str::from_utf8(entries[0].raw()).unwrap();
        assert!(text.starts_with("{\"ts\":\"2026-05-05T14:11:00.500Z\",\"tool_id\":\"a\","), "{text}");
        assert!(text.ends_with("\",\"aa\":true}"), "{text}");
        assert_eq!(entries[0], Entry::parse(text.as_bytes(), 1).unwrap());
    }

    #[test]
    fn an_unchainable_ledger_is_left_unchanged() {
        let good = ledger(&["a"], true).entries[0].clone();
        let mut forged = good.clone();
        forged.record.session_hmac = "ab".repeat(32);
        let mut no_digest = unchained("b");
        no_digest.record.args_hash = "sha256:12".to_owned();
        let secret = Secret::new(SECRET);
        let cases = [
            (vec![unchained("x"), forged], &secret),
            (vec![unchained("x"), no_digest], &secret),
            (vec![good], &Secret::new("0")),
        ];
        for (mut entries, secret) in cases {
            let before = entries.clone();
            assert!(chain(&mut entries, secret, None).is_err());
            assert_eq!(entries, before);
        }
    }
}
