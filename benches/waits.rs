//! How long a `stat` waits while other requests of the same mount wait for the disk.
//!
//! A probe makes a `stat` each millisecond, in turn of the mountpoint, of a file in an image, of a file in a fork, and of a name
//! that is not there. Each of them reaches the daemon: `AT_STATX_FORCE_SYNC` makes the kernel ask for attributes that it has, and
//! the kernel does not know a name that no program asked for. The bench checks this with the daemon's counters.
//!
//! A second probe does the same on the native disk at the same time. It shows how long a `stat` waits for a core.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};

use crate::image;
use crate::measure::{Bench, median};
use crate::mounted::Mount;
use crate::result::Result;
use crate::source::Random;
use crate::systems::drop_page_cache;
use crate::text::{seconds, table, thousands};

/// The time from one `stat` to the next.
const EVERY: Duration = Duration::from_millis(1);

/// A wait that a user may notice when a command makes many of them.
const LONG: f64 = 0.010;

/// Files in each folder of the forks.
const IN_A_FOLDER: usize = 100;

/// Sizes of the work during which the probes run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amounts {
    images: usize,
    files: usize,
    /// MiB written into the fork that is sealed.
    sealed: usize,
    /// MiB of the filesystem that is full.
    disk: usize,
    /// How long the machine rests, and how long programs write to a full disk.
    time: Duration,
}

pub(crate) const FULL: Amounts =
    Amounts { images: 30_000, files: 100_000, sealed: 1024, disk: 256, time: Duration::from_secs(10) };
pub(crate) const QUICK: Amounts =
    Amounts { images: 3000, files: 10_000, sealed: 64, disk: 64, time: Duration::from_secs(2) };

/// Looks at a path once.
type Look = fn(&Path) -> io::Result<()>;

/// The waits during one kind of work, all runs together, in seconds.
#[derive(Debug)]
struct During {
    work: String,
    /// How long the work took, a value for each run.
    took: Vec<f64>,
    mount: Vec<f64>,
    native: Vec<f64>,
}

impl During {
    fn new(work: impl Into<String>) -> Self {
        Self { work: work.into(), took: Vec::new(), mount: Vec::new(), native: Vec::new() }
    }
}

/// All of them.
pub(crate) struct Waits(Vec<During>);

impl Waits {
    pub(crate) fn table(&self) -> String {
        let line = |during: &During| {
            let [mount, native] = [&during.mount, &during.native].map(|waits| Distribution::of(waits));
            let native = [native.median, native.p99, native.max].map(seconds).join(", ");
            let mut cells = vec![during.work.clone(), seconds(median(during.took.clone()))];
            cells.push(thousands(mount.count as u64));
            cells.extend([mount.median, mount.p99, mount.max].map(seconds));
            cells.extend([thousands(mount.long as u64), native]);
            cells
        };
        let head =
            ["during", "took", "stats", "median", "p99", "max", "over 10 ms", "natively: median, p99, max"];
        table(&head, &self.0.iter().map(line).collect::<Vec<_>>())
    }

    pub(crate) fn json(&self) -> Value {
        let waits = |waits: &[f64]| {
            let found = Distribution::of(waits);
            json!({
                "count": found.count, "median": found.median, "p99": found.p99, "max": found.max, "over_10_ms": found.long,
            })
        };
        let row = |during: &During| {
            json!({
                "during": during.work,
                "took_seconds": during.took,
                "mount_seconds": waits(&during.mount),
                "native_seconds": waits(&during.native),
            })
        };
        self.0.iter().map(row).collect()
    }
}

struct Distribution {
    count: usize,
    median: f64,
    p99: f64,
    max: f64,
    long: usize,
}

impl Distribution {
    fn of(waits: &[f64]) -> Self {
        let mut sorted = waits.to_vec();
        sorted.sort_by(f64::total_cmp);
        // The least wait that at most one in a hundred exceeds.
        let p99 = (sorted.len() * 99).div_ceil(100).checked_sub(1).map_or(f64::NAN, |at| sorted[at]);
        Self {
            count: sorted.len(),
            p99,
            max: sorted.last().copied().unwrap_or(f64::NAN),
            long: sorted.iter().filter(|wait| **wait > LONG).count(),
            median: median(sorted),
        }
    }
}

/// Where a probe looks.
struct Looked {
    files: Vec<OwnedFd>,
    /// A folder for names that are not there.
    folder: OwnedFd,
}

