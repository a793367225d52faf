//! Seals while others write, and while the daemon dies.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::support::{all_of, manual, seal, snaps, verify, world_of};
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, wait_at_most, wait_until};

/// A round that waits for seals lasts no longer.
const LONGEST_ROUND: Duration = Duration::from_secs(20);

/// Runs until dropped.
struct Writers {
    stop: std::sync::Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    fn start(count: usize, work: impl Fn(usize, u64) + Clone + Send + 'static) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let thread = |n| {
            let (stop, work) = (stop.clone(), work.clone());
            std::thread::spawn(move || {
                for round in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    work(n, round);
                }
            })
        };
        let threads = (0..count).map(thread).collect();
        Self { stop, threads }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn every_seal_is_one_moment_of_all_files() {
    let (store, id) = small_store();
    let mount = manual(&store);
    let world = fork(&mount, "f", &id);
    let at = world.clone();
    let writers = Writers::start(3, move |n, round| {
        fs::write(at.join(format!("a.{n}.tmp")), format!("{round}")).unwrap();
        fs::rename(at.join(format!("a.{n}.tmp")), at.join(format!("a.{n}"))).unwrap();
        let file =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(at.join(format!("b.{n}")));
        file.unwrap().write_at(format!("{round:20}").as_bytes(), 0).unwrap();
    });
    let mut seals = Vec::new();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        seals.push(seal(&store, &["f"]));
    }
    writers.end();
    let mut seen = 0;
    for id in &seals {
        let fs_of = mount.image(id).join("world/fs");
        for n in 0..3 {
            let number = |name: String| {
                let text = fs::read_to_string(fs_of.join(name)).unwrap_or_default();
                text.trim().parse::<u64>().unwrap_or(0)
            };
            let (a, b) = (number(format!("a.{n}")), number(format!("b.{n}")));
            assert!(b <= a && a <= b + 1, "seal {id}: a.{n} is {a}, b.{n} is {b}");
            seen += a;
        }
    }
    assert!(seen > 0);
    verify(&store);
    mount.unmount();
}

#[test]
fn ten_sealing_while_eight_write_make_images_that_all_verify() {
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--seal", "interval:50ms"]).start();
    let names: Vec<String> = (0..10).map(|n| format!("f{n}")).collect();
    for name in &names {
        fork(&mount, name, &id);
    }
    let worlds: Vec<PathBuf> = names.iter().map(|name| world(&mount, name)).collect();
    let at = worlds.clone();
    let writers = Writers::start(8, move |n, round| {
        let mut rng = crate::common::Rng::new(n as u64 * 1_000_003 + round);
        let folder = &at[rng.below(10) as usize];
        let path = folder.join(format!("{n}-{}", rng.below(20)));
        let len = if rng.chance(10) { 150_000 } else { 500 };
        let bytes = rng.bytes(len);
        match rng.below(5) {
            0 => drop(fs::remove_file(path)),
            1 => drop(fs::rename(&path, folder.join(format!("{n}-{}", rng.below(20))))),
            _ => fs::write(path, bytes).unwrap(),
        }
    });
    let snap = |name: &String| snaps(&mount, name).len();
    wait_until("every fork was sealed three times", || names.iter().all(|name| snap(name) >= 3));
    for name in names.iter().cycle().take(40) {
        // A seal by hand at the same time.
        seal(&store, &[name]);
    }
    writers.end();
    let sealed: Vec<_> = names.iter().map(|name| seal(&store, &[name])).collect();
    for (world, id) in worlds.iter().zip(&sealed) {
        assert_eq!(all_of(world), all_of(&mount.image(id).join("world/fs")));
    }
    verify(&store);
    mount.unmount();
}

#[test]
fn a_daemon_killed_in_the_middle_of_seals_loses_nothing_and_leaves_no_image_without_its_blobs() {
    let rounds = std::env::var("PFIMG_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let (store, id) = small_store();
    let mut known: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    let mut seals = 0;
    for round in 0..rounds {
        let mut mount = Mount::of(store.root()).args(["--seal", "interval:5ms"]).start();
        if round == 0 {
            fork(&mount, "f", &id);
        }
        let world = world(&mount, "f");
        for (name, number) in &known {
            let text = fs::read_to_string(world.join(name)).unwrap();
            assert!(
                text.trim().parse::<u64>().unwrap() >= *number,
                "round {round}: {name} went back: {text}"
            );
        }
        let before = snaps(&mount, "f").len();
        assert!(before >= seals, "round {round}: seals are gone");
        seals = before;
        let acknowledged = std::sync::Arc::new(std::sync::Mutex::new(known.clone()));
        let (at, told) = (world.clone(), acknowledged.clone());
        let writers = Writers::start(4, move |n, count| {
            let name = format!("{n}-{}", count % 7);
            let number = round * 1_000_000 + count;
            let temp = at.join(format!("{n}.tmp"));
            let written = fs::write(&temp, format!("{number:10}{}", " ".repeat(3000)));
            if written.and_then(|()| fs::rename(&temp, at.join(&name))).is_ok() {
                told.lock().unwrap().insert(name, number);
            }
        });
        // On a slow machine the kill comes earlier; failing seals are not slowness.
        wait_at_most(LONGEST_ROUND, || snaps(&mount, "f").len() > before + (round as usize % 3));
        assert_eq!(
            mount.log_lines(&["the fork stays unsealed, and pfimg tries again"]),
            [""; 0],
            "round {round}"
        );
        std::thread::sleep(Duration::from_micros(round * 1777 % 20_000));
        mount.kill();
        writers.end();
        known = acknowledged.lock().unwrap().clone();
    }
    assert!(!known.is_empty() && seals > 0);
    verify(&store);
    let last = seal(&store, &["f"]);
    let mount = manual(&store);
    assert_eq!(all_of(&world_of(&mount, "f")), all_of(&mount.image(&last).join("world/fs")));
    mount.unmount();
}
