//! Arbitrary and mutated bytes through every codec: no panic, and a value that was read is written back
//! equal.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{cache::PageManifest, effects, env::Env, model, procs::Procs, trace::Trace};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// One or more valid inputs of every codec; each codec gets all of them.
fn valid() -> Vec<Vec<u8>> {
    let entry = format!(
        r#"{{"ts":"2026-05-05T14:11:00.25Z","tool_id":"t","args_hash":"{DIGEST}","idempotency_key":"k","result_hash":"{DIGEST}","side_effect_class":"pure","session_hmac":"00ab"}}"#
    );
    let header = r#"{"entries":1,"kind":"effects.ledger.v1","session_secret_hex":"00ff","x":1e-3}"#;
    [
        r#"{"kind":"env.v1","cwd":"/w","vars":{"A":"\u00e9"},"x":-1.25e7}"#.to_owned(),
        r#"{"PWD":"/sandbox","seed":0}"#.to_owned(),
        format!(r#"{{"kind":"procs.criu.v1","criu_dump":"{DIGEST}","pids":[1]}}"#),
        r#"{"kind":"procs.respawn.v1","schema":1,"pid":7,"parent_pid":null,"argv":["sh"]}"#.to_owned(),
        r#"{"kind":"procs.unsupported.v1","unsupported_on":"linux","note":null}"#.to_owned(),
        format!(
            r#"{{"layout":"paged-batchinvariant-v1","page_size_tokens":1,"n_layers":4294967295,"n_heads":4294967295,"head_dim":2,"dtype":"f32","page_size_bytes":8,"pages":[{{"ix":7,"k":"{DIGEST}","v":"{DIGEST}"}}],"logical_seqs":[{{"id":"a","page_ixs":[7],"fill_in_last_page":0}}]}}"#
        ),
        format!("{header}\n{entry}\n"),
        format!(
            r#"{{"kind":"effects.merged.v1","parent_a":"{DIGEST}","parent_b":"{DIGEST}","ancestor":"{DIGEST}","replay_with_new_key":["pure"],"summary":{{"a_entries":1,"b_entries":2,"b_irreversible_cached":0}}}}"#
        ),
        "{\"content\":\"c\",\"role\":\"user\"}\n{\"kind\":\"page_in\"}\n".to_owned(),
        r#"{"diff":{"kind":"full","params":{"p":[0.1]}},"layout":"model.diff.v1","note":"n"}"#.to_owned(),
        "base:agent".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// Reads `bytes` with every codec and writes back what could be read.
fn check(bytes: &[u8]) {
    macro_rules! round {
        ($($codec:ty),*) => {
            $(if let Ok(value) = <$codec>::parse(bytes) {
                assert_eq!(<$codec>::parse(&value.to_bytes()).as_ref(), Ok(&value));
            })*
        };
    }
    round!(Env, Procs, PageManifest, effects::Effects, Trace, model::ModelDiff, model::Base);
    if let Ok(manifest) = PageManifest::parse(bytes) {
        assert_ne!(manifest.page_bytes(), Some(0));
    }
    if let Ok(effects::Effects::Ledger(mut ledger)) = effects::Effects::parse(bytes) {
        let secret = effects::Secret::new("00ff");
        ledger.verify(None);
        if ledger.chain(&secret).is_ok() {
            assert_eq!(ledger.verify(Some(&secret)), effects::Chain::Verified);
        }
    }
    let shown = effects::redact(bytes);
    assert_eq!(effects::redact(&shown), shown);
}

#[test]
fn every_valid_input_is_read_by_its_codec() {
    let read = |bytes: &Vec<u8>| {
        let strict = [
            Env::parse(bytes).is_ok(),
            Procs::parse(bytes).is_ok(),
            PageManifest::parse(bytes).is_ok(),
            effects::Effects::parse(bytes).is_ok(),
            model::ModelDiff::parse(bytes).is_ok(),
            matches!(model::Base::parse(bytes), Ok(model::Base::Agent(_))),
            Trace::parse(bytes).is_ok_and(|trace| trace.messages().count() == 1),
        ];
        strict.contains(&true)
    };
    for bytes in valid() {
        assert!(read(&bytes), "{}", String::from_utf8_lossy(&bytes));
        check(&bytes);
    }
}

#[test]
fn no_prefix_of_a_valid_input_is_a_panic() {
    for bytes in valid() {
        for end in 0..bytes.len() {
            check(&bytes[..end]);
        }
    }
}

proptest! {
    #![proptest_config(crate::crashpack::failing::config())]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        check(&bytes);
    }

    #[test]
    fn arbitrary_json_characters_never_panic(text in r#"[{}\[\]":,\\u0-9a-e\n ]{0,200}"#) {
        check(text.as_bytes());
    }

    #[test]
    fn mutated_valid_inputs_never_panic(
        pick in any::<prop::sample::Index>(),
        edits in vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..6),
    ) {
        let all = valid();
        let mut bytes = pick.get(&all).clone();
        for (place, edit, byte) in edits {
            let at = place.index(bytes.len() + 1);
            match edit {
                0 => bytes.insert(at, byte),
                1 if at < bytes.len() => bytes[at] = byte,
                2 if at < bytes.len() => drop(bytes.remove(at)),
                // A part twice in a row: repeated keys, repeated lines, brackets that do not match.
                3 => bytes = [&bytes[..at], &bytes[at / 2..]].concat(),
                _ => {}
            }
        }
        check(&bytes);
    }
}
