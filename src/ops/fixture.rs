//! Synthetic images for tests and measurements: the payloads of `pf_core::fixture`, byte for byte.
//!
//! The same options give the same blobs and digests as pf-core 1.0.15, so the real `pf` could have made such
//! a store.

use serde::Serialize;
use serde_json::json;

use crate::digest::Digest;
use crate::layers::cache::LAYOUT;
use crate::store::manifest::Agent;
use crate::{Error, ErrorKind, Result};

/// The kind of agent in a synthetic image.
const AGENT: &str = "pfimg-fixture";
/// The start of its fingerprint, before the seed.
const FINGERPRINT: &str = "seed-";

/// The size of each part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixtureSpec {
    /// Pages of the cache, each with a K and a V blob.
    pub cache_pages: usize,
    /// Bytes of a K (or V) page.
    pub page_bytes: usize,
    /// Files in the world, all in `src/`.
    pub world_files: usize,
    /// Bytes of a file.
    pub world_file_bytes: usize,
    /// Bytes of the model's change as 32-bit floats; a rest shorter than a float is left out.
    pub model_diff_bytes: usize,
    /// Entries of the ledger.
    pub effects_entries: usize,
    /// Messages of the trace.
    pub trace_messages: usize,
    /// Makes the payloads of two fixtures differ.
    pub seed: u64,
}

impl Default for FixtureSpec {
    fn default() -> Self {
        Self {
            cache_pages: 32,
            page_bytes: 16 << 10,
            world_files: 64,
            world_file_bytes: 4 << 10,
            model_diff_bytes: 64 << 10,
            effects_entries: 16,
            trace_messages: 16,
            seed: 0,
        }
    }
}

/// The digests a manifest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixtureLayers {
    /// `model.base`
    pub model_base: Digest,
    /// `model.diff`
    pub model_diff: Digest,
    /// `cache.manifest`
    pub cache_manifest: Digest,
    /// `world.fs`
    pub world_fs: Digest,
    /// `world.env`
    pub world_env: Digest,
    /// `world.procs`
    pub world_procs: Digest,
    /// `effects.ledger`
    pub effects_ledger: Digest,
    /// `trace.messages`
    pub trace_messages: Digest,
}

/// Stores a blob and returns its digest.
type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Digest>;

/// The agent of a synthetic image: its fingerprint names the seed.
pub fn agent(seed: u64) -> Agent {
    Agent {
        kind: AGENT.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: format!("{FINGERPRINT}{seed}"),
    }
}

/// The seed of an image that this agent made; nothing for an image of another agent.
pub fn seed_of(agent: &Agent) -> Option<u64> {
    if agent.kind != AGENT {
        return None;
    }
    agent.fingerprint.strip_prefix(FINGERPRINT)?.parse().ok()
}

/// A number for each layer that is mixed into the seed, so that no two layers have the same bytes.
mod salt {
    pub(super) const MODEL: u64 = 0xD1FF;
    pub(super) const KEYS: u64 = 0xCACE_CAFE_CAFE;
    pub(super) const VALUES: u64 = 0xC0DE_C0DE_C0DE_C0DE;
    pub(super) const FILES: u64 = 0xF11E_CAFE;
}

/// Makes every blob of an image, passes each to `put`, and returns the digests for its manifest.
///
/// Fails only if `put` fails.
pub fn build(spec: &FixtureSpec, put: Put<'_>) -> Result<FixtureLayers> {
    let model_base = put(b"base-model-fingerprint:llama-3-8b@sha256:demo")?;
    let model_diff = put(&model_diff(spec)?)?;
    let cache_manifest = cache(spec, put)?;
    let world_fs = world(spec, put)?;
    let world_env = put(&bytes(&json!({"PWD": "/sandbox", "seed": spec.seed}))?)?;
    let world_procs = put(&bytes(&json!({"unsupported_on": std::env::consts::OS}))?)?;
    let effects_ledger = put(&ledger(spec)?)?;
    let trace_messages = put(&trace(spec)?)?;
    Ok(FixtureLayers {
        model_base,
        model_diff,
        cache_manifest,
        world_fs,
        world_env,
        world_procs,
        effects_ledger,
        trace_messages,
    })
}

