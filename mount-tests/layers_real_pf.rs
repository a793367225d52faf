//! Our codecs against the real pf crates: what they write we read, and the other way round.

// Helpers of tests are tests, too.

use std::collections::BTreeSet;
use std::sync::Arc;

use pf_core::cas::{BlobStore, MemBlobStore};
use pf_core::digest::Digest256;
use pf_core::fixture as real;
use pf_core::snapshot::{LayerCapture, LayerDescriptor};
use pf_core::store::PfStore;
use pf_effects::{SessionSecret, SideEffectClass as RealClass};
use pfimg::digest::Digest;
use pfimg::layers::cache::{Dtype, PageManifest};
use pfimg::layers::effects::{Chain, Effects, Entry, Header, Ledger, Record, Secret, SideEffectClass};
use pfimg::layers::env::Env;
use pfimg::layers::procs::{Known, Procs};
use pfimg::ops::fixture::{FixtureSpec, build};
use serde_json::Map;

const SECRET: &[u8] = b"not very secret";

fn secret() -> Secret {
    Secret::new(data_encoding::HEXLOWER.encode(SECRET))
}

fn real_ledger(count: u8) -> pf_effects::Ledger {
    let mut ledger = pf_effects::Ledger::new(SessionSecret::new(SECRET));
    let classes = [RealClass::Pure, RealClass::Idempotent, RealClass::Irreversible, RealClass::NetworkOnly];
    for number in 0..count {
        // Times with nine, three and no decimals, and text that JSON escapes.
        let nanos = [123_456_789, 5_000_000, 0][usize::from(number) % 3];
        ledger
            .append(
                chrono::DateTime::from_timestamp(1_780_000_000 + i64::from(number), nanos).unwrap(),
                format!("tool \"{number}\"\n\u{1f600}\u{7f}/"),
                Digest256::of(&[number]),
                format!("k{number}"),
                Digest256::of(&[number, 1]),
                classes[usize::from(number) % 4],
            )
            .unwrap();
    }
    ledger
}

fn serialized(ledger: &pf_effects::Ledger) -> Vec<u8> {
    let blobs = MemBlobStore::new();
    let digest = ledger.serialize(&blobs).unwrap();
    blobs.get(&digest).unwrap()
}

/// Reads and verifies as `pf verify` does: `Err` is the index of the entry, or `None` if it cannot be read.
fn real_verdict(bytes: &[u8]) -> Result<usize, Option<usize>> {
    let blobs = MemBlobStore::new();
    let digest = blobs.put(bytes).unwrap();
    let ledger =
        pf_effects::Ledger::deserialize(&blobs, &digest, SessionSecret::new(SECRET)).map_err(|_| None)?;
    match ledger.verify() {
        Ok(()) => Ok(ledger.entries().len()),
        Err(error) => {
            let text = error.to_string();
            let digits = text.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
            Err(Some(digits.and_then(|digits| digits.parse().ok()).expect("pf names the entry")))
        }
    }
}

fn ours(bytes: &[u8]) -> Option<Ledger> {
    match Effects::parse(bytes) {
        Ok(Effects::Ledger(ledger)) => Some(ledger),
        _ => None,
    }
}

#[test]
fn a_ledger_that_pf_wrote_verifies_and_comes_out_byte_for_byte() {
    for count in [0, 1, 2, 17] {
        let bytes = serialized(&real_ledger(count));
        let ledger = ours(&bytes).unwrap();
        assert_eq!(ledger.verify(Some(&secret())), Chain::Verified);
        assert_eq!(ledger.verify(None), if count == 0 { Chain::Verified } else { Chain::NoSecret });
        assert_eq!(ledger.to_bytes(), bytes);
    }
}

#[test]
fn a_ledger_with_an_embedded_secret_verifies_by_itself() {
    let plain = String::from_utf8(serialized(&real_ledger(3))).unwrap();
    let (_, body) = plain.split_once('\n').unwrap();
    let hex = data_encoding::HEXLOWER.encode(SECRET);
    let text = format!(
        "{{\"entries\":3,\"kind\":\"effects.ledger.v1\",\"session_secret_hex\":\"{hex}\",\"verification_mode\":\"tamper-detection\"}}\n{body}"
    );
    let ledger = ours(text.as_bytes()).unwrap();
    assert_eq!(ledger.verify(None), Chain::Verified);
    assert_eq!(ledger.to_bytes(), text.as_bytes());
    assert_eq!(real_verdict(text.as_bytes()), Ok(3));
}