impl Looked {
    fn at(files: &[PathBuf], folder: &Path) -> io::Result<Self> {
        let open = |path: &Path| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let files = files.iter().map(|path| open(path)).collect::<rustix::io::Result<_>>()?;
        Ok(Self { files, folder: open(folder)? })
    }

    fn in_mount(mount: &Mount, image: &Path) -> io::Result<Self> {
        let fork = mount.mountpoint.join("forks/other/world/fs");
        let manifest = mount.mountpoint.join(image).join("manifest.json");
        Self::at(&[mount.mountpoint.clone(), manifest, fork.join("file")], &fork)
    }

    fn stat(&self, number: usize) -> io::Result<()> {
        static NAMES: AtomicU64 = AtomicU64::new(0);
        let kinds = self.files.len() + 1;
        if let Some(file) = self.files.get(number % kinds) {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
            return Ok(statx(file, "", flags, StatxFlags::BASIC_STATS).map(|_| ())?);
        }
        let name = format!("none-{}", NAMES.fetch_add(1, Ordering::Relaxed));
        match statx(&self.folder, name, AtFlags::empty(), StatxFlags::BASIC_STATS) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(io::Error::other("a file is there that nothing made")),
        }
    }

    /// Makes a `stat` each millisecond until the work has ended, and returns how long each waited.
    ///
    /// If one waits for longer than a millisecond, the next ones are late. Each of them counts from the time at which it was due,
    /// as if other programs had made them. The time that the probe itself sleeps too long does not count.
    fn probe(&self, ended: &AtomicBool) -> io::Result<Vec<f64>> {
        let mut waits = Vec::new();
        let mut due = Instant::now();
        loop {
            let early = due.saturating_duration_since(Instant::now());
            let mut since = due;
            if !early.is_zero() {
                if ended.load(Ordering::Relaxed) {
                    return Ok(waits);
                }
                std::thread::sleep(early);
                since = Instant::now();
            }
            self.stat(waits.len())?;
            waits.push(since.elapsed().as_secs_f64());
            due = since + EVERY;
        }
    }
}

/// Does some work while both probes run.
fn probed(
    into: &mut During,
    mount: &Mount,
    [looked, native]: [&Looked; 2],
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let asked = || -> Result<i64> {
        let requests = mount.requests()?;
        Ok(["getattr", "lookup"].iter().filter_map(|kind| requests.get(*kind)).sum())
    };
    let before = asked()?;
    let ended = &AtomicBool::new(false);
    let (took, found, natively, done) = std::thread::scope(|scope| {
        let probes = [looked, native].map(|looked| scope.spawn(move || looked.probe(ended)));
        let started = Instant::now();
        let done = work();
        let took = started.elapsed();
        ended.store(true, Ordering::Relaxed);
        let [found, natively] = probes.map(|probe| probe.join().map_err(|_| "a probe panicked"));
        (took, found, natively, done)
    });
    done?;
    let (found, natively) = (found??, natively??);
    let asked = asked()? - before;
    if asked < found.len() as i64 {
        return Err(format!("{} stats caused only {asked} requests", found.len()).into());
    }
    into.took.push(took.as_secs_f64());
    into.mount.extend(found);
    into.native.extend(natively);
    Ok(())
}

/// Does the same in two threads at the same time, as many as there are event loops.
fn twice(work: impl Fn(usize) -> io::Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let both = [0, 1].map(|n| scope.spawn(move || work(n)));
        for done in both.map(|one| one.join().map_err(|_| "a thread panicked")) {
            done??;
        }
        Ok(())
    })
}

/// Fails once a stop was requested, like [`crate::scratch::Scratch::go_on`], with an error for another thread.
fn go_on(bench: &Bench<'_>) -> io::Result<()> {
    bench.scratch.go_on().map_err(|error| io::Error::other(error.to_string()))
}

/// The name of a fork's file.
fn name(number: usize) -> String {
    format!("d{:05}/f{number:07}", number / IN_A_FOLDER)
}

/// Measures all kinds of work.
pub(crate) fn measure_all(bench: &Bench<'_>, amounts: Amounts) -> Result<Waits> {
    let dir = bench.scratch.fresh("waits")?;
    let native = native(&dir)?;
    let mut all = many(bench, amounts, &dir, &native)?;
    all.extend(full_disk(bench, amounts, &dir, &native)?);
    Ok(Waits(all))
}

fn native(dir: &Path) -> Result<Looked> {
    let folder = dir.join("native");
    fs::create_dir(&folder)?;
    let files = ["one", "two"].map(|name| folder.join(name));
    for file in &files {
        fs::write(file, "other")?;
    }
    Ok(Looked::at(&[folder.clone(), files[0].clone(), files[1].clone()], &folder)?)
}

