//! The effects: what is read comes out the same, what was chained verifies, and no secret is ever shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pfimg::layers::effects::{Chain, Effects, Secret, redact};
use serde_json::{Map, Value};

/// Stands for a secret in the input: `@@` there becomes this. No fuzzer finds it by chance.
const SECRET: &[u8] = b"5ec2e7f00dc0ffee5ec2e7f00dc0ffee";
const KEY: &[u8] = b"session_secret_hex";

fuzz_target!(|bytes: &[u8]| {
    if let Ok(effects) = Effects::parse(bytes) {
        assert_eq!(Effects::parse(&effects.to_bytes()).as_ref(), Ok(&effects));
        if let Effects::Ledger(mut ledger) = effects {
            ledger.verify(None);
            let secret = Secret::new("00ff");
            if ledger.chain(&secret).is_ok() {
                assert_eq!(ledger.verify(Some(&secret)), Chain::Verified);
            }
        }
    }
    let bytes = with_secrets(bytes);
    let shown = redact(&bytes);
    assert_eq!(redact(&shown), shown, "twice is as once");
    for line in bytes.split(|byte| *byte == b'\n') {
        check(line, &bytes, &shown);
    }
});

/// Decides independently which part of one line may be shown.
fn check(line: &[u8], whole: &[u8], shown: &[u8]) {
    let Some(secret) = find(line, SECRET) else { return };
    match serde_json::from_slice::<Map<String, Value>>(line) {
        // The secret that pf would use is not visible.
        Ok(header) => {
            let is_secret = |value: &Value| value.to_string().as_bytes().windows(SECRET.len()).any(|at| at == SECRET);
            if header.get("session_secret_hex").is_some_and(is_secret) && count(whole, SECRET) == 1 {
                assert!(find(shown, SECRET).is_none(), "leaked from an object");
            }
        }
        // Broken: nothing is seen of what is anywhere behind the key.
        Err(_) => {
            if find(line, KEY).is_some_and(|key| key < secret) && count(whole, SECRET) == 1 {
                assert!(find(shown, SECRET).is_none(), "leaked from a broken line");
            }
        }
    }
}

fn with_secrets(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = find(rest, b"@@") {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(SECRET);
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    out
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|at| at == what)
}

fn count(text: &[u8], what: &[u8]) -> usize {
    text.windows(what.len()).filter(|at| *at == what).count()
}
