//! Generated forks with random changes: pf restores their seals, and a fork of a seal equals the sealed fork.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::program::{Program, judge, number, world_of};
use super::support::{Pf, Place, Rng, Shown};
use crate::common::failing;
use pfimg::digest::Digest;
use pfimg::layers::world::Kind;

#[test]
fn a_seal_holds_any_state_of_a_fork_exactly_and_pf_restores_it() {
    let first = number("PFIMG_SEAL_SEED").unwrap_or(1);
    let count = number("PFIMG_SEAL_FORKS").unwrap_or(200);
    let mut seen = Seen::default();
    for seed in first..first + count {
        let again = format!("PFIMG_SEAL_SEED={seed} PFIMG_SEAL_FORKS=1 cargo test --test engine seal::");
        let _program = failing::Program { what: "a generated fork and its seals", seed, again };
        seen.add(&generate(seed));
    }
    if count >= 200 {
        seen.assert_everything();
    }
}

/// Counts what the sealed forks contained: a test that seals no file of a kind proves nothing about it.
#[derive(Default)]
struct Seen {
    kinds: HashSet<Kind>,
    /// Blobs of each layer, by the layer's file.
    layers: HashMap<String, HashSet<Digest>>,
    merges: usize,
}

impl Seen {
    fn image(&mut self, place: &Place, image: &Digest, world: &BTreeMap<Vec<u8>, Shown>) {
        self.kinds.extend(world.values().map(|shown| shown.kind));
        for (file, digest) in place.store.image(image).unwrap().manifest.blobs() {
            self.layers.entry(file.to_string()).or_default().insert(digest);
        }
    }

    fn add(&mut self, other: &Self) {
        self.kinds.extend(&other.kinds);
        for (file, digests) in &other.layers {
            self.layers.entry(file.clone()).or_default().extend(digests);
        }
        self.merges += other.merges;
    }

    fn assert_everything(&self) {
        let kinds = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Chardev];
        assert!(kinds.iter().all(|kind| self.kinds.contains(kind)), "{:?}", self.kinds);
        assert_eq!(self.layers.len(), 8, "{:?}", self.layers.keys());
        for (file, digests) in &self.layers {
            assert!(digests.len() > 20, "{file} was hardly touched: {}", digests.len());
        }
        assert!(self.merges >= 40, "only {} merges", self.merges);
    }
}

fn generate(seed: u64) -> Seen {
    let mut seen = Seen::default();
    let mut rng = Rng(seed);
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let registry = place.registry();
    let base = (rng.below(4) > 0).then(|| place.fixture(seed));
    let fork = registry.create("made", base).unwrap();
    let mut parent = base;
    for _ in 0..=rng.below(4) {
        let mut program = Program { rng: &mut rng, fork: &fork };
        for _ in 0..program.rng.below(60) {
            program.step();
        }
        program.layers();
        let before = world_of(&fork);
        let sealed = place.seal(&fork);
        assert_eq!(sealed.reports, [""; 0], "seed {seed}");
        assert_eq!(world_of(&fork), before, "a seal changes nothing that is seen");
        let manifest = place.store.image(&sealed.image).unwrap().manifest;
        if sealed.new {
            assert_eq!(manifest.parents, parent.into_iter().collect::<Vec<_>>());
        }
        parent = Some(sealed.image);
        seen.image(&place, &sealed.image, &before);
        judge(&place, &sealed.image, &before, &dir.path().join("restored"));
        super::layers::verify_ledger(&place, &sealed.image);
        // From the image alone.
        let branch = registry.create("again", Some(sealed.image)).unwrap();
        assert_eq!(world_of(&branch), before, "the image holds all of it");
        drop(branch);
        registry.discard("again").unwrap();
    }
    // Unsealed changes on top of a seal survive.
    let mut program = Program { rng: &mut rng, fork: &fork };
    for _ in 0..20 {
        program.step();
    }
    let before = world_of(&fork);
    drop((fork, registry));
    let registry = place.registry();
    assert_eq!(world_of(&registry.get("made").unwrap()), before, "nothing is lost over a restart");
    // pf compresses so hard that not every fork can have a merge.
    if seed.is_multiple_of(4) {
        super::merged::merge(&mut rng, &place, &registry, &dir.path().join("restored"));
        seen.merges += 1;
    }
    if seed.is_multiple_of(20) {
        Pf::open(&place).push_and_pull(&parent.unwrap(), &dir.path().join("pushed"));
    }
    seen
}