fn mount(dir: &Path, store: &Path) -> Result<Mount> {
    let mountpoint = dir.join("mnt");
    fs::create_dir_all(&mountpoint)?;
    Mount::new(store, &mountpoint, &dir.join("cache"), &["--seal", "manual"])
}

/// Makes the fork in which a probe looks, and returns the path of the newest image.
fn make_other(mount: &Mount) -> Result<PathBuf> {
    fs::create_dir(mount.mountpoint.join("forks/other@latest"))?;
    fs::write(mount.mountpoint.join("forks/other/world/fs/file"), "other")?;
    Ok(fs::read_link(mount.mountpoint.join("latest"))?)
}

/// Measures what is done in a store of many images.
fn many(bench: &Bench<'_>, amounts: Amounts, dir: &Path, native: &Looked) -> Result<Vec<During>> {
    let Amounts { images, files, sealed, .. } = amounts;
    let store = dir.join("store");
    bench.say(format!("waits: making {} images", thousands(images as u64)));
    image::write_many(&store, images, bench.scratch)?;
    bench.say(format!("waits: writing forks of {} files", thousands(files as u64)));
    let first = mount(dir, &store)?;
    let at = |path: &str| first.mountpoint.join(path);
    let image = make_other(&first)?;
    for fork in ["one", "two", "sealed"] {
        fs::create_dir(at(&format!("forks/{fork}@latest")))?;
    }
    twice(|n| {
        let fork = at(["forks/one/world/fs", "forks/two/world/fs"][n]);
        for number in 0..files {
            if number.is_multiple_of(IN_A_FOLDER) {
                fs::create_dir(fork.join(name(number)).parent().unwrap_or(&fork))?;
                go_on(bench)?;
            }
            fs::write(fork.join(name(number)), "small")?;
        }
        Ok(())
    })?;
    first.unmount()?;
    let mut rest = During::new("rest");
    let mut latest = During::new(format!("two readlink latest, {} images", thousands(images as u64)));
    let mut forks = During::new(format!("two forks of {} files looked up", thousands(files as u64)));
    let mut seal = During::new(format!("a seal of {} MiB", thousands(sealed as u64)));
    for run in 0..bench.runs {
        let in_forks = ["one", "two"].map(|fork| format!("forks/{fork}/world/fs/{}", name(files / 2)));
        let looks: [(_, _, Look); 2] = [
            (&mut latest, ["latest"; 2].map(str::to_owned), |path| fs::read_link(path).map(|_| ())),
            (&mut forks, in_forks, |path| fs::metadata(path).map(|_| ())),
        ];
        for (into, paths, look) in looks {
            bench.say(format!("waits: {} {}/{}", into.work, run + 1, bench.runs));
            let mount = cold(bench, dir, &store)?;
            let looked = Looked::in_mount(&mount, &image)?;
            // The kernel looks up a name that it does not know once for both threads, and one that it knows for each.
            fs::read_dir(&mount.mountpoint)?.for_each(drop);
            let paths = paths.map(|path| mount.mountpoint.join(path));
            probed(into, &mount, [&looked, native], || twice(|n| look(&paths[n])))?;
            drop(looked);
            mount.unmount()?;
        }
        let mount = mount(dir, &store)?;
        let looked = Looked::in_mount(&mount, &image)?;
        bench.say(format!("waits: rest {}/{}", run + 1, bench.runs));
        bench.wait_for_quiet(&mut bench.patience.clone())?;
        probed(&mut rest, &mount, [&looked, native], || {
            std::thread::sleep(amounts.time);
            Ok(())
        })?;
        bench.say(format!("waits: writing {} MiB {}/{}", sealed, run + 1, bench.runs));
        let fork = mount.mountpoint.join("forks/sealed");
        write_half_random(bench, &fork.join("world/fs/large"), sealed, run)?;
        bench.say(format!("waits: {} {}/{}", seal.work, run + 1, bench.runs));
        probed(&mut seal, &mount, [&looked, native], || {
            Ok(fs::create_dir(fork.join(format!(".snap/run-{run}")))?)
        })?;
        drop(looked);
        mount.unmount()?;
    }
    Ok(vec![rest, latest, forks, seal])
}

