//! How time and memory grow: folders, trees, stores and families of forks, each ten times as large as the one before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::image;
use crate::measure::{Bench, median, process_cpu};
use crate::mounted::Mount;
use crate::result::Result;
use crate::scratch::pfimg;
use crate::systems::memory;
use crate::text::{mebibytes, seconds, table, thousands};

/// Forks made of one source for a median.
const FORKS: usize = 21;

/// One figure of a table.
#[derive(Clone, Copy, Debug)]
enum Figure {
    Seconds(f64),
    Bytes(u64),
    Number(f64),
}

impl Figure {
    fn text(self) -> String {
        match self {
            Self::Seconds(value) => seconds(value),
            Self::Bytes(value) => mebibytes(value),
            Self::Number(value) => format!("{value:.0}"),
        }
    }

    fn json(self) -> Value {
        match self {
            Self::Seconds(value) | Self::Number(value) => json!(value),
            Self::Bytes(value) => json!(value),
        }
    }
}

/// The figures of one kind of growth.
pub(crate) struct Growth {
    what: &'static str,
    rows: Vec<(usize, Vec<(&'static str, Figure)>)>,
}

impl Growth {
    pub(crate) fn table(&self) -> String {
        let names = self.rows.iter().flat_map(|(_, figures)| figures).map(|(name, _)| *name);
        let mut columns = vec![self.what];
        for name in names {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let line = |(size, figures): &(usize, Vec<(&str, Figure)>)| {
            let cell = |name: &&str| {
                let figure = figures.iter().find(|(of, _)| of == name);
                figure.map_or(String::new(), |(_, figure)| figure.text())
            };
            [thousands(*size as u64)].into_iter().chain(columns[1..].iter().map(cell)).collect()
        };
        table(&columns, &self.rows.iter().map(line).collect::<Vec<_>>())
    }

    pub(crate) fn json(&self) -> Value {
        let row = |(size, figures): &(usize, Vec<(&str, Figure)>)| {
            let mut object = json!({"size": size});
            for (name, figure) in figures {
                object[*name] = figure.json();
            }
            object
        };
        json!({"what": self.what, "rows": self.rows.iter().map(row).collect::<Vec<_>>()})
    }
}

/// Measures everything, the largest tree of `most` files.
pub(crate) fn measure_all(bench: &Bench<'_>, most: usize) -> Result<Vec<Growth>> {
    let grow = |what, steps: [usize; 4], one: &dyn Fn(&Bench<'_>, usize) -> Result<_>| {
        let mut rows = Vec::new();
        let mut sizes = steps.map(|divisor| (most / divisor).max(10)).to_vec();
        sizes.dedup();
        for size in sizes {
            bench.say(format!("{what}: {}", thousands(size as u64)));
            bench.wait_for_quiet(&mut bench.patience.clone())?;
            let figures = one(bench, size)?;
            bench.tell(&format!("{what}: {}", thousands(size as u64)));
            rows.push((size, figures));
        }
        Ok::<_, Box<dyn std::error::Error>>(Growth { what, rows })
    };
    Ok(vec![
        grow("files in one folder", [10_000, 1000, 100, 10], &folder)?,
        grow("files in a tree", [1000, 100, 10, 1], &tree)?,
        grow("images in a store", [10_000, 1000, 100, 10], &store)?,
        grow("forks in a store", [100_000, 10_000, 3000, 1000], &forks)?,
    ])
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Figure, T)> {
    let started = Instant::now();
    let done = work()?;
    Ok((Figure::Seconds(started.elapsed().as_secs_f64()), done))
}

/// A mount without automatic seals.
fn mount(dir: &Path, store: &Path) -> Result<Mount> {
    let mountpoint = dir.join("mnt");
    fs::create_dir_all(&mountpoint)?;
    Mount::new(store, &mountpoint, &dir.join("cache"), &["--seal", "manual"])
}

fn wants(count: usize, found: usize, what: &str) -> Result<()> {
    if count == found { Ok(()) } else { Err(format!("{what}: {found} instead of {count}").into()) }
}

/// How many names there are.
fn list(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        entry?;
        count += 1;
    }
    Ok(count)
}

/// Looks at each file of the kind that this module makes.
fn look(folder: &Path, count: usize) -> Result<()> {
    for n in 0..count {
        fs::metadata(folder.join(format!("f{n:07}")))?;
    }
    Ok(())
}

/// A folder of `count` files: made and looked at, natively, in a fork and in an image.
fn folder(bench: &Bench<'_>, count: usize) -> Result<Vec<(&'static str, Figure)>> {
    let dir = bench.scratch.fresh(&format!("folder-{count}"))?;
    let store = dir.join("store");
    image::write_tree(&store, count, true, bench.scratch)?;
    let mount = mount(&dir, &store)?;
    fs::create_dir(mount.mountpoint.join("forks/f@latest"))?;
    let mut figures = Vec::new();
    for (place, names) in [
        (dir.clone(), ["native create", "native list", "native list again", "native stat"]),
        (
            mount.mountpoint.join("forks/f/world/fs"),
            ["fork create", "fork list", "fork list again", "fork stat"],
        ),
    ] {
        bench.scratch.go_on()?;
        let place = place.join("made");
        fs::create_dir(&place)?;
        let made = timed(|| {
            for n in 0..count {
                fs::File::create_new(place.join(format!("f{n:07}")))?;
            }
            Ok(())
        })?;
        figures.push((names[0], made.0));
        figures.extend(looks(&place, count, names)?);
    }
    let latest = mount.mountpoint.join("latest/world/fs/d00000");
    figures.extend(looks(&latest, count, ["", "image list", "image list again", "image stat"])?);
    mount.unmount()?;
    Ok(figures)
}

fn looks(place: &Path, count: usize, names: [&'static str; 4]) -> Result<Vec<(&'static str, Figure)>> {
    let mut figures = Vec::new();
    for name in &names[1..3] {
        let (time, found) = timed(|| list(place))?;
        wants(count, found, name)?;
        figures.push((*name, time));
    }
    figures.push((names[3], timed(|| look(place, count))?.0));
    Ok(figures)
}

fn find(root: &Path) -> Result<usize> {
    let output =
        Command::new("find").arg(root).args(["-type", "f", "-size", "+0", "-printf", "\n"]).output()?;
    if !output.status.success() {
        return Err(format!("find: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout.len())
}

/// A tree of `count` files: the first look, walks, forks, and the daemon's memory before and after
/// forgetting.
fn tree(bench: &Bench<'_>, count: usize) -> Result<Vec<(&'static str, Figure)>> {
    let dir = bench.scratch.fresh(&format!("tree-{count}"))?;
    let store = dir.join("store");
    image::write_tree(&store, count, false, bench.scratch)?;
    let mount = mount(&dir, &store)?;
    let resident = || memory(mount.pid).resident;
    let before = resident();
    let forks = mount.mountpoint.join("forks");
    let make = |name: &str, source: &str| {
        timed(|| Ok(fs::create_dir(forks.join(format!("{name}@{source}")))?)).map(|(time, ())| time)
    };
    let many = |prefix: &str, source: &str| {
        let mut times = Vec::new();
        for n in 0..FORKS {
            if let Figure::Seconds(time) = make(&format!("{prefix}{n}"), source)? {
                times.push(time);
            }
        }
        let worst = times.iter().copied().fold(0.0, f64::max);
        Ok::<_, Box<dyn std::error::Error>>((Figure::Seconds(median(times)), Figure::Seconds(worst)))
    };
    let mut figures = vec![("first fork", make("first", "latest")?)];
    let root = mount.mountpoint.join("latest/world/fs");
    let (time, folders) = timed(|| list(&root))?;
    wants(count.div_ceil(image::IN_A_FOLDER), folders, "folders")?;
    figures.push(("first look", time));
    let (fork, worst) = many("f", "latest")?;
    figures.extend([("fork", fork), ("worst of 21", worst)]);
    // The family's source has changes that the branches must hold.
    fs::write(forks.join("first/world/fs/d00000/f0000000"), "changed")?;
    let (branch, worst) = many("b", "first")?;
    figures.extend([("branch", branch), ("worst branch", worst)]);
    wants(7, fs::read(forks.join("b20/world/fs/d00000/f0000000"))?.len(), "bytes in a branch")?;
    figures
        .extend([("memory before", Figure::Bytes(before)), ("looked and forked", Figure::Bytes(resident()))]);
    let looked = resident();
    for name in ["walk of the image", "walk again"] {
        bench.scratch.go_on()?;
        let (time, found) = timed(|| find(&root))?;
        wants(count, found, name)?;
        figures.push((name, time));
    }
    let walked = resident();
    figures.push(("walked", Figure::Bytes(walked)));
    let inodes = count + count.div_ceil(image::IN_A_FOLDER);
    let of_walk = |since: u64| Figure::Number(walked.saturating_sub(since) as f64 / inodes as f64);
    figures.extend([("bytes an inode", of_walk(looked)), ("with the tree", of_walk(before))]);
    let fork = forks.join("f0/world/fs");
    let (time, found) = timed(|| find(&fork))?;
    wants(count, found, "walk of a fork")?;
    figures.extend([("walk of a fork", time), ("and a fork walked", Figure::Bytes(resident()))]);
    let of_fork = resident().saturating_sub(walked) as f64 / inodes as f64;
    figures.push(("bytes an inode there", Figure::Number(of_fork)));
    if fs::write("/proc/sys/vm/drop_caches", "2").is_ok() {
        settle(mount.pid);
        // The daemon returns free memory every five seconds.
        std::thread::sleep(Duration::from_secs(6));
        figures.push(("forgotten", Figure::Bytes(resident())));
    }
    figures.push(("peak", Figure::Bytes(memory(mount.pid).peak)));
    mount.unmount()?;
    Ok(figures)
}

/// Waits until a daemon has nothing to do: until it used no time for a while, or for at most ten seconds.
fn settle(pid: u32) {
    let started = Instant::now();
    let mut before = f64::NAN;
    while started.elapsed().as_secs() < 10 {
        let now = process_cpu(&pid.to_string(), false);
        if now.to_bits() == before.to_bits() {
            break;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// A store of `count` images: mounted and listed.
fn store(bench: &Bench<'_>, count: usize) -> Result<Vec<(&'static str, Figure)>> {
    let dir = bench.scratch.fresh(&format!("store-{count}"))?;
    let store = dir.join("store");
    image::write_many(&store, count, bench.scratch)?;
    let (time, mount) = timed(|| mount(&dir, &store))?;
    let mut figures = vec![("mount", time), ("memory", Figure::Bytes(memory(mount.pid).resident))];
    for name in ["list", "list again"] {
        let (time, found) = timed(|| list(&mount.mountpoint.join("images")))?;
        wants(count, found, name)?;
        figures.push((name, time));
    }
    let mut paths: Vec<PathBuf> =
        fs::read_dir(mount.mountpoint.join("images"))?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.sort();
    let step = (paths.len() / 100).max(1);
    let (time, ()) = timed(|| {
        for path in paths.iter().step_by(step) {
            fs::metadata(path.join("world/fs"))?;
        }
        Ok(())
    })?;
    figures.push(("100 images looked at", time));
    let (time, _) = timed(|| Ok(fs::canonicalize(mount.mountpoint.join("latest"))?))?;
    figures.push(("latest", time));
    let (time, found) = timed(|| list(&mount.mountpoint.join("agents/bench")))?;
    wants(count, found, "agents")?;
    figures.extend([("list agents", time), ("memory then", Figure::Bytes(memory(mount.pid).resident))]);
    mount.unmount()?;
    Ok(figures)
}

/// `count` forks of one image.
fn forks(bench: &Bench<'_>, count: usize) -> Result<Vec<(&'static str, Figure)>> {
    let dir = bench.scratch.fresh(&format!("forks-{count}"))?;
    let store = dir.join("store");
    image::write_tree(&store, 1000, false, bench.scratch)?;
    let first = mount(&dir, &store)?;
    let forks = first.mountpoint.join("forks");
    let (time, ()) = timed(|| {
        for n in 0..count {
            bench.scratch.go_on()?;
            fs::create_dir(forks.join(format!("f{n}@latest")))?;
        }
        Ok(())
    })?;
    let mut figures = vec![("all made", time)];
    let (time, ()) = timed(|| Ok(fs::create_dir(forks.join("one-more@latest"))?))?;
    figures.push(("one more", time));
    let (time, ()) = timed(|| {
        for n in 0..count {
            fs::write(forks.join(format!("f{n}/world/fs/new")), format!("{n}"))?;
        }
        Ok(())
    })?;
    figures.push(("a file written in each", time));
    let (time, found) = timed(|| list(&forks))?;
    wants(count + 1, found, "forks")?;
    let (by_command, listed) = timed(|| {
        let output = pfimg("forks").arg("--store").arg(&store).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().count())
    })?;
    // A header is above them.
    wants(count + 2, listed, "lines of `pfimg forks`")?;
    figures.push(("pfimg forks", by_command));
    figures.extend([("list", time), ("memory", Figure::Bytes(memory(first.pid).resident))]);
    first.unmount()?;
    let again = mount(&dir, &store)?;
    figures.push(("mounted again", Figure::Seconds(again.took.as_secs_f64())));
    let read = timed(|| Ok(fs::read_to_string(forks.join(format!("f{}/world/fs/new", count - 1)))?))?;
    wants(count - 1, read.1.parse().unwrap_or(usize::MAX), "what is in the last fork")?;
    figures.push(("read in the last", read.0));
    figures.push(("memory then", Figure::Bytes(memory(again.pid).resident)));
    again.unmount()?;
    Ok(figures)
}
