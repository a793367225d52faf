//! Several clients at once, each with the same mix of work in a separate folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::measure::{Bench, Done, Row, measure, turns};
use crate::result::Result;
use crate::systems::{State, System};

/// Numbers of clients at once.
const CLIENTS: [usize; 3] = [1, 2, 8];

/// Files in the folder of each client.
const FILES: usize = 100;

/// Operations in one turn of the mix: a stat of each of eight files, four reads, two lookups of missing names, one listing, one new
/// file.
const MIX: u64 = 16;

/// Measures the clients on each system in turn, each for the same time. The time of a row is that of 10,000 operations.
pub(crate) fn measure_all(
    bench: &Bench<'_>,
    systems: &mut [Box<dyn System + '_>],
    time: Duration,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut fairness = Vec::new();
    for clients in CLIENTS {
        let name = format!("{clients} client{}, 10,000 operations", if clients == 1 { "" } else { "s" });
        let mut row = Row::new("clients", &name, State::Once, systems);
        let mut shares = vec![Vec::new(); systems.len()];
        let mut patience = bench.patience;
        for round in 0..bench.runs {
            bench.wait_for_quiet(&mut patience)?;
            for at in turns(systems.len(), round) {
                bench.scratch.go_on()?;
                let system = &*systems[at];
                bench.say(format!("{name}: {} {}/{}", system.name(), round + 1, bench.runs));
                let folders = folders(system, clients, round)?;
                rustix::fs::sync();
                let mut counts = Vec::new();
                let run = measure(system, || {
                    counts = together(&folders, time)?;
                    let all: u64 = counts.iter().sum();
                    Ok(Done { time: time.mul_f64(10_000.0 / all as f64), check: 0 })
                })?;
                let least = counts.iter().min().copied().unwrap_or(0);
                shares[at].push(least as f64 / counts.iter().max().copied().unwrap_or(1) as f64);
                row.series[at].push(run, system);
            }
        }
        bench.tell(&row.label());
        fairness.push(shares);
        rows.push(row);
    }
    for (row, shares) in rows.iter_mut().zip(fairness) {
        for (series, shares) in row.series.iter().zip(shares) {
            let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
            row.notes.push(format!(
                "{}: {:.0} operations/s together; the slowest client did {:.2} of what the fastest did, at worst {least:.2}",
                series.system,
                10_000.0 / series.median(),
                crate::measure::median(shares),
            ));
        }
    }
    Ok(rows)
}

/// A folder with files for each client.
fn folders(system: &dyn System, clients: usize, round: usize) -> Result<Vec<PathBuf>> {
    let work = system.work().ok_or("there is nowhere to work")?;
    let mut folders = Vec::new();
    for client in 0..clients {
        let folder = work.join(format!("client-{clients}-{round}-{client}"));
        fs::create_dir(&folder)?;
        for file in 0..FILES {
            fs::write(folder.join(format!("f{file}")), [b'x'; 2000])?;
        }
        folders.push(folder);
    }
    Ok(folders)
}

/// Runs all clients for `time`, and returns the number of operations of each.
fn together(folders: &[PathBuf], time: Duration) -> Result<Vec<u64>> {
    let start = Barrier::new(folders.len());
    std::thread::scope(|scope| {
        let all: Vec<_> = folders.iter().map(|folder| scope.spawn(|| client(folder, &start, time))).collect();
        let ended =
            all.into_iter().map(|one| one.join().map_err(|_| "a client panicked")?.map_err(Into::into));
        ended.collect()
    })
}

fn client(folder: &Path, start: &Barrier, time: Duration) -> std::io::Result<u64> {
    let name = |n: u64| folder.join(format!("f{}", n % FILES as u64));
    start.wait();
    let end = Instant::now() + time;
    let mut turns = 0;
    while Instant::now() < end {
        for n in 0..8 {
            fs::metadata(name(turns * 8 + n))?;
        }
        for n in 0..4 {
            fs::read(name(turns * 4 + n))?;
        }
        for n in 0..2 {
            if folder.join(format!("missing{}", n + turns % 10)).try_exists()? {
                return Err(std::io::Error::other("a missing name is there"));
            }
        }
        fs::read_dir(folder)?.next();
        fs::write(folder.join(format!("new{turns}")), [b'y'; 500])?;
        turns += 1;
    }
    Ok(turns * MIX)
}