/// Mounts the store with an empty page cache and a new cache folder.
fn cold(bench: &Bench<'_>, dir: &Path, store: &Path) -> Result<Mount> {
    static CACHES: AtomicU64 = AtomicU64::new(0);
    bench.wait_for_quiet(&mut bench.patience.clone())?;
    if !drop_page_cache() {
        bench.tell("only root may empty the page cache: the disk had cached the store");
    }
    let cache = dir.join(format!("cache-{}", CACHES.fetch_add(1, Ordering::Relaxed)));
    Mount::new(store, &dir.join("mnt"), &cache, &["--seal", "manual"])
}

/// Writes a file that differs in each run. Half of it compresses.
fn write_half_random(bench: &Bench<'_>, path: &Path, mib: usize, run: usize) -> Result<()> {
    let mut random = Random::new(run as u64 + 1);
    let mut file = fs::File::create(path)?;
    for _ in 0..mib {
        bench.scratch.go_on()?;
        let mut piece: Vec<u8> = (0..1 << 16).flat_map(|_| random.next().to_le_bytes()).collect();
        piece.resize(1 << 20, random.next() as u8);
        file.write_all(&piece)?;
    }
    Ok(())
}

/// Measures writes to forks whose disk is full, if this can be done here.
fn full_disk(bench: &Bench<'_>, amounts: Amounts, dir: &Path, native: &Looked) -> Result<Option<During>> {
    if !rustix::process::geteuid().is_root() {
        bench.tell("the full disk is left out: only root may mount a small filesystem");
        return Ok(None);
    }
    // The namespace is that of one thread and of the programs that it starts, and ends with them.
    let measured = std::thread::scope(|scope| {
        let all = scope.spawn(|| {
            let found = in_namespace(bench, amounts, dir, native);
            found.map_err(|error| error.to_string())
        });
        all.join().map_err(|_| "a thread panicked")
    })?;
    Ok(measured?)
}

#[allow(unsafe_code, reason = "rustix has no safe way into another namespace")]
fn in_namespace(bench: &Bench<'_>, amounts: Amounts, dir: &Path, native: &Looked) -> Result<Option<During>> {
    // SAFETY: descriptors stay shared with the other threads.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let (image, small) = (dir.join("disk.ext4"), dir.join("small"));
    fs::create_dir(&small)?;
    fs::File::create(&image)?.set_len((amounts.disk as u64) << 20)?;
    let made = |command: &mut Command| {
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !made(Command::new("mkfs.ext4").arg("-qF").arg(&image))
        || !made(Command::new("mount").args(["-o", "loop"]).args([&image, &small]))
    {
        bench.tell("the full disk is left out: it takes mkfs.ext4 and a loop device");
        return Ok(None);
    }
    let measured = on_full_disk(bench, amounts, dir, &small.join("store"), native);
    if measured.is_err() {
        let _ = unmount(dir.join("mnt"), UnmountFlags::DETACH);
    }
    unmount(&small, UnmountFlags::DETACH)?;
    measured.map(Some)
}

fn on_full_disk(
    bench: &Bench<'_>,
    amounts: Amounts,
    dir: &Path,
    store: &Path,
    native: &Looked,
) -> Result<During> {
    image::write_many(store, 1, bench.scratch)?;
    let mount = mount(dir, store)?;
    let image = make_other(&mount)?;
    let names = ["one", "two"];
    for name in names {
        fs::create_dir(mount.mountpoint.join(format!("forks/{name}@latest")))?;
    }
    let looked = Looked::in_mount(&mount, &image)?;
    let mut full = During::new(format!("writes to a full disk of {} MiB", amounts.disk));
    let refused = AtomicU64::new(0);
    let piece = vec![7; 1 << 20];
    for run in 0..bench.runs {
        bench.say(format!("waits: {} {}/{}", full.work, run + 1, bench.runs));
        bench.wait_for_quiet(&mut bench.patience.clone())?;
        let started = Instant::now();
        probed(&mut full, &mount, [&looked, native], || {
            twice(|n| {
                // A file grows until the disk is full, and is removed. The next write makes room.
                let path = mount.mountpoint.join("forks").join(names[n]).join("world/fs/grows");
                while started.elapsed() < amounts.time {
                    go_on(bench)?;
                    let grown = fs::File::create(&path).and_then(|mut file| {
                        while started.elapsed() < amounts.time {
                            file.write_all(&piece)?;
                        }
                        Ok(())
                    });
                    match grown {
                        Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        grown => grown?,
                    }
                    fs::remove_file(&path)?;
                }
                Ok(())
            })
        })?;
    }
    drop(looked);
    mount.unmount()?;
    if refused.load(Ordering::Relaxed) == 0 {
        return Err("the disk was never full".into());
    }
    Ok(full)
}