#[test]
fn every_single_bit_that_is_changed_gets_the_verdict_that_pf_gives() {
    let bytes = serialized(&real_ledger(3));
    let header_end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    let mut broken_lines = BTreeSet::new();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let verdict = ours(&flipped).map(|ledger| ledger.verify(Some(&secret())));
        let place = || format!("bit {bit} in {}", String::from_utf8_lossy(&flipped));
        match (real_verdict(&flipped), verdict) {
            (Ok(_), Some(Chain::Verified)) | (Err(None), None) => {}
            // Where pf sees nothing we may only see what pf does not look at: the header's count.
            (Ok(count), Some(Chain::CountMismatch { found, .. })) => {
                assert!(bit / 8 < header_end && count as u64 == found, "{}", place());
            }
            (Err(Some(index)), Some(Chain::Broken { line, .. })) => {
                // Its line, whatever became of the empty ones.
                let starts =
                    flipped.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
                assert_eq!(starts.map(|(at, _)| at + 1).nth(index + 1), Some(line), "{}", place());
                broken_lines.insert(line);
            }
            // An entry without session_hmac is unreadable to pf and not chained to us.
            (Err(None), Some(Chain::Broken { reason, .. })) => {
                assert_eq!(reason, "not chained", "{}", place());
            }
            (theirs, ours) => panic!("pf {theirs:?}, ours {ours:?}: {}", place()),
        }
    }
    assert_eq!(broken_lines, BTreeSet::from([2, 3, 4]));
}

#[test]
fn entries_that_we_chain_are_the_lines_that_pf_writes() {
    let real = real_ledger(9);
    let records = real.entries().iter().map(|entry| {
        let mut record: Record = serde_json::from_value(serde_json::to_value(entry).unwrap()).unwrap();
        record.session_hmac.clear();
        Entry::new(record)
    });
    let mut ledger = Ledger { header: Header::default(), entries: records.collect() };
    assert_eq!(ledger.chain(&secret()).unwrap(), 9);
    assert_eq!(ledger.to_bytes(), serialized(&real));
}

#[test]
fn a_ledger_that_we_append_to_is_read_and_verified_by_pf() {
    let mut ledger = ours(&serialized(&real_ledger(2))).unwrap();
    let digest = Digest::of(b"").to_string();
    for tool in ["", "a\u{0}b", "é"] {
        let mut extra = Map::new();
        extra.insert("why".to_owned(), "a key that pf does not know".into());
        ledger.entries.push(Entry::new(Record {
            timestamp: "2026-11-20T12:00:00.000001+02:00".parse().unwrap(),
            tool_id: tool.to_owned(),
            args_hash: digest.to_uppercase().replace("SHA", "sha"),
            idempotency_key: String::new(),
            result_hash: digest.clone(),
            side_effect_class: SideEffectClass::NetworkOnly,
            session_hmac: String::new(),
            extra,
        }));
    }
    assert_eq!(ledger.chain(&secret()).unwrap(), 3);
    assert_eq!(real_verdict(&ledger.to_bytes()), Ok(5));
    assert_eq!(ours(&ledger.to_bytes()).unwrap().verify(Some(&secret())), Chain::Verified);
}

#[test]
fn page_manifests_that_pf_wrote_come_out_byte_for_byte() {
    for dtype in [pf_cache::Dtype::Bf16, pf_cache::Dtype::F16, pf_cache::Dtype::F32, pf_cache::Dtype::Fp8E4m3]
    {
        let meta = pf_cache::CacheMeta { page_size_tokens: 4, n_layers: 2, n_heads: 3, head_dim: 5, dtype };
        let mut pager = pf_cache::SyntheticCachePager::new(meta);
        pager.populate_synthetic(6, 42).unwrap();
        let blobs = MemBlobStore::new();
        let digest = pf_cache::capture_cache(&mut pager, &blobs).unwrap();
        let bytes = blobs.get(&digest).unwrap();

        let manifest = PageManifest::parse(&bytes).unwrap();
        assert_eq!(manifest.page_bytes(), Some(meta.page_bytes() as u64));
        assert_eq!(manifest.dtype.as_ref().and_then(Dtype::bytes), Some(dtype.bytes() as u64));
        assert!(!manifest.pages.is_empty());
        assert_eq!(manifest.to_bytes(), bytes);
        for page in &manifest.pages {
            let blob = blobs.get(&Digest256::parse(&page.k.to_string()).unwrap()).unwrap();
            assert_eq!(Some(blob.len() as u64), manifest.page_bytes());
        }
    }
}

