//! Keeps a crash pack for a property that fails, with the seed of the failure.

use std::any::Any;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use proptest::test_runner::{Config, FailurePersistence, PersistedSeed};

use super::Crashpack;

/// Names the seed that properties try first.
const AGAIN: &str = "PFIMG_PROPTEST";

/// The configuration of properties: a failure keeps a crash pack where the other random tests do.
pub(crate) fn config() -> Config {
    let program = std::env::current_exe().unwrap();
    // target/debug/deps/program
    let target = program.ancestors().nth(3).unwrap_or(Path::new("target"));
    let first = std::env::var(AGAIN).ok().and_then(|seed| seed.parse().ok());
    with(Packs { dir: target.join("tmp/crashpacks"), first })
}

fn with(packs: Packs) -> Config {
    Config { failure_persistence: Some(Box::new(packs)), ..Config::default() }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Packs {
    dir: PathBuf,
    first: Option<PersistedSeed>,
}

impl FailurePersistence for Packs {
    fn load_persisted_failures2(&self, _: Option<&'static str>) -> Vec<PersistedSeed> {
        self.first.iter().cloned().collect()
    }

    fn save_persisted_failure2(
        &mut self,
        source: Option<&'static str>,
        seed: PersistedSeed,
        shrunken: &dyn Debug,
    ) {
        // A test's thread has the test's name, unless all tests share one thread.
        let thread = std::thread::current();
        let test = thread.name().filter(|name| name.contains("::")).map(|name| format!(" {name} -- --exact"));
        let again = format!("{AGAIN}='{seed}' cargo test --lib{}", test.unwrap_or_default());
        let pack = Crashpack::new()
            .with_trace("complete", format!("a property does not hold: {}", source.unwrap_or_default()))
            .with_trace("note", format!("{shrunken:?}"))
            .with_metadata("seed", seed.to_string())
            .with_metadata("again", &again);
        eprintln!("again: {again}");
        match pack.keep_in(&self.dir) {
            Ok(dir) => eprintln!("its crash pack is {}", dir.display()),
            Err(error) => eprintln!("{error}"),
        }
    }

    fn box_clone(&self) -> Box<dyn FailurePersistence> {
        Box::new(self.clone())
    }

    fn eq(&self, other: &dyn FailurePersistence) -> bool {
        other.as_any().downcast_ref() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[test]
fn a_property_that_does_not_hold_leaves_a_crash_pack_with_the_seed_that_shows_it_again() {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    let dir = tempfile::tempdir().unwrap();
    let fails = |config| {
        let small = |n: u32| if n < 1000 { Ok(()) } else { Err(TestCaseError::fail("large")) };
        TestRunner::new(config).run(&any::<u32>(), small).is_err()
    };
    let dir = dir.path().to_owned();
    assert!(fails(with(Packs { dir: dir.clone(), first: None })));
    let packs: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [pack] = &packs[..] else { panic!("{packs:?}") };
    let pack = super::replay::replay(pack, &[]).unwrap();
    let said = &pack.ledger.metadata;
    assert!(said["again"].contains("a_property_that_does_not_hold") && said["again"].contains(&said["seed"]));
    // Tries no other case.
    let none = |first| Config { cases: 0, ..with(Packs { dir: dir.clone(), first }) };
    assert!(fails(none(said["seed"].parse().ok())) && !fails(none(None)));
}
