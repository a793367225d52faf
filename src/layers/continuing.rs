//! Checks whether a ledger or a trace continues another one, and makes one that does.
//!
//! A trace continues another one if it begins with its bytes. A ledger does if its entries begin with those
//! of the other one: a seal rewrites the header, and adds an HMAC to entries without one.

use std::borrow::Cow;

use super::effects::{Effects, Entry, Header, Ledger};
use crate::digest::Digest;

/// Lines that are not blank, each with its end.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty())
}

/// The header of a ledger, if it has one, and its other lines.
fn parts(bytes: &[u8]) -> (Option<Header>, Vec<&[u8]>) {
    let mut rest: Vec<&[u8]> = lines(bytes).collect();
    let header = rest.first().and_then(|first| Ledger::parse(first).ok()).map(|ledger| ledger.header);
    if header.is_some() {
        rest.remove(0);
    }
    (header, rest)
}

/// Whether a line equals another one, or equals it plus the HMAC that the other one lacked.
fn chained_since(old: &[u8], new: &[u8]) -> bool {
    let entry = |line: &[u8]| Entry::parse(line.trim_ascii(), 0).ok();
    let (Some(old), Some(new)) = (entry(old), entry(new)) else { return false };
    let mut unchained = new.record().clone();
    unchained.session_hmac.clear();
    !old.is_chained() && new.is_chained() && unchained == *old.record()
}

/// How many lines two lists have in common, from the first on.
fn common(old: &[&[u8]], new: &[&[u8]], same: impl Fn(&[u8], &[u8]) -> bool) -> usize {
    let is_same = |(old, new): &(&&[u8], &&[u8])| old.trim_ascii() == new.trim_ascii() || same(old, new);
    old.iter().zip(new).take_while(is_same).count()
}

/// Says where a trace departs from the one before it: how many lines they share, out of how many. Nothing if
/// it continues that one.
pub fn trace_departs(before: &[u8], trace: &[u8]) -> Option<(usize, usize)> {
    if trace.starts_with(before) {
        return None;
    }
    let (old, new): (Vec<_>, Vec<_>) = (lines(before).collect(), lines(trace).collect());
    Some((common(&old, &new, |_, _| false), old.len()))
}

/// Does the same for a ledger. A ledger continues a merge if it names the merge.
pub fn ledger_departs(before: (&Digest, &[u8]), ledger: &[u8]) -> Option<(usize, usize)> {
    let (name, before) = before;
    if ledger.starts_with(before) {
        return None;
    }
    let continues = |header: &Option<Header>| {
        let name = header.as_ref().and_then(|header| header.extra.get("continues").cloned());
        name.and_then(|name| name.as_str().map(str::to_owned))
    };
    let (header, new) = parts(ledger);
    if let Ok(Effects::Merged(_)) = Effects::parse(before) {
        let named = continues(&header).is_some_and(|named| named == name.to_string());
        return (!named).then_some((0, 1));
    }
    let (old_header, old) = parts(before);
    let same = common(&old, &new, chained_since);
    let merge = continues(&old_header);
    (same < old.len() || (merge.is_some() && merge != continues(&header))).then_some((same, old.len()))
}

/// Appends lines to a text.
fn behind(before: &[u8], more: &[&[u8]]) -> Vec<u8> {
    let mut all = before.to_vec();
    if !more.is_empty() && before.last().is_some_and(|last| *last != b'\n') {
        all.push(b'\n');
    }
    all.extend(more.iter().copied().flatten());
    all
}

/// A trace that continues `before` and has all that `trace` has.
pub fn continued_trace<'a>(before: &[u8], trace: &'a [u8]) -> Cow<'a, [u8]> {
    if trace.starts_with(before) {
        return trace.into();
    }
    let (old, new): (Vec<_>, Vec<_>) = (lines(before).collect(), lines(trace).collect());
    behind(before, &new[common(&old, &new, |_, _| false)..]).into()
}