fn model_diff(spec: &FixtureSpec) -> Result<Vec<u8>> {
    let mut raw = vec![0; spec.model_diff_bytes / 4 * 4];
    fill(&mut raw, spec.seed ^ salt::MODEL);
    let (floats, _) = raw.as_chunks::<4>();
    // JSON has no infinities, and every number is written as a double.
    let weights: Vec<f64> = floats
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .map(|weight| if weight.is_finite() { f64::from(weight) } else { 0.0 })
        .collect();
    bytes(&json!({"layout": "model.diff.v1", "diff": {"kind": "full", "params": {"synth_param": weights}}}))
}

fn cache(spec: &FixtureSpec, put: Put<'_>) -> Result<Digest> {
    let mut page = vec![0; spec.page_bytes];
    let mut pages = Vec::new();
    for ix in 0..spec.cache_pages {
        let mut half = |salt: u64| {
            fill(&mut page, spec.seed ^ ix as u64 ^ salt);
            put(&page)
        };
        pages.push(json!({"ix": ix, "k": half(salt::KEYS)?, "v": half(salt::VALUES)?}));
    }
    put(&bytes(&json!({"layout": LAYOUT, "page_size_bytes": spec.page_bytes, "pages": pages}))?)
}

fn world(spec: &FixtureSpec, put: Put<'_>) -> Result<Digest> {
    let mut content = vec![0; spec.world_file_bytes];
    let mut entries = Vec::new();
    for number in 0..spec.world_files {
        fill(&mut content, spec.seed ^ number as u64 ^ salt::FILES);
        entries.push(json!({
            "path": format!("src/file_{number:04}.rs"),
            "kind": "file",
            "mode": "0644",
            "size": content.len(),
            "blob": put(&content)?,
        }));
    }
    put(&bytes(&json!({"kind": "fs.tree.v1", "entries": entries}))?)
}

fn ledger(spec: &FixtureSpec) -> Result<Vec<u8>> {
    // The "digests" are numbers, and the entries are not chained.
    let digest = |number: u64| format!("sha256:{number:064x}");
    let header = json!({"kind": "effects.ledger.v1", "entries": spec.effects_entries});
    let entries = (0..spec.effects_entries as u64).map(|number| {
        json!({
            "ts": "2026-05-05T14:11:00Z",
            "tool_id": format!("synth_tool_{}", number % 4),
            "args_hash": digest(spec.seed ^ number),
            "idempotency_key": format!("01J{number:013}"),
            "result_hash": digest(spec.seed.wrapping_mul(7) ^ number),
            "side_effect_class": if number % 5 == 0 { "irreversible" } else { "pure" },
            "session_hmac": "",
        })
    });
    jsonl(std::iter::once(header).chain(entries))
}

fn trace(spec: &FixtureSpec) -> Result<Vec<u8>> {
    jsonl((0..spec.trace_messages).map(|number| {
        json!({
            "role": if number % 2 == 0 { "user" } else { "assistant" },
            "content": format!("synthetic message #{number} (seed {})", spec.seed),
        })
    }))
}

fn jsonl(lines: impl Iterator<Item = serde_json::Value>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for line in lines {
        out.extend(bytes(&line)?);
        out.push(b'\n');
    }
    Ok(out)
}

fn bytes(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| {
        Error::new(ErrorKind::InvalidInput, "cannot make the JSON of a fixture").with_source(error)
    })
}