#[test]
fn page_manifests_that_we_write_are_read_by_pf() {
    let meta = pf_cache::CacheMeta {
        page_size_tokens: 4,
        n_layers: 1,
        n_heads: 1,
        head_dim: 2,
        dtype: pf_cache::Dtype::Fp8E4m3,
    };
    let blobs = MemBlobStore::new();
    let k: Digest = blobs.put(&[1; 8]).unwrap().as_str().parse().unwrap();
    let mut manifest = PageManifest::empty("ours");
    (manifest.page_size_tokens, manifest.n_layers, manifest.n_heads) = (Some(4), Some(1), Some(1));
    (manifest.head_dim, manifest.dtype) = (Some(2), Some(Dtype::Fp8E4m3));
    for ix in [5, 3] {
        manifest.pages.push(pfimg::layers::cache::Page { ix, k, v: k, extra: Map::new() });
    }
    manifest.canonicalize();
    let digest = blobs.put(&manifest.to_bytes()).unwrap();
    let back = pf_cache::deserialize_pages(&blobs, &digest).unwrap();
    assert_eq!(back.meta, meta);
    assert_eq!(back.pages.iter().map(|(ix, _)| *ix).collect::<Vec<_>>(), [3, 5]);

    let empty = blobs.put(&PageManifest::empty("nobody filled it").to_bytes()).unwrap();
    assert!(pf_cache::deserialize_pages(&blobs, &empty).unwrap().pages.is_empty());
}

#[test]
fn the_environment_that_pf_captures_is_read_and_written() {
    let blobs: Arc<dyn BlobStore> = Arc::new(MemBlobStore::new());
    let capture = pf_world::env::EnvCapture::new().scrub("^PATH$").unwrap();
    let bytes = blobs.get(&capture.capture(&blobs).unwrap()).unwrap();
    let env = Env::parse(&bytes).unwrap();
    assert_eq!(env.to_bytes(), bytes);
    let Env::V1(env) = env else { panic!("{env:?}") };
    assert_eq!(env.cwd, std::env::current_dir().unwrap().to_str().unwrap());
    assert_eq!(env.vars["PATH"], "<redacted>");

    let ours = Env::V1(pfimg::layers::env::EnvV1 { cwd: "/é".into(), ..Default::default() }).to_bytes();
    let theirs: pf_world::env::EnvSnapshot = serde_json::from_slice(&ours).unwrap();
    assert_eq!((theirs.kind.as_str(), theirs.cwd.as_str()), ("env.v1", "/é"));
}

#[test]
fn the_processes_that_pf_captures_are_read_and_written() {
    use pf_world::procs::ProcsBlob;
    let cases = [
        ProcsBlob::Criu { criu_dump: Digest256::of(b"dump"), pids: vec![1, -7] },
        ProcsBlob::Unsupported { unsupported_on: "macos".into(), note: "n".into() },
    ];
    for case in cases {
        let bytes = serde_json::to_vec(&case).unwrap();
        let procs = Procs::parse(&bytes).unwrap();
        assert!(matches!(procs, Procs::Known(Known::Criu(_) | Known::Unsupported(_))), "{procs:?}");
        assert_eq!(procs.to_bytes(), bytes);
    }
    let ours = Procs::empty("linux", "nobody filled it").to_bytes();
    assert!(matches!(serde_json::from_slice(&ours).unwrap(), ProcsBlob::Unsupported { .. }));
}

fn specs() -> Vec<FixtureSpec> {
    let small = FixtureSpec {
        cache_pages: 3,
        page_bytes: 40,
        world_files: 3,
        world_file_bytes: 24,
        model_diff_bytes: 64,
        effects_entries: 7,
        trace_messages: 3,
        seed: 1,
    };
    let none = FixtureSpec {
        cache_pages: 0,
        page_bytes: 0,
        world_files: 0,
        world_file_bytes: 0,
        model_diff_bytes: 0,
        effects_entries: 0,
        trace_messages: 0,
        seed: 0,
    };
    vec![
        FixtureSpec {
            seed: u64::MAX,
            page_bytes: 13,
            world_file_bytes: 7,
            model_diff_bytes: 4099,
            ..small.clone()
        },
        FixtureSpec { cache_pages: 2, world_files: 2, ..none.clone() },
        FixtureSpec {
            page_bytes: 1,
            world_file_bytes: 1,
            model_diff_bytes: 3,
            seed: 0xD1FF,
            ..small.clone()
        },
        // Enough floats that some of them are no numbers.
        FixtureSpec { model_diff_bytes: 16 << 10, seed: 0x1234_5678_9abc_def0, ..small.clone() },
        small,
        none,
        FixtureSpec::default(),
    ]
}