/// A ledger that continues `before` and has all that `ledger` has.
pub fn continued_ledger<'a>(before: &[u8], ledger: &'a [u8]) -> Cow<'a, [u8]> {
    if ledger.starts_with(before) {
        return ledger.into();
    }
    let (header, new) = parts(ledger);
    if let Ok(Effects::Merged(_)) = Effects::parse(before) {
        let same = header.is_some_and(|header| header.extra.contains_key("continues"));
        return if same { ledger.into() } else { behind(before, &new).into() };
    }
    let (_, old) = parts(before);
    // A copy may have entries in the form before the last seal chained them.
    let same = common(&old, &new, |old, new| chained_since(old, new) || chained_since(new, old));
    behind(before, &new[same..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::effects::Secret;

    fn entry(number: u32) -> String {
        let digest = Digest::of(b"");
        format!(
            "{{\"ts\":\"2026-05-05T14:11:00Z\",\"tool_id\":\"t{number}\",\"args_hash\":\"{digest}\",\
             \"idempotency_key\":\"{number}\",\"result_hash\":\"{digest}\",\"side_effect_class\":\"pure\"}}\n"
        )
    }

    fn ledger(entries: &str) -> Vec<u8> {
        [&b"{\"entries\":0,\"kind\":\"effects.ledger.v1\"}\n"[..], entries.as_bytes()].concat()
    }

    fn chained(bytes: &[u8]) -> Vec<u8> {
        let mut ledger = Ledger::parse(bytes).unwrap();
        ledger.chain(&Secret::new("ab")).unwrap();
        ledger.to_bytes()
    }

    fn departs(before: &[u8], after: &[u8]) -> Option<(usize, usize)> {
        ledger_departs((&Digest::of(before), before), after)
    }

    #[test]
    fn a_ledger_continues_one_whose_entries_it_begins_with_chained_or_not() {
        let (one, two) = (ledger(&entry(1)), ledger(&(entry(1) + &entry(2))));
        for before in [Vec::new(), ledger(""), one.clone()] {
            for after in [one.clone(), two.clone(), chained(&two)] {
                assert_eq!(departs(&before, &after), None);
            }
        }
        assert_eq!(departs(&chained(&one), &chained(&two)), None);
        assert_eq!(departs(&two, &one), Some((1, 2)));
        assert_eq!(departs(&one, b""), Some((0, 1)));
        assert_eq!(departs(&one, &ledger(&entry(3))), Some((0, 1)));
        assert_eq!(departs(&chained(&one), &two), Some((0, 1)), "an HMAC was taken away");
    }

    #[test]
    fn a_trace_continues_one_whose_bytes_it_begins_with() {
        assert_eq!(trace_departs(b"", b"{}\n"), None);
        assert_eq!(trace_departs(b"{}\n", b"{}\n[]\n"), None);
        assert_eq!(trace_departs(b"{}\n[]\n", b"{}\n"), Some((1, 2)));
        assert_eq!(trace_departs(b"{}\n", b""), Some((0, 1)));
    }

    #[test]
    fn a_continued_document_has_all_of_both_parts() {
        let (one, two) = (entry(1), entry(1) + &entry(2));
        let before = chained(&ledger(&two));
        let all = |more: &str| [&before[..], more.as_bytes()].concat();
        for (text, more) in [
            (Vec::new(), String::new()),
            (one.clone().into_bytes(), String::new()),
            (ledger(&one), String::new()),
            (ledger(&two), String::new()),
            (ledger(&(two.clone() + &entry(3))), entry(3)),
            (ledger(&entry(9)), entry(9)),
            (b"no entry\n".to_vec(), "no entry\n".to_owned()),
        ] {
            let continued = continued_ledger(&before, &text);
            assert_eq!(*continued, *all(&more));
            assert_eq!(departs(&before, &continued), None);
        }
        assert_eq!(*continued_trace(b"a\nb\n", b"a\nc\n"), *b"a\nb\nc\n");
        assert_eq!(*continued_trace(b"a\nb", b"c\n"), *b"a\nb\nc\n");
        assert_eq!(*continued_trace(b"a\nb\n", b""), *b"a\nb\n");
        assert_eq!(*continued_trace(b"a\n", b"a\nb"), *b"a\nb");
    }
}
