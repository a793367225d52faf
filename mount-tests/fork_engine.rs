//! The fork engine against a simple model of a filesystem: random programs over families of forks, compared while they
//! run, after reopening, and after every kind of damage. `PFIMG_FORK_PROGRAMS=N` runs N programs of each kind,
//! `PFIMG_FORK_SEED=S` starts at seed S.

mod adverse;
mod damage;
mod diff;
mod model;
mod programs;
mod race;
mod records;
mod rules;
mod support;

#[test]
fn a_random_program_that_fails_leaves_a_crash_pack_with_its_seed() {
    let again = format!("not at all, in process {}", std::process::id());
    let failed = std::panic::catch_unwind(|| {
        let _program =
            crate::common::failing::Program { what: "a test of failing", seed: 77, again: again.clone() };
        panic!("on purpose");
    });
    assert!(failed.is_err());
    let packs =
        std::fs::read_dir(crate::common::failing::packs()).unwrap().map(|entry| entry.unwrap().path());
    let replayed = packs.filter_map(|path| Some((pfimg::crashpack::replay::replay(&path, &[]).ok()?, path)));
    let mine: Vec<_> =
        replayed.filter(|(pack, _)| pack.ledger.metadata.get("again") == Some(&again)).collect();
    let [(pack, path)] = &mine[..] else { panic!("{mine:?}") };
    assert_eq!(pack.ledger.seeds.get("random"), Some(&77));
    std::fs::remove_dir_all(path).unwrap();
}