/// Every blob a store holds, by its name on disk.
fn blobs_of(root: &std::path::Path) -> BTreeSet<String> {
    let folders = std::fs::read_dir(root.join("blobs/sha256")).unwrap();
    folders
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().file_name().into_string().unwrap().replace(".zst", ""))
        .collect()
}

#[test]
fn the_numbers_of_a_fixture_are_by_default_those_of_pf_core() {
    let (ours, theirs) = (FixtureSpec::default(), real::FixtureSpec::default());
    let numbers = |text: String| text.split_once('{').unwrap().1.to_owned();
    assert_eq!(numbers(format!("{ours:?}")), numbers(format!("{theirs:?}")));
}

#[test]
fn fixtures_have_the_blobs_of_pf_core_to_the_last_byte() {
    for spec in specs() {
        let knobs = real::FixtureSpec {
            cache_pages: spec.cache_pages,
            page_bytes: spec.page_bytes,
            world_files: spec.world_files,
            world_file_bytes: spec.world_file_bytes,
            model_diff_bytes: spec.model_diff_bytes,
            effects_entries: spec.effects_entries,
            trace_messages: spec.trace_messages,
            seed: spec.seed,
        };
        let root = tempfile::tempdir().unwrap();
        let store = PfStore::open(root.path()).unwrap();
        let captures: [Box<dyn LayerCapture>; 5] = [
            Box::new(real::FixtureModelCapture(knobs.clone())),
            Box::new(real::FixtureCacheCapture(knobs.clone())),
            Box::new(real::FixtureWorldCapture(knobs.clone())),
            Box::new(real::FixtureEffectsCapture(knobs.clone())),
            Box::new(real::FixtureTraceCapture(knobs)),
        ];
        let mut made = BTreeSet::new();
        let ours = build(&spec, &mut |bytes| {
            let digest = Digest::of(bytes);
            made.insert(digest.hex());
            Ok(digest)
        })
        .unwrap();
        for capture in captures {
            let pairs = match capture.capture(&store).unwrap() {
                LayerDescriptor::Model(layer) => {
                    vec![(ours.model_base, layer.base), (ours.model_diff, layer.diff)]
                }
                LayerDescriptor::Cache(layer) => vec![(ours.cache_manifest, layer.manifest)],
                LayerDescriptor::World(layer) => vec![
                    (ours.world_fs, layer.fs),
                    (ours.world_env, layer.env),
                    (ours.world_procs, layer.procs),
                ],
                LayerDescriptor::Effects(layer) => vec![(ours.effects_ledger, layer.ledger)],
                LayerDescriptor::Trace(layer) => vec![(ours.trace_messages, layer.messages)],
            };
            for (ours, theirs) in pairs {
                assert_eq!(ours.to_string(), theirs.as_str(), "{spec:?}");
            }
        }
        assert_eq!(made, blobs_of(root.path()), "{spec:?}");
    }
}

#[test]
fn our_codecs_read_the_fixture_and_write_it_byte_for_byte() {
    let mut blobs = std::collections::BTreeMap::new();
    let layers = build(&FixtureSpec::default(), &mut |bytes| {
        blobs.insert(Digest::of(bytes), bytes.to_vec());
        Ok(Digest::of(bytes))
    })
    .unwrap();
    let env = Env::parse(&blobs[&layers.world_env]).unwrap();
    assert_eq!((env.cwd(), env.to_bytes()), (Some("/sandbox"), blobs[&layers.world_env].clone()));
    let procs = Procs::parse(&blobs[&layers.world_procs]).unwrap();
    assert!(matches!(procs, Procs::Bare(_)));
    assert_eq!(procs.to_bytes(), blobs[&layers.world_procs]);
    let cache = PageManifest::parse(&blobs[&layers.cache_manifest]).unwrap();
    assert_eq!((cache.page_bytes(), cache.pages.len()), (Some(16384), 32));
    assert_eq!(cache.to_bytes(), blobs[&layers.cache_manifest]);
    let ledger = ours(&blobs[&layers.effects_ledger]).unwrap();
    assert_eq!(ledger.verify(None), Chain::Unchained);
    assert_eq!(ledger.to_bytes(), blobs[&layers.effects_ledger]);
    let trace = pfimg::layers::trace::Trace::parse(&blobs[&layers.trace_messages]).unwrap();
    assert_eq!(trace.messages().count(), 16);
    let model = pfimg::layers::model::ModelDiff::parse(&blobs[&layers.model_diff]).unwrap();
    assert_eq!((model.kind(), model.to_bytes()), ("full", blobs[&layers.model_diff].clone()));
}
