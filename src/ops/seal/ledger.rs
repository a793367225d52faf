//! The ledger of a new image: the base's with its secret, and the appended entries, chained.

use std::borrow::Cow;
use std::io::Read as _;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layers::FormatError;
use crate::layers::effects::{Chain, Effects, Entry, Header, Ledger, Secret, redact};

/// Its path in a fork, for messages.
const LEDGER: &str = "effects/ledger.jsonl";

/// The value that pf writes next to an embedded secret.
const TAMPER_DETECTION: &str = "tamper-detection";

/// A ledger to store, and remarks for the user.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) bytes: Vec<u8>,
    pub(super) reports: Vec<String>,
}

/// Restores the ledger's real bytes from those that a mount shows: `shown` begins with the base's, maybe
/// without its secret.
pub(super) fn reveal<'a>(base: Option<&[u8]>, shown: &'a [u8]) -> Cow<'a, [u8]> {
    let Some(base) = base else { return shown.into() };
    if shown.starts_with(base) {
        return shown.into();
    }
    let redacted = redact(base);
    match shown.strip_prefix(&*redacted) {
        Some(appended) => [base, appended].concat().into(),
        None => shown.into(),
    }
}

/// Lines with their number from 1, without those that are blank.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    lines.filter(|(_, line)| !line.trim_ascii().is_empty()).map(|(index, line)| (index + 1, line))
}

/// An empty ledger in the form of pf.
pub(super) fn empty() -> Vec<u8> {
    Ledger { header: Header::default(), entries: Vec::new() }.to_bytes()
}

/// Seals a ledger that was changed. `base` is the blob it began as, `fresh` makes a new secret.
///
/// A line that is not an entry is kept, and everything from there on stays unchained: a chain cannot continue
/// after it.
pub(super) fn seal(
    base: Option<(&Digest, &[u8])>,
    text: &[u8],
    operator: Option<&Secret>,
    fresh: &mut dyn FnMut() -> crate::Result<Secret>,
) -> crate::Result<Sealed> {
    let mut reports = Vec::new();
    let merged = base.and_then(|(digest, bytes)| match Effects::parse(bytes) {
        Ok(Effects::Merged(_)) => text.strip_prefix(bytes).map(|appended| (*digest, appended)),
        _ => None,
    });
    let (mut header, body) = match merged {
        // A merge has no chain to continue. The new ledger names what it follows.
        Some((digest, appended)) => {
            let mut header = Header::default();
            header.extra.insert("continues".into(), digest.to_string().into());
            (header, appended)
        }
        None => match split_header(text) {
            Ok(Some(parts)) => parts,
            Ok(None) => (Header::default(), text),
            Err(error) => {
                reports.push(format!("{LEDGER}: {error}; it is sealed unchanged, without a chain"));
                return Ok(Sealed { bytes: text.to_vec(), reports });
            }
        },
    };
    let above = text[..text.len() - body.len()].split(|byte| *byte == b'\n').count() - 1;
    let mut entries = Vec::new();
    // From the first line on that is not an entry.
    let mut rest: &[u8] = &[];
    let mut behind = 0;
    for (number, line) in lines(body) {
        match Entry::parse(line, above + number) {
            Ok(entry) if rest.is_empty() => entries.push(entry),
            Ok(_) => behind += 1,
            Err(error) => {
                reports.push(format!("{LEDGER}: {error}; the line is kept"));
                if rest.is_empty() {
                    rest = &body[line.as_ptr() as usize - body.as_ptr() as usize..];
                }
            }
        }
    }
    if behind > 0 {
        reports.push(format!("{LEDGER}: {behind} entries behind it stay unchained"));
    }
    let count = entries.len() as u64 + behind;
    let chained = entries.iter().any(Entry::is_chained);
    let mut ledger = Ledger { header: header.clone(), entries };
    // The secret for the rest of the chain: the one that made it, or, if no entry is chained yet, a new one.
    let embedded = header.session_secret_hex.clone().filter(|secret| !secret.is_redacted());
    let goes_on = [operator, embedded.as_ref()].into_iter().flatten().find(|secret| {
        let signed =
            ledger.entries.iter().take_while(|entry| entry.is_chained()).cloned().collect::<Vec<_>>();
        let entries = signed.len() as u64;
        let header = Header { entries, ..Header::default() };
        Ledger { header, entries: signed }.verify(Some(secret)) == Chain::Verified
    });
    let unsigned = ledger.entries.iter().filter(|entry| !entry.is_chained()).count();
    let secret = match goes_on {
        _ if unsigned == 0 => None,
        Some(secret) => Some(secret.clone()),
        None if !chained => Some(fresh()?),
        None => {
            reports.push(format!(
                "{LEDGER}: {unsigned} entries stay unchained: the secret of those before them is not known \
                 (PF_SESSION_SECRET or --session-secret-file names it)"
            ));
            None
        }
    };
    if let Some(secret) = &secret {
        match ledger.chain(secret) {
            Ok(_) => {
                if operator != Some(secret) {
                    header.session_secret_hex = Some(secret.clone());
                    header.verification_mode.get_or_insert_with(|| TAMPER_DETECTION.into());
                } else if !chained {
                    // No entry was signed with that secret.
                    header.session_secret_hex = None;
                    header.verification_mode = None;
                }
            }
            Err(error) => reports.push(format!("{LEDGER}: {error}; entries without HMAC stay unchained")),
        }
    }
    header.entries = count;
    ledger.header = header;
    let mut bytes = ledger.to_bytes();
    bytes.extend_from_slice(rest);
    Ok(Sealed { bytes, reports })
}

/// The header of a ledger and the text after it; nothing if the first line is an entry, or there is no line.
fn split_header(text: &[u8]) -> Result<Option<(Header, &[u8])>, FormatError> {
    let Some((_, first)) = lines(text).next() else { return Ok(None) };
    let end = first.as_ptr() as usize - text.as_ptr() as usize + first.len();
    let rest = text.get(end + 1..).unwrap_or_default();
    match Ledger::parse(first) {
        Ok(ledger) => Ok(Some((ledger.header, rest))),
        Err(_) if Entry::parse(first, 1).is_ok() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Draws a secret for a chain: 32 random bytes.
pub(super) fn fresh_secret() -> Result<Secret> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::io(e, "cannot read /dev/urandom"))?;
    Ok(Secret::new(data_encoding::HEXLOWER.encode(&bytes)))
}