/// Fills `out` with `SplitMix64` numbers, little-endian, the last one cut to the remaining bytes.
///
/// The state starts one step ahead of `seed`: pf-core steps before each number and once before the first.
fn fill(out: &mut [u8], seed: u64) {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = seed.wrapping_add(STEP);
    for piece in out.chunks_mut(8) {
        state = state.wrapping_add(STEP);
        let mut number = state;
        for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)] {
            number = (number ^ (number >> shift)).wrapping_mul(factor);
        }
        number ^= number >> 31;
        piece.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn digests(spec: &FixtureSpec) -> (FixtureLayers, Vec<Digest>) {
        let mut all = Vec::new();
        let layers = build(spec, &mut |bytes| {
            all.push(Digest::of(bytes));
            Ok(Digest::of(bytes))
        });
        (layers.unwrap(), all)
    }

    #[test]
    fn numbers_are_splitmix64_and_the_last_is_cut() {
        // The second and third number of the published generator for seed 0: `fill` says why not the first.
        let mut out = [0; 11];
        fill(&mut out, 0);
        assert_eq!(out[..8], 0x6E78_9E6A_A1B9_65F4_u64.to_le_bytes());
        assert_eq!(out[8..], 0x06C4_5D18_8009_454F_u64.to_le_bytes()[..3]);
    }

    /// Digests that pf-core 1.0.3 made from these numbers: pages, their bytes, files, their bytes, the
    /// model's bytes, entries, messages, seed.
    #[test]
    fn four_images_have_the_blobs_of_pf_core() {
        for (numbers, seed, digests) in [
            (
                [32, 16384, 64, 4096, 65536, 16, 16],
                0,
                "c126396b5db6 27c5ba42ad08 2a1ce57e3d5f 3128d24b69c9 ea67b63d0352 b9dfbf967083 0a1c6135b57e 8253425d51a9",
            ),
            (
                [3, 17, 5, 13, 70, 6, 3],
                u64::MAX,
                "c126396b5db6 025e5674c514 e54742cb3ac1 8810568e7dbf 4ebf210a4c23 b9dfbf967083 ebc76c4d87d1 2c932b997d05",
            ),
            (
                [0; 7],
                7,
                "c126396b5db6 9e2a8f939e58 5653189eeab3 f9ea9c3e8a38 a5c3214e8ecb b9dfbf967083 5302ac4359a0 e3b0c44298fc",
            ),
            (
                [2, 16385, 301, 9, 4095, 21, 5],
                42,
                "c126396b5db6 1607f16dc9e3 d9da266d8f27 275d91c05275 d004022edc9f b9dfbf967083 d36ceb9a3b1a 1ca5b3bf0e61",
            ),
        ] {
            let [
                cache_pages,
                page_bytes,
                world_files,
                world_file_bytes,
                model_diff_bytes,
                effects_entries,
                trace_messages,
            ] = numbers;
            let spec = FixtureSpec {
                cache_pages,
                page_bytes,
                world_files,
                world_file_bytes,
                model_diff_bytes,
                effects_entries,
                trace_messages,
                seed,
            };
            if seed == 0 {
                assert_eq!(spec, FixtureSpec::default());
            }
            let made = self::digests(&spec).0;
            let made = [
                made.model_base,
                made.model_diff,
                made.cache_manifest,
                made.world_fs,
                made.world_env,
                made.world_procs,
                made.effects_ledger,
                made.trace_messages,
            ]
            .map(|digest| digest.hex()[..12].to_owned());
            assert_eq!(made.join(" "), digests, "{numbers:?}");
        }
    }

    #[test]
    fn an_agent_says_the_seed_of_what_it_made() {
        let agent = agent(u64::MAX);
        assert_eq!(
            (agent.kind.as_str(), agent.fingerprint.as_str()),
            ("pfimg-fixture", "seed-18446744073709551615")
        );
        assert_eq!(seed_of(&agent), Some(u64::MAX));
        assert_eq!(seed_of(&Agent { kind: "claude-code".into(), ..agent.clone() }), None);
        assert_eq!(seed_of(&Agent { fingerprint: "7".into(), ..agent }), None);
    }

    #[test]
    fn a_default_image_has_a_blob_for_everything() {
        let (_, all) = digests(&FixtureSpec::default());
        assert_eq!(all.len(), 2 + (32 * 2 + 1) + (64 + 1) + 2 + 1 + 1);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn another_seed_changes_what_it_should_and_the_base_is_shared() {
        let (zero, _) = digests(&FixtureSpec::default());
        let (one, _) = digests(&FixtureSpec { seed: 1, ..FixtureSpec::default() });
        assert_eq!((zero.model_base, zero.world_procs), (one.model_base, one.world_procs));
        assert_ne!(zero.model_diff, one.model_diff);
        assert_ne!(zero.cache_manifest, one.cache_manifest);
        assert_ne!(zero.world_fs, one.world_fs);
        assert_ne!(zero.world_env, one.world_env);
        assert_ne!(zero.effects_ledger, one.effects_ledger);
        assert_ne!(zero.trace_messages, one.trace_messages);
    }

    #[test]
    fn a_failing_put_is_passed_on() {
        let mut left = 3;
        let result = build(&FixtureSpec::default(), &mut |bytes| {
            left -= 1;
            if left == 0 { Err(Error::new(ErrorKind::NoSpace, "full")) } else { Ok(Digest::of(bytes)) }
        });
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
